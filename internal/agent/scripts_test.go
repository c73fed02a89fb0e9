package agent_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
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

// TestEventTriggerBesideOwners: an event trigger is to fire always, and objects get another owner,
// which both fire no event and come to the secondary together. It does not fire there.
func TestEventTriggerBesideOwners(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE ROLE app_from; CREATE ROLE app_to`)
	link(t, a, b, `CREATE TABLE audit (n bigserial PRIMARY KEY, what text); GRANT CREATE ON SCHEMA public TO app_from, app_to`,
		`SET ROLE app_from; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'SELECT 1'; RESET ROLE`,
		`CREATE FUNCTION trg_ev() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.audit (what) VALUES (tg_tag); END$$`,
		`CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION trg_ev()`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `BEGIN; ALTER EVENT TRIGGER mine ENABLE ALWAYS; REASSIGN OWNED BY app_from TO app_to; COMMIT`)
	proven(t, a, "shop")
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY)`)
	proven(t, a, "shop")
	equal(t, a, b, "shop")
}

// TestEventTriggerFailsForHawser: a user's event trigger that is ENABLE ALWAYS fires for what
// Hawser makes in the database, up to PostgreSQL 16. Where it fails, it is named.
func TestEventTriggerFailsForHawser(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE audit (n bigserial PRIMARY KEY, what text)`,
		`CREATE FUNCTION trg_ev() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO audit (what) VALUES (tg_tag); END$$`,
		`CREATE EVENT TRIGGER "Mine" ON ddl_command_end EXECUTE FUNCTION trg_ev()`, `ALTER EVENT TRIGGER "Mine" ENABLE ALWAYS`)
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: b.name, Role: api.RolePrimary}
	named := func(p *problem.Problem) {
		t.Helper()
		if p.Code != "event-trigger-failed" || p.Object != `event trigger "Mine"` || !strings.Contains(p.Cause, `relation "audit" does not exist`) ||
			!strings.Contains(p.Cause, "INSERT INTO audit") || p.Remedy != `ALTER EVENT TRIGGER "Mine" ENABLE;` {
			t.Errorf("the problem is %+v", p)
		}
	}
	findings, err := a.ValidateLink(ctx, spec)
	if err != nil || len(findings.Blocking()) != 1 {
		t.Fatalf("validate: %v, %v", findings, err)
	}
	named(findings.Blocking()[0])
	if n := a.Rows(t, "shop", `SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'hawser%'`)[0]; n != "0" {
		t.Errorf("validate left %s schemas", n)
	}
	_, err = a.CreateLink(ctx, spec)
	p, ok := problem.As(err)
	if !ok {
		t.Fatalf("create: %v", err)
	}
	named(p)
	a.Exec(t, "shop", p.Remedy)
	if _, err := a.CreateLink(ctx, spec); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
}

// TestEventTriggersRestForHawser: from PostgreSQL 17 on such a trigger need not fire at all.
func TestEventTriggersRestForHawser(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := versionPair(t, 17, 17)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE audit (n bigserial PRIMARY KEY, what text)`, `CREATE TABLE bare (a int)`,
		`CREATE FUNCTION trg_ev() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO audit (what) VALUES (tg_tag); END$$`,
		`CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION trg_ev()`, `ALTER EVENT TRIGGER mine ENABLE ALWAYS`)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: b.name, Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `INSERT INTO bare VALUES (1); UPDATE bare SET a = 2`)
	equal(t, a, b, "shop")
	for _, from := range []*instance{a, b} {
		if _, err := from.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, a, b, "shop")
	if n := a.Rows(t, "shop", `SELECT count(*)::text FROM audit`)[0]; n != "0" {
		t.Errorf("the trigger fired %s times", n)
	}
}
