package seed

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// worker is one stream and one session of the replica, both opened by the first
// job that needs them and used for many.
type worker struct {
	cfg    Config
	queue  *queue
	meter  *meter
	limits limits
	replica
	conn   *pgx.Conn
	stream ClientStream
	unlink func() bool // of the stream from the context
}

func (w *worker) run(ctx context.Context) error {
	defer w.close()
	for {
		j, err := w.queue.next(ctx)
		if err != nil {
			return err
		}
		switch {
		case j.part != nil:
			err = j.part.do(ctx, w)
			j.part.of.results <- err
			var m misfit
			if errors.As(err, &m) {
				err = nil // the holder of the snapshot deals with it
			}
		case j.batch:
			err = w.copyBatch(ctx, j.copy)
		case j.copy != nil:
			err = w.copyAlone(ctx, j.copy[0])
		case j.finish != nil:
			err = w.finish(ctx, j.finish)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *worker) close() {
	w.dropStream()
	if w.conn != nil {
		closeSession(w.conn)
	}
}

// sessionLock is the advisory lock that every session of the link's copy shares.
func sessionLock(link string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("hawser seed " + link))
	return int64(h.Sum64())
}

const replicaSettings = `; SET synchronous_commit = off; ` + postgres.SQLSortInMemory

func (w *worker) connect(ctx context.Context) (err error) {
	if w.conn != nil {
		return nil
	}
	if w.conn, err = session(ctx, w.cfg.Connect, replicaSettings); err != nil {
		return err
	}
	_, err = w.conn.Exec(ctx, `SELECT pg_advisory_lock_shared($1)`, sessionLock(w.cfg.Link))
	return w.replicaError(err)
}

// dial opens the stream. A Recv that waits ends with the context.
func (w *worker) dial(ctx context.Context) (err error) {
	if err := w.connect(ctx); err != nil || w.stream != nil {
		return err
	}
	stream, err := w.cfg.Open(ctx)
	if err != nil {
		return lost("no stream to the primary could be opened", err)
	}
	w.stream, w.unlink = stream, context.AfterFunc(ctx, func() { _ = stream.Close() })
	return nil
}

// dropStream closes the stream, whatever was still to come, and with it the
// snapshot that it holds.
func (w *worker) dropStream() {
	if w.stream != nil {
		w.unlink()
		_ = w.stream.Close()
		w.stream = nil
	}
}

func (w *worker) request(r frame.SeedRequest) error {
	if err := w.stream.Send(r); err != nil {
		return lost(streamLost, err)
	}
	return nil
}

const streamLost = "the stream from the primary broke during the copy"

// ask has the applier told, and asks for the table's snapshot.
func (w *worker) ask(ctx context.Context, t *table, smaller uint32) error {
	if err := w.cfg.Gate.Requested(ctx, t.OID); err != nil {
		return fmt.Errorf("announce the copy of table %s: %w", t, err)
	}
	return w.request(frame.SeedRequest{OID: t.OID, EndPage: smaller})
}

// answer receives what ask has asked for. The error is one of those that settle
// deals with, or ends the run.
func (w *worker) answer(t *table) (frame.SeedStart, error) {
	f, err := w.stream.Recv()
	if err != nil {
		return frame.SeedStart{}, lost(streamLost, err)
	}
	start, ok := f.(frame.SeedStart)
	switch {
	case !ok || start.OID != t.OID:
		return start, fmt.Errorf("unexpected %T where table %s is opened", f, t)
	case gone(start):
		return start, errGone
	}
	t.Schema, t.Name = start.Schema, start.Name
	if locked(start) {
		return start, errLocked
	}
	// However large a table is, its parts can be counted.
	start.ChunkPages = max(start.ChunkPages, start.Pages/maxParts+1)
	return start, nil
}

const maxParts = 1 << 16

// early tells whether DDL that gave the table its present form may not have been
// carried out on the replica yet. Rows of that form would meet a table of an older
// one, or be changed once more when the stream brings the DDL. An id that seems to be one
// of the future is a frozen row's, of more than 2^31 transactions ago: the snapshot sees
// what it tells of.
func (w *worker) early(t *table, start frame.SeedStart) error {
	for _, x := range start.Defined {
		if start.Snapshot.FullXID(x) >= start.Snapshot.Xmax {
			continue
		}
		if !(w.schema.Xmax > 0 && w.schema.Sees(x)) && !(t.passed.Xmax > 0 && t.passed.Sees(x)) {
			return errEarly
		}
	}
	return nil
}

var errEarly = errors.New("DDL of the table is still in the stream")

// taken has the applier told of the snapshot, before a row is written.
func (w *worker) taken(ctx context.Context, t *table, start frame.SeedStart) error {
	s := catalog.SeedTable{
		OID: t.OID, Schema: start.Schema, Name: start.Name, State: catalog.Copying,
		Snapshot: start.Snapshot, LSN: start.LSN, Bytes: start.Bytes, Rows: start.Rows,
	}
	err := w.cfg.Gate.SnapshotTaken(ctx, s)
	switch {
	case err == nil:
		t.SeedTable, t.retakes, t.waits = s, 0, time.Time{}
		w.meter.open(start)
	case !errors.Is(err, ErrRetake):
		err = fmt.Errorf("record the snapshot of table %s: %w", t, err)
	}
	return err
}

// copyAlone copies one table, all workers helping when it is large.
func (w *worker) copyAlone(ctx context.Context, t *table) error {
	if err := w.dial(ctx); err != nil {
		return err
	}
	if err := w.ask(ctx, t, 0); err != nil {
		return err
	}
	start, err := w.answer(t)
	if err == nil {
		err = w.early(t, start)
	}
	if err == nil {
		err = w.taken(ctx, t, start)
	}
	if err == nil {
		err = w.fill(ctx, start)
	}
	if err == nil {
		w.meter.filled(t.OID)
		w.queue.fill(t)
		return nil
	}
	w.release(start)
	return w.settle(ctx, t, start, err)
}

func (w *worker) fill(ctx context.Context, start frame.SeedStart) error {
	targets, err := w.targets(ctx, []frame.SeedStart{start})
	if err != nil {
		return err
	}
	if err := targets[0].fits(start); err != nil {
		return err
	}
	if start.ChunkPages < start.Pages && !targets[0].stays() { // parts are committed one by one
		return w.copyParts(ctx, start, targets[0])
	}
	return w.copyWhole(ctx, start, targets[0])
}

const (
	retakeWait = 10 * time.Millisecond // doubles
	retakeMax  = time.Second
	lockedWait = time.Second
	lockedWarn = 10 * time.Second
	// misfitsMax is how often the stream is waited for, because DDL may be on its way.
	misfitsMax = 3
)

// settle puts a table off that can't be copied now. The error ends the run when it
// is of another kind.
func (w *worker) settle(ctx context.Context, t *table, start frame.SeedStart, err error) error {
	var m misfit
	switch {
	case w.cfg.Alone && (errors.Is(err, errEarly) || errors.Is(err, errGone) || errors.As(err, &m)):
		w.queue.setAside()
		return nil
	case errors.Is(err, errEarly):
		if err := w.cfg.Gate.Await(ctx, start.LSN); err != nil {
			return fmt.Errorf("wait for DDL of table %s: %w", t, err)
		}
		t.passed = start.Snapshot
		w.queue.putOff(t, 0)
		return nil
	case errors.Is(err, ErrRetake):
		w.retake(t)
		return nil
	case errors.Is(err, errAlone):
		w.queue.putOff(t, 0)
		return nil
	case errors.Is(err, errLocked):
		w.warnLocked(t)
		w.queue.putOff(t, lockedWait)
		return nil
	case errors.Is(err, errGone):
		return w.gone(ctx, t, start.LSN)
	case errors.As(err, &m):
		if t.misfits++; t.misfits > misfitsMax {
			return w.refused(t, m.err)
		}
		if err := w.cfg.Gate.Await(ctx, start.LSN); err != nil {
			return fmt.Errorf("wait for DDL of table %s: %w", t, err)
		}
		w.queue.putOff(t, 0)
		return nil
	}
	return err
}

// retake has the table asked for once more, the later the more often it was.
func (w *worker) retake(t *table) {
	wait := min(retakeWait<<min(t.retakes, 10), retakeMax)
	t.retakes++
	w.queue.putOff(t, wait/2+rand.N(wait))
}

// release ends the snapshot that the stream holds on the primary. A stream that
// does not answer to that, or on which rows may still come, is closed.
func (w *worker) release(start frame.SeedStart) {
	if w.stream == nil || start.Snapshot.Xmax == 0 {
		return
	}
	if start.Export != "" && w.request(frame.SeedRequest{}) == nil {
		if _, err := w.stream.Recv(); err == nil {
			return
		}
	}
	w.dropStream()
}

func (w *worker) warnLocked(t *table) {
	w.meter.waits(t.OID, "it is locked on the primary by another session, in ACCESS EXCLUSIVE mode")
	switch now := time.Now(); {
	case t.waits.IsZero():
		t.waits = now
	case now.Sub(t.waits) > lockedWarn:
		t.waits = now
		w.cfg.Log.Warn("the copy of a table waits, since another session holds it in ACCESS EXCLUSIVE mode on the primary", "table", t.String())
	}
}

// gone forgets a table that was dropped. Changes of it that are still in the stream
// have no rows to find on the replica, so the stream is waited for first.
func (w *worker) gone(ctx context.Context, t *table, lsn frame.LSN) error {
	w.cfg.Log.Info("table was dropped before it was copied", "table", t.String())
	if err := w.cfg.Gate.Await(ctx, lsn); err != nil {
		return fmt.Errorf("wait for the end of table %s: %w", t, err)
	}
	err := w.cfg.Gate.Gone(ctx, t.OID)
	if errors.Is(err, ErrRetake) { // it is back
		w.retake(t)
		return nil
	}
	if err != nil {
		return fmt.Errorf("forget table %s: %w", t, err)
	}
	w.meter.gone(t.OID)
	w.queue.dropped()
	return nil
}

// target is a table on the replica.
type target struct {
	exists     bool
	columns    []string
	hasRows    bool
	referenced bool // by foreign keys of other tables
	again      bool // it has its indexes, so its rows are of a copy that was complete
}

// targets looks the tables up on the replica.
func (w *worker) targets(ctx context.Context, starts []frame.SeedStart) ([]target, error) {
	schemas, names := make([]string, len(starts)), make([]string, len(starts))
	for i, s := range starts {
		schemas[i], names[i] = s.Schema, s.Name
	}
	rows, err := w.conn.Query(ctx, `
		SELECT w.i, `+sqlColumns+`, pg_relation_size(c.oid) > 0,
		       EXISTS (SELECT FROM pg_constraint f WHERE f.confrelid = c.oid AND f.contype = 'f' AND f.conrelid <> c.oid)
		FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w(schema, name, i)
		JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
		WHERE c.relkind = 'r'`, schemas, names)
	if err != nil {
		return nil, w.replicaError(err)
	}
	out := make([]target, len(starts))
	var i int
	var t target
	_, err = pgx.ForEachRow(rows, []any{&i, &t.columns, &t.hasRows, &t.referenced}, func() error {
		out[i-1] = target{exists: true, columns: slices.Clone(t.columns), hasRows: t.hasRows, referenced: t.referenced, again: !w.unbuilt[starts[i-1].OID]}
		return nil
	})
	return out, w.replicaError(err)
}

func (t target) fits(start frame.SeedStart) error {
	if !t.exists {
		return misfit{errors.New("it does not exist there")}
	}
	have, want := slices.Sorted(slices.Values(t.columns)), slices.Sorted(slices.Values(start.Columns))
	if !slices.Equal(have, want) {
		return misfit{fmt.Errorf("its columns are %s there and %s on the primary", columnList(have), columnList(want))}
	}
	return nil
}

// stays tells whether readers are to see the rows that are there until the new ones
// are committed.
func (t target) stays() bool { return t.again && t.hasRows }

// empty is the statement that removes what an earlier copy left. TRUNCATE would hold
// readers up and show them an empty table; and one that foreign keys point to, as a table
// that is copied again may be, can't be truncated alone.
func (t target) empty(start frame.SeedStart) string {
	if t.stays() || t.referenced {
		return "DELETE FROM ONLY " + quoted(start)
	}
	return "TRUNCATE ONLY " + quoted(start)
}

// copyWhole copies a table in one transaction, which also empties it. Its pages are
// written frozen, which spares the replica a later vacuum.
func (w *worker) copyWhole(ctx context.Context, start frame.SeedStart, to target) error {
	err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		var rows int64
		err := postgres.InUserPath(ctx, tx, func() (err error) {
			rows, err = w.refill(ctx, tx, start, to)
			return err
		})
		if err != nil {
			return err
		}
		return catalog.SetTableDone(ctx, tx, w.cfg.Link, start.OID, start.Bytes, rows)
	})
	return w.replicaError(err)
}

