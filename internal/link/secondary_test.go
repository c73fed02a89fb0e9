package link

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/problem"
)

// TestAway: what the other agent says as it stops is told of it, not of this side.
func TestAway(t *testing.T) {
	t.Parallel()
	l := &link{rec: catalog.Link{Name: "shop", Peer: "alpha"}}
	told := *errHalted // as it comes over the wire
	p := l.away(problem.Of(fmt.Errorf("ask peer alpha: %w", lostStream(&told)), "disconnected"))
	if p.Code != "peer-stopped" || !p.Retryable || !strings.Contains(p.Cause, "the agent of instance alpha was stopped") {
		t.Errorf("got %+v", p)
	}
	lost := problem.Of(lostStream(fmt.Errorf("EOF")), "disconnected")
	if l.away(lost) != lost {
		t.Errorf("got %+v for a stream that broke", l.away(lost))
	}
}

// TestAgeOfHeartbeats: one that waited while nobody read is as old as it is, whatever
// the two clocks show, and a clock that is set does no lasting harm.
func TestAgeOfHeartbeats(t *testing.T) {
	t.Parallel()
	var c ages
	read, theirs := time.Now(), time.Now().Add(-time.Hour)
	for i, step := range []struct{ sent, read, waited, age time.Duration }{
		{0, 0, time.Second, 0},
		{1 * time.Second, 1 * time.Second, time.Second, 0},
		{2 * time.Second, 22 * time.Second, 0, 20 * time.Second}, // the reader stood still for 20 s
		{3 * time.Second, 22 * time.Second, 0, 19 * time.Second},
		{21 * time.Second, 22 * time.Second, 0, time.Second},
		{23 * time.Second, 23 * time.Second, time.Second, 0},
		{14 * time.Second, 24 * time.Second, time.Second, 0}, // their clock was put back
		{15 * time.Second, 25 * time.Second, 0, 0},
		{36 * time.Second, 26 * time.Second, 0, 0}, // and forth
		{37 * time.Second, 27 * time.Second, 0, 0},
		{5 * time.Second, 28 * time.Second, 0, 0}, // and back, while the stream is never still
		{6 * time.Second, 30 * time.Second, 0, time.Second},
	} {
		now := read.Add(step.read)
		if got := now.Sub(c.sent(theirs.Add(step.sent).Round(0), now, step.waited)); got != step.age {
			t.Errorf("step %d: %s old, want %s", i, got, step.age)
		}
	}
}
