package agent_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) {
	if os.Getenv(asProcess) != "" {
		runAsProcess()
		return
	}
	os.Exit(testpg.Main(m))
}

// instance is a cluster of the test's and an agent in front of it.
type instance struct {
	*testpg.Cluster
	asker
	name, dir string
	port      int
	maxWAL    int64    // of the next run
	process   bool     // the next run is a process of its own, and stop kills it
	pid       int      // of that process
	env       []string // of that process
	connect   string   // connection string of the next run; "" is the cluster's own
	stop      func()
}

func newInstance(t *testing.T, name string) *instance {
	t.Helper()
	return newInstanceOn(t, name, testpg.Start(t, nil))
}

func newInstanceOn(t *testing.T, name string, cluster *testpg.Cluster) *instance {
	t.Helper()
	port, err := testpg.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hawser-agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	i := &instance{Cluster: cluster, name: name, dir: dir, port: port}
	i.run(t)
	t.Cleanup(func() { i.stop() })
	return i
}

// run starts the agent; stop ends it and waits.
func (i *instance) run(t *testing.T) {
	t.Helper()
	cfg := agent.DefaultConfig()
	cfg.Name, cfg.StateDir, cfg.Socket = i.name, i.dir, filepath.Join(i.dir, "s")
	cfg.Endpoint.Listen = fmt.Sprintf("127.0.0.1:%d", i.port)
	cfg.Postgres.Connection = agent.ConnString(i.connection())
	cfg.Log.Level = slog.LevelDebug
	if i.maxWAL > 0 {
		cfg.Limits.WALHeld = agent.ByteSize(i.maxWAL)
	}
	if i.process {
		i.stop = startProcess(t, i)
	} else {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := agent.Run(ctx, cfg, "test"); err != nil {
				t.Errorf("agent %s: %v", i.name, err)
			}
		}()
		i.stop = func() { cancel(); testpg.Await(t, "agent "+i.name+" stops", done) }
	}
	if i.Client == nil { // one that is asking meanwhile goes on
		var err error
		if i.Client, err = api.Dial(cfg.Socket, ""); err != nil {
			t.Fatal(err)
		}
	}
	testpg.Eventually(t, 20*time.Second, "agent "+i.name+" answers", func() (bool, error) {
		_, err := i.Instance(context.Background())
		return err == nil, err
	})
}

// connection is the connection string of the next run.
func (i *instance) connection() string {
	if i.connect != "" {
		return i.connect
	}
	return i.DSN("postgres")
}

// introduce exchanges certificates; only a dials b.
func introduce(t *testing.T, a, b *instance) {
	t.Helper()
	trust(t, a, b, fmt.Sprintf("127.0.0.1:%d", b.port))
	b.awaitPeer(t)
}

// trust exchanges certificates; a dials b at the address.
func trust(t *testing.T, a, b *instance, address string) {
	t.Helper()
	ctx := context.Background()
	for _, way := range []struct {
		to, of  *instance
		address string
	}{{a, b, address}, {b, a, ""}} {
		cert, err := way.of.Certificate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := way.to.AddPeer(ctx, api.AddPeer{Name: way.of.name, Certificate: cert.PEM, Address: way.address}); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitPeer waits until the only peer is connected.
func (i *instance) awaitPeer(t *testing.T) {
	t.Helper()
	testpg.Eventually(t, 20*time.Second, "the peers are connected", func() (bool, error) {
		list, err := i.Peers(context.Background())
		return err == nil && len(list.Peers) == 1 && list.Peers[0].Connected, err
	})
}

func (i *instance) awaitState(t *testing.T, link string, want api.State) {
	t.Helper()
	i.awaitStateWithin(t, link, want, 60*time.Second)
}

func (i *instance) awaitStateWithin(t *testing.T, link string, want api.State, within time.Duration) {
	t.Helper()
	var last api.Link
	testpg.Eventually(t, within, "link "+link+" is "+string(want)+" on "+i.name, func() (bool, error) {
		l, err := i.Link(context.Background(), link)
		last = l
		if err == nil && l.State != want {
			err = fmt.Errorf("it is %s: %v", l.State, l.Cause)
		}
		return err == nil && last.State == want, err
	})
}

const zoo = `
	CREATE TYPE status AS ENUM ('new', 'paid', 'sent');
	CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, tags text[], info jsonb);
	CREATE TABLE "My Order" (id serial PRIMARY KEY, customer bigint NOT NULL REFERENCES customer, "Status" status NOT NULL DEFAULT 'new', total numeric(12,2), twice numeric GENERATED ALWAYS AS (total * 2) STORED);
	CREATE INDEX ON "My Order" (customer);
	CREATE TABLE audit (at timestamptz DEFAULT now(), what text);
	CREATE TABLE event (id bigint, at date NOT NULL, body text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
	CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
	CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
	CREATE VIEW paid AS SELECT * FROM "My Order" WHERE "Status" = 'paid';
	INSERT INTO customer (name, tags, info) SELECT 'c' || i, ARRAY['a', NULL, 'x"y'], jsonb_build_object('i', i) FROM generate_series(1, 2000) i;
	INSERT INTO "My Order" (customer, total) SELECT 1 + i % 2000, i FROM generate_series(1, 5000) i;
	INSERT INTO audit (what) SELECT 'start' FROM generate_series(1, 500);
	INSERT INTO event SELECT i, date '2026-01-01' + i % 360, repeat('x', 3000) FROM generate_series(1, 1000) i;`

// write runs a workload until stop, and counts the transactions that committed.
func write(t *testing.T, dsn, name string) (n *atomic.Int64, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n = &atomic.Int64{}
	var wg sync.WaitGroup
	wg.Go(func() {
		var conn *pgx.Conn
		for i := 0; ctx.Err() == nil; i++ {
			var err error
			if conn == nil {
				if conn, err = pgx.Connect(ctx, dsn); err != nil {
					conn = nil
					continue
				}
			}
			err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				key := fmt.Sprintf("%s%d", name, i)
				if _, err := tx.Exec(ctx, `WITH c AS (INSERT INTO customer (name) VALUES ($1) RETURNING id)
					INSERT INTO "My Order" (customer, total) SELECT id, $2 FROM c`, key, i); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `UPDATE "My Order" SET "Status" = 'paid' WHERE id = $1`, i%5000); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `INSERT INTO audit (what) VALUES ('w')`); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `DELETE FROM audit WHERE ctid = (SELECT max(ctid) FROM audit)`); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `UPDATE audit SET what = $1, at = NULL WHERE ctid = (SELECT min(ctid) FROM audit)`, key); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `DELETE FROM event WHERE id = $1`, i); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `INSERT INTO event VALUES (hashtextextended($1, 0), '2026-08-01', 'w')`, key)
				return err
			})
			if err == nil {
				n.Add(1)
			} else if ctx.Err() == nil {
				_ = conn.Close(ctx)
				conn = nil
			}
		}
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	})
	return n, func() { cancel(); testpg.Returns(t, "the clients end", wg.Wait) }
}

