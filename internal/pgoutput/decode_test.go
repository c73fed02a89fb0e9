package pgoutput_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

// stream returns the messages that a slot gives for some SQL.
func stream(t *testing.T, options string, before string, sql ...string) [][]byte {
	t.Helper()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	c.Exec(t, db, before, `CREATE PUBLICATION p FOR ALL TABLES`)
	slot := "decode_" + db
	conn := c.Connect(t, db)
	testpg.Rows(t, conn, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	c.Exec(t, db, sql...)
	rows, err := conn.Query(context.Background(),
		`SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'publication_names', 'p', 'messages', 'true'`+options+`)`, slot)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out [][]byte
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// words tells a stream in a line a message.
func words(t *testing.T, messages [][]byte) []string {
	t.Helper()
	var d pgoutput.Decoder
	var out []string
	for _, b := range messages {
		m, err := d.Decode(b)
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		out = append(out, word(m))
	}
	return out
}

func word(m pgoutput.Message) string {
	switch m := m.(type) {
	case *pgoutput.Relation:
		var cols []string
		for _, c := range m.Columns {
			cols = append(cols, fmt.Sprintf("%s:%v", c.Name, c.Key))
		}
		return fmt.Sprintf("relation %s.%s %c %s", m.Namespace, m.Name, m.ReplicaIdentity, strings.Join(cols, ","))
	case *pgoutput.Insert:
		return "insert" + row(m.New)
	case *pgoutput.Update:
		return "update" + row(m.Old) + " ->" + row(m.New)
	case *pgoutput.Delete:
		return fmt.Sprintf("delete %c%s", m.OldKind, row(m.Old))
	case *pgoutput.Truncate:
		return fmt.Sprintf("truncate %d %v %v", len(m.RelationIDs), m.Cascade, m.RestartIdentity)
	case *pgoutput.LogicalMessage:
		return fmt.Sprintf("message %v %s=%s", m.Transactional, m.Prefix, m.Content)
	case *pgoutput.Type:
		return "type " + m.Namespace + "." + m.Name
	case *pgoutput.Prepared:
		return fmt.Sprintf("prepared %c %s", m.Action, m.GID)
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", m), "*pgoutput.")
}

func row(cols []pgoutput.Column) string {
	var b strings.Builder
	for _, c := range cols {
		switch c.Kind {
		case pgoutput.Null:
			b.WriteString(" null")
		case pgoutput.Unchanged:
			b.WriteString(" unchanged")
		default:
			fmt.Fprintf(&b, " %q", c.Data)
		}
	}
	return b.String()
}

func TestRealMessages(t *testing.T) {
	t.Parallel()
	got := words(t, stream(t, `, 'proto_version', '2'`, `
		CREATE TYPE mood AS ENUM ('a');
		CREATE TABLE t (id int PRIMARY KEY, "Name" text, big text, m mood);
		ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
		CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL`,
		`INSERT INTO t VALUES (1, '', repeat('x', 3000), NULL)`,
		`UPDATE t SET "Name" = 'é' WHERE id = 1`,
		`UPDATE t SET id = 2`,
		`DELETE FROM t`,
		`INSERT INTO f VALUES (1, NULL); UPDATE f SET b = 'x'; DELETE FROM f`,
		`TRUNCATE t, f RESTART IDENTITY CASCADE`,
		`SELECT pg_logical_emit_message(true, 'p', 'in'), pg_logical_emit_message(false, 'p', 'out')`))
	want := []string{
		"Begin", "type public.mood", "relation public.t d id:true,Name:false,big:false,m:false", `insert "1" "" "` + strings.Repeat("x", 3000) + `" null`, "Commit",
		"Begin", `update -> "1" "é" unchanged null`, "Commit",
		"Begin", `update "1" null null null -> "2" "é" unchanged null`, "Commit",
		"Begin", `delete K "2" null null null`, "Commit",
		"Begin", "relation public.f f a:true,b:true", `insert "1" null`, `update "1" null -> "1" "x"`, `delete O "1" "x"`, "Commit",
		"Begin", "type public.mood", "relation public.t d id:true,Name:false,big:false,m:false", "relation public.f f a:true,b:true", "truncate 2 true true", "Commit",
		"message false p=out", "Begin", "message true p=in", "Commit",
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("message %d of %d: got %.200q, want %.200q", i, len(got), got[min(i, len(got)):], want[min(i, len(want)):])
		}
	}
}

func TestStreamedTransaction(t *testing.T) {
	t.Parallel()
	got := words(t, stream(t, `, 'proto_version', '2', 'streaming', 'true'`, `CREATE TABLE t (i int)`, `
		SET logical_decoding_work_mem = '64kB';
		BEGIN; INSERT INTO t SELECT generate_series(1, 3000); SAVEPOINT s; INSERT INTO t SELECT generate_series(1, 3000); ROLLBACK TO s; INSERT INTO t VALUES (7); COMMIT`))
	count := map[string]int{}
	for _, w := range got {
		count[strings.Fields(w)[0]]++
	}
	if count["Begin"]+count["StreamStart"] == 0 || count["insert"] < 3001 {
		t.Errorf("messages: %v", count)
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range [][]byte{
		[]byte("B\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03"),
		[]byte("R\x00\x00\x00\x01public\x00t\x00d\x00\x01\x01id\x00\x00\x00\x00\x17\xff\xff\xff\xff"),
		[]byte("I\x00\x00\x00\x01N\x00\x02t\x00\x00\x00\x011n"),
		[]byte("U\x00\x00\x00\x01K\x00\x01t\x00\x00\x00\x011N\x00\x01u"),
		[]byte("T\x00\x00\x00\x01\x03\x00\x00\x00\x01"), []byte("M\x01\x00\x00\x00\x00\x00\x00\x00\x01p\x00\x00\x00\x00\x02hi"),
	} {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, streamed bool) {
		var d pgoutput.Decoder
		m, err := d.DecodeChange(b, streamed)
		if (m == nil) == (err == nil) {
			t.Fatalf("message %v and error %v", m, err)
		}
	})
}

func BenchmarkInsert(b *testing.B) {
	msg := []byte("I\x00\x00\x00\x01N\x00\x03t\x00\x00\x00\x0212nt\x00\x00\x00\x05hello")
	var d pgoutput.Decoder
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Decode(msg); err != nil {
			b.Fatal(err)
		}
	}
}
