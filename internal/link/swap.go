package link

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// prepareSwap gets both sides ready while this one still takes writes. It returns the
// first term that the other side takes.
func (l *link) prepareSwap(ctx context.Context) (term frame.Term, err error) {
	side, _ := l.now()
	l.timed("prepare", func() {
		if err = l.inSwap(ctx, func(conn *pgx.Conn) error {
			if err := l.intact(ctx, conn); err != nil {
				return err
			}
			return holdsAll(ctx, conn)
		}); err != nil {
			return
		}
		var reply prepareReply
		request := prepareRequest{Patience: l.patience(), Term: side.Next, Siblings: l.m.successors(l)}
		if request.Users, err = l.users(ctx); err != nil {
			return
		}
		if err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callPrepare, request, &reply); err != nil {
			return
		}
		l.update(func() {
			l.accepted, term = reply.Heirs, reply.Term
			if l.running != nil {
				l.running.locked = reply.LockedOut
			}
		})
		if err = l.installFence(ctx); err != nil {
			return
		}
		err = l.inSwap(ctx, func(conn *pgx.Conn) error { return l.sweepFirst(ctx, conn) })
	})
	if err != nil {
		return 0, err
	}
	l.timed("catch up", func() {
		if err = l.awaitCatchUp(ctx); err == nil {
			err = l.inSwap(ctx, func(conn *pgx.Conn) error { return l.checkSequences(ctx, conn) })
		}
	})
	return term, err
}

// sweepFirst puts what fires no event into the stream while this side still writes, and
// keeps what sweepRest compares with.
func (l *link) sweepFirst(ctx context.Context, conn *pgx.Conn) error {
	mark, err := capture.UnfiredMark(ctx, conn)
	if err == nil {
		err = l.sweep(ctx, conn)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swept = mark
	return err
}

// sweepRest does so behind the fence, for what came in between. A whole sweep takes some
// ten milliseconds in which nobody can write, so it looks first whether anything did.
func (l *link) sweepRest(ctx context.Context, conn *pgx.Conn) error {
	mark, err := capture.UnfiredMark(ctx, conn)
	if err != nil {
		return err
	}
	l.mu.Lock()
	same := mark == l.swept
	l.mu.Unlock()
	if same {
		return nil
	}
	return l.sweep(ctx, conn)
}

// holdsAll refuses to leave a database of which the secondary lacks something.
func holdsAll(ctx context.Context, conn *pgx.Conn) error {
	found, err := postgres.LargeObjects(ctx, conn)
	if err == nil && found != nil {
		err = found
	}
	return err
}

// users are the roles whose clients will look for the new primary.
func (l *link) users(ctx context.Context) (names []string, err error) {
	err = l.inSwap(ctx, func(conn *pgx.Conn) error {
		names, err = schema.Logins(ctx, conn)
		return err
	})
	return names, err
}

// patience is how long the secondary may wait until it follows: most of the time that
// the failover has left, so that it can say itself what it waited for.
func (l *link) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		return 0
	}
	return time.Until(l.running.started.Add(l.running.within)) * patiencePart / patienceOf
}

const patiencePart, patienceOf = 3, 4

// installFence puts the triggers of the fence, open, on tables that lack them,
// and refuses a failover that the fence could not complete.
func (l *link) installFence(ctx context.Context) error {
	return l.inSwap(ctx, func(conn *pgx.Conn) error {
		var gid *string
		err := conn.QueryRow(ctx, `SELECT min(quote_literal(gid)) FROM pg_prepared_xacts WHERE database = current_database()`).Scan(&gid)
		if err != nil {
			return fmt.Errorf("look for prepared transactions: %w", err)
		}
		if gid != nil {
			return problem.New("prepared-transaction", "prepared transaction "+*gid,
				"it is open and would be lost at the failover", "ROLLBACK PREPARED "+*gid+";").Advise("or COMMIT PREPARED, when it is to be kept")
		}
		// With some of the time left it can be said what holds a table.
		return fence.Prepare(ctx, conn, &fence.PrepareOptions{Patience: l.patience()})
	})
}

// swapFor is how long the session of a failover is kept for the next of its steps, beyond
// the time limit.
const swapFor = time.Minute

// inSwap does a step of a failover in a session that is kept for the next one: each that
// is opened while no side takes writes makes that time longer, and there may be none to
// be had: clients that were sent away come back. Whoever does the last step on a side, or
// takes the failover back, ends it.
func (l *link) inSwap(ctx context.Context, step func(conn *pgx.Conn) error) error {
	conn, err := l.session(ctx, &l.swaps, "failover")
	if err != nil {
		return err
	}
	over := l.awaiting(ctx, conn)
	err = over(step(conn))
	l.mu.Lock()
	within := max(0, time.Until(l.swapUntil)) + swapFor
	l.mu.Unlock()
	l.swaps.keep(conn, within, func() bool { return l.ctx.Err() == nil && conn.PgConn().TxStatus() == 'I' })
	return err
}

// swapWithin tells how long the steps of a failover that begins may take on this side.
func (l *link) swapWithin(limit time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swapUntil = time.Now().Add(limit)
}

func (l *link) awaitCatchUp(ctx context.Context) error {
	defer l.obstruct(nil)
	began := time.Now()
	for a := (approach{}); ; {
		lag := l.capture.Lag()
		if l.isStreaming() && a.near(lag, time.Now()) {
			return nil
		}
		if time.Since(began) > time.Second {
			l.obstruct(problem.New("failover-waits", "link "+l.rec.Name,
				fmt.Sprintf("the secondary is %s of WAL, %.1f s, behind, and the failover waits until it has nearly caught up", bytesText(int64(lag.Bytes)), lag.Seconds), "").
				Advise("give it more time with --timeout, or fail over while less is written"))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// What the secondary lacks when the fence closes is time in which nobody can write. So
// the fence waits for little lag, in bytes of WAL and in time: a busy machine may need
// long for few bytes. A lag that does not fall any more is taken as it is.
const (
	closeEnough = 4 << 20 // bytes
	soonEnough  = 50 * time.Millisecond
	stalled     = 2 * time.Second
	lookEvery   = 10 * time.Millisecond
)

// approach is a secondary's way to the moment at which the fence may close.
type approach struct {
	least float64 // seconds of lag
	since time.Time
}

// near tells whether it may close now.
func (a *approach) near(lag capture.Lag, now time.Time) bool {
	switch {
	case lag.At.IsZero() || lag.Bytes > closeEnough:
		return false
	case lag.Seconds <= soonEnough.Seconds():
		return true
	case a.since.IsZero() || lag.Seconds <= a.least-soonEnough.Seconds():
		a.least, a.since = lag.Seconds, now
	}
	return now.Sub(a.since) >= stalled
}

// unprepareSwap is best effort: a side that is away forgets by itself when it
// hears of the state again.
func (l *link) unprepareSwap(ctx context.Context) {
	l.swaps.end()
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callUnprepare, struct{}{}, nil); err != nil {
		l.log.Warn("the other side could not be told that the failover was taken back", "error", err)
	}
}
