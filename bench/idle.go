package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/agent/api"
)

// idleLinks are as many as a managed instance is made for.
const idleLinks = 100

// runIdle ties many small databases by as many links, leaves them alone, and
// measures what the links cost while nothing happens. Each round is a stretch of
// the same links.
func runIdle(ctx context.Context, b *bench, w *work) error {
	if len(b.takePart(w.rivals)) == 0 {
		return nil
	}
	b.alone()
	links := b.size(idleLinks)
	prepared, err := b.prepare(ctx, w.name, func(ctx context.Context, s *server) error { return fillIdle(ctx, s, links) })
	if err != nil {
		return err
	}
	defer b.forget(w.name)
	c := &copying{rival: rivalOf("hawser")}
	h := &hawser{program: b.hawser}
	c.c = h
	defer c.end(b)
	if c.pair, err = newPair(ctx, filepath.Join(b.dir, w.name), prepared, nil); err != nil {
		return err
	}
	if err := h.connect(ctx, c.pair); err != nil {
		return err
	}
	b.say("%-8s %d links: initial copies", w.name, links)
	if err := h.createMany(ctx, links); err != nil {
		return err
	}
	b.book.start(w)
	for round := range b.rounds {
		s, err := b.idle(ctx, h, links)
		if err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
		b.book.add(w, "hawser", s)
		b.say("%-8s round %d  %d links: agents %.2f %% of a core, %.2f MB a link, %.0f connections to the replica's databases; both PostgreSQL %.1f %% of a core; load %.1f",
			w.name, round+1, links, s["value"], s["rss_link"], s["connections"], s["cpu_servers"], s["load"])
	}
	return nil
}

func idleDatabase(i int) string { return fmt.Sprintf("idle_%d", i) }

// fillIdle makes small databases beside the usual one, which stays empty.
func fillIdle(ctx context.Context, s *server, links int) error {
	var copies []string
	for i := 1; i < links; i++ {
		copies = append(copies, fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", idleDatabase(i), idleDatabase(0)))
	}
	if err := s.exec(ctx, "postgres", "CREATE DATABASE "+idleDatabase(0)); err != nil {
		return err
	}
	err := s.exec(ctx, idleDatabase(0), `
		CREATE TABLE customer (id integer PRIMARY KEY, name text NOT NULL);
		CREATE TABLE purchase (id bigserial PRIMARY KEY, customer integer NOT NULL REFERENCES customer, at timestamptz NOT NULL DEFAULT now());
		CREATE TABLE note (id bigserial PRIMARY KEY, body text);
		INSERT INTO customer SELECT i, 'name ' || i FROM generate_series(1, 100) i;
		INSERT INTO purchase (customer) SELECT id FROM customer;
		INSERT INTO note (body) SELECT md5(i::text) FROM generate_series(1, 100) i`)
	if err != nil {
		return err
	}
	return s.exec(ctx, "postgres", copies...)
}

// createMany makes the links, a few at once, and returns when all follow.
func (h *hawser) createMany(ctx context.Context, links int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := range links {
		g.Go(func() error {
			name := idleDatabase(i)
			if err := h.create(ctx, name, name); err != nil {
				return fmt.Errorf("link %s: %w", name, err)
			}
			return h.copied(ctx, name)
		})
	}
	return g.Wait()
}

// idle lets the links rest, then measures them for a minute.
func (b *bench) idle(ctx context.Context, h *hawser, links int) (sample, error) {
	within := time.Minute
	if b.short {
		within = 10 * time.Second
	}
	if err := sleep(ctx, within/2); err != nil {
		return nil, err
	}
	s := sample{"links": float64(links)}
	m := startMeter(h.p, h.agents())
	var most int
	for begun := time.Now(); time.Since(begun) < within; {
		if err := sleep(ctx, 5*time.Second); err != nil {
			return nil, err
		}
		n, err := h.p.replica.sessions(ctx, "datname LIKE 'idle%'")
		if err != nil {
			return nil, err
		}
		most = max(most, n)
	}
	used := m.stop()
	if err := h.following(ctx, links); err != nil {
		return nil, err
	}
	rss := 0.0
	for _, pid := range h.agents() {
		now := statusKB(pid, "VmRSS:") / 1024
		if now <= 0 {
			return nil, fmt.Errorf("agent %d has ended, or the kernel does not tell its memory", pid)
		}
		rss += now
	}
	for name, on := range map[string]*server{"sessions_primary": h.p.primary, "sessions_replica": h.p.replica} {
		n, err := on.sessions(ctx, "true")
		if err != nil {
			return nil, err
		}
		s[name] = float64(n)
	}
	s["value"] = (used["cpu_agent_primary"] + used["cpu_agent_replica"]) / used["value"] * 100
	s["cpu_servers"] = (used["cpu_primary"] + used["cpu_replica"]) / used["value"] * 100
	s["rss_link"] = rss / float64(links)
	s["connections"], s["connections_link"] = float64(most), float64(most)/float64(links)
	s["load"] = used["load"]
	s.keepPeaks(used)
	return s, nil
}

// following fails unless every link still does: a link that rests costs nothing.
func (h *hawser) following(ctx context.Context, links int) error {
	for _, a := range h.sides {
		list, err := a.api.Links(ctx)
		if err != nil {
			return err
		}
		n := 0
		for _, l := range list {
			if l.State == api.StateSynchronized {
				n++
			}
		}
		if n != links {
			return fmt.Errorf("%s has %d of %d links synchronized", a.name, n, links)
		}
	}
	return nil
}

// sessions counts those of clients and walsenders, without the one that asks.
func (s *server) sessions(ctx context.Context, which string) (int, error) {
	text, err := s.text(ctx, "postgres", `SELECT count(*)::text FROM pg_stat_activity
		WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid() AND `+which)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(text))
}
