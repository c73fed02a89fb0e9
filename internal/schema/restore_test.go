package schema

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

func TestApplyNamesTheEntryThatFails(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	for _, k := range []struct {
		name, code, object string
		phase              Phase
		entry              Entry
	}{
		{"a group", "already-there", `table "public"."there"`, PhasePre, Entry{Kind: "TABLE", Schema: "public", Name: "there", SQL: "CREATE TABLE there ()"}},
		{"one by one", "already-there", `index "public"."there"`, PhaseTable, Entry{Kind: "INDEX", Schema: "public", Name: "there", SQL: "CREATE INDEX there ON there (a)"}},
		{"extension", "extension-missing", `extension "nowhere"`, PhasePre, Entry{Kind: "EXTENSION", Name: "nowhere", SQL: "CREATE EXTENSION nowhere"}},
		{"role", "name-missing", `function f() in schema "public"`, PhasePre, Entry{Kind: "FUNCTION", Schema: "public", Name: "f()",
			SQL: "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION f() OWNER TO nobody_at_all"}},
		{"syntax", "not-supported", `table "public"."new"`, PhasePre, Entry{Kind: "TABLE", Schema: "public", Name: "new", SQL: "CREATE TABLE new (a int WITH FUTURE)"}},
		{"duplicates", "rows-violate", `constraint there pk in schema "public"`, PhaseTable, Entry{Kind: "CONSTRAINT", Schema: "public", Name: "there pk",
			SQL: "ALTER TABLE public.there ADD CONSTRAINT pk PRIMARY KEY (a)"}},
		{"orphans", "rows-violate", `foreign key there fk in schema "public"`, PhaseFinal, Entry{Kind: KindValidate, Schema: "public", Name: "there fk",
			SQL: "ALTER TABLE public.there VALIDATE CONSTRAINT fk"}},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			db := c.CreateDatabase(t)
			c.Exec(t, db, "CREATE TABLE there (a int)", "CREATE TABLE other (a int PRIMARY KEY)", "INSERT INTO there VALUES (1), (1)",
				"ALTER TABLE there ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES other NOT VALID")
			entries := []Entry{{Kind: "SCHEMA", Name: "before", SQL: "CREATE SCHEMA before"}, k.entry, {Kind: "SCHEMA", Name: "after", SQL: "CREATE SCHEMA after"}}
			for i := range entries {
				entries[i].Phase, entries[i].ID = k.phase, i+1
				entries[i].SQL = strings.Replace(entries[i].SQL, "TABLE there", "TABLE public.there", 1)
				entries[i].SQL = strings.Replace(entries[i].SQL, "ON there", "ON public.there", 1)
				entries[i].SQL = strings.ReplaceAll(entries[i].SQL, "FUNCTION f()", "FUNCTION public.f()")
			}
			conn := c.Connect(t, db)
			if k.name == "one by one" {
				c.Exec(t, db, "CREATE INDEX there_i ON there (a)", "ALTER INDEX there_i RENAME TO there_")
				entries[1].SQL = "CREATE INDEX there_ ON public.there (a)"
			}
			p := wantProblem(t, Apply(ctx, conn, entries), k.code)
			if p.Object != k.object {
				t.Errorf("object is %s, want %s", p.Object, k.object)
			}
			if got := testpg.Rows(t, conn, `SELECT nspname FROM pg_namespace WHERE nspname IN ('before', 'after')`); !slices.Equal(got, []string{"before"}) {
				t.Errorf("after the failure there are schemas %v, want that before it alone", got)
			}
			if got := testpg.Rows(t, conn, `SHOW search_path`); got[0] != `"$user", public` {
				t.Errorf("Apply left search_path %s behind", got[0])
			}
		})
	}
}

func TestApplyWaitsForNoLock(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	db := c.CreateDatabase(t)
	c.Exec(t, db, "CREATE TABLE busy (a int)")
	other, conn := c.Connect(t, db), c.Connect(t, db)
	tx, err := other.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE busy IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, "SET lock_timeout = '50ms'"); err != nil {
		t.Fatal(err)
	}
	entries := []Entry{{Kind: "INDEX", Schema: "public", Name: "i", Phase: PhaseTable, SQL: "CREATE INDEX i ON public.busy (a)"}}
	if p := wantProblem(t, Apply(ctx, conn, entries), "lock-held"); !p.Retryable {
		t.Error("a lock that is held is not worth another try")
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := Apply(ctx, conn, entries); err != nil {
		t.Error(err)
	}
}

