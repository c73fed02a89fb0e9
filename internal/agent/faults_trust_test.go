package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// distrusts has an instance know another one by a certificate that is not its own, as after
// a mistake, or when that one is to be kept out at once.
func (i *instance) distrusts(t *testing.T, of *instance, stranger string) {
	t.Helper()
	if _, err := i.AddPeer(context.Background(), api.AddPeer{Name: of.name, Certificate: stranger}); err != nil {
		t.Fatal(err)
	}
}

// trusts gives the trust back.
func (i *instance) trusts(t *testing.T, of *instance) {
	t.Helper()
	cert, err := of.Certificate(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.AddPeer(context.Background(), api.AddPeer{Name: of.name, Certificate: cert.PEM}); err != nil {
		t.Fatal(err)
	}
}

// stranger is the certificate of an instance that has no part in the link.
func stranger(t *testing.T) string {
	t.Helper()
	c := newInstance(t, "gamma")
	cert, err := c.Certificate(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c.stop()
	return cert.PEM
}

// keptOut waits until an instance tells that its link stands since one of the two does not
// accept the other's certificate, and how that is mended.
func (i *instance) keptOut(t *testing.T, states ...api.State) {
	t.Helper()
	testpg.Eventually(t, 40*time.Second, i.name+" says why the link stands", func() (bool, error) {
		l, err := i.Link(context.Background(), "shop")
		if err != nil || l.Cause == nil {
			return false, fmt.Errorf("%s: %v, %v", l.State, l.Cause, err)
		}
		if !slices.Contains(states, l.State) || !strings.Contains(l.Cause.Cause, "certificate") || !strings.Contains(l.Cause.Help(), "hawser peer add") {
			return false, fmt.Errorf("%s: %v", l.State, l.Cause)
		}
		return true, nil
	})
}

// TestTrustEndsWhileALinkRuns: the trust between the two sides ends on one of them, while
// rows are copied and while changes stream. The link stands, says why on both sides, the
// primary writes on, and the link goes on when the trust is given back. Neither side lets
// its peer be removed.
func TestTrustEndsWhileALinkRuns(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	odd := stranger(t)
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 60000) i`)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSeeding)
	release := hold(t, b, "shop", "hawser.seed_table") // the copy does not come to its end
	for _, way := range []struct{ at, of *instance }{{a, b}, {b, a}} {
		turnedDown(t, "peer remove on "+way.at.name, way.at.RemovePeer(ctx, way.of.name), "peer-in-use", "shop")
		way.at.distrusts(t, way.of, odd)
		a.keptOut(t, api.StateDisconnected)
		b.keptOut(t, api.StateDisconnected)
		if way.at == b {
			release()
		}
		way.at.trusts(t, way.of)
		b.awaitPeer(t)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	n, stop := write(t, a.DSN("shop"), "w")
	for _, way := range []struct{ at, of *instance }{{a, b}, {b, a}} {
		more(t, n)
		way.at.distrusts(t, way.of, odd)
		a.keptOut(t, api.StateDisconnected)
		b.keptOut(t, api.StateDisconnected)
		more(t, n)
		way.at.stop()
		way.at.run(t)
		a.keptOut(t, api.StateDisconnected)
		b.keptOut(t, api.StateDisconnected)
		_, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 5 * time.Second})
		if p, ok := problem.As(err); !ok || !strings.Contains(p.Cause, "certificate") || !strings.Contains(p.Help(), "hawser peer add") {
			t.Errorf("failover without trust: %v", err)
		}
		way.at.trusts(t, way.of)
		b.awaitState(t, "shop", api.StateSynchronized)
	}
	more(t, n)
	stop()
	equal(t, a, b, "shop")
	failover(t, a, "shop")
	a.awaitState(t, "shop", api.StateSynchronized)
	proven(t, b, "shop")
}

// TestTrustEndsInAFailover: the trust ends between two steps of a planned failover. The
// failover is taken back, or its outcome is not known and nobody writes, which is told with
// what mends it; given back, one side takes writes and the other follows.
func TestTrustEndsInAFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	odd := stranger(t)
	a, b := small(t)
	from, to := a, b
	n := 0
	open := func(i *instance, sql ...string) (release func()) {
		conn := i.Connect(t, "postgres")
		within(t, conn, append([]string{`BEGIN`}, sql...)...)
		return func() { within(t, conn, `ROLLBACK`) }
	}
	const settings = `ALTER DATABASE shop SET work_mem = '7MB'` // holds what a fence changes
	for _, c := range []struct {
		step   string
		hold   func() (release func())
		at     func() *instance // where the trust ends
		behind bool             // the handoff: the other side may have taken over
	}{
		{"preparing", func() func() { return open(to, `SELECT pg_current_xact_id()`) }, func() *instance { return from }, false},
		{"fencing", func() func() { return open(from, settings) }, func() *instance { return from }, false},
		{"fencing", func() func() { return open(from, settings) }, func() *instance { return to }, false},
		{"handing", func() func() { return hold(t, to, "shop", "t") }, func() *instance { return from }, true},
		{"handing", func() func() { return hold(t, to, "shop", "t") }, func() *instance { return to }, true},
	} {
		n++
		at := c.at()
		what := fmt.Sprintf("%d: %s, trust ends on %s", n, c.step, at.name)
		release := c.hold()
		from.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d, 'held up')`, n))
		planned := asked(from, api.FailoverOptions{Timeout: 12 * time.Second})
		from.awaitPhase(t, "shop", c.step)
		of := map[*instance]*instance{from: to, to: from}[at]
		at.distrusts(t, of, odd)
		release()
		err := testpg.Await(t, "the failover is answered", planned)
		t.Logf("%s: %v", what, err)
		if p, ok := problem.As(err); !ok || p.Help() == "" {
			t.Errorf("%s: %v", what, err)
		}
		writable := 0
		for _, i := range []*instance{a, b} {
			if try(t, i, fmt.Sprintf(`INSERT INTO t VALUES (%d, '%s')`, 100*n, i.name)) == nil {
				writable++
			}
		}
		if writable > 1 {
			t.Errorf("%s: both sides take writes", what)
		}
		if !c.behind { // no proof of the other side's is needed
			testpg.Eventually(t, 20*time.Second, what+": "+from.name+" takes writes again", func() (bool, error) {
				err := try(t, from, fmt.Sprintf(`INSERT INTO t VALUES (%d, 'as before')`, 100*n+2))
				return err == nil, err
			})
		}
		to.keptOut(t, api.StateDisconnected, api.StateFailingOver)
		from.keptOut(t, api.StateDisconnected, api.StateFailingOver)
		at.trusts(t, of)
		testpg.Eventually(t, 60*time.Second, what+": one side takes writes, and the other follows it", func() (bool, error) {
			for _, i := range []*instance{a, b} {
				l, err := i.Link(ctx, "shop")
				if err != nil || l.State != api.StateSynchronized {
					return false, fmt.Errorf("%s is %s: %v, %v", i.name, l.State, l.Cause, err)
				}
				if l.Role == api.RolePrimary {
					from = i
				} else {
					to = i
				}
			}
			return from != to, nil
		})
		from.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d, 'leads')`, 100*n+1))
		if try(t, to, `INSERT INTO t VALUES (-1, 'x')`) == nil {
			t.Errorf("%s: %s takes writes beside %s", what, to.name, from.name)
		}
		equal(t, a, b, "shop")
	}
	proven(t, a, "shop")
}

// TestTrustEndsInARejoin: the trust ends while alpha, forced out, has laid down the rows that
// it is to fetch from beta. It says so, opens for nobody, and goes on when it is trusted.
func TestTrustEndsInARejoin(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	odd := stranger(t)
	a, b := forcedOut(t)

	// Before anything is laid down, and while it is.
	b.distrusts(t, a, odd)
	testpg.Eventually(t, 20*time.Second, "alpha is kept out", func() (bool, error) {
		list, err := a.Peers(ctx)
		return err == nil && !list.Peers[0].Connected, err
	})
	err := a.RejoinLink(ctx, "shop")
	if p, ok := problem.As(err); !ok || !strings.Contains(p.Cause, "certificate") || !strings.Contains(p.Help(), "hawser peer add") {
		t.Errorf("rejoin without trust: %v", err)
	}
	b.trusts(t, a)
	a.awaitPeer(t)
	release := hold(t, a, "shop", "t")
	rejoined := make(chan error, 1)
	go func() { rejoined <- a.RejoinLink(ctx, "shop") }()
	a.awaitSession(t, "takes rows away", `application_name = 'hawser:shop:rejoin' AND wait_event_type = 'Lock'`)
	b.distrusts(t, a, odd)
	release()
	if err := testpg.Await(t, "the rejoin is answered", rejoined); err != nil {
		t.Fatal(err)
	}
	a.keptOut(t, api.StateDisconnected)
	if try(t, a, `INSERT INTO t VALUES (9, 'x')`) == nil {
		t.Error("alpha takes writes while it rejoins")
	}
	_, err = a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	turnedDown(t, "force", err, "copy-incomplete", "rows are missing")
	_, err = a.DropLink(ctx, "shop", api.DropOptions{})
	turnedDown(t, "drop", err, "copy-incomplete", "rows are missing")
	b.Exec(t, "shop", `UPDATE t SET v = 'beta leads' WHERE id = 1`)
	b.trusts(t, a)
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
	proven(t, b, "shop")
}

// TestTrustEndsInACreate: alpha has made its half of a link that beta asked for, and lets
// beta in no more. It says that the link is not made, and what removes it; let in again, both
// sides take it back by themselves.
func TestTrustEndsInACreate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	odd := stranger(t)
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY)`)
	release := hold(t, b, "postgres", "hawser.link")
	created := make(chan error, 1)
	go func() {
		_, err := b.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "alpha", Role: api.RoleSecondary})
		created <- err
	}()
	b.awaitSession(t, "records the link", `wait_event_type = 'Lock' AND query LIKE '%hawser.link%' AND pid <> pg_backend_pid()`)
	a.distrusts(t, b, odd)
	release()
	if err := testpg.Await(t, "the link's creation is answered", created); err == nil {
		t.Fatal("the link was made")
	}
	a.keptOut(t, api.StateSeeding, api.StateDisconnected)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1)`)
	a.trusts(t, b)
	for _, i := range []*instance{a, b} {
		testpg.Eventually(t, 60*time.Second, i.name+" has let go of the link", func() (bool, error) {
			l, err := i.Links(ctx)
			if err == nil && len(l) > 0 {
				err = fmt.Errorf("it is %s: %v", l[0].State, l[0].Cause)
			}
			return len(l) == 0, err
		})
	}
	if left := traces(t, a, "shop"); len(left) > 0 {
		t.Errorf("alpha keeps %v", left)
	}
	if _, err := b.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "alpha", Role: api.RoleSecondary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}
