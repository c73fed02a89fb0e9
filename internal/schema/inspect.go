package schema

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Requirements is what a target must have for a database, and what was found
// about carrying it that concerns the primary alone. It is sent as JSON.
type Requirements struct {
	ServerVersion int              `json:"server_version"` // as server_version_num
	Database      DatabaseSettings `json:"database"`
	Extensions    []Extension      `json:"extensions"`
	Roles         []Role           `json:"roles"`
	// Predefined are the pg_… roles with rights in the database.
	Predefined []string `json:"predefined,omitempty"`
	// Parameters are set by the database, or by functions in it.
	Parameters []string `json:"parameters,omitempty"`
	// Collations of pg_catalog that are used by name.
	Collations []string `json:"collations,omitempty"`
	// Locales of the operating system that the database's own collations use.
	Locales []string `json:"locales,omitempty"`
	// Libraries hold functions that belong to no extension.
	Libraries []string `json:"libraries,omitempty"`
	// Preload is the primary's shared_preload_libraries.
	Preload []string `json:"preload,omitempty"`
	// Labellers are the providers of security labels.
	Labellers []string `json:"labellers,omitempty"`
	// Superusers own what only a superuser can own.
	Superusers []Ownership `json:"superusers,omitempty"`
	// Pathless are functions that PostgreSQL 17 and later can't call where they are needed.
	Pathless []Pathless `json:"pathless,omitempty"`
	// Relations is how many tables, indexes, views and sequences there are.
	Relations int `json:"relations"`
	// Features are used and unknown to some version that Hawser supports.
	Features []Feature        `json:"features,omitempty"`
	Findings problem.Findings `json:"findings,omitempty"`
}

// Extension is one that is installed in the database.
type Extension struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Schema  string `json:"schema"`
}

// Ownership is an object and its owner.
type Ownership struct {
	Object string `json:"object"`
	Role   string `json:"role"`
}

// Feature is the use of what PostgreSQL has since a major version.
type Feature struct {
	Since  int    `json:"since"`
	Object string `json:"object"`
	What   string `json:"what"`
}

// Pathless is a function that names things without their schema, and what calls it. From
// version 17 on the server fills indexes and materialized views under a search_path of its
// own.
type Pathless struct {
	Function string `json:"function"`
	For      string `json:"for"`
	Error    string `json:"error"`
	Path     string `json:"path"` // where the database's sessions find what it names
}

// Inspect reads on the primary what Requirements.Check compares with a target.
func Inspect(ctx context.Context, src *postgres.Server, database string) (*Requirements, error) {
	conn, err := src.Connect(ctx, reading(database, "validate"))
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := beginAt(ctx, conn, "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	r := &Requirements{}
	for _, step := range []struct {
		what string
		read func(context.Context, pgx.Tx) error
	}{
		{"its version and size", r.readVersion},
		{"its settings", r.readSettings},
		{"its extensions", r.readExtensions},
		{"its roles", r.readRoles},
		{"the names that it uses", r.readNames},
		{"what needs a superuser", r.readSuperusers},
		{"the features that it uses", r.readFeatures},
		{"the functions of its indexes", r.readPathless},
		{"what can't be carried", r.findOnPrimary},
	} {
		if err := step.read(ctx, tx); err != nil {
			return nil, fmt.Errorf("inspect database %q: read %s: %w", database, step.what, err)
		}
	}
	return r, nil
}

func (r *Requirements) readVersion(ctx context.Context, tx pgx.Tx) (err error) {
	if r.ServerVersion, err = serverVersion(ctx, tx); err != nil {
		return err
	}
	return tx.QueryRow(ctx, `SELECT count(*) FROM pg_class WHERE oid >= 16384`).Scan(&r.Relations)
}

func (r *Requirements) readSettings(ctx context.Context, tx pgx.Tx) (err error) {
	r.Database, err = readSettings(ctx, tx, "")
	return err
}

func (r *Requirements) readExtensions(ctx context.Context, tx pgx.Tx) (err error) {
	r.Extensions, err = readExtensions(ctx, tx)
	return err
}

// readExtensions returns what is installed, less plpgsql, which every database has.
func readExtensions(ctx context.Context, db querier) ([]Extension, error) {
	rows, err := db.Query(ctx, `
		SELECT extname, extversion, nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace
		WHERE extname <> 'plpgsql' ORDER BY extname`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Extension])
}

