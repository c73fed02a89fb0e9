package link

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// TestTroubles: whatever meets it, one trouble is one line a minute.
func TestTroubles(t *testing.T) {
	t.Parallel()
	var all Troubles
	began := time.Now()
	down := problem.New("server-unreachable", "server a", "nothing listens there", "").Retry()
	for _, c := range []struct {
		after time.Duration
		msg   string
		err   error
		want  slog.Level
	}{
		{0, "the link stopped", down, slog.LevelWarn},
		{time.Second, "can't see how much WAL is held", fmt.Errorf("ask: %w", down), slog.LevelDebug},
		{2 * time.Second, "the link stopped", errors.New("another"), slog.LevelWarn},
		{sayAgain - 1, "the link stopped", down, slog.LevelDebug},
		{sayAgain, "the link stopped", down, slog.LevelWarn},
	} {
		if got := all.Level(c.msg, c.err, began.Add(c.after)); got != c.want {
			t.Errorf("after %s %q, %v is logged as %s", c.after, c.msg, c.err, got)
		}
	}
}
