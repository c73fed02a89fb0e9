package agent_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// change lets a test write on a replica, as only a superuser can who means to.
func change(t *testing.T, i *instance, sql string) {
	t.Helper()
	conn := i.Connect(t, "shop")
	for _, s := range []string{`SET session_replication_role = replica`, `SET hawser.agent = on`, `SET default_transaction_read_only = off`, `SET application_name = 'hawser:test'`, sql} {
		if _, err := conn.Exec(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// TestResync mends a replica that somebody has changed, one table by name and all
// others by comparison, while clients write on the primary.
func TestResync(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	change(t, b, `DELETE FROM customer WHERE id > 1000; UPDATE "My Order" SET total = 0 WHERE id % 7 = 0; INSERT INTO audit (what) VALUES ('foreign'); DELETE FROM event`)
	n, stop := write(t, a.DSN("shop"), "w")
	if err := a.ResyncLink(ctx, "shop", []string{"public.nowhere"}); err == nil || !strings.Contains(err.Error(), "no table of this name") {
		t.Errorf("a table that is not there: %v", err)
	}
	if err := a.ResyncLink(ctx, "shop", []string{"public.customer", "event"}); err != nil { // the latter is partitioned
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	if got := b.Rows(t, "shop", `SELECT EXISTS (SELECT FROM event_1) AND EXISTS (SELECT FROM event_2)`); !slices.Equal(got, []string{"t"}) {
		t.Errorf("the partitions of event were copied: %q", got)
	}
	if err := b.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	more(t, n)
	stop()
	equal(t, a, b, "shop")
}

// TestResyncBesideWrites: over a line that delivers in bursts, tables are copied again, all are
// compared, and the link is paused and resumed, while each row changes once: nothing that is
// lost comes back by a later change.
func TestResyncBesideWrites(t *testing.T) {
	t.Parallel()
	const rows = 6000
	ctx := context.Background()
	a, b, l := pairOver(t)
	link(t, a, b, fmt.Sprintf(`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, %[1]d) i; CREATE TABLE u (id int, v text); INSERT INTO u SELECT i, 'v' FROM generate_series(1, %[1]d) i`, rows))
	b.awaitState(t, "shop", api.StateSynchronized)
	l.toxic(t, `{"type": "latency", "stream": "WAY", "attributes": {"latency": 20, "jitter": 15}}`)
	written := make(chan error, 1)
	conn := a.Connect(t, "shop")
	go func() {
		var err error
		for i := 1; i <= rows && err == nil; i++ {
			_, err = conn.Exec(ctx, `WITH u AS (DELETE FROM u WHERE id = $1) UPDATE t SET v = 'changed' WHERE id = $1`, i)
		}
		written <- err
	}()
	for n := 0; len(written) == 0; n++ {
		var err error
		switch n % 4 {
		case 0:
			err = b.ResyncLink(ctx, "shop", []string{"t", "u"})
		case 1:
			err = a.ResyncLink(ctx, "shop", nil)
		case 2:
			err = errors.Join(b.PauseLink(ctx, "shop"), b.ResyncLink(ctx, "shop", nil))
		case 3:
			err = errors.Join(b.PauseLink(ctx, "shop"), b.ResumeLink(ctx, "shop"))
		}
		if p, ok := problem.As(err); err != nil && (!ok || !p.Retryable && p.Code != "not-synchronized") {
			t.Errorf("step %d: %v", n, err)
		}
	}
	if err := testpg.Await(t, "all rows are changed", written); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestResyncOfWhatDiffers: on a link that follows, tables with traffic are not copied for
// it, only those that differ; and nothing is when none does.
func TestResyncOfWhatDiffers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	n, stop := write(t, a.DSN("shop"), "w")
	more(t, n)
	copied := func() []string {
		return testpg.Rows(t, b.Connect(t, "shop"), `SELECT name FROM hawser.seed_table WHERE NOT EXISTS (SELECT FROM hawser.seeding WHERE initial)`)
	}
	before := copied()
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	if now := copied(); !slices.Equal(now, before) {
		t.Errorf("nothing differs, and %v are put down to be copied, after %v", now, before)
	}
	change(t, b, `UPDATE "My Order" SET total = 0 WHERE id % 7 = 0`)
	more(t, n)
	if err := b.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	if now := copied(); !slices.Equal(now, []string{"My Order"}) {
		t.Errorf("My Order differs alone, and %v are put down to be copied", now)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	more(t, n)
	stop()
	equal(t, a, b, "shop")
}

// TestRepairByHand: definitions that a superuser changed on the secondary are mended by the
// statements that the remedies tell.
func TestRepairByHand(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1, 'one'); INSERT INTO u VALUES (1)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	change(t, b, `ALTER TABLE t DROP COLUMN v; DROP TABLE u`)
	const want = "SET session_replication_role = replica; SET hawser.agent = on; SET default_transaction_read_only = off; SET transaction_read_only = off;"
	r, err := a.VerifyLink(ctx, "shop", api.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range r.Tables {
		if table.Problem == nil || !strings.Contains(table.Problem.Remedy, want) || !strings.Contains(table.Problem.Advice, "hawser link resync shop --table") {
			t.Errorf("table %s: %+v", table.Name, table.Problem)
		}
	}
	p, ok := problem.As(a.ResyncLink(ctx, "shop", nil))
	if !ok || p.Code != "schema-differs" || !strings.Contains(p.Cause, "column public.t.v: the primary has text") || !strings.Contains(p.Cause, "the secondary none") || !strings.Contains(p.Remedy, want) {
		t.Fatalf("the resync says %+v", p)
	}
	if _, err := b.Connect(t, "shop").PgConn().Exec(ctx, want+` ALTER TABLE t ADD v text`).ReadAll(); err != nil { // one transaction, as of psql -c
		t.Fatal(err)
	}
	conn := b.Connect(t, "shop")
	for _, sql := range append(strings.SplitAfter(strings.TrimSuffix(want, ";"), ";"), `CREATE TABLE u (id int PRIMARY KEY)`) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `UPDATE t SET v = 'two'; INSERT INTO u VALUES (2)`)
	equal(t, a, b, "shop")
	if r, err := a.VerifyLink(ctx, "shop", api.VerifyOptions{}); err != nil || !r.Equal {
		t.Errorf("after the repair: %+v, %v", r, err)
	}
	if err := refused(t, b, `SET default_transaction_read_only = off`, `INSERT INTO u VALUES (3)`); !strings.Contains(err, "25006") {
		t.Errorf("a table that was made by hand takes writes: %q", err)
	}
}

// TestSettingsThatDiffer: where the statement is known that makes the database's settings
// equal, verify tells it, and it does.
func TestSettingsThatDiffer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	role := fmt.Sprintf(`"Of %d"`, time.Now().UnixNano())
	for _, i := range []*instance{a, b} {
		i.Exec(t, "postgres", `CREATE ROLE `+role)
	}
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`, `ALTER DATABASE shop SET work_mem = '5MB'`, `ALTER DATABASE shop SET search_path = public, "My Schema"`,
		`ALTER ROLE `+role+` IN DATABASE shop SET my.own = 'it''s'`, `COMMENT ON DATABASE shop IS 'it''s ours'`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for _, sql := range []string{`ALTER DATABASE shop RESET work_mem`, `ALTER DATABASE shop SET search_path = public`, `ALTER ROLE ` + role + ` IN DATABASE shop SET my.own = 'other'`,
		`ALTER DATABASE shop SET jit = off`, `ALTER DATABASE shop CONNECTION LIMIT 50`, `ALTER DATABASE shop OWNER TO ` + role, `COMMENT ON DATABASE shop IS NULL`} {
		change(t, b, sql)
	}
	r, err := a.VerifyLink(ctx, "shop", api.VerifyOptions{})
	if err != nil || r.Equal || len(r.Schema) < 7 {
		t.Fatalf("verify: %+v, %v", r, err)
	}
	for _, d := range r.Schema {
		if d.Kind != "setting" && d.Kind != "database" {
			continue
		}
		if strings.Contains(d.Remedy, "…") {
			t.Errorf("%s %s: %s", d.Kind, d.Name, d.Remedy)
		}
		if _, err := b.Connect(t, "shop").PgConn().Exec(ctx, d.Remedy).ReadAll(); err != nil {
			t.Errorf("%s: %v", d.Remedy, err)
		}
	}
	if r, err := a.VerifyLink(ctx, "shop", api.VerifyOptions{}); err != nil || !r.Equal {
		t.Errorf("after the remedies: %+v, %v", r.Schema, err)
	}
}

// TestAllDefinitionsThatDiffer: verify can't be run while a link is suspended, so the resync
// tells of all that differs, in the log what is too long for a problem.
func TestAllDefinitionsThatDiffer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	for i := range 30 {
		change(t, b, fmt.Sprintf(`CREATE TABLE extra_%02d (id int)`, i))
	}
	change(t, b, `ALTER TABLE t RENAME TO away`)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'one')`)
	b.awaitState(t, "shop", api.StateSuspended)
	p, ok := problem.As(b.ResyncLink(ctx, "shop", nil))
	if !ok || p.Code != "schema-differs" || strings.Contains(p.Cause, "…") {
		t.Fatalf("the resync says %+v", p)
	}
	told := regexp.MustCompile(`public\.extra_\d\d`).FindAllString(p.Cause, -1)
	if len(told) < 10 || len(told) > 30 {
		t.Errorf("it names %d tables: %s", len(told), p.Cause)
	}
	if !strings.Contains(p.Cause, "more, all of which stand in the log of the agent of instance beta") {
		t.Errorf("it does not tell where the rest is: %s", p.Cause)
	}
}

// TestLostSlot takes a link up again whose slot is gone.
func TestLostSlot(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	b.stop()
	testpg.Eventually(t, 20*time.Second, "the slot is free", func() (bool, error) {
		return len(a.Rows(t, "shop", `SELECT FROM pg_replication_slots WHERE active`)) == 0, nil
	})
	a.Exec(t, "shop", `INSERT INTO audit (what) VALUES ('nobody will decode this')`, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
	b.run(t)
	b.awaitState(t, "shop", api.StateSuspended)
	if l, err := b.Link(ctx, "shop"); err != nil || !strings.Contains(l.Cause.Remedy, "hawser link resync") {
		t.Errorf("the remedy of a lost slot: %+v, %v", l.Cause, err)
	}
	n, stop := write(t, a.DSN("shop"), "w")
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	more(t, n)
	stop()
	equal(t, a, b, "shop")
}

// paused wants what needs a secondary that follows to name the command that ends the
// pause, and the lag to be told.
func paused(t *testing.T, i *instance) {
	t.Helper()
	ctx := context.Background()
	_, failover := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 10 * time.Second})
	_, verify := i.VerifyLink(ctx, "shop", api.VerifyOptions{})
	for what, err := range map[string]error{"failover": failover, "verify": verify} {
		if p, ok := problem.As(err); !ok || p.Code != "not-synchronized" || !strings.HasSuffix(p.Remedy, "hawser link resume shop") {
			t.Errorf("%s of a paused link on %s: %v", what, i.name, err)
		}
	}
	if l, err := i.Link(ctx, "shop"); err != nil || l.State != api.StatePaused || l.LagBytes == nil {
		t.Errorf("on %s the paused link is %s, %v behind, %v", i.name, l.State, l.LagBytes, err)
	}
}

// TestWALLimit gives a link up that holds back more WAL than it may, and takes it
// up again.
func TestWALLimit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	a.maxWAL = 64 << 20
	a.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	if err := b.PauseLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*instance{a, b} {
		paused(t, i)
	}
	a.Exec(t, "shop", `CREATE TABLE large AS SELECT repeat(md5(i::text), 30) FROM generate_series(1, 90000) i`)
	a.awaitState(t, "shop", api.StateSuspended)
	// The secondary, which is paused, says so too; and nothing pretends that it went on.
	b.awaitState(t, "shop", api.StateSuspended)
	if l, err := b.Link(ctx, "shop"); err != nil || l.Cause.Code != "wal-limit" || l.Cause.Object != "on instance alpha: link shop" {
		t.Errorf("the secondary of a link that was given up says %v, %v", l.Cause, err)
	}
	for _, i := range []*instance{a, b} {
		err := i.ResumeLink(ctx, "shop")
		if p, ok := problem.As(err); !ok || p.Code != "wal-limit" || !strings.Contains(p.Remedy, "hawser link resync shop") {
			t.Errorf("%s resumed a link that was given up: %v", i.name, err)
		}
		if _, err := i.VerifyLink(ctx, "shop", api.VerifyOptions{}); !errors.Is(err, problem.New("wal-limit", "", "", "")) {
			t.Errorf("%s verified a link that was given up: %v", i.name, err)
		}
	}
	if slots := testpg.Rows(t, a.Connect(t, "shop"), `SELECT slot_name FROM pg_replication_slots`); len(slots) != 0 {
		t.Errorf("slots %v still hold WAL", slots)
	}
	if err := a.ResyncLink(ctx, "shop", nil); err == nil || !strings.Contains(err.Error(), "schemas of the two sides differ") {
		t.Errorf("DDL was lost with the slot, and the link was taken up again: %v", err)
	}
	if slots := testpg.Rows(t, a.Connect(t, "shop"), `SELECT slot_name FROM pg_replication_slots`); len(slots) != 0 {
		t.Errorf("the resync that was refused left slots %v, which hold WAL", slots)
	}
	if l, err := a.Link(ctx, "shop"); err != nil || l.State != api.StateSuspended || l.Cause.Code != "wal-limit" {
		t.Errorf("after the resync that was refused the link is %s: %v, %v", l.State, l.Cause, err)
	}
	a.Exec(t, "shop", `DROP TABLE large`)
	if err := a.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `INSERT INTO audit (what) VALUES ('goes on')`)
	equal(t, a, b, "shop")
}

