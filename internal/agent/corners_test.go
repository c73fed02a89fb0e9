package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// These tests came of bugs that a review found.

// pair returns two instances that know each other, and no link.
func pair(t *testing.T) (a, b *instance) {
	t.Helper()
	a, b = newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	return a, b
}

// link makes database shop on a and links it to b.
func link(t *testing.T, a, b *instance, sql ...string) {
	t.Helper()
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", sql...)
	if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: b.name, Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
}

// try runs sql in a session of its own and returns the error.
func try(t *testing.T, i *instance, sql string) error {
	t.Helper()
	return tryIn(i, "shop", sql)
}

// tryIn does so in a database.
func tryIn(i *instance, database, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, i.DSN(database))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// hold takes a lock in a database until release. It takes no transaction id, and
// so does not keep a slot from being made.
func hold(t *testing.T, i *instance, database, table string) (release func()) {
	t.Helper()
	return lock(t, i, database, table+` IN EXCLUSIVE MODE`)
}

// lock does so in a mode of its own; without one it holds readers up as well.
func lock(t *testing.T, i *instance, database, table string) (release func()) {
	t.Helper()
	conn := i.Connect(t, database)
	for _, sql := range []string{`SET session_replication_role = replica`, `SET default_transaction_read_only = off`, `BEGIN`, `LOCK TABLE ` + table} {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
	return func() { _, _ = conn.Exec(context.Background(), `ROLLBACK`) }
}

// awaitFenced waits until i refuses writes.
func awaitFenced(t *testing.T, i *instance) {
	t.Helper()
	testpg.Eventually(t, 20*time.Second, i.name+" is fenced", func() (bool, error) {
		err := try(t, i, `CREATE TABLE probe_fence (); DROP TABLE probe_fence`)
		if err != nil && strings.Contains(err.Error(), "25006") {
			return true, nil
		}
		return false, err
	})
}

// TestSecondLinkOpensAFencedDatabase: one database has two links, to beta and
// to gamma. It fails over to beta; the restart of alpha's agent opens it, since it
// is still the steady primary of the link with gamma: two writable sides.
func TestSecondLinkOpensAFencedDatabase(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	c := newInstance(t, "gamma")
	cert, err := c.Certificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.AddPeer(ctx, api.AddPeer{Name: "gamma", Certificate: cert.PEM, Address: fmt.Sprintf("127.0.0.1:%d", c.port)}); err != nil {
		t.Fatal(err)
	}
	if cert, err = a.Certificate(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddPeer(ctx, api.AddPeer{Name: "alpha", Certificate: cert.PEM}); err != nil {
		t.Fatal(err)
	}
	testpg.Eventually(t, 20*time.Second, "gamma is connected", func() (bool, error) {
		list, err := c.Peers(ctx)
		return err == nil && len(list.Peers) == 1 && list.Peers[0].Connected, err
	})
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "second", Database: "shop", Peer: "gamma", Role: api.RolePrimary}); err != nil {
		t.Skipf("one database can't have two links: %v", err)
	}
	c.awaitState(t, "second", api.StateSynchronized)
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	awaitFenced(t, a)
	a.stop()
	a.run(t)
	// Nothing may happen, for as long as an agent that restarts needs to find all of its links.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if try(t, a, `INSERT INTO t VALUES (1)`) == nil {
			if err := try(t, b, `INSERT INTO t VALUES (1)`); err == nil {
				t.Fatal("both alpha and beta took a write")
			}
			t.Fatal("alpha, the secondary, took a write")
		}
	}
}

