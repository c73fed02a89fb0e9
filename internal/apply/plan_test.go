package apply

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// TestPinnedPlans: a set of changes is written by looking each key up by an index, whatever
// the statistics say (of a key of several columns it need not be the key's). They say here that the table has a row, as they do when a statement is
// prepared while a table is being filled, and the plan stays.
func TestPinnedPlans(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	ctx := context.Background()
	conn, err := c.Server().Connect(ctx, postgres.Session{Database: db, Purpose: "test", Settings: Settings()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	a := &Applier{conn: conn}
	for i, key := range []struct{ first, second string }{
		{"int", ""}, {"bigint", "int"}, {"text", "text"}, {"uuid", ""}, {"numeric", "date"}, {"varchar(5)", ""}, {"name", "bool"}, {"char(3)", "timestamptz"},
		{"positive", ""}, {"mood", ""}, {"int[]", ""}, {"numbers", "int"}, {"oidvector", ""}, {"int4range", ""}, {"pair", ""}, {"bytea", ""}, {"inet", "int"}, {"money", ""},
	} {
		if i == 0 {
			c.Exec(t, db, `CREATE DOMAIN positive AS int CHECK (VALUE > 0)`, `CREATE DOMAIN numbers AS int[]`,
				`CREATE TYPE mood AS ENUM ('sad')`, `CREATE TYPE pair AS (a int, b int)`)
		}
		name, columns, list := fmt.Sprintf("t%d", i), []string{"k1"}, `k1 `+key.first
		def := &pgoutput.Relation{Namespace: "public", Name: name, Columns: []pgoutput.RelationColumn{{Name: "k1", Key: true}}}
		sets := uint64(1) << 1
		if key.second != "" {
			columns, list = append(columns, "k2"), list+`, k2 `+key.second
			def.Columns, sets = append(def.Columns, pgoutput.RelationColumn{Name: "k2", Key: true}), 1<<2
		}
		def.Columns = append(def.Columns, pgoutput.RelationColumn{Name: "v"})
		c.Exec(t, db, fmt.Sprintf(`CREATE TABLE %s (%s, v int, PRIMARY KEY (%s))`, name, list, strings.Join(columns, ", ")), `ANALYZE `+name)
		if key.second != "" {
			c.Exec(t, db, fmt.Sprintf(`CREATE INDEX ON %s (k2)`, name))
		}
		r := &relation{def: def, quoted: "public." + name}
		found, err := a.lookUp(ctx, r)
		if err == nil {
			r.target, err = match(r, found)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []setKey{{verb: updated, sent: sets, rows: setRows}, {verb: deleted, rows: fewRows}} {
			sql, oids := a.held(r).sql(kind)
			if _, err := conn.PgConn().Prepare(ctx, "s", sql, oids); err != nil {
				t.Errorf("keys of %v: %v\n%s", key, err, sql)
				continue
			}
			nulls := strings.TrimSuffix(strings.Repeat("NULL,", len(oids)), ",")
			plan := strings.Join(testpg.Rows(t, conn, `EXPLAIN (COSTS OFF) EXECUTE s(`+nulls+`)`), "\n")
			if strings.Count(plan, "Index Cond: ") != 1 || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Join") || strings.Contains(plan, "Sort") {
				t.Errorf("keys of %v: %s:\n%s", key, kind.verb, plan)
			}
			if err := conn.PgConn().Deallocate(ctx, "s"); err != nil {
				t.Fatal(err)
			}
		}
	}
}
