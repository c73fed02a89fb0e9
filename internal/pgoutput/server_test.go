package pgoutput_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

var record = flag.Bool("record", false, "write what the server sent to testdata")

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

// A scenario is SQL, and what pgoutput makes of it. The tests ask the server at
// hand; what servers of other versions sent is in testdata, a directory a version.
type scenario struct {
	name    string
	since   int    // the first major version that can play it
	options string // of the plugin
	twoPC   bool   // the slot decodes at PREPARE TRANSACTION
	before  string // what stands before the slot
	sql     []string
	after   string // what takes back what is the cluster's
	want    []string
}

var scenarios = []scenario{
	{
		name: "changes", since: 14, options: `'proto_version', '1'`,
		before: `
			CREATE TYPE mood AS ENUM ('glad');
			CREATE DOMAIN size AS int;
			CREATE TABLE "My Table" (id int PRIMARY KEY, "Größe" size, m mood, big text, twice int GENERATED ALWAYS AS (id * 2) STORED);
			ALTER TABLE "My Table" ALTER big SET STORAGE EXTERNAL;
			INSERT INTO "My Table" VALUES (1, 5, NULL, repeat('x', 3000))`,
		sql: []string{
			`INSERT INTO "My Table" VALUES (2, NULL, 'glad', '')`,
			`UPDATE "My Table" SET "Größe" = 6 WHERE id = 1`,
			`UPDATE "My Table" SET id = 3 WHERE id = 1`,
			`DELETE FROM "My Table" WHERE id = 2`,
		},
		want: []string{
			`begin a`, `type pg_catalog.int4`, `type public.mood`, `relation public.My Table identity=d (id*, Größe, m, big)`,
			`insert My Table t"2" null t"glad" t""`, `commit`,
			`begin b`, `update My Table to t"1" t"6" null unchanged`, `commit`,
			`begin c`, `update My Table K t"1" null null null to t"3" t"6" null unchanged`, `commit`,
			`begin d`, `delete My Table K t"2" null null null`, `commit`,
		},
	},
	{
		name: "identities", since: 14, options: `'proto_version', '1'`,
		before: `
			CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL;
			CREATE TABLE by_index (a int, b int NOT NULL); CREATE UNIQUE INDEX i ON by_index (b); ALTER TABLE by_index REPLICA IDENTITY USING INDEX i;
			CREATE TABLE none (a int PRIMARY KEY); ALTER TABLE none REPLICA IDENTITY NOTHING`,
		sql: []string{`
			BEGIN;
			INSERT INTO whole VALUES (1, NULL); UPDATE whole SET b = 'x'; DELETE FROM whole;
			INSERT INTO by_index VALUES (1, 2); UPDATE by_index SET a = 3; UPDATE by_index SET b = 4; DELETE FROM by_index;
			INSERT INTO none VALUES (1);
			COMMIT`},
		want: []string{
			`begin a`,
			`relation public.whole identity=f (a*, b*)`, `insert whole t"1" null`, `update whole O t"1" null to t"1" t"x"`, `delete whole O t"1" t"x"`,
			`relation public.by_index identity=i (a, b*)`, `insert by_index t"1" t"2"`, `update by_index to t"3" t"2"`,
			`update by_index K null t"2" to t"3" t"4"`, `delete by_index K null t"4"`,
			`relation public.none identity=n (a)`, `insert none t"1"`,
			`commit`,
		},
	},
	{
		name: "truncate", since: 14, options: `'proto_version', '1'`,
		before: `CREATE TABLE parent (id serial PRIMARY KEY); CREATE TABLE child (id int REFERENCES parent); CREATE TABLE other (id serial)`,
		sql:    []string{`TRUNCATE other`, `TRUNCATE parent, other RESTART IDENTITY CASCADE`},
		want: []string{
			`begin a`, `relation public.other identity=d (id)`, `truncate other cascade=false restart=false`, `commit`,
			`begin b`, `relation public.parent identity=d (id*)`, `relation public.other identity=d (id)`, `relation public.child identity=d (id)`,
			`truncate parent,other,child cascade=true restart=true`, `commit`,
		},
	},
	{
		name: "messages", since: 14, options: `'proto_version', '1', 'messages', 'true'`,
		sql: []string{
			`BEGIN; SELECT pg_logical_emit_message(true, 'in', 'lost'), pg_logical_emit_message(false, 'out', E'\\x00ff'::bytea); ROLLBACK`,
			`BEGIN; SELECT pg_logical_emit_message(true, 'in', 'one'), pg_logical_emit_message(false, 'out', ''); COMMIT`,
		},
		want: []string{
			`message transactional=false out="\x00\xff"`, `message transactional=false out=""`,
			`begin a`, `message transactional=true in="one"`, `commit`,
		},
	},
	{
		name: "binary", since: 14, options: `'proto_version', '1', 'binary', 'true'`,
		before: `CREATE TABLE t (i int, b bool, t text)`,
		sql:    []string{`INSERT INTO t VALUES (1, true, NULL)`},
		want: []string{
			`begin a`, `relation public.t identity=d (i, b, t)`, `insert t b"\x00\x00\x00\x01" b"\x01" null`, `commit`,
		},
	},
	{
		name: "origin", since: 15, options: `'proto_version', '1'`,
		before: `CREATE TABLE t (i int)`,
		sql: []string{`
			SELECT pg_replication_origin_create('elsewhere'), pg_replication_origin_session_setup('elsewhere');
			BEGIN; SELECT pg_replication_origin_xact_setup('0/AB', '2026-01-02 03:04:05Z'); INSERT INTO t VALUES (1); COMMIT;
			SELECT pg_replication_origin_session_reset()`},
		after: `SELECT pg_replication_origin_drop('elsewhere')`, // its name is looked up by decoding
		want:  []string{`begin a`, `origin elsewhere AB`, `relation public.t identity=d (i)`, `insert t t"1"`, `commit`},
	},
	{
		name: "two-phase", since: 15, options: `'proto_version', '3', 'two_phase', 'on'`, twoPC: true,
		before: `CREATE TABLE t (i int)`,
		sql: []string{
			`BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'one'`, `COMMIT PREPARED 'one'`,
			`BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'it''s two'`, `ROLLBACK PREPARED 'it''s two'`,
		},
		want: []string{
			`prepared b a one`, `relation public.t identity=d (i)`, `insert t t"1"`, `prepared P a one`, `prepared K a one`,
			`prepared b b it's two`, `insert t t"2"`, `prepared P b it's two`, `prepared r b it's two`,
		},
	},
}

