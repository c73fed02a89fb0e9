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

// glances is the session of a link's statuses. To open one costs the server more than all
// that it is asked. It is kept for a moment, and only while the link streams, when other
// sessions of the agent are in the database too: it stands in nobody's way.
type glances struct {
	mu    sync.Mutex
	kept  *pgx.Conn // nil: none, or a status has it
	timer *time.Timer
}

// take returns the session that is kept, if it is and answers.
func (g *glances) take(ctx context.Context) *pgx.Conn {
	g.mu.Lock()
	conn := g.kept
	if g.kept = nil; conn != nil {
		g.timer.Stop()
	}
	g.mu.Unlock()
	if conn != nil && !answers(ctx, conn) {
		closeGlance(conn)
		return nil
	}
	return conn
}

// keep takes a session back. may tells whether one may be kept.
func (g *glances) keep(conn *pgx.Conn, may func() bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept != nil || conn.IsClosed() || !may() {
		closeGlance(conn)
		return
	}
	g.kept, g.timer = conn, time.AfterFunc(glanceFor, g.end)
}

// end closes the session that is kept.
func (g *glances) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept != nil {
		g.timer.Stop()
		closeGlance(g.kept)
		g.kept = nil
	}
}

// closeGlance says farewell without waiting for a server that does not answer.
func closeGlance(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// glance has f ask the database what a status tells of it.
func (l *link) glance(ctx context.Context, f func(conn *pgx.Conn)) {
	conn := l.glances.take(ctx)
	if conn == nil {
		var err error
		if conn, err = l.connect(ctx, "status"); err != nil {
			return
		}
	}
	f(conn)
	l.glances.keep(conn, l.isStreaming)
}

func (l *link) isStreaming() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.streaming
}
