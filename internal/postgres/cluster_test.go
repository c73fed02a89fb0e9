package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// managed is where a test's own cluster lives. PostgreSQL's user may pass, and what
// runs there ends with the test, or with the test binary when that is killed.
func managed(t *testing.T) postgres.ClusterConfig {
	t.Helper()
	dir, err := os.MkdirTemp("", "hawser-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	guard := exec.Command("/bin/sh", "-c", `read _; pid=$(head -n 1 "$2/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null && sleep 1; rm -rf "$1"`, "sh", dir, data)
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := guard.StdinPipe()
	if err == nil {
		err = guard.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = guard.Wait()
	})
	return postgres.ClusterConfig{
		DataDir: data, SocketDir: filepath.Join(dir, "s"), Port: closedPort(t), ListenAddresses: "127.0.0.1", BinDir: os.Getenv("HAWSER_TEST_PG_BIN"),
		Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB", "max_connections": "20", "max_wal_senders": "4", "max_prepared_transactions": "0"},
	}
}

func newCluster(t *testing.T, cfg postgres.ClusterConfig) *postgres.Cluster {
	t.Helper()
	c, err := postgres.NewCluster(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ensure(t *testing.T, c *postgres.Cluster) postgres.ClusterStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := c.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	s := c.Status()
	if !s.Running || s.PID == 0 || s.Since.IsZero() || s.Version == "" {
		t.Fatalf("a cluster that was ensured says %+v", s)
	}
	return s
}

func stop(t *testing.T, c *postgres.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if s := c.Status(); s.Running || s.PID != 0 {
		t.Fatalf("a cluster that was stopped says %+v", s)
	}
}

// watch runs Watch until the test ends.
func watch(t *testing.T, c *postgres.Cluster) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := testpg.Await(t, "the watch ends", done); !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
}

func rows(t *testing.T, c *postgres.Cluster, sql string) []string {
	t.Helper()
	s, err := c.Server()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := s.Connect(t.Context(), postgres.Session{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	return testpg.Rows(t, conn, sql)
}

// TestNewCluster: what a fresh cluster is, to whom it belongs and who may come in.
func TestNewCluster(t *testing.T) {
	t.Parallel()
	cfg := managed(t)
	cfg.DataDir = filepath.Join(filepath.Dir(cfg.DataDir), "my 'own' dätä")
	cfg.Superuser = `My Super-User`
	cfg.Settings["application_name"] = `it's \ "quoted"`
	// fsync is as shipped here: initdb has to work with it.
	delete(cfg.Settings, "fsync")
	c := newCluster(t, cfg)
	defer stop(t, c)
	status := ensure(t, c)

	me := os.Geteuid()
	if me == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		me, _ = strconv.Atoi(u.Uid)
	}
	for _, path := range []string{cfg.DataDir, cfg.SocketDir, cfg.DataDir + "/hawser.conf", cfg.DataDir + "/pg_hba.conf", fmt.Sprintf("/proc/%d", status.PID)} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid != me {
			t.Errorf("%s belongs to user %d, want %d", path, uid, me)
		}
		if !strings.HasPrefix(path, "/proc") && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("others may reach %s: %s", path, info.Mode())
		}
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", status.PID))
	if err == nil && strings.Contains(string(environ), secret) {
		t.Error("PostgreSQL sees the agent's environment")
	}

	s, err := c.Server()
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.User != cfg.Superuser || !info.Superuser || info.DataDirectory != cfg.DataDir {
		t.Errorf("info %+v", info)
	}
	for name, want := range map[string]string{
		"wal_level": "logical", "data_checksums": "on", "server_encoding": "UTF8", "password_encryption": "scram-sha-256", "fsync": "on",
		"port": strconv.Itoa(cfg.Port), "listen_addresses": "127.0.0.1", "shared_buffers": "2048",
		// A log for each day of the week: none grows without end.
		"logging_collector": "on", "log_filename": "postgresql-%a.log", "log_rotation_age": "1440", "log_rotation_size": "0", "log_truncate_on_rotation": "on",
	} {
		if info.Settings[name] != want {
			t.Errorf("%s is %q, want %q", name, info.Settings[name], want)
		}
	}
	if got := rows(t, c, `SELECT boot_val <> reset_val FROM pg_settings WHERE name = 'application_name'`); got[0] == "f" {
		t.Error("a setting with quotes did not arrive")
	}
	log := filepath.Join(cfg.DataDir, "log", "postgresql-"+time.Now().UTC().Format("Mon")+".log")
	if _, err := os.Stat(log); err != nil {
		t.Errorf("no log of today: %v", err)
	}
	_, err = open(t, fmt.Sprintf(`host=127.0.0.1 port=%d user='My Super-User' dbname=postgres`, cfg.Port)).Connect(t.Context(), postgres.Session{})
	if err == nil {
		t.Error("a superuser comes in over TCP without a password")
	}
}

