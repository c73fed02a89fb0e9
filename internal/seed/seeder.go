package seed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Gate is the applier. Each call is carried out between two streamed transactions.
type Gate interface {
	// Requested is called before a snapshot of the table is asked for.
	Requested(ctx context.Context, oid uint32) error
	// SnapshotTaken records the snapshot of a table that is about to be copied. It
	// returns ErrRetake when another one has to be taken.
	SnapshotTaken(ctx context.Context, t catalog.SeedTable) error
	// Loaded says that rows and indexes are there. The table is live when it returns.
	Loaded(ctx context.Context, oid uint32) error
	// Gone says that the table was dropped on the primary before it was copied.
	Gone(ctx context.Context, oid uint32) error
	// Await returns when everything before lsn is applied.
	Await(ctx context.Context, lsn frame.LSN) error
}

// ErrRetake asks for another snapshot of the same table.
var ErrRetake = errors.New("another snapshot has to be taken")

// Config is what a seeder works with.
type Config struct {
	Link    string // its id: keys the catalog
	Name    string // its name, for words
	Open    func(ctx context.Context) (ClientStream, error)
	Connect func(ctx context.Context) (*pgx.Conn, error) // to the replica
	Gate    Gate
	Build   func(ctx context.Context, conn *pgx.Conn, oid uint32) error // the table's indexes and constraints
	Workers int                                                         // copies at a time; 0 means 4
	Log     *slog.Logger
}

const defaultWorkers = 4

// Seeder copies the tables of one link that are not live yet. Run may be called
// once; after an error another Seeder goes on.
type Seeder struct {
	cfg      Config
	jobs     chan job        // rows to copy: tables, and parts of them
	built    chan builtTable // tables that have their rows
	parts    chan job        // parts go before tables
	progress *meter
}

// job is a table to open and copy, or a part of an open one.
type job struct {
	table catalog.SeedTable
	part  *part
}

// part is a range of pages of a table whose snapshot another worker holds.
type part struct {
	start      frame.SeedStart
	first, end uint32
	done       chan<- error
}

type builtTable struct{ table catalog.SeedTable }

// New returns a seeder that has touched nothing yet.
func New(cfg Config) *Seeder {
	if cfg.Workers <= 0 {
		cfg.Workers = defaultWorkers
	}
	return &Seeder{
		cfg: cfg, jobs: make(chan job), parts: make(chan job), built: make(chan builtTable, 4096),
		progress: newMeter(),
	}
}

// Progress may be called at any time.
func (s *Seeder) Progress() Progress { return s.progress.read(time.Now()) }

