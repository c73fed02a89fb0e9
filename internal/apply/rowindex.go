package apply

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
)

// A table without a key gets an index of Hawser's own on the replica, of a hash of its
// rows, when passes over it have read more than it costs to make one. Nobody but the
// applier writes there, so it makes the index within its own target transaction: readers
// are not held up, and a crash leaves nothing half done. The hash is of the values of
// which types of PostgreSQL's own have one, and else of what they print as, where that is
// immutable; rows that it does not tell apart are compared as a whole.
//
// It is known by the function that it calls, which is in schema hawser. Dumps and
// comparisons leave such an index out (schema, verify), DDL that it would stand in the way
// of drops it (schema), and so does a side that is the primary or leaves its link
// (DropRowIndexes).

const (
	// indexPatience is what passes over a table may read, beyond its size, before it
	// gets an index. What they read is forgotten at the rate of forgetScans a second.
	indexPatience = 32 << 20
	forgetScans   = 8 << 20
	// tryAgain is how long a table for which no index could be made goes without.
	tryAgain = time.Minute
)

// sqlRowHash makes the function by which an index is known. An index calls it with the
// rights of whoever writes to the table.
const sqlRowHash = `CREATE OR REPLACE FUNCTION hawser.row_hash(record) RETURNS integer IMMUTABLE STRICT PARALLEL SAFE LANGUAGE internal AS 'hash_record';
	GRANT EXECUTE ON FUNCTION hawser.row_hash(record) TO PUBLIC`

const (
	// sqlRowIndex is what the index of table c is of, where the transaction may use it: one
	// that met rows of which older versions are still seen is for later ones.
	sqlRowIndex = `SELECT pg_get_expr(i.indexprs, i.indrelid) FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indnatts = 1
		AND (NOT i.indcheckxmin OR age(i.xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid)) AND ` + postgres.SQLRowIndex + ` LIMIT 1`

	// sqlHashed is how column a, of base type b, goes into the hash.
	sqlHashed = `(SELECT CASE WHEN EXISTS (
				SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'hash'
				WHERE o.opcdefault AND (o.opcintype = y.oid OR EXISTS (SELECT FROM pg_cast x WHERE x.castsource = y.oid AND x.casttarget = o.opcintype AND x.castmethod = 'b' AND x.castcontext = 'i')))
			THEN quote_ident(a.attname) WHEN p.provolatile = 'i' THEN '(' || quote_ident(a.attname) || ')::text' END
		FROM pg_type y JOIN pg_proc p ON p.oid = y.typoutput LEFT JOIN pg_collation l ON l.oid = a.attcollation
		WHERE y.oid = b.base AND y.typnamespace = 'pg_catalog'::regnamespace AND y.typtype = 'b' AND y.typcategory <> 'A'
		AND a.attgenerated = '' AND coalesce(l.collisdeterministic, true))`

	// sqlFinds are indexes of table c that find a row well enough: by the statistics, few
	// rows have the same value of the first column, its commonest one, or NULL. A unique one
	// without statistics does.
	sqlFinds = `SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
		LEFT JOIN pg_statistic s ON s.starelid = c.oid AND s.staattnum = i.indkey[0] AND NOT s.stainherit
		WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] > 0 AND CASE WHEN s.starelid IS NULL OR c.reltuples <= 0 THEN i.indisunique
			ELSE c.reltuples * greatest(s.stanullfrac, CASE s.stakind1 WHEN 1 THEN s.stanumbers1[1] END) <= 1000 AND CASE WHEN s.stadistinct > 0 THEN c.reltuples / s.stadistinct WHEN s.stadistinct < 0 THEN -1 / s.stadistinct ELSE 101 END <= 100 END`
)

// scans is what passes over a table without a key took.
type scans struct {
	size  int64 // of the table, in bytes, at the last one
	read  int64
	at    time.Time
	tried time.Time // when an index was to be made
}

