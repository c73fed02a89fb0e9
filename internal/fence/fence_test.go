package fence

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/testpg"
)

func zoo(t *testing.T, c *testpg.Cluster) string {
	t.Helper()
	text, err := os.ReadFile("testdata/zoo.sql")
	must(t, err)
	database := c.CreateDatabase(t)
	c.Exec(t, database, string(text))
	return database
}

var writes = []string{
	`INSERT INTO plain VALUES (1000, 'x')`,
	`UPDATE plain SET v = 'y' WHERE id = 1`,
	`DELETE FROM plain WHERE id = 1`,
	`DELETE FROM plain WHERE false`,
	`TRUNCATE child`,
	`TRUNCATE plain CASCADE`,
	`INSERT INTO plain VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET v = 'z'`,
	`INSERT INTO plain VALUES (1, 'x') ON CONFLICT DO NOTHING`,
	`UPDATE plain SET id = id + 1000`, // cascades to child
	`INSERT INTO part VALUES (1, '2025-05-05')`,
	`INSERT INTO part_2025 VALUES (1, '2025-05-05')`,
	`INSERT INTO part_2026_0 VALUES (1, '2026-05-05')`,
	`TRUNCATE part`,
	`UPDATE parent SET id = 2`,
	`DELETE FROM ONLY heir`,
	`INSERT INTO "Odd ""schema"""."Tábla 'x'" VALUES (1)`,
	`INSERT INTO scratch VALUES (1)`,
	`INSERT INTO simple VALUES (1000, 'x')`,
	`INSERT INTO joined VALUES (1000, 1)`,
	`INSERT INTO ruled VALUES (1000)`,
	`WITH x AS (DELETE FROM plain RETURNING id) SELECT count(*) FROM x`,
	`WITH x AS (INSERT INTO child VALUES (500, 1)) SELECT 1`,
	`SELECT definer()`,
	`DO $$ BEGIN EXECUTE 'DELETE FROM child'; END $$`,
	`EXPLAIN ANALYZE DELETE FROM child`,
	`PREPARE p AS DELETE FROM child; EXECUTE p`,
	`COPY plain FROM PROGRAM 'echo 1000'`,
	`SET search_path = evil, public, pg_catalog; DELETE FROM public.child`,
	`SET standard_conforming_strings = off; DELETE FROM child`,
	`SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; DELETE FROM child`,
	`SET session_replication_role = local; DELETE FROM child`,
}

