package seed

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// findingsEach is how many tables a check names one by one.
const findingsEach = 10

// Check tells, on the primary, what would hinder the copy of the database's
// tables, and how large it is with those alone that f chooses.
func Check(ctx context.Context, conn *pgx.Conn, f filter.Filter) (problem.Findings, error) {
	likes, err := f.Likes()
	if err != nil {
		return nil, err
	}
	out, err := unreadable(ctx, conn, 0)
	if err != nil {
		return nil, err
	}
	found, err := held(ctx, conn)
	if err != nil {
		return nil, err
	}
	out = append(out, found...)
	var tables int
	var size string
	if err := conn.QueryRow(ctx, `SELECT count(*), pg_size_pretty(coalesce(sum(`+tableSize+`), 0))`+carried+` AND `+filter.Params(), likes.Args()...).Scan(&tables, &size); err != nil {
		return nil, fmt.Errorf("add up the size of the tables: %w", err)
	}
	return append(out, problem.Noted("copy-size", "the copy", fmt.Sprintf("%d tables, %s without indexes", tables, size))), nil
}

// unreadable finds the tables whose rows the session's role can't read, or not
// all of them. oid 0 asks for every table.
func unreadable(ctx context.Context, conn *pgx.Conn, oid uint32) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `
		SELECT * FROM (
			SELECT n.nspname, c.relname, current_user::text,
			       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable,
			       row_security_active(c.oid) AS hidden
			`+carried+` AND ($1 = 0::oid OR c.oid = $1)) t
		WHERE NOT readable OR hidden ORDER BY nspname, relname`, oid)
	if err != nil {
		return nil, fmt.Errorf("look for tables that can't be read: %w", err)
	}
	var denied, filtered []string
	var schema, name, role string
	var readable, hidden bool
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &role, &readable, &hidden}, func() error {
		table := "table " + postgres.QuoteIdent(schema, name)
		if !readable {
			denied = append(denied, table)
		}
		if hidden {
			filtered = append(filtered, table)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for tables that can't be read: %w", err)
	}
	role = postgres.QuoteIdent(role)
	out := each(denied, "table-unreadable", "role "+role+" may not read it, so it can't be copied", "GRANT pg_read_all_data TO "+role+";")
	return append(out, each(filtered, "rows-hidden",
		"row-level security hides rows of it from role "+role+", and a copy must have them all", "ALTER ROLE "+role+" BYPASSRLS;")...), nil
}

// each makes a finding for each of the first tables, and one for all the others.
func each(tables []string, code, cause, remedy string) problem.Findings {
	var out problem.Findings
	for i, t := range tables {
		if i == findingsEach {
			return append(out, problem.New(code, fmt.Sprintf("%d more tables", len(tables)-i), cause, remedy))
		}
		out = append(out, problem.New(code, t, cause, remedy))
	}
	return out
}

// held finds the tables that a session holds so that no other can read them.
func held(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `
		SELECT t.nspname, t.relname, coalesce(l.pid, 0)
		FROM pg_locks l JOIN (SELECT c.oid, n.nspname, c.relname `+carried+`) t ON t.oid = l.relation
		WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
		  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		ORDER BY 1, 2 LIMIT `+fmt.Sprint(findingsEach))
	if err != nil {
		return nil, fmt.Errorf("look for locked tables: %w", err)
	}
	var out problem.Findings
	var schema, name string
	var pid int32
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &pid}, func() error {
		cause, remedy, advice := fmt.Sprintf("backend %d holds it in ACCESS EXCLUSIVE mode; its copy waits for that", pid),
			fmt.Sprintf("SELECT pg_terminate_backend(%d);", pid), "or let it end"
		if pid == 0 {
			cause, remedy, advice = "a prepared transaction holds it in ACCESS EXCLUSIVE mode; its copy waits for that",
				"SELECT * FROM pg_prepared_xacts;", "it shows it: COMMIT PREPARED or ROLLBACK PREPARED it"
		}
		out = append(out, problem.Warn("table-locked", "table "+postgres.QuoteIdent(schema, name), cause, remedy).Advise(advice))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for locked tables: %w", err)
	}
	return out, nil
}
