// Package catalog is what Hawser remembers, kept in PostgreSQL itself.
//
// Two schemas named hawser hold it. The instance's, in the maintenance database,
// has the peers and the links with their roles and terms. The database's, in each
// linked database, has what must commit together with that database's data: the
// state of seeding, the changes deferred for tables that are still being copied,
// and the schema entries still to be built. Both are versioned by migrations.
//
// Every write takes the caller's transaction (or connection), so that what is
// remembered and what was done become true at once. This package decides nothing:
// it must never start a transaction of its own except to migrate, and never
// touch a user's object.
package catalog

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// DB is a connection or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

//go:embed instance/*.sql database/*.sql
var migrations embed.FS

// MigrateInstance brings the instance's schema in the maintenance database to
// this agent's version. A schema of a newer agent is a problem, and left alone.
func MigrateInstance(ctx context.Context, conn *pgx.Conn) error {
	return migrate(ctx, conn, "instance")
}

// MigrateDatabase brings the schema of one linked database to this agent's version.
func MigrateDatabase(ctx context.Context, conn *pgx.Conn) error {
	return migrate(ctx, conn, "database")
}

// migrationLock serialises agents that start at the same time.
const migrationLock = 0x6861777365720001

func migrate(ctx context.Context, conn *pgx.Conn, kind string) error {
	steps, err := fs.Glob(migrations, kind+"/*.sql")
	if err != nil {
		return err
	}
	// A stricter level, which may be a role's default, would show the schema as it was
	// before the lock was waited for.
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(migrationLock)); err != nil {
			return fmt.Errorf("lock the migrations: %w", err)
		}
		if err := ensureMigrationTable(ctx, tx, kind); err != nil {
			return err
		}
		var have int
		if err := tx.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM hawser.migration WHERE kind = $1`, kind).Scan(&have); err != nil {
			return fmt.Errorf("read schema hawser's version: %w", err)
		}
		if have > len(steps) {
			return problem.New("catalog-newer", "schema hawser",
				fmt.Sprintf("it has version %d, made by a newer agent; this agent knows up to %d", have, len(steps)),
				"").Advise("run the newer version of hawser again")
		}
		for _, step := range steps[have:] {
			if err := applyStep(ctx, tx, kind, step); err != nil {
				return err
			}
		}
		return nil
	})
}

// ensureMigrationTable asks before it creates: CREATE … IF NOT EXISTS needs the
// privilege even when there is nothing to do.
func ensureMigrationTable(ctx context.Context, tx pgx.Tx, kind string) error {
	var exists bool
	var agent string
	if err := tx.QueryRow(ctx, `SELECT to_regclass('hawser.migration') IS NOT NULL, quote_ident(current_user)`).Scan(&exists, &agent); err != nil {
		return fmt.Errorf("look for schema hawser: %w", err)
	}
	if exists {
		return nil
	}
	_, err := tx.Exec(ctx, `
		CREATE SCHEMA IF NOT EXISTS hawser;
		COMMENT ON SCHEMA hawser IS 'Hawser: managed instance link. Removed when the last link is dropped.';
		CREATE TABLE hawser.migration (
			kind       text NOT NULL,
			version    integer NOT NULL,
			applied_at timestamptz NOT NULL DEFAULT now(),
			PRIMARY KEY (kind, version)
		)`)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "42501" { // insufficient_privilege
		return problem.New("not-superuser", "role "+agent, "the agent's role is no superuser; schema hawser, event triggers and replication origins need one",
			"ALTER ROLE "+agent+" SUPERUSER;").Because(err)
	}
	if err != nil {
		return fmt.Errorf("create schema hawser for the %s: %w", kind, err)
	}
	return nil
}

func applyStep(ctx context.Context, tx pgx.Tx, kind, step string) error {
	number, _, _ := strings.Cut(path.Base(step), "_")
	version, err := strconv.Atoi(number)
	if err != nil {
		return fmt.Errorf("migration %s has no number: %w", step, err)
	}
	sql, err := migrations.ReadFile(step)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, string(sql)); err != nil {
		return fmt.Errorf("migration %s: %w", step, err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO hawser.migration (kind, version) VALUES ($1, $2)`, kind, version)
	return err
}
