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

// Three instances of one database, and commands on several of them.

// familyOver is a family whose alpha reaches the others over lines; these do not know each
// other.
func familyOver(t *testing.T) (a, b, c *instance, toB, toC line) {
	t.Helper()
	a, b, c = newInstance(t, "alpha"), newInstance(t, "beta"), newInstance(t, "gamma")
	toB, toC = newLine(t, fmt.Sprintf("127.0.0.1:%d", b.port)), newLine(t, fmt.Sprintf("127.0.0.1:%d", c.port))
	trust(t, a, b, toB.Listen)
	trust(t, a, c, toC.Listen)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo)
	for name, to := range map[string]*instance{"shop": b, "other": c} {
		to.awaitConnected(t, "alpha")
		if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: name, Database: "shop", Peer: to.name, Role: api.RolePrimary}); err != nil {
			t.Fatal(err)
		}
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	c.awaitState(t, "other", api.StateSynchronized)
	return a, b, c, toB, toC
}

// awaitConnected waits until a peer, one of several, is connected.
func (i *instance) awaitConnected(t *testing.T, peer string) {
	t.Helper()
	testpg.Eventually(t, 20*time.Second, i.name+" is connected to "+peer, func() (bool, error) {
		list, err := i.Peers(context.Background())
		for _, p := range list.Peers {
			if p.Name == peer && p.Connected {
				return true, nil
			}
		}
		return false, err
	})
}

// shows wants a side to tell its role and term, and a way on if it does not simply run.
func (i *instance) shows(t *testing.T, link string, r api.Role, term int) {
	t.Helper()
	l, err := i.Link(context.Background(), link)
	if err != nil || l.Role != r || int(l.Term) != term {
		t.Errorf("%s shows link %s as %s of term %d: %v; want %s of term %d", i.name, link, l.Role, l.Term, err, r, term)
	}
	if err == nil && l.State != api.StateSynchronized && (l.Cause == nil || l.Cause.Help() == "" && l.Cause.Code != "opening") {
		t.Errorf("%s shows link %s as %s, and no way on: %v", i.name, link, l.State, l.Cause)
	}
}

