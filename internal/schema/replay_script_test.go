package schema

import (
	"slices"
	"strings"
	"testing"
)

func TestScriptFollowsTransactionControl(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want []string // text of the live statements that fire
		at   []int
	}{
		{"create table a(); create table b()", []string{"create table a()", "create table b()"}, []int{0, 1}},
		{"select 1; ; create table a()\n;-- end", []string{"create table a()"}, []int{0}},
		{"create table a(); savepoint s; create table b(); rollback to s; create table c()", []string{"create table a()", "create table c()"}, []int{0, 1}},
		{"create table a(); commit; create table b(); rollback; create table c()", []string{"create table a()", "create table c()"}, []int{0, 1}},
		{"create table a(); rollback to before; create table b()", []string{"create table b()"}, []int{0}},
		{"savepoint s; create table a(); savepoint s; create table b(); rollback to s; rollback to s; create table c(); release s", []string{"create table a()", "create table c()"}, []int{0, 1}},
		{"create table a(); reset all; create table b()", []string{"create table a()", "create table b()"}, []int{0, 0}},
		{"create function f() returns int begin atomic select 1; select 2; end; create table b()", []string{"create function f() returns int begin atomic select 1; select 2; end", "create table b()"}, []int{0, 1}},
		{"vacuum t; comment on role r is 'x'; grant r to s; comment on table t is 'x'; grant select on t to s; create role r", []string{"comment on table t is 'x'", "grant select on t to s"}, []int{0, 1}},
		// Of a grammar that is not known: the lexer cuts, the neighbours are parsed.
		{"create table a(); alter table a frobnicate (x; y); create table b()", []string{"create table a()", "alter table a frobnicate (x; y)", "create table b()"}, []int{0, 1, 2}},
	} {
		var got []string
		var at []int
		for _, st := range parseDDL(c.text, &ddlMessage{Server: 150000}).statements {
			if st.live && st.tag != "" {
				got, at = append(got, st.text), append(at, st.order)
			}
		}
		if !slices.Equal(got, c.want) || !slices.Equal(at, c.at) {
			t.Errorf("%s:\ngot  %q %v\nwant %q %v", c.text, got, at, c.want, c.at)
		}
	}
}

// What belongs to a table is named behind it, and what belongs to an access method
// behind that; neither is a schema. Newer minor versions of the
// server tell the schema of a trigger, rule or policy.
func TestDroppedWithItsSchema(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, name, at, identity string }{
		{"trigger", "x", "ON t", "x on s.t"}, {"trigger", "x", "ON s.t", "x on s.t"},
		{"rule", "x", "ON t", "x on s.t"}, {"policy", "x", "ON s.t", "x on s.t"},
		{"operator class", "x", "USING btree", "s.x USING btree"}, {"operator family", "s.x", "USING btree", "s.x USING btree"},
	} {
		want := "DROP " + strings.ToUpper(c.kind) + " " + c.name + " " + c.at
		for _, schema := range []string{"", "s"} {
			m := &ddlMessage{Tag: "DROP " + strings.ToUpper(c.kind), Order: 1, Dropped: []ddlObject{{Type: c.kind, Schema: schema, Identity: c.identity, Root: true}}}
			st, err := locate(m, "DROP VIEW v; "+want+"; DROP VIEW w", func(text string) *ddlScript { return parseDDL(text, m) })
			if err != nil || st.text != want {
				t.Errorf("%s with schema %q: %+v, %v", want, schema, st, err)
			}
		}
	}
}

func TestLocateReadsThePLContext(t *testing.T) {
	t.Parallel()
	const caller = "\nPL/pgSQL function inline_code_block line 3 at SQL statement"
	for _, c := range []struct{ source, want string }{
		{`SQL statement "create table t (a int)"` + caller, `create table t (a int)`},
		{`SQL statement "create table t (a int)"`, `create table t (a int)`},
		{"SQL statement \"create table \"t\"\nas_is (a int)\"" + caller, ""},
		{"SQL statement \"create table t (\"a\"\nint, b text default '\"\nPL/pgSQL function f() line 1 at x')\"" + caller, "create table t (\"a\"\nint, b text default '\"\nPL/pgSQL function f() line 1 at x')"},
		{`SQL statement "create table t (a int)"` + caller + "\nSQL statement \"SELECT f()\"\nPL/pgSQL function g() line 2 at PERFORM", `create table t (a int)`},
		{`SQL statement "create table t (a frobnicated with nothing)"` + caller, `create table t (a frobnicated with nothing)`},
		{`PL/pgSQL function f() line 3 at x`, ""},
	} {
		m := &ddlMessage{Tag: "CREATE TABLE", Nested: true, Objects: []ddlObject{{Type: "table", Identity: "public.t", TableSchema: "public", Table: "t"}}}
		st, err := locate(m, c.source, func(text string) *ddlScript { return parseDDL(text, m) })
		switch {
		case c.want == "" && err == nil && st.node != nil:
			t.Errorf("%s: got %q, want an error", c.source, st.text)
		case c.want != "" && (err != nil || st.text != c.want):
			t.Errorf("%s: got %+v, %v; want %q", c.source, st, err, c.want)
		}
	}
}

func TestEscapeStrings(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`select 'a\'b', 'c'`:                        `select E'a\'b', 'c'`,
		`select E'a\'b', B'1', "x'\", $$'\$$`:       `select E'a\'b', B'1', "x'\", $$'\$$`,
		`select 'it''s\n' -- don't \`:               `select E'it''s\n' -- don't \`,
		`/* ' */ select 'x\\', $a$ 'y\' $a$, 'z\t'`: `/* ' */ select E'x\\', $a$ 'y\' $a$, E'z\t'`,
	} {
		if got := escapeStrings(in); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", in, got, want)
		}
	}
}

func FuzzLocate(f *testing.F) {
	f.Add("SQL statement \"create table t ()\"\nPL/pgSQL function f() line 1 at x", true, 0)
	f.Add("create table t(); savepoint s; rollback to s; drop table t", false, 3)
	f.Add("SQL function \"f\" statement 99999999999999999999", true, 1)
	f.Fuzz(func(t *testing.T, source string, nested bool, order int) {
		m := &ddlMessage{Tag: "CREATE TABLE", Nested: nested, Order: order, Functions: []string{"create table t ()"}}
		st, err := locate(m, source, func(text string) *ddlScript { return parseDDL(text, m) })
		if (st == nil) == (err == nil) {
			t.Errorf("got %v, %v", st, err)
		}
	})
}