var commands = []string{
	`CREATE TABLE new (id integer)`,
	`CREATE TEMP TABLE new (id integer)`,
	`CREATE TABLE new AS SELECT * FROM plain`,
	`SELECT * INTO new FROM plain`,
	`ALTER TABLE plain ADD COLUMN more integer`,
	`ALTER TABLE plain DISABLE TRIGGER ALL`,
	`ALTER TABLE part DETACH PARTITION part_2025`,
	`DROP TABLE child`,
	`DROP TRIGGER hawser_fence ON plain`,
	`DROP SCHEMA hawser CASCADE`,
	`DROP FUNCTION hawser.fence() CASCADE`,
	`CREATE OR REPLACE FUNCTION hawser.fence() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`,
	`REFRESH MATERIALIZED VIEW mat`,
	`CREATE INDEX ON plain (v)`,
	`CREATE INDEX CONCURRENTLY ON plain (v)`,
	`CREATE VIEW v AS SELECT 1`,
	`CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
	`ALTER TYPE mood ADD VALUE 'happy'`,
	`ALTER SEQUENCE seq RESTART`,
	`GRANT SELECT ON plain TO PUBLIC`,
	`COMMENT ON TABLE plain IS 'x'`,
	`CREATE EXTENSION hstore`,
	`DROP OWNED BY postgres`,
	`CREATE PUBLICATION p`,
	`ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC`,
	`DO $$ BEGIN CREATE TABLE new (id integer); END $$`,
	`IMPORT FOREIGN SCHEMA x FROM SERVER files INTO public`,
}

// A superuser's session that was open before, with read-only switched off.
func TestRefusesEveryWrite(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), stubborn(t, c, db)
	version := user.PgConn().ParameterStatus("server_version")
	run(t, user, `CREATE TEMP TABLE mine (id integer)`)
	must(t, Prepare(t.Context(), hawser, nil))
	run(t, user, `INSERT INTO part VALUES (7, '2026-01-01')`) // open: it lets everything pass
	before := content(t, hawser)
	must(t, Close(t.Context(), hawser, sign))

	all := slices.Concat(writes, commands)
	if version >= "15" {
		all = append(all, `MERGE INTO plain USING (VALUES (1)) s (id) ON plain.id = s.id WHEN MATCHED THEN UPDATE SET v = 'm'`,
			`MERGE INTO plain USING (VALUES (1)) s (id) ON plain.id = s.id + 5000 WHEN NOT MATCHED THEN INSERT VALUES (5000)`)
	}
	for _, sql := range all {
		pg := refused(t, user, sql)
		if !strings.Contains(pg.Message, "Hawser link orders") || !strings.Contains(pg.Hint, "mi-west") || pg.Detail == "" {
			t.Errorf("%s: the error does not teach: %s | %s | %s", sql, pg.Message, pg.Detail, pg.Hint)
		}
		run(t, user, `RESET ALL; SET default_transaction_read_only = off; DEALLOCATE ALL`)
	}
	if got := testpg.Rows(t, user, `SELECT swallow()`); got[0] != "25006" {
		t.Errorf("a function that swallows the error: %v", got)
	}
	if after := content(t, hawser); after != before {
		t.Errorf("rows changed: %s, before %s", after, before)
	}
	for _, sql := range []string{
		`SELECT count(*) FROM plain`, `VACUUM plain`, `ANALYZE plain`, `VACUUM FULL child`, `REINDEX TABLE plain`, `CLUSTER child USING child_pkey`,
		`INSERT INTO mine VALUES (1); UPDATE mine SET id = 2; TRUNCATE mine`, `LISTEN x; NOTIFY x`, `CHECKPOINT`,
		`BEGIN; SELECT * FROM plain FOR UPDATE; ROLLBACK`, `BEGIN; LOCK TABLE plain IN ACCESS SHARE MODE; COMMIT`,
	} {
		run(t, user, sql)
	}
	for _, sql := range []string{writes[0], commands[0], `REFRESH MATERIALIZED VIEW mat`, `SELECT nextval('seq')`} {
		run(t, hawser, sql)
	}
	run(t, hawser, `DELETE FROM plain WHERE id = 1000; DROP TABLE new`)

	must(t, Open(t.Context(), hawser))
	run(t, user, `INSERT INTO plain VALUES (2000, 'again'); CREATE TABLE later (id integer); TRUNCATE part; SELECT swallow()`)
}

// A superuser's session in which ordinary triggers rest, as a restore's or a tool's for
// replication: it is no agent's, whatever it calls itself.
func TestRefusesReplicationSessions(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), stubborn(t, c, db)
	must(t, Prepare(t.Context(), hawser, nil))
	const passes = `SET session_replication_role = replica; SET application_name = 'hawser:orders:apply'; `
	run(t, user, passes+`INSERT INTO plain VALUES (999, 'open')`)
	before := content(t, hawser)
	must(t, Close(t.Context(), hawser, sign))
	for _, sql := range []string{writes[0], writes[1], writes[2], writes[4], writes[5], `COPY plain FROM PROGRAM 'echo 1000'`, `DELETE FROM part_2025`,
		`SELECT definer()`, `WITH x AS (DELETE FROM plain RETURNING id) SELECT count(*) FROM x`, `SET session_replication_role = origin; SET hawser.agent = on; DELETE FROM plain`} {
		if pg := refused(t, user, passes+sql); !strings.Contains(pg.Message, "Hawser link orders") {
			t.Errorf("%s: %s", sql, pg.Message)
		}
		run(t, user, `RESET ALL; SET default_transaction_read_only = off`)
	}
	for _, sql := range commands {
		refused(t, user, passes+sql)
	}
	if after := content(t, hawser); after != before {
		t.Errorf("rows changed: %s, before %s", after, before)
	}
	run(t, hawser, `INSERT INTO plain VALUES (1000, 'agent'); CREATE TABLE made (id integer); DROP TABLE made; DELETE FROM plain WHERE id = 1000`)
	must(t, Open(t.Context(), hawser))
	run(t, user, passes+`DELETE FROM plain WHERE id = 999; CREATE TABLE made (id integer)`)
}

func content(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	return strings.Join(testpg.Rows(t, conn, `
		SELECT (SELECT count(*) || md5(string_agg(p::text, ',' ORDER BY id)) FROM plain p), (SELECT count(*) || md5(string_agg(p::text, ',' ORDER BY id)) FROM child p),
		       (SELECT count(*) FROM part), (SELECT count(*) FROM parent), (SELECT count(*) FROM scratch),
		       (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_trigger)`), "\n")
}

func TestForeignTables(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db, other := c.CreateDatabase(t), c.CreateDatabase(t)
	c.Exec(t, other, `CREATE TABLE remote (id integer)`)
	hawser, user := agent(t, c, db), stubborn(t, c, db)
	run(t, hawser, fmt.Sprintf(`CREATE EXTENSION postgres_fdw;
		CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '%d', dbname '%s');
		CREATE USER MAPPING FOR postgres SERVER other OPTIONS (user 'postgres', password_required 'false');
		CREATE FOREIGN TABLE remote (id integer) SERVER other`, c.Port(), other))
	must(t, Prepare(t.Context(), hawser, nil))
	run(t, user, `INSERT INTO remote VALUES (1); TRUNCATE remote`)
	must(t, Close(t.Context(), hawser, sign))
	refused(t, user, `INSERT INTO remote VALUES (1)`)
	if user.PgConn().ParameterStatus("server_version") >= "16" {
		refused(t, user, `TRUNCATE remote`)
	}
}

// A transaction with an old snapshot meets the new functions all the same.
func TestOldSnapshots(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), stubborn(t, c, db)
	must(t, Prepare(t.Context(), hawser, nil))
	run(t, user, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_db_role_setting, pg_proc`)
	must(t, Close(t.Context(), hawser, sign))
	refused(t, user, `DELETE FROM child`)
	run(t, user, `ROLLBACK`)
}

