package schema

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// codes returns "code object" of findings, with the severity where it does not block.
func codes(f problem.Findings) []string {
	var out []string
	for _, p := range f {
		s := p.Code + " " + p.Object
		if !p.Blocks() {
			s = string(p.Severity) + " " + s
		}
		out = append(out, s)
	}
	return out
}

// check does what the two agents do, each at its own server.
func check(ctx context.Context, src, dst *postgres.Server, database string) (problem.Findings, error) {
	r, err := Inspect(ctx, src, database)
	if err != nil {
		return nil, err
	}
	return r.Check(ctx, dst, database)
}

func TestCheckOfAFitTarget(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	db, _ := loadZoo(t, c)
	found, err := check(ctx, c.Server(), c.Server(), db+"_replica")
	if err == nil {
		t.Fatalf("a database that is not there was inspected: %v", codes(found))
	}
	r, err := Inspect(ctx, c.Server(), db)
	if err != nil {
		t.Fatal(err)
	}
	found, err = r.Check(ctx, c.Server(), db+"_replica")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`note user-mappings foreign server "far away"`, "warning library-needed library $libdir/plpgsql"}
	if got := codes(found); !slices.Equal(got, want) {
		t.Errorf("findings are %q, want %q", got, want)
	}
	found, err = check(ctx, c.Server(), c.Server(), db)
	if err != nil {
		t.Fatal(err)
	}
	if got := codes(found.Blocking()); !slices.Equal(got, []string{"database-not-empty database " + postgres.QuoteIdent(db)}) {
		t.Errorf("on itself it is blocked by %q", got)
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	db, prefix := loadZoo(t, c)
	c.Exec(t, db, "ALTER DATABASE "+db+" SET work_mem = '5MB'", "CREATE TABLE german (a text COLLATE \"de-x-icu\")", "SELECT lo_create(0)",
		"CREATE MATERIALIZED VIEW low AS SELECT 1 AS a", "CREATE MATERIALIZED VIEW high AS SELECT a FROM low", "REFRESH MATERIALIZED VIEW low WITH NO DATA",
		"CREATE TABLE t (a int)", "GRANT SELECT ON t TO pg_monitor")
	r, err := Inspect(ctx, c.Server(), db)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	r = &Requirements{}
	if err := json.Unmarshal(wire, r); err != nil {
		t.Fatal(err)
	}
	for what, k := range map[string]struct {
		got      []string
		contains string
	}{
		"parameters":    {r.Parameters, "work_mem"},
		"of a function": {r.Parameters, "search_path"},
		"collations":    {r.Collations, "de-x-icu"},
		"libraries":     {r.Libraries, "$libdir/plpgsql"},
		"predefined":    {r.Predefined, "pg_monitor"},
		"unfilled":      {codes(r.Findings), "warning matview-not-filled materialized view public.high"},
	} {
		if !slices.Contains(k.got, k.contains) {
			t.Errorf("%s are %q and lack %s", what, k.got, k.contains)
		}
	}
	for _, want := range []Ownership{{`event trigger "on ddl"`, ""}, {"foreign-data wrapper dummy", ""}, {"publication everything", ""}} {
		if !slices.ContainsFunc(r.Superusers, func(o Ownership) bool { return o.Object == want.Object }) {
			t.Errorf("superusers' objects are %v and lack %s", r.Superusers, want.Object)
		}
	}
	if slices.ContainsFunc(r.Superusers, func(o Ownership) bool { return strings.Contains(o.Object, "hawser") }) {
		t.Errorf("superusers' objects are %v, with Hawser's own", r.Superusers)
	}
	if indexRole(r.Roles, prefix+"mapped") < 0 || indexRole(r.Roles, "pg_monitor") >= 0 {
		t.Errorf("roles are %v", r.Roles)
	}
	uses := slices.ContainsFunc(r.Features, func(f Feature) bool { return f.Since == 15 && f.Object == `index "ATTACH".t_distinct` })
	if uses != (major(t, c) >= 15) {
		t.Errorf("features are %v", r.Features)
	}
}

