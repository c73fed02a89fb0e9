package seed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

const (
	// chunkBytes is how much of COPY's output travels in one frame.
	chunkBytes = 192 << 10
	// partBytes is the size, TOAST included, of the parts of a large table.
	partBytes = 96 << 20
	// WholeTable as EndPage asks for all rows, in the transaction that holds the snapshot.
	WholeTable = math.MaxUint32
)

// Serve answers one seeding stream of a secondary, until it ends:
//
//	SeedRequest{OID}                       -> SeedStart; opens the table's snapshot
//	SeedRequest{OID, EndPage: WholeTable}  -> SeedChunk…, SeedEnd; all rows, under it
//	SeedRequest{OID, Export, pages}        -> SeedChunk…, SeedEnd; a part, under the
//	                                          snapshot that another stream exported
//
// Opening a table, and asking for a part, closes the snapshot that was open.
func Serve(ctx context.Context, connect func(ctx context.Context) (*pgx.Conn, error), s Stream) error {
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, textSettings); err != nil {
		return fmt.Errorf("set up the copy: %w", err)
	}
	v := server{conn: conn, s: s, part: partBytes}
	for {
		f, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r, ok := f.(frame.SeedRequest)
		if !ok {
			return fmt.Errorf("unexpected %T on a seeding stream", f)
		}
		if err := v.answer(ctx, r); err != nil {
			return err
		}
	}
}

type server struct {
	conn *pgx.Conn
	s    Stream
	part int64
	open frame.SeedStart // the table whose snapshot the transaction holds
}

func (v *server) answer(ctx context.Context, r frame.SeedRequest) error {
	switch {
	case r.Export == "" && r.EndPage == 0:
		return v.openTable(ctx, r.OID)
	case r.Export == "":
		if v.open.OID != r.OID {
			return fmt.Errorf("rows of table %d were asked for before its snapshot", r.OID)
		}
		return v.copy(ctx, v.open.Schema, v.open.Name, v.open.Columns, "")
	}
	return v.copyPart(ctx, r)
}

const (
	// lockTries and lockWait bound how long a table that is being rewritten is
	// waited for. Waiting behind ACCESS EXCLUSIVE holds nobody up; the pauses let
	// others, who queue behind us, go first.
	lockTries = 600
	lockWait  = "1s"
)

