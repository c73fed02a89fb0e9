package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
)

// WALLevel is the server's wal_level, and whether logical is set already and only waits for
// a restart. The configuration's files are a superuser's to read; anybody is told of what
// was set before the last reload.
func WALLevel(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (level string, waits bool, err error) {
	var files bool
	err = db.QueryRow(ctx, `SELECT setting, pending_restart, source <> 'command line' AND has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')
		AND has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE') FROM pg_settings WHERE name = 'wal_level'`).Scan(&level, &waits, &files)
	if err == nil && level != "logical" && files {
		err = db.QueryRow(ctx, `SELECT coalesce((SELECT f.setting = 'logical' FROM pg_file_settings f WHERE f.name = 'wal_level' ORDER BY f.seqno DESC LIMIT 1), false)`).Scan(&waits)
	}
	if err != nil {
		return "", false, fmt.Errorf("read wal_level: %w", err)
	}
	return level, waits, nil
}

// Waiting returns p, which has something set and PostgreSQL restarted; where it is set
// already, the restart alone is missing.
func Waiting(p *problem.Problem, set bool) *problem.Problem {
	if !set {
		return p
	}
	q := p.Advise("restart PostgreSQL")
	q.Cause, q.Remedy = p.Cause+"; it is set already, and waits for a restart", ""
	return q
}
