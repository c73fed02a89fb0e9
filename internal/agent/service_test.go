package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/link"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
	"github.com/hawser/hawser/internal/verify"
)

// TestReplicaRemoved: what is told of a replica agrees with who owned it.
func TestReplicaRemoved(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		asked, owns bool
		here        role.Role
		want        string
	}{
		"not asked":                       {false, true, role.Secondary, "false"},
		"created here":                    {true, true, role.Secondary, "true"},
		"the old primary":                 {true, false, role.Secondary, "false"},
		"created there, or found empty":   {true, false, role.Primary, "unknown"},
		"the replica of old, now primary": {true, true, role.Primary, "false"},
	}
	for name, test := range tests {
		got := "unknown"
		if r := removed(test.asked, test.here, test.owns); r != nil {
			got = map[bool]string{true: "true", false: "false"}[*r]
		}
		if got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

// TestDifferenceCanBeTyped: the remedy of a table that differs is for a shell, and is
// there when no row could be named.
func TestDifferenceCanBeTyped(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"log": "hawser link resync shop --table '\"public\".\"log\"'", "It's\" x": `hawser link resync shop --table '"public"."It'\''s"" x"'`,
	} {
		p := differenceOf("shop", verify.TableReport{Schema: "public", Name: name, Verdict: verify.Differs})
		if p == nil || p.Cause != "rows differ" || p.Remedy != want {
			t.Errorf("got %v, want %s", p, want)
		}
	}
	many := verify.TableReport{Schema: "public", Name: "log", Verdict: verify.Differs, Key: []string{"id"}, More: true,
		Differences: []verify.Difference{{Kind: verify.Different, Key: []string{"7"}, Columns: []string{"at"}}}}
	if p := differenceOf("shop", many); p.Cause != "rows differ: different id=7 in at; and more" {
		t.Errorf("got %v", p)
	}
}

// TestWaitsForPostgres: an agent whose PostgreSQL is down at its start asks it every few
// seconds, and says so once a minute.
func TestWaitsForPostgres(t *testing.T) {
	t.Parallel()
	port, err := testpg.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		server, err := postgres.Open(fmt.Sprintf("host=127.0.0.1 port=%d", port))
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		a := agent{store: link.NewStore(server), log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := a.migrate(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		// Pauses of 2.5 to 5 s, but for the first ones.
		if tries := strings.Count(log.String(), "\n"); tries < 120 || tries > 260 {
			t.Errorf("%d tries", tries)
		}
		if lines := strings.Count(log.String(), "level=WARN"); lines < 9 || lines > 10 {
			t.Errorf("%d lines are logged", lines)
		}
	})
}

// TestConnectsAnew: a connection to the maintenance database that PostgreSQL ended
// meanwhile, as it does when it restarts, is no error of whoever asks next.
func TestConnectsAnew(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	store := link.NewStore(c.Server())
	t.Cleanup(func() { store.Close(context.Background()) })
	var first, second int
	pid := func(into *int) func(*pgx.Conn) error {
		return func(conn *pgx.Conn) error {
			return conn.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(into)
		}
	}
	if err := store.Do(t.Context(), pid(&first)); err != nil {
		t.Fatal(err)
	}
	var ended bool
	other := c.Connect(t, "postgres")
	if err := other.QueryRow(t.Context(), `SELECT pg_terminate_backend($1, 10000)`, first).Scan(&ended); err != nil || !ended {
		t.Fatalf("ended %v, %v", ended, err)
	}
	if err := store.Do(t.Context(), pid(&second)); err != nil || second == first {
		t.Errorf("backends %d and %d, %v", first, second, err)
	}
}