// TestForcedOneAfterTheOther: alpha, whose agent and clients run on, is cut off from its two
// secondaries. Beta is opened by force, then gamma. Each of the three shows who leads in
// which term. Back, alpha hears of the one and then of the other: it is closed, reports for
// each of them what that lacks, and rejoins the one that a person chose. What is left of the
// other link has a named way out, and gamma comes back as a copy of beta.
func TestForcedOneAfterTheOther(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c, toB, toC := familyOver(t)
	toB.Stop()
	toC.Stop()
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha, cut off')`)
	for link, i := range map[string]*instance{"shop": b, "other": c} {
		i.awaitState(t, link, api.StateDisconnected)
	}
	for _, f := range []struct {
		link string
		by   *instance
	}{{"shop", b}, {"other", c}} {
		r, err := f.by.FailoverLink(ctx, f.link, api.FailoverOptions{Force: true})
		if err != nil || r.NewPrimary != f.by.name || r.OldPrimary != "alpha" || r.Term != 2 || r.LastApplied == nil {
			t.Fatalf("force of link %s: %+v, %v", f.link, r, err)
		}
		f.by.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('`+f.by.name+`')`)
		f.by.shows(t, f.link, api.RolePrimary, 2)
		a.shows(t, f.link, api.RolePrimary, 1)
		_, err = f.by.FailoverLink(ctx, f.link, api.FailoverOptions{Force: true})
		turnedDown(t, "force once more", err, "not-secondary", "primary")
	}
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha, cut off still')`)

	know(t, b, c) // too late: each tells of the other
	for link, i := range map[string]*instance{"shop": b, "other": c} {
		finding(t, i, link, "primary-twice", "database shop")
	}

	// Gamma is heard of first. Alpha is closed from then on, and stays so when its agent starts anew.
	toC.heal(t)
	a.awaitState(t, "other", api.StateDiverged)
	closed := func(when string) {
		t.Helper()
		if try(t, a, `INSERT INTO audit (what) VALUES ('x')`) == nil {
			t.Errorf("alpha took a write %s", when)
		}
	}
	closed("when it had heard of gamma")
	a.stop()
	a.run(t)
	closed("when its agent had started anew")
	toB.heal(t)
	a.awaitState(t, "shop", api.StateDiverged)
	for link, by := range map[string]*instance{"shop": b, "other": c} {
		testpg.Eventually(t, 30*time.Second, "alpha tells what it has alone by link "+link, func() (bool, error) {
			l, err := a.Link(ctx, link)
			if err != nil || l.Cause == nil || !strings.Contains(l.Cause.Cause, "never received: 2, with 2 changes") || !strings.Contains(l.Cause.Cause, "instance "+by.name) {
				return false, fmt.Errorf("it tells %v: %v", l.Cause, err)
			}
			return true, nil
		})
		a.shows(t, link, api.RolePrimary, 1)
		by.shows(t, link, api.RolePrimary, 2)
		if lines := report(t, a, link+"-term1.jsonl"); len(lines) != 2 {
			t.Errorf("the report of link %s has %v", link, lines)
		}
	}

	// The person chooses beta.
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	a.shows(t, "shop", api.RoleSecondary, 2)
	a.shows(t, "other", api.RolePrimary, 1)
	c.shows(t, "other", api.RolePrimary, 2)
	turnedDown(t, "rejoin of the other", a.RejoinLink(ctx, "other"), "already-secondary", "beta")
	turnedDown(t, "follow", c.FollowLink(ctx, "other", "beta"), "not-secondary", "its primary")
	if _, err := a.DropLink(ctx, "other", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	closed("when the link to gamma was dropped")
	proven(t, b, "shop")

	// Gamma is a database of its own now, and comes back as a copy.
	c.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('gamma, alone')`)
	spec := api.LinkSpec{Name: "other", Database: "shop", Peer: "gamma", Role: api.RolePrimary}
	if _, err := b.CreateLink(ctx, spec); err == nil || !strings.Contains(err.Error(), "gamma") {
		t.Errorf("a link over what gamma has: %v", err)
	}
	c.Exec(t, "postgres", `DROP DATABASE shop`)
	if _, err := b.CreateLink(ctx, spec); err != nil {
		t.Fatal(err)
	}
	c.awaitState(t, "other", api.StateSynchronized)
	failover(t, b, "shop")
	c.awaitPrimary(t, "other", a)
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
	equal(t, a, b, "shop")
	equal(t, a, c, "shop")
	proven(t, a, "shop")
	proven(t, a, "other")
}

// TestRejoinBesideASiblingsHandover: alpha hands over to gamma, which is held up, when beta
// is opened by force. A rejoin of alpha with beta would take rows away from which gamma, or
// alpha itself, may yet have to go on: it is refused until that handover has ended.
func TestRejoinBesideASiblingsHandover(t *testing.T) {
	t.Parallel()
	for _, taken := range []bool{false, true} {
		t.Run(fmt.Sprintf("taken=%v", taken), func(t *testing.T) {
			t.Parallel()
			rejoinBesideAHandover(t, taken)
		})
	}
}

func rejoinBesideAHandover(t *testing.T, taken bool) {
	ctx := context.Background()
	a, b, c := family(t)
	know(t, b, c)
	if err := b.PauseLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	release := hold(t, c, "shop", "audit")
	a.Exec(t, "shop", `INSERT INTO audit (what) VALUES ('held up')`)
	limit := 25 * time.Second
	if taken {
		limit = 3 * time.Minute
	}
	handed := make(chan error, 1)
	go func() {
		_, err := a.FailoverLink(ctx, "other", api.FailoverOptions{Timeout: limit})
		handed <- err
	}()
	a.awaitPhase(t, "other", "handing")
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta')`)
	a.awaitPhase(t, "shop", "diverged")
	before := digest(t, a.Cluster, "shop")
	turnedDown(t, "rejoin", a.RejoinLink(ctx, "shop"), "failover-elsewhere", "link other")
	if after := digest(t, a.Cluster, "shop"); after != before {
		t.Errorf("the rejoin that was refused changed alpha from\n%s\nto\n%s", before, after)
	}
	if taken {
		release()
		if err := testpg.Await(t, "the failover is answered", handed); err != nil {
			t.Fatal(err)
		}
		a.awaitState(t, "other", api.StateSynchronized)
		c.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('gamma')`)
		turnedDown(t, "rejoin", a.RejoinLink(ctx, "shop"), "already-secondary", "gamma")
		if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
			t.Fatal(err)
		}
		b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta, on its own')`)
		equal(t, a, c, "shop")
		proven(t, c, "other")
		failover(t, c, "other")
		a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
		equal(t, a, c, "shop")
		return
	}
	if err := testpg.Await(t, "the failover is answered", handed); err == nil {
		t.Fatal("gamma took over")
	}
	release()
	if try(t, a, `INSERT INTO audit (what) VALUES ('x')`) == nil {
		t.Error("alpha, which beta forced out, took a write when gamma had refused")
	}
	testpg.Eventually(t, 60*time.Second, "alpha rejoins", func() (bool, error) {
		err := a.RejoinLink(ctx, "shop")
		return err == nil, err
	})
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	proven(t, b, "shop")
	c.awaitState(t, "other", api.StateSuspended)
	if err := c.FollowLink(ctx, "other", "beta"); err != nil {
		t.Fatal(err)
	}
	c.awaitPrimary(t, "other", b)
	equal(t, b, c, "shop")
	proven(t, b, "other")
}

