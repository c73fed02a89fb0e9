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

// A materialized view's rows are not in the stream: this side's are made by its own query.
// The query is a user's and may write. What it wrote on the primary is in the stream, so
// the fence refuses it here, and the view is left without rows.

// readOnly is the SQLSTATE with which the fence does so.
const readOnly = "25006" // read_only_sql_transaction

// guardsFills reports whether the fence is there that does so: not in a database that an
// older agent closed.
func guardsFills(ctx context.Context, db querier) (yes bool, err error) {
	err = db.QueryRow(ctx, `SELECT pg_catalog.bool_and(pg_catalog.strpos(p.prosrc, $1) OPERATOR(pg_catalog.>) 0) IS TRUE
		FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
		WHERE n.nspname OPERATOR(pg_catalog.=) 'hawser' AND p.proname OPERATOR(pg_catalog.=) ANY (ARRAY['fence_ddl', 'ddl_agent', 'ddl_caller'])`,
		pgx.QueryExecModeExec, "'"+postgres.AgentFills+"'").Scan(&yes)
	if err != nil {
		return false, fmt.Errorf("look for the fence: %w", err)
	}
	return yes, nil
}

// Fill runs an entry of KindRefresh. It returns a finding where the view's query writes.
func Fill(ctx context.Context, db DB, e Entry) (*problem.Problem, error) {
	guarded, err := guardsFills(ctx, db)
	if err != nil {
		return nil, err
	}
	refresh := strings.TrimSuffix(e.SQL, ";")
	if guarded {
		set := "SET LOCAL " + postgres.AgentSetting + " = "
		e.SQL = set + postgres.AgentFills + "; " + refresh + "; " + set + "on;"
	}
	refused := Apply(ctx, db, []Entry{e})
	if sqlState(refused) != readOnly {
		return nil, refused
	}
	e.SQL = refresh + " WITH NO DATA;"
	return writes(strings.TrimPrefix(refresh, "REFRESH MATERIALIZED VIEW "), refused), Apply(ctx, db, []Entry{e})
}

// writes is the finding of a materialized view that has no rows, by the fence's refusal.
func writes(view string, refused error) *problem.Problem {
	var pg *pgconn.PgError
	what := "something"
	if errors.As(refused, &pg) && pg.Detail != "" {
		what, _, _ = strings.Cut(pg.Detail, " was refused")
	}
	return problem.Warn("matview-writes", "materialized view "+view,
		"its query writes ("+what+"). That came with the stream and must not happen twice, so here the view has no rows",
		"REFRESH MATERIALIZED VIEW "+view+";").Advise("when this side is the primary, if it is to have rows")
}
