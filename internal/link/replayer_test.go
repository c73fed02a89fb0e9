package link

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

// TestRefreshWhileCopying: a view that is filled while its tables are of different times
// is filled again when all are there, and not where it is gone or empty by then.
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
	views := []string{`"public"."V'iew"`, `"public"."gone"`, `"public"."emptied"`}
	if got, err := r.refreshAgain(ctx, conn, views); err != nil || len(got) > 0 {
		t.Fatalf("in a database that was never copied: %q, %v", got, err)
	}
	if err := catalog.Reseed(ctx, conn, id, catalog.SeedTable{OID: 5000, Schema: "public", Name: "t"}); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, db, `CREATE TABLE t (a int); CREATE MATERIALIZED VIEW "V'iew" AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW gone AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW emptied AS SELECT count(*) FROM t`)
	again, err := r.refreshAgain(ctx, conn, views)
	if err != nil || len(again) != len(views) {
		t.Fatalf("while a table is copied: %q, %v", again, err)
	}
	c.Exec(t, db, `INSERT INTO t VALUES (1); DROP MATERIALIZED VIEW gone; REFRESH MATERIALIZED VIEW emptied WITH NO DATA`)
	c.Exec(t, db, append([]string{`SET search_path = ''`}, again...)...)
	if got := testpg.Rows(t, conn, `SELECT count, (SELECT relispopulated FROM pg_class WHERE relname = 'emptied') FROM "V'iew"`)[0]; got != "1|f" {
		t.Errorf("the view holds %s", got)
	}
	if err := catalog.SetSeedingDone(ctx, conn, id); err != nil {
		t.Fatal(err)
	}
	if got, err := r.refreshAgain(ctx, conn, views); err != nil || len(got) > 0 {
		t.Errorf("when all is copied: %q, %v", got, err)
	}
}
