package apply

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

const (
	// groupStatements and groupBytes close a group of pipelined statements. How many
	// groups may be under way bounds both sides' buffers.
	groupStatements = 512
	groupBytes      = 256 << 10
)

// writer sends statements down one connection without waiting for each answer.
// Answers come in order, so a queue of expectations tells which one is read.
type writer struct {
	conn   *pgconn.PgConn
	pipe   *pgconn.Pipeline
	queue  []expectation
	groups []int // how many answers each flushed group still has
	open   int   // statements in the group that is not flushed
	bytes  int
	names  int
	mine   map[string]*statement
	broken bool // the connection's state is unknown: nothing may follow

	gathered []*gather // those that hold rows
	held     int       // bytes in them
	most     int       // of held, and of groups under way
	rows     int       // of one table at most
	late     error     // of rows that were written where no error could be returned

	turn func() error // has to be done before anything is sent; not nil: nothing is, yet
}

// expectation is what the answer to one request must be.
type expectation struct {
	prepare  bool
	affected int64  // rows; -1: any number
	what     *doing // for words; nil for the applier's own statements
	read     func(*pgconn.ResultReader) error
}

// doing names a change in an error.
type doing struct {
	verb string
	rel  *relation
}

// statement is prepared once and used with many values.
type statement struct {
	name string
	sql  string
	oids []uint32
}

func newWriter(conn *pgconn.PgConn) *writer {
	return &writer{conn: conn, most: heldBytes, rows: leastRows}
}

// first does what has to be done before anything is sent.
func (w *writer) first() error {
	if w.turn == nil {
		return nil
	}
	turn := w.turn
	w.turn = nil
	return turn()
}

func (w *writer) start() {
	if w.pipe == nil {
		// The pipeline outlives each call's context; closing the connection ends it.
		w.pipe = w.conn.StartPipeline(context.Background())
	}
}

// prepare makes a statement on the server; an error shows up with the answers.
func (w *writer) prepare(sql string, oids []uint32, what *doing) *statement {
	if err := w.first(); err != nil && w.late == nil {
		w.late = err
	}
	w.start()
	w.names++
	s := &statement{name: "h" + strconv.Itoa(w.names), sql: sql, oids: oids}
	w.pipe.SendPrepare(s.name, sql, oids)
	w.push(expectation{prepare: true, what: what}, len(sql))
	return s
}

// forget releases a prepared statement.
func (w *writer) forget(s *statement) {
	w.start()
	w.pipe.SendDeallocate(s.name)
	w.push(expectation{prepare: true}, 0)
}

// exec queues a prepared statement with its values in text form, behind all rows
// that are held. It blocks while too much is under way.
func (w *writer) exec(s *statement, values [][]byte, want expectation) error {
	if err := w.settle(); err != nil {
		return err
	}
	return w.send(s, values, want)
}

// send queues a prepared statement before the rows that are held.
func (w *writer) send(s *statement, values [][]byte, want expectation) error {
	if err := w.first(); err != nil {
		return err
	}
	if w.late != nil {
		return w.late
	}
	w.start()
	w.pipe.SendQueryPrepared(s.name, values, nil, nil)
	size := 0
	for _, v := range values {
		size += len(v)
	}
	w.push(want, size)
	if w.open < groupStatements && w.bytes < groupBytes {
		return nil
	}
	return w.flush()
}

// flush closes the open group, and reads the answers of the one before the last.
func (w *writer) flush() error {
	if w.open == 0 {
		return nil
	}
	w.pipe.SendFlushRequest()
	if err := w.pipe.Flush(); err != nil {
		return w.fail(err)
	}
	w.groups = append(w.groups, w.open)
	w.open, w.bytes = 0, 0
	if len(w.groups) < max(2, w.most/groupBytes) {
		return nil
	}
	n := w.groups[0]
	w.groups = append(w.groups[:0], w.groups[1:]...)
	return w.read(n)
}

func (w *writer) push(e expectation, size int) {
	w.queue = append(w.queue, e)
	w.open++
	w.bytes += size
}

