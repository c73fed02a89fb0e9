package link

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// closeFence makes the database read-only. A primary also ends what is under way. A
// failover that can't is taken back; what is closed for another reason has to be.
func (l *link) closeFence(ctx context.Context) error {
	state, _ := l.now()
	if state.Phase != role.Fencing {
		defer l.swaps.end() // no step follows
		return l.insist(ctx, "close the fence", l.fenceOnce(state))
	}
	if err := l.retry(ctx, "close the fence", l.fenceOnce(state)); err != nil {
		return err
	}
	return l.followedStill(ctx)
}

// comeBack is how long a closed primary waits for a secondary whose stream broke just then:
// mostly it follows again sooner.
const comeBack = time.Second

// followedStill refuses to hand over to a side that is gone since: until it is back nobody
// would know whether it took over, and nobody could write.
func (l *link) followedStill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, comeBack)
	defer cancel()
	if l.until(ctx, func() bool { return l.streaming }) == nil {
		return nil
	}
	return notFollowing(Status{Name: l.rec.Name, State: Disconnected, Cause: l.unreached()},
		"the secondary follows no more; nothing was handed over to it, and this side writes again", "run the failover when it is synchronized")
}

// shutWithin bounds how long a command waits for the fence that is closed once more when an
// agent starts.
const shutWithin = 20 * time.Second

// awaitShut waits until this side is closed. Closing ends sessions, those of the agent that
// came meanwhile too, and what a rejoin reads may not have anything behind it.
func (l *link) awaitShut(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, shutWithin)
	defer cancel()
	if err := l.until(within, func() bool { return l.shut }); err == nil || errors.Is(err, errHalted) || ctx.Err() != nil {
		return err
	}
	l.mu.Lock()
	awaits := l.awaits
	l.mu.Unlock()
	if err := l.obstacle(); err != nil {
		return err
	}
	if awaits != nil {
		return awaits
	}
	return problem.New(codeBusy, "link "+l.rec.Name, "its database is still being closed for writers, since the agent started", "hawser link show "+l.rec.Name).Advise("wait a moment").Retry()
}

// fenceOnce is closeFence's try.
func (l *link) fenceOnce(state role.State) func(context.Context) error {
	return func(ctx context.Context) error {
		return l.inSwap(ctx, func(conn *pgx.Conn) (err error) {
			l.timed("fence", func() {
				var release func()
				if release, err = l.m.gate(ctx, l.rec.Database); err != nil {
					return
				}
				defer release()
				if err = l.ours(ctx, conn); err != nil {
					return
				}
				err = fence.Close(ctx, conn, fence.Sign{Link: l.rec.Name, Primary: l.rec.Peer})
			})
			if err != nil || state.Role == role.Secondary {
				return err
			}
			l.timed("drain sessions", func() {
				err = fence.Drain(ctx, conn, drainGrace, l.agentBackends(ctx, conn))
			})
			return err
		})
	}
}

// drainGrace is how long transactions under way may take to end by themselves
// once the fence is closed.
const drainGrace = 100 * time.Millisecond

// agentBackends are the sessions of agents in the database, which the fence lets
// pass: those of our own role that name themselves so.
func (l *link) agentBackends(ctx context.Context, conn *pgx.Conn) []uint32 {
	rows, err := conn.Query(ctx, `
		SELECT pid::bigint FROM pg_stat_activity
		WHERE datname = current_database() AND usename = current_user AND starts_with(application_name, 'hawser:')`)
	if err != nil {
		return nil
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil
	}
	out := make([]uint32, len(pids))
	for i, p := range pids {
		out[i] = uint32(p)
	}
	return out
}

func (l *link) openFence(ctx context.Context) error {
	defer l.swaps.end()
	return l.insist(ctx, "open the fence", func(ctx context.Context) error {
		return l.inSwap(ctx, func(conn *pgx.Conn) error {
			opened, err := l.unfence(ctx, conn)
			if side, _ := l.now(); err == nil && !opened && side.Phase == role.Promoting {
				err = l.closedElsewhere() // it is no primary before it is open
			}
			return err
		})
	})
}
