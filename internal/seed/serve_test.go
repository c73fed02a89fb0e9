package seed

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// ask sends one request on a stream of its own and returns what comes back.
func (p *pair) ask(r frame.Frame) ([]frame.Frame, error) {
	p.t.Helper()
	s, err := p.open(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	defer s.Close()
	if err := s.Send(r); err != nil {
		return nil, err
	}
	var out []frame.Frame
	for {
		f, err := s.Recv()
		if err != nil {
			return out, err
		}
		out = append(out, f)
		switch f := f.(type) {
		case frame.SeedEnd:
			return out, nil
		case frame.SeedStart:
			if gone(f) || locked(f) || f.Export != "" {
				return out, nil
			}
		}
	}
}

// A secondary sees the tables that the link carries, and nothing else: no passwords,
// nothing of other extensions, not Hawser's own.
func TestServesCarriedTablesAlone(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE UNLOGGED TABLE secret (id int); CREATE VIEW v AS SELECT 1; CREATE SCHEMA hawser; CREATE TABLE hawser.own (id int); CREATE INDEX i ON secret (id)`)
	conn := p.from.Connect(t, p.src)
	for _, name := range []string{"pg_catalog.pg_authid", "secret", "v", "hawser.own", "i", "information_schema.sql_features"} {
		var oid uint32
		if err := conn.QueryRow(t.Context(), `SELECT $1::regclass::oid`, name).Scan(&oid); err != nil {
			t.Fatal(err)
		}
		got, err := p.ask(frame.SeedRequest{OID: oid, EndPage: endOfTable})
		if err != nil || len(got) != 1 || !gone(got[0].(frame.SeedStart)) || got[0].(frame.SeedStart).LSN == 0 {
			t.Errorf("%s: %v %v", name, got, err)
		}
		var export string
		holder := p.from.Connect(t, p.src)
		for _, sql := range []string{`BEGIN ISOLATION LEVEL REPEATABLE READ`} {
			if _, err := holder.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		if err := holder.QueryRow(t.Context(), `SELECT pg_export_snapshot()`).Scan(&export); err != nil {
			t.Fatal(err)
		}
		if got, err := p.ask(frame.SeedRequest{OID: oid, Export: export, EndPage: endOfTable}); err == nil || len(got) > 0 {
			t.Errorf("a part of %s: %v", name, got)
		}
	}
}

func TestServeRefusesOtherFrames(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE t (id int)`)
	for _, f := range []frame.Frame{
		frame.SeedEnd{}, frame.Start{}, frame.SeedRequest{OID: 1, Export: "x'; DROP TABLE t; --"}, frame.SeedRequest{OID: 1, Export: `\`},
	} {
		if got, err := p.ask(f); err == nil || errors.Is(err, io.EOF) || len(got) > 0 {
			t.Errorf("%#v: %v %v", f, got, err)
		}
	}
	_, err := p.ask(frame.SeedRequest{OID: 1, Export: "00000003-00000001-1"})
	if found, ok := problem.As(err); !ok || !found.Retryable {
		t.Errorf("a snapshot that ended: %v", err)
	}
}

// What the role may not read, or not all of, is named with its remedy: by Check
// before, and by the copy itself.
func TestRowsThatCantBeRead(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE plain (id int); CREATE TABLE denied (id int); CREATE TABLE filtered (id int)`)
	role := p.src + "_reader"
	p.from.Exec(t, "postgres", `CREATE ROLE `+role)
	t.Cleanup(func() {
		p.from.Exec(t, p.src, `DROP OWNED BY `+role)
		p.from.Exec(t, "postgres", `DROP ROLE `+role)
	})
	p.from.Exec(t, p.src, `INSERT INTO denied VALUES (1); INSERT INTO filtered VALUES (1), (2)`,
		`GRANT SELECT ON plain, filtered TO `+role,
		`ALTER TABLE filtered ENABLE ROW LEVEL SECURITY`, `CREATE POLICY one ON filtered USING (id = 1)`)
	p.role = role
	conn, err := p.connect(p.from, p.src, role)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	findings, err := Check(t.Context(), conn, filter.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"table-unreadable": `GRANT pg_read_all_data TO "` + role + `";`,
		"rows-hidden":      `ALTER ROLE "` + role + `" BYPASSRLS;`,
	}
	for _, f := range findings.Blocking() {
		if want[f.Code] != f.Remedy {
			t.Errorf("finding %s: remedy %q", f.Code, f.Remedy)
		}
		delete(want, f.Code)
		oid := testpg.Rows(t, p.from.Connect(t, p.src), `SELECT $1::regclass::oid::bigint`, strings.TrimPrefix(f.Object, "table "))[0]
		_, err := p.ask(frame.SeedRequest{OID: number(t, oid), EndPage: endOfTable})
		if got, ok := problem.As(err); !ok || got.Code != f.Code || got.Object != f.Object || got.Retryable {
			t.Errorf("the copy of %s said %v", f.Object, err)
		}
		p.from.Exec(t, p.src, f.Remedy)
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
	if findings, err = Check(t.Context(), conn, filter.Filter{}); err != nil || len(findings.Blocking()) > 0 {
		t.Errorf("after the remedies: %v %v", findings, err)
	}
	_ = conn.Close(t.Context())
	p.list()
	p.mustRun()
	p.same("plain", "denied", "filtered")
	p.from.Exec(t, "postgres", `ALTER ROLE `+role+` NOBYPASSRLS`)
}

func number(t *testing.T, s string) (n uint32) {
	t.Helper()
	for _, c := range s {
		n = n*10 + uint32(c-'0')
	}
	return n
}

func TestCheck(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE "Held" (id int); CREATE TABLE rest (id int); CREATE TABLE twopc (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO rest SELECT generate_series(1, 10000)`)
	holder := p.from.Connect(t, p.src)
	if _, err := holder.Exec(t.Context(), `BEGIN; LOCK TABLE "Held" IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	p.from.Exec(t, p.src, `BEGIN; LOCK TABLE twopc IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION '`+p.src+`'`)
	defer p.from.Exec(t, p.src, `ROLLBACK PREPARED '`+p.src+`'`)
	findings, err := Check(t.Context(), p.from.Connect(t, p.src), filter.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, f := range findings {
		text = append(text, string(f.Severity)+" "+f.Code+" "+f.Object+": "+f.Cause+" / "+f.Remedy)
	}
	all := strings.Join(text, "\n")
	for _, want := range []string{
		`warning table-locked table "public"."Held": backend `, `SELECT pg_terminate_backend(`,
		`warning table-locked table "public"."twopc": a prepared transaction`, `note copy-size the copy: 3 tables, `,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("want %q in\n%s", want, all)
		}
	}
}

// keeper is a stream that keeps what was sent.
type keeper struct {
	Stream
	sent  [][]byte
	limit int
}

func (k *keeper) Send(f frame.Frame) error {
	if k.limit--; k.limit == 0 {
		return io.ErrClosedPipe
	}
	k.sent = append(k.sent, bytes.Clone(f.(frame.SeedChunk).Data))
	return nil
}

func TestChunks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		k := &keeper{}
		c := &chunks{s: k}
		var want []byte
		for i, n := range rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 3*chunkBytes), rapid.Just(chunkBytes)), 0, 12).Draw(rt, "rows") {
			row := bytes.Repeat([]byte{byte('a' + i)}, n)
			want = append(want, row...)
			if m, err := c.Write(row); m != n || err != nil {
				rt.Fatal(m, err)
			}
		}
		if err := c.flush(); err != nil {
			rt.Fatal(err)
		}
		for _, s := range k.sent {
			if len(s) == 0 || len(s) > chunkBytes {
				rt.Fatalf("a chunk of %d bytes", len(s))
			}
		}
		if !bytes.Equal(bytes.Join(k.sent, nil), want) {
			rt.Fatal("the bytes differ")
		}
	})
	c := &chunks{s: &keeper{limit: 1}}
	if _, err := c.Write(make([]byte, 2*chunkBytes)); !errors.Is(err, io.ErrClosedPipe) || c.err == nil {
		t.Errorf("a broken stream: %v", err)
	}
}