// TestFollowBesideAFailover: gamma is told to follow beta, which can't make the slot for it
// before a transaction elsewhere on its instance has ended. Meanwhile beta hands over to
// alpha. With a slot from behind that handoff, gamma would follow a secondary, and never
// hear of what that does not write itself.
func TestFollowBesideAFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	know(t, b, c)
	forcedBeside(t, b, "shop")
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	c.awaitState(t, "other", api.StateSuspended)
	writer := b.Connect(t, "postgres")
	within(t, writer, `BEGIN`, `SELECT pg_current_xact_id()`) // no slot is made before it ends
	followed := make(chan error, 1)
	go func() { followed <- c.FollowLink(ctx, "other", "beta") }()
	b.awaitSession(t, "makes the slot for gamma", `application_name = 'hawser:other:create' AND state = 'active'`)
	failover(t, b, "shop")
	b.awaitState(t, "shop", api.StateSynchronized)
	within(t, writer, `ROLLBACK`)
	turnedDown(t, "follow", testpg.Await(t, "the command to follow is answered", followed), "not-primary", "does not lead")
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
	if l, err := b.Link(ctx, "other"); err == nil {
		t.Errorf("beta, a secondary, has gamma's link as %s and %s: %v", l.Role, l.State, l.Cause)
	}
	if try(t, b, `INSERT INTO audit (what) VALUES ('x')`) == nil {
		t.Error("beta took a write beside alpha")
	}

	brought(t, a, c)
	equal(t, a, b, "shop")
}

// brought: alpha leads again, and gamma, which it had left behind, is told how it comes back,
// and does.
func brought(t *testing.T, a, c *instance) {
	t.Helper()
	ctx := context.Background()
	for _, i := range []*instance{a, c} {
		testpg.Eventually(t, 40*time.Second, i.name+" says how gamma follows alpha again", func() (bool, error) {
			l, err := i.Link(ctx, "other")
			if err != nil || l.State != api.StateSuspended || !strings.Contains(l.Cause.Help(), "hawser link resync other") {
				return false, fmt.Errorf("%s: %v, %v", l.State, l.Cause, err)
			}
			return true, nil
		})
		turnedDown(t, "resume on "+i.name, i.ResumeLink(ctx, "other"), "not-compared", "equal")
	}
	if err := c.ResyncLink(ctx, "other", nil); err != nil {
		t.Fatal(err)
	}
	c.awaitPrimary(t, "other", a)
	equal(t, a, c, "shop")
	proven(t, a, "other")
}

