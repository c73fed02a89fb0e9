package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// linearMost is how much more a change may cost in a larger size than in the
// cheapest of the smaller ones. A cost that grew with the size would show 10 at
// each step; what is above 1 leaves room for a machine that is shared.
const linearMost = 1.5

// growth is the measure of linear works: the largest ratio of a size's cost to the
// least of any smaller one's.
func growth(costs []float64) float64 {
	worst := 0.0
	for i := 1; i < len(costs); i++ {
		worst = max(worst, costs[i]/slices.Min(costs[:i]))
	}
	return worst
}

// linearSizes are numbers of changes; each of pgbench's transactions makes two.
func (b *bench) linearSizes() []int {
	sizes := []int{b.size(10_000), b.size(100_000), b.size(1_000_000)}
	if b.large {
		sizes = append(sizes, b.size(10_000_000))
	}
	return sizes
}

// runLinear measures backlogs of small transactions, each ten times as large as
// the one before. What a link needs to start is part of each.
func runLinear(ctx context.Context, b *bench, w *work) error {
	entries, err := b.contestants(ctx, w.rivals)
	if err != nil {
		return err
	}
	b.book.start(w)
	for round := range b.rounds {
		for _, e := range turned(entries, round) {
			out, costs := sample{}, []float64{}
			peak := 0.0
			for _, size := range b.linearSizes() {
				s, err := b.backlog(ctx, e, func(s *server) error { return b.small(ctx, s, size/2, round) })
				if err != nil {
					return fmt.Errorf("%s, round %d, %d changes: %w", e.name, round+1, size, err)
				}
				cost := s["value"] / s["changes"] * 1e6
				costs = append(costs, cost)
				out[fmt.Sprintf("us_%d", size)] = cost
				b.say("%-8s round %d  %-18s %8d changes, %.1f µs each  %s", w.name, round+1, e.title, size, cost, s.cost())
				if len(e.c.agents()) > 0 {
					now := max(s["rss_agent_primary"], s["rss_agent_replica"])
					if peak > 0 {
						out["flat"] = now / peak
					}
					peak = now
					out.keepPeaks(s)
				}
			}
			out["value"], out["load"] = growth(costs), loadAverage()
			b.book.add(w, e.name, out)
		}
	}
	for _, e := range entries {
		if err := e.equal(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

// keepPeaks takes over the agents' memory from another sample where it is more.
func (s sample) keepPeaks(from sample) {
	for _, k := range []string{"rss_agent_primary", "rss_agent_replica"} {
		if v, ok := from[k]; ok {
			s[k] = max(s[k], v)
		}
	}
}

// linearTables are numbers of tables over which the same backlog is spread.
func (b *bench) linearTables() []int {
	if b.large {
		return []int{10, 100, 1_000, 10_000}
	}
	return []int{10, 100, 1_000}
}

// spread writes changes into all tables in turn, ten in a transaction. They are
// inserts, since updates of the same few rows would cost less by having less to do.
const spread = `
CREATE SEQUENCE spread_id;
CREATE PROCEDURE spread(changes integer, tables integer) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..changes LOOP
		EXECUTE format('INSERT INTO spread_%s VALUES ($1, $2, md5($3))', i % tables) USING nextval('spread_id'), i, i::text;
		IF i % 10 = 0 THEN COMMIT; END IF;
	END LOOP;
END $$;`

func fillSpread(tables int) func(context.Context, *server) error {
	return func(ctx context.Context, s *server) error {
		var sql []string
		for i := range tables {
			sql = append(sql, fmt.Sprintf("CREATE TABLE spread_%d (id bigint PRIMARY KEY, n integer NOT NULL, note text NOT NULL)", i))
		}
		// In pieces, since one transaction can hold only so many locks.
		for part := range slices.Chunk(sql, 500) {
			if err := s.exec(ctx, database, strings.Join(part, ";")); err != nil {
				return err
			}
		}
		return s.exec(ctx, database, schema, spread)
	}
}

// runLinearTables measures one backlog in databases of more and more tables, each
// with contestants of its own.
func runLinearTables(ctx context.Context, b *bench, w *work) error {
	b.alone()
	costs := map[string][]sample{} // by rival, of each round
	order := map[string]map[int][]float64{}
	for _, tables := range b.linearTables() {
		if err := b.overTables(ctx, w, tables, costs, order); err != nil {
			return fmt.Errorf("%d tables: %w", tables, err)
		}
	}
	b.book.start(w)
	for _, r := range b.takePart(w.rivals) {
		for round, s := range costs[r.name] {
			s["value"] = growth(order[r.name][round])
			b.book.add(w, r.name, s)
		}
	}
	return nil
}

// overTables adds the costs with so many tables to each round's.
func (b *bench) overTables(ctx context.Context, w *work, tables int, costs map[string][]sample, order map[string]map[int][]float64) error {
	key := fmt.Sprintf("%s-%d", w.name, tables)
	prepared, err := b.prepare(ctx, key, fillSpread(tables))
	if err != nil {
		return err
	}
	defer b.forget(key)
	defer b.alone()
	var entries []*entry
	for _, r := range b.takePart(w.rivals) {
		e, err := b.enter(ctx, key+"-"+r.name, r, r.make(b.options), prepared, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		entries = append(entries, e)
	}
	const changes = 100_000 // in a short run too: the first of each table's costs most
	for round := range b.rounds {
		for _, e := range turned(entries, round) {
			s, err := b.backlog(ctx, e, func(s *server) error {
				return s.exec(ctx, database, "SET synchronous_commit = off", fmt.Sprintf("CALL spread(%d, %d)", changes, tables))
			})
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", e.name, round+1, err)
			}
			cost := s["value"] / s["changes"] * 1e6
			b.say("%-8s round %d  %-18s %8d tables, %.1f µs a change  %s", w.name, round+1, e.title, tables, cost, s.cost())
			if len(costs[e.name]) <= round {
				costs[e.name] = append(costs[e.name], sample{})
			}
			out := costs[e.name][round]
			out[fmt.Sprintf("us_t%d", tables)] = cost
			out.keepPeaks(s)
			if order[e.name] == nil {
				order[e.name] = map[int][]float64{}
			}
			order[e.name][round] = append(order[e.name][round], cost)
		}
	}
	for _, e := range entries {
		if err := e.equal(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}
