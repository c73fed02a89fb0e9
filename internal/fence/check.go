package fence

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// State is what the fence of a database is like.
type State struct {
	Prepared bool // every table has its trigger, and the event trigger is there
	Closed   bool
	Sign     Sign      // when closed
	Since    time.Time // when closed
	Outdated bool      // closed by an older agent: close it again
}

// named bounds the findings of one kind.
const named = 20

// Check looks whether the fence is whole, and for what could pass it. Findings
// block where a closed fence has a hole now; they warn where a hole is possible,
// and about everything while the fence is open. conn may be in a transaction.
func Check(ctx context.Context, conn *pgx.Conn) (State, problem.Findings, error) {
	f, err := read(ctx, conn)
	if err != nil {
		return State{}, nil, err
	}
	bare, err := tables(ctx, conn, lacking+" ORDER BY nspname, relname")
	if err != nil {
		return State{}, nil, fmt.Errorf("list the tables of the fence: %w", err)
	}
	s := State{Prepared: len(bare) == 0 && f.TableBody != "" && f.DDLBody != "" && f.Event == "A", Closed: f.Memo.Closed}
	if s.Closed {
		s.Sign, s.Since, s.Outdated = f.Memo.sign(), f.Memo.At, f.Memo.Form < form
	}
	out := append(f.check(), checkTables(bare)...)
	for _, check := range []func(context.Context, *pgx.Conn) (problem.Findings, error){
		prepared, subscriptions, settings, grants, largeObjects,
	} {
		found, err := check(ctx, conn)
		if err != nil {
			return s, nil, err
		}
		out = append(out, found...)
	}
	if !s.Closed {
		return s, warnings(out), nil
	}
	old, err := oldSessions(ctx, conn, s.Since)
	return s, append(out, old...), err
}

// warnings takes what is no hole yet from blocking.
func warnings(found problem.Findings) problem.Findings {
	out := make(problem.Findings, len(found))
	for i, p := range found {
		q := *p
		if q.Blocks() {
			q.Severity = problem.Warning
		}
		out[i] = &q
	}
	return out
}

// check compares the functions, the event trigger and the database's setting with
// what they have to be.
func (f facts) check() problem.Findings {
	var out problem.Findings
	remedy, advice := "hawser link resume "+cmp.Or(f.Memo.Link, "NAME"), "Hawser puts it back then"
	if f.TableBody == "" || f.DDLBody == "" {
		return problem.Findings{problem.New("fence-missing", "database "+postgres.QuoteIdent(f.Name), "it has no fence", remedy).Advise(advice)}
	}
	table, ddl := openTable, openDDL
	if f.Memo.Closed {
		table, ddl = closedTable(f.Memo.sign(), f.home), closedDDL(f.Memo.sign(), f.home)
	}
	if f.TableBody != table {
		out = append(out, problem.New("fence-changed", "function hawser.fence()", "somebody replaced it, or the database is a copy", remedy).Advise(advice))
	}
	if f.DDLBody != ddl {
		out = append(out, problem.New("fence-changed", "function hawser.fence_ddl()", "somebody replaced it, or the database is a copy", remedy).Advise(advice))
	}
	if f.Event != "A" {
		out = append(out, problem.New("fence-event-trigger", "event trigger "+trigger,
			"it is missing or disabled, so DDL is not refused", alwaysDDL))
	}
	if f.Memo.Closed && (f.Setting == nil || *f.Setting != "on") {
		out = append(out, problem.New("fence-default", "database "+postgres.QuoteIdent(f.Name),
			"default_transaction_read_only was taken off, so clients take this side for the writable one, and sequences can be changed",
			"ALTER DATABASE "+postgres.QuoteIdent(f.Name)+" SET default_transaction_read_only = on;"))
	}
	return out
}

func checkTables(bare []table) problem.Findings {
	var out problem.Findings
	for _, t := range bare[:min(len(bare), named)] {
		out = append(out, problem.New("fence-table", "table "+t.String(), "of its triggers "+trigger+" and "+replicaTrigger+" one is missing, disabled or changed, so writes to it are not refused", t.create()))
	}
	if more := len(bare) - named; more > 0 {
		out = append(out, problem.New("fence-table", "tables", fmt.Sprintf("%d more tables have no working triggers %s and %s", more, trigger, replicaTrigger), "").Advise("Hawser puts them on again by itself"))
	}
	return out
}

// list makes one finding of each row of a query.
func list(ctx context.Context, conn *pgx.Conn, what, sql string, find func(a, b string) *problem.Problem) (problem.Findings, error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", what, err)
	}
	var out problem.Findings
	var a, b string
	_, err = pgx.ForEachRow(rows, []any{&a, &b}, func() error {
		out = append(out, find(a, b))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", what, err)
	}
	return out, nil
}

