package apply

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
)

// The target commits without waiting for its disk (synchronous_commit = off), so
// that a change is visible at once. A commitMark remembers where in the replica's
// own WAL a source position was committed: it is durable, and may be confirmed to
// the primary's slot, when the replica has flushed so far. If the replica loses
// the tail in a crash, the position goes back with it, and the slot still has it.
type commitMark struct {
	source frame.LSN
	target frame.LSN
}

const (
	sqlBegin    = `BEGIN`
	sqlCommit   = `COMMIT`
	sqlRollback = `ROLLBACK`
	sqlFlush    = `BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'hawser.flush', ''); COMMIT`
	sqlWhere    = `SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text`
)

// ensureBatch opens the target transaction.
func (a *Applier) ensureBatch(ctx context.Context) error {
	if a.batch.open {
		return nil
	}
	if a.backlog.closing != nil {
		a.backlog.begin = true
	} else if err := a.execOwn(ctx, sqlBegin); err != nil {
		return err
	}
	a.batch.open, a.batch.since = true, time.Now()
	return nil
}

// execOwn queues one of the applier's own statements.
func (a *Applier) execOwn(_ context.Context, sql string, values ...[]byte) error {
	return a.out.exec(a.out.own(sql), values, expectation{affected: -1})
}

// settleBatch commits the target transaction when it holds whole source
// transactions alone and should not wait for more.
func (a *Applier) settleBatch(ctx context.Context, more bool) error {
	if a.txn != nil {
		return nil
	}
	more = more && a.handoff == nil && !a.batch.ddl && a.wanted.Load() == 0 && a.barrier == nil && !a.due
	if a.batch.end == 0 || more && !a.backlog.full(a.batch) {
		if more {
			return nil
		}
		return a.conclude()
	}
	return a.commitBatch(ctx, more)
}

func (a *Applier) commitBatch(ctx context.Context, more bool) error {
	if err := a.conclude(); err != nil {
		return err
	}
	if a.seeds.changed { // what is skipped must be known for as long as the slot may forget it
		if err := a.ensureBatch(ctx); err != nil {
			return err
		}
	}
	b := a.batch
	a.batch = batch{}
	a.backlog.closed(b)
	if b.end <= a.position {
		b.end, b.commit, b.xid, b.at = a.position, a.last.Commit, a.last.XID, a.last.At // sent again after a reconnect, and skipped
	}
	switch {
	case b.open && more && a.backlog.behind() && !a.seeds.active:
		return a.closeBehind(ctx, b)
	case b.open:
		if err := a.storeSkipped(ctx); err != nil {
			return err
		}
		if err := a.out.settle(); err != nil {
			return err
		}
		if err := a.commitTarget(b); err != nil {
			return err
		}
	}
	a.committed(b)
	return nil
}

// committed takes note of a target transaction that is.
func (a *Applier) committed(b batch) {
	a.position = b.end
	a.received = max(a.received, b.end)
	a.reach(b.end)
}

// commitTarget stores the position with the data, commits both, and asks where
// that lies in the replica's WAL. It is sent only when every change is known to have
// met its row: to the server a change that meets none is no failure. Nothing of the
// target transaction is held any more.
func (a *Applier) commitTarget(b batch) error {
	if err := a.out.await(); err != nil {
		return err
	}
	err := a.out.send(a.out.own(catalog.SQLSetPosition), [][]byte{
		[]byte(a.cfg.Origin), []byte(b.end.String()), []byte(b.commit.String()), []byte(strconv.FormatUint(uint64(b.xid), 10)), instant(b.at)}, expectation{affected: 1})
	if err != nil {
		return err
	}
	if err := a.out.send(a.out.own(sqlCommit), nil, expectation{affected: -1}); err != nil {
		return err
	}
	return a.askWhere(func(insert, flushed frame.LSN) {
		a.last.End, a.last.Commit, a.last.XID, a.last.At = b.end, b.commit, b.xid, b.at
		a.pending = append(a.pending, commitMark{b.end, insert})
		a.flushed(flushed)
	})
}

// instant is a time as PostgreSQL reads it, or NULL where it is not known.
func instant(at time.Time) []byte {
	if at.IsZero() {
		return nil
	}
	return at.UTC().AppendFormat(nil, time.RFC3339Nano)
}

