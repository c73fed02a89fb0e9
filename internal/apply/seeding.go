package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/pgoutput"
)

// ErrRetake says that a transaction was skipped for a table which the table's
// snapshot does not see: another snapshot must be taken.
//
// It happens when a transaction is streamed after its commit record was written
// and before other sessions see it, as while it waits for a synchronous standby.
var ErrRetake = errors.New("a skipped transaction is not in the snapshot")

// ErrTablesFirst says that DDL arrived which must wait until the tables that are
// being copied are live: their indexes and deferred changes belong before it.
var ErrTablesFirst = errors.New("DDL waits for the tables that are being copied")

// seeding holds the rule that lets the stream run beside the copy.
//
// A table is copied under its own snapshot S. A streamed transaction that S sees
// is in the copy and is skipped for that table; any other is applied, once the
// copy is there. So, by the state of the table:
//
//	pending  skip; S is not taken yet and will see the transaction
//	copying  S sees it: skip; else keep it in hawser.deferred, where it stays if
//	         another S is taken that does not see it either
//	loaded   the same
//	live     S sees it: skip; else apply. S is forgotten when the stream has
//	         passed every transaction that it sees
//
// "S will see it" is checked, not believed: skipped transactions are remembered,
// with the position, until some later snapshot sees them, and SnapshotTaken
// refuses a snapshot that does not see them all.
type seeding struct {
	active  bool           // the copy is not known to be complete
	schema  frame.Snapshot // of the schema's dump; zero when that is passed
	tables  map[uint32]*seedTable
	unbuilt bool // a part of the schema is not there yet
	wayMade bool // Config.MakeWay was called since the last DDL
	skipped map[uint64]bool
	changed bool           // skipped is not stored as it is
	now     frame.Snapshot // the latest one seen, for the epoch of transaction ids
	asked   int            // snapshots that are being taken: nothing is forgotten meanwhile
}

type seedTable struct {
	catalog.SeedTable
	asked   bool
	by      uint64    // the transaction whose DDL put it down to be copied; 0: not known, or none
	seen    bool      // by, on the primary, when it was asked for
	defined *relation // as last stored in hawser.deferred
}

func (s *seeding) load(ctx context.Context, db catalog.DB, link string) error {
	*s = seeding{tables: map[uint32]*seedTable{}, skipped: map[uint64]bool{}}
	state, ok, err := catalog.LoadSeeding(ctx, db, link)
	if err != nil || !ok || state.Done {
		return err
	}
	s.active = true
	if state.Initial {
		s.schema = state.Snapshot
	}
	for _, x := range state.Skipped {
		s.skipped[x] = true
	}
	tables, err := catalog.SeedTables(ctx, db, link)
	if err != nil {
		return err
	}
	if s.unbuilt, err = catalog.Unbuilt(ctx, db, link); err != nil {
		return err
	}
	for _, t := range tables {
		s.tables[t.OID] = &seedTable{SeedTable: t}
	}
	return nil
}

// observe takes in a later snapshot of the primary.
func (s *seeding) observe(snap frame.Snapshot) {
	s.now = snap
	if !s.active || s.asked > 0 {
		return
	}
	for x := range s.skipped {
		if sees(snap, x) {
			delete(s.skipped, x)
			s.changed = true
		}
	}
}

func sees(snap frame.Snapshot, full uint64) bool {
	return full < snap.Xmin || full < snap.Xmax && !slices.Contains(snap.Xip, full)
}

func (s *seeding) skip(xid uint32) {
	full := s.now.FullXID(xid)
	if !s.skipped[full] {
		s.skipped[full] = true
		s.changed = true
	}
}

// schemaSees tells whether the restored schema has the effect of xid's DDL.
func (s *seeding) schemaSees(xid uint32) bool { return s.schema.Xmax > 0 && s.schema.Sees(xid) }

// blocksDDL tells whether DDL has to wait. It may speak of anything in the schema that
// was restored, so all of that must be there. And it may not come between the rows of a
// table and their deferred changes. While no row is there it may pass: the rows that
// follow are taken from a snapshot that the stream has passed (package seed sees to
// that), so they have its effect.
func (s *seeding) blocksDDL() bool {
	if !s.active {
		return false
	}
	for _, t := range s.tables {
		if t.State == catalog.Copying || t.State == catalog.Loaded {
			return true
		}
	}
	return s.unbuilt
}

