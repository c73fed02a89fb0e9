package link

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hawser/hawser/internal/testpg"
)

// TestCrewThatWaits: whoever comes while it waits is told so, and nothing runs behind its back.
func TestCrewThatWaits(t *testing.T) {
	t.Parallel()
	for range 200 {
		var c crew
		var begun, ran atomic.Int32
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for c.Go(func() { ran.Add(1) }) {
					begun.Add(1)
				}
			})
		}
		testpg.Returns(t, "the crew has gone home", c.Wait)
		after := ran.Load()
		testpg.Returns(t, "the callers are turned away", callers.Wait)
		if begun.Load() != after || ran.Load() != after {
			t.Fatalf("%d began; %d had run when it had waited, %d at the end", begun.Load(), after, ran.Load())
		}
	}
}
