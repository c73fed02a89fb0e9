package agent_test

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// state is all that two sides of a link must have in common: definitions, rows,
// contents of materialized views, sequences. Each line names its object.
func state(t *testing.T, i *instance, database string) []string {
	t.Helper()
	conn := i.Connect(t, database)
	defer conn.Close(context.Background())
	testpg.Rows(t, conn, `SELECT set_config('search_path', '', false)`)
	out := definitions(t, i, database)
	for _, table := range testpg.Rows(t, conn, `
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated
		AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'hawser')`) {
		out = append(out, "rows of "+table+": "+testpg.Rows(t, conn,
			`SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ONLY `+table+` t`)[0])
	}
	for _, sequence := range testpg.Rows(t, conn, `
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND n.nspname <> 'hawser'`) {
		out = append(out, "sequence "+sequence+": "+testpg.Rows(t, conn, `SELECT last_value, is_called FROM `+sequence)[0])
	}
	slices.Sort(out)
	return out
}

// definitions are the paragraphs of pg_dump's text, without what is Hawser's.
func definitions(t *testing.T, i *instance, database string) (out []string) {
	t.Helper()
	conn := i.Connect(t, database)
	defer conn.Close(context.Background())
	var version int
	if err := conn.QueryRow(context.Background(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	tool, err := postgres.Tool("pg_dump", version)
	if err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command(tool, "--schema-only", "--exclude-schema=hawser", "--dbname="+i.DSN(database)).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_dump: %v: %s", err, text)
	}
	for _, p := range strings.Split(string(text), "\n\n") {
		p = strings.TrimSpace(p)
		if p != "" && !strings.HasPrefix(p, "--") && !strings.HasPrefix(p, `\`) && !strings.Contains(p, "hawser") {
			out = append(out, p)
		}
	}
	return out
}

// difference tells what only one of two states has.
func difference(a, b []string) string {
	var out []string
	count := map[string]int{}
	for _, line := range a {
		count[line]++
	}
	for _, line := range b {
		count[line]--
	}
	for line, n := range count {
		switch {
		case n > 0:
			out = append(out, "primary only: "+line)
		case n < 0:
			out = append(out, "secondary only: "+line)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// same waits until the two sides have the same definitions, rows and sequences.
func same(t *testing.T, primary, secondary *instance, database string) {
	t.Helper()
	arrived(t, primary, secondary, database)
	testpg.Eventually(t, 20*time.Second, "both sides are the same", func() (bool, error) {
		if d := difference(state(t, primary, database), state(t, secondary, database)); d != "" {
			return false, fmt.Errorf("\n%s", d)
		}
		return true, nil
	})
}

// arrived waits until all that is committed on the primary is visible on the
// secondary; a link that stopped fails the test with its cause.
func arrived(t *testing.T, primary, secondary *instance, database string) {
	t.Helper()
	if err := follow(t, primary, secondary, database, time.Minute); err != nil {
		t.Fatal(err)
	}
}

// follow waits until the secondary shows what the primary has committed by now. The
// error is the cause for which a link was suspended, or what was waited for.
func follow(t *testing.T, primary, secondary *instance, database string, within time.Duration) error {
	t.Helper()
	conn := primary.Connect(t, database)
	defer conn.Close(context.Background())
	want, err := frame.ParseLSN(testpg.Rows(t, conn, `SELECT pg_current_wal_insert_lsn()`)[0])
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(within)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		l, err := secondary.Link(context.Background(), database)
		switch {
		case err == nil && l.State == api.StateSuspended:
			return l.Cause
		case err == nil && l.State == api.StateSynchronized && l.Position.Visible >= want:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("not within %s at %s: the link is %s at %s: %v %v", within, want, l.State, l.Position.Visible, l.Cause, err)
		}
		<-time.After(wait)
	}
}
