package soak

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

const (
	database = "shop"
	linkName = "shop"
	// patience is how long anything may take that has to come by itself. The machine
	// may be busy with other things.
	patience = 4 * time.Minute
	// calmAfter is when the clients give way to a replica that lags behind.
	calmAfter = 5 * time.Second
)

// world is two linked instances and the network between them.
type world struct {
	dir   string
	sides [2]*side // the server, the managed instance
	net   *network
	now   roles
	// astray is the primary that a forced failover left behind, until it follows.
	astray atomic.Pointer[side]
	// calm: clients write slowly, so that a replica on a busy machine catches up.
	calm atomic.Bool
}

// side is one instance: an agent, and PostgreSQL.
type side struct {
	name, dir, log, socket, endpoint, data string
	port                                   int
	theirs                                 *testpg.Cluster  // the server's; nil where the agent runs PostgreSQL
	admin                                  *postgres.Server // as superuser
	api                                    *api.Client
	args                                   []string
	agent                                  *exec.Cmd
	ended                                  chan struct{}
	frozen                                 bool
}

// roles is who is primary, as far as it is known.
type roles struct {
	mu      sync.Mutex
	primary *side // nil while it may change
	change  int   // counts what was set
}

func (r *roles) set(primary *side) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.primary, r.change = primary, r.change+1
}

func (r *roles) get() (*side, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.primary, r.change
}

// settings make what is rare in a small test happen: transactions are streamed
// before their commit, and a crash of a replica takes back two seconds of commits.
var settings = map[string]string{"logical_decoding_work_mem": "64kB", "wal_writer_delay": "2s"}

