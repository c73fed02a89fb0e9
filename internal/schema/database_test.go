package schema

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// strange returns a name that needs all the quoting there is, and drops the
// database of that name at the end.
func strange(t *testing.T, c *testpg.Cluster) string {
	t.Helper()
	name := `odd "db" $hawser$ %s '` + strings.ToUpper(strings.TrimPrefix(c.CreateDatabase(t), "t"))
	t.Cleanup(func() { c.Exec(t, "postgres", "DROP DATABASE IF EXISTS "+postgres.QuoteIdent(name)+" WITH (FORCE)") })
	return name
}

func TestCreateDatabase(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	want := DatabaseSettings{Name: strange(t, c), Encoding: "LATIN1", Collate: "C", Ctype: "C", Provider: "libc"}
	create := func(wantCreated bool) {
		t.Helper()
		created, err := CreateDatabase(ctx, c.Server(), want, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		if created != wantCreated {
			t.Errorf("created is %t, want %t", created, wantCreated)
		}
	}
	create(true)
	got, err := DatabaseOf(ctx, c.Server(), want.Name)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("settings are %+v, want %+v", got, want)
	}
	create(true) // an earlier try did
	c.Exec(t, want.Name, "CREATE SCHEMA hawser", "CREATE TABLE hawser.member ()", "CREATE PUBLICATION hawser_0123456789abcdef")
	create(true)

	c.Exec(t, want.Name, `CREATE TYPE "my type" AS (a int)`)
	_, err = CreateDatabase(ctx, c.Server(), want, t.Name())
	if p := wantProblem(t, err, "database-not-empty"); !strings.Contains(p.Cause, `type public."my type"`) {
		t.Errorf("the cause %q does not name what is in the way", p.Cause)
	}
	other := want
	other.Encoding = "UTF8"
	_, err = CreateDatabase(ctx, c.Server(), other, t.Name())
	wantProblem(t, err, "database-differs")

	for range 2 {
		if err := DropDatabase(ctx, c.Server(), want.Name); err != nil {
			t.Fatal(err)
		}
	}
	_, err = DatabaseOf(ctx, c.Server(), want.Name)
	wantProblem(t, err, "no-such-database")
}

func TestCreateDatabaseWithLocales(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	icu := DatabaseSettings{Name: strange(t, c), Encoding: "UTF8", Collate: "C", Ctype: "C", Provider: "icu", Locale: "de-u-co-phonebk"}
	_, err := CreateDatabase(ctx, c.Server(), icu, t.Name())
	if major(t, c) < 15 {
		wantProblem(t, err, "version-too-old")
	} else {
		if err != nil {
			t.Fatal(err)
		}
		got, err := DatabaseOf(ctx, c.Server(), icu.Name)
		if err != nil {
			t.Fatal(err)
		}
		got.CollationVersion = ""
		if got != icu {
			t.Errorf("settings are %+v, want %+v", got, icu)
		}
	}
	_, err = CreateDatabase(ctx, c.Server(), DatabaseSettings{Name: "never", Encoding: "UTF8", Collate: "xx_XX.UTF-8", Ctype: "C", Provider: "libc"}, t.Name())
	wantProblem(t, err, "locale-missing")
}

func TestDropDatabaseLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	name := c.CreateDatabase(t)
	settings, err := DatabaseOf(ctx, c.Server(), name)
	if err != nil {
		t.Fatal(err)
	}
	if created, err := CreateDatabase(ctx, c.Server(), settings, t.Name()); created || err != nil {
		t.Errorf("a database that was there: created is %t, %v", created, err)
	}
	wantProblem(t, DropDatabase(ctx, c.Server(), name), "database-not-ours")
	if _, err := DatabaseOf(ctx, c.Server(), name); err != nil {
		t.Errorf("the database is gone: %v", err)
	}
	if err := DropDatabase(ctx, c.Server(), name+" that was never there"); err != nil {
		t.Error(err)
	}
}

