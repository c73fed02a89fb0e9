package fence

import (
	"fmt"
	"strings"

	"github.com/hawser/hawser/internal/postgres"
)

// Sign is what a client reads that is refused.
type Sign struct {
	Link string // the link's name
	// Primary is the instance that takes writes; empty while a failover is under
	// way and none does.
	Primary string
}

const (
	openTable = `BEGIN RETURN NULL; END`
	openDDL   = `BEGIN END`

	trigger = "hawser_fence"
	// replicaTrigger is the same for sessions of replication, where triggers such as the
	// first rest. Its condition lets the agents pass; PostgreSQL weighs it without a call.
	replicaTrigger = "hawser_fence_replica"

	// agents is true of an agent's session. The second half anybody may set, the first
	// one a superuser.
	agents = `(current_setting('session_replication_role') = 'replica' AND current_setting('` + postgres.AgentSetting + `', true) = 'on')`

	// filling is true of an agent's session that fills a materialized view.
	filling = `(current_setting('session_replication_role') = 'replica' AND current_setting('` + postgres.AgentSetting + `', true) = '` + postgres.AgentFills + `')`

	// merging matches where REFRESH CONCURRENTLY makes its own temporary table and drops it. No
	// user's function can do that inside a materialized view's query.
	merging = `(CREATE TEMP|ALTER|DROP) TABLE pg_temp_[0-9]+\.pg_temp_[0-9]+`

	// form is what Close writes into the memo: a fence that an older agent closed is
	// closed again.
	form = 3

	createSchema = "CREATE SCHEMA IF NOT EXISTS hawser;\n"
)

// home is the database that is being closed. Elsewhere the closed functions let
// everything pass.
type home struct {
	System   string // system identifier
	Database uint32 // OID
}

// elsewhere is true in a copy of the database. Both parts have to be: the first
// alone would open a secondary that went through pg_upgrade.
func (h home) elsewhere() string {
	return fmt.Sprintf(`NOT EXISTS (
			SELECT FROM pg_control_system() c, pg_database d
			WHERE d.datname = current_database() AND d.oid = %d AND c.system_identifier = %s)
		AND NOT EXISTS (
			SELECT FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
			WHERE d.datname = current_database() AND s.setrole = 0
			AND 'default_transaction_read_only=on' = ANY (s.setconfig))`, h.Database, h.System)
}

func closedTable(s Sign, h home) string {
	return fmt.Sprintf(`BEGIN
	IF %s THEN
		RETURN NULL;
	END IF;
	RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = %s,
		DETAIL = format('%%s on table %%I.%%I was refused. On this side the link alone writes.', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME),
		HINT = %s, SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
END`, h.elsewhere(), s.message(), s.hint())
}

// closedDDL lets REINDEX pass, which read-only transactions may do too. Of a session that
// fills a materialized view it lets pass what the agent commands and what that needs, and
// nothing that the query does.
func closedDDL(s Sign, h home) string {
	return fmt.Sprintf(`DECLARE
	stack text;
BEGIN
	IF %s IS TRUE OR TG_TAG = 'REINDEX' OR %s THEN
		RETURN;
	END IF;
	IF %s IS TRUE THEN
		GET DIAGNOSTICS stack = PG_CONTEXT; -- the first line is this function's
		stack := split_part(stack, E'\n', 2);
		IF stack = '' OR TG_TAG IN ('CREATE MATERIALIZED VIEW', 'REFRESH MATERIALIZED VIEW') OR stack ~ '%s' THEN
			RETURN;
		END IF;
	END IF;
	RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = %s,
		DETAIL = format('%%s was refused. On this side the link alone writes.', TG_TAG),
		HINT = %s;
END`, agents, h.elsewhere(), filling, merging, s.message(), s.hint())
}

func (s Sign) message() string {
	why := "it is the secondary side of Hawser link %I"
	if s.Primary == "" {
		why = "Hawser link %I is failing over"
	}
	return fmt.Sprintf(`format('database %%I is read-only: %s', current_database(), %s)`, why, literal(s.Link))
}

func (s Sign) hint() string {
	if s.Primary == "" {
		return literal("Connect again in a moment, with both hosts in one connection string and target_session_attrs=read-write.")
	}
	return literal(fmt.Sprintf("Write to the primary, instance %s: put both hosts into one connection string with target_session_attrs=read-write. "+
		"To make this side the primary: hawser link failover %s", s.Primary, s.Link))
}

// function writes a function of the fence. The body of the closed form must not
// find other operators or functions than PostgreSQL's, whatever the user's search_path is.
func function(name, returns, body string, closed bool) string {
	path := ""
	if closed {
		path = " SET search_path = pg_catalog, pg_temp"
	}
	return "CREATE OR REPLACE FUNCTION hawser." + name + "() RETURNS " + returns + " LANGUAGE plpgsql" + path + " AS " + literal(body) + ";\n"
}

func openFunctions() string {
	return function("fence", "trigger", openTable, false) + function("fence_ddl", "event_trigger", openDDL, false)
}

func closedFunctions(s Sign, h home) string {
	return function("fence", "trigger", closedTable(s, h), true) + function("fence_ddl", "event_trigger", closedDDL(s, h), true)
}

// literal quotes a string so that it means the same whatever
// standard_conforming_strings is. The bodies of fences that are closed hold what it
// writes, and Check compares them, so it goes on writing the same.
func literal(s string) string {
	return "E'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `'`, `''`) + "'"
}

// lacking lists the tables of users of whose triggers one is missing or not as it has to
// be: on every event, one for ordinary sessions, unconditional, and one for those of
// replication. tgtype 62 is a statement-level trigger BEFORE INSERT, DELETE, UPDATE and TRUNCATE; foreign
// tables know none for TRUNCATE before PostgreSQL 16.
const lacking = `
	SELECT oid, nspname, relname, truncate FROM (
		SELECT c.oid, n.nspname, c.relname, c.relkind <> 'f' OR current_setting('server_version_num')::int >= 160000 AS truncate
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND c.oid >= 16384
		AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')) c
	WHERE 2 <> (
		SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid
		AND (t.tgname = 'hawser_fence' AND t.tgenabled = 'O' AND t.tgqual IS NULL
			OR t.tgname = 'hawser_fence_replica' AND t.tgenabled = 'R' AND t.tgqual IS NOT NULL)
		AND t.tgfoid = to_regprocedure('hawser.fence()') AND t.tgattr = ''
		AND t.tgtype = CASE WHEN truncate THEN 62 ELSE 30 END)`