func TestChunkPages(t *testing.T) {
	t.Parallel()
	z := sizes{split: 64 << 20, part: 32 << 20}
	for _, c := range []struct {
		pages uint32
		bytes int64
		want  uint32
	}{
		{0, 0, 1}, {1, 8192, 1}, {8192, 64 << 20, 8192}, // whole
		{12800, 100 << 20, 3200},    // four parts
		{10, 320 << 20, 1},          // TOAST-heavy: a part a page
		{4, 1 << 40, 1},             // more parts than pages
		{1<<32 - 2, 32 << 40, 4096}, // the largest table
		{1 << 20, 8<<30 + 1, 4081},  // not a multiple
	} {
		if got := z.chunkPages(c.pages, c.bytes); got != c.want {
			t.Errorf("%d pages, %d bytes: %d, want %d", c.pages, c.bytes, got, c.want)
		}
	}
}

// A part is read by its pages, not by a scan of the table.
func TestPartsReadTheirPagesAlone(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE t (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO t SELECT generate_series(1, 100000)`, `ALTER DATABASE `+p.src+` SET enable_tidscan = off`)
	conn, err := session(t.Context(), p.connect(p.from, p.src, ""), "")
	if err != nil {
		t.Fatal(err)
	}
	defer closeSession(conn)
	for _, r := range []frame.SeedRequest{{FirstPage: 0, EndPage: 100}, {FirstPage: 100, EndPage: 200}, {FirstPage: 400, EndPage: endOfTable}} {
		sql := copyPages("public.t", []string{"id"}, r)
		sql = strings.TrimSuffix(strings.TrimPrefix(sql, "COPY ("), ") TO STDOUT")
		if plan := testpg.Rows(t, conn, "EXPLAIN "+sql); !strings.Contains(plan[0], "Tid Range Scan") {
			t.Errorf("%s: %q", sql, plan)
		}
	}
}

// A table renamed between the look-up of its name and its lock is found under its
// new name, and another that took the old one is not taken for it.
func TestRenamedBeforeTheLock(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.t (id int); CREATE TABLE b.t (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO a.t VALUES (1); INSERT INTO b.t VALUES (2)`)
	conn := p.from.Connect(t, p.src)
	v := server{conn: conn, cut: defaultSizes}
	ctx := context.Background()
	oid := number(t, testpg.Rows(t, conn, `SELECT 'a.t'::regclass::oid::bigint`)[0])
	start, err := v.name(ctx, oid)
	if err != nil {
		t.Fatal(err)
	}
	p.from.Exec(t, p.src, `ALTER SCHEMA a RENAME TO x; ALTER SCHEMA b RENAME TO a; ALTER SCHEMA x RENAME TO b`)
	if err := v.lock(ctx, start); err != nil {
		t.Fatal(err)
	}
	got, held, err := v.describe(ctx, start)
	if err != nil || held || postgres.QuoteIdent(got.Schema, got.Name) != `"b"."t"` {
		t.Errorf("another table's lock is taken for this one's: %v %v %v", got, held, err)
	}
	if err := v.end(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err = v.snapshot(ctx, oid); err != nil || got.Schema != "b" {
		t.Errorf("%v %v", got, err)
	}
}
