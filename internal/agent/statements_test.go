package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestStatements are statements on the primary after which the replica has to
// be equal. Each makes a database and a link of its own.
func TestStatements(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	n := 0
	for _, c := range []struct {
		name         string
		setup, after []string
	}{
		// The walsender's session takes the database's settings for its output; the
		// applier reads it in its own.
		{"datestyle of the database",
			[]string{`ALTER DATABASE %s SET datestyle = 'SQL, DMY'; ALTER DATABASE %[1]s SET extra_float_digits = 0`, `CREATE TABLE t (id int PRIMARY KEY, d date, f double precision)`},
			[]string{`INSERT INTO t VALUES (1, DATE '2026-04-03', 0.1::float8 + 0.2::float8)`, `CHECK SELECT d - DATE '2000-01-01', float8send(f) FROM t`}},
		// UPDATE and DELETE are written without ONLY.
		{"update of an inheritance parent",
			[]string{`CREATE TABLE t (id int PRIMARY KEY, v text)`, `CREATE TABLE c () INHERITS (t)`, `INSERT INTO t VALUES (1, 'parent'); INSERT INTO c VALUES (1, 'child')`},
			[]string{`UPDATE ONLY t SET v = 'changed' WHERE id = 1`}},
		// With an empty search_path the operator = of a type in schema public is not found.
		{"hstore in a table without a key",
			[]string{`CREATE EXTENSION hstore; CREATE TABLE t (h hstore, v int); INSERT INTO t VALUES ('a=>1', 1)`},
			[]string{`UPDATE t SET v = 2`}},
		{"ltree as a key",
			[]string{`CREATE EXTENSION ltree; CREATE TABLE t (id ltree PRIMARY KEY, v int); INSERT INTO t VALUES ('a.b', 1)`},
			[]string{`UPDATE t SET v = 2`}},
		// The unlogged table is not in the stream, but its foreign key is on the replica.
		{"truncate cascade to an unlogged table",
			[]string{`CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE u (id int REFERENCES t); INSERT INTO t VALUES (1)`},
			[]string{`TRUNCATE t CASCADE`}},
		// A deferrable primary key is no replica identity.
		{"update with a deferrable primary key",
			[]string{`CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v int); INSERT INTO t VALUES (1, 1)`},
			[]string{`UPDATE t SET v = 2`}},
		{"later table with a deferrable primary key",
			[]string{`CREATE TABLE x (id int PRIMARY KEY)`},
			[]string{`CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v int); INSERT INTO t VALUES (1, 1)`, `UPDATE t SET v = 2`}},
		// It fires on both sides, and its row arrives as well.
		{"trigger that fires always",
			[]string{`CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE log (id int);
				CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.log VALUES (NEW.id); RETURN NEW; END';
				CREATE TRIGGER tr AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE t ENABLE ALWAYS TRIGGER tr`},
			[]string{`INSERT INTO t VALUES (1)`}},
		// Table b is copied again under a snapshot that sees the TRUNCATE; table a is
		// truncated alone, which its foreign key forbids.
		{"truncate of a table that is copied again",
			[]string{`CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE q (id int REFERENCES p); INSERT INTO p VALUES (1); INSERT INTO q VALUES (1)`},
			[]string{`PAUSE`, `ALTER TABLE q ADD COLUMN x double precision DEFAULT random()`, `TRUNCATE p, q`, `RESUME`}},
	} {
		n++
		db := fmt.Sprintf("d%d", n)
		t.Run(c.name, func(t *testing.T) {
			a.Exec(t, "postgres", `CREATE DATABASE `+db)
			for _, sql := range c.setup {
				if strings.Contains(sql, "%") {
					sql = fmt.Sprintf(sql, db)
				}
				a.Exec(t, db, sql)
			}
			if _, err := a.CreateLink(ctx, api.LinkSpec{Name: db, Database: db, Peer: "beta", Role: api.RolePrimary}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = a.DropLink(ctx, db, api.DropOptions{RemoveReplica: true}) })
			b.awaitState(t, db, api.StateSynchronized)
			for _, sql := range c.after {
				var err error
				if check, ok := strings.CutPrefix(sql, "CHECK "); ok {
					testpg.Eventually(t, 12*time.Second, check, func() (bool, error) {
						x, y := a.Rows(t, db, check), b.Rows(t, db, check)
						if strings.Join(x, "") != strings.Join(y, "") {
							return false, fmt.Errorf("%q on the primary, %q on the replica", x, y)
						}
						return true, nil
					})
					continue
				}
				switch sql {
				case "PAUSE":
					err = b.PauseLink(ctx, db)
				case "RESUME":
					err = b.ResumeLink(ctx, db)
				default:
					conn := a.Connect(t, db)
					_, err = conn.Exec(ctx, sql)
				}
				if err != nil {
					t.Fatalf("on the primary: %s: %v", sql, err)
				}
			}
			testpg.Eventually(t, 12*time.Second, "both sides are equal", func() (bool, error) {
				x, y := digest(t, a.Cluster, db), digest(t, b.Cluster, db)
				if x == y {
					return true, nil
				}
				l, err := b.Link(ctx, db)
				return false, fmt.Errorf("\n%s\n---\n%s\n%s %v %v", x, y, l.State, l.Cause, err)
			})
		})
	}
}
