package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// postmaster is a running server's main process, as its postmaster.pid tells.
type postmaster struct {
	pid       int
	port      int
	socketDir string
	ready     bool // takes connections
	single    bool // a single-user backend, started by hand
}

// postmaster returns the one that runs in the data directory, if any. A file that
// a crash left names a process that is gone, or by now a stranger.
func (c *Cluster) postmaster() (postmaster, bool) {
	data, err := os.ReadFile(c.pidFile())
	if err != nil {
		return postmaster{}, false
	}
	pm, ok := parsePidFile(string(data))
	if !ok || !c.isOurs(pm.pid) {
		return postmaster{}, false
	}
	return pm, true
}

func (c *Cluster) pidFile() string { return filepath.Join(c.cfg.DataDir, "postmaster.pid") }

// parsePidFile reads PostgreSQL's format: pid, data directory, start time, port,
// socket directory, address, shared memory, status; the last lines may be missing.
func parsePidFile(text string) (postmaster, bool) {
	lines := strings.Split(text, "\n")
	line := func(n int) string {
		if n > len(lines) {
			return ""
		}
		return strings.TrimSpace(lines[n-1])
	}
	pid, err := strconv.Atoi(line(1))
	if err != nil || pid == 0 {
		return postmaster{}, false
	}
	pm := postmaster{pid: pid, socketDir: line(5), ready: line(8) == "ready" || line(8) == "standby"}
	if pid < 0 {
		pm.pid, pm.single = -pid, true
	}
	if pm.port, err = strconv.Atoi(line(4)); err != nil {
		pm.port = 0 // it has just begun
	}
	return pm, true
}

// isOurs reports whether a process is alive and one of PostgreSQL's in the data
// directory. On Linux it asks /proc, since process ids are given out again.
func (c *Cluster) isOurs(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return false
	}
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return true
	}
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return false
	}
	// pid (name) state …
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open || end+2 >= len(stat) {
		return false
	}
	name, state := string(stat[open+1:end]), stat[end+2]
	if state == 'Z' || state == 'X' || !strings.HasPrefix(name, "postgres") && !strings.HasPrefix(name, "postmaster") {
		return false
	}
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != c.owner.uid {
		return false
	}
	// Every process of a server stands in its data directory.
	here, err := os.Stat(dir + "/cwd")
	if err != nil {
		// Root in a container may not look: then name and owner have to do.
		return errors.Is(err, os.ErrPermission)
	}
	data, err := os.Stat(c.cfg.DataDir)
	return err == nil && os.SameFile(here, data)
}

// orphans are the processes of a server whose postmaster was killed. While one of
// them lives, no new server can start.
func (c *Cluster) orphans() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Where we may not look we do not guess.
		if _, err := os.Stat("/proc/" + e.Name() + "/cwd"); err == nil && c.isOurs(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// removeStaleLocks removes the lock files of the data directory and of the socket, which is
// private too, that name a stranger, when nothing of ours runs. Other stale files are left
// to PostgreSQL, which looks at the shared memory first; but one that names a living process
// of its own user it takes for a server.
func (c *Cluster) removeStaleLocks() error {
	for _, file := range []string{c.pidFile(), socketPath(c.cfg.SocketDir, c.cfg.Port) + ".lock"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		pm, ok := parsePidFile(string(data))
		if !ok || syscall.Kill(pm.pid, 0) != nil || c.isOurs(pm.pid) {
			continue
		}
		c.cfg.Log.Info("removing the lock file of a dead server, whose process id another program has now", "file", file, "pid", pm.pid)
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("remove a stale lock file: %w", err)
		}
	}
	return nil
}
