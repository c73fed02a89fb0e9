package capture

import (
	"context"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

// A sequence that is dropped between the list of all and its own turn is no reason to end
// the stream.
func TestSequenceIsDroppedWhileItIsRead(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	execute(t, w.open, `BEGIN; DROP SEQUENCE s`)
	r := &run{sql: w.c.Connect(t, w.database)}
	type answer struct {
		moved []frame.SequenceValue
		err   error
	}
	done := make(chan answer, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		moved, err := r.movedSequences(ctx, activity{})
		done <- answer{moved, err}
	}()
	testpg.Eventually(t, 20*time.Second, "the reader waits for the sequence", func() (waits bool, err error) {
		err = w.by.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)`, r.sql.PgConn().PID()).Scan(&waits)
		return waits, err
	})
	execute(t, w.open, `COMMIT`)
	if a := testpg.Await(t, "the sequences are read", done); a.err != nil || len(a.moved) > 0 {
		t.Errorf("got %v, %v", a.moved, a.err)
	}
	if moved, err := r.movedSequences(ctx, activity{}); err != nil || len(moved) > 0 {
		t.Errorf("the next beat: got %v, %v", moved, err)
	}
}
