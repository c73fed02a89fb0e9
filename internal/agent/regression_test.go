package agent_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestRegressionSQL runs the files of PostgreSQL's own regression tests against a linked
// database and against one that is not linked: afterwards both sides of the link must be
// alike, and the client must have been told the same. It takes most of an hour, so it is
// run by hand, with
//
//	HAWSER_TEST_REGRESS         src/test/regress, or a contrib module's directory
//	HAWSER_TEST_REGRESS_LIB     where its regress.so, autoinc.so and refint.so are
//	HAWSER_TEST_REGRESS_FILES   some files; those joined by + run at the same time.
//	                            "schedule" is parallel_schedule, all files without it.
//	                            test_setup runs before the link is made unless it is named
//	HAWSER_TEST_REGRESS_OUT     a directory that gets what the client was told
//	HAWSER_TEST_REGRESS_BACK    a failover comes first: the other side is the primary
func TestRegressionSQL(t *testing.T) {
	r := &regression{t: t, dir: os.Getenv("HAWSER_TEST_REGRESS"), out: os.Getenv("HAWSER_TEST_REGRESS_OUT"), back: os.Getenv("HAWSER_TEST_REGRESS_BACK") != ""}
	if r.dir == "" {
		t.Skip("HAWSER_TEST_REGRESS does not name PostgreSQL's src/test/regress")
	}
	groups, err := r.groups(os.Getenv("HAWSER_TEST_REGRESS_FILES"))
	if err != nil || len(groups) == 0 {
		t.Fatalf("no files: %v", err)
	}
	if r.out == "" {
		r.out = t.TempDir()
	}
	r.a, r.b, r.plain = newInstance(t, "alpha"), newInstance(t, "beta"), testpg.Start(t, nil)
	introduce(t, r.a, r.b)
	r.bare = groups[0][0] == "test_setup"
	r.fresh()
	for _, g := range groups {
		t.Run(strings.Join(g, "+"), func(t *testing.T) { r.group(t, g) })
	}
}

type regression struct {
	t        *testing.T
	a, b     *instance // the primary, and its secondary
	plain    *testpg.Cluster
	dir, out string
	back     bool
	bare     bool // the link is made of an empty database
}

const regressed = "regression"

// groups are the files to run, each group at the same time.
func (r *regression) groups(which string) (out [][]string, err error) {
	if which == "schedule" {
		text, err := os.ReadFile(filepath.Join(r.dir, "parallel_schedule"))
		if err != nil {
			return nil, err
		}
		for _, line := range strings.Split(string(text), "\n") {
			if names, ok := strings.CutPrefix(line, "test:"); ok && strings.TrimSpace(names) != "test_setup" {
				out = append(out, strings.Fields(names))
			}
		}
		return out, nil
	}
	for _, g := range strings.Fields(which) {
		out = append(out, strings.Split(g, "+"))
	}
	if which != "" {
		return out, nil
	}
	files, err := filepath.Glob(filepath.Join(r.dir, "sql", "*.sql"))
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".sql"); name != "test_setup" {
			out = append(out, []string{name})
		}
	}
	return out, err
}

