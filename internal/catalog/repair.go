package catalog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// RepairTable is a table of the secondary with the keys of the rows that are to be
// replaced by the primary's.
type RepairTable struct {
	OID     uint32  // on the secondary
	Columns []int16 // attribute numbers of the key
	Keys    [][]string
}

// PutRepair records rows to be repaired; those that are recorded stay.
func PutRepair(ctx context.Context, db DB, link string, t RepairTable) error {
	b := &pgx.Batch{}
	for _, key := range t.Keys {
		b.Queue(`
			INSERT INTO hawser.repair (link, tbl, columns, key, digest)
			VALUES ($1, $2, $3, $4::text[], sha256(convert_to($4::text[]::text, 'UTF8'))) ON CONFLICT DO NOTHING`, link, t.OID, t.Columns, key)
	}
	sender, ok := db.(interface {
		SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	})
	if !ok {
		return fmt.Errorf("record rows to repair: %T takes no batch", db)
	}
	if err := sender.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("record rows to repair: %w", err)
	}
	return nil
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
