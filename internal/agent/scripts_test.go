package agent_test

import (
	"testing"

	"github.com/hawser/hawser/internal/agent/api"
)

// TestRowsBesideAnExtensionsScript: a user's event trigger writes rows for the commands of
// an extension's script. They are the user's, and the secondary's own script brings none.
func TestRowsBesideAnExtensionsScript(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE audit (n bigserial PRIMARY KEY, what text)`, `CREATE TABLE t (id int PRIMARY KEY, v text)`,
		`CREATE FUNCTION trg_ev() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.audit (what) VALUES (tg_tag); END$$`,
		`CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION trg_ev()`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for _, state := range []string{"ENABLE", "ENABLE ALWAYS"} {
		a.Exec(t, "shop", `ALTER EVENT TRIGGER mine `+state,
			`CREATE EXTENSION pgcrypto`, `CREATE EXTENSION pg_trgm VERSION '1.3'`, `ALTER EXTENSION pg_trgm UPDATE`, `CREATE EXTENSION IF NOT EXISTS pgcrypto`,
			`CREATE EXTENSION earthdistance CASCADE`, `BEGIN; INSERT INTO t VALUES (1, 'a'); CREATE EXTENSION hstore; UPDATE t SET v = 'b'; SAVEPOINT s; CREATE EXTENSION citext; ROLLBACK TO s; DELETE FROM t; COMMIT`,
			`CREATE SCHEMA s CREATE TABLE one (a int PRIMARY KEY) CREATE TABLE two (a int REFERENCES one) CREATE VIEW three AS SELECT * FROM one CREATE INDEX ON two (a)`,
			`CREATE TABLE filled AS SELECT 1 AS a`, `SELECT 2 AS a INTO selected`, `CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t`, `REFRESH MATERIALIZED VIEW m`)
		equal(t, a, b, "shop")
		a.Exec(t, "shop", `DROP EXTENSION pgcrypto, pg_trgm, earthdistance, cube, hstore; DROP SCHEMA s CASCADE; DROP TABLE filled, selected; DROP MATERIALIZED VIEW m`)
	}
	if n := a.Rows(t, "shop", `SELECT count(*)::text FROM audit`)[0]; len(n) < 3 {
		t.Errorf("the event trigger wrote %s rows", n)
	}
	equal(t, a, b, "shop")
}
