package link

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// The tail is what a primary committed that the other side, which took over by
// force, had not received. This side's slot still holds it.

// tailLost says why this side's slot does not tell the tail.
type tailLost struct {
	why string
	err error
}

func (e *tailLost) Error() string {
	return "which transactions this side alone has is not known, since " + e.why
}
func (e *tailLost) Unwrap() error { return e.err }

// lostTail returns that the tail is not known, if err says so.
func lostTail(err error) (lost *tailLost, is bool) {
	is = errors.As(err, &lost)
	return lost, is
}

// tailChange is one change of the tail.
type tailChange struct {
	xid uint32
	at  time.Time
	lsn frame.LSN // of the commit
	rel *pgoutput.Relation
	msg pgoutput.Message // Insert, Update, Delete, Truncate; nil for DDL

	command, statement string      // DDL: its tag, and the text in which it stood
	state              bool        // an owner, a setting or a privilege that changed: a kind, and words
	rewrites           bool        // a command that changed no definition and no row of a table
	view               schema.View // that it filled or emptied
}

// isDDL tells of a change of the schema, which a rejoin can't take back.
func (c tailChange) isDDL() bool { return c.msg == nil && !c.state && !c.rewrites }

// readTail visits every change behind what the other side has, in commit order. A message is
// valid during the visit alone. Alone leaves out what is no loss: of a rejoin, or of another
// primary.
func (l *link) readTail(ctx context.Context, side role.State, alone bool, visit func(tailChange) error) error {
	release, err := l.reading.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	conn, err := l.m.openValues(ctx, postgres.Session{Database: l.rec.Database, Purpose: l.rec.Name + ":tail", Settings: postgres.ValueSettings()})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	key, err := capture.DDLKey(ctx, conn)
	if err != nil {
		return err
	}
	r := tailReader{since: side.Since, alone: alone, key: key, visit: visit, relations: map[uint32]*pgoutput.Relation{}}
	if err := r.meetSlot(ctx, conn, l.rec, side.Last); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, `
		SELECT data FROM pg_logical_slot_peek_binary_changes($1::text::name, NULL, NULL, 'proto_version', '1', 'publication_names', $1::text, 'messages', 'true')`,
		capture.Object(l.rec.ID))
	if err != nil {
		return tailProblem(err)
	}
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&data}, func() error { return r.take(data) })
	if err == nil && r.expected.Commit > 0 {
		err = errOtherWAL
	}
	return tailProblem(err)
}

// errOtherWAL is of a tail that does not go on from what the other side has.
var errOtherWAL = &tailLost{why: "PostgreSQL was put back here to an earlier state than the other side has"}

// meetSlot sees whether the slot holds all behind what the other side has, and what has to
// come first if it does.
func (r *tailReader) meetSlot(ctx context.Context, conn *pgx.Conn, rec catalog.Link, last role.Last) error {
	confirmed, found, err := capture.Confirmed(ctx, conn, rec.ID)
	if err != nil || !found {
		return err
	}
	if last.Reached > 0 && confirmed > last.Reached {
		return &tailLost{why: fmt.Sprintf("the replication slot holds them from %s on alone, and instance %s has what came before %s: somebody made the slot anew or moved it on, or PostgreSQL was put back there to an earlier state", confirmed, rec.Peer, last.Reached)}
	}
	if confirmed <= last.Commit {
		r.expected = last
	}
	return nil
}

func tailProblem(err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &pg):
		return err
	case pg.Code == "42704" || pg.Code == "55000": // undefined_object, invalidated
		return &tailLost{"the replication slot was lost", err}
	case pg.Code == "55006":
		return problem.New("slot-in-use", "", "the stream to the other side has not ended yet", "").Advise("it is tried again by itself").Retry().Because(err)
	}
	return fmt.Errorf("read the transactions of this side alone: %w", err)
}

type tailReader struct {
	since     frame.LSN
	expected  role.Last // what the other side had last, until it came
	alone     bool
	key       []byte // that signs the primary's messages
	visit     func(tailChange) error
	dec       pgoutput.Decoder
	relations map[uint32]*pgoutput.Relation
	begin     pgoutput.Begin
	own       bool         // this transaction is a rejoin's
	came      bool         // it came by another link of the database
	texts     schema.Texts // of this transaction's DDL
}

