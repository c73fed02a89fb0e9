package soak

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/testpg"
	"github.com/hawser/hawser/internal/testpg/history"
)

// total is what a run adds up to.
type total struct {
	rounds, reads int // rounds count on from -first
	outcomes      map[history.Outcome]int
	failures      int
}

// TestSoak runs rounds of faults and failovers for as long as -soak says.
func TestSoak(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	t.Logf("seed %d; again: go test ./internal/soak -run TestSoak -count 1 -v -seed %d -first %d -soak %s", seed, seed, *first, *duration)
	w := newWorld(t)
	w.introduce(t)
	w.link(t)
	d := &drill{w: w, faults: map[kind]int{}, started: time.Now()}
	sum := &total{rounds: *first, outcomes: map[history.Outcome]int{}}
	defer func() { t.Log(report(seed, d, sum)) }()
	for begun := time.Now(); time.Since(begun) < *duration && !t.Failed(); sum.rounds++ {
		round(t, d, sum, seed)
	}
}

// round lets clients work while the plan is carried out, and judges what they saw.
func round(t *testing.T, d *drill, sum *total, seed uint64) {
	t.Helper()
	d.w.reset(t)
	c := gather(d.w, seed+uint64(sum.rounds)<<32)
	d.firstLook, d.report = c.firstLook, c.rec.Report
	quiet := false
	defer func() {
		if !quiet { // the test ended in the middle
			c.disperse()
		}
	}()
	for i, s := range plan(seed, sum.rounds) {
		t.Logf("[%5.1f s] round %d, step %d: %s", time.Since(d.started).Seconds(), sum.rounds, i, s)
		c.awaitWrites(t)
		d.step(t, s)
	}
	d.w.heal(t)
	d.w.awaitSynchronized(t)
	c.awaitWrites(t)
	c.disperse()
	quiet = true
	judge(t, d.w, c, sum, time.Since(d.started))
}

func judge(t *testing.T, w *world, c *crowd, sum *total, since time.Duration) {
	t.Helper()
	primary, _ := w.now.get()
	h := c.rec.Finish(c.finals(t, primary)...)
	t.Logf("[%5.1f s] round %d: all is quiet; %d transactions and %d looks are checked", since.Seconds(), sum.rounds, len(h.Attempts), len(h.Reads))
	for _, a := range h.Attempts {
		sum.outcomes[a.Outcome]++
	}
	sum.reads += len(h.Reads)
	for _, v := range history.Check(h) {
		sum.failures++
		t.Errorf("round %d: %s", sum.rounds, v)
	}
	if a, b := digest(t, w.sides[0]), digest(t, w.sides[1]); a != b {
		sum.failures++
		t.Errorf("round %d: the rows differ: alpha\n%sbeta\n%s", sum.rounds, a, b)
	}
}

// firstLook reads the new primary as soon as it is open: everything that was
// acknowledged has to be there.
func (c *crowd) firstLook(t *testing.T, primary *side) {
	t.Helper()
	if r, err := c.once(primary, false); err == nil {
		c.rec.Read(r)
	} else {
		t.Logf("  the new primary could not be read: %v", err) // a fault may have hit it
	}
}

// awaitWrites waits until clients have committed some more: wherever the primary
// is, it takes writes once nothing is broken.
func (c *crowd) awaitWrites(t *testing.T) {
	t.Helper()
	from := c.rec.Committed()
	testpg.Eventually(t, patience, "the clients can write", func() (bool, error) {
		if c.rec.Committed() > from+20 {
			return true, nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return false, c.last
	})
}

func report(seed uint64, d *drill, sum *total) string {
	var out strings.Builder
	fmt.Fprintf(&out, "seed %d: %d rounds in %s\n", seed, sum.rounds-*first, time.Since(d.started).Round(time.Second))
	fmt.Fprintf(&out, "  transactions checked: %d committed, %d unknown, %d rolled back; %d looks\n",
		sum.outcomes[history.Committed], sum.outcomes[history.Unknown], sum.outcomes[history.Aborted], sum.reads)
	fmt.Fprintf(&out, "  planned failovers: %d done, %d not, for a fault\n", d.done, d.undone)
	fmt.Fprintf(&out, "  forced failovers: %d, with %d transactions given up and reported\n", d.forced, d.lost)
	for _, k := range kinds {
		fmt.Fprintf(&out, "  %-26s %d\n", k, d.faults[k])
	}
	fmt.Fprintf(&out, "  failures: %d", sum.failures)
	return out.String()
}

// TestPlanFollowsFromItsSeed: a failing seed can be played again.
func TestPlanFollowsFromItsSeed(t *testing.T) {
	for round := range 20 {
		a, b := fmt.Sprint(plan(7, round)), fmt.Sprint(plan(7, round))
		if a != b {
			t.Fatalf("round %d: %s and %s", round, a, b)
		}
		if a == fmt.Sprint(plan(8, round)) {
			t.Fatalf("round %d: two seeds have one plan", round)
		}
	}
}
