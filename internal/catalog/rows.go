package catalog

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Place is the object, on this side, that waits for the rows of all tables.
type Place struct {
	Here     uint32 // the foreign key or materialized view; 0: nothing but statements
	Relation uint32 // the table of a foreign key; 0: it is a view
	Name     string // of a foreign key
}

// RowsEntry is an entry that waits for the rows of all tables.
type RowsEntry struct {
	ID     int
	Entry  json.RawMessage
	Placed bool   // false: its object has still to be looked up by the name that the entry has
	There  bool   // the object exists
	SQL    string // what there is to do by the object's present name; "" if it is gone, or needs it no more
}

// RowsEntries returns what is not done of phase rows, in order.
func RowsEntries(ctx context.Context, db DB, link string) ([]RowsEntry, error) {
	rows, err := db.Query(ctx, `
		SELECT e.id, e.entry, e.here IS NOT NULL,
			CASE WHEN e.relation <> 0 THEN EXISTS (SELECT FROM pg_constraint k WHERE k.oid = e.here)
				ELSE e.here = 0 OR EXISTS (SELECT FROM pg_class c WHERE c.oid = e.here) END IS TRUE,
			coalesce(CASE
			WHEN e.here = 0 THEN e.entry->>'sql'
			WHEN e.relation <> 0 THEN (SELECT format('ALTER TABLE %I.%I VALIDATE CONSTRAINT %I', n.nspname, c.relname, k.conname)
				FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE k.oid = e.here AND NOT k.convalidated)
			ELSE (SELECT format('REFRESH MATERIALIZED VIEW %I.%I', n.nspname, c.relname)
				FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = e.here AND c.relkind = 'm')
			END, '')
		FROM hawser.schema_entry e WHERE e.link = $1 AND e.phase = 'rows' AND NOT e.done ORDER BY e.id`, link)
	if err != nil {
		return nil, fmt.Errorf("read what waits for rows: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[RowsEntry])
}

// PlaceEntry records which object an entry of phase rows is about.
func PlaceEntry(ctx context.Context, db DB, link string, id int, p Place) error {
	_, err := db.Exec(ctx, `UPDATE hawser.schema_entry SET here = $3, relation = $4, name = $5 WHERE link = $1 AND id = $2`,
		link, id, p.Here, p.Relation, p.Name)
	if err != nil {
		return fmt.Errorf("record the object of schema entry %d: %w", id, err)
	}
	return nil
}

// AddRowsEntry records one more entry of phase rows, behind all others, unless one of the
// same object waits.
func AddRowsEntry(ctx context.Context, db DB, link string, entry json.RawMessage, p Place) error {
	_, err := db.Exec(ctx, `
		INSERT INTO hawser.schema_entry (link, id, phase, tbl, entry, here, relation, name)
		SELECT $1, coalesce(max(id), 0) + 1, 'rows', 0, $2, $3, $4, $5 FROM hawser.schema_entry WHERE link = $1
		HAVING NOT bool_or(phase = 'rows' AND NOT done AND here = $3) IS TRUE`,
		link, entry, p.Here, p.Relation, p.Name)
	if err != nil {
		return fmt.Errorf("record a schema entry: %w", err)
	}
	return nil
}

// DropRowsEntries records that an object waits for rows no more.
func DropRowsEntries(ctx context.Context, db DB, link string, here uint32) error {
	_, err := db.Exec(ctx, `UPDATE hawser.schema_entry SET done = true WHERE link = $1 AND phase = 'rows' AND here = $2`, link, here)
	if err != nil {
		return fmt.Errorf("forget the schema entries of object %d: %w", here, err)
	}
	return nil
}

// WaitingKeys returns the foreign keys, on this side, that are to be checked.
func WaitingKeys(ctx context.Context, db DB, link string) ([]uint32, error) {
	rows, err := db.Query(ctx, `SELECT here FROM hawser.schema_entry WHERE link = $1 AND phase = 'rows' AND NOT done AND relation <> 0`, link)
	if err != nil {
		return nil, fmt.Errorf("read the foreign keys that are to be checked: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[uint32])
}

// FollowKeys keeps to foreign keys behind one command. A column's new type makes its keys
// anew, under the names that they have; others, among them those named in added, whose
// names the command gave to new ones, are gone.
func FollowKeys(ctx context.Context, db DB, link string, added []string) error {
	_, err := db.Exec(ctx, `
		WITH lost AS (
			SELECT e.id, (SELECT k.oid FROM pg_constraint k WHERE k.conrelid = e.relation AND k.contype = 'f' AND k.conname = e.name
				AND k.conname <> ALL ($2::name[])) AS anew
			FROM hawser.schema_entry e WHERE e.link = $1 AND e.phase = 'rows' AND NOT e.done AND e.relation <> 0
			AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.oid = e.here)
		)
		UPDATE hawser.schema_entry e SET here = coalesce(l.anew, e.here), done = l.anew IS NULL FROM lost l WHERE e.link = $1 AND e.id = l.id`,
		link, append([]string{}, added...))
	if err == nil {
		_, err = db.Exec(ctx, `
			UPDATE hawser.schema_entry e SET name = k.conname FROM pg_constraint k
			WHERE e.link = $1 AND e.phase = 'rows' AND NOT e.done AND e.relation <> 0 AND k.oid = e.here AND k.conname <> e.name`, link)
	}
	if err != nil {
		return fmt.Errorf("follow the foreign keys that are to be checked: %w", err)
	}
	return nil
}

// Unbuilt tells whether a part of the restored schema is not there yet.
func Unbuilt(ctx context.Context, db DB, link string) (unbuilt bool, err error) {
	err = db.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM hawser.schema_entry WHERE link = $1 AND NOT done AND (phase <> 'rows' OR here IS NULL))`, link).Scan(&unbuilt)
	if err != nil {
		return false, fmt.Errorf("read whether the schema is built: %w", err)
	}
	return unbuilt, nil
}

// FinishSeeding records the end of the copy, if nothing is left to do for it: DDL in the
// stream may have added something.
func FinishSeeding(ctx context.Context, tx pgx.Tx, link string) (done bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT NOT EXISTS (SELECT FROM hawser.schema_entry WHERE link = $1 AND NOT done)
		AND NOT EXISTS (SELECT FROM hawser.seed_table WHERE link = $1 AND state <> 'live')
		AND NOT EXISTS (SELECT FROM hawser.repair WHERE link = $1)`, link).Scan(&done)
	if err != nil {
		return false, fmt.Errorf("read whether the copy is complete: %w", err)
	}
	if !done {
		return false, nil
	}
	return true, SetSeedingDone(ctx, tx, link)
}
