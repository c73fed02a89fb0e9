package agent_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// small is a link of one table, for tests that need no more.
func small(t *testing.T) (a, b *instance) {
	t.Helper()
	a, b = pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	return a, b
}

// awaitCause waits for a state with a cause of one of the codes, and returns its words.
func (i *instance) awaitCause(t *testing.T, state api.State, codes ...string) (cause, remedy string) {
	t.Helper()
	testpg.Eventually(t, 30*time.Second, fmt.Sprintf("%s is %s by %v", i.name, state, codes), func() (bool, error) {
		l, err := i.Link(context.Background(), "shop")
		if err != nil {
			return false, err
		}
		if l.State == state && l.Cause != nil {
			for _, code := range codes {
				if l.Cause.Code == code {
					cause, remedy = l.Cause.Object+": "+l.Cause.Cause, l.Cause.Help()
					return true, nil
				}
			}
		}
		return false, fmt.Errorf("it is %s: %v", l.State, l.Cause)
	})
	return cause, remedy
}

// TestPrimaryGoesAway: a secondary whose primary's agent stops says that, and not
// that the link is being stopped; the DDL that only the old primary has is in its
// report as it was written, without the messages that only hold another's place.
func TestPrimaryGoesAway(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	a.stop()
	cause, remedy := b.awaitCause(t, api.StateDisconnected, "peer-stopped", "peer-lost", "peer-disconnected")
	if !strings.Contains(cause, "the agent of instance alpha was stopped") || !strings.Contains(remedy, "start it") {
		t.Errorf("cause %q, remedy %q", cause, remedy)
	}

	long := `CREATE TABLE lost_2 (v text DEFAULT '` + strings.Repeat("x", 3000) + `'); CREATE TABLE lost_3 ()`
	a.Exec(t, "shop", `CREATE TABLE lost_1 (id int)`, `INSERT INTO t VALUES (1, 'lost')`, long, `DO $$ BEGIN CREATE VIEW lost_4 AS SELECT 4; END $$`,
		`CREATE TABLE lost_5 AS SELECT 5 AS five`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	var lines []map[string]any
	testpg.Eventually(t, 20*time.Second, "the report is written", func() (bool, error) {
		l, err := a.Link(ctx, "shop")
		return err == nil && strings.Contains(fmt.Sprint(l.Cause), "shop-term1.jsonl"), err
	})
	lines = report(t, a, "shop-term1.jsonl")
	want := []string{"CREATE TABLE lost_1 (id int)", "", long, long, `SQL statement "CREATE VIEW lost_4 AS SELECT 4"`, "", "CREATE TABLE lost_5 AS SELECT 5 AS five"}
	for i := range max(len(lines), len(want)) {
		if i >= len(lines) || i >= len(want) {
			t.Errorf("the report has %d lines, want %d: %v", len(lines), len(want), lines)
			break
		}
		got, _ := lines[i]["statement"].(string)
		if (got == "") != (want[i] == "") || !strings.HasPrefix(got, want[i]) {
			t.Errorf("line %d: %v, want %q", i+1, lines[i], want[i])
		}
	}
	if err := a.RejoinLink(ctx, "shop"); err == nil || !strings.Contains(err.Error(), "CREATE TABLE lost_1 (id int)") {
		t.Errorf("rejoin with lost DDL: %v", err)
	}
}

// TestFailoverAtOnceAfterAnother: the new secondary may still be on its way to the new
// primary when the next failover is asked for; it is waited for.
func TestFailoverAtOnceAfterAnother(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	for i := range 4 {
		from := a
		if i%2 == 1 {
			from = b
		}
		if _, err := from.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatalf("failover %d: %v", i+1, err)
		}
		for _, side := range []*instance{a, b} {
			l, err := side.Link(ctx, "shop")
			if err != nil || l.Failover == nil || l.Failover.Term != frame.Term(i+2) || l.Failover.OldPrimary != from.name {
				t.Fatalf("after failover %d %s shows %+v, %v", i+1, side.name, l.Failover, err)
			}
		}
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'still the primary')`)
	equal(t, a, b, "shop")
	for _, i := range []*instance{a, b} {
		l, err := i.Link(ctx, "shop")
		if p := l.Position; err != nil || p.Received == 0 || p.Sent < p.Received || p.Received < p.Visible {
			t.Errorf("positions on %s: %+v, %v", i.name, p, err)
		}
	}

	// One that does not come back is named as what the failover waited for.
	if err := b.PauseLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 3 * time.Second}); err == nil || !strings.Contains(err.Error(), "and it is paused") {
		t.Errorf("a failover to a paused secondary: %v", err)
	}
	if err := b.ResumeLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	b.Stop(t)
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 3 * time.Second}); err == nil || !strings.Contains(err.Error(), "and it is disconnected") {
		t.Errorf("a failover to a secondary that stands: %v", err)
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (2, 'still writes')`)
	b.Cluster.Start(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestKeptOutOfItsServer: an agent whose PostgreSQL refuses its password tries again,
// says so with the remedy, and goes on by itself when that is mended. It is the same on
// either side.
func TestKeptOutOfItsServer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	for n, i := range []*instance{b, a} {
		conn := i.Connect(t, "postgres")
		var file string
		if err := conn.QueryRow(ctx, `SHOW hba_file`).Scan(&file); err != nil {
			t.Fatal(err)
		}
		admit := func(hba string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(hba), 0o644); err != nil {
				t.Fatal(err)
			}
			testpg.Rows(t, conn, `SELECT pg_reload_conf()`)
		}
		was, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		admit("local all all scram-sha-256\nhost all all all scram-sha-256\nlocal replication all scram-sha-256\nhost replication all all scram-sha-256\n")
		testpg.Eventually(t, 10*time.Second, "the password is asked for", func() (bool, error) {
			err := try(t, i, `SELECT`)
			return err != nil && strings.Contains(err.Error(), "28P01"), nil
		})
		testpg.Rows(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'hawser:%' AND pid <> pg_backend_pid()`)
		if i == b {
			a.Exec(t, "shop", `INSERT INTO t VALUES (7, 'an idle applier does not notice')`)
		}
		cause, remedy := b.awaitCause(t, api.StateDisconnected, "password-missing")
		if !strings.Contains(cause, fmt.Sprint(i.Port())) || !strings.Contains(remedy, "PASSWORD") {
			t.Errorf("cause %q, remedy %q", cause, remedy)
		}
		admit(string(was))
		b.awaitState(t, "shop", api.StateSynchronized)
		a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t VALUES (%d, 'goes on')`, n))
		equal(t, a, b, "shop")
	}
}