// readRoles keeps, of the predefined roles, those that were given a right.
func (r *Requirements) readRoles(ctx context.Context, tx pgx.Tx) error {
	all, err := readRoles(ctx, tx)
	if err != nil {
		return err
	}
	r.Roles = slices.DeleteFunc(all, Role.predefined)
	r.Predefined, err = names(ctx, tx, `
		SELECT DISTINCT rolname FROM pg_roles JOIN (
			SELECT grantee FROM pg_class, aclexplode(relacl)
			UNION ALL SELECT grantee FROM pg_attribute, aclexplode(attacl)
			UNION ALL SELECT grantee FROM pg_namespace, aclexplode(nspacl)
			UNION ALL SELECT grantee FROM pg_proc, aclexplode(proacl)
			UNION ALL SELECT grantee FROM pg_default_acl, aclexplode(defaclacl)
			UNION ALL SELECT unnest(polroles) FROM pg_policy
			UNION ALL SELECT nspowner FROM pg_namespace
		) AS given ON grantee = oid
		WHERE oid < 16384 AND rolname ~ '^pg_' ORDER BY rolname`)
	return err
}

// readNames reads what the definitions name and the target's server must know.
func (r *Requirements) readNames(ctx context.Context, tx pgx.Tx) error {
	for _, list := range []struct {
		into *[]string
		sql  string
	}{
		{&r.Parameters, `
			SELECT DISTINCT name FROM (
				SELECT split_part(unnest(setconfig), '=', 1) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = current_database()
				UNION ALL SELECT split_part(unnest(proconfig), '=', 1) FROM pg_proc WHERE oid >= 16384
			) AS s(name)
			WHERE name NOT LIKE '%.%' ORDER BY name`},
		{&r.Collations, `
			SELECT DISTINCT c.collname FROM pg_depend d JOIN pg_collation c ON c.oid = d.refobjid
			WHERE d.refclassid = 'pg_collation'::regclass AND c.oid < 16384 AND c.collprovider <> 'd' AND c.collname NOT IN ('C', 'POSIX')
				AND d.objid >= 16384 ORDER BY c.collname`},
		{&r.Locales, `
			SELECT DISTINCT locale FROM pg_collation, unnest(array[collcollate, collctype]) AS locale
			WHERE oid >= 16384 AND collprovider = 'c' AND locale IS NOT NULL ORDER BY locale`},
		{&r.Libraries, `
			SELECT DISTINCT p.probin FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
			WHERE p.oid >= 16384 AND l.lanname = 'c'
				AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
			ORDER BY p.probin`},
		{&r.Preload, `
			SELECT btrim(lib, ' "') FROM unnest(string_to_array(current_setting('shared_preload_libraries'), ',')) AS lib WHERE btrim(lib) <> ''`},
		{&r.Labellers, `SELECT DISTINCT provider FROM pg_seclabel ORDER BY provider`},
	} {
		var err error
		if *list.into, err = names(ctx, tx, list.sql); err != nil {
			return err
		}
	}
	return nil
}

