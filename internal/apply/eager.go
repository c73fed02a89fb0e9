package apply

import (
	"context"
	"time"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/pgoutput"
)

// A transaction that streams in before its commit is applied as it comes when it is
// alone: it is nearly done when the commit arrives, where its changes would begin to
// be written. They are kept in the spool all the same, and the target transaction is
// rolled back, and the spool used, as soon as anything else wants to be applied or to
// happen: another transaction's commit, since only whole transactions are committed
// and in their order; a subtransaction's rollback; a command of the schema, which
// would lock out the replica's readers for as long as the primary takes; a comparison.
// A transaction gets one such chance, and only on a stream that was quiet before, so
// that a busy one does not wait for work that is thrown away.

// quietBefore is how long no transaction was committed before one is applied early.
const quietBefore = time.Second

// eager is the transaction that is applied before its commit.
type eager struct {
	spool *spool
}

// mayApplyEarly tells whether the transaction that begins to stream in is alone, and is not
// the last one that is applied here, which the stream may begin with once more.
func (a *Applier) mayApplyEarly(xid uint32) bool {
	return xid != a.last.XID && a.eager == nil && a.txn == nil && len(a.spools) == 1 && time.Since(a.busy) >= a.quiet &&
		!a.seeds.active && len(a.seeds.tables) == 0 && len(a.repair.tables) == 0 && a.barrier == nil && a.wanted.Load() == 0
}

// beginEarly opens the target transaction of a streamed one.
func (a *Applier) beginEarly(ctx context.Context, xid uint32, s *spool) error {
	if err := a.settleBatch(ctx, false); err != nil {
		return err
	}
	a.begin(xid, a.received, true)
	a.txn.skip = false // it was not committed before the stream's start
	a.eager = &eager{spool: s}
	return nil
}

// applyEarly applies a change that was spooled just now.
func (a *Applier) applyEarly(ctx context.Context, msg pgoutput.Message, lsn frame.LSN, payload []byte) error {
	switch m := msg.(type) {
	case *pgoutput.LogicalMessage:
		if m.Prefix == ddlPrefix || m.Prefix == handoffPrefix {
			return a.withdraw(ctx)
		}
		return nil
	case *pgoutput.Truncate:
		return a.withdraw(ctx)
	case *pgoutput.Insert, *pgoutput.Update, *pgoutput.Delete:
		if missing, err := a.targetMissing(ctx, msg); missing || err != nil {
			if err != nil {
				return err
			}
			return a.withdraw(ctx) // its command comes behind its rows
		}
	}
	return a.change(ctx, msg, lsn, payload)
}

// targetMissing tells whether a change is of a table that does not exist yet.
func (a *Applier) targetMissing(ctx context.Context, msg pgoutput.Message) (bool, error) {
	var id uint32
	switch m := msg.(type) {
	case *pgoutput.Insert:
		id = m.RelationID
	case *pgoutput.Update:
		id = m.RelationID
	case *pgoutput.Delete:
		id = m.RelationID
	}
	r := a.relations[id]
	if r == nil || r.target != nil || r.def.Namespace == "hawser" {
		return false, nil
	}
	found, err := a.lookUp(ctx, r)
	return err == nil && len(found) == 0, err
}

// withdraw takes back what was applied early, and what is held of it. The spool has it.
func (a *Applier) withdraw(ctx context.Context) error {
	if a.eager == nil {
		return nil
	}
	a.eager = nil
	open, indexed := a.batch.open, a.batch.indexed
	a.txn, a.batch = nil, batch{}
	a.cfg.Replayer.Reset()
	if !open {
		return nil
	}
	if err := a.execOwn(ctx, sqlRollback); err != nil {
		return err
	}
	if indexed { // which is gone
		clear(a.scans)
		return a.forgetTargets(ctx)
	}
	return a.out.idle()
}

// begin has the server begin with what is held: nothing may follow for long.
func (w *writer) begin() error {
	if err := w.settle(); err != nil {
		return err
	}
	return w.flush()
}
