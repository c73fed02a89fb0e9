package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// oldest is the oldest major version on either side of a link.
const oldest = 14

// Check compares the requirements with a target server on which the replica is to
// be named database. It changes nothing. An error means that it could not check.
func (r *Requirements) Check(ctx context.Context, dst *postgres.Server, database string) (problem.Findings, error) {
	conn, err := dst.Connect(ctx, reading(dst.Database(), "validate"))
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	c := checker{Requirements: r, dst: dst, conn: conn, as: database, found: slices.Clone(r.Findings)}
	if c.version, err = serverVersion(ctx, conn); err != nil {
		return nil, err
	}
	c.checkVersions()
	for _, check := range []struct {
		what string
		run  func(context.Context) error
	}{
		{"the agent's role", c.checkPrivileges},
		{"locales", c.checkLocales},
		{"the database", c.checkDatabase},
		{"extensions", c.checkExtensions},
		{"preloaded libraries", c.checkPreload},
		{"roles", c.checkRoles},
		{"collations", c.checkCollations},
		{"configuration parameters", c.checkParameters},
		{"security labels", c.checkLabels},
		{"lock table", c.checkLocks},
	} {
		if err := check.run(ctx); err != nil {
			return nil, fmt.Errorf("check %s of the target: %w", check.what, err)
		}
	}
	c.checkLibraries()
	return c.found, nil
}

// checker gathers findings about one target.
type checker struct {
	*Requirements
	dst     *postgres.Server
	conn    *pgx.Conn
	as      string // the replica's name
	version int    // the target's
	found   problem.Findings
}

func (c *checker) add(p *problem.Problem) { c.found = append(c.found, p) }

func (c *checker) checkVersions() {
	from, to := c.ServerVersion/10000, c.version/10000
	if from < oldest {
		c.add(problem.New("version-too-old", "the primary's server", fmt.Sprintf("it runs PostgreSQL %d; Hawser links versions %d and later", from, oldest),
			"").Advise(fmt.Sprintf("upgrade it to PostgreSQL %d or later", oldest)))
	}
	if to < oldest {
		c.add(problem.New("version-too-old", "the target's server", fmt.Sprintf("it runs PostgreSQL %d; Hawser links versions %d and later", to, oldest),
			"").Advise(fmt.Sprintf("upgrade it to PostgreSQL %d or later", oldest)))
	}
	if to >= 17 {
		for _, f := range c.Pathless {
			c.add(problem.New("function-without-path", "function "+f.Function, fmt.Sprintf("%s calls it, and it names things without their schema, which PostgreSQL %d does not find there: %s", f.For, to, f.Error),
				"ALTER FUNCTION "+f.Function+" SET search_path = "+f.Path+";").At("the primary"))
		}
	}
	if to >= from {
		return
	}
	c.add(problem.Warn("target-older", "the target's server",
		fmt.Sprintf("it runs PostgreSQL %d, the primary %d: definitions and later DDL in syntax that it does not know stop the link", to, from),
		"").Advise(fmt.Sprintf("upgrade the target to PostgreSQL %d", from)))
	for _, f := range c.Features {
		if f.Since > to {
			c.add(problem.New("feature-unknown", f.Object, fmt.Sprintf("it %s, which PostgreSQL has since version %d; the target runs %d", f.What, f.Since, to),
				"").Advise(fmt.Sprintf("upgrade the target to PostgreSQL %d, or alter or drop the object on the primary", f.Since)))
		}
	}
}

