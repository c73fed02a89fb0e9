package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// linked returns two instances with the zoo linked from the first to the second.
func linked(t *testing.T) (a, b *instance) {
	t.Helper()
	a, b = newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo)
	if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestCrashesInEveryStep ends agents and PostgreSQL while tables are copied and
// while changes stream; the link goes on by itself, and nothing is lost or doubled.
func TestCrashesInEveryStep(t *testing.T) {
	t.Parallel()
	a, b := linked(t)
	n, stop := write(t, a.DSN("shop"), "w")
	for i, fault := range []func(){
		func() { b.stop(); b.run(t) },            // most likely while it copies
		func() { b.Kill(t); b.Cluster.Start(t) }, // the replica loses what was not flushed
		func() { a.stop(); a.run(t) },            //
		func() { a.Kill(t); a.Cluster.Start(t) }, //
		func() { b.stop(); b.Kill(t); b.Cluster.Start(t); b.run(t) },
	} {
		more(t, n)
		fault()
		b.awaitState(t, "shop", api.StateSynchronized)
		t.Logf("fault %d is over", i+1)
	}
	more(t, n)
	stop()
	t.Logf("%d transactions", n.Load())
	equal(t, a, b, "shop")
}

// TestDDLTravels changes the schema while clients write.
func TestDDLTravels(t *testing.T) {
	t.Parallel()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	n, stop := write(t, a.DSN("shop"), "w")
	more(t, n)
	a.Exec(t, "shop",
		`CREATE TABLE later (id int PRIMARY KEY, v text); INSERT INTO later VALUES (1, 'one'); ALTER TABLE later ADD n numeric DEFAULT 1.50; UPDATE later SET n = 2`,
		`ALTER TABLE customer ADD COLUMN since date DEFAULT '2020-01-01'; CREATE INDEX ON customer (since)`,
		`BEGIN; SAVEPOINT s; CREATE TABLE never (); ROLLBACK TO s; ALTER TYPE status RENAME VALUE 'sent' TO 'shipped'; INSERT INTO audit (what) VALUES ('ddl'); COMMIT`,
		`DO $$ BEGIN CREATE TABLE "In a block" (a int); INSERT INTO "In a block" VALUES (7); END $$`,
		`CREATE TABLE copied AS SELECT * FROM "My Order" WHERE id < 100`,
		`CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01'); INSERT INTO event VALUES (1, '2027-02-02', 'p')`,
		`TRUNCATE audit; DROP VIEW paid; CREATE SEQUENCE counter; SELECT nextval('counter'), nextval('counter')`)
	more(t, n)
	stop()
	equal(t, a, b, "shop")
	testpg.Eventually(t, 10*time.Second, "the new sequence follows", func() (bool, error) {
		return strings.Join(b.Rows(t, "shop", `SELECT last_value FROM counter`), "") == "2", nil
	})
	err := refused(t, b, `SET default_transaction_read_only = off`, `INSERT INTO later VALUES (2)`)
	if !strings.Contains(err, "25006") {
		t.Errorf("a table that was created later took a write on the replica: %s", err)
	}
}

// refused runs statements as superuser on the replica and returns the error's text.
func refused(t *testing.T, i *instance, sql ...string) string {
	t.Helper()
	conn := i.Connect(t, "shop")
	for _, s := range sql {
		if _, err := conn.Exec(context.Background(), s); err != nil {
			return err.Error()
		}
	}
	return ""
}

// traces lists everything of Hawser's in a cluster.
func traces(t *testing.T, i *instance, database string) []string {
	t.Helper()
	out := testpg.Rows(t, i.Connect(t, "postgres"), `
		SELECT 'slot', slot_name FROM pg_replication_slots UNION ALL SELECT 'origin', roname FROM pg_replication_origin
		UNION ALL SELECT 'link', name FROM hawser.link`)
	if len(testpg.Rows(t, i.Connect(t, "postgres"), `SELECT FROM pg_database WHERE datname = $1`, database)) == 0 {
		return append(out, "no database")
	}
	return append(out, testpg.Rows(t, i.Connect(t, database), `
		SELECT 'schema', nspname FROM pg_namespace WHERE nspname = 'hawser'
		UNION ALL SELECT 'publication', pubname FROM pg_publication UNION ALL SELECT 'event trigger', evtname FROM pg_event_trigger
		UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE tgname LIKE 'hawser%'
		UNION ALL SELECT 'identity', relname FROM pg_class WHERE relreplident = 'f'
		UNION ALL SELECT 'setting', unnest(setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()`)...)
}

