package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// contestant is one way to bring changes from a primary to a replica.
//
// setup is called once, with a filled primary and a replica without the database;
// when it returns, the replica holds the same rows and follows. hold stops that, so
// that a backlog grows. catchUp is measured: it goes on and returns when marker,
// which was committed behind the backlog at position end, can be read on the replica.
type contestant interface {
	setup(ctx context.Context, p *pair) error
	hold(ctx context.Context) error
	catchUp(ctx context.Context, marker int64, end string) error
	agents() []int // processes of its own, beside PostgreSQL: the primary's first
	close()
}

// rival is an entry of the table of contestants.
type rival struct {
	name, title string
	make        func(o options) contestant
	copies      func(o options) copier // nil: it does not copy what is there
	installed   func() bool
	remedy      string // how to install it
	limit       bool   // no replication, but a bound for it
}

// here tells whether it can take part on this machine.
func (r rival) here() bool { return r.installed == nil || r.installed() }

const installRivals = "scripts/install-rivals.sh installs it"

var rivals = []rival{
	{name: "hawser", title: "Hawser", make: func(o options) contestant { return &hawser{program: o.hawser} },
		copies: func(o options) copier { return &hawser{program: o.hawser} }},
	{name: "native", title: "native", make: func(options) contestant { return &native{} },
		copies: func(options) copier { return &native{} }},
	{name: "native-streaming", title: "native, streaming", make: func(options) contestant { return &native{streaming: true} }},
	{name: "pglogical", title: "pglogical", make: func(options) contestant { return &pglogical{} }, installed: pglogicalInstalled, remedy: installRivals},
	{name: "decode", title: "decoding alone", make: func(options) contestant { return &decode{} }, limit: true},
	{name: "pgcopydb", title: "pgcopydb", copies: func(options) copier { return &pgcopydb{} }, installed: pgcopydbInstalled, remedy: installRivals},
	{name: "raw", title: "COPY by hand", copies: func(options) copier { return &raw{} }},
}

func rivalNames() []string {
	var names []string
	for _, r := range rivals {
		names = append(names, r.name)
	}
	return names
}

func rivalOf(name string) rival {
	for _, r := range rivals {
		if r.name == name {
			return r
		}
	}
	return rival{}
}

// awaitMarker polls the replica as a reader would.
func awaitMarker(ctx context.Context, s *server, marker int64) error {
	conn, err := s.connect(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		var n int64
		if err := conn.QueryRow(ctx, `SELECT coalesce(max(n), 0) FROM bench_marker`).Scan(&n); err != nil {
			return err
		}
		if n >= marker {
			return nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("the replica shows marker %d, not %d: %w", n, marker, err)
		}
	}
}

// copyWithin is how long an initial copy may take: native needs minutes for 10,000 tables.
const copyWithin = time.Hour

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// until waits for cond.
func until(ctx context.Context, within time.Duration, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		ok, err := cond()
		if ok {
			return nil
		}
		if wait := sleep(ctx, 50*time.Millisecond); wait != nil {
			return fmt.Errorf("not within %s: %w", within, errors.Join(wait, err))
		}
	}
}

// native is PostgreSQL's own logical replication.
type native struct {
	streaming bool
	via       string // connection string of the primary, where it is not the plain one
	p         *pair
}

func (n *native) setup(ctx context.Context, p *pair) error {
	n.p = p
	if err := p.copySchema(ctx); err != nil {
		return err
	}
	if err := p.primary.exec(ctx, database, "CREATE PUBLICATION bench FOR ALL TABLES"); err != nil {
		return err
	}
	if err := n.subscribe(ctx); err != nil {
		return err
	}
	return n.copied(ctx)
}

// subscribe begins the initial copy.
func (n *native) subscribe(ctx context.Context) error {
	via := n.via
	if via == "" {
		via = n.p.primary.conninfo(database)
	}
	return n.p.replica.exec(ctx, database, fmt.Sprintf(
		"CREATE SUBSCRIPTION bench CONNECTION '%s' PUBLICATION bench WITH (streaming = %t)", via, n.streaming))
}

func (n *native) copied(ctx context.Context) error {
	return until(ctx, copyWithin, func() (bool, error) {
		left, err := n.p.replica.text(ctx, database, `SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'`)
		return left == "0", err
	})
}

