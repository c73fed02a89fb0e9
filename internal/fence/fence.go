// Package fence makes one database read-only for everybody but Hawser, and opens
// it again, in an instant either way.
//
// A closed fence is three things:
//
//   - ALTER DATABASE … SET default_transaction_read_only = on: ordinary sessions
//     that begin from now on are read-only, and libpq's
//     target_session_attrs=read-write passes the server by;
//   - a trigger hawser_fence on every table, which refuses INSERT, UPDATE, DELETE
//     and TRUNCATE and says why: for sessions that were there before, and for those
//     that switch read-only off, superusers' too;
//   - an event trigger hawser_fence, which refuses DDL.
//
// Triggers stay in place; what changes at the switch is the body of the functions
// that they call. So closing and opening take no lock on a user's table, and every
// session sees them with its next statement.
//
// The agent's own sessions have session_replication_role = replica, in which
// neither kind of trigger fires. What the fence can't prevent, Check names where it
// can be seen: a superuser who sets session_replication_role or disables a trigger;
// nextval, setval and large objects in a session that switched read-only off;
// writes to system catalogs. This package must never touch a row.
package fence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// DB is a connection or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Sign is what a closed fence says.
type Sign struct {
	Link    string
	Primary string // the instance that takes writes
}

const (
	// lockWait bounds how long a writer may queue behind a trigger being made.
	lockWait = "100ms"
	// tablesAtOnce share a transaction while nobody is in the way.
	tablesAtOnce = 50
	retryPause   = 50 * time.Millisecond
)

// The functions run as their caller and read nothing, so no user needs a right on
// schema hawser. SECURITY INVOKER is the default.
const (
	openTable = `CREATE OR REPLACE FUNCTION hawser.fence() RETURNS trigger LANGUAGE plpgsql AS $hawser$BEGIN RETURN NULL; END$hawser$`
	openDDL   = `CREATE OR REPLACE FUNCTION hawser.fence_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $hawser$BEGIN END$hawser$`
)

// closedBody raises read_only_sql_transaction, the code that drivers know.
const closedBody = `BEGIN
	RAISE EXCEPTION USING ERRCODE = 'read_only_sql_transaction',
		MESSAGE = %s,
		DETAIL = %s,
		HINT = %s;
END`

func (s Sign) body(what string) string {
	return fmt.Sprintf(closedBody,
		literal(fmt.Sprintf("this database is a read-only replica: %s is refused", what)),
		literal(fmt.Sprintf("It is the secondary of Hawser link %q, whose primary is instance %q.", s.Link, s.Primary)),
		literal(fmt.Sprintf("Write to the primary (libpq finds it with both hosts and target_session_attrs=read-write), or make this side the primary: hawser link failover %s", s.Link)))
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// userTables are those that can be written: tables, partitioned ones, foreign ones.
const userTables = `
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
	  AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'`

const lacking = `SELECT n.nspname, c.relname` + userTables + `
	  AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'hawser_fence') ORDER BY c.oid`

// Prepare puts the fence's functions and triggers where they are missing. New
// functions are open; a closed fence stays closed. Writers are never held up for
// longer than a moment: a table that is in use is tried again until ctx ends.
// progress, if not nil, is told how many tables are done.
func Prepare(ctx context.Context, conn *pgx.Conn, progress func(done, total int)) error {
	if err := prepareFunctions(ctx, conn); err != nil {
		return err
	}
	tables, err := names(ctx, conn, lacking)
	if err != nil {
		return fmt.Errorf("list the tables to fence: %w", err)
	}
	return eachTable(ctx, conn, tables, progress, PrepareTable)
}

func prepareFunctions(ctx context.Context, conn *pgx.Conn) error {
	var table, ddl, trigger bool
	err := conn.QueryRow(ctx, `
		SELECT to_regprocedure('hawser.fence()') IS NOT NULL, to_regprocedure('hawser.fence_ddl()') IS NOT NULL,
		       EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'hawser_fence')`).Scan(&table, &ddl, &trigger)
	if err != nil {
		return fmt.Errorf("look for the fence: %w", err)
	}
	var do []string
	if !table {
		do = append(do, openTable)
	}
	if !ddl {
		do = append(do, openDDL)
	}
	if !trigger {
		do = append(do, `CREATE EVENT TRIGGER hawser_fence ON ddl_command_start EXECUTE FUNCTION hawser.fence_ddl()`)
	}
	for _, sql := range do {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("prepare the fence: %w", err)
		}
	}
	return nil
}

