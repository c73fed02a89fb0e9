package link

import (
	"fmt"
	"strings"
	"testing"

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
