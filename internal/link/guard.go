package link

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// guardEvery is how often a primary looks at the WAL that the link holds back.
const guardEvery = 5 * time.Second

// guard keeps a link that does not get on from filling the primary's disk: beyond
// the bound the link is given up, not the primary.
func (l *link) guard() {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
		l.mu.Lock()
		primary := l.side.Role == role.Primary && l.progress == catalog.Running
		l.mu.Unlock()
		if !primary {
			continue
		}
		if err := l.guardOnce(l.ctx); err != nil {
			l.log.Warn("can't see how much WAL the link holds back", "error", err)
		}
	}
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
	l.mu.Unlock()
	if l.m.cfg.MaxWAL <= 0 || held <= l.m.cfg.MaxWAL {
		return nil
	}
	l.suspend(problem.New("wal-limit", "link "+l.rec.Name,
		fmt.Sprintf("it held back %s of WAL, more than limits.wal_held (%s) allows, and was given up to save the primary's disk", bytesText(held), bytesText(l.m.cfg.MaxWAL)),
		"hawser link resync "+l.rec.Name+", when the secondary can be reached, compares the tables and copies those that differ"))
	return l.m.store.Do(ctx, func(conn *pgx.Conn) error { return capture.DropSlot(ctx, conn, l.rec.ID) })
}

// walWarning warns from half of the bound on. The caller holds mu.
func (l *link) walWarning() *problem.Problem {
	if l.m.cfg.MaxWAL <= 0 || l.held < l.m.cfg.MaxWAL/2 || l.suspended != nil {
		return nil
	}
	return problem.Warn("wal-held", "link "+l.rec.Name,
		fmt.Sprintf("it holds back %s of WAL on the primary; at %s it will be given up", bytesText(l.held), bytesText(l.m.cfg.MaxWAL)),
		"let the secondary catch up (hawser link show "+l.rec.Name+"), or raise limits.wal_held")
}

func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
