package grant

import "testing"

func TestAllows(t *testing.T) {
	t.Parallel()
	shops := Grant{Databases: []string{"shop_*", `"Shop"`}, Direction: ToPeer}
	for _, c := range []struct {
		g        Grant
		database string
		way      Direction
		want     bool
	}{
		{Grant{}, "shop", None, false}, {Grant{Direction: Both}, "shop", ToPeer, false}, {Grant{Databases: []string{"*"}}, "shop", ToPeer, false},
		{All(), "shop", Both, true}, {All(), "any", FromPeer, true},
		{shops, "shop_1", ToPeer, true}, {shops, "Shop", ToPeer, true}, {shops, "shop", ToPeer, false},
		{shops, "shop_1", FromPeer, false}, {shops, "shop_1", Both, false}, {shops, "shop_1", None, true},
	} {
		if got := c.g.Allows(c.database, c.way); got != c.want {
			t.Errorf("%s for %s %q: %v", c.g, c.database, c.way, got)
		}
	}
}

// TestWith: the remedy grants what was missing, and as little else as its words can say.
func TestWith(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		g        Grant
		database string
		way      Direction
		want     string
	}{
		{Grant{}, "shop", ToPeer, "--databases shop --direction to-peer"},
		{Grant{[]string{"shop"}, ToPeer}, "shop", FromPeer, "--databases shop --direction both"},
		{Grant{[]string{"a_*"}, ToPeer}, "It's", ToPeer, `--databases 'a_*' --databases '"It'\''s"' --direction to-peer`},
		{Grant{[]string{"shop"}, FromPeer}, "shop", Both, "--databases shop --direction both"},
		{All(), "shop", Both, "--databases '*' --direction both"},
	} {
		wide := c.g.With(c.database, c.way)
		if got := wide.Flags(); got != c.want || !wide.Allows(c.database, c.way) {
			t.Errorf("%s with %s: %s, want %s", c.g, c.database, got, c.want)
		}
	}
}
