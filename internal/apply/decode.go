package apply

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Prefixes of the logical messages that Hawser writes into the primary's WAL.
const (
	ddlPrefix     = "hawser.ddl"
	handoffPrefix = "hawser.handoff"
)

// record takes one message of the stream. more says that another is waiting.
func (a *Applier) record(ctx context.Context, r frame.Record, more bool) error {
	a.received = max(a.received, r.LSN)
	msg, err := a.dec.Decode(r.Payload)
	if err != nil {
		return notUnderstood(r.LSN, err)
	}
	switch m := msg.(type) {
	case *pgoutput.StreamStart:
		return a.openStream(ctx, m)
	case *pgoutput.StreamStop:
		early := a.eager != nil && a.eager.spool == a.inStream
		a.inStream = nil
		if early {
			return a.out.begin()
		}
		return nil
	case *pgoutput.StreamCommit:
		return a.streamCommit(ctx, m, more)
	case *pgoutput.StreamAbort:
		return a.streamAbort(ctx, m)
	}
	if a.inStream != nil {
		if err := a.keepStreamed(ctx, msg, r.Payload); err != nil || a.eager == nil || a.eager.spool != a.inStream {
			return err
		}
		return a.applyEarly(ctx, msg, r.LSN, r.Payload)
	}
	if err := a.withdraw(ctx); err != nil {
		return err
	}
	switch m := msg.(type) {
	case *pgoutput.Begin:
		if err := a.meetTransaction(m.XID, frame.LSN(m.FinalLSN)); err != nil {
			return err
		}
		if err := a.meetBarrier(ctx, m.XID, frame.LSN(m.FinalLSN)); err != nil {
			return err
		}
		a.begin(m.XID, frame.LSN(m.FinalLSN), false)
		return nil
	case *pgoutput.Commit:
		return a.commit(ctx, frame.LSN(m.EndLSN), m.CommitTime, more)
	}
	return a.change(ctx, msg, r.LSN, r.Payload)
}

func notUnderstood(lsn frame.LSN, err error) error {
	return problem.New("not-understood", "position "+lsn.String(),
		"the primary sent a message that this version of Hawser does not understand; nothing was skipped",
		"").Advise("run the newest version of hawser on both sides").Because(err)
}

// begin starts a source transaction whose commit record lies at final.
func (a *Applier) begin(xid uint32, final frame.LSN, streamed bool) {
	a.txn = &transaction{xid: xid, skip: final < a.position, lsn: final, commit: final, streamed: streamed}
	a.cfg.Replayer.Reset()
}

// commit ends the source transaction. It commits the target transaction too,
// unless more is waiting and the batch has room.
func (a *Applier) commit(ctx context.Context, end frame.LSN, at time.Time, more bool) error {
	if a.txn == nil {
		return fmt.Errorf("a commit at %s without its begin", end)
	}
	if a.txn.ddl {
		if err := a.cfg.Replayer.Finish(); err != nil {
			return err
		}
	}
	a.batch.end, a.batch.at = end, at
	a.batch.commit, a.batch.xid = a.txn.commit, a.txn.xid
	a.batch.ddl = a.batch.ddl || a.txn.ddl
	a.busy, a.backlog.last = time.Now(), at
	a.unseen.applied(a.txn.xid, a.seeds.now)
	a.out.rows = a.backlog.rows()
	// settleBatch must not see a transaction: it is whole.
	txn := a.txn
	a.txn = nil
	// A replica that is behind waits for the next tick: more will come.
	if err := a.settleBatch(ctx, more || a.backlog.behind()); err != nil {
		a.txn = txn
		return err
	}
	return a.yield(ctx)
}