func TestCheckOfAnUnfitTarget(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	conn := c.Connect(t, "postgres")
	version, err := serverVersion(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	major := version / 10000
	stat := testpg.Rows(t, conn, `SELECT default_version FROM pg_available_extensions WHERE name = 'pg_stat_statements'`)[0]
	for _, name := range []string{"locked out", "a group"} {
		c.Exec(t, "postgres", `CREATE ROLE "`+name+`"`)
		t.Cleanup(func() { c.Exec(t, "postgres", `DROP ROLE "`+name+`"`) })
	}
	here := DatabaseSettings{Name: "d", Encoding: "UTF8", Collate: "C", Ctype: "C", Provider: "libc"}
	cases := map[string]struct {
		r    Requirements
		want []string
	}{
		"old primary": {Requirements{ServerVersion: 130000}, []string{"version-too-old the primary's server"}},
		"new primary": {Requirements{ServerVersion: version + 10000, Features: []Feature{{major + 1, "table t", "is new"}, {major, "table u", "is known"}}},
			[]string{"warning target-older the target's server", "feature-unknown table t"}},
		"locale": {Requirements{Locales: []string{"xx_XX.UTF-8", "C"}}, []string{"locale-missing locale xx_XX.UTF-8"}},
		"provider": {Requirements{Database: DatabaseSettings{Encoding: "UTF8", Collate: "C", Ctype: "C", Provider: "builtin", Locale: "PG_UNICODE_FAST"}},
			[]string{`version-too-old database "nowhere"`}},
		"extensions": {Requirements{Extensions: []Extension{{"from_nowhere", "3.4", "public"}, {"hstore", "0.1", "public"}, {"pg_trgm", "1.5", "public"}}},
			[]string{`extension-missing extension "from_nowhere"`, `warning extension-version extension "hstore"`, `note extension-version extension "pg_trgm"`}},
		"preload": {Requirements{Extensions: []Extension{{"pg_stat_statements", stat, "public"}}, Preload: []string{"pg_stat_statements"}},
			[]string{`warning library-not-preloaded extension "pg_stat_statements"`}},
		"logins": {Requirements{Roles: []Role{{Name: "locked out", Login: true}, {Name: "a group"}}}, []string{`warning role-locked-out role "locked out"`}},
		"roles": {Requirements{Roles: []Role{{Name: "no such role", Login: true, Superuser: true, Settings: []string{"work_mem=1MB"}}}, Predefined: []string{"pg_future", "pg_monitor"},
			Superusers: []Ownership{{"event trigger e", "no such role"}}},
			[]string{`note role-created role "no such role"`, `role-unknown role "pg_future"`, "owner-not-superuser event trigger e"}},
		"collations": {Requirements{Collations: []string{"de-x-icu", "klingon"}}, []string{`collation-missing collation "pg_catalog"."klingon"`}},
		"parameters": {Requirements{Parameters: []string{"work_mem", "DateStyle", "from_the_future"}}, []string{"setting-unknown setting from_the_future"}},
		"labels":     {Requirements{Labellers: []string{"selinux"}}, []string{`labels-not-loaded security labels of "selinux"`}},
		"locks":      {Requirements{Relations: 10_000_000}, []string{"warning setting-too-low setting max_locks_per_transaction"}},
		"primary":    {Requirements{Findings: problem.Findings{problem.Noted("a", "b", "c")}}, []string{"note a b"}},
	}
	if major >= 18 {
		delete(cases, "provider")
	}
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if k.r.ServerVersion == 0 {
				k.r.ServerVersion = version
			}
			if k.r.Database.Provider == "" {
				k.r.Database = here
			}
			found, err := k.r.Check(ctx, c.Server(), "nowhere")
			if err != nil {
				t.Fatal(err)
			}
			if got := codes(found); !slices.Equal(got, k.want) {
				t.Errorf("findings are %q, want %q", got, k.want)
			}
			for _, p := range found {
				if p.Cause == "" || p.Blocks() && p.Help() == "" {
					t.Errorf("finding %s has no cause or no remedy", p.Code)
				}
			}
		})
	}
}

func TestInstallExtension(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"postgis": "postgresql-16-postgis-3", "vector": "postgresql-16-pgvector", "hypopg": "postgresql-16-hypopg",
		"hstore": "postgresql-contrib-16", "plpython3u": "postgresql-plpython3-16", "pg_ivm": "postgresql-16-pg-ivm",
	} {
		if got := installExtension(name, 16); got != "apt-get install "+want {
			t.Errorf("for %s the remedy is %s, want package %s", name, got, want)
		}
	}
}

// TestManyTables measures a schema of the size that large applications have.
func TestManyTables(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("short: it takes seconds")
	}
	ctx, c := t.Context(), testpg.Shared(t)
	from, to := c.CreateDatabase(t), c.CreateDatabase(t)
	for block := range 20 {
		c.Exec(t, from, fmt.Sprintf(`DO $$ BEGIN FOR i IN %d..%d LOOP
			EXECUTE format('CREATE TABLE t%%s (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int NOT NULL DEFAULT 1, b text, at timestamptz DEFAULT now())', i);
			EXECUTE format('CREATE INDEX ON t%%s (a); COMMENT ON TABLE t%%s IS ''table''; GRANT SELECT ON t%%s TO PUBLIC', i, i, i);
			IF i > 1 THEN EXECUTE format('ALTER TABLE t%%s ADD FOREIGN KEY (a) REFERENCES t%%s', i, i - 1); END IF;
		END LOOP; END $$`, block*100+1, block*100+100))
	}
	start := time.Now()
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dumped := time.Now()
	restore(ctx, t, c, to, d, nil)
	t.Logf("%d entries, dumped in %s, restored in %s", len(d.Entries), dumped.Sub(start), time.Since(dumped))
	diff(t, text(t, c, from), text(t, c, to))
}

// From version 17 on the server fills indexes and materialized views under a search_path
// of its own, which a function may rely on to be another.
func TestCheckOfFunctionsWithoutPath(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	newer := testpg.StartVersion(t, testpg.Version(t, 18), nil)
	db := c.CreateDatabase(t)
	c.Exec(t, db, `CREATE TABLE t (a int, b text); CREATE FUNCTION inside(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'; CREATE FUNCTION outside(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT inside($1)';
		CREATE FUNCTION named(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT public.inside($1)'; CREATE FUNCTION reads() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM t'; CREATE FUNCTION elsewhere() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM t';
		CREATE INDEX i ON t (outside(a)); CREATE INDEX j ON t (named(a)); CREATE INDEX k ON t (inside(a)); CREATE MATERIALIZED VIEW m AS SELECT reads(); CREATE VIEW v AS SELECT elsewhere()`)
	want := []string{"function-without-path function public.outside(integer)", "function-without-path function public.reads()"}
	for range 2 {
		found, err := check(ctx, c.Server(), newer.Server(), db)
		if err != nil {
			t.Fatal(err)
		}
		if got := codes(found.Blocking()); !slices.Equal(got, want) {
			t.Errorf("blocked by %q, want %q", got, want)
		}
		for _, p := range found {
			if p.Code == "function-without-path" {
				c.Exec(t, db, p.Remedy)
			}
		}
		want = nil
	}
	if found, err := check(ctx, c.Server(), c.Server(), db); err != nil || slices.ContainsFunc(found, func(p *problem.Problem) bool { return p.Code == "function-without-path" }) {
		t.Errorf("the same version: %v %v", codes(found), err)
	}
}
