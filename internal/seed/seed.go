// Package seed makes the initial copy of tables, beside the stream of changes.
//
// Each table is copied under a snapshot of its own, which is held for no longer
// than that table needs. The applier knows the snapshot before the first row
// arrives and takes from the stream what the snapshot does not see (package apply
// has the rule). An interrupted copy repeats the tables that were under way.
//
// The secondary drives: one stream carries tables one after another. A table that
// is large, TOAST included, is split into ranges of heap pages, which further
// streams copy at the same time under the same exported snapshot. This package
// must never decide when a table is live, and never write to the primary.
package seed

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Stream is what seed needs of a peer's stream.
type Stream interface {
	Send(frame.Frame) error
	Recv() (frame.Frame, error)
}

// ClientStream is a stream that this side opened.
type ClientStream interface {
	Stream
	Close() error
}

// textSettings make COPY's text mean the same on both sides.
const textSettings = `
	SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1; SET bytea_output = 'hex';
	SET timezone = 'UTC'; SET client_encoding = 'UTF8'; SET lc_monetary = 'C'; SET xmloption = 'content'; SET row_security = off;
	SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0`

// carried are the tables whose rows a link carries: ordinary ones and leaf
// partitions that are logged, and of an extension's only those that it declares
// to hold the user's configuration.
const carried = `
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind = 'r' AND c.relpersistence = 'p'
	  AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
	  AND NOT EXISTS (
		SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
		WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass
		  AND d.deptype = 'e' AND NOT c.oid = ANY (coalesce(e.extconfig, '{}')))`

// Tables lists the tables to copy, with their size and the planner's estimate of
// their rows, as the caller's snapshot sees them.
func Tables(ctx context.Context, db catalog.DB) ([]catalog.SeedTable, error) {
	rows, err := db.Query(ctx, `SELECT c.oid, n.nspname, c.relname, pg_table_size(c.oid), c.reltuples::bigint`+carried+` ORDER BY 4 DESC, 1`)
	if err != nil {
		return nil, fmt.Errorf("list the tables to copy: %w", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t catalog.SeedTable, err error) {
		t.State = catalog.Pending
		return t, row.Scan(&t.OID, &t.Schema, &t.Name, &t.Bytes, &t.Rows)
	})
	if err != nil {
		return nil, fmt.Errorf("list the tables to copy: %w", err)
	}
	return tables, nil
}

// Check tells, on the primary, what would hinder the copy.
func Check(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	var out problem.Findings
	rows, err := conn.Query(ctx, `
		SELECT n.nspname, c.relname, l.pid
		FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.granted AND c.relkind = 'r'
		  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND n.nspname !~ '^pg_'
		  AND l.pid <> pg_backend_pid() LIMIT 10`)
	if err != nil {
		return nil, fmt.Errorf("look for locked tables: %w", err)
	}
	var schema, name string
	var pid int32
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &pid}, func() error {
		out = append(out, problem.Warn("table-locked", "table "+postgres.QuoteIdent(schema, name),
			fmt.Sprintf("backend %d holds it in ACCESS EXCLUSIVE mode; its copy waits for that", pid),
			fmt.Sprintf("let it end, or SELECT pg_terminate_backend(%d);", pid)))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for locked tables: %w", err)
	}
	var tables int
	var size string
	if err := conn.QueryRow(ctx, `SELECT count(*), pg_size_pretty(coalesce(sum(pg_table_size(c.oid)), 0))`+carried).Scan(&tables, &size); err != nil {
		return nil, fmt.Errorf("add up the size of the tables: %w", err)
	}
	return append(out, problem.Noted("size", "the copy", fmt.Sprintf("%d tables, %s without indexes", tables, size))), nil
}

// errGone says that a table no longer exists on the primary.
var errGone = errors.New("the table was dropped")

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
