package schema_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/testpg"
)

// TestReplayRandomStrings sends strings of random statements, with transaction
// control that does not care for the borders between strings and functions that run
// several of them. Many fail on the primary; what it kept must be on the secondary.
func TestReplayRandomStrings(t *testing.T) {
	t.Parallel()
	t.Run("of few tables", func(t *testing.T) { randomStrings(t, 100, "", rapid.Custom(plainStatement), 9, 8) })
	t.Run("hostile", func(t *testing.T) { randomStrings(t, 12, hostileGround, rapid.Custom(hostileStatement), 3, 30) })
}

func plainStatement(t *rapid.T) string {
	table := rapid.SampledFrom([]string{"a", "b", `"C d"`}).Draw(t, "table")
	column := rapid.SampledFrom([]string{"x", "y", `"Z;"`}).Draw(t, "column")
	return rapid.SampledFrom([]string{
		"CREATE TABLE IF NOT EXISTS " + table + " (x int)",
		"CREATE TABLE " + table + " (x int)",
		"DROP TABLE IF EXISTS " + table,
		"CREATE TEMP TABLE IF NOT EXISTS t (x int)",
		"ALTER TABLE IF EXISTS " + table + " ADD COLUMN IF NOT EXISTS " + column + " text DEFAULT ';--'",
		"ALTER TABLE IF EXISTS " + table + " DROP COLUMN IF EXISTS " + column,
		"INSERT INTO " + table + " DEFAULT VALUES",
		"CREATE INDEX ON " + table + " (x)",
		"COMMENT ON TABLE " + table + " IS '" + column + "'",
		"ALTER TABLE IF EXISTS " + table + " RENAME TO e", "ALTER TABLE IF EXISTS e RENAME TO " + table,
		"CREATE TABLE IF NOT EXISTS " + table + " AS SELECT 1 AS x",
		"SELECT 1", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "SAVEPOINT s2", "ROLLBACK TO s", "RELEASE s", "RESET ALL",
	}).Draw(t, "statement")
}

// randomStrings plays strings of statements, so many of them at most, in databases that
// ground made. ROLE_ in it stands for the beginning of a role's name, which is the cluster's.
func randomStrings(t *testing.T, checks int, ground string, statement *rapid.Generator[string], statements, most int) {
	c := testpg.Shared(t)
	plain := rapid.Map(rapid.SliceOfN(statement, 1, statements), func(list []string) string { return strings.Join(list, ";\n") })
	inside := rapid.Map(rapid.SliceOfN(statement.Filter(func(s string) bool {
		return !strings.ContainsAny(s[:2], "BR") && !strings.HasPrefix(s, "COMMIT") && !strings.HasPrefix(s, "SA") && !strings.HasPrefix(s, "SELECT") && !strings.Contains(s, "$$")
	}), 1, 2*statements/3), func(list []string) string {
		half := len(list) / 2
		return fmt.Sprintf("DO $do$ BEGIN %s; BEGIN EXECUTE $x$%s$x$; EXCEPTION WHEN OTHERS THEN END; END $do$",
			strings.Join(append([]string{"NULL"}, list[:half]...), "; "), strings.Join(list[half:], "; "))
	})
	strs := rapid.SliceOfN(rapid.OneOf(plain, plain, inside), most/5, most)
	prefix := fmt.Sprintf("random%d_", rand.Uint32())
	roles := fmt.Sprintf("CREATE ROLE %[1]s1; CREATE ROLE %[1]s2; GRANT %[1]s2 TO %[1]s1", prefix)
	t.Cleanup(func() { dropRoles(t, c, roles) })
	c.Exec(t, "postgres", roles)
	p := newPair(t, c, c)
	p.exec(p.primary, "SET search_path = ''") // as on the secondary
	testpg.Check(t, checks, func(rt *rapid.T) {
		p.clear(prefix)
		sent := strs.Draw(rt, "strings")
		client, err := pgx.Connect(t.Context(), c.DSN(p.source))
		if err != nil {
			rt.Fatal(err)
		}
		p.exec(client, strings.ReplaceAll(ground, "ROLE_", prefix))
		if err := p.sync(); err != nil {
			rt.Fatal(err)
		}
		p.results = nil
		patient := rapid.Bool().Draw(rt, "patient") // a transaction outlives its errors
		for _, text := range sent {
			open := client.PgConn().TxStatus() == 'T'
			if patient && open {
				p.exec(client, "SAVEPOINT patience")
			}
			// An error is the primary's business.
			_, err := client.PgConn().Exec(t.Context(), strings.ReplaceAll(text, "ROLE_", prefix)).ReadAll()
			rt.Logf("%s-- %v", text, err)
			if patient && open && client.PgConn().TxStatus() == 'E' {
				_, _ = client.PgConn().Exec(t.Context(), "ROLLBACK TO patience").ReadAll() // it may be gone
			}
		}
		if err := client.Close(t.Context()); err != nil {
			rt.Fatal(err)
		}
		if _, err := capture.SweepDDL(t.Context(), p.primary); err != nil {
			rt.Fatal(err)
		}
		if err := p.sync(); err != nil {
			rt.Fatalf("%v\nexecuted: %s", err, p.executed())
		}
		want, got := shapes(t, p.primary), shapes(t, p.secondary)
		if d := difference(want, got); d != "" {
			rt.Fatalf("the sides differ:\n%s\nexecuted: %s", d, p.executed())
		}
	})
}

