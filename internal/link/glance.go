package link

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// glanceFor is how long a status leaves its session for the next one: longer than who
// watches a link waits between two.
const glanceFor = 2 * time.Second

// keeper has one session of a link for whoever needs the next one: to open a session costs
// the server more than most of what is asked in it.
type keeper struct {
	mu    sync.Mutex
	kept  *pgx.Conn // nil: none, or somebody has it
	timer *time.Timer
}

// take returns the session that is kept, if it is and answers.
func (k *keeper) take(ctx context.Context) *pgx.Conn {
	k.mu.Lock()
	conn := k.kept
	if k.kept = nil; conn != nil {
		k.timer.Stop()
	}
	k.mu.Unlock()
	if conn != nil && !answers(ctx, conn) {
		farewell(conn)
		return nil
	}
	return conn
}

// keep takes a session for at most so long. may tells whether one may be kept.
func (k *keeper) keep(conn *pgx.Conn, within time.Duration, may func() bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept != nil || conn.IsClosed() || !may() {
		farewell(conn)
		return
	}
	k.kept, k.timer = conn, time.AfterFunc(within, k.end)
}

// end closes the session that is kept.
func (k *keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept != nil {
		k.timer.Stop()
		farewell(k.kept)
		k.kept = nil
	}
}

// farewell closes a session without waiting for a server that does not answer.
func farewell(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// session is the one that k keeps, or a new one.
func (l *link) session(ctx context.Context, k *keeper, purpose string) (*pgx.Conn, error) {
	if conn := k.take(ctx); conn != nil {
		return conn, nil
	}
	return l.connectOwn(ctx, purpose)
}

// glance has f ask the database what a status tells of it. Its session is kept for a
// moment, and only while the link streams, when other sessions of the agent are in the
// database too: it stands in nobody's way.
func (l *link) glance(ctx context.Context, f func(conn *pgx.Conn)) {
	conn, err := l.session(ctx, &l.glances, "status")
	if err != nil {
		return
	}
	f(conn)
	l.glances.keep(conn, glanceFor, l.isStreaming)
}

func (l *link) isStreaming() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.streaming
}