func (c *checker) checkPrivileges(ctx context.Context) error {
	var super bool
	if err := c.conn.QueryRow(ctx, `SELECT rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&super); err != nil || super {
		return err
	}
	user := currentUser(ctx, c.conn)
	c.add(problem.New("not-superuser", "role "+user,
		"the agent's role on the target is no superuser; to restore owners and to set session_replication_role it must be one",
		"ALTER ROLE "+user+" SUPERUSER;"))
	return nil
}

// checkLocales asks the server whether the operating system knows the locales.
// lc_time takes any locale that exists, whatever the database's encoding.
func (c *checker) checkLocales(ctx context.Context) error {
	locales := slices.Clone(c.Locales)
	if d, bad := c.Database.on(c.version); bad == nil {
		locales = append(locales, d.Collate, d.Ctype)
	}
	slices.Sort(locales)
	for _, locale := range slices.Compact(locales) {
		err := c.try(ctx, `SELECT set_config('lc_time', $1, true)`, locale)
		if refused(err) {
			c.add(missingLocale("locale "+locale, locale))
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// try runs a statement and takes it back.
func (c *checker) try(ctx context.Context, sql string, args ...any) error {
	tx, err := c.conn.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, sql, args...)
	return errors.Join(err, tx.Rollback(ctx))
}

// refused reports whether the server said no, as opposed to having said nothing.
func refused(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr)
}

func (c *checker) checkDatabase(ctx context.Context) error {
	want := c.Database
	want.Name = c.as
	if _, bad := want.options(c.version); bad != nil {
		c.add(bad)
		return nil
	}
	if want.Provider == "icu" {
		if err := c.checkICU(ctx, want); err != nil {
			return err
		}
	}
	there, err := readSettings(ctx, c.conn, c.as)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	err = adoptable(ctx, c.dst, there, want, c.version)
	if p, ok := problem.As(err); ok {
		c.add(p)
		return nil
	}
	return err
}

func (c *checker) checkICU(ctx context.Context, want DatabaseSettings) error {
	var built bool
	if err := c.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i')`).Scan(&built); err != nil || built {
		return err
	}
	c.add(problem.New("icu-missing", "database "+postgres.QuoteIdent(want.Name),
		"it compares text by ICU, and the target's PostgreSQL was built without it", "").Advise("install on the target a PostgreSQL that was built with ICU"))
	return nil
}

// offer is what a server says of an extension that it could install.
type offer struct {
	version string // by default
	exact   bool   // it has the primary's version too
}

func (c *checker) checkExtensions(ctx context.Context) error {
	offers, err := c.offers(ctx)
	if err != nil {
		return err
	}
	for _, e := range c.Extensions {
		o, ok := offers[e.Name]
		name := postgres.QuoteIdent(e.Name)
		switch {
		case !ok:
			c.add(problem.New("extension-missing", "extension "+name, "the database uses it, and it is not installed on the target's machine",
				installExtension(e.Name, c.version/10000)).Advise(otherPackage).At("the secondary"))
		case o.version != e.Version && o.exact:
			c.add(problem.Noted("extension-version", "extension "+name,
				fmt.Sprintf("the primary has version %s, the target installs %s by default; %s is there too", e.Version, o.version, e.Version)))
		case o.version != e.Version:
			c.add(problem.Warn("extension-version", "extension "+name, fmt.Sprintf("the primary has version %s, the target has %s", e.Version, o.version),
				"ALTER EXTENSION "+name+" UPDATE;").Advise("on the older side, once its package is the newer one"))
		}
	}
	return nil
}

// offers returns what the target's server could install.
func (c *checker) offers(ctx context.Context) (map[string]offer, error) {
	wanted := make([]string, len(c.Extensions))
	for i, e := range c.Extensions {
		wanted[i] = e.Name + "=" + e.Version
	}
	rows, err := c.conn.Query(ctx, `
		SELECT a.name, coalesce(a.default_version, ''), coalesce(bool_or(v.name || '=' || v.version = ANY ($1)), false)
		FROM pg_available_extensions a LEFT JOIN pg_available_extension_versions v ON v.name = a.name GROUP BY a.name, a.default_version`, wanted)
	if err != nil {
		return nil, err
	}
	out := make(map[string]offer)
	var name string
	var o offer
	_, err = pgx.ForEachRow(rows, []any{&name, &o.version, &o.exact}, func() error {
		out[name] = o
		return nil
	})
	return out, err
}

