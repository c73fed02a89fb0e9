package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// minMajor is the oldest PostgreSQL that Hawser links.
const minMajor = 14

// ClusterConfig describes a cluster that the agent owns.
type ClusterConfig struct {
	DataDir         string            // made when missing
	SocketDir       string            // private to the cluster; DataDir with .sock behind it when empty
	Port            int               // 5432 when 0
	ListenAddresses string            // "localhost" when empty
	BinDir          string            // when empty: of DataDir's version, for a new cluster the newest found
	RunAs           string            // user to run as when the agent is root; "postgres" when empty
	Superuser       string            // "postgres" when empty
	Locale          string            // of a new cluster; C.UTF-8 when empty and the machine has it, else C
	Settings        map[string]string // before Hawser's own
	Log             *slog.Logger
}

// ClusterStatus is what is known of a managed cluster.
type ClusterStatus struct {
	Running  bool // takes connections, as far as it is known
	PID      int
	Version  string // of the programs
	Since    time.Time
	Restarts int              // by Watch, since NewCluster
	Problem  *problem.Problem // why it does not run; nil while it does, but for a warning
}

// Cluster provisions and runs one PostgreSQL: its programs, data directory and
// server process. The process belongs to no agent: it outlives one that dies, and
// the next one adopts it. All methods may be called at any time from any goroutine;
// Ensure, Stop and the restarts of Watch take turns.
type Cluster struct {
	cfg     ClusterConfig
	version version
	owner   owner
	turn    chan struct{} // holds one token

	mu     sync.Mutex
	wanted bool // Ensure was called last, not Stop: Watch restarts
	child  *child
	ended  error // how the last child did
	status ClusterStatus
}

// owner is the user that PostgreSQL runs as.
type owner struct {
	name     string
	uid, gid int
	groups   []int
	drop     bool // we are root, and have to become this user
}

// NewCluster finds the programs and the user. It changes nothing.
func NewCluster(cfg ClusterConfig) (*Cluster, error) {
	cfg = cfg.withDefaults()
	for name, path := range map[string]string{"data directory": cfg.DataDir, "socket directory": cfg.SocketDir} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "\n\r,") {
			return nil, problem.New("bad-path", name+" "+strconv.Quote(path), "it has to be absolute, without comma or line break", "").Advise("name another path")
		}
	}
	// The limit is that of sockaddr_un.
	if socket := socketPath(cfg.SocketDir, cfg.Port); len(socket) > 103 {
		return nil, problem.New("socket-path-too-long", "socket "+socket, "the name of a Unix socket has at most 103 bytes", "").Advise("choose a data directory with a shorter path")
	}
	owner, err := ownerOf(cfg.RunAs)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, owner: owner, turn: make(chan struct{}, 1)}
	if c.cfg.BinDir, c.version, err = programs(cfg); err != nil {
		return nil, err
	}
	c.status.Version = c.version.text
	c.turn <- struct{}{}
	return c, nil
}

func (cfg ClusterConfig) withDefaults() ClusterConfig {
	if cfg.Port == 0 {
		cfg.Port = 5432
	}
	if cfg.Superuser == "" {
		cfg.Superuser = "postgres"
	}
	if cfg.ListenAddresses == "" {
		cfg.ListenAddresses = "localhost"
	}
	cfg.DataDir = cleanPath(cfg.DataDir)
	if cfg.SocketDir == "" {
		cfg.SocketDir = cfg.DataDir + ".sock"
	}
	cfg.SocketDir = cleanPath(cfg.SocketDir)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// cleanPath leaves "" as it is, which filepath.Clean would make ".".
func cleanPath(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Clean(path)
}

func socketPath(dir string, port int) string {
	return filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(port))
}

// programs returns where PostgreSQL's programs are. A new major version that is
// installed beside an old one must not keep an old cluster from starting.
func programs(cfg ClusterConfig) (dir string, v version, err error) {
	dir, have := cfg.BinDir, dataMajor(cfg.DataDir)
	if dir == "" {
		path := findTool("initdb", func(major int) bool { return major >= minMajor && (have == "" || strconv.Itoa(major) == have) })
		if path == "" && have != "" {
			return "", version{}, problem.New("data-directory-version", "directory "+cfg.DataDir,
				"it was made by PostgreSQL "+have+", whose programs were not found", "apt-get install postgresql-"+have).Advise("or name their directory in postgres.managed.bin_dir")
		}
		if path == "" {
			return "", version{}, problem.New("tool-missing", "program initdb", fmt.Sprintf("no PostgreSQL %d or later was found on this machine", minMajor),
				"apt-get install postgresql").Advise("or name the directory of its programs in postgres.managed.bin_dir")
		}
		// initdb looks for postgres beside itself, behind a symbolic link too.
		if dir, err = filepath.EvalSymlinks(path); err != nil {
			return "", version{}, fmt.Errorf("find the programs of PostgreSQL: %w", err)
		}
		dir = filepath.Dir(dir)
	}
	v, err = toolVersion(filepath.Join(dir, "postgres"))
	if err != nil {
		return "", version{}, problem.New("tool-missing", "directory "+dir, "the program postgres can't be run there",
			"pg_config --bindir").Advise("name the directory that this prints in postgres.managed.bin_dir").Because(err)
	}
	return dir, v, nil
}

// dataMajor is the version in which a data directory is, "" when there is none yet.
func dataMajor(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return "" // Ensure says why
	}
	return strings.TrimSpace(string(data))
}

