package fence

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/testpg"
)

func TestPrepareManyTables(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	const tables = 2000
	for _, idle := range []bool{false, true} {
		db := c.CreateDatabase(t)
		c.Exec(t, db, `DO $$ BEGIN FOR i IN 1..2000 LOOP EXECUTE format('CREATE TABLE t%s (id integer)', i); IF i % 500 = 0 THEN COMMIT; END IF; END LOOP; END $$`)
		hawser := agent(t, c, db)
		var done, total, calls int
		begin := time.Now()
		must(t, Prepare(t.Context(), hawser, &PrepareOptions{Idle: idle, Progress: func(d, n int) { done, total, calls = d, n, calls+1 }}))
		t.Logf("idle %v: %d tables in %s", idle, tables, time.Since(begin))
		if done != tables || total != tables || calls == 0 {
			t.Errorf("progress ended at %d of %d after %d calls", done, total, calls)
		}
		begin = time.Now()
		must(t, Close(t.Context(), hawser, sign))
		t.Logf("closed in %s", time.Since(begin))
		s, found, err := Check(t.Context(), hawser)
		if err != nil || !s.Prepared || !s.Closed || len(found) > 0 {
			t.Errorf("state %+v, findings %v, error %v", s, found, err)
		}
	}
}

// Writers go on while triggers are put on and taken off.
func TestPrepareBesideWriters(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	c.Exec(t, db, `CREATE TABLE t (id integer PRIMARY KEY, n integer)`, `INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i`)
	hawser := agent(t, c, db)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	slowest := make([]time.Duration, 3)
	for w := range slowest {
		conn := c.Connect(t, db)
		group.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				if _, err := conn.Exec(context.Background(), `UPDATE t SET n = n + 1 WHERE id = $1`, 1+w); err != nil {
					t.Errorf("a writer: %v", err)
					return
				}
				slowest[w] = max(slowest[w], time.Since(begin))
			}
		})
	}
	for range 5 {
		must(t, Prepare(t.Context(), hawser, nil))
		must(t, Remove(t.Context(), hawser))
	}
	must(t, Prepare(t.Context(), hawser, nil))
	stop()
	testpg.Returns(t, "the writers end", group.Wait)
	t.Logf("slowest writes: %v", slowest)
	if got := testpg.Rows(t, hawser, `SELECT tgenabled FROM pg_trigger WHERE tgname = 'hawser_fence'`); len(got) != 1 || got[0] != "O" {
		t.Errorf("trigger: %v", got)
	}
}

func TestPrepareNamesWhoHoldsTheTable(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user, other := agent(t, c, db), stubborn(t, c, db), stubborn(t, c, db)
	run(t, user, `BEGIN; INSERT INTO plain VALUES (1000)`)
	err := Prepare(t.Context(), hawser, &PrepareOptions{LockTimeout: 20 * time.Millisecond, Patience: 200 * time.Millisecond})
	p := wantProblem(t, err, "fence-table-busy")
	if !p.Retryable || !strings.Contains(p.Object, `"public"."plain"`) || !strings.Contains(p.Remedy, testpg.Rows(t, user, `SELECT pg_backend_pid()`)[0]) {
		t.Errorf("%+v", p)
	}
	run(t, other, `INSERT INTO plain VALUES (1001)`) // nobody is stuck behind us
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	wantProblem(t, Prepare(ctx, hawser, nil), "fence-table-busy")
	run(t, user, `COMMIT`)
	must(t, Prepare(t.Context(), agent(t, c, db), nil))
}

// Prepare never opens a fence, and mends what is missing in the form that it has to have.
func TestPrepareKeepsAClosedFence(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), stubborn(t, c, db)
	must(t, Close(t.Context(), hawser, sign)) // before any Prepare
	refused(t, user, `CREATE TABLE new (id integer)`)
	must(t, Prepare(t.Context(), hawser, nil))
	run(t, hawser, `DROP EVENT TRIGGER hawser_fence; DROP FUNCTION hawser.fence_ddl(); ALTER TABLE plain DISABLE TRIGGER hawser_fence`)
	must(t, Prepare(t.Context(), hawser, nil))
	refused(t, user, `CREATE TABLE new (id integer)`)
	refused(t, user, `DELETE FROM plain`)
	run(t, hawser, `CREATE TABLE new (id integer)`)
	must(t, pgx.BeginFunc(t.Context(), hawser, func(tx pgx.Tx) error {
		if err := PrepareTable(t.Context(), tx, "public", "new"); err != nil {
			return err
		}
		return PrepareTable(t.Context(), tx, "public", "new")
	}))
	refused(t, user, `TRUNCATE new`)
}

func TestRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser := agent(t, c, db)
	count := `SELECT (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_event_trigger), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())), (SELECT count(*) FROM pg_depend), (SELECT count(*) FROM pg_description)`
	run(t, hawser, `CREATE SCHEMA hawser`)
	before := testpg.Rows(t, hawser, count)[0]
	must(t, Remove(t.Context(), hawser)) // nothing there
	must(t, Prepare(t.Context(), hawser, &PrepareOptions{Idle: true}))
	must(t, Close(t.Context(), hawser, sign))
	must(t, Remove(t.Context(), hawser))
	must(t, Remove(t.Context(), hawser))
	if after := testpg.Rows(t, hawser, count)[0]; after != before {
		t.Errorf("%s, before %s", after, before)
	}
	run(t, stubborn(t, c, db), `DELETE FROM plain`)
}