// more waits until the workload has committed some more.
func more(t *testing.T, n *atomic.Int64) {
	t.Helper()
	from := n.Load()
	testpg.Eventually(t, 30*time.Second, "the clients write", func() (bool, error) { return n.Load() > from+50, nil })
}

// digest is every table's rows. The fence may end the session that asks.
func digest(t *testing.T, c *testpg.Cluster, database string) (out string) {
	t.Helper()
	testpg.Eventually(t, 20*time.Second, "the tables can be read", func() (bool, error) {
		conn, err := pgx.Connect(t.Context(), c.DSN(database))
		if err != nil {
			return false, err
		}
		defer conn.Close(context.Background())
		out, err = tables(t.Context(), conn)
		return err == nil, err
	})
	return out
}

func tables(ctx context.Context, conn *pgx.Conn) (string, error) {
	rows, err := conn.Query(ctx, `
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'hawser') ORDER BY 1`)
	if err != nil {
		return "", err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", err
	}
	for i, name := range names {
		var digest string
		err := conn.QueryRow(ctx, `SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ONLY `+name+` t`).Scan(&digest)
		if err != nil {
			return "", err
		}
		names[i] += " " + digest
	}
	return strings.Join(names, "\n"), nil
}

func equal(t *testing.T, a, b *instance, database string) {
	t.Helper()
	var x, y string
	testpg.Eventually(t, 30*time.Second, "both sides are equal", func() (bool, error) {
		x, y = digest(t, a.Cluster, database), digest(t, b.Cluster, database)
		if x != y {
			return false, fmt.Errorf("\n%s\n---\n%s", x, y)
		}
		return true, nil
	})
}

func TestLinkFailoverAndBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo)
	dsn := fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres dbname=shop sslmode=disable target_session_attrs=read-write", a.Port(), b.Port())
	n, stop := write(t, dsn, "one")
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	stop()
	t.Logf("%d transactions during seeding", n.Load())
	equal(t, a, b, "shop")

	n, stop = write(t, dsn, "two")
	more(t, n)
	result, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("failover: %+v", result)
	b.awaitState(t, "shop", api.StateSynchronized)
	more(t, n)
	stop()
	t.Logf("%d transactions around the failover", n.Load())
	equal(t, a, b, "shop")
	if l, err := b.Link(ctx, "shop"); err != nil || l.Role != api.RolePrimary || l.Term != 2 {
		t.Fatalf("after the failover: %+v %v", l, err)
	}

	n, stop = write(t, dsn, "three")
	more(t, n)
	result, err = b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("failback: %+v", result)
	a.awaitState(t, "shop", api.StateSynchronized)
	more(t, n)
	stop()
	t.Logf("%d transactions around the failback", n.Load())
	equal(t, a, b, "shop")
}
