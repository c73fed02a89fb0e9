package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
)

// awaitsFirst is after how long a step of a failover is looked at that is not over, and
// awaitsEvery after how long it is looked at again.
const awaitsFirst, awaitsEvery = 250 * time.Millisecond, time.Second

const codeAwaits = "failover-waits"

// awaited are those of the findings that tell what a failover waits for.
func awaited(all problem.Findings) problem.Findings {
	return slices.DeleteFunc(slices.Clone(all), func(p *problem.Problem) bool { return p.Code != codeAwaits })
}

// awaiting tells, while a step of a failover lasts, whose transaction its session waits
// for: a replication slot is made when all that write on the instance have ended. over
// ends that, and gives the step's error this reason where its time ran out.
func (l *link) awaiting(ctx context.Context, conn *pgx.Conn) (over func(err error) error) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	pid := conn.PgConn().PID()
	var last *problem.Problem
	go func() {
		defer close(done)
		for wait := awaitsFirst; ; wait = awaitsEvery {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			if p, err := l.blocker(ctx, pid); err == nil {
				last = p
				l.setAwaits(p)
			} else {
				l.log.Debug("can't see what the failover waits for", "error", err)
			}
		}
	}()
	return func(err error) error {
		late := errors.Is(ctx.Err(), context.DeadlineExceeded)
		stop()
		<-done
		l.setAwaits(nil)
		if err == nil || !late {
			return err
		}
		if p, ok := problem.As(err); last == nil && ok && p.Help() != "" {
			return err
		}
		return cmp.Or(last, l.unseen()).Because(err)
	}
}

// unseen is told where a step's time ran out, and nobody could be seen in its way.
func (l *link) unseen() *problem.Problem {
	return problem.New(codeAwaits, "link "+l.rec.Name, "a step of the failover took longer than its time limit, and it could not be seen what it waited for",
		"SELECT pid, datname, usename, state, xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start;").
		Advise("these write, and a replication slot is made when all of them have ended; or give the failover more time").At("instance " + l.m.cfg.Instance).Retry()
}

func (l *link) setAwaits(p *problem.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.awaits = p
}

// blocker is the oldest transaction that a session waits for; nil: none.
func (l *link) blocker(ctx context.Context, pid uint32) (*problem.Problem, error) {
	ctx, cancel := context.WithTimeout(ctx, awaitsEvery)
	defer cancel()
	conn, err := l.connect(ctx, "waits")
	if err != nil {
		return nil, err
	}
	defer farewell(conn)
	var by int32
	var whose string
	err = conn.QueryRow(ctx, `
		SELECT b.pid, concat_ws(', ', 'its transaction', 'of role ' || quote_ident(a.usename), 'in database ' || quote_ident(a.datname),
			'open since ' || to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC')
		FROM unnest(pg_blocking_pids($1)) b(pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.xact_start LIMIT 1`, int32(pid)).Scan(&by, &whose)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for what a failover waits for: %w", err)
	}
	p := problem.Warn(codeAwaits, fmt.Sprintf("backend %d", by), "the failover waits for "+whose, fmt.Sprintf("SELECT pg_terminate_backend(%d);", by)).Advise("or let it end")
	if by == 0 {
		p = problem.Warn(codeAwaits, "a prepared transaction", "the failover waits for its end", "SELECT gid, prepared, owner, database FROM pg_prepared_xacts;").Advise("commit it or roll it back")
	}
	return p.At("instance " + l.m.cfg.Instance).Retry(), nil
}
