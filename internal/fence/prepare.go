package fence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// PrepareOptions say how the triggers are put on. Nil means all defaults.
type PrepareOptions struct {
	// LockTimeout bounds how long a writer may wait behind us; 0 means 100 ms.
	LockTimeout time.Duration
	// Patience bounds how long a table in use is tried again; 0 means until the
	// context ends.
	Patience time.Duration
	// Idle says that the database has no clients, as a secondary that is being
	// built: tables then share transactions, and locks.
	Idle bool
	// Progress is called after each table or batch.
	Progress func(done, total int)
}

const (
	firstLockTimeout = 10 * time.Millisecond
	maxLockTimeout   = 100 * time.Millisecond
	batchTables      = 500
)

// DB is a connection or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Prepare puts the fence in place, open if it is not there yet: the functions, the
// event trigger, and the trigger of every table that lacks it. It works beside
// writers, one table and one short lock at a time, and can be run again at any
// time. conn must not be in a transaction.
func Prepare(ctx context.Context, conn *pgx.Conn, o *PrepareOptions) error {
	if o == nil {
		o = &PrepareOptions{}
	}
	if err := write(ctx, conn, func(tx pgx.Tx) error { _, err := ensure(ctx, tx); return err }); err != nil {
		return explain("put the fence in place", err)
	}
	return prepareTables(ctx, conn, o)
}

// PrepareTable puts the trigger on one table, in the caller's transaction if db is
// one, and the functions in place, open, if there are none. It waits for its lock
// as the session's lock_timeout says. A table that has the trigger, or is gone, or
// is none of those that Prepare would visit, is left alone.
func PrepareTable(ctx context.Context, db DB, schema, name string) error {
	t := table{Schema: schema, Name: name}
	doing := "put the fence on table " + t.String()
	var there bool
	err := db.QueryRow(ctx, `SELECT to_regprocedure('hawser.fence()') IS NOT NULL, truncate FROM (`+lacking+`) l WHERE nspname = $1 AND relname = $2`,
		schema, name).Scan(&there, &t.Truncate)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	sql := t.create()
	if !there {
		sql = createSchema + openFunctions() + sql
	}
	_, err = db.Exec(ctx, sql)
	return explain(doing, err)
}

// ensure makes schema, functions and event trigger where they are missing, in the
// form that the memo tells, and returns what the database is like.
func ensure(ctx context.Context, tx pgx.Tx) (facts, error) {
	f, err := read(ctx, tx)
	if err != nil {
		return f, err
	}
	sql := ""
	if f.TableBody == "" || f.DDLBody == "" {
		sql = createSchema + f.functions()
	}
	switch f.Event {
	case "":
		sql += "CREATE EVENT TRIGGER " + trigger + " ON ddl_command_start EXECUTE FUNCTION hawser.fence_ddl(); " + alwaysDDL
	case "A":
	default:
		sql += alwaysDDL
	}
	_, err = tx.Exec(ctx, sql)
	return f, err
}

const alwaysDDL = "ALTER EVENT TRIGGER " + trigger + " ENABLE ALWAYS;"

type table struct {
	OID          uint32
	Schema, Name string
	Truncate     bool // it can have a trigger for TRUNCATE
}

func (t table) String() string { return postgres.QuoteIdent(t.Schema, t.Name) }

func (t table) create() string {
	events := "INSERT OR UPDATE OR DELETE"
	if t.Truncate {
		events += " OR TRUNCATE"
	}
	on := " BEFORE " + events + " ON " + t.String() + " FOR EACH STATEMENT "
	return "CREATE OR REPLACE TRIGGER " + trigger + on + "EXECUTE FUNCTION hawser.fence();\n" +
		"CREATE OR REPLACE TRIGGER " + replicaTrigger + on +
		"WHEN (pg_catalog.current_setting('" + postgres.AgentSetting + "', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION hawser.fence();\n" +
		"ALTER TABLE ONLY " + t.String() + " ENABLE REPLICA TRIGGER " + replicaTrigger + ";\n"
}

func tables(ctx context.Context, conn *pgx.Conn, sql string) ([]table, error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[table])
}

func prepareTables(ctx context.Context, conn *pgx.Conn, o *PrepareOptions) error {
	w := walk{conn: conn, o: o, doing: "put the fence on table", list: lacking, change: table.create, changed: map[uint32]int{}}
	return w.run(ctx)
}

// walk changes each table that list names, one short lock at a time, until list
// names none.
type walk struct {
	conn   *pgx.Conn
	o      *PrepareOptions
	doing  string
	list   string
	change func(table) string

	done, total int
	changed     map[uint32]int
}

// maxChanges is how often a table is changed again that somebody changed back.
const maxChanges = 5

func (w *walk) run(ctx context.Context) error {
	begin, timeout := time.Now(), firstLockTimeout
	limit := w.o.LockTimeout
	if limit <= 0 {
		limit = maxLockTimeout
	}
	for {
		todo, err := tables(ctx, w.conn, w.list+" ORDER BY oid")
		if err != nil {
			return fmt.Errorf("list the tables of the fence: %w", err)
		}
		if len(todo) == 0 {
			return nil
		}
		if w.total = w.done + len(todo); w.o.Idle {
			if err := w.batches(ctx, todo); err == nil {
				continue
			}
			// One of them is in use, or gone: take them one by one.
		}
		busy, err := w.each(ctx, todo, min(timeout, limit))
		if err != nil {
			return err
		}
		if len(busy) == 0 {
			continue
		}
		if w.o.Patience > 0 && time.Since(begin) > w.o.Patience {
			return w.inUse(ctx, busy[0])
		}
		// The pause is long beside the lock timeout: writers lose little to us.
		if err := pause(ctx, 10*min(timeout, limit)); err != nil {
			return w.inUse(context.WithoutCancel(ctx), busy[0]).Because(err)
		}
		timeout *= 2
	}
}

