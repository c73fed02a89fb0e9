package schema

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
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
	c.Exec(t, from, "CREATE ROLE "+prefix+"agent SUPERUSER", `ALTER EVENT TRIGGER "!hawser_ddl" OWNER TO `+prefix+"agent")
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if indexRole(d.Roles, prefix+"agent") >= 0 {
		t.Error("a role that owns nothing but what is Hawser's is among those of the dump")
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

func TestDumpWithoutRoom(t *testing.T) {
	c := testpg.Shared(t)
	from := c.CreateDatabase(t)
	t.Setenv("TMPDIR", t.TempDir()+"/missing")
	_, err := TakeDump(t.Context(), c.Server(), from, DumpOptions{})
	for _, err := range []error{err, HasDumpDir()} {
		if p, ok := problem.As(err); !ok || p.Code != "dump-without-room" || !p.Retryable {
			t.Errorf("got %v", err)
		}
	}
	t.Setenv("TMPDIR", t.TempDir())
	if err := HasDumpDir(); err != nil {
		t.Error(err)
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

func TestDumpSeesItsSnapshot(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	db := c.CreateDatabase(t)
	c.Exec(t, db, "CREATE TABLE before (a int PRIMARY KEY)")
	conn := c.Connect(t, db)
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := testpg.Rows(t, conn, `SELECT pg_export_snapshot()`)[0]
	c.Exec(t, db, "CREATE TABLE after (a int PRIMARY KEY)", "CREATE MATERIALIZED VIEW also_after AS SELECT 1")
	d, err := TakeDump(ctx, c.Server(), db, DumpOptions{Snapshot: snapshot})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	for _, e := range d.Entries {
		if strings.Contains(e.SQL, "after") {
			t.Errorf("%s is younger than the snapshot", e.object())
		}
	}
	if len(d.Of(PhaseTable, 0)) != 1 {
		t.Errorf("the dump has %d entries of tables, want the primary key of one", len(d.Of(PhaseTable, 0)))
	}
	if _, err := TakeDump(ctx, c.Server(), db, DumpOptions{Snapshot: snapshot}); err == nil {
		t.Error("a dump was taken at a snapshot that is gone")
	}
}

// TestDumpBesideDDL: definitions that were changed since the snapshot are not taken for
// those of the snapshot. What touches no definition does not spoil a dump.
func TestDumpBesideDDL(t *testing.T) {
	t.Parallel()
	const setup = `
		CREATE SCHEMA s; CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT 'x', w e); CREATE INDEX i ON t (v);
		CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9); CREATE INDEX pv ON p (v);
		CREATE VIEW view AS SELECT id, v FROM t; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
		CREATE SEQUENCE q; CREATE MATERIALIZED VIEW m AS SELECT * FROM t; INSERT INTO t VALUES (1, 'a', 'a')`
	for sql, spoils := range map[string]bool{
		`DROP INDEX i`:                                                          true,
		`DROP INDEX pv`:                                                         true,
		`ALTER TABLE t RENAME v TO u`:                                           true,
		`ALTER TABLE t SET SCHEMA s`:                                            true,
		`ALTER TABLE t ALTER v SET DEFAULT 'y'`:                                 true,
		`ALTER TABLE p DETACH PARTITION p1`:                                     true,
		`CREATE OR REPLACE VIEW view AS SELECT id FROM t LIMIT 0`:               false, // refused: it would lose a column
		`CREATE OR REPLACE VIEW view AS SELECT id, v || 'x' AS v FROM t`:        true,
		`CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'`: true,
		`ALTER TYPE e RENAME VALUE 'a' TO 'c'`:                                  true,
		`ALTER SCHEMA s RENAME TO r`:                                            true,
		`TRUNCATE t`:                                                            false,
		`ANALYZE; INSERT INTO t VALUES (2)`:                                     false,
		`REFRESH MATERIALIZED VIEW m`:                                           false,
		`SELECT nextval('q')`:                                                   false,
		`CREATE TABLE new (id int PRIMARY KEY); DROP TABLE new; CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (19)`: false,
		`CREATE TEMP TABLE tmp (id serial PRIMARY KEY); ALTER TABLE tmp ADD c int; DROP TABLE tmp`:                           false,
		`BEGIN; ALTER TABLE t RENAME v TO u; DROP INDEX i; ROLLBACK`:                                                         false,
	} {
		t.Run(sql, func(t *testing.T) {
			t.Parallel()
			ctx, c := t.Context(), testpg.Shared(t)
			db := c.CreateDatabase(t)
			c.Exec(t, db, setup)
			conn := c.Connect(t, db)
			if _, err := conn.Exec(ctx, `CREATE TEMP TABLE mine (id int)`); err != nil {
				t.Fatal(err)
			}
			tx, err := c.Connect(t, db).BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background()) //nolint:errcheck // it only read
			if _, err := tx.Exec(ctx, `SELECT 1`); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(ctx, sql+`; DROP TABLE mine`); err != nil {
				t.Log(err)
			}
			err = untouched(ctx, tx, db)
			if p, ok := problem.As(err); ok != spoils || ok && p.Code != "schema-changed" || !ok && err != nil {
				t.Errorf("spoilt: %v, want %v", err, spoils)
			}
		})
	}
}

func TestDumpFailsWithTheToolsWords(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	db := c.CreateDatabase(t)
	run := tools{ctx: ctx, major: 14, environ: c.Server().Environ(db), object: "database x"}
	run.output("pg_dump", "--schema=no such schema")
	p := wantProblem(t, run.err, "schema-dump-failed")
	if !strings.Contains(p.Cause, "no matching schemas were found") || !p.Retryable {
		t.Errorf("problem is %+v", p)
	}
	run = tools{ctx: ctx, major: 99}
	run.output("pg_dump")
	if run.err == nil {
		t.Error("a pg_dump of PostgreSQL 99 was found")
	}
}

// TestPhases looks at where entries go that could go wrong.
func TestPhases(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	db, _ := loadZoo(t, c)
	d, err := TakeDump(ctx, c.Server(), db, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	find := func(kind, name string) Entry {
		t.Helper()
		i := slices.IndexFunc(d.Entries, func(e Entry) bool { return e.Kind == kind && e.Name == name })
		if i < 0 {
			t.Fatalf("no entry %s %s", kind, name)
		}
		return d.Entries[i]
	}
	for _, k := range []struct {
		kind, name string
		phase      Phase
		table      string // "" for none
	}{
		{"TABLE", "account", PhasePre, ""},
		{"COMMENT", `TABLE "account"`, PhasePre, "account"},
		{"ACL", `COLUMN "account"."name"`, PhasePre, "account"},
		{"SEQUENCE", "account_id_seq", PhasePre, "account"},
		{"TABLE ATTACH", "event_2024", PhasePre, "event_2024"},
		{"ROW SECURITY", "account", PhasePre, "account"},
		{"POLICY", "account own rows", PhasePre, "account"},
		{"POLICY", "note by_key", PhaseFinal, "note"}, // it needs a primary key
		{"COMMENT", `POLICY "own rows" ON "account"`, PhasePre, "account"},
		{"INDEX", "event_region", PhasePre, "event"},                        // of a partitioned table
		{"INDEX ATTACH", "event_2025_region_idx", PhaseFinal, "event_2025"}, // above the leaves
		{"CONSTRAINT", "event event_pk", PhasePre, "event"},
		{"CONSTRAINT", "event_2024 event_2024_pkey", PhasePre, "event_2024"}, // foreign keys refer to it and to its parent
		{"INDEX ATTACH", "event_2024_pkey", PhasePre, "event_2024"},
		{"FK CONSTRAINT", "note note_event_at_region_fkey", PhasePre, "note"},
		{"COMMENT", `INDEX "event_2024_region_idx"`, PhaseTable, "event_2024"},
		{"STATISTICS", "stats", PhaseTable, "account"},
		{"STATISTICS", "event_stats", PhasePre, "event"},
		{"STATISTICS", "z_stats", PhaseFinal, "z"},
		{"INDEX", "a_id", PhaseFinal, "a"},
		{"RULE", "grouped _RETURN", PhaseFinal, "grouped"},
		{"FUNCTION", "by_key()", PhaseFinal, ""}, // so does it
		{"CHECK CONSTRAINT", "note late check", PhaseFinal, "note"},
		{"TRIGGER", "account t 1", PhaseFinal, "account"},
		{"EVENT TRIGGER", "on ddl", PhaseFinal, ""},
	} {
		e := find(k.kind, k.name)
		table := uint32(0)
		if k.table != "" {
			table = d.Entries[slices.IndexFunc(d.Entries, func(e Entry) bool { return e.Name == k.table && isRelation(e.Kind) })].OID
		}
		if e.Phase != k.phase || e.Table != table {
			t.Errorf("%s is of phase %s and table %d, want %s and %d", e.object(), e.Phase, e.Table, k.phase, table)
		}
	}
	for i, e := range d.Entries {
		if e.ID != i+1 {
			t.Fatalf("entry %d has ID %d", i+1, e.ID)
		}
	}
	if r, fk, ev := find(KindRefresh, "a"), find(KindValidate, "note note_account_fkey"), find("EVENT TRIGGER", "on ddl"); r.ID <= find(KindRefresh, "z").ID ||
		find("INDEX", "a_id").ID <= r.ID || fk.ID <= find("FK CONSTRAINT", "note note_account_fkey").ID || ev.ID <= fk.ID {
		t.Error("the final phase is out of order")
	}
}

// TestDefaultPrivilegesComeEarly holds that commands which arrive while tables are
// being copied find them, if no object of the dump is made after them.
func TestDefaultPrivilegesComeEarly(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	from, to := c.CreateDatabase(t), c.CreateDatabase(t)
	c.Exec(t, from, "CREATE TABLE t (a int PRIMARY KEY)", "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pre := d.Of(PhasePre, 0)
	if last := pre[len(pre)-1]; last.Kind != "DEFAULT ACL" {
		t.Errorf("the last entry before the rows is %s, want the default privileges", last.object())
	}
	restore(ctx, t, c, to, d, nil)
	diff(t, text(t, c, from), text(t, c, to))
}