// change carries out one message inside a source transaction, or a logical
// message outside of any.
func (a *Applier) change(ctx context.Context, msg pgoutput.Message, lsn frame.LSN, payload []byte) error {
	switch m := msg.(type) {
	case *pgoutput.Relation:
		a.define(m, payload)
		return nil
	case *pgoutput.Type:
		a.types[m.OID] = *m
		return nil
	case *pgoutput.Origin:
		return nil
	case *pgoutput.LogicalMessage:
		return a.message(ctx, m)
	}
	if a.txn == nil {
		return fmt.Errorf("a %T at %s outside of a transaction", msg, lsn)
	}
	a.txn.lsn = lsn
	if a.txn.skip {
		return nil
	}
	switch m := msg.(type) {
	case *pgoutput.Insert:
		return a.route(ctx, m.RelationID, payload, func(r *relation) error { return a.insert(ctx, r, m) })
	case *pgoutput.Update:
		return a.route(ctx, m.RelationID, payload, func(r *relation) error { return a.update(ctx, r, m) })
	case *pgoutput.Delete:
		return a.route(ctx, m.RelationID, payload, func(r *relation) error { return a.delete(ctx, r, m) })
	case *pgoutput.Truncate:
		return a.truncate(ctx, m, payload)
	}
	return notUnderstood(lsn, fmt.Errorf("unexpected %T", msg))
}

// message takes a logical message; those that are not ours belong to others.
func (a *Applier) message(ctx context.Context, m *pgoutput.LogicalMessage) error {
	if a.txn == nil || a.txn.skip || !m.Transactional {
		return nil
	}
	switch m.Prefix {
	case ddlPrefix:
		return a.ddl(ctx, m.Content)
	case handoffPrefix:
		if !a.cfg.Accept(m.Content, !a.seeds.active && len(a.repair.tables) == 0) {
			return a.ensureBatch(ctx) // the position behind it is stored: it is not met again
		}
		a.handoff = &Handoff{Content: append([]byte(nil), m.Content...)}
		a.txn = nil
		return a.settleBatch(ctx, false)
	}
	return nil
}

// ddl replays a captured command in its place. What is known of the replica's
// tables is forgotten, since any of it may have changed.
func (a *Applier) ddl(ctx context.Context, content []byte) error {
	if a.seeds.schemaSees(a.txn.xid) {
		return nil
	}
	if a.seeds.blocksDDL() {
		return ErrTablesFirst
	}
	a.txn.ddl, a.txn.ofScript, a.seeds.wayMade = true, map[uint32]bool{}, false
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	if err := a.out.idle(); err != nil {
		return err
	}
	a.batch.changes++
	if err := freePlans(ctx, a.conn, true); err != nil {
		return err
	}
	effect, err := a.cfg.Replayer.Replay(ctx, a.conn, content)
	if err != nil {
		return fmt.Errorf("replay DDL: %w", err)
	}
	if err := freePlans(ctx, a.conn, false); err != nil {
		return err
	}
	for _, t := range effect.Reseed {
		a.seeds.again(t, a.txn.xid)
		a.reseed = true
	}
	return a.forgetTargets(ctx)
}

// attend hears what the replica's server says unasked while nothing is written: above
// all, that it ended the session. The next write may be hours away.
func (a *Applier) attend(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushEvery)
	defer cancel()
	for !a.out.busy && a.out.turn == nil && postgres.Speaks(a.conn.PgConn().Conn()) {
		_, err := a.conn.PgConn().ReceiveMessage(ctx)
		if pgconn.Timeout(err) { // it has only begun to speak
			return nil
		}
		if err != nil {
			a.out.broken = true
			return problem.New("replica-lost", "the replica's PostgreSQL", "it ended the session that applies changes: "+err.Error(),
				"").Advise("start it, if nothing else does: the link connects again by itself").Retry()
		}
	}
	return nil
}

