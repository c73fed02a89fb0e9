package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// A user's event trigger rests in the agents' sessions, which are those of replication,
// unless it is ENABLE ALWAYS or ENABLE REPLICA. Then it fires for what Hawser makes too, up
// to PostgreSQL 16, and may fail: the path of those sessions is empty.

// CheckEventTriggers plays, in a transaction that is taken back, what Hawser makes, where an
// event trigger would fire for it. conn must have the settings of an agent's session.
func CheckEventTriggers(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	var fires bool
	err := conn.QueryRow(ctx, `SELECT current_setting('event_triggers', true) IS NULL
		AND EXISTS (SELECT FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid WHERE e.evtenabled IN ('A', 'R') AND p.pronamespace::regnamespace::text <> 'hawser')
		AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)`).Scan(&fires)
	if err != nil || !fires {
		return nil, ddlProblem("look for event triggers", err)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, ddlProblem("look for event triggers", err)
	}
	_, failed := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'; CREATE SCHEMA hawser_validate; CREATE TABLE hawser_validate.t (a int);
		ALTER TABLE hawser_validate.t REPLICA IDENTITY FULL; CREATE FUNCTION hawser_validate.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
		DROP FUNCTION hawser_validate.f(); DROP TABLE hawser_validate.t; DROP SCHEMA hawser_validate`)
	if err := tx.Rollback(ctx); err != nil {
		return nil, ddlProblem("look for event triggers", err)
	}
	if p, ok := problem.As(ByEventTrigger(ctx, conn, failed)); ok {
		return problem.Findings{p}, nil
	}
	return nil, nil // what else failed tells nothing of event triggers
}

// ByEventTrigger names the event trigger in whose function a command of the agent's failed;
// any other error it returns as it is. conn must not be in a transaction.
func ByEventTrigger(ctx context.Context, conn *pgx.Conn, failed error) error {
	var pg *pgconn.PgError
	if !errors.As(failed, &pg) || pg.Where == "" {
		return failed
	}
	var name, function string
	err := conn.QueryRow(ctx, `SELECT quote_ident(e.evtname), e.evtfoid::regprocedure::text FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
		WHERE e.evtenabled <> 'D' AND p.pronamespace::regnamespace::text <> 'hawser' AND strpos($1, 'function ' || e.evtfoid::regprocedure || ' line ') > 0
		ORDER BY e.evtenabled IN ('A', 'R') DESC, e.evtname LIMIT 1`, pg.Where).Scan(&name, &function)
	if err != nil {
		return failed // which weighs more than that it is not known by whom
	}
	statement := pg.InternalQuery
	if statement == "" {
		statement = statementOf(pg.Where)
	}
	if statement != "" {
		statement = " at " + statement
	}
	return problem.New("event-trigger-failed", "event trigger "+name,
		fmt.Sprintf("it fires for what Hawser makes in the database too, and its function %s failed%s: %s", function, statement, pg.Message),
		"ALTER EVENT TRIGGER "+name+" ENABLE;").Advise("then it rests in the agents' sessions; or have its function name what it uses with its schema, for the search_path of those is empty").At("the primary")
}

// statementOf takes the SQL statement out of PL/pgSQL's context.
func statementOf(where string) string {
	_, rest, found := strings.Cut(where, `SQL statement "`)
	if !found {
		return ""
	}
	statement, _, _ := strings.Cut(rest, "\"\nPL/pgSQL")
	return statement
}
