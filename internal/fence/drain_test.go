package fence

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// restore pipes pg_dump of one database into another.
func restore(t *testing.T, c *testpg.Cluster, from, to string) {
	t.Helper()
	info, err := c.Server().Info(t.Context())
	must(t, err)
	dump, err := postgres.Tool("pg_dump", info.Version/10000)
	if err != nil {
		t.Skipf("this machine has no pg_dump for the server under test: %v", err)
	}
	psql, err := postgres.Tool("psql", 14)
	must(t, err)
	out := testpg.Command(t, dump)
	out.Env = c.Server().Environ(from)
	in := testpg.Command(t, psql, "-X", "-q", "-v", "ON_ERROR_STOP=1")
	in.Env = c.Server().Environ(to)
	in.Stdin, err = out.StdoutPipe()
	must(t, err)
	var complaints strings.Builder
	in.Stderr, out.Stderr = &complaints, &complaints
	must(t, out.Start())
	if err := in.Run(); err != nil {
		t.Fatalf("restore: %v\n%s", err, complaints.String())
	}
	if err := out.Wait(); err != nil {
		t.Fatalf("dump: %v\n%s", err, complaints.String())
	}
}

// Writers of every kind go on while the fence closes. Behind the position that
// Drain returns, the WAL holds no change of theirs.
func TestNothingIsWrittenBehindDrain(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	c.Exec(t, db, `CREATE TABLE t (id bigserial PRIMARY KEY, who text)`, `CREATE TABLE agents (id bigserial PRIMARY KEY)`)
	hawser := agent(t, c, db)
	slot := "fence_" + db
	run(t, hawser, `SELECT pg_create_logical_replication_slot('`+slot+`', 'test_decoding')`)
	must(t, Prepare(t.Context(), hawser, nil))

	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	spared := writers(ctx, t, c, db, &group)
	testpg.Eventually(t, 10*time.Second, "writers write", func() (bool, error) {
		n := testpg.Rows(t, hawser, `SELECT count(DISTINCT who) FROM t`)
		return n[0] == "6", nil
	})
	// Created after Prepare, so it has no trigger yet.
	c.Exec(t, db, `CREATE TABLE late (id integer)`)

	must(t, Close(t.Context(), hawser, sign))
	must(t, Drain(t.Context(), hawser, 50*time.Millisecond, []uint32{spared}))
	position, err := frame.ParseLSN(testpg.Rows(t, hawser, `SELECT pg_current_wal_insert_lsn()`)[0])
	must(t, err)
	user := stubborn(t, c, db)
	refused(t, user, `INSERT INTO late VALUES (1)`)
	count := testpg.Rows(t, hawser, `SELECT count(*) FROM t`)[0]
	agents := testpg.Rows(t, hawser, `SELECT count(*) FROM agents`)[0]
	testpg.Eventually(t, 10*time.Second, "the agent goes on", func() (bool, error) {
		return testpg.Rows(t, hawser, `SELECT count(*) > `+agents+` + 20 FROM agents`)[0] == "t", nil
	})
	stop()
	testpg.Returns(t, "the writers end", group.Wait)
	if got := testpg.Rows(t, hawser, `SELECT count(*) FROM t`)[0]; got != count {
		t.Errorf("%s rows, %s when Drain had returned", got, count)
	}
	checkBehind(t, hawser, slot, position)
}

// checkBehind fails for each change behind a position that is not the agent's.
func checkBehind(t *testing.T, conn *pgx.Conn, slot string, position frame.LSN) {
	t.Helper()
	var changes, agents int
	for _, row := range testpg.Rows(t, conn, `SELECT lsn, data FROM pg_logical_slot_get_changes($1, NULL, NULL)`, slot) {
		at, data, _ := strings.Cut(row, "|")
		lsn, err := frame.ParseLSN(at)
		must(t, err)
		switch {
		case !strings.HasPrefix(data, "table "):
		case strings.HasPrefix(data, "table public.agents"):
			agents++
		case lsn > position && !strings.HasPrefix(data, "table hawser."):
			t.Errorf("a change at %s, behind %s: %s", lsn, position, data)
		default:
			changes++
		}
	}
	if changes == 0 || agents == 0 {
		t.Errorf("the slot shows %d changes of clients and %d of the agent; the test proves nothing", changes, agents)
	}
}

