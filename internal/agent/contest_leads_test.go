package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// Of two secondaries that reach each other one is opened by force.

// orphans is a family whose secondaries know each other and whose alpha is gone; beta was
// opened by force.
func orphans(t *testing.T) (a, b, c *instance) {
	t.Helper()
	a, b, c = family(t)
	know(t, b, c)
	a.stop()
	b.awaitState(t, "shop", api.StateDisconnected)
	if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	return a, b, c
}

// leftTo wants err to say that beta leads, and both ways on.
func leftTo(t *testing.T, what string, err error) {
	t.Helper()
	p, ok := problem.As(err)
	if !ok || p.Code != "primary-moved" || !strings.Contains(p.Cause, "instance beta leads it, by link shop") ||
		p.Remedy != "hawser link follow other --primary beta" || !strings.Contains(p.Advice, "hawser link drop shop --force on instance beta") {
		t.Errorf("%s: %v", what, err)
	}
}

// TestForcedBesideALeader: beta leads since it was opened by force, and gamma sees it. Gamma
// says so by itself, is not opened beside it, and follows it when a person says so; alpha,
// back, rejoins beta and forgets gamma.
func TestForcedBesideALeader(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := orphans(t)
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta leads')`)
	for what, o := range map[string]api.FailoverOptions{"force": {Force: true}, "check of a force": {Force: true, Check: true}, "planned": {}} {
		_, err := c.FailoverLink(ctx, "other", o)
		leftTo(t, what, err)
	}
	if err := try(t, c, `INSERT INTO audit (what) VALUES ('x')`); err == nil {
		t.Error("gamma took a write")
	}
	c.awaitRemedy(t, "other", "hawser link follow other --primary beta")
	leftTo(t, "resume", c.ResumeLink(ctx, "other"))
	if err := c.PauseLink(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	_, err := c.FailoverLink(ctx, "other", api.FailoverOptions{Force: true})
	leftTo(t, "force of a paused link", err)
	if err := c.ResumeLink(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	id := idOf(t, c, "other")
	if err := c.FollowLink(ctx, "other", "beta"); err != nil {
		t.Fatal(err)
	}
	c.awaitPrimary(t, "other", b)
	equal(t, b, c, "shop")
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	a.awaitForgotten(t, "other", id)
	equal(t, b, a, "shop")
	proven(t, b, "other")
}

// TestForcedInsteadOfALeader: a person wants gamma to lead and not beta, which was opened by
// force. What the refusal names does that: beta's database is left to itself first.
func TestForcedInsteadOfALeader(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	_, b, c := orphans(t)
	_, err := c.FailoverLink(ctx, "other", api.FailoverOptions{Force: true})
	leftTo(t, "force", err)
	c.awaitRemedy(t, "other", "hawser link follow other --primary beta")
	if _, err := b.DropLink(ctx, "shop", api.DropOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	testpg.Eventually(t, 30*time.Second, "gamma says that alpha is away", func() (bool, error) {
		l, err := c.Link(ctx, "other")
		if err != nil || l.State != api.StateDisconnected || l.Cause.Code == "primary-moved" {
			return false, fmt.Errorf("it is %s: %v, %v", l.State, l.Cause, err)
		}
		return true, nil
	})
	if _, err := c.FailoverLink(ctx, "other", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('gamma leads')`)
}