// askWhere waits for all answers; the last is the replica's own WAL position. What is
// held stays held.
func (a *Applier) askWhere(then func(insert, flushed frame.LSN)) error {
	var insert, flushed frame.LSN
	err := a.out.send(a.out.own(sqlWhere), nil, expectation{affected: 1, row: func(values [][]byte) (err error) {
		if insert, err = frame.ParseLSN(string(values[0])); err == nil {
			flushed, err = frame.ParseLSN(string(values[1]))
		}
		return err
	}})
	if err != nil {
		return err
	}
	if err := a.out.rest(); err != nil {
		return err
	}
	then(insert, flushed)
	return nil
}

func (a *Applier) flushed(lsn frame.LSN) {
	n := 0
	for n < len(a.pending) && a.pending[n].target <= lsn {
		a.durable = max(a.durable, a.pending[n].source)
		n++
	}
	a.pending = append(a.pending[:0], a.pending[n:]...)
}

// reach notes that everything before lsn was received and, where it concerns the
// replica, committed.
func (a *Applier) reach(lsn frame.LSN) {
	a.reached = max(a.reached, lsn)
	a.seeds.passed(a.reached)
}

// flushWithin is how long an idle replica's disk may be behind: what others wrote behind
// our commit stays in the server's buffers for up to 15 seconds, and our mark with it.
const flushWithin = time.Second

// askDurable asks, while there is something to learn, what the replica's disk has.
func (a *Applier) askDurable(ctx context.Context) error {
	if len(a.pending) == 0 || a.backlog.closing != nil || a.eager == nil && (a.batch.open || a.txn != nil) {
		return nil
	}
	if a.eager == nil && min(time.Since(a.busy), time.Since(a.noted)) > flushWithin {
		return a.forceDurable(ctx)
	}
	return a.askWhere(func(_, flushed frame.LSN) { a.flushed(flushed) })
}

// forceDurable makes everything that is committed durable now.
func (a *Applier) forceDurable(ctx context.Context) error {
	if len(a.pending) == 0 {
		return nil
	}
	if err := a.out.idle(); err != nil {
		return err
	}
	if err := a.flushAll(ctx); err != nil {
		return err
	}
	a.durable, a.pending = max(a.durable, a.pending[len(a.pending)-1].source), a.pending[:0]
	return nil
}

// acknowledge reports progress. Durable passes over stretches of WAL that hold nothing
// of this database when noteReached has stored that.
func (a *Applier) acknowledge(ack func(frame.Ack)) {
	now := frame.Ack{Received: a.received, Visible: a.position, Durable: a.durable}
	if a.txn == nil && !a.batch.open {
		now.Visible = max(now.Visible, a.reached)
	}
	now.Received = max(now.Received, now.Visible)
	if now != a.lastAck {
		a.lastAck = now
		ack(now)
	}
}

// applySequences sets the sequences that moved. One that is not there yet, since
// its CREATE is still on its way, is kept for the next time.
func (a *Applier) applySequences(ctx context.Context) error {
	if len(a.sequences) == 0 {
		return nil
	}
	if err := a.out.idle(); err != nil {
		return err
	}
	values := make([]frame.SequenceValue, 0, len(a.sequences))
	for _, v := range a.sequences {
		values = append(values, v)
	}
	set, err := SetSequences(ctx, a.conn, values)
	if err != nil {
		return err
	}
	for _, key := range set {
		delete(a.sequences, key)
	}
	return nil
}

// SetSequences sets the sequences that exist to the given states and returns
// their schema and name.
func SetSequences(ctx context.Context, db catalog.DB, values []frame.SequenceValue) ([][2]string, error) {
	var schemas, names []string
	var last []int64
	var called []bool
	for _, v := range values {
		schemas, names = append(schemas, v.Schema), append(names, v.Name)
		last, called = append(last, v.Last), append(called, v.Called)
	}
	rows, err := db.Query(ctx, `
		SELECT v.s, v.n, setval(c.oid, v.l, v.c)
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[]) AS v(s, n, l, c)
		JOIN pg_namespace ns ON ns.nspname = v.s
		JOIN pg_class c ON c.relnamespace = ns.oid AND c.relname = v.n AND c.relkind = 'S'
		JOIN pg_sequence q ON q.seqrelid = c.oid AND v.l BETWEEN q.seqmin AND q.seqmax`, schemas, names, last, called)
	if err != nil {
		return nil, fmt.Errorf("set the sequences: %w", err)
	}
	defer rows.Close()
	var set [][2]string
	for rows.Next() {
		var key [2]string
		if err := rows.Scan(&key[0], &key[1], nil); err != nil {
			return nil, fmt.Errorf("set the sequences: %w", err)
		}
		set = append(set, key)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("set the sequences: %w", err)
	}
	return set, nil
}