func (n *native) hold(ctx context.Context) error {
	if err := n.p.replica.exec(ctx, database, "ALTER SUBSCRIPTION bench DISABLE"); err != nil {
		return err
	}
	return n.p.slotsAtRest(ctx)
}

func (n *native) catchUp(ctx context.Context, marker int64, _ string) error {
	if err := n.p.replica.exec(ctx, database, "ALTER SUBSCRIPTION bench ENABLE"); err != nil {
		return err
	}
	return awaitMarker(ctx, n.p.replica, marker)
}

func (n *native) agents() []int { return nil }
func (n *native) close()        {}

// slotsAtRest waits until nobody streams from the primary.
func (p *pair) slotsAtRest(ctx context.Context) error {
	return until(ctx, 30*time.Second, func() (bool, error) {
		busy, err := p.primary.text(ctx, database, `SELECT count(*)::text FROM pg_replication_slots WHERE active`)
		return busy == "0", err
	})
}

// pglogical is the extension that native replication grew out of.
type pglogical struct{ p *pair }

func pglogicalInstalled() bool {
	found, _ := filepath.Glob("/usr/lib/postgresql/15/lib/pglogical.so")
	return len(found) > 0
}

func (g *pglogical) setup(ctx context.Context, p *pair) error {
	g.p = p
	if err := p.copySchema(ctx); err != nil {
		return err
	}
	for name, s := range map[string]*server{"provider": p.primary, "subscriber": p.replica} {
		err := s.exec(ctx, database, "CREATE EXTENSION pglogical",
			fmt.Sprintf("SELECT pglogical.create_node(node_name := '%s', dsn := '%s')", name, s.conninfo(database)))
		if err != nil {
			return err
		}
	}
	// A table without a primary key can only be in a set of inserts.
	err := p.primary.exec(ctx, database, `
		SELECT pglogical.replication_set_add_table(CASE WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)
			THEN 'default' ELSE 'default_insert_only' END, c.oid::regclass)
		FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace`)
	if err != nil {
		return err
	}
	err = p.replica.exec(ctx, database, fmt.Sprintf(
		"SELECT pglogical.create_subscription('bench', '%s', ARRAY['default', 'default_insert_only'], false, true)", p.primary.conninfo(database)))
	if err != nil {
		return err
	}
	return until(ctx, 10*time.Minute, func() (bool, error) {
		state, err := p.replica.text(ctx, database, `SELECT status FROM pglogical.show_subscription_status('bench')`)
		return state == "replicating", err
	})
}

func (g *pglogical) hold(ctx context.Context) error {
	if err := g.p.replica.exec(ctx, database, "SELECT pglogical.alter_subscription_disable('bench', true)"); err != nil {
		return err
	}
	return g.p.slotsAtRest(ctx)
}

func (g *pglogical) catchUp(ctx context.Context, marker int64, _ string) error {
	if err := g.p.replica.exec(ctx, database, "SELECT pglogical.alter_subscription_enable('bench', true)"); err != nil {
		return err
	}
	return awaitMarker(ctx, g.p.replica, marker)
}

func (g *pglogical) agents() []int { return nil }
func (g *pglogical) close()        {}

// decode reads the changes and throws them away: nothing that reads them by logical
// decoding is faster.
type decode struct{ p *pair }

func (d *decode) setup(ctx context.Context, p *pair) error {
	d.p = p
	if err := p.replica.exec(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return err
	}
	return p.primary.exec(ctx, database, "CREATE PUBLICATION bench FOR ALL TABLES",
		"SELECT pg_create_logical_replication_slot('decode', 'pgoutput')")
}

func (d *decode) hold(context.Context) error { return nil }

func (d *decode) catchUp(ctx context.Context, _ int64, end string) error {
	return d.p.primary.tool(ctx, "pg_recvlogical", "--dbname", database, "--slot", "decode", "--start", "--endpos", end,
		"--file", os.DevNull, "--fsync-interval", "0", "-o", "proto_version=1", "-o", "publication_names=bench")
}

func (d *decode) agents() []int { return nil }
func (d *decode) close()        {}
