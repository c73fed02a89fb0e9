package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

//go:embed mixed.sql
var mixedSchema string

// schema is every table of the backlogs.
const schema = `
CREATE TABLE bench_marker (n bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE bulk (id bigint PRIMARY KEY, n integer NOT NULL, note text NOT NULL, at timestamptz NOT NULL);`

// bench is one run.
type bench struct {
	options
	book     *book
	prepared string // data directory that all primaries are copies of
	entries  map[string]*entry
	marker   int64
}

// entry is a contestant that follows, with its pair.
type entry struct {
	rival
	pair *pair
	c    contestant
}

// scale is pgbench's: 100,000 rows each.
func (b *bench) scale() int { return b.size(40) }

// size is a tenth in a short run.
func (b *bench) size(n int) int {
	if b.short {
		return max(1, n/10)
	}
	return n
}

func (b *bench) say(format string, args ...any) {
	fmt.Printf("%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}

// open prepares the cluster of which every primary is a copy.
func (b *bench) open(ctx context.Context) error {
	b.entries = map[string]*entry{}
	var err error
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "hawser-bench-"); err != nil {
			return err
		}
	}
	// PostgreSQL's user has to pass.
	if err := os.Chmod(b.dir, 0o711); err != nil {
		return err
	}
	b.say("preparing a cluster with pgbench scale %d", b.scale())
	s, err := newServer(filepath.Join(b.dir, "prepared"))
	if err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	b.prepared = s.data
	err = b.fill(ctx, s)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, s.stop(stop))
}

func (b *bench) fill(ctx context.Context, s *server) error {
	if err := s.exec(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return err
	}
	if err := s.tool(ctx, "pgbench", "-i", "-q", "-s", fmt.Sprint(b.scale()), database); err != nil {
		return err
	}
	if err := s.exec(ctx, database, schema, mixedSchema, fmt.Sprintf("SELECT mixed_fill(%d)", b.size(10)), "VACUUM ANALYZE", "CHECKPOINT"); err != nil {
		return err
	}
	info, err := s.pg.Info(ctx)
	if err != nil {
		return err
	}
	b.book.begin(info.VersionText)
	return nil
}

// contestants returns those of the names that were asked for, following.
func (b *bench) contestants(ctx context.Context, names []string) ([]*entry, error) {
	var out []*entry
	for _, name := range names {
		r := rivalOf(name)
		if !slices.Contains(b.rivals, name) || r.installed != nil && !r.installed() {
			continue
		}
		e := b.entries[name]
		if e == nil {
			var err error
			if e, err = b.enter(ctx, r); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		out = append(out, e)
	}
	return out, nil
}

func (b *bench) enter(ctx context.Context, r rival) (*entry, error) {
	b.say("%s: initial copy", r.title)
	e := &entry{rival: r, c: r.make(b.options)}
	b.entries[r.name] = e
	var err error
	if e.pair, err = newPair(ctx, filepath.Join(b.dir, r.name), b.prepared); err != nil {
		return nil, err
	}
	return e, e.c.setup(ctx, e.pair)
}

// leave ends a contestant and gives its disk back.
func (b *bench) leave(name string) {
	e := b.entries[name]
	if e == nil {
		return
	}
	delete(b.entries, name)
	e.c.close()
	if e.pair == nil {
		return
	}
	if err := e.pair.close(); err != nil {
		b.say("%s: %v", name, err)
	}
	if !b.keep {
		_ = os.RemoveAll(e.pair.dir)
	}
}

func (b *bench) close() {
	for name := range b.entries {
		b.leave(name)
	}
	if b.keep {
		b.say("kept: %s", b.dir)
		return
	}
	_ = os.RemoveAll(b.dir)
}

// turned is the order of a round: each contestant comes first in turn.
func turned[T any](list []T, round int) []T {
	if len(list) == 0 {
		return nil
	}
	n := round % len(list)
	return append(slices.Clone(list[n:]), list[:n]...)
}
