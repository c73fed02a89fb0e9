package link

import (
	"testing"
	"time"

	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// TestOpening: a side that has only just begun, or changed its role, is no trouble yet.
func TestOpening(t *testing.T) {
	t.Parallel()
	long := time.Now().Add(-2 * openWithin)
	away := problem.New("peer-disconnected", "peer beta", "there is no connection to it", "hawser peer test beta").Retry()
	turn := problem.New("not-primary", "link shop", "instance beta is secondary", "").Retry()
	for _, c := range []struct {
		turned time.Time
		cause  *problem.Problem
		want   string
	}{
		{time.Now(), nil, "opening"}, {time.Now(), turn, "opening"}, {time.Now(), away, away.Code},
		{long, nil, "disconnected"}, {long, turn, turn.Code},
	} {
		l := withLink(granting(t, grant.All()), role.Secondary)
		l.turned, l.cause = c.turned, c.cause
		if s := l.status(); s.State != Disconnected || s.Cause.Code != c.want || (s.Cause.Help() == "") != (c.want == "opening" || c.cause == turn) {
			t.Errorf("turned %s ago, because of %v: %s, %v", time.Since(c.turned).Round(time.Second), c.cause, s.State, s.Cause)
		}
	}
}
