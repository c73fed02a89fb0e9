package agent_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
)

// TestRegressionSQL runs the files of PostgreSQL's own regression tests
// (src/test/regress/sql, in HAWSER_TEST_REGRESS_SQL) against a linked database, one
// after the other. It takes most of an hour, so it is run by hand.
// HAWSER_TEST_REGRESS_FILES names some of them.
func TestRegressionSQL(t *testing.T) {
	dir := os.Getenv("HAWSER_TEST_REGRESS_SQL")
	if dir == "" {
		t.Skip("HAWSER_TEST_REGRESS_SQL does not name PostgreSQL's src/test/regress/sql")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.sql"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	if some := os.Getenv("HAWSER_TEST_REGRESS_FILES"); some != "" {
		names := strings.Fields(some)
		files = slices.DeleteFunc(files, func(f string) bool {
			return !slices.Contains(names, strings.TrimSuffix(filepath.Base(f), ".sql"))
		})
	}
	r := &regression{t: t, a: newInstance(t, "alpha"), b: newInstance(t, "beta"), dir: dir}
	introduce(t, r.a, r.b)
	r.fresh()
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".sql"); name != "test_setup" {
			t.Run(name, func(t *testing.T) { r.file(t, f) })
		}
	}
}

type regression struct {
	t    *testing.T
	a, b *instance
	dir  string
}

const regressed = "regression"

// fresh makes the database and the link anew.
func (r *regression) fresh() {
	for _, i := range []*instance{r.a, r.b} {
		if _, err := i.Link(context.Background(), regressed); err == nil {
			if err := i.DropLink(context.Background(), regressed, api.DropOptions{RemoveReplica: true}); err != nil {
				r.t.Logf("drop the link: %v", err)
			}
		}
	}
	for _, i := range []*instance{r.a, r.b} {
		if err := i.DropDatabase(regressed); err != nil {
			r.t.Fatal(err)
		}
	}
	r.a.Exec(r.t, "postgres", `CREATE DATABASE `+regressed)
	_, _ = r.psql(filepath.Join(r.dir, "test_setup.sql"))
	r.a.Exec(r.t, regressed, `INSERT INTO tenk1 SELECT i, i % 9973, i % 2, i % 4, i % 10, i % 20, i % 100, i % 1000, i % 2000, i % 5000, i, i * 2 % 200, i * 2 % 200 + 1,
		'AAAAxx', 'BBBBxx', (ARRAY['AAAAxx', 'HHHHxx', 'OOOOxx', 'VVVVxx'])[i % 4 + 1] FROM generate_series(0, 9999) i;
		INSERT INTO onek SELECT * FROM tenk1 WHERE unique1 < 1000; INSERT INTO onek2 SELECT * FROM onek; INSERT INTO tenk2 SELECT * FROM tenk1`)
	if _, err := r.a.CreateLink(context.Background(), api.LinkSpec{Name: regressed, Database: regressed, Peer: "beta", Role: api.RolePrimary}); err != nil {
		r.t.Fatal(err)
	}
	r.b.awaitState(r.t, regressed, api.StateSynchronized)
}

func (r *regression) psql(file string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "psql", "-X", "-q", "-o", os.DevNull, "-f", file, r.a.DSN(regressed))
	cmd.Env = append(os.Environ(), "PG_ABS_SRCDIR="+filepath.Dir(r.dir), "PG_LIBDIR=/nowhere", "PG_DLSUFFIX=.so", "PGTZ=PST8PDT", "PGDATESTYLE=Postgres, MDY")
	return cmd.CombinedOutput()
}

func (r *regression) file(t *testing.T, file string) {
	start := time.Now()
	if out, err := r.psql(file); err != nil {
		t.Logf("psql: %v: %.300s", err, out)
	}
	ran := time.Since(start)
	if err := follow(t, r.a, r.b, regressed, 30*time.Second); err != nil {
		t.Errorf("the link stopped: %v", err)
		r.fresh()
		return
	}
	var d string
	for range 30 {
		if d = difference(following(state(t, r.a, regressed)), following(state(t, r.b, regressed))); d == "" {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	if d != "" {
		t.Errorf("the two sides differ:\n%.3000s", d)
		r.fresh()
	}
	t.Logf("psql %s, all %s", ran.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
}