func names(ctx context.Context, db querier, sql string) ([]string, error) {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (r *Requirements) readSuperusers(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT 'event trigger ' || quote_ident(evtname), pg_get_userbyid(evtowner) FROM pg_event_trigger e JOIN pg_proc p ON p.oid = evtfoid
			WHERE e.oid >= 16384 AND p.pronamespace::regnamespace::text <> 'hawser'
				AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_event_trigger'::regclass AND objid = e.oid AND deptype = 'e')
		UNION ALL SELECT 'foreign-data wrapper ' || quote_ident(fdwname), pg_get_userbyid(fdwowner) FROM pg_foreign_data_wrapper w
			WHERE NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_foreign_data_wrapper'::regclass AND objid = w.oid AND deptype = 'e')
		UNION ALL SELECT 'publication ' || quote_ident(pubname), pg_get_userbyid(pubowner) FROM pg_publication WHERE puballtables AND NOT starts_with(pubname, 'hawser_')
		ORDER BY 1`)
	if err != nil {
		return err
	}
	r.Superusers, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Ownership])
	return err
}

// findOnPrimary finds what needs no target to be found.
func (r *Requirements) findOnPrimary(ctx context.Context, tx pgx.Tx) error {
	if _, err := postgres.Tool("pg_dump", r.ServerVersion/10000); err != nil {
		r.Findings = append(r.Findings, problem.Of(err, "tool-missing"))
	}
	if r.Database.Encoding == "SQL_ASCII" {
		r.add(problem.Warn("encoding-unchecked", "database "+postgres.QuoteIdent(r.Database.Name),
			"its encoding SQL_ASCII lets any bytes in; rows are carried with them, but definitions with bytes that are not UTF-8 can't be, and one made later suspends the link",
			"").Advise("rewrite functions and comments, and rename objects, that hold such bytes"))
	}
	for _, check := range []func(context.Context, pgx.Tx) error{
		r.findUnreadable, r.findTablespaces, r.findUserMappings, r.findUnfilled, r.findLocks,
	} {
		if err := check(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

// readPathless has the server read the functions in SQL as a newer one would.
func (r *Requirements) readPathless(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT p.oid, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)), min(pg_describe_object(x.classid, x.objid, 0))
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
		JOIN (SELECT d.classid, d.objid, d.refobjid FROM pg_depend d JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('i', 'I')
			WHERE d.refclassid = 'pg_proc'::regclass
			UNION ALL SELECT 'pg_class'::regclass, w.ev_class, d.refobjid FROM pg_depend d JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
			JOIN pg_class c ON c.oid = w.ev_class AND c.relkind = 'm' WHERE d.refclassid = 'pg_proc'::regclass) x ON x.refobjid = p.oid
		WHERE l.lanname = 'sql' AND p.prosqlbody IS NULL AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c LIKE 'search_path=%')
		GROUP BY 1, 2 ORDER BY 2`)
	if err != nil {
		return err
	}
	var oids []uint32
	var oid uint32
	var f Pathless
	var all []Pathless
	if _, err := pgx.ForEachRow(rows, []any{&oid, &f.Function, &f.For}, func() error {
		oids, all = append(oids, oid), append(all, f)
		return nil
	}); err != nil {
		return err
	}
	path, err := postgres.UserPath(ctx, tx)
	for i, f := range all {
		if err != nil {
			return err
		}
		err = inTx(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL check_function_bodies = on; SELECT fmgr_sql_validator(%d)`, oids[i]))
			return err
		})
		if sqlState(err) != "" {
			f.Error, f.Path, err = err.Error(), strings.TrimPrefix(path, "pg_catalog, "), nil
			r.Pathless = append(r.Pathless, f)
		}
	}
	return err
}

func (r *Requirements) add(p *problem.Problem) { r.Findings = append(r.Findings, p) }

func (r *Requirements) findUnreadable(ctx context.Context, tx pgx.Tx) error {
	tables, err := names(ctx, tx, `
		SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'hawser')
			AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
		ORDER BY 1`)
	if err != nil || len(tables) == 0 {
		return err
	}
	user := currentUser(ctx, tx)
	r.add(problem.New("table-not-readable", "role "+user,
		fmt.Sprintf("the agent's role may not read %d tables, %s, which pg_dump has to lock", len(tables), someOf(tables)),
		"ALTER ROLE "+user+" SUPERUSER;"))
	return nil
}

func (r *Requirements) findTablespaces(ctx context.Context, tx pgx.Tx) error {
	spaces, err := names(ctx, tx, `
		SELECT quote_ident(spcname) FROM pg_tablespace t
		WHERE EXISTS (SELECT FROM pg_class WHERE reltablespace = t.oid AND spcname <> 'pg_global')
			OR EXISTS (SELECT FROM pg_database WHERE dattablespace = t.oid AND datname = current_database() AND spcname <> 'pg_default')
		ORDER BY 1`)
	if err != nil || len(spaces) == 0 {
		return err
	}
	r.add(problem.Noted("tablespaces", "tablespace "+someOf(spaces),
		"objects lie in it; on the target all of them lie in the database's default tablespace"))
	return nil
}

func (r *Requirements) findUserMappings(ctx context.Context, tx pgx.Tx) error {
	servers, err := names(ctx, tx, `SELECT DISTINCT quote_ident(srvname) FROM pg_user_mappings ORDER BY 1`)
	if err != nil || len(servers) == 0 {
		return err
	}
	r.add(problem.Noted("user-mappings", "foreign server "+someOf(servers),
		"it has user mappings; they are carried with the passwords in them, and the target reaches the foreign server by the same address"))
	return nil
}

// findUnfilled names materialized views that have rows and can't be filled again,
// as they read one that was emptied since.
func (r *Requirements) findUnfilled(ctx context.Context, tx pgx.Tx) error {
	views, err := names(ctx, tx, `
		SELECT DISTINCT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN (`+readsMatviews+`) AS others(matview, oid, populated) ON others.matview = c.oid
		WHERE c.relispopulated AND NOT others.populated ORDER BY 1`)
	if err != nil || len(views) == 0 {
		return err
	}
	r.add(problem.Warn("matview-not-filled", "materialized view "+someOf(views),
		"it has rows but reads a materialized view that has none, so it can't be filled on the target",
		"REFRESH MATERIALIZED VIEW …;").Advise("that which has none first").At("the primary"))
	return nil
}

// findLocks warns when the server's lock table may not hold a lock on each table.
func (r *Requirements) findLocks(ctx context.Context, tx pgx.Tx) error {
	var tables int
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384`).Scan(&tables); err != nil {
		return err
	}
	room, err := lockRoom(ctx, tx)
	if err == nil && tables >= room {
		r.add(problem.Warn("setting-too-low", "setting max_locks_per_transaction",
			fmt.Sprintf("pg_dump locks all %d tables of the primary, whose server has room for about %d locks", tables, room), moreLocks).Advise("then restart PostgreSQL"))
	}
	return err
}

