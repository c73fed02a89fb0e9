package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// latencyRows are the least that are measured, so that the 99th percentile is not
	// the worst of them or the one before.
	latencyRows    = 1_000
	latencySeconds = 20 // at least
	// readOften is how long a reader rests who tells milliseconds, readSeldom who tells
	// seconds.
	readOften, readSeldom = 100 * time.Microsecond, 10 * time.Millisecond
)

// runLatency measures from the return of a commit on the primary to the moment at
// which a reader of the replica sees it.
func runLatency(rate int) func(ctx context.Context, b *bench, w *work) error {
	return func(ctx context.Context, b *bench, w *work) error {
		entries, err := b.contestants(ctx, w.rivals)
		if err != nil {
			return err
		}
		b.book.start(w)
		for round := range b.rounds {
			for _, e := range turned(entries, round) {
				if err := e.pair.rest(ctx); err != nil {
					return err
				}
				p := probe{rows: b.size(max(latencyRows, latencySeconds*rate)), every: time.Second / time.Duration(rate), rest: readOften}
				seen, err := p.latency(ctx, b, e)
				if err != nil {
					return fmt.Errorf("%s, round %d: %w", e.name, round+1, err)
				}
				s := sample{"value": median(seen), "p99": percentile(seen, 0.99), "load": loadAverage()}
				b.book.add(w, e.name, s)
				b.say("%-8s round %d  %-18s median %.2f ms, 99th percentile %.2f ms, %d transactions; load %.1f", w.name, round+1, e.title, s["value"], s["p99"], len(seen), s["load"])
			}
		}
		return nil
	}
}

// probe writes rows one at a time and looks for them on the replica.
type probe struct {
	rows        int
	every, rest time.Duration // between two rows; between two looks

	begun atomic.Int64 // rows whose transactions began
	wake  chan struct{}
}

// latency returns in ms how long after its commit each row was seen. The reader looks
// only while one is on its way: one that never rests takes more than half of two cores,
// from contestants that have nothing to do.
func (p *probe) latency(ctx context.Context, b *bench, e *entry) ([]float64, error) {
	writer, err := e.pair.primary.connect(ctx, database)
	if err != nil {
		return nil, err
	}
	defer writer.Close(context.WithoutCancel(ctx))
	reader, err := e.pair.replica.connect(ctx, database)
	if err != nil {
		return nil, err
	}
	defer reader.Close(context.WithoutCancel(ctx))

	first := b.marker + 1
	b.marker += int64(p.rows)
	p.wake = make(chan struct{}, 1)
	committed := make([]time.Time, p.rows)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.rows)*p.every+2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := p.write(ctx, writer, first, committed)
		if err != nil {
			cancel()
		}
		done <- err
	}()
	visible, err := p.read(ctx, reader, first)
	if err != nil {
		cancel()
		return nil, errors.Join(err, <-done)
	}
	if err := <-done; err != nil {
		return nil, err
	}
	var out []float64
	for i := p.rows / 10; i < p.rows; i++ { // the first tenth warms up
		out = append(out, max(0, visible[i].Sub(committed[i]).Seconds()*1000))
	}
	return out, nil
}

func (p *probe) write(ctx context.Context, conn *pgx.Conn, first int64, committed []time.Time) error {
	begun := time.Now()
	for i := range committed {
		if err := sleep(ctx, time.Until(begun.Add(time.Duration(i)*p.every))); err != nil {
			return err
		}
		p.begun.Add(1)
		select {
		case p.wake <- struct{}{}:
		default:
		}
		if _, err := conn.Exec(ctx, `INSERT INTO bench_marker (n) VALUES ($1)`, first+int64(i)); err != nil {
			return err
		}
		committed[i] = time.Now()
	}
	return nil
}

// read returns when each row was seen first.
func (p *probe) read(ctx context.Context, conn *pgx.Conn, first int64) ([]time.Time, error) {
	var visible []time.Time
	for len(visible) < p.rows {
		if int64(len(visible)) == p.begun.Load() {
			select {
			case <-p.wake:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		var have int64
		if err := conn.QueryRow(ctx, `SELECT coalesce(max(n), 0) FROM bench_marker`).Scan(&have); err != nil {
			return nil, err
		}
		now := time.Now()
		for len(visible) < p.rows && first+int64(len(visible)) <= have {
			visible = append(visible, now)
		}
		time.Sleep(p.rest)
	}
	return visible, nil
}
