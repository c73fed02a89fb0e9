package agent

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/link"
	"github.com/hawser/hawser/internal/testpg"
)

// TestConnectsAnew: a connection to the maintenance database that PostgreSQL ended
// meanwhile, as it does when it restarts, is no error of whoever asks next.
func TestConnectsAnew(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	a := &agent{server: c.Server(), store: link.NewStore(c.Server())}
	t.Cleanup(func() { a.store.Close(context.Background()) })
	var first, second int
	pid := func(into *int) func(*pgx.Conn) error {
		return func(conn *pgx.Conn) error {
			return conn.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(into)
		}
	}
	if err := a.do(t.Context(), pid(&first)); err != nil {
		t.Fatal(err)
	}
	var ended bool
	other := c.Connect(t, "postgres")
	if err := other.QueryRow(t.Context(), `SELECT pg_terminate_backend($1, 10000)`, first).Scan(&ended); err != nil || !ended {
		t.Fatalf("ended %v, %v", ended, err)
	}
	if err := a.do(t.Context(), pid(&second)); err != nil || second == first {
		t.Errorf("backends %d and %d, %v", first, second, err)
	}
}