// PrepareTable puts the triggers on one table, in the caller's transaction. A
// table that has them is left alone.
func PrepareTable(ctx context.Context, db DB, schema, name string) error {
	table := pgx.Identifier{schema, name}.Sanitize()
	var kind string
	var has bool
	err := db.QueryRow(ctx, `
		SELECT c.relkind::text, EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'hawser_fence')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2`, schema, name).Scan(&kind, &has)
	if errors.Is(err, pgx.ErrNoRows) || has {
		return nil // dropped meanwhile, or done
	}
	if err == nil {
		events := "INSERT OR UPDATE OR DELETE OR TRUNCATE"
		if kind == "f" { // before 16 a foreign table can't have a TRUNCATE trigger
			events = "INSERT OR UPDATE OR DELETE"
		}
		_, err = db.Exec(ctx, `CREATE TRIGGER hawser_fence BEFORE `+events+` ON `+table+
			` FOR EACH STATEMENT EXECUTE FUNCTION hawser.fence()`)
	}
	if err != nil {
		return fmt.Errorf("fence table %s: %w", table, err)
	}
	return nil
}

func removeTable(ctx context.Context, db DB, schema, name string) error {
	table := pgx.Identifier{schema, name}.Sanitize()
	if _, err := db.Exec(ctx, `DROP TRIGGER IF EXISTS hawser_fence ON `+table); err != nil && !undefined(err) {
		return fmt.Errorf("take the fence from table %s: %w", table, err)
	}
	return nil
}

func names(ctx context.Context, db DB, sql string) ([][2]string, error) {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (n [2]string, err error) { return n, row.Scan(&n[0], &n[1]) })
}

// eachTable works through tables in short transactions. When a lock is not to be
// had at once it goes on one by one, and comes back to those that are in use.
func eachTable(ctx context.Context, conn *pgx.Conn, tables [][2]string, progress func(done, total int), do func(context.Context, DB, string, string) error) error {
	total, size := len(tables), tablesAtOnce
	for len(tables) > 0 {
		n := min(size, len(tables))
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '`+lockWait+`'`); err != nil {
				return err
			}
			for _, t := range tables[:n] {
				if err := do(ctx, tx, t[0], t[1]); err != nil {
					return err
				}
			}
			return nil
		})
		switch {
		case err == nil:
			tables = tables[n:]
			size = min(2*size, tablesAtOnce)
		case !busy(err):
			return err
		case n > 1:
			size = 1
		default:
			tables = append(tables[1:], tables[0])
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w (%w)", ctx.Err(), err)
			case <-time.After(retryPause):
			}
		}
		if progress != nil {
			progress(total-len(tables), total)
		}
	}
	return nil
}

func busy(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01")
}

func undefined(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000")
}

// closedMark is set on the database while the fence is closed. It also keeps the
// user's own default_transaction_read_only, to be put back.
const closedMark = "hawser.fence"

// Close closes the fence: in force for the next statement of every session when
// it returns. What began before may still commit; Drain sees to that.
func Close(ctx context.Context, conn *pgx.Conn, sign Sign) error {
	if err := prepareFunctions(ctx, conn); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		database, mark, user, err := settings(ctx, tx)
		if err != nil {
			return err
		}
		if mark == "" {
			if user == "" {
				user = "unset"
			}
			mark = user
		}
		for _, sql := range []string{
			replace("hawser.fence()", "trigger", sign.body("a write")),
			replace("hawser.fence_ddl()", "event_trigger", sign.body("DDL")),
			`ALTER DATABASE ` + database + ` SET ` + closedMark + ` = ` + literal(mark),
			`ALTER DATABASE ` + database + ` SET default_transaction_read_only = on`,
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("close the fence: %w", err)
			}
		}
		return nil
	})
}

func replace(function, returns, body string) string {
	return `CREATE OR REPLACE FUNCTION ` + function + ` RETURNS ` + returns + ` LANGUAGE plpgsql AS ` + literal(body)
}

// Open opens the fence. A database that was never fenced stays as it is.
func Open(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var exists bool
		if err := tx.QueryRow(ctx, `SELECT to_regprocedure('hawser.fence()') IS NOT NULL`).Scan(&exists); err != nil {
			return fmt.Errorf("look for the fence: %w", err)
		}
		if !exists {
			return nil
		}
		database, mark, _, err := settings(ctx, tx)
		if err != nil {
			return err
		}
		do := []string{openTable, openDDL}
		if mark != "" {
			do = append(do, `ALTER DATABASE `+database+` RESET `+closedMark)
			if mark == "unset" {
				do = append(do, `ALTER DATABASE `+database+` RESET default_transaction_read_only`)
			} else {
				do = append(do, `ALTER DATABASE `+database+` SET default_transaction_read_only = `+literal(mark))
			}
		}
		for _, sql := range do {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("open the fence: %w", err)
			}
		}
		return nil
	})
}

// settings reads the database's quoted name, the fence's mark, and its default
// for read-only transactions; "" where there is none.
func settings(ctx context.Context, db DB) (database, mark, readOnly string, err error) {
	err = db.QueryRow(ctx, `
		SELECT quote_ident(d.datname),
		       coalesce((SELECT split_part(s, '=', 2) FROM unnest(r.setconfig) s WHERE starts_with(s, $1 || '=')), ''),
		       coalesce((SELECT split_part(s, '=', 2) FROM unnest(r.setconfig) s WHERE starts_with(s, 'default_transaction_read_only=')), '')
		FROM pg_database d LEFT JOIN pg_db_role_setting r ON r.setdatabase = d.oid AND r.setrole = 0
		WHERE d.datname = current_database()`, closedMark).Scan(&database, &mark, &readOnly)
	if err != nil {
		return "", "", "", fmt.Errorf("read the database's settings: %w", err)
	}
	return database, mark, readOnly, nil
}

// Remove takes away all that the package put into the database, online.
func Remove(ctx context.Context, conn *pgx.Conn) error {
	if err := Open(ctx, conn); err != nil {
		return err
	}
	tables, err := names(ctx, conn, `SELECT n.nspname, c.relname`+userTables+`
		AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'hawser_fence' AND t.tgparentid = 0) ORDER BY c.oid`)
	if err != nil {
		return fmt.Errorf("list the fenced tables: %w", err)
	}
	if err := eachTable(ctx, conn, tables, nil, removeTable); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `
		DROP EVENT TRIGGER IF EXISTS hawser_fence;
		DROP FUNCTION IF EXISTS hawser.fence_ddl();
		DROP FUNCTION IF EXISTS hawser.fence()`)
	if err != nil && !undefined(err) {
		return fmt.Errorf("remove the fence's functions: %w", err)
	}
	return nil
}

// Drained tells what Drain did.
type Drained struct {
	Terminated int
	// Position lies behind everything that others have committed in the database.
	Position frame.LSN
}

// Drain makes sure that nothing which began before the fence was closed can commit
// any more. It gives transactions that write the time grace to end by themselves,
// then ends every client session of the database but its own and those in spare:
// their users come back, and meet the fence. Prepared transactions can't be ended
// so and are a problem.
func Drain(ctx context.Context, conn *pgx.Conn, grace time.Duration, spare []uint32) (Drained, error) {
	var d Drained
	keep := make([]int64, len(spare))
	for i, pid := range spare {
		keep[i] = int64(pid)
	}
	if err := awaitGone(ctx, conn, keep, ` AND backend_xid IS NOT NULL`, grace); err != nil && !errors.Is(err, errStillThere) {
		return d, err
	}
	deadline := 10 * time.Second
	err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE `+others, keep).Scan(&d.Terminated)
	if err != nil {
		return d, fmt.Errorf("end the sessions of the database: %w", err)
	}
	if err := awaitGone(ctx, conn, keep, ` AND backend_start < now()`, deadline); err != nil {
		return d, err
	}
	var gid, position *string
	err = conn.QueryRow(ctx, `
		SELECT (SELECT min(quote_literal(gid)) FROM pg_prepared_xacts WHERE database = current_database()), pg_current_wal_insert_lsn()::text`).
		Scan(&gid, &position)
	if err != nil {
		return d, fmt.Errorf("look for prepared transactions: %w", err)
	}
	if gid != nil {
		return d, problem.New("prepared-transaction", "prepared transaction "+*gid,
			"it was prepared before the fence was closed and could still be committed",
			"COMMIT PREPARED "+*gid+"; or ROLLBACK PREPARED "+*gid+";")
	}
	d.Position, err = frame.ParseLSN(*position)
	return d, err
}

