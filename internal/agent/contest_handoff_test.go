package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// A planned failover is cut between the handoff and the answer. From then on only the new
// side knows whether it took over, so the old one takes no writes until it hears that. Here
// is how a person gets a side that does, whatever is left.

// cutOff has alpha hand over to beta over a line that is cut before the answer; taken says
// that beta has taken over by then. Alpha is closed, and says so.
func cutOff(t *testing.T, taken bool) (a, b *instance, l line) {
	t.Helper()
	a, b, l = pairOver(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`, `INSERT INTO t VALUES (1, 'on both')`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	var release func()
	if taken {
		release = hold(t, b, "postgres", "hawser.link")
	} else {
		release = hold(t, b, "shop", "t")
		a.Exec(t, "shop", `INSERT INTO t VALUES (2, 'held up')`)
	}
	planned := asked(a, api.FailoverOptions{Timeout: 20 * time.Second})
	a.awaitPhase(t, "shop", "handing")
	if taken {
		b.awaitSession(t, "wants to store that it is primary", `wait_event_type = 'Lock' AND query LIKE 'UPDATE hawser.link SET side%'`)
	}
	l.Stop()
	if !taken { // what it received and did not apply goes with its agent
		b.stop()
	}
	release()
	if !taken {
		b.run(t)
	}
	if err := <-planned; err == nil {
		t.Fatal("the failover ended well")
	}
	cause, remedy := a.awaitCause(t, api.StateFailingOver, "outcome-unknown")
	if !strings.Contains(cause, "instance beta") || !strings.Contains(cause, "no writes") ||
		!strings.Contains(remedy, "hawser link drop shop --force") || !strings.Contains(remedy, "hawser link failover shop --force on instance beta") {
		t.Errorf("alpha says %s, and %s", cause, remedy)
	}
	if err := try(t, a, `INSERT INTO t VALUES (-1, 'x')`); err == nil || !strings.Contains(err.Error(), "25006") {
		t.Errorf("alpha took a write: %v", err)
	}
	_, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Force: true})
	turnedDown(t, "force on alpha", err, "outcome-unknown", "whether it took over")
	_, err = a.DropLink(context.Background(), "shop", api.DropOptions{})
	turnedDown(t, "drop on alpha", err, "failover-running", "both sides could be left writable")
	return a, b, l
}

// opens is what a side says to a write.
func (i *instance) opens(t *testing.T, sql string) {
	t.Helper()
	testpg.Eventually(t, 30*time.Second, i.name+" takes writes", func() (bool, error) {
		err := try(t, i, sql)
		return err == nil, err
	})
}

// TestOldPrimaryLeftAlone: the new side is gone for good, whether or not it had taken over.
// The old one opens when its link is dropped. Should the other one come back, it is told what
// it has, and a new link has the old one's rows.
func TestOldPrimaryLeftAlone(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]bool{"handed": false, "taken": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b, l := cutOff(t, taken)
			b.stop()
			l.heal(t)
			a.stop() // who asked, and its time limit, are forgotten
			a.run(t)
			if _, remedy := a.awaitCause(t, api.StateFailingOver, "outcome-unknown"); !strings.Contains(remedy, "hawser link drop shop --force") {
				t.Errorf("alpha says %s", remedy)
			}
			if _, err := a.DropLink(ctx, "shop", api.DropOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			a.opens(t, `INSERT INTO t VALUES (10, 'alpha, alone')`)

			// Not for good, after all.
			b.run(t)
			testpg.Eventually(t, 40*time.Second, "beta says that alpha has dropped the link", func() (bool, error) {
				l, err := b.Link(ctx, "shop")
				if err != nil || l.Cause == nil || !strings.Contains(l.Cause.Cause, "alpha") || !strings.Contains(l.Cause.Help(), "hawser link drop shop") {
					return false, fmt.Errorf("it is %s and %s: %v, %v", l.Role, l.State, l.Cause, err)
				}
				return true, nil
			})
			if opened := try(t, b, `INSERT INTO t VALUES (11, 'beta')`) == nil; opened != taken {
				t.Errorf("beta takes writes: %v", opened)
			}
			if _, err := b.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
				t.Fatal(err)
			}
			b.Exec(t, "postgres", `DROP DATABASE shop WITH (FORCE)`)
			if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
				t.Fatal(err)
			}
			b.awaitState(t, "shop", api.StateSynchronized)
			equal(t, a, b, "shop")
		})
	}
}

// TestNewPrimaryLeftAlone: the old side is gone, or the two can't reach each other. The new
// one opened by itself, or opens by force; back in reach, the old one follows.
func TestNewPrimaryLeftAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ taken, gone bool }{
		"handed, alpha gone": {false, true}, "handed, no network": {false, false},
		"taken, alpha gone": {true, true}, "taken, no network": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b, l := cutOff(t, c.taken)
			if c.gone {
				a.stop()
				a.Cluster.Stop(t)
			}
			if !c.taken {
				if cause, remedy := b.awaitCause(t, api.StateDisconnected, "peer-disconnected", "disconnected", "stream-lost"); cause == "" || remedy == "" {
					t.Errorf("beta says %s, and %s", cause, remedy)
				}
				_, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 2 * time.Second})
				if err == nil || !strings.Contains(err.Error(), "hawser link failover shop --force") {
					t.Errorf("a planned failover says %v", err)
				}
				r, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
				if err != nil || r.Term != 2 {
					t.Fatalf("%+v, %v", r, err)
				}
			}
			b.opens(t, `INSERT INTO t VALUES (20, 'beta leads')`)
			if c.gone {
				a.Cluster.Start(t)
				a.run(t)
			}
			if err := try(t, a, `INSERT INTO t VALUES (-1, 'x')`); err == nil {
				t.Error("alpha took a write")
			}
			l.heal(t)
			if !c.taken {
				a.awaitState(t, "shop", api.StateDiverged)
				testpg.Eventually(t, 30*time.Second, "alpha reports", func() (bool, error) {
					l, err := a.Link(ctx, "shop")
					return err == nil && strings.Contains(l.Cause.Cause, "never received: 1, with 1 changes"), err
				})
				if err := a.RejoinLink(ctx, "shop"); err != nil {
					t.Fatal(err)
				}
			}
			a.awaitState(t, "shop", api.StateSynchronized)
			equal(t, a, b, "shop")
			proven(t, b, "shop")
		})
	}
}
