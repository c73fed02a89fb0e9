package fence

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

var sign = Sign{Link: "orders", Primary: "mi-west"}

// agent opens a session as agents have them.
func agent(t *testing.T, c *testpg.Cluster, database string) *pgx.Conn {
	t.Helper()
	conn, err := c.Server().Connect(t.Context(), postgres.Session{Database: database, Purpose: "fence", Settings: map[string]string{
		"session_replication_role": "replica", postgres.AgentSetting: "on", "default_transaction_read_only": "off",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// stubborn opens a superuser's session that has switched read-only off.
func stubborn(t *testing.T, c *testpg.Cluster, database string) *pgx.Conn {
	t.Helper()
	conn := c.Connect(t, database)
	run(t, conn, `SET default_transaction_read_only = off`)
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
}

// refused runs sql and returns the fence's error; anything else fails the test.
func refused(t *testing.T, conn *pgx.Conn, sql string) *pgconn.PgError {
	t.Helper()
	_, err := conn.PgConn().Exec(context.Background(), sql).ReadAll()
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "25006" {
		t.Errorf("%s: got error %v, want SQLSTATE 25006", sql, err)
		return &pgconn.PgError{}
	}
	return pg
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantProblem(t *testing.T, err error, code string) *problem.Problem {
	t.Helper()
	p, ok := problem.As(err)
	if !ok || p.Code != code {
		t.Fatalf("got error %v, want problem %s", err, code)
	}
	if p.Cause == "" || p.Help() == "" {
		t.Errorf("problem %s has no cause or no remedy: %+v", code, p)
	}
	return p
}

func codes(f problem.Findings) map[string]int {
	out := map[string]int{}
	for _, p := range f {
		out[p.Code]++
	}
	return out
}
