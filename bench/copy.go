package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/agent/api"
)

// copier is one way to bring what is there from a primary to a replica.
//
// prepare is called once. copy is measured: it begins with a replica without the
// database, and returns when all rows and indexes are there. clear takes the copy away.
type copier interface {
	prepare(ctx context.Context, p *pair) error
	copy(ctx context.Context) error
	clear(ctx context.Context) error
	agents() []int
	close()
}

// copyJobs is how much is done at once by those that have to be told: as much as
// max_sync_workers_per_subscription lets native do.
const copyJobs = 4

// runCopy copies one database again and again, each time to a replica that has none.
func runCopy(fill func(context.Context, *bench, *server) error) func(ctx context.Context, b *bench, w *work) error {
	return func(ctx context.Context, b *bench, w *work) error {
		b.alone()
		prepared, err := b.prepare(ctx, w.name, func(ctx context.Context, s *server) error { return fill(ctx, b, s) })
		if err != nil {
			return err
		}
		defer b.forget(w.name)
		var list []*copying
		defer func() {
			for _, c := range list {
				c.end(b)
			}
		}()
		for _, r := range b.takePart(w.rivals) {
			c := &copying{rival: r, c: r.copies(b.options)}
			list = append(list, c)
			if c.pair, err = newPair(ctx, filepath.Join(b.dir, w.name+"-"+r.name), prepared, nil); err == nil {
				err = c.c.prepare(ctx, c.pair)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		b.book.start(w)
		for round := range b.rounds {
			for _, c := range turned(list, round) {
				s, err := c.once(ctx)
				if err != nil {
					return fmt.Errorf("%s, round %d: %w", c.name, round+1, err)
				}
				b.book.add(w, c.name, s)
				b.say("%-8s round %d  %-18s %6.2f s  %s", w.name, round+1, c.title, s["value"], s.cost())
			}
		}
		return nil
	}
}

// copying is a contestant with its pair.
type copying struct {
	rival
	pair *pair
	c    copier
}

func (c *copying) once(ctx context.Context) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	for _, s := range []*server{c.pair.primary, c.pair.replica} {
		if err := s.exec(ctx, "postgres", "CHECKPOINT"); err != nil {
			return nil, err
		}
	}
	m := startMeter(c.pair, c.c.agents())
	if err := c.c.copy(ctx); err != nil {
		return nil, err
	}
	s := m.stop()
	// Nobody is fast by leaving something out.
	if err := errors.Join(c.pair.equal(ctx), c.pair.sameIndexes(ctx)); err != nil {
		return nil, err
	}
	return s, c.c.clear(ctx)
}

func (c *copying) end(b *bench) {
	c.c.close()
	if c.pair == nil {
		return
	}
	if err := c.pair.close(); err != nil {
		b.say("%s: %v", c.name, err)
	}
	if !b.keep {
		_ = os.RemoveAll(c.pair.dir)
	}
}

// sameIndexes compares the indexes and constraints that can be used.
func (p *pair) sameIndexes(ctx context.Context) error {
	const list = `
		SELECT coalesce(string_agg(t, E'\n' ORDER BY t), '') FROM (
			SELECT pg_get_indexdef(indexrelid) AS t FROM pg_index JOIN pg_class c ON c.oid = indrelid
			WHERE relnamespace = 'public'::regnamespace AND indisvalid
			UNION ALL
			SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
			WHERE connamespace = 'public'::regnamespace AND convalidated) x`
	var sides [2]string
	for i, s := range []*server{p.primary, p.replica} {
		var err error
		if sides[i], err = s.text(ctx, database, list); err != nil {
			return fmt.Errorf("compare both sides' indexes: %w", err)
		}
	}
	if sides[0] != sides[1] {
		return fmt.Errorf("the replica's indexes or constraints differ:\n%.2000s\nand\n%.2000s", sides[0], sides[1])
	}
	return nil
}

// dropReplica waits for sessions that are about to end.
func (p *pair) dropReplica(ctx context.Context) error {
	return p.replica.exec(ctx, "postgres", "DROP DATABASE IF EXISTS "+database+" WITH (FORCE)")
}

func (h *hawser) prepare(ctx context.Context, p *pair) error { return h.connect(ctx, p) }

func (h *hawser) copy(ctx context.Context) error {
	if err := h.create(ctx, linkName, database); err != nil {
		return err
	}
	return h.copied(ctx, linkName)
}

func (h *hawser) clear(ctx context.Context) error {
	if _, err := h.sides[0].api.DropLink(ctx, linkName, api.DropOptions{RemoveReplica: true}); err != nil {
		return err
	}
	err := until(ctx, 30*time.Second, func() (bool, error) {
		for _, a := range h.sides {
			if links, err := a.api.Links(ctx); err != nil || len(links) > 0 {
				return false, err
			}
		}
		return true, nil
	})
	return errors.Join(err, h.p.dropReplica(ctx), h.p.slotsAtRest(ctx))
}

func (n *native) prepare(_ context.Context, p *pair) error {
	n.p = p
	return nil
}

// copy is what native's users do: the schema with its indexes by pg_dump, then the
// subscription.
func (n *native) copy(ctx context.Context) error { return n.setup(ctx, n.p) }

func (n *native) clear(ctx context.Context) error {
	return errors.Join(
		n.p.replica.exec(ctx, database, "DROP SUBSCRIPTION bench"),
		n.p.primary.exec(ctx, database, "DROP PUBLICATION bench"),
		n.p.dropReplica(ctx))
}

// pgcopydb copies a database once, in parallel, and follows by its own means.
type pgcopydb struct{ p *pair }

func pgcopydbInstalled() bool {
	_, err := exec.LookPath("pgcopydb")
	return err == nil
}

func (c *pgcopydb) prepare(_ context.Context, p *pair) error {
	c.p = p
	return nil
}

// copy lets it split tables too, which it does not by itself.
func (c *pgcopydb) copy(ctx context.Context) error {
	if err := c.p.replica.exec(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return err
	}
	cmd := c.p.primary.command(ctx, "pgcopydb", "clone", "--source", c.p.primary.conninfo(database), "--target", c.p.replica.conninfo(database),
		"--dir", c.dir(), "--table-jobs", fmt.Sprint(copyJobs), "--index-jobs", fmt.Sprint(copyJobs),
		"--split-tables-larger-than", "100MB", "--no-acl", "--no-owner")
	// Its own environment says which server; PG… of the bench would contradict.
	cmd.Env = slicesWithout(cmd.Env, "PG")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgcopydb: %w: %s", err, last(out))
	}
	return nil
}