func (r *tailReader) take(data []byte) error {
	msg, err := r.dec.Decode(data)
	if err != nil {
		return err
	}
	switch m := msg.(type) {
	case *pgoutput.Begin:
		r.begin, r.own, r.came, r.texts = *m, false, false, schema.Texts{}
		return r.meet()
	case *pgoutput.Origin:
		r.came = strings.HasPrefix(m.Name, capture.Object(""))
	case *pgoutput.Relation:
		r.relations[m.ID] = m
	case *pgoutput.Insert:
		return r.change(m.RelationID, m)
	case *pgoutput.Update:
		return r.change(m.RelationID, m)
	case *pgoutput.Delete:
		return r.change(m.RelationID, m)
	case *pgoutput.Truncate:
		for _, id := range m.RelationIDs {
			if err := r.change(id, m); err != nil {
				return err
			}
		}
	case *pgoutput.LogicalMessage:
		switch {
		case m.Transactional && m.Prefix == ddlPrefix:
			return r.ddl(m.Content)
		case m.Transactional && m.Prefix == ownPrefix:
			body, signed := unsign(m.Content, r.key)
			r.own = r.own || signed && strings.HasSuffix(string(body), ownMark("", r.begin.XID)) // of any link of the database
		}
	}
	return nil
}

// ddlPrefix is that of capture's DDL messages.
const ddlPrefix = "hawser.ddl"

// ownPrefix is that of the message with which a rejoin begins the transaction that takes
// rows away: if it has to begin anew, nobody lost them by that.
const ownPrefix = "hawser.rejoin"

func ownMark(link string, xid uint32) string { return fmt.Sprintf("%s %d", link, xid) }

// markOwn marks the transaction as a rejoin's.
func (l *link) markOwn(ctx context.Context, tx pgx.Tx) error {
	key, err := capture.DDLKey(ctx, tx.Conn())
	if err != nil {
		return err
	}
	var xid uint32
	if err := tx.QueryRow(ctx, `SELECT pg_current_xact_id()::xid::text::bigint`).Scan(&xid); err != nil {
		return fmt.Errorf("read the transaction's id: %w", err)
	}
	_, err = tx.Exec(ctx, `SELECT pg_logical_emit_message(true, $1::text, $2::text)`, ownPrefix, string(sign([]byte(ownMark(l.rec.ID, xid)), key)))
	if err != nil {
		return fmt.Errorf("mark the transaction of the rejoin: %w", err)
	}
	return nil
}

// meet is told of every transaction: the one that the other side had last has to come
// before any that it has not.
func (r *tailReader) meet() error {
	switch want, commit := r.expected, frame.LSN(r.begin.FinalLSN); {
	case want.Commit == 0 || commit < want.Commit:
		return nil
	case commit > want.Commit || r.begin.XID != want.XID:
		return errOtherWAL
	}
	r.expected = role.Last{}
	return nil
}

// change passes a change on unless the other side has it, since its position is the end
// of the last transaction that it applied, or nobody lost it. What came by another link is
// another primary's, and its DDL is not told here.
func (r *tailReader) change(id uint32, msg pgoutput.Message) error {
	if r.alone && (r.own || r.came) || frame.LSN(r.begin.FinalLSN) < r.since {
		return nil
	}
	rel := r.relations[id]
	if rel != nil && rel.Namespace == "hawser" {
		return nil
	}
	if r.came {
		return &tailLost{why: "this side followed another primary in between"}
	}
	return r.visit(tailChange{xid: r.begin.XID, at: r.begin.CommitTime, lsn: frame.LSN(r.begin.FinalLSN), rel: rel, msg: msg})
}

func (r *tailReader) ddl(content []byte) error {
	told := r.texts.Read(content, r.key)
	if frame.LSN(r.begin.FinalLSN) < r.since {
		return nil
	}
	for _, d := range told {
		c := tailChange{xid: r.begin.XID, at: r.begin.CommitTime, lsn: frame.LSN(r.begin.FinalLSN), command: d.Tag, statement: d.Text, state: d.State, rewrites: d.Rewrites, view: d.View}
		if err := r.visit(c); err != nil {
			return err
		}
	}
	return nil
}

// tailLine is a change in the report, a line of JSON each.
type tailLine struct {
	Transaction uint32             `json:"transaction"`
	Time        time.Time          `json:"time"`
	LSN         frame.LSN          `json:"lsn"`
	Operation   string             `json:"operation"`
	Schema      string             `json:"schema,omitempty"`
	Table       string             `json:"table,omitempty"`
	Key         map[string]*string `json:"key,omitempty"`
	Old         map[string]*string `json:"old,omitempty"` // as far as the WAL has it
	New         map[string]*string `json:"new,omitempty"`
	Unchanged   []string           `json:"unchanged,omitempty"` // large values that the change left as they were
	Command     string             `json:"command,omitempty"`   // DDL: PostgreSQL's tag; of a state, its kind
	Statement   string             `json:"statement,omitempty"` // the text in which it stood, all of it; of a state, words
}

