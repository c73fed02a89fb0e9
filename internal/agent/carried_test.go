package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// These tests came of what a review found missing on the replica.

// TestDomainWithLaterCheck: a check of a domain that came later, NOT VALID, does not
// hold for the values that were there, and nobody may ask them.
func TestDomainWithLaterCheck(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE DOMAIN short AS text; CREATE TABLE loose (a int, d short, e int); CREATE TABLE keyed (id int PRIMARY KEY, d short, e int);
		INSERT INTO loose SELECT i, 'too long', 0 FROM generate_series(1, 20) i; INSERT INTO keyed TABLE loose;
		CREATE TABLE by_name (id short PRIMARY KEY, e int); INSERT INTO by_name SELECT 'too long ' || i, 0 FROM generate_series(1, 20) i`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `ALTER DOMAIN short ADD CHECK (length(VALUE) < 3) NOT VALID`,
		`DELETE FROM loose WHERE a = 1`, `UPDATE loose SET e = 1 WHERE a = 2`, `UPDATE loose SET d = 'ok' WHERE a = 3`, `UPDATE loose SET d = NULL WHERE a = 4`,
		`UPDATE keyed SET e = 1 WHERE id = 2`, `UPDATE keyed SET e = 1 WHERE id > 2`, `UPDATE keyed SET id = -id WHERE id = 3`, `UPDATE keyed SET d = 'ok' WHERE id IN (4, 5)`, `DELETE FROM keyed WHERE id = 6`,
		`UPDATE by_name SET e = 1`, `DELETE FROM by_name WHERE id LIKE '%1'`, `UPDATE by_name SET id = 'x' WHERE id LIKE '%2' AND id NOT LIKE '%12'`,
		`INSERT INTO loose VALUES (100, 'y', 1)`)
	same(t, a, b, "shop")
}

// TestDomainThatLooksAround: a domain's check calls a function that looks at another table,
// whose rows come in the same transaction.
func TestDomainThatLooksAround(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE country (code text PRIMARY KEY); CREATE FUNCTION is_country(text) RETURNS bool LANGUAGE sql AS 'SELECT EXISTS (SELECT FROM public.country WHERE code = $1)';
		CREATE DOMAIN country_code AS text CHECK (is_country(VALUE)); CREATE TABLE customer (id int PRIMARY KEY, country country_code, countries country_code[], v int);
		INSERT INTO country VALUES ('OLD'); INSERT INTO customer VALUES (1000, 'OLD'); DELETE FROM country`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `BEGIN; INSERT INTO country VALUES ('XX'), ('YY'); INSERT INTO customer VALUES (1, 'XX'); DELETE FROM country WHERE code = 'XX'; COMMIT`)
	same(t, a, b, "shop")
	a.Exec(t, "shop", `BEGIN; INSERT INTO country VALUES ('ZZ'); INSERT INTO customer SELECT i, 'YY' FROM generate_series(2, 100) i; UPDATE customer SET country = 'ZZ' WHERE id = 1; DELETE FROM country WHERE code = 'ZZ'; COMMIT`)
	same(t, a, b, "shop")
	a.Exec(t, "shop", `UPDATE customer SET v = 1`)
	same(t, a, b, "shop")
	a.Exec(t, "shop", `BEGIN; INSERT INTO country VALUES ('WW'); UPDATE customer SET countries = '{WW}' WHERE id = 1; DELETE FROM country WHERE code = 'WW'; COMMIT`)
	same(t, a, b, "shop")
}

// TestDDLOfReplicaRole: a session on the primary whose triggers rest, as a restore's,
// gives commands as any other; the appliers' own, which rest too, are told to nobody.
func TestDDLOfReplicaRole(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	commands := func(i *instance, n string) {
		t.Helper()
		i.Exec(t, "shop", strings.ReplaceAll(`SET session_replication_role = replica;
			CREATE TABLE r:n (id int PRIMARY KEY); INSERT INTO r:n VALUES (1); ALTER TABLE r:n ADD v text DEFAULT clock_timestamp()::text; CREATE TABLE as:n AS SELECT * FROM r:n; ALTER TABLE t ADD c:n int DEFAULT 7;
			CREATE TABLE loose:n (a int); INSERT INTO loose:n VALUES (1), (2); UPDATE loose:n SET a = a + 3; CREATE TABLE gone:n (); DROP TABLE gone:n;
			ALTER TABLE loose:n ADD PRIMARY KEY (a)`, ":n", n), `ALTER TABLE t DROP c`+n)
	}
	for n := range 3 {
		commands(a, fmt.Sprint(n))
		same(t, a, b, "shop")
		if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		a.awaitState(t, "shop", api.StateSynchronized)
		a, b = b, a
	}
}

