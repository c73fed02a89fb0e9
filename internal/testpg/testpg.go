// Package testpg gives tests real PostgreSQL clusters.
//
// A cluster listens on loopback and a free port, lives in a temporary directory,
// and ends with its test; a watchdog ends it even when the test binary is killed.
// Starting one is the slow part, so tests of one binary share a cluster where
// that is safe and take a database of their own. HAWSER_TEST_PG_BIN names the
// directory of another PostgreSQL's programs. This package is for tests alone and
// must never be imported by shipped code.
package testpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
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
	"github.com/hawser/hawser/internal/problem"
)

// Cluster is a running cluster. Its superuser is postgres, and it trusts whoever
// comes over loopback.
type Cluster struct {
	pg     *postgres.Cluster
	config postgres.ClusterConfig // pg's
	server *postgres.Server
	dir    string
	data   string
	port   int
	names  atomic.Int64
	guard  io.Closer // the watchdog's standard input
}

// settings make a cluster quick and small; a test's own come on top.
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
	"lock_timeout":              "2min", // a test's session that hangs on a lock says so; agents set their own
}

// Patience bounds, on a busy machine, what a test waits for and nothing else bounds: the
// start of a cluster, a statement, a goroutine. A test that hangs fails, and says on what.
const Patience = 2 * time.Minute

var shared struct {
	sync.Mutex
	cluster *Cluster
	err     error // of the first try; the next test would fail as it did
}

// Main runs a binary's tests and ends what they shared. Use it in TestMain:
// os.Exit(testpg.Main(m)).
func Main(m *testing.M) int {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster != nil {
		shared.cluster.remove()
	}
	return code
}

// Shared returns the cluster that the tests of this binary share. A test may not
// stop it, nor change what is the cluster's and not its database's.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil && shared.err == nil {
		shared.cluster, shared.err = create(os.Getenv("HAWSER_TEST_PG_BIN"), nil)
	}
	if shared.err != nil {
		t.Fatalf("start the shared cluster: %v", shared.err)
	}
	return shared.cluster
}

// Start returns a cluster for this test alone, with settings of its own.
func Start(t testing.TB, settings map[string]string) *Cluster {
	t.Helper()
	c, err := create(os.Getenv("HAWSER_TEST_PG_BIN"), settings)
	if err != nil {
		t.Fatalf("start a cluster: %v", err)
	}
	t.Cleanup(c.remove)
	return c
}

func create(binDir string, more map[string]string) (*Cluster, error) {
	for {
		c, err := createOnce(binDir, more)
		if p, ok := problem.As(err); ok && p.Code == "port-in-use" {
			continue // another took the port that was free
		}
		return c, err
	}
}

func createOnce(binDir string, more map[string]string) (*Cluster, error) {
	dir, err := os.MkdirTemp("", "hawser-test-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the cluster: %w", err)
	}
	c := &Cluster{dir: dir, data: filepath.Join(dir, "data")}
	if c.guard, err = watchdog(dir, c.data); err != nil {
		return nil, err
	}
	if err := c.start(binDir, more); err != nil {
		c.remove()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start(binDir string, more map[string]string) (err error) {
	// PostgreSQL's user has to pass.
	if err := os.Chmod(c.dir, 0o755); err != nil {
		return fmt.Errorf("open the cluster's directory: %w", err)
	}
	hba := filepath.Join(c.dir, "pg_hba.conf")
	if err := os.WriteFile(hba, []byte(trustLoopback), 0o644); err != nil {
		return fmt.Errorf("write pg_hba.conf: %w", err)
	}
	if c.port, err = FreePort(); err != nil {
		return err
	}
	all := maps.Clone(settings)
	maps.Copy(all, map[string]string{"hba_file": hba})
	maps.Copy(all, more)
	c.config = postgres.ClusterConfig{
		DataDir: c.data, SocketDir: filepath.Join(c.dir, "socket"), Port: c.port, ListenAddresses: "127.0.0.1",
		BinDir: binDir, Settings: all, Log: slog.New(slog.DiscardHandler),
	}
	if c.pg, err = postgres.NewCluster(c.config); err != nil {
		return err
	}
	if c.server, err = postgres.Open(c.DSN("postgres")); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return c.pg.Ensure(ctx)
}

const trustLoopback = `local all all peer map=hawser
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
`

// watchdog ends the cluster when this process is gone, however it ended: its read
// returns then. It waits for the server's end before it removes the directory.
func watchdog(dir, data string) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", `
		read _
		pid=$(head -n 1 "$2/postmaster.pid" 2>/dev/null)
		test -n "$pid" && kill -QUIT "$pid" 2>/dev/null
		n=0
		while test -n "$pid" && kill -0 "$pid" 2>/dev/null && test $n -lt 100; do n=$((n+1)); sleep 0.1; done
		rm -rf "$1"`, "sh", dir, data)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the cluster's watchdog: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	return in, nil
}

// remove ends the cluster at once: nobody reads its data again.
func (c *Cluster) remove() {
	if c.pg != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = c.pg.Stop(ctx) // the watchdog tries it again
	}
	_ = c.guard.Close()
	_ = os.RemoveAll(c.dir)
}

// Server is the cluster as shipped code sees it.
func (c *Cluster) Server() *postgres.Server { return c.server }

// Port is where the cluster listens.
func (c *Cluster) Port() int { return c.port }

// DataDir is the cluster's data directory.
func (c *Cluster) DataDir() string { return c.data }

// DSN is a connection string for a database: as superuser, over loopback.
func (c *Cluster) DSN(database string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname='%s' sslmode=disable",
		c.port, strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database))
}

// CreateDatabase makes an empty database that goes with the test.
func (c *Cluster) CreateDatabase(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test_%d_%d", c.names.Add(1), os.Getpid())
	c.Exec(t, "postgres", "CREATE DATABASE "+postgres.QuoteIdent(name))
	t.Cleanup(func() {
		if err := c.DropDatabase(name); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return name
}

// dropWithin bounds how long a database that is still in use is waited for.
const dropWithin = 20 * time.Second

// DropDatabase removes a database, if it is there, with its sessions, slots,
// subscriptions and prepared transactions. A cluster that is down has none.
func (c *Cluster) DropDatabase(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dropWithin)
	defer cancel()
	conn, err := c.server.Connect(ctx, postgres.Session{Database: "postgres", Purpose: "test"})
	if p, ok := problem.As(err); ok && p.Code == "server-unreachable" {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = poll(ctx, func() (bool, error) {
		err := c.empty(ctx, conn, name)
		if err == nil {
			_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+postgres.QuoteIdent(name)+" WITH (FORCE)")
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

// empty takes away what keeps a database from being dropped.
func (c *Cluster) empty(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active`, name)
	if err == nil {
		_, err = conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1`, name)
	}
	if err != nil {
		return err
	}
	var rest int
	err = conn.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = $1)
		     + (SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = $1)`, name).Scan(&rest)
	if err != nil || rest == 0 {
		return err
	}
	return c.emptyInside(ctx, name)
}

