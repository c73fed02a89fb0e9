package apply

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// TestFailed: a server that stops is not told as one that refused a row.
func TestFailed(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]string{
		"57P01": "server-not-ready", "57P02": "server-not-ready", "57P03": "server-not-ready",
		"57P04": "statement-failed", "23514": "statement-failed", "53100": "replica-disk-full",
	} {
		p, ok := problem.As(failed(nil, fmt.Errorf("read: %w", &pgconn.PgError{Code: state})))
		if !ok || p.Code != want {
			t.Errorf("%s: %v", state, p)
		}
	}
	if err := errors.New("broken pipe"); !errors.Is(failed(nil, err), err) {
		t.Error("the cause is lost")
	}
}