// refill empties the table before it asks for its rows: who asks has to take them.
func (w *worker) refill(ctx context.Context, tx pgx.Tx, start frame.SeedStart, to target) (rows int64, err error) {
	if _, err := tx.Exec(ctx, to.empty(start)); err != nil {
		return 0, err
	}
	if start.Export != "" { // else they come by themselves
		if err := w.request(frame.SeedRequest{OID: start.OID, Export: start.Export, EndPage: endOfTable}); err != nil {
			return 0, err
		}
	}
	options := " WITH (FREEZE)"
	if to.stays() || to.referenced {
		options = ""
	}
	return w.receive(ctx, start, w.meter.share(start.OID, start.Bytes), options)
}

// replicaError makes a problem of what the replica's PostgreSQL said.
func (w *worker) replicaError(err error) error {
	var m misfit
	if _, ok := problem.As(err); ok || err == nil || errors.As(err, &m) {
		return err
	}
	switch state := sqlState(err); {
	case state == diskFull:
		return problem.New("replica-disk-full", "the replica's disk", "it is full", "").Advise("free space there; the copy goes on by itself").Retry().Because(err)
	case state != "" && (state[:2] == "22" || state[:2] == "23" || state[:2] == "42"):
		return misfit{err}
	case passes(err):
		return lost("the replica's PostgreSQL was lost during the copy", err)
	}
	return problem.New("copy-failed", "the replica", "its PostgreSQL could not do a step of the copy",
		"hawser link resume "+w.cfg.Name).Advise("mend first what it names").Because(err)
}
