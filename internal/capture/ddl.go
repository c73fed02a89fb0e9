package capture

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// ddlVersion is the version of ddl.sql. A newer one in the database is left alone:
// an older agent of the same database must not undo an upgrade.
const ddlVersion = 13

//go:embed ddl.sql
var ddlText string

// ddlSQL has what is worded in Go: the rule by which a link chooses tables, of a row f
// of hawser.ddl_filter, which table is bare of a replica identity, and what is Hawser's own.
var ddlSQL = strings.NewReplacer(
	"@CHOSEN@", filter.Chosen("f.in_schema", "f.in_table", "f.out_schema", "f.out_table"),
	"@BARE@", bare, "@OWN@", postgres.OwnObjects).Replace(ddlText)

// ddlTriggers are the event triggers that call ddl.sql's functions. Triggers of one
// event fire in the byte order of their names. The exclamation mark puts Hawser's
// before a user's, so that DDL which a user's event trigger runs comes in the stream
// after the command that it answers. Each ddl_caller sorts before the one that it serves.
var ddlTriggers = []struct{ name, event, filter, function string }{
	{"!hawser_begin_caller", "ddl_command_start", ddlBegins, "ddl_caller"},
	{"!hawser_ddl_begin", "ddl_command_start", ddlBegins, "ddl_begin"},
	{"!hawser_ddl_caller", "ddl_command_end", "", "ddl_caller"},
	{"!hawser_ddl_end", "ddl_command_end", "", "ddl_end"},
	{"!hawser_ddl_path", "ddl_command_start", "", "ddl_caller"},
	{"!hawser_ddl_start", "ddl_command_start", "", "ddl_start"},
	{"!hawser_sql_caller", "sql_drop", "", "ddl_caller"},
	{"!hawser_sql_drop", "sql_drop", "", "ddl_drop"},
	{"!hawser_table_rewrite", "table_rewrite", "", "ddl_rewrite"},
}

const ddlBegins = ` WHEN TAG IN ('CREATE EXTENSION', 'ALTER EXTENSION', 'CREATE TABLE AS', 'SELECT INTO')`