func TestDefaultIsReadOnly(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser := agent(t, c, db)
	must(t, Prepare(t.Context(), hawser, nil))
	must(t, Close(t.Context(), hawser, Sign{Link: `o"d'd\n %s`}))
	user := c.Connect(t, db)
	if got := testpg.Rows(t, user, `SHOW transaction_read_only`); got[0] != "on" {
		t.Errorf("transaction_read_only is %s", got[0])
	}
	refused(t, user, `SELECT nextval('seq')`)
	refused(t, user, `SELECT setval('seq', 5)`)
	refused(t, user, `REASSIGN OWNED BY pg_monitor TO postgres`)
	refused(t, user, `BEGIN; SELECT * FROM plain FOR UPDATE`)
	run(t, user, `ROLLBACK`)
	if user.PgConn().ParameterStatus("server_version") >= "16" {
		refused(t, user, `SELECT lo_create(0)`)
	}
	run(t, user, `SET default_transaction_read_only = off`)
	pg := refused(t, user, `DELETE FROM child`)
	if !strings.Contains(pg.Message, `Hawser link "o""d'd\n %s" is failing over`) || pg.TableName != "child" {
		t.Errorf("message: %s, table %s", pg.Message, pg.TableName)
	}
	if _, err := pgx.Connect(t.Context(), c.DSN(db)+" target_session_attrs=read-write"); err == nil {
		t.Error("target_session_attrs=read-write takes the fenced side")
	}
	must(t, Open(t.Context(), hawser))
	conn, err := pgx.Connect(t.Context(), c.DSN(db)+" target_session_attrs=read-write")
	must(t, err)
	must(t, conn.Close(t.Context()))
}

func TestRemembersTheUsersDefault(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	for _, was := range []string{"", "on", "off"} {
		db := c.CreateDatabase(t)
		hawser := agent(t, c, db)
		settings := func() string {
			return strings.Join(testpg.Rows(t, hawser, `SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()`), ";")
		}
		run(t, hawser, `ALTER DATABASE `+db+` SET work_mem = '5MB'`)
		if was != "" {
			run(t, hawser, `ALTER DATABASE `+db+` SET default_transaction_read_only = `+was)
		}
		before := settings()
		must(t, Close(t.Context(), hawser, sign))
		must(t, Close(t.Context(), hawser, Sign{Link: "other"}))
		if s, _, err := Check(t.Context(), hawser); err != nil || !s.Closed || s.Sign.Link != "other" || s.Since.IsZero() {
			t.Errorf("state %+v, error %v", s, err)
		}
		if got := settings(); !strings.Contains(got, "default_transaction_read_only=on") {
			t.Errorf("closed: %s", got)
		}
		must(t, Open(t.Context(), hawser))
		must(t, Open(t.Context(), hawser))
		if got := settings(); got != before {
			t.Errorf("opened: %s, was %s", got, before)
		}
	}
}

// Close and Open take no lock on tables: somebody else may hold the strongest.
func TestCloseLocksNoTable(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), stubborn(t, c, db)
	must(t, Prepare(t.Context(), hawser, nil))
	run(t, user, `BEGIN; LOCK TABLE plain, child, part IN ACCESS EXCLUSIVE MODE`)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	must(t, Close(ctx, hawser, sign))
	must(t, Open(ctx, hawser))
	run(t, user, `COMMIT`)
}

func TestCopiesAreWritable(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser := agent(t, c, db)
	must(t, Prepare(t.Context(), hawser, nil))
	must(t, Close(t.Context(), hawser, sign))
	must(t, hawser.Close(t.Context()))

	copied := c.CreateDatabase(t)
	restore(t, c, db, copied)
	user := c.Connect(t, copied)
	if got := testpg.Rows(t, user, `SELECT count(*) FROM plain`); got[0] != "100" {
		t.Errorf("%s rows were restored", got[0])
	}
	run(t, user, `DELETE FROM child; CREATE TABLE new (id integer)`)
	run(t, user, `DROP SCHEMA hawser CASCADE`)

	template := c.CreateDatabase(t)
	c.DropDatabase(template)
	c.Exec(t, "postgres", `CREATE DATABASE `+template+` TEMPLATE `+db)
	user = c.Connect(t, template)
	run(t, user, `DELETE FROM child; CREATE TABLE new (id integer)`)

	// What pg_upgrade and a renaming do: the identity is another one, the setting stays.
	c.Exec(t, "postgres", `ALTER DATABASE `+template+` SET default_transaction_read_only = on`)
	user = stubborn(t, c, template)
	refused(t, user, `DELETE FROM plain`)
}
