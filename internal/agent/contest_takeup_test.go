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

// killedIn has an instance's agent, a process behind a tap, killed at a question of its
// sessions of that purpose, while it is asked for something; then it runs again.
func (i *instance) killedIn(t *testing.T, p *tap, at int, purpose string, ask func() error) {
	t.Helper()
	held := p.arm(at, false, func(of string) bool { return of == purpose })
	asked := make(chan error, 1)
	go func() { asked <- ask() }()
	testpg.Await(t, i.name+" is where it is killed", held)
	i.stop()
	p.release()
	i.run(t)
	if err := testpg.Await(t, "the command is answered", asked); err == nil {
		t.Fatalf("the agent of %s was killed, and the command succeeded", i.name)
	}
}

// behindTap has an instance's agent run as a process that reaches its PostgreSQL by a tap.
func (i *instance) behindTap(t *testing.T) *tap {
	t.Helper()
	i.stop()
	p := newTap(t, i)
	i.process = true
	i.run(t)
	return p
}

// TestKilledInFollowBack: gamma stands where alpha handed over, and alpha leads again. Alpha is
// killed while it makes its half of the link anew, since gamma was told to follow it. What it
// takes back then is its own: gamma, with all that it has, stands as before and follows.
func TestKilledInFollowBack(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		question int
		purpose  string
	}{{1, "hawser:other:drop"}, {1, "hawser:other:create"}, {4, "hawser:other:create"}} {
		t.Run(fmt.Sprintf("%s %d", at.purpose, at.question), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b, c := family(t)
			p := a.behindTap(t)
			b.awaitState(t, "shop", api.StateSynchronized)
			c.awaitState(t, "other", api.StateSynchronized)
			failover(t, a, "shop")
			c.awaitState(t, "other", api.StateSuspended)
			b.awaitState(t, "shop", api.StateSynchronized)
			failover(t, b, "shop")
			a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
			c.awaitRemedy(t, "other", "hawser link follow other --primary alpha")
			before := digest(t, c.Cluster, "shop")
			a.killedIn(t, p, at.question, at.purpose, func() error { return c.FollowLink(ctx, "other", "alpha") })
			testpg.Eventually(t, 30*time.Second, "alpha has taken back what it left unfinished", func() (bool, error) {
				_, err := a.Link(ctx, "other")
				p, ok := problem.As(err)
				return ok && p.Code == "link-not-found", nil
			})
			if after := digest(t, c.Cluster, "shop"); after != before {
				t.Fatalf("gamma had\n%s\nand has\n%s", before, after)
			}
			if try(t, c, `INSERT INTO audit (what) VALUES ('x')`) == nil {
				t.Fatal("gamma took a write beside alpha")
			}
			testpg.Eventually(t, 60*time.Second, "gamma follows alpha", func() (bool, error) {
				err := c.FollowLink(ctx, "other", "alpha")
				return err == nil, err
			})
			c.awaitPrimary(t, "other", a)
			equal(t, a, c, "shop")
			proven(t, a, "other")
		})
	}
}

// TestKilledInDropKeepsTheReplica: beta is told to drop the link, and alpha is killed while it
// takes its half away. Beta keeps its database, as nobody asked for less.
func TestKilledInDropKeepsTheReplica(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	p := a.behindTap(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	before := digest(t, b.Cluster, "shop")
	drop := func() error {
		_, err := b.DropLink(ctx, "shop", api.DropOptions{})
		return err
	}
	a.killedIn(t, p, 1, "hawser:shop:drop", drop)
	testpg.Eventually(t, 30*time.Second, "alpha has dropped its half", func() (bool, error) {
		list, err := a.Links(ctx)
		return err == nil && len(list) == 0, err
	})
	if after := digest(t, b.Cluster, "shop"); after != before {
		t.Errorf("beta had\n%s\nand has\n%s", before, after)
	}
	if _, err := b.Link(ctx, "shop"); err == nil {
		if err := drop(); err != nil {
			t.Fatal(err)
		}
	}
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('free')`)
}

// TestFollowBehindARefusedTerm: a failover of gamma's link was taken back, so that its next term
// is one that gamma knows nothing of. Then alpha hands over to beta, which takes gamma's link up
// in that term, and is lost before gamma could hear of it. Gamma follows beta when it is told to.
func TestFollowBehindARefusedTerm(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	know(t, b, c)
	a.Exec(t, "shop", `SELECT lo_create(4711)`)
	_, err := a.FailoverLink(ctx, "other", api.FailoverOptions{})
	turnedDown(t, "failover with a large object", err, "large-objects", "")
	a.Exec(t, "shop", `SELECT lo_unlink(4711)`)
	c.stop()
	a.awaitState(t, "other", api.StateDisconnected)
	failover(t, a, "shop")
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta leads')`)
	a.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	c.run(t)
	c.awaitConnected(t, "beta")
	if err := c.FollowLink(ctx, "other", "beta"); err != nil {
		t.Fatal(err)
	}
	c.awaitPrimary(t, "other", b)
	equal(t, b, c, "shop")
	proven(t, b, "other")
}

