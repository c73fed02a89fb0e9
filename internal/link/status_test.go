package link

import (
	"context"
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
		m := granting(t, grant.All())
		m.cfg.Peers = reach{}
		l := withLink(m, role.Secondary)
		l.turned, l.cause = c.turned, c.cause
		if s := l.status(); s.State != Disconnected || s.Cause.Code != c.want || (s.Cause.Help() == "") != (c.want == "opening" || c.cause == turn) {
			t.Errorf("turned %s ago, because of %v: %s, %v", time.Since(c.turned).Round(time.Second), c.cause, s.State, s.Cause)
		}
	}
}

// reach is the way to the other side: open, or not for a reason.
type reach struct {
	Peers
	away *problem.Problem
}

func (r reach) Connected(string) <-chan struct{} {
	c := make(chan struct{})
	if r.away == nil {
		close(c)
	}
	return c
}

func (r reach) Call(context.Context, string, string, string, []byte) ([]byte, error) {
	return nil, r.away // asked only where there is a reason
}

// TestUnreached: why the other side can't be reached is told as it is now, whatever the
// stream ended with.
func TestUnreached(t *testing.T) {
	t.Parallel()
	then := problem.New("peer-stopped", "peer beta", "the agent of instance beta was stopped", "").Retry()
	now := problem.New("peer-disconnected", "peer beta", "there is no connection to it: it trusts another certificate", "hawser peer add").Retry()
	for _, r := range []role.Role{role.Primary, role.Secondary} {
		m := granting(t, grant.All())
		m.cfg.Peers = reach{away: now}
		l := withLink(m, r)
		l.ctx = t.Context()
		l.turned, l.cause = time.Now().Add(-2*openWithin), then
		if s := l.status(); s.State != Disconnected || s.Cause.Code != now.Code || s.Cause.Cause != now.Cause {
			t.Errorf("a %s that can't reach the other side: %s, %v", r, s.State, s.Cause)
		}
	}
}