// each changes tables one by one and returns those that were in use.
func (w *walk) each(ctx context.Context, todo []table, timeout time.Duration) (busy []table, err error) {
	for _, t := range todo {
		switch err := change(ctx, w.conn, timeout, w.change(t)); {
		case err == nil && w.changed[t.OID] < maxChanges:
			w.changed[t.OID]++
			w.done++
			w.progress()
		case err == nil:
			return nil, problem.New("fence-undone", "table "+t.String(), "somebody keeps changing its trigger "+trigger,
				"SELECT pid, usename, query FROM pg_stat_activity WHERE datname = current_database();").Advise("find the session and stop it")
		case isLocked(err):
			busy = append(busy, t)
		case isGone(err): // dropped or renamed; a renamed one is listed again
		default:
			return nil, explain(w.doing+" "+t.String(), err)
		}
	}
	return busy, nil
}

func (w *walk) batches(ctx context.Context, todo []table) error {
	for len(todo) > 0 {
		n := min(batchTables, len(todo))
		var sql strings.Builder
		for _, t := range todo[:n] {
			sql.WriteString(w.change(t))
		}
		if err := change(ctx, w.conn, maxLockTimeout, sql.String()); err != nil {
			return err
		}
		todo = todo[n:]
		w.done += n
		w.progress()
	}
	return nil
}

func (w *walk) progress() {
	if w.o.Progress != nil {
		w.o.Progress(w.done, max(w.done, w.total))
	}
}

// inUse names who holds a table.
func (w *walk) inUse(ctx context.Context, t table) *problem.Problem {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	who, end, advice := "another session", "", "let its transaction end"
	var pid *int64
	if err := w.conn.QueryRow(ctx, `
		SELECT min(pid)::bigint FROM pg_locks WHERE relation = $1 AND granted AND pid <> pg_backend_pid()
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND mode NOT IN ('AccessShareLock', 'RowShareLock')`, t.OID).Scan(&pid); err == nil && pid != nil {
		who, end, advice = fmt.Sprintf("backend %d", *pid), fmt.Sprintf("SELECT pg_terminate_backend(%d);", *pid), "or let its transaction end"
	}
	return problem.New("fence-table-busy", "table "+t.String(),
		"the fence can't be put on or taken off while "+who+" holds a lock on it", end).Advise(advice).Retry()
}

// change runs statements as one transaction of one round trip. What blocks us is
// noticed within the lock timeout; an autovacuum that does is sent away, which
// PostgreSQL does for whoever has waited for deadlock_timeout. A crash may lose
// the transaction: Prepare and Remove are then run again.
func change(ctx context.Context, conn *pgx.Conn, timeout time.Duration, sql string) error {
	ms := max(1, timeout.Milliseconds())
	head := fmt.Sprintf(`SET LOCAL transaction_read_only = off; SET LOCAL session_replication_role = replica; SET LOCAL `+postgres.AgentSetting+` = on;
		SET LOCAL lock_timeout = %d; SET LOCAL deadlock_timeout = %d; SET LOCAL synchronous_commit = off;`, ms, max(1, ms/2))
	_, err := conn.PgConn().Exec(ctx, head+sql).ReadAll()
	return err
}

// write runs f in a transaction that may write whatever the session's default is,
// that fires nobody's triggers, and that is durable when it returned.
func write(ctx context.Context, conn *pgx.Conn, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			SELECT set_config('session_replication_role', 'replica', true), set_config('`+postgres.AgentSetting+`', 'on', true),
			       set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true),
			       pg_advisory_xact_lock($1)`, int64(changeLock))
		if err != nil {
			return err
		}
		return f(tx)
	})
}

// changeLock serialises agents that change the fence of one database.
const changeLock = 0x6861777365720002

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// isLocked: lock_not_available, deadlock_detected, or a row of a catalog that
// somebody else changed at the same time, which PostgreSQL calls an internal error.
func isLocked(err error) bool {
	switch code(err) {
	case "55P03", "40P01", "XX000":
		return true
	}
	return false
}

// isGone: undefined_table, undefined_object or invalid_schema_name.
func isGone(err error) bool {
	switch code(err) {
	case "42P01", "42704", "3F000":
		return true
	}
	return false
}

// explain gives the errors that a person can mend their remedy.
func explain(doing string, err error) error {
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
		return problem.New("fence-privilege", "the agent's role",
			"the fence needs a superuser: it puts triggers on every table and an event trigger on the database",
			"ALTER ROLE … SUPERUSER;").Advise("for the role of the agent's connection string").Because(err)
	case pg.Code == "42704" && strings.Contains(pg.Message, "plpgsql"):
		return problem.New("fence-language", "language plpgsql", "the functions of the fence are written in it",
			"CREATE EXTENSION plpgsql;").Because(err)
	}
	return err
}
