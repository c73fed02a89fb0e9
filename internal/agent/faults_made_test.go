package agent_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// someOf chooses every sixth question, and all where all kills are played.
func someOf(t *testing.T) (first, step int) {
	t.Helper()
	if os.Getenv("HAWSER_TEST_KILLS") != "" {
		return 1, 1
	}
	return 1 + int(seedOf(t)%6), 6
}

// TestKilledWhileDatabaseIsMade: the secondary's agent is killed at each question by which
// it makes the replica's database, and at each by which it removes it. The command, run
// again, makes the link; what it made goes with the replica, to the last trace.
func TestKilledWhileDatabaseIsMade(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	b.stop()
	b.process = true
	tap := newTap(t, b)
	b.run(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY)`)
	a.awaitPeer(t)
	create := func() error {
		_, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
		return err
	}
	drop := func() error {
		_, err := a.DropLink(ctx, "shop", api.DropOptions{RemoveReplica: true})
		return err
	}
	databases := func(purpose string) bool { return purpose == "hawser:schema database" }
	// killed runs a command, and kills the agent when it asks the question of that number.
	killed := func(at int, command func() error) (within bool, err error) {
		held := tap.arm(at, false, databases)
		done := make(chan error, 1)
		go func() { done <- command() }()
		select {
		case <-held:
			within = true
		case err := <-done:
			tap.release()
			return false, err
		}
		b.stop()
		tap.release()
		b.run(t)
		a.awaitPeer(t)
		return true, testpg.Await(t, "the command is answered", done)
	}
	gone := func() {
		t.Helper()
		testpg.Eventually(t, 30*time.Second, "the replica is gone", func() (bool, error) {
			if err := drop(); err != nil && !strings.Contains(err.Error(), "no link of this name") {
				return false, err
			}
			return len(b.Rows(t, "postgres", `SELECT FROM pg_database WHERE datname ~ 'shop|hawser'`)) == 0, nil
		})
	}
	first, step := someOf(t)
	for at := first; ; at += step {
		within, err := killed(at, create)
		t.Logf("killed at question %d of the making, %v: %v", at, within, err)
		testpg.Eventually(t, 60*time.Second, "the link is made", func() (bool, error) {
			if l, err := a.Link(ctx, "shop"); err == nil && l.State == api.StateSynchronized {
				return true, nil
			}
			return false, create()
		})
		gone()
		if !within {
			break
		}
	}
	for at := first; ; at += step {
		if err := create(); err != nil {
			t.Fatal(err)
		}
		b.awaitState(t, "shop", api.StateSynchronized)
		within, err := killed(at, drop)
		t.Logf("killed at question %d of the removal, %v: %v", at, within, err)
		gone()
		if !within {
			break
		}
	}
}
