package demo

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	clients = 4
	// pace is how long a client rests between two transactions, or restPart times as long
	// as one took: on a slow machine four that write all the time would leave nothing to
	// the one that follows.
	pace     = 4 * time.Millisecond
	restPart = 3
	// retryAfter is how long a client waits after an error.
	retryAfter = 2 * time.Millisecond
)

// workload is clients that place orders until they are stopped. Each remembers
// what was acknowledged to it.
type workload struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	began  time.Time

	mu    sync.Mutex
	each  [clients]client
	error error
}

type client struct {
	acked []int64 // numbers of acknowledged transactions
	last  time.Time
	gap   time.Duration // the longest between two acknowledgements, since resetGaps
}

func startWorkload(connString string) *workload {
	ctx, cancel := context.WithCancel(context.Background())
	w := &workload{cancel: cancel, began: time.Now()}
	for i := range clients {
		w.done.Go(func() { w.run(ctx, i, connString) })
	}
	return w
}

func (w *workload) run(ctx context.Context, id int, connString string) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}()
	for n := int64(1); ctx.Err() == nil; n++ {
		began := time.Now()
		var err error
		if conn == nil {
			conn, err = pgx.Connect(ctx, connString)
		}
		if err == nil {
			err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return placeOrder(ctx, tx, id, n) })
		}
		rest := max(pace, restPart*time.Since(began))
		if err == nil {
			w.acked(id, n)
		} else if ctx.Err() == nil {
			w.failed(err)
			if conn != nil {
				_ = conn.Close(ctx)
			}
			conn, rest = nil, retryAfter
		}
		if sleep(ctx, rest) != nil {
			return
		}
	}
}

// placeOrder touches every table, in one round trip.
func placeOrder(ctx context.Context, tx pgx.Tx, id int, n int64) error {
	customer, product := 1+(n*7+int64(id))%50000, 1+(n*13+int64(id)*1250)%5000
	b := &pgx.Batch{}
	b.Queue(`INSERT INTO ledger (client, n) VALUES ($1, $2)`, id, n)
	b.Queue(`WITH o AS (INSERT INTO "Order" (customer_id) VALUES ($1) RETURNING id)
		INSERT INTO order_item SELECT id, $2, 1, NULL FROM o`, customer, product)
	b.Queue(`UPDATE product SET stock = stock - 1 WHERE id = $1`, product)
	b.Queue(`UPDATE customer SET profile = jsonb_set(profile, '{last}', to_jsonb($2::bigint)) WHERE id = $1`, customer, n)
	b.Queue(`INSERT INTO event (at, body) VALUES (now(), '{"kind": "order"}')`)
	b.Queue(`INSERT INTO audit_log (who, what) VALUES ('client', 'order')`)
	if n%10 == 0 {
		b.Queue(`DELETE FROM "Order" WHERE id = $1`, n*clients+int64(id))
		b.Queue(`DELETE FROM audit_log WHERE ctid = (SELECT ctid FROM audit_log WHERE who = 'import' LIMIT 1)`)
	}
	return tx.SendBatch(ctx, b).Close()
}

func (w *workload) acked(id int, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, now := &w.each[id], time.Now()
	if !c.last.IsZero() {
		c.gap = max(c.gap, now.Sub(c.last))
	}
	c.last, c.acked = now, append(c.acked, n)
}

func (w *workload) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.error = err
}

func (w *workload) lastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.error
}

func (w *workload) total() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for i := range w.each {
		n += len(w.each[i].acked)
	}
	return n
}

// rate is transactions a second since the start.
func (w *workload) rate() int { return int(float64(w.total()) / time.Since(w.began).Seconds()) }

func (w *workload) resetGaps() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.each {
		w.each[i].gap = 0
	}
}

// gaps are each client's longest time without a commit, in seconds.
func (w *workload) gaps() []float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []float64
	for i := range w.each {
		out = append(out, w.each[i].gap.Seconds())
	}
	return out
}

func (w *workload) allWroteSince(at *time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.each {
		if at == nil || w.each[i].last.Before(*at) {
			return false
		}
	}
	return true
}

// stop ends the clients and returns what was acknowledged to each.
func (w *workload) stop() [clients][]int64 {
	w.cancel()
	w.done.Wait()
	var out [clients][]int64
	for i := range w.each {
		out[i] = w.each[i].acked
	}
	return out
}
