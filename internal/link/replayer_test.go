package link

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"testing"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

// TestRefreshWhileCopying: a view that is filled while its tables are of different times
// is filled again when all are there, by whatever name it has then, and not where it is
// gone or to be empty by then.
func TestRefreshWhileCopying(t *testing.T) {
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	conn := c.Connect(t, db)
	ctx := context.Background()
	const id = "00000000000000bb"
	if err := errors.Join(catalog.MigrateDatabase(ctx, conn), catalog.Join(ctx, conn, id, "l")); err != nil {
		t.Fatal(err)
	}
	r := replayer{l: &link{rec: catalog.Link{ID: id}}}
	waiting := func(when string, want ...string) {
		t.Helper()
		entries, err := catalog.RowsEntries(ctx, conn, id)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.SQL)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q is left, want %q", when, got, want)
		}
	}
	refreshed := func(views ...string) {
		t.Helper()
		if err := r.whileCopying(ctx, conn, schema.Result{Refreshed: views}); err != nil {
			t.Fatal(err)
		}
	}
	c.Exec(t, db, `CREATE TABLE t (a int); CREATE MATERIALIZED VIEW "V'iew" AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW gone AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW emptied AS SELECT count(*) FROM t`)
	views := []string{`"public"."V'iew"`, `"public"."gone"`, `"public"."emptied"`}
	refreshed(views...)
	waiting("in a database that was never copied")
	if err := catalog.Reseed(ctx, conn, id, catalog.SeedTable{OID: 5000, Schema: "public", Name: "t"}); err != nil {
		t.Fatal(err)
	}
	refreshed(views...)
	refreshed(views...)
	waiting("while a table is copied", `REFRESH MATERIALIZED VIEW public."V'iew"`, `REFRESH MATERIALIZED VIEW public.gone`, `REFRESH MATERIALIZED VIEW public.emptied`)
	c.Exec(t, db, `ALTER MATERIALIZED VIEW "V'iew" RENAME TO renamed; DROP MATERIALIZED VIEW gone; CREATE MATERIALIZED VIEW gone AS SELECT count(*) FROM t`)
	if err := r.whileCopying(ctx, conn, schema.Result{Emptied: views[2:]}); err != nil {
		t.Fatal(err)
	}
	waiting("behind other commands", `REFRESH MATERIALIZED VIEW public.renamed`, "")
	if err := catalog.SetSeedingDone(ctx, conn, id); err != nil {
		t.Fatal(err)
	}
	refreshed(`"public"."renamed"`)
	waiting("when all is copied")
}

func TestNotesQuoteRoles(t *testing.T) {
	t.Parallel()
	l := &link{log: slog.New(slog.DiscardHandler)}
	l.note(schema.Result{Roles: []string{"My Role"}})
	if len(l.notes) != 1 || l.notes[0].Remedy != `ALTER ROLE "My Role" LOGIN PASSWORD '…';` {
		t.Errorf("notes are %v", l.notes)
	}
}
