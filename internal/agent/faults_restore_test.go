package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// A PostgreSQL behind an agent may be put back to an earlier state: from a snapshot of
// its machine, from a base backup, or as a standby that took over without the last
// transactions. Neither side may go on then as if nothing had happened.

// backup copies a cluster's files, as a snapshot of its machine does: with the
// replication slots. restore puts them in place of what is there.
func backup(t *testing.T, i *instance) (restore func()) {
	t.Helper()
	kept := filepath.Join(t.TempDir(), "data")
	copyFiles := func(from, to string) {
		if out, err := testpg.Command(t, "cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("copy the cluster: %v: %s", err, out)
		}
	}
	i.Stop(t)
	copyFiles(i.DataDir(), kept)
	i.Start(t)
	return func() {
		t.Helper()
		i.Stop(t)
		if err := os.RemoveAll(i.DataDir()); err != nil {
			t.Fatal(err)
		}
		copyFiles(kept, i.DataDir())
		i.Start(t)
	}
}

// awaitCause waits until a link is suspended for the given reason.
func awaitCause(t *testing.T, i *instance, code string) {
	t.Helper()
	testpg.Eventually(t, 40*time.Second, "the link on "+i.name+" tells "+code, func() (bool, error) {
		l, err := i.Link(context.Background(), "shop")
		if err != nil {
			return false, err
		}
		if l.State == api.StateSuspended && l.Cause.Code == code {
			t.Logf("%s: %s (remedy: %s)", code, l.Cause.Cause, l.Cause.Remedy)
			return true, nil
		}
		return false, fmt.Errorf("it is %s: %+v", l.State, l.Cause)
	})
}

// pastTheOld moves a primary's WAL beyond any position that the other side has seen,
// so that positions alone tell nothing.
const pastTheOld = `CREATE TABLE ballast AS SELECT repeat(md5(i::text), 20) FROM generate_series(1, 30000) i; DROP TABLE ballast`

