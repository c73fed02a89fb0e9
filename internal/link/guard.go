package link

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// guardEvery is how often a primary looks at the WAL that the link holds back.
const guardEvery = 5 * time.Second

// sweepEvery is how many such looks pass between two at what fires no event trigger.
const sweepEvery = 2

// restEvery is how many looks pass between two at a primary that writes nothing.
const restEvery = 12

// rechooseEvery is the same for tables that came into a partial link unseen.
const rechooseEvery = 12

// guard keeps a link that does not get on from filling the primary's disk: beyond
// the bound the link is given up, not the primary. On the side that is read-only it
// looks after the fence, and on one without its peer for another that leads.
func (l *link) guard() {
	tick := time.NewTimer(untilNext(guardEvery))
	defer tick.Stop()
	var looked frame.LSN // where WAL ended when all was looked at
	for n := 1; ; n++ {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
			tick.Reset(untilNext(guardEvery))
		}
		if n%watchEvery == 1 && l.holdsFence() {
			if err := l.watchFence(l.ctx); err != nil {
				l.trouble("can't see whether the database is still read-only for others", err)
			}
		}
		l.seekLeader(l.ctx)
		if l.makes() {
			l.obstruct(l.seeMade(l.ctx))
			continue
		}
		l.mu.Lock()
		side := l.side
		primary, streaming := side.Role == role.Primary && l.progress == catalog.Running, l.streaming
		l.mu.Unlock()
		if !primary {
			l.bare = false
			if side.Role == role.Secondary && n%sweepEvery == 0 {
				if err := l.guardPrepared(l.ctx); err != nil {
					l.log.Debug("can't see how much WAL is held back for a failover", "error", err)
				}
			}
			continue
		}
		end := l.capture.Lag().End
		// Nothing was written since, in any database. (The end is that of the last heartbeat.)
		still := streaming && end > 0 && end == looked && n%restEvery != 0
		if !still {
			if err := l.guardOnce(l.ctx); err != nil {
				l.trouble("can't see how much WAL the link holds back", err)
			}
		}
		if err := l.shed(l.ctx, side); err != nil {
			l.log.Debug("can't drop the indexes that this side had as a secondary yet", "error", err)
		}
		if err := l.seeRenewal(l.ctx); err != nil {
			l.log.Debug("can't see whether a new slot is used", "error", err)
		}
		if err := l.tend(l.ctx, side); err != nil {
			l.log.Debug("can't hand the database's links over yet", "error", err)
		}
		if !still && n%sweepEvery == 0 && side.Phase == role.Steady && !l.left() {
			if err := l.sweepNow(l.ctx); err != nil {
				l.trouble("can't see what changed without an event", err)
			} else {
				looked = end
			}
		}
		if n%rechooseEvery == 1 && !l.filter().All() && !l.left() {
			l.rechoose(l.ctx)
		}
	}
}

// shed drops the indexes of tables without a key that the applier made when this side was
// a secondary. They would cost its writers something. Others are waited for, a little.
func (l *link) shed(ctx context.Context, side role.State) error {
	if l.bare || side.Phase != role.Steady {
		return nil
	}
	conn, err := l.connect(ctx, "indexes")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `SET statement_timeout = '3s'`); err != nil {
		return fmt.Errorf("bound the wait for others: %w", err)
	}
	err = apply.DropRowIndexes(ctx, conn)
	l.bare = err == nil
	return err
}

// makes tells that the link does not stand yet.
func (l *link) makes() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.progress == catalog.Creating
}

// untilNext has all links wake up at the same time, which costs an idle machine less.
func untilNext(every time.Duration) time.Duration {
	now := time.Now()
	return now.Truncate(every).Add(every).Sub(now)
}

// tend carries on what a change of primary left to do.
func (l *link) tend(ctx context.Context, side role.State) error {
	switch {
	case side.Phase == role.Steady && !l.left():
		return l.inherit(ctx)
	case side.Phase == role.Steady || side.Phase == role.Moved:
		return errors.Join(l.leadsAgain(ctx, side), l.seeOff(ctx, side))
	}
	return nil
}

// left tells that the database's primary is elsewhere, by another of its links.
func (l *link) left() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.suspended != nil && l.suspended.Code == codeMoved
}

// sweepNow puts into the stream what fired no event trigger: privileges of the database,
// its settings, owners.
func (l *link) sweepNow(ctx context.Context) error {
	conn, err := l.connect(ctx, "sweep")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.intact(ctx, conn); err != nil {
		return err
	}
	return l.sweep(ctx, conn)
}

func (l *link) sweep(ctx context.Context, conn *pgx.Conn) error {
	n, err := capture.SweepDDL(ctx, conn)
	if n > 0 {
		l.log.Info("changes that fired no event trigger are in the stream", "changes", n)
	}
	return err
}

func (l *link) guardOnce(ctx context.Context) error {
	var held int64
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) (err error) {
		held, err = capture.Held(ctx, conn, l.rec.ID)
		return err
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.held = held
	bound := l.bound()
	l.mu.Unlock()
	if bound == 0 || held <= bound {
		return nil
	}
	l.suspend(problem.New("wal-limit", "link "+l.rec.Name,
		fmt.Sprintf("it held back %s of WAL, more than it may (%s), and was given up to save the primary's disk", bytesText(held), bytesText(bound)),
		"hawser link resync "+l.rec.Name).Advise("when the secondary can be reached: it compares the tables and copies those that differ; DDL of the time without a slot is not known, and where it left the two sides different they are to be made alike by hand first"))
	return l.m.store.Do(ctx, func(conn *pgx.Conn) error { return capture.DropSlot(ctx, conn, l.rec.ID) })
}

// guardPrepared is a secondary's: it takes back what was got ready for a failover that
// never ended, since the primary went away, or for one by force that did not take place,
// before that fills this side's disk.
func (l *link) guardPrepared(ctx context.Context) error {
	if l.m.cfg.MaxWAL <= 0 {
		return nil
	}
	heirs, err := l.heirsOf(ctx)
	if err != nil {
		return err
	}
	ids := []string{l.rec.ID}
	for _, h := range heirs {
		ids = append(ids, h.ID)
	}
	for _, id := range ids {
		var held int64
		err := l.m.store.Do(ctx, func(conn *pgx.Conn) (err error) { held, err = capture.Held(ctx, conn, id); return err })
		if err != nil {
			return err
		}
		if held > l.m.cfg.MaxWAL && !l.wantedThere(ctx) {
			l.log.Warn("what was got ready for a failover that never ended held back WAL and is taken back", "held", bytesText(held))
			return l.unprepareToLead(ctx)
		}
	}
	return nil
}

// wantedThere tells that the primary hands over to this side just now: it takes back itself
// what it asked for.
func (l *link) wantedThere(ctx context.Context) bool {
	theirs, err := l.meet(ctx)
	return err == nil && theirs.Swapping()
}

// walWarning warns from half of the bound on. The caller holds mu.
func (l *link) walWarning() *problem.Problem {
	bound := l.bound()
	if bound == 0 || l.held < bound/2 || l.suspended != nil {
		return nil
	}
	return problem.Warn("wal-held", "link "+l.rec.Name,
		fmt.Sprintf("it holds back %s of WAL on the primary; at %s it will be given up", bytesText(l.held), bytesText(bound)),
		"hawser link set "+l.rec.Name+" --max-wal SIZE").Advise("that raises the bound; better let the secondary catch up")
}

func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
