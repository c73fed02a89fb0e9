package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// turnedDown looks whether something was refused with that code, by a cause that names it.
func turnedDown(t *testing.T, what string, err error, code, names string) {
	t.Helper()
	p, ok := problem.As(err)
	if b, blocked := api.AsBlocked(err); blocked {
		p, ok = b.Findings[0], true
	}
	if !ok || p.Code != code || !strings.Contains(p.Cause, names) || p.Remedy == "" {
		t.Errorf("%s: %v; want %s, which names %s", what, err, code, names)
	}
}

// within runs statements in a session.
func within(t *testing.T, conn *pgx.Conn, sql ...string) {
	t.Helper()
	for _, s := range sql {
		if _, err := conn.Exec(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func codes(found problem.Findings) (out []string) {
	for _, p := range found {
		out = append(out, p.Code)
	}
	slices.Sort(out)
	return out
}

// made is the mark of a database that Hawser created.
const made = "setting|hawser.created=true"

// TestDropOfAnIncompleteReplica: a table is being copied again, and its rows are not all
// there. Nothing opens the replica without saying so. The user drops schema hawser on the
// primary then, and drops the link: what can't be taken back is named.
func TestDropOfAnIncompleteReplica(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE "Keyless" (v text); INSERT INTO t VALUES (1, 'x')`)
	b.awaitState(t, "shop", api.StateSynchronized)
	release := lock(t, a, "shop", "t")
	if err := b.ResyncLink(ctx, "shop", []string{"t"}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*instance{a, b} {
		_, err := i.DropLink(ctx, "shop", api.DropOptions{})
		turnedDown(t, "drop on "+i.name, err, "copy-incomplete", "public.t")
	}
	_, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	turnedDown(t, "forced failover", err, "copy-incomplete", "public.t")
	b.awaitState(t, "shop", api.StateSeeding)
	a.stop()
	b.awaitState(t, "shop", api.StateDisconnected)
	if p := finding(t, b, "shop", "copy-incomplete", `database "shop"`); !strings.Contains(p.Cause, "public.t") {
		t.Errorf("while the primary is away it tells %v", p)
	}
	result, err := b.DropLink(ctx, "shop", api.DropOptions{Force: true})
	if got := codes(result.Findings); err != nil || !slices.Equal(got, []string{"copy-incomplete", "peer-not-told"}) || !strings.Contains(result.Findings[0].Cause, "public.t") {
		t.Errorf("drop of the secondary: %v, %v", result.Findings, err)
	}
	if got := traces(t, b, "shop"); !slices.Equal(got, []string{made}) {
		t.Errorf("left on the secondary: %q", got)
	}
	release()
	a.Exec(t, "shop", `DROP SCHEMA hawser CASCADE`)
	a.run(t)
	a.awaitConnected(t, "beta")
	result, err = a.DropLink(ctx, "shop", api.DropOptions{})
	if got := codes(result.Findings); err != nil || !slices.Equal(got, []string{"replica-identity-left"}) || result.Findings[0].Remedy != `ALTER TABLE public."Keyless" REPLICA IDENTITY DEFAULT;` {
		t.Errorf("drop of the primary: %v, %v", result.Findings, err)
	}
	if got := traces(t, a, "shop"); !slices.Equal(got, []string{"identity|Keyless"}) {
		t.Errorf("left on the primary: %q", got)
	}
}

// TestDropWhileSeeding: the primary is lost while tables are copied for the first time, and the
// link is dropped by force. What is kept of the replica has the replica identities of the user.
func TestDropWhileSeeding(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE keyless (v text); CREATE TABLE "Nothing" (v text); ALTER TABLE "Nothing" REPLICA IDENTITY NOTHING`,
		`CREATE TABLE of_user (v text); ALTER TABLE of_user REPLICA IDENTITY FULL`)
	for i := range 6 {
		a.Exec(t, "shop", fmt.Sprintf(`CREATE TABLE large%d AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 30000) i`, i))
	}
	created := make(chan error, 1)
	go func() {
		_, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
		created <- err
	}()
	awaitCopy(t, b, "shop", 0)
	a.stop()
	<-created
	result, err := b.DropLink(ctx, "shop", api.DropOptions{Force: true})
	if got := codes(result.Findings); err != nil || !slices.Equal(got, []string{"copy-incomplete", "peer-not-told"}) {
		t.Fatalf("drop: %v, %v", result.Findings, err)
	}
	if got := traces(t, b, "shop"); !slices.Equal(got, []string{"identity|of_user", made}) {
		t.Errorf("left on the secondary: %q", got)
	}
	if got := testpg.Rows(t, b.Connect(t, "shop"), `SELECT relname FROM pg_class WHERE relreplident = 'n' AND relkind = 'r' AND oid >= 16384`); !slices.Equal(got, []string{"Nothing"}) {
		t.Errorf("REPLICA IDENTITY NOTHING has %q", got)
	}
}

// TestDropOfAStandingReplica: a replica that is known to differ from the primary, or to lag
// behind it since a person paused the link, is dropped with a word about that, on either side.
func TestDropOfAStandingReplica(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, c := range []struct {
		code, cause string
		stand       func(t *testing.T, a, b *instance)
	}{
		{"replica-differs", "row-missing", func(t *testing.T, a, b *instance) {
			within(t, b.Connect(t, "shop"), postgres.ByHand, `DELETE FROM t WHERE id = 1`)
			a.Exec(t, "shop", `UPDATE t SET v = 'y' WHERE id = 1`)
			b.awaitState(t, "shop", api.StateSuspended)
		}},
		{"replica-behind", "paused", func(t *testing.T, a, b *instance) {
			if err := b.PauseLink(ctx, "shop"); err != nil {
				t.Fatal(err)
			}
			a.Exec(t, "shop", `INSERT INTO t VALUES (2, 'not there')`)
		}},
	} {
		for _, at := range []string{"alpha", "beta"} {
			t.Run(c.code+" on "+at, func(t *testing.T) {
				t.Parallel()
				a, b := pair(t)
				link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')`)
				b.awaitState(t, "shop", api.StateSynchronized)
				c.stand(t, a, b)
				result, err := map[string]*instance{"alpha": a, "beta": b}[at].DropLink(ctx, "shop", api.DropOptions{})
				if err != nil || !slices.Equal(codes(result.Findings), []string{c.code}) {
					t.Fatalf("drop: %v, %v", result.Findings, err)
				}
				if p := result.Findings[0]; !strings.Contains(p.Cause, c.cause) || p.Help() == "" || strings.HasPrefix(p.Object, "on instance beta: ") != (at == "alpha") {
					t.Errorf("it says %v", p)
				}
			})
		}
	}
}

// TestSchemaDropped: somebody drops schema hawser under a running link, on the primary and
// then on the secondary, and puts the capture of DDL to rest in between. Each is named, nothing goes on as if all were well, and the remedy
// mends it.
func TestSchemaDropped(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE keyless (v text); INSERT INTO t VALUES (1, 'x')`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `DROP SCHEMA hawser CASCADE`, `INSERT INTO t VALUES (2, 'y')`, `INSERT INTO keyless VALUES ('y')`)
	_, remedy := a.awaitCause(t, api.StateSuspended, "schema-lost")
	if !strings.Contains(remedy, "hawser link resync shop") {
		t.Errorf("remedy %q", remedy)
	}
	_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{})
	turnedDown(t, "failover", err, "schema-lost", "was dropped")
	turnedDown(t, "resume", a.ResumeLink(ctx, "shop"), "schema-lost", "was dropped")
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `CREATE TABLE later (id int PRIMARY KEY)`, `INSERT INTO later VALUES (1)`)
	proven(t, a, "shop")
	a.Exec(t, "shop", `DROP SCHEMA hawser CASCADE`) // and nobody has noticed it
	if err := b.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `CREATE TABLE later_too (id int PRIMARY KEY)`, `INSERT INTO later_too VALUES (1)`)
	proven(t, a, "shop")
	a.Exec(t, "shop", `ALTER EVENT TRIGGER "!hawser_ddl_end" DISABLE`, `CREATE TABLE untold (id int PRIMARY KEY)`, `INSERT INTO untold VALUES (1)`)
	_, err = a.FailoverLink(ctx, "shop", api.FailoverOptions{})
	turnedDown(t, "failover", err, "ddl-capture-broken", "dropped or disabled")
	if _, remedy := a.awaitCause(t, api.StateSuspended, "ddl-capture-broken"); !strings.Contains(remedy, "hawser link resync shop") {
		t.Errorf("remedy %q", remedy)
	}
	turnedDown(t, "resync", a.ResyncLink(ctx, "shop", nil), "schema-differs", "public.untold")
	within(t, b.Connect(t, "shop"), postgres.ByHand, `CREATE TABLE untold (id int PRIMARY KEY)`)
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	proven(t, a, "shop")
	within(t, b.Connect(t, "shop"), postgres.ByHand, `DROP SCHEMA hawser CASCADE`)
	a.Exec(t, "shop", `INSERT INTO keyless VALUES ('z')`)
	b.awaitCause(t, api.StateSuspended, "schema-lost")
	_, err = b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	turnedDown(t, "forced failover", err, "copy-incomplete", "schema hawser was dropped")
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	proven(t, a, "shop")
	if err := try(t, b, `INSERT INTO t VALUES (3, 'foreign')`); err == nil {
		t.Error("the secondary took a write")
	}
	if result, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil || len(result.Findings) > 0 {
		t.Errorf("drop: %v, %v", result.Findings, err)
	}
	for _, i := range []*instance{a, b} {
		if got := traces(t, i, "shop"); len(got) > 0 && !slices.Equal(got, []string{made}) {
			t.Errorf("left on %s: %q", i.name, got)
		}
	}
}

// TestSettingCommittedAsTheFenceCloses: a change that fires no event is committed when a
// failover has looked for such, and nobody is kept from writing yet. The new primary has it.
// What another database's session changes behind that is named by the side that handed over.
func TestSettingCommittedAsTheFenceCloses(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	a.stop()
	tap := newTap(t, a)
	a.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	held := tap.arm(1, false, func(purpose string) bool { return strings.HasSuffix(purpose, ":setup") })
	client := a.Connect(t, "shop")
	within(t, client, `BEGIN`, `ALTER DATABASE shop SET work_mem = '7MB'`) // holds what the fence changes
	failed := make(chan error, 1)
	go func() {
		_, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{})
		failed <- err
	}()
	look := a.Connect(t, "postgres")
	testpg.Eventually(t, 30*time.Second, "the fence is being closed", func() (bool, error) {
		waits := testpg.Rows(t, look, `SELECT query FROM pg_stat_activity WHERE application_name = 'hawser:shop:failover' AND wait_event_type = 'Lock'`)
		return len(waits) > 0, nil
	})
	within(t, client, `COMMIT`)
	testpg.Await(t, "the old primary begins to follow", held) // it begins to follow
	within(t, look, `ALTER DATABASE shop SET maintenance_work_mem = '9MB'`)
	tap.release()
	if err := testpg.Await(t, "the failover is answered", failed); err != nil {
		t.Fatal(err)
	}
	a.stop() // before it follows, and again when it does
	a.run(t)
	a.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	a.run(t)
	if got := testpg.Rows(t, b.Connect(t, "shop"), `SHOW work_mem`); !slices.Equal(got, []string{"7MB"}) {
		t.Errorf("work_mem of the new primary is %v", got)
	}
	if p := finding(t, a, "shop", "changed-behind-handoff", "database shop"); !strings.HasSuffix(p.Cause, ": setting maintenance_work_mem: 9MB") {
		t.Errorf("the side that handed over tells %v", p)
	}
	failover(t, b, "shop") // which makes that the primary's own
	b.awaitState(t, "shop", api.StateSynchronized)
	for _, i := range []*instance{a, b} {
		l, err := i.Link(context.Background(), "shop")
		if err != nil || slices.Contains(codes(l.Findings), "changed-behind-handoff") {
			t.Errorf("%s, after the way back, tells %v, %v", i.name, l.Findings, err)
		}
	}
}
