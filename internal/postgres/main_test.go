package postgres_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) {
	// A developer's own settings are not what is tested.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PG") {
			_ = os.Unsetenv(name)
		}
	}
	// What the agent holds in its environment is not for PostgreSQL.
	_ = os.Setenv("HAWSER_TEST_SECRET", secret)
	os.Exit(testpg.Main(m))
}

// within bounds what a server may take on a busy machine.
const within = time.Minute

func open(t testing.TB, connString string) *postgres.Server {
	t.Helper()
	s, err := postgres.Open(connString)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantProblem holds an error against the code, the remedy and the retry that a
// person or a program is to see, and returns it.
func wantProblem(t testing.TB, err error, code, remedy string, retry bool) *problem.Problem {
	t.Helper()
	p, ok := problem.As(err)
	if !ok {
		t.Fatalf("error %v is no problem, want %s", err, code)
	}
	if p.Code != code || !strings.Contains(p.Help(), remedy) || p.Retryable != retry {
		t.Errorf("problem %s, remedy %q, retryable %v;\nwant %s, remedy with %q, retryable %v\n%v", p.Code, p.Remedy, p.Retryable, code, remedy, retry, err)
	}
	if p.Object == "" || p.Cause == "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("problem without object or cause, or of several lines: %q", err)
	}
	return p
}
