package testpg_test

import (
	"os"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

func TestKillAndStart(t *testing.T) {
	t.Parallel()
	c := testpg.Start(t, nil)
	db := c.CreateDatabase(t)
	c.Exec(t, db, `CREATE TABLE t (i int)`, `INSERT INTO t VALUES (1)`)
	c.Kill(t)
	c.Start(t)
	if got := testpg.Rows(t, c.Connect(t, db), `SELECT i, NULL FROM t`); len(got) != 1 || got[0] != "1|NULL" {
		t.Fatalf("rows after a crash: %q", got)
	}
}

func TestSharedDatabasesAreApart(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	a, b := c.CreateDatabase(t), c.CreateDatabase(t)
	c.Exec(t, a, `CREATE TABLE t ()`)
	testpg.Eventually(t, time.Second, "the other database is empty", func() (bool, error) {
		return len(c.Rows(t, b, `SELECT FROM pg_tables WHERE schemaname = 'public'`)) == 0, nil
	})
}

// TestFreePort: two that ask at once never get the same port, and a port stays its owner's
// while nobody listens on it.
func TestFreePort(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 100 {
		port, err := testpg.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] || port < 10_000 || port >= 32_768 {
			t.Fatalf("port %d", port)
		}
		seen[port] = true
	}
}
