package apply

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
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
	pipe   *pipe
	busy   bool // something was asked for since the connection was free
	queue  []expectation
	groups []group // those that were flushed and not answered
	under  int     // bytes in them
	open   group   // the one that is not flushed
	names  int
	mine   map[string]*statement
	broken bool // the connection's state is unknown: nothing may follow

	gathered []*gather // those that hold rows
	held     int       // bytes in them
	most     int       // of held, and of groups under way
	rows     int       // of one table at most
	late     error     // of rows that were written where no error could be returned
	args     [][]byte
	lines    []byte // both for reuse

	path   string // the search_path of changes, "" for none
	inPath bool   // it is in force

	turn func() error // has to be done before anything is sent; not nil: nothing is, yet
}

// group is what is sent to the server at once.
type group struct{ requests, bytes int }

// expectation is what the answer to one request must be.
type expectation struct {
	prepare  bool
	affected int64  // rows; -1: any number
	what     *doing // for words; nil for the applier's own statements
	row      func(values [][]byte) error
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
}

func newWriter(conn *pgconn.PgConn) *writer {
	return &writer{pipe: newPipe(conn), most: heldBytes, rows: leastRows}
}

// own returns one of the applier's own statements, prepared on first use.
func (w *writer) own(sql string) *statement {
	if w.mine == nil {
		w.mine = map[string]*statement{}
	}
	s := w.mine[sql]
	if s == nil {
		s = w.prepare(sql, nil, nil)
		w.mine[sql] = s
	}
	return s
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

// prepare makes a statement on the server; an error shows up with the answers.
func (w *writer) prepare(sql string, oids []uint32, what *doing) *statement {
	if err := w.first(); err != nil && w.late == nil {
		w.late = err
	}
	w.names++
	s := &statement{name: "h" + strconv.Itoa(w.names), sql: sql}
	w.pipe.parse(s.name, sql, oids)
	w.push(expectation{prepare: true, what: what}, len(sql))
	return s
}

// forget releases a prepared statement.
func (w *writer) forget(s *statement) {
	w.pipe.forget(s.name)
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
	size := 0
	for _, v := range values {
		size += lengthBytes + len(v)
	}
	if s.sql == sqlBegin || s.sql == sqlCommit || s.sql == sqlRollback {
		w.inPath = false
	}
	return w.ask(size, want, func() { w.pipe.execute(s.name, values) })
}

// sendCopy queues a prepared COPY with its rows.
func (w *writer) sendCopy(s *statement, rows []byte, want expectation) error {
	return w.ask(len(rows), want, func() { w.pipe.copy(s.name, rows) })
}

func (w *writer) ask(size int, want expectation, request func()) error {
	if err := w.first(); err != nil {
		return err
	}
	if w.late != nil {
		return w.late
	}
	if want.what != nil {
		if err := w.takePath(); err != nil {
			return err
		}
	}
	request()
	w.push(want, size)
	if w.open.requests < groupStatements && w.open.bytes < groupBytes {
		return nil
	}
	return w.flush()
}

// flush sends the open group.
func (w *writer) flush() error {
	if w.open.requests == 0 {
		return nil
	}
	if err := w.makeRoom(); err != nil {
		return err
	}
	if err := w.pipe.flush(); err != nil {
		return w.fail(err)
	}
	w.groups = append(w.groups, w.open)
	w.under += w.open.bytes
	w.open = group{}
	return nil
}

// makeRoom has as much of what is under way answered as the open group does not fit
// beside: no write waits for a server that waits to be read.
func (w *writer) makeRoom() error {
	for len(w.groups) > 0 && w.under+w.open.bytes > w.most {
		if err := w.readGroup(); err != nil {
			return err
		}
	}
	return nil
}

// readGroup takes the answers of the group that was flushed first.
func (w *writer) readGroup() error {
	g := w.groups[0]
	w.groups = append(w.groups[:0], w.groups[1:]...)
	w.under -= g.bytes
	return w.read(g.requests)
}

// requestBytes and lengthBytes are what a request, and each of its values, takes beside
// the value.
const requestBytes, lengthBytes = 64, 4

func (w *writer) push(e expectation, size int) {
	w.busy = true
	w.queue = append(w.queue, e)
	w.open.requests++
	w.open.bytes += requestBytes + size
}

// await waits for every answer: all that was asked for did happen as it should.
func (w *writer) await() error {
	if err := w.flush(); err != nil {
		return err
	}
	for len(w.groups) > 0 {
		if err := w.readGroup(); err != nil {
			return err
		}
	}
	return nil
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
	if !w.busy {
		return nil
	}
	if err := w.makeRoom(); err != nil {
		return err
	}
	if err := w.pipe.sync(); err != nil {
		return w.fail(err)
	}
	w.groups, w.under, w.open = w.groups[:0], 0, group{}
	if err := w.read(len(w.queue)); err != nil {
		return err
	}
	if err := w.pipe.ready(); err != nil {
		return w.fail(err)
	}
	w.busy = false
	return w.leavePath()
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
	if e.prepare {
		if err := w.pipe.prepared(); err != nil {
			return w.refused(e.what, err)
		}
		return nil
	}
	tag, err := w.pipe.result(e.row)
	if err != nil {
		return w.refused(e.what, err)
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

// CodeRowMissing is of a replica that is known to differ.
const CodeRowMissing = "row-missing"

// missing is the answer of a replica that is not what the primary was.
func missing(e expectation, tag pgconn.CommandTag) error {
	p := problem.New(CodeRowMissing, "",
		fmt.Sprintf("the change met %d rows on the replica where the primary had %d: the replica differs from the primary; nothing was skipped",
			tag.RowsAffected(), e.affected),
		"hawser link resync NAME").Advise("it compares the tables and copies those that differ")
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
		return problem.New("replica-disk-full", "the replica's disk", "it is full", "").Advise("free space there; the link goes on by itself").Retry().Because(err)
	}
	if p := ended(err); p != nil {
		return p
	}
	p := problem.New("statement-failed", object, "the replica refused a change", "hawser link resume NAME").Advise(adviceFor(pg)).Because(err)
	p.Retryable = retryable(pg)
	return p
}

const diskFull = "53100"

// ended tells the end of a session from what a statement did; nil: it was not that.
func ended(err error) *problem.Problem {
	if !postgres.SessionEnded(err) {
		return nil
	}
	return problem.New("server-not-ready", "the replica's server", "PostgreSQL ended the applier's session, as it does when it stops or restarts", "hawser status").
		Advise("the link goes on by itself when it runs again").Retry().Because(err)
}

// retryable tells what passes by itself: lost connections, shutdowns, resources,
// deadlocks and lock time-outs.
func retryable(pg *pgconn.PgError) bool {
	switch pg.Code[:2] {
	case "08", "53", "57", "58":
		return true
	}
	return pg.Code == "40P01" || pg.Code == "40001" || pg.Code == "55P03"
}

func adviceFor(pg *pgconn.PgError) string {
	switch pg.Code {
	case "42P01":
		return "create the table on the replica first, as it is on the primary"
	case "42703":
		return "add the column on the replica first, as it is on the primary"
	}
	return "mend first the cause that the server names"
}