func (a *Applier) scansOf(oid uint32) *scans {
	s := a.scans[oid]
	if s == nil {
		s = &scans{}
		a.scans[oid] = s
	}
	return s
}

// add takes note of a pass over a table of a size.
func (s *scans) add(size int64, now time.Time) {
	s.read = max(0, s.read-int64(now.Sub(s.at).Seconds()*forgetScans)) + size
	s.at = now
	if size > 0 {
		s.size = size
	}
}

// hasIndex asks once a statement whether the table's index is still there.
func (t *target) hasIndex() string {
	return fmt.Sprintf(`(SELECT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = %d AND indisvalid AND pg_catalog.pg_get_expr(indexprs, indrelid) = %s))`, t.oid, postgres.QuoteLiteral(t.hash))
}

// sqlScan tells how much is read of a table, $1, to find its rows by a hash, $2.
const sqlScan = `SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = $1::pg_catalog.oid AND indisvalid AND pg_catalog.pg_get_expr(indexprs, indrelid) = $2)
	THEN 0 ELSE pg_catalog.pg_relation_size($1::pg_catalog.oid) END`

// noteScan has the server tell how much the statement that follows reads.
func (w *writer) noteScan(t *target) error {
	return w.send(w.own(sqlScan), [][]byte{strconv.AppendUint(nil, uint64(t.oid), 10), []byte(t.hash)}, expectation{affected: -1,
		row: func(values [][]byte) error {
			size, err := strconv.ParseInt(string(values[0]), 10, 64)
			if err == nil {
				t.scans.add(size, time.Now())
			}
			return err
		}})
}

// worthIndex tells whether a table has cost more passes than an index would.
func (a *Applier) worthIndex(t *target) bool {
	s := t.scans
	return s != nil && s.size > 0 && t.hashed != "" && s.read > s.size+a.patience && time.Since(s.tried) >= tryAgain
}

// indexRows makes an index of the rows of a table. Where the server makes none, passes find
// the rows too.
func (a *Applier) indexRows(ctx context.Context, r *relation) error {
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	if err := a.out.idle(); err != nil {
		return err
	}
	s := r.target.scans
	s.tried, s.read = time.Now(), 0
	err := a.exec(ctx, fmt.Sprintf(sqlIndexRows, postgres.RowIndexPrefix, r.target.oid, r.quoted, r.target.hashed))
	var pg *pgconn.PgError
	switch {
	case err == nil:
		a.batch.indexed = true
		err = a.exec(ctx, `RELEASE hawser_index; SET LOCAL lock_timeout TO DEFAULT`)
	case errors.As(err, &pg):
		err = a.exec(ctx, `ROLLBACK TO hawser_index; RELEASE hawser_index`)
	}
	if err != nil {
		return fmt.Errorf("make an index of the rows of %s: %w", r.quoted, err)
	}
	return nil
}

func (a *Applier) exec(ctx context.Context, sql string) error {
	_, err := a.conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// sqlIndexRows gives way to whoever holds a lock on the table, as a VACUUM does.
const sqlIndexRows = `SAVEPOINT hawser_index; SET LOCAL lock_timeout = '2s'; ` + postgres.SQLSortInMemory + `; ` + sqlRowHash + `;
	CREATE INDEX %s%d ON %s (hawser.row_hash(%s))`

// DropRowIndexes takes the indexes of a database that is no replica any more, without
// holding up its readers and writers. It may be called again after it was interrupted.
func DropRowIndexes(ctx context.Context, conn *pgx.Conn) error {
	names, err := postgres.RowIndexes(ctx, conn, "true")
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := conn.Exec(ctx, `DROP INDEX CONCURRENTLY IF EXISTS `+name); err != nil {
			return fmt.Errorf("drop index %s, which Hawser made: %w", name, err)
		}
	}
	if _, err := conn.Exec(ctx, `DROP FUNCTION IF EXISTS hawser.row_hash(record)`); err != nil {
		return fmt.Errorf("drop the function of indexes of Hawser's: %w", err)
	}
	return nil
}
