// Package apply is the secondary's side of a link: it decodes the frames that the
// primary sends and commits them to the replica.
//
// What it guarantees:
//
//   - Exactly once. The position of a source transaction is committed by the same
//     target transaction that holds its changes, in hawser.position; what lies
//     before it is skipped when it is sent again. A replication origin, which the
//     session takes, keeps any second applier out and marks what is applied.
//   - Commit order, whole transactions. Several source transactions may share one
//     target transaction while there is a backlog; none is ever split or overtaken.
//   - Nothing in silence. A change that finds no row, a table that is not there, a
//     message that is not understood: each stops the applier with its position.
//
// The files follow the data: decode (records to transactions, with those that
// stream in before their commit kept in a spool), plan (a change to a statement),
// write (statements to the server, pipelined), commit (positions, durability,
// acknowledgements). seeding holds the rule that lets tables be copied meanwhile.
//
// One goroutine, that of Apply, owns the connection and all state. The methods
// that others call are carried out by it, between two source transactions. This
// package must never decide about roles, and never touch the primary.
package apply

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

const (
	// flushEvery is how often an applier asks what has become durable.
	flushEvery = 50 * time.Millisecond
)

// Replayer carries out captured DDL; package schema has it.
type Replayer interface {
	// Reset is called at the begin of each source transaction.
	Reset()
	// Author tells which transaction, top-level or not, wrote a captured command; 0: nobody
	// knows.
	Author(ctx context.Context, content []byte) (xid uint32, err error)
	// Replay carries out one captured command inside conn's open transaction.
	Replay(ctx context.Context, conn *pgx.Conn, content []byte) (Effect, error)
	// Provide makes a table whose rows come before the command that made it, as
	// those of CREATE TABLE AS do; for any other it returns a problem.
	// types names those of its columns' types that are not built in, xid is the
	// source transaction.
	Provide(ctx context.Context, conn *pgx.Conn, xid uint32, def *pgoutput.Relation, types map[uint32]pgoutput.Type) error
	// InScript tells whether rows that follow may be made by the replay itself, OfScript
	// whether those of a table are.
	InScript() bool
	OfScript(ctx context.Context, conn *pgx.Conn, def *pgoutput.Relation) (bool, error)
	// Finish is called at the end of a source transaction with DDL in it.
	Finish() error
}

// Effect is what the applier has to know of replayed DDL.
type Effect struct {
	// Reseed are tables that have to be copied again. They stand in the catalog as
	// pending, by the same transaction.
	Reseed []catalog.SeedTable
}

// ErrReseed says that a committed DDL command left tables to be copied again.
var ErrReseed = errors.New("tables have to be copied again")

// Config says where to apply.
type Config struct {
	Link     string // its name, for words
	ID       string // its id: keys the catalog
	Origin   string // the replication origin that holds the position
	Connect  func(ctx context.Context) (*pgx.Conn, error)
	UserPath bool   // changes run under the search_path of the database's sessions (CodeUserPath)
	Hold     int    // bytes of changes that may be gathered before they are written; 0: 8 MB
	SpoolDir string // for transactions that arrive before their commit; emptied by Start
	Replayer Replayer
	// MakeWay takes away what would refuse rows that the primary has, in the transaction
	// in which the copy of a table begins, and reports whether there was anything. It is
	// put back, by whoever copies, before DDL is replayed. Nil: nothing is in the way.
	MakeWay func(ctx context.Context, tx pgx.Tx) (bool, error)
	// Copied ends what MakeWay began, in the transaction in which the copy is complete. It
	// may be nil.
	Copied func(ctx context.Context, tx pgx.Tx) error
	// Accept is asked whether a handoff counts; one that does not is passed over.
	// complete is false while tables or rows are still to be copied.
	Accept func(content []byte, complete bool) bool
}

// Handoff is the end of a term: the primary is fenced and wrote nothing after it.
// Everything before it is applied and durable. The position is left in front of
// it, so that it is sent again if its receiver dies before it has acted.
type Handoff struct{ Content []byte }

