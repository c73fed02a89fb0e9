package seed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

const linkID = "00000000000000aa"

var discard = slog.New(slog.DiscardHandler)

// pair is two databases and all that stands around a seeder.
type pair struct {
	t        testing.TB
	from, to *testpg.Cluster
	src, dst string
	gate     *fakeGate
	sizes    sizes
	limits   limits
	workers  int
	role     string // of Serve's sessions; "" is the superuser
	build    func(context.Context, *pgx.Conn, uint32) error
	steps    []Step                   // of each table
	inject   func(received int) error // may break a stream: sees each frame that the secondary receives
	frames   atomic.Int64
	serving  sync.WaitGroup
	streams  atomic.Int64
	most     atomic.Int64 // streams at the same time
	seeder   *Seeder
}

// newPair makes two databases of the shared cluster with the same schema.
func newPair(t testing.TB, schema ...string) *pair {
	c := testpg.Shared(t)
	return newPairOn(t, c, c, schema...)
}

func newPairOn(t testing.TB, from, to *testpg.Cluster, schema ...string) *pair {
	t.Helper()
	p := &pair{
		t: t, from: from, to: to, src: from.CreateDatabase(t), dst: to.CreateDatabase(t),
		sizes: defaultSizes, limits: defaultLimits, workers: 3,
		build: func(context.Context, *pgx.Conn, uint32) error { return nil },
	}
	from.Exec(t, p.src, schema...)
	to.Exec(t, p.dst, schema...)
	conn := to.Connect(t, p.dst)
	ctx := context.Background()
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if err := catalog.Join(ctx, conn, linkID, "orders"); err != nil {
		t.Fatal(err)
	}
	p.gate = &fakeGate{conn: conn, snapshots: map[uint32]catalog.SeedTable{}, requested: map[uint32]int{}}
	t.Cleanup(func() { p.noneLeft(); testpg.Returns(t, "the source serves nobody any more", p.serving.Wait) })
	return p
}

// list records the primary's tables and the snapshot of its schema on the secondary,
// as link does.
func (p *pair) list() []catalog.SeedTable {
	p.t.Helper()
	ctx := context.Background()
	tables := p.tables()
	var text string
	p.briefly(p.from, p.src, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text)
	})
	snapshot, err := frame.ParseSnapshot(text)
	if err == nil {
		err = catalog.StartReconciling(ctx, p.gate.conn, linkID, snapshot)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	for _, t := range tables {
		if err := catalog.PutSeedTable(ctx, p.gate.conn, linkID, t); err != nil {
			p.t.Fatal(err)
		}
	}
	return tables
}

func (p *pair) tables() (tables []catalog.SeedTable) {
	p.t.Helper()
	p.briefly(p.from, p.src, func(conn *pgx.Conn) (err error) {
		tables, err = Tables(context.Background(), conn, "")
		return err
	})
	return tables
}