// difference lists what either side alone has.
func difference(want, got []string) string {
	var out strings.Builder
	for _, s := range want {
		if !slices.Contains(got, s) {
			fmt.Fprintf(&out, "primary:   %s\n", s)
		}
	}
	for _, s := range got {
		if !slices.Contains(want, s) {
			fmt.Fprintf(&out, "secondary: %s\n", s)
		}
	}
	return out.String()
}

// hostileGround is what hostileStatement speaks of. Every schema has a table a.
const hostileGround = `
	CREATE SCHEMA s1; CREATE SCHEMA "Ö s"; GRANT ALL ON SCHEMA public, s1, "Ö s" TO ROLE_1, ROLE_2;
	CREATE TABLE a (id int PRIMARY KEY, v text, w int); CREATE TABLE s1.a (id int, v text, w int); CREATE TABLE "Ö s".a (id int, v text, w int);
	CREATE TABLE "Ö s"."t;1" (id int, v text, w int) PARTITION BY LIST (id); CREATE TABLE b (id int, v text, w int);
	CREATE TYPE e AS ENUM ('x'); CREATE TYPE c AS (x int); CREATE DOMAIN s1.e AS int;
	INSERT INTO a VALUES (1, 'a', 1); INSERT INTO s1.a VALUES (1, 's1', 1); INSERT INTO "Ö s".a VALUES (1, 'Ö', 1);
	CREATE TABLE log (t text); CREATE FUNCTION heard() RETURNS event_trigger LANGUAGE plpgsql AS $f$ BEGIN INSERT INTO public.log VALUES (tg_tag); END $f$;
	CREATE FUNCTION adds() RETURNS event_trigger LANGUAGE plpgsql AS $f$ BEGIN IF tg_tag <> 'COMMENT' AND to_regclass('public.a') IS NOT NULL THEN EXECUTE 'COMMENT ON TABLE public.a IS ''heard'''; END IF; EXCEPTION WHEN OTHERS THEN END $f$;
	CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RETURN NEW; END $f$;
	CREATE FUNCTION run(text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = s1, public AS $f$ BEGIN EXECUTE $1; END $f$`

