package seed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// sizes say how tables are cut.
type sizes struct {
	split int64 // a table of more bytes, TOAST included, is split
	part  int64 // into parts of about this size
}

// A part should be large against the round trip that it costs, and small against
// the table, so that all workers end at about the same time. A table that is not
// split is written frozen.
var defaultSizes = sizes{split: 64 << 20, part: 32 << 20}

// lockWait bounds how long the lock on a table is waited for. While we wait behind
// an ACCESS EXCLUSIVE lock, others of its kind wait behind us.
const lockWait = "250ms"

// Serve answers one seeding stream of a secondary until it ends. It uses one
// connection, and holds a transaction only while a snapshot is needed. With a
// publication's name it copies no table that is not in it.
func Serve(ctx context.Context, connect func(ctx context.Context) (*pgx.Conn, error), s Stream, publication string) error {
	return serve(ctx, connect, s, publication, defaultSizes)
}

func serve(ctx context.Context, connect func(ctx context.Context) (*pgx.Conn, error), s Stream, publication string, cut sizes) error {
	conn, err := session(ctx, connect, "")
	if err != nil {
		return err
	}
	defer closeSession(conn)
	v := server{conn: conn, s: s, publication: publication, cut: cut, out: chunks{s: s}}
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

	publication string // that lists the tables to be copied; "": all are

	cut  sizes
	out  chunks
	open frame.SeedStart // the table whose snapshot the transaction at hand is; its Export is "" when there is none
}

func (v *server) answer(ctx context.Context, r frame.SeedRequest) error {
	switch {
	case r.Export == "":
		return v.openTable(ctx, r)
	case r.Export == v.open.Export && r.OID == v.open.OID:
		return v.ownRows(ctx, r)
	}
	return v.importedRows(ctx, r)
}

// openTable answers with the table's definition and snapshot, and with the rows
// too when the table is small.
func (v *server) openTable(ctx context.Context, r frame.SeedRequest) error {
	if err := v.end(ctx); err != nil {
		return err
	}
	t, err := v.snapshot(ctx, r.OID)
	switch {
	case errors.Is(err, errGone):
		return v.sendGone(ctx, r.OID)
	case errors.Is(err, errLocked):
		return v.s.Send(t)
	case err != nil:
		return v.problem(ctx, "open", t, err)
	}
	if t.Bytes > int64(r.EndPage)*blockBytes {
		if err := v.conn.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&t.Export); err != nil {
			return v.problem(ctx, "export the snapshot of", t, err)
		}
		v.open = t
		return v.s.Send(t)
	}
	if err := v.s.Send(t); err != nil {
		return err
	}
	return v.wholeTable(ctx, t)
}

// sendGone tells from where on the table is missing in the stream of changes too.
func (v *server) sendGone(ctx context.Context, oid uint32) error {
	var text string
	err := v.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text)
	if err != nil {
		return lost("the primary's PostgreSQL was lost during the copy", err)
	}
	lsn, err := frame.ParseLSN(text)
	if err != nil {
		return err
	}
	return v.s.Send(frame.SeedStart{OID: oid, LSN: lsn})
}

var errLocked = errors.New("the table is locked")

// snapshot locks the table and takes the snapshot, in this order: TRUNCATE, and
// ALTER TABLE where it rewrites, are not MVCC-safe, and would show an older
// snapshot an empty table. LOCK TABLE knows names alone, so it is asked afterwards
// whether it was this table that it locked; a rename in between repeats it.
func (v *server) snapshot(ctx context.Context, oid uint32) (frame.SeedStart, error) {
	for {
		t, err := v.name(ctx, oid)
		if err != nil {
			return t, err
		}
		held := false
		if err = v.lock(ctx, t); err == nil {
			t, held, err = v.describe(ctx, t)
		}
		if err == nil && held {
			return t, nil
		}
		state := sqlState(err)
		if err != nil && v.conn.IsClosed() {
			return t, err
		}
		if err := v.end(ctx); err != nil {
			return t, err
		}
		switch {
		case state == "55P03": // lock_not_available
			return t, errLocked
		case err == nil, errors.Is(err, pgx.ErrNoRows), state == "42P01", state == "3F000": // another name by now
		default:
			return t, err
		}
	}
}

// name looks the table up outside of a transaction, whose snapshot it would be.
// A table that the link does not carry is as good as none.
func (v *server) name(ctx context.Context, oid uint32) (frame.SeedStart, error) {
	t := frame.SeedStart{OID: oid}
	if oid == 0 {
		return t, errGone
	}
	err := v.conn.QueryRow(ctx, `SELECT n.nspname, c.relname`+carried+listed+` AND c.oid = $2`, v.publication, oid).Scan(&t.Schema, &t.Name)
	if errors.Is(err, pgx.ErrNoRows) {
		return t, errGone
	}
	return t, err
}

