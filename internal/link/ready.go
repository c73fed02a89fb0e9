package link

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// prepareToLead makes the secondary ready: capture, and the slot from which the
// old primary will follow, and those of the database's other links. A slot has to
// exist before the first write here.
func (l *link) prepareToLead(ctx context.Context, r prepareRequest) (prepareReply, error) {
	l.swapWithin(r.Patience * patienceOf / patiencePart)
	if err := l.awaitFit(ctx, r.Patience); err != nil {
		return prepareReply{}, err
	}
	ctx, cancel := l.unlessForced(ctx)
	defer cancel()
	release, err := l.readying.take(ctx)
	if err != nil {
		return prepareReply{}, err
	}
	defer release()
	reply, err := l.makeReady(ctx, r)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return reply, err
}

// unlessForced ends a context when this side is opened by force, or rests for a resync.
func (l *link) unlessForced(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		if l.until(ctx, func() bool { return l.forcing }) == nil {
			cancel(problem.New("failover-not-now", "link "+l.rec.Name, "the secondary is being opened by force, or compared, just now", "hawser link show "+l.rec.Name))
		}
	})
	return ctx, func() { cancel(nil); watch.Wait() }
}

// makeReady is prepareToLead's part that nothing else may come between.
func (l *link) makeReady(ctx context.Context, r prepareRequest) (prepareReply, error) {
	side, err := l.mayLead(ctx)
	if err != nil {
		return prepareReply{}, err
	}
	r.Term = max(r.Term, side.Following()) // one that is spent here would be refused
	// With some of the time left this side can still say what it waited for.
	if r.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Patience)
		defer cancel()
	}
	findings, err := capture.Check(ctx, l.m.cfg.Server, l.rec.Database, l.filter())
	if err != nil {
		return prepareReply{}, err
	}
	if err := findings.Err(); err != nil {
		return prepareReply{}, err
	}
	var reply prepareReply
	err = l.inSwap(ctx, func(conn *pgx.Conn) (err error) {
		if err := capture.Install(ctx, conn, l.rec.ID, l.filter()); err != nil {
			return err
		}
		if err := fence.Prepare(ctx, conn, nil); err != nil {
			return err
		}
		// One from an earlier try would hold WAL from then.
		if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
			return err
		}
		if _, err := capture.CreateSlot(ctx, conn, l.rec.ID); err != nil {
			return err
		}
		if reply, err = l.prepareHeirs(ctx, conn, r); err != nil {
			return err
		}
		reply.LockedOut, err = schema.LockedOut(ctx, conn, r.Users)
		return err
	})
	return reply, err
}

// fitEvery is how often a secondary that is waited for looks whether it follows.
const fitEvery = 20 * time.Millisecond

// awaitFit waits for a secondary that is only just connecting, as it is after a
// failover that ended a moment ago.
func (l *link) awaitFit(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		passing, err := l.fitToLead(ctx)
		if err == nil || !passing {
			return err
		}
		select {
		case <-time.After(fitEvery):
		case <-ctx.Done():
			return err
		case <-l.ctx.Done():
			return errHalted
		}
	}
}

// fitToLead tells whether this secondary may take over; passing says that what stands
// against it goes by itself.
func (l *link) fitToLead(ctx context.Context) (passing bool, err error) {
	s := l.informed(ctx)
	// One that is catching up is waited for, within the failover's time limit.
	if s.Role == role.Secondary && (s.State == Synchronized || s.State == CatchingUp && !l.isRepairing()) {
		return false, nil
	}
	return s.Role == role.Secondary && s.State == Disconnected, notFollowing(s,
		fmt.Sprintf("a planned failover needs the secondary to follow, and it is %s", s.State), "run the failover when it is synchronized")
}

func (l *link) unprepareToLead(ctx context.Context) error {
	release, err := l.readying.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	if side, err := l.ask(ctx, nil); err != nil || side.Role != role.Secondary {
		return err
	}
	defer l.swaps.end()
	return l.inSwap(ctx, func(conn *pgx.Conn) error {
		return errors.Join(capture.DropSlot(ctx, conn, l.rec.ID), l.discardHeirs(ctx))
	})
}