// TestPrimaryRestored: the primary lost transactions that the replica has, and goes
// on writing other ones. The link stands; a person chooses which side's are kept.
func TestPrimaryRestored(t *testing.T) {
	t.Parallel()
	for _, keep := range []string{"primary", "replica"} {
		t.Run("keep the "+keep+"'s", func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b := pair(t)
			link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 100) i`)
			b.awaitState(t, "shop", api.StateSynchronized)
			restore := backup(t, a)
			b.awaitState(t, "shop", api.StateSynchronized)
			a.Exec(t, "shop", `INSERT INTO t SELECT i, 'lost' FROM generate_series(201, 250) i; UPDATE t SET v = 'lost' WHERE id <= 10`)
			equal(t, a, b, "shop")
			b.stop()
			restore()
			a.Exec(t, "shop", `INSERT INTO t SELECT i, 'restored' FROM generate_series(240, 290) i`, `UPDATE t SET v = 'restored' WHERE id BETWEEN 5 AND 15`)
			a.Exec(t, "postgres", pastTheOld)
			want := digest(t, b.Cluster, "shop")
			b.run(t)
			awaitCause(t, b, "primary-restored")
			if got := digest(t, b.Cluster, "shop"); got != want {
				t.Errorf("the replica took changes of the restored primary:\n%s\nbefore:\n%s", got, want)
			}
			if keep == "replica" {
				if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
				a.awaitState(t, "shop", api.StateDiverged)
				if err := a.RejoinLink(ctx, "shop"); err != nil {
					t.Fatal(err)
				}
				a.awaitState(t, "shop", api.StateSynchronized)
				b.Exec(t, "shop", `INSERT INTO t VALUES (1000, 'after')`)
			} else {
				if err := b.ResyncLink(ctx, "shop", nil); err != nil {
					t.Fatal(err)
				}
				b.awaitState(t, "shop", api.StateSynchronized)
				a.Exec(t, "shop", `INSERT INTO t VALUES (1000, 'after')`)
			}
			equal(t, a, b, "shop")
			if n := len(testpg.Rows(t, b.Connect(t, "shop"), `SELECT FROM t WHERE v = 'lost'`)); (n > 0) != (keep == "replica") {
				t.Errorf("%d rows of the replica's transactions are there", n)
			}
		})
	}
}

// TestReplicaRestored: the replica went back behind what it had told the primary to
// be durable, and the primary's slot has forgotten that.
func TestReplicaRestored(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	restore := backup(t, b)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i`)
	equal(t, a, b, "shop")
	awaitConfirmed(t, a)
	restore()
	awaitCause(t, b, "slot-ahead")
	if err := b.ResyncLink(context.Background(), "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1000, 'after')`)
	equal(t, a, b, "shop")
}

// awaitConfirmed waits until the slot is confirmed up to where WAL ends now.
func awaitConfirmed(t *testing.T, i *instance) {
	t.Helper()
	conn := i.Connect(t, "shop")
	end := testpg.Rows(t, conn, `SELECT pg_current_wal_flush_lsn()`)[0]
	testpg.Eventually(t, 20*time.Second, "the slot is confirmed up to "+end, func() (bool, error) {
		return len(testpg.Rows(t, conn, `SELECT FROM pg_replication_slots WHERE confirmed_flush_lsn >= $1::text::pg_lsn`, end)) > 0, nil
	})
}

// TestIdleBesideBusy: while only neighbours write, the slot moves on without a change
// for the replica. That is no sign of a restore, whoever restarts.
func TestIdleBesideBusy(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`, `INSERT INTO t VALUES (1)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for i, restart := range []func(){
		func() { b.stop(); b.run(t) },
		func() { b.Kill(t); b.Cluster.Start(t) },
		func() { a.Kill(t); a.Cluster.Start(t) },
		func() { a.Restart(t) },
	} {
		a.Exec(t, "postgres", pastTheOld)
		awaitConfirmed(t, a)
		restart()
		b.awaitState(t, "shop", api.StateSynchronized)
		a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (10 + %d)`, i))
		equal(t, a, b, "shop")
	}
}

// TestRestoredToBeforeAFailover: the new primary is put back, under its agent or without it,
// to when it was the secondary. Nobody leads then: the side that followed it opens by force, and the other one, whose past
// no position tells of, says so and follows nothing.
func TestRestoredToBeforeAFailover(t *testing.T) {
	t.Parallel()
	for name, runs := range map[string]bool{"stopped": false, "running": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			restoredToBeforeAFailover(t, runs)
		})
	}
}

func restoredToBeforeAFailover(t *testing.T, runs bool) {
	ctx := context.Background()
	a, b := small(t)
	restore := backup(t, b)
	b.awaitState(t, "shop", api.StateSynchronized)
	failover(t, a, "shop")
	a.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `INSERT INTO t VALUES (100, 'of the new primary')`)
	equal(t, b, a, "shop")
	if runs {
		restore()
	} else {
		b.stop()
		restore()
		b.run(t)
	}
	if cause, remedy := a.awaitCause(t, api.StateDisconnected, "no-primary"); !strings.Contains(remedy, "on instance alpha: hawser link failover shop --force") {
		t.Errorf("%s (remedy: %s)", cause, remedy)
	}
	b.awaitCause(t, api.StateDisconnected, "no-primary")
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if cause, remedy := b.awaitCause(t, api.StateSuspended, "replica-restored"); !strings.Contains(remedy, "hawser link drop shop --remove-replica") {
		t.Errorf("%s (remedy: %s)", cause, remedy)
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (101, 'after')`)
	if err := try(t, b, `INSERT INTO t VALUES (102, 'foreign')`); err == nil {
		t.Error("the restored side took a write")
	}
	if _, err := b.DropLink(ctx, "shop", api.DropOptions{RemoveReplica: true}); err != nil {
		t.Error(err)
	}
}

// TestForcedOutAndRestored: alpha is forced out by beta, and what its slot has is not what
// beta lacks: its PostgreSQL was put back to before what beta has, and clients wrote where
// that stood; or beta's was put back before it opened; or somebody made the slot anew, or
// moved it on. The report claims nothing then, and the rejoin compares.
func TestForcedOutAndRestored(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"alpha restored", "beta restored", "slot made anew", "slot moved on"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			forcedOutAndRestored(t, what)
		})
	}
}

