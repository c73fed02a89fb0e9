package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// Commands that are given on both sides at the same moment.

// asked runs a failover beside the test.
func asked(i *instance, o api.FailoverOptions) <-chan error {
	ended := make(chan error, 1)
	go func() {
		_, err := i.FailoverLink(context.Background(), "shop", o)
		ended <- err
	}()
	return ended
}

// awaitPhase waits until an instance has stored how far its link is in a failover.
func (i *instance) awaitPhase(t *testing.T, link, phase string) {
	t.Helper()
	testpg.Eventually(t, 30*time.Second, i.name+" is "+phase, func() (bool, error) {
		got := i.Rows(t, "postgres", `SELECT side->>'phase' FROM hawser.link WHERE name = '`+link+`'`)
		return len(got) == 1 && got[0] == phase, nil
	})
}

// awaitHandoff waits until a primary has written its handoff, the last that it does on the
// way into the stream.
func (i *instance) awaitHandoff(t *testing.T) {
	t.Helper()
	i.awaitSession(t, "has written the handoff", `state = 'idle' AND query = 'SELECT pg_logical_emit_message(true, $1::text, $2::text)'`)
}

// awaitSession waits until a session of the agent's does something.
func (i *instance) awaitSession(t *testing.T, what, where string) {
	t.Helper()
	conn := i.Connect(t, "postgres")
	testpg.Eventually(t, 30*time.Second, i.name+" "+what, func() (bool, error) {
		return len(testpg.Rows(t, conn, `SELECT FROM pg_stat_activity WHERE `+where)) > 0, nil
	})
}