// Run copies every table that is not live, the largest first. It returns nil when
// all are, and otherwise promptly, with every goroutine ended.
func (s *Seeder) Run(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	tables, err := catalog.SeedTables(ctx, conn, s.cfg.Link)
	_ = conn.Close(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	s.progress.begin(tables, time.Now())
	g, ctx := errgroup.WithContext(ctx)
	copied := make(chan struct{})
	g.Go(func() error { return s.feed(ctx, tables) })
	workers, wctx := errgroup.WithContext(ctx)
	for range min(s.cfg.Workers, max(1, len(tables))) {
		workers.Go(func() error { return s.work(wctx) })
	}
	g.Go(func() error {
		defer close(copied)
		return workers.Wait()
	})
	for range min(s.cfg.Workers, max(1, len(tables))) {
		g.Go(func() error { return s.finish(ctx, copied) })
	}
	return g.Wait()
}

// feed hands out the tables and then ends the workers.
func (s *Seeder) feed(ctx context.Context, tables []catalog.SeedTable) error {
	defer close(s.jobs)
	for _, t := range tables {
		switch t.State {
		case catalog.Live:
			continue
		case catalog.Loaded:
			select {
			case s.built <- builtTable{t}:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		select {
		case s.jobs <- job{table: t}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// worker is one stream and one session of the replica. They are opened with the
// first job and serve many.
type worker struct {
	*Seeder
	stream ClientStream
	conn   *pgx.Conn
}

func (s *Seeder) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := s.cfg.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, textSettings+`; SET synchronous_commit = off`); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("set up the copy: %w", err)
	}
	return conn, nil
}

func (s *Seeder) work(ctx context.Context) (err error) {
	w := &worker{Seeder: s}
	defer w.close()
	jobs := s.jobs
	for jobs != nil {
		var j job
		var ok bool
		select {
		case j = <-s.parts:
		default:
			select {
			case j = <-s.parts:
			case j, ok = <-jobs:
				if !ok {
					jobs = nil
					continue
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := w.do(ctx, j); err != nil {
			return err
		}
	}
	// Others may still split a table.
	for {
		select {
		case j := <-s.parts:
			if err := w.do(ctx, j); err != nil {
				return err
			}
		case <-s.progress.allCopied():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *worker) do(ctx context.Context, j job) error {
	if err := w.open(ctx); err != nil {
		if j.part != nil {
			j.part.done <- err
		}
		return err
	}
	// A blocked Recv ends when the stream is closed.
	stop := context.AfterFunc(ctx, func() { _ = w.stream.Close() })
	defer stop()
	if j.part != nil {
		err := w.copyPart(ctx, j)
		j.part.done <- err
		return err
	}
	return w.copyTable(ctx, j.table)
}

func (w *worker) open(ctx context.Context) (err error) {
	if w.conn == nil {
		if w.conn, err = w.connect(ctx); err != nil {
			return err
		}
	}
	if w.stream == nil {
		w.stream, err = w.cfg.Open(ctx)
	}
	return err
}

func (w *worker) close() {
	if w.stream != nil {
		_ = w.stream.Close()
	}
	if w.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = w.conn.Close(ctx)
	}
}

// copyTable opens a table, has its snapshot recorded, and copies its rows.
func (w *worker) copyTable(ctx context.Context, t catalog.SeedTable) error {
	start, err := w.openTable(ctx, t)
	if errors.Is(err, errGone) {
		w.cfg.Log.Info("table was dropped before it was copied", "table", t.Schema+"."+t.Name)
		w.progress.copied(t.OID)
		w.progress.live(t.OID)
		return w.cfg.Gate.Gone(ctx, t.OID)
	}
	if err != nil {
		return err
	}
	t.Schema, t.Name = start.Schema, start.Name
	w.progress.open(start)
	if start.ChunkPages < start.Pages {
		err = w.copyParts(ctx, t, start)
	} else {
		err = w.copyWhole(ctx, t, start)
	}
	if err != nil {
		return fmt.Errorf("copy table %s: %w", postgres.QuoteIdent(t.Schema, t.Name), err)
	}
	w.progress.copied(t.OID)
	select {
	case w.built <- builtTable{t}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// openTable takes snapshots until one will do.
func (w *worker) openTable(ctx context.Context, t catalog.SeedTable) (frame.SeedStart, error) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		start, err := w.snapshot(ctx, t)
		if err == nil {
			err = w.fits(ctx, start)
		}
		if !errors.Is(err, ErrRetake) {
			return start, err
		}
		select {
		case <-ctx.Done():
			return start, ctx.Err()
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

func (w *worker) snapshot(ctx context.Context, t catalog.SeedTable) (frame.SeedStart, error) {
	if err := w.cfg.Gate.Requested(ctx, t.OID); err != nil {
		return frame.SeedStart{}, err
	}
	if err := w.stream.Send(frame.SeedRequest{OID: t.OID}); err != nil {
		return frame.SeedStart{}, lost(err)
	}
	f, err := w.stream.Recv()
	if err != nil {
		return frame.SeedStart{}, lost(err)
	}
	start, ok := f.(frame.SeedStart)
	if !ok {
		return start, fmt.Errorf("unexpected %T where a table is opened", f)
	}
	if start.Name == "" {
		return start, errGone
	}
	return start, w.cfg.Gate.SnapshotTaken(ctx, catalog.SeedTable{
		OID: t.OID, Schema: start.Schema, Name: start.Name, State: catalog.Copying,
		Snapshot: start.Snapshot, LSN: start.LSN, Bytes: start.Bytes, Rows: start.Rows,
	})
}

func lost(err error) error {
	if _, ok := problem.As(err); ok {
		return err
	}
	return problem.New("stream-lost", "", "the stream from the primary broke during the copy", "none: the copy goes on when it is back").Retry().Because(err)
}

// fits compares the replica's columns with those of the snapshot. When they
// differ, DDL that the snapshot saw is still on its way in the stream.
func (w *worker) fits(ctx context.Context, start frame.SeedStart) error {
	same, err := w.sameColumns(ctx, start)
	if err != nil || same {
		return err
	}
	if err := w.cfg.Gate.Await(ctx, start.LSN); err != nil {
		return err
	}
	if same, err = w.sameColumns(ctx, start); err != nil || same {
		return err
	}
	table := postgres.QuoteIdent(start.Schema, start.Name)
	return problem.New("columns-differ", "table "+table, "its columns on the replica are not those on the primary",
		"make them equal, then hawser link resume "+w.cfg.Name)
}

func (w *worker) sameColumns(ctx context.Context, start frame.SeedStart) (bool, error) {
	rows, err := w.conn.Query(ctx, `
		SELECT a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r'`, start.Schema, start.Name)
	if err != nil {
		return false, fmt.Errorf("look up the columns of the replica: %w", err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return false, fmt.Errorf("look up the columns of the replica: %w", err)
	}
	want := slices.Clone(start.Columns)
	slices.Sort(have)
	slices.Sort(want)
	if len(want) == 0 { // a table without columns can't be told from none
		var exists bool
		err := w.conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, postgres.QuoteIdent(start.Schema, start.Name)).Scan(&exists)
		return exists && len(have) == 0, err
	}
	return slices.Equal(have, want), nil
}

// copyWhole copies a table in one transaction, which also empties it first: rows
// of an interrupted copy go, and FREEZE spares the replica a later vacuum.
func (w *worker) copyWhole(ctx context.Context, t catalog.SeedTable, start frame.SeedStart) error {
	if err := w.stream.Send(frame.SeedRequest{OID: t.OID, EndPage: WholeTable}); err != nil {
		return lost(err)
	}
	return pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		options, err := empty(ctx, tx, start)
		if err != nil {
			return err
		}
		rows, bytes, err := w.receive(ctx, start, options)
		if err != nil {
			return err
		}
		return catalog.SetTableDone(ctx, tx, w.cfg.Link, t.OID, bytes, rows)
	})
}

// empty removes the rows that an earlier copy left, and returns the options for
// a COPY in the same transaction. A table that foreign keys point to, as one that
// is copied again may be, can't be truncated alone.
func empty(ctx context.Context, db catalog.DB, start frame.SeedStart) (options string, err error) {
	table := postgres.QuoteIdent(start.Schema, start.Name)
	var referenced bool
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_constraint WHERE confrelid = to_regclass($1) AND contype = 'f')`, table).Scan(&referenced)
	if err != nil {
		return "", fmt.Errorf("look for foreign keys to table %s: %w", table, err)
	}
	if referenced {
		_, err = db.Exec(ctx, "DELETE FROM ONLY "+table)
		return "", err
	}
	_, err = db.Exec(ctx, "TRUNCATE ONLY "+table)
	return " WITH (FREEZE)", err
}

// copyParts splits a table over the workers. This one holds the snapshot, and
// copies parts too.
func (w *worker) copyParts(ctx context.Context, t catalog.SeedTable, start frame.SeedStart) error {
	if _, err := empty(ctx, w.conn, start); err != nil {
		return err
	}
	// The stream that holds the snapshot can't copy parts: a helper of our own does.
	helper := &worker{Seeder: w.Seeder, conn: w.conn}
	var err error
	if helper.stream, err = w.cfg.Open(ctx); err != nil {
		return err
	}
	defer helper.stream.Close()
	defer context.AfterFunc(ctx, func() { _ = helper.stream.Close() })()

	jobs := partsOf(t, start)
	done := make(chan error, len(jobs))
	for i := range jobs {
		jobs[i].part.done = done
	}
	next := 0
	for next < len(jobs) {
		select {
		case w.parts <- jobs[next]: // an idle worker takes it
			next++
			continue
		default:
		}
		if err := helper.copyPart(ctx, jobs[next]); err != nil {
			return err
		}
		done <- nil
		next++
	}
	for range jobs {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func partsOf(t catalog.SeedTable, start frame.SeedStart) []job {
	var out []job
	for first := uint32(0); first < start.Pages; first += start.ChunkPages {
		end := first + start.ChunkPages
		if end >= start.Pages {
			end = WholeTable
		}
		out = append(out, job{table: t, part: &part{start: start, first: first, end: end}})
		if end == WholeTable {
			break
		}
	}
	return out
}

func (w *worker) copyPart(ctx context.Context, j job) error {
	r := frame.SeedRequest{OID: j.table.OID, Export: j.part.start.Export, FirstPage: j.part.first, EndPage: j.part.end}
	if err := w.stream.Send(r); err != nil {
		return lost(err)
	}
	_, _, err := w.receive(ctx, j.part.start, "")
	return err
}

// receive writes the rows that arrive into the table, and holds the two counts
// against each other.
func (w *worker) receive(ctx context.Context, start frame.SeedStart, options string) (rows, bytes int64, err error) {
	quoted := make([]string, len(start.Columns))
	for i, c := range start.Columns {
		quoted[i] = postgres.QuoteIdent(c)
	}
	list := ""
	if len(quoted) > 0 {
		list = " (" + strings.Join(quoted, ", ") + ")"
	}
	in := &incoming{s: w.stream, count: func(n int) { w.progress.bytes(start.OID, n) }}
	tag, err := w.conn.PgConn().CopyFrom(ctx, in, "COPY "+postgres.QuoteIdent(start.Schema, start.Name)+list+" FROM STDIN"+options)
	if in.err != nil {
		return 0, 0, in.err
	}
	if err != nil {
		return 0, 0, err
	}
	if tag.RowsAffected() != in.rows {
		return 0, 0, problem.New("rows-lost", "table "+postgres.QuoteIdent(start.Schema, start.Name),
			fmt.Sprintf("the primary sent %d rows and the replica took %d", in.rows, tag.RowsAffected()),
			"hawser link resume "+w.cfg.Name+", which copies the table again")
	}
	w.progress.rows(start.OID, in.rows)
	return in.rows, in.bytes, nil
}

// incoming reads the rows of one request from the stream.
type incoming struct {
	s     Stream
	left  []byte
	rows  int64
	bytes int64
	ended bool
	err   error
	count func(int)
}

func (r *incoming) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		f, err := r.s.Recv()
		if err != nil {
			r.err = lost(err)
			return 0, r.err
		}
		switch f := f.(type) {
		case frame.SeedChunk:
			r.left = f.Data
			r.bytes += int64(len(f.Data))
			r.count(len(f.Data))
		case frame.SeedEnd:
			r.rows, r.ended = f.Rows, true
		default:
			r.err = fmt.Errorf("unexpected %T among rows", f)
			return 0, r.err
		}
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// finish builds what belongs to tables that have their rows, and has them made
// live, until all are copied and none is left.
func (s *Seeder) finish(ctx context.Context, copied <-chan struct{}) error {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for {
		var t catalog.SeedTable
		select {
		case b := <-s.built:
			t = b.table
		default:
			select {
			case b := <-s.built:
				t = b.table
			case <-copied:
				if len(s.built) > 0 {
					continue
				}
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if conn == nil {
			var err error
			if conn, err = s.connect(ctx); err != nil {
				return err
			}
		}
		if err := s.finishTable(ctx, conn, t); err != nil {
			return fmt.Errorf("finish table %s: %w", postgres.QuoteIdent(t.Schema, t.Name), err)
		}
	}
}

func (s *Seeder) finishTable(ctx context.Context, conn *pgx.Conn, t catalog.SeedTable) error {
	if t.State != catalog.Loaded {
		if err := s.cfg.Build(ctx, conn, t.OID); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "ANALYZE "+postgres.QuoteIdent(t.Schema, t.Name)); err != nil {
			return err
		}
		// This commit is waited for, and with it all before it is on disk.
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
				return err
			}
			return catalog.SetTableState(ctx, tx, s.cfg.Link, t.OID, catalog.Loaded)
		})
		if err != nil {
			return err
		}
	}
	if err := s.cfg.Gate.Loaded(ctx, t.OID); err != nil {
		return err
	}
	s.progress.live(t.OID)
	s.cfg.Log.Debug("table is live", "table", t.Schema+"."+t.Name)
	return nil
}
