package schema

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// DatabaseSettings are what a database is created with and keeps for life.
type DatabaseSettings struct {
	Name     string `json:"name"`
	Encoding string `json:"encoding"` // UTF8
	Collate  string `json:"collate"`  // of the operating system's locales
	Ctype    string `json:"ctype"`
	Provider string `json:"provider"`         // libc, icu or builtin: who compares text by default
	Locale   string `json:"locale,omitempty"` // of icu and builtin
	Rules    string `json:"rules,omitempty"`  // of icu
	// CollationVersion is the provider's, as recorded; "" where it has none.
	CollationVersion string `json:"collation_version,omitempty"`
}

// DatabaseOf reads the settings of a database.
func DatabaseOf(ctx context.Context, src *postgres.Server, name string) (DatabaseSettings, error) {
	conn, err := src.Connect(ctx, reading(src.Database(), "settings"))
	if err != nil {
		return DatabaseSettings{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	d, err := readSettings(ctx, conn, name)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, problem.New("no-such-database", "database "+postgres.QuoteIdent(name), "server "+src.String()+" has no database of this name",
			"psql --list").Advise("name one of those that this shows").Because(err)
	}
	if err != nil {
		return d, fmt.Errorf("read the settings of database %q: %w", name, err)
	}
	return d, nil
}

// readSettings reads the settings of a database, of the current one if name is "".
// The columns have changed their names: locale from PostgreSQL 17 on, and none of
// the provider's before 15.
func readSettings(ctx context.Context, db querier, name string) (d DatabaseSettings, err error) {
	err = db.QueryRow(ctx, `
		SELECT datname, pg_encoding_to_char(encoding), datcollate, datctype,
			CASE coalesce(j->>'datlocprovider', 'c') WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,
			coalesce(j->>'datlocale', j->>'daticulocale', ''), coalesce(j->>'daticurules', ''), coalesce(j->>'datcollversion', '')
		FROM pg_database d, to_jsonb(d) AS j
		WHERE datname = coalesce(nullif($1, ''), current_database())`, name).
		Scan(&d.Name, &d.Encoding, &d.Collate, &d.Ctype, &d.Provider, &d.Locale, &d.Rules, &d.CollationVersion)
	return d, err
}

// on returns the settings as a server of a version can have them, or why it can't.
// The builtin provider sorts by code point, which older servers know as C.
func (d DatabaseSettings) on(version int) (DatabaseSettings, *problem.Problem) {
	switch {
	case d.Provider == "icu" && version < 150000:
		return d, d.tooOld("compares text by ICU", "15")
	case d.Provider == "icu" && d.Rules != "" && version < 160000:
		return d, d.tooOld("has ICU rules of its own", "16")
	case d.Provider == "builtin" && d.Locale == "PG_UNICODE_FAST" && version < 180000:
		return d, d.tooOld("uses the builtin locale PG_UNICODE_FAST", "18")
	case d.Provider == "builtin" && version < 170000:
		d.Provider, d.Collate, d.Ctype, d.Locale = "libc", "C", d.Locale, ""
	}
	return d, nil
}

// options returns the options of CREATE DATABASE on a server of a version, or
// why it can't have such a database.
func (d DatabaseSettings) options(version int) (string, *problem.Problem) {
	d, bad := d.on(version)
	if bad != nil {
		return "", bad
	}
	sql := "ENCODING " + postgres.QuoteLiteral(d.Encoding) + " LC_COLLATE " + postgres.QuoteLiteral(d.Collate) + " LC_CTYPE " + postgres.QuoteLiteral(d.Ctype)
	switch {
	case d.Provider == "icu":
		sql += " LOCALE_PROVIDER icu ICU_LOCALE " + postgres.QuoteLiteral(d.Locale)
		if d.Rules != "" {
			sql += " ICU_RULES " + postgres.QuoteLiteral(d.Rules)
		}
	case d.Provider == "builtin":
		sql += " LOCALE_PROVIDER builtin BUILTIN_LOCALE " + postgres.QuoteLiteral(d.Locale)
	case version >= 150000:
		sql += " LOCALE_PROVIDER libc"
	}
	return sql, nil
}

func (d DatabaseSettings) tooOld(does, since string) *problem.Problem {
	return problem.New("version-too-old", "database "+postgres.QuoteIdent(d.Name),
		"on the primary it "+does+", which the target's PostgreSQL is too old for", "").Advise("upgrade the target to PostgreSQL " + since + " or later")
}

// same reports whether two databases, on servers of one version, compare and
// store text alike. The spelling of a locale's encoding does not matter.
func (d DatabaseSettings) same(other DatabaseSettings, version int) bool {
	a, p := d.options(version)
	b, q := other.options(version)
	spell := strings.NewReplacer("-", "", "_", "", "LOCALE_PROVIDER libc", "")
	return p == nil && q == nil && strings.EqualFold(spell.Replace(a), spell.Replace(b))
}

// CreateDatabase makes an empty database like d on the target. One that is there, is
// empty and compares text alike is taken as it is; created tells whether Hawser made it,
// now or in an earlier try, and DropDatabase knows it too. A database with anything in it
// is a problem. It is made under a name of the link's own, and gets its own when it has
// its mark: a crash leaves none of that name of which nobody knows whose it is.
func CreateDatabase(ctx context.Context, dst *postgres.Server, d DatabaseSettings, link string) (created bool, err error) {
	conn, err := dst.Connect(ctx, writing(dst.Database()))
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	version, err := serverVersion(ctx, conn)
	if err != nil {
		return false, err
	}
	options, bad := d.options(version)
	if bad != nil {
		return false, bad
	}
	there, err := readSettings(ctx, conn, d.Name)
	if err == nil {
		if err := adoptable(ctx, dst, there, d, version); err != nil {
			return false, err
		}
		ours, _, err := ownership(ctx, conn, d.Name)
		return ours, err
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return false, fmt.Errorf("look for database %q: %w", d.Name, err)
	}
	unfinished := postgres.QuoteIdent(unfinishedName(link))
	for _, sql := range []string{
		"CREATE DATABASE " + unfinished + " TEMPLATE template0 " + options,
		"ALTER DATABASE " + unfinished + " SET " + postgres.CreatedSetting + " = 'true'",
		"ALTER DATABASE " + unfinished + " RENAME TO " + postgres.QuoteIdent(d.Name),
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return false, d.notCreated(ctx, conn, err)
		}
	}
	return true, nil
}

