package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// RepairTable is a table of the secondary with the keys of the rows that are to be
// replaced by the primary's.
type RepairTable struct {
	OID     uint32  // on the secondary
	Columns []int16 // attribute numbers of the key
	Keys    [][]string
}

// Taker deletes rows of one table that are to be repaired, and keeps what they were.
type Taker struct {
	sql    string
	t      RepairTable
	fields []int16 // attribute numbers of what a row has
}

// NewTaker looks up what the rows of a table have. from names the table, and where finds one
// row by the key, whose values are $1 and following.
func NewTaker(ctx context.Context, db DB, t RepairTable, from, where string) (Taker, error) {
	var fields []int16
	var names []string
	err := db.QueryRow(ctx, `
		SELECT coalesce(array_agg(a.attnum ORDER BY a.attnum), '{}'), coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}')
		FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''`, t.OID).Scan(&fields, &names)
	if err != nil {
		return Taker{}, fmt.Errorf("look up the columns of table %s: %w", from, err)
	}
	values := make([]string, len(names))
	for i, name := range names { // not by a cast, which may be a user's own; nor by IS NULL, which looks into rows
		q := pgx.Identifier{name}.Sanitize()
		values[i] = "CASE pg_catalog.num_nulls(" + q + ") WHEN 0 THEN pg_catalog.format('%s', " + q + ") END"
	}
	n := len(t.Columns)
	sql := fmt.Sprintf(`
		WITH gone AS (DELETE FROM ONLY %s WHERE %s RETURNING ARRAY[%s]::pg_catalog.text[] AS row)
		INSERT INTO hawser.repair (link, tbl, columns, key, digest, fields, row)
		SELECT $%d::pg_catalog.text, $%d::pg_catalog.oid, $%d::pg_catalog.int2[], k.key, pg_catalog.sha256(pg_catalog.convert_to(k.key::pg_catalog.text, 'UTF8')),
			CASE WHEN gone.row IS NOT NULL THEN $%d::pg_catalog.int2[] END, gone.row
		FROM (SELECT $%d::pg_catalog.text[] AS key) k LEFT JOIN gone ON true ON CONFLICT DO NOTHING`,
		from, where, strings.Join(values, ", "), n+1, n+2, n+3, n+4, n+5)
	return Taker{sql, t, fields}, nil
}

// Take deletes the row of a key and records it; one that is recorded stays. mode says how
// the key's values are read: as text, or as the server takes their columns' types.
func (k Taker) Take(ctx context.Context, db DB, link string, key []string, mode ...any) error {
	for _, v := range key {
		mode = append(mode, v)
	}
	_, err := db.Exec(ctx, k.sql, append(mode, link, k.t.OID, k.t.Columns, k.fields, key)...)
	return err
}

// TakenRow is a row that a rejoin took away, and for which the new primary's has not come.
type TakenRow struct {
	OID    uint32 // its table
	Digest []byte // of its key
	Key    []string
	Table  string // as SQL names it; "": it was dropped
}

// Taken returns the next of those rows behind one; a zero row begins, and none ends.
func Taken(ctx context.Context, db DB, link string, after TakenRow) (*TakenRow, error) {
	var r TakenRow
	err := db.QueryRow(ctx, `
		SELECT r.tbl, r.digest, r.key, coalesce((SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = r.tbl), '')
		FROM hawser.repair r WHERE r.link = $1 AND r.row IS NOT NULL AND (r.tbl, r.digest) > ($2, $3) ORDER BY r.tbl, r.digest LIMIT 1`, link, after.OID, append([]byte{}, after.Digest...)).
		Scan(&r.OID, &r.Digest, &r.Key, &r.Table)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the rows that were taken away: %w", err)
	}
	return &r, nil
}

// PutBack inserts a row again. Its values do not leave the server: they may be in no encoding.
func PutBack(ctx context.Context, db DB, link string, r TakenRow) error {
	_, err := db.Exec(ctx, fmt.Sprintf(`DO $do$
		DECLARE
			insert pg_catalog.text;
		BEGIN
			SELECT pg_catalog.format('INSERT INTO %%I.%%I (%%s) OVERRIDING SYSTEM VALUE VALUES (%%s)', n.nspname, c.relname,
				pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY f.i), pg_catalog.string_agg(pg_catalog.quote_nullable(r.row[f.i]), ', ' ORDER BY f.i))
			INTO STRICT insert
			FROM hawser.repair r JOIN pg_catalog.pg_class c ON c.oid = r.tbl JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
				pg_catalog.unnest(r.fields) WITH ORDINALITY f(n, i) JOIN pg_catalog.pg_attribute a ON a.attnum = f.n AND NOT a.attisdropped
			WHERE r.link = '%s' AND r.tbl = %d AND r.digest = '\x%x' AND a.attrelid = r.tbl GROUP BY n.nspname, c.relname;
			EXECUTE insert;
		END $do$`, strings.ReplaceAll(link, "'", "''"), r.OID, r.Digest))
	return err
}