// InstallDDL makes the database write each DDL command into its WAL as a logical
// message with the prefix hawser.ddl. It may be called at any time and again; what
// an older version installed is replaced. conn must be a superuser's, and call it
// before the slot is made: a slot waits for the transactions that are under way, so
// none that ran without the triggers is in its stream.
func InstallDDL(ctx context.Context, conn *pgx.Conn) error {
	err := quietly(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS hawser`); err != nil {
			return err
		}
		version, err := installedDDL(ctx, tx)
		if err != nil {
			return err
		}
		if version < ddlVersion {
			if err := writeDDL(ctx, tx); err != nil {
				return err
			}
		}
		if err := writeTriggers(ctx, tx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `SELECT hawser.ddl_sweep(NULL)`)
		return err
	})
	return ByEventTrigger(ctx, conn, ddlProblem("install the capture of DDL", err))
}

// CodeBroken is the code of what Intact finds.
const CodeBroken = "ddl-capture-broken"

// Intact returns a problem where somebody took away, or put to rest, what InstallDDL of
// this version made: then DDL was run that is in no stream.
func Intact(ctx context.Context, conn *pgx.Conn) error {
	names := make([]string, len(ddlTriggers))
	for i, t := range ddlTriggers {
		names[i] = t.name
	}
	var missing []string
	err := conn.QueryRow(ctx, `SELECT ARRAY(SELECT n FROM unnest($1::text[]) n
		WHERE NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = n AND evtenabled = 'A') ORDER BY 1)`, names).Scan(&missing)
	if err != nil || len(missing) == 0 {
		return ddlProblem("look whether DDL is captured", err)
	}
	version, err := installedDDL(ctx, conn)
	if err != nil || version != 0 && version != ddlVersion { // another version has other triggers
		return ddlProblem("look which version captures DDL", err)
	}
	for i, n := range missing {
		missing[i] = pgx.Identifier{n}.Sanitize()
	}
	return problem.New(CodeBroken, "event trigger "+strings.Join(missing, ", "),
		"it was dropped or disabled while the link ran, so commands of DDL were told to nobody",
		"hawser link resync NAME").Advise("it puts it back, compares both sides and copies the tables that differ")
}

// RemoveDDL takes away what InstallDDL put there, except the list of changed
// replica identities, which RestoreReplicaIdentity needs.
func RemoveDDL(ctx context.Context, conn *pgx.Conn) error {
	err := quietly(ctx, conn, func(tx pgx.Tx) error {
		for _, t := range ddlTriggers {
			if _, err := tx.Exec(ctx, `DROP EVENT TRIGGER IF EXISTS `+pgx.Identifier{t.name}.Sanitize()); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `DO $$
			DECLARE f regprocedure;
			BEGIN
				FOR f IN SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
					WHERE n.nspname = 'hawser' AND (p.proname LIKE 'ddl\_%' OR p.proname LIKE '%\_identity')
				LOOP
					EXECUTE format('DROP FUNCTION %s', f);
				END LOOP;
				DROP TABLE IF EXISTS hawser.ddl_capture, hawser.ddl_seen, hawser.ddl_mark, hawser.ddl_filter;
			END $$`)
		return err
	})
	return ddlProblem("remove the capture of DDL", err)
}

// SweepDDL writes into the stream what changed since its last call, or InstallDDL's,
// without firing an event trigger: owners (REASSIGN OWNED), event triggers, the
// settings of the database and of roles in it, its owner, privileges, comment and
// connection limit, roles that it names, the marks of CLUSTER, indexes that REINDEX
// finished, and tables and materialized views, as of EXPLAIN ANALYZE CREATE TABLE AS. Call it now and then, at least every minute, and before a planned failover.
func SweepDDL(ctx context.Context, conn *pgx.Conn) (changes int, err error) {
	err = quietly(ctx, conn, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT hawser.ddl_sweep(NULL)`).Scan(&changes)
	})
	return changes, ddlProblem("look for changes that fire no event", err)
}

// UnfiredMark is equal to an earlier one if SweepDDL would find nothing that came since: a
// cheap look, for the moment in which nobody can write. A row that was changed or came has
// a later xmin, and one that went is missing in the count. What the fence itself sets is
// left out.
func UnfiredMark(ctx context.Context, conn *pgx.Conn) (mark string, err error) {
	err = conn.QueryRow(ctx, `
		SELECT concat_ws(' ', d.oid, d.xmin,
			(SELECT md5(string_agg(s.setrole || c, '|' ORDER BY s.setrole, c)) FROM pg_db_role_setting s, unnest(s.setconfig) c
				WHERE s.setdatabase = d.oid AND NOT starts_with(c, 'default_transaction_read_only=')),
			(SELECT count(*) || ',' || sum(s.xmin::text::bigint) FROM pg_shdepend s WHERE s.dbid IN (0, d.oid)),
			(SELECT count(*) || ',' || sum(s.xmin::text::bigint) FROM pg_shdescription s),
			(SELECT count(*) || ',' || sum(r.xmin::text::bigint) FROM pg_authid r),
			(SELECT count(*) || ',' || sum(m.xmin::text::bigint) FROM pg_auth_members m),
			(SELECT count(*) || ',' || sum(e.xmin::text::bigint) FROM pg_event_trigger e),
			(SELECT count(*) || ',' || sum(o.xmin::text::bigint) FROM pg_description o WHERE o.classoid = 'pg_event_trigger'::regclass),
			(SELECT count(*) || ',' || sum(i.xmin::text::bigint) FROM pg_index i),
			(SELECT count(*) || ',' || sum(c.xmin::text::bigint) FROM pg_class c WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'),
			EXISTS (SELECT FROM pg_largeobject_metadata))
		FROM pg_database d WHERE d.datname = current_database()`).Scan(&mark)
	return mark, ddlProblem("look whether something changed that fires no event", err)
}

