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
CREATE TABLE bulk (id bigint PRIMARY KEY, n integer NOT NULL, note text NOT NULL, at timestamptz NOT NULL);
CREATE TABLE opaque (id bigint PRIMARY KEY, body bytea NOT NULL);`

// bench is one run.
type bench struct {
	options
	book     *book
	prepared map[string]string // data directories that primaries are copies of
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

func (b *bench) open() error {
	b.entries, b.prepared = map[string]*entry{}, map[string]string{}
	var err error
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "hawser-bench-"); err != nil {
			return err
		}
	}
	// PostgreSQL's user has to pass.
	return os.Chmod(b.dir, 0o711)
}

// prepare makes, once, the cluster of which the primaries of some works are copies,
// and returns its data directory.
func (b *bench) prepare(ctx context.Context, name string, fill func(context.Context, *server) error) (string, error) {
	if data := b.prepared[name]; data != "" {
		return data, nil
	}
	b.say("preparing a cluster: %s", name)
	s, err := newServer(filepath.Join(b.dir, "prepared-"+name), nil)
	if err != nil {
		return "", err
	}
	if err := s.start(ctx); err != nil {
		return "", err
	}
	err = b.fillWith(ctx, s, fill)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := errors.Join(err, s.stop(stop)); err != nil {
		return "", fmt.Errorf("prepare a cluster: %w", err)
	}
	b.prepared[name] = s.data
	return s.data, nil
}

// forget gives a prepared cluster's disk back.
func (b *bench) forget(name string) {
	if data := b.prepared[name]; data != "" {
		delete(b.prepared, name)
		_ = os.RemoveAll(filepath.Dir(data))
	}
}

func (b *bench) fillWith(ctx context.Context, s *server, fill func(context.Context, *server) error) error {
	if err := s.exec(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return err
	}
	if err := fill(ctx, s); err != nil {
		return err
	}
	if err := s.exec(ctx, database, "VACUUM ANALYZE", "CHECKPOINT"); err != nil {
		return err
	}
	info, err := s.pg.Info(ctx)
	if err != nil {
		return err
	}
	b.book.begin(info.VersionText)
	return nil
}

// fill is what the backlogs begin with.
func (b *bench) fill(ctx context.Context, s *server) error {
	if err := s.tool(ctx, "pgbench", "-i", "-q", "-s", fmt.Sprint(b.scale()), database); err != nil {
		return err
	}
	return s.exec(ctx, database, schema, mixedSchema, fmt.Sprintf("SELECT mixed_fill(%d)", b.size(10)))
}

// takePart are those of the names that were asked for and are installed.
func (b *bench) takePart(names []string) []rival {
	var out []rival
	for _, name := range names {
		if r := rivalOf(name); slices.Contains(b.rivals, name) && r.here() {
			out = append(out, r)
		}
	}
	return out
}

// contestants returns those of the names that were asked for, following.
func (b *bench) contestants(ctx context.Context, names []string) ([]*entry, error) {
	var out []*entry
	for _, r := range b.takePart(names) {
		e := b.entries[r.name]
		if e == nil {
			var more map[string]string
			if pglogicalInstalled() {
				more = withPglogical
			}
			prepared, err := b.prepare(ctx, "backlogs", b.fill)
			if err != nil {
				return nil, err
			}
			if e, err = b.enter(ctx, r.name, r, r.make(b.options), prepared, more); err != nil {
				return nil, fmt.Errorf("%s: %w", r.name, err)
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// enter has a contestant follow. The key is what it is left by.
func (b *bench) enter(ctx context.Context, key string, r rival, c contestant, prepared string, more map[string]string) (*entry, error) {
	b.say("%s: initial copy", r.title)
	e := &entry{rival: r, c: c}
	b.entries[key] = e
	var err error
	if e.pair, err = newPair(ctx, filepath.Join(b.dir, key), prepared, more); err != nil {
		return nil, err
	}
	return e, c.setup(ctx, e.pair)
}

// alone ends every contestant of the works before, for a work whose own may not be
// disturbed by what they do at rest.
func (b *bench) alone() {
	for name := range b.entries {
		b.leave(name)
	}
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
	b.alone()
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
