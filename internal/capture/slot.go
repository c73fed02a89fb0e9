package capture

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Install prepares the database to be captured for the link id: DDL capture, a
// replica identity for every table that f chooses, the publication. The order matters:
// from the moment a table is published, an UPDATE of it without replica identity
// fails, and a slot decodes nothing from before its publication. Safe to repeat.
func Install(ctx context.Context, conn *pgx.Conn, id string, f filter.Filter) error {
	if err := InstallDDL(ctx, conn); err != nil {
		return err
	}
	if err := choose(ctx, conn, id, f); err != nil {
		return err
	}
	if err := EnsureReplicaIdentity(ctx, conn); err != nil || !f.All() {
		return err
	}
	return publication(ctx, conn, id, " FOR ALL TABLES")
}

// Uninstall takes away what Install made for the link; last says that no other
// link captures the database. The slot must be gone before.
func Uninstall(ctx context.Context, conn *pgx.Conn, id string, last bool) error {
	if _, err := conn.Exec(ctx, `DROP PUBLICATION IF EXISTS `+postgres.QuoteIdent(Object(id))); err != nil {
		return fmt.Errorf("drop the publication: %w", err)
	}
	if !last {
		return unchoose(ctx, conn, id)
	}
	if err := RestoreReplicaIdentity(ctx, conn); err != nil {
		return err
	}
	return RemoveDDL(ctx, conn)
}

// CreateSlot makes the link's replication slot, unless it is there, and returns
// the position from which it streams. It waits for every transaction that writes
// now to end; end ctx to give up.
func CreateSlot(ctx context.Context, conn *pgx.Conn, id string) (frame.LSN, error) {
	var text string
	err := conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1`, Object(id)).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		err = conn.QueryRow(ctx, `SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')`, Object(id)).Scan(&text)
	}
	if err != nil {
		return 0, fmt.Errorf("create replication slot %s: %w", Object(id), err)
	}
	return frame.ParseLSN(text)
}

// SlotUsable reports whether the link's slot exists and has all WAL that it needs.
func SlotUsable(ctx context.Context, conn *pgx.Conn, id string) (bool, error) {
	var usable bool
	err := conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND coalesce(wal_status, '') <> 'lost')`, Object(id)).Scan(&usable)
	if err != nil {
		return false, fmt.Errorf("look for replication slot %s: %w", Object(id), err)
	}
	return usable, nil
}

// SlotDatabase returns the database of the link's slot, which goes with that whatever name
// it gets; "" if there is no slot.
func SlotDatabase(ctx context.Context, conn *pgx.Conn, id string) (database string, err error) {
	err = conn.QueryRow(ctx, `SELECT database FROM pg_replication_slots WHERE slot_name = $1`, Object(id)).Scan(&database)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("look for replication slot %s: %w", Object(id), err)
	}
	return database, nil
}

// DropSlot removes the link's slot and ends the connection that streams from it.
// A slot that is not there is not an error.
func DropSlot(ctx context.Context, conn *pgx.Conn, id string) error {
	for {
		_, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, Object(id))
		var pg *pgconn.PgError
		if err == nil || errors.As(err, &pg) && pg.Code == "42704" {
			return nil
		}
		if !errors.As(err, &pg) || pg.Code != "55006" { // object_in_use
			return fmt.Errorf("drop replication slot %s: %w", Object(id), err)
		}
		if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active`, Object(id)); err != nil {
			return fmt.Errorf("end the stream of replication slot %s: %w", Object(id), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Held returns how many bytes of WAL the link's slot keeps on the primary's disk.
func Held(ctx context.Context, conn *pgx.Conn, id string) (int64, error) {
	var bytes int64
	err := conn.QueryRow(ctx, `
		SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint
		FROM pg_replication_slots WHERE slot_name = $1`, Object(id)).Scan(&bytes)
	if err != nil {
		return 0, fmt.Errorf("ask for the WAL that replication slot %s holds: %w", Object(id), err)
	}
	return bytes, nil
}

// Confirmed returns from where the link's slot still holds what is committed; found tells
// that there is one.
func Confirmed(ctx context.Context, conn *pgx.Conn, id string) (from frame.LSN, found bool, err error) {
	var text string
	err = conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn IS NOT NULL`, Object(id)).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err == nil {
		from, err = frame.ParseLSN(text)
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask from where replication slot %s holds transactions: %w", Object(id), err)
	}
	return from, true, nil
}

// Behind returns how much WAL the primary wrote since what the secondary has confirmed;
// found tells that there is a slot.
func Behind(ctx context.Context, conn *pgx.Conn, id string) (bytes int64, found bool, err error) {
	err = conn.QueryRow(ctx, `
		SELECT greatest(0, pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn))::bigint
		FROM pg_replication_slots WHERE slot_name = $1 AND coalesce(wal_status, '') <> 'lost'`, Object(id)).Scan(&bytes)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask how far replication slot %s is behind: %w", Object(id), err)
	}
	return bytes, true, nil
}

// meetSlot returns how far the link's slot is confirmed, 0 where there is none, and
// refuses a secondary that has seen more WAL than there is.
func meetSlot(ctx context.Context, conn *pgx.Conn, cfg Config, position frame.LSN) (frame.LSN, error) {
	var confirmed, end string
	err := conn.QueryRow(ctx, `
		SELECT coalesce((SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1), '0/0')::text, pg_current_wal_insert_lsn()::text`,
		Object(cfg.ID)).Scan(&confirmed, &end)
	if err != nil {
		return 0, fmt.Errorf("look for replication slot %s: %w", Object(cfg.ID), err)
	}
	lsn, err := frame.ParseLSN(end)
	if err != nil {
		return 0, err
	}
	if position > lsn {
		return 0, problem.New("primary-restored", "link "+cfg.Link,
			fmt.Sprintf("the primary's WAL ends at %s, and the replica has applied it up to %s: the primary's PostgreSQL was put back to an earlier state, or a standby took over that had not received everything; the replica has transactions that the primary lost", lsn, position),
			"hawser link resync NAME").Advise("that gives these transactions up; to keep them, open the secondary (there: hawser link failover NAME --force), then hawser link rejoin NAME on the other side")
	}
	return frame.ParseLSN(confirmed)
}