// leftBehind returns a family of which alpha was forced out by beta and has rejoined, so that
// gamma, which had what alpha had, stands.
func leftBehind(t *testing.T) (a, b, c *instance) {
	t.Helper()
	ctx := context.Background()
	a, b, c = family(t)
	know(t, b, c)
	if err := b.PauseLink(ctx, "shop"); err != nil { // alpha could hand over
		t.Fatal(err)
	}
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('only alpha and gamma have it')`, `UPDATE customer SET name = 'renamed by alpha' WHERE id = 1`)
	equal(t, a, c, "shop")
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateDiverged)
	return a, b, c
}

// TestSiblingOfARejoin: while alpha rejoins beta it takes rows away, to fetch them from beta.
// Gamma, which follows alpha until then, would take that in and stand with rows missing that
// everybody has, and could be opened by force so.
func TestSiblingOfARejoin(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := leftBehind(t)
	before := digest(t, c.Cluster, "shop")
	release := hold(t, a, "postgres", "hawser.link") // no role is stored
	rejoined := make(chan error, 1)
	go func() { rejoined <- a.RejoinLink(ctx, "shop") }()
	a.awaitSession(t, "stores what the rejoin changes", `wait_event_type = 'Lock' AND query LIKE 'UPDATE hawser.link SET s%'`)
	release()
	if err := testpg.Await(t, "the rejoin is answered", rejoined); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	c.awaitState(t, "other", api.StateSuspended)
	if after := digest(t, c.Cluster, "shop"); after != before {
		t.Errorf("the rejoin of alpha changed gamma from\n%s\nto\n%s", before, after)
	}
	_, err := c.FailoverLink(ctx, "other", api.FailoverOptions{Force: true})
	leftTo(t, "force", err)
	b.stop()
	if _, err := c.FailoverLink(ctx, "other", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if after := digest(t, c.Cluster, "shop"); after != before {
		t.Errorf("gamma, opened by force, has\n%s\nand had\n%s", after, before)
	}
}

// TestLeftBehindStands: gamma, whose primary was forced out and follows another one now,
// follows that one through nobody, whichever command is given on either side. When alpha
// leads again, it says what brings gamma back.
func TestLeftBehindStands(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := leftBehind(t)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	c.awaitState(t, "other", api.StateSuspended)
	before := digest(t, c.Cluster, "shop")
	for _, i := range []*instance{c, a} {
		turnedDown(t, "resume on "+i.name, i.ResumeLink(ctx, "other"), "primary-moved", "beta")
		if err := i.PauseLink(ctx, "other"); err != nil {
			t.Errorf("pause on %s: %v", i.name, err)
		}
		turnedDown(t, "resume after a pause, on "+i.name, i.ResumeLink(ctx, "other"), "primary-moved", "beta")
		turnedDown(t, "resync on "+i.name, i.ResyncLink(ctx, "other", nil), "primary-moved", "beta")
	}
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta leads')`, `CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)`)
	equal(t, a, b, "shop")
	c.awaitState(t, "other", api.StateSuspended)
	if after := digest(t, c.Cluster, "shop"); after != before {
		t.Errorf("gamma took in from alpha, a secondary:\n%s\nand had\n%s", after, before)
	}

	failover(t, b, "shop")
	b.awaitState(t, "shop", api.StateSynchronized)
	testpg.Eventually(t, 40*time.Second, "gamma is told of the table that it lacks", func() (bool, error) {
		err := c.ResyncLink(ctx, "other", nil)
		if p, ok := problem.As(err); ok && p.Code == "schema-differs" && strings.Contains(p.Cause, "public.later") {
			return true, nil
		}
		return false, err
	})
	change(t, c, `CREATE TABLE later (id int PRIMARY KEY)`) // as that says
	brought(t, a, c)
	failover(t, a, "other")
	a.awaitPrimary(t, "other", c)
	b.awaitPrimary(t, "shop", c)
	equal(t, c, a, "shop")
	equal(t, c, b, "shop")
}