// Untold names what SweepDDL would find of what sessions of other databases can change
// too: settings, the database itself, memberships of roles. After a crash of PostgreSQL's
// nobody knows what was seen, and it names nothing.
func Untold(ctx context.Context, conn *pgx.Conn) (changes []string, err error) {
	err = quietly(ctx, conn, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
			WITH now AS (SELECT * FROM hawser.ddl_unfired(NULL) WHERE kind IN ('setting', 'database', 'role')),
			seen AS (SELECT * FROM hawser.ddl_seen WHERE kind IN ('setting', 'database', 'role'))
			SELECT coalesce(array_agg(concat_ws(' ', kind, nullif(name, ''), 'of role ' || r.rolname) || ': ' || coalesce(n.value, 'none') ORDER BY kind, name, r.rolname), '{}')
			FROM now n FULL JOIN seen s USING (kind, class, id, name) LEFT JOIN pg_roles r ON r.oid = id
			WHERE n.value IS DISTINCT FROM s.value AND EXISTS (SELECT FROM hawser.ddl_seen WHERE kind = 'owner')`).Scan(&changes)
	})
	return changes, ddlProblem("look for changes that nobody was told of", err)
}

// DDLKey returns the key with which the database signs its DDL messages. The
// secondary needs it: any user may write a logical message, and only what bears the
// signature is Hawser's.
func DDLKey(ctx context.Context, conn *pgx.Conn) ([]byte, error) {
	var key []byte
	err := conn.QueryRow(ctx, `SELECT key FROM hawser.ddl_capture`).Scan(&key)
	var pg *pgconn.PgError
	if errors.Is(err, pgx.ErrNoRows) || errors.As(err, &pg) && pg.Code == "42P01" {
		return nil, problem.New("ddl-capture-missing", "schema hawser",
			"the database does not write its DDL into the stream", "hawser link resume NAME").Advise("it installs it").Retry()
	}
	if err != nil {
		return nil, fmt.Errorf("read the key of the DDL messages: %w", err)
	}
	return key, nil
}

// beginner is a session, or a transaction of its, of which a part can be taken back.
type beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// quietly runs f in a transaction of which no event trigger hears, in a path where
// nobody else's names are found, and alone among the agents.
func quietly(ctx context.Context, conn beginner, f func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, sql := range []string{
			`SET LOCAL session_replication_role = replica`,
			`SET LOCAL ` + postgres.AgentSetting + ` = on`,
			`SELECT set_config('event_triggers', 'off', true) WHERE current_setting('event_triggers', true) IS NOT NULL`, // 17 and later
			`SET LOCAL search_path = pg_catalog, pg_temp`,
			`SET LOCAL standard_conforming_strings = on`,
			`SELECT pg_advisory_xact_lock(hashtext('hawser.ddl'))`,
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return f(tx)
	})
}

// installedDDL is the version in the database, 0 for none.
func installedDDL(ctx context.Context, tx interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (version int, err error) {
	var there bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('hawser.ddl_capture') IS NOT NULL`).Scan(&there); err != nil || !there {
		return 0, err
	}
	err = tx.QueryRow(ctx, `SELECT version FROM hawser.ddl_capture`).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return version, err
}