// TestForceBesideAPlannedFailover: while alpha hands over, beta is told to open by force.
// Whichever comes first counts, the other command says what became of it, and what was
// written is on both sides in the end.
func TestForceBesideAPlannedFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)

	// Beta, held up by a lock, has not applied the handoff.
	release := hold(t, b, "shop", "t")
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'held up')`)
	planned := asked(a, api.FailoverOptions{Timeout: 3 * time.Minute})
	a.awaitPhase(t, "shop", "handing")
	for _, i := range []*instance{a, b} {
		_, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{})
		turnedDown(t, "failover on "+i.name, err, "failover-running", "under way")
		_, err = i.DropLink(ctx, "shop", api.DropOptions{})
		turnedDown(t, "drop on "+i.name, err, "failover-running", "under way")
	}
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	release()
	select {
	case err := <-planned:
		if p, ok := problem.As(err); !ok || p.Code != "forced-out" || p.Advice == "" {
			t.Errorf("planned failover: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("whoever asked for the planned failover is not told that beta opened by force")
	}
	b.Exec(t, "shop", `INSERT INTO t VALUES (2, 'beta leads')`)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	failover(t, b, "shop")
	b.awaitState(t, "shop", api.StateSynchronized)

	// Beta has decided to take over, and can't store that yet.
	release = hold(t, b, "postgres", "hawser.link")
	planned = asked(a, api.FailoverOptions{Timeout: 3 * time.Minute})
	b.awaitSession(t, "wants to store that it is primary", `wait_event_type = 'Lock' AND query LIKE 'UPDATE hawser.link SET side%'`)
	writer := b.Connect(t, "postgres")
	within(t, writer, `BEGIN`, `SELECT pg_current_xact_id()`) // no slot is made before it ends
	forced := asked(b, api.FailoverOptions{Force: true})
	look := b.Connect(t, "postgres")
	testpg.Eventually(t, 30*time.Second, "beta's applier has ended", func() (bool, error) {
		select {
		case err := <-forced:
			t.Fatalf("force: %v", err)
		default:
		}
		return len(testpg.Rows(t, look, `SELECT FROM pg_stat_activity WHERE application_name = 'hawser:shop:apply'`)) == 0, nil
	})
	release()
	testpg.Eventually(t, 30*time.Second, "beta takes writes", func() (bool, error) {
		err := try(t, b, `INSERT INTO t VALUES (3, 'beta leads again')`)
		return err == nil, err
	})
	within(t, writer, `ROLLBACK`)
	if err := testpg.Await(t, "the planned failover is answered", planned); err != nil {
		t.Errorf("planned failover: %v", err)
	}
	turnedDown(t, "force", testpg.Await(t, "the forced failover is answered", forced), "failover-not-now", "primary")
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	proven(t, a, "shop")
}

// TestStoppedBesideAPlannedFailover: while alpha hands over, beta is told to pause, or to copy
// a table again. The failover is taken back or completed, and can be run again.
func TestStoppedBesideAPlannedFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	from, to := a, b
	for n, command := range []func() error{
		func() error { return to.PauseLink(ctx, "shop") },
		func() error { return from.PauseLink(ctx, "shop") },
		func() error { return to.ResyncLink(ctx, "shop", []string{"t"}) },
		func() error {
			_, err := from.VerifyLink(ctx, "shop", api.VerifyOptions{Timeout: time.Second})
			return err
		},
	} {
		release := hold(t, to, "shop", "t")
		from.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d, 'held up')`, n))
		planned := asked(from, api.FailoverOptions{Timeout: 4 * time.Second})
		state := from.Connect(t, "postgres")
		testpg.Eventually(t, 30*time.Second, from.name+" hands over, unless the time limit is over", func() (bool, error) {
			return len(planned) > 0 || testpg.Rows(t, state, `SELECT side->>'phase' FROM hawser.link`)[0] == "handing", nil
		})
		stopped := make(chan error, 1)
		go func() { stopped <- command() }()
		release()
		err := testpg.Await(t, "the planned failover is answered", planned)
		t.Logf("%d: command %v, failover %v", n, testpg.Await(t, "the command is answered", stopped), err)
		if err == nil {
			from, to = to, from
		}
		_ = to.ResumeLink(ctx, "shop")
		to.awaitState(t, "shop", api.StateSynchronized)
		from.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d, 'x')`, 100+n))
		if try(t, to, `INSERT INTO t VALUES (-1, 'x')`) == nil {
			t.Errorf("both take writes")
		}
		equal(t, a, b, "shop")
	}
	failover(t, from, "shop")
	from.awaitState(t, "shop", api.StateSynchronized)
	proven(t, a, "shop")
}

// TestTwoForcedSiblings: alpha is cut off, and both of its secondaries are opened by force.
// Each stands for itself; what alpha alone has is reported for each of them, and the
// commands that the errors name lead back to one primary.
func TestTwoForcedSiblings(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	know(t, b, c)
	a.stop() // clients still reach its PostgreSQL
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha, cut off')`)
	// At one moment: neither has stored that it leads when the other looks.
	releases := []func(){hold(t, b, "postgres", "hawser.link"), hold(t, c, "postgres", "hawser.link")}
	first, second := make(chan error, 1), make(chan error, 1)
	for i, ended := range map[*instance]chan error{b: first, c: second} {
		go func() {
			_, err := i.FailoverLink(ctx, map[*instance]string{b: "shop", c: "other"}[i], api.FailoverOptions{Force: true})
			ended <- err
		}()
	}
	for _, i := range []*instance{b, c} {
		i.awaitSession(t, "wants to store that it is primary", `wait_event_type = 'Lock' AND query LIKE 'UPDATE hawser.link SET side%'`)
	}
	for _, release := range releases {
		release()
	}
	if err := errors.Join(testpg.Await(t, "both failovers are answered", first), testpg.Await(t, "both failovers are answered", second)); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta')`)
	c.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('gamma')`)
	finding(t, b, "shop", "primary-twice", "database shop")
	finding(t, c, "other", "primary-twice", "database shop")
	a.run(t)
	alone := func(link string) {
		a.awaitState(t, link, api.StateDiverged)
		testpg.Eventually(t, 30*time.Second, "alpha tells what it has alone", func() (bool, error) {
			l, err := a.Link(ctx, link)
			if err != nil || !strings.Contains(l.Cause.Cause, "never received: 1, with 1 changes") {
				return false, fmt.Errorf("it tells %v: %v", l.Cause, err)
			}
			return true, nil
		})
	}
	alone("shop")
	alone("other")
	if try(t, a, `INSERT INTO audit (what) VALUES ('x')`) == nil {
		t.Error("alpha took a write")
	}
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta again')`)
	equal(t, a, b, "shop")

	// Gamma's link still closes alpha: nothing may hand over to it, or open it.
	turnedDown(t, "rejoin", a.RejoinLink(ctx, "other"), "already-secondary", "beta")
	_, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second})
	turnedDown(t, "failover", err, "closed-elsewhere", "link other")
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta leads on')`)
	if err := a.PauseLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	_, err = a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	turnedDown(t, "force", err, "closed-elsewhere", "link other")
	if err := a.ResumeLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.run(t) // what came from beta is nothing that alpha alone has
	alone("other")
	if _, err := a.DropLink(ctx, "other", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	failover(t, b, "shop")
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
	equal(t, a, b, "shop")
	proven(t, a, "shop")
}

