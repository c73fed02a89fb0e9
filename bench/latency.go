package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
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
				seen, err := latency(ctx, b, e, rate, time.Duration(b.size(20))*time.Second)
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

// latency writes one row at a time, rate times a second, and returns in ms how
// long after its commit each was seen.
func latency(ctx context.Context, b *bench, e *entry, rate int, within time.Duration) ([]float64, error) {
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
	n := int64(max(20, int(within.Seconds()*float64(rate))))
	b.marker += n
	committed, visible := make([]time.Time, n), make([]time.Time, n)
	ctx, cancel := context.WithTimeout(ctx, within+2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := write(ctx, writer, first, committed, time.Second/time.Duration(rate))
		if err != nil {
			cancel()
		}
		done <- err
	}()
	for next := int64(0); next < n; {
		var have int64
		if err := reader.QueryRow(ctx, `SELECT coalesce(max(n), 0) FROM bench_marker`).Scan(&have); err != nil {
			cancel()
			return nil, errors.Join(err, <-done)
		}
		now := time.Now()
		for ; next < n && first+next <= have; next++ {
			visible[next] = now
		}
		time.Sleep(100 * time.Microsecond) // a reader that never rests takes a core from the contestants
	}
	if err := <-done; err != nil {
		return nil, err
	}
	var out []float64
	for i := range visible {
		if i >= int(n)/10 { // the first tenth warms up
			out = append(out, max(0, visible[i].Sub(committed[i]).Seconds()*1000))
		}
	}
	return out, nil
}

func write(ctx context.Context, conn *pgx.Conn, first int64, committed []time.Time, every time.Duration) error {
	begun := time.Now()
	for i := range committed {
		if err := sleep(ctx, time.Until(begun.Add(time.Duration(i)*every))); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, `INSERT INTO bench_marker (n) VALUES ($1)`, first+int64(i)); err != nil {
			return err
		}
		committed[i] = time.Now()
	}
	return nil
}
