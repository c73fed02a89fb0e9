package schema_test

import (
	"strconv"
	"testing"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/testpg"
)

// script is a case: strings that a client sends, one after the other.
type script struct {
	name  string
	since int // the server's version, in full
	sent  []string
}

func TestReplayZoo(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	for _, s := range zoo {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, c, c)
			if v := column(t, p.primary, "SELECT current_setting('server_version_num')")[0]; v < strconv.Itoa(s.since) {
				t.Skipf("the server is of version %s, the case needs %d", v, s.since)
			}
			for _, text := range s.sent {
				p.exec(p.primary, text)
			}
			if _, err := capture.SweepDDL(t.Context(), p.primary); err != nil {
				t.Fatal(err)
			}
			p.play()
			p.equal()
		})
	}
}

var zoo = []script{
	{name: "tables", sent: []string{
		`CREATE TABLE a (id serial PRIMARY KEY, b text NOT NULL DEFAULT 'x''y\z', c int CHECK (c > 0), d numeric(10, 2))`,
		`CREATE TABLE "My Täble" ("Col ""1""" int UNIQUE, "ü" text COLLATE "C", LIKE a INCLUDING ALL)`,
		`CREATE UNLOGGED TABLE u (a int)`,
		`CREATE TABLE child (e int) INHERITS (a) WITH (fillfactor = 50)`,
		`ALTER TABLE a ADD f bigint GENERATED ALWAYS AS (c * 2) STORED, DROP COLUMN d, ALTER b TYPE varchar(50), ALTER b SET STORAGE main, ALTER c SET STATISTICS 7`,
		`ALTER TABLE "My Täble" RENAME TO "my ""table"""`, `ALTER TABLE "my ""table""" RENAME "ü" TO "Ü 2"`,
		`ALTER TABLE child ADD FOREIGN KEY (id) REFERENCES a DEFERRABLE INITIALLY DEFERRED`,
		`COMMENT ON TABLE a IS 'it''s'; COMMENT ON COLUMN a.b IS 'b'`,
		`CREATE TABLE IF NOT EXISTS a (nothing int)`, `DROP TABLE IF EXISTS missing`, `ALTER TABLE IF EXISTS missing ADD a int`,
		`DROP TABLE u`,
	}},
	{name: "several in one string", sent: []string{
		`CREATE TABLE t (a int); ALTER TABLE t ADD b int; /* ; */ ALTER TABLE t ADD c int; INSERT INTO t VALUES (1, 2, 3);
		 ALTER TABLE t ADD d text DEFAULT ';'; CREATE INDEX ON t (a); CREATE INDEX ON t (a); DROP TABLE IF EXISTS none; CREATE TEMP TABLE tt (a int);
		 ALTER TABLE t DROP b; COMMENT ON TABLE t IS 'ü; --'; -- done`,
		`CREATE TABLE x1 (a int); COMMIT; CREATE TABLE x2 (a int); BEGIN; CREATE TABLE x3 (a int); ROLLBACK; CREATE TABLE x3 (b int); ALTER TABLE x3 ADD c int; ALTER TABLE x3 ADD d int`,
	}},
	{name: "savepoints", sent: []string{
		`CREATE TABLE t (a int); BEGIN; ALTER TABLE t ADD b int; SAVEPOINT s; ALTER TABLE t ADD c int; ROLLBACK TO s; ALTER TABLE t ADD d int; RELEASE s; ALTER TABLE t ADD e int; COMMIT`,
		`BEGIN`, `ALTER TABLE t ADD f int`, `SAVEPOINT s`, `ALTER TABLE t ADD g int; ALTER TABLE t ADD h int`, `ROLLBACK TO s; ALTER TABLE t ADD g text; ALTER TABLE t ADD h text`, `COMMIT`,
		`BEGIN; CREATE TABLE gone (a int); ROLLBACK`,
		`DO $$ BEGIN CREATE TABLE caught (a int); RAISE EXCEPTION 'x'; EXCEPTION WHEN OTHERS THEN CREATE TABLE kept (a int); END $$`,
	}},
	{name: "with data between", sent: []string{
		`BEGIN`, `CREATE TABLE t (a int PRIMARY KEY, b text)`, `INSERT INTO t VALUES (1, 'x'), (2, 'y')`, `ALTER TABLE t ADD c int DEFAULT 7`,
		`UPDATE t SET b = 'z' WHERE a = 1`, `ALTER TABLE t DROP b`, `DELETE FROM t WHERE a = 2`, `INSERT INTO t VALUES (3, 3)`, `COMMIT`,
	}},
	{name: "no key", sent: []string{
		`CREATE TABLE nokey (a int, b int); INSERT INTO nokey VALUES (1, 1), (1, 2), (2, 2); UPDATE nokey SET b = 5 WHERE a = 2; DELETE FROM nokey WHERE b = 2`,
		`ALTER TABLE nokey ADD PRIMARY KEY (a, b)`, `UPDATE nokey SET b = 6 WHERE a = 2`,
		`ALTER TABLE nokey DROP CONSTRAINT nokey_pkey`, `UPDATE nokey SET b = 7`,
		`CREATE TABLE byindex (a int NOT NULL UNIQUE); ALTER TABLE byindex REPLICA IDENTITY USING INDEX byindex_a_key; INSERT INTO byindex VALUES (1)`,
		`DROP INDEX IF EXISTS none; ALTER TABLE byindex DROP CONSTRAINT byindex_a_key; UPDATE byindex SET a = 2`,
		`CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING; INSERT INTO nothing VALUES (1); UPDATE nothing SET a = 2`,
		`CREATE TABLE p (a int) PARTITION BY LIST (a); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); INSERT INTO p VALUES (1); UPDATE p SET a = 1; ALTER TABLE p ADD PRIMARY KEY (a)`,
	}},
	{name: "inside a command that is under way", sent: []string{
		`CREATE TABLE log (id serial PRIMARY KEY, n int); CREATE FUNCTION made(n int) RETURNS int LANGUAGE plpgsql AS $f$ BEGIN
			EXECUTE format('CREATE TABLE inner%s (a int)', n); EXECUTE format('INSERT INTO inner%s VALUES (1)', n); EXECUTE format('CREATE FUNCTION f%s() RETURNS int LANGUAGE sql AS ''SELECT 1''', n); INSERT INTO public.log (n) VALUES (n); RETURN n; END $f$`,
		`CREATE TABLE p (a int) PARTITION BY RANGE (a); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (made(2)); INSERT INTO p VALUES (1)`,
		`CREATE TABLE p2 (a int); ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (2) TO (made(3)); ALTER TABLE p ADD b int DEFAULT made(4)`,
		`CREATE TABLE taken AS SELECT made(6); SELECT made(7) AS a INTO taken2`,
		`CREATE SCHEMA "S s" CREATE TABLE t (a int PRIMARY KEY, b serial) CREATE VIEW v AS SELECT * FROM p CREATE INDEX ON t (b) CREATE TABLE p (a int) PARTITION BY RANGE (a)
			CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (public.made(8)) CREATE TABLE "S s".p2 PARTITION OF p FOR VALUES FROM (8) TO (public.made(9)) GRANT CREATE, USAGE ON SCHEMA "S s" TO PUBLIC; INSERT INTO "S s".p VALUES (2)`,
	}},
	{name: "a user's event trigger that calls itself", sent: []string{
		`CREATE TABLE t (a int); CREATE FUNCTION heard() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN COMMENT ON TABLE t IS 'heard'; EXCEPTION WHEN OTHERS THEN END $$; SET max_stack_depth = '200kB'`,
		`CREATE EVENT TRIGGER heard ON ddl_command_end EXECUTE FUNCTION heard()`, `ALTER TABLE t ADD b int`, `DROP EVENT TRIGGER heard`, `ALTER TABLE t ADD c int`,
	}},
	{name: "inside PL/pgSQL", sent: []string{
		`DO $$ BEGIN CREATE TABLE one (a int); EXECUTE 'CREATE TABLE two (a int); ALTER TABLE two ADD b int; ALTER TABLE two ADD c int'; EXECUTE format('CREATE TABLE %I (%I int)', 'Odd "name"', 'c'); END $$`,
		`CREATE FUNCTION make(n int) RETURNS void LANGUAGE plpgsql AS $f$
			BEGIN
				FOR i IN 1..n LOOP
					EXECUTE format('CREATE TABLE loop_%s (a int)', i);
					EXECUTE 'ALTER TABLE one ADD x int; ALTER TABLE one DROP x; ALTER TABLE one RENAME a TO "a b"
; ALTER TABLE one RENAME "a b" TO a';
				END LOOP;
				CREATE TABLE quoted ("a"
					int);
			END $f$`,
		`SELECT make(3)`,
		`CREATE PROCEDURE steps() LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE step1 (a int); COMMIT; CREATE TABLE step2 (a int); ROLLBACK; CREATE TABLE step3 (a int); END $$`,
		`CALL steps()`,
		`CREATE FUNCTION outerf() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM make2(); CREATE TABLE after_inner (a int); END $$;
		 CREATE FUNCTION make2() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE inner_one (a int); END $$; SELECT outerf(); ALTER TABLE inner_one ADD b int; ALTER TABLE inner_one ADD c int`,
	}},
	{name: "inside SQL functions", sent: []string{
		`SET check_function_bodies = off`,
		`CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'CREATE TABLE f1 (a int); ALTER TABLE f1 ADD b int; ALTER TABLE f1 ADD c int'`,
		`CREATE SCHEMA other; CREATE FUNCTION other.f() RETURNS void LANGUAGE sql AS 'CREATE TABLE other.f1 (x int)'`,
		`CREATE FUNCTION "F ""q"" statement 2"() RETURNS void LANGUAGE sql AS 'SELECT 1; CREATE TABLE fq (x int)'`,
		`SELECT f()`, `SELECT other.f()`, `SELECT "F ""q"" statement 2"()`,
	}},
	{name: "search_path and names", sent: []string{
		`CREATE SCHEMA s1; CREATE SCHEMA "S 2"; SET search_path = s1, "S 2"; CREATE TABLE t (a int); CREATE TYPE e AS ENUM ('a'); CREATE TABLE u (e e)`,
		`SET search_path = "S 2", public; CREATE TABLE t (b int); ALTER TABLE t ADD c s1.e; CREATE VIEW v AS SELECT * FROM t; CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'SELECT count(*)::int FROM t'`,
		`CREATE FUNCTION h() RETURNS int LANGUAGE sql SET search_path FROM CURRENT AS 'SELECT 1'`,
		`SET search_path = public; ALTER TABLE s1.t ADD d int; DROP TABLE s1.u`,
		`CREATE FUNCTION h2() RETURNS int LANGUAGE sql SET DateStyle FROM CURRENT SET work_mem = '8MB' AS 'SELECT 1'`,
	}},
	{name: "settings", sent: []string{
		`SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'sql_standard'; SET standard_conforming_strings = off; SET escape_string_warning = off; SET bytea_output = escape`,
		`CREATE TABLE t (a timestamptz DEFAULT '02/03/2024 10:00', b text DEFAULT 'a\tb''c', c text)`,
		`INSERT INTO t VALUES ('01/02/2024', 'x', '03/04/2024')`,
		`ALTER TABLE t ALTER c TYPE date USING c::date, ALTER a TYPE text USING a::text`,
		`SET check_function_bodies = off; CREATE FUNCTION broken() RETURNS int LANGUAGE sql AS 'SELECT x FROM nowhere'`,
	}},
	{name: "temporary", sent: []string{
		`CREATE TABLE real (a int); CREATE TEMP TABLE t (a int PRIMARY KEY); ALTER TABLE t ADD b int; CREATE INDEX ON t (b); COMMENT ON TABLE t IS 'x'; GRANT SELECT ON t TO PUBLIC`,
		`CREATE TEMP TABLE real (a int); DROP TABLE real; CREATE TEMP VIEW tv AS SELECT 1; CREATE TEMP SEQUENCE ts; CREATE TEMP TABLE ta AS SELECT 1 AS a; SELECT 2 AS b INTO TEMP tb`,
		`CREATE TABLE x (a int); DROP TABLE t, x; CREATE TABLE copied AS SELECT * FROM ta; CREATE TEMP TABLE dropped (a int) ON COMMIT DROP`,
		`CREATE TEMP TABLE model (id int PRIMARY KEY, v text COLLATE "C" NOT NULL DEFAULT 'x', g int GENERATED ALWAYS AS (id * 2) STORED, CHECK (id > 0), UNIQUE (v, id)); CREATE INDEX ON model (v);
		 CREATE TABLE like1 (LIKE model); CREATE TABLE like2 (a int, LIKE model INCLUDING ALL); CREATE TABLE like3 (LIKE like1, b int); INSERT INTO like2 (id) VALUES (1); CREATE TABLE like4 (LIKE pg_temp.model INCLUDING DEFAULTS)`,
		`CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP VIEW tv; DROP SEQUENCE ts`,
	}},
	{name: "create table as", sent: []string{
		`CREATE TABLE src (id int PRIMARY KEY, t text COLLATE "C", n numeric(6, 2), d varchar(9)[])`, `INSERT INTO src SELECT i, 'r' || i, i, ARRAY['a', NULL] FROM generate_series(1, 5) i`,
		`CREATE TABLE c1 WITH (fillfactor = 70) AS SELECT *, random() r, now() AS at, t::varchar(20) v FROM src`,
		`SELECT id, t INTO c2 FROM src WHERE id > 2; CREATE TABLE c3 AS SELECT * FROM src WITH NO DATA; CREATE TABLE c4 AS TABLE src; ALTER TABLE c4 ADD PRIMARY KEY (id)`,
		`CREATE TABLE IF NOT EXISTS c4 AS SELECT 1`, `PREPARE q(int) AS SELECT $1 AS p; CREATE TABLE c5 AS EXECUTE q(7)`,
		`DO $$ DECLARE v int := 4; BEGIN CREATE TABLE c6 AS SELECT * FROM src WHERE id = v; EXECUTE 'CREATE TABLE c7 AS SELECT $1 AS x' USING 9; END $$`,
		`CREATE UNLOGGED TABLE c8 AS SELECT 1 AS a`, `CREATE TABLE c9 (x, "Y z") AS VALUES (1, 'a')`, `BEGIN; SAVEPOINT s; CREATE TABLE c10 AS SELECT 1 AS a; ROLLBACK TO s; CREATE TABLE c10 AS SELECT 2 AS b; COMMIT`,
		`CREATE TYPE pair AS (a int, b text); CREATE DOMAIN dom AS int; CREATE TABLE c11 AS SELECT (1, 'x')::pair AS p, 3::dom AS d, ARRAY[1::dom] AS da`,
	}},
	{name: "explained", sent: []string{
		`CREATE ROLE rx_app; GRANT ALL ON SCHEMA public TO rx_app; CREATE DOMAIN dom AS int CHECK (VALUE > 0); PREPARE three AS SELECT 1 AS a, 2::dom AS b, 'x' COLLATE "C" AS c; CREATE TABLE told (a int)`,
		`EXPLAIN ANALYZE CREATE TABLE none AS SELECT 1 AS a WHERE false; SELECT hawser.ddl_sweep(NULL)`, `INSERT INTO none VALUES (1); UPDATE none SET a = 2`,
		`EXPLAIN ANALYZE CREATE TABLE "Wi th" WITH (fillfactor = 70) AS EXECUTE three; ALTER TABLE "Wi th" ADD d int DEFAULT 7, ADD CHECK (a > 0); INSERT INTO "Wi th" VALUES (1, 2, 'y', 3)`,
		`EXPLAIN ANALYZE CREATE TABLE nodata AS SELECT 1 AS a WITH NO DATA; CREATE VIEW on_none AS SELECT * FROM nodata; GRANT SELECT ON nodata TO rx_app; EXPLAIN ANALYZE CREATE UNLOGGED TABLE unl AS SELECT 1 AS a; COMMENT ON TABLE unl IS 'x'`,
		`BEGIN; EXPLAIN ANALYZE CREATE TABLE renamed AS SELECT 1 AS a WHERE false; SAVEPOINT s; ALTER TABLE renamed RENAME TO other; ROLLBACK TO s; ALTER TABLE renamed RENAME TO other2; CREATE TABLE heir () INHERITS (other2); COMMIT`,
		`SET ROLE rx_app; EXPLAIN ANALYZE CREATE TABLE his AS SELECT 1 AS a WHERE false; EXPLAIN ANALYZE CREATE MATERIALIZED VIEW his_view AS SELECT count(*) FROM his; CREATE INDEX ON his_view (count); RESET ROLE`,
		`EXPLAIN ANALYZE CREATE MATERIALIZED VIEW v (n) WITH (fillfactor = 80) AS SELECT count(*) FROM told; EXPLAIN ANALYZE CREATE MATERIALIZED VIEW empty_view AS SELECT 1 AS a WITH NO DATA; SELECT hawser.ddl_sweep(NULL)`,
		`DO $$ BEGIN EXECUTE 'EXPLAIN ANALYZE CREATE TABLE in_do AS SELECT 1 AS a WHERE false'; ALTER TABLE in_do ADD b int; END $$`,
		`CREATE FUNCTION ddl() RETURNS int LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE in_query (a int); EXECUTE 'EXPLAIN ANALYZE CREATE TABLE in_query_explained AS SELECT 1 AS a WHERE false'; COMMENT ON TABLE in_query IS 'x'; RETURN 1; END $$`,
		`CREATE TABLE by_query AS SELECT ddl() AS a`, `SELECT hawser.ddl_sweep(NULL); ALTER TABLE in_query_explained ADD b int; ALTER TABLE by_query ADD b int`,
		`EXPLAIN ANALYZE CREATE TABLE gone AS SELECT 1 AS a; DROP TABLE gone; BEGIN; EXPLAIN ANALYZE CREATE TABLE never AS SELECT 1 AS a WHERE false; CREATE TABLE never2 (a int); ROLLBACK; CREATE TEMP TABLE temporary (a int); EXPLAIN ANALYZE CREATE TEMP TABLE temporary2 AS SELECT 1 AS a; CREATE TABLE last (a int)`,
	}},
	{name: "views", sent: []string{
		`CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'); CREATE VIEW v AS SELECT * FROM t WITH LOCAL CHECK OPTION; CREATE OR REPLACE VIEW v AS SELECT *, 1 AS one FROM t; ALTER VIEW v ALTER a SET DEFAULT 3`,
		`CREATE RECURSIVE VIEW r (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM r WHERE n < 5`,
		`CREATE MATERIALIZED VIEW m AS SELECT a, count(*) FROM t GROUP BY a; CREATE UNIQUE INDEX ON m (a)`, `INSERT INTO t VALUES (2, 'y')`, `REFRESH MATERIALIZED VIEW CONCURRENTLY m`,
		`CREATE MATERIALIZED VIEW m2 AS SELECT * FROM t WITH NO DATA`, `INSERT INTO t VALUES (3, 'z')`, `REFRESH MATERIALIZED VIEW m2; REFRESH MATERIALIZED VIEW m WITH NO DATA; ALTER MATERIALIZED VIEW m2 RENAME TO m3`,
		`CREATE RULE noins AS ON INSERT TO v DO INSTEAD NOTHING; ALTER VIEW v RENAME TO v2; CREATE VIEW v3 AS SELECT * FROM v2; DROP VIEW v3`,
	}},
	{name: "a TOAST table", sent: []string{
		`CREATE TABLE t (a int, b text); SET allow_system_table_mods = on; DO $$ BEGIN
			EXECUTE format('ALTER TABLE pg_toast.pg_toast_%s RENAME TO toast_of_t; ALTER INDEX pg_toast.pg_toast_%1$s_index RENAME TO toast_index', (SELECT oid FROM pg_class WHERE relname = 't')); END $$`,
		`REINDEX TABLE CONCURRENTLY pg_toast.toast_of_t`, `REINDEX INDEX CONCURRENTLY pg_toast.toast_index`, `COMMENT ON TABLE t IS 'x'; DROP TABLE t`,
	}},
	{name: "a view of a transition table", sent: []string{
		`CREATE TABLE t (a int, "B b" numeric(5, 2)); CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN CREATE MATERIALIZED VIEW kept AS SELECT * FROM fresh; RETURN NEW; END'; CREATE TRIGGER keep AFTER INSERT ON t REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION keep()`,
		`DO $$ BEGIN INSERT INTO t VALUES (1, 2); COMMENT ON MATERIALIZED VIEW kept IS 'x'; CREATE VIEW on_kept AS SELECT "B b" FROM kept; EXCEPTION WHEN feature_not_supported THEN CREATE VIEW on_kept AS SELECT 1; CREATE MATERIALIZED VIEW kept AS SELECT 1; END $$`,
		`DROP VIEW on_kept; DROP MATERIALIZED VIEW kept`, // pg_dump fails on it
	}},
	{name: "indexes and constraints", sent: []string{
		`CREATE TABLE t (a int, b text, c int4range)`, `INSERT INTO t VALUES (1, 'x', '[1,2)')`, `CREATE INDEX CONCURRENTLY ON t (a)`, `CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS tu ON t (b) INCLUDE (a) WHERE a > 0`,
		`CREATE INDEX CONCURRENTLY IF NOT EXISTS tu ON t (b)`, `REINDEX INDEX CONCURRENTLY tu`, `REINDEX TABLE t`, `DROP INDEX CONCURRENTLY t_a_idx`,
	}},
	{name: "constraints", sent: []string{
		`CREATE TABLE t (a int NOT NULL, b text, c int4range, EXCLUDE USING gist (c WITH &&))`, `CREATE UNIQUE INDEX tx ON t (a)`, `ALTER TABLE t ADD CONSTRAINT un UNIQUE USING INDEX tx`,
		`ALTER TABLE t ADD CONSTRAINT ck CHECK (a > 0) NOT VALID`, `ALTER TABLE t VALIDATE CONSTRAINT ck`, `ALTER TABLE t RENAME CONSTRAINT ck TO ck2; ALTER INDEX un RENAME TO un2`,
		`CREATE TABLE f (a int REFERENCES t (a) ON DELETE CASCADE, b int)`, `ALTER TABLE f ALTER CONSTRAINT f_a_fkey DEFERRABLE; ALTER TABLE f ADD CONSTRAINT fk2 FOREIGN KEY (b) REFERENCES t (a) NOT VALID`,
		`CREATE INDEX ON t ((lower(b))); ALTER INDEX t_lower_idx ALTER COLUMN 1 SET STATISTICS 100; CREATE STATISTICS st ON a, b FROM t; ALTER STATISTICS st SET STATISTICS 10; ALTER TABLE t CLUSTER ON un2`,
	}},
	{name: "partitions", sent: []string{
		`CREATE TABLE p (a int, b text, PRIMARY KEY (a)) PARTITION BY RANGE (a); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10) PARTITION BY LIST (a); CREATE TABLE p1a PARTITION OF p1 FOR VALUES IN (1, 2); CREATE TABLE p1d PARTITION OF p1 DEFAULT`,
		`CREATE TABLE p2 (b text, a int NOT NULL); INSERT INTO p2 VALUES ('x', 15); ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (1, 'a'), (5, 'b')`,
		`CREATE INDEX ON p (b); CREATE INDEX pi ON ONLY p (a, b)`, `UPDATE p SET a = 16 WHERE a = 1`, `ALTER TABLE p DETACH PARTITION p2`, `ALTER TABLE p2 ADD c int`, `DROP TABLE p1a`,
		`CREATE SCHEMA s CREATE TABLE p (a timestamptz) PARTITION BY RANGE (a) CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (clock_timestamp()) TO ('infinity') CREATE TABLE p2 PARTITION OF s.p FOR VALUES FROM (clock_timestamp() - interval '1 hour') TO (clock_timestamp() - interval '1 minute')`,
	}},
	{name: "detach concurrently", sent: []string{
		`CREATE TABLE p (a int, b text) PARTITION BY RANGE (a)`, `CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)`, `CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)`, `ALTER TABLE p2 ADD CHECK (a IS NOT NULL AND a >= 10 AND a < 20)`,
		`ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY`, `ALTER TABLE p DETACH PARTITION p2 CONCURRENTLY`,
	}},
	{name: "types", sent: []string{
		`CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE comp AS (a int, b text); CREATE TYPE rng AS RANGE (subtype = float8); CREATE DOMAIN pos AS int CHECK (VALUE > 0) DEFAULT 1; CREATE TABLE t (m mood, c comp, r rng, p pos)`,
		`ALTER TYPE mood ADD VALUE 'happy' AFTER 'ok'`, `ALTER TYPE mood RENAME VALUE 'sad' TO 'Sad'`, `INSERT INTO t VALUES ('happy', (1, 'x'), '[1,2]', 3)`, `ALTER TYPE comp RENAME TO comp2`,
		`ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 100); ALTER DOMAIN pos DROP DEFAULT; ALTER DOMAIN pos RENAME CONSTRAINT small TO small2; ALTER TYPE mood SET SCHEMA public`,
		`CREATE TYPE comp3 AS (a int); ALTER TYPE comp3 ADD ATTRIBUTE b text, DROP ATTRIBUTE a; DROP TYPE comp3; CREATE TABLE typed OF comp2 (PRIMARY KEY (a))`,
		`CREATE COLLATION german (provider = icu, locale = 'de'); CREATE TYPE shell; DROP TYPE shell; CREATE CAST (mood AS int) WITH INOUT AS ASSIGNMENT`,
	}},
	{name: "functions, operators, text search", sent: []string{
		`CREATE FUNCTION add(a int, b int DEFAULT 2) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a + b'; CREATE OR REPLACE FUNCTION add(a int, b int DEFAULT 2) RETURNS int LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT a + b + 0; END; ALTER FUNCTION add STABLE; COMMENT ON FUNCTION add(int, int) IS 'adds'`,
		`CREATE OPERATOR <+> (FUNCTION = add, LEFTARG = int, RIGHTARG = int); ALTER OPERATOR <+> (int, int) SET (RESTRICT = NONE); CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int); CREATE PROCEDURE pr() LANGUAGE plpgsql AS $$BEGIN CREATE TEMP TABLE x(a int); END$$; ALTER PROCEDURE pr() SECURITY DEFINER`,
		`CREATE OPERATOR FAMILY fam USING btree; CREATE OPERATOR CLASS oc FOR TYPE int USING btree FAMILY fam AS OPERATOR 1 <, FUNCTION 1 btint4cmp(int, int); ALTER OPERATOR FAMILY fam USING btree RENAME TO fam2`,
		`CREATE TEXT SEARCH CONFIGURATION ts (COPY = pg_catalog.simple); CREATE TEXT SEARCH DICTIONARY td (TEMPLATE = simple); ALTER TEXT SEARCH CONFIGURATION ts ALTER MAPPING FOR word WITH td; ALTER TEXT SEARCH DICTIONARY td (accept = false); CREATE CONVERSION conv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8`,
		`CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TABLE t (a int); CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION tf(); ALTER TABLE t ENABLE ALWAYS TRIGGER tr; ALTER TRIGGER tr ON t RENAME TO tr2; ALTER TABLE t DISABLE TRIGGER USER; DROP FUNCTION add(int, int) CASCADE; DROP AGGREGATE total(int)`,
	}},
	{name: "sequences", sent: []string{
		`CREATE SEQUENCE s START 10 INCREMENT 5 CACHE 3; ALTER SEQUENCE s MAXVALUE 1000 CYCLE; CREATE TABLE t (a bigserial, b int GENERATED BY DEFAULT AS IDENTITY (START 100)); ALTER SEQUENCE s OWNED BY t.a; ALTER TABLE t ALTER b SET GENERATED ALWAYS SET INCREMENT 3; ALTER SEQUENCE t_a_seq RENAME TO "Seq"; CREATE SEQUENCE s2 AS smallint; DROP SEQUENCE s2; ALTER TABLE t ALTER b DROP IDENTITY`,
	}},
	{name: "schemas", sent: []string{
		`CREATE SCHEMA one CREATE TABLE t (a serial PRIMARY KEY) CREATE VIEW v AS SELECT * FROM t CREATE INDEX ON t (a); CREATE SCHEMA IF NOT EXISTS one; ALTER SCHEMA one RENAME TO two; INSERT INTO two.t VALUES (1)`,
		`CREATE SCHEMA gone CREATE TABLE t (a int); DROP SCHEMA gone CASCADE; ALTER TABLE two.t SET SCHEMA public`,
	}},
	{name: "rewrites that give the same", sent: []string{
		`CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t VALUES (1, '10'), (2, '20')`, `ALTER TABLE t ALTER b TYPE bigint USING b::bigint + 1, ADD c int DEFAULT 1 + 2, ADD d int GENERATED ALWAYS AS (a * 2) STORED`,
		`ALTER TABLE t ALTER b TYPE numeric; ALTER TABLE t SET (fillfactor = 60); ALTER TABLE t ALTER c TYPE text USING lpad(c::text, 5, '0')`,
	}},
	{name: "defaults of the moment", sent: []string{
		`CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1), (2)`, `ALTER TABLE t ADD at timestamptz NOT NULL DEFAULT now(), ADD COLUMN "By" text DEFAULT 'x' || current_user`,
		`ALTER TABLE t ADD d timestamp DEFAULT 'now', ADD e date DEFAULT CURRENT_DATE CHECK (e > '2000-01-01')`, `CREATE TABLE u (a timestamptz DEFAULT 'now', b text DEFAULT 'nowhere')`,
		`CREATE DOMAIN stamp AS timestamptz DEFAULT now(); ALTER TABLE t ADD s stamp`, `INSERT INTO t (a) VALUES (3)`,
		`CREATE TABLE p (a int) PARTITION BY LIST (a); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); INSERT INTO p VALUES (1); ALTER TABLE p ADD at timestamptz DEFAULT now()`,
	}},
	{name: "empty tables need no seeding", sent: []string{
		`CREATE TABLE t (a int); ALTER TABLE t ADD id serial PRIMARY KEY, ADD u uuid DEFAULT gen_random_uuid(), ADD r float DEFAULT random(); INSERT INTO t (a) VALUES (1)`,
	}},
	{name: "extensions", sent: []string{
		`CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION IF NOT EXISTS hstore; CREATE EXTENSION earthdistance CASCADE; CREATE TABLE t (h ext.hstore, c cube); INSERT INTO t VALUES ('a=>1', '(1,2)')`,
		`CREATE TABLE c1 AS SELECT * FROM t`, `ALTER EXTENSION hstore SET SCHEMA public`, `DROP EXTENSION earthdistance`, `CREATE EXTENSION pg_trgm VERSION '1.3'`, `ALTER EXTENSION pg_trgm UPDATE`,
		`CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER EXTENSION hstore ADD FUNCTION mine()`,
	}},
	{name: "publications and subscriptions", sent: []string{
		`CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION mine FOR TABLE t; ALTER PUBLICATION mine SET (publish = 'insert'); CREATE PUBLICATION every FOR ALL TABLES; CREATE PUBLICATION hawser_fedcba9876543210 FOR TABLE t`,
		`DROP PUBLICATION hawser_fedcba9876543210; CREATE SUBSCRIPTION sub CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false); ALTER SUBSCRIPTION sub DISABLE; COMMENT ON SUBSCRIPTION sub IS 'x'; ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub`,
	}},
	{name: "publications of a part", since: 150000, sent: []string{
		`CREATE TABLE t (a int PRIMARY KEY, b text); CREATE SCHEMA other; CREATE PUBLICATION mine FOR TABLE t WHERE (a > 5), TABLES IN SCHEMA other`,
	}},
	{name: "reindex of a broken index", since: 170000, sent: []string{
		`CREATE TABLE t (a int); INSERT INTO t VALUES (1)`, `CREATE INDEX i ON t (a)`, `REINDEX INDEX CONCURRENTLY i`, `REINDEX TABLE t`,
	}},
	{name: "foreign data", sent: []string{
		`CREATE EXTENSION postgres_fdw; CREATE SERVER srv FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'x'); ALTER SERVER srv OPTIONS (SET host 'y'); CREATE USER MAPPING FOR CURRENT_USER SERVER srv OPTIONS (user 'u', password 'p'); CREATE FOREIGN TABLE ft (a int OPTIONS (column_name 'A')) SERVER srv OPTIONS (table_name 'T'); ALTER FOREIGN TABLE ft ADD b text; ALTER USER MAPPING FOR CURRENT_USER SERVER srv OPTIONS (SET password 'q'); DROP USER MAPPING FOR CURRENT_USER SERVER srv; CREATE FOREIGN DATA WRAPPER w; ALTER FOREIGN DATA WRAPPER w OPTIONS (a 'b')`,
	}},
	{name: "event triggers of the user's", sent: []string{
		`CREATE FUNCTION audit() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP EXECUTE format('COMMENT ON TABLE %s IS %L', r.object_identity, 'audited'); END LOOP; END $$`,
		`CREATE EVENT TRIGGER audit ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION audit()`,
		`CREATE TABLE t (a int); CREATE TABLE u (a int)`,
		`CREATE FUNCTION gone() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE t (replaced int); END $$; CREATE EVENT TRIGGER gone ON sql_drop WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION gone()`,
		`DROP TABLE t`, `DROP EVENT TRIGGER gone; DROP FUNCTION gone(); COMMENT ON EVENT TRIGGER audit IS 'it''s'; ALTER EVENT TRIGGER audit DISABLE`,
		`CREATE FUNCTION soon() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER soon ON ddl_command_start EXECUTE FUNCTION soon(); DROP FUNCTION soon() CASCADE`,
	}},
}