// ofDatabase is what a database has beside its objects.
const ofDatabase = `
	SELECT 'setting ' || coalesce(r.rolname, '') || ' ' || c AS line FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c LEFT JOIN pg_roles r ON r.oid = s.setrole
	WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND c NOT LIKE 'hawser.%' AND c NOT LIKE 'default_transaction_read_only=%'
	UNION ALL SELECT 'privilege ' || coalesce(r.rolname, 'PUBLIC') || ' ' || a.privilege_type || ' ' || a.is_grantable
	FROM pg_database d CROSS JOIN aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a LEFT JOIN pg_roles r ON r.oid = a.grantee
	WHERE d.datname = current_database() AND a.grantee <> d.datdba
	UNION ALL SELECT 'owner of the database ' || pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()
	UNION ALL SELECT 'limit ' || datconnlimit || ', comment ' || coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = current_database()
	UNION ALL SELECT 'owner ' || pg_get_userbyid(relowner) FROM pg_class WHERE relname = 't'
	UNION ALL SELECT 'index ' || x.relname || ' ' || indisclustered FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE indrelid IN ('t'::regclass, to_regclass('made')) AND indisvalid
	UNION ALL SELECT 'event trigger ' || evtname || ' ' || evtenabled::text FROM pg_event_trigger WHERE evtname !~ 'hawser'
	ORDER BY 1`

// TestWhatFiresNoEvent changes what no event trigger is told of, before the link is
// made, while it runs, and just before a failover.
func TestWhatFiresNoEvent(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY); CREATE FUNCTION e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE ROLE before; CREATE ROLE "Odd role" LOGIN`,
		`GRANT CREATE ON DATABASE shop TO before; COMMENT ON DATABASE shop IS 'a shop'; ALTER DATABASE shop SET work_mem = '5MB'; ALTER ROLE before IN DATABASE shop SET search_path = 'a', 'b c'; ALTER DATABASE shop CONNECTION LIMIT 50`)
	b.awaitState(t, "shop", api.StateSynchronized)
	ca, cb := a.Connect(t, "shop"), b.Connect(t, "shop")
	equal := func(within time.Duration) {
		t.Helper()
		testpg.Eventually(t, within, "the databases are alike", func() (bool, error) {
			if d := difference(testpg.Rows(t, ca, ofDatabase), testpg.Rows(t, cb, ofDatabase)); d != "" {
				return false, fmt.Errorf("\n%s", d)
			}
			return true, nil
		})
	}
	equal(10 * time.Second)
	a.Exec(t, "shop", `CREATE ROLE later LOGIN; CREATE ROLE grp; GRANT grp TO later; GRANT CONNECT, TEMPORARY ON DATABASE shop TO later WITH GRANT OPTION; REVOKE ALL ON DATABASE shop FROM PUBLIC; REVOKE CREATE ON DATABASE shop FROM before; GRANT CONNECT ON DATABASE shop TO "Odd role", grp`,
		`COMMENT ON DATABASE shop IS 'it''s a shop'; ALTER DATABASE shop SET work_mem = '6MB'; ALTER DATABASE shop SET "my.own" = 'x y'; ALTER ROLE before IN DATABASE shop RESET search_path; ALTER ROLE later IN DATABASE shop SET lock_timeout = '3s'; ALTER DATABASE shop CONNECTION LIMIT 60`,
		`GRANT USAGE, CREATE ON SCHEMA public TO before`, `ALTER TABLE t OWNER TO before`, `REASSIGN OWNED BY before TO later`, `CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION e()`, `ALTER DATABASE shop OWNER TO later`)
	equal(30 * time.Second)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1), (2)`)
	if err := try(t, a, `CREATE UNIQUE INDEX CONCURRENTLY same ON t ((id / 10))`); err == nil || !strings.Contains(err.Error(), "23505") {
		t.Fatalf("the index was made: %v", err)
	}
	a.Exec(t, "shop", `CLUSTER t USING t_pkey`, `CREATE MATERIALIZED VIEW made AS SELECT id FROM t; CREATE INDEX "Odd" ON made (id); CLUSTER made USING "Odd"`)
	equal(30 * time.Second)
	a.Exec(t, "shop", `DELETE FROM t; REINDEX TABLE t; CREATE INDEX other ON t (id); CLUSTER t USING other`)
	equal(30 * time.Second)
	if got := testpg.Rows(t, cb, `SELECT rolcanlogin, pg_has_role(oid, 'grp', 'MEMBER') FROM pg_roles WHERE rolname = 'later'`); len(got) != 1 || got[0] != "f|t" {
		t.Errorf("role later can log in and is a member of grp: %v", got)
	}
	told := false
	l, err := b.Link(context.Background(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Findings {
		told = told || n.Code == "role-created" && strings.Contains(n.Object, "later")
	}
	if !told {
		t.Errorf("nobody was told that role later was created: %v", l.Findings)
	}
	a.Exec(t, "shop", `ALTER DATABASE shop SET work_mem = '7MB'; GRANT TEMPORARY ON DATABASE shop TO PUBLIC; ALTER EVENT TRIGGER mine DISABLE; COMMENT ON DATABASE shop IS NULL`)
	if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	equal(time.Second)
	a.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `ALTER DATABASE shop RESET work_mem; REVOKE CONNECT ON DATABASE shop FROM grp`)
	report, err := b.VerifyLink(context.Background(), "shop", api.VerifyOptions{}) // does not wait for a sweep
	if err != nil || !report.Equal {
		t.Fatalf("%+v, %v", report, err)
	}
	equal(0)
	a.Exec(t, "shop", `SET default_transaction_read_only = off`, `ALTER DATABASE shop SET work_mem = '8MB'`)
	report, err = b.VerifyLink(context.Background(), "shop", api.VerifyOptions{})
	if err != nil || report.Equal || len(report.Schema) != 1 || report.Schema[0].Secondary != "8MB" {
		t.Fatalf("%+v, %v", report, err)
	}
}

