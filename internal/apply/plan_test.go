package apply

import (
	"context"
	"fmt"
	"github.com/jackc/pgx/v5"
	"slices"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// TestPinnedPlans: a set of changes is written by looking each key up by an index, whatever
// the statistics say (of a key of several columns it need not be the key's, where another
// index has one of them). They say here that the table has a row, as they do when a statement
// is prepared while a table is being filled, and the plan stays.
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
	c.Exec(t, db, `CREATE DOMAIN positive AS int CHECK (VALUE > 0)`, `CREATE DOMAIN numbers AS int[]`,
		`CREATE TYPE mood AS ENUM ('sad')`, `CREATE TYPE pair AS (a int, b int)`)
	for i, key := range []struct {
		types []string
		twice bool // a row is looked at once to be found, and again
	}{
		{[]string{"int"}, false}, {[]string{"bigint", "int"}, false}, {[]string{"text", "text"}, false}, {[]string{"uuid"}, false}, {[]string{"numeric", "date"}, false},
		{[]string{"varchar(5)"}, false}, {[]string{"name", "bool"}, false}, {[]string{"char(3)", "timestamptz"}, false}, {[]string{"positive"}, false},
		{[]string{"mood"}, true}, {[]string{"int[]"}, true}, {[]string{"numbers", "int"}, true}, {[]string{"oidvector"}, true}, {[]string{"int4range"}, true},
		{[]string{"pair"}, true}, {[]string{"bytea"}, false}, {[]string{"inet", "int"}, false}, {[]string{"money"}, false}, {[]string{"cidr"}, false}, {[]string{"int", "varchar(9)"}, false},
		{[]string{"int", "int", "int"}, false}, {[]string{"int", "mood", "int[]", "text"}, false},
	} {
		def := &pgoutput.Relation{Namespace: "public", Name: fmt.Sprintf("t%d", i)}
		var list, columns []string
		for n, typ := range key.types {
			name := fmt.Sprintf("k%d", n)
			def.Columns = append(def.Columns, pgoutput.RelationColumn{Name: name, Key: true})
			list, columns = append(list, name+" "+typ), append([]string{name}, columns...) // the index begins with the last
		}
		if len(columns) > 1 && key.types[0] != key.types[1] {
			slices.Reverse(columns)
		}
		def.Columns = append(def.Columns, pgoutput.RelationColumn{Name: "v"})
		c.Exec(t, db, fmt.Sprintf(`CREATE TABLE %s (%s, v int, PRIMARY KEY (%s))`, def.Name, strings.Join(list, ", "), strings.Join(columns, ", ")), `ANALYZE `+def.Name)
		conds := 0
		for _, plan := range setPlans(t, conn, def) {
			conds = strings.Count(plan, "Index Cond: ")
			if cond, _, _ := strings.Cut(plan[max(0, strings.Index(plan, "Index Cond: ")):], "\n"); conds != 1 || strings.Contains(plan, "Tid Scan") != (key.twice || len(columns) > 1) ||
				!strings.Contains(plan, def.Name+"_pkey") || strings.Count(cond, "t.k")+strings.Count(cond, "t_1.k")+strings.Count(cond, "(k") < len(key.types) ||
				strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Join") || strings.Contains(plan, "Sort") {
				t.Errorf("keys of %v:\n%s", key.types, plan)
			}
		}
		if len(columns) == 1 {
			continue
		}
		c.Exec(t, db, fmt.Sprintf(`CREATE INDEX ON %s (v, k1)`, def.Name), fmt.Sprintf(`CREATE INDEX ON %s (k1)`, def.Name))
		for _, plan := range setPlans(t, conn, def) {
			if strings.Count(plan, "Index Cond: ") != 1 || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Join") || strings.Contains(plan, "Sort") {
				t.Errorf("keys of %v, beside another index:\n%s", key.types, plan)
			}
		}
	}
}

// setPlans are those of an UPDATE and a DELETE of several rows, for whatever values.
func setPlans(t *testing.T, conn *pgx.Conn, def *pgoutput.Relation) (plans []string) {
	t.Helper()
	ctx := context.Background()
	a := &Applier{conn: conn, out: newWriter(conn.PgConn())}
	r := &relation{def: def, quoted: "public." + def.Name}
	found, err := a.lookUp(ctx, r)
	if err == nil {
		r.target, err = match(r, found)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []setKey{{verb: updated, sent: 1 << (len(def.Columns) - 1), rows: setRows}, {verb: deleted, rows: fewRows}} {
		sql, oids := a.held(r).sql(kind)
		if _, err := conn.PgConn().Prepare(ctx, "s", sql, oids); err != nil {
			t.Fatalf("%v\n%s", err, sql)
		}
		nulls := strings.TrimSuffix(strings.Repeat("NULL,", len(oids)), ",")
		plans = append(plans, strings.Join(testpg.Rows(t, conn, `EXPLAIN (COSTS OFF) EXECUTE s(`+nulls+`)`), "\n"))
		if err := conn.PgConn().Deallocate(ctx, "s"); err != nil {
			t.Fatal(err)
		}
	}
	return plans
}
