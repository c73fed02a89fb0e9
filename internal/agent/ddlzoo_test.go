package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
)

// wait stands for a pause until the secondary has followed.
const wait = ""

// placed is DDL whose place in the stream, session or text decides what it means.
// Each string is a transaction, all are of one session; :s is a schema of the round.
var placed = []string{
	`CREATE SCHEMA :s; SET search_path = :s, public; SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo'`,
	`CREATE TABLE t (id int PRIMARY KEY, at timestamptz DEFAULT '02/03/2024 10:00', v text); INSERT INTO t (id) SELECT generate_series(1, 50); ALTER TABLE t ADD n numeric DEFAULT 1.5; UPDATE t SET n = 2 WHERE id < 10; ALTER TABLE t RENAME n TO m; DELETE FROM t WHERE m = 2`,
	`ALTER TABLE t ADD r float DEFAULT random(), ADD u uuid DEFAULT gen_random_uuid()`, `UPDATE t SET v = 'after' WHERE id > 40`,
	`ALTER TABLE t ADD s float DEFAULT random(); INSERT INTO t (id) VALUES (1000); ALTER TABLE t ADD late int DEFAULT 3; UPDATE t SET v = 'same transaction'`,
	`CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'CREATE TABLE in_sql (a int); ALTER TABLE in_sql ADD b int'; SET check_function_bodies = off`, `SELECT f()`,
	`DO $$ BEGIN FOR i IN 1..3 LOOP EXECUTE format('CREATE TABLE loop_%s (a int)', i); INSERT INTO loop_1 VALUES (i); END LOOP; BEGIN CREATE TABLE never (a int); RAISE 'x'; EXCEPTION WHEN OTHERS THEN CREATE TABLE instead (a int); END; END $$`,
	`BEGIN; SAVEPOINT a; CREATE TABLE gone (a int); INSERT INTO gone VALUES (1); ROLLBACK TO a; CREATE TABLE stays (a int); INSERT INTO stays VALUES (1); SAVEPOINT b; ALTER TABLE stays ADD b int; ROLLBACK TO b; INSERT INTO stays VALUES (2); COMMIT`,
	`CREATE INDEX CONCURRENTLY ON t (v)`, `CREATE UNIQUE INDEX CONCURRENTLY t_id ON t (id) INCLUDE (v)`, `REINDEX TABLE CONCURRENTLY t`, `DROP INDEX CONCURRENTLY t_id`,
	wait, // a table that is copied again is ahead of the stream, and what is made of it too
	`CREATE MATERIALIZED VIEW m AS SELECT count(*), max(r) FROM t; CREATE UNIQUE INDEX ON m (count)`, `INSERT INTO t (id) VALUES (2000)`, `REFRESH MATERIALIZED VIEW CONCURRENTLY m`,
	`CREATE TABLE ctas AS SELECT id, random() AS r FROM t`, `SELECT id, clock_timestamp() AS c INTO into_ FROM t; ALTER TABLE into_ ADD PRIMARY KEY (id)`,
	`CREATE TYPE e AS ENUM ('a'); CREATE TABLE uses (e e)`, `ALTER TYPE e ADD VALUE 'b' BEFORE 'a'`, `INSERT INTO uses VALUES ('b')`,
	`CREATE EXTENSION hstore SCHEMA :s`, `CREATE TABLE h (h hstore); INSERT INTO h VALUES ('a=>1')`, `DROP EXTENSION hstore CASCADE`,
	// What extensions' scripts do that add themselves to the database's search_path.
	`CREATE FUNCTION began() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT reset_val FROM pg_settings WHERE name = 'search_path' $$; CREATE TABLE paths (id int); INSERT INTO paths VALUES (1); ALTER TABLE paths ADD p text GENERATED ALWAYS AS (began()) STORED`,
	`CREATE ROLE :s_owner; CREATE ROLE :s_other; GRANT ALL ON SCHEMA :s TO :s_owner, :s_other; CREATE TABLE owned (a int PRIMARY KEY); ALTER TABLE owned OWNER TO :s_owner; ALTER TABLE owned ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON owned USING (a > 1); COMMENT ON POLICY p ON owned IS 'c'; GRANT SELECT ON owned TO :s_other; ALTER DEFAULT PRIVILEGES FOR ROLE :s_owner IN SCHEMA :s GRANT SELECT ON TABLES TO :s_other`,
	`SET ROLE :s_owner; CREATE TABLE by_owner (a int); RESET ROLE; REASSIGN OWNED BY :s_owner TO :s_other; DROP OWNED BY :s_owner`,
	`BEGIN; INSERT INTO t (id) VALUES (3000); ALTER TABLE t ADD p int; INSERT INTO t (id, p) VALUES (3001, 1); PREPARE TRANSACTION ':s'`, `COMMIT PREPARED ':s'`,
	`CREATE TEMP TABLE temporary (a int); CREATE RULE y AS ON INSERT TO temporary DO NOTHING; DROP RULE y ON temporary; CREATE FUNCTION of_temporary(temporary) RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION of_temporary(temporary)`,
	`CREATE TABLE at1 (x int, y int); CREATE TABLE at2 (x int, y at1); DROP TABLE at1, at2`,
	`BEGIN ISOLATION LEVEL SERIALIZABLE; CREATE TABLE serial_1 (a int); INSERT INTO serial_1 VALUES (1); COMMIT`,
	`CREATE TABLE keyless (a int, b text, c text); INSERT INTO keyless SELECT i % 5000, md5(i::text), NULL FROM generate_series(1, 20000) i`, `DELETE FROM keyless WHERE a % 10 = 3; UPDATE keyless SET c = 'x' WHERE a % 50 = 1`,
	`CREATE TABLE large (id bigint PRIMARY KEY, v text); INSERT INTO large SELECT i, 'v' || i FROM generate_series(1, 300000) i; UPDATE large SET v = 'w' WHERE id % 100 = 0`,
	`CREATE TABLE huge (id int PRIMARY KEY, v text, n int); INSERT INTO huge SELECT 1, repeat(md5(random()::text), 3200000), 0`, `UPDATE huge SET n = 1`,
}

// TestDDLInItsPlace runs it in both directions.
func TestDDLInItsPlace(t *testing.T) {
	t.Parallel()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	for n, i := range []*instance{a, b} {
		conn := i.Connect(t, "shop")
		for _, sql := range placed {
			if sql == wait {
				arrived(t, i, []*instance{b, a}[n], "shop")
			}
			sql = strings.ReplaceAll(sql, ":s", fmt.Sprintf("s%d", n))
			if _, err := conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
				t.Fatalf("%.200s: %v", sql, err)
			}
		}
		if n == 1 {
			same(t, b, a, "shop")
			return
		}
		same(t, a, b, "shop")
		if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		a.awaitState(t, "shop", api.StateSynchronized)
	}
}
