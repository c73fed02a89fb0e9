package link

import (
	"testing"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/problem"
)

// TestChoose names all tables that are not meant by their names.
func TestChoose(t *testing.T) {
	t.Parallel()
	var all []choice
	for i, n := range [][2]string{{"public", "a"}, {"public", "both"}, {"S", "both"}, {"S", "A b"}} {
		all = append(all, choice{n[0], n[1], []catalog.SeedTable{{OID: uint32(i + 1), Schema: n[0], Name: n[1]}}})
	}
	for _, c := range []struct {
		names        []string
		code, object string
		remedy       string
	}{
		{[]string{"a", "public.both", "PUBLIC.A", `"S"."both"`, `"A b"`, `public."a"`}, "", "", ""},
		{[]string{"none", "a", "nowhere.x"}, "no-such-table", "tables none, nowhere.x", "hawser link show NAME"},
		{[]string{"both", "a", "none"}, "no-such-table", "table none", "hawser link show NAME"},
		{[]string{"S.both"}, "no-such-table", "table S.both", `--table '"S".both'`},
		{[]string{"S.A b", "public.botth"}, "no-such-table", "tables S.A b, public.botth", `--table '"S"."A b"' --table public.both`},
		{[]string{`public."A`}, "no-such-table", `table public."A`, "--table public.a"},
		{[]string{"both", "a", "both"}, "table-ambiguous", "tables both, both", "--table public.both --table public.both"},
	} {
		chosen, err := choose(all, c.names)
		if c.code == "" {
			if err != nil || len(chosen) != len(c.names) || chosen[2].OID != 1 || chosen[3].OID != 3 {
				t.Errorf("%q: %v, %v", c.names, chosen, err)
			}
			continue
		}
		p, ok := problem.As(err)
		if !ok || p.Code != c.code || p.Object != c.object || p.Remedy != c.remedy {
			t.Errorf("%q: %v", c.names, err)
		}
	}
}