func forcedOutAndRestored(t *testing.T, what string) {
	ctx := context.Background()
	a, b := small(t)
	a.Exec(t, "shop", `INSERT INTO t SELECT i, 'old' FROM generate_series(1, 100) i`)
	equal(t, a, b, "shop")
	restored := map[string]*instance{"alpha restored": a, "beta restored": b}[what]
	restore := func() {}
	if restored != nil {
		restore = backup(t, restored)
		b.awaitState(t, "shop", api.StateSynchronized)
	}
	a.Exec(t, "shop", `INSERT INTO t SELECT i, 'of alpha' FROM generate_series(101, 3000) i`, `UPDATE t SET v = 'of alpha' WHERE id <= 10`)
	equal(t, a, b, "shop")
	awaitConfirmed(t, a)
	a.stop()
	if what != "alpha restored" { // else it would be lost with that
		a.Exec(t, "shop", `INSERT INTO t VALUES (5000, 'of alpha alone')`, `DELETE FROM t WHERE id = 20`)
	}
	if restored == b {
		b.stop()
		restore()
		b.run(t)
	}
	b.awaitState(t, "shop", api.StateDisconnected)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO t VALUES (6000, 'of beta')`)
	if restored == a {
		restore()
	}
	name := "'hawser_" + idOf(t, b, "shop") + "'"
	switch what {
	case "slot made anew":
		change(t, a, `SELECT pg_drop_replication_slot(`+name+`)`)
		change(t, a, `SELECT pg_create_logical_replication_slot(`+name+`, 'pgoutput')`)
	case "slot moved on":
		change(t, a, `SELECT pg_replication_slot_advance(`+name+`, pg_current_wal_lsn())`)
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (7000, 'of alpha alone')`, `UPDATE t SET v = 'of alpha alone' WHERE id = 30`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	testpg.Eventually(t, 30*time.Second, "alpha says that it does not know what it alone has", func() (bool, error) {
		l, err := a.Link(ctx, "shop")
		if err != nil || l.Cause == nil || !strings.Contains(l.Cause.Cause, "is not known") {
			return false, fmt.Errorf("it says %v: %v", l.Cause, err)
		}
		return true, nil
	})
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `INSERT INTO t VALUES (8000, 'after')`)
	equal(t, b, a, "shop")
	proven(t, b, "shop")
}

// TestRestoredToAnEarlierLink: a link was dropped and made again under its name, and then one
// side is put back to when it had the earlier one. Its terms and positions tell nothing of the
// later: each side says so, neither follows or hands over, and a drop takes away no more than
// it means.
func TestRestoredToAnEarlierLink(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"primary", "secondary"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b := small(t)
			back := map[string]*instance{"primary": a, "secondary": b}[which]
			restore := backup(t, back)
			b.awaitState(t, "shop", api.StateSynchronized)
			if _, err := a.DropLink(ctx, "shop", api.DropOptions{RemoveReplica: true}); err != nil {
				t.Fatal(err)
			}
			spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}
			if _, err := a.CreateLink(ctx, spec); err != nil {
				t.Fatal(err)
			}
			b.awaitState(t, "shop", api.StateSynchronized)
			back.stop()
			restore()
			back.run(t)
			awaitCause(t, b, "another-link")
			testpg.Eventually(t, 30*time.Second, "alpha says so, too", func() (bool, error) {
				l, err := a.Link(ctx, "shop")
				if err != nil || l.Cause == nil || l.Cause.Code != "another-link" {
					return false, fmt.Errorf("it is %s: %v, %v", l.State, l.Cause, err)
				}
				return true, nil
			})
			if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 5 * time.Second}); err == nil {
				t.Error("alpha handed over")
			}
			a.opens(t, `INSERT INTO t VALUES (1, 'alpha leads on')`)
			for _, i := range []*instance{b, a} {
				if _, err := i.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
					t.Fatal(err)
				}
				if list, err := a.Links(ctx); i == b && (err != nil || len(list) != 1) {
					t.Errorf("the drop on beta left alpha %v, %v", list, err)
				}
			}
			b.Exec(t, "postgres", `DROP DATABASE shop WITH (FORCE)`)
			if _, err := a.CreateLink(ctx, spec); err != nil {
				t.Fatal(err)
			}
			b.awaitState(t, "shop", api.StateSynchronized)
			equal(t, a, b, "shop")
			proven(t, a, "shop")
		})
	}
}
