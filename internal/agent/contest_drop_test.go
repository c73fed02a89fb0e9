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

// A link is dropped beside commands that change its roles or its rows.

// dropping drops a link beside the test.
func dropping(i *instance, link string, o api.DropOptions) <-chan error {
	ended := make(chan error, 1)
	go func() {
		_, err := i.DropLink(context.Background(), link, o)
		ended <- err
	}()
	return ended
}

// independent: both sides have let go of the link, and of their databases.
func independent(t *testing.T, sides ...*instance) {
	t.Helper()
	for _, i := range sides {
		if l, err := i.Link(context.Background(), "shop"); err == nil {
			t.Errorf("%s still has the link: %s, %v", i.name, l.State, l.Cause)
		}
		if err := try(t, i, `CREATE TABLE its_own (); DROP TABLE its_own`); err != nil {
			t.Errorf("%s, whose link is dropped: %v", i.name, err)
		}
		if got := testpg.Rows(t, i.Connect(t, "postgres"), `SELECT slot_name FROM pg_replication_slots`); len(got) > 0 {
			t.Errorf("%s keeps the slots %q", i.name, got)
		}
	}
}

// TestFailoverBesideADrop: a drop that was let through takes its time. A failover that begins
// behind its back would be cut short anywhere, and nobody be told who has all.
func TestFailoverBesideADrop(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	release := lock(t, b, "shop", "hawser.member")
	dropped := dropping(a, "shop", api.DropOptions{})
	b.awaitSession(t, "lets the link go", `application_name = 'hawser:shop:drop' AND wait_event_type = 'Lock'`)
	for _, i := range []*instance{a, b} {
		_, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 20 * time.Second})
		turnedDown(t, "failover asked of "+i.name, err, "link-busy", "dropped")
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'alpha leads as before')`)
	release()
	if err := testpg.Await(t, "the drop is answered", dropped); err != nil {
		t.Fatal(err)
	}
	independent(t, a, b)
}

// TestDropBesideAForcedFailover: beta is being opened by force, which waits for the slot by
// which alpha would follow. Dropped meanwhile, it would be left with that slot for ever.
func TestDropBesideAForcedFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	if err := b.PauseLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	writer := b.Connect(t, "postgres")
	within(t, writer, `BEGIN`, `SELECT pg_current_xact_id()`) // no slot is made before it ends
	forced := asked(b, api.FailoverOptions{Force: true})
	b.awaitSession(t, "makes the slot for alpha", `application_name = 'hawser:shop:slot' AND state = 'active'`)
	for _, i := range []*instance{a, b} {
		_, err := i.DropLink(ctx, "shop", api.DropOptions{})
		turnedDown(t, "drop asked of "+i.name, err, "failover-running", "under way")
	}
	within(t, writer, `ROLLBACK`)
	if err := testpg.Await(t, "the forced failover is answered", forced); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateDiverged)
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	independent(t, a, b)
}

// TestDropBesideARejoin: alpha, forced out, takes away the rows that its tail touched, to
// fetch them from beta. Dropped meanwhile, it would be opened without them.
func TestDropBesideARejoin(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := forcedOut(t)
	release := hold(t, a, "shop", "t")
	rejoined := make(chan error, 1)
	go func() { rejoined <- a.RejoinLink(ctx, "shop") }()
	a.awaitSession(t, "takes rows away", `application_name = 'hawser:shop:rejoin' AND wait_event_type = 'Lock'`)
	for _, i := range []*instance{a, b} {
		dropped := dropping(i, "shop", api.DropOptions{})
		select {
		case err := <-dropped:
			turnedDown(t, "drop asked of "+i.name, err, "rejoin-running", "under way")
		case <-time.After(10 * time.Second):
			release()
			t.Fatalf("%s drops the link: %v; alpha is left with %q", i.name, testpg.Await(t, "the drop is answered", dropped), testpg.Rows(t, a.Connect(t, "shop"), `SELECT id, v FROM t ORDER BY id`))
		}
	}
	release()
	if err := testpg.Await(t, "the rejoin is answered", rejoined); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
	proven(t, b, "shop")
}

// TestDropWhileGoingOver: alpha has handed the database over to beta, and a person drops what
// it still has of gamma's link, just as gamma goes over to beta. Either the link is gone on
// gamma as well, or it follows beta; whatever alpha said is true.
func TestDropWhileGoingOver(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	know(t, b, c)
	release := hold(t, c, "shop", "hawser.seed_table")
	failover(t, a, "shop")
	c.awaitSession(t, "goes over", `application_name = 'hawser:other:inherit' AND wait_event_type = 'Lock'`)
	dropped := dropping(a, "other", api.DropOptions{})
	var err error
	select {
	case err = <-dropped:
		release()
	case <-time.After(3 * time.Second): // gamma has been asked
		release()
		err = testpg.Await(t, "the drop is answered", dropped)
	}
	t.Logf("drop: %v", err)
	_, gone := c.Link(ctx, "other")
	if gone != nil { // it came first
		c.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('gamma is on its own')`)
		if got := testpg.Rows(t, c.Connect(t, "postgres"), `SELECT name FROM hawser.link`); len(got) > 0 || err != nil {
			t.Errorf("gamma, which has let go of the link, has %q stored; alpha was told %v", got, err)
		}
	} else {
		c.awaitPrimary(t, "other", b)
		b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('behind it')`)
		equal(t, b, c, "shop")
		proven(t, b, "other")
	}
	testpg.Eventually(t, 60*time.Second, "alpha has let go of the link", func() (bool, error) {
		l, err := a.Link(ctx, "other")
		if err == nil {
			return false, fmt.Errorf("it is %s: %v", l.State, l.Cause)
		}
		return strings.Contains(err.Error(), "no link of this name"), nil
	})
	equal(t, b, a, "shop")
}

// TestSlotOfAForceThatDidNotTakePlace: beta's agent ended while it was being opened by force,
// with the slot made by which alpha would have followed. Alpha is there and knows nothing of
// it: beta drops the slot itself before it fills the disk.
func TestSlotOfAForceThatDidNotTakePlace(t *testing.T) {
	t.Parallel()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	b.maxWAL = 1 << 20
	b.stop()
	b.run(t)
	introduce(t, a, b)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `SELECT pg_create_logical_replication_slot('hawser_`+idOf(t, b, "shop")+`', 'pgoutput')`)
	b.Exec(t, "postgres", `CREATE TABLE busy AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)`)
	conn := b.Connect(t, "postgres")
	testpg.Eventually(t, 60*time.Second, "nothing is held back on beta", func() (bool, error) {
		left := testpg.Rows(t, conn, `SELECT slot_name FROM pg_replication_slots`)
		if len(left) > 0 {
			return false, fmt.Errorf("there are %q", left)
		}
		return true, nil
	})
	b.awaitState(t, "shop", api.StateSynchronized)
	failover(t, a, "shop")
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}
