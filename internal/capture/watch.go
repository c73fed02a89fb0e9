package capture

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

// Watch looks at a primary for all links at once: where its WAL is, and in which
// databases anybody did something. It does so while at least one link streams, on one
// connection to the maintenance database. Its methods may be called from any goroutine.
type Watch struct {
	server *postgres.Server

	mu     sync.Mutex
	joined []listener
	end    func()        // ends run, and waits for it
	next   chan struct{} // closed when last is a newer one
	last   look
}

// NewWatch returns a watch that has touched nothing yet.
func NewWatch(server *postgres.Server) *Watch {
	return &Watch{server: server, next: make(chan struct{})}
}

// listener is a link that streams.
type listener struct {
	database string
	pid      int32 // of the session that asks for its sequences
}

// look is what a watch saw.
type look struct {
	n        int // counts them
	err      error
	insert   frame.LSN // where WAL ends
	flushed  frame.LSN // and where that ends which is on disk
	snapshot string
	activity map[string]activity // by database
}

// activity is equal to an earlier one where no session of the database did anything in
// between: nothing but a session moves a sequence.
type activity struct {
	marks string // change with each session that comes, and each statement's begin and end
	busy  bool   // a statement is under way, or one can't be seen
}

const sqlWhere = `SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text, pg_current_snapshot()::text`

// sqlActivity asks of each database which sessions it had, and has. What it can't see is
// busy: sessions of roles that are hidden from this one, and all where nothing is tracked.
// Autovacuum moves no sequence, nor do the sessions that ask for them ($2).
const sqlActivity = `
	SELECT d.datname::text, concat_ws(' ', d.sessions, d.stats_reset, a.sessions, a.changes),
	       coalesce(a.busy, false) OR current_setting('track_counts') = 'off'
	FROM pg_stat_database d LEFT JOIN (
		SELECT datid, count(*) AS sessions, sum(extract(epoch FROM state_change)) AS changes,
		       bool_or(NOT coalesce(state LIKE 'idle%' OR backend_type = 'walsender' AND query LIKE 'START_REPLICATION%', false)) AS busy
		FROM pg_stat_activity
		WHERE datid IS NOT NULL AND backend_type IS DISTINCT FROM 'autovacuum worker'
		  AND pid <> ALL ($2) AND pid <> pg_backend_pid()
		GROUP BY datid) a ON a.datid = d.datid
	WHERE d.datname = ANY ($1)`

// join has a link's database watched until leave is called.
func (w *Watch) join(l listener) (leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.joined) == 0 {
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); w.run(ctx) }()
		w.end = func() { stop(); <-done }
	}
	w.joined = append(w.joined, l)
	return func() { w.leave(l) }
}

func (w *Watch) leave(l listener) {
	w.mu.Lock()
	i := slices.Index(w.joined, l)
	w.joined = slices.Delete(w.joined, i, i+1)
	last, end := len(w.joined) == 0, w.end
	w.mu.Unlock()
	if last {
		end()
	}
}

// wait returns the next look that is finished from now on.
func (w *Watch) wait(ctx context.Context) (look, error) {
	w.mu.Lock()
	next := w.next
	w.mu.Unlock()
	select {
	case <-next:
	case <-ctx.Done():
		return look{}, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.last.err
}

// run looks every beatEvery until ctx ends.
func (w *Watch) run(ctx context.Context) {
	var eye eye
	defer func() { eye.close() }()
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.mu.Lock()
		listeners := slices.Clone(w.joined)
		w.mu.Unlock()
		seen := eye.look(ctx, w.server, listeners)
		if ctx.Err() != nil {
			return
		}
		seen.n = n
		w.mu.Lock()
		w.last = seen
		close(w.next)
		w.next = make(chan struct{})
		w.mu.Unlock()
	}
}

// eye is the connection of a watch.
type eye struct {
	conn   *pgx.Conn
	insert frame.LSN // where WAL ended at the last look
}

// lookWithin is how long a look may take before its connection counts as dead.
const lookWithin = 5 * time.Second

// look tries a second time on a new connection where the last one was ended.
func (e *eye) look(ctx context.Context, server *postgres.Server, listeners []listener) look {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	if e.conn != nil {
		if l := e.once(ctx, listeners); l.err == nil {
			return l
		}
		e.close()
	}
	conn, err := server.Connect(ctx, session(server.Database(), "watch"))
	if err != nil {
		return look{err: fmt.Errorf("open the connection that watches the primary: %w", err)}
	}
	e.conn = conn
	l := e.once(ctx, listeners)
	if l.err != nil {
		e.close()
	}
	return l
}

func (e *eye) once(ctx context.Context, listeners []listener) look {
	l := lookAt(ctx, e.conn, listeners...)
	if l.err == nil {
		l.err = e.flush(ctx, l)
	}
	return l
}

// flush has the server write out WAL that would stay in its buffers for long, as
// that of a cleaned-up page does on an idle server: only what is on disk is
// streamed, and whoever waits for a position behind it would wait as long.
func (e *eye) flush(ctx context.Context, l look) error {
	stuck := l.insert != l.flushed && l.insert == e.insert
	e.insert = l.insert
	if !stuck {
		return nil
	}
	if _, err := e.conn.Exec(ctx, `SELECT pg_logical_emit_message(true, 'hawser.flush', '')`); err != nil {
		return fmt.Errorf("flush the primary's WAL: %w", err)
	}
	return nil
}

func (e *eye) close() {
	if e.conn == nil {
		return
	}
	closeSoon(e.conn.PgConn())
	e.conn = nil
}

// lookAt is one round trip.
func lookAt(ctx context.Context, conn *pgx.Conn, listeners ...listener) look {
	l := look{activity: map[string]activity{}}
	var databases []string
	var pids []int32
	for _, k := range listeners {
		databases, pids = append(databases, k.database), append(pids, k.pid)
	}
	var insert, flushed string
	var both pgx.Batch
	both.Queue(sqlActivity, databases, pids).Query(func(rows pgx.Rows) error {
		var name string
		var a activity
		_, err := pgx.ForEachRow(rows, []any{&name, &a.marks, &a.busy}, func() error { l.activity[name] = a; return nil })
		return err
	})
	both.Queue(sqlWhere).QueryRow(func(row pgx.Row) error { return row.Scan(&insert, &flushed, &l.snapshot) })
	err := conn.SendBatch(ctx, &both).Close()
	if err == nil {
		l.insert, err = frame.ParseLSN(insert)
	}
	if err == nil {
		l.flushed, err = frame.ParseLSN(flushed)
	}
	if err != nil {
		l.err = fmt.Errorf("ask the primary for its position and its sessions: %w", err)
	}
	return l
}