// TestTimeLimitInEachPhase: a failover meets what holds it up until its time limit is over.
// The old primary takes writes again, or the other side has taken over and opens when it
// can; no command is needed for either.
func TestTimeLimitInEachPhase(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	const settings = `ALTER DATABASE shop SET work_mem = '7MB'` // holds what a fence changes
	open := func(i *instance, sql ...string) (release func()) {
		conn := i.Connect(t, "postgres")
		within(t, conn, append([]string{`BEGIN`}, sql...)...)
		return func() { within(t, conn, `ROLLBACK`) }
	}
	n := 10
	writes := func(i *instance) {
		t.Helper()
		n++
		testpg.Eventually(t, 30*time.Second, i.name+" takes writes", func() (bool, error) {
			err := try(t, i, fmt.Sprintf(`INSERT INTO t VALUES (%d, 'x')`, n))
			return err == nil, err
		})
	}
	for phase, hold := range map[string]func() (release func()){
		"prepare": func() func() { return open(b, `SELECT pg_current_xact_id()`) }, // no slot is made before it ends
		"catch up": func() func() {
			release := hold(t, b, "shop", "t")
			a.Exec(t, "shop", `INSERT INTO t SELECT i, repeat(md5(i::text), 400) FROM generate_series(1000, 1999) i`)
			return release
		},
		"fence": func() func() { return open(a, settings) },
	} {
		release := hold()
		_, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 2 * time.Second})
		if p, ok := problem.As(err); !ok || p.Help() == "" {
			t.Errorf("%s: %v", phase, err)
		}
		writes(a)
		release()
		b.awaitState(t, "shop", api.StateSynchronized)
		if try(t, b, `INSERT INTO t VALUES (1, 'x')`) == nil {
			t.Errorf("%s: beta takes writes", phase)
		}
		a.Exec(t, "shop", `DELETE FROM t WHERE id >= 1000`)
	}
	late := hold(t, b, "shop", "t")
	a.Exec(t, "shop", `INSERT INTO t VALUES (2, 'held up')`)
	planned := asked(a, api.FailoverOptions{Timeout: 20 * time.Second})
	a.awaitPhase(t, "shop", "handing")
	release := open(b, settings)
	late()
	b.awaitPhase(t, "shop", "promoting")
	if err := testpg.Await(t, "the failover is answered", planned); err != nil {
		t.Errorf("beta has taken over: %v", err)
	}
	if try(t, a, `INSERT INTO t VALUES (1, 'x')`) == nil {
		t.Error("alpha takes writes")
	}
	release()
	writes(b)
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	failover(t, b, "shop")
	writes(a)
	equal(t, a, b, "shop")
}

// forcedBeside opens a side by force while the primary could hand over, which a pause allows.
func forcedBeside(t *testing.T, i *instance, link string) {
	t.Helper()
	ctx := context.Background()
	if err := i.PauseLink(ctx, link); err != nil {
		t.Fatal(err)
	}
	if _, err := i.FailoverLink(ctx, link, api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
}

// forcedOut is a small link whose alpha was forced out: each side has rows that the other
// has not, and one differs.
func forcedOut(t *testing.T) (a, b *instance) {
	t.Helper()
	a, b = small(t)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'on both')`)
	equal(t, a, b, "shop")
	a.stop()
	a.Exec(t, "shop", `UPDATE t SET v = 'of alpha' WHERE id = 1`, `INSERT INTO t VALUES (2, 'of alpha')`)
	if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO t VALUES (3, 'of beta')`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	return a, b
}
