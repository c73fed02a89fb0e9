package seed

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
)

// carried are the tables whose rows a link carries: ordinary ones and leaf
// partitions that are logged, and of an extension's only those that it declares
// to hold the user's configuration.
const carried = `
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind = 'r' AND c.relpersistence = 'p'
	  AND n.nspname NOT IN ('hawser', 'information_schema') AND n.nspname !~ '^pg_'
	  AND NOT EXISTS (
		SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
		WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass
		  AND d.deptype = 'e' AND NOT c.oid = ANY (coalesce(e.extconfig, '{}')))`

// tableSize is c's size without its indexes. To ask for it takes a lock, so that
// one statement which holds the table would hold up the whole list; for such a
// table the planner's figure must do. A table that was dropped since has no size.
const tableSize = `
	CASE WHEN c.oid IN (SELECT l.relation FROM pg_locks l WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
	                    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
	     THEN greatest(c.relpages, 0) * current_setting('block_size')::bigint
	     ELSE coalesce(pg_table_size(c.oid), 0) END`

// listed narrows carried to the tables that a publication lists; $1 is its name, or
// empty for a link that carries all.
const listed = `
	  AND ($1 = '' OR EXISTS (
		SELECT FROM pg_publication_rel g JOIN pg_publication p ON p.oid = g.prpubid WHERE p.pubname = $1 AND g.prrelid = c.oid))`

// Tables lists the tables to copy, the largest first, with their size, TOAST
// included, and the planner's estimate of their rows (-1 where there is none), as
// the caller's snapshot sees them. With a publication's name it lists those that are in it.
func Tables(ctx context.Context, db catalog.DB, publication string) ([]catalog.SeedTable, error) {
	rows, err := db.Query(ctx, `SELECT c.oid, n.nspname, c.relname,`+tableSize+`, c.reltuples::bigint`+carried+listed+` ORDER BY 4 DESC, 1`, publication)
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