// small makes the managed cluster quick and small, as testpg's are.
var small = map[string]string{"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "autovacuum_naptime": "10s"}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "hawser-soak-")
	if err != nil {
		t.Fatal(err)
	}
	// PostgreSQL's user has to pass.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	w := &world{dir: dir}
	watch(t, w)
	alpha, beta := w.newSide(t, "alpha"), w.newSide(t, "beta")
	w.sides = [2]*side{alpha, beta}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.tails())
		}
	})

	alpha.theirs = testpg.Start(t, settings)
	alpha.port, alpha.data, alpha.admin = alpha.theirs.Port(), alpha.theirs.DataDir(), alpha.theirs.Server()
	alpha.args = []string{"--postgres-connection", alpha.theirs.DSN("postgres")}

	beta.port, beta.data = freePort(t), filepath.Join(beta.dir, "data")
	var list []string
	for _, some := range []map[string]string{settings, small} {
		for name, value := range some {
			list = append(list, name+"="+value)
		}
	}
	beta.args = []string{"--postgres-managed-data-dir", beta.data, "--postgres-managed-port", strconv.Itoa(beta.port),
		"--postgres-managed-listen-addresses", "127.0.0.1", "--postgres-managed-settings", strings.Join(list, ",")}
	if bin := os.Getenv("HAWSER_TEST_PG_BIN"); bin != "" {
		beta.args = append(beta.args, "--postgres-managed-bin-dir", bin)
	}
	ours, err := postgres.NewCluster(postgres.ClusterConfig{DataDir: beta.data, Port: beta.port, BinDir: os.Getenv("HAWSER_TEST_PG_BIN"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if beta.admin, err = ours.Server(); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.sides {
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range w.sides {
		s.awaitAgent(t)
	}
	w.net = newNetwork(t, beta.endpoint)
	return w
}

func (w *world) newSide(t *testing.T, name string) *side {
	dir := filepath.Join(w.dir, name)
	return &side{name: name, dir: dir, log: filepath.Join(w.dir, name+".log"), socket: filepath.Join(dir, "s"), endpoint: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := testpg.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// watch ends all that was started when the test is over, or is killed itself.
func watch(t *testing.T, w *world) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `
		read keep
		for f in "$1"/*.pid; do test -s "$f" && kill -KILL "$(cat "$f")" 2>/dev/null; done
		pid=$(head -n 1 "$1/beta/data/postmaster.pid" 2>/dev/null)
		test -n "$pid" && kill -QUIT "$pid" 2>/dev/null
		n=0
		while test -n "$pid" && kill -0 "$pid" 2>/dev/null && test $n -lt 100; do n=$((n+1)); sleep 0.1; done
		test "$keep" = keep || rm -rf "$1"`, "sh", w.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && *keep {
			fmt.Fprintln(in, "keep")
			fmt.Printf("logs and data are in %s\n", w.dir)
		}
		_ = in.Close()
		_ = cmd.Wait()
	})
}

// start starts the agent, without waiting until it answers.
func (s *side) start() error {
	if s.running() {
		return nil
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "=== agent %s starts\n", s.name)
	s.agent = exec.Command(program, append([]string{
		"agent", "--name", s.name, "--state-dir", s.dir, "--socket", s.socket, "--endpoint-listen", s.endpoint,
		"--limits-memory", "32MiB",
	}, s.args...)...)
	s.agent.Stdout, s.agent.Stderr = log, log
	s.agent.Env = append(withoutHawser(os.Environ()), "HAWSER_LOG_LEVEL=debug")
	s.agent.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.agent.Start(); err != nil {
		return err
	}
	ended, agent := make(chan struct{}), s.agent
	s.ended = ended
	go func() {
		defer close(ended)
		_ = agent.Wait()
	}()
	if err := os.WriteFile(s.pidFile(), []byte(strconv.Itoa(agent.Process.Pid)), 0o600); err != nil {
		return err
	}
	s.api, err = api.Dial(s.socket, "")
	return err
}

func (s *side) pidFile() string { return filepath.Join(filepath.Dir(s.dir), s.name+".pid") }

func withoutHawser(env []string) (out []string) {
	for _, e := range env {
		if !strings.HasPrefix(e, "HAWSER_") {
			out = append(out, e)
		}
	}
	return out
}

func (s *side) running() bool {
	if s.ended == nil {
		return false
	}
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

func (s *side) awaitAgent(t *testing.T) {
	t.Helper()
	testpg.Eventually(t, patience, "agent "+s.name+" answers", func() (bool, error) {
		if !s.running() {
			t.Fatalf("agent %s ended:\n%s", s.name, tail(s.log))
		}
		_, err := s.api.Instance(context.Background())
		return err == nil, err
	})
}

// killAgent ends the agent with SIGKILL and waits until it is gone.
func (s *side) killAgent() error {
	if !s.running() {
		return nil
	}
	if err := s.agent.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.ended
	s.frozen = false
	return os.Remove(s.pidFile())
}

func (s *side) signalAgent(sig syscall.Signal) error {
	if !s.running() {
		return nil
	}
	s.frozen = sig == syscall.SIGSTOP
	return s.agent.Process.Signal(sig)
}

// stopPostgres sends a signal to the side's postmaster, and waits until it is gone.
func (s *side) stopPostgres(t *testing.T, sig syscall.Signal) error {
	data, err := os.ReadFile(filepath.Join(s.data, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it is down already
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil || pid <= 1 {
		return fmt.Errorf("the lock file of %s begins with %q", s.name, first)
	}
	if !isOurs(pid, s.data) {
		return nil // the lock file of one that was killed
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	testpg.Eventually(t, patience, "PostgreSQL of "+s.name+" is gone", func() (bool, error) { return !isOurs(pid, s.data), nil })
	return nil
}

// isOurs tells whether a process is the postmaster of a data directory, and lives.
func isOurs(pid int, dir string) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && cwd == dir
}

// startPostgres brings the server's PostgreSQL back; a managed one is its agent's.
func (s *side) startPostgres(t *testing.T) {
	if s.theirs != nil {
		s.theirs.Start(t)
	}
}

// heal brings everything back.
func (w *world) heal(t *testing.T) {
	t.Helper()
	if err := w.net.heal(); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.sides {
		if s.frozen {
			if err := s.signalAgent(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
		s.startPostgres(t)
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
	}
}

// introduce exchanges certificates. Alpha dials beta, through the proxy.
func (w *world) introduce(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	a, b := w.sides[0], w.sides[1]
	for _, way := range [][2]*side{{a, b}, {b, a}} {
		cert, err := way[1].api.Certificate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		add := api.AddPeer{Name: way[1].name, Certificate: cert.PEM}
		if way[1] == b {
			add.Address = w.net.address()
		}
		if _, err := way[0].api.AddPeer(ctx, add); err != nil {
			t.Fatal(err)
		}
	}
	testpg.Eventually(t, patience, "the peers are connected", func() (bool, error) {
		list, err := b.api.Peers(ctx)
		return err == nil && len(list.Peers) == 1 && list.Peers[0].Connected, err
	})
}

// exec runs statements as superuser.
func (s *side) exec(t *testing.T, database string, sql ...string) {
	t.Helper()
	ctx := context.Background()
	conn, err := s.admin.Connect(ctx, postgres.Session{Database: database, Purpose: "test"})
	if err != nil {
		t.Fatalf("connect to %s on %s: %v", database, s.name, err)
	}
	defer conn.Close(ctx)
	for _, q := range sql {
		if _, err := conn.PgConn().Exec(ctx, q).ReadAll(); err != nil {
			t.Fatalf("%s: %.200s: %v", s.name, q, err)
		}
	}
}

// connect opens a session as the application would.
func (s *side) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=app password=app dbname=%s sslmode=disable connect_timeout=20", s.port, database))
}

// clientString names both sides; the writable one is found.
func (w *world) clientString() string {
	return fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=app password=app dbname=%s target_session_attrs=read-write sslmode=disable connect_timeout=20",
		w.sides[0].port, w.sides[1].port, database)
}

// link creates the database and the link, and waits until it follows.
func (w *world) link(t *testing.T) {
	t.Helper()
	for _, s := range w.sides {
		s.exec(t, "postgres", `CREATE ROLE app LOGIN PASSWORD 'app'`)
	}
	a := w.sides[0]
	a.exec(t, "postgres", `CREATE DATABASE `+database+` OWNER app`)
	a.exec(t, database, `GRANT ALL ON SCHEMA public TO app`, `SET ROLE app;`+schema)
	if _, err := a.api.CreateLink(context.Background(), api.LinkSpec{Name: linkName, Database: database, Peer: w.sides[1].name, Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	w.awaitSynchronized(t)
}

// other is the side that s is not.
func (w *world) other(s *side) *side {
	if s == w.sides[0] {
		return w.sides[1]
	}
	return w.sides[0]
}

// awaitSynchronized waits until both sides agree that one is primary and the other
// follows it. That has to come by itself once nothing is broken any more.
func (w *world) awaitSynchronized(t *testing.T) {
	t.Helper()
	agreed, began := 0, time.Now()
	defer w.calm.Store(false)
	testpg.Eventually(t, patience, "nothing is broken any more, so the link is synchronized", func() (bool, error) {
		primary, err := w.agreed()
		if err != nil {
			agreed = 0
			w.calm.Store(time.Since(began) > calmAfter)
			return false, err
		}
		// Twice: a failover that broke off may still be on its way.
		if agreed++; agreed < 2 {
			return false, nil
		}
		if was, _ := w.now.get(); was != primary {
			w.now.set(primary)
		}
		return true, nil
	})
}

// agreed returns the primary when both sides are synchronized and name the same.
func (w *world) agreed() (*side, error) {
	var links [2]api.Link
	var errs []error
	for i, s := range w.sides {
		l, err := s.api.Link(context.Background(), linkName)
		if err == nil && l.State != api.StateSynchronized {
			err = fmt.Errorf("%s of term %d is %s: %v", l.Role, l.Term, l.State, l.Cause)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
		links[i] = l
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if links[0].Term != links[1].Term || links[0].Role == links[1].Role {
		return nil, fmt.Errorf("alpha is %s of term %d, beta is %s of term %d", links[0].Role, links[0].Term, links[1].Role, links[1].Term)
	}
	if links[0].Role == api.RolePrimary {
		return w.sides[0], nil
	}
	return w.sides[1], nil
}

func (w *world) tails() string {
	var out strings.Builder
	for _, s := range w.sides {
		fmt.Fprintf(&out, "the last of agent %s's log:\n%s\n", s.name, tail(s.log))
	}
	return out.String()
}

// tail is the end of a log, without what is only for debugging.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if !strings.Contains(line, "level=DEBUG") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-40):], "")
}