// TestResumeOfAnInterruptedFollow: gamma is told to follow beta, and whoever asked goes away
// while the two are compared. Nothing proves them equal, so a resume is no way on.
func TestResumeOfAnInterruptedFollow(t *testing.T) {
	t.Parallel()
	a, b, c := leftBehind(t)
	if err := a.RejoinLink(context.Background(), "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	c.awaitState(t, "other", api.StateSuspended)
	release := lock(t, c, "shop", "customer")
	ctx := context.Background()
	followed := make(chan error, 1)
	go func() { followed <- c.FollowLink(ctx, "other", "beta") }()
	c.awaitSession(t, "reads what is locked", `application_name LIKE 'hawser:other:%' AND wait_event_type = 'Lock'`)
	c.stop() // the command alone would leave the comparison going on
	if err := testpg.Await(t, "the command to follow returns", followed); err == nil {
		t.Fatal("it was compared")
	}
	release()
	c.run(t)
	b.awaitConnected(t, "gamma")
	c.awaitConnected(t, "beta")
	c.awaitState(t, "other", api.StateSuspended)
	turnedDown(t, "resume", c.ResumeLink(ctx, "other"), "not-compared", "beta")
	if err := c.PauseLink(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	turnedDown(t, "resume after a pause", c.ResumeLink(ctx, "other"), "not-compared", "beta")
	turnedDown(t, "resume on beta", b.ResumeLink(ctx, "other"), "not-compared", "beta")
	testpg.Eventually(t, 30*time.Second, "gamma is compared with beta", func() (bool, error) {
		err := c.ResyncLink(ctx, "other", nil)
		return err == nil, err
	})
	c.awaitPrimary(t, "other", b)
	equal(t, b, c, "shop")
	proven(t, b, "other")
}

// runAsProcess has an instance's agent run as a process from now on, so that stop kills it.
func (i *instance) runAsProcess(t *testing.T) {
	t.Helper()
	i.stop()
	i.process = true
	i.run(t)
}

// awaitStanding waits until a secondary says that it stands for a rejoin by another link.
func (i *instance) awaitStanding(t *testing.T, link, help string) {
	t.Helper()
	testpg.Eventually(t, 40*time.Second, i.name+" stands for the rejoin", func() (bool, error) {
		l, err := i.Link(context.Background(), link)
		if err != nil || l.Cause == nil || l.State != api.StateDisconnected || l.Cause.Code != "rows-taken-away" || !strings.Contains(l.Cause.Help(), help) {
			return false, fmt.Errorf("it is %s: %v, %v", l.State, l.Cause, err)
		}
		return true, nil
	})
}

// TestSiblingOfARejoinThatEnds: a rejoin of alpha, for which gamma stands, fails or is killed
// before it took a row away. Nothing happened to what gamma follows: it goes on by itself, and
// leads on with alpha when the other link is dropped.
func TestSiblingOfARejoinThatEnds(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"failed", "killed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b, c := leftBehind(t)
			a.runAsProcess(t)
			a.awaitState(t, "shop", api.StateDiverged)
			c.awaitState(t, "other", api.StateSynchronized)
			before := digest(t, c.Cluster, "shop")
			release := hold(t, a, "shop", "customer")
			rejoined := make(chan error, 1)
			go func() { rejoined <- a.RejoinLink(ctx, "shop") }()
			a.awaitSession(t, "takes rows away", `application_name = 'hawser:shop:rejoin' AND wait_event_type = 'Lock'`)
			c.awaitStanding(t, "other", "when that has ended")
			a.awaitStanding(t, "other", "when that has ended")
			if how == "killed" {
				a.stop()
			}
			a.Exec(t, "postgres", `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'hawser:shop:rejoin'`)
			if err := <-rejoined; err == nil {
				t.Fatal("it rejoined")
			}
			release()
			if how == "killed" {
				a.run(t)
			}
			c.awaitState(t, "other", api.StateSynchronized)
			a.awaitState(t, "other", api.StateSynchronized)
			if after := digest(t, c.Cluster, "shop"); after != before {
				t.Errorf("the rejoin changed gamma from\n%s\nto\n%s", before, after)
			}
			proven(t, a, "other")
			if how == "killed" { // and does so again
				if err := a.RejoinLink(ctx, "shop"); err != nil {
					t.Fatal(err)
				}
				a.awaitState(t, "shop", api.StateSynchronized)
				equal(t, a, b, "shop")
				c.awaitState(t, "other", api.StateSuspended)
				return
			}
			if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
				t.Fatal(err)
			}
			a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads on')`)
			equal(t, a, c, "shop")
			failover(t, a, "other")
			equal(t, a, c, "shop")
		})
	}
}

