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

// DB is a connection or a transaction; *pgx.Conn and pgx.Tx are.
type DB interface {
	querier
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Begin(ctx context.Context) (pgx.Tx, error)
}

const (
	// So many short entries share a transaction and a round trip.
	groupEntries = 64
	groupBytes   = 256 << 10
)

// applySettings hold while entries run: what pg_restore would set, and no
// triggers of the user's. The text of defaults is written for these date styles.
var applySettings = [][2]string{
	{"session_replication_role", "replica"},
	{postgres.AgentSetting, "on"},
	{"check_function_bodies", "off"},
	{"client_encoding", "UTF8"},
	{"client_min_messages", "warning"},
	{"datestyle", "ISO, MDY"},
	{"default_table_access_method", "heap"},
	{"default_tablespace", ""},
	{"idle_in_transaction_session_timeout", "0"},
	{"intervalstyle", "postgres"},
	{"row_security", "off"},
	{"search_path", ""},
	{"standard_conforming_strings", "on"},
	{"statement_timeout", "0"},
	{"transform_null_equals", "off"},
	{"xmloption", "content"},
}

// Apply runs entries in the order given. On a connection each entry, or a group
// of short ones, is committed on its own, so that what came before a failure
// stays; in a transaction all of them share it, with their locks. The session's
// settings are as before when it returns, lock_timeout is the caller's. The error
// of an entry is a problem that names it.
//
// The role must be a superuser: ownership and replica mode need one.
func Apply(ctx context.Context, db DB, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	s, err := settle(ctx, db)
	if err != nil {
		return err
	}
	defer s.restore(context.WithoutCancel(ctx), db)
	for len(entries) > 0 {
		n := groupSize(entries)
		if err := s.applyGroup(ctx, db, entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// groupSize returns how many of the first entries may share a transaction. Later
// phases work beside the stream, so there each entry holds its locks alone.
func groupSize(entries []Entry) int {
	size := 0
	for i, e := range entries {
		size += len(e.SQL)
		if e.Phase != PhasePre || i == groupEntries || size > groupBytes {
			return max(i, 1)
		}
	}
	return len(entries)
}

// session is what Apply knows of the server and has to put back.
type session struct {
	version int
	before  []string
}

// settle sets applySettings and keeps what was there.
func settle(ctx context.Context, db DB) (*session, error) {
	names, values := make([]string, len(applySettings)), make([]string, len(applySettings))
	for i, s := range applySettings {
		names[i], values[i] = s[0], s[1]
	}
	s := &session{}
	err := db.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int,
			array(SELECT coalesce(current_setting(name, true), '') FROM unnest($1::text[]) WITH ORDINALITY AS s(name, i) ORDER BY i)`, names).
		Scan(&s.version, &s.before)
	if err == nil {
		err = setAll(ctx, db, names, values)
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42501" { // insufficient_privilege
		return nil, problem.New("not-superuser", "setting session_replication_role",
			"the agent's role on the target may not set it, and without it the user's triggers would fire",
			"ALTER ROLE "+currentUser(ctx, db)+" SUPERUSER;").Because(err)
	}
	if err != nil {
		return nil, fmt.Errorf("set the session up for the schema: %w", err)
	}
	return s, nil
}

func setAll(ctx context.Context, db DB, names, values []string) error {
	_, err := db.Exec(ctx, `SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS s(name, value)`, names, values)
	return err
}

// currentUser returns the role's name, quoted, for a remedy.
func currentUser(ctx context.Context, db querier) string {
	var name string
	if err := db.QueryRow(ctx, `SELECT current_user`).Scan(&name); err != nil {
		return "CURRENT_USER"
	}
	return postgres.QuoteIdent(name)
}

// restore puts the settings back. Where it can't, because the transaction has
// failed or the connection is lost, they end with those.
func (s *session) restore(ctx context.Context, db DB) {
	names := make([]string, len(applySettings))
	for i, setting := range applySettings {
		names[i] = setting[0]
	}
	_ = setAll(ctx, db, names, s.before)
}

// applyGroup runs entries in one transaction. When that fails they are run one
// by one, to find which it was and to keep those before it.
func (s *session) applyGroup(ctx context.Context, db DB, group []Entry) error {
	sql := make([]string, len(group))
	for i, e := range group {
		sql[i] = e.SQL
	}
	err := inTx(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, strings.Join(sql, "\n"))
		return err
	})
	if len(group) == 1 && postgres.Unqualified(err) {
		err = s.inUserPath(ctx, db, group[0])
	}
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &pgErr):
		return fmt.Errorf("restore the schema from %s on: %w", group[0].object(), err)
	case len(group) == 1 && pgErr.Code == "42501" && s.handOver(ctx, db, group[0]) == nil: // insufficient_privilege
		return nil
	case len(group) == 1:
		return s.failed(group[0], pgErr)
	}
	for i := range group {
		if err := s.applyGroup(ctx, db, group[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// inUserPath runs an entry that calls a function which names things without their schema.
func (s *session) inUserPath(ctx context.Context, db DB, e Entry) error {
	return inTx(ctx, db, func(tx pgx.Tx) error {
		return postgres.InUserPath(ctx, tx, func() error {
			_, err := tx.Exec(ctx, e.SQL)
			return err
		})
	})
}

// handOver runs an entry that gives its object to a superuser of the primary, who is none
// here, as replay.handing does for a command.
func (s *session) handOver(ctx context.Context, db DB, e Entry) error {
	owners, err := plainOwners(ctx, db, e.SQL)
	if err != nil {
		return err
	}
	if len(owners) == 0 {
		return errors.New("it gives nothing to anybody who is no superuser")
	}
	return inTx(ctx, db, func(tx pgx.Tx) error {
		for _, sql := range []string{alterRoles(owners, "SUPERUSER"), e.SQL, alterRoles(owners, "NOSUPERUSER")} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

// plainOwners are the roles to which a text's commands hand something and which are no
// superusers.
func plainOwners(ctx context.Context, db DB, text string) ([]string, error) {
	tree, err := parse(text)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, st := range tree.Stmts {
		if name := st.Stmt.GetAlterOwnerStmt().GetNewowner().GetRolename(); name != "" {
			names = append(names, name)
		}
	}
	rows, err := db.Query(ctx, `SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1) AND NOT rolsuper`, names)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func alterRoles(names []string, attribute string) string {
	var sql strings.Builder
	for _, name := range names {
		fmt.Fprintf(&sql, "ALTER ROLE %s %s;", postgres.QuoteIdent(name), attribute)
	}
	return sql.String()
}

// inTx runs f in a transaction, a savepoint where db is in one already.
func inTx(ctx context.Context, db DB, f func(pgx.Tx) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
	}
	return tx.Commit(ctx)
}

// object names the entry as problems do: the name of most kinds is what pg_dump
// made of it, such as "table constraint" or "function(integer)".
func (e Entry) object() string {
	kind, name := strings.ToLower(e.Kind), e.Name
	switch e.Kind {
	case "COMMENT", "ACL", "SECURITY LABEL":
		return kind + " on " + name + inSchema(e.Schema)
	case "TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "INDEX":
		return kind + " " + postgres.QuoteIdent(e.Schema, name)
	case KindRefresh:
		return "materialized view " + postgres.QuoteIdent(e.Schema, name)
	case "FK CONSTRAINT", KindValidate:
		kind = "foreign key"
	case "SCHEMA", "EXTENSION":
		name = postgres.QuoteIdent(name)
	}
	return kind + " " + name + inSchema(e.Schema)
}

func inSchema(schema string) string {
	if schema == "" {
		return ""
	}
	return " in schema " + postgres.QuoteIdent(schema)
}

// failed says what an entry's error means and what mends it.
func (s *session) failed(e Entry, err *pgconn.PgError) error {
	if e.Kind == "EXTENSION" {
		return problem.New("extension-missing", e.object(), "the target's server could not install it",
			installExtension(e.Name, s.version/10000)).Advise(otherPackage).At("the secondary").Because(err)
	}
	f, ok := failures[err.Code]
	if postgres.Unqualified(err) {
		f, ok = pathless, true
	}
	if !ok {
		f, ok = failures[err.Code[:2]]
	}
	if !ok {
		f = failure{code: "schema-entry-failed", cause: "it could not be created on the target", advice: "mend what PostgreSQL names; then it is tried again"}
	}
	p := problem.New(f.code, e.object(), f.cause, f.remedy).Advise(f.advice).At(f.place).Because(err)
	p.Retryable = f.retry
	return p
}

// failure is what an SQLSTATE, or a class of them, means for an entry.
type failure struct {
	code, cause           string
	remedy, advice, place string
	retry                 bool
}

var failures = map[string]failure{
	"0A000": {code: "not-supported", cause: "the target's PostgreSQL does not support it; it may be older than the primary's",
		advice: "upgrade the target to the primary's major version"},
	"42601": {code: "not-supported", cause: "the target's PostgreSQL does not know its syntax; it may be older than the primary's",
		advice: "upgrade the target to the primary's major version"},
	"42704": {code: "name-missing", cause: "it uses something that the target's server does not have",
		advice: "create on the target what PostgreSQL names"},
	"58P01": {code: "file-missing", cause: "it uses a library that is not installed on the target's machine",
		advice: "install on the target's machine the package that PostgreSQL's message names the file of"},
	"42P07": alreadyThere, "42710": alreadyThere, "42723": alreadyThere, "42P06": alreadyThere,
	"42501": {code: "not-superuser", cause: "the agent's role on the target has no right to create it",
		remedy: "ALTER ROLE … SUPERUSER;", advice: "for the agent's role", place: "the secondary"},
	"23503": {code: "rows-violate", cause: "the primary holds rows that violate it: they were written while its triggers were off",
		advice: "on the primary, correct the rows that PostgreSQL names, or drop the foreign key"},
	"23505": {code: "rows-violate", cause: "the primary holds duplicate rows that its own index did not prevent; the index may be damaged",
		advice: "on the primary, remove the duplicates that PostgreSQL names and REINDEX the index"},
	"23": {code: "rows-violate", cause: "rows violate it",
		advice: "on the primary, correct the rows that PostgreSQL names"},
	"53100": {code: "disk-full", cause: "the target's disk is full", advice: "free space on the target's disk, or enlarge it", retry: true},
	"53":    {code: "target-exhausted", cause: "the target's server ran out of a resource", advice: "raise on the target the limit that PostgreSQL names", retry: true},
	"55P03": lockHeld, "40": lockHeld,
	"57": {code: "target-interrupted", cause: "the target's server ended the command", advice: "it is tried again by itself", retry: true},
	"08": {code: "target-interrupted", cause: "the connection to the target broke", advice: "it is tried again by itself", retry: true},
}

var (
	pathless = failure{code: "function-without-path", cause: "it calls a function that names things without their schema, which are not found by the database's search_path; PostgreSQL 17 and later use none for indexes and materialized views",
		remedy: "ALTER FUNCTION … SET search_path = …;", place: "the primary",
		advice: "for the function that PostgreSQL names; then hawser link drop NAME --remove-replica, and create the link again"}
	alreadyThere = failure{code: "already-there", cause: "an object of this name exists in the target database",
		advice: "drop the object that PostgreSQL names from the target database"}
	lockHeld = failure{code: "lock-held", cause: "another session holds a lock that it needs", advice: "it is tried again by itself", retry: true}
)
