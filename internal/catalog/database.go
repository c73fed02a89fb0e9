package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
)

// Join records that the link uses the database's schema hawser.
func Join(ctx context.Context, db DB, link, name string) error {
	_, err := db.Exec(ctx, `INSERT INTO hawser.member (link, name) VALUES ($1, $2) ON CONFLICT (link) DO NOTHING`, link, name)
	if err != nil {
		return fmt.Errorf("join schema hawser: %w", err)
	}
	return nil
}

// Leave removes everything that the database remembers of the link and returns
// how many links still use the schema. At 0 the caller may call DropSchema.
func Leave(ctx context.Context, db DB, link string) (left int, err error) {
	if _, err = db.Exec(ctx, `DELETE FROM hawser.member WHERE link = $1`, link); err != nil {
		return 0, fmt.Errorf("leave schema hawser: %w", err)
	}
	if err = db.QueryRow(ctx, `SELECT count(*) FROM hawser.member`).Scan(&left); err != nil {
		return 0, fmt.Errorf("count the links of the database: %w", err)
	}
	return left, nil
}

// Installed reports whether the database has schema hawser.
func Installed(ctx context.Context, db DB) (bool, error) {
	var ok bool
	if err := db.QueryRow(ctx, `SELECT to_regclass('hawser.member') IS NOT NULL`).Scan(&ok); err != nil {
		return false, fmt.Errorf("look for schema hawser: %w", err)
	}
	return ok, nil
}