// briefly opens a session for f.
func (p *pair) briefly(c *testpg.Cluster, database string, f func(conn *pgx.Conn) error) {
	p.t.Helper()
	ctx := context.Background()
	conn, err := c.Server().Connect(ctx, postgres.Session{Database: database, Purpose: "test"})
	if err == nil {
		defer conn.Close(ctx)
		err = f(conn)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// connect gives sessions as the agent's, or of a role that is less than it.
func (p *pair) connect(c *testpg.Cluster, database, role string) func(context.Context) (*pgx.Conn, error) {
	settings := map[string]string{"session_replication_role": "replica"}
	if role != "" {
		settings = map[string]string{"role": role}
	}
	return func(ctx context.Context) (*pgx.Conn, error) {
		return c.Server().Connect(ctx, postgres.Session{Database: database, Purpose: "seed", Settings: settings})
	}
}

func (p *pair) run(ctx context.Context) error {
	p.seeder = New(Config{
		Link: linkID, Name: "orders", Open: p.open, Connect: p.connect(p.to, p.dst, ""), Gate: p.gate,
		Indexes: func(context.Context, *pgx.Conn, uint32) ([]Step, error) { return p.steps, nil },
		Build:   p.build, Workers: p.workers, Log: discard,
	})
	p.seeder.limits = p.limits
	var err error
	pprof.Do(ctx, pprof.Labels("pair", p.src), func(ctx context.Context) { err = p.seeder.Run(ctx) })
	return err
}

func (p *pair) mustRun() {
	p.t.Helper()
	if err := p.run(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	for _, s := range p.states() {
		if s.State != catalog.Live {
			p.t.Errorf("table %s.%s is %s", s.Schema, s.Name, s.State)
		}
	}
}

func (p *pair) states() (tables []catalog.SeedTable) {
	p.t.Helper()
	p.briefly(p.to, p.dst, func(conn *pgx.Conn) (err error) {
		tables, err = catalog.SeedTables(context.Background(), conn, linkID)
		return err
	})
	return tables
}

// same compares the rows of tables, or of queries, on both sides.
func (p *pair) same(queries ...string) {
	p.t.Helper()
	p.briefly(p.from, p.src, func(src *pgx.Conn) error {
		p.briefly(p.to, p.dst, func(dst *pgx.Conn) error {
			for _, q := range queries {
				p.sameRows(src, dst, q)
			}
			return nil
		})
		return nil
	})
}

func (p *pair) sameRows(src, dst *pgx.Conn, q string) {
	p.t.Helper()
	if !strings.HasPrefix(q, "SELECT") {
		q = "SELECT * FROM ONLY " + q
	}
	want, have := testpg.Rows(p.t, src, q), testpg.Rows(p.t, dst, q)
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		p.t.Errorf("%s: %d rows on the primary, %d on the replica; first on either: %.300q %.300q", q, len(want), len(have), first(want), first(have))
	}
}

func first(rows []string) string {
	if len(rows) == 0 {
		return ""
	}
	return rows[0]
}

// allSame compares every carried table.
func (p *pair) allSame() {
	p.t.Helper()
	var names []string
	for _, t := range p.tables() {
		names = append(names, postgres.QuoteIdent(t.Schema, t.Name))
	}
	p.same(names...)
}

// open starts a Serve for a new stream, as the peers do.
func (p *pair) open(ctx context.Context) (ClientStream, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &clientPipe{
		pair: p, requests: make(chan []byte, 2*batchTables), frames: make(chan []byte, 4),
		closed: make(chan struct{}), ended: make(chan struct{}), cancel: cancel,
	}
	n := p.streams.Add(1)
	for most := p.most.Load(); n > most && !p.most.CompareAndSwap(most, n); most = p.most.Load() {
	}
	p.serving.Go(func() {
		defer p.streams.Add(-1)
		defer cancel()
		c.err = serve(ctx, p.connect(p.from, p.src, p.role), serverPipe{c}, "", p.sizes)
		close(c.ended)
	})
	return c, nil
}

// clientPipe is a stream in memory. Frames go through the codec, so that nothing
// is shared.
type clientPipe struct {
	pair             *pair
	requests, frames chan []byte
	closed           chan struct{} // by the client
	once             sync.Once
	ended            chan struct{} // by the server, with err
	err              error
	cancel           context.CancelFunc
}

func (c *clientPipe) Send(f frame.Frame) error {
	select {
	case <-c.ended:
		return c.reason()
	case <-c.closed:
		return errors.New("closed")
	case c.requests <- frame.Encode(nil, f):
		return nil
	}
}

func (c *clientPipe) reason() error {
	if c.err == nil {
		return io.EOF
	}
	return c.err
}

func (c *clientPipe) Recv() (frame.Frame, error) {
	if c.pair.inject != nil {
		if err := c.pair.inject(int(c.pair.frames.Add(1))); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	select {
	case b := <-c.frames:
		return frame.Decode(b)
	case <-c.closed:
		return nil, errors.New("closed")
	case <-c.ended:
		select {
		case b := <-c.frames:
			return frame.Decode(b)
		default:
			return nil, c.reason()
		}
	}
}

func (c *clientPipe) Close() error {
	c.once.Do(func() {
		close(c.closed)
		time.AfterFunc(time.Second, c.cancel)
	})
	return nil
}

type serverPipe struct{ c *clientPipe }

func (s serverPipe) Send(f frame.Frame) error {
	select {
	case s.c.frames <- frame.Encode(nil, f):
		return nil
	case <-s.c.closed:
		return errors.New("the secondary closed the stream")
	}
}

func (s serverPipe) Recv() (frame.Frame, error) {
	select {
	case b := <-s.c.requests:
		return frame.Decode(b)
	case <-s.c.closed:
		return nil, io.EOF
	}
}

// fakeGate is an applier without a stream. It keeps the catalog as the real one does.
type fakeGate struct {
	mu        sync.Mutex
	conn      *pgx.Conn
	snapshots map[uint32]catalog.SeedTable
	requested map[uint32]int
	goneAt    []uint32
	retake    func(t catalog.SeedTable) bool
	await     func(ctx context.Context, lsn frame.LSN) error
	fail      func(call string) error
	onLoaded  func(oid uint32)
}

func (g *fakeGate) check(call string) error {
	if g.fail == nil {
		return nil
	}
	return g.fail(call)
}

func (g *fakeGate) Requested(_ context.Context, oid uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requested[oid]++
	return g.check("requested")
}

func (g *fakeGate) SnapshotTaken(ctx context.Context, t catalog.SeedTable) error {
	ctx = context.WithoutCancel(ctx) // the real applier has its own
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.check("taken"); err != nil {
		return err
	}
	if g.retake != nil && g.retake(t) {
		return ErrRetake
	}
	g.snapshots[t.OID] = t
	return pgx.BeginFunc(ctx, g.conn, func(tx pgx.Tx) error {
		if err := catalog.Retake(ctx, tx, linkID, t.OID, t.Snapshot); err != nil {
			return err
		}
		return catalog.SetCopying(ctx, tx, linkID, t)
	})
}

func (g *fakeGate) Loaded(ctx context.Context, oid uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.check("loaded"); err != nil {
		return err
	}
	if g.onLoaded != nil {
		g.onLoaded(oid)
	}
	return catalog.SetTableState(context.WithoutCancel(ctx), g.conn, linkID, oid, catalog.Live)
}

func (g *fakeGate) Gone(ctx context.Context, oid uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.goneAt = append(g.goneAt, oid)
	return catalog.SetTableState(context.WithoutCancel(ctx), g.conn, linkID, oid, catalog.Live)
}

func (g *fakeGate) Await(ctx context.Context, lsn frame.LSN) error {
	if lsn == 0 {
		return errors.New("awaited no position")
	}
	if g.await != nil {
		return g.await(ctx, lsn)
	}
	return nil
}

// noneLeft holds Run to its promise: no goroutine of this package outlives it. Goroutines
// inherit the label that run sets; those of tests beside this one have another.
func (p *pair) noneLeft() {
	p.t.Helper()
	label := fmt.Sprintf("%q:%q", "pair", p.src)
	testpg.Eventually(p.t, 5*time.Second, "the goroutines have ended", func() (bool, error) {
		var profile strings.Builder
		if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
			return false, err
		}
		for g := range strings.SplitSeq(profile.String(), "\n\n") {
			if !strings.Contains(g, label) {
				continue
			}
			if strings.Contains(g, "seed.(*worker)") || strings.Contains(g, "seed.(*incoming)") || strings.Contains(g, "seed.(*Seeder)") {
				return false, fmt.Errorf("%s", g)
			}
		}
		return true, nil
	})
}