const moreLocks = "ALTER SYSTEM SET max_locks_per_transaction = 1024;"

// lockRoom returns how many locks one transaction can count on, as others need some.
func lockRoom(ctx context.Context, db querier) (room int, err error) {
	err = db.QueryRow(ctx, `
		SELECT current_setting('max_locks_per_transaction')::bigint * 8 / 10
			* (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)`).Scan(&room)
	return room, err
}

// features are what a dump can hold and an older server refuses. Each query runs
// on servers that have the feature and names its uses.
var features = []struct {
	since int
	what  string
	sql   string
}{
	{15, "is unique with NULLS NOT DISTINCT", `SELECT 'index ' || indexrelid::regclass FROM pg_index WHERE indnullsnotdistinct AND indexrelid >= 16384`},
	{15, "publishes some rows or columns only", `
		SELECT 'publication ' || quote_ident(pubname) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = prpubid WHERE prqual IS NOT NULL OR prattrs IS NOT NULL`},
	{15, "publishes the tables of a schema", `SELECT 'publication ' || quote_ident(pubname) FROM pg_publication_namespace JOIN pg_publication p ON p.oid = pnpubid`},
	{15, "sets only some columns on DELETE", `SELECT format('foreign key %I of table %s', conname, conrelid::regclass) FROM pg_constraint WHERE confdelsetcols IS NOT NULL`},
	{15, "runs with its caller's rights (security_invoker)", `
		SELECT 'view ' || oid::regclass FROM pg_class WHERE relkind = 'v' AND array_to_string(reloptions, ',') LIKE '%security_invoker=%' AND oid >= 16384`},
	{16, "has ICU rules", `SELECT 'collation ' || oid::regcollation FROM pg_collation WHERE collicurules IS NOT NULL`},
	{17, "answers to logins", `SELECT 'event trigger ' || quote_ident(evtname) FROM pg_event_trigger WHERE evtevent = 'login'`},
	{17, "has a builtin provider", `SELECT 'collation ' || oid::regcollation FROM pg_collation WHERE collprovider = 'b' AND oid >= 16384`},
	{17, "is partitioned and has an identity column", `
		SELECT 'table ' || attrelid::regclass FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relkind = 'p' AND attidentity <> ''`},
	{17, "excludes rows of a partitioned table", `
		SELECT format('constraint %I of table %s', conname, conrelid::regclass) FROM pg_constraint JOIN pg_class c ON c.oid = conrelid WHERE contype = 'x' AND relkind = 'p'`},
	{17, "grants MAINTAIN", `
		SELECT 'table ' || c.oid::regclass FROM pg_class c, aclexplode(relacl) WHERE c.oid >= 16384
		GROUP BY c.oid, grantee HAVING bool_or(privilege_type = 'MAINTAIN') AND count(*) < 8`},
	{18, "has a virtual generated column", `SELECT 'table ' || attrelid::regclass FROM pg_attribute WHERE attgenerated = 'v'`},
	{18, "is not enforced", `SELECT format('constraint %I of table %s', conname, conrelid::regclass) FROM pg_constraint WHERE NOT conenforced`},
	{18, "is WITHOUT OVERLAPS or of a PERIOD", `SELECT format('constraint %I of table %s', conname, conrelid::regclass) FROM pg_constraint WHERE conperiod`},
	{18, "is not valid", `
		SELECT format('constraint %I of table %s', conname, conrelid::regclass) FROM pg_constraint JOIN pg_class c ON c.oid = conrelid
		WHERE NOT convalidated AND conenforced AND (contype = 'n' OR contype = 'f' AND relkind = 'p')`},
	{18, "publishes generated columns", `SELECT 'publication ' || quote_ident(pubname) FROM pg_publication WHERE pubgencols <> 'n'`},
}

func (r *Requirements) readFeatures(ctx context.Context, tx pgx.Tx) error {
	for _, f := range features {
		if r.ServerVersion/10000 < f.since {
			continue
		}
		objects, err := names(ctx, tx, `SELECT DISTINCT o FROM (`+f.sql+`) AS f(o) ORDER BY o`)
		if err != nil {
			return fmt.Errorf("objects of which each %s: %w", f.what, err)
		}
		for _, o := range objects {
			r.Features = append(r.Features, Feature{Since: f.since, Object: o, What: f.what})
		}
	}
	return nil
}

// quoted joins names as identifiers.
func quoted(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = postgres.QuoteIdent(n)
	}
	return strings.Join(out, ", ")
}