// TestDropLeavesNothing drops a link both ways.
func TestDropLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, remove := range []bool{true, false} {
		t.Run(fmt.Sprintf("remove=%v", remove), func(t *testing.T) {
			t.Parallel()
			a, b := linked(t)
			b.awaitState(t, "shop", api.StateSynchronized)
			if _, err := a.DropLink(ctx, "shop", api.DropOptions{RemoveReplica: remove}); err != nil {
				t.Fatal(err)
			}
			if got := traces(t, a, "shop"); len(got) != 0 {
				t.Errorf("left on the primary: %q", got)
			}
			got := traces(t, b, "shop")
			if remove && strings.Join(got, "") != "no database" {
				t.Errorf("left on the secondary: %q", got)
			}
			if remove {
				return
			}
			for _, line := range got {
				if !strings.HasPrefix(line, "setting|hawser.created") && !strings.HasPrefix(line, "identity") {
					t.Errorf("left on the secondary: %q", got)
				}
			}
			b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('free again')`)
		})
	}
}

// TestCreateRefusesAndLeavesNothing tries what can't be linked.
func TestCreateRefusesAndLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE shop`, `CREATE DATABASE taken`)
	a.Exec(t, "shop", zoo)
	b.Exec(t, "postgres", `CREATE DATABASE taken`)
	b.Exec(t, "taken", `CREATE TABLE mine ()`)
	for name, spec := range map[string]api.LinkSpec{
		"missing database": {Name: "x", Database: "nowhere", Peer: "beta", Role: api.RolePrimary},
		"unknown peer":     {Name: "x", Database: "shop", Peer: "gamma", Role: api.RolePrimary},
		"not empty":        {Name: "x", Database: "taken", Peer: "beta", Role: api.RolePrimary},
		"asked from there": {Name: "x", Database: "nowhere", Peer: "beta", Role: api.RoleSecondary},
	} {
		if _, err := a.CreateLink(ctx, spec); err == nil {
			t.Errorf("%s: the link was created", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	// The other side fails half way: everything is taken back.
	b.stop()
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "x", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err == nil {
		t.Error("a link with an unreachable peer was created")
	}
	b.run(t)
	for _, i := range []*instance{a, b} {
		if got := traces(t, i, "shop"); len(got) > 1 || len(got) == 1 && got[0] != "no database" {
			t.Errorf("left on %s: %q", i.name, got)
		}
	}
}

// TestReplicaBusy: while a lock of a reader holds the applier up, the link says that,
// and not that the primary is away; its lag grows.
func TestReplicaBusy(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE gate (id int PRIMARY KEY); CREATE TABLE t (id int)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	release := hold(t, b, "shop", "gate")
	defer release()
	a.Exec(t, "shop", `INSERT INTO gate VALUES (1)`)
	conn := a.Connect(t, "shop")
	testpg.Eventually(t, 60*time.Second, "the link says what it waits for", func() (bool, error) {
		if _, err := conn.Exec(t.Context(), `INSERT INTO t VALUES (1)`); err != nil {
			return false, err
		}
		l, err := b.Link(t.Context(), "shop")
		if err != nil {
			return false, err
		}
		if l.State == api.StateDisconnected {
			t.Fatalf("the link is %s: %+v", l.State, l.Cause)
		}
		return l.State == api.StateCatchingUp && l.Cause.Code == "replica-busy" && l.LagSeconds != nil && *l.LagSeconds > 4, nil
	})
	release()
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestLockedSequence: a transaction that holds a sequence for long on the primary
// silences no heartbeat.
func TestLockedSequence(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t DEFAULT VALUES`)
	b.awaitState(t, "shop", api.StateSynchronized)
	conn := a.Connect(t, "shop")
	if _, err := conn.Exec(t.Context(), `BEGIN; DROP TABLE t`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	// Longer than the silence after which a link is disconnected: nothing may happen.
	for end := time.Now().Add(7 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if l, err := b.Link(t.Context(), "shop"); err != nil || l.State != api.StateSynchronized {
			t.Fatalf("the link is %s: %v, %v", l.State, l.Cause, err)
		}
	}
	if _, err := conn.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "shop", `INSERT INTO t DEFAULT VALUES`)
	equal(t, a, b, "shop")
}