// hostileStatement is one whose meaning depends on role, search_path, temporary tables and
// what the same transaction made, renamed or dropped under the same names.
func hostileStatement(t *rapid.T) string {
	one := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	name := func(label string) string {
		return one(label, "a", "a", "b", "s1.a", `"Ö s".a`, `"Ö s"."t;1"`, "s1.b", `"B"`, "public.a")
	}
	bare := func(label string) string { return one(label, "a", "b", `"t;1"`, `"B"`) }
	a, b, n := name("table"), name("other"), rapid.IntRange(0, 5).Draw(t, "n")
	col, role, schema := one("column", "v", "w", `"X y"`), one("role", "ROLE_1", "ROLE_2"), one("schema", "public", "s1", `"Ö s"`)
	kind := func() string { return one("type", "int", "text", "e", "s1.e", "c", "bigint", "public.e[]") }
	return one("statement",
		"SET search_path = "+one("path", "s1, public", `"Ö s", s1`, "public, s1", "''", `"$user", public`, "pg_temp, s1"), "SET LOCAL search_path = s1", "RESET search_path",
		"SET ROLE "+role, "RESET ROLE", "SET LOCAL ROLE "+role, "SET SESSION AUTHORIZATION "+role, "RESET SESSION AUTHORIZATION", "RESET ALL", "DISCARD TEMP",
		"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "SAVEPOINT s2", "ROLLBACK TO s", "RELEASE s",
		fmt.Sprintf("CREATE TABLE %s (id int, v text, w int)", a), fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (id int PRIMARY KEY, v text)", a),
		fmt.Sprintf("CREATE TABLE %s (id serial, v %s)", a, kind()), fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING ALL)", a, b),
		fmt.Sprintf("CREATE TABLE %s (z int) INHERITS (%s)", a, b), fmt.Sprintf("CREATE TABLE %s PARTITION OF %s FOR VALUES IN (%d)", a, b, n),
		fmt.Sprintf("CREATE TABLE %s AS SELECT %d AS id, 'x' AS v", a, n), fmt.Sprintf("SELECT * INTO %s FROM %s", a, b), fmt.Sprintf("EXPLAIN ANALYZE CREATE TABLE %s AS SELECT * FROM %s", a, b),
		fmt.Sprintf("CREATE TEMP TABLE %s (id int, v text)", bare("temporary")), fmt.Sprintf("DROP TABLE IF EXISTS pg_temp.%s", bare("temporary")),
		fmt.Sprintf("DROP TABLE IF EXISTS %s, %s CASCADE", a, b), fmt.Sprintf("DROP TABLE IF EXISTS %s CASCADE; CREATE TABLE %s (v int, id int); INSERT INTO %s VALUES (1, %d)", a, a, a, n),
		fmt.Sprintf("ALTER TABLE %s RENAME TO swap; ALTER TABLE %s RENAME TO %s; ALTER TABLE swap RENAME TO %s", a, b, bare("name"), bare("name")),
		fmt.Sprintf("ALTER TABLE %s RENAME v TO x; ALTER TABLE %s RENAME w TO v; ALTER TABLE %s RENAME x TO w", a, a, a),
		"ALTER SCHEMA s1 RENAME TO swap; ALTER SCHEMA \"Ö s\" RENAME TO s1; ALTER SCHEMA swap RENAME TO \"Ö s\"",
		fmt.Sprintf("ALTER TABLE %s SET SCHEMA %s", a, schema), fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s %s", b, a, one("bound", fmt.Sprintf("FOR VALUES IN (%d)", n), "DEFAULT")),
		fmt.Sprintf("ALTER TABLE %s DETACH PARTITION %s", b, a), fmt.Sprintf("ALTER TABLE %s INHERIT %s", a, b), fmt.Sprintf("ALTER TABLE %s NO INHERIT %s", a, b),
		fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s", a, col, kind()), fmt.Sprintf("ALTER TABLE %s DROP COLUMN %s CASCADE", a, col), fmt.Sprintf("ALTER TABLE IF EXISTS %s ADD y%d int DEFAULT %d", a, n, n),
		fmt.Sprintf("ALTER TABLE %s ALTER w TYPE %s USING w::text::%s", a, one("type", "int", "text", "bigint"), one("type", "int", "text", "bigint")),
		fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT k%d CHECK (id < 100), ADD UNIQUE (id)", a, n), fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT k%d", a, n),
		fmt.Sprintf("ALTER TABLE %s ADD FOREIGN KEY (w) REFERENCES %s", a, b), fmt.Sprintf("ALTER TABLE %s ALTER id SET DEFAULT %d, ALTER v SET NOT NULL", a, n),
		fmt.Sprintf("ALTER TYPE e ADD VALUE IF NOT EXISTS 'y%d' BEFORE 'x'", n), fmt.Sprintf("ALTER TYPE public.e RENAME VALUE 'y%d' TO 'x'", n), "ALTER TYPE e RENAME TO e2", "ALTER TYPE e2 RENAME TO e",
		fmt.Sprintf("ALTER TYPE c ADD ATTRIBUTE y%d int CASCADE", n), "ALTER TYPE c RENAME ATTRIBUTE x TO z CASCADE", fmt.Sprintf("ALTER TYPE c DROP ATTRIBUTE IF EXISTS y%d CASCADE", n), "DROP TYPE IF EXISTS e CASCADE", "CREATE TYPE e AS ENUM ('x', 'z')",
		fmt.Sprintf("GRANT SELECT, INSERT ON %s TO %s WITH GRANT OPTION", a, role), fmt.Sprintf("REVOKE ALL ON %s FROM %s CASCADE", a, role), fmt.Sprintf("GRANT UPDATE ON ALL TABLES IN SCHEMA %s TO %s", schema, role), "GRANT SELECT (v) ON "+a+" TO CURRENT_USER",
		fmt.Sprintf("ALTER TABLE %s OWNER TO %s", a, one("owner", "ROLE_1", "ROLE_2", "CURRENT_USER", "SESSION_USER")), fmt.Sprintf("ALTER DEFAULT PRIVILEGES IN SCHEMA %s GRANT SELECT ON TABLES TO %s", schema, role),
		"ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC", fmt.Sprintf("REASSIGN OWNED BY %s TO %s", role, one("owner", "ROLE_1", "CURRENT_USER")), "DROP OWNED BY ROLE_2 CASCADE",
		fmt.Sprintf("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql SET search_path FROM CURRENT AS 'SELECT %d'", n), "DROP FUNCTION IF EXISTS f",
		fmt.Sprintf("CREATE OR REPLACE FUNCTION %s.g() RETURNS void LANGUAGE sql AS 'CREATE TABLE IF NOT EXISTS a (id int); ALTER TABLE a ADD IF NOT EXISTS q%d int; COMMENT ON TABLE a IS ''q%d'''", schema, n, n), fmt.Sprintf("SELECT %s.g()", schema), "SELECT g()",
		fmt.Sprintf("SELECT run('ALTER TABLE %s ADD r%d text; CREATE TABLE IF NOT EXISTS b (id int, r int); DROP TABLE IF EXISTS r%d')", bare("name"), n, n), fmt.Sprintf("CALL pg_catalog.nothing(); SELECT 'CREATE TABLE %s (x int)'", a),
		fmt.Sprintf("DO $$ BEGIN FOR i IN 1..2 LOOP EXECUTE format('ALTER TABLE %s ADD IF NOT EXISTS l%%s int', i); END LOOP; CREATE TABLE IF NOT EXISTS l (a int); INSERT INTO l VALUES (%d); END $$", a, n),
		fmt.Sprintf("CREATE OR REPLACE VIEW %s AS SELECT id, v FROM %s", one("view", "v", "s1.v", "a"), a), "DROP VIEW IF EXISTS v CASCADE", fmt.Sprintf("CREATE RULE r AS ON DELETE TO %s WHERE id = 99 DO INSTEAD NOTHING", a),
		fmt.Sprintf("CREATE INDEX ON %s (id, %s)", a, col), fmt.Sprintf("CREATE UNIQUE INDEX IF NOT EXISTS i%d ON %s (id)", n, a), fmt.Sprintf("DROP INDEX IF EXISTS i%d", n), fmt.Sprintf("ALTER INDEX i%d RENAME TO i%d", n, (n+1)%6), fmt.Sprintf("CLUSTER %s USING i%d", a, n),
		fmt.Sprintf("CREATE TRIGGER t%d BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION public.fire()", n, a), fmt.Sprintf("ALTER TABLE %s DISABLE TRIGGER t%d", a, n), fmt.Sprintf("CREATE POLICY p%d ON %s TO %s USING (id > %d)", n, a, role, n), fmt.Sprintf("ALTER TABLE %s ENABLE ROW LEVEL SECURITY", a),
		fmt.Sprintf("CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION public.%s()", one("function", "heard", "adds")), "DROP EVENT TRIGGER IF EXISTS mine", "ALTER EVENT TRIGGER mine DISABLE",
		fmt.Sprintf("INSERT INTO %s VALUES (%d, 'n')", a, n), fmt.Sprintf("INSERT INTO %s (id) VALUES (%d)", a, n), fmt.Sprintf("UPDATE %s SET id = id + 1", a), fmt.Sprintf("DELETE FROM %s WHERE id = %d", a, n), fmt.Sprintf("TRUNCATE %s CASCADE", a),
		fmt.Sprintf("COMMENT ON TABLE %s IS 'a;\n%d'", a, n), fmt.Sprintf("COMMENT ON COLUMN %s.%s IS 'c'", a, col), fmt.Sprintf("CREATE SCHEMA %s CREATE TABLE a (id int) CREATE VIEW v AS SELECT * FROM a", one("new", "s3", `"S 3"`, "AUTHORIZATION ROLE_1")), "DROP SCHEMA IF EXISTS s3 CASCADE",
		fmt.Sprintf("CREATE SEQUENCE %s.q; ALTER SEQUENCE %s.q OWNED BY %s.id", schema, schema, a), fmt.Sprintf("CREATE STATISTICS %s.x ON id, v FROM %s", schema, a))
}

