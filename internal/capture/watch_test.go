package capture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// watched is a database with a sequence, an open session in it, and one that looks.
type watched struct {
	t        *testing.T
	c        *testpg.Cluster
	database string
	open, by *pgx.Conn
}

func newWatched(t *testing.T) *watched {
	c := testpg.Shared(t)
	w := &watched{t: t, c: c, database: c.CreateDatabase(t)}
	c.Exec(t, w.database, `CREATE SEQUENCE s; SELECT nextval('s')`)
	w.open, w.by = c.Connect(t, w.database), c.Connect(t, "postgres")
	execute(t, w.open, `SELECT 1`)
	return w
}

func (w *watched) look() activity {
	w.t.Helper()
	l := lookAt(w.t.Context(), w.by, listener{w.database, 0})
	if l.err != nil {
		w.t.Fatal(l.err)
	}
	if l.activity[w.database].marks == "" {
		w.t.Fatal("the database is not among what was seen")
	}
	return l.activity[w.database]
}

// rests returns what is seen when the sessions that made the database have left.
func (w *watched) rests() (a activity) {
	w.t.Helper()
	testpg.Eventually(w.t, 20*time.Second, "the database is at rest", func() (bool, error) {
		before := a
		a = w.look()
		return a == before && !a.busy, nil
	})
	return a
}

// What may move a sequence shows, though it writes no WAL: an idle link asks only then.
func TestActivityShowsWhatMovesASequence(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	rest := w.rests()

	execute(t, w.open, `SELECT nextval('s')`)
	after := w.look()
	if after == rest || after.busy {
		t.Errorf("an open session's statement: %v, and %v before it", after, rest)
	}

	w.c.Exec(t, w.database, `SELECT nextval('s')`)
	testpg.Eventually(t, 20*time.Second, "a short session is seen", func() (bool, error) { return w.look() != after, nil })

	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := w.open.Exec(ctx, `SELECT nextval('s'), pg_sleep(600)`)
		done <- err
	}()
	testpg.Eventually(t, 20*time.Second, "a statement under way is busy", func() (bool, error) { return w.look().busy, nil })
	cancel()
	testpg.Await(t, "the statement that was given up ends", done)
}

// A link is not asked about what happens elsewhere, nor by its own asking.
func TestActivityIsOfOneDatabase(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	asks := w.c.Connect(t, w.database)
	own := listener{w.database, int32(asks.PgConn().PID())}
	w.rests()
	before := lookAt(t.Context(), w.by, own)
	w.c.Exec(t, w.c.CreateDatabase(t), `CREATE TABLE t (a int)`)
	if _, err := lastValues(t.Context(), asks); err != nil {
		t.Fatal(err)
	}
	after := lookAt(t.Context(), w.by, own)
	if before.err != nil || after.err != nil || before.activity[w.database] != after.activity[w.database] {
		t.Errorf("%v, and %v before", after, before)
	}
	if after.insert <= before.insert || after.snapshot == before.snapshot {
		t.Errorf("at %s with %s, and %s with %s before", after.insert, after.snapshot, before.insert, before.snapshot)
	}
}

// What a role can't see counts as busy.
func TestActivityThatIsHidden(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	w.rests()
	role := fmt.Sprintf("watch_%d", rand.Uint32())
	execute(t, w.by, `CREATE ROLE `+role+`; SET ROLE `+role)
	t.Cleanup(func() { executeLast(t, w.by, `RESET ROLE`, `DROP ROLE `+role) })
	if !w.look().busy {
		t.Error("a session whose statements are hidden counts as idle")
	}
}

// All links of a server share one connection, which is made again when it is lost, and
// goes with the last of them.
func TestWatchIsShared(t *testing.T) {
	t.Parallel()
	c := testpg.Start(t, nil)
	conn := c.Connect(t, "postgres")
	watch := NewWatch(c.Server())
	watchers := func() []string {
		return testpg.Rows(t, conn, `SELECT pid FROM pg_stat_activity WHERE application_name = 'hawser:watch'`)
	}
	sees := func() {
		t.Helper()
		if l, err := watch.wait(t.Context()); err != nil || l.insert == 0 || l.activity["postgres"].marks == "" {
			t.Fatalf("saw %v, %v", l, err)
		}
	}
	leave := [2]func(){watch.join(listener{"postgres", 0}), watch.join(listener{"template1", 0})}
	sees()
	if n := watchers(); len(n) != 1 {
		t.Errorf("%d sessions watch", len(n))
	}
	execute(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hawser:watch'`)
	sees()
	leave[1]()
	sees()
	leave[0]()
	testpg.Eventually(t, 20*time.Second, "nobody watches", func() (bool, error) { return len(watchers()) == 0, nil })
	defer watch.join(listener{"postgres", 0})()
	sees()
}

// frames takes what a run sends.
type frames chan frame.Frame

func (f frames) Send(ctx context.Context, x frame.Frame) error {
	select {
	case f <- x:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A link whose watch can't look does so itself.
func TestBeatsWithoutAWatch(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	nowhere, err := postgres.Open("host=127.0.0.1 port=1 user=nobody")
	if err != nil {
		t.Fatal(err)
	}
	sent := make(frames)
	c := New(Config{Database: w.database, Watch: NewWatch(nowhere)})
	r := &run{Capture: c, sql: w.open, sink: sent, asks: make(chan struct{}, 1), self: listener{w.database, int32(w.open.PgConn().PID())}}
	defer c.cfg.Watch.join(r.self)()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.heartbeats(ctx) }()
	values := (testpg.Await(t, "the sequences are sent", sent)).(frame.Sequences).Values
	if len(values) != 1 || values[0].Last != 1 || !values[0].Called {
		t.Errorf("sequences %v", values)
	}
	if h := (testpg.Await(t, "a heartbeat is sent", sent)).(frame.Heartbeat); h.Snapshot == "" {
		t.Errorf("heartbeat %v", h)
	}
	cancel()
	testpg.Await(t, "the heartbeats end", done)
}
