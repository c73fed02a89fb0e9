package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg/history"
)

// kind is a fault.
type kind string

const (
	agentKill    kind = "agent kill -9"
	agentFreeze  kind = "agent frozen"
	postgresStop kind = "PostgreSQL immediate stop"
	postgresKill kind = "PostgreSQL kill -9"
	networkCut   kind = "network cut"
	networkSlow  kind = "network slow"
	networkMute  kind = "network half open"
)

var kinds = []kind{agentKill, agentFreeze, postgresStop, postgresKill, networkCut, networkSlow, networkMute}

// fault is one fault: what, to which side (or in which direction), how long after
// the step's begin, and for how long.
type fault struct {
	kind        kind
	side        int
	after, hold time.Duration
}

func (f fault) String() string {
	where := []string{"alpha", "beta"}[f.side]
	switch f.kind {
	case networkMute:
		where = []string{"alpha to beta", "beta to alpha"}[f.side]
	case networkCut, networkSlow:
		where = "between the agents"
	}
	return fmt.Sprintf("%s, %s, after %s for %s", f.kind, where, f.after, f.hold)
}

// step is a failover, or faults, or a failover with faults in its course.
type step struct {
	failover bool
	asked    int       // the side that is asked for the failover
	forced   *disaster // a forced failover; faults come while the old primary rejoins
	faults   []fault
	settle   bool // wait until all is well again before the next step
}

// disaster is how a primary is lost: the agents can't reach each other, and perhaps
// its agent or its PostgreSQL is gone too. The clients reach both sides all the while.
type disaster struct {
	with          kind          // networkCut alone, agentKill or postgresKill
	before, after time.Duration // the secondary is opened by force; the old primary comes back
}

func (d disaster) String() string {
	return fmt.Sprintf("%s of the primary, failover by force after %s, way back after %s", d.with, d.before, d.after)
}

func (s step) String() string {
	var parts []string
	if s.failover {
		parts = append(parts, fmt.Sprintf("failover, asked of %s", []string{"alpha", "beta"}[s.asked]))
	}
	if s.forced != nil {
		parts = append(parts, s.forced.String())
	}
	for _, f := range s.faults {
		parts = append(parts, f.String())
	}
	return strings.Join(parts, "; ")
}

// plan is a round's steps. It follows from the seed alone.
func plan(seed uint64, round int) []step {
	r := rand.New(rand.NewPCG(seed, uint64(round)))
	var steps []step
	for range 6 {
		s := step{failover: r.IntN(2) == 0, asked: r.IntN(2), settle: r.IntN(3) > 0}
		n, within := 1+r.IntN(2), 1200
		if s.failover {
			n, within = r.IntN(3), 600 // a failover is soon over
		} else if r.IntN(3) == 0 {
			s.forced = &disaster{[]kind{networkCut, agentKill, postgresKill}[r.IntN(3)], ms(r, 2000), ms(r, 3000)}
			n = r.IntN(3)
		}
		for range n {
			f := fault{kind: kinds[r.IntN(len(kinds))], side: r.IntN(2), after: ms(r, within), hold: ms(r, 2000)}
			if r.IntN(6) == 0 {
				f.hold = 10*time.Second + ms(r, 10_000) // longer than the agents wait for a sign of life
			}
			s.faults = append(s.faults, f)
		}
		slices.SortFunc(s.faults, func(a, b fault) int { return int(a.after - b.after) })
		steps = append(steps, s)
	}
	return steps
}

func ms(r *rand.Rand, most int) time.Duration { return time.Duration(r.IntN(most)) * time.Millisecond }

// drill carries out a plan, and counts.
type drill struct {
	w         *world
	faults    map[kind]int
	done      int // failovers that went through
	undone    int // that did not, because of a fault
	forced    int // forced failovers, each with its way back
	lost      int // transactions that these reported
	started   time.Time
	firstLook func(t *testing.T, primary *side) // after a failover
	report    func(lost ...history.Reported)    // after a forced one
}

func (d *drill) step(t *testing.T, s step) {
	t.Helper()
	if s.forced != nil {
		d.force(t, s)
		return
	}
	if s.failover {
		d.w.awaitSynchronized(t)
	}
	answer := make(chan error, 1)
	if s.failover {
		d.w.now.set(nil)
		go func() { answer <- d.failover(d.w.sides[s.asked]) }()
	} else {
		answer <- nil
	}
	d.strike(t, s.faults, func() {})
	err := <-answer
	if s.failover && err == nil {
		d.done++
		primary, _ := d.w.now.get()
		d.firstLook(t, primary)
	} else if s.failover {
		d.undone++
		t.Logf("  the failover did not go through: %v", err)
		if len(s.faults) == 0 {
			t.Errorf("a failover without a fault failed: %v", err)
		}
	}
	if s.settle || s.failover {
		d.w.awaitSynchronized(t)
	}
}

// strike injects faults, each at its time, and heals them when all were held. before is
// called before each.
func (d *drill) strike(t *testing.T, faults []fault, before func()) {
	t.Helper()
	began := time.Now()
	for _, f := range faults {
		pause(time.Until(began.Add(f.after)))
		before()
		d.inject(t, f)
	}
	for _, f := range faults {
		pause(time.Until(began.Add(f.after + f.hold)))
	}
	d.w.heal(t)
}

// failover swaps the roles; nil means that the new primary is known and open.
func (d *drill) failover(asked *side) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	result, err := asked.api.FailoverLink(ctx, linkName, api.FailoverOptions{Timeout: 30 * time.Second})
	if err != nil {
		return err
	}
	for _, s := range d.w.sides {
		if s.name == result.NewPrimary {
			d.w.now.set(s)
			return nil
		}
	}
	return fmt.Errorf("the new primary is %q", result.NewPrimary)
}

func (d *drill) inject(t *testing.T, f fault) {
	t.Helper()
	d.faults[f.kind]++
	s := d.w.sides[f.side]
	var err error
	switch f.kind {
	case agentKill:
		err = s.killAgent()
	case agentFreeze:
		err = s.signalAgent(syscall.SIGSTOP)
	case postgresStop:
		err = s.stopPostgres(t, syscall.SIGQUIT)
	case postgresKill:
		err = s.stopPostgres(t, syscall.SIGKILL)
	case networkCut:
		err = d.w.net.cut()
	case networkSlow:
		err = d.w.net.slow()
	case networkMute:
		err = d.w.net.mute([]string{"upstream", "downstream"}[f.side])
	}
	if err != nil {
		t.Fatalf("%s: %v", f, err)
	}
}

func pause(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}