// fresh makes the databases and the link anew.
func (r *regression) fresh() {
	ctx := context.Background()
	if r.back && r.a.name == "beta" {
		r.a, r.b = r.b, r.a
	}
	for _, i := range []*instance{r.a, r.b} {
		if _, err := i.Link(ctx, regressed); err == nil {
			if _, err := i.DropLink(ctx, regressed, api.DropOptions{RemoveReplica: true}); err != nil {
				r.t.Logf("drop the link: %v", err)
			}
		}
	}
	for _, c := range []*testpg.Cluster{r.a.Cluster, r.b.Cluster, r.plain} {
		if err := c.DropDatabase(regressed); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, c := range []*testpg.Cluster{r.a.Cluster, r.plain} {
		c.Exec(r.t, "postgres", `CREATE DATABASE `+regressed)
		if !r.bare {
			_, _ = r.psql(c, "test_setup") // contrib has none
		}
		c.Exec(r.t, regressed, `ALTER DATABASE `+regressed+` SET lc_messages TO 'C'`, `ALTER DATABASE `+regressed+` SET bytea_output TO 'hex'`)
	}
	if _, err := r.a.CreateLink(ctx, api.LinkSpec{Name: regressed, Database: regressed, Peer: r.b.name, Role: api.RolePrimary}); err != nil {
		r.t.Fatal(err)
	}
	r.b.awaitState(r.t, regressed, api.StateSynchronized)
	if r.back {
		if _, err := r.b.FailoverLink(ctx, regressed, api.FailoverOptions{Timeout: time.Minute}); err != nil {
			r.t.Fatal(err)
		}
		r.a.awaitState(r.t, regressed, api.StateSynchronized)
		r.a, r.b = r.b, r.a
	}
}

// psql runs a file as pg_regress does.
func (r *regression) psql(c *testpg.Cluster, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	file, err := os.Open(filepath.Join(r.dir, "sql", name+".sql"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, "psql", "-X", "-a", "-q", "-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on", c.DSN(regressed))
	cmd.Dir, cmd.Stdin = r.dir, file
	cmd.Env = append(os.Environ(), "PG_ABS_SRCDIR="+r.dir, "PG_ABS_BUILDDIR="+r.out, "PG_LIBDIR="+os.Getenv("HAWSER_TEST_REGRESS_LIB"), "PG_DLSUFFIX=.so",
		"PGTZ=PST8PDT", "PGDATESTYLE=Postgres, MDY", "PGOPTIONS=-c intervalstyle=postgres_verbose")
	return cmd.CombinedOutput()
}

// group runs files at the same time and compares both sides.
func (r *regression) group(t *testing.T, names []string) {
	start := time.Now()
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			for side, c := range map[string]*testpg.Cluster{"linked": r.a.Cluster, "plain": r.plain} {
				out, err := r.psql(c, name)
				if err != nil {
					t.Logf("psql %s, %s: %v", name, side, err)
				}
				if err := os.WriteFile(filepath.Join(r.out, name+"."+side), numbered.ReplaceAll(linkedOnly.ReplaceAll(out, nil), []byte("N")), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	ran := time.Since(start)
	for _, name := range names {
		d, _ := exec.Command("diff", "-U1", filepath.Join(r.out, name+".plain"), filepath.Join(r.out, name+".linked")).Output()
		if len(d) > 0 {
			t.Logf("%s: a client of the linked database was told something else:\n%.20000s", name, d)
		}
	}
	if err := r.alike(t); err != nil {
		t.Errorf("%.6000s", err)
		r.fresh()
	}
	t.Logf("psql %s, all %s", ran.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
}

// numbered is what differs between any two databases.
var numbered = regexp.MustCompile(`\b[0-9]{5,}\b`)

// linkedOnly is what psql shows of every table of a linked database.
var linkedOnly = regexp.MustCompile(`(?m)^(Publications:|    "hawser_[0-9a-f]+"|Replica Identity: FULL)\n`)

// alike waits until both sides are.
func (r *regression) alike(t *testing.T) error {
	if err := follow(t, r.a, r.b, regressed, time.Minute); err != nil {
		return fmt.Errorf("the link stopped: %w", err)
	}
	var d string
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); <-time.After(200 * time.Millisecond) {
		if d = difference(following(state(t, r.a, regressed)), following(state(t, r.b, regressed))); d == "" {
			break
		}
	}
	if l, err := r.b.Link(context.Background(), regressed); err != nil || l.State == api.StateSuspended {
		return fmt.Errorf("the link stopped: %v %w", l.Cause, err)
	}
	if d != "" {
		return fmt.Errorf("the two sides differ:\n%s", d)
	}
	return nil
}
