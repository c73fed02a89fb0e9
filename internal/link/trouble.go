package link

import (
	"log/slog"
	"sync"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// sayAgain is after how long a log repeats a trouble that lasts.
const sayAgain = time.Minute

// Troubles keeps a log readable while something stays broken, as PostgreSQL that is
// down, which each of a link's goroutines meets again and again: of each trouble one line
// when it begins, then one a minute. The others are there for who debugs.
type Troubles struct {
	mu   sync.Mutex
	said map[string]time.Time // by the problem's code, or by what could not be done
}

// Level is that at which a trouble is logged now.
func (t *Troubles) Level(msg string, err error, now time.Time) slog.Level {
	key := msg
	if p, ok := problem.As(err); ok {
		key = p.Code
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.said[key]) < sayAgain {
		return slog.LevelDebug
	}
	if t.said == nil {
		t.said = map[string]time.Time{}
	}
	t.said[key] = now
	return slog.LevelWarn
}

// trouble logs what goes wrong again and again.
func (l *link) trouble(msg string, err error, args ...any) {
	l.log.Log(l.ctx, l.troubles.Level(msg, err, time.Now()), msg, append(args, "error", err)...)
}