// Values are what the row has, by the names that its columns have now.
func (r TakenRow) Values(ctx context.Context, db DB, link string) (map[string]*string, error) {
	out := map[string]*string{}
	rows, err := db.Query(ctx, `
		SELECT coalesce((SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = r.tbl AND a.attnum = f.n AND NOT a.attisdropped), 'column ' || f.n), r.row[f.i]
		FROM hawser.repair r, unnest(r.fields) WITH ORDINALITY f(n, i) WHERE r.link = $1 AND r.tbl = $2 AND r.digest = $3`, link, r.OID, r.Digest)
	if err == nil {
		var name string
		var value *string
		_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error { out[name] = value; value = nil; return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("read a row that was taken away: %w", err)
	}
	return out, nil
}

// TakenCount is how many rows of a table are taken away: those that were there, and those
// that were not, since this side alone had deleted them.
type TakenCount struct {
	Table       string // as SQL names it
	Kept, Other int64
}

// TakenCounts counts them.
func TakenCounts(ctx context.Context, db DB, link string) ([]TakenCount, error) {
	rows, err := db.Query(ctx, `
		SELECT coalesce((SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = r.tbl), '(dropped)'),
			count(*) FILTER (WHERE r.row IS NOT NULL), count(*) FILTER (WHERE r.row IS NULL)
		FROM hawser.repair r WHERE r.link = $1 GROUP BY r.tbl ORDER BY 1`, link)
	if err != nil {
		return nil, fmt.Errorf("count the rows that were taken away: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[TakenCount])
}

// Repairs returns the rows that are to be repaired, by table.
func Repairs(ctx context.Context, db DB, link string) ([]RepairTable, error) {
	rows, err := db.Query(ctx, `SELECT tbl, columns, key FROM hawser.repair WHERE link = $1 ORDER BY tbl, columns`, link)
	if err != nil {
		return nil, fmt.Errorf("read the rows to repair: %w", err)
	}
	var out []RepairTable
	var t RepairTable
	var key []string
	_, err = pgx.ForEachRow(rows, []any{&t.OID, &t.Columns, &key}, func() error {
		if n := len(out); n == 0 || out[n-1].OID != t.OID {
			out = append(out, RepairTable{OID: t.OID, Columns: append([]int16(nil), t.Columns...)})
		}
		last := &out[len(out)-1]
		last.Keys = append(last.Keys, append([]string(nil), key...))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the rows to repair: %w", err)
	}
	return out, nil
}

// Shortfall is what keeps a copy from being a state that a primary had.
type Shortfall struct {
	Restored bool     // the tables are there
	Tables   []string // of which rows are missing, or are not the primary's; as SQL names them
}

// Lacking returns what the link's copy lacks; nil where it is complete, or none was made.
// It is the one answer to whether the rows of this database may be opened for writes.
func Lacking(ctx context.Context, db DB, link string) (*Shortfall, error) {
	var s Shortfall
	var lacks bool
	err := db.QueryRow(ctx, `
		WITH copying AS (SELECT snapshot IS NOT NULL AS restored FROM hawser.seeding WHERE link = $1 AND NOT done)
		SELECT EXISTS (SELECT FROM copying) OR EXISTS (SELECT FROM hawser.repair WHERE link = $1),
			coalesce((SELECT restored FROM copying), true),
			ARRAY(SELECT format('%I.%I', t.schema, t.name) FROM hawser.seed_table t WHERE t.link = $1 AND t.state <> 'live' AND EXISTS (SELECT FROM copying)
				UNION SELECT format('%I.%I', n.nspname, c.relname) FROM hawser.repair r
				JOIN pg_class c ON c.oid = r.tbl JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.link = $1 ORDER BY 1)`, link).
		Scan(&lacks, &s.Restored, &s.Tables)
	if err != nil {
		return nil, fmt.Errorf("look whether the copy is complete: %w", err)
	}
	if !lacks {
		return nil, nil
	}
	return &s, nil
}

// ForgetRepairs removes the record of all rows to be repaired.
func ForgetRepairs(ctx context.Context, db DB, link string) error {
	if _, err := db.Exec(ctx, `DELETE FROM hawser.repair WHERE link = $1`, link); err != nil {
		return fmt.Errorf("forget the rows to repair: %w", err)
	}
	return nil
}
