package agent_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// client is a session of a user's, which a failover ends.
func client(t *testing.T, i *instance) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), i.DSN("shop"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// TestSessionThatDoesNotEnd: a client's process stands still, with rows locked that it has
// changed, and does not end when it is told to. The failover is taken back at its time
// limit and names the session, whether it holds up the first one, which has the fence to put
// on its table, or a later one; the primary writes again. What the session changed is not
// committed later, by anybody.
func TestSessionThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'first')`)
	stuck := client(t, a)
	within(t, stuck, `BEGIN`, `UPDATE t SET v = 'never' WHERE id = 1`, `INSERT INTO t VALUES (2, 'never')`)
	pid := int(stuck.PgConn().PID())
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	for n, c := range []struct {
		on    *instance
		code  string
		cause string
	}{{a, "fence-table-busy", "holds a lock"}, {b, "fence-table-busy", "holds a lock"}, {a, "failover-timeout", "was told to end and did not"}, {b, "failover-timeout", "was told to end and did not"}} {
		if n == 2 { // now its table has the fence
			signal(syscall.SIGCONT)
			within(t, stuck, `ROLLBACK`)
			failover(t, a, "shop")
			a.awaitState(t, "shop", api.StateSynchronized)
			failover(t, b, "shop")
			b.awaitState(t, "shop", api.StateSynchronized)
			stuck = client(t, a)
			within(t, stuck, `BEGIN`, `UPDATE t SET v = 'never' WHERE id = 1`, `INSERT INTO t VALUES (2, 'never')`)
			pid = int(stuck.PgConn().PID())
			signal(syscall.SIGSTOP)
		}
		_, err := c.on.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 5 * time.Second})
		p, ok := problem.As(err)
		if !ok || p.Code != c.code || !strings.Contains(p.Cause, c.cause) || !strings.Contains(p.Remedy, fmt.Sprint(pid)) {
			t.Errorf("%d, asked of %s: %v", n, c.on.name, err)
		}
		testpg.Eventually(t, 30*time.Second, "alpha takes writes", func() (bool, error) {
			err := try(t, a, fmt.Sprintf(`INSERT INTO t VALUES (%d, 'alpha leads on')`, 10+n))
			return err == nil, err
		})
		if try(t, b, `INSERT INTO t VALUES (0, 'x')`) == nil {
			t.Error("beta took a write")
		}
		b.awaitState(t, "shop", api.StateSynchronized)
	}
	// Alive again, it ends, as it was told; nobody waits for it any more.
	planned := asked(a, api.FailoverOptions{Timeout: time.Minute})
	testpg.Eventually(t, 30*time.Second, "the link names the session while the failover waits", func() (bool, error) {
		l, err := a.Link(ctx, "shop")
		if err != nil || l.Cause == nil || l.Cause.Code != "session-remains" {
			return false, fmt.Errorf("it is %s: %v, %v", l.State, l.Cause, err)
		}
		return true, nil
	})
	signal(syscall.SIGCONT)
	if err := testpg.Await(t, "the failover is answered", planned); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `UPDATE t SET v = 'second' WHERE id = 1`)
	equal(t, a, b, "shop")
	if got := testpg.Rows(t, a.Connect(t, "shop"), `SELECT id, v FROM t ORDER BY id`); strings.Join(got, " ") != "1|second 10|alpha leads on 11|alpha leads on 12|alpha leads on 13|alpha leads on" {
		t.Errorf("the table has %q", got)
	}
	proven(t, b, "shop")
}

// TestSessionThatHoldsOut: a function that catches what ends a statement, and runs on. The
// session ends all the same when it is told to, and the failover goes through.
func TestSessionThatHoldsOut(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	a.Exec(t, "shop", `CREATE FUNCTION hold_out() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
		BEGIN
			LOOP
				BEGIN
					INSERT INTO t SELECT max(id) + 1, 'x' FROM t;
					PERFORM pg_sleep(0.01);
				EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
					NULL;
				END;
			END LOOP;
		END $$`, `INSERT INTO t VALUES (1, 'first')`)
	failover(t, a, "shop") // so that its tables have the fence
	a.awaitState(t, "shop", api.StateSynchronized)
	failover(t, b, "shop")
	b.awaitState(t, "shop", api.StateSynchronized)
	ended := make(chan error, 1)
	conn := client(t, a)
	go func() {
		_, err := conn.Exec(context.Background(), `SELECT hold_out()`)
		ended <- err
	}()
	a.awaitSession(t, "runs the function", `query LIKE '%hold_out%' AND wait_event = 'PgSleep' AND pid <> pg_backend_pid()`)
	failover(t, a, "shop")
	if err := testpg.Await(t, "the failover is answered", ended); err == nil {
		t.Error("the function came to an end")
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	if got := testpg.Rows(t, b.Connect(t, "shop"), `SELECT id FROM t`); len(got) != 1 {
		t.Errorf("beta has %d rows", len(got))
	}
}

// TestFailoverBesideABreak: a secondary whose stream breaks just then follows again at
// once, and is waited for.
func TestFailoverBesideABreak(t *testing.T) {
	t.Parallel()
	primary, secondary := small(t)
	for range 8 {
		secondary.awaitState(t, "shop", api.StateSynchronized)
		primary.awaitState(t, "shop", api.StateSynchronized)
		secondary.Exec(t, "postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hawser:shop:apply'`)
		failover(t, primary, "shop")
		primary, secondary = secondary, primary
	}
}
