// Package testpg gives tests real PostgreSQL clusters.
//
// A cluster listens on loopback and a free port, lives in a temporary directory,
// and ends with its test; a watchdog ends it even when the test binary is killed.
// Starting one is the slow part, so tests of one binary share a cluster where
// that is safe and take a database of their own. This package is for tests alone
// and must never be imported by shipped code.
package testpg

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
)

// Cluster is a running cluster. Its superuser is postgres.
type Cluster struct {
	pg     *postgres.Cluster
	server *postgres.Server
	dir    string
	data   string
	port   int
	names  atomic.Int64
	guard  io.Closer
}

var settings = map[string]string{
	"fsync":                     "off",
	"full_page_writes":          "off",
	"shared_buffers":            "32MB",
	"max_connections":           "300",
	"max_replication_slots":     "100",
	"max_wal_senders":           "100",
	"max_prepared_transactions": "20",
	"logging_collector":         "off",
	"autovacuum_naptime":        "10s",
}

var shared struct {
	sync.Mutex
	cluster *Cluster
}

// Main runs a binary's tests and ends what they shared. Use it in TestMain.
func Main(m *testing.M) int {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster != nil {
		shared.cluster.remove()
	}
	return code
}

// Shared returns the cluster that the tests of this binary share.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		c, err := create(nil)
		if err != nil {
			t.Fatalf("start the shared cluster: %v", err)
		}
		shared.cluster = c
	}
	return shared.cluster
}

// Start returns a cluster for this test alone.
func Start(t testing.TB, more map[string]string) *Cluster {
	t.Helper()
	c, err := create(more)
	if err != nil {
		t.Fatalf("start a cluster: %v", err)
	}
	t.Cleanup(c.remove)
	return c
}

func create(more map[string]string) (*Cluster, error) {
	dir, err := os.MkdirTemp("", "hawser-test-")
	if err != nil {
		return nil, err
	}
	// The server's user has to pass.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir, data: filepath.Join(dir, "data"), port: port}
	all := map[string]string{}
	for _, m := range []map[string]string{settings, more} {
		for k, v := range m {
			all[k] = v
		}
	}
	c.pg, err = postgres.NewCluster(postgres.ClusterConfig{
		DataDir: c.data, SocketDir: filepath.Join(dir, "s"), Port: port, ListenAddresses: "127.0.0.1",
		BinDir: os.Getenv("HAWSER_TEST_PG_BIN"), Settings: all, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	if c.guard, err = watchdog(dir, c.data); err != nil {
		return nil, err
	}
	if err := c.pg.Ensure(context.Background()); err != nil {
		c.remove()
		return nil, err
	}
	if err := c.trustLoopback(); err != nil {
		c.remove()
		return nil, err
	}
	c.server, err = postgres.Open(c.DSN("postgres"))
	return c, err
}

// watchdog ends the cluster when this process is gone: its read ends then.
func watchdog(dir, data string) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", `read _; p=$(head -n 1 "$2/postmaster.pid" 2>/dev/null) && kill -QUIT "$p" 2>/dev/null; sleep 1; rm -rf "$1"`, "sh", dir, data)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return in, cmd.Start()
}

// FreePort returns a TCP port of loopback that was free a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (c *Cluster) trustLoopback() error {
	hba := filepath.Join(c.data, "pg_hba.conf")
	text, err := os.ReadFile(hba)
	if err != nil {
		return err
	}
	if err := os.WriteFile(hba, []byte(strings.ReplaceAll(string(text), "scram-sha-256", "trust")), 0o600); err != nil {
		return err
	}
	s, err := c.pg.Server()
	if err != nil {
		return err
	}
	ctx := context.Background()
	conn, err := s.Connect(ctx, postgres.Session{Purpose: "test"})
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, `SELECT pg_reload_conf()`)
	return err
}

func (c *Cluster) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c.signal(syscall.SIGQUIT)
	_ = c.pg.Stop(ctx)
	_ = c.guard.Close()
	_ = os.RemoveAll(c.dir)
}

// DSN is a connection string for a database, over loopback.
func (c *Cluster) DSN(database string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname='%s' sslmode=disable", c.port, strings.ReplaceAll(database, "'", `\'`))
}