// passed forgets the snapshots whose every transaction the stream has passed.
func (s *seeding) passed(lsn frame.LSN) {
	for oid, t := range s.tables {
		if t.State == catalog.Live && t.LSN <= lsn {
			delete(s.tables, oid)
		}
	}
}

// route gives a change to its table, or keeps or skips it.
func (a *Applier) route(ctx context.Context, id uint32, payload []byte, apply func(*relation) error) error {
	r := a.relations[id]
	if r == nil {
		return fmt.Errorf("a change of relation %d, which the stream did not define", id)
	}
	if r.def.Namespace == "hawser" {
		return nil
	}
	if mine, err := a.ofScript(ctx, r); mine || err != nil {
		return err
	}
	t := a.seeds.tables[id]
	switch {
	case t == nil && a.seeds.schemaSees(a.txn.xid):
		return nil // the table was gone, or out of the link, when the schema was taken
	case t == nil:
		return apply(r)
	case t.State == catalog.Pending:
		a.seeds.skip(a.txn.xid)
		return nil
	case t.Snapshot.Sees(a.txn.xid):
		return nil
	case t.State == catalog.Live:
		return apply(r)
	}
	return a.postpone(ctx, r, t, payload)
}

// ofScript tells whether the rows of a table are made by the replay of DDL.
func (a *Applier) ofScript(ctx context.Context, r *relation) (mine bool, err error) {
	if !a.txn.ddl || !a.cfg.Replayer.InScript() {
		return false, nil
	}
	mine, known := a.txn.ofScript[r.def.ID]
	if known {
		return mine, nil
	}
	if err := a.out.idle(); err != nil {
		return false, err
	}
	mine, err = a.cfg.Replayer.OfScript(ctx, a.conn, r.def)
	if err == nil {
		a.txn.ofScript[r.def.ID] = mine
	}
	return mine, err
}

const sqlDefer = `INSERT INTO hawser.deferred (link, oid, payload, xid) VALUES ($1, $2, $3, $4)`

// postpone stores a change for a table whose copy is not there yet, behind the
// definition of its columns.
func (a *Applier) postpone(ctx context.Context, r *relation, t *seedTable, payload []byte) error {
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	if t.defined != r {
		if err := a.store(ctx, t.OID, r.payload); err != nil {
			return err
		}
		t.defined = r
	}
	a.batch.changes++
	return a.store(ctx, t.OID, keep(payload, a.txn.streamed))
}

// keep writes a record as hawser.deferred holds it: behind a byte that tells the
// form of stream blocks, 's', from the plain one, 'p'.
func keep(payload []byte, streamed bool) []byte {
	form := byte('p')
	if streamed {
		form = 's'
	}
	return append([]byte{form}, payload...)
}

func (a *Applier) store(ctx context.Context, oid uint32, payload []byte) error {
	hex := fmt.Appendf(nil, `\x%x`, payload)
	return a.execOwn(ctx, sqlDefer, []byte(a.cfg.ID), fmt.Append(nil, oid), hex, fmt.Append(nil, a.seeds.now.FullXID(a.txn.xid)))
}

const sqlSkipped = `UPDATE hawser.seeding SET skipped = $2 WHERE link = $1`

// storeSkipped keeps the skipped transactions with the position.
func (a *Applier) storeSkipped(ctx context.Context) error {
	if !a.seeds.changed {
		return nil
	}
	a.seeds.changed = false
	list := []byte{'{'}
	for x := range a.seeds.skipped {
		if len(list) > 1 {
			list = append(list, ',')
		}
		list = fmt.Append(list, x)
	}
	return a.execOwn(ctx, sqlSkipped, []byte(a.cfg.ID), append(list, '}'))
}

// Requested must be called before a snapshot of the table is asked for.
func (a *Applier) Requested(ctx context.Context, oid uint32) error {
	return a.do(ctx, func(context.Context) error {
		if t := a.seeds.tables[oid]; t != nil && !t.asked {
			t.asked = true
			a.seeds.asked++
			t.seen = t.by == 0 || sees(a.seeds.now, t.by)
		}
		return nil
	})
}

