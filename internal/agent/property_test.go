package agent_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestRandomTransactions plays random DDL and DML, several statements to a
// transaction, and compares both sides. What the primary refuses is rolled back there
// and must leave no trace here.
func TestRandomTransactions(t *testing.T) {
	t.Parallel()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE random`)
	if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "random", Database: "random", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "random", api.StateSynchronized)
	conn := a.Connect(t, "random")
	run := 0
	testpg.Check(t, 25, func(r *rapid.T) {
		run++
		for range rapid.IntRange(1, 6).Draw(r, "transactions") {
			text := ""
			for range rapid.IntRange(1, 5).Draw(r, "statements") {
				text += randomStatement(r, fmt.Sprintf("r%d_", run)) + ";\n"
			}
			_, err := conn.PgConn().Exec(context.Background(), text).ReadAll()
			r.Logf("%s-- %v", text, err)
			if _, err := conn.Exec(context.Background(), "ROLLBACK"); err != nil {
				r.Fatal(err)
			}
		}
		if run%20 == 0 { // all that was made so far
			same(t, a, b, "random")
		}
		if err := follow(t, a, b, "random", time.Minute); err != nil {
			r.Fatal(err)
		}
	})
	same(t, a, b, "random")
}

func randomStatement(r *rapid.T, prefix string) string {
	name := func(label string) string {
		return prefix + rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, label)
	}
	column := func() string { return rapid.SampledFrom([]string{"v", "w", `"X y"`}).Draw(r, "column") }
	typ := rapid.SampledFrom([]string{"int", "text", "numeric(8,2)", "jsonb", "timestamptz", "int[]"}).Draw(r, "type")
	t, u, c, n := name("table"), name("other"), column(), rapid.IntRange(0, 9).Draw(r, "n")
	return rapid.SampledFrom([]string{
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (id int PRIMARY KEY, v text)", t),
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (id int, v text, w int)", t),
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s AS SELECT i AS id, md5(random()::text) AS v FROM generate_series(1, %d) i", t, n),
		fmt.Sprintf("ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s %s", t, c, typ),
		fmt.Sprintf("ALTER TABLE %s ADD COLUMN IF NOT EXISTS z%d float DEFAULT random()", t, n),
		fmt.Sprintf("ALTER TABLE %s ADD COLUMN IF NOT EXISTS g%d int GENERATED ALWAYS AS (id + %d) STORED", t, n, n),
		fmt.Sprintf("ALTER TABLE %s DROP COLUMN IF EXISTS %s CASCADE", t, c),
		fmt.Sprintf("ALTER TABLE %s RENAME TO %s", t, u),
		fmt.Sprintf("ALTER TABLE %s ALTER v TYPE varchar(%d) USING left(v::text, %d)", t, 40+n, 40+n),
		fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s_pkey", t, t),
		fmt.Sprintf("CREATE INDEX ON %s (id, v)", t), fmt.Sprintf("CREATE OR REPLACE VIEW %s_view AS SELECT id FROM %s", t, u),
		fmt.Sprintf("DROP TABLE IF EXISTS %s CASCADE", t), fmt.Sprintf("TRUNCATE %s", t),
		fmt.Sprintf("DO $$ BEGIN ALTER TABLE %s ADD k%d int DEFAULT %d; INSERT INTO %s (id) VALUES (%d); END $$", t, n, n, t, 50+n),
		fmt.Sprintf("INSERT INTO %s (id, v) SELECT i, repeat('x', i * 50) FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING", t, n, n*3),
		fmt.Sprintf("UPDATE %s SET v = %s.v || 'u' WHERE id %% 2 = %d", t, t, n%2), fmt.Sprintf("UPDATE %s SET id = id + 100 WHERE id = %d", t, n),
		fmt.Sprintf("DELETE FROM %s WHERE id = %d", t, n), fmt.Sprintf("DELETE FROM %s WHERE ctid = (SELECT min(ctid) FROM %s)", t, t),
		fmt.Sprintf("COMMENT ON TABLE %s IS 'n%d'", t, n), fmt.Sprintf("SAVEPOINT s; INSERT INTO %s (id) VALUES (77); ROLLBACK TO s", t),
	}).Draw(r, "statement")
}