// TestReseedAndHandoff: DDL whose rows only the primary knows puts a table
// down to be copied again; the handoff that follows is accepted before the copy is
// made, and the new primary has a table without its rows' values.
func TestReseedAndHandoff(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE gate (id int PRIMARY KEY)`, `CREATE TABLE r (id int PRIMARY KEY, v text);
		INSERT INTO r SELECT i, repeat('x', 500) FROM generate_series(1, 1000) i`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	release := hold(t, b, "shop", "gate")
	a.Exec(t, "shop", `INSERT INTO gate VALUES (1)`)
	done := make(chan error, 1)
	go func() {
		_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 60 * time.Second})
		done <- err
	}()
	a.Exec(t, "shop", `ALTER TABLE r ADD COLUMN x double precision DEFAULT random()`,
		`UPDATE r SET v = 'changed' WHERE id <= 100`)
	awaitFenced(t, a)
	want := digest(t, a.Cluster, "shop")
	a.awaitHandoff(t)
	release()
	if err := testpg.Await(t, "the failover is answered", done); err != nil {
		t.Logf("failover: %v", err)
	}
	l, err := b.Link(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if got := digest(t, b.Cluster, "shop"); l.Role == api.RolePrimary && got != want {
		t.Errorf("beta is primary with\n%s\nalpha had\n%s", got, want)
	}
}

// TestDDLBetweenSchemaAndTableSnapshot: DDL is committed after the schema's
// snapshot and before the table's. The rows are copied as they are after it, and
// then it is replayed on top of them.
func TestDDLBetweenSchemaAndTableSnapshot(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	setup := []string{
		`CREATE TABLE price (id int PRIMARY KEY, v int); INSERT INTO price SELECT i, i FROM generate_series(1, 10) i`,
		`CREATE TABLE s1 (id int PRIMARY KEY, v text); INSERT INTO s1 VALUES (1, 'one')`,
		`CREATE TABLE s2 (id int PRIMARY KEY, v text); INSERT INTO s2 VALUES (1, 'two')`,
	}
	for i := range 6 { // the largest are copied first
		setup = append(setup, fmt.Sprintf(`CREATE TABLE large%d AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 60000) i`, i))
	}
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", setup...)
	conn := a.Connect(t, "shop")
	made := make(chan error, 1)
	go func() {
		_, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
		made <- err
	}()
	testpg.Eventually(t, 60*time.Second, "the schema is restored", func() (bool, error) {
		c, err := pgx.Connect(context.Background(), b.DSN("shop"))
		if err != nil {
			return false, nil
		}
		defer c.Close(context.Background())
		var n int
		err = c.QueryRow(context.Background(), `SELECT count(*) FROM hawser.seed_table WHERE name IN ('price', 's1', 's2')`).Scan(&n)
		return err == nil && n == 3, nil
	})
	for _, sql := range []string{
		`ALTER TABLE price ALTER v TYPE bigint USING v * 100`,
		`BEGIN; ALTER TABLE s1 RENAME TO s3; ALTER TABLE s2 RENAME TO s1; ALTER TABLE s3 RENAME TO s2; COMMIT`,
	} {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("states behind the DDL: %q", testpg.Rows(t, b.Connect(t, "shop"), `SELECT name, state FROM hawser.seed_table ORDER BY 1`))
	if err := testpg.Await(t, "the link's creation is answered", made); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestSecondaryRestartsDuringFailover: the slot that beta made for its time as
// primary is dropped when its agent restarts before the handoff arrives; alpha
// can't follow.
func TestSecondaryRestartsDuringFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE gate (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	release := hold(t, b, "shop", "gate")
	a.Exec(t, "shop", `INSERT INTO gate VALUES (1)`)
	done := make(chan error, 1)
	go func() {
		_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 60 * time.Second})
		done <- err
	}()
	awaitFenced(t, a)
	b.stop()
	release()
	b.run(t)
	t.Logf("failover: %v", testpg.Await(t, "the failover is answered", done))
	a.awaitState(t, "shop", api.StateSynchronized)
	b.awaitState(t, "shop", api.StateSynchronized)
}

// TestOldPrimaryMissesTheNews: alpha's agent dies while beta decides. Beta
// opens and can't tell. When alpha is back, nobody asks: it stays fenced, handing
// over, and follows nobody.
func TestOldPrimaryMissesTheNews(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	release := hold(t, b, "postgres", "hawser.link") // beta can't store its role
	go func() { _, _ = a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 60 * time.Second}) }()
	testpg.Eventually(t, 30*time.Second, "beta wants to store that it is primary", func() (bool, error) {
		return len(b.Rows(t, "postgres", `SELECT FROM pg_locks WHERE NOT granted AND relation = 'hawser.link'::regclass`)) > 0, nil
	})
	a.stop()
	release()
	testpg.Eventually(t, 30*time.Second, "beta is open", func() (bool, error) {
		err := try(t, b, `INSERT INTO t VALUES (7)`)
		return err == nil, err
	})
	b.awaitPhase(t, "shop", "steady")
	time.Sleep(time.Second) // beta tells of it in vain, of which there is nothing to see
	a.run(t)
	a.awaitState(t, "shop", api.StateSynchronized)
}

// TestTimeLimitIsForgotten: the primary's agent restarts while it hands over,
// and with it the failover's time limit is forgotten. Nobody writes for as long as
// beta can't apply, and no command takes the failover back. As long as beta is away as
// well, nobody knows which side has all: the link says so, and is not dropped by the way.
func TestTimeLimitIsForgotten(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE gate (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	release := hold(t, b, "shop", "gate")
	t.Cleanup(release)
	a.Exec(t, "shop", `INSERT INTO gate VALUES (1)`)
	go func() {
		_, _ = a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 5 * time.Second})
	}()
	awaitFenced(t, a)
	a.awaitHandoff(t)
	a.stop()
	b.stop()
	a.run(t)
	cause, remedy := a.awaitCause(t, api.StateFailingOver, "outcome-unknown")
	if !strings.Contains(cause, "instance beta") || !strings.Contains(remedy, "hawser link drop shop --force") {
		t.Errorf("it says %s, and %s", cause, remedy)
	}
	if _, err := a.DropLink(context.Background(), "shop", api.DropOptions{}); err == nil || !strings.Contains(err.Error(), "a failover is under way") {
		t.Errorf("a drop said %v", err)
	}
	b.run(t)
	testpg.Eventually(t, 20*time.Second, "alpha writes again, long after the time limit of 5 s", func() (bool, error) {
		if err := try(t, a, `INSERT INTO gate VALUES (2)`); err != nil {
			l, _ := a.Link(context.Background(), "shop")
			return false, fmt.Errorf("%w; %s %v", err, l.State, l.Cause)
		}
		return true, nil
	})
}

// TestImageOfAnArray: a row of a table without a key is found by its image.
// An array whose image has a bitmap of nulls that it does not need has another one
// when it was read from text: after a failover the old primary does not find its row.
func TestImageOfAnArray(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE q (v int[], n int); INSERT INTO q SELECT (ARRAY[i, NULL])[1:1], 1 FROM generate_series(1, 3) i`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	if _, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `UPDATE q SET n = 2 WHERE v = '{2}'`)
	testpg.Eventually(t, 15*time.Second, "both sides are equal", func() (bool, error) {
		if digest(t, a.Cluster, "shop") == digest(t, b.Cluster, "shop") {
			return true, nil
		}
		l, err := a.Link(context.Background(), "shop")
		return false, fmt.Errorf("%s %v %v", l.State, l.Cause, err)
	})
}

// TestStopWhileTheApplierWaits: the applier waits for a lock that somebody
// holds on the replica. The agent does not stop, nor would a pause or a drop end,
// before the lock is gone.
func TestStopWhileTheApplierWaits(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE gate (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	release := hold(t, b, "shop", "gate")
	a.Exec(t, "shop", `INSERT INTO gate VALUES (1)`)
	testpg.Eventually(t, 10*time.Second, "the applier waits", func() (bool, error) {
		return len(b.Rows(t, "shop", `SELECT FROM pg_locks WHERE NOT granted AND relation = 'gate'::regclass`)) > 0, nil
	})
	stopped := make(chan struct{})
	go func() { b.stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(15 * time.Second):
		t.Error("the agent does not stop while the applier waits for a lock")
	}
	release()
	testpg.Await(t, "the agent stops", stopped)
}

// TestVolatileDefault: a table is copied again after DDL whose rows only the
// primary knows.
func TestVolatileDefault(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE q (id int PRIMARY KEY); INSERT INTO q VALUES (1)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `ALTER TABLE q ADD COLUMN x double precision DEFAULT random()`)
	equal(t, a, b, "shop")
}