// TestAdopt: the server belongs to no agent. The next one finds it, gives it its
// settings, and restarts it only where it listens elsewhere.
func TestAdopt(t *testing.T) {
	t.Parallel()
	cfg := managed(t)
	first := newCluster(t, cfg)
	pid := ensure(t, first).PID
	if again := ensure(t, first); again.PID != pid || again.Restarts != 0 || again.Problem != nil {
		t.Errorf("Ensure of a cluster that runs: %+v", again)
	}

	cfg.Settings["work_mem"], cfg.Settings["shared_buffers"] = "123kB", "17MB"
	second := newCluster(t, cfg)
	status := ensure(t, second)
	if status.PID != pid {
		t.Errorf("process %d was not adopted: %d runs", pid, status.PID)
	}
	if got := rows(t, second, `SHOW work_mem`); got[0] != "123kB" {
		t.Errorf("work_mem is %s", got[0])
	}
	if p := status.Problem; p == nil || p.Code != "restart-pending" || p.Blocks() || !strings.Contains(p.Cause, "shared_buffers") {
		t.Errorf("what needs a restart is not told: %v", p)
	}

	cfg.Port = closedPort(t)
	third := newCluster(t, cfg)
	if status := ensure(t, third); status.PID == pid || status.Problem != nil {
		t.Errorf("a server with another port was adopted: %+v", status)
	}
	if got := rows(t, third, `SELECT current_setting('port'), current_setting('shared_buffers')`); got[0] != strconv.Itoa(cfg.Port)+"|17MB" {
		t.Errorf("port and shared_buffers are %s", got[0])
	}
	stop(t, third)
	stop(t, third)
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "postmaster.pid")); err == nil {
		t.Error("the server did not end in order")
	}
}

// TestStranger: a server that no agent ever ran in its directory is left as it is,
// wherever it listens. Stopped in order, the directory can be an instance's.
func TestStranger(t *testing.T) {
	t.Parallel()
	cfg := managed(t)
	theirs := newCluster(t, cfg)
	pid := ensure(t, theirs).PID
	if err := os.Remove(filepath.Join(cfg.DataDir, "hawser.conf")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} { // as initdb makes them: without a word of Hawser's
		write(t, filepath.Join(cfg.DataDir, name), []byte("# theirs\n"), 0o600)
	}
	before := listing(cfg.DataDir)
	ours := cfg
	ours.Port, ours.SocketDir = closedPort(t), cfg.SocketDir+"2"
	for name, cfg := range map[string]postgres.ClusterConfig{"elsewhere": ours, "where we look": cfg} {
		c := newCluster(t, cfg)
		ctx, cancel := context.WithTimeout(context.Background(), within)
		err := c.Ensure(ctx)
		cancel()
		wantProblem(t, err, "stranger-runs", "stop that server in order first", false)
		if after := listing(cfg.DataDir); after != before {
			t.Errorf("%s: the directory was changed: %s, was %s", name, after, before)
		}
		for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
			if text, err := os.ReadFile(filepath.Join(cfg.DataDir, name)); string(text) != "# theirs\n" {
				t.Errorf("%s was changed: %s, %v", name, text, err)
			}
		}
	}
	if got := rows(t, theirs, `SHOW port`); got[0] != strconv.Itoa(cfg.Port) || theirs.Status().PID != pid {
		t.Errorf("the server was touched: port %s", got[0])
	}
	stop(t, theirs)
	c := newCluster(t, ours)
	ensure(t, c)
	stop(t, c)
}