// TestValidateTells: what a link will change in a database, and whose replica a
// database is already, be it of this agent's link or of another's.
func TestValidateTells(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	a.Exec(t, "postgres", `CREATE DATABASE plain`, `CREATE DATABASE foreign_replica`)
	a.Exec(t, "plain", `CREATE TABLE keyed (id int PRIMARY KEY)`, `CREATE TABLE "Key Less" (v text)`, `CREATE UNLOGGED TABLE scratch (v text)`)
	b.Exec(t, "postgres", `CREATE DATABASE foreign_replica`)
	b.Exec(t, "foreign_replica", `CREATE TABLE rows ()`)
	conn := b.Connect(t, "foreign_replica")
	if err := fence.Close(ctx, conn, fence.Sign{Link: "theirs", Primary: "gamma"}); err != nil {
		t.Fatal(err)
	}
	for database, want := range map[string]string{
		"plain":           "replica-identity-full note table public.\"Key Less\"; unlogged-table warning table public.scratch",
		"foreign_replica": "already-linked  on instance beta: database foreign_replica",
		"shop":            "already-linked  on instance beta: database shop",
	} {
		report, err := a.ValidateLink(ctx, api.LinkSpec{Name: "new", Database: database, Peer: "beta", Role: api.RolePrimary})
		if err != nil {
			t.Errorf("%s: %v", database, err)
		}
		var got []string
		for _, f := range report {
			if f.Code == "copy-size" {
				continue
			}
			got = append(got, fmt.Sprintf("%s %s %s", f.Code, f.Severity, f.Object))
			if link := map[string]string{"shop": "link shop", "foreign_replica": "link theirs"}[database]; !strings.Contains(f.Cause, link) || strings.Contains(strings.ToLower(f.Remedy), "drop") {
				t.Errorf("%s: %v", database, f)
			}
		}
		slices.Sort(got)
		if strings.Join(got, "; ") != want {
			t.Errorf("%s: got %q, want %q", database, got, want)
		}
	}
}