// SnapshotTaken records the snapshot under which a table will be copied, or
// returns ErrRetake. It may be another one, of a table whose copy begins anew.
func (a *Applier) SnapshotTaken(ctx context.Context, taken catalog.SeedTable) error {
	return a.do(ctx, func(ctx context.Context) error {
		t := a.seeds.tables[taken.OID]
		if t == nil {
			return fmt.Errorf("table %d is not being seeded", taken.OID)
		}
		if !t.asked {
			return ErrRetake // DDL put the table down anew since, and the snapshot may be of before
		}
		for x := range a.seeds.skipped {
			if !sees(taken.Snapshot, x) {
				return ErrRetake
			}
		}
		a.seeds.unask(t)
		err := pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
			if err := a.makeWay(ctx, tx); err != nil {
				return err
			}
			if err := catalog.Retake(ctx, tx, a.cfg.ID, taken.OID, taken.Snapshot); err != nil {
				return err
			}
			return catalog.SetCopying(ctx, tx, a.cfg.ID, taken)
		})
		if err != nil {
			return a.lost(err)
		}
		taken.State = catalog.Copying
		t.SeedTable, t.defined = taken, nil
		return nil
	})
}

func (a *Applier) makeWay(ctx context.Context, tx pgx.Tx) error {
	if a.seeds.wayMade || a.cfg.MakeWay == nil {
		return nil
	}
	any, err := a.cfg.MakeWay(ctx, tx)
	a.seeds.wayMade, a.seeds.unbuilt = err == nil, a.seeds.unbuilt || any
	return err
}

// lost marks the connection as unusable after a failed command.
func (a *Applier) lost(err error) error {
	a.out.broken = true
	return err
}

// Loaded applies what was deferred for a table whose rows and indexes are there.
// The table is live afterwards.
func (a *Applier) Loaded(ctx context.Context, oid uint32) error {
	return a.do(ctx, func(ctx context.Context) error {
		t := a.seeds.tables[oid]
		if t == nil || t.State == catalog.Live {
			return nil
		}
		if err := a.drain(ctx, t); err != nil {
			return a.lost(fmt.Errorf("apply the deferred changes of table %s.%s: %w", t.Schema, t.Name, err))
		}
		t.State = catalog.Live
		a.seeds.passed(a.reached)
		return nil
	})
}

// Gone forgets a table that was dropped on the primary before it was copied, or went out of
// the link. It returns ErrRetake when DDL may have put the table down anew since it was
// asked for: it is no longer what was missing.
func (a *Applier) Gone(ctx context.Context, oid uint32) error {
	return a.do(ctx, func(ctx context.Context) error {
		if t := a.seeds.tables[oid]; t != nil && !(t.asked && t.seen) {
			a.seeds.unask(t)
			return ErrRetake
		}
		if err := catalog.SetTableState(ctx, a.conn, a.cfg.ID, oid, catalog.Live); err != nil {
			return a.lost(err)
		}
		if t := a.seeds.tables[oid]; t != nil {
			a.seeds.unask(t)
			delete(a.seeds.tables, oid)
		}
		return nil
	})
}

// SeedingDone records that the copy is complete. It is not if the stream has brought DDL
// since that left something to do.
func (a *Applier) SeedingDone(ctx context.Context) (done bool, err error) {
	err = a.do(ctx, func(ctx context.Context) error {
		err := pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) (err error) {
			done, err = catalog.FinishSeeding(ctx, tx, a.cfg.ID)
			if err != nil || !done || a.cfg.Copied == nil {
				return err
			}
			return a.cfg.Copied(ctx, tx)
		})
		if err != nil {
			return a.lost(err)
		}
		if !done {
			return nil
		}
		a.seeds.active, a.seeds.schema, a.seeds.skipped = false, frame.Snapshot{}, map[uint64]bool{}
		return a.forgetTargets(ctx) // the tables have got their last constraints
	})
	return done, err
}

// again takes a table back to the start of its copy, by DDL of a transaction. Whatever was
// asked for it before is void, and a snapshot has to see that transaction: rows that were
// written while the table was out of the link are in no stream.
func (s *seeding) again(t catalog.SeedTable, xid uint32) {
	s.active = true
	if was := s.tables[t.OID]; was != nil {
		s.unask(was)
	}
	s.skip(xid)
	s.tables[t.OID] = &seedTable{SeedTable: t, by: s.now.FullXID(xid)}
}