// TestMaterializedViewOfResync refreshes views while one of their tables is to be copied
// again. (Package link has the case in which it was copied already.)
func TestMaterializedViewOfResync(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i; CREATE TABLE n (v int); INSERT INTO n VALUES (0);
		CREATE MATERIALIZED VIEW counted AS SELECT (SELECT count(*) FROM big) AS big, (SELECT v FROM n) AS n; CREATE MATERIALIZED VIEW gone AS SELECT count(*) FROM big`)
	b.awaitState(t, "shop", api.StateSynchronized)
	// The stream stands while the primary writes: the copy is of a later time than the refresh.
	if err := b.PauseLink(context.Background(), "shop"); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "shop", `REFRESH MATERIALIZED VIEW counted; REFRESH MATERIALIZED VIEW gone`, `CREATE MATERIALIZED VIEW made AS SELECT count(*) FROM big`,
		`DELETE FROM big WHERE id > 500; UPDATE n SET v = 1`)
	if err := b.ResyncLink(context.Background(), "shop", []string{"public.big"}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	arrived(t, a, b, "shop")
	testpg.Eventually(t, 20*time.Second, "the views hold what was once together", func() (bool, error) {
		got := b.Rows(t, "shop", `SELECT big, n, (SELECT count FROM made), (SELECT count FROM gone) FROM counted`)
		if got[0] != "20000|0|20000|20000" && got[0] != "500|1|500|500" {
			return false, fmt.Errorf("they hold %v", got)
		}
		return true, nil
	})
}

// TestMaterializedViewThatWrites has views whose queries write and make tables, which must
// not happen once more on the replica: while the first copy ends, and by DDL in the stream.
func TestMaterializedViewThatWrites(t *testing.T) {
	t.Parallel()
	t.Run("without a path", func(t *testing.T) {
		t.Parallel()
		a, b := pair(t)
		viewsThatWrite(t, a, b, "")
	})
	t.Run("18, which knows event_triggers", func(t *testing.T) {
		t.Parallel()
		a, b := versionPair(t, 18, 18)
		viewsThatWrite(t, a, b, "SET search_path = public")
	})
}

func viewsThatWrite(t *testing.T, a, b *instance, path string) {
	link(t, a, b, strings.ReplaceAll(`CREATE TABLE wrote (id serial PRIMARY KEY, by text);
		CREATE FUNCTION write(text) RETURNS bigint LANGUAGE plpgsql :path AS 'BEGIN INSERT INTO wrote (by) VALUES ($1); RETURN (SELECT count(*) FROM wrote); END';
		CREATE FUNCTION make() RETURNS text LANGUAGE plpgsql :path AS $$ DECLARE name text := 'made_' || (SELECT count(*) FROM pg_class WHERE relname ~ '^made_'); BEGIN EXECUTE format('CREATE TABLE %I ()', name); RETURN name; END $$;
		CREATE MATERIALIZED VIEW "First" AS SELECT write('first copy') AS n; CREATE UNIQUE INDEX ON "First" (n); CREATE MATERIALIZED VIEW reads AS SELECT count(*) FROM wrote; CREATE UNIQUE INDEX ON reads (count)`, ":path", path))
	b.awaitState(t, "shop", api.StateSynchronized)
	equal := func() {
		t.Helper()
		arrived(t, a, b, "shop")
		const all = `SELECT id, by FROM wrote UNION ALL SELECT NULL, relname FROM pg_class WHERE relname ~ '^made_' UNION ALL SELECT count, 'reads' FROM reads ORDER BY 2, 1`
		if was, is := testpg.Rows(t, a.Connect(t, "shop"), all), testpg.Rows(t, b.Connect(t, "shop"), all); !slices.Equal(was, is) {
			t.Errorf("the primary has %q, the replica %q", was, is)
		}
		filled := testpg.Rows(t, b.Connect(t, "shop"), `SELECT relname FROM pg_class WHERE relkind = 'm' AND relispopulated`)
		if !slices.Equal(filled, []string{"reads"}) {
			t.Errorf("filled on the replica: %q", filled)
		}
		l, err := b.Link(context.Background(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		told := map[string]bool{}
		for _, f := range l.Findings {
			if f.Code == "matview-writes" {
				told[f.Object] = true
			}
		}
		if !told[`materialized view public."First"`] || told[`materialized view public.reads`] {
			t.Errorf("told of views: %v", told)
		}
	}
	equal()
	a.Exec(t, "shop", `CREATE ROLE reader; GRANT ALL ON SCHEMA public TO reader; ALTER MATERIALIZED VIEW reads OWNER TO reader; GRANT SELECT ON wrote TO reader;
		CREATE ROLE keeper; DO $$ BEGIN EXECUTE format('GRANT %I TO keeper', coalesce((SELECT rolname FROM pg_roles WHERE rolname = 'pg_maintain'), 'reader')); END $$`,
		`SET ROLE keeper; REFRESH MATERIALIZED VIEW reads; RESET ROLE`)
	a.Exec(t, "shop", `REFRESH MATERIALIZED VIEW CONCURRENTLY reads`, `SET ROLE reader; REFRESH MATERIALIZED VIEW reads; REFRESH MATERIALIZED VIEW CONCURRENTLY reads; RESET ROLE`, `REFRESH MATERIALIZED VIEW CONCURRENTLY "First"; CREATE MATERIALIZED VIEW second AS SELECT write('created')`, `BEGIN; CREATE MATERIALIZED VIEW makes AS SELECT make() WITH NO DATA; REFRESH MATERIALIZED VIEW makes; COMMIT`,
		`CREATE MATERIALIZED VIEW makes_too AS SELECT make(); REFRESH MATERIALIZED VIEW CONCURRENTLY reads`, `EXPLAIN ANALYZE CREATE MATERIALIZED VIEW told AS SELECT make(); INSERT INTO wrote VALUES (1000, 'last')`)
	equal()
	if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	a, b = b, a
	a.Exec(t, "shop", `REFRESH MATERIALIZED VIEW "First"; REFRESH MATERIALIZED VIEW second; REFRESH MATERIALIZED VIEW makes; REFRESH MATERIALIZED VIEW makes_too; REFRESH MATERIALIZED VIEW told; REFRESH MATERIALIZED VIEW reads`)
	equal()
}

// TestFunctionsWithoutSchema have an index, a CHECK and a generated column call functions
// that name others, and tables, without their schema.
func TestFunctionsWithoutSchema(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `ALTER DATABASE shop SET search_path = public, odd0, odd1`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for n := range 2 {
		a.Exec(t, "shop", strings.ReplaceAll(`CREATE SCHEMA odd:n; SET search_path = public, odd:n;
			CREATE TABLE odd:n.allowed (id int PRIMARY KEY); INSERT INTO allowed VALUES (1), (2);
			CREATE FUNCTION odd:n.inner:n(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1'; CREATE FUNCTION odd:n.outer:n(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT inner:n($1)';
			CREATE FUNCTION odd:n.ok:n(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN EXISTS (SELECT FROM allowed WHERE id = $1); END';
			CREATE TABLE public.calls:n (id serial PRIMARY KEY, v int CHECK (ok:n(v)), g int GENERATED ALWAYS AS (outer:n(v)) STORED); CREATE INDEX ON calls:n (outer:n(v))`, ":n", fmt.Sprint(n)))
		arrived(t, a, b, "shop")
		for range 3 {
			a.Exec(t, "shop", strings.ReplaceAll(`SET search_path = public, odd:n; INSERT INTO calls:n (v) SELECT i % 2 + 1 FROM generate_series(1, 50) i; UPDATE calls:n SET v = 3 - v WHERE id % 2 = 0; CREATE TABLE between:n (a int); DROP TABLE between:n; DELETE FROM calls:n WHERE id % 3 = 0`, ":n", fmt.Sprint(n)))
		}
		arrived(t, a, b, "shop")
		rows := fmt.Sprintf(`SELECT count(*), sum(id * v), sum(g) FROM calls%d`, n)
		if was, is := testpg.Rows(t, a.Connect(t, "shop"), rows)[0], testpg.Rows(t, b.Connect(t, "shop"), rows)[0]; was != is {
			t.Errorf("the primary has %s, the replica %s", was, is)
		}
		if n == 1 {
			return
		}
		if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		a.awaitState(t, "shop", api.StateSynchronized)
		a, b = b, a
	}
}

// TestExplainMakesATable has EXPLAIN ANALYZE make tables, of which no event is fired.
func TestExplainMakesATable(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	a.Exec(t, "shop", `CREATE ROLE explainer; GRANT ALL ON SCHEMA public TO explainer; ALTER DEFAULT PRIVILEGES FOR ROLE explainer GRANT SELECT ON TABLES TO PUBLIC`)
	a.Exec(t, "shop", `SET ROLE explainer; EXPLAIN ANALYZE CREATE TABLE explained AS SELECT i AS id, 'v' || i AS v FROM generate_series(1, 5) i; INSERT INTO explained VALUES (6, 'x'); ALTER TABLE explained ADD c int DEFAULT 1; RESET ROLE`,
		`BEGIN; SAVEPOINT s; EXPLAIN ANALYZE CREATE TABLE in_part AS SELECT 1 AS id; RELEASE s; INSERT INTO in_part VALUES (2); COMMIT`, `INSERT INTO in_part VALUES (3)`,
		`EXPLAIN ANALYZE CREATE TABLE dropped AS SELECT 1 AS id`, `DROP TABLE dropped`, `EXPLAIN ANALYZE CREATE TABLE empty AS SELECT 1 AS id WHERE false; CREATE TABLE told (a int); DROP TABLE told, empty`,
		`EXPLAIN ANALYZE CREATE TABLE kept AS SELECT 1 AS id WHERE false; EXPLAIN ANALYZE CREATE MATERIALIZED VIEW kept_view AS SELECT count(*) FROM t; ALTER TABLE kept ADD c int`, `EXPLAIN ANALYZE CREATE MATERIALIZED VIEW viewed AS SELECT count(*) FROM t; REFRESH MATERIALIZED VIEW viewed; DROP MATERIALIZED VIEW viewed`, `INSERT INTO t VALUES (100, 'x')`)
	same(t, a, b, "shop")
}

// TestTriggerStates changes the states of triggers and rules that fire for replication, and
// so are kept quiet on the replica: a failover gives them the states that they have last.
func TestTriggerStates(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	const quiet = `CREATE TABLE q:n (id int PRIMARY KEY, v int); CREATE TABLE log:n (id int); CREATE FUNCTION f:n() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER back BEFORE INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE TRIGGER off BEFORE INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE TRIGGER swap BEFORE INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE TRIGGER ren BEFORE INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n();
		CREATE TRIGGER anew BEFORE INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE TRIGGER kept BEFORE INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE CONSTRAINT TRIGGER con AFTER INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE RULE r_back AS ON DELETE TO q:n DO ALSO INSERT INTO log:n VALUES (1); CREATE RULE r_ren AS ON UPDATE TO q:n DO ALSO INSERT INTO log:n VALUES (1);
		ALTER TABLE q:n ENABLE ALWAYS TRIGGER back, ENABLE ALWAYS TRIGGER off, ENABLE ALWAYS TRIGGER swap, ENABLE REPLICA TRIGGER ren, ENABLE ALWAYS TRIGGER anew, ENABLE ALWAYS TRIGGER kept, ENABLE ALWAYS TRIGGER con, ENABLE ALWAYS RULE r_back, ENABLE REPLICA RULE r_ren;
		CREATE TABLE p:n (id int, k int) PARTITION BY LIST (k); CREATE TABLE p1:n PARTITION OF p:n FOR VALUES IN (1); CREATE TRIGGER part BEFORE INSERT ON p:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE TRIGGER part2 BEFORE INSERT ON p:n FOR EACH ROW EXECUTE FUNCTION f:n();
		ALTER TABLE p:n ENABLE ALWAYS TRIGGER part; ALTER TABLE ONLY p1:n ENABLE ALWAYS TRIGGER part2`
	const change = `ALTER TABLE q:n ENABLE TRIGGER back, DISABLE TRIGGER off, ENABLE REPLICA TRIGGER swap, ENABLE RULE r_back; ALTER TRIGGER ren ON q:n RENAME TO renamed; ALTER RULE r_ren ON q:n RENAME TO r_renamed; DROP TRIGGER anew ON q:n;
		CREATE TRIGGER anew BEFORE INSERT ON q:n FOR EACH ROW EXECUTE FUNCTION f:n(); CREATE TABLE p2:n PARTITION OF p:n FOR VALUES IN (2); CREATE TABLE p3:n (id int, k int); ALTER TABLE p:n ATTACH PARTITION p3:n FOR VALUES IN (3); ALTER TABLE ONLY p3:n DISABLE TRIGGER part; ALTER TABLE q:n RENAME TO renamed:n; INSERT INTO p:n VALUES (1, 1), (2, 2), (3, 3)`
	link(t, a, b, strings.ReplaceAll(quiet, ":n", "0"))
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", strings.ReplaceAll(quiet, ":n", "1"))
	for _, sql := range strings.Split(change, "; ") { // by themselves, and together
		a.Exec(t, "shop", strings.ReplaceAll(sql, ":n", "0"))
	}
	a.Exec(t, "shop", strings.ReplaceAll(change, ":n", "1"), `ALTER TABLE p0 DETACH PARTITION p20`)
	arrived(t, a, b, "shop")
	const states = `SELECT tgrelid::regclass || ' ' || tgname || ' ' || tgenabled::text FROM pg_trigger WHERE tgfoid::regproc::text LIKE 'f_' UNION ALL SELECT ev_class::regclass || ' ' || rulename || ' ' || ev_enabled::text FROM pg_rewrite WHERE rulename LIKE 'r\_%' ORDER BY 1`
	if loud := testpg.Rows(t, b.Connect(t, "shop"), strings.Replace(states, "ORDER BY 1", "", 1)); strings.Contains(strings.Join(loud, "\n")+"\n", " A\n") || strings.Contains(strings.Join(loud, "\n")+"\n", " R\n") {
		t.Errorf("on the replica %q", loud)
	}
	was := testpg.Rows(t, a.Connect(t, "shop"), states)
	if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if is := testpg.Rows(t, b.Connect(t, "shop"), states); strings.Join(was, "\n") != strings.Join(is, "\n") {
		t.Errorf("the triggers' states were\n%s\nand are\n%s", strings.Join(was, "\n"), strings.Join(is, "\n"))
	}
}

// TestOddDefinitions carries what means something else on the replica by its text.
func TestOddDefinitions(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	a.Exec(t, "shop", `CREATE TABLE at (at timestamptz, v int) PARTITION BY RANGE (at); CREATE TABLE stamped (at timestamp) PARTITION BY LIST (at)`,
		`SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'SQL, DMY'; CREATE TABLE at_1 PARTITION OF at FOR VALUES FROM (MINVALUE) TO (current_timestamp) WITH (fillfactor = 90)`,
		`CREATE TABLE at_2 (LIKE at)`, `ALTER TABLE at ATTACH PARTITION at_2 FOR VALUES /* from ( */ FROM (now() + interval '1 day') TO ((now() + interval '2 days')::timestamptz)`,
		`CREATE TABLE stamped_1 PARTITION OF stamped FOR VALUES IN ('now', '2020-01-01')`, `CREATE TABLE at_3 PARTITION OF at DEFAULT PARTITION BY LIST (v); CREATE TABLE "at 4" PARTITION OF at_3 FOR VALUES IN (1, NULL)`,
		`DO $$ BEGIN CREATE TABLE at_5 PARTITION OF at_3 FOR VALUES IN (length(now()::text)); END $$`)
	same(t, a, b, "shop")
	if testpg.Rows(t, a.Connect(t, "shop"), `SELECT current_setting('server_version_num')::int / 10000 < 16`)[0] != "t" {
		return // a table can't become a view any more
	}
	a.Exec(t, "shop", `CREATE TABLE becomes (id int, v text)`, `CREATE RULE "_RETURN" AS ON SELECT TO becomes DO INSTEAD SELECT id, v FROM t`)
	same(t, a, b, "shop")
}

// TestTypeWithoutInput copies trees of the catalogs, which only the server can write.
func TestTypeWithoutInput(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	a.Exec(t, "shop", `CREATE TABLE with_default (a int DEFAULT 1 + length('x'), b text DEFAULT now()::text)`, `CREATE TABLE trees AS SELECT adnum, adbin FROM pg_attrdef`,
		`SELECT adbin INTO none FROM pg_attrdef LIMIT 0`, `UPDATE trees SET adnum = 9 WHERE adnum = 2; DELETE FROM trees WHERE adnum = 1`)
	arrived(t, a, b, "shop")
	const rows = `SELECT adnum, md5(adbin::text) FROM trees ORDER BY 1, 2`
	if was, is := testpg.Rows(t, a.Connect(t, "shop"), rows), testpg.Rows(t, b.Connect(t, "shop"), rows); len(was) == 0 || strings.Join(was, " ") != strings.Join(is, " ") {
		t.Errorf("the primary has %v, the replica %v", was, is)
	}
	told := 0
	for _, i := range []*instance{a, b} {
		l, err := i.Link(ctx, "shop")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range l.Findings {
			if n.Code == "column-type" {
				told++
			}
		}
	}
	if told < 4 {
		t.Errorf("%d notes, want two on each side", told)
	}
	a.Exec(t, "postgres", `CREATE DATABASE other`)
	a.Exec(t, "other", `CREATE TABLE trees AS SELECT adbin FROM pg_attrdef`)
	found, err := a.ValidateLink(ctx, api.LinkSpec{Name: "other", Database: "other", Peer: b.name, Role: api.RolePrimary})
	if err != nil {
		t.Fatal(err)
	}
	refused := false
	for _, n := range found {
		refused = refused || n.Code == "column-type" && n.Blocks()
	}
	if !refused {
		t.Errorf("validation says nothing of a column that can't be written: %v", found)
	}
}

// TestAbortedDefinition has large transactions, which are streamed, alter tables in
// parts of them that are rolled back.
func TestAbortedDefinition(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Exec(t, "postgres", `ALTER SYSTEM SET logical_decoding_work_mem = '64kB'`, `SELECT pg_reload_conf()`)
	link(t, a, b, `CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE TABLE loose (v text, w text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	many := `INSERT INTO t (v) SELECT repeat('x', 100) FROM generate_series(1, 3000); INSERT INTO loose SELECT repeat('y', 100), 'z' FROM generate_series(1, 3000);`
	for i, sql := range []string{
		`BEGIN; :many SAVEPOINT s; ALTER TABLE t ADD c int DEFAULT 7; ALTER TABLE loose DROP w; INSERT INTO t (v, c) SELECT 'in', 8 FROM generate_series(1, 3000); INSERT INTO loose SELECT 'in' FROM generate_series(1, 3000); ROLLBACK TO s; :many COMMIT`,
		`BEGIN; SAVEPOINT s; ALTER TABLE t ADD c int, DROP v; INSERT INTO t (c) SELECT 8 FROM generate_series(1, 3000); ROLLBACK TO s; INSERT INTO loose VALUES ('after', 'w'); COMMIT`, `INSERT INTO t (v) VALUES ('next')`,
		`BEGIN; SAVEPOINT s; :many ALTER TABLE loose ADD c int; UPDATE loose SET c = 1; ROLLBACK TO s; UPDATE loose SET v = 'changed' WHERE ctid IN (SELECT ctid FROM loose LIMIT 2000); ALTER TABLE loose ADD d int; SAVEPOINT s; UPDATE t SET v = 'u'; ROLLBACK TO s; DELETE FROM loose WHERE v = 'in'; UPDATE t SET v = 'w' WHERE id % 3 = 0; COMMIT`,
		`BEGIN; SAVEPOINT s; SAVEPOINT i; :many ALTER TABLE t RENAME v TO x; INSERT INTO t (x) SELECT 'x' FROM generate_series(1, 3000); RELEASE i; ROLLBACK TO s; INSERT INTO t (v) VALUES ('one'); COMMIT`, `UPDATE t SET v = 'last' WHERE id % 5 = 0`,
		`BEGIN; SAVEPOINT s; ALTER TABLE t ALTER v TYPE varchar(200); :many ROLLBACK TO s; COMMIT`, `INSERT INTO t (v) VALUES ('a'); INSERT INTO loose (v) VALUES ('b')`,
	} {
		a.Exec(t, "shop", strings.ReplaceAll(sql, ":many", many))
		if err := follow(t, a, b, "shop", time.Minute); err != nil {
			t.Fatalf("transaction %d: %v", i, err)
		}
	}
	same(t, a, b, "shop")
	if n := testpg.Rows(t, a.Connect(t, "postgres"), `SELECT sum(stream_txns) >= 5 FROM pg_stat_replication_slots`)[0]; n != "t" {
		t.Errorf("not every transaction was streamed: %s", n)
	}
}

// TestStreamedDDLRolledBack: a transaction that is streamed has DDL in a savepoint that is
// rolled back when the server has sent it. Of a logical message the server tells the
// transaction alone, never the subtransaction that wrote it.
func TestStreamedDDLRolledBack(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Exec(t, "postgres", `ALTER SYSTEM SET logical_decoding_work_mem = '64kB'`, `SELECT pg_reload_conf()`)
	link(t, a, b, `CREATE TABLE s (id serial PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1); CREATE TABLE big (v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	conn := a.Connect(t, "shop")
	streamed := func() (int, error) {
		return strconv.Atoi(a.Rows(t, "postgres", `SELECT coalesce(sum(stream_bytes), 0) FROM pg_stat_replication_slots`)[0])
	}
	const many = `INSERT INTO big SELECT repeat('x', 100) FROM generate_series(1, 5000);`
	for _, c := range []struct{ before, after string }{
		{`INSERT INTO s (v) VALUES ('a'); SAVEPOINT p; ALTER TABLE s ADD gone int; CREATE TABLE never (a int);` + many, `ROLLBACK TO p;` + many + `INSERT INTO s (v) VALUES ('b')`},
		{`SAVEPOINT p; DROP TABLE other; SAVEPOINT q;` + many + `RELEASE q`, `ROLLBACK TO p; INSERT INTO other VALUES (2)`},
		{`CREATE TABLE kept (a int); SAVEPOINT p; ALTER TABLE kept ADD gone int; SAVEPOINT q; ALTER TABLE s ADD gone int; RELEASE q;` + many, `ROLLBACK TO p; ALTER TABLE kept ADD b int; INSERT INTO kept VALUES (1, 2)`},
		{`SAVEPOINT p; SAVEPOINT q; ALTER TABLE s ADD gone int;` + many, `ROLLBACK TO q; ALTER TABLE s ADD stays int DEFAULT 7; RELEASE p; INSERT INTO s (v) VALUES ('c')`},
	} {
		exec := func(sql string) {
			t.Helper()
			if _, err := conn.Exec(context.Background(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		was, err := streamed()
		if err != nil {
			t.Fatal(err)
		}
		exec(`BEGIN`)
		exec(c.before)
		testpg.Eventually(t, 20*time.Second, "it is streamed", func() (bool, error) {
			now, err := streamed()
			return now > was+500_000, err
		})
		exec(c.after)
		exec(`COMMIT`)
		same(t, a, b, "shop")
	}
}

// TestNotCarriedIsNamed: unlogged tables have their definition alone, and become whole
// when they are logged; large objects are refused, and told of when they come later.
func TestNotCarriedIsNamed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE UNLOGGED TABLE fast (id int PRIMARY KEY); INSERT INTO fast VALUES (1)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	told := func(i *instance, code, object string) bool {
		t.Helper()
		l, err := i.Link(ctx, "shop")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range l.Findings {
			if n.Code == code && strings.Contains(n.Object, object) {
				return true
			}
		}
		return false
	}
	a.Exec(t, "shop", `CREATE UNLOGGED TABLE faster (id int PRIMARY KEY); INSERT INTO faster VALUES (1), (2)`, `INSERT INTO fast VALUES (2)`)
	same(t, a, b, "shop")
	for _, i := range []*instance{a, b} {
		for _, table := range []string{"public.fast", "public.faster"} {
			if !told(i, "unlogged-table", table) {
				t.Errorf("link show on %s does not name the unlogged table %s", i.name, table)
			}
		}
	}
	if got := testpg.Rows(t, b.Connect(t, "shop"), `SELECT (SELECT count(*) FROM fast), (SELECT count(*) FROM faster), (SELECT relpersistence FROM pg_class WHERE relname = 'fast')`)[0]; got != "0|0|u" {
		t.Errorf("on the replica the unlogged tables have %s", got)
	}
	a.Exec(t, "shop", `ALTER TABLE faster SET LOGGED`, `INSERT INTO faster VALUES (3)`)
	same(t, a, b, "shop")
	a.Exec(t, "shop", `SELECT lo_from_bytea(0, 'large')`)
	testpg.Eventually(t, 30*time.Second, "both sides tell of the large object", func() (bool, error) {
		return told(a, "large-objects", "large") && told(b, "large-objects", "large"), nil
	})
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}); err == nil || !strings.Contains(err.Error(), "lo_unlink") {
		t.Errorf("a failover left a large object behind: %v", err)
	}
	a.Exec(t, "postgres", `CREATE DATABASE large`)
	a.Exec(t, "large", `SELECT lo_from_bytea(0, 'large')`)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "large", Database: "large", Peer: b.name, Role: api.RolePrimary}); err == nil || !strings.Contains(err.Error(), "large objects") {
		t.Errorf("a database with large objects was linked: %v", err)
	}
}