// unfinishedName is that of a database while it is made for a link.
func unfinishedName(link string) string { return "hawser_unfinished_" + link }

// DropUnfinished removes what CreateDatabase left of a database that it did not finish.
func DropUnfinished(ctx context.Context, dst *postgres.Server, link string) error {
	conn, err := dst.Connect(ctx, writing(dst.Database()))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+postgres.QuoteIdent(unfinishedName(link))+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop the unfinished database of link %s: %w", link, err)
	}
	return nil
}

// writing is a session in which databases are made, even where they are fenced.
func writing(database string) postgres.Session {
	s := reading(database, "database")
	s.Settings["default_transaction_read_only"] = "off"
	return s
}

func (d DatabaseSettings) notCreated(ctx context.Context, conn *pgx.Conn, err error) error {
	object := "database " + postgres.QuoteIdent(d.Name)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return fmt.Errorf("create %s: %w", object, err)
	}
	switch pgErr.Code {
	case "42501": // insufficient_privilege
		return problem.New("not-superuser", object, "the agent's role on the target may not create databases",
			"ALTER ROLE "+currentUser(ctx, conn)+" SUPERUSER;").Because(err)
	case "55006", "42P04": // object_in_use: somebody reads template0; duplicate_database: somebody was faster
		return problem.New("lock-held", object, "the target could not create it at this moment", "").Advise("it is tried again by itself").Because(err).Retry()
	case "22023", "42809", "42704", "0A000":
		return missingLocale(object, d.Collate).Because(err)
	case "53100":
		return problem.New("disk-full", object, "the target's disk is full", "").Advise("free space on the target's disk, or enlarge it").Because(err).Retry()
	}
	return problem.New("database-not-created", object, "the target could not create it", "").Advise("mend what PostgreSQL names; then it is tried again").Because(err)
}

func missingLocale(object, locale string) *problem.Problem {
	base, charset, found := strings.Cut(locale, ".")
	if !found || strings.EqualFold(charset, "utf8") {
		charset = "UTF-8"
	}
	return problem.New("locale-missing", object,
		"the target's machine lacks the locale "+locale+", by which the primary sorts and classifies text",
		fmt.Sprintf("localedef -i %s -f %s %s", base, charset, locale)).Advise("then restart its PostgreSQL").At("the secondary")
}

