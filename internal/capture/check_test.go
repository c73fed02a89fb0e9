package capture

import (
	"slices"
	"testing"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// TestCheckOfThePlugin: a server that lists the plugins which may decode, and not ours, is
// refused before a slot is tried.
func TestCheckOfThePlugin(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	database := c.CreateDatabase(t)
	lists := len(testpg.Rows(t, c.Connect(t, database), `SELECT FROM pg_settings WHERE name = 'output_plugin_libraries'`)) > 0
	for _, step := range []struct {
		list    string
		refused bool
	}{{"test_decoding, pgoutput", false}, {"test_decoding", true}, {"", true}} {
		if lists {
			c.Exec(t, "postgres", `ALTER DATABASE "`+database+`" SET output_plugin_libraries = '`+step.list+`'`)
		}
		found, err := Check(t.Context(), c.Server(), database, filter.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(found, func(p *problem.Problem) bool { return p.Code == "output-plugin" && p.Blocks() })
		if got != (lists && step.refused) {
			t.Errorf("list %q: %v", step.list, found)
		}
	}
}

// TestCheckOfTheWALLevel: a level that is set already and waits for a restart is not asked
// to be set again.
func TestCheckOfTheWALLevel(t *testing.T) {
	t.Parallel()
	c := testpg.Start(t, nil)
	c.Exec(t, "postgres", `ALTER SYSTEM SET wal_level = replica`)
	c.Restart(t)
	for _, step := range []struct{ do, remedy, advice string }{
		{`SELECT`, "ALTER SYSTEM SET wal_level = logical;", "then restart PostgreSQL"},
		{`ALTER SYSTEM SET wal_level = logical`, "", "restart PostgreSQL"},
		{`SELECT pg_reload_conf()`, "", "restart PostgreSQL"},
	} {
		c.Exec(t, "postgres", step.do)
		found, err := Check(t.Context(), c.Server(), "postgres", filter.Filter{})
		i := slices.IndexFunc(found, func(p *problem.Problem) bool { return p.Code == "wal-level" })
		if err != nil || i < 0 || found[i].Remedy != step.remedy || found[i].Advice != step.advice || !found[i].Blocks() {
			t.Errorf("%s: %v, %v", step.do, found, err)
		}
	}
	c.Restart(t)
	if found, err := Check(t.Context(), c.Server(), "postgres", filter.Filter{}); err != nil || slices.ContainsFunc(found, func(p *problem.Problem) bool { return p.Code == "wal-level" }) {
		t.Errorf("restarted: %v, %v", found, err)
	}
}