// Port is where the cluster listens.
func (c *Cluster) Port() int { return c.port }

// Server is the cluster as shipped code sees it.
func (c *Cluster) Server() *postgres.Server { return c.server }

// DataDir is the cluster's data directory.
func (c *Cluster) DataDir() string { return c.data }

// CreateDatabase makes an empty database that goes with the test.
func (c *Cluster) CreateDatabase(t testing.TB) string {
	t.Helper()
	name := "test_" + strconv.FormatInt(c.names.Add(1), 10) + "_" + strconv.Itoa(os.Getpid())
	c.Exec(t, "postgres", "CREATE DATABASE "+name)
	t.Cleanup(func() { c.DropDatabase(name) })
	return name
}

// DropDatabase removes a database with its slots and sessions, if it is there.
func (c *Cluster) DropDatabase(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := c.server.Connect(ctx, postgres.Session{Database: "postgres", Purpose: "test"})
	if err != nil {
		return
	}
	defer conn.Close(ctx)
	for range 50 {
		_, err = conn.Exec(ctx, `
			SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active`, name)
		if err == nil {
			_, err = conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1`, name)
		}
		if err == nil {
			_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+postgres.QuoteIdent(name)+" WITH (FORCE)")
		}
		if err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Connect opens a session that goes with the test.
func (c *Cluster) Connect(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	conn, err := c.server.Connect(context.Background(), postgres.Session{Database: database, Purpose: "test"})
	if err != nil {
		t.Fatalf("connect to %s: %v", database, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// Exec runs statements in a session of their own.
func (c *Cluster) Exec(t testing.TB, database string, sql ...string) {
	t.Helper()
	ctx := context.Background()
	conn, err := c.server.Connect(ctx, postgres.Session{Database: database, Purpose: "test"})
	if err != nil {
		t.Fatalf("connect to %s: %v", database, err)
	}
	defer conn.Close(ctx)
	for _, s := range sql {
		if _, err := conn.PgConn().Exec(ctx, s).ReadAll(); err != nil {
			t.Fatalf("%.200s: %v", s, err)
		}
	}
}

// Rows returns each row of a query as text, its columns joined by |.
func Rows(t testing.TB, conn *pgx.Conn, sql string, args ...any) []string {
	t.Helper()
	rows, err := conn.Query(context.Background(), sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	if err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
	defer rows.Close()
	out := []string{}
	for rows.Next() {
		var line strings.Builder
		for i, v := range rows.RawValues() {
			if i > 0 {
				line.WriteByte('|')
			}
			if v == nil {
				line.WriteString("NULL")
			}
			line.Write(v)
		}
		out = append(out, line.String())
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
	return out
}

// Stop shuts the server down in order.
func (c *Cluster) Stop(t testing.TB) {
	t.Helper()
	if err := c.pg.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Start starts the server again.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	if err := c.pg.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Restart stops and starts the server.
func (c *Cluster) Restart(t testing.TB) {
	t.Helper()
	c.Stop(t)
	c.Start(t)
}

// Kill ends the server as a crash does, without a checkpoint.
func (c *Cluster) Kill(t testing.TB) {
	t.Helper()
	c.signal(syscall.SIGQUIT)
	Eventually(t, 20*time.Second, "the server is gone", func() (bool, error) {
		_, err := os.Stat(filepath.Join(c.data, "postmaster.pid"))
		return os.IsNotExist(err), nil
	})
}

func (c *Cluster) signal(s syscall.Signal) {
	data, err := os.ReadFile(filepath.Join(c.data, "postmaster.pid"))
	if err != nil {
		return
	}
	first, _, _ := strings.Cut(string(data), "\n")
	if pid, err := strconv.Atoi(first); err == nil {
		_ = syscall.Kill(pid, s)
	}
}

// Eventually waits until cond holds. It is the one way in which tests wait.
func Eventually(t testing.TB, within time.Duration, what string, cond func() (bool, error)) {
	t.Helper()
	deadline := time.Now().Add(within)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		ok, err := cond()
		if ok && err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s (%v)", what, within, err)
		}
		time.Sleep(wait)
	}
}
