package main

import (
	"context"
	"errors"
	"fmt"
)

// runWan drains a backlog over the line. Its figure is the rate on the line in
// Mbit/s, or the bytes in MB.
func runWan(bytes bool) func(ctx context.Context, b *bench, w *work) error {
	return func(ctx context.Context, b *bench, w *work) error {
		entries, err := b.overLine(ctx, w)
		if err != nil {
			return err
		}
		b.book.start(w)
		for round := range b.rounds {
			for _, e := range turned(entries, round) {
				s, err := b.wan(ctx, w, e, round)
				if err != nil {
					return fmt.Errorf("%s, round %d: %w", e.name, round+1, err)
				}
				s["value"] = s["mbits"]
				if bytes {
					s["value"] = s["wire"]
				}
				delete(s, "mbits")
				b.book.add(w, e.name, s)
				b.say("%-8s round %d  %-18s %.1f MB in %.1f s, %.0f %% of the line's rate; %s", w.name, round+1, e.title, s["wire"], s["seconds"], s["line"], s.cost())
			}
		}
		for _, e := range entries {
			if err := e.equal(ctx); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
		return nil
	}
}

// overLine returns contestants that follow over a line; the wan works share them.
func (b *bench) overLine(ctx context.Context, w *work) ([]*entry, error) {
	prepared, err := b.prepare(ctx, "backlogs", b.fill)
	if err != nil {
		return nil, err
	}
	var out []*entry
	for _, r := range b.takePart(w.rivals) {
		key := "wan-" + r.name
		e := b.entries[key]
		if e == nil {
			if len(out) == 0 {
				b.alone()
			}
			if e, err = b.enter(ctx, key, r, overLine(r, b.options), prepared, nil); err != nil {
				return nil, fmt.Errorf("%s: %w", r.name, err)
			}
		}
		out = append(out, e)
	}
	return out, nil
}

func (b *bench) wan(ctx context.Context, w *work, e *entry, round int) (sample, error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var passages <-chan []passage
	line := e.c.(*lined).line
	s, err := b.backlog(ctx, e, func(s *server) error {
		err := w.load(ctx, b, s, round)
		passages = line.watch(watching)
		return err
	})
	stop()
	if passages == nil {
		return nil, errors.Join(err, errors.New("no backlog was written"))
	}
	bytes, rate, wrong := bytesAndRate(<-passages)
	if err := errors.Join(err, wrong); err != nil {
		return nil, err
	}
	s["seconds"] = s["value"]
	s["wire"], s["mbits"], s["line"] = bytes/1e6, rate*8/1e6, rate/lineRate*100
	return s, nil
}

// loadOpaque inserts what can't be made smaller: 1 KB of random bytes in each row.
func loadOpaque(ctx context.Context, b *bench, s *server, round int) error {
	n, piece := b.size(50_000), 1_000
	for i := range n / piece {
		first := round*n + i*piece + 1
		err := s.exec(ctx, database, fmt.Sprintf(`INSERT INTO opaque SELECT i, (
			SELECT string_agg(uuid_send(gen_random_uuid()), '') FROM generate_series(1, 64) WHERE i > 0) FROM generate_series(%d, %d) i`, first, first+piece-1))
		if err != nil {
			return err
		}
	}
	return nil
}
