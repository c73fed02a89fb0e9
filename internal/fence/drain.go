package fence

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
)

const (
	// endWithin bounds the end of a session after it was told to end. A failover that does
	// not have longer has to name what remains.
	endWithin = 2 * time.Second
	// prepareWithin bounds the time that putting missing triggers on may take.
	prepareWithin = 10 * time.Second
	pollFirst     = time.Millisecond
	pollMost      = 20 * time.Millisecond
)

// Drain ends whatever could still commit a change that began before Close: behind
// the position at which the WAL is then, no table has a change that an agent did not
// make. It waits up to grace for transactions that write to end by themselves, then ends
// the other sessions of the database but those with a process id in spare: the
// agents' own. What it can't end (prepared transactions, subscriptions) is a
// problem; it looks for that before it disturbs anybody.
func Drain(ctx context.Context, conn *pgx.Conn, grace time.Duration, spare []uint32) error {
	d := drain{conn: conn, spare: pids(spare)}
	if err := d.obstacles(ctx); err != nil {
		return err
	}
	if err := d.await(ctx, grace); err != nil {
		return fmt.Errorf("wait for writing transactions to end: %w", err)
	}
	if err := d.terminate(ctx); err != nil {
		return err
	}
	// A transaction that was under way may have been prepared.
	if err := d.obstacles(ctx); err != nil {
		return err
	}
	// Tables that were created after Prepare, or that nobody prepared.
	return prepareTables(ctx, conn, &PrepareOptions{Idle: true, Patience: prepareWithin})
}

type drain struct {
	conn  *pgx.Conn
	spare []int64
}

// session is a backend; a process id alone may be given to another one later.
type session struct {
	PID   int64
	Since *time.Time // nil while it starts
}

func pids(spare []uint32) []int64 {
	out := make([]int64, len(spare))
	for i, p := range spare {
		out[i] = int64(p)
	}
	return out
}

// obstacles are what ends no session: prepared transactions and subscriptions.
func (d *drain) obstacles(ctx context.Context) error {
	found, err := prepared(ctx, d.conn)
	if err != nil {
		return err
	}
	more, err := subscriptions(ctx, d.conn)
	if err != nil {
		return err
	}
	return append(found, more...).Err()
}

// await waits until no other session has a transaction id, for grace at most.
func (d *drain) await(ctx context.Context, grace time.Duration) error {
	deadline := time.Now().Add(grace)
	left := 0
	for wait := pollFirst; ; wait = min(2*wait, pollMost) {
		err := d.conn.QueryRow(ctx, `
			SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND pid <> ALL ($1)
			AND backend_type NOT IN ('autovacuum worker', 'parallel worker')`, d.spare).Scan(&left)
		if err != nil {
			return err
		}
		remains := time.Until(deadline)
		if left == 0 || remains <= 0 {
			return nil
		}
		if err := pause(ctx, min(wait, remains)); err != nil {
			return err
		}
	}
}

// terminate ends the sessions that are there, and those that are about to be, and
// waits until they are gone. A transaction of theirs is over then.
func (d *drain) terminate(ctx context.Context) error {
	victims, err := d.victims(ctx)
	if err != nil || len(victims) == 0 {
		return err
	}
	ids := make([]int64, len(victims))
	for i, v := range victims {
		ids[i] = v.PID
	}
	if _, err := d.conn.Exec(ctx, `SELECT pg_terminate_backend(p::int) FROM unnest($1::bigint[]) p`, ids); err != nil {
		return fmt.Errorf("end the sessions of the database: %w", err)
	}
	deadline := time.Now().Add(endWithin)
	for wait := pollFirst; ; wait = min(2*wait, pollMost) {
		now, err := d.sessions(ctx, ids)
		if err != nil {
			return err
		}
		victims = slices.DeleteFunc(victims, func(v session) bool { return !slices.ContainsFunc(now, v.is) })
		if len(victims) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return problem.New("session-remains", "backend "+strconv.FormatInt(victims[0].PID, 10),
				"it was told to end and did not, so its transaction may still be committed",
				fmt.Sprintf("SELECT pg_terminate_backend(%d);", victims[0].PID)).Advise("what it waits for is in pg_stat_activity").Retry()
		}
		if err := pause(ctx, wait); err != nil {
			return fmt.Errorf("wait for sessions to end: %w", err)
		}
	}
}

// is reports whether the session that is seen now is v. One that was starting
// when it was first seen has no time then.
func (v session) is(now session) bool {
	return v.PID == now.PID && (v.Since == nil || now.Since == nil || v.Since.Equal(*now.Since))
}

// victims are the sessions of clients, and of background workers that are in a
// transaction. Of WAL senders only those that run SQL in one. A session that is
// starting may have read the database's settings before Close and be in
// pg_stat_activity only after we have looked there; until then it holds a lock on
// the database, so the locks are read first.
func (d *drain) victims(ctx context.Context) ([]session, error) {
	starting, err := d.starting(ctx, nil)
	if err != nil {
		return nil, err
	}
	rows, err := d.conn.Query(ctx, `
		SELECT pid::bigint, backend_start FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid <> ALL ($1)
		AND (backend_type = 'client backend'
			OR backend_type = 'walsender' AND (backend_xid IS NOT NULL OR state LIKE 'idle in transaction%')
			OR backend_type NOT IN ('client backend', 'walsender', 'autovacuum worker', 'autovacuum launcher', 'parallel worker')
				AND xact_start IS NOT NULL)`, d.spare)
	if err != nil {
		return nil, fmt.Errorf("list the sessions of the database: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[session])
	if err != nil {
		return nil, fmt.Errorf("list the sessions of the database: %w", err)
	}
	for _, s := range starting {
		if !slices.ContainsFunc(found, s.is) {
			found = append(found, s)
		}
	}
	return found, nil
}

// sessions are those of the given process ids that are there.
func (d *drain) sessions(ctx context.Context, ids []int64) ([]session, error) {
	starting, err := d.starting(ctx, ids)
	if err != nil {
		return nil, err
	}
	rows, err := d.conn.Query(ctx, `SELECT pid::bigint, backend_start FROM pg_stat_activity WHERE pid = ANY ($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("list the sessions of the database: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[session])
	if err != nil {
		return nil, fmt.Errorf("list the sessions of the database: %w", err)
	}
	return append(starting, found...), nil
}

// starting are backends that hold the lock on the database which a backend takes
// while it starts; all, or those among ids.
func (d *drain) starting(ctx context.Context, ids []int64) ([]session, error) {
	rows, err := d.conn.Query(ctx, `
		SELECT l.pid::bigint, NULL::timestamptz FROM pg_locks l JOIN pg_database d ON d.oid = l.objid
		WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
		AND d.datname = current_database() AND l.pid <> pg_backend_pid() AND l.pid <> ALL ($1)
		AND ($2::bigint[] IS NULL OR l.pid = ANY ($2))`, d.spare, ids)
	if err != nil {
		return nil, fmt.Errorf("list the sessions that start: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[session])
	if err != nil {
		return nil, fmt.Errorf("list the sessions that start: %w", err)
	}
	return out, nil
}
