package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
)

// failovers is how often roles swap; even, so that they end as they began.
const failovers = 100

// failoverTables are those that the clients write to, each with a sequence.
const failoverTables = 200

// runFailover swaps the roles again and again while clients write, each through one
// connection string that names both servers. What is measured is each client's
// longest time between two acknowledged commits in each failover.
func runFailover(clients, rate int) func(ctx context.Context, b *bench, w *work) error {
	return func(ctx context.Context, b *bench, w *work) error {
		entries, err := b.contestants(ctx, w.rivals)
		if err != nil || len(entries) == 0 {
			return err
		}
		b.book.start(w)
		h := entries[0].c.(*hawser)
		if err := failoverSchema(ctx, h); err != nil {
			return err
		}
		wl := startWriters(ctx, h, clients, rate)
		gaps, closed, err := swapRoles(ctx, b, w, h, wl)
		if err = errors.Join(err, wl.stop()); err != nil {
			return err
		}
		if err := h.await(ctx, linkName, api.StateSynchronized); err != nil {
			return err
		}
		s := sample{"value": median(gaps), "p99": percentile(gaps, 0.99), "most": slices.Max(gaps), "closed": median(closed), "load": loadAverage()}
		b.book.add(w, "hawser", s)
		b.say("%-8s %d failovers, %d clients: no commit for a median of %.0f ms, 99th percentile %.0f ms, at most %.0f ms; no side took writes for a median of %.0f ms",
			w.name, len(closed), clients, s["value"], s["p99"], s["most"], s["closed"])
		return nil
	}
}

func failoverSchema(ctx context.Context, h *hawser) error {
	var sql strings.Builder
	for i := range failoverTables {
		fmt.Fprintf(&sql, "CREATE TABLE IF NOT EXISTS swap_%d (id bigserial PRIMARY KEY, client int, n bigint);\n", i)
	}
	if err := h.p.primary.exec(ctx, database, sql.String()); err != nil {
		return err
	}
	return h.await(ctx, linkName, api.StateSynchronized)
}

// swapRoles returns the clients' gaps, and how long no side took writes, in ms.
func swapRoles(ctx context.Context, b *bench, w *work, h *hawser, wl *writers) (gaps, closed []float64, err error) {
	n := b.size(failovers)
	n += n % 2
	phases := map[string][]float64{}
	for i := range n {
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return nil, nil, err
		}
		wl.reset()
		r, err := h.sides[i%2].api.FailoverLink(ctx, linkName, api.FailoverOptions{Timeout: time.Minute})
		if err != nil {
			return nil, nil, fmt.Errorf("failover %d: %w", i+1, err)
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return nil, nil, err
		}
		gaps, closed = append(gaps, wl.gaps()...), append(closed, r.WriteOutageSeconds*1000)
		for _, p := range r.Phases {
			phases[p.Name] = append(phases[p.Name], p.Seconds*1000)
		}
		if err := h.await(ctx, linkName, api.StateSynchronized); err != nil {
			return nil, nil, err
		}
	}
	for name, ms := range phases {
		b.say("%-8s phase %-18s median %.0f ms, 99th percentile %.0f ms", w.name, name, median(ms), percentile(ms, 0.99))
	}
	return gaps, closed, nil
}

// writers are clients that write at a steady rate wherever they are let.
type writers struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	last []time.Time // of each client's commits
	gap  []time.Duration
	n    []int64
	h    *hawser
}

func startWriters(ctx context.Context, h *hawser, clients, rate int) *writers {
	ctx, cancel := context.WithCancel(ctx)
	// A client that has not written yet counts from now on.
	wl := &writers{cancel: cancel, last: make([]time.Time, clients), gap: make([]time.Duration, clients), n: make([]int64, clients), h: h}
	a, b := h.p.primary, h.p.replica
	both := fmt.Sprintf("host=%s.sock,%s.sock port=%d,%d user=postgres dbname=%s target_session_attrs=read-write connect_timeout=5", a.data, b.data, a.port, b.port, database)
	for i := range clients {
		wl.last[i] = time.Now()
		wl.wg.Go(func() { wl.client(ctx, i, both, time.Second*time.Duration(clients)/time.Duration(rate)) })
	}
	return wl
}

// client writes until ctx ends; a commit whose answer was lost may have happened.
func (wl *writers) client(ctx context.Context, i int, conninfo string, every time.Duration) {
	var conn *pgx.Conn
	for tick := time.Now(); ctx.Err() == nil; tick = tick.Add(every) {
		if late := time.Since(tick); late > time.Second {
			tick = time.Now() // what was missed is not made up for
		}
		_ = sleep(ctx, time.Until(tick))
		for ctx.Err() == nil {
			err := error(nil)
			if conn == nil {
				conn, err = pgx.Connect(ctx, conninfo)
			}
			if err == nil {
				_, err = conn.Exec(ctx, fmt.Sprintf(`INSERT INTO swap_%d (client, n) VALUES ($1, $2)`, rand.N(failoverTables)), i, wl.n[i])
			}
			if err == nil {
				wl.committed(i)
				break
			}
			if conn != nil {
				_ = conn.Close(ctx)
				conn = nil
			}
			_ = sleep(ctx, 5*time.Millisecond)
		}
	}
	if conn != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
	}
}

func (wl *writers) committed(i int) {
	wl.mu.Lock()
	defer wl.mu.Unlock()
	now := time.Now()
	wl.n[i]++
	wl.gap[i] = max(wl.gap[i], now.Sub(wl.last[i]))
	wl.last[i] = now
}

func (wl *writers) reset() {
	wl.mu.Lock()
	defer wl.mu.Unlock()
	clear(wl.gap)
}

// gaps are in ms; a client that has not come back counts as gone until now.
func (wl *writers) gaps() (ms []float64) {
	wl.mu.Lock()
	defer wl.mu.Unlock()
	for i, gap := range wl.gap {
		ms = append(ms, max(gap, time.Since(wl.last[i])).Seconds()*1000)
	}
	return ms
}

// stop ends the clients, and fails where one never wrote.
func (wl *writers) stop() error {
	wl.cancel()
	wl.wg.Wait()
	if slices.Contains(wl.n, 0) {
		return errors.New("a client never wrote")
	}
	return nil
}