// packages are Debian's and the PostgreSQL project's names, where they do not
// follow from the extension's; %d is the server's major version.
var packages = map[string]string{
	"address_standardizer": "postgresql-%d-postgis-3", "address_standardizer_data_us": "postgresql-%d-postgis-3",
	"pg_cron": "postgresql-%d-cron", "pg_hint_plan": "postgresql-%d-pg-hint-plan", "pg_partman": "postgresql-%d-partman",
	"pg_repack": "postgresql-%d-repack", "pg_similarity": "postgresql-%d-similarity", "pg_squeeze": "postgresql-%d-squeeze",
	"plperl": "postgresql-plperl-%d", "plperlu": "postgresql-plperl-%d", "plpython3u": "postgresql-plpython3-%d",
	"pltcl": "postgresql-pltcl-%d", "pltclu": "postgresql-pltcl-%d",
	"pgrouting": "postgresql-%d-pgrouting", "postgis": "postgresql-%d-postgis-3", "postgis_raster": "postgresql-%d-postgis-3",
	"postgis_sfcgal": "postgresql-%d-postgis-3", "postgis_tiger_geocoder": "postgresql-%d-postgis-3", "postgis_topology": "postgresql-%d-postgis-3",
	"timescaledb": "timescaledb-2-postgresql-%d", "vector": "postgresql-%d-pgvector",
}

// contrib are the extensions of PostgreSQL's own contrib package.
var contrib = []string{
	"adminpack", "amcheck", "autoinc", "bloom", "btree_gin", "btree_gist", "citext", "cube", "dblink", "dict_int", "dict_xsyn", "earthdistance",
	"file_fdw", "fuzzystrmatch", "hstore", "insert_username", "intagg", "intarray", "isn", "lo", "ltree", "moddatetime", "old_snapshot", "pageinspect",
	"pg_buffercache", "pg_freespacemap", "pg_logicalinspect", "pg_overexplain", "pg_prewarm", "pg_stat_statements", "pg_surgery", "pg_trgm", "pg_visibility", "pg_walinspect",
	"pgcrypto", "pgrowlocks", "pgstattuple", "postgres_fdw", "refint", "seg", "sslinfo", "tablefunc", "tcn", "tsm_system_rows", "tsm_system_time",
	"unaccent", "uuid-ossp", "xml2",
}

// otherPackage goes with installExtension's remedy.
const otherPackage = "or the package of the machine's system that has the extension"

// installExtension returns how to install an extension's files on a server's
// machine, as far as its name tells.
func installExtension(name string, major int) string {
	pkg := fmt.Sprintf("postgresql-%d-%s", major, strings.ReplaceAll(name, "_", "-"))
	if slices.Contains(contrib, name) {
		pkg = "postgresql-contrib-" + strconv.Itoa(major)
	}
	if p, ok := packages[name]; ok {
		pkg = fmt.Sprintf(p, major)
	}
	return "apt-get install " + pkg
}

func (c *checker) checkPreload(ctx context.Context) error {
	have, err := names(ctx, c.conn, `SELECT btrim(lib, ' "') FROM unnest(string_to_array(current_setting('shared_preload_libraries'), ',')) AS lib WHERE btrim(lib) <> ''`)
	if err != nil {
		return err
	}
	for _, e := range c.Extensions {
		if slices.Contains(c.Preload, e.Name) && !slices.Contains(have, e.Name) {
			c.add(problem.Warn("library-not-preloaded", "extension "+postgres.QuoteIdent(e.Name),
				"the primary loads its library at start (shared_preload_libraries), the target does not; it may refuse to work, or to be installed",
				"ALTER SYSTEM SET shared_preload_libraries = "+quoted(append(have, e.Name))+";").Advise("then restart PostgreSQL").At("the secondary"))
		}
	}
	return nil
}

func (c *checker) checkRoles(ctx context.Context) error {
	supers, logins := make(map[string]bool), make(map[string]bool)
	var name string
	var super, login bool
	err := forEach(ctx, c.conn, `SELECT rolname, rolsuper, rolcanlogin FROM pg_roles`, []any{&name, &super, &login}, func() { supers[name], logins[name] = super, login })
	if err != nil {
		return err
	}
	for _, r := range c.Roles {
		if _, exists := supers[r.Name]; !exists {
			c.add(r.created())
		} else if r.Login && !logins[r.Name] {
			c.add(r.lockedOut().At("the secondary"))
		}
	}
	for _, role := range c.Predefined {
		if _, exists := supers[role]; !exists {
			c.add(problem.New("role-unknown", "role "+postgres.QuoteIdent(role), "it has rights in the database, and the target's older PostgreSQL does not have it",
				"").Advise("upgrade the target, or REVOKE what was granted to it on the primary"))
		}
	}
	for _, o := range c.Superusers {
		if !supers[o.Role] {
			c.add(problem.New("owner-not-superuser", o.Object, "its owner "+postgres.QuoteIdent(o.Role)+" must be a superuser, and on the target is none",
				"CREATE ROLE "+postgres.QuoteIdent(o.Role)+" NOLOGIN SUPERUSER;").Advise("ALTER ROLE, if it exists").At("the secondary"))
		}
	}
	return nil
}