// TestRejoinAfterWALLimit: the new primary gave the link up, for the WAL that it held back for
// the old one, which was away. The old one rejoins, and needs nothing else.
func TestRejoinAfterWALLimit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	b.maxWAL = 8 << 20
	b.stop()
	b.run(t)
	introduce(t, a, b)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'alpha alone')`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(2, 20000) i`)
	b.awaitState(t, "shop", api.StateSuspended)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	b.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `INSERT INTO t VALUES (-1, 'beta')`)
	equal(t, b, a, "shop")
}

// TestResyncInterrupted: an agent dies while the sides are compared under a new slot, on
// either side. The slot goes, so that it holds no WAL, and the link stands as before.
func TestResyncInterrupted(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"primary", "secondary"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)`)
			b.awaitState(t, "shop", api.StateSynchronized)
			victim := map[string]*instance{"primary": a, "secondary": b}[side]
			victim.stop()
			victim.process = true
			slots := a.Connect(t, "shop")
			testpg.Eventually(t, 20*time.Second, "the slot is dropped", func() (bool, error) {
				_, err := slots.Exec(t.Context(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
				return err == nil, err
			})
			victim.run(t)
			awaitCause(t, b, "slot-lost")

			release := lock(t, a, "shop", "t")
			done := make(chan error, 1)
			go func() { done <- a.ResyncLink(context.Background(), "shop", nil) }()
			testpg.Eventually(t, 20*time.Second, "the comparison waits for the table", func() (bool, error) {
				return len(testpg.Rows(t, slots, `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'hawser:shop:%'`)) > 0, nil
			})
			victim.stop()
			release()
			if err := testpg.Await(t, "the resync is answered", done); err == nil {
				t.Error("the resync succeeded")
			}
			victim.run(t)
			testpg.Eventually(t, 40*time.Second, "the slot is gone", func() (bool, error) {
				return len(testpg.Rows(t, slots, `SELECT FROM pg_replication_slots`)) == 0, nil
			})
			awaitCause(t, b, "slot-lost")
			a.Exec(t, "shop", `INSERT INTO t VALUES (2)`)
			testpg.Eventually(t, 40*time.Second, "the resync is done at last", func() (bool, error) {
				err := a.ResyncLink(context.Background(), "shop", nil)
				return err == nil, err
			})
			b.awaitState(t, "shop", api.StateSynchronized)
			equal(t, a, b, "shop")
		})
	}
}

// TestRejoinWithoutTail brings an old primary back whose slot was lost: all tables
// are compared, and those that differ are copied.
func TestRejoinWithoutTail(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	testpg.Eventually(t, 20*time.Second, "the slot is free", func() (bool, error) {
		return len(a.Rows(t, "shop", `SELECT FROM pg_replication_slots WHERE active`)) == 0, nil
	})
	a.Exec(t, "shop", `UPDATE customer SET name = name || ' of a' WHERE id < 50`, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	n, stop := write(t, b.DSN("shop"), "w")
	more(t, n)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	more(t, n)
	stop()
	equal(t, b, a, "shop")
}

// TestMaxWAL: a link has a bound of its own on the WAL that it holds back, which either
// side changes, which the primary warns of in time, and which a failover keeps.
func TestMaxWAL(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY)`)
	const mib = int64(1 << 20)
	own := func(n int64) *int64 { return &n }
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary, MaxWALBytes: own(mib)}
	if _, err := a.CreateLink(ctx, spec); err == nil || !strings.Contains(err.Error(), "max-wal") {
		t.Errorf("a bound of 1 MiB: %v", err)
	}
	spec.MaxWALBytes = own(128 * mib)
	if _, err := a.CreateLink(ctx, spec); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	bounds := func(want int64) {
		t.Helper()
		for _, i := range []*instance{a, b} {
			if l, err := i.Link(ctx, "shop"); err != nil || l.MaxWALBytes == nil || int64(*l.MaxWALBytes) != want {
				t.Errorf("on %s the bound is %v, want %d: %v", i.name, l.MaxWALBytes, want, err)
			}
		}
	}
	bounds(128 * mib)
	if err := b.SetLinkMaxWAL(ctx, "shop", own(256*mib)); err != nil {
		t.Fatal(err)
	}
	bounds(256 * mib)
	b.stop() // it hears of the next one when it is back
	if err := a.SetLinkMaxWAL(ctx, "shop", own(100*mib)); err != nil {
		t.Fatal(err)
	}
	b.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	bounds(100 * mib)
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	bounds(100 * mib)

	if err := a.PauseLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `SELECT pg_logical_emit_message(false, 'filler', repeat('x', 60 << 20))`)
	testpg.Eventually(t, 20*time.Second, "the primary warns of the bound", func() (bool, error) {
		l, err := b.Link(ctx, "shop")
		return err == nil && slices.ContainsFunc(l.Findings, func(p *problem.Problem) bool {
			return p.Code == "wal-held" && strings.Contains(p.Remedy, "hawser link set shop --max-wal")
		}), err
	})
	b.Exec(t, "shop", `INSERT INTO t VALUES (1); SELECT pg_logical_emit_message(false, 'filler', repeat('x', 60 << 20))`)
	b.awaitState(t, "shop", api.StateSuspended)
	if l, err := b.Link(ctx, "shop"); err != nil || l.Cause.Code != "wal-limit" {
		t.Errorf("the link stands with %v, %v", l.Cause, err)
	}
	if err := b.SetLinkMaxWAL(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	if err := b.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	shown, err := b.Link(ctx, "shop")
	if err != nil || shown.MaxWALBytes == nil || int64(*shown.MaxWALBytes) != 16<<30 {
		t.Errorf("without a bound of its own the link has %v, %v", shown.MaxWALBytes, err)
	}
	equal(t, b, a, "shop")
}
