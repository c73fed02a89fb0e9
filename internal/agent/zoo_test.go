package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// state is all that two sides of a link must have in common: definitions, rows,
// contents of materialized views, sequences. Each line names its object.
func state(t *testing.T, i *instance, database string) []string {
	t.Helper()
	out := append(definitions(t, i, database), contents(t, i, database)...)
	slices.Sort(out)
	return out
}

// contents are the rows of tables and materialized views, and the sequences.
func contents(t *testing.T, i *instance, database string) (out []string) {
	t.Helper()
	conn := i.Connect(t, database)
	defer conn.Close(context.Background())
	named := func(sql string) []string {
		testpg.Rows(t, conn, `SELECT set_config('search_path', '', false)`)
		defer testpg.Rows(t, conn, `SELECT set_config('search_path', reset_val, false) FROM pg_settings WHERE name = 'search_path'`)
		return testpg.Rows(t, conn, sql)
	}
	for _, table := range named(`
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated
		AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'hawser')`) {
		out = append(out, "rows of "+table+": "+testpg.Rows(t, conn,
			`SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ONLY `+table+` t`)[0])
	}
	for _, sequence := range named(`
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND n.nspname <> 'hawser'`) {
		out = append(out, "sequence "+sequence+": "+testpg.Rows(t, conn, `SELECT last_value, is_called FROM `+sequence)[0])
	}
	return out
}

