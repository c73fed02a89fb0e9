package agent_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
)

// TestIdentityOfATableMadeByHand: a secondary that was the primary once has a publication,
// by which PostgreSQL refuses to change rows of tables without a replica identity, as one
// is that was made by hand.
func TestIdentityOfATableMadeByHand(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	for _, from := range []*instance{a, b} {
		if _, err := from.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	quiet := `SET session_replication_role = replica; SET hawser.agent = on; `
	a.Exec(t, "shop", quiet+`CREATE TABLE sneaky (a int); CREATE TABLE whole (a int); ALTER TABLE whole REPLICA IDENTITY FULL;
		CREATE TABLE by_index (a int NOT NULL, CONSTRAINT by_index_a UNIQUE (a)); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_a; SELECT hawser.keep_identity(ARRAY['sneaky'::regclass])`)
	change(t, b, `CREATE TABLE sneaky (a int); CREATE TABLE whole (a int); CREATE TABLE by_index (a int NOT NULL, CONSTRAINT by_index_a UNIQUE (a))`)
	identities := `SELECT c.relname || ' ' || c.relreplident::text || coalesce(' was ' || k.was::text, '') FROM pg_class c LEFT JOIN hawser.replica_identity k ON k.relid = c.oid
		WHERE c.relname IN ('sneaky', 'whole', 'by_index') ORDER BY 1`
	want := "[by_index i sneaky f was d whole f]"
	if got := fmt.Sprint(a.Rows(t, "shop", identities)); got != want {
		t.Fatalf("the primary's identities are %s", got)
	}
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	alike := func(when string) {
		t.Helper()
		equal(t, a, b, "shop")
		b.awaitState(t, "shop", api.StateSynchronized)
		if got := fmt.Sprint(b.Rows(t, "shop", identities)); got != want {
			t.Errorf("%s, the secondary's identities are %s", when, got)
		}
	}
	a.Exec(t, "shop", `INSERT INTO sneaky VALUES (1); UPDATE sneaky SET a = 2; INSERT INTO whole VALUES (1); UPDATE whole SET a = 2; INSERT INTO by_index VALUES (1); UPDATE by_index SET a = 2`)
	alike("after the resync")

	for i, mend := range []struct {
		name string
		do   func() error
	}{
		{"resume", func() error { return a.ResumeLink(ctx, "shop") }},
		{"resync", func() error { return a.ResyncLink(ctx, "shop", nil) }},
		{"resync of the table", func() error { return a.ResyncLink(ctx, "shop", []string{"sneaky"}) }},
	} {
		change(t, b, `ALTER TABLE sneaky REPLICA IDENTITY DEFAULT; ALTER TABLE by_index REPLICA IDENTITY DEFAULT`)
		a.Exec(t, "shop", fmt.Sprintf(`UPDATE sneaky SET a = %d; UPDATE by_index SET a = %[1]d`, i+3))
		b.awaitCause(t, api.StateSuspended, "statement-failed")
		if err := mend.do(); err != nil {
			t.Fatalf("%s: %v", mend.name, err)
		}
		alike("after " + mend.name)
	}
}
