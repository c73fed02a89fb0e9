package agent_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// TestForcedFailoverAndRejoin cuts a primary off, opens the secondary by force,
// lets clients write on both, and brings the old primary back: its own transactions
// are reported, all of them and no others, and their rows are repaired from the new
// primary, which changes them meanwhile. Then roles swap back in order.
func TestForcedFailoverAndRejoin(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	n, stop := write(t, a.DSN("shop"), "shared")
	more(t, n)
	stop()
	equal(t, a, b, "shop")
	a.Exec(t, "shop", `BEGIN; DELETE FROM event WHERE id = 1; PREPARE TRANSACTION 'in the way'`)
	for range 2 { // each spends a term, of which the other side hears nothing
		if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}); err == nil {
			t.Error("a failover passed over a prepared transaction")
		}
	}
	a.Exec(t, "shop", `ROLLBACK PREPARED 'in the way'`)

	a.stop() // the agent alone: clients reach its PostgreSQL
	a.Exec(t, "shop",
		`INSERT INTO customer (id, name) OVERRIDING SYSTEM VALUE VALUES (900001, 'only a'), (900002, 'on both')`,
		`BEGIN; UPDATE customer SET name = 'renamed by a' WHERE id = 1; DELETE FROM customer WHERE id = 1999 AND NOT EXISTS (SELECT FROM "My Order" WHERE customer = 1999); COMMIT`,
		`UPDATE customer SET id = DEFAULT WHERE id = 900001`,
		`UPDATE "My Order" SET total = -1 WHERE id BETWEEN 10 AND 20`,
		`DELETE FROM event WHERE id BETWEEN 700 AND 750`,
		`INSERT INTO audit (what) VALUES ('a, and no key to find it by')`)
	result, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("forced failover: %+v", result)
	if !result.Forced || result.Term != 2 {
		t.Errorf("result %+v", result)
	}
	last := result.LastApplied
	if last == nil || last.Transaction == 0 || last.Time == nil || last.Position == 0 || time.Since(*last.Time).Abs() > time.Hour {
		t.Errorf("it tells of the last transaction that it has %+v", last)
	}
	if l, err := b.Link(ctx, "shop"); err != nil || l.Failover == nil || !reflect.DeepEqual(l.Failover.LastApplied, last) {
		t.Errorf("the link tells of the failover %+v, %v", l.Failover, err)
	}
	b.Exec(t, "shop",
		`INSERT INTO customer (id, name) OVERRIDING SYSTEM VALUE VALUES (900002, 'of b')`,
		`INSERT INTO customer (name) VALUES ('by default')`, // the sequence is past what is taken
		`UPDATE customer SET name = 'renamed by b' WHERE id = 1`,
		`UPDATE "My Order" SET id = id + 500000 WHERE id = 15`,
		`DELETE FROM "My Order" WHERE id = 16`,
		`DELETE FROM event WHERE id = 701`)

	// The new primary says whose trouble it is, without the other side and with it.
	if l, err := b.Link(ctx, "shop"); err != nil || l.Cause.Code != "old-primary-diverged" || l.Cause.Remedy != "hawser link rejoin shop" || l.Cause.Place != "instance alpha" {
		t.Errorf("while the old primary is away the new one says %v, %v", l.Cause, err)
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	b.awaitState(t, "shop", api.StateDiverged)
	if l, err := b.Link(ctx, "shop"); err != nil || l.Cause.Object != "on instance alpha: link shop" || !strings.HasPrefix(l.Cause.Cause, "instance beta took over by force and is the primary now; the database on instance alpha, the old primary, is read-only") ||
		!strings.HasPrefix(l.Cause.Help(), "on instance alpha: hawser link rejoin shop") {
		t.Errorf("the new primary says of the old one %v, %v", l.Cause, err)
	}
	if err := refused(t, a, `INSERT INTO audit (what) VALUES ('too late')`); err == "" {
		t.Error("the old primary took a write after it had come back")
	}
	// Nobody follows, and each side says so at once, whoever is asked.
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, i := range []*instance{a, b} {
		_, err := i.VerifyLink(soon, "shop", api.VerifyOptions{})
		for _, err := range []error{err, i.ResyncLink(soon, "shop", nil), i.ResumeLink(soon, "shop"), i.PauseLink(soon, "shop")} {
			if p, ok := problem.As(err); !ok || p.Code != "diverged" || p.Remedy != "hawser link rejoin shop" || i == b && p.Place != "instance alpha" {
				t.Errorf("%s compares, copies, resumes or pauses while nobody follows: %v", i.name, err)
			}
		}
	}
	n, stop = write(t, b.DSN("shop"), "after")
	more(t, n)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	if l, err := a.Link(ctx, "shop"); err != nil || l.Failover == nil || !l.Failover.Forced || l.Failover.Term != 2 {
		t.Errorf("the one that rejoined shows the failover %+v, %v", l.Failover, err)
	}
	more(t, n)
	stop()
	equal(t, b, a, "shop")

	ops := map[string]int{}
	for _, line := range report(t, a, "shop-term1.jsonl") {
		lsn, err := frame.ParseLSN(line["lsn"].(string))
		at, err2 := time.Parse(time.RFC3339Nano, line["time"].(string))
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if last != nil && last.Time != nil && (lsn <= last.Position || at.Before(*last.Time)) {
			t.Errorf("a lost transaction of %s at %s is none behind the last that was applied, %+v", at, lsn, last)
		}
		ops[line["table"].(string)+" "+line["operation"].(string)]++
	}
	if got, want := fmt.Sprint(ops), "map[My Order update:11 audit insert:1 customer insert:2 customer update:2 event_1 delete:31 event_2 delete:20]"; got != want {
		t.Errorf("the report has %s, want %s", got, want)
	}

	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('a again')`)
	equal(t, a, b, "shop")
}

// report reads what a side that was forced out wrote down.
func report(t *testing.T, i *instance, name string) []map[string]any {
	t.Helper()
	f, err := os.Open(filepath.Join(i.dir, "reports", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []map[string]any
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var line map[string]any
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		out = append(out, line)
	}
	return out
}

// TestTailWithDDL: commands among the transactions that only the old primary has are
// reported once each, with their text, and rejoin names the one that it can't take back.
func TestTailWithDDL(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	a.Exec(t, "shop", `INSERT INTO t VALUES (1)`, `ALTER TABLE t ADD COLUMN lost text DEFAULT 'x'`,
		`DO $$BEGIN CREATE TABLE keyless (v text); COMMENT ON TABLE keyless IS 'none'; END$$`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err == nil || !strings.Contains(err.Error(), "ADD COLUMN lost") {
		t.Errorf("rejoin said %v", err)
	}
	for _, i := range []*instance{a, b} {
		if l, err := i.Link(ctx, "shop"); err != nil || l.Cause.Code != "diverged" || l.Cause.Remedy != "hawser link drop shop" || !strings.Contains(l.Cause.Cause, "ADD COLUMN lost") {
			t.Errorf("%s, where the rejoin can't be, says %v, %v", i.name, l.Cause, err)
		}
		for what, err := range map[string]error{"resume": i.ResumeLink(ctx, "shop"), "verify": second(i.VerifyLink(ctx, "shop", api.VerifyOptions{}))} {
			if p, ok := problem.As(err); !ok || p.Code != "diverged" || p.Remedy != "hawser link drop shop" {
				t.Errorf("%s: %s, where the rejoin can't be: %v", i.name, what, err)
			}
		}
	}
	_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	if p, ok := problem.As(err); !ok || p.Code != "diverged" || p.Remedy != "hawser link drop shop" {
		t.Errorf("the old primary, to be opened by force: %v", err)
	}
	var got []string
	for _, line := range report(t, a, "shop-term1.jsonl") {
		if text, _ := line["statement"].(string); line["operation"] == "ddl" && text == "" {
			t.Errorf("a command without its text: %v", line)
		}
		got = append(got, fmt.Sprint(line["operation"], " ", line["command"]))
	}
	if want := []string{"insert <nil>", "ddl ALTER TABLE", "ddl CREATE TABLE", "ddl COMMENT"}; !slices.Equal(got, want) {
		t.Errorf("the report has %q, want %q", got, want)
	}
}

// TestTailWithSettings: what changed without an event on the old primary is reported, and
// a message that only looks like a command's neither is nor stops the rejoin; they are no
// transactions that were lost, and a role that the database only came to name is nothing.
// Before the rejoin has ended, nothing opens the copy.
func TestTailWithSettings(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `CREATE ROLE clerk`, `GRANT SELECT ON t TO clerk`)
	testpg.Eventually(t, 30*time.Second, "beta has the grant", func() (bool, error) {
		return len(b.Rows(t, "shop", `SELECT FROM pg_class c, aclexplode(c.relacl) g WHERE c.oid = 't'::regclass AND g.grantee::regrole::text = 'clerk'`)) > 0, nil
	})
	a.stop()
	a.Exec(t, "shop", `INSERT INTO t VALUES (1)`, `ALTER DATABASE shop SET work_mem = '7MB'`,
		`SELECT pg_logical_emit_message(true, 'hawser.ddl', repeat('0', 64) || '{"v":1,"tag":"DROP TABLE","source":"DROP TABLE forged","ref":"1"}')`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	testpg.Eventually(t, 20*time.Second, "alpha tells what it has alone", func() (bool, error) {
		l, err := a.Link(ctx, "shop")
		if err != nil || !strings.Contains(l.Cause.Cause, "never received: 1, with 1 changes") || !strings.Contains(l.Cause.Cause, "may not have been told of: 1") {
			return false, fmt.Errorf("it tells %v: %v", l.Cause, err)
		}
		return true, nil
	})
	release := lock(t, b, "shop", "t")
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*instance{a, b} {
		_, err := i.DropLink(ctx, "shop", api.DropOptions{})
		turnedDown(t, "drop on "+i.name, err, "copy-incomplete", "public.t")
	}
	_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	turnedDown(t, "forced failover", err, "copy-incomplete", "public.t")
	release()
	a.awaitState(t, "shop", api.StateSynchronized)
	var got []string
	for _, line := range report(t, a, "shop-term1.jsonl") {
		got = append(got, fmt.Sprint(line["operation"], " ", line["statement"]))
	}
	if want := []string{"insert <nil>", "state setting work_mem: 7MB"}; !slices.Equal(got, want) {
		t.Errorf("the report has %q, want %q", got, want)
	}
	if p := finding(t, a, "shop", "tail-has-settings", "database shop"); !strings.Contains(p.Cause, "work_mem") {
		t.Errorf("the link tells %v", p)
	}
	equal(t, b, a, "shop")
}

// TestForceIsRefused tries it where it would open something that never was, and where
// the primary could hand over.
func TestForceIsRefused(t *testing.T) {
	t.Parallel()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	if _, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Force: true}); err == nil {
		t.Error("the primary was opened by force")
	}
	if err := a.RejoinLink(context.Background(), "shop"); err == nil {
		t.Error("a primary that nobody forced out rejoined")
	}
	_, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Force: true})
	turnedDown(t, "force beside a primary that answers", err, "primary-in-reach", "a planned failover loses nothing")
	b.Exec(t, "shop") // both sides are as they were
	a.Exec(t, "shop", `INSERT INTO audit (what) VALUES ('x')`)
	equal(t, a, b, "shop")
}

// TestForcedBeforeItFollowed: the new primary is lost before the old one, its secondary
// now, has followed it at all. What it handed over is what the old one has.
func TestForcedBeforeItFollowed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.stop()
	tap := newTap(t, a)
	a.run(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`, `INSERT INTO t VALUES (1)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	held := tap.arm(1, false, func(purpose string) bool { return strings.HasSuffix(purpose, ":setup") })
	go func() { _, _ = a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}) }() // the answer is held, too
	testpg.Await(t, "the old primary begins to follow", held)
	b.Exec(t, "shop", `INSERT INTO t VALUES (2)`)
	b.stop()
	tap.release()
	result, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := result.LastApplied; last == nil || last.Transaction != 0 || last.Position == 0 {
		t.Errorf("it tells of the last transaction that it has %+v", last)
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (3)`)
	b.run(t)
	b.awaitState(t, "shop", api.StateDiverged)
	if err := b.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	if lost := report(t, b, "shop-term2.jsonl"); len(lost) != 1 {
		t.Errorf("the report has %v", lost)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestReportOfAnEarlierLink: a link is made again under the name of one whose primary was
// forced out, and that happens to it as well, in the same term. The first report stays.
func TestReportOfAnEarlierLink(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := forcedOut(t)
	reports := func(what string) {
		t.Helper()
		a.awaitState(t, "shop", api.StateDiverged)
		testpg.Eventually(t, 30*time.Second, "alpha reports", func() (bool, error) {
			l, err := a.Link(ctx, "shop")
			return err == nil && strings.Contains(l.Cause.Cause, what), err
		})
	}
	reports("never received: 2, with 2 changes")
	first := report(t, a, "shop-term1.jsonl")
	if len(first) != 2 {
		t.Fatalf("the report has %v", first)
	}
	if _, err := b.DropLink(ctx, "shop", api.DropOptions{}); err != nil { // both sides stay, each for itself
		t.Fatal(err)
	}
	b.Exec(t, "postgres", `DROP DATABASE shop WITH (FORCE)`)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	a.stop()
	a.Exec(t, "shop", `INSERT INTO t VALUES (50, 'of alpha, later')`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second run writes the report again
		a.run(t)
		reports("never received: 1, with 1 changes")
		if later := report(t, a, "shop-term1.jsonl"); len(later) != 1 {
			t.Errorf("the report has %v", later)
		}
		if kept := report(t, a, "shop-term1.1.jsonl"); fmt.Sprint(kept) != fmt.Sprint(first) {
			t.Errorf("the first report has %v, and had %v", kept, first)
		}
		a.stop()
	}
	if _, err := os.Stat(filepath.Join(a.dir, "reports", "shop-term1.2.jsonl")); err == nil {
		t.Error("a report that was written again is kept twice")
	}
}
