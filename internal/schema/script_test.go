package schema

import (
	"slices"
	"strings"
	"testing"
)

func TestStatements(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{"", nil},
		{"-- only; a comment\n", nil},
		{"SELECT 1; SELECT 2", []string{"SELECT 1;", "SELECT 2"}},
		{`SELECT 'a;''b', E'c\';d', "e;""f";x`, []string{`SELECT 'a;''b', E'c\';d', "e;""f";`, "x"}},
		{`SELECT 'no escape\'; x`, []string{`SELECT 'no escape\';`, "x"}},
		{"SELECT $$;$a$;$$, $a$;$$;$a$;x", []string{"SELECT $$;$a$;$$, $a$;$$;$a$;", "x"}},
		{"SELECT $1;x", []string{"SELECT $1;", "x"}},
		{"SELECT a$b$;x$b$", []string{"SELECT a$b$;", "x$b$"}},
		{"SELECT ünï$tag$;x", []string{"SELECT ünï$tag$;", "x"}},
		{"a /* ; /* ; */ ' */ ;b", []string{"a /* ; /* ; */ ' */ ;", "b"}},
		{"SELECT U&'\\0041;' , U&\"a;\";b", []string{"SELECT U&'\\0041;' , U&\"a;\";", "b"}},
	} {
		got, err := statements(c.sql)
		if err != nil {
			t.Errorf("%q: %v", c.sql, err)
		}
		var texts []string
		for _, s := range got {
			texts = append(texts, s.text)
		}
		if !slices.Equal(texts, c.want) {
			t.Errorf("%q was split into %q, want %q", c.sql, texts, c.want)
		}
	}
	for _, sql := range []string{"'", `"a""`, "E'\\'", "$a$ $b$", "/* /* */", "$$"} {
		if _, err := statements(sql); err == nil {
			t.Errorf("%q has a quote that does not end, and no error came of it", sql)
		}
	}
}

// header writes an entry's header as pg_restore does.
func header(toc, deps, name string) string {
	return "\n--\n-- TOC entry " + toc + "\n" + deps + "-- " + name + "\n-- Data Pos: 0\n--\n\n"
}

func TestParseScript(t *testing.T) {
	t.Parallel()
	list := `;
; Archive created at 2026-01-01
;
1; 1255 11 FUNCTION public f() o
3; 1259 13 TABLE ATTACH t; Type: X; Schema: Y o
4; 0 0 ACL - DATABASE d 
`
	script := "SET a = b;\n" +
		header("1 (class 1255 OID 11)", "", "Name: f(); Type: FUNCTION; Schema: public; Owner: o") +
		"CREATE FUNCTION f() AS '" + header("3 (class 1259 OID 13)", "", "Name: t; Type: TABLE; Schema: ATTACH; Owner: o") + "';\n\n\n" +
		"SET default_tablespace = '';\n\nSET default_table_access_method = \"My; AM\";\n" +
		header("3 (class 1259 OID 13)", "-- Dependencies: 1 99\n", "Name: t; Type: X; Schema: Y; Type: TABLE; Schema: ATTACH; Owner: o") +
		"CREATE TABLE t (); -- not a -- TOC entry 9\n\n\\connect d\n\nSET x = y;\n" +
		header("4 (class 0 OID 0)", "-- Dependencies: 3\n", "Name: DATABASE d; Type: ACL; Schema: -; Owner: -") +
		"REVOKE ALL;\n\n-- Completed on 2026-01-01\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n"
	lines, err := parseList(list)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseScript(script, lines)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 {
		t.Fatalf("got %d entries, want 3: %+v", len(got), got)
	}
	f, table, acl := got[0], got[1], got[2]
	if f.kind != "FUNCTION" || !strings.HasSuffix(f.sql, "';") || strings.Contains(f.sql, "SET default") || f.method != "" {
		t.Errorf("function is %+v", f)
	}
	if table.kind != "TABLE" || table.schema != "ATTACH" || table.name != "t; Type: X; Schema: Y" || table.owner != "o" ||
		table.method != `"My; AM"` || !slices.Equal(table.deps, []int{1, 99}) || table.sql != "CREATE TABLE t ();" {
		t.Errorf("table is %+v", table)
	}
	if acl.kind != "ACL" || acl.schema != "" || acl.owner != "" || acl.sql != "REVOKE ALL;" || acl.method != "" {
		t.Errorf("privilege is %+v", acl)
	}
}

