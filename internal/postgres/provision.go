package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// The agent may be root, and what it reads and writes below may belong to an
// unprivileged user: files in the data directory are reached through an os.Root,
// which follows no link out of it.

// makeDirectories makes what is missing, parents too. Directories that are there
// keep their owner and mode, and are refused where these are wrong.
func (c *Cluster) makeDirectories() error {
	for _, dir := range []string{c.cfg.DataDir, c.cfg.SocketDir} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return fmt.Errorf("make the directory above %s: %w", dir, err)
		}
		switch err := os.Mkdir(dir, 0o700); {
		case err == nil:
			if err := c.give(dir); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrExist):
			return fmt.Errorf("make directory %s: %w", dir, err)
		}
		if err := c.checkReach(dir); err != nil {
			return err
		}
		if err := c.checkOwner(dir); err != nil {
			return err
		}
	}
	info, err := os.Stat(c.cfg.SocketDir)
	if err != nil {
		return fmt.Errorf("look at the socket directory: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return problem.New("socket-directory-open", "directory "+c.cfg.SocketDir, "others than its owner may reach into it, and the cluster's socket gives a superuser's rights",
			"chmod 700 "+problem.Word(c.cfg.SocketDir)).Advise("or name a directory of its own")
	}
	return nil
}

func (c *Cluster) give(dir string) error {
	if !c.owner.drop {
		return nil
	}
	if err := os.Chown(dir, c.owner.uid, c.owner.gid); err != nil {
		return fmt.Errorf("give directory %s to user %s: %w", dir, c.owner.name, err)
	}
	return nil
}

// checkOwner hands an empty directory to PostgreSQL's user. One that holds
// something may hold it for somebody else.
func (c *Cluster) checkOwner(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at directory %s: %w", dir, err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if info, err = os.Stat(dir); err != nil {
			return fmt.Errorf("look at directory %s: %w", dir, err)
		}
	}
	if !info.IsDir() {
		return problem.New("not-a-directory", "file "+dir, "it stands where a directory is needed", "").Advise("name another path")
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == c.owner.uid {
		if info.Mode().Perm()&0o700 != 0o700 {
			return problem.New("directory-closed", "directory "+dir, "its mode keeps its own user "+c.owner.name+" from it, as whom PostgreSQL runs", "chmod 700 "+problem.Word(dir))
		}
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) == 0 && c.owner.drop && stat.Uid == 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("close directory %s: %w", dir, err)
		}
		return c.give(dir)
	}
	return problem.New("directory-owner", "directory "+dir, "it does not belong to user "+c.owner.name+", as whom PostgreSQL runs",
		"chown -R "+problem.Word(c.owner.name)+" "+problem.Word(dir)).Advise("if it holds this instance's data; otherwise name another directory")
}

// checkReach finds the directory above dir that PostgreSQL's user may not pass,
// of which its own error says nothing.
func (c *Cluster) checkReach(dir string) error {
	if !c.owner.drop {
		return nil
	}
	for above := filepath.Dir(dir); ; above = filepath.Dir(above) {
		info, err := os.Stat(above)
		if err != nil {
			return fmt.Errorf("look at directory %s: %w", above, err)
		}
		if !c.owner.passes(info) {
			return problem.New("directory-not-reachable", "directory "+above, "user "+c.owner.name+", as whom PostgreSQL runs, may not pass it on the way to "+dir,
				"chmod o+x "+problem.Word(above)).Advise("or name a directory elsewhere")
		}
		if above == filepath.Dir(above) {
			return nil
		}
	}
}

// passes reports whether the owner may pass a directory: ACLs aside.
func (o owner) passes(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	mode := info.Mode().Perm()
	switch {
	case int(stat.Uid) == o.uid:
		return mode&0o100 != 0
	case int(stat.Gid) == o.gid || slices.Contains(o.groups, int(stat.Gid)):
		return mode&0o010 != 0
	}
	return mode&0o001 != 0
}