// Remembers reports whether the database still knows of the link. Whoever joined is known
// until the link is dropped, so otherwise schema hawser is gone, or another one.
func Remembers(ctx context.Context, db DB, link string) (ok bool, err error) {
	if ok, err = Installed(ctx, db); err != nil || !ok {
		return false, err
	}
	if err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM hawser.member WHERE link = $1)`, link).Scan(&ok); err != nil {
		return false, fmt.Errorf("look for the link in schema hawser: %w", err)
	}
	return ok, nil
}

// DropSchema removes schema hawser. In the maintenance database, where the
// instance's tables live too, only the database's tables go.
func DropSchema(ctx context.Context, db DB) error {
	var instance bool
	if err := db.QueryRow(ctx, `SELECT to_regclass('hawser.link') IS NOT NULL`).Scan(&instance); err != nil {
		return fmt.Errorf("look for the instance's tables: %w", err)
	}
	sql := `DROP SCHEMA IF EXISTS hawser CASCADE`
	if instance {
		sql = `DROP TABLE IF EXISTS hawser.schema_entry, hawser.deferred, hawser.seed_table, hawser.seeding,
				hawser.position, hawser.repair, hawser.quiet, hawser.member;
			DELETE FROM hawser.migration WHERE kind = 'database'`
	}
	if _, err := db.Exec(ctx, sql); err != nil {
		return fmt.Errorf("drop schema hawser: %w", err)
	}
	return nil
}

// Seeding is the state of a link's copy as a whole.
type Seeding struct {
	Restored bool           // the schema is there
	Snapshot frame.Snapshot // of the schema dump, when Restored
	Skipped  []uint64       // see the seeding table
	Initial  bool           // the first copy; later ones are of single tables
	Done     bool
}

// LoadSeeding returns the state of the link's copy; ok is false where none was
// ever made.
func LoadSeeding(ctx context.Context, db DB, link string) (s Seeding, ok bool, err error) {
	var snapshot *string
	var skipped []string
	err = db.QueryRow(ctx, `SELECT snapshot, skipped, initial, done FROM hawser.seeding WHERE link = $1`, link).
		Scan(&snapshot, &skipped, &s.Initial, &s.Done)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, false, nil
	}
	if err != nil {
		return s, false, fmt.Errorf("read the state of seeding: %w", err)
	}
	if snapshot != nil {
		s.Restored = true
		if s.Snapshot, err = frame.ParseSnapshot(*snapshot); err != nil {
			return s, false, err
		}
	}
	s.Skipped, err = parseXIDs(skipped)
	return s, err == nil, err
}

// parseXIDs reads xid8s as decimal text: pgx knows no binary form of them on PostgreSQL 14.
func parseXIDs(texts []string) ([]uint64, error) {
	out := make([]uint64, len(texts))
	for i, t := range texts {
		x, err := strconv.ParseUint(t, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("transaction id %q in the catalog: %w", t, err)
		}
		out[i] = x
	}
	return out, nil
}

// StartSeeding records that a copy is to be made. It is not an error when it is
// recorded already.
func StartSeeding(ctx context.Context, db DB, link string) error {
	_, err := db.Exec(ctx, `INSERT INTO hawser.seeding (link) VALUES ($1) ON CONFLICT (link) DO NOTHING`, link)
	if err != nil {
		return fmt.Errorf("start seeding: %w", err)
	}
	return nil
}

// SetRestored records the snapshot under which the restored schema was dumped.
func SetRestored(ctx context.Context, db DB, link string, snapshot frame.Snapshot) error {
	_, err := db.Exec(ctx, `UPDATE hawser.seeding SET snapshot = $2 WHERE link = $1`, link, snapshot.String())
	if err != nil {
		return fmt.Errorf("record the schema's snapshot: %w", err)
	}
	return nil
}

// SetSeedingDone records that the copy is complete and consistent, and forgets
// what only the copy needed.
func SetSeedingDone(ctx context.Context, db DB, link string) error {
	if _, err := db.Exec(ctx, `UPDATE hawser.seeding SET done = true, initial = false, skipped = '{}' WHERE link = $1`, link); err != nil {
		return fmt.Errorf("record the end of seeding: %w", err)
	}
	if _, err := db.Exec(ctx, `DELETE FROM hawser.schema_entry WHERE link = $1`, link); err != nil {
		return fmt.Errorf("forget the schema entries: %w", err)
	}
	return nil
}

// TableState is how far the copy of one table is.
type TableState string

const (
	// Pending: no snapshot was taken; its streamed changes are skipped.
	Pending TableState = "pending"
	// Copying: the snapshot is known; changes that it does not see are deferred.
	Copying TableState = "copying"
	// Loaded: rows and indexes are there; deferred changes wait to be applied.
	Loaded TableState = "loaded"
	// Live: the stream is applied to it.
	Live TableState = "live"
)

// SeedTable is the state of one table's copy.
type SeedTable struct {
	OID                 uint32
	Schema, Name        string
	State               TableState
	Snapshot            frame.Snapshot // from Copying on
	LSN                 frame.LSN      // from Copying on
	Bytes, Rows         int64          // expected; Rows is -1 if unknown
	BytesDone, RowsDone int64
}

// PutSeedTable adds a pending table; one that is there stays as it is.
func PutSeedTable(ctx context.Context, db DB, link string, t SeedTable) error {
	_, err := db.Exec(ctx, `
		INSERT INTO hawser.seed_table (link, oid, schema, name, bytes, rows) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (link, oid) DO NOTHING`, link, t.OID, t.Schema, t.Name, t.Bytes, t.Rows)
	if err != nil {
		return fmt.Errorf("record table %q.%q for seeding: %w", t.Schema, t.Name, err)
	}
	return nil
}

// Reopen counts the copy as incomplete (again), with the caller's transaction: rows, of
// tables that are put down with it or of repairs, are still to come.
func Reopen(ctx context.Context, db DB, link string) error {
	// A copy that is complete leaves its tables behind as they were. Their snapshots may
	// be of a time from which the transaction ids have come half round since.
	_, err := db.Exec(ctx, `
		DELETE FROM hawser.seed_table t USING hawser.seeding s WHERE s.link = $1 AND s.done AND t.link = s.link`, link)
	if err == nil {
		// A database that was never seeded, since it began as the primary, has its schema.
		_, err = db.Exec(ctx, `
			INSERT INTO hawser.seeding (link, snapshot, initial) VALUES ($1, '3:3:', false)
			ON CONFLICT (link) DO UPDATE SET done = false`, link)
	}
	if err != nil {
		return fmt.Errorf("begin to copy again: %w", err)
	}
	return nil
}

// Reseed puts a table down to be copied (again), with the caller's transaction. None of
// its rows has to be repaired then.
func Reseed(ctx context.Context, db DB, link string, t SeedTable) error {
	if err := Reopen(ctx, db, link); err != nil {
		return err
	}
	if err := PutSeedTable(ctx, db, link, t); err != nil {
		return err
	}
	_, err := db.Exec(ctx, `DELETE FROM hawser.repair WHERE link = $1 AND tbl = to_regclass(format('%I.%I', $2::text, $3::text))`, link, t.Schema, t.Name)
	if err != nil {
		return fmt.Errorf("forget the repairs of table %q.%q: %w", t.Schema, t.Name, err)
	}
	return setPending(ctx, db, link, t.OID)
}

// StartReconciling begins the copy anew with a database whose schema is that of the
// primary's snapshot: no table is known yet.
func StartReconciling(ctx context.Context, db DB, link string, snapshot frame.Snapshot) error {
	_, err := db.Exec(ctx, `
		INSERT INTO hawser.seeding (link, snapshot) VALUES ($1, $2)
		ON CONFLICT (link) DO UPDATE SET snapshot = $2, initial = true, done = false, skipped = '{}'`, link, snapshot.String())
	for _, table := range []string{"seed_table", "deferred", "schema_entry", "repair"} {
		if err == nil {
			_, err = db.Exec(ctx, `DELETE FROM hawser.`+table+` WHERE link = $1`, link)
		}
	}
	if err != nil {
		return fmt.Errorf("begin the copy anew: %w", err)
	}
	return nil
}

// SeedTables returns the tables of the link's copy, the largest first.
func SeedTables(ctx context.Context, db DB, link string) ([]SeedTable, error) {
	rows, err := db.Query(ctx, `
		SELECT oid, schema, name, state, coalesce(snapshot, ''), coalesce(lsn::text, ''), bytes, rows, bytes_done, rows_done
		FROM hawser.seed_table WHERE link = $1 ORDER BY bytes DESC, oid`, link)
	if err != nil {
		return nil, fmt.Errorf("read the tables of seeding: %w", err)
	}
	return pgx.CollectRows(rows, scanSeedTable)
}

func scanSeedTable(row pgx.CollectableRow) (t SeedTable, err error) {
	var snapshot, lsn string
	if err = row.Scan(&t.OID, &t.Schema, &t.Name, &t.State, &snapshot, &lsn, &t.Bytes, &t.Rows, &t.BytesDone, &t.RowsDone); err != nil {
		return t, err
	}
	if snapshot != "" {
		if t.Snapshot, err = frame.ParseSnapshot(snapshot); err != nil {
			return t, err
		}
	}
	if lsn != "" {
		t.LSN, err = frame.ParseLSN(lsn)
	}
	return t, err
}

// SetCopying records the snapshot under which a table is being copied, with the
// name and size that it had under it.
func SetCopying(ctx context.Context, db DB, link string, t SeedTable) error {
	return updateTable(ctx, db, link, t.OID, `
		state = 'copying', snapshot = $3, lsn = $4::pg_lsn, schema = $5, name = $6, bytes = $7, rows = $8, bytes_done = 0, rows_done = 0`,
		t.Snapshot.String(), t.LSN.String(), t.Schema, t.Name, t.Bytes, t.Rows)
}

// setPending takes a table back to the start of its copy and forgets its deferred changes.
func setPending(ctx context.Context, db DB, link string, oid uint32) error {
	if _, err := db.Exec(ctx, `DELETE FROM hawser.deferred WHERE link = $1 AND oid = $2`, link, oid); err != nil {
		return fmt.Errorf("forget the deferred changes of table %d: %w", oid, err)
	}
	return updateTable(ctx, db, link, oid, `state = 'pending', snapshot = NULL, lsn = NULL, bytes_done = 0, rows_done = 0`)
}

// Retake takes a table whose copy begins anew, under snapshot, back to its start. Of its
// deferred changes those stay that the snapshot does not see, behind the definitions
// of their columns: the new copy lacks them, too.
func Retake(ctx context.Context, db DB, link string, oid uint32, snapshot frame.Snapshot) error {
	_, err := db.Exec(ctx, `
		DELETE FROM hawser.deferred WHERE link = $1 AND oid = $2 AND get_byte(payload, 1) <> ascii('R')
		AND (xid IS NULL OR xid < $3 OR xid < $4 AND xid <> ALL ($5::bigint[]))`,
		link, oid, int64(snapshot.Xmin), int64(snapshot.Xmax), bigints(snapshot.Xip))
	if err != nil {
		return fmt.Errorf("forget the deferred changes of table %d that its new snapshot sees: %w", oid, err)
	}
	return updateTable(ctx, db, link, oid, `state = 'pending', snapshot = NULL, lsn = NULL, bytes_done = 0, rows_done = 0`)
}

func bigints(xids []uint64) []int64 {
	out := make([]int64, len(xids))
	for i, x := range xids {
		out[i] = int64(x)
	}
	return out
}

// SetTableState records a later state of a table's copy.
func SetTableState(ctx context.Context, db DB, link string, oid uint32, s TableState) error {
	return updateTable(ctx, db, link, oid, `state = $3`, s)
}

// SetTableDone records what has been copied of a table.
func SetTableDone(ctx context.Context, db DB, link string, oid uint32, bytes, rows int64) error {
	return updateTable(ctx, db, link, oid, `bytes_done = $3, rows_done = $4`, bytes, rows)
}

func updateTable(ctx context.Context, db DB, link string, oid uint32, set string, args ...any) error {
	_, err := db.Exec(ctx, `UPDATE hawser.seed_table SET `+set+` WHERE link = $1 AND oid = $2`, append([]any{link, oid}, args...)...)
	if err != nil {
		return fmt.Errorf("record the state of table %d: %w", oid, err)
	}
	return nil
}

// SchemaEntry is one entry of the schema that is still to be built.
type SchemaEntry struct {
	ID    int
	Phase string
	Table uint32
	Entry json.RawMessage
}

// PutSchemaEntries records what is to be built later.
func PutSchemaEntries(ctx context.Context, tx pgx.Tx, link string, entries []SchemaEntry) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"hawser", "schema_entry"}, []string{"link", "id", "phase", "tbl", "entry"},
		pgx.CopyFromSlice(len(entries), func(i int) ([]any, error) {
			e := entries[i]
			return []any{link, e.ID, e.Phase, e.Table, e.Entry}, nil
		}))
	if err != nil {
		return fmt.Errorf("record the schema entries: %w", err)
	}
	return nil
}

// AddSchemaEntry records one more entry, behind all others.
func AddSchemaEntry(ctx context.Context, db DB, link, phase string, entry json.RawMessage) error {
	_, err := db.Exec(ctx, `
		INSERT INTO hawser.schema_entry (link, id, phase, tbl, entry)
		SELECT $1, coalesce(max(id), 0) + 1, $2, 0, $3 FROM hawser.schema_entry WHERE link = $1`, link, phase, entry)
	if err != nil {
		return fmt.Errorf("record a schema entry: %w", err)
	}
	return nil
}

// SchemaEntries returns what is not built yet of a phase, in order; table 0 asks
// for the entries of every table.
func SchemaEntries(ctx context.Context, db DB, link, phase string, table uint32) ([]SchemaEntry, error) {
	rows, err := db.Query(ctx, `
		SELECT id, phase, tbl, entry FROM hawser.schema_entry
		WHERE link = $1 AND phase = $2 AND ($3 = 0::oid OR tbl = $3) AND NOT done ORDER BY id`, link, phase, table)
	if err != nil {
		return nil, fmt.Errorf("read the schema entries: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[SchemaEntry])
}

// UnbuiltTables returns the tables that lack an index or more of their own.
func UnbuiltTables(ctx context.Context, db DB, link string) ([]uint32, error) {
	rows, err := db.Query(ctx, `SELECT DISTINCT tbl FROM hawser.schema_entry WHERE link = $1 AND tbl <> 0 AND NOT done`, link)
	if err != nil {
		return nil, fmt.Errorf("read which tables are still to be built: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[uint32])
}

// SetEntry changes an entry that is not built yet.
func SetEntry(ctx context.Context, db DB, link string, id int, entry json.RawMessage) error {
	if _, err := db.Exec(ctx, `UPDATE hawser.schema_entry SET entry = $3 WHERE link = $1 AND id = $2`, link, id, entry); err != nil {
		return fmt.Errorf("change schema entry %d: %w", id, err)
	}
	return nil
}

// SetEntryDone records that an entry is built.
func SetEntryDone(ctx context.Context, db DB, link string, id int) error {
	if _, err := db.Exec(ctx, `UPDATE hawser.schema_entry SET done = true WHERE link = $1 AND id = $2`, link, id); err != nil {
		return fmt.Errorf("record schema entry %d: %w", id, err)
	}
	return nil
}

// ForgetSeeding forgets a copy that is complete. Its tables are known by the oids of
// the primary from which they were copied, which mean nothing to another one.
func ForgetSeeding(ctx context.Context, db DB, link string) error {
	for _, table := range []string{"seed_table", "seeding"} {
		if _, err := db.Exec(ctx, `DELETE FROM hawser.`+table+` WHERE link = $1`, link); err != nil {
			return fmt.Errorf("forget the copy of link %s: %w", link, err)
		}
	}
	return nil
}
