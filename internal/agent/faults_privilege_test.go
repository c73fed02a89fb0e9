package agent_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestOpensWhenItMay: the new primary's agent loses its privileges in the middle of a
// failover, when the old primary has closed. It says so, and opens when it has them again.
func TestOpensWhenItMay(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	a.stop()
	b.stop()
	b.Exec(t, "postgres", `CREATE ROLE agent SUPERUSER LOGIN`, `DROP SCHEMA hawser CASCADE`) // which the agent makes anew, as its own
	tap := newTap(t, a)
	b.connect = fmt.Sprintf("host=127.0.0.1 port=%d user=agent dbname=postgres sslmode=disable", b.Port())
	a.run(t)
	b.run(t)
	introduce(t, a, b)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	tap.when(17, ofFailover, func() { // the other side is prepared
		if err := tryIn(b, "postgres", `ALTER ROLE agent NOSUPERUSER`); err != nil {
			t.Error(err)
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 40 * time.Second})
		done <- err
	}()
	testpg.Eventually(t, 30*time.Second, "the new primary says what it lacks", func() (bool, error) {
		l, err := b.Link(ctx, "shop")
		if err == nil && (l.State != api.StateFailingOver || l.Cause.Code != "fence-privilege") {
			err = fmt.Errorf("it is %s: %v", l.State, l.Cause)
		}
		return err == nil, err
	})
	if err := try(t, a, `INSERT INTO t VALUES (1)`); err == nil {
		t.Error("the old primary took a write after the other side had taken over")
	}
	b.Exec(t, "postgres", `ALTER ROLE agent SUPERUSER`)
	if err := testpg.Await(t, "the failover is answered", done); err != nil {
		t.Errorf("the failover: %v", err)
	}
	testpg.Eventually(t, 30*time.Second, "the new primary is open", func() (bool, error) {
		err := try(t, b, `INSERT INTO t VALUES (2)`)
		return err == nil, err
	})
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
}
