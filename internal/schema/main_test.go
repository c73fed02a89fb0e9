package schema

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

// rolePrefix returns a prefix that no other test uses. The roles that carry it
// are dropped at the end, after the databases that tests create later.
func rolePrefix(t *testing.T, c *testpg.Cluster) string {
	t.Helper()
	prefix := fmt.Sprintf("zoo%d_", rand.Uint32())
	t.Cleanup(func() {
		conn := c.Connect(t, "postgres")
		for _, role := range testpg.Rows(t, conn, `SELECT quote_ident(rolname) FROM pg_roles WHERE starts_with(rolname, $1)`, prefix) {
			c.Exec(t, "postgres", "DROP ROLE "+role)
		}
	})
	return prefix
}

// loadZoo creates a database with testdata/zoo.sql in it and returns its name and
// the prefix of its roles.
func loadZoo(t *testing.T, c *testpg.Cluster) (database, prefix string) {
	t.Helper()
	prefix = rolePrefix(t, c)
	text, err := os.ReadFile("testdata/zoo.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"owner", "reader", `Odd "one"`, "policy", "mapped", "defaults"} {
		c.Exec(t, "postgres", "CREATE ROLE "+postgres.QuoteIdent(prefix+role)+" LOGIN PASSWORD 'secret'")
	}
	c.Exec(t, "postgres", fmt.Sprintf("GRANT %sowner TO %sreader WITH ADMIN OPTION", prefix, prefix))
	database = c.CreateDatabase(t)
	c.Exec(t, database, strings.ReplaceAll(known(string(text), major(t, c)), "zoo_", prefix))
	return database, prefix
}

// known leaves out of a script what a server is too old for.
func known(script string, major int) string {
	var out strings.Builder
	since := 0
	for line := range strings.Lines(script) {
		if n, err := fmt.Sscanf(line, "-- since %d", &since); n == 1 && err == nil {
			continue
		}
		if strings.TrimSpace(line) == "-- end" {
			since = 0
		}
		if since <= major {
			out.WriteString(line)
		}
	}
	return out.String()
}

func major(t *testing.T, c *testpg.Cluster) int {
	t.Helper()
	version, err := serverVersion(t.Context(), c.Connect(t, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return version / 10000
}

// text dumps the definitions of a database for a comparison.
func text(t *testing.T, c *testpg.Cluster, database string, options ...string) string {
	t.Helper()
	tool, err := postgres.Tool("pg_dump", major(t, c))
	if err != nil {
		t.Fatal(err)
	}
	cmd := testpg.Command(t, tool, append(options, "--schema-only", "--exclude-schema=hawser")...)
	cmd.Env = append(os.Environ(), c.Server().Environ(database)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, `\restrict`) || strings.HasPrefix(l, `\unrestrict`)
	})
	return strings.Join(lines, "\n")
}

// diff fails the test where two texts differ, showing the first such lines.
func diff(t *testing.T, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	at := func(lines []string) string {
		return strings.Join(lines[max(0, min(i-4, len(lines))):min(i+8, len(lines))], "\n")
	}
	t.Errorf("definitions differ from line %d on (%d and %d lines)\nprimary:\n%s\n\ntarget:\n%s", i+1, len(a), len(b), at(a), at(b))
}

// restore runs all phases of a dump in a database, calling fill between the first and the second.
func restore(ctx context.Context, t *testing.T, c *testpg.Cluster, database string, d *Dump, fill func(*pgx.Conn)) {
	t.Helper()
	conn := c.Connect(t, database)
	if _, _, err := RestoreRoles(ctx, conn, d.Roles); err != nil {
		t.Fatal(err)
	}
	if err := Apply(ctx, conn, d.Of(PhasePre, 0)); err != nil {
		t.Fatal(err)
	}
	if fill != nil {
		fill(conn)
	}
	for _, table := range tablesOf(d) {
		entries := d.Of(PhaseTable, table)
		for i, e := range entries {
			if e.Index == "" || rand.IntN(2) == 0 {
				continue
			}
			index, rest := e.Ahead()
			if err := Apply(ctx, conn, []Entry{index}); err != nil {
				t.Fatal(err)
			}
			entries[i] = rest
		}
		if err := Apply(ctx, conn, entries); err != nil {
			t.Fatal(err)
		}
	}
	if err := Apply(ctx, conn, d.Of(PhaseFinal, 0)); err != nil {
		t.Fatal(err)
	}
}

// tablesOf returns the tables that have something to be done, in no useful order.
func tablesOf(d *Dump) []uint32 {
	var tables []uint32
	for _, e := range d.Of(PhaseTable, 0) {
		tables = append(tables, e.Table)
	}
	slices.Sort(tables)
	tables = slices.Compact(tables)
	rand.Shuffle(len(tables), func(i, j int) { tables[i], tables[j] = tables[j], tables[i] })
	return tables
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