// definitions are the paragraphs of pg_dump's text, without what is Hawser's.
func definitions(t *testing.T, i *instance, database string) (out []string) {
	t.Helper()
	conn := i.Connect(t, database)
	defer conn.Close(context.Background())
	var version int
	if err := conn.QueryRow(context.Background(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	tool, err := postgres.Tool("pg_dump", version)
	if err != nil {
		t.Fatal(err)
	}
	text, err := testpg.Command(t, tool, "--schema-only", "--exclude-schema=hawser", "--dbname="+i.DSN(database)).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_dump: %v: %s", err, text)
	}
	for _, p := range strings.Split(string(text), "\n\n") {
		p = strings.TrimSpace(p)
		if p != "" && !strings.HasPrefix(p, "--") && !strings.HasPrefix(p, `\`) && !strings.Contains(p, "hawser") && !strings.Contains(p, " SUBSCRIPTION ") {
			out = append(out, p)
		}
	}
	return out
}

// difference tells what only one of two states has.
func difference(a, b []string) string {
	var out []string
	count := map[string]int{}
	for _, line := range a {
		count[line]++
	}
	for _, line := range b {
		count[line]--
	}
	for line, n := range count {
		switch {
		case n > 0:
			out = append(out, "primary only: "+line)
		case n < 0:
			out = append(out, "secondary only: "+line)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// same waits until the two sides have the same definitions, rows and sequences.
func same(t *testing.T, primary, secondary *instance, database string) {
	t.Helper()
	arrived(t, primary, secondary, database)
	testpg.Eventually(t, 20*time.Second, "both sides are the same", func() (bool, error) {
		if d := difference(following(state(t, primary, database)), following(state(t, secondary, database))); d != "" {
			return false, fmt.Errorf("\n%s", d)
		}
		return true, nil
	})
}

// following leaves out what a secondary has otherwise by design: triggers and rules of
// replication rest there.
func following(state []string) []string {
	return slices.DeleteFunc(state, func(line string) bool {
		return strings.Contains(line, "ENABLE ALWAYS ") || strings.Contains(line, "ENABLE REPLICA ") || strings.HasPrefix(line, "ALTER EVENT TRIGGER") || strings.Contains(line, "DISABLE TRIGGER replica") ||
			strings.HasPrefix(line, "CREATE RULE also")
	})
}

// arrived waits until all that is committed on the primary is visible on the
// secondary; a link that stopped fails the test with its cause.
func arrived(t *testing.T, primary, secondary *instance, database string) {
	t.Helper()
	if err := follow(t, primary, secondary, database, time.Minute); err != nil {
		t.Fatal(err)
	}
}

// follow waits until the secondary shows what the primary has committed by now. The
// error is the cause for which a link was suspended, or what was waited for.
func follow(t *testing.T, primary, secondary *instance, database string, within time.Duration) error {
	t.Helper()
	conn := primary.Connect(t, database)
	defer conn.Close(context.Background())
	want, err := frame.ParseLSN(testpg.Rows(t, conn, `SELECT pg_current_wal_insert_lsn()`)[0])
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(within)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		l, err := secondary.Link(context.Background(), database)
		switch {
		case err == nil && l.State == api.StateSuspended:
			return l.Cause
		case err == nil && l.State == api.StateSynchronized && l.Position.Visible >= want:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("not within %s at %s: the link is %s at %s: %v %v", within, want, l.State, l.Position.Visible, l.Cause, err)
		}
		<-time.After(wait)
	}
}

// samples are values of every built-in type that can be stored, as literals. The
// test fails where a type of the server's is missing.
var samples = map[string][]string{
	"bool": {"t", "f"}, "bytea": {`\x00ff`, ``, `\xdeadbeef`}, "char": {"a", "", `\\`}, "name": {"n", "", `"quoted"`},
	"int8": {"9223372036854775807", "-9223372036854775808"}, "int2": {"32767", "-32768"}, "int4": {"2147483647", "-2147483648", "0"},
	"int2vector": {"1 2 3", ""}, "oidvector": {"1 4294967295", ""}, "text": {"", `back\slash 'quote' "double"`, "ünï¢ödé \U0001F600\ttab\nline", `\N`, "NULL", "{}"},
	"oid": {"0", "4294967295"}, "tid": {"(0,1)", "(4294967295,65535)"}, "xid": {"7", "4294967295"}, "cid": {"3"}, "xid8": {"18446744073709551615"},
	"json": {`{"b":1,  "a":[null,"ü"]}`, `null`, `""`}, "jsonb": {`{"b":1,"a":[null,1.50,"ü"]}`, `null`, `[]`}, "jsonpath": {`$."a"[*]?(@ > 1)`},
	"xml": {`<a b="c">d</a>`, `plain &amp; text`}, "point": {"(1.5,-2)", "(Infinity,NaN)"}, "lseg": {"[(1,2),(3,4)]"}, "path": {"[(1,2),(3,4)]", "((1,2),(3,4))"},
	"box": {"(3,4),(1,2)"}, "polygon": {"((1,2),(3,4),(5,6))"}, "line": {"{1,2,3}"}, "circle": {"<(1,2),3>"},
	"float4": {"NaN", "Infinity", "-Infinity", "-0", "1.1754944e-38"}, "float8": {"NaN", "-Infinity", "0.1", "-0", "1.7976931348623157e+308", "5e-324"},
	"money": {"-12.34", "0"}, "macaddr": {"08:00:2b:01:02:03"}, "macaddr8": {"08:00:2b:01:02:03:04:05"}, "inet": {"192.168.1.5/24", "::1", "fe80::1/64"}, "cidr": {"10.0.0.0/8", "2001:db8::/32"},
	"aclitem": {"postgres=arwdDxt/postgres", "=r/postgres"}, "bpchar": {"pad   ", ""}, "varchar": {"", "v  "}, "date": {"infinity", "-infinity", "0044-03-15 BC", "2024-02-29"},
	"time": {"00:00:00", "24:00:00", "12:34:56.789012"}, "timetz": {"23:59:59.999999-12:34", "00:00+14"}, "timestamp": {"infinity", "-infinity", "2024-02-29 12:00:00.000001", "0044-03-15 12:00 BC"},
	"timestamptz": {"-infinity", "2024-02-29 12:00:00.000001+05:45", "294276-12-31 23:59:59.999999+00"}, "interval": {"1 mon -1 days +00:00:00.000001", "-178000000 years", "0"},
	"bit": {"1", "0"}, "varbit": {"", "1010101"}, "numeric": {"NaN", "Infinity", "-Infinity", "1.50", "0.000", "-1e-40", "123456789012345678901234567890.12345678901234567890"},
	"refcursor": {"c", ""}, "uuid": {"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}, "pg_lsn": {"FFFFFFFF/FFFFFFFF", "0/0"}, "tsvector": {"'a':1A 'b c':2,3B", ""}, "tsquery": {"'a' & !('b':*A | 'c' <2> 'd')", ""},
	"txid_snapshot": {"10:20:10,14,15"}, "pg_snapshot": {"10:20:10,14,15"},
	"regproc": {"now", "-"}, "regprocedure": {"abs(integer)", "0"}, "regoper": {"0"}, "regoperator": {"*(integer,integer)"}, "regclass": {"pg_class", "-"}, "regtype": {"integer[]", "-"},
	"regconfig": {"simple"}, "regdictionary": {"simple"}, "regnamespace": {"pg_catalog", "-"}, "regrole": {"postgres", "-"}, "regcollation": {`"C"`, "-"},
	"int4range": {"[1,10)", "empty", "(,)"}, "int8range": {"[1,)", "empty"}, "numrange": {"(1.50,2.5]", "[NaN,NaN]", "empty"}, "tsrange": {"[2024-01-01,infinity]", "(,)"}, "tstzrange": {"[2024-01-01 00:00+00,)", "empty"}, "daterange": {"[-infinity,2024-01-01)", "empty"},
	"int4multirange": {"{[1,3),[5,7)}", "{}"}, "int8multirange": {"{[1,)}"}, "nummultirange": {"{(1.0,2.0],[3,4]}"}, "tsmultirange": {"{[2024-01-01,2024-01-02)}"}, "tstzmultirange": {"{}"}, "datemultirange": {"{(,)}"},
}

// notStored are built-in types that take no input, so no table can be filled with them.
var notStored = []string{"pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "gtsvector"}

// everyType makes tables with a column of every built-in type and of its array, one
// with a key and one without, and rows of them.
func everyType(t *testing.T, i *instance, database string) (sql []string) {
	t.Helper()
	types := testpg.Rows(t, i.Connect(t, database), `SELECT typname FROM pg_type
		WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND typname <> ALL ($1) ORDER BY 1`, notStored)
	var columns []string
	for _, typ := range types {
		if len(samples[typ]) == 0 {
			t.Errorf("there is no sample of type %s", typ)
		}
		columns = append(columns, fmt.Sprintf(`"%[1]s" pg_catalog."%[1]s", "%[1]s s" pg_catalog."%[1]s"[]`, typ))
	}
	sql = append(sql, `CREATE TABLE keyed (id int PRIMARY KEY, `+strings.Join(columns, ", ")+`)`, `CREATE TABLE loose (LIKE keyed); ALTER TABLE loose ALTER id DROP NOT NULL`)
	for row := range 8 {
		values := []string{fmt.Sprint(row)}
		for _, typ := range types {
			list := samples[typ]
			one := "'" + strings.ReplaceAll(list[row%max(1, len(list))], "'", "''") + "'"
			cast := `::pg_catalog."` + typ + `"`
			values = append(values, one+cast, "ARRAY["+one+cast+", NULL, "+one+cast+"]")
		}
		sql = append(sql, `INSERT INTO keyed VALUES (`+strings.Join(values, ", ")+`)`)
	}
	return append(sql, `INSERT INTO keyed (id) VALUES (100)`, `INSERT INTO loose SELECT * FROM keyed`, `INSERT INTO loose SELECT * FROM loose`)
}

// everything is a database of what PostgreSQL has beside its types.
var everything = []string{
	`CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION btree_gist`,
	`CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s'); CREATE TYPE pair AS (a int, "B b" text); CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE TYPE span AS RANGE (subtype = float8);
	 CREATE DOMAIN moods AS mood[]; CREATE TYPE deep AS (p pair, m mood, ps pair[])`,
	`CREATE TABLE own (id positive PRIMARY KEY, m mood, p pair, d deep, s span, sm span_multirange, ms moods, h hstore, c citext UNIQUE, pa pair[]);
	 CREATE TABLE by_enum (k mood PRIMARY KEY, v int); CREATE TABLE by_citext (k citext PRIMARY KEY, v int); CREATE TABLE by_pair (k pair PRIMARY KEY, v int); CREATE TABLE by_range (k int4range PRIMARY KEY, v int); CREATE TABLE by_numeric (k numeric, l text COLLATE "C", PRIMARY KEY (l, k))`,
	`CREATE TABLE toast (id int PRIMARY KEY, n int, big text, other bytea); ALTER TABLE toast ALTER big SET STORAGE EXTERNAL; CREATE TABLE toast_loose (n int, big text, other text); ALTER TABLE toast_loose ALTER big SET STORAGE EXTERNAL`,
	`CREATE TABLE derived (a int, gone text, b int GENERATED ALWAYS AS (a * 2) STORED, also_gone int, id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, by_default int GENERATED BY DEFAULT AS IDENTITY (START 100 INCREMENT 5), s serial, c text DEFAULT 'c');
	 INSERT INTO derived (a, gone) SELECT i, 'x' FROM generate_series(1, 10) i; ALTER TABLE derived DROP gone, DROP also_gone; CREATE TABLE derived_loose (a int, gone int, b text GENERATED ALWAYS AS ('x' || a) STORED, n int GENERATED ALWAYS AS IDENTITY); ALTER TABLE derived_loose DROP gone`,
	`CREATE SCHEMA "Ünïcode schema ""q"""; CREATE TABLE "Ünïcode schema ""q"""."select from ""where""" ("order" int PRIMARY KEY, "ä ö" text, "'" int, "$1" int); CREATE TABLE "Ünïcode schema ""q"""."loose.table" ("a.b" int, "%s" text)`,
	`CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (extra int) INHERITS (parent); ALTER TABLE child ADD PRIMARY KEY (id); CREATE TABLE grandchild (more int) INHERITS (child)`,
	`CREATE TABLE part (id int, at date, v text) PARTITION BY RANGE (at); CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (MINVALUE) TO ('2024-01-01') PARTITION BY LIST (id); CREATE TABLE part_a1 PARTITION OF part_a FOR VALUES IN (1, 2, NULL) PARTITION BY HASH (v);
	 CREATE TABLE part_a1x PARTITION OF part_a1 FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE part_a1y PARTITION OF part_a1 FOR VALUES WITH (MODULUS 2, REMAINDER 1); CREATE TABLE part_a2 PARTITION OF part_a DEFAULT; CREATE TABLE part_b (v text, dropped int, at date, id int); ALTER TABLE part_b DROP dropped; ALTER TABLE part ATTACH PARTITION part_b FOR VALUES FROM ('2024-01-01') TO (MAXVALUE)`,
	`CREATE TABLE fired (what text); CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.fired VALUES (TG_NAME || ' ' || TG_OP); RETURN NULL; END $$; CREATE TABLE triggered (id int PRIMARY KEY, v int);
	 CREATE TRIGGER plain AFTER INSERT OR UPDATE OR DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION fire(); CREATE TRIGGER always AFTER INSERT OR UPDATE OR DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION fire(); CREATE TRIGGER replica AFTER INSERT OR UPDATE OR DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION fire();
	 ALTER TABLE triggered ENABLE ALWAYS TRIGGER always, ENABLE REPLICA TRIGGER replica`,
	`CREATE TABLE ruled (id int PRIMARY KEY); CREATE TABLE ruled_log (id int); CREATE RULE also AS ON INSERT TO ruled DO ALSO INSERT INTO ruled_log VALUES (new.id); ALTER TABLE ruled ENABLE ALWAYS RULE also`,
	`CREATE TABLE uniq (id int PRIMARY KEY, k int UNIQUE DEFERRABLE INITIALLY DEFERRED, l int UNIQUE); CREATE TABLE refers (id int PRIMARY KEY, k int REFERENCES uniq (id) DEFERRABLE INITIALLY DEFERRED, self int REFERENCES refers ON DELETE CASCADE);
	 CREATE TABLE excluded (room int, during tsrange, EXCLUDE USING gist (room WITH =, during WITH &&)); CREATE TABLE only_deferrable_key (id int PRIMARY KEY DEFERRABLE, v int)`,
	`CREATE TABLE no_key (a int, b text, f float8); CREATE TABLE no_columns (); CREATE TABLE one_null (a int); CREATE TABLE ident_nothing (a int); ALTER TABLE ident_nothing REPLICA IDENTITY NOTHING;
	 CREATE TABLE ident_index (a int NOT NULL, b text); CREATE UNIQUE INDEX ident_index_a ON ident_index (a); ALTER TABLE ident_index REPLICA IDENTITY USING INDEX ident_index_a; CREATE TABLE ident_full (a int PRIMARY KEY, b text); ALTER TABLE ident_full REPLICA IDENTITY FULL`,
	`CREATE VIEW seen AS SELECT id, v FROM parent WITH CHECK OPTION; CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM parent; CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS a WITH NO DATA; CREATE SEQUENCE "Free Sequence" INCREMENT -3 MINVALUE -1000 MAXVALUE 50 CYCLE; CREATE UNLOGGED TABLE unlogged (a int PRIMARY KEY)`,
	`CREATE ROLE zoo_owner; CREATE ROLE zoo_reader; CREATE ROLE zoo_member IN ROLE zoo_reader; GRANT CREATE ON SCHEMA public TO zoo_owner; CREATE TABLE owned (a int PRIMARY KEY, secret text); ALTER TABLE owned OWNER TO zoo_owner; GRANT SELECT ON owned TO zoo_reader WITH GRANT OPTION; GRANT UPDATE (secret) ON owned TO zoo_member;
	 ALTER TABLE owned ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY p ON owned FOR SELECT TO zoo_reader USING (a > 1); ALTER DEFAULT PRIVILEGES FOR ROLE zoo_owner GRANT SELECT ON TABLES TO zoo_reader; COMMENT ON TABLE owned IS 'it''s owned'; COMMENT ON COLUMN owned.a IS 'ä'; CREATE STATISTICS st (dependencies) ON a, secret FROM owned`,
	`CREATE FUNCTION cost(int, VARIADIC text[] DEFAULT '{}') RETURNS TABLE (x int) LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp COST 7 AS 'SELECT 1'; CREATE PROCEDURE proc(INOUT a int) LANGUAGE plpgsql AS 'BEGIN a := a + 1; END'; CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0'); CREATE OPERATOR <+> (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int)`,
}

// changes are run on whichever side is the primary; :n is the number of the round.
var changes = []string{
	`UPDATE keyed SET id = id + 1000 * :n WHERE id = 3; UPDATE keyed k SET text = k.text || ':n', "numeric s" = NULL, float8 = 'NaN', "int4multirange" = '{}' WHERE id % 2 = 0; DELETE FROM keyed WHERE id = 4 + :n; INSERT INTO keyed (id, name, "name s") SELECT 200 + :n, 'x', '{}'`,
	`INSERT INTO keyed (id, "numrange", "timestamptz s", bytea, "text s") SELECT 300 + :n + id, NULL, "timestamptz s", bytea, "text s" FROM keyed WHERE id BETWEEN 0 AND 2 ON CONFLICT DO NOTHING`,
	`DELETE FROM loose WHERE ctid IN (SELECT min(ctid) FROM loose GROUP BY id) AND id IN (0, 1, :n); UPDATE loose SET text = 'changed :n' WHERE ctid IN (SELECT max(ctid) FROM loose GROUP BY id); UPDATE loose SET int4 = NULL, "int4 s" = NULL WHERE id = 2 + :n; INSERT INTO loose (id) VALUES (NULL), (:n)`,
	`INSERT INTO own VALUES (:n, 'sad', (1, 'x'), ROW(ROW(2, NULL), 'ok', ARRAY[ROW(3, 'y,"z"')::pair]), '[1.5,2.5)', '{[1,2),[3,4)}', '{ok,it''s}', 'a=>1, "b c"=>NULL', 'MiXed:n', ARRAY[ROW(NULL, NULL)::pair]), (:n + 10, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL); UPDATE own SET m = 'it''s', h = h || 'k=>:n', p.a = 7 WHERE id = :n; UPDATE own SET c = 'mIXED:n' WHERE id = :n; UPDATE own SET id = id + 50 WHERE id = :n + 10`,
	`INSERT INTO by_enum SELECT m, :n FROM unnest(enum_range(NULL::mood)) m ON CONFLICT (k) DO UPDATE SET v = :n; DELETE FROM by_enum WHERE k = 'ok'; INSERT INTO by_citext VALUES ('Key:n', 1), ('OTHER:n', 1); UPDATE by_citext SET k = 'kEY:n', v = 2 WHERE k = 'key:n'; DELETE FROM by_citext WHERE k = 'other:n';
	 INSERT INTO by_pair VALUES ((:n, 'a'), 1), ((:n, 'b'), 1); UPDATE by_pair SET v = 2 WHERE k = (:n, 'a')::pair; DELETE FROM by_pair WHERE k = (:n, 'b')::pair; INSERT INTO by_range VALUES ('[:n,10)', 1), ('empty', 1) ON CONFLICT (k) DO UPDATE SET v = 10 + :n; INSERT INTO by_numeric VALUES (1.0, 'x:n'), ('NaN', 'x:n'); UPDATE by_numeric SET k = 1.000 WHERE k = 1.0 AND l = 'x:n'; DELETE FROM by_numeric WHERE k = 'NaN'`,
	`INSERT INTO toast SELECT i + 10 * :n, i, repeat(md5(i::text), 1000), decode(repeat(md5(i::text), 500), 'hex') FROM generate_series(1, 5) i; UPDATE toast SET n = n + 1; UPDATE toast SET id = id + 5 WHERE id = 10 * :n + 1; UPDATE toast SET other = NULL WHERE id = 10 * :n + 2; UPDATE toast SET big = big || 'x' WHERE id = 10 * :n + 3; DELETE FROM toast WHERE id = 10 * :n + 4;
	 INSERT INTO toast_loose SELECT i, repeat(md5(i::text), 1000), repeat('y', 100000) FROM generate_series(1, 5) i; UPDATE toast_loose SET n = n + 1; UPDATE toast_loose SET big = '' WHERE n = 3; DELETE FROM toast_loose WHERE n = 4`,
	`INSERT INTO derived (a) VALUES (:n), (NULL); INSERT INTO derived (a, id, by_default) OVERRIDING SYSTEM VALUE VALUES (1, 1000 * :n, 7); UPDATE derived SET a = a + 1; UPDATE derived SET id = DEFAULT WHERE id = 2 * :n; DELETE FROM derived WHERE id = 1; INSERT INTO derived_loose (a) VALUES (:n), (:n); UPDATE derived_loose SET a = 5 WHERE ctid = (SELECT min(ctid) FROM derived_loose); UPDATE derived_loose SET n = DEFAULT WHERE a = 5; DELETE FROM derived_loose WHERE a = :n`,
	`INSERT INTO "Ünïcode schema ""q"""."select from ""where""" VALUES (:n, 'ü', 1, 2), (:n + 10, NULL, NULL, NULL); UPDATE "Ünïcode schema ""q"""."select from ""where""" SET "order" = "order" + 100 WHERE "order" = :n; INSERT INTO "Ünïcode schema ""q"""."loose.table" VALUES (:n, '%d'), (:n, '%d'); DELETE FROM "Ünïcode schema ""q"""."loose.table" WHERE ctid = (SELECT min(ctid) FROM "Ünïcode schema ""q"""."loose.table")`,
	`INSERT INTO parent VALUES (:n, 'p'); INSERT INTO child VALUES (:n, 'c', 1); INSERT INTO grandchild VALUES (:n, 'g', 1, 1), (:n, 'g', 1, 1); UPDATE parent SET v = v || 'u'; DELETE FROM ONLY grandchild WHERE ctid = (SELECT min(ctid) FROM ONLY grandchild); TRUNCATE ONLY parent; INSERT INTO parent VALUES (7, 'after')`,
	`INSERT INTO part VALUES (1, '2023-05-05', 'a'), (NULL, '2023-06-06', 'b'), (9, '2020-01-01', 'c'), (:n, '2025-01-01', 'd'); UPDATE part SET at = '2024-06-06' WHERE v = 'a'; UPDATE part SET id = 2, v = 'moved' WHERE v = 'c'; DELETE FROM part WHERE v = 'b'`,
	`CREATE TABLE part_c:n (LIKE part); INSERT INTO part_c:n VALUES (5, '2030-0:n-05', 'attached'); ALTER TABLE part DETACH PARTITION part_b; ALTER TABLE part ATTACH PARTITION part_c:n FOR VALUES FROM ('2030-0:n-01') TO ('2030-0:n-28'); UPDATE part SET v = 'in c' WHERE v = 'attached'`,
	`ALTER TABLE part DETACH PARTITION part_c:n CONCURRENTLY`, `UPDATE part_c:n SET id = NULL`, `ALTER TABLE part_b RENAME TO part_b_old; CREATE TABLE part_b PARTITION OF part FOR VALUES FROM ('2024-01-01') TO ('2026-01-01'); INSERT INTO part SELECT id, at, v FROM part_b_old WHERE at < '2026-01-01'; DROP TABLE part_b_old`,
	`INSERT INTO triggered VALUES (:n, 1), (:n + 10, 1); UPDATE triggered SET v = v + 1; DELETE FROM triggered WHERE id = :n; INSERT INTO ruled VALUES (:n)`,
	`INSERT INTO uniq VALUES (10 * :n + 1, 10 * :n + 1, 10 * :n + 1), (10 * :n + 2, 10 * :n + 2, 10 * :n + 2); UPDATE uniq SET k = 20 * :n + 3 - k + 0 WHERE k > 10 * :n; UPDATE uniq SET l = -l WHERE id = 10 * :n + 1; UPDATE uniq SET l = 10 * :n + 1 WHERE id = 10 * :n + 2; UPDATE uniq SET l = 10 * :n + 2 WHERE id = 10 * :n + 1`,
	`INSERT INTO refers VALUES (10 * :n, 500 * :n, NULL), (10 * :n + 1, NULL, 10 * :n); INSERT INTO uniq VALUES (500 * :n, 500 * :n, 500 * :n); DELETE FROM refers WHERE id = 10 * :n; INSERT INTO excluded VALUES (1, '[202:n-01-01, 202:n-02-01)'), (1, '[202:n-02-01, 202:n-03-01)'); UPDATE excluded SET during = '[203:n-01-01,203:n-02-01)' WHERE during @> timestamp '202:n-01-15'; DELETE FROM excluded WHERE during @> timestamp '202:n-02-15'; INSERT INTO only_deferrable_key VALUES (:n, 1), (:n + 10, 1); UPDATE only_deferrable_key SET v = 2; DELETE FROM only_deferrable_key WHERE id = :n`,
	`INSERT INTO no_key VALUES (1, 'same', 'NaN'), (1, 'same', 'NaN'), (NULL, NULL, NULL), (NULL, NULL, NULL), (0, '', '-0'), (0, '', '0'); DELETE FROM no_key WHERE ctid = (SELECT min(ctid) FROM no_key WHERE b = 'same'); DELETE FROM no_key WHERE ctid = (SELECT min(ctid) FROM no_key WHERE a IS NULL); UPDATE no_key SET b = NULL WHERE f::text = '-0'; DELETE FROM no_key WHERE f::text = '0'; UPDATE no_key SET a = a + 1`,
	`INSERT INTO one_null VALUES (NULL), (NULL), (:n); DELETE FROM one_null WHERE ctid = (SELECT min(ctid) FROM one_null WHERE a IS NULL); UPDATE one_null SET a = 9 WHERE ctid = (SELECT max(ctid) FROM one_null WHERE a IS NULL); INSERT INTO ident_nothing VALUES (:n), (:n); UPDATE ident_nothing SET a = 5 WHERE ctid = (SELECT min(ctid) FROM ident_nothing); INSERT INTO ident_index VALUES (:n, 'i'), (:n + 10, 'i'); UPDATE ident_index SET a = a + 100, b = NULL WHERE a = :n; DELETE FROM ident_index WHERE a = :n + 10; INSERT INTO ident_full VALUES (:n, NULL), (:n + 10, 'f'); UPDATE ident_full SET a = a + 100; DELETE FROM ident_full WHERE b = 'f'`,
	`SELECT nextval('"Free Sequence"') FROM generate_series(1, 7); SELECT setval('derived_s_seq', 1000 * :n, false); ALTER SEQUENCE "Free Sequence" CACHE 5; REFRESH MATERIALIZED VIEW counted; INSERT INTO unlogged VALUES (:n); INSERT INTO owned VALUES (:n, 's'), (:n + 10, 's'); UPDATE owned SET secret = NULL; TRUNCATE toast_loose, one_null RESTART IDENTITY; INSERT INTO toast_loose VALUES (:n, '', NULL)`,
	`BEGIN; INSERT INTO one_null VALUES (77); SAVEPOINT a; INSERT INTO one_null VALUES (78); ROLLBACK TO a; INSERT INTO one_null VALUES (79); SAVEPOINT b; DELETE FROM one_null WHERE a = 77; RELEASE b; COMMIT`,
	`BEGIN; INSERT INTO one_null VALUES (1000 * :n); SAVEPOINT x; INSERT INTO one_null VALUES (1); ROLLBACK TO x; CREATE TABLE prepared:n (a int); INSERT INTO prepared:n VALUES (1); PREPARE TRANSACTION 'zoo:n'`, `INSERT INTO one_null VALUES (-1)`, `COMMIT PREPARED 'zoo:n'`, `BEGIN; INSERT INTO one_null VALUES (666); PREPARE TRANSACTION 'never:n'`, `ROLLBACK PREPARED 'never:n'`,
	`VACUUM FULL toast`, `CLUSTER keyed USING keyed_pkey`, `ANALYZE`,
}

// TestEverythingArrives has a database of everything that PostgreSQL stores copied
// and changed, in both directions.
func TestEverythingArrives(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE zoo`)
	a.Exec(t, "zoo", everyType(t, a, "zoo")...)
	a.Exec(t, "zoo", everything...)
	a.Exec(t, "zoo", `ALTER TABLE keyed CLUSTER ON keyed_pkey`) // CLUSTER sets it too, and fires no event trigger
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "zoo", Database: "zoo", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	mutate(t, a, 1) // while it is copied
	b.awaitState(t, "zoo", api.StateSynchronized)
	same(t, a, b, "zoo")
	mutate(t, a, 2)
	same(t, a, b, "zoo")
	want := append(sequences(t, a, "zoo"), enabled(t, a)...)
	if _, err := b.FailoverLink(ctx, "zoo", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	if d := difference(want, append(sequences(t, b, "zoo"), enabled(t, b)...)); d != "" {
		t.Errorf("sequences and triggers after the failover:\n%s", d)
	}
	a.awaitState(t, "zoo", api.StateSynchronized)
	mutate(t, b, 3)
	same(t, b, a, "zoo")
}

func sequences(t *testing.T, i *instance, database string) []string {
	return slices.DeleteFunc(state(t, i, database), func(line string) bool { return !strings.HasPrefix(line, "sequence ") })
}

// enabled is when each trigger and rule fires.
func enabled(t *testing.T, i *instance) []string {
	return testpg.Rows(t, i.Connect(t, "zoo"), `SELECT 'trigger ' || tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal AND tgname NOT LIKE 'hawser%'
		UNION ALL SELECT 'rule ' || rulename, ev_enabled FROM pg_rewrite WHERE oid >= 16384`)
}

func mutate(t *testing.T, i *instance, round int) {
	t.Helper()
	conn := i.Connect(t, "zoo")
	defer conn.Close(context.Background())
	for _, sql := range changes {
		_, err := conn.PgConn().Exec(context.Background(), strings.ReplaceAll(sql, ":n", fmt.Sprint(round))).ReadAll()
		var pg *pgconn.PgError
		if errors.As(err, &pg) {
			t.Fatalf("round %d: %.200s: %v: %s", round, sql, err, pg.Detail)
		}
	}
}

// TestTableWithoutColumns has rows of tables that have none, or none that is sent.
func TestTableWithoutColumns(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE before (); INSERT INTO before DEFAULT VALUES; INSERT INTO before DEFAULT VALUES`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `CREATE TABLE no_columns ()`, `INSERT INTO no_columns DEFAULT VALUES`, `INSERT INTO no_columns SELECT FROM generate_series(1, 4)`,
		`DELETE FROM no_columns WHERE ctid = '(0,2)'`, `DELETE FROM before WHERE ctid = '(0,1)'`,
		`CREATE TABLE computed (c int GENERATED ALWAYS AS (7) STORED)`, `INSERT INTO computed DEFAULT VALUES; INSERT INTO computed DEFAULT VALUES`, `DELETE FROM computed WHERE ctid = '(0,1)'`)
	same(t, a, b, "shop")
	a.Exec(t, "shop", `TRUNCATE no_columns, before`, `INSERT INTO before DEFAULT VALUES`)
	same(t, a, b, "shop")
}

// TestSequenceThatIsNotCalled sets a sequence to a value that the next nextval returns.
func TestSequenceThatIsNotCalled(t *testing.T) {
	t.Parallel()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `SELECT setval('customer_id_seq', 100000, false)`)
	testpg.Eventually(t, 10*time.Second, "the sequence follows", func() (bool, error) {
		return b.Rows(t, "shop", `SELECT last_value, is_called FROM customer_id_seq`)[0] == "100000|f", nil
	})
}
