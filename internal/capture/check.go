package capture

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// longTransaction is the age, in seconds, from which an open transaction is
// named: the creation of a slot waits for it.
const longTransaction = 60

// Check tells whether the tables of the database that f chooses can be captured, all
// findings at once.
func Check(ctx context.Context, server *postgres.Server, database string, f filter.Filter) (problem.Findings, error) {
	info, err := server.Info(ctx)
	if err != nil {
		return nil, err
	}
	var out problem.Findings
	if info.Version < 140000 {
		out = append(out, problem.New("version-too-old", "server "+server.String(),
			fmt.Sprintf("it runs PostgreSQL %s; Hawser links versions 14 and later", info.VersionText), "").Advise("upgrade PostgreSQL to 14 or later"))
	}
	if info.InRecovery {
		out = append(out, problem.New("not-writable", "server "+server.String(),
			"it is a standby in recovery, which can't be the primary of a link", "").Advise("point the agent's connection string at the primary, or list all nodes of the group in it"))
	}
	conn, err := server.Connect(ctx, postgres.Session{Database: database, Purpose: "validate"})
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, check := range []func(context.Context, *pgx.Conn) (problem.Findings, error){
		checkWALLevel, checkPlugin, checkSlots, checkSenders, checkPrivileges, checkTransactions,
	} {
		found, err := check(ctx, conn)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	likes, err := f.Likes()
	if p, ok := problem.As(err); ok {
		return append(out, p), nil
	}
	for _, check := range []func(context.Context, *pgx.Conn, filter.Likes) (problem.Findings, error){checkCarried, checkIdentity} {
		found, err := check(ctx, conn, likes)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	found, err := checkChoice(ctx, conn, f)
	return append(out, found...), err
}

func checkWALLevel(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	level, set, err := postgres.WALLevel(ctx, conn)
	if err != nil || level == "logical" {
		return nil, err
	}
	return problem.Findings{postgres.Waiting(problem.New("wal-level", "setting wal_level",
		"it is "+level+"; the changes of a database can be streamed only at logical",
		"ALTER SYSTEM SET wal_level = logical;").Advise("then restart PostgreSQL"), set)}, nil
}

// checkPlugin asks whether the server lets the stream be decoded by its own plugin, which
// newer minor versions can forbid.
func checkPlugin(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	var listed, ok bool
	var list string
	err := conn.QueryRow(ctx, `SELECT s IS NOT NULL, coalesce(s, ''),
		'pgoutput' IN (SELECT trim(both ' "' FROM l) FROM string_to_table(coalesce(s, ''), ',') l)
		FROM current_setting('output_plugin_libraries', true) s`).Scan(&listed, &list, &ok)
	if err != nil {
		return nil, fmt.Errorf("read output_plugin_libraries: %w", err)
	}
	if !listed || ok {
		return nil, nil
	}
	if list != "" {
		list = ", " + list
	}
	return problem.Findings{problem.New("output-plugin", "setting output_plugin_libraries",
		"it does not name pgoutput, PostgreSQL's own plugin, by which the changes of a database are streamed",
		"ALTER SYSTEM SET output_plugin_libraries = pgoutput"+list+"; SELECT pg_reload_conf();")}, nil
}

func checkSlots(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	return checkFree(ctx, conn, "max_replication_slots", "a link needs one replication slot",
		`SELECT current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots)::int`)
}

func checkSenders(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	return checkFree(ctx, conn, "max_wal_senders", "a link needs one WAL sender",
		`SELECT current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication)::int`)
}

func checkFree(ctx context.Context, conn *pgx.Conn, setting, need, sql string) (problem.Findings, error) {
	var limit, used int
	if err := conn.QueryRow(ctx, sql).Scan(&limit, &used); err != nil {
		return nil, fmt.Errorf("read %s: %w", setting, err)
	}
	if used < limit {
		return nil, nil
	}
	return problem.Findings{problem.New("setting-too-low", "setting "+setting,
		fmt.Sprintf("%s, and all %d are taken", need, limit),
		"ALTER SYSTEM SET "+setting+" = "+strconv.Itoa(limit+10)+";").Advise("then restart PostgreSQL")}, nil
}

// checkPrivileges asks for superuser: event triggers, a publication of all
// tables and session_replication_role need it.
func checkPrivileges(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	var user string
	var super bool
	if err := conn.QueryRow(ctx, `SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&user, &super); err != nil {
		return nil, fmt.Errorf("read the agent's privileges: %w", err)
	}
	if super {
		return nil, nil
	}
	return problem.Findings{problem.New("not-superuser", "role "+postgres.QuoteIdent(user),
		"the agent's role is no superuser; event triggers, a publication of all tables and session_replication_role need one",
		"ALTER ROLE "+postgres.QuoteIdent(user)+" SUPERUSER;")}, nil
}

func checkTransactions(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `
		SELECT pid, coalesce(usename, ''), extract(epoch FROM now() - xact_start)::bigint FROM pg_stat_activity
		WHERE backend_xid IS NOT NULL AND xact_start < now() - make_interval(secs => $1) ORDER BY xact_start LIMIT 10`, longTransaction)
	if err != nil {
		return nil, fmt.Errorf("look for long transactions: %w", err)
	}
	var out problem.Findings
	var pid, age int64
	var user string
	_, err = pgx.ForEachRow(rows, []any{&pid, &user, &age}, func() error {
		out = append(out, problem.Warn("long-transaction", fmt.Sprintf("backend %d of %s", pid, user),
			fmt.Sprintf("its transaction has been open for %d s; the replication slot can be created only after it has ended", age),
			fmt.Sprintf("SELECT pg_terminate_backend(%d);", pid)).Advise("or let it end"))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for long transactions: %w", err)
	}
	prepared, err := checkPrepared(ctx, conn)
	return append(out, prepared...), err
}

func checkPrepared(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `SELECT quote_literal(gid), extract(epoch FROM now() - prepared)::bigint FROM pg_prepared_xacts ORDER BY prepared LIMIT 10`)
	if err != nil {
		return nil, fmt.Errorf("look for prepared transactions: %w", err)
	}
	var out problem.Findings
	var gid string
	var age int64
	_, err = pgx.ForEachRow(rows, []any{&gid, &age}, func() error {
		out = append(out, problem.Warn("prepared-transaction", "prepared transaction "+gid,
			fmt.Sprintf("it has been open for %d s; the replication slot can be created only after it has ended", age),
			"ROLLBACK PREPARED "+gid+";").Advise("or COMMIT PREPARED, when it is to be kept"))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for prepared transactions: %w", err)
	}
	return out, nil
}

// NotCarried names, while a link runs, what logical decoding does not carry. Large
// objects may have come since the link was validated. On a secondary, which has none, the
// stream tells of those.
func NotCarried(ctx context.Context, conn *pgx.Conn, f filter.Filter) (problem.Findings, error) {
	likes, err := f.Likes()
	if err != nil {
		return nil, err
	}
	found, err := checkCarried(ctx, conn, likes)
	for _, p := range found {
		if p.Blocks() {
			p.Severity = problem.Warning
		}
	}
	if more := len(found) - namedTables; more > 0 {
		found = append(found[:namedTables], problem.Warn("unlogged-table", fmt.Sprintf("%d more", more), "they are not carried either", "hawser link validate --database "+problem.Word(conn.Config().Database)).Advise("it names them all"))
	}
	return found, err
}

// checkCarried names what logical decoding does not carry, large objects first.
func checkCarried(ctx context.Context, conn *pgx.Conn, likes filter.Likes) (problem.Findings, error) {
	large, err := postgres.LargeObjects(ctx, conn)
	if err != nil {
		return nil, err
	}
	var out problem.Findings
	if large != nil {
		out = append(out, large)
	}
	rows, err := conn.Query(ctx, `
		SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'p') AND n.nspname <> 'hawser' AND `+filter.Params()+` ORDER BY 1`, likes.Args()...)
	if err != nil {
		return nil, fmt.Errorf("look for unlogged tables: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for unlogged tables: %w", err)
	}
	for _, name := range names {
		out = append(out, problem.Warn("unlogged-table", "table "+name,
			"it is unlogged: its definition is carried, its rows are not", "ALTER TABLE "+name+" SET LOGGED;"))
	}
	unwritable, err := checkTypes(ctx, conn, likes)
	if err != nil {
		return nil, err
	}
	unidentified, err := checkVirtual(ctx, conn, likes)
	return slices.Concat(unwritable, unidentified, out), err
}

// checkVirtual names the tables whose rows PostgreSQL lets no publication identify: it
// counts virtual columns (18) to a whole row, and publishes none. A user's UPDATE fails.
func checkVirtual(ctx context.Context, conn *pgx.Conn, likes filter.Likes) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384 AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')
		AND (`+bare+` OR c.relreplident = 'f') AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped)
		AND `+filter.Params()+` ORDER BY 1`, likes.Args()...)
	if err != nil {
		return nil, fmt.Errorf("look for virtual columns in tables without a key: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for virtual columns in tables without a key: %w", err)
	}
	var out problem.Findings
	for _, name := range names {
		out = append(out, problem.New("virtual-column-without-key", "table "+name,
			"it has a virtual generated column and no key that identifies a row, and PostgreSQL refuses every UPDATE and DELETE of such a table while it is published",
			"ALTER TABLE "+name+" ADD PRIMARY KEY (…);").Advise("or ALTER TABLE … REPLICA IDENTITY USING INDEX …, with a unique index of columns that are NOT NULL"))
	}
	return out, nil
}

// checkTypes names columns of types that take no input: what the server itself wrote
// into them nobody can write anew.
func checkTypes(ctx context.Context, conn *pgx.Conn, likes filter.Likes) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `
		SELECT format('%I.%I', n.nspname, c.relname), quote_ident(a.attname), t.typname::text
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type t ON t.oid = a.atttypid
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384 AND n.nspname NOT IN ('hawser', 'information_schema')
		AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typname IN ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list',
			'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'gtsvector') AND `+filter.Params()+` ORDER BY 1, 2`, likes.Args()...)
	if err != nil {
		return nil, fmt.Errorf("look for types that take no input: %w", err)
	}
	var out problem.Findings
	var table, column, kind string
	_, err = pgx.ForEachRow(rows, []any{&table, &column, &kind}, func() error {
		out = append(out, problem.New("column-type", "column "+column+" of table "+table,
			"nothing can be written into its type "+kind+", so its rows can't be carried",
			"ALTER TABLE "+table+" ALTER COLUMN "+column+" TYPE text;"))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for types that take no input: %w", err)
	}
	return out, nil
}

// namedTables bounds the findings of one kind that need nobody's action.
const namedTables = 20

// checkIdentity names the tables to which Install gives REPLICA IDENTITY FULL, since
// their updates and deletes then write whole rows into the WAL.
func checkIdentity(ctx context.Context, conn *pgx.Conn, likes filter.Likes) (problem.Findings, error) {
	rows, err := conn.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname)`+withoutIdentity+` AND `+filter.Params()+` ORDER BY 1`, likes.Args()...)
	if err != nil {
		return nil, fmt.Errorf("look for tables without a key: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for tables without a key: %w", err)
	}
	const code, effect = "replica-identity-full", "an UPDATE or DELETE writes whole old rows into the WAL, until the link is dropped; a primary key spares that"
	var out problem.Findings
	for _, name := range names[:min(namedTables, len(names))] {
		out = append(out, problem.Noted(code, "table "+name, "it has no key, so the link sets REPLICA IDENTITY FULL on it: "+effect))
	}
	if more := len(names) - namedTables; more > 0 {
		out = append(out, problem.Noted(code, fmt.Sprintf("%d more tables", more), "they have no key either"))
	}
	return out, nil
}