// TestRejoinAsTheAgentStarts: the agent of a side that was forced out starts, and closes its
// database once more, which ends sessions. A rejoin waits for that, and begins behind it.
func TestRejoinAsTheAgentStarts(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	forcedBeside(t, b, "shop")
	a.awaitState(t, "shop", api.StateDiverged)
	a.stop()
	holder := a.Connect(t, "postgres")
	within(t, holder, `BEGIN`, `LOCK pg_db_role_setting IN SHARE MODE`) // no fence is closed
	a.run(t)
	b.awaitConnected(t, "alpha")
	a.awaitSession(t, "closes the database", `application_name = 'hawser:shop:failover' AND wait_event_type = 'Lock'`)
	soon, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := a.RejoinLink(soon, "shop"); err == nil {
		t.Fatal("alpha rejoined before it was closed")
	}
	within(t, holder, `ROLLBACK`)
	testpg.Eventually(t, 30*time.Second, "alpha rejoins", func() (bool, error) {
		err := a.RejoinLink(ctx, "shop")
		return err == nil, err
	})
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestFailoverBehindALostOne: the primary's PostgreSQL dies while it gets ready to hand over, and
// is back, behind the time limit, just when the other side has been opened by force. Whoever
// waited for that failover is told, and it is in no later one's way.
func TestFailoverBehindALostOne(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	waits := b.Connect(t, "postgres") // a replication slot can't be made
	within(t, waits, `BEGIN`, `SELECT pg_current_xact_id()`)
	planned := asked(a, api.FailoverOptions{Timeout: 2 * time.Second})
	a.awaitPhase(t, "shop", "preparing")
	a.Kill(t)
	if err := testpg.Await(t, "the planned failover is answered", planned); err == nil {
		t.Fatal("it handed over without its PostgreSQL")
	}
	within(t, waits, `ROLLBACK`)
	testpg.Eventually(t, 30*time.Second, "beta is opened by force", func() (bool, error) {
		_, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
		return err == nil, err
	})
	a.Cluster.Start(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	failover(t, b, "shop")
	b.awaitState(t, "shop", api.StateSynchronized)
	failover(t, a, "shop")
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
}

// TestFailoverInNoTime: the user's own limit is no reason to take the primary for lost.
func TestFailoverInNoTime(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	for n := range 20 {
		i := []*instance{a, b}[n%2]
		_, err := i.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: time.Duration(n+1) * 200 * time.Microsecond})
		if p, ok := problem.As(err); err != nil && (!ok || p.Code != "failover-timeout" && p.Code != "failover-running" && p.Code != "failover-not-now") {
			t.Errorf("of %s: %v", i.name, err)
		}
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestFailoverOfALaggingSecondary: what a failover waits for, and why it ended, is how far the
// secondary is behind.
func TestFailoverOfALaggingSecondary(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	release := hold(t, b, "shop", "t")
	a.Exec(t, "shop", `INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1000, 9000) i`)
	planned := asked(a, api.FailoverOptions{Timeout: 4 * time.Second})
	testpg.Eventually(t, 30*time.Second, "alpha says what it waits for", func() (bool, error) {
		l, err := a.Link(context.Background(), "shop")
		return err == nil && l.Cause != nil && l.Cause.Code == "failover-waits" && strings.Contains(l.Cause.Cause, "behind"), err
	})
	if p, ok := problem.As(testpg.Await(t, "the failover is answered", planned)); !ok || p.Code != "failover-timeout" || !strings.Contains(p.Cause, "behind") || !strings.Contains(p.Advice, "--timeout") {
		t.Errorf("the failover ends with %v", p)
	}
	release()
	b.awaitState(t, "shop", api.StateSynchronized)
	failover(t, a, "shop")
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}