// TestPostmasterKilled: Watch brings the server back when its first process is
// killed, although a busy backend does not notice that; by whomever it was started.
func TestPostmasterKilled(t *testing.T) {
	t.Parallel()
	for name, adopted := range map[string]bool{"started": false, "adopted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := managed(t)
			c := newCluster(t, cfg)
			pid := ensure(t, c).PID
			if adopted {
				c = newCluster(t, cfg)
				ensure(t, c)
			}
			watch(t, c)
			rows(t, c, `CREATE TABLE kept AS SELECT 1 AS i`)
			s, err := c.Server()
			if err != nil {
				t.Fatal(err)
			}
			busy, err := s.Connect(t.Context(), postgres.Session{})
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				// It never waits, and so does not see that the postmaster died.
				_, _ = busy.Exec(context.Background(), `SELECT count(*) FROM generate_series(1, 1e9::bigint)`)
				_ = busy.Close(context.Background())
			}()
			for restarts := 1; restarts <= 2; restarts++ {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				testpg.Eventually(t, within, "the server is back", func() (bool, error) {
					s := c.Status()
					return s.Running && s.PID != pid && s.Restarts == restarts && s.Problem == nil, nil
				})
				pid = c.Status().PID
				if got := rows(t, c, `SELECT i FROM kept`); len(got) != 1 {
					t.Errorf("what was committed is gone: %q", got)
				}
			}
			testpg.Await(t, "the clients end", ended)
			stop(t, c)
			// Watch rests now; another start is Ensure's.
			if next := ensure(t, c); next.Restarts != 2 {
				t.Errorf("after Stop and Ensure: %+v", next)
			}
			stop(t, c)
		})
	}
}

// TestTwoAgents start on one empty directory at the same time, which an operator
// should not do: one cluster comes out, and both see it.
func TestTwoAgents(t *testing.T) {
	t.Parallel()
	cfg := managed(t)
	var agents [3]*postgres.Cluster
	var all sync.WaitGroup
	for i := range agents {
		agents[i] = newCluster(t, cfg)
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), within)
			defer cancel()
			if err := agents[i].Ensure(ctx); err != nil {
				t.Errorf("agent %d: %v", i, err)
			}
		})
	}
	all.Wait()
	for i, a := range agents {
		if got := a.Status(); got.PID != agents[0].Status().PID || !got.Running {
			t.Errorf("agent %d sees %+v", i, got)
		}
		rows(t, a, fmt.Sprintf(`CREATE DATABASE made_by_%d`, i)) // nothing of it was taken away
	}
	stop(t, agents[1])
}

// TestUnfinished: what an initdb left that did not come to its end looks like a
// cluster and is none; the next start does it over.
func TestUnfinished(t *testing.T) {
	t.Parallel()
	t.Run("given up", func(t *testing.T) {
		t.Parallel()
		cfg := managed(t)
		c := newCluster(t, cfg)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Ensure(ctx) }()
		testpg.Eventually(t, within, "initdb has begun", func() (bool, error) {
			_, err := os.Stat(filepath.Join(cfg.DataDir, "PG_VERSION"))
			return err == nil, err
		})
		cancel()
		if err := testpg.Await(t, "the start that was given up returns", done); !errors.Is(err, context.Canceled) {
			t.Errorf("Ensure ended with %v, want that its caller gave up", err)
		}
		if left, err := os.ReadDir(cfg.DataDir); err != nil || len(left) > 0 {
			t.Errorf("initdb left %v (%v)", left, err)
		}
		ensure(t, c)
		stop(t, c)
	})
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		cfg := managed(t)
		c := newCluster(t, cfg)
		// As a machine that lost power leaves it.
		for _, dir := range []string{cfg.DataDir, cfg.SocketDir} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(cfg.DataDir, "PG_VERSION"), []byte("15\n"), 0o600)
		write(t, filepath.Join(cfg.DataDir, "postgresql.conf"), nil, 0o600)
		write(t, filepath.Join(cfg.SocketDir, "initdb-unfinished."+strconv.Itoa(cfg.Port)), []byte(cfg.DataDir), 0o600)
		giveToPostgres(t, cfg.DataDir)
		giveToPostgres(t, cfg.SocketDir)
		ensure(t, c)
		stop(t, c)
	})
}