func ownerOf(runAs string) (owner, error) {
	if runAs == "" && os.Geteuid() == 0 {
		runAs = "postgres"
	}
	if runAs == "" {
		u, err := user.Current()
		if err != nil {
			return owner{}, fmt.Errorf("find out which user this is: %w", err)
		}
		return owner{name: u.Username, uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	object := "user " + runAs
	u, err := user.Lookup(runAs)
	if err != nil {
		return owner{}, problem.New("no-such-user", object, "PostgreSQL should run as this user, which does not exist on this machine",
			"useradd --system "+problem.Word(runAs)).Advise("or name another user in postgres.managed.run_as").Because(err)
	}
	o := owner{name: runAs}
	if o.uid, err = strconv.Atoi(u.Uid); err != nil {
		return owner{}, fmt.Errorf("id of %s: %w", object, err)
	}
	if o.gid, err = strconv.Atoi(u.Gid); err != nil {
		return owner{}, fmt.Errorf("group of %s: %w", object, err)
	}
	switch {
	case o.uid == 0:
		return owner{}, problem.New("user-is-root", object, "PostgreSQL refuses to run as root", "").Advise("name another user in postgres.managed.run_as")
	case os.Geteuid() == o.uid:
		return o, nil
	case os.Geteuid() != 0:
		return owner{}, problem.New("not-root", object, "only an agent that runs as root can run PostgreSQL as another user",
			"").Advise("leave out postgres.managed.run_as, or start the agent as " + runAs)
	}
	o.drop = true
	ids, err := u.GroupIds() // ssl-cert, by which Debian lets it read its key
	if err != nil {
		return owner{}, fmt.Errorf("groups of %s: %w", object, err)
	}
	for _, id := range ids {
		if gid, err := strconv.Atoi(id); err == nil {
			o.groups = append(o.groups, gid)
		}
	}
	return o, nil
}

// credential makes a program run as the owner.
func (o owner) credential() *syscall.Credential {
	if !o.drop {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
	for _, gid := range o.groups {
		c.Groups = append(c.Groups, uint32(gid))
	}
	return c
}

// Server connects over the private socket, as superuser. It needs no password:
// PostgreSQL asks the kernel who is at the other end.
func (c *Cluster) Server() (*Server, error) {
	s, err := Open(fmt.Sprintf("host=%s port=%d user=%s dbname=postgres target_session_attrs=any",
		quoteValue(c.cfg.SocketDir), c.cfg.Port, quoteValue(c.cfg.Superuser)))
	if err != nil {
		return nil, err
	}
	s.down = c.down
	return s, nil
}

// down is why the server does not run, if it is known.
func (c *Cluster) down() *problem.Problem {
	s := c.Status()
	if s.Running {
		return nil
	}
	return s.Problem
}

// Status may be called at any time.
func (c *Cluster) Status() ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Cluster) setStatus(change func(s *ClusterStatus)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.status)
}

// takeTurn waits until nobody else starts or stops the server.
func (c *Cluster) takeTurn(ctx context.Context) (giveBack func(), err error) {
	giveBack = func() { c.turn <- struct{}{} }
	select {
	case <-c.turn: // also when ctx has ended: Stop has work to do even then
		return giveBack, nil
	default:
	}
	select {
	case <-c.turn:
		return giveBack, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("cluster %s is being started or stopped: %w", c.cfg.DataDir, ctx.Err())
	}
}

// Ensure brings the cluster up and returns when it takes connections: it makes one
// in an empty directory, starts one that is down, and adopts one that runs. A
// server that recovers from a crash is waited for as long as ctx allows.
func (c *Cluster) Ensure(ctx context.Context) error {
	giveBack, err := c.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	c.mu.Lock()
	c.wanted = true
	c.mu.Unlock()
	if err := c.ensure(ctx); err != nil {
		c.setStatus(func(s *ClusterStatus) { s.Running, s.Problem = false, problem.Of(err, "start-failed") })
		return err
	}
	return nil
}

func (c *Cluster) ensure(ctx context.Context) error {
	if err := c.checkReach(filepath.Join(c.cfg.BinDir, "postgres")); err != nil {
		return err
	}
	if err := c.makeDirectories(); err != nil {
		return err
	}
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := c.refuseStrangers(); err != nil {
		return err
	}
	if err := c.redoUnfinished(); err != nil {
		return err
	}
	root, err := os.OpenRoot(c.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	defer root.Close()
	have, err := root.ReadFile("PG_VERSION")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := c.initdb(ctx, lock); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read the version of the data directory: %w", err)
	default:
		if err := c.checkMajor(strings.TrimSpace(string(have))); err != nil {
			return err
		}
	}
	changed, err := c.configure(root)
	if err != nil {
		return err
	}
	return c.run(ctx, changed)
}

// refuseStrangers leaves a server alone that runs in a directory in which no agent ever
// ran one: each leaves its settings there. It may be somebody else's, and in use.
func (c *Cluster) refuseStrangers() error {
	pm, running := c.postmaster()
	if !running {
		return nil
	}
	switch _, err := os.Lstat(filepath.Join(c.cfg.DataDir, confName)); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look for %s: %w", confName, err)
	}
	return problem.New("stranger-runs", "directory "+c.cfg.DataDir,
		fmt.Sprintf("a PostgreSQL that Hawser never ran is running in it (process %d), and to take it over it would be stopped and configured anew", pm.pid),
		"").Advise("stop that server in order first, if the directory is to be this instance's; or name an empty one in postgres.managed.data_dir; or leave that server as it is, and name it in postgres.connection")
}

func (c *Cluster) checkMajor(have string) error {
	if strconv.Itoa(c.version.major) == have {
		return nil
	}
	return problem.New("data-directory-version", "directory "+c.cfg.DataDir,
		fmt.Sprintf("it was made by PostgreSQL %s, and the programs in %s are of %d", have, c.cfg.BinDir, c.version.major),
		"").Advise("name the directory of PostgreSQL " + have + "'s programs in postgres.managed.bin_dir; or link this instance to a new one to upgrade")
}