// await waits for every answer: all that was asked for did happen as it should.
func (w *writer) await() error {
	if len(w.queue) == 0 {
		return nil
	}
	w.pipe.SendFlushRequest()
	if err := w.pipe.Flush(); err != nil {
		return w.fail(err)
	}
	w.groups, w.open, w.bytes = w.groups[:0], 0, 0
	return w.read(len(w.queue))
}

// idle writes what is held, waits for every answer and leaves the connection free for
// other use.
func (w *writer) idle() error {
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.first(); err != nil {
		return err
	}
	return w.rest()
}

// rest is idle but for what is held, or left to be committed.
func (w *writer) rest() error {
	if w.pipe == nil {
		return nil
	}
	if err := w.pipe.Sync(); err != nil {
		return w.fail(err)
	}
	w.groups, w.open, w.bytes = w.groups[:0], 0, 0
	if err := w.read(len(w.queue)); err != nil {
		return err
	}
	if _, err := w.pipe.GetResults(); err != nil { // the answer to Sync
		return w.fail(err)
	}
	err := w.pipe.Close()
	w.pipe = nil
	if err != nil {
		return w.fail(err)
	}
	return nil
}

// read takes the next n answers.
func (w *writer) read(n int) error {
	for ; n > 0; n-- {
		e := w.queue[0]
		w.queue = w.queue[1:]
		if err := w.answer(e); err != nil {
			w.broken = true
			return err
		}
	}
	if len(w.queue) == 0 {
		w.queue = nil
	}
	return nil
}

func (w *writer) answer(e expectation) error {
	results, err := w.pipe.GetResults()
	if err != nil {
		return failed(e.what, err)
	}
	if e.prepare {
		return nil
	}
	reader, ok := results.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("unexpected answer %T of the server", results)
	}
	if e.read != nil {
		if err := e.read(reader); err != nil {
			return err
		}
	}
	tag, err := reader.Close()
	if err != nil {
		return failed(e.what, err)
	}
	if e.affected >= 0 && tag.RowsAffected() != e.affected {
		return missing(e, tag)
	}
	return nil
}

func (w *writer) fail(err error) error {
	w.broken = true
	return fmt.Errorf("write to the replica: %w", err)
}

// missing is the answer of a replica that is not what the primary was.
func missing(e expectation, tag pgconn.CommandTag) error {
	p := problem.New("row-missing", "",
		fmt.Sprintf("the change met %d rows on the replica where the primary had %d: the replica differs from the primary; nothing was skipped",
			tag.RowsAffected(), e.affected),
		"hawser link resync NAME compares the tables and copies those that differ")
	if e.what != nil {
		p.Object = e.what.String()
	}
	return p
}

func (d *doing) String() string { return d.verb + " on table " + d.rel.quoted }

// failed turns the server's refusal of a statement into a problem.
func failed(d *doing, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("write to the replica: %w", err)
	}
	object := "the replica"
	if d != nil {
		object = d.String()
	}
	if pg.Code == diskFull {
		return problem.New("replica-disk-full", "the replica's disk", "it is full", "free space there; the link goes on by itself").Retry().Because(err)
	}
	p := problem.New("statement-failed", object, "the replica refused a change", remedyFor(pg)).Because(err)
	p.Retryable = retryable(pg)
	return p
}

const diskFull = "53100"

// retryable tells what passes by itself: lost connections, shutdowns, resources,
// deadlocks and lock time-outs.
func retryable(pg *pgconn.PgError) bool {
	switch pg.Code[:2] {
	case "08", "53", "57", "58":
		return true
	}
	return pg.Code == "40P01" || pg.Code == "40001" || pg.Code == "55P03"
}

func remedyFor(pg *pgconn.PgError) string {
	switch pg.Code {
	case "42P01":
		return "create the table on the replica as it is on the primary, then hawser link resume NAME"
	case "42703":
		return "add the column on the replica as it is on the primary, then hawser link resume NAME"
	}
	return "mend the cause that the server names, then hawser link resume NAME"
}
