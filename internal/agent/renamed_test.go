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

// rename gives a database another name as soon as nobody is in it.
func rename(t *testing.T, i *instance, from, to string) {
	t.Helper()
	testpg.Eventually(t, 30*time.Second, from+" of "+i.name+" is renamed", func() (bool, error) {
		err := tryIn(i, "postgres", `ALTER DATABASE `+from+` RENAME TO `+to)
		return err == nil, err
	})
}

// TestTailWithDDLRemedyOfTwo: the old primary has another link of its database. What the
// refusal of a rejoin advises names that, too; whoever goes by one link alone, and drops the
// other one when the database has its new name, leaves nothing there either.
func TestTailWithDDLRemedyOfTwo(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	a.stop()
	a.Exec(t, "shop", `CREATE TABLE lost (v text)`)
	b.awaitState(t, "shop", api.StateDisconnected)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	c.stop()
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	err := a.RejoinLink(ctx, "shop")
	turnedDown(t, "rejoin", err, "tail-has-ddl", "CREATE TABLE lost")
	if p, ok := problem.As(err); !ok || !slices.Equal(strings.Split(p.Remedy, "\n"), []string{"hawser link drop shop", "hawser link drop other"}) || !strings.Contains(p.Advice, "instance gamma") {
		t.Errorf("the remedy is %v", err)
	}
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	rename(t, a, "shop", "shop_old")
	_, err = b.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "alpha", Role: api.RolePrimary})
	if err == nil || !strings.Contains(err.Error(), "link other uses it") {
		t.Errorf("create beside the other link: %v", err)
	}
	if _, err := a.DropLink(ctx, "other", api.DropOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := traces(t, a, "shop_old"); len(got) > 0 {
		t.Errorf("left of the links: %q", got)
	}
	if _, err := b.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "alpha", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
}

// TestDropAfterRename: the database of a side got another name while its agent was away; on the
// primary another database has its old one. A drop cleans the one that was linked, and leaves
// the other one alone.
func TestDropAfterRename(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"primary", "secondary"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b := pair(t)
			link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE keyless (v text); INSERT INTO t VALUES (1, 'x')`)
			b.awaitState(t, "shop", api.StateSynchronized)
			i := map[string]*instance{"primary": a, "secondary": b}[side]
			i.stop()
			rename(t, i, "shop", "renamed")
			i.Exec(t, "postgres", `CREATE DATABASE shop`)
			i.Exec(t, "shop", `CREATE TABLE of_another (v text); ALTER TABLE of_another REPLICA IDENTITY FULL`)
			i.run(t)
			a.awaitConnected(t, "beta")
			b.awaitConnected(t, "alpha")
			testpg.Eventually(t, 30*time.Second, "it says which database is the link's", func() (bool, error) {
				l, err := i.Link(ctx, "shop")
				if err == nil && (l.Cause == nil || l.Cause.Code != "database-renamed") {
					err = fmt.Errorf("it says %v", l.Cause)
				}
				return err == nil, err
			})
			i.Exec(t, "shop", `INSERT INTO of_another VALUES ('x')`)
			result, err := i.DropLink(ctx, "shop", api.DropOptions{})
			if err != nil || len(result.Findings) > 0 {
				t.Fatalf("drop: %v, %v", result.Findings, err)
			}
			if got := slices.DeleteFunc(traces(t, i, "renamed"), func(line string) bool { return line == made }); len(got) > 0 {
				t.Errorf("left of the link: %q", got)
			}
			if got := traces(t, i, "shop"); !slices.Equal(got, []string{"identity|of_another"}) {
				t.Errorf("under the old name: %q", got)
			}
			if err := tryIn(i, "renamed", `INSERT INTO t VALUES (2, 'y')`); err != nil {
				t.Error(err)
			}
		})
	}
}
