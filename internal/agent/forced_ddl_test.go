package agent_test

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestRejoinAfterDDL: the new primary's schema changed before the old one rejoins, by
// commands that need the very rows that are to be repaired; and the first rejoin ends
// half way. The report does not have what the rejoin does. A table that lost its key can't
// be repaired, and is copied.
func TestRejoinAfterDDL(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `
		CREATE TABLE customer (id int PRIMARY KEY, name text); INSERT INTO customer SELECT i, 'c' FROM generate_series(1, 100) i;
		CREATE TABLE orders (id int PRIMARY KEY, customer int); INSERT INTO orders SELECT i, i FROM generate_series(1, 100) i;
		CREATE TABLE stamped (id int PRIMARY KEY, v text); INSERT INTO stamped SELECT i, 'v' FROM generate_series(1, 100) i;
		CREATE TABLE bulk (id int, v text);
		CREATE TABLE rekeyed (id int PRIMARY KEY, v text); INSERT INTO rekeyed SELECT i, 'v' FROM generate_series(1, 100) i;
		CREATE MATERIALIZED VIEW early AS SELECT name, count(*) FROM customer GROUP BY 1`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	a.Exec(t, "shop", `UPDATE customer SET name = 'of a' WHERE id <= 10; DELETE FROM customer WHERE id = 20; UPDATE stamped SET v = 'of a' WHERE id <= 10;
		DELETE FROM stamped WHERE id = 20; UPDATE rekeyed SET v = 'of a' WHERE id = 1`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO customer VALUES (101, 'of b'); INSERT INTO orders VALUES (101, 101); INSERT INTO stamped VALUES (101, 'of b')`,
		`ALTER TABLE orders ADD CONSTRAINT known FOREIGN KEY (customer) REFERENCES customer`,
		`CREATE MATERIALIZED VIEW late AS SELECT name, count(*) FROM customer GROUP BY 1`, `REFRESH MATERIALIZED VIEW early`,
		`ALTER TABLE stamped ADD COLUMN at timestamptz NOT NULL DEFAULT clock_timestamp()`,
		`ALTER TABLE rekeyed DROP COLUMN id`,
		`INSERT INTO bulk SELECT i, repeat('b', 300) FROM generate_series(1, 20000) i`) // more than arrives with the commands
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	d := breakRejoin(t, a)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	if _, remedy := a.awaitCause(t, api.StateSuspended, "repair-key-lost"); !strings.Contains(remedy, "hawser link resync shop --table ") {
		t.Errorf("the remedy is %s", remedy)
	}
	if err := a.ResyncLink(ctx, "shop", []string{"rekeyed"}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
	if again := report(t, a, "shop-term1.jsonl"); !reflect.DeepEqual(again, d) {
		t.Errorf("the report had %d changes, and has %d since the rejoin began anew", len(d), len(again))
	}
	for _, q := range []string{`SELECT * FROM early ORDER BY 1`, `SELECT * FROM late ORDER BY 1`, `SELECT convalidated FROM pg_constraint WHERE conname = 'known'`} {
		if want, got := testpg.Rows(t, b.Connect(t, "shop"), q), testpg.Rows(t, a.Connect(t, "shop"), q); !slices.Equal(got, want) {
			t.Errorf("%s: the primary has %q, the one that rejoined %q", q, want, got)
		}
	}
}

// breakRejoin has the agent of a diverged side end when it has taken rows away and not
// yet become a secondary. It returns the report as it was before.
func breakRejoin(t *testing.T, a *instance) (before []map[string]any) {
	t.Helper()
	release := hold(t, a, "postgres", "hawser.link")
	go func() { _ = a.RejoinLink(context.Background(), "shop") }()
	conn := a.Connect(t, "shop")
	testpg.Eventually(t, 30*time.Second, "rows are taken away", func() (bool, error) {
		return len(testpg.Rows(t, conn, `SELECT FROM customer WHERE id = 1`)) == 0, nil
	})
	before = report(t, a, "shop-term1.jsonl")
	a.stop()
	a.Exec(t, "postgres", `SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE application_name = 'hawser:catalog'`) // it waits for the lock still
	release()
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	return before
}
