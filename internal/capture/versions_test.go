package capture

import (
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/testpg"
)

// TestGeneratedColumns: from 18 on a whole row identifies a row with its generated columns
// alone. A user's UPDATE passes, also where an older agent made the publication; what
// PostgreSQL refuses in any case is named.
func TestGeneratedColumns(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.StartVersion(t, testpg.Version(t, 18), nil)
	conn := c.Connect(t, c.CreateDatabase(t))
	database, all := conn.Config().Database, filter.Filter{}
	execute(t, conn, `CREATE TABLE stored (a int, s int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO stored VALUES (1);
		CREATE TABLE virtual (a int, v int GENERATED ALWAYS AS (a * 2)); CREATE TABLE keyed (a int PRIMARY KEY, v int GENERATED ALWAYS AS (a * 2)); INSERT INTO keyed VALUES (1)`)
	found, err := Check(ctx, c.Server(), database, all)
	if err != nil {
		t.Fatal(err)
	}
	named := ""
	for _, p := range found {
		if p.Code == "virtual-column-without-key" && p.Blocks() {
			named += p.Object
		}
	}
	if named != "table public.virtual" {
		t.Errorf("refused are %q", named)
	}
	for range 2 {
		if err := Install(ctx, conn, database, all); err != nil {
			t.Fatal(err)
		}
		execute(t, conn, `UPDATE stored SET a = a + 1; UPDATE keyed SET a = a + 1; CREATE TABLE IF NOT EXISTS later (LIKE stored INCLUDING ALL); UPDATE later SET a = 1`)
		execute(t, conn, `ALTER PUBLICATION "`+Object(database)+`" SET (publish_generated_columns = none)`)
	}
	if _, err := conn.Exec(ctx, `UPDATE virtual SET a = 1`); err == nil || !strings.Contains(err.Error(), "cannot update table") {
		t.Errorf("an UPDATE of a table with a virtual column and without a key ended with %v", err)
	}
}