// clear empties both databases, whatever state they are in.
func (p *pair) clear(prefix string) {
	empty := `DO $$ DECLARE n text; BEGIN
		FOR n IN SELECT evtname FROM pg_event_trigger WHERE evtname NOT LIKE '!%' LOOP EXECUTE format('DROP EVENT TRIGGER %I', n); END LOOP;
		FOR n IN SELECT rolname FROM pg_roles WHERE starts_with(rolname, '` + prefix + `') LOOP EXECUTE format('DROP OWNED BY %I CASCADE', n); END LOOP;
		FOR n IN SELECT nspname FROM pg_namespace WHERE nspname NOT IN ('hawser', 'information_schema') AND nspname !~ '^pg_' LOOP EXECUTE format('DROP SCHEMA %I CASCADE', n); END LOOP;
		END $$; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC; CREATE SCHEMA public`
	p.exec(p.primary, empty)
	if _, err := capture.SweepDDL(p.t.Context(), p.primary); err != nil {
		p.t.Fatal(err)
	}
	p.exec(p.primary, `SELECT pg_replication_slot_advance('`+p.source+`', pg_current_wal_lsn())`)
	p.exec(p.secondary, empty)
	p.results = nil
}

// shapes describes all objects of a database, and the rows of its tables.
func shapes(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	all := append(column(t, conn, described), column(t, conn, `SELECT format('schema %I %s %s', nspname, pg_get_userbyid(nspowner), nspacl) FROM pg_namespace
			WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
		UNION ALL SELECT format('rows %I.%I', n.nspname, c.relname) || query_to_xml(format('SELECT * FROM ONLY %I.%I t ORDER BY t::text', n.nspname, c.relname), true, true, '')::text
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('hawser', 'information_schema')
		UNION ALL SELECT format('clustered %s', indexrelid::regclass) FROM pg_index WHERE indisclustered
		UNION ALL SELECT format('statistics %s', pg_get_statisticsobjdef(oid)) FROM pg_statistic_ext`)...)
	return slices.DeleteFunc(all, func(s string) bool { return strings.Contains(s, "hawser") })
}
