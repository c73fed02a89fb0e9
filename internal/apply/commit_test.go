package apply

import (
	"testing"

	"github.com/hawser/hawser/internal/frame"
)

// TestDurableFollowsTheDisk: a position counts as durable when the replica's own WAL is
// flushed as far as its commit, and no further.
func TestDurableFollowsTheDisk(t *testing.T) {
	a := New(Config{})
	a.pending = []commitMark{{source: 10, target: 100}, {source: 20, target: 200}, {source: 30, target: 300}}
	for _, x := range []struct{ flushed, durable frame.LSN }{{99, 0}, {100, 10}, {250, 20}, {250, 20}, {1000, 30}} {
		a.flushed(x.flushed)
		if a.durable != x.durable {
			t.Errorf("flushed up to %d, %d counts as durable, want %d", x.flushed, a.durable, x.durable)
		}
	}
	if len(a.pending) != 0 {
		t.Errorf("%d commits are left", len(a.pending))
	}
}

// TestSkippedWhileASnapshotIsAsked: a snapshot that is being taken may be of before the
// heartbeat's, so what it has to see is not forgotten meanwhile.
func TestSkippedWhileASnapshotIsAsked(t *testing.T) {
	s := seeding{active: true, skipped: map[uint64]bool{5: true, 12: true}, asked: 1}
	s.observe(frame.Snapshot{Xmin: 10, Xmax: 10})
	if len(s.skipped) != 2 {
		t.Errorf("%v is left of what was skipped while a snapshot was asked for", s.skipped)
	}
	s.asked = 0
	s.observe(frame.Snapshot{Xmin: 10, Xmax: 10})
	if len(s.skipped) != 1 || !s.skipped[12] {
		t.Errorf("%v is left of what was skipped, want 12 alone", s.skipped)
	}
}
