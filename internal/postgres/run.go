package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
)

const (
	watchEvery  = 500 * time.Millisecond
	longestWait = 30 * time.Second // between two restarts that fail
	stable      = time.Minute      // a server that ran this long did not fail to start
	orphansEnd  = 5 * time.Second  // after which what a dead postmaster left is killed
	immediate   = 30 * time.Second // for a shutdown without a checkpoint
	progress    = 15 * time.Second // between two notes on a start that takes long
)

// child is a server process that this agent started.
type child struct {
	pid    int
	exited chan struct{} // closed when it was waited for
	err    error         // how it ended; read it after exited
}

// run starts the server unless it runs, and waits until it takes connections.
func (c *Cluster) run(ctx context.Context, changed bool) error {
	pm, running := c.postmaster()
	if running && pm.single {
		return problem.New("single-user-mode", "cluster "+c.cfg.DataDir, fmt.Sprintf("somebody works on it in single-user mode (process %d)", pm.pid),
			"").Advise("end that session").Retry()
	}
	if running && !c.isWhereWeLook(pm) {
		c.cfg.Log.Info("PostgreSQL runs with another port or socket directory, starting it anew", "pid", pm.pid)
		if err := c.end(ctx); err != nil {
			return err
		}
		running = false
	}
	if !running {
		return c.start(ctx)
	}
	c.cfg.Log.Info("adopting a running PostgreSQL", "pid", pm.pid, "data_dir", c.cfg.DataDir)
	switch err := c.await(ctx, &child{pid: pm.pid}); {
	case errors.Is(err, errEnded):
		return c.start(ctx)
	case err != nil || !changed:
		return err
	}
	return c.reload(ctx)
}

// isWhereWeLook reports whether a server listens where the configuration says. One
// that has just begun has not told yet.
func (c *Cluster) isWhereWeLook(pm postmaster) bool {
	return pm.port == 0 || pm.port == c.cfg.Port && (pm.socketDir == "" || filepath.Clean(pm.socketDir) == c.cfg.SocketDir)
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.endOrphans(ctx); err != nil {
		return err
	}
	if err := c.removeStaleLocks(); err != nil {
		return err
	}
	if err := c.checkPort(); err != nil {
		return err
	}
	before := c.markLog()
	started, err := c.spawn()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.child = started
	c.mu.Unlock()
	err = c.await(ctx, started)
	if errors.Is(err, errEnded) {
		return c.startFailed(before, started)
	}
	return err
}

// spawn starts the server in a session of its own, so that neither a signal to the
// agent's terminal nor the agent's end reaches it.
func (c *Cluster) spawn() (*child, error) {
	root, err := os.OpenRoot(c.cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	defer root.Close()
	out, err := root.OpenFile(startLog, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open PostgreSQL's log: %w", err)
	}
	defer out.Close()
	if c.owner.drop {
		if err := out.Chown(c.owner.uid, c.owner.gid); err != nil {
			return nil, fmt.Errorf("open PostgreSQL's log: %w", err)
		}
	}
	cmd := exec.Command(filepath.Join(c.cfg.BinDir, "postgres"), "-D", c.cfg.DataDir,
		"-c", "port="+strconv.Itoa(c.cfg.Port), "-c", "listen_addresses="+c.cfg.ListenAddresses,
		"-c", `unix_socket_directories="`+strings.ReplaceAll(c.cfg.SocketDir, `"`, `""`)+`"`)
	cmd.Dir, cmd.Env = c.cfg.DataDir, environ()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: c.owner.credential()}
	if err := cmd.Start(); err != nil {
		return nil, problem.New("start-failed", "cluster "+c.cfg.DataDir, "the program postgres can't be run as user "+c.owner.name,
			"").Advise("see that this user may reach " + c.cfg.BinDir).Because(err)
	}
	started := &child{pid: cmd.Process.Pid, exited: make(chan struct{})}
	go func() {
		started.err = cmd.Wait()
		close(started.exited)
	}()
	return started, nil
}

var (
	errEnded   = errors.New("PostgreSQL ended before it was ready")
	errStopped = errors.New("PostgreSQL was told to stop before it was ready")
)

