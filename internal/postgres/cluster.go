package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// ClusterConfig describes a cluster that the agent owns.
type ClusterConfig struct {
	DataDir         string
	SocketDir       string // private; DataDir's neighbour when empty
	Port            int
	ListenAddresses string            // "localhost" when empty
	BinDir          string            // newest PostgreSQL found when empty
	RunAs           string            // user to run as when the agent is root; "postgres" when empty
	Superuser       string            // "postgres" when empty
	Settings        map[string]string // beyond Hawser's own
	Log             *slog.Logger
}

// ClusterStatus is what Watch knows.
type ClusterStatus struct {
	Running  bool
	PID      int
	Since    time.Time
	Restarts int
	Problem  *problem.Problem
}

// Cluster provisions and runs one PostgreSQL. It does not end with the agent: a
// new agent adopts it.
type Cluster struct {
	cfg  ClusterConfig
	cred *syscall.Credential // nil: run as ourselves

	mu     sync.Mutex
	status ClusterStatus
}

// managedSettings fit 100 links beside independent databases.
var managedSettings = map[string]string{
	"wal_level":                       "logical",
	"max_replication_slots":           "120",
	"max_wal_senders":                 "120",
	"max_connections":                 "400",
	"max_logical_replication_workers": "4",
	"wal_sender_timeout":              "60s",
	"track_commit_timestamp":          "on",
	"logging_collector":               "on",
	"log_filename":                    "postgresql-%a.log",
	"log_rotation_age":                "1d",
	"log_rotation_size":               "0",
	"log_truncate_on_rotation":        "on",
	"log_line_prefix":                 "%m [%p] %q%u@%d/%a ",
	"password_encryption":             "scram-sha-256",
}