// heartbeat moves the position on while nothing of the database is written.
func (a *Applier) heartbeat(ctx context.Context, h frame.Heartbeat) error {
	if !h.At.IsZero() {
		a.backlog.heard = h.At
		if a.txn == nil && a.batch.end == 0 && a.backlog.closing == nil {
			a.backlog.last = h.At // nothing came before it that is not applied
		}
	}
	if h.Snapshot != "" {
		if err := a.attend(ctx); err != nil {
			return err
		}
		if err := a.meetSlot(h.End); err != nil {
			return err
		}
		s, err := frame.ParseSnapshot(h.Snapshot)
		if err != nil {
			return err
		}
		a.seeds.observe(s)
		a.unseen.observe(s)
	}
	a.due = a.due || h.End == 0 && len(a.sequences) > 0
	if a.eager != nil && a.due { // setting them is no part of the transaction
		a.due = false
		return a.applySequences(ctx)
	}
	if a.txn != nil {
		return nil
	}
	if h.End > 0 {
		if a.expected && h.End >= a.last.End {
			return a.otherHistory("has none there")
		}
		if err := a.settleBatch(ctx, false); err != nil {
			return err
		}
		a.received = max(a.received, h.End)
		a.reach(h.End)
		return nil
	}
	if !a.due {
		return nil
	}
	if err := a.settleBatch(ctx, false); err != nil {
		return err
	}
	return a.yield(ctx)
}

// openStream begins or goes on with a transaction that is sent before its commit.
func (a *Applier) openStream(ctx context.Context, m *pgoutput.StreamStart) error {
	s := a.spools[m.XID]
	first := s == nil
	if first {
		var err error
		if s, err = newSpool(a.cfg.SpoolDir, m.XID); err != nil {
			return err
		}
		a.spools[m.XID] = s
	}
	a.inStream = s
	if first && a.mayApplyEarly(m.XID) {
		return a.beginEarly(ctx, m.XID, s)
	}
	return nil
}

// keepStreamed puts a message of the open stream block into its spool, with what made it.
func (a *Applier) keepStreamed(ctx context.Context, msg pgoutput.Message, payload []byte) error {
	by, _ := pgoutput.SubXID(msg)
	if m, ok := msg.(*pgoutput.LogicalMessage); ok && m.Prefix == ddlPrefix {
		author, err := a.cfg.Replayer.Author(ctx, m.Content)
		if err != nil {
			return err
		}
		by = author
	}
	return a.inStream.add(by, msg, payload)
}

func (a *Applier) streamAbort(ctx context.Context, m *pgoutput.StreamAbort) error {
	s := a.spools[m.XID]
	if s == nil {
		return nil
	}
	if a.eager != nil && a.eager.spool == s {
		if err := a.withdraw(ctx); err != nil {
			return err
		}
	}
	if m.SubXID != m.XID {
		return s.abort(m.SubXID)
	}
	delete(a.spools, m.XID)
	return s.discard()
}

// streamCommit applies a spooled transaction in its place in the commit order.
func (a *Applier) streamCommit(ctx context.Context, m *pgoutput.StreamCommit, more bool) error {
	if err := a.meetTransaction(m.XID, frame.LSN(m.CommitLSN)); err != nil {
		return err
	}
	if s := a.spools[m.XID]; a.eager != nil && a.eager.spool == s && frame.LSN(m.CommitLSN) >= a.position {
		a.eager = nil
		a.txn.lsn, a.txn.commit = frame.LSN(m.CommitLSN), frame.LSN(m.CommitLSN)
		delete(a.spools, m.XID)
		if err := s.discard(); err != nil {
			return err
		}
		return a.commit(ctx, frame.LSN(m.EndLSN), m.CommitTime, more)
	}
	if err := a.withdraw(ctx); err != nil {
		return err
	}
	if err := a.meetBarrier(ctx, m.XID, frame.LSN(m.CommitLSN)); err != nil {
		return err
	}
	a.begin(m.XID, frame.LSN(m.CommitLSN), true)
	if s := a.spools[m.XID]; s != nil {
		dec := pgoutput.Decoder{}
		err := s.replay(func(payload []byte) error {
			msg, err := dec.DecodeChange(payload, true)
			if err != nil {
				return notUnderstood(frame.LSN(m.CommitLSN), err)
			}
			return a.change(ctx, msg, frame.LSN(m.CommitLSN), payload)
		})
		if err != nil {
			return err
		}
		delete(a.spools, m.XID)
		if err := s.discard(); err != nil {
			return err
		}
	}
	return a.commit(ctx, frame.LSN(m.EndLSN), m.CommitTime, more)
}