// openTable locks the table and takes its snapshot, in this order: TRUNCATE and
// ALTER TABLE that rewrites are not MVCC-safe, and would show an older snapshot an
// empty table. With the lock held, the snapshot sees what the table is.
func (v *server) openTable(ctx context.Context, oid uint32) error {
	var err error
	for range lockTries {
		err = v.lock(ctx, oid)
		if err == nil || errors.Is(err, errGone) || sqlState(err) != "55P03" { // lock_not_available
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	if errors.Is(err, errGone) {
		return v.s.Send(frame.SeedStart{OID: oid})
	}
	if err != nil {
		return fmt.Errorf("lock table %d to copy it: %w", oid, err)
	}
	if err := v.describe(ctx, oid); err != nil {
		return err
	}
	return v.s.Send(v.open)
}

// begin ends the transaction at hand and begins one under an exported snapshot.
func (v *server) begin(ctx context.Context, export string) error {
	v.open = frame.SeedStart{}
	sql := `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '` + strings.ReplaceAll(export, "'", "''") + `'`
	if v.conn.PgConn().TxStatus() != 'I' {
		sql = `ROLLBACK; ` + sql
	}
	if _, err := v.conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("begin the copy's transaction: %w", err)
	}
	return nil
}

// lock finds the table's name without taking the transaction's snapshot: that of
// a REPEATABLE READ transaction is taken by its first query, so the look-up is
// another's. A rename in between is found by looking again under the lock.
func (v *server) lock(ctx context.Context, oid uint32) error {
	v.open = frame.SeedStart{}
	if _, err := v.conn.Exec(ctx, `ROLLBACK`); err != nil {
		return err
	}
	name, err := v.name(ctx, oid)
	if err != nil {
		return err
	}
	_, err = v.conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '`+lockWait+`'; LOCK TABLE ONLY `+name+` IN ACCESS SHARE MODE`)
	switch sqlState(err) {
	case "42P01", "3F000": // dropped or renamed meanwhile
		if _, err := v.conn.Exec(ctx, `ROLLBACK`); err != nil {
			return err
		}
		return v.lock(ctx, oid)
	}
	return err
}

func (v *server) name(ctx context.Context, oid uint32) (string, error) {
	var schema, name string
	err := v.conn.QueryRow(ctx, `
		SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = $1 AND c.relkind = 'r'`, oid).Scan(&schema, &name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", errGone
	}
	return postgres.QuoteIdent(schema, name), err
}

// describe takes the snapshot, by its first query, and what goes with it. The
// position is read behind the snapshot: what the snapshot sees lies before it.
func (v *server) describe(ctx context.Context, oid uint32) error {
	var snapshot, lsn, export string
	t := frame.SeedStart{OID: oid}
	err := v.conn.QueryRow(ctx, `
		SELECT pg_current_snapshot()::text, n.nspname, c.relname, pg_table_size(c.oid), c.reltuples::bigint,
		       pg_relation_size(c.oid) / current_setting('block_size')::bigint,
		       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
		        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '{}')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, oid).
		Scan(&snapshot, &t.Schema, &t.Name, &t.Bytes, &t.Rows, &t.Pages, &t.Columns)
	if err == nil {
		err = v.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text, pg_export_snapshot()`).Scan(&lsn, &export)
	}
	if err != nil {
		return fmt.Errorf("describe table %d: %w", oid, err)
	}
	if t.Snapshot, err = frame.ParseSnapshot(snapshot); err != nil {
		return err
	}
	if t.LSN, err = frame.ParseLSN(lsn); err != nil {
		return err
	}
	t.Export = export
	t.ChunkPages = chunkPages(t.Pages, t.Bytes, v.part)
	v.open = t
	return nil
}

// chunkPages spreads the bytes of a table, TOAST included, evenly over its heap.
func chunkPages(pages uint32, bytes, part int64) uint32 {
	parts := max(1, (bytes+part/2)/part)
	return uint32(max(1, (int64(pages)+parts-1)/parts))
}

// copyPart copies the pages of a part. The last part of a table is asked for with
// an open end: rows that the snapshot sees may not lie behind it, but it costs nothing.
func (v *server) copyPart(ctx context.Context, r frame.SeedRequest) error {
	if err := v.begin(ctx, r.Export); err != nil {
		return err
	}
	t := frame.SeedStart{OID: r.OID}
	err := v.conn.QueryRow(ctx, `
		SELECT n.nspname, c.relname,
		       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
		        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '{}')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, r.OID).
		Scan(&t.Schema, &t.Name, &t.Columns)
	if err != nil {
		return fmt.Errorf("find table %d for a part of it: %w", r.OID, err)
	}
	where := fmt.Sprintf(" WHERE ctid >= '(%d,0)'::tid", r.FirstPage)
	if r.EndPage != WholeTable {
		where += fmt.Sprintf(" AND ctid < '(%d,0)'::tid", r.EndPage)
	}
	return v.copy(ctx, t.Schema, t.Name, t.Columns, where)
}

// copy sends rows. A whole table goes without a query around it, which is faster.
func (v *server) copy(ctx context.Context, schema, name string, columns []string, where string) error {
	quoted := make([]string, len(columns))
	for i, c := range columns {
		quoted[i] = postgres.QuoteIdent(c)
	}
	list := strings.Join(quoted, ", ")
	sql := "COPY " + postgres.QuoteIdent(schema, name) + " (" + list + ") TO STDOUT"
	if where != "" || len(columns) == 0 {
		sql = "COPY (SELECT " + list + " FROM ONLY " + postgres.QuoteIdent(schema, name) + where + ") TO STDOUT"
	}
	w := &chunks{s: v.s, buf: make([]byte, 0, chunkBytes)}
	tag, err := v.conn.PgConn().CopyTo(ctx, w, sql)
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return fmt.Errorf("copy table %s: %w", postgres.QuoteIdent(schema, name), err)
	}
	return v.s.Send(frame.SeedEnd{Rows: tag.RowsAffected()})
}

// chunks gathers COPY's rows into frames.
type chunks struct {
	s   Stream
	buf []byte
}

func (c *chunks) Write(p []byte) (int, error) {
	if len(c.buf)+len(p) > chunkBytes {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) >= chunkBytes {
		return len(p), c.s.Send(frame.SeedChunk{Data: p})
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.s.Send(frame.SeedChunk{Data: c.buf})
	c.buf = c.buf[:0]
	return err
}