// NewCluster finds the programs and the user. It changes nothing.
func NewCluster(cfg ClusterConfig) (*Cluster, error) {
	if cfg.Superuser == "" {
		cfg.Superuser = "postgres"
	}
	if cfg.ListenAddresses == "" {
		cfg.ListenAddresses = "localhost"
	}
	if cfg.SocketDir == "" {
		cfg.SocketDir = cfg.DataDir + ".sock"
	}
	if cfg.BinDir == "" {
		path, err := Tool("postgres", 14)
		if err != nil {
			return nil, err
		}
		cfg.BinDir = filepath.Dir(path)
	}
	c := &Cluster{cfg: cfg}
	if os.Geteuid() != 0 {
		return c, nil
	}
	if c.cfg.RunAs == "" {
		c.cfg.RunAs = "postgres"
	}
	u, err := user.Lookup(c.cfg.RunAs)
	if err != nil {
		return nil, problem.New("no-such-user", "user "+c.cfg.RunAs,
			"PostgreSQL refuses to run as root, and the user that it should run as does not exist",
			"useradd --system "+c.cfg.RunAs+", or name another one in postgres.managed.run_as").Because(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user id %q: %w", u.Uid, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("group id %q: %w", u.Gid, err)
	}
	if uid == 0 {
		return nil, problem.New("user-is-root", "user "+c.cfg.RunAs, "PostgreSQL refuses to run as root", "name another user in postgres.managed.run_as")
	}
	c.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return c, nil
}

// Server connects over the private socket, as superuser.
func (c *Cluster) Server() (*Server, error) {
	return Open(fmt.Sprintf("host='%s' port=%d user='%s' dbname=postgres", c.cfg.SocketDir, c.cfg.Port, c.cfg.Superuser))
}

// Ensure brings the cluster up: it makes one in an empty directory, starts one
// that is down, and adopts one that runs. Safe to call at any time.
func (c *Cluster) Ensure(ctx context.Context) error {
	if err := c.directories(); err != nil {
		return err
	}
	version, err := os.ReadFile(filepath.Join(c.cfg.DataDir, "PG_VERSION"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := c.initdb(ctx); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read the version of %s: %w", c.cfg.DataDir, err)
	default:
		if err := c.checkMajor(strings.TrimSpace(string(version))); err != nil {
			return err
		}
	}
	if err := c.configure(); err != nil {
		return err
	}
	return c.start(ctx)
}

// directories makes what is missing. Their parents stay as they are.
func (c *Cluster) directories() error {
	for _, dir := range []string{c.cfg.DataDir, c.cfg.SocketDir} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return fmt.Errorf("make the parent of %s: %w", dir, err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make directory %s: %w", dir, err)
		}
		if c.cred == nil {
			continue
		}
		if err := os.Chown(dir, int(c.cred.Uid), int(c.cred.Gid)); err != nil {
			return fmt.Errorf("give directory %s to %s: %w", dir, c.cfg.RunAs, err)
		}
	}
	return nil
}

func (c *Cluster) checkMajor(have string) error {
	major, err := toolMajor(filepath.Join(c.cfg.BinDir, "postgres"))
	if err != nil {
		return err
	}
	if strconv.Itoa(major) == have {
		return nil
	}
	return problem.New("data-directory-version", "directory "+c.cfg.DataDir,
		fmt.Sprintf("it was made by PostgreSQL %s, and the programs in %s are of %d", have, c.cfg.BinDir, major),
		"name the directory of PostgreSQL "+have+" in postgres.managed.bin_dir, or upgrade with pg_upgrade")
}

func (c *Cluster) initdb(ctx context.Context) error {
	if entries, err := os.ReadDir(c.cfg.DataDir); err == nil && len(entries) > 0 {
		return problem.New("data-directory-not-empty", "directory "+c.cfg.DataDir, "it is not empty and holds no PostgreSQL cluster",
			"name an empty directory in postgres.managed.data_dir")
	}
	c.cfg.Log.Info("making a cluster", "data_dir", c.cfg.DataDir)
	_, err := c.run(ctx, "initdb", "-D", c.cfg.DataDir, "-U", c.cfg.Superuser, "--encoding=UTF8", "--locale=C.UTF-8",
		"--data-checksums", "--auth-local=trust", "--auth-host=scram-sha-256")
	if err != nil {
		return problem.New("initdb-failed", "directory "+c.cfg.DataDir, "no cluster could be made in it", "mend what initdb says").Because(err)
	}
	return nil
}

const confName = "hawser.conf"

// configure writes Hawser's settings into a file of their own, behind which the
// user's postgresql.auto.conf (ALTER SYSTEM) still wins.
func (c *Cluster) configure() error {
	settings := map[string]string{
		"port":                    strconv.Itoa(c.cfg.Port),
		"listen_addresses":        c.cfg.ListenAddresses,
		"unix_socket_directories": c.cfg.SocketDir,
	}
	for _, more := range []map[string]string{managedSettings, c.cfg.Settings} {
		for k, v := range more {
			settings[k] = v
		}
	}
	names := make([]string, 0, len(settings))
	for k := range settings {
		names = append(names, k)
	}
	sort.Strings(names)
	var b bytes.Buffer
	b.WriteString("# Written by the Hawser agent at each start. Use its configuration, or ALTER SYSTEM.\n")
	for _, k := range names {
		fmt.Fprintf(&b, "%s = '%s'\n", k, strings.ReplaceAll(settings[k], "'", "''"))
	}
	if err := c.write(confName, b.Bytes()); err != nil {
		return err
	}
	main := filepath.Join(c.cfg.DataDir, "postgresql.conf")
	text, err := os.ReadFile(main)
	if err != nil {
		return fmt.Errorf("read %s: %w", main, err)
	}
	include := "include_if_exists = '" + confName + "'"
	if bytes.Contains(text, []byte(include)) {
		return nil
	}
	return c.write("postgresql.conf", append(text, "\n"+include+"\n"...))
}

func (c *Cluster) write(name string, data []byte) error {
	path := filepath.Join(c.cfg.DataDir, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if c.cred != nil {
		if err := os.Chown(path+".new", int(c.cred.Uid), int(c.cred.Gid)); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return os.Rename(path+".new", path)
}

// start starts the server unless it runs, and waits until it takes connections.
func (c *Cluster) start(ctx context.Context) error {
	if c.pid() == 0 {
		args := []string{"start", "-D", c.cfg.DataDir, "-l", c.startLog(), "-w", "-t", "600", "-s"}
		if _, err := c.run(ctx, "pg_ctl", args...); err != nil {
			return problem.New("start-failed", "cluster "+c.cfg.DataDir, "PostgreSQL did not start: "+c.lastWords(),
				"mend what its log names: "+c.startLog()).Retry().Because(err)
		}
	}
	server, err := c.Server()
	if err != nil {
		return err
	}
	conn, err := server.Connect(ctx, Session{Purpose: "watch"})
	if err != nil {
		return err
	}
	_ = conn.Close(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Running, c.status.PID, c.status.Problem = true, c.pid(), nil
	if c.status.Since.IsZero() {
		c.status.Since = time.Now()
	}
	return nil
}

func (c *Cluster) startLog() string { return filepath.Join(c.cfg.DataDir, "hawser-start.log") }

// lastWords is the end of what the server wrote while it started.
func (c *Cluster) lastWords() string {
	data, err := os.ReadFile(c.startLog())
	if err != nil {
		return "it wrote no log"
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-4):], " / ")
}

// pid returns the postmaster's process id, 0 when it does not run. A stale file
// names a process that is gone, or one that is none of ours.
func (c *Cluster) pid() int {
	data, err := os.ReadFile(filepath.Join(c.cfg.DataDir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || syscall.Kill(pid, 0) != nil {
		return 0
	}
	if exe, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && !strings.HasPrefix(string(exe), "postgres") {
		return 0
	}
	return pid
}

// watchEvery is how often Watch looks.
const watchEvery = 500 * time.Millisecond

// Watch restarts the server when it is gone, until ctx ends.
func (c *Cluster) Watch(ctx context.Context) error {
	wait := watchEvery
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if c.pid() != 0 {
			wait = watchEvery
			continue
		}
		c.mu.Lock()
		c.status.Running, c.status.Since = false, time.Time{}
		c.status.Restarts++
		c.mu.Unlock()
		c.cfg.Log.Warn("PostgreSQL is gone, starting it again", "data_dir", c.cfg.DataDir)
		if err := c.start(ctx); err != nil {
			wait = min(2*wait, 10*time.Second)
			c.cfg.Log.Error("PostgreSQL does not start", "error", err)
			c.mu.Lock()
			c.status.Problem = problem.Of(err, "start-failed")
			c.mu.Unlock()
		}
	}
}

// Status may be called at any time.
func (c *Cluster) Status() ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Stop shuts down: sessions are ended, and when ctx ends first, at once.
func (c *Cluster) Stop(ctx context.Context) error {
	if c.pid() == 0 {
		return nil
	}
	_, err := c.run(ctx, "pg_ctl", "stop", "-D", c.cfg.DataDir, "-m", "fast", "-w", "-t", "60", "-s")
	if err == nil {
		return nil
	}
	if _, now := c.run(context.WithoutCancel(ctx), "pg_ctl", "stop", "-D", c.cfg.DataDir, "-m", "immediate", "-w", "-s"); now != nil {
		return fmt.Errorf("stop PostgreSQL in %s: %w", c.cfg.DataDir, errors.Join(err, now))
	}
	return nil
}

// run runs one of PostgreSQL's programs as the unprivileged user. Its error holds
// what the program wrote.
func (c *Cluster) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.cfg.BinDir, name), args...)
	cmd.Dir = c.cfg.DataDir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PGPASSWORD=", "TZ=UTC")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.cred}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// The server inherits nothing from us but its log: output must not be waited for.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}