// adoptable returns nil when an existing database can become a link's replica.
func adoptable(ctx context.Context, dst *postgres.Server, there, want DatabaseSettings, version int) error {
	object := "database " + postgres.QuoteIdent(there.Name)
	if !there.same(want, version) {
		is, _ := there.options(version)
		must, _ := want.options(version)
		return problem.New("database-differs", object,
			"it exists on the target with "+is+"; a replica of the primary's needs "+must,
			"ALTER DATABASE "+postgres.QuoteIdent(there.Name)+" RENAME TO …;").Advise("or drop it, if nobody needs it; Hawser creates it as it must be").At("the secondary")
	}
	conn, err := dst.Connect(ctx, reading(there.Name, "database"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	objects, err := userObjects(ctx, conn)
	if err != nil {
		return fmt.Errorf("look what database %q holds: %w", there.Name, err)
	}
	if len(objects) == 0 {
		return nil
	}
	return problem.New("database-not-empty", object,
		"it exists on the target and is not empty: it has "+someOf(objects)+"; a replica starts from an empty database",
		"ALTER DATABASE "+postgres.QuoteIdent(there.Name)+" RENAME TO …;").Advise("or drop it, if nobody needs it").At("the secondary")
}

// someOf joins the first few names.
func someOf(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + " and more"
}

// userObjects names objects that somebody made in a database: not PostgreSQL, and
// not Hawser.
func userObjects(ctx context.Context, db querier) ([]string, error) {
	rows, err := db.Query(ctx, `
		SELECT pg_describe_object(class, oid, 0) FROM (
			SELECT 'pg_class'::regclass::oid AS class, oid, relnamespace AS namespace FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')
			UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace FROM pg_proc
			UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace FROM pg_type WHERE typtype IN ('d', 'e', 'r') OR typtype = 'b' AND typcategory <> 'A'
			UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace FROM pg_operator
			UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace FROM pg_collation
			UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace FROM pg_ts_config
			UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace FROM pg_ts_dict
			UNION ALL SELECT 'pg_namespace'::regclass, oid, oid FROM pg_namespace WHERE nspname <> 'public'
			UNION ALL SELECT 'pg_extension'::regclass, oid, 0 FROM pg_extension WHERE extname <> 'plpgsql'
			UNION ALL SELECT 'pg_event_trigger'::regclass, e.oid, p.pronamespace FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
			UNION ALL SELECT 'pg_publication'::regclass, oid, 0 FROM pg_publication WHERE NOT starts_with(pubname, 'hawser_')
			UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, 0 FROM pg_foreign_data_wrapper
			UNION ALL SELECT 'pg_foreign_server'::regclass, oid, 0 FROM pg_foreign_server
			UNION ALL SELECT 'pg_language'::regclass, oid, 0 FROM pg_language
			UNION ALL SELECT 'pg_cast'::regclass, oid, 0 FROM pg_cast
			UNION ALL SELECT 'pg_largeobject'::regclass, oid, 0 FROM pg_largeobject_metadata
			UNION ALL SELECT 'pg_subscription'::regclass, s.oid, 0 FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
		) AS o
		WHERE oid >= 16384 AND namespace NOT IN (
			SELECT oid FROM pg_namespace WHERE nspname IN ('hawser', 'pg_catalog', 'information_schema', 'pg_toast') OR nspname ~ '^pg_(toast_)?temp_')
		ORDER BY class, oid LIMIT 6`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// ownership tells whether Hawser made a database, and whether it is a template.
func ownership(ctx context.Context, conn *pgx.Conn, name string) (ours, template bool, err error) {
	err = conn.QueryRow(ctx, `
		SELECT $2 = ANY (s.setconfig) IS TRUE, d.datistemplate
		FROM pg_database d LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid AND s.setrole = 0
		WHERE d.datname = $1`, name, postgres.CreatedSetting+"=true").Scan(&ours, &template)
	if err != nil {
		err = fmt.Errorf("look for database %q: %w", name, err)
	}
	return ours, template, err
}

// DropDatabase removes a database that CreateDatabase made, with the sessions in
// it. One that is not there is none to remove; one that Hawser did not make is
// left alone, and a problem.
func DropDatabase(ctx context.Context, dst *postgres.Server, name string) error {
	conn, err := dst.Connect(ctx, writing(dst.Database()))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	ours, template, err := ownership(ctx, conn, name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	quoted := postgres.QuoteIdent(name)
	if !ours {
		return problem.New("database-not-ours", "database "+quoted, "Hawser did not create it, so it does not drop it",
			"DROP DATABASE "+quoted+" WITH (FORCE);")
	}
	if template {
		if _, err := conn.Exec(ctx, "ALTER DATABASE "+quoted+" IS_TEMPLATE false"); err != nil {
			return fmt.Errorf("drop database %q: %w", name, err)
		}
	}
	_, err = conn.Exec(ctx, "DROP DATABASE "+quoted+" WITH (FORCE)")
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "55006" { // object_in_use
		return problem.New("database-in-use", "database "+quoted, "something holds it that its sessions' end does not free, such as a replication slot",
			"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = "+postgres.QuoteLiteral(name)+";").Because(err)
	}
	if err != nil {
		return fmt.Errorf("drop database %q: %w", name, err)
	}
	return nil
}
