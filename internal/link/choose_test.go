package link

import (
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/problem"
)

// TestChoose names all tables that are not meant by their names.
func TestChoose(t *testing.T) {
	t.Parallel()
	all := []catalog.SeedTable{{OID: 1, Schema: "public", Name: "a"}, {OID: 2, Schema: "public", Name: "both"}, {OID: 3, Schema: "S", Name: "both"}, {OID: 4, Schema: "S", Name: "A b"}}
	for _, c := range []struct {
		names, code string
		object      string
	}{
		{`a public.both S.A b "S"."both" "A b"`, "", ""},
		{"none a nowhere.x", "no-such-table", "tables none, nowhere.x"},
		{"both a none", "no-such-table", "table none"},
		{"both a both", "table-ambiguous", "tables both, both"},
	} {
		names := strings.Fields(c.names)
		if c.code == "" {
			names = []string{"a", "public.both", "S.A b", `"S"."both"`, `"A b"`}
		}
		chosen, err := choose(all, names)
		if c.code == "" {
			if err != nil || len(chosen) != 5 || chosen[3].OID != 3 {
				t.Errorf("%q: %v, %v", names, chosen, err)
			}
			continue
		}
		p, ok := problem.As(err)
		if !ok || p.Code != c.code || p.Object != c.object {
			t.Errorf("%q: %v", names, err)
		}
	}
}