// lock makes agents that were given the same data directory take turns in making
// and starting its cluster. It lies on the directory itself, and initdb inherits it:
// it is held even when the agent that started initdb is gone.
func (c *Cluster) lock(ctx context.Context) (*os.File, error) {
	f, err := os.Open(c.cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			_ = f.Close()
			return nil, fmt.Errorf("lock the data directory %s: %w", c.cfg.DataDir, err)
		case !c.isWanted():
			_ = f.Close()
			return nil, fmt.Errorf("start PostgreSQL in %s: %w", c.cfg.DataDir, errStopped)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("another agent makes or starts the cluster in %s: %w", c.cfg.DataDir, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// marker is a file that stands while initdb is at work. What initdb left when it
// was killed looks like a cluster and is none. Only who holds the lock touches it.
func (c *Cluster) marker() string {
	return filepath.Join(c.cfg.SocketDir, "initdb-unfinished."+strconv.Itoa(c.cfg.Port))
}

// redoUnfinished empties a data directory in which an initdb of ours was killed.
func (c *Cluster) redoUnfinished() error {
	dir, err := os.ReadFile(c.marker())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find out what became of initdb: %w", err)
	}
	if len(dir) == 0 { // it had not begun
		return os.Remove(c.marker())
	}
	if string(dir) != c.cfg.DataDir {
		return problem.New("socket-directory-shared", "directory "+c.cfg.SocketDir, "a cluster in "+string(dir)+" was being made with the same one", "").Advise("name a directory of its own")
	}
	c.cfg.Log.Warn("initdb did not come to its end, doing it over", "data_dir", c.cfg.DataDir)
	return c.clean()
}

// clean takes away what initdb made, then the marker.
func (c *Cluster) clean() error {
	entries, err := os.ReadDir(c.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("empty the data directory: %w", err)
	}
	root, err := os.OpenRoot(c.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("empty the data directory: %w", err)
	}
	defer root.Close()
	for _, e := range entries {
		if err := root.RemoveAll(e.Name()); err != nil {
			return fmt.Errorf("empty the data directory: %w", err)
		}
	}
	return os.Remove(c.marker())
}

// initdb makes a cluster in an empty directory.
func (c *Cluster) initdb(ctx context.Context, lock *os.File) error {
	entries, err := os.ReadDir(c.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("look into the data directory: %w", err)
	}
	if len(entries) > 0 {
		return problem.New("data-directory-not-empty", "directory "+c.cfg.DataDir, "it is not empty and holds no PostgreSQL cluster",
			"").Advise("name an empty directory, or a new one, in postgres.managed.data_dir")
	}
	if err := os.WriteFile(c.marker(), []byte(c.cfg.DataDir), 0o600); err != nil {
		return fmt.Errorf("mark that initdb begins: %w", err)
	}
	c.cfg.Log.Info("making a cluster", "data_dir", c.cfg.DataDir, "version", c.version.text)
	locale := c.cfg.Locale
	if locale == "" {
		locale = defaultLocale(ctx)
	}
	args := []string{"--pgdata=" + c.cfg.DataDir, "--username=" + c.cfg.Superuser, "--encoding=UTF8", "--locale=" + locale,
		"--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256"}
	if c.cfg.Settings["fsync"] == "off" {
		args = append(args, "--no-sync") // who gives up safety wants speed
	}
	if out, err := c.program(ctx, lock, "initdb", args...); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		failed := problem.New("initdb-failed", "directory "+c.cfg.DataDir, "no cluster could be made in it: "+salient(out), "").Advise("mend what initdb names").Because(err)
		if err := c.clean(); err != nil {
			c.cfg.Log.Warn("what initdb left could not be removed", "error", err)
		}
		return failed
	}
	if err := c.admit(); err != nil {
		return err
	}
	return os.Remove(c.marker())
}

// defaultLocale is one whose order no upgrade of the C library changes.
func defaultLocale(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "locale", "-a").Output()
	if err != nil {
		return "C"
	}
	for _, name := range strings.Fields(string(out)) {
		if strings.EqualFold(strings.ReplaceAll(name, "-", ""), "C.utf8") {
			return "C.UTF-8"
		}
	}
	return "C"
}

// admit writes who may come in to a new cluster; from then on the file is the
// user's.
func (c *Cluster) admit() error {
	root, err := os.OpenRoot(c.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("write pg_hba.conf: %w", err)
	}
	defer root.Close()
	return c.write(root, "pg_hba.conf", []byte(`# Made by the Hawser agent, and yours to change.
# listen_addresses says on which addresses the server can be reached at all.
# TYPE  DATABASE     USER  ADDRESS  METHOD
local   all          all            scram-sha-256
host    all          all   all      scram-sha-256
local   replication  all            scram-sha-256
host    replication  all   all      scram-sha-256
`))
}

const confName = "hawser.conf"