func TestServer(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			c := testpg.Shared(t)
			major := version(t, c)
			if major < s.since {
				t.Skipf("PostgreSQL %d can't play it", major)
			}
			messages := s.play(t, c)
			save(t, major, s.name, messages)
			equal(t, tell(t, messages), s.want)
		})
	}
}

// play returns the messages that a slot gives for the scenario.
func (s scenario) play(t *testing.T, c *testpg.Cluster) [][]byte {
	t.Helper()
	database := c.CreateDatabase(t)
	c.Exec(t, database, s.before, `CREATE PUBLICATION p FOR ALL TABLES`)
	conn := c.Connect(t, database)
	createSlot(t, conn, database, s.twoPC)
	c.Exec(t, database, s.sql...)
	rows, err := conn.Query(t.Context(), `
		SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'publication_names', 'p', `+s.options+`)`, database)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	c.Exec(t, database, s.after)
	return messages
}

// createSlot makes a slot that goes with the database.
func createSlot(t *testing.T, conn *pgx.Conn, name string, twoPC bool) {
	t.Helper()
	sql := `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`
	if twoPC {
		sql = `SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, true)`
	}
	testpg.Rows(t, conn, sql, name)
}

func version(t *testing.T, c *testpg.Cluster) int {
	t.Helper()
	info, err := c.Server().Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.Version / 10000
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// TestServerStreams follows transactions that are larger than the server's memory
// for decoding, and so are sent before they end: one that commits after a
// subtransaction was rolled back, one that is rolled back, and one that is prepared.
func TestServerStreams(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	major := version(t, c)
	f := follow(t, c, major)
	w := c.Connect(t, f.database)

	do := func(sql string) {
		t.Helper()
		if _, err := w.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// A change is sent once others, which nobody sees, have filled the memory.
	change := func(value, last string) {
		t.Helper()
		do(`INSERT INTO t VALUES ('` + value + `'); INSERT INTO unseen SELECT generate_series(1, 2000)`)
		f.until(last + `: insert t t"` + value + `"`)
	}
	do(`BEGIN`)
	change("kept", "a")
	do(`SAVEPOINT s`)
	change("rolled back", "b")
	do(`ROLLBACK TO s`) // what follows is a subtransaction again
	change("kept too", "c")
	do(`COMMIT`)
	f.until("stream commit a")
	do(`BEGIN`)
	change("lost", "d")
	do(`ROLLBACK`)
	f.until("stream abort d of d, placed=" + fmt.Sprint(major >= 16))
	if major >= 15 {
		do(`BEGIN`)
		change("prepared", "e")
		do(`PREPARE TRANSACTION 'streamed'`)
		f.until("prepared p e streamed")
		do(`COMMIT PREPARED 'streamed'`)
		f.until("prepared K e streamed")
	}
	save(t, major, "stream", f.messages)
	equal(t, withoutChoices(f.told), streamed(major))
}

// streamed is what TestServerStreams's transactions become.
func streamed(major int) []string {
	placed := fmt.Sprint(major >= 16)
	want := []string{
		`stream a first=true`, `a: relation public.t identity=d (v)`, `a: insert t t"kept"`,
		`b: insert t t"rolled back"`, `stream abort b of a, placed=` + placed,
		`c: relation public.t identity=d (v)`, `c: insert t t"kept too"`, `stream commit a`,
		`stream d first=true`, `d: relation public.t identity=d (v)`, `d: insert t t"lost"`, `stream abort d of d, placed=` + placed,
	}
	if major >= 15 {
		want = append(want, `stream e first=true`, `e: relation public.t identity=d (v)`, `e: insert t t"prepared"`, `prepared p e streamed`, `prepared K e streamed`)
	}
	return want
}

// withoutChoices leaves out what is the server's choice: where blocks end and go on,
// and definitions sent again, as any invalidation of its caches makes it do.
func withoutChoices(told []string) []string {
	defined := false
	return slices.DeleteFunc(slices.Clone(told), func(s string) bool {
		switch {
		case s == "stop" || strings.HasSuffix(s, "first=false"):
			return true
		case strings.HasPrefix(s, "stream "): // a transaction begins, or a part of one is taken back
			defined = false
		case strings.Contains(s, ": relation "):
			again := defined
			defined = true
			return again
		}
		return false
	})
}

// follower reads a replication stream and tells it.
type follower struct {
	t        *testing.T
	conn     *pgconn.PgConn
	database string
	messages [][]byte
	told     []string
	words    telling
}

// follow opens a stream with the newest protocol that the server speaks.
func follow(t *testing.T, c *testpg.Cluster, major int) *follower {
	t.Helper()
	database := c.CreateDatabase(t)
	c.Exec(t, database, `CREATE TABLE t (v text); CREATE TABLE unseen (i int); CREATE PUBLICATION p FOR TABLE t`)
	createSlot(t, c.Connect(t, database), database, major >= 15)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	conn, err := c.Server().ConnectReplication(ctx, postgres.Session{
		Database: database, Purpose: "test", Settings: map[string]string{"logical_decoding_work_mem": "64kB"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	options := []string{"publication_names 'p'"}
	switch {
	case major >= 16:
		options = append(options, "proto_version '4'", "streaming 'parallel'", "two_phase 'on'")
	case major == 15:
		options = append(options, "proto_version '3'", "streaming 'on'", "two_phase 'on'")
	default:
		options = append(options, "proto_version '2'", "streaming 'on'")
	}
	if err := pglogrepl.StartReplication(ctx, conn, database, 0, pglogrepl.StartReplicationOptions{PluginArgs: options}); err != nil {
		t.Fatal(err)
	}
	return &follower{t: t, conn: conn, database: database}
}

// until reads messages up to the one that is told as last.
func (f *follower) until(last string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 30*time.Second)
	defer cancel()
	for {
		m, err := f.conn.ReceiveMessage(ctx)
		if err != nil {
			f.t.Fatalf("wait for %q: %v after\n\t%s", last, err, strings.Join(f.told, "\n\t"))
		}
		data, ok := m.(*pgproto3.CopyData)
		if !ok {
			f.t.Fatalf("wait for %q: a %T", last, m)
		}
		if data.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		x, err := pglogrepl.ParseXLogData(data.Data[1:])
		if err != nil {
			f.t.Fatal(err)
		}
		payload := slices.Clone(x.WALData)
		f.messages = append(f.messages, payload)
		f.told = append(f.told, f.words.tell(f.t, payload))
		if f.told[len(f.told)-1] == last {
			return
		}
	}
}

// save writes messages to testdata, a quoted one a line, where -record asks for it.
func save(t *testing.T, major int, name string, messages [][]byte) {
	t.Helper()
	if !*record {
		return
	}
	var b strings.Builder
	for _, m := range messages {
		fmt.Fprintf(&b, "%+q\n", m)
	}
	dir := filepath.Join("testdata", fmt.Sprintf("postgresql-%d", major))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