// TestStaleLocks: after a crash of the machine the lock files, of the data directory and of the
// socket, may name a process id that a stranger of the same user has now. PostgreSQL would
// refuse to start.
func TestStaleLocks(t *testing.T) {
	t.Parallel()
	cfg := managed(t)
	c := newCluster(t, cfg)
	pid := ensure(t, c).PID
	file := filepath.Join(cfg.DataDir, "postmaster.pid")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := filepath.Glob(filepath.Join(cfg.SocketDir, ".s.PGSQL.*.lock"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("lock files of the socket: %q, %v", locks, err)
	}
	ofSocket, err := os.ReadFile(locks[0])
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, c)
	stranger := exec.Command("sleep", "600")
	if os.Geteuid() == 0 {
		owner := info.Sys().(*syscall.Stat_t)
		stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	}()
	for lock, text := range map[string][]byte{file: text, locks[0]: ofSocket} {
		write(t, lock, []byte(strings.Replace(string(text), strconv.Itoa(pid), strconv.Itoa(stranger.Process.Pid), 1)), 0o600)
		giveToPostgres(t, lock)
	}
	ensure(t, c)
	stop(t, c)
}

// TestClusterRefuses: what keeps a cluster from starting is told with its remedy,
// and nothing that was there is changed.
func TestClusterRefuses(t *testing.T) {
	t.Parallel()
	asRoot := os.Geteuid() == 0
	for name, c := range map[string]struct {
		prepare      func(t *testing.T, cfg *postgres.ClusterConfig)
		code, remedy string
		retry, root  bool // root: only an agent that is root meets it
	}{
		"relative path":           {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.DataDir = "data" }, code: "bad-path", remedy: "another path"},
		"path with a comma":       {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.SocketDir += ",x" }, code: "bad-path", remedy: "another path"},
		"socket path too long":    {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.SocketDir += strings.Repeat("x", 90) }, code: "socket-path-too-long", remedy: "shorter path"},
		"no such user":            {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.RunAs = "no-such-user" }, code: "no-such-user", remedy: "useradd --system no-such-user"},
		"as root":                 {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.RunAs = "root" }, code: "user-is-root", remedy: "run_as"},
		"no programs":             {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.BinDir = "/nonexistent" }, code: "tool-missing", remedy: "pg_config --bindir"},
		"port in use":             {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) { cfg.Port = listen(t, hold) }, code: "port-in-use", remedy: "ss -ltnp", retry: true},
		"port in use, all":        {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) { cfg.Port, cfg.ListenAddresses = listen(t, hold), "*" }, code: "port-in-use", remedy: "postgres.managed.port", retry: true},
		"version of others":       {prepare: dataOf("9.6", true), code: "data-directory-version", remedy: "PostgreSQL 9.6's programs"},
		"version without program": {prepare: dataOf("12", false), code: "data-directory-version", remedy: "apt-get install postgresql-12"},
		"not empty": {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) {
			makeDir(t, cfg.DataDir, 0o700)
			write(t, filepath.Join(cfg.DataDir, "thesis.txt"), nil, 0o600)
			giveToPostgres(t, cfg.DataDir)
		}, code: "data-directory-not-empty", remedy: "data_dir"},
		"a file": {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) {
			write(t, cfg.DataDir, nil, 0o600)
			giveToPostgres(t, cfg.DataDir)
		}, code: "not-a-directory", remedy: "another path"},
		"socket directory open": {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) {
			makeDir(t, cfg.SocketDir, 0o755)
			giveToPostgres(t, cfg.SocketDir)
		}, code: "socket-directory-open", remedy: "chmod 700"},
		"closed to its owner": {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) {
			makeDir(t, cfg.DataDir, 0)
			giveToPostgres(t, cfg.DataDir)
		}, code: "directory-closed", remedy: "chmod 700"},
		"configuration elsewhere": {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) {
			c := newCluster(t, *cfg)
			dataOf(strings.SplitN(c.Status().Version, ".", 2)[0], false)(t, cfg)
			cfg.BinDir = os.Getenv("HAWSER_TEST_PG_BIN")
		}, code: "config-missing", remedy: "copy the file"},
		"owned by another": {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) {
			makeDir(t, cfg.DataDir, 0o700)
			write(t, filepath.Join(cfg.DataDir, "PG_VERSION"), []byte("15\n"), 0o600)
		}, code: "directory-owner", remedy: "chown -R postgres", root: true},
		"behind a closed one": {prepare: func(t *testing.T, cfg *postgres.ClusterConfig) {
			above := filepath.Join(filepath.Dir(cfg.DataDir), "closed")
			makeDir(t, above, 0o700)
			cfg.DataDir = filepath.Join(above, "data")
		}, code: "directory-not-reachable", remedy: "chmod o+x", root: true},
		"a setting PostgreSQL refuses": {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.Settings["work_mem"] = "much" }, code: "start-failed", remedy: "hawser-start.log", retry: true},
		"a locale there is not":        {prepare: func(_ *testing.T, cfg *postgres.ClusterConfig) { cfg.Locale = "xx_YY.UTF-8" }, code: "initdb-failed", remedy: "initdb"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.root && !asRoot {
				t.Logf("not run: this user is not root")
				return
			}
			t.Parallel()
			cfg := managed(t)
			c.prepare(t, &cfg)
			before := listing(cfg.DataDir)
			cluster, err := postgres.NewCluster(cfg)
			if err == nil {
				ctx, cancel := context.WithTimeout(context.Background(), within)
				defer cancel()
				if err = cluster.Ensure(ctx); err == nil {
					stop(t, cluster)
				}
				if s := cluster.Status(); s.Running || s.Problem == nil || s.Problem.Code != c.code {
					t.Errorf("status %+v", s)
				}
			}
			p := wantProblem(t, err, c.code, c.remedy, c.retry)
			if c.code == "start-failed" && !strings.Contains(p.Cause, "work_mem") {
				t.Errorf("the cause does not name the setting: %s", p.Cause)
			}
			if len(before) > 0 && listing(cfg.DataDir) != before {
				t.Errorf("the directory was changed: %s, was %s", listing(cfg.DataDir), before)
			}
		})
	}
}