func (c tailChange) line() tailLine {
	out := tailLine{Transaction: c.xid, Time: c.at.UTC(), LSN: c.lsn}
	if c.rel != nil {
		out.Schema, out.Table = c.rel.Namespace, c.rel.Name
	}
	switch m := c.msg.(type) {
	case *pgoutput.Insert:
		out.Operation = "insert"
		out.New, out.Unchanged = values(c.rel, m.New, false)
		out.Key, _ = values(c.rel, m.New, true)
	case *pgoutput.Update:
		out.Operation = "update"
		out.New, out.Unchanged = values(c.rel, m.New, false)
		out.Key, _ = values(c.rel, m.New, true)
		if len(m.Old) > 0 {
			out.Key, _ = values(c.rel, m.Old, true)
			out.Old, _ = values(c.rel, m.Old, m.OldKind == 'K')
		}
	case *pgoutput.Delete:
		out.Operation = "delete"
		out.Key, _ = values(c.rel, m.Old, true)
		out.Old, _ = values(c.rel, m.Old, m.OldKind == 'K')
	case *pgoutput.Truncate:
		out.Operation = "truncate"
	case nil:
		out.Operation, out.Command, out.Statement = "ddl", c.command, c.statement
		if c.state {
			out.Operation = "state"
		}
	}
	return out
}

// values names the values of a row, or of its key alone.
func values(rel *pgoutput.Relation, row []pgoutput.Column, keyOnly bool) (named map[string]*string, unchanged []string) {
	if rel == nil || len(row) != len(rel.Columns) {
		return nil, nil
	}
	named = map[string]*string{}
	for i, c := range rel.Columns {
		switch {
		case keyOnly && !c.Key:
		case row[i].Kind == pgoutput.Unchanged:
			unchanged = append(unchanged, c.Name)
		case row[i].Kind == pgoutput.Null:
			named[c.Name] = nil
		default:
			v := string(row[i].Data)
			named[c.Name] = &v
		}
	}
	return named, unchanged
}

// account writes the tail into a report, which replaces one of an earlier try, and no other:
// an earlier link may have had the name, or this PostgreSQL another past.
func (l *link) account(ctx context.Context) error {
	side, _ := l.now()
	// What fired no event is told in the WAL by this. It is no reason to have no report.
	if err := l.sweepNow(ctx); err != nil {
		l.log.Warn("can't see which owners and settings changed", "error", err)
	}
	path := l.reportPath(side.Term)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the directory of the reports: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new") // a second try may run beside the first
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	var sum tailSum
	var ddl *problem.Problem
	err = l.readTail(ctx, side, true, func(c tailChange) error {
		sum.add(c)
		if ddl == nil && c.isDDL() {
			ddl = l.tailHasDDL(c)
		}
		return enc.Encode(c.line())
	})
	if lost, is := lostTail(err); is {
		l.update(func() { l.tail, l.tailDDL = lost.Error(), nil })
		return nil
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = keepEarlier(path, f.Name())
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = l.summarize(path, sum)
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	l.log.Warn("this side was forced out", "transactions", sum.transactions, "changes", sum.changes, "states", sum.states, "report", path)
	if ddl != nil && l.forgot() { // a rejoin compares all tables then
		ddl = nil
	}
	l.findReports()
	l.update(func() { l.tail, l.tailDDL = sum.words(path), ddl })
	return nil
}

// tailSum is how much is in the report. A state is told by the agent's look, in a
// transaction of its own, and may have been told before.
type tailSum struct {
	last                          uint32
	transactions, changes, states int
	first, latest                 time.Time // commits
}

func (s *tailSum) add(c tailChange) {
	if c.state {
		s.states++
		return
	}
	if c.xid != s.last || s.transactions == 0 {
		if s.transactions == 0 {
			s.first = c.at
		}
		s.last, s.latest = c.xid, c.at
		s.transactions++
	}
	s.changes++
}

func (s *tailSum) words(path string) string {
	out := fmt.Sprintf("transactions that the other side never received: %d, with %d changes", s.transactions, s.changes)
	if s.states > 0 {
		out += fmt.Sprintf("; owners, settings or privileges that it may not have been told of: %d", s.states)
	}
	return out + ", in " + path
}

// keepEarlier gives a report another name that the new one does not go on from.
func keepEarlier(path, next string) error {
	same, err := beginsWith(next, path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && same {
		return nil
	}
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		aside := strings.TrimSuffix(path, reportEnd) + fmt.Sprintf(".%d", n) + reportEnd
		err := os.Link(path, aside)
		if err == nil {
			if err = os.Rename(summaryPath(path), summaryPath(aside)); errors.Is(err, fs.ErrNotExist) {
				err = nil // it is of an older version
			}
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}

// beginsWith tells whether a file begins with all that another one has.
func beginsWith(file, start string) (bool, error) {
	s, err := os.Open(start)
	if err != nil {
		return false, err
	}
	defer s.Close()
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := s.Read(a)
		if n > 0 {
			if _, short := io.ReadFull(f, b[:n]); short != nil || !bytes.Equal(a[:n], b[:n]) {
				return false, nil
			}
		}
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

const reportEnd = ".jsonl"

func (l *link) reportPath(term frame.Term) string {
	return filepath.Join(l.m.cfg.StateDir, "reports", fmt.Sprintf("%s-term%d", l.rec.Name, term)+reportEnd)
}
