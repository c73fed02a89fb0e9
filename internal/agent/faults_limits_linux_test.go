package agent_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// reconfigure changes a server's settings and restarts it.
func reconfigure(t *testing.T, i *instance, sql ...string) {
	t.Helper()
	i.Exec(t, "postgres", sql...)
	i.Restart(t)
}

// hog takes every connection of a kind that a server has left, again and again, until
// it is released.
func hog(t *testing.T, i *instance, parameters string) (release func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	full, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var taken []*pgconn.PgConn
		told := false
		for ctx.Err() == nil {
			conn, err := pgconn.Connect(ctx, i.DSN("postgres")+" "+parameters)
			if err == nil {
				taken = append(taken, conn)
				continue
			}
			if !told && ctx.Err() == nil {
				close(full)
				told = true
			}
			time.Sleep(2 * time.Millisecond) // a pause between tries; there is nothing to await
		}
		for _, conn := range taken {
			_ = conn.Close(context.Background())
		}
	}()
	select {
	case <-full:
	case <-time.After(30 * time.Second):
		cancel()
		t.Fatal("the server takes any number of connections")
	}
	return func() { cancel(); testpg.Await(t, "the connections are given back", done) }
}

// TestConnectionLimits: when an agent loses its sessions, others have taken all
// connections of the server, on either side; or all of those for replication.
func TestConnectionLimits(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	for _, i := range []*instance{a, b} {
		reconfigure(t, i, `ALTER SYSTEM SET max_connections = 30`, `ALTER SYSTEM SET max_wal_senders = 3`)
	}
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	for n, c := range []struct {
		on         *instance
		parameters string
		words      string
	}{
		{b, "", "max_connections"},
		{a, "", "max_connections"},
		{a, "replication=database", "max_wal_senders"},
	} {
		b.awaitState(t, "shop", api.StateSynchronized)
		own := c.on.Connect(t, "postgres")
		release := hog(t, c.on, c.parameters)
		if _, err := own.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name LIKE 'hawser:%' AND application_name NOT LIKE '%catalog' AND application_name <> 'hawser:test'`); err != nil {
			t.Fatal(err)
		}
		awaitWords(t, b, "taken", c.words)
		if c.parameters != "" {
			a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d)`, n))
		}
		release()
		b.awaitState(t, "shop", api.StateSynchronized)
		a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (10 + %d)`, n))
		equal(t, a, b, "shop")
	}
}

// TestNoSlotForFailover: the secondary has no replication slot left for the way back.
// The failover is refused before anybody is kept from writing.
func TestNoSlotForFailover(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "postgres", `SELECT pg_create_physical_replication_slot('other_' || i) FROM generate_series(1, current_setting('max_replication_slots')::int) i`)
	_, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 20 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "max_replication_slots") {
		t.Errorf("the failover said %v", err)
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (1)`)
	equal(t, a, b, "shop")
	b.Exec(t, "postgres", `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'other_%'`)
	if _, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
}

// TestSlotGoesUnderTheLink: the slot of a running link is dropped, and that of one
// whose replica can't follow is invalidated.
func TestSlotGoesUnderTheLink(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE gate (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	n := 0
	again := func(code string) {
		t.Helper()
		awaitCause(t, b, code)
		a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d, 'while it stood')`, n))
		n++
		if err := a.ResyncLink(ctx, "shop", nil); err != nil {
			t.Fatal(err)
		}
		b.awaitState(t, "shop", api.StateSynchronized)
		equal(t, a, b, "shop")
	}
	conn := a.Connect(t, "shop")
	testpg.Eventually(t, 20*time.Second, "the slot is dropped", func() (bool, error) {
		_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots`)
		if err == nil {
			_, err = conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
		}
		return err == nil, err
	})
	again("slot-lost")

	a.Exec(t, "postgres", `ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'`, `SELECT pg_reload_conf()`)
	release := hold(t, b, "shop", "gate")
	a.Exec(t, "shop", `INSERT INTO gate VALUES (1)`)
	testpg.Eventually(t, 60*time.Second, "the slot is invalidated", func() (bool, error) {
		a.Exec(t, "postgres", pastTheOld, `CHECKPOINT`)
		return len(testpg.Rows(t, conn, `SELECT FROM pg_replication_slots WHERE wal_status = 'lost'`)) > 0, nil
	})
	release()
	again("slot-invalidated")
}

// backends are the processes of an instance's PostgreSQL that serve the agent's sessions of
// a name like that.
func backends(i *instance, like string) (pids []int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, i.DSN("postgres"))
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'hawser:' || $1::text`, like)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}

// kill9 kills one of those processes, as the system does when memory runs out: PostgreSQL
// ends all its sessions then, and recovers.
func kill9(i *instance, like string) error {
	pids, err := backends(i, like)
	if err != nil || len(pids) == 0 {
		return err
	}
	return syscall.Kill(pids[0], syscall.SIGKILL)
}

// starve lets those processes have no more memory.
func starve(i *instance, like string) error {
	pids, err := backends(i, like)
	if err != nil {
		return err
	}
	owner, err := os.Stat(i.DataDir())
	if err != nil {
		return err
	}
	who := owner.Sys().(*syscall.Stat_t)
	for _, pid := range pids { // as the server's own user
		limit := exec.Command("prlimit", "--pid", strconv.Itoa(pid), "--as=8388608")
		limit.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: who.Uid, Gid: who.Gid}}
		if out, err := limit.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// TestBackendKilled: PostgreSQL ends all sessions and recovers when the system kills one
// of them, as it does when memory runs out.
func TestBackendKilled(t *testing.T) {
	t.Parallel()
	a, b := linked(t)
	n, stop := write(t, a.DSN("shop"), "w")
	for _, victim := range []struct {
		of   *instance
		name string
	}{{b, "%:seed%"}, {b, "%:apply"}, {a, "%:capture"}, {a, "%:heartbeat"}, {b, "%catalog"}} {
		more(t, n)
		if err := kill9(victim.of, victim.name); err != nil {
			t.Skipf("a process of the server can't be killed: %v", err)
		}
		b.awaitState(t, "shop", api.StateSynchronized)
	}
	more(t, n)
	stop()
	equal(t, a, b, "shop")
}

// TestBackendOutOfMemory: the applier's backend gets no more memory.
func TestBackendOutOfMemory(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	before, err := backends(b, "%:apply")
	if err == nil {
		err = starve(b, "%:apply")
	}
	if err != nil {
		t.Skipf("no limit can be set for the server's processes: %v", err)
	}
	a.Exec(t, "shop", `INSERT INTO t SELECT 1, repeat('x', 40000000)`, `INSERT INTO t VALUES (2, 'small')`)
	equal(t, a, b, "shop")
	b.awaitState(t, "shop", api.StateSynchronized)
	if now, err := backends(b, "%:apply"); err != nil || slices.Equal(now, before) {
		t.Errorf("the backend had all the memory that it wanted: %v", err)
	}
}
