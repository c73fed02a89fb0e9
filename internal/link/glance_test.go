package link

import (
	"testing"
	"time"

	"github.com/hawser/hawser/internal/testpg"
)

func yes() bool { return true }
func no() bool  { return false }

// A status leaves its session for the next one, while it is in nobody's way.
func TestGlancesKeepASession(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	var g keeper
	t.Cleanup(g.end)
	first, second := c.Connect(t, "postgres"), c.Connect(t, "postgres")

	g.keep(first, time.Minute, yes)
	g.keep(second, time.Minute, yes) // two statuses at once
	if !second.IsClosed() {
		t.Error("two sessions are kept")
	}
	if g.take(t.Context()) != first || g.take(t.Context()) != nil {
		t.Error("the session is not that of the status before, or given out twice")
	}

	g.keep(first, time.Minute, yes)
	g.end()
	if !first.IsClosed() {
		t.Error("a session outlives the stream")
	}
	g.end() // of a stream that no status saw

	third := c.Connect(t, "postgres")
	g.keep(third, time.Minute, no)
	if !third.IsClosed() || g.take(t.Context()) != nil {
		t.Error("a session is kept though nothing streams")
	}
}

// A session that the server ended is not given out.
func TestGlancesLookAtTheSession(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	var g keeper
	conn := c.Connect(t, "postgres")
	testpg.Rows(t, c.Connect(t, "postgres"), `SELECT pg_terminate_backend($1, 20000)`, int32(conn.PgConn().PID()))
	g.keep(conn, time.Minute, yes)
	if g.take(t.Context()) != nil || !conn.IsClosed() {
		t.Error("a session that ended is given out")
	}
}