// TestSiblingOfARejoinCutShort: alpha is killed when its rejoin took rows away, and before it
// follows beta. What gamma has stays whole, and the way on is named. Alpha rejoins beta once
// more, or, beta being gone for good, gamma, which was opened by force: the rows that are
// gone on alpha come back in either case.
func TestSiblingOfARejoinCutShort(t *testing.T) {
	t.Parallel()
	for _, with := range []string{"beta", "gamma"} {
		t.Run("rejoins "+with, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b, c := leftBehind(t)
			a.runAsProcess(t)
			a.awaitState(t, "shop", api.StateDiverged)
			c.awaitState(t, "other", api.StateSynchronized)
			before := digest(t, c.Cluster, "shop")
			release := hold(t, a, "postgres", "hawser.link") // no role is stored
			rejoined := make(chan error, 1)
			go func() { rejoined <- a.RejoinLink(ctx, "shop") }()
			const stores = `wait_event_type = 'Lock' AND query LIKE 'UPDATE hawser.link SET s%'`
			a.awaitSession(t, "stores what the rejoin changes", stores)
			a.stop()
			<-rejoined
			a.Exec(t, "postgres", `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE `+stores)
			release()
			a.run(t)
			a.awaitState(t, "shop", api.StateDiverged)
			c.awaitStanding(t, "other", "on instance alpha: hawser link rejoin shop")
			_, err := a.DropLink(ctx, "shop", api.DropOptions{})
			turnedDown(t, "drop", err, "copy-incomplete", "rows are missing")
			if with == "beta" {
				if err := a.RejoinLink(ctx, "shop"); err != nil {
					t.Fatal(err)
				}
				a.awaitState(t, "shop", api.StateSynchronized)
				equal(t, a, b, "shop")
				proven(t, b, "shop")
				c.awaitState(t, "other", api.StateSuspended)
				if after := digest(t, c.Cluster, "shop"); after != before {
					t.Errorf("the rejoin changed gamma from\n%s\nto\n%s", before, after)
				}
				return
			}
			b.stop()
			if _, err := c.FailoverLink(ctx, "other", api.FailoverOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			if after := digest(t, c.Cluster, "shop"); after != before {
				t.Errorf("gamma, opened by force, has\n%s\nand had\n%s", after, before)
			}
			a.awaitState(t, "other", api.StateDiverged)
			if err := a.RejoinLink(ctx, "other"); err != nil {
				t.Fatal(err)
			}
			if _, err := a.DropLink(ctx, "shop", api.DropOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			a.awaitState(t, "other", api.StateSynchronized)
			equal(t, a, c, "shop")
			proven(t, c, "other")
			failover(t, c, "other")
		})
	}
}

// TestTwoRejoins: alpha was forced out by both of its secondaries, which do not know each other, and is told to rejoin the
// one while it rejoins the other: it would follow two primaries.
func TestTwoRejoins(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	a.stop()
	a.Exec(t, "shop", `UPDATE customer SET name = 'of alpha' WHERE id = 1`)
	for link, i := range map[string]*instance{"shop": b, "other": c} {
		i.awaitState(t, link, api.StateDisconnected)
		if _, err := i.FailoverLink(ctx, link, api.FailoverOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	a.awaitState(t, "other", api.StateDiverged)
	release := hold(t, a, "shop", "customer")
	rejoined := make(chan error, 1)
	go func() { rejoined <- a.RejoinLink(ctx, "shop") }()
	a.awaitSession(t, "takes rows away", `application_name = 'hawser:shop:rejoin' AND wait_event_type = 'Lock'`)
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	turnedDown(t, "rejoin of the other", a.RejoinLink(within, "other"), "rejoin-running", "under way")
	release()
	if err := <-rejoined; err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)

	// A person has second thoughts: what came from beta is not what gamma has.
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('of beta')`, `UPDATE customer SET name = 'changed by beta' WHERE id = 2`)
	equal(t, a, b, "shop")
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := a.RejoinLink(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "other", api.StateSynchronized)
	equal(t, a, c, "shop")
	proven(t, c, "other")
}

// TestThereAndBackWithoutTrust: beta and gamma do not know each other. Alpha hands over to
// beta, and beta back, so gamma stands at a handoff whose heir it never reached. Everybody says
// what a person does, and that does it.
func TestThereAndBackWithoutTrust(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"follow", "peer add"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b, c := family(t)
			id := idOf(t, c, "other")
			failover(t, a, "shop")
			c.awaitState(t, "other", api.StateSuspended)
			b.Exec(t, "shop", `CREATE TABLE later (id int PRIMARY KEY)`, `INSERT INTO customer (name) VALUES ('beta leads')`)
			failover(t, b, "shop")
			b.awaitState(t, "shop", api.StateSynchronized)
			a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
			for _, i := range []*instance{a, b, c} {
				i.awaitRemedy(t, "other", "hawser link follow other --primary alpha")
			}
			if way == "follow" {
				for _, f := range []struct {
					by               *instance
					primary          string
					code, remedy, at string
				}{
					{c, "beta", "peer-not-granted", "hawser peer add beta.pem", ""},
					{c, "gamma", "peer-is-self", "hawser link failover other", ""},
					{a, "alpha", "not-secondary", "hawser link follow other --primary alpha", "instance gamma"},
					{a, "gamma", "not-secondary", "hawser link show other", ""},
					{b, "alpha", "not-secondary", "hawser link follow other --primary alpha", "instance gamma"},
				} {
					if p, ok := problem.As(f.by.FollowLink(ctx, "other", f.primary)); !ok || p.Code != f.code || p.Remedy != f.remedy || p.Place != f.at {
						t.Errorf("follow %s, on %s: %v", f.primary, f.by.name, p)
					}
				}
				turnedDown(t, "follow before the table is there", c.FollowLink(ctx, "other", "alpha"), "schema-differs", "public.later")
				change(t, c, `CREATE TABLE later (id int PRIMARY KEY)`) // as that says
				if err := c.ResyncLink(ctx, "other", nil); err != nil {
					t.Fatal(err)
				}
			} else {
				know(t, b, c) // so it goes as far as beta led
				testpg.Eventually(t, 60*time.Second, "gamma stands where beta handed over", func() (bool, error) {
					l, err := c.Link(ctx, "other")
					return err == nil && l.Peer == "beta" && l.State == api.StateSuspended, err
				})
				c.awaitRemedy(t, "other", "hawser link follow other --primary alpha")
				testpg.Eventually(t, 40*time.Second, "gamma follows alpha", func() (bool, error) {
					err := c.FollowLink(ctx, "other", "alpha")
					return err == nil, err
				})
			}
			c.awaitPrimary(t, "other", a)
			equal(t, a, c, "shop")
			equal(t, a, b, "shop")
			proven(t, a, "other")
			b.awaitForgotten(t, "other", id)
			if way == "follow" {
				know(t, b, c)
			}
			failover(t, a, "other")
			a.awaitState(t, "other", api.StateSynchronized)
			b.awaitPrimary(t, "shop", c)
			equal(t, c, b, "shop")
		})
	}
}

// TestForcedBackWithoutTrust: beta, which took the database over and does not know gamma, is
// lost, and alpha opened by force. Gamma follows alpha when a person says so. Back, beta is
// forced out, and forgets gamma when it has rejoined: nobody can tell it of that but alpha.
func TestForcedBackWithoutTrust(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	id := idOf(t, c, "other")
	failover(t, a, "shop")
	c.awaitState(t, "other", api.StateSuspended)
	b.stop()
	a.awaitState(t, "shop", api.StateDisconnected)
	a.awaitRemedy(t, "other", "hawser peer add beta.pem --address HOST:5022") // gamma's
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta alone')`)
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
	for _, i := range []*instance{a, c} {
		i.awaitRemedy(t, "other", "hawser link follow other --primary alpha")
	}
	if err := c.FollowLink(ctx, "other", "alpha"); err != nil {
		t.Fatal(err)
	}
	c.awaitPrimary(t, "other", a)
	equal(t, a, c, "shop")
	b.run(t)
	b.awaitState(t, "shop", api.StateDiverged)
	if err := b.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	b.awaitForgotten(t, "other", id)
	proven(t, a, "other")
	proven(t, a, "shop")
}

// awaitRemedy waits until an instance names what a person does about a link that stands.
func (i *instance) awaitRemedy(t *testing.T, link, remedy string) {
	t.Helper()
	testpg.Eventually(t, 60*time.Second, i.name+" says "+remedy, func() (bool, error) {
		l, err := i.Link(context.Background(), link)
		if err != nil || l.State != api.StateSuspended || l.Cause.Remedy != remedy {
			return false, fmt.Errorf("it is %s: %v, %v", l.State, l.Cause, err)
		}
		return true, nil
	})
}

// TestAroundWithoutTrust: the database goes from alpha to beta, gamma and back to alpha. Delta,
// which does not know beta, stands where alpha handed over first, and a person has it follow
// alpha. The halves that the others had for it go, though theirs are of no earlier terms than
// the one in which delta follows.
func TestAroundWithoutTrust(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	d := newInstance(t, "delta")
	know(t, b, c)
	know(t, a, d)
	know(t, c, d)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "third", Database: "shop", Peer: "delta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	d.awaitState(t, "third", api.StateSynchronized)
	id := idOf(t, d, "third")
	failover(t, a, "shop")
	c.awaitPrimary(t, "other", b)
	failover(t, b, "other")
	a.awaitPrimary(t, "shop", c)
	failover(t, c, "shop")
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
	d.awaitRemedy(t, "third", "hawser link follow third --primary alpha")
	if err := d.FollowLink(ctx, "third", "alpha"); err != nil {
		t.Fatal(err)
	}
	d.awaitPrimary(t, "third", a)
	proven(t, a, "third")
	b.awaitForgotten(t, "third", id)
	c.awaitForgotten(t, "third", id)
}

// TestBothForced: both secondaries of alpha are opened by force, one after the other. The link
// that is not diverged yet says that the database is closed; the one that is left when alpha
// has rejoined by the other names what can be done, which is no rejoin.
func TestBothForced(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	force := func(i *instance, link string) {
		t.Helper()
		if err := i.PauseLink(ctx, link); err != nil {
			t.Fatal(err)
		}
		if _, err := i.FailoverLink(ctx, link, api.FailoverOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	force(b, "shop")
	a.awaitState(t, "shop", api.StateDiverged)
	finding(t, a, "other", "primary-closed", "database shop")
	force(c, "other")
	a.awaitState(t, "other", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	l, err := a.Link(ctx, "other")
	if err != nil || l.Cause == nil || l.Cause.Code != "diverged" || !strings.Contains(l.Cause.Cause, "can't follow two") || l.Cause.Remedy != "hawser link drop other" {
		t.Fatalf("it says %v, %v", l.Cause, err)
	}
	if _, err := a.DropLink(ctx, "other", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
}
