package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Hawser's sessions work under an empty search_path, so that their own statements mean
// what they say. But an index, a CHECK or a generated column may call a function that
// names things without their schema. Whoever wrote on the primary had a search_path by
// which they were found.

const sqlUserPath = `SELECT 'pg_catalog, ' || coalesce((
	SELECT substr(c, strpos(c, '=') + 1) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
	WHERE d.datname = current_database() AND s.setrole = 0 AND c LIKE 'search_path=_%'), '"$user", public')`

// SetPath is the statement that puts a search_path, its $1, in force until the
// transaction ends.
const SetPath = `SELECT pg_catalog.set_config('search_path', $1, true)`

// UserPath reads the search_path of a session of the database that chose none. What
// comes with PostgreSQL is found first all the same.
func UserPath(ctx context.Context, conn interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (path string, err error) {
	if err := conn.QueryRow(ctx, sqlUserPath).Scan(&path); err != nil {
		return "", fmt.Errorf("read the search_path of the database: %w", err)
	}
	return path, nil
}

// InUserPath runs f, a part of the transaction of conn, under UserPath. After an error
// the transaction, or a savepoint in it, has to be rolled back.
func InUserPath(ctx context.Context, conn interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, f func() error) error {
	if _, err := conn.Exec(ctx, `SELECT pg_catalog.set_config('search_path', (`+sqlUserPath+`), true)`); err != nil {
		return fmt.Errorf("take the search_path of the database: %w", err)
	}
	if err := f(); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, `SET LOCAL search_path = ''`)
	return err
}

// Unqualified reports whether a statement failed since a function that it led to did not
// find what it names.
func Unqualified(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "42883", "42P01", "42704", "3F000": // undefined function, table, object, schema
		return strings.Contains(pg.Where, "function ")
	}
	return false
}