// slicesWithout leaves out variables whose names begin so.
func slicesWithout(env []string, prefix string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, prefix) {
			out = append(out, e)
		}
	}
	return out
}

func (c *pgcopydb) dir() string { return filepath.Join(c.p.dir, "pgcopydb") }

func (c *pgcopydb) clear(ctx context.Context) error {
	return errors.Join(os.RemoveAll(c.dir()), c.p.dropReplica(ctx))
}

func (c *pgcopydb) agents() []int { return nil }
func (c *pgcopydb) close()        {}

// raw is what a person does by hand who knows the database: COPY from one psql into
// another, two tables at once, the largest first; then the indexes. It follows
// nothing and looks after nothing. A table is one pipe, so whoever splits tables can be
// faster.
type raw struct{ p *pair }

func (c *raw) prepare(_ context.Context, p *pair) error {
	c.p = p
	return nil
}

func (c *raw) copy(ctx context.Context) error {
	if err := c.p.replica.exec(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return err
	}
	file := filepath.Join(c.p.dir, "schema.dump")
	if err := c.p.primary.tool(ctx, "pg_dump", "--schema-only", "--format=custom", "--file", file, database); err != nil {
		return err
	}
	if err := c.p.replica.tool(ctx, "pg_restore", "--exit-on-error", "--section=pre-data", "--dbname", database, file); err != nil {
		return err
	}
	tables, err := c.p.primary.text(ctx, database, `SELECT string_agg(oid::regclass::text, ',' ORDER BY pg_relation_size(oid) DESC)
		FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace`)
	if err != nil {
		return err
	}
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for table := range strings.SplitSeq(tables, ",") {
		g.Go(func() error { return c.pipe(each, table) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return c.p.replica.tool(ctx, "pg_restore", "--exit-on-error", "--section=post-data", "--jobs=2", "--dbname", database, file)
}

// pipe is psql … COPY TO STDOUT | psql … COPY FROM STDIN.
func (c *raw) pipe(ctx context.Context, table string) error {
	from := c.p.primary.command(ctx, "psql", "-qXAtc", "COPY "+table+" TO STDOUT", database)
	to := c.p.replica.command(ctx, "psql", "-qXv", "ON_ERROR_STOP=1", "-c", "COPY "+table+" FROM STDIN", database)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	from.Stdout, to.Stdin = w, r
	err = errors.Join(from.Start(), to.Start())
	// The programs hold their own ends.
	_, _ = w.Close(), r.Close()
	if err != nil {
		return err
	}
	if err := errors.Join(from.Wait(), to.Wait()); err != nil {
		return fmt.Errorf("copy %s by psql: %w", table, err)
	}
	return nil
}

func (c *raw) clear(ctx context.Context) error { return c.p.dropReplica(ctx) }
func (c *raw) agents() []int                   { return nil }
func (c *raw) close()                          {}

func fillCopy(ctx context.Context, b *bench, s *server) error {
	if err := s.tool(ctx, "pgbench", "-i", "-q", "-s", fmt.Sprint(b.scale()), database); err != nil {
		return err
	}
	return s.exec(ctx, database, "CREATE INDEX ON pgbench_accounts (bid)")
}

func fillCopyTable(ctx context.Context, b *bench, s *server) error {
	return s.exec(ctx, database,
		"CREATE TABLE large (id bigint PRIMARY KEY, customer integer NOT NULL, at timestamptz NOT NULL, amount numeric(12,2) NOT NULL, note text NOT NULL)",
		fmt.Sprintf(`INSERT INTO large SELECT i, i %% 100003, '2026-01-01'::timestamptz + i * interval '1 second', i %% 10000 + 0.99, repeat(md5(i::text), 6)
			FROM generate_series(1, %d) i`, b.size(3_000_000)),
		"CREATE INDEX ON large (customer, at)")
}

func fillCopyTables(ctx context.Context, b *bench, s *server) error {
	var sql []string
	for i := range b.size(2_000) {
		sql = append(sql, fmt.Sprintf(`CREATE TABLE small_%d (id integer PRIMARY KEY, n integer NOT NULL, note text NOT NULL);
			INSERT INTO small_%[1]d SELECT i, i %% 7, md5(i::text) FROM generate_series(1, 100) i; CREATE INDEX ON small_%[1]d (n)`, i))
	}
	return s.exec(ctx, database, sql...)
}