// await waits until a server takes connections. Recovery after a crash may take as
// long as it takes.
func (c *Cluster) await(ctx context.Context, p *child) error {
	begun, note := time.Now(), time.Now().Add(progress)
	var last error
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		pm, ok := c.postmaster()
		if ok && pm.pid == p.pid && pm.ready {
			last = c.greet(ctx, pm.pid)
			if found, is := problem.As(last); !is || !found.Retryable {
				return last
			}
		}
		if !ok && p.exited == nil {
			return errEnded
		}
		if !c.isWanted() {
			return fmt.Errorf("start PostgreSQL in %s: %w", c.cfg.DataDir, errStopped)
		}
		if time.Now().After(note) {
			c.cfg.Log.Info("PostgreSQL starts or recovers", "pid", p.pid, "for", time.Since(begun).Round(time.Second), "last", last)
			note = time.Now().Add(progress)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for PostgreSQL in %s: %w", c.cfg.DataDir, ctx.Err())
		case <-p.exited:
			return errEnded
		case <-time.After(wait):
		}
	}
}

func (c *Cluster) isWanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wanted
}

// greet opens a session, and so proves that the server is the one of Server.
func (c *Cluster) greet(ctx context.Context, pid int) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var since time.Time
	if err := conn.QueryRow(ctx, `SELECT pg_postmaster_start_time()`).Scan(&since); err != nil {
		return problem.New("server-not-ready", "cluster "+c.cfg.DataDir, "it does not answer yet", "").Advise("Hawser tries again by itself").Retry().Because(err)
	}
	c.setStatus(func(s *ClusterStatus) { s.Running, s.PID, s.Since, s.Problem = true, pid, since, nil })
	return nil
}

func (c *Cluster) connect(ctx context.Context) (*pgx.Conn, error) {
	server, err := c.Server()
	if err != nil {
		return nil, err
	}
	server.down = nil // what an earlier start met tells nothing of this one
	return server.Connect(ctx, Session{Purpose: "cluster"})
}

// reload lets a server that was adopted read its settings anew, and tells which of
// them it can't take without a restart.
func (c *Cluster) reload(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var before, now time.Time
	err = conn.QueryRow(ctx, `SELECT pg_conf_load_time(), pg_conf_load_time() FROM pg_reload_conf()`).Scan(&before, &now)
	for deadline := time.Now().Add(5 * time.Second); err == nil && now.Equal(before) && time.Now().Before(deadline); {
		err = conn.QueryRow(ctx, `SELECT pg_conf_load_time() FROM pg_sleep(0.02)`).Scan(&now)
	}
	var names []string
	if err == nil {
		err = conn.QueryRow(ctx, `SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM pg_settings WHERE pending_restart`).Scan(&names)
	}
	if err != nil {
		return fmt.Errorf("reload the settings of PostgreSQL in %s: %w", c.cfg.DataDir, err)
	}
	if len(names) == 0 {
		return nil
	}
	warning := problem.Warn("restart-pending", "cluster "+c.cfg.DataDir, "settings take effect only with the next start of PostgreSQL: "+strings.Join(names, ", "),
		"").Advise("stop the agent in order and start it again")
	c.cfg.Log.Warn("PostgreSQL needs a restart", "settings", names)
	c.setStatus(func(s *ClusterStatus) { s.Problem = warning })
	return nil
}

// checkPort finds a port that another program has before PostgreSQL stumbles over
// it: of two addresses it would take the free one and be silent.
func (c *Cluster) checkPort() error {
	for _, address := range c.addresses() {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(c.cfg.Port)))
		if err == nil {
			_ = l.Close()
			continue
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			continue // no such address on this machine: PostgreSQL says which
		}
		return problem.New("port-in-use", "port "+strconv.Itoa(c.cfg.Port), "another program listens on it",
			fmt.Sprintf("ss -ltnp 'sport = :%d'", c.cfg.Port)).Advise("end the program that this shows, or name another port in postgres.managed.port").Retry().Because(err)
	}
	return nil
}

// addresses are those of listen_addresses, names resolved; "" is every address.
func (c *Cluster) addresses() []string {
	var all []string
	for name := range strings.SplitSeq(c.cfg.ListenAddresses, ",") {
		switch name = strings.TrimSpace(name); name {
		case "":
		case "*":
			all = append(all, "")
		default:
			found, err := net.LookupHost(name)
			if err != nil {
				found = []string{name}
			}
			all = append(all, found...)
		}
	}
	return all
}

// endOrphans ends what a killed postmaster left: backends that are busy notice its
// end late, and no new server may start beside them.
func (c *Cluster) endOrphans(ctx context.Context) error {
	begun := time.Now()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		pids := c.orphans()
		if len(pids) == 0 {
			return nil
		}
		signal := syscall.SIGQUIT
		if time.Since(begun) > orphansEnd {
			signal = syscall.SIGKILL
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, signal)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the processes that a dead PostgreSQL left: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Watch restarts the server when it is gone, until ctx ends: at once when it ran
// for long, with growing pauses when it does not stay up. Why it is down stands in
// Status and in the log. After Stop it rests until the next Ensure.
func (c *Cluster) Watch(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.childExited():
			c.reap()
		case <-tick.C:
		}
		if !c.isWanted() || c.isUp() {
			continue
		}
		if s := c.Status(); s.Running && time.Since(s.Since) > stable {
			failures = 0
		}
		c.noteDeath()
		if err := pause(ctx, failures); err != nil {
			return err
		}
		failures++
		c.revive(ctx)
	}
}