func TestDatabaseOptions(t *testing.T) {
	t.Parallel()
	libc := DatabaseSettings{Name: "d", Encoding: "UTF8", Collate: "de_DE.UTF-8", Ctype: "C", Provider: "libc"}
	icu := DatabaseSettings{Name: "d", Encoding: "UTF8", Collate: "C", Ctype: "C", Provider: "icu", Locale: "de"}
	rules := icu
	rules.Rules = "&a < g'"
	builtin := DatabaseSettings{Name: "d", Encoding: "UTF8", Collate: "C", Ctype: "C", Provider: "builtin", Locale: "C.UTF-8"}
	fast := builtin
	fast.Locale = "PG_UNICODE_FAST"
	const c = "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
	for _, k := range []struct {
		d       DatabaseSettings
		version int
		want    string // "" for a problem
	}{
		{libc, 140010, "ENCODING 'UTF8' LC_COLLATE 'de_DE.UTF-8' LC_CTYPE 'C'"},
		{libc, 150001, "ENCODING 'UTF8' LC_COLLATE 'de_DE.UTF-8' LC_CTYPE 'C' LOCALE_PROVIDER libc"},
		{icu, 140010, ""},
		{icu, 150001, c + " LOCALE_PROVIDER icu ICU_LOCALE 'de'"},
		{rules, 150001, ""},
		{rules, 160000, c + " LOCALE_PROVIDER icu ICU_LOCALE 'de' ICU_RULES '&a < g'''"},
		{builtin, 140004, "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C.UTF-8'"},
		{builtin, 160004, "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C.UTF-8' LOCALE_PROVIDER libc"},
		{builtin, 170000, c + " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"},
		{fast, 170000, ""},
		{fast, 180000, c + " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'"},
	} {
		got, p := k.d.options(k.version)
		if k.want == "" {
			wantProblem(t, p, "version-too-old")
			continue
		}
		if got != k.want {
			t.Errorf("on %d the options of %+v are\n%s, want\n%s", k.version, k.d, got, k.want)
		}
	}
	spelled := libc
	spelled.Collate = "de_DE.utf8"
	if !libc.same(spelled, 150000) || libc.same(icu, 150000) || libc.same(builtin, 140000) {
		t.Error("databases are taken for the same that are not, or the other way round")
	}
}

func TestDatabaseEntries(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	prefix := rolePrefix(t, c)
	from, to := strange(t, c), strange(t, c)
	settings := DatabaseSettings{Name: from, Encoding: "UTF8", Collate: "C", Ctype: "C", Provider: "libc"}
	if _, err := CreateDatabase(ctx, c.Server(), settings, t.Name()); err != nil {
		t.Fatal(err)
	}
	db, owner, role := postgres.QuoteIdent(from), postgres.QuoteIdent(prefix+"owner"), postgres.QuoteIdent(prefix+`ro"le`)
	c.Exec(t, "postgres", "CREATE ROLE "+owner, "CREATE ROLE "+role,
		"ALTER DATABASE "+db+" OWNER TO "+owner,
		"ALTER DATABASE "+db+` SET search_path = '$user', "odd ""schema""", public`,
		"ALTER DATABASE "+db+" SET my.setting = 'it''s 100% \\'",
		"ALTER DATABASE "+db+" SET default_transaction_read_only = on",
		"ALTER DATABASE "+db+" CONNECTION LIMIT 17",
		"ALTER ROLE "+role+" IN DATABASE "+db+" SET work_mem = '5MB'",
		"ALTER ROLE "+role+" IN DATABASE "+db+" SET default_transaction_read_only = on",
		"COMMENT ON DATABASE "+db+" IS 'it''s a \\ comment $hawser$'",
		"REVOKE CONNECT ON DATABASE "+db+" FROM PUBLIC",
		"GRANT TEMPORARY ON DATABASE "+db+" TO "+role)
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	settings.Name = to
	if _, err := CreateDatabase(ctx, c.Server(), settings, t.Name()); err != nil {
		t.Fatal(err)
	}
	restore(ctx, t, c, to, d, nil)

	conn := c.Connect(t, "postgres")
	read := func(name string) []string {
		return testpg.Rows(t, conn, `
			SELECT concat_ws(' | ', pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database')) FROM pg_database WHERE datname = $1
			UNION ALL SELECT acl::text FROM pg_database, unnest(datacl) AS acl WHERE datname = $1
			UNION ALL SELECT rolname || ' ' || unnest(setconfig) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase JOIN pg_roles r ON r.oid = setrole
				WHERE datname = $1
			UNION ALL SELECT unnest(setconfig) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE setrole = 0 AND datname = $1`, name)
	}
	want := slices.DeleteFunc(read(from), func(s string) bool { return strings.HasSuffix(s, "default_transaction_read_only=on") })
	if len(want) != 8 {
		t.Fatalf("the primary's settings are %q, want 8 of them", want)
	}
	if slices.ContainsFunc(d.Entries, func(e Entry) bool { return strings.Contains(e.SQL, postgres.CreatedSetting) }) {
		t.Error("the mark of a database that Hawser made is carried to another one")
	}
	got := read(to)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("settings are\n%q, want\n%q", got, want)
	}
	for _, role := range []string{prefix + "owner", prefix + `ro"le`} {
		if indexRole(d.Roles, role) < 0 {
			t.Errorf("role %s is not among those of the dump", role)
		}
	}
}

func TestPublicSchemaMayBeGone(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	from, to := c.CreateDatabase(t), c.CreateDatabase(t)
	c.Exec(t, from, "DROP SCHEMA public")
	d, err := TakeDump(ctx, c.Server(), from, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	restore(ctx, t, c, to, d, func(conn *pgx.Conn) {
		if got := testpg.Rows(t, conn, `SELECT nspname FROM pg_namespace WHERE nspname = 'public'`); len(got) != 0 {
			t.Error("the target has schema public, which the primary has not")
		}
	})
}
