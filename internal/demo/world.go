package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/postgres"
)

// world is everything that the demo started.
type world struct {
	dir             string
	password        string // of the applications' role
	server, managed *instance
	theirs          *postgres.Cluster // the server's, which the demo runs as somebody else would
}

// instance is one side: a PostgreSQL and an agent.
type instance struct {
	name, dir, log, socket string
	port                   int // of PostgreSQL
	endpoint               string
	pg                     *postgres.Server // as superuser, over the private socket
	api                    *api.Client
	agent                  *exec.Cmd
	ended                  chan struct{}
}

func newWorld() (*world, error) {
	dir, err := os.MkdirTemp("", "hawser-demo-")
	if err != nil {
		return nil, err
	}
	// PostgreSQL's user has to pass.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	w := &world{dir: dir, password: rand.Text()}
	for _, p := range []struct {
		i    **instance
		name string
	}{{&w.server, onPrem}, {&w.managed, managed}} {
		port, err := postgres.FreePort()
		if err != nil {
			return nil, err
		}
		endpoint, err := postgres.FreePort()
		if err != nil {
			return nil, err
		}
		*p.i = &instance{
			name: p.name, dir: filepath.Join(dir, p.name), log: filepath.Join(dir, p.name+".log"), socket: filepath.Join(dir, p.name, "s"),
			port: port, endpoint: fmt.Sprintf("127.0.0.1:%d", endpoint),
		}
	}
	return w, nil
}

// start starts the server's PostgreSQL, and both agents; the managed instance's
// agent makes and starts its own PostgreSQL.
func (w *world) start(ctx context.Context) (err error) {
	theirs := postgres.ClusterConfig{
		DataDir: filepath.Join(w.dir, "server"), Port: w.server.port, ListenAddresses: "127.0.0.1", Log: slog.New(slog.DiscardHandler),
		Settings: map[string]string{"shared_buffers": "256MB", "max_wal_size": "4GB"},
	}
	if w.theirs, err = postgres.NewCluster(theirs); err != nil {
		return err
	}
	if err := w.theirs.Ensure(ctx); err != nil {
		return err
	}
	if w.server.pg, err = w.theirs.Server(); err != nil {
		return err
	}
	socket := filepath.Join(w.dir, "server.sock")
	if err := w.server.run(ctx, "--postgres-connection", fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", socket, w.server.port)); err != nil {
		return err
	}
	data := filepath.Join(w.managed.dir, "data")
	ours, err := postgres.NewCluster(postgres.ClusterConfig{DataDir: data, Port: w.managed.port})
	if err != nil {
		return err
	}
	if w.managed.pg, err = ours.Server(); err != nil {
		return err
	}
	return w.managed.run(ctx, "--postgres-managed-data-dir", data, "--postgres-managed-port", fmt.Sprint(w.managed.port),
		"--postgres-managed-listen-addresses", "127.0.0.1", "--postgres-managed-settings", "shared_buffers=256MB,max_wal_size=4GB")
}

// run starts the instance's agent as a process, and waits until it answers.
func (i *instance) run(ctx context.Context, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(i.log)
	if err != nil {
		return err
	}
	defer log.Close()
	i.agent = exec.Command(self, append([]string{
		"agent", "--name", i.name, "--state-dir", i.dir, "--socket", i.socket, "--endpoint-listen", i.endpoint,
	}, args...)...)
	i.agent.Stdout, i.agent.Stderr = log, log
	i.agent.Env = withoutHawser(os.Environ())
	i.agent.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which ends them in order
	if err := i.agent.Start(); err != nil {
		return err
	}
	i.ended = make(chan struct{})
	go func() {
		defer close(i.ended)
		_ = i.agent.Wait()
	}()
	if i.api, err = api.Dial(i.socket, ""); err != nil {
		return err
	}
	return until(ctx, time.Minute, func() (bool, error) {
		select {
		case <-i.ended:
			return false, fatal{fmt.Errorf("agent %s ended: %s", i.name, tail(i.log))}
		default:
		}
		_, err := i.api.Instance(ctx)
		return err == nil, err
	})
}

// withoutHawser keeps the user's own configuration from the demo's agents.
func withoutHawser(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "HAWSER_") || strings.HasPrefix(e, "HAWSER_PG_BIN=") {
			out = append(out, e)
		}
	}
	return out
}

// close ends the agents, the clusters, and removes the directory.
func (w *world) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, i := range []*instance{w.server, w.managed} {
		i.end(ctx)
	}
	var err error
	if w.theirs != nil {
		err = w.theirs.Stop(ctx)
	}
	return errors.Join(err, os.RemoveAll(w.dir))
}

func (i *instance) end(ctx context.Context) {
	if i.ended == nil {
		return
	}
	_ = i.agent.Process.Signal(syscall.SIGTERM)
	select {
	case <-i.ended:
	case <-ctx.Done():
		_ = i.agent.Process.Kill()
		<-i.ended
	}
}

// exec runs statements as superuser, in a session that the fence does not spare.
func (i *instance) exec(ctx context.Context, database string, sql ...string) error {
	conn, err := i.pg.Connect(ctx, postgres.Session{Database: database})
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, s := range sql {
		if _, err := conn.PgConn().Exec(ctx, s).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}

func (i *instance) connect(ctx context.Context) (*pgx.Conn, error) {
	return i.pg.Connect(ctx, postgres.Session{Database: database})
}

// clientString names both hosts: libpq and pgx find the writable one.
func (w *world) clientString() string {
	return fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=app password=%s dbname=%s target_session_attrs=read-write sslmode=disable connect_timeout=5",
		w.server.port, w.managed.port, w.password, database)
}

func (w *world) clientStringShown() string {
	return strings.Replace(w.clientString(), w.password, "…", 1)
}

// howTo tells how to go on with a demo that is kept.
func (w *world) howTo() string {
	return fmt.Sprintf(`All keeps running, without the workload:
  hawser link show %[1]s --socket %[2]s
  hawser link failover %[1]s --socket %[2]s
  hawser link watch %[1]s --socket %[3]s
  psql '%[4]s'
Logs and data are in %[5]s. To end it:
  kill %[6]d %[7]d; sleep 5; kill -INT $(head -1 %[5]s/server/postmaster.pid); sleep 2; rm -rf %[5]s`,
		linkName, w.server.socket, w.managed.socket, w.clientString(), w.dir, w.server.agent.Process.Pid, w.managed.agent.Process.Pid)
}