// TestBlockedIsNotSilent: while the applier waits for a lock, nothing is read from the
// stream. The primary is not silent then; the state says who waits for what.
func TestBlockedIsNotSilent(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	release := hold(t, b, "shop", "t")
	for n, end := 0, time.Now().Add(15*time.Second); time.Now().Before(end); n++ {
		a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(%d, %d) i`, n*1000, n*1000+999), `SELECT pg_sleep(0.2)`)
		for _, i := range []*instance{a, b} {
			l, err := i.Link(ctx, "shop")
			if err != nil || l.State == api.StateDisconnected {
				t.Fatalf("after %s %s is %s: %v, %v", 15*time.Second-time.Until(end), i.name, l.State, l.Cause, err)
			}
		}
	}
	l, err := b.Link(ctx, "shop")
	if err != nil || l.State != api.StateCatchingUp || l.Cause.Code != "replica-busy" || l.LagSeconds == nil || *l.LagSeconds < 5 {
		t.Errorf("after 15 s: %s: %v with lag %v, %v", l.State, l.Cause, l.LagSeconds, err)
	}
	release()
	a.awaitState(t, "shop", api.StateSynchronized)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestFailoverWithoutSequence: a sequence that the replica lost stops a failover before
// it closes anything, and its remedy mends it.
func TestFailoverWithoutSequence(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	a.Exec(t, "shop", `CREATE SEQUENCE "Counter" AS int INCREMENT BY 3 MAXVALUE 100000 CYCLE`, `CREATE SEQUENCE narrow MAXVALUE 100`, `SELECT setval('"Counter"', 4711)`)
	testpg.Eventually(t, 20*time.Second, "the sequences are there", func() (bool, error) {
		return len(b.Rows(t, "shop", `SELECT FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace`)) == 2, nil
	})
	change(t, b, `DROP SEQUENCE "Counter"`)
	change(t, b, `ALTER SEQUENCE narrow MAXVALUE 50`)
	a.Exec(t, "shop", `SELECT setval('narrow', 77)`)
	failover := func() error {
		_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second})
		return err
	}
	write := func() { a.Exec(t, "shop", `INSERT INTO t SELECT 1 + coalesce(max(id), 0), 'open' FROM t`) }
	mend := func(sequence string) {
		t.Helper()
		p, ok := problem.As(failover())
		if !ok || p.Code != "sequence-missing" || p.Object != "sequence "+sequence {
			t.Fatalf("failover without sequence %s: %v", sequence, p)
		}
		write()
		conn := b.Connect(t, "shop")
		for sql := range strings.SplitSeq(p.Remedy, "; ") {
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	mend(`"public"."Counter"`)
	mend(`"public"."narrow"`)

	// One that goes when all is closed already: the handoff is given back.
	release := hold(t, b, "shop", "t")
	write()
	done := make(chan error, 1)
	go func() { done <- failover() }()
	awaitFenced(t, a)
	change(t, b, `DROP SEQUENCE narrow`)
	release()
	if err := testpg.Await(t, "the failover is answered", done); err == nil {
		t.Error("the failover lost a sequence")
	}
	write()
	b.awaitState(t, "shop", api.StateSynchronized)
	mend(`"public"."narrow"`)

	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	if got := testpg.Rows(t, b.Connect(t, "shop"), `SELECT nextval('"Counter"'), nextval('narrow')`); got[0] != "4714|78" {
		t.Errorf("the sequences go on with %s", got)
	}
}

// TestDropOpensLast: a replica that is kept takes writes when its sequences are past the
// values that are taken, and not before.
func TestDropOpensLast(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id serial PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	release := lock(t, b, "shop", "t")
	done := make(chan error, 1)
	go func() {
		_, err := a.DropLink(context.Background(), "shop", api.DropOptions{})
		done <- err
	}()
	watch := b.Connect(t, "postgres")
	testpg.Eventually(t, 20*time.Second, "the drop looks at the table", func() (bool, error) {
		return len(testpg.Rows(t, watch, `SELECT FROM pg_stat_activity WHERE application_name = 'hawser:shop:drop' AND wait_event_type = 'Lock'`)) > 0, nil
	})
	if err := try(t, b, `CREATE TABLE too_early ()`); err == nil {
		t.Error("the replica took a write before the link was gone")
	}
	release()
	if err := testpg.Await(t, "the drop is answered", done); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `CREATE TABLE in_time ()`)
}
