package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// TestReplicationEnds: a reader that waits is woken up by its context and by Close.
func TestReplicationEnds(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	for name, end := range map[string]func(cancel func(), shut func()){
		"context": func(cancel, _ func()) { cancel() },
		"close":   func(_, shut func()) { shut() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := c.Server().ConnectReplication(t.Context(), postgres.Session{Database: c.CreateDatabase(t), Purpose: "test"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { _, err := conn.ReceiveMessage(ctx); ended <- err }()
			time.Sleep(50 * time.Millisecond) // most likely it waits in the kernel now, which can't be seen
			end(cancel, func() { _ = conn.Conn().Close() })
			select {
			case err := <-ended:
				if err == nil || name == "context" && !errors.Is(err, context.Canceled) {
					t.Errorf("the reader ended with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("the reader still waits")
			}
			_ = conn.Close(context.WithoutCancel(ctx))
		})
	}
}