func (v *server) lock(ctx context.Context, t frame.SeedStart) error {
	_, err := v.conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '`+lockWait+`';
		LOCK TABLE ONLY `+quoted(t)+` IN ACCESS SHARE MODE`)
	return err
}

// describe takes the snapshot, by its query, with what is to be known of the table
// under it. The functions run behind the snapshot: whatever it sees was committed
// before that position, and all rows that it sees lie within those pages.
func (v *server) describe(ctx context.Context, t frame.SeedStart) (_ frame.SeedStart, held bool, err error) {
	var snapshot, lsn, noTimeout string
	var heap bool
	var defined []int64
	err = v.conn.QueryRow(ctx, `
		SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, n.nspname, c.relname, c.reltuples::bigint,
		       pg_table_size(c.oid), pg_relation_size(c.oid) / current_setting('block_size')::bigint, `+sqlColumns+`,
		       EXISTS (SELECT FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation = c.oid AND l.granted),
		       c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap'),
		       ARRAY(SELECT c.xmin::text::bigint UNION SELECT n.xmin::text::bigint
		             UNION SELECT a.xmin::text::bigint FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0), set_config('lock_timeout', '0', true)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, t.OID).
		Scan(&snapshot, &lsn, &t.Schema, &t.Name, &t.Rows, &t.Bytes, &t.Pages, &t.Columns, &held, &heap, &defined, &noTimeout)
	if err != nil {
		return t, false, err
	}
	for _, x := range defined {
		t.Defined = append(t.Defined, uint32(x))
	}
	if t.Snapshot, err = frame.ParseSnapshot(snapshot); err != nil {
		return t, false, err
	}
	t.LSN, err = frame.ParseLSN(lsn)
	if t.ChunkPages = t.Pages; heap { // others may not find rows by their page
		t.ChunkPages = v.cut.chunkPages(t.Pages, t.Bytes)
	}
	return t, held, err
}

// sqlColumns are the columns of c that hold values of their own.
const sqlColumns = `ARRAY(SELECT a.attname::text FROM pg_attribute a
	WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum)`

// chunkPages spreads the bytes of a table, TOAST included, evenly over its heap.
func (z sizes) chunkPages(pages uint32, bytes int64) uint32 {
	if bytes <= z.split {
		return max(pages, 1)
	}
	parts := (bytes + z.part - 1) / z.part
	return uint32(max(1, (int64(pages)+parts-1)/parts))
}

// ownRows sends rows under the snapshot that this stream holds.
func (v *server) ownRows(ctx context.Context, r frame.SeedRequest) error {
	t := v.open
	if r.FirstPage == 0 && r.EndPage == endOfTable {
		return v.wholeTable(ctx, t)
	}
	rows, err := v.send(ctx, t, copyPages(quoted(t), t.Columns, r))
	if err != nil {
		return err
	}
	return v.s.Send(frame.SeedEnd{Rows: rows})
}

// wholeTable sends all rows and ends the snapshot. COPY of a table is faster than
// COPY of a query; neither has the rows of tables that inherit from it.
func (v *server) wholeTable(ctx context.Context, t frame.SeedStart) error {
	sql := "COPY " + quoted(t) + " (" + columnList(t.Columns) + ") TO STDOUT"
	if len(t.Columns) == 0 {
		sql = copyPages(quoted(t), nil, frame.SeedRequest{EndPage: endOfTable})
	}
	return v.sendLast(ctx, t, sql)
}