func (s *seeding) unask(t *seedTable) {
	if t.asked {
		t.asked = false
		s.asked--
	}
}

// drainRows is how many deferred changes are applied by one transaction.
const drainRows = 2000

// drain applies a table's deferred changes in order. Each step removes what it
// applied, so that a crash repeats nothing.
func (a *Applier) drain(ctx context.Context, t *seedTable) error {
	var rel *relation
	dec := pgoutput.Decoder{}
	a.txn = &transaction{}
	defer func() { a.txn = nil }()
	for {
		rows, err := a.deferred(ctx, t.OID)
		if err != nil {
			return err
		}
		if err := a.ensureBatch(ctx); err != nil {
			return err
		}
		for _, row := range rows {
			if rel, err = a.drainOne(ctx, &dec, rel, row.payload); err != nil {
				return err
			}
		}
		if err := a.out.idle(); err != nil {
			return err
		}
		if err := a.drained(ctx, t.OID, rel, rows); err != nil {
			return err
		}
		if len(rows) < drainRows {
			return nil
		}
	}
}

// drained ends one step. The definition in force is kept in front of what is left.
func (a *Applier) drained(ctx context.Context, oid uint32, rel *relation, rows []deferredRow) error {
	if len(rows) < drainRows {
		if _, err := a.conn.Exec(ctx, `DELETE FROM hawser.deferred WHERE link = $1 AND oid = $2`, a.cfg.ID, oid); err != nil {
			return err
		}
		if err := catalog.SetTableState(ctx, a.conn, a.cfg.ID, oid, catalog.Live); err != nil {
			return err
		}
	} else {
		last := rows[len(rows)-1].seq
		if _, err := a.conn.Exec(ctx, `DELETE FROM hawser.deferred WHERE link = $1 AND oid = $2 AND seq < $3`, a.cfg.ID, oid, last); err != nil {
			return err
		}
		if _, err := a.conn.Exec(ctx, `UPDATE hawser.deferred SET payload = $4 WHERE link = $1 AND oid = $2 AND seq = $3`,
			a.cfg.ID, oid, last, rel.payload); err != nil {
			return err
		}
	}
	if err := a.execOwn(ctx, sqlCommit); err != nil {
		return err
	}
	a.batch = batch{}
	// The stored position has not moved: there is nothing more to confirm. (a.position may
	// be beyond it, by transactions that held nothing for this replica.)
	return a.out.idle()
}

type deferredRow struct {
	seq     int64
	payload []byte
}

func (a *Applier) deferred(ctx context.Context, oid uint32) ([]deferredRow, error) {
	rows, err := a.conn.Query(ctx, `
		SELECT seq, payload FROM hawser.deferred WHERE link = $1 AND oid = $2 ORDER BY seq LIMIT $3`, a.cfg.ID, oid, drainRows)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (d deferredRow, err error) {
		return d, row.Scan(&d.seq, &d.payload)
	})
}

// drainOne applies one deferred record, which may be a definition.
func (a *Applier) drainOne(ctx context.Context, dec *pgoutput.Decoder, rel *relation, payload []byte) (*relation, error) {
	a.txn.streamed = payload[0] == 's'
	msg, err := dec.DecodeChange(payload[1:], a.txn.streamed)
	if err != nil {
		return rel, notUnderstood(a.position, err)
	}
	switch m := msg.(type) {
	case *pgoutput.Relation:
		a.define(m, payload[1:])
		return a.relations[m.ID], nil
	case *pgoutput.Insert:
		return rel, a.insert(ctx, rel, m)
	case *pgoutput.Update:
		return rel, a.update(ctx, rel, m)
	case *pgoutput.Delete:
		return rel, a.delete(ctx, rel, m)
	case *pgoutput.Truncate:
		if err := a.out.idle(); err != nil {
			return rel, err
		}
		return rel, emptyTables(ctx, a.conn, []string{rel.quoted})
	}
	return rel, fmt.Errorf("unexpected %T among the deferred changes", msg)
}
