package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Options say how a side works.
type Options struct {
	// Workers is how many scans run at once; 0 means 4. There are at most twice as
	// many sessions.
	Workers int
	// PartBytes is the size above which a table is scanned in parts; 0 means 64 MiB.
	PartBytes int64
	// Publication narrows the inventory to the tables that it lists; "" means all.
	Publication string
}

// Local is the side at hand: a database under a snapshot.
type Local struct {
	connect  func(context.Context) (*pgx.Conn, error)
	snapshot string
	o        Options
}

// NewLocal returns the side that connect reaches. snapshot is one that
// pg_export_snapshot or CREATE_REPLICATION_SLOT exported in that database; with ""
// every scan sees what is there when it begins, which is one state only in a
// database that nobody writes to.
func NewLocal(connect func(context.Context) (*pgx.Conn, error), snapshot string, o Options) *Local {
	if o.Workers <= 0 {
		o.Workers = 4
	}
	if o.PartBytes <= 0 {
		o.PartBytes = 64 << 20
	}
	return &Local{connect: connect, snapshot: snapshot, o: o}
}

// settings fix what the text of a value depends on, and keep the scan going.
var settings = map[string]string{
	"DateStyle": "ISO, YMD", "IntervalStyle": "postgres", "TimeZone": "UTC", "bytea_output": "hex", "extra_float_digits": "3",
	"lc_monetary": "C", "lc_numeric": "C", "search_path": "", "quote_all_identifiers": "off", "xmlbinary": "base64",
	"client_encoding": "UTF8", "row_security": "off", "default_transaction_deferrable": "off",
	"statement_timeout": "0", "idle_in_transaction_session_timeout": "0", "transaction_timeout": "0", "lock_timeout": "30s",
	"client_connection_check_interval": "5s", // so that a scan ends when nobody waits for it
	"max_parallel_workers_per_gather":  "0", "synchronize_seqscans": "off", "jit": "off",
}

// pool keeps the sessions of one request.
type pool struct {
	local *Local
	scans chan struct{} // bounds the scans that run
	mu    sync.Mutex
	idle  []*pgx.Conn
	all   []*pgx.Conn
}

func (l *Local) pool() *pool { return &pool{local: l, scans: make(chan struct{}, l.o.Workers)} }

func (p *pool) close(ctx context.Context) {
	for _, c := range p.all {
		_ = c.Close(context.WithoutCancel(ctx))
	}
}

func (p *pool) get(ctx context.Context) (*pgx.Conn, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		conn := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return conn, nil
	}
	p.mu.Unlock()
	conn, err := p.local.connect(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.all = append(p.all, conn)
	p.mu.Unlock()
	return conn, prepareSession(ctx, conn)
}

func prepareSession(ctx context.Context, conn *pgx.Conn) error {
	names, values := make([]string, 0, len(settings)), make([]string, 0, len(settings))
	for k, v := range settings {
		names, values = append(names, k), append(values, v)
	}
	// Not every version knows each of them.
	_, err := conn.Exec(ctx, `SELECT set_config(s.name, v.value, false) FROM unnest($1::text[], $2::text[]) v (name, value)
		JOIN pg_settings s ON lower(s.name) = lower(v.name)`, names, values)
	if err != nil {
		return fmt.Errorf("prepare a session for the comparison: %w", err)
	}
	return nil
}

// tx runs f in a transaction under the snapshot.
func (p *pool) tx(ctx context.Context, f func(pgx.Tx) error) error {
	conn, err := p.get(ctx)
	if err != nil {
		return err
	}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := p.local.enter(ctx, tx); err != nil {
			return err
		}
		return f(tx)
	})
	if !conn.IsClosed() {
		p.mu.Lock()
		p.idle = append(p.idle, conn)
		p.mu.Unlock()
	}
	return err
}

func (l *Local) enter(ctx context.Context, tx pgx.Tx) error {
	if l.snapshot == "" {
		return nil
	}
	_, err := tx.Exec(ctx, `SET TRANSACTION SNAPSHOT '`+strings.ReplaceAll(l.snapshot, "'", "''")+`'`)
	if err != nil {
		return problem.New("snapshot-gone", "snapshot "+l.snapshot, "the snapshot of the comparison can't be entered; the session that exported it has ended",
			"").Advise("run the comparison again").Retry().Because(err)
	}
	return nil
}

// scan is one pass over a table.
type scan struct {
	table Table
	m     Method
	sql   func(e expressions, part string) string
	args  []any
	row   func(pgx.Rows) error // called by one goroutine at a time
}

