package agent_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// indexRows has the secondary have indexes as the applier makes them where passes over a
// table cost it too much.
func indexRows(t *testing.T, i *instance, sql ...string) {
	t.Helper()
	i.Exec(t, "shop", append([]string{`SET session_replication_role = replica; SET hawser.agent = on; SET default_transaction_read_only = off`,
		`CREATE OR REPLACE FUNCTION hawser.row_hash(record) RETURNS integer IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'hash_record'`}, sql...)...)
}

// rowIndexes are the names of those indexes, and of what they call.
func rowIndexes(t *testing.T, i *instance) []string {
	t.Helper()
	conn := i.Connect(t, "shop")
	defer conn.Close(context.Background())
	return testpg.Rows(t, conn, `SELECT relname FROM pg_class WHERE relname LIKE 'hawser|_row|_%' ESCAPE '|' OR relname LIKE '%row_hash%' UNION ALL SELECT proname FROM pg_proc WHERE proname = 'row_hash' ORDER BY 1`)
}

// unfinished leaves indexes behind of which CREATE INDEX CONCURRENTLY failed: one that is a
// partition's, and a unique one that new rows have to fit.
func unfinished(t *testing.T, primary *instance) {
	t.Helper()
	primary.Exec(t, "shop", `CREATE TABLE split (a int) PARTITION BY LIST (a); CREATE TABLE split1 PARTITION OF split DEFAULT; INSERT INTO split VALUES (0); CREATE TABLE whole (a int); INSERT INTO whole VALUES (1)`)
	conn := primary.Connect(t, "shop")
	defer conn.Close(context.Background())
	for _, sql := range []string{`CREATE UNIQUE INDEX CONCURRENTLY half ON kept (b)`, `CREATE INDEX CONCURRENTLY half1 ON split1 ((1 / a))`} {
		if _, err := conn.Exec(context.Background(), sql); err == nil {
			t.Fatalf("%s: want an error", sql)
		}
	}
	primary.Exec(t, "shop", `UPDATE split SET a = 1; CREATE INDEX ON split ((1 / a))`,
		`SET session_replication_role = replica; SET hawser.agent = on`, // as CREATE INDEX CONCURRENTLY is told: not at all
		`CREATE UNIQUE INDEX ready ON whole (a); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ready'::regclass`)
}

// TestRowIndexes: the applier's own indexes of tables without a key stand in the way of no
// command, are no difference, and are gone where a side is the primary, or has no link.
func TestRowIndexes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE kept (a int, b text); INSERT INTO kept SELECT i % 5, 'x' FROM generate_series(1, 20) i; CREATE TABLE changed (LIKE kept); INSERT INTO changed TABLE kept; CREATE TABLE pattern (LIKE kept); CREATE TABLE keyed (LIKE kept); CREATE TABLE named (LIKE kept);
		CREATE TABLE parent (a int, b text); CREATE TABLE child () INHERITS (parent); INSERT INTO child TABLE kept; CREATE TABLE dropped (LIKE kept)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	var made []string
	for _, name := range []string{"kept", "changed", "pattern", "keyed", "named", "child", "dropped"} {
		made = append(made, `CREATE INDEX hawser_row_`+name+` ON `+name+` (hawser.row_hash(ROW(a, b)))`)
	}
	indexRows(t, b, made...)
	proven(t, a, "shop")
	a.Exec(t, "shop", `ALTER TABLE changed ALTER b TYPE json USING to_json(b)`, `CREATE TABLE twin (LIKE pattern INCLUDING ALL) PARTITION BY LIST (a)`, `ALTER TABLE keyed ADD PRIMARY KEY (a)`,
		`CREATE INDEX hawser_row_named ON kept (b)`, `ALTER TABLE parent ALTER b TYPE json USING to_json(b)`, `ALTER TABLE dropped DROP b`,
		`UPDATE changed SET a = a + 1 WHERE a < 3; DELETE FROM child WHERE ctid IN (SELECT min(ctid) FROM child GROUP BY a); UPDATE kept SET b = NULL WHERE a = 1; DELETE FROM kept WHERE ctid IN (SELECT min(ctid) FROM kept GROUP BY a)`)
	same(t, a, b, "shop")
	proven(t, a, "shop")
	if got := rowIndexes(t, b); len(got) != 3 || got[0] != "hawser_row_kept" || got[1] != "hawser_row_named" { // that one is the user's
		t.Errorf("the secondary has %q", got)
	}

	unfinished(t, a)
	failover(t, b, "shop")
	testpg.Eventually(t, 30*time.Second, "the new primary has none", func() (bool, error) { return len(rowIndexes(t, b)) == 1, nil })
	b.Exec(t, "shop", `UPDATE kept SET b = 'new' WHERE a = 2`, `CREATE INDEX half ON kept (b); CREATE INDEX half1 ON split1 ((1 / a)); INSERT INTO whole VALUES (1)`)
	same(t, b, a, "shop")
	proven(t, b, "shop")
	// One that a person is making on the secondary is not of a former primary.
	within(t, a.Connect(t, "shop"), postgres.ByHand, `CREATE INDEX by_hand ON whole (a)`, `UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_hand'::regclass`)
	if err := errors.Join(a.PauseLink(ctx, "shop"), a.ResumeLink(ctx, "shop")); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	if got := testpg.Rows(t, a.Connect(t, "shop"), `SELECT FROM pg_class WHERE relname = 'by_hand'`); len(got) == 0 {
		t.Error("an index that a person is making on the secondary was dropped when it connected again")
	}

	indexRows(t, a, `CREATE INDEX hawser_row_kept ON kept (hawser.row_hash(ROW(a, b)))`)
	if _, err := b.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := rowIndexes(t, a); len(got) != 1 {
		t.Errorf("a database without a link has %q", got)
	}
}