// writers start clients that write until ctx ends, and reconnect; and one agent,
// whose process id is returned.
func writers(ctx context.Context, t *testing.T, c *testpg.Cluster, db string, group *sync.WaitGroup) uint32 {
	t.Helper()
	kinds := map[string]string{
		"plain":      `INSERT INTO t (who) VALUES ('plain')`,
		"rw":         `SET default_transaction_read_only = off; INSERT INTO t (who) VALUES ('rw')`,
		"long":       `BEGIN READ WRITE; INSERT INTO t (who) VALUES ('long'); SELECT pg_sleep(0.03); INSERT INTO t (who) VALUES ('long'); COMMIT`,
		"repeatable": `BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; SELECT count(*) FROM t; SELECT pg_sleep(0.01); INSERT INTO t (who) VALUES ('repeatable'); COMMIT`,
		// It holds the table's lock, and so need not look at the catalogs again.
		"locked": `BEGIN READ WRITE; DELETE FROM t WHERE false; SELECT pg_sleep(0.2); INSERT INTO t (who) VALUES ('locked'); COMMIT`,
		"async":  `SET synchronous_commit = off; INSERT INTO t (who) SELECT 'async' FROM generate_series(1, 50)`,
	}
	for _, sql := range kinds {
		group.Go(func() {
			for ctx.Err() == nil {
				conn, err := c.Server().Connect(ctx, postgres.Session{Database: db})
				if err != nil {
					continue
				}
				for ctx.Err() == nil && !conn.IsClosed() {
					if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
						_, _ = conn.PgConn().Exec(ctx, `ROLLBACK`).ReadAll()
					}
				}
				_ = conn.Close(context.WithoutCancel(ctx))
			}
		})
	}
	conn := agent(t, c, db)
	group.Go(func() {
		for ctx.Err() == nil {
			if _, err := conn.Exec(ctx, `INSERT INTO agents DEFAULT VALUES`); err != nil && ctx.Err() == nil {
				t.Errorf("the agent: %v", err)
				return
			}
		}
	})
	return conn.PgConn().PID()
}

// A transaction that has an id may end within the grace time.
func TestDrainWaits(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), c.Connect(t, db)
	must(t, Prepare(t.Context(), hawser, nil))
	run(t, user, `BEGIN; INSERT INTO plain VALUES (1000, 'in time')`)
	must(t, Close(t.Context(), hawser, sign))
	done := make(chan error, 1)
	go func() { done <- Drain(context.Background(), hawser, 20*time.Second, nil) }()
	watch, looks := agent(t, c, "postgres"), map[string]bool{}
	testpg.Eventually(t, 10*time.Second, "Drain looks again and again", func() (bool, error) {
		for _, at := range testpg.Rows(t, watch, `SELECT query_start FROM pg_stat_activity WHERE datname = $1 AND query LIKE '%backend_xid IS NOT NULL%'`, db) {
			looks[at] = true
		}
		return len(looks) > 3, nil
	})
	run(t, user, `COMMIT`)
	must(t, testpg.Await(t, "the fence has drained", done))
	if _, err := user.Exec(t.Context(), `SELECT 1`); err == nil {
		t.Error("the session was not ended")
	}
	if got := testpg.Rows(t, agent(t, c, db), `SELECT v FROM plain WHERE id = 1000`); len(got) != 1 {
		t.Error("the transaction that was in time is lost")
	}
}

func TestDrainNamesWhatItCannotEnd(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), stubborn(t, c, db)
	must(t, Prepare(t.Context(), hawser, nil))
	gid := "it's " + db
	run(t, user, fmt.Sprintf(`BEGIN; INSERT INTO plain VALUES (1000); PREPARE TRANSACTION '%s'`, strings.ReplaceAll(gid, "'", "''")))
	must(t, Close(t.Context(), hawser, sign))
	err := Drain(t.Context(), hawser, 0, nil)
	p := wantProblem(t, err, "prepared-transaction")
	if !strings.Contains(p.Remedy, `ROLLBACK PREPARED 'it''s `) {
		t.Errorf("remedy: %s", p.Remedy)
	}
	run(t, user, `SELECT 1`) // nobody was disturbed
	run(t, user, p.Remedy)

	run(t, hawser, fmt.Sprintf(`CREATE SUBSCRIPTION "S %s" CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false)`, db))
	sub := `"S ` + db + `"`
	run(t, hawser, `ALTER SUBSCRIPTION `+sub+` ENABLE`)
	err = Drain(t.Context(), hawser, 0, nil)
	p = wantProblem(t, err, "subscription-writes")
	run(t, hawser, p.Remedy)
	run(t, hawser, `ALTER SUBSCRIPTION `+sub+` SET (slot_name = NONE); DROP SUBSCRIPTION `+sub)
	must(t, Drain(t.Context(), hawser, 0, nil))
	if _, err := user.Exec(t.Context(), `SELECT 1`); err == nil {
		t.Error("the session was not ended")
	}
}