// others are the sessions that Drain ends. Background workers (parallel workers,
// and those of extensions) that hold a transaction here count too.
const others = `
	datname = current_database() AND pid <> pg_backend_pid() AND pid <> ALL ($1::bigint[])
	AND (backend_type = 'client backend' OR backend_xid IS NOT NULL AND backend_type <> 'walsender' AND backend_type NOT LIKE 'autovacuum%')`

var errStillThere = errors.New("sessions are still there")

// awaitGone waits until the sessions that are there now, and to which the extra
// condition applies, are gone.
func awaitGone(ctx context.Context, conn *pgx.Conn, keep []int64, extra string, within time.Duration) error {
	rows, err := conn.Query(ctx, `SELECT pid::bigint FROM pg_stat_activity WHERE `+others+extra, keep)
	if err != nil {
		return fmt.Errorf("list the sessions of the database: %w", err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("list the sessions of the database: %w", err)
	}
	end := time.Now().Add(within)
	for wait := time.Millisecond; len(pids) > 0; wait = min(2*wait, 20*time.Millisecond) {
		if time.Now().After(end) {
			return errStillThere
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		var left int
		err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($2::bigint[]) AND `+others+extra, keep, pids).Scan(&left)
		if err != nil {
			return fmt.Errorf("list the sessions of the database: %w", err)
		}
		if left == 0 {
			return nil
		}
	}
	return nil
}
