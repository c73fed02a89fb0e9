package testpg

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"github.com/hawser/hawser/internal/postgres"
)

// versionsVariable lists directories with the server programs of further versions,
// as PATH lists directories. Those of Debian's packages and of make versions are found
// without it.
const versionsVariable = "HAWSER_TEST_PG_BINS"

// Version returns a directory with the server programs of a major version. The test
// is skipped, and says why, when there is none on this machine.
func Version(t testing.TB, major int) (binDir string) {
	t.Helper()
	dirs := filepath.SplitList(os.Getenv(versionsVariable))
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", filepath.Join(repository(t), ".versions/node_modules/*/native/bin")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		if majorOf(dir) == major {
			return dir
		}
	}
	t.Skipf("no server programs of PostgreSQL %d on this machine: make versions installs them, or name their directory in %s", major, versionsVariable)
	return ""
}

// Upgrader returns a directory with all programs of a major version, pg_upgrade among them,
// which those that Version finds mostly lack. The test is skipped, and says why, when there
// is none on this machine.
func Upgrader(t testing.TB, major int) (binDir string) {
	t.Helper()
	dirs := append(filepath.SplitList(os.Getenv(versionsVariable)),
		fmt.Sprintf("/usr/lib/postgresql/%d/bin", major), filepath.Join(repository(t), fmt.Sprintf(".versions/upgrade/usr/lib/postgresql/%d/bin", major)))
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "pg_upgrade")); err == nil && majorOf(dir) == major {
			return dir
		}
	}
	t.Skipf("no pg_upgrade of PostgreSQL %d on this machine: make versions installs it, or name its directory in %s", major, versionsVariable)
	return ""
}

// Client returns a directory with a pg_dump that reads a major version. The test is
// skipped, and says why, when there is none on this machine.
func Client(t testing.TB, major int) (binDir string) {
	t.Helper()
	if tool, err := postgres.Tool("pg_dump", major); err == nil {
		return filepath.Dir(tool)
	}
	dir := filepath.Join(repository(t), ".versions/client/bin")
	if _, err := os.Stat(filepath.Join(dir, "pg_dump")); err != nil {
		t.Skipf("no pg_dump of PostgreSQL %d on this machine, which make versions installs: %v", major, err)
	}
	return dir
}

// repository is the directory with go.mod: tests run in their package's.
func repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("the test runs outside of the repository")
		}
		dir = parent
	}
}

var serverVersion = regexp.MustCompile(`^postgres \(PostgreSQL\) (\d+)`)

// majorOf asks the server program of a directory for its version, 0 when there is none.
func majorOf(dir string) int {
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if found := serverVersion.FindSubmatch(out); err == nil && found != nil {
		major, _ := strconv.Atoi(string(found[1]))
		return major
	}
	return 0
}

// StartVersion is Start with the programs of a directory that Version returned.
func StartVersion(t testing.TB, binDir string, settings map[string]string) *Cluster {
	t.Helper()
	c, err := create(binDir, settings)
	if err != nil {
		t.Fatalf("start a cluster of %s: %v", binDir, err)
	}
	t.Cleanup(c.remove)
	return c
}

// Move stops the server and starts it on another port.
func (c *Cluster) Move(t testing.TB) {
	t.Helper()
	c.Stop(t)
	var err error
	if c.port, err = FreePort(); err == nil {
		c.config.Port = c.port
		c.pg, err = postgres.NewCluster(c.config)
	}
	if err == nil {
		c.server, err = postgres.Open(c.DSN("postgres"))
	}
	if err != nil {
		t.Fatalf("move the cluster: %v", err)
	}
	c.Start(t)
}

// Upgrade stops the server and brings it to a later major version with pg_upgrade, which
// replaces its data directory. The test is skipped where a program is missing for that.
func (c *Cluster) Upgrade(t testing.TB, binDir string) {
	t.Helper()
	for _, program := range []string{filepath.Join(binDir, "pg_upgrade"), filepath.Join(c.config.BinDir, "pg_controldata"), filepath.Join(c.config.BinDir, "pg_resetwal")} {
		if _, err := os.Stat(program); err != nil {
			t.Skipf("upgrade the cluster: %v", err)
		}
	}
	old := c.config
	old.BinDir = filepath.Clean(old.BinDir)
	c.Stop(t)
	c.data += "." + strconv.Itoa(majorOf(binDir))
	c.config.BinDir, c.config.DataDir = binDir, c.data
	var err error
	if c.pg, err = postgres.NewCluster(c.config); err != nil {
		t.Fatalf("upgrade the cluster: %v", err)
	}
	c.Start(t)
	c.Stop(t)
	work := filepath.Join(c.dir, "upgrade")
	owner := ownerOf(t, c.data)
	if err = os.Mkdir(work, 0o700); err == nil {
		err = os.Chown(work, int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		t.Fatalf("upgrade the cluster: %v", err)
	}
	cmd := Command(t, filepath.Join(binDir, "pg_upgrade"), "--username=postgres", "--old-bindir="+old.BinDir, "--new-bindir="+binDir,
		"--old-datadir="+old.DataDir, "--new-datadir="+c.data, "--socketdir="+work)
	cmd.Dir = work
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_upgrade: %v\n%s", err, out)
	}
	c.Start(t)
}

func ownerOf(t testing.TB, path string) *syscall.Credential {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
}