// run makes the pass, in parts if the table is large. While it lasts, the table is
// locked against what a snapshot does not protect from: TRUNCATE and rewriting.
func (p *pool) run(ctx context.Context, s scan) error {
	return p.tx(ctx, func(tx pgx.Tx) error {
		parts, kinds, err := p.open(ctx, tx, s)
		if err != nil {
			return err
		}
		e := expressions{table: s.table, m: s.m, kinds: kinds}
		if len(parts) == 1 {
			return p.slot(ctx, func() error { return s.read(ctx, tx, e, parts[0], s.row) })
		}
		var mu sync.Mutex
		row := func(r pgx.Rows) error {
			mu.Lock()
			defer mu.Unlock()
			return s.row(r)
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(p.local.o.Workers)
		for _, part := range parts {
			g.Go(func() error {
				return p.slot(ctx, func() error {
					return p.tx(ctx, func(tx pgx.Tx) error { return s.read(ctx, tx, e, part, row) })
				})
			})
		}
		return g.Wait()
	})
}

// slot runs f as one of the scans that may run at once.
func (p *pool) slot(ctx context.Context, f func() error) error {
	select {
	case p.scans <- struct{}{}:
		defer func() { <-p.scans }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read passes over a part.
func (s scan) read(ctx context.Context, tx pgx.Tx, e expressions, part string, row func(pgx.Rows) error) error {
	read := func() error { return read(ctx, tx, s.sql(e, part), s.args, row) }
	if s.m.UserPath {
		return postgres.InUserPath(ctx, tx, read)
	}
	return read()
}

func read(ctx context.Context, tx pgx.Tx, sql string, args []any, row func(pgx.Rows) error) error {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// open locks the table, makes sure that it still is what the snapshot shows, and
// plans the parts.
func (p *pool) open(ctx context.Context, tx pgx.Tx, s scan) (parts []string, kinds map[string]kind, err error) {
	name := postgres.QuoteIdent(s.table.Schema, s.table.Name)
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+name+` IN ACCESS SHARE MODE`); err != nil {
		return nil, nil, err
	}
	var oid uint32
	var same, heap bool
	var pages, bytes int64
	// The catalogs' rows are read under the snapshot; the functions look at what is now.
	err = tx.QueryRow(ctx, `
		SELECT c.oid, c.oid = to_regclass($3) AND c.relfilenode = pg_relation_filenode(c.oid), coalesce(a.amname = 'heap', false),
		       pg_relation_size(c.oid) / current_setting('block_size')::int, pg_table_size(c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am a ON a.oid = c.relam
		WHERE n.nspname = $1 AND c.relname = $2`, s.table.Schema, s.table.Name, name).Scan(&oid, &same, &heap, &pages, &bytes)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && !same {
		return nil, nil, problem.New("table-changed", "table "+name,
			"it was truncated, rewritten, renamed or made after the position of the comparison, and can't be read as it was", "").Advise("run the comparison again").Retry()
	}
	if err != nil {
		return nil, nil, err
	}
	if s.m.Wide {
		if kinds, err = readKinds(ctx, tx, oid); err != nil {
			return nil, nil, err
		}
	}
	if !heap {
		pages = 0
	}
	return plan(pages, bytes, p.local.o.PartBytes), kinds, nil
}

// plan cuts a table of so many heap pages into parts of about equal size. The last
// has no end: rows may have been added while we looked, which the snapshot hides.
func plan(pages, bytes, partBytes int64) []string {
	n := min((bytes+partBytes-1)/partBytes, pages)
	if n <= 1 {
		return []string{""}
	}
	parts := make([]string, n)
	for i := range n {
		parts[i] = fmt.Sprintf(`ctid >= '(%d,0)'::tid`, pages*i/n)
		if i < n-1 {
			parts[i] += fmt.Sprintf(` AND ctid < '(%d,0)'::tid`, pages*(i+1)/n)
		}
	}
	return parts
}

func readKinds(ctx context.Context, tx pgx.Tx, oid uint32) (map[string]kind, error) {
	rows, err := tx.Query(ctx, `
		WITH RECURSIVE base (attname, oid) AS (
			SELECT attname, atttypid FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
			UNION ALL SELECT b.attname, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
		SELECT b.attname, t.typname, t.typlen > 0 FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype <> 'd'`, oid)
	if err != nil {
		return nil, err
	}
	kinds := map[string]kind{}
	var name string
	var k kind
	_, err = pgx.ForEachRow(rows, []any{&name, &k.base, &k.fixed}, func() error { kinds[name] = k; return nil })
	return kinds, err
}

// Digest hashes whole tables, the largest first.
func (l *Local) Digest(ctx context.Context, r DigestRequest) ([]TableDigest, error) {
	p := l.pool()
	defer p.close(ctx)
	out := make([]TableDigest, len(r.Tables))
	order := make([]int, len(r.Tables))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(min(1, max(-1, r.Tables[b].Bytes-r.Tables[a].Bytes))) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(l.o.Workers)
	for _, i := range order {
		g.Go(func() (err error) {
			out[i], err = p.digest(ctx, r.Tables[i], r.Method)
			return err
		})
	}
	return out, g.Wait()
}

func (p *pool) digest(ctx context.Context, t Table, m Method) (TableDigest, error) {
	d := TableDigest{Schema: t.Schema, Name: t.Name}
	err := p.run(ctx, scan{
		table: t, m: m, sql: func(e expressions, part string) string { return e.all(part) },
		row: func(r pgx.Rows) error {
			var n int64
			h, err := scanSums(r, &n)
			d.Rows, d.Hash = d.Rows+n, d.Hash.Add(h)
			return err
		},
	})
	if p := tableProblem(t, m, err); p != nil {
		return TableDigest{Schema: t.Schema, Name: t.Name, Problem: p}, nil
	}
	return d, err
}

func scanSums(r pgx.Rows, dest ...any) (Hash, error) {
	var a, b string
	if err := r.Scan(append(dest, &a, &b)...); err != nil {
		return Hash{}, err
	}
	return parseSums(a, b)
}

// Buckets hashes parts of one table.
func (l *Local) Buckets(ctx context.Context, r BucketsRequest) ([]Bucket, error) {
	if r.Depth < 0 || r.Depth > maxDepth {
		return nil, fmt.Errorf("buckets of depth %d: want 0 to %d", r.Depth, maxDepth)
	}
	p := l.pool()
	defer p.close(ctx)
	found := map[int64]Bucket{}
	err := p.run(ctx, scan{
		table: r.Table, m: r.Method, args: []any{r.Within}, sql: func(e expressions, part string) string { return e.buckets(r.Depth, part) },
		row: func(rows pgx.Rows) error {
			var id, n int64
			h, err := scanSums(rows, &id, &n)
			b := found[id]
			found[id] = Bucket{id, b.Rows + n, b.Hash.Add(h)}
			return err
		},
	})
	if err != nil {
		return nil, tableError(r.Table, r.Method, err)
	}
	out := make([]Bucket, 0, len(found))
	for _, b := range found {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Bucket) int { return int(a.ID - b.ID) })
	return out, nil
}

// Rows lists the rows in some buckets of one table.
func (l *Local) Rows(ctx context.Context, r RowsRequest) ([]Row, error) {
	if r.Depth < 0 || r.Depth > maxDepth || r.Limit <= 0 {
		return nil, fmt.Errorf("rows of depth %d, at most %d: want depth 0 to %d and a limit", r.Depth, r.Limit, maxDepth)
	}
	p := l.pool()
	defer p.close(ctx)
	var out []Row
	err := p.run(ctx, scan{
		table: r.Table, m: r.Method, args: []any{r.Buckets, r.Limit}, sql: func(e expressions, part string) string { return e.rows(r.Depth, part) },
		row: func(rows pgx.Rows) error {
			var row Row
			var a, b string
			if err := rows.Scan(&row.Key, &row.Text, &row.Count, &a, &b, &row.Columns); err != nil {
				return err
			}
			var err error
			row.Hash, err = parseSums(a, b)
			if len(out) < r.Limit {
				out = append(out, row)
			}
			return err
		},
	})
	return out, tableError(r.Table, r.Method, err)
}

// Codes of the problems that end with another Method.
const (
	codeUserPath = "search-path"
	codeTooWide  = "row-too-wide"
)

// tableProblem is the reason why one table can't be read while others can; nil
// when there is none, or when err is no such reason.
func tableProblem(t Table, m Method, err error) *problem.Problem {
	if p, ok := problem.As(err); ok && p.Code == "table-changed" {
		return p
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || severed(pg) {
		return nil
	}
	name := "table " + postgres.QuoteIdent(t.Schema, t.Name)
	// Err does not travel between the sides, so the server's words go into the cause.
	says := "the server says: " + pg.Message + " (SQLSTATE " + pg.Code + ")"
	switch {
	case postgres.Unqualified(pg) && !m.UserPath:
		return problem.New(codeUserPath, name, "a function of one of its indexes names things without their schema; "+says, "").Advise("it is read under the database's search_path")
	case (postgres.TooLarge(pg) || pg.Code == "53200") && !m.Wide:
		return problem.New(codeTooWide, name, "the text of one of its rows is larger than PostgreSQL can build; "+says, "").Advise("the table is hashed by column")
	case pg.Code == "55P03":
		return problem.New("table-locked", name, "another session holds it locked", "").Advise("run the comparison again when the lock is gone").Retry()
	case pg.Code == "42P01", pg.Code == "42703", pg.Code == "3F000":
		return problem.New("table-changed", name, "it was dropped or altered after the position of the comparison; "+says, "").Advise("run the comparison again").Retry()
	}
	return problem.New("table-unreadable", name, "its rows can't be read; "+says, "").Advise("mend what the server names, and run the comparison again")
}

// severed: the session ended, or somebody ended the statement.
func severed(pg *pgconn.PgError) bool {
	return pg.Severity == "FATAL" || strings.HasPrefix(pg.Code, "57")
}

func tableError(t Table, m Method, err error) error {
	if p := tableProblem(t, m, err); p != nil {
		return p
	}
	return err
}
