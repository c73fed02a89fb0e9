package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// The applier works under an empty search_path, so that its own statements mean what they
// say. But an index, a CHECK or a generated column may call a function that names things
// without their schema. On the primary it found them by the search_path of whoever wrote.
// The next applier (Config.UserPath) has changes, and nothing else, run under the path of
// a session that chose none.

// CodeUserPath is the code of the problem that asks for Config.UserPath.
const CodeUserPath = "search-path"

const (
	sqlSetPath  = `SELECT pg_catalog.set_config('search_path', $1, true)`
	sqlUserPath = `SELECT 'pg_catalog, ' || coalesce((
		SELECT substr(c, strpos(c, '=') + 1) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
		WHERE d.datname = current_database() AND s.setrole = 0 AND c LIKE 'search_path=_%'), '"$user", public')`
)

// userPath reads the search_path of the database's sessions. What comes with PostgreSQL
// is found first all the same.
func userPath(ctx context.Context, conn *pgx.Conn) (path string, err error) {
	if err := conn.QueryRow(ctx, sqlUserPath).Scan(&path); err != nil {
		return "", fmt.Errorf("read the search_path of the database: %w", err)
	}
	return path, nil
}

// takePath puts the path in force before a change. It ends with the transaction.
func (w *writer) takePath() error {
	if w.path == "" || w.inPath {
		return nil
	}
	w.inPath = true
	return w.send(w.own(sqlSetPath), [][]byte{[]byte(w.path)}, expectation{affected: -1})
}

// leavePath takes it away before the applier's own statements.
func (w *writer) leavePath() error {
	if !w.inPath {
		return nil
	}
	w.inPath = false
	if _, err := w.pipe.conn.Exec(context.Background(), `SET LOCAL search_path = ''`).ReadAll(); err != nil {
		return w.fail(err)
	}
	return nil
}

// refused is failed for a statement of the pipeline.
func (w *writer) refused(d *doing, err error) error {
	var pg *pgconn.PgError
	if w.path != "" || d == nil || !errors.As(err, &pg) || !unqualified(pg) {
		return failed(d, err)
	}
	return problem.New(CodeUserPath, d.String(), "a function that an index, a CHECK or a generated column of the table calls names things without their schema; it is tried again under the database's search_path",
		"ALTER FUNCTION … SET search_path = …, on the primary").Retry().Because(err)
}

// unqualified reports whether a function did not find what it names.
func unqualified(pg *pgconn.PgError) bool {
	switch pg.Code {
	case "42883", "42P01", "42704", "3F000": // undefined function, table, object, schema
		return strings.Contains(pg.Where, "function ")
	}
	return false
}