// importedRows sends a part of a table whose snapshot another stream holds. The
// table is named as it is called now: its schema may have another name since.
func (v *server) importedRows(ctx context.Context, r frame.SeedRequest) error {
	t := frame.SeedStart{OID: r.OID}
	if strings.Trim(r.Export, "0123456789ABCDEFabcdef-") != "" {
		return fmt.Errorf("%q is no snapshot", r.Export)
	}
	if err := v.end(ctx); err != nil {
		return err
	}
	_, err := v.conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '`+r.Export+`'`)
	if err != nil {
		// Its holder is gone, and with it the copy of this table.
		return lost("the snapshot of a table ended before its rows were copied", err)
	}
	var now string
	err = v.conn.QueryRow(ctx, `SELECT c.oid::regclass::text, n.nspname, c.relname, `+sqlColumns+carried+listed+` AND c.oid = $2`, v.publication, r.OID).
		Scan(&now, &t.Schema, &t.Name, &t.Columns)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("rows of table %d were asked for, which is not in the snapshot", r.OID)
	}
	if err != nil {
		return v.problem(ctx, "find", t, err)
	}
	return v.sendLast(ctx, t, copyPages(now, t.Columns, r))
}

func copyPages(table string, columns []string, r frame.SeedRequest) string {
	where := fmt.Sprintf("ctid >= '(%d,0)'", r.FirstPage)
	if r.EndPage != endOfTable {
		where += fmt.Sprintf(" AND ctid < '(%d,0)'", r.EndPage)
	}
	return "COPY (SELECT " + columnList(columns) + " FROM ONLY " + table + " WHERE " + where + ") TO STDOUT"
}

// sendLast sends rows behind which the snapshot is not needed here. It ends before
// the secondary hears of their end.
func (v *server) sendLast(ctx context.Context, t frame.SeedStart, sql string) error {
	rows, err := v.send(ctx, t, sql)
	if err == nil {
		err = v.end(ctx)
	}
	if err != nil {
		return err
	}
	return v.s.Send(frame.SeedEnd{Rows: rows})
}

func (v *server) send(ctx context.Context, t frame.SeedStart, sql string) (rows int64, err error) {
	tag, err := copyOut(ctx, v.conn, &v.out, sql)
	switch {
	case v.out.err != nil:
		return 0, v.out.err
	case err != nil:
		return 0, v.problem(ctx, "copy", t, err)
	}
	return tag.RowsAffected(), nil
}

// copyOut runs a COPY of rows to the stream, in the transaction at hand. To plan one of a
// query the server may call functions of the table's indexes. Only where they need it is
// the user's search_path in force: names among the rows would be written by it.
func copyOut(ctx context.Context, conn *pgx.Conn, out *chunks, sql string) (tag pgconn.CommandTag, err error) {
	if _, err := conn.Exec(ctx, `SAVEPOINT hawser_copy`); err != nil {
		return tag, err
	}
	run := func() (err error) {
		tag, err = conn.PgConn().CopyTo(ctx, out, sql)
		return err
	}
	if err = run(); postgres.Unqualified(err) {
		if _, err := conn.Exec(ctx, `ROLLBACK TO hawser_copy`); err != nil {
			return tag, err
		}
		err = postgres.InUserPath(ctx, conn, run)
	}
	if err == nil {
		err = out.flush()
	}
	return tag, err
}

// end ends the transaction at hand, and its snapshot.
func (v *server) end(ctx context.Context) error {
	v.open = frame.SeedStart{}
	if v.conn.PgConn().TxStatus() == 'I' {
		return nil
	}
	if _, err := v.conn.Exec(ctx, `ROLLBACK`); err != nil {
		return lost("the primary's PostgreSQL was lost during the copy", err)
	}
	return nil
}

// problem says what is wrong with a table that the primary's PostgreSQL could not
// open, find or copy.
func (v *server) problem(ctx context.Context, doing string, t frame.SeedStart, err error) error {
	object := "table " + quoted(t)
	if postgres.TooLarge(err) {
		return problem.New("row-too-large", object, "PostgreSQL can't send one of its rows, whose text would be larger than 1 GB (that of a bytea has two characters a byte)",
			"hawser link resume LINK").Advise("make that row's values smaller on the primary first").Because(err)
	}
	if passes(err) {
		return lost("the primary's PostgreSQL could not "+doing+" "+object, err)
	}
	if sqlState(err) == "42501" && v.end(ctx) == nil { // insufficient_privilege
		if found, lookErr := unreadable(ctx, v.conn, t.OID); lookErr == nil && len(found) > 0 {
			return found[0].Because(err)
		}
	}
	return problem.New("copy-failed", object, "the primary's PostgreSQL could not "+doing+" it",
		"hawser link resume LINK").Advise("mend first what it names").Because(err)
}

// chunkBytes is how much of COPY's output travels in one frame.
const chunkBytes = 192 << 10

// chunks cuts COPY's output into frames.
type chunks struct {
	s   Stream
	buf []byte
	err error // of the stream
}

func (c *chunks) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(c.buf) == 0 && len(p) >= chunkBytes { // of a large row
			if c.err = c.s.Send(frame.SeedChunk{Data: p[:chunkBytes]}); c.err != nil {
				return 0, c.err
			}
			p = p[chunkBytes:]
			continue
		}
		if c.buf == nil {
			c.buf = make([]byte, 0, chunkBytes)
		}
		k := min(len(p), chunkBytes-len(c.buf))
		c.buf, p = append(c.buf, p[:k]...), p[k:]
		if len(c.buf) == chunkBytes {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (c *chunks) flush() error {
	if len(c.buf) > 0 {
		c.err = c.s.Send(frame.SeedChunk{Data: c.buf})
		c.buf = c.buf[:0]
	}
	return c.err
}
