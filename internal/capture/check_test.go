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