func TestApplyInATransaction(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	db := c.CreateDatabase(t)
	conn := c.Connect(t, db)
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	good := []Entry{{Kind: "SCHEMA", Name: "good", Phase: PhasePre, SQL: "CREATE SCHEMA good"}}
	bad := append(slices.Clone(good), Entry{Kind: "SCHEMA", Name: "good", Phase: PhasePre, SQL: "CREATE SCHEMA good"})
	wantProblem(t, Apply(ctx, tx, bad), "already-there")
	// The transaction goes on: what failed was taken back alone.
	if err := Apply(ctx, tx, []Entry{{Kind: "SCHEMA", Name: "also", Phase: PhasePre, SQL: "CREATE SCHEMA also"}}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if got := testpg.Rows(t, conn, `SELECT nspname FROM pg_namespace WHERE nspname IN ('good', 'also')`); len(got) != 0 {
		t.Errorf("%v outlived the caller's transaction", got)
	}
}

func TestApplyNeedsReplicaMode(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	role := rolePrefix(t, c) + "weak"
	c.Exec(t, "postgres", "CREATE ROLE "+role)
	conn := c.Connect(t, c.CreateDatabase(t))
	if _, err := conn.Exec(ctx, "SET ROLE "+role); err != nil {
		t.Fatal(err)
	}
	p := wantProblem(t, Apply(ctx, conn, []Entry{{Kind: "SCHEMA", Name: "s", SQL: "CREATE SCHEMA s"}}), "not-superuser")
	if want := `ALTER ROLE "` + role + `" SUPERUSER;`; p.Remedy != want {
		t.Errorf("remedy is %s, want %s", p.Remedy, want)
	}
}

// TestApplyForAnotherSuperuser: what is a superuser's alone belongs to a role that is one
// on the primary and none here.
func TestApplyForAnotherSuperuser(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	role := rolePrefix(t, c) + "admin"
	c.Exec(t, "postgres", "CREATE ROLE "+role)
	conn := c.Connect(t, c.CreateDatabase(t))
	entry := func(kind, sql string) Entry {
		return Entry{Kind: kind, Name: "x", Phase: PhasePre, SQL: strings.ReplaceAll(sql, "ROLE", role)}
	}
	if err := Apply(ctx, conn, []Entry{
		entry("FUNCTION", "CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"),
		entry("EVENT TRIGGER", "CREATE EVENT TRIGGER x ON sql_drop EXECUTE FUNCTION public.e();\n\nALTER EVENT TRIGGER x OWNER TO ROLE;"),
		entry("FOREIGN DATA WRAPPER", "CREATE FOREIGN DATA WRAPPER x;\nALTER FOREIGN DATA WRAPPER x OWNER TO ROLE;"),
		entry("PUBLICATION", "CREATE PUBLICATION x FOR ALL TABLES;\nALTER PUBLICATION x OWNER TO ROLE;"),
	}); err != nil {
		t.Fatal(err)
	}
	got := testpg.Rows(t, conn, `SELECT (SELECT evtowner FROM pg_event_trigger WHERE evtname = 'x') = oid, (SELECT fdwowner FROM pg_foreign_data_wrapper WHERE fdwname = 'x') = oid,
		(SELECT pubowner FROM pg_publication) = oid, rolsuper FROM pg_roles WHERE rolname = $1`, role)
	if len(got) != 1 || got[0] != "t|t|t|f" {
		t.Errorf("the role owns them and is no superuser: %v", got)
	}
}

// TestTablesAreBuiltAtTheSameTime holds that the table phase of tables, partitions
// of one parent among them, can run on several connections.
func TestTablesAreBuiltAtTheSameTime(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	from, to := c.CreateDatabase(t), c.CreateDatabase(t)
	c.Exec(t, from, `CREATE TABLE p (id int, sub int, v text, PRIMARY KEY (id, sub)) PARTITION BY LIST (id)`, `CREATE INDEX ON p (v)`, `CREATE INDEX ON p (sub, v)`)
	for i := range 12 {
		c.Exec(t, from, fmt.Sprintf("CREATE TABLE p%d PARTITION OF p FOR VALUES IN (%d) PARTITION BY LIST (sub)", i, i))
		for j := range 3 {
			c.Exec(t, from, fmt.Sprintf("CREATE TABLE p%d_%d PARTITION OF p%d FOR VALUES IN (%d)", i, j, i, j))
		}
	}
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(ctx, c.Connect(t, to), d.Of(PhasePre, 0)); err != nil {
		t.Fatal(err)
	}
	work := make(chan uint32)
	var group sync.WaitGroup
	for range 4 {
		conn := c.Connect(t, to)
		group.Go(func() {
			for table := range work {
				if err := applyPatiently(t, conn, d.Of(PhaseTable, table)); err != nil {
					t.Errorf("table %d: %v", table, err)
				}
			}
		})
	}
	for _, table := range tablesOf(d) {
		work <- table
	}
	close(work)
	testpg.Returns(t, "all tables are restored", group.Wait)
	if err := Apply(ctx, c.Connect(t, to), d.Of(PhaseFinal, 0)); err != nil {
		t.Fatal(err)
	}
	if got := testpg.Rows(t, c.Connect(t, to), `SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid`); len(got) != 0 {
		t.Errorf("indexes %v are not valid", got)
	}
	diff(t, text(t, c, from), text(t, c, to))
}

// applyPatiently tries each entry again while a lock is held, as a caller must.
func applyPatiently(t *testing.T, conn *pgx.Conn, entries []Entry) error {
	for _, e := range entries {
		for {
			err := Apply(t.Context(), conn, []Entry{e})
			if p, ok := problem.As(err); ok && p.Retryable {
				continue
			}
			if err != nil {
				return err
			}
			break
		}
	}
	return nil
}