// pause waits before the next try: not at all before the first.
func pause(ctx context.Context, failures int) error {
	if failures == 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(watchEvery<<min(failures, 10), longestWait)):
		return nil
	}
}

// Started tells whether this process started the server that runs; it adopted it else.
func (c *Cluster) Started() bool { return c.childExited() != nil }

// childExited is closed when the server that this agent started ends. It never is
// for one that was adopted.
func (c *Cluster) childExited() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.child == nil {
		return nil
	}
	return c.child.exited
}

// reap takes leave of a child that ended, and keeps how.
func (c *Cluster) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.child == nil {
		return
	}
	select {
	case <-c.child.exited:
		c.ended, c.child = c.child.err, nil
	default:
	}
}

// isUp reports whether the server lives, and notes one that somebody restarted.
func (c *Cluster) isUp() bool {
	pm, ok := c.postmaster()
	status := c.Status()
	if ok && pm.ready && status.Running && pm.pid != status.PID {
		c.cfg.Log.Info("PostgreSQL was restarted by somebody else", "pid", pm.pid)
		c.setStatus(func(s *ClusterStatus) { s.PID, s.Since = pm.pid, time.Now() })
	}
	return ok && status.Running
}

// noteDeath puts down that a server which ran is gone.
func (c *Cluster) noteDeath() {
	c.reap()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.status.Running {
		return
	}
	died := problem.New("postgres-died", "cluster "+c.cfg.DataDir, "PostgreSQL ended unasked",
		"").Advise("it is being started again by itself; its log says why it ended").Retry()
	if c.ended != nil {
		died, c.ended = died.Because(c.ended), nil
	}
	c.status.Running, c.status.PID, c.status.Problem = false, 0, died
	c.cfg.Log.Error("PostgreSQL is gone, starting it again", "problem", died)
}

// revive starts a server that is gone, or waits for one that recovers, and puts
// down how that went.
func (c *Cluster) revive(ctx context.Context) {
	giveBack, err := c.takeTurn(ctx)
	if err != nil {
		return // ctx ended
	}
	defer giveBack()
	if !c.isWanted() || c.isUp() {
		return
	}
	if err := c.runAlone(ctx); err != nil {
		if ctx.Err() != nil || errors.Is(err, errStopped) {
			return
		}
		c.cfg.Log.Error("PostgreSQL does not start", "error", err)
		c.setStatus(func(s *ClusterStatus) { s.Problem = problem.Of(err, "start-failed") })
		return
	}
	c.setStatus(func(s *ClusterStatus) { s.Restarts++ })
	c.cfg.Log.Info("PostgreSQL is up again", "pid", c.Status().PID)
}

// runAlone keeps another agent from taking our new server for what a dead one left.
func (c *Cluster) runAlone(ctx context.Context) error {
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return c.run(ctx, false)
}

// Stop shuts the server down in order, ending its sessions; when ctx ends first,
// at once, which the next start has to recover from.
func (c *Cluster) Stop(ctx context.Context) error {
	c.mu.Lock()
	c.wanted = false
	c.mu.Unlock()
	giveBack, err := c.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	return c.end(ctx)
}

func (c *Cluster) end(ctx context.Context) error {
	pm, ok := c.postmaster()
	if ok && pm.single {
		ok = false // not ours to end
	}
	if ok && !c.signal(ctx, pm.pid, syscall.SIGINT) {
		c.cfg.Log.Warn("PostgreSQL does not stop in order, stopping it at once", "pid", pm.pid)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), immediate)
		defer cancel()
		if !c.signal(ctx, pm.pid, syscall.SIGQUIT) {
			return problem.New("stop-failed", "cluster "+c.cfg.DataDir, fmt.Sprintf("PostgreSQL (process %d) does not stop", pm.pid), "").Advise("look for a disk that does not answer: its processes wait in the kernel").Retry()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.child = nil
	c.status.Running, c.status.PID, c.status.Since, c.status.Problem = false, 0, time.Time{}, nil
	return nil
}

// signal reports whether the server was gone before ctx ended.
func (c *Cluster) signal(ctx context.Context, pid int, s syscall.Signal) bool {
	_ = syscall.Kill(pid, s)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if pm, ok := c.postmaster(); !ok || pm.pid != pid {
			if !c.isOurs(pid) {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}