// Applier applies one link's stream. Start, then Apply, then Close; after an
// error the whole Applier is thrown away and a new one starts from the catalog.
type Applier struct {
	cfg  Config
	conn *pgx.Conn
	out  *writer

	values [][]byte // of the statement at hand, for reuse

	dec       pgoutput.Decoder
	relations map[uint32]*relation
	ahead     []frame.Record // those behind the one at hand, in its frame
	foreseen  map[asked]map[string]columnFound
	scans     map[uint32]*scans // by the replica's oid
	patience  int64             // bytes read by passes over a table beyond which it gets an index
	types     map[uint32]pgoutput.Type
	spools    map[uint32]*spool // by top-level xid
	inStream  *spool            // the spool that the open stream block fills

	txn   *transaction // the source transaction that is being applied
	eager *eager       // it is applied before its commit; nil: it is not
	busy  time.Time    // when a transaction was committed last
	quiet time.Duration
	batch batch
	seeds seeding

	backlog backlog

	last     catalog.Applied // what is stored of the position
	met      bool            // the slot's position was compared with it
	expected bool            // the last transaction has to come again before any other
	noted    time.Time       // when Reached was stored

	received  frame.LSN
	position  frame.LSN // end of the last source transaction that is committed here
	reached   frame.LSN // everything before it that concerns us was received
	pending   []commitMark
	durable   frame.LSN
	lastAck   frame.Ack
	sequences map[[2]string]frame.SequenceValue
	due       bool // sequences are to be set where the next target transaction ends
	waiting   []waiter
	handoff   *Handoff
	barrier   *barrier
	unseen    unseen
	repair    repair
	reseed    bool // tables were put down to be copied again

	commands chan command
	wanted   atomic.Int32 // commands that wait
	done     chan struct{}
}

// transaction is the source transaction whose changes are being applied.
type transaction struct {
	xid      uint32          // top-level
	commit   frame.LSN       // its commit record
	skip     bool            // it was applied before
	streamed bool            // its records have the form of a stream block
	ddl      bool            // it carried DDL: nothing else may share its target transaction
	ofScript map[uint32]bool // what Replayer.OfScript said since the last DDL
	lsn      frame.LSN       // of the change at hand, for words
}

// batch is the open target transaction.
type batch struct {
	open    bool
	since   time.Time
	changes int
	end     frame.LSN // of the last source transaction in it
	commit  frame.LSN // of that one's commit record
	xid     uint32
	at      time.Time // when it was committed on the primary
	ddl     bool
	indexed bool // an index of Hawser's was made in it
}

type command struct {
	run  func(ctx context.Context) error
	done chan error
}

type waiter struct {
	lsn  frame.LSN
	done chan error
}

// New returns an applier that has touched nothing yet.
func New(cfg Config) *Applier {
	return &Applier{
		cfg:       cfg,
		quiet:     quietBefore,
		backlog:   backlog{least: leastBatchChanges},
		relations: map[uint32]*relation{},
		scans:     map[uint32]*scans{},
		patience:  indexPatience,
		types:     map[uint32]pgoutput.Type{},
		spools:    map[uint32]*spool{},
		sequences: map[[2]string]frame.SequenceValue{},
		commands:  make(chan command),
		done:      make(chan struct{}),
	}
}

// Origin is the name of a link's replication origin. Each term has its own, since
// its positions are of another primary's WAL.
func Origin(id string, term frame.Term) string { return fmt.Sprintf("%s%d", OriginPrefix(id), term) }

// OriginPrefix is what the origins of a link begin with.
func OriginPrefix(id string) string { return "hawser_" + id + "_" }

// Start connects, takes the origin for itself alone, and reads where the last
// applier stopped. It returns the position from which the primary has to send.
func (a *Applier) Start(ctx context.Context) (frame.LSN, error) {
	conn, err := a.cfg.Connect(ctx)
	if err != nil {
		return 0, fmt.Errorf("connect the applier: %w", err)
	}
	a.conn = conn
	if err := a.start(ctx); err != nil {
		a.Close()
		return 0, err
	}
	return a.from(), nil
}

func (a *Applier) start(ctx context.Context) error {
	if err := clearSpools(a.cfg.SpoolDir); err != nil {
		return err
	}
	if err := takeOrigin(ctx, a.conn, a.cfg.Origin); err != nil {
		return err
	}
	last, known, err := catalog.Position(ctx, a.conn, a.cfg.Origin)
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("no position is recorded for origin %s", a.cfg.Origin)
	}
	// An earlier session may have left commits that the disk does not have yet.
	if err := a.flushAll(ctx); err != nil {
		return err
	}
	a.last, a.position = last, last.End
	a.durable, a.received, a.reached = last.Reached, last.Reached, last.Reached
	if err := a.seeds.load(ctx, a.conn, a.cfg.ID); err != nil {
		return err
	}
	if err := a.repair.load(ctx, a.conn, a.cfg.ID); err != nil {
		return err
	}
	a.out = newWriter(a.conn.PgConn())
	if a.cfg.Hold > 0 {
		a.out.most = a.cfg.Hold
	}
	if a.cfg.UserPath {
		a.out.path, err = postgres.UserPath(ctx, a.conn)
	}
	return err
}