// managedSettings fit 100 links beside independent databases.
var managedSettings = map[string]string{
	"wal_level":                       "logical",
	"max_connections":                 "400",
	"max_replication_slots":           "120",
	"max_wal_senders":                 "120",
	"max_worker_processes":            "32",
	"max_logical_replication_workers": "8",
	"max_prepared_transactions":       "100", // a database that moves in may use them
	"max_locks_per_transaction":       "256", // a restored schema is one transaction
	"max_wal_size":                    "4GB", // seeding would be one checkpoint after the other
	"wal_sender_timeout":              "60s",
	"track_commit_timestamp":          "on",
	"password_encryption":             "scram-sha-256",
	"logging_collector":               "on",
	"log_directory":                   "log",
	"log_filename":                    "postgresql-%a.log", // a week, each day over that of last week
	"log_rotation_age":                "1d",
	"log_rotation_size":               "0",
	"log_truncate_on_rotation":        "on",
	"log_line_prefix":                 "%m [%p] %q%u@%d/%a ",
	"log_lock_waits":                  "on",
}

// configure writes Hawser's settings into a file of their own, and sees that the
// agent is let in. The user's ALTER SYSTEM still wins, except over what the agent
// needs to find the server, which stands on its command line.
func (c *Cluster) configure(root *os.Root) (changed bool, err error) {
	settings := maps.Clone(managedSettings)
	maps.Copy(settings, c.cfg.Settings)
	var conf bytes.Buffer
	conf.WriteString("# Written by the Hawser agent at each start. Use its configuration, or ALTER SYSTEM.\n")
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s = %s\n", name, quoteSetting(settings[name]))
	}
	if err := c.keepLine(root, "postgresql.conf", "include_if_exists = '"+confName+"'", false, &changed); err != nil {
		return false, err
	}
	user := `"` + strings.ReplaceAll(c.cfg.Superuser, `"`, `""`) + `"`
	if err := c.keepLine(root, "pg_hba.conf", "local all "+user+" peer map=hawser # the agent's way in", true, &changed); err != nil {
		return false, err
	}
	for _, name := range slices.Compact([]string{userName(os.Geteuid(), c.owner), c.owner.name}) {
		if err := c.keepLine(root, "pg_ident.conf", "hawser "+name+" "+user, false, &changed); err != nil {
			return false, err
		}
	}
	if old, err := root.ReadFile(confName); err == nil && bytes.Equal(old, conf.Bytes()) {
		return changed, nil
	}
	return true, c.write(root, confName, conf.Bytes())
}

// userName names the agent's own user, which is the owner or root.
func userName(uid int, o owner) string {
	if uid == 0 {
		return "root"
	}
	return o.name
}

func quoteSetting(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`).Replace(v) + "'"
}

// keepLine sees that a file has a line, at its beginning or at its end.
func (c *Cluster) keepLine(root *os.Root, name, line string, first bool, changed *bool) error {
	text, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return problem.New("config-missing", "file "+filepath.Join(c.cfg.DataDir, name), "a managed cluster has its configuration in the data directory, and this one has not: Debian's own clusters keep it in /etc/postgresql",
			"").Advise("copy the file from there, or name an empty directory in postgres.managed.data_dir")
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	for have := range strings.Lines(string(text)) {
		if strings.TrimSpace(have) == line {
			return nil
		}
	}
	*changed = true
	if first {
		return c.write(root, name, append([]byte(line+"\n"), text...))
	}
	return c.write(root, name, append(text, "\n"+line+"\n"...))
}

// write replaces a file of the data directory as a whole.
func (c *Cluster) write(root *os.Root, name string, data []byte) error {
	fresh := name + ".hawser"
	err := root.WriteFile(fresh, data, 0o600)
	if err == nil && c.owner.drop {
		err = root.Lchown(fresh, c.owner.uid, c.owner.gid)
	}
	if err == nil {
		err = root.Rename(fresh, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// program runs one of PostgreSQL's programs to its end, as the unprivileged user
// and with a file that it holds open, and returns what it wrote.
func (c *Cluster) program(ctx context.Context, hold *os.File, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.cfg.BinDir, name), args...)
	cmd.Dir = c.cfg.DataDir
	cmd.Env = environ()
	cmd.ExtraFiles = []*os.File{hold}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.owner.credential()}
	// initdb takes its children and its half-made cluster along when asked to end.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return string(out), err
}

// environ is all that PostgreSQL sees of the agent's environment, which may hold
// secrets and would tell systemd that PostgreSQL were the agent.
func environ() []string {
	env := []string{"LC_ALL=C", "TZ=UTC"}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH", "OPENSSL_CONF", "KRB5_CONFIG", "KRB5_KTNAME"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
