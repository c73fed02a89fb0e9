package seed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Gate is the applier. Each call is carried out between two streamed transactions.
// Calls for different tables come from several goroutines.
type Gate interface {
	// Requested is called before a snapshot of the table is asked for, and again
	// before each further one.
	Requested(ctx context.Context, oid uint32) error
	// SnapshotTaken records the snapshot under which a table is about to be copied:
	// its state is copying when it returns. It returns ErrRetake when another one
	// has to be taken. A later call for the same table replaces the snapshot.
	SnapshotTaken(ctx context.Context, t catalog.SeedTable) error
	// Loaded says that rows and indexes are there. The table is live when it
	// returns, in the catalog too.
	Loaded(ctx context.Context, oid uint32) error
	// Gone says that the table is no longer on the primary, and that the stream has
	// passed the point from where it is missing. It is live when it returns, unless that
	// is ErrRetake: the table may be there again since it was asked for.
	Gone(ctx context.Context, oid uint32) error
	// Await returns when everything before lsn is applied.
	Await(ctx context.Context, lsn frame.LSN) error
}

// ErrDDLFirst says that the tables which are not live wait for DDL in the stream.
var ErrDDLFirst = errors.New("tables wait for DDL in the stream")

// ErrRetake asks for another snapshot of the same table.
var ErrRetake = errors.New("another snapshot has to be taken")

// Config is what a seeder works with.
type Config struct {
	Link    string // its id: keys the catalog
	Name    string // its name, for words
	Open    func(ctx context.Context) (ClientStream, error)
	Connect func(ctx context.Context) (*pgx.Conn, error) // to the replica
	Gate    Gate
	// Indexes returns what makes those indexes of the table that are not there yet, each
	// of them in any session and beside the others.
	Indexes func(ctx context.Context, conn *pgx.Conn, oid uint32) ([]Step, error)
	// Build makes the table's indexes that are not there yet, and its constraints. It is
	// called again where it was interrupted.
	Build func(ctx context.Context, conn *pgx.Conn, oid uint32) error
	// Alone says that no stream of changes runs beside. A table that would have to wait
	// for DDL in it is left out, and Run returns ErrDDLFirst when all others are live.
	Alone   bool
	Workers int // streams, and sessions on either side, at a time; 0 means 4
	Log     *slog.Logger
}

// Step is a piece of work for a session of the replica.
type Step func(ctx context.Context, conn *pgx.Conn) error

const defaultWorkers = 4

// Seeder copies the tables of one link that are not live yet.
type Seeder struct {
	cfg    Config
	meter  *meter
	limits limits
}

// New returns a seeder that has touched nothing yet.
func New(cfg Config) *Seeder {
	if cfg.Workers <= 0 {
		cfg.Workers = defaultWorkers
	}
	return &Seeder{cfg: cfg, meter: newMeter(time.Now), limits: defaultLimits}
}

// Progress may be called at any time, by any goroutine.
func (s *Seeder) Progress() Progress { return s.meter.read() }

// Run copies every table that is not live, the largest first. It returns nil when
// all are, and otherwise promptly, with every goroutine and session ended. It may
// be called again after any error: a table whose rows are all there is only built.
// One call at a time.
func (s *Seeder) Run(ctx context.Context) error {
	before := map[uint32]bool{}
	for {
		tables, r, err := s.takeOver(ctx)
		if err != nil {
			return err
		}
		todo := slices.DeleteFunc(slices.Clone(tables), func(t catalog.SeedTable) bool { return t.State == catalog.Live })
		if len(todo) == 0 {
			s.meter.begin(tables)
			return nil
		}
		// A table may have been put down for a copy during the last pass, but one
		// that went through it and is still on its way would be so for ever.
		for _, t := range todo {
			if before[t.OID] && t.State != catalog.Pending {
				return fmt.Errorf("table %s was copied, and is %s", postgres.QuoteIdent(t.Schema, t.Name), t.State)
			}
		}
		s.meter.begin(tables)
		if err := s.pass(ctx, todo, r); err != nil {
			return err
		}
		clear(before)
		for _, t := range todo {
			before[t.OID] = true
		}
	}
}