// takeOrigin binds the origin to the session, which keeps any second applier out.
func takeOrigin(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, `SELECT pg_replication_origin_session_setup($1)`, name)
	if inUse(err) {
		return problem.New("origin-in-use", "replication origin "+name,
			"another session still applies this link", "").Advise("it goes on by itself when that session has ended").Retry().Because(err)
	}
	if err != nil {
		return fmt.Errorf("take replication origin %s: %w", name, err)
	}
	return nil
}

// BeginAt creates the origin of a new term with the position from which to
// follow, and does in the same transaction what comes first in a term. One that
// exists keeps its position: it may have moved on.
func BeginAt(ctx context.Context, conn *pgx.Conn, origin string, from frame.LSN, first func(context.Context, pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var exists bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_origin WHERE roname = $1)`, origin).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			if err := first(ctx, tx); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `SELECT pg_replication_origin_create($1)`, origin); err != nil {
				return err
			}
		}
		return catalog.StartPosition(ctx, tx, origin, from)
	})
	if err != nil {
		return fmt.Errorf("create replication origin %s: %w", origin, err)
	}
	return nil
}

// originWait is how long a closed session may keep its origin: its backend notices
// the end when it has rolled back.
const originWait = 10 * time.Second

// DropOrigins forgets the positions of a link, but for the origin named keep.
func DropOrigins(ctx context.Context, db catalog.DB, id, keep string) error {
	for deadline := time.Now().Add(originWait); ; {
		_, err := db.Exec(ctx, `
			SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin
			WHERE starts_with(roname, $1) AND roname <> $2`, OriginPrefix(id), keep)
		if err == nil {
			return nil
		}
		if !inUse(err) || time.Now().After(deadline) {
			return fmt.Errorf("drop the replication origins of link %s: %w", id, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func inUse(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55006" // object_in_use
}

// Close ends the connection; an open target transaction is rolled back by that.
func (a *Applier) Close() {
	if a.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = a.conn.Close(ctx)
	}
	for _, s := range a.spools {
		s.discard()
	}
}

// Apply carries out frames in order until ctx ends, frames is closed, a handoff
// was applied, or something is wrong. With frames nil it carries out commands
// alone. ack is called from Apply's goroutine and must not block for long.
// It may be called once.
func (a *Applier) Apply(ctx context.Context, frames <-chan frame.Frame, ack func(frame.Ack)) (*Handoff, error) {
	defer close(a.done)
	defer context.AfterFunc(ctx, a.interrupt)()
	tick := time.NewTimer(flushEvery)
	defer tick.Stop()
	next := time.Now().Add(flushEvery) // tick; zero: an idle link sleeps
	fresh := false                     // a frame came since the last tick
	for {
		if pause := a.pause(); pause > 0 && (next.IsZero() || time.Until(next) > pause) {
			tick.Reset(pause)
			next = time.Now().Add(pause)
		}
		select {
		case f, ok := <-frames:
			if !ok {
				return nil, errors.New("the stream ended")
			}
			fresh = true
			err := a.frame(ctx, f, len(frames) > 0)
			if err == nil {
				err = a.settleBatch(ctx, len(frames) > 0 || a.backlog.behind())
			}
			if err != nil {
				return nil, a.explain(err)
			}
			if a.handoff != nil {
				return a.finish(ctx, ack)
			}
			if a.reseed && a.txn == nil && !a.batch.open {
				return nil, ErrReseed
			}
		case c := <-a.ready():
			if err := a.carryOut(ctx, c); err != nil {
				return nil, err
			}
		case <-tick.C:
			next = time.Time{}
			if err := a.ticked(ctx, fresh || len(frames) > 0); err != nil {
				return nil, err
			}
			fresh = false
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if err := a.passBarrier(ctx); err != nil {
			return nil, err
		}
		a.acknowledge(ack)
		a.wake()
	}
}

// ticked does what time asks for; more says that frames come.
func (a *Applier) ticked(ctx context.Context, more bool) error {
	if err := a.settleBatch(ctx, more); err != nil {
		return a.explain(err)
	}
	if err := a.askDurable(ctx); err != nil {
		return err
	}
	if err := a.noteReached(); err != nil {
		return err
	}
	if a.wanted.Load() > 0 {
		if err := a.withdraw(ctx); err != nil {
			return a.explain(err)
		}
	}
	return nil
}

// pause is how long Apply may wait for a frame; 0: until one comes.
func (a *Applier) pause() time.Duration {
	switch {
	case a.batch.end > 0 || a.eager != nil || a.backlog.closing != nil || len(a.pending) > 0 && time.Since(a.busy) < flushWithin:
		return flushEvery
	case len(a.pending) > 0:
		return 4 * flushEvery // nobody waits for what noteReached stored
	case a.unnoted():
		return max(flushEvery, reachedEvery-time.Since(a.noted))
	}
	return 0
}

// interrupt ends a statement that waits, as for a lock that a reader of the replica
// holds, when nobody wants its result any more.
func (a *Applier) interrupt() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = a.conn.PgConn().CancelRequest(ctx)
	_ = a.conn.PgConn().Conn().SetDeadline(time.Now())
}

// finish makes the handoff durable before it is reported.
func (a *Applier) finish(ctx context.Context, ack func(frame.Ack)) (*Handoff, error) {
	if err := a.forceDurable(ctx); err != nil {
		return nil, err
	}
	a.acknowledge(ack)
	return a.handoff, nil
}

// carryOut runs a command. It returns an error only when the connection can't be
// used any more.
func (a *Applier) carryOut(ctx context.Context, c command) error {
	err := a.out.idle()
	a.foreseen = nil
	if err == nil {
		err = c.run(ctx)
	}
	c.done <- err
	if a.out.broken {
		return err
	}
	return nil
}

// yield lets commands in, and a barrier pass, within a backlog: where a target
// transaction ended, and not just where a frame does.
func (a *Applier) yield(ctx context.Context) error {
	if a.txn != nil || a.batch.open {
		return nil
	}
	if a.due {
		a.due = false
		if err := a.applySequences(ctx); err != nil {
			return err
		}
	}
	for a.wanted.Load() > 0 {
		select {
		case c := <-a.commands:
			if err := a.carryOut(ctx, c); err != nil {
				return err
			}
			continue
		default:
		}
		break
	}
	return a.passBarrier(ctx)
}

// ready gives commands only between two source transactions.
func (a *Applier) ready() <-chan command {
	if a.txn != nil || a.batch.open {
		return nil
	}
	return a.commands
}

func (a *Applier) frame(ctx context.Context, f frame.Frame, more bool) error {
	switch f := f.(type) {
	case frame.Data:
		defer func() { a.ahead, a.foreseen = nil, nil }()
		for i, r := range f.Records {
			a.ahead = f.Records[i+1:]
			if err := a.record(ctx, r, more || i+1 < len(f.Records)); err != nil {
				return err
			}
			if a.handoff != nil {
				return nil
			}
		}
		return nil
	case frame.Heartbeat:
		return a.heartbeat(ctx, f)
	case frame.Sequences:
		for _, v := range f.Values {
			a.sequences[[2]string{v.Schema, v.Name}] = v
		}
		return nil
	default:
		return fmt.Errorf("unexpected %T on the stream of changes", f)
	}
}

// do has run carried out by Apply's goroutine between two source transactions.
func (a *Applier) do(ctx context.Context, run func(ctx context.Context) error) error {
	c := command{run: run, done: make(chan error, 1)}
	a.wanted.Add(1)
	defer a.wanted.Add(-1)
	select {
	case a.commands <- c:
	case <-a.done:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.done:
		return err
	case <-a.done:
		return errStopped
	}
}

var errStopped = problem.New("applier-stopped", "", "the stream of changes was interrupted", "").Advise("the link connects again by itself").Retry()

// Await returns when everything that the primary committed before lsn is
// committed here.
func (a *Applier) Await(ctx context.Context, lsn frame.LSN) error {
	done := make(chan error, 1)
	err := a.do(ctx, func(context.Context) error {
		a.waiting = append(a.waiting, waiter{lsn, done})
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-a.done:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Applier) wake() {
	if len(a.waiting) == 0 || a.txn != nil || a.batch.open {
		return
	}
	left := a.waiting[:0]
	for _, w := range a.waiting {
		if w.lsn <= a.reached {
			w.done <- nil
		} else {
			left = append(left, w)
		}
	}
	a.waiting = left
}

// explain says at which position an error arose.
func (a *Applier) explain(err error) error {
	if a.txn == nil {
		return err
	}
	return fmt.Errorf("transaction %d at %s: %w", a.txn.xid, a.txn.lsn, err)
}
