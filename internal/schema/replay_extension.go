package schema

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// extensionRows are the tables of which rows come while an extension's script runs on the
// primary. The script runs here too. What it makes, and the tables of the extension, are
// left to it; the rows of all others are carried: a user's event trigger may have written
// them, which rests here.
type extensionRows struct {
	left    map[Table]bool // whether the table was here before, of some extension
	carried []Table
}

// InScript reports whether the row changes that follow may come from an extension's script.
func (r *Replayer) InScript() bool { return r.extension != nil }

// OfScript reports whether rows of a table are left to the extension's script that is under
// way, which will run on this side too: they must not be applied.
func (r *Replayer) OfScript(ctx context.Context, conn *pgx.Conn, t Table) (bool, error) {
	if r.extension == nil || slices.Contains(r.extension.carried, t) {
		return false, nil
	}
	if _, left := r.extension.left[t]; left {
		return true, nil
	}
	var here, member bool
	err := conn.QueryRow(ctx, `SELECT c.oid IS NOT NULL, EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		FROM (SELECT to_regclass($1)::oid AS oid) c`, t.sql()).Scan(&here, &member)
	if err != nil {
		return false, fmt.Errorf("look whether table %s is of an extension: %w", t.sql(), err)
	}
	if here && !member {
		r.extension.carried = append(r.extension.carried, t)
		return false, nil
	}
	r.extension.left[t] = here
	return true, nil
}

// endExtension runs the command behind its rows. A table of which rows were carried that
// the script wrote as well, and one of another extension, of which they were left, are
// copied again.
func (r *replay) endExtension(ctx context.Context) error {
	rows := r.extension
	r.extension = nil
	if rows == nil {
		return r.extensionCommand(ctx)
	}
	before, err := r.writes(ctx, rows.carried)
	if err != nil {
		return err
	}
	if err := r.extensionCommand(ctx); err != nil {
		return err
	}
	after, err := r.writes(ctx, rows.carried)
	if err != nil {
		return err
	}
	for i, t := range rows.carried {
		if before[i] != after[i] {
			r.result.Reseed = append(r.result.Reseed, t)
		}
	}
	return r.othersRows(ctx, rows)
}

// writes counts what this transaction wrote into each table, and names its file, which
// TRUNCATE exchanges.
func (r *replay) writes(ctx context.Context, tables []Table) ([]string, error) {
	if len(tables) == 0 {
		return nil, nil
	}
	var names []string
	for _, t := range tables {
		names = append(names, t.sql())
	}
	rows, err := r.conn.Query(ctx, `SELECT concat_ws(' ', pg_relation_filenode(c), pg_stat_get_xact_tuples_inserted(c), pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_deleted(c))
		FROM unnest($1::text[]) WITH ORDINALITY t (name, n), to_regclass(t.name) c, set_config('track_counts', 'on', true) ORDER BY t.n`, names)
	if err != nil {
		return nil, fmt.Errorf("look what an extension's script wrote: %w", err)
	}
	counts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look what an extension's script wrote: %w", err)
	}
	return counts, nil
}

// othersRows has the tables copied again of which rows were left to the script though they
// are not of its extension.
func (r *replay) othersRows(ctx context.Context, rows *extensionRows) error {
	var extensions []string
	for _, e := range r.m.Extensions {
		extensions = append(extensions, e.Name)
	}
	for t, before := range rows.left {
		if !before {
			continue // the script made it
		}
		var others bool
		err := r.conn.QueryRow(ctx, `SELECT c IS NOT NULL AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
				WHERE d.classid = 'pg_class'::regclass AND d.objid = c AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = ANY ($2))
			FROM to_regclass($1) c`, t.sql(), extensions).Scan(&others)
		if err != nil {
			return fmt.Errorf("look which extension table %s is of: %w", t.sql(), err)
		}
		if others {
			r.result.Reseed = append(r.result.Reseed, t)
		}
	}
	return nil
}