// checkCollations looks where the replica will look: in the database if it is
// there, else in one that came from the same template.
func (c *checker) checkCollations(ctx context.Context) error {
	have, err := names(ctx, c.conn, `SELECT collname FROM pg_collation WHERE collencoding IN (-1, pg_char_to_encoding(`+postgres.QuoteLiteral(c.Database.Encoding)+`))
		AND collnamespace = 'pg_catalog'::regnamespace`)
	if err != nil {
		return err
	}
	for _, name := range c.Collations {
		if !slices.Contains(have, name) {
			c.add(problem.New("collation-missing", "collation "+postgres.QuoteIdent("pg_catalog", name),
				"definitions name it, and the target's PostgreSQL does not have it",
				"SELECT pg_import_system_collations('pg_catalog');").Advise("before that install the locale or ICU on the machine, and create the database; run it there").At("the secondary"))
		}
	}
	return c.checkCollationVersion(ctx)
}

// checkCollationVersion notes that the two sides may sort differently.
func (c *checker) checkCollationVersion(ctx context.Context) error {
	var version string
	err := c.conn.QueryRow(ctx, `
		SELECT coalesce(j->>'datcollversion', '') FROM pg_database d, to_jsonb(d) AS j
		WHERE datname = current_database() AND coalesce(j->>'datlocprovider', 'c') = $1`, c.Database.Provider[:1]).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil && version != "" && c.Database.CollationVersion != "" && version != c.Database.CollationVersion {
		c.add(problem.Noted("collation-version", "database "+postgres.QuoteIdent(c.as),
			fmt.Sprintf("the primary sorts text by version %s of %s, the target by %s: ORDER BY may differ between them", c.Database.CollationVersion, c.Database.Provider, version)))
	}
	return err
}

func (c *checker) checkParameters(ctx context.Context) error {
	known, err := names(ctx, c.conn, `SELECT lower(name) FROM pg_settings`)
	if err != nil {
		return err
	}
	for _, name := range c.Parameters {
		if !slices.Contains(known, strings.ToLower(name)) {
			c.add(problem.New("setting-unknown", "setting "+name, "the database or a function in it sets it, and the target's PostgreSQL does not know it",
				"ALTER DATABASE "+postgres.QuoteIdent(c.Database.Name)+" RESET "+name+";").Advise("ALTER FUNCTION, where a function sets it; or upgrade the target").At("the primary"))
		}
	}
	return nil
}

// checkLabels asks for each provider, by a label that is taken back, whether the
// server has loaded it.
func (c *checker) checkLabels(ctx context.Context) error {
	for _, provider := range c.Labellers {
		err := c.try(ctx, "SECURITY LABEL FOR "+postgres.QuoteIdent(provider)+" ON SCHEMA pg_catalog IS NULL")
		if refused(err) {
			c.add(problem.New("labels-not-loaded", "security labels of "+postgres.QuoteIdent(provider),
				"the database has such labels, and the target's server has not loaded their provider",
				"").Advise("install the provider on the target's machine and add its library to shared_preload_libraries there").Because(err))
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkLocks warns when the restore of the schema in one transaction, which locks
// all that it makes, may not fit.
func (c *checker) checkLocks(ctx context.Context) error {
	room, err := lockRoom(ctx, c.conn)
	if err == nil && c.Relations >= room {
		c.add(problem.Warn("setting-too-low", "setting max_locks_per_transaction",
			fmt.Sprintf("the restore of the schema locks all %d relations at once, and the target's server has room for about %d locks", c.Relations, room), moreLocks).Advise("then restart PostgreSQL").At("the secondary"))
	}
	return err
}

// checkLibraries can only warn: a server does not say what libraries it could load.
func (c *checker) checkLibraries() {
	for _, lib := range c.Libraries {
		c.add(problem.Warn("library-needed", "library "+lib, "functions that belong to no extension are in it; they fail to be created where it is missing",
			"").Advise("copy it to the directory that pg_config --pkglibdir names on the target's machine"))
	}
}