// pass brings the tables through the copy. The goroutines end together, with the
// first error.
func (s *Seeder) pass(ctx context.Context, tables []catalog.SeedTable, r replica) error {
	q := newQueue(tables, s.cfg.Workers, s.limits)
	g, ctx := errgroup.WithContext(ctx)
	for range s.cfg.Workers {
		w := &worker{cfg: s.cfg, queue: q, meter: s.meter, limits: s.limits, replica: r}
		g.Go(func() error { return w.run(ctx) })
	}
	g.Go(func() error { return s.enliven(ctx, q) })
	if err := g.Wait(); err != nil {
		return err
	}
	if q.aside > 0 {
		return ErrDDLFirst
	}
	return nil
}

// enliven has loaded tables made live. It needs no session, and the applier takes
// one call at a time, so a worker's time would be wasted on it.
func (s *Seeder) enliven(ctx context.Context, q *queue) error {
	for {
		t, err := q.nextLoaded(ctx)
		if t == nil || err != nil {
			return err
		}
		if err := s.cfg.Gate.Loaded(ctx, t.OID); err != nil {
			return fmt.Errorf("make table %s live: %w", t, err)
		}
		s.meter.live(t.OID)
		q.enlivened()
		s.cfg.Log.Debug("table is live", "table", t.String())
	}
}

// replica is what is known of the replica as a pass begins.
type replica struct {
	schema  frame.Snapshot  // that of its schema; zero when it is of no use
	unbuilt map[uint32]bool // tables that lack an index or more: they had no complete copy yet
}

// takeoverWait is how long sessions of an earlier run may take to end.
const takeoverWait = "30s"

// takeOver ends what an earlier run, of an agent that was killed, may have left on
// the replica: a COPY that was still under way would add its rows to ours. Then it
// reads the tables. Each worker's session shares the lock for as long as it lives.
func (s *Seeder) takeOver(ctx context.Context) (tables []catalog.SeedTable, r replica, err error) {
	conn, err := session(ctx, s.cfg.Connect, "; SET lock_timeout = '"+takeoverWait+"'")
	if err != nil {
		return nil, r, err
	}
	defer closeSession(conn)
	_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM (`+postgres.LockSessions+`) l WHERE pid <> pg_backend_pid()`, sessionLock(s.cfg.Link))
	if err == nil {
		_, err = conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, sessionLock(s.cfg.Link))
	}
	if err != nil {
		return nil, r, lost("sessions of an earlier copy still work on the replica", err)
	}
	state, _, err := catalog.LoadSeeding(ctx, conn, s.cfg.Link)
	if err == nil && state.Initial {
		r.schema = state.Snapshot
	}
	if err == nil {
		tables, err = catalog.SeedTables(ctx, conn, s.cfg.Link)
	}
	if err == nil {
		var unbuilt []uint32
		unbuilt, err = catalog.UnbuiltTables(ctx, conn, s.cfg.Link)
		r.unbuilt = map[uint32]bool{}
		for _, oid := range unbuilt {
			r.unbuilt[oid] = true
		}
	}
	if err != nil {
		return nil, r, lost("the replica's PostgreSQL was lost during the copy", err)
	}
	return tables, r, nil
}

// misfit is why the replica's table does not take the rows: DDL that the snapshot
// saw is still on its way in the stream, or somebody changed the replica.
type misfit struct{ err error }

func (m misfit) Error() string { return m.err.Error() }
func (m misfit) Unwrap() error { return m.err }

func (w *worker) refused(t *table, err error) error {
	return problem.New("rows-refused", "table "+t.String(), "the replica's table does not take the primary's rows",
		postgres.ByHand+" …;").Advise("as superuser, with the DDL that makes its definition equal to the primary's; then hawser link resume " + w.cfg.Name).At("the secondary").Because(err)
}