// emptyInside ends what only a session in the database can end.
func (c *Cluster) emptyInside(ctx context.Context, name string) error {
	conn, err := c.server.Connect(ctx, postgres.Session{Database: name, Purpose: "test", Settings: map[string]string{"default_transaction_read_only": "off"}})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `
		SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE database = current_database()
		UNION ALL
		SELECT unnest(ARRAY[format('ALTER SUBSCRIPTION %I DISABLE', subname), format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', subname),
		                    format('DROP SUBSCRIPTION %I', subname)])
		FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()`)
	if err != nil {
		return err
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, sql := range statements {
		if err == nil {
			_, err = conn.Exec(ctx, sql)
		}
	}
	return err
}

// Connect opens a session that goes with the test.
func (c *Cluster) Connect(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	conn := c.session(t, database)
	t.Cleanup(func() { end(conn) })
	return conn
}

func (c *Cluster) session(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := c.server.Connect(ctx, postgres.Session{Database: database, Purpose: "test"})
	if err != nil {
		t.Fatalf("connect to %s: %v", database, err)
	}
	return conn
}

func end(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// Exec runs statements in a session of their own. A string with several of them
// is one transaction.
func (c *Cluster) Exec(t testing.TB, database string, sql ...string) {
	t.Helper()
	conn := c.session(t, database)
	defer end(conn)
	for _, s := range sql {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		_, err := conn.PgConn().Exec(ctx, s).ReadAll()
		cancel()
		if err != nil {
			t.Fatalf("%.200s: %v", s, err)
		}
	}
}

// Rows is the function Rows in a session of its own, for a question that is asked again
// and again.
func (c *Cluster) Rows(t testing.TB, database, sql string, args ...any) []string {
	t.Helper()
	conn := c.session(t, database)
	defer end(conn)
	return Rows(t, conn, sql, args...)
}

// Rows returns each row of a query as its text: columns joined by |, null as NULL.
func Rows(t testing.TB, conn *pgx.Conn, sql string, args ...any) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	rows, err := conn.Query(ctx, sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
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
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := c.pg.Stop(ctx); err != nil {
		t.Fatalf("stop the cluster: %v", err)
	}
}

// Start starts the server again, after Stop or Kill.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := c.pg.Ensure(ctx); err != nil {
		t.Fatalf("start the cluster: %v", err)
	}
}

// Restart stops and starts the server.
func (c *Cluster) Restart(t testing.TB) {
	t.Helper()
	c.Stop(t)
	c.Start(t)
}

// Kill ends every process of the server with SIGKILL, as the end of a machine
// would: no checkpoint, no goodbye, the lock file stays.
func (c *Cluster) Kill(t testing.TB) {
	t.Helper()
	pid := c.pg.Status().PID
	if pid == 0 {
		t.Fatal("kill the cluster: it does not run")
	}
	pids := append([]int{pid}, children(t, pid)...)
	for _, p := range pids {
		if err := syscall.Kill(p, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("kill the cluster: %v", err)
		}
	}
	Eventually(t, Patience, "the server is gone", func() (bool, error) {
		for _, p := range pids {
			if lives(p) {
				return false, fmt.Errorf("process %d lives", p)
			}
		}
		return true, nil
	})
}

func children(t testing.TB, pid int) []int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatalf("find the server's processes: %v", err)
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// lives is false for a process that ended and was not waited for, too.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}
