package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// RowIndexPrefix begins the names of the indexes that the applier makes of tables without
// a key; the table's oid follows.
const RowIndexPrefix = "hawser_row_"

// SQLRowIndex tells whether index i is one of these: it calls their function.
const SQLRowIndex = `EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
	AND d.refclassid = 'pg_proc'::regclass AND d.refobjid = to_regprocedure('hawser.row_hash(record)'))`

// RowIndexes names those of the database, quoted and with their schemas, for which where
// holds, of pg_index i and its pg_class x.
func RowIndexes(ctx context.Context, conn *pgx.Conn, where string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, `
		SELECT quote_ident(n.nspname) || '.' || quote_ident(x.relname)
		FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
		WHERE `+SQLRowIndex+` AND (`+where+`)`, args...)
	if err != nil {
		return nil, fmt.Errorf("look for indexes of Hawser's: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for indexes of Hawser's: %w", err)
	}
	return names, nil
}
