package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// clock is that of a PostgreSQL which a test sets. (Go asks the kernel itself, so an
// agent's clock can't be set so.)
type clock struct{ file string }

// onOwnClock starts a cluster whose processes read the time from a clock of their own.
func onOwnClock(t *testing.T) (*testpg.Cluster, clock) {
	t.Helper()
	libs, _ := filepath.Glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(libs) == 0 || len(bins) == 0 {
		t.Skip("no clock can be set here: apt-get install faketime postgresql")
	}
	real, dir := slices.Max(bins), t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) { // PostgreSQL's user has to pass
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	programs, err := os.ReadDir(real)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if p.Name() == "postgres" {
			continue
		}
		if err := os.Symlink(filepath.Join(real, p.Name()), filepath.Join(bin, p.Name())); err != nil {
			t.Fatal(err)
		}
	}
	c := clock{filepath.Join(dir, "clock")}
	c.set(t, 0)
	script := fmt.Sprintf("#!/bin/sh\nLD_PRELOAD=%s FAKETIME_TIMESTAMP_FILE=%s FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 exec %s \"$@\"\n",
		libs[0], c.file, filepath.Join(real, "postgres"))
	if err := os.WriteFile(filepath.Join(bin, "postgres"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return testpg.StartVersion(t, bin, nil), c
}

// set puts the clock that far from the right time.
func (c clock) set(t *testing.T, off time.Duration) {
	t.Helper()
	if err := os.WriteFile(c.file+".new", fmt.Appendf(nil, "%+d\n", int(off.Seconds())), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(c.file+".new", c.file); err != nil {
		t.Fatal(err)
	}
}

// TestClockJumps sets the clock of either PostgreSQL hours forward and back while the
// link follows, and in the middle of failovers both ways. Lag, states and time limits are
// right.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	onA, clockA := onOwnClock(t)
	onB, clockB := onOwnClock(t)
	a, b := newInstanceOn(t, "alpha", onA), newInstanceOn(t, "beta", onB)
	taps := map[clock]*tap{}
	for c, i := range map[clock]*instance{clockA: a, clockB: b} {
		i.stop()
		taps[c] = newTap(t, i)
		i.run(t)
	}
	introduce(t, a, b)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())`)
	b.awaitState(t, "shop", api.StateSynchronized)
	n := 0
	p, s := a, b
	follows := func() {
		t.Helper()
		n++
		p.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d)`, n))
		equal(t, p, s, "shop")
		for _, i := range []*instance{p, s} {
			i.awaitState(t, "shop", api.StateSynchronized)
			if l, err := i.Link(ctx, "shop"); err != nil || l.LagSeconds == nil || *l.LagSeconds > 60 {
				t.Errorf("%s shows a lag of %v seconds: %v", i.name, l.LagSeconds, err)
			}
		}
	}
	for _, c := range []clock{clockA, clockB} {
		for i, off := range []time.Duration{6 * time.Hour, -6 * time.Hour, 0} {
			set := func() { c.set(t, off) }
			if i == 0 {
				set()
				follows()
			}
			taps[c].when(4+2*i, ofFailover, set)
			if _, err := p.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 40 * time.Second}); err != nil {
				t.Fatalf("clock to %s: %v", off, err)
			}
			p, s = s, p
			var skew float64
			for _, line := range testpg.Rows(t, map[clock]*instance{clockA: a, clockB: b}[c].Connect(t, "postgres"), `SELECT extract(epoch FROM clock_timestamp())`) {
				if _, err := fmt.Sscan(line, &skew); err != nil {
					t.Fatal(err)
				}
			}
			if d := time.Until(time.Unix(int64(skew), 0)) - off; d.Abs() > time.Hour {
				t.Fatalf("the clock could not be set: it is off by %s", d)
			}
			follows()
		}
	}
	if r, err := p.VerifyLink(ctx, "shop", api.VerifyOptions{}); err != nil || !r.Equal {
		t.Errorf("verify: %+v, %v", r, err)
	}
}