func TestParseScriptRefuses(t *testing.T) {
	t.Parallel()
	one := header("1 (class 1255 OID 11)", "", "Name: f(); Type: FUNCTION; Schema: public; Owner: o") + "SELECT 1;\n"
	for name, c := range map[string]struct{ list, script string }{
		"missing entry":   {"1; 1255 11 FUNCTION public f() o\n2; 1255 12 FUNCTION public g() o\n", one},
		"unlisted entry":  {"2; 1255 12 FUNCTION public g() o\n", one},
		"other object":    {"1; 1255 12 FUNCTION public f() o\n", one},
		"entry twice":     {"1; 1255 11 FUNCTION public f() o\n", one + one},
		"cut-off literal": {"1; 1255 11 FUNCTION public f() o\n", one + "'"},
	} {
		lines, err := parseList(c.list)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseScript(c.script, lines); err == nil {
			t.Errorf("%s was read as %+v", name, got)
		}
	}
	for _, list := range []string{"nonsense\n", "1; 99999999999 1 TABLE a b c\n", "1; 1 1 TABLE a b c\n1; 1 1 TABLE a b c\n"} {
		if _, err := parseList(list); err == nil {
			t.Errorf("list %q was read", list)
		}
	}
}

func TestOnCurrentDatabase(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		`ALTER DATABASE "my %d'b" SET "work_mem" TO '5% \';`: `DO $hawser$ BEGIN EXECUTE pg_catalog.format(E'ALTER DATABASE %I SET "work_mem" TO ''5%% \\'';', pg_catalog.current_database()); END $hawser$;`,
		`ALTER ROLE database IN DATABASE d SET a TO 'b';`:    `DO $hawser$ BEGIN EXECUTE pg_catalog.format(E'ALTER ROLE database IN DATABASE %I SET a TO ''b'';', pg_catalog.current_database()); END $hawser$;`,
		`COMMENT ON DATABASE database IS '$hawser$';`:        `DO $hawser0$ BEGIN EXECUTE pg_catalog.format(E'COMMENT ON DATABASE %I IS ''$hawser$'';', pg_catalog.current_database()); END $hawser0$;`,
	} {
		s, err := statements(sql)
		if err != nil || len(s) != 1 {
			t.Fatal(err, len(s))
		}
		if got := onCurrentDatabase(s[0]); got != want {
			t.Errorf("%s became\n%s, want\n%s", sql, got, want)
		}
	}
}

// FuzzStatements holds that no text makes the scanner fail to move on, and that
// the statements of a text lie in it, in order.
func FuzzStatements(f *testing.F) {
	for _, s := range []string{"SELECT 1;", "E'\\'", "$$", "$a$;$a$", "/*/**/*/;", "\\x\n;", `"`, "a$1;é'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		got, err := statements(sql)
		if err != nil {
			return
		}
		for _, s := range got {
			_, rest, found := strings.Cut(sql, s.text)
			if !found {
				t.Fatalf("%q is not part of %q", s.text, sql)
			}
			sql = rest
		}
	})
}

func TestPartitionThatIsGone(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]bool{
		`ALTER TABLE ONLY "public"."part" ATTACH PARTITION "public"."b" ;` + "\n\n":      false,
		`ALTER TABLE ONLY "public"."part" ATTACH PARTITION "public"."b" DEFAULT;` + "\n": true,
	} {
		err := whole([]tocEntry{{kind: "TABLE ATTACH", schema: "public", name: "b", sql: sql}})
		if (err == nil) != want {
			t.Errorf("%q: %v", sql, err)
		}
	}
}

// A pg_dump that does not know the versions of columns writes them out as options.
func TestVersionsOfColumnsStayBehind(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		"CREATE TABLE t (a int DEFAULT 'pg_attver=1; x');\n\nALTER TABLE ONLY t ALTER COLUMN a SET (pg_attver=24457824);\n": "CREATE TABLE t (a int DEFAULT 'pg_attver=1; x');",
		"ALTER TABLE ONLY t ALTER COLUMN \"SET\" SET (n_distinct=5, pg_attver=1);":                                          "ALTER TABLE ONLY t ALTER COLUMN \"SET\" SET (n_distinct=5);",
		"ALTER TABLE ONLY t ALTER COLUMN a SET (pg_attver=1, n_distinct=-0.5);":                                             "ALTER TABLE ONLY t ALTER COLUMN a SET (n_distinct=-0.5);",
		"ALTER TABLE t ADD CONSTRAINT c CHECK (pg_attver = 3);":                                                             "ALTER TABLE t ADD CONSTRAINT c CHECK (pg_attver = 3);",
		"ALTER TABLE ONLY t ALTER COLUMN pg_attver SET DEFAULT 1;":                                                          "ALTER TABLE ONLY t ALTER COLUMN pg_attver SET DEFAULT 1;",
	} {
		if got, err := withoutVersions(sql); err != nil || got != want {
			t.Errorf("%s became %q, %v", sql, got, err)
		}
	}
}