func makeDir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(dir, mode); err != nil {
		t.Fatal(err)
	}
}

// dataOf makes a data directory of another version, with programs that are named
// or to be found.
func dataOf(version string, named bool) func(t *testing.T, cfg *postgres.ClusterConfig) {
	return func(t *testing.T, cfg *postgres.ClusterConfig) {
		makeDir(t, cfg.DataDir, 0o700)
		write(t, filepath.Join(cfg.DataDir, "PG_VERSION"), []byte(version+"\n"), 0o600)
		giveToPostgres(t, cfg.DataDir)
		cfg.BinDir = ""
		if named {
			path, err := postgres.Tool("postgres", 14)
			if err != nil {
				t.Fatal(err)
			}
			cfg.BinDir = filepath.Dir(path)
		}
	}
}

func listing(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	return fmt.Sprint(entries)
}

// TestPortTakenWhileDown: Watch goes on trying while another program has the port,
// says so, and is up when the port is free.
func TestPortTakenWhileDown(t *testing.T) {
	t.Parallel()
	cfg := managed(t)
	c := newCluster(t, cfg)
	pid := ensure(t, c).PID
	// A second cluster stops it, so that the first one sees it gone with its port free.
	stop(t, newCluster(t, cfg))
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	watch(t, c)
	testpg.Eventually(t, within, "the status names the port", func() (bool, error) {
		s := c.Status()
		return !s.Running && s.Problem != nil && s.Problem.Code == "port-in-use", nil
	})
	_ = l.Close()
	testpg.Eventually(t, within, "the server is back", func() (bool, error) {
		s := c.Status()
		return s.Running && s.PID != pid && s.Problem == nil, nil
	})
	stop(t, c)
}