// writeDDL replaces the functions and keeps the key, which the secondary knows.
func writeDDL(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Conn().PgConn().Exec(ctx, identityTable+";"+ddlSQL).ReadAll(); err != nil {
		return err
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	ipad, opad := hmacPads(key)
	_, err := tx.Exec(ctx, `INSERT INTO hawser.ddl_capture (version, key, ipad, opad) VALUES ($1, $2, $3, $4)
		ON CONFLICT (one) DO UPDATE SET version = excluded.version`, ddlVersion, key, ipad, opad)
	return err
}

// hmacPads are HMAC-SHA256's two forms of a key that is not longer than a block.
func hmacPads(key []byte) (ipad, opad []byte) {
	const block = 64
	ipad, opad = make([]byte, block), make([]byte, block)
	copy(ipad, key)
	copy(opad, key)
	for i := range block {
		ipad[i] ^= 0x36
		opad[i] ^= 0x5c
	}
	return ipad, opad
}

// writeTriggers creates the triggers that are missing, and enables what somebody
// disabled.
func writeTriggers(ctx context.Context, tx pgx.Tx) error {
	for _, t := range ddlTriggers {
		var enabled string
		err := tx.QueryRow(ctx, `SELECT evtenabled::text FROM pg_event_trigger WHERE evtname = $1`, t.name).Scan(&enabled)
		name := pgx.Identifier{t.name}.Sanitize()
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			_, err = tx.Exec(ctx, `CREATE EVENT TRIGGER `+name+` ON `+t.event+t.filter+` EXECUTE FUNCTION hawser.`+t.function+`()`)
			enabled = "O"
		}
		// A session whose triggers rest gives commands too; only our own are left out.
		if err == nil && enabled != "A" {
			_, err = tx.Exec(ctx, `ALTER EVENT TRIGGER `+name+` ENABLE ALWAYS`)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// EnsureReplicaIdentity gives every published table that has none a replica identity, so that
// users' UPDATE and DELETE pass once the tables are published. It takes one table at
// a time and waits for its lock for two seconds at most; a table that is in use is
// tried again until ctx ends. InstallDDL must have been called.
func EnsureReplicaIdentity(ctx context.Context, conn *pgx.Conn) error {
	return eachTable(ctx, conn, "set replica identities", `
		SELECT c.oid, n.nspname, c.relname, ''`+withoutIdentity+` AND hawser.ddl_published(c.oid)`,
		func(t changedTable) error {
			_, err := conn.Exec(ctx, `SELECT hawser.ddl_identity(ARRAY[$1::oid])`, t.OID)
			return err
		})
}

// withoutIdentity are the tables that can't tell which row an UPDATE or DELETE was of.
const withoutIdentity = ` FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384
		AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')
		AND ` + bare

// bare is a table c of which that is true.
const bare = `(c.relreplident = 'n'
			OR c.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
			OR c.relreplident = 'i' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident))`

// RestoreReplicaIdentity takes back every replica identity that Hawser set, on
// either side. Call it when the last link of the database is dropped.
func RestoreReplicaIdentity(ctx context.Context, conn *pgx.Conn) error {
	var there bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('hawser.replica_identity') IS NOT NULL`).Scan(&there); err != nil || !there {
		return ddlProblem("look for changed replica identities", err)
	}
	return eachTable(ctx, conn, "restore replica identities", `
		SELECT k.relid, n.nspname, c.relname, CASE WHEN c.relreplident = 'f' THEN k.was::text END
		FROM hawser.replica_identity k LEFT JOIN pg_class c ON c.oid = k.relid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace`,
		func(t changedTable) error { return restoreIdentity(ctx, conn, t) })
}

func restoreIdentity(ctx context.Context, conn *pgx.Conn, t changedTable) error {
	return quietly(ctx, conn, func(tx pgx.Tx) error {
		if t.Was != nil { // neither dropped nor altered by the user since
			to := map[string]string{"n": "NOTHING"}[*t.Was]
			if to == "" {
				to = "DEFAULT"
			}
			if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "ALTER TABLE ONLY "+pgx.Identifier{*t.Schema, *t.Name}.Sanitize()+" REPLICA IDENTITY "+to); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `DELETE FROM hawser.replica_identity WHERE relid = $1`, t.OID)
		return err
	})
}

// ChangedIdentity is a table whose replica identity Hawser changed, and what it was,
// as pg_class.relreplident has it.
type ChangedIdentity struct{ Schema, Name, Was string }

// ChangedIdentities lists what EnsureReplicaIdentity and the DDL capture changed. The
// secondary needs the list for the day on which it becomes the primary.
func ChangedIdentities(ctx context.Context, conn *pgx.Conn) ([]ChangedIdentity, error) {
	var there bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('hawser.replica_identity') IS NOT NULL`).Scan(&there); err != nil || !there {
		return nil, ddlProblem("look for changed replica identities", err)
	}
	rows, err := conn.Query(ctx, `SELECT n.nspname, c.relname, k.was::text FROM hawser.replica_identity k
		JOIN pg_class c ON c.oid = k.relid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2`)
	if err != nil {
		return nil, fmt.Errorf("list changed replica identities: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[ChangedIdentity])
	if err != nil {
		return nil, fmt.Errorf("list changed replica identities: %w", err)
	}
	return list, nil
}

// FullIdentities lists the tables with REPLICA IDENTITY FULL, as SQL names them.
func FullIdentities(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relreplident = 'f' AND c.relkind IN ('r', 'p') AND c.oid >= 16384 AND n.nspname <> 'hawser' ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("list tables with REPLICA IDENTITY FULL: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// AdoptReplicaIdentity records, on a secondary whose tables are restored, what the
// primary's ChangedIdentities said. The replay of DDL keeps it up to date from then on. In a
// transaction of the caller's it comes last: its settings last as long as that.
func AdoptReplicaIdentity(ctx context.Context, conn beginner, list []ChangedIdentity) error {
	err := quietly(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS hawser`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, identityTable); err != nil {
			return err
		}
		for _, i := range list {
			if _, err := tx.Exec(ctx, `INSERT INTO hawser.replica_identity
				SELECT c.oid, $3::text::"char" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE n.nspname = $1 AND c.relname = $2 ON CONFLICT (relid) DO NOTHING`, i.Schema, i.Name, i.Was); err != nil {
				return err
			}
		}
		return nil
	})
	return ddlProblem("adopt replica identities", err)
}

const identityTable = `CREATE TABLE IF NOT EXISTS hawser.replica_identity (relid oid PRIMARY KEY, was "char" NOT NULL)`

// changedTable is a row of eachTable's list. Its name is unknown when it was dropped.
type changedTable struct {
	OID               uint32
	Schema, Name, Was *string
}

// eachTable calls change for each table that list names, until it names none. It
// waits only when a round brought nothing.
func eachTable(ctx context.Context, conn *pgx.Conn, doing, list string, change func(changedTable) error, args ...any) error {
	left, wait := -1, 100*time.Millisecond
	for {
		rows, err := conn.Query(ctx, list, args...)
		if err != nil {
			return ddlProblem(doing, err)
		}
		tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[changedTable])
		if err != nil {
			return ddlProblem(doing, err)
		}
		if len(tables) == 0 {
			return nil
		}
		if len(tables) == left {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: %s is in use: %w", doing, tables[0], ctx.Err())
			case <-time.After(wait):
				wait = min(2*wait, 5*time.Second)
			}
		}
		left = len(tables)
		for _, t := range tables {
			err := change(t)
			var pg *pgconn.PgError
			if errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01") { // lock timeout, deadlock
				continue
			}
			if err != nil {
				return ddlProblem(fmt.Sprintf("%s: %s", doing, t), err)
			}
		}
	}
}

func (t changedTable) String() string {
	if t.Schema == nil || t.Name == nil {
		return fmt.Sprintf("table with OID %d", t.OID)
	}
	return "table " + pgx.Identifier{*t.Schema, *t.Name}.Sanitize()
}

// ddlProblem gives the errors that a person can mend their remedy.
func ddlProblem(doing string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", doing, err)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch {
	case pg.Code == "42501":
		return problem.New("ddl-capture-privilege", "event triggers of the database",
			"only a superuser may create event triggers, without which DDL does not arrive on the other side",
			"ALTER ROLE … SUPERUSER;").Advise("for the role of the agent's connection string").Because(err)
	case pg.Code == "42704" && pg.Message == `language "plpgsql" does not exist`:
		return problem.New("ddl-capture-language", "language plpgsql",
			"the functions that capture DDL are written in it", "CREATE EXTENSION plpgsql;").Because(err)
	}
	return err
}
