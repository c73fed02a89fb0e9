package schema

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/testpg"
)

// dropOurs takes Hawser's own objects out of a database, so that what is left can
// be compared with a database that never had them.
const dropOurs = `
	DROP EVENT TRIGGER "!hawser_ddl";
	DROP PUBLICATION hawser_0123456789abcdef, hawser_1123456789abcdef;
	SET client_min_messages = warning;
	DROP SCHEMA hawser CASCADE`

func TestDumpCarriesEverything(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	from, prefix := loadZoo(t, c)
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The dump travels as JSON.
	wire, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(wire), "hawser.fence") || strings.Contains(string(wire), `"secret"`) {
		t.Error("the dump holds objects of Hawser's own, or a role's password")
	}
	d = &Dump{}
	if err := json.Unmarshal(wire, d); err != nil {
		t.Fatal(err)
	}
	to := c.CreateDatabase(t)
	restore(ctx, t, c, to, d, nil)
	c.Exec(t, from, dropOurs)
	diff(t, text(t, c, from), text(t, c, to))

	for _, role := range []string{"owner", "reader", `Odd "one"`, "policy", "mapped", "defaults"} {
		if indexRole(d.Roles, prefix+role) < 0 {
			t.Errorf("role %s%s is not among those of the dump", prefix, role)
		}
	}
	conn := c.Connect(t, to)
	got := testpg.Rows(t, conn, `SELECT relname FROM pg_class WHERE relkind = 'm' AND relispopulated ORDER BY 1`)
	if want := []string{"a", "by_pk", "mv_heapish", "z"}; !slices.Equal(got, want) {
		t.Errorf("filled materialized views are %v, want %v", got, want)
	}
	got = testpg.Rows(t, conn, `SELECT conname FROM pg_constraint WHERE NOT convalidated ORDER BY 1`)
	if want := []string{"late", "late check"}; !slices.Equal(got, want) {
		t.Errorf("constraints that are not valid are %v, want %v", got, want)
	}
	got = testpg.Rows(t, conn, `SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid`)
	if want := []string{"app.only_here"}; !slices.Equal(got, want) {
		t.Errorf("invalid indexes are %v, want %v", got, want)
	}
}

func TestDumpIsExecutableInAnyTransaction(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	from, _ := loadZoo(t, c)
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	to := c.CreateDatabase(t)
	conn := c.Connect(t, to)
	// One by one, each in the smallest call, and all of it in one transaction.
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, e := range d.Entries {
			if err := Apply(ctx, tx, []Entry{e}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Exec(t, from, dropOurs)
	diff(t, text(t, c, from), text(t, c, to))
	if got := testpg.Rows(t, conn, `SELECT current_setting('session_replication_role')`); got[0] != "origin" {
		t.Errorf("Apply left session_replication_role %s behind", got[0])
	}
}
