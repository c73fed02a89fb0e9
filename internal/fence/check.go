package fence

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Check reports whether the fence is closed, and what weakens it.
func Check(ctx context.Context, conn *pgx.Conn) (closed bool, findings problem.Findings, err error) {
	_, mark, _, err := settings(ctx, conn)
	if err != nil {
		return false, nil, err
	}
	for _, check := range []func(context.Context, *pgx.Conn) (problem.Findings, error){checkTables, checkEventTrigger, checkRoles} {
		found, err := check(ctx, conn)
		if err != nil {
			return false, nil, err
		}
		findings = append(findings, found...)
	}
	return mark != "", findings, nil
}

func checkTables(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	var out problem.Findings
	missing, err := names(ctx, conn, lacking)
	if err != nil {
		return nil, fmt.Errorf("look for tables without the fence: %w", err)
	}
	for _, t := range missing {
		out = append(out, problem.Warn("fence-missing", "table "+postgres.QuoteIdent(t[0], t[1]),
			"it has no trigger hawser_fence: a session that switches read-only off could write to it", "none: the agent puts it back when it starts"))
	}
	disabled, err := names(ctx, conn, `SELECT n.nspname, c.relname`+userTables+`
		AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'hawser_fence' AND t.tgenabled NOT IN ('O', 'A'))`)
	if err != nil {
		return nil, fmt.Errorf("look for disabled triggers of the fence: %w", err)
	}
	for _, t := range disabled {
		table := postgres.QuoteIdent(t[0], t[1])
		out = append(out, problem.Warn("fence-disabled", "table "+table, "somebody disabled its trigger hawser_fence",
			"ALTER TABLE "+table+" ENABLE TRIGGER hawser_fence;"))
	}
	return out, nil
}

func checkEventTrigger(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	var ok bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'hawser_fence' AND evtenabled IN ('O', 'A'))`).Scan(&ok)
	if err != nil {
		return nil, fmt.Errorf("look for the fence's event trigger: %w", err)
	}
	if ok {
		return nil, nil
	}
	return problem.Findings{problem.Warn("fence-disabled", "event trigger hawser_fence", "it is missing or disabled: DDL is not refused",
		"ALTER EVENT TRIGGER hawser_fence ENABLE;")}, nil
}

// checkRoles finds roles whose own setting overrides the database's.
func checkRoles(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `
		SELECT quote_ident(r.rolname) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
		WHERE (s.setdatabase = 0 OR s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()))
		  AND 'default_transaction_read_only=off' = ANY (s.setconfig)
		ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("look for roles that override the fence: %w", err)
	}
	roles, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for roles that override the fence: %w", err)
	}
	var out problem.Findings
	for _, role := range roles {
		out = append(out, problem.Warn("fence-overridden", "role "+role,
			"its own setting default_transaction_read_only = off overrides the database's: its sessions look writable to libpq, and meet the triggers",
			"ALTER ROLE "+role+" RESET default_transaction_read_only;"))
	}
	return out, nil
}
