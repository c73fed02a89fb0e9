package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// The search of runSustained. In a step of 20 s a rate that is 5 % too high leaves
// 1 s of lag behind, so nothing nearer than that can be told apart.
const (
	sustainedFrom  = 1_000 // transactions a second
	sustainedNear  = 1.05
	sustainedLag   = time.Second
	sustainedReach = 0.95 // of the rate asked for: less is the primary's own limit
)

// runSustained searches the highest rate of writes that the replica follows. The
// rate is doubled from sustainedFrom until a step fails, then the gap between the
// highest rate followed and the lowest that was not is halved. In each step pgbench
// -N writes at the rate (-R) while one row is committed ten times a second, and a
// reader of the replica looks for it: the step holds when each was seen within
// sustainedLag. A step that fails is done once more, since a machine that is shared may
// have been busy with something else. Where pgbench does not reach the rate, the machine can't write more,
// and what it did write is the highest rate.
func runSustained(ctx context.Context, b *bench, w *work) error {
	entries, err := b.contestants(ctx, w.rivals)
	if err != nil {
		return err
	}
	b.book.start(w)
	for round := range b.rounds {
		for _, e := range turned(entries, round) {
			s, err := b.sustained(ctx, w, e)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", e.name, round+1, err)
			}
			b.book.add(w, e.name, s)
			b.say("%-8s round %d  %-18s %.0f transactions a second with at most %.0f ms of lag; load %.1f", w.name, round+1, e.title, s["value"], s["lag"], s["load"])
		}
	}
	for _, e := range entries {
		if err := e.equal(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

func (b *bench) sustained(ctx context.Context, w *work, e *entry) (sample, error) {
	var best sample
	low, high := 0.0, 0.0 // followed; not followed, 0 where none is known
	for rate := float64(sustainedFrom); high == 0 || high/low > sustainedNear; {
		var s sample
		var follows, reached bool
		for try := 0; try < 2 && !(follows && reached); try++ {
			var err error
			if s, err = b.atRate(ctx, e, rate); err != nil {
				return nil, err
			}
			b.say("%-8s          %-18s %.0f asked for, %.0f written a second, at most %.0f ms of lag, median %.1f; %s", w.name, e.title, rate, s["value"], s["lag"], s["lag_median"], s.cost())
			follows, reached = s["lag"] < sustainedLag.Seconds()*1000, s["value"] >= rate*sustainedReach
		}
		if follows && (best == nil || s["value"] > best["value"]) {
			best = s
		}
		if follows && reached {
			low = rate
		} else {
			high = rate
		}
		switch {
		case low == 0 && rate < 50:
			return nil, errors.New("the replica follows no rate at all")
		case low == 0:
			rate /= 2
		case high == 0:
			rate *= 2
		default:
			rate = (low + high) / 2
		}
	}
	return best, nil
}

// atRate is one step: what was written a second, and the most lag.
func (b *bench) atRate(ctx context.Context, e *entry, rate float64) (sample, error) {
	if err := e.pair.rest(ctx); err != nil {
		return nil, err
	}
	step := 20 * time.Second
	if b.short {
		step = 4 * time.Second
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type written struct {
		tps float64
		err error
	}
	done := make(chan written, 1)
	m := startMeter(e.pair, e.c.agents())
	go func() {
		tps, err := b.pgbenchAtRate(ctx, e.pair.primary, rate, step)
		if err != nil {
			cancel(err)
		}
		done <- written{tps, err}
	}()
	p := probe{rows: int(step / (100 * time.Millisecond)), every: 100 * time.Millisecond, rest: readSeldom}
	seen, err := p.latency(ctx, b, e)
	if err != nil {
		cancel(err)
		return nil, errors.Join(err, (<-done).err)
	}
	got := <-done
	if got.err != nil {
		return nil, got.err
	}
	out := m.stop()
	out["value"], out["asked"], out["lag"], out["lag_median"] = got.tps, rate, slices.Max(seen), median(seen)
	return out, nil
}

var tpsLine = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

// pgbenchAtRate returns how many transactions a second it did.
func (b *bench) pgbenchAtRate(ctx context.Context, s *server, rate float64, within time.Duration) (float64, error) {
	out, err := b.pgbenchOutput(ctx, s, "--skip-some-updates", "--protocol=prepared", fmt.Sprintf("--rate=%.0f", rate), fmt.Sprintf("--time=%.0f", within.Seconds()))
	if err != nil {
		return 0, err
	}
	m := tpsLine.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench did not say its rate: %s", last(out))
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
