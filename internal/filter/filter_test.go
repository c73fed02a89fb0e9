package filter

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct{ pattern, schema, table string }{
		{`public.*`, `public`, `%`},
		{`Sales.Order_?`, `sales`, `order\__`},
		{`"My Schema".*`, `My Schema`, `%`},
		{`"a.b"."c*d"`, `a.b`, `c*d`},
		{`s."say ""hi"""`, `s`, `say "hi"`},
		{`s.100%\`, `s`, `100\%\\`},
		{`pre"Fix".x`, `preFix`, `x`},
		{`*.*`, `%`, `%`},
		{`Über.Ä`, `Über`, `Ä`}, // only ASCII is folded, as in a UTF-8 database
	} {
		schema, table, err := Like(c.pattern)
		if err != nil || schema != c.schema || table != c.table {
			t.Errorf("%s: %q %q %v, want %q %q", c.pattern, schema, table, err, c.schema, c.table)
		}
	}
	for _, p := range []string{``, `orders`, `.x`, `x.`, `db.public.orders`, `"public.orders`, `"".x`, "a.\x00"} {
		if _, _, err := Like(p); err == nil {
			t.Errorf("%q is taken for a pattern", p)
		}
	}
}

func TestWritten(t *testing.T) {
	for want, parts := range map[string][]string{`public.orders_1`: {"public", "orders_1"}, `public."My Table"`: {"public", "My Table"}, `"a.b"."say ""hi"""`: {"a.b", `say "hi"`}} {
		if got := Written(parts...); got != want {
			t.Errorf("%q is written %s, want %s", parts, got, want)
		}
	}
	for pattern, want := range map[string]string{`public.My Table`: `public."My Table"`, `Sales.Order_?1*`: `"Sales"."Order_"?1*`, `s.*`: `s.*`, `s."X"`: `s."X"`} {
		if got := Exact(pattern); got != want {
			t.Errorf("%s means %s, want %s", pattern, got, want)
		}
	}
}

func TestFlags(t *testing.T) {
	f := Filter{Tables: []string{`public.*`, `"it's".x`}, Exclude: []string{`*.audit`}}
	if got, want := f.String(), `--tables 'public.*' --tables '"it'\''s".x' --exclude-tables '*.audit'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if f.All() || !(Filter{}).All() || !f.Equal(f) || f.Equal(Filter{}) {
		t.Error("a filter does not know itself")
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{`*`, "any\nname", true}, {`shop`, "shop", true}, {`shop`, "shop2", false}, {`Shop`, "shop", true}, {`"Shop"`, "shop", false},
		{`"Shop"`, "Shop", true}, {`sales_?`, "sales_1", true}, {`sales_?`, "sales11", false}, {`sales_?`, "salesx1", false}, {`s*p`, "sp", true},
		{`a.b`, "a.b", true}, {`a.b`, "axb", false}, {`"a*"`, "ab", false}, {`"a*"`, "a*", true}, {`100%\`, `100%\`, true}, {`100%`, "1000", false},
		{`"say ""hi"""`, `say "hi"`, true}, {`?`, "ö", true}, {`(x|y)`, "x", false},
	} {
		n, err := Name(c.pattern)
		if err != nil || n.MatchString(c.name) != c.want {
			t.Errorf("%s and %q: %v %v, want %v", c.pattern, c.name, n, err, c.want)
		}
	}
	for _, p := range []string{``, `""`, `"shop`, "a\x00"} {
		if _, err := Name(p); err == nil {
			t.Errorf("%q is taken for a pattern", p)
		}
	}
}

// FuzzPatterns: every name has a pattern that means it alone, and what can't be read is
// refused, not misread.
func FuzzPatterns(f *testing.F) {
	for _, s := range []string{"orders", `say "hi"`, `100%\`, "a.b", "*", "_", "Ä", "line\nbreak", `"open`} {
		f.Add(s, "other")
	}
	f.Fuzz(func(t *testing.T, name, other string) {
		if _, _, err := Like(name); err == nil && !strings.Contains(name, ".") {
			t.Errorf("%q names a schema", name)
		}
		_, _ = Name(name)
		if name == "" || strings.ContainsRune(name, 0) || !utf8.ValidString(name+other) {
			return
		}
		quoted := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
		n, err := Name(quoted)
		if err != nil || !n.MatchString(name) || n.MatchString(other) != (other == name) {
			t.Errorf("%s: %v %v", quoted, n, err)
		}
		if _, _, err := Like(quoted + "." + quoted); err != nil {
			t.Error(err)
		}
	})
}