func prepared(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	return list(ctx, conn, "prepared transactions", `
		SELECT quote_literal(gid), prepared::text FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 100`,
		func(gid, since string) *problem.Problem {
			return problem.New("prepared-transaction", "prepared transaction "+gid,
				"it is open since "+since+" and anybody could commit it behind the fence",
				"ROLLBACK PREPARED "+gid+";").Advise("or COMMIT PREPARED, when it is to be kept")
		})
}

func subscriptions(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	return list(ctx, conn, "subscriptions", `
		SELECT quote_ident(s.subname), '' FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
		WHERE d.datname = current_database() AND s.subenabled ORDER BY 1`,
		func(name, _ string) *problem.Problem {
			return problem.New("subscription-writes", "subscription "+name,
				"its workers write with session_replication_role = replica, which the fence does not stop",
				"ALTER SUBSCRIPTION "+name+" DISABLE;")
		})
}

// settings looks for parameters that are set for a role, or for the database, and
// that take the fence's effect from the sessions that get them.
func settings(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	return list(ctx, conn, "settings that pass the fence", `
		SELECT e, 'ALTER ' || coalesce('ROLE ' || quote_ident(r.rolname) || coalesce(' IN DATABASE ' || quote_ident(d.datname), ''),
			'DATABASE ' || quote_ident(d.datname), 'ROLE ALL') || ' RESET ' || split_part(e, '=', 1) || ';'
		FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) e
		LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
		WHERE (s.setdatabase = 0 OR d.datname = current_database())
		AND (s.setrole <> 0 AND e ~* '^(default_)?transaction_read_only=(off|of|no?|f|fa|fal|fals|false|0)$'
			OR e ~* '^session_replication_role=replica$' OR e ~* '^event_triggers=(off|of|no?|f|fa|fal|fals|false|0)$')
		ORDER BY 2`,
		func(setting, reset string) *problem.Problem {
			return problem.Warn("fence-setting", "setting "+setting,
				"it stands for sessions that then meet the fence's triggers alone, or nothing of the fence", reset)
		})
}

// grants looks for roles other than superusers that may switch triggers off.
// PostgreSQL 14 does not know such grants.
func grants(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	var known bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('pg_catalog.pg_parameter_acl') IS NOT NULL`).Scan(&known); err != nil {
		return nil, fmt.Errorf("look for granted parameters: %w", err)
	}
	if !known {
		return nil, nil
	}
	return list(ctx, conn, "granted parameters", `
		SELECT p.parname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END
		FROM pg_parameter_acl p CROSS JOIN aclexplode(p.paracl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
		WHERE p.parname IN ('session_replication_role', 'event_triggers') AND a.privilege_type = 'SET' AND NOT coalesce(r.rolsuper, false)
		ORDER BY 1, 2`,
		func(parameter, role string) *problem.Problem {
			return problem.Warn("fence-grant", "role "+role, "it may set "+parameter+", and so pass the fence",
				"REVOKE SET ON PARAMETER "+parameter+" FROM "+role+";")
		})
}

func largeObjects(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	return list(ctx, conn, "large objects", `
		SELECT current_setting('server_version'), '' WHERE EXISTS (SELECT FROM pg_largeobject_metadata)`,
		func(version, _ string) *problem.Problem {
			return problem.Warn("large-objects", "large objects",
				"no trigger can guard them; on PostgreSQL 14 and 15 not even read-only transactions refuse their changes (this is "+version+")",
				postgres.ShowLargeObjects).Advise(postgres.MoveLargeObjects)
		})
}

// oldSessions began before the fence was closed, so their default may be
// read-write. Agents' sessions are older too, and name themselves.
func oldSessions(ctx context.Context, conn *pgx.Conn, since time.Time) (problem.Findings, error) {
	var n int
	err := conn.QueryRow(ctx, `
		SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND backend_type = 'client backend' AND backend_start < $1
		AND pid <> pg_backend_pid() AND NOT (usename = current_user AND starts_with(application_name, 'hawser:'))`, since).Scan(&n)
	if err != nil {
		return nil, fmt.Errorf("look for sessions older than the fence: %w", err)
	}
	if n == 0 {
		return nil, nil
	}
	return problem.Findings{problem.Warn("fence-old-sessions", fmt.Sprintf("%d sessions", n),
		"they are older than the fence: its triggers hold for them, but their transactions are not read-only by default, so nextval and setval pass",
		"").Advise("let the clients connect again")}, nil
}
