package apply

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

// The primary's tables as these tests have them, with text values. In tableNet
// changes are held as net ones; tableUnique has a second unique index, which forbids
// that; tableFull sends whole old rows.
const (
	tableNet    = 6001
	tableUnique = 6002
	tableFull   = 6003
)

var gatherTables = []string{
	`CREATE TABLE net (a text, b text, v text, w text, PRIMARY KEY (a, b))`,
	`CREATE TABLE uniq (a text, b text, v text UNIQUE, w text, PRIMARY KEY (a, b))`,
	`CREATE TABLE whole (a text NOT NULL, b text NOT NULL, v text, w text); CREATE UNIQUE INDEX ON whole (a, b)`,
}

func msgTable(oid uint32) []byte {
	name, identity, key := map[uint32]string{tableNet: "net", tableUnique: "uniq", tableFull: "whole"}[oid], "d", byte(1)
	if oid == tableFull {
		identity, key = "f", 0
	}
	m := cat([]byte("R"), be32(oid), []byte("public\x00"+name+"\x00"+identity+"\x00\x04"))
	for i, c := range []string{"a", "b", "v", "w"} {
		flag := key
		if i > 1 && identity == "d" {
			flag = 0
		}
		m = cat(m, []byte{flag}, []byte(c+"\x00"), be32(25), be32(0xffffffff))
	}
	return m
}

// cell is a value: nil is NULL, same the mark of a value that was not sent.
type cell *string

var same = new(string)

func text(s string) cell { return &s }

func msgRow(cells []cell) []byte {
	m := []byte{0, byte(len(cells))}
	for _, c := range cells {
		switch c {
		case nil:
			m = append(m, 'n')
		case same:
			m = append(m, 'u')
		default:
			m = cat(m, []byte("t"), be32(uint32(len(*c))), []byte(*c))
		}
	}
	return m
}

// side is the primary: rows by key, and what it sends.
type side struct {
	oid  uint32
	rows map[[2]string][2]cell
	sent [][]byte
}

func (s *side) row(key [2]string) []cell {
	v := s.rows[key]
	return []cell{text(key[0]), text(key[1]), v[0], v[1]}
}

func (s *side) insert(key [2]string, v [2]cell) {
	s.rows[key] = v
	s.sent = append(s.sent, cat([]byte("I"), be32(s.oid), []byte("N"), msgRow(s.row(key))))
}

// old is the part of a message that tells the row before.
func (s *side) old(key [2]string, needed bool) []byte {
	switch {
	case s.oid == tableFull:
		return cat([]byte("O"), msgRow(s.row(key)))
	case needed:
		return cat([]byte("K"), msgRow([]cell{text(key[0]), text(key[1]), nil, nil}))
	}
	return nil
}

func (s *side) update(from, to [2]string, v [2]cell) {
	old, before := s.old(from, from != to), s.rows[from]
	sent := []cell{text(to[0]), text(to[1]), v[0], v[1]}
	for i := range v {
		if v[i] == same {
			v[i] = before[i]
		}
	}
	delete(s.rows, from)
	s.rows[to] = v
	s.sent = append(s.sent, cat([]byte("U"), be32(s.oid), old, []byte("N"), msgRow(sent)))
}

func (s *side) delete(key [2]string) {
	s.sent = append(s.sent, cat([]byte("D"), be32(s.oid), s.old(key, true)))
	delete(s.rows, key)
}

func (s *side) truncate() {
	s.sent = append(s.sent, cat([]byte("T"), be32(1), []byte{0}, be32(s.oid)))
	clear(s.rows)
}

func (s *side) String() string {
	var lines []string
	for _, key := range slices.SortedFunc(maps.Keys(s.rows), func(x, y [2]string) int { return slices.Compare(x[:], y[:]) }) {
		line := key[0] + "|" + key[1]
		for _, c := range s.rows[key] {
			if c == nil {
				line += "|null"
			} else {
				line += "|" + *c
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func (r *replica) table(conn *pgx.Conn, oid uint32) string {
	name := map[uint32]string{tableNet: "net", tableUnique: "uniq", tableFull: "whole"}[oid]
	return strings.Join(testpg.Rows(r.t, conn, `
		SELECT coalesce(string_agg(concat_ws('|', a, b, coalesce(v, 'null'), coalesce(w, 'null')), E'\n' ORDER BY a COLLATE "C", b COLLATE "C"), '') FROM `+name), "")
}

// TestNetChanges: what changes come to is what they do one by one, however they are
// held, merged and brought into another order.
func TestNetChanges(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), gatherTables...)
	conn := r.c.Connect(t, r.db)
	frames := make(chan frame.Frame, 10)
	a, _, ended := r.run(frames, func(frame.Ack) {})
	end := sync.OnceValue(ended)
	defer func() { _ = end() }()
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	at := uint64(1000)
	send := func(sides []*side) {
		var all [][]byte
		for i, s := range sides {
			all = append(all, msgBegin(at, uint32(at)))
			if i < 3 {
				all = append(all, msgTable(s.oid))
			}
			all = append(append(all, s.sent...), msgCommit(at))
			s.sent = nil
			at += 16
		}
		frames <- records(at, all...)
		want := at - 8
		testpg.Eventually(t, 20*time.Second, "the changes are applied", func() (bool, error) {
			select {
			case <-a.done:
				t.Fatalf("the applier ended: %v", end())
			default:
			}
			return r.passed(want), nil
		})
	}
	rapid.Check(t, func(rt *rapid.T) {
		sides := []*side{}
		for _, oid := range []uint32{tableNet, tableUnique, tableFull} {
			s := &side{oid: oid, rows: map[[2]string][2]cell{}}
			sides = append(sides, s)
		}
		// Two transactions for each table share a target transaction; the second one finds
		// rows that are there.
		for range 2 {
			var order []*side
			for range 2 {
				for _, s := range sides {
					one := *s
					one.play(rt)
					order = append(order, &one)
				}
			}
			send(order)
		}
		for _, s := range sides {
			if got, want := r.table(conn, s.oid), s.String(); got != want {
				rt.Fatalf("table %d is\n%s\nand should be\n%s", s.oid, got, want)
			}
			for _, key := range slices.Collect(maps.Keys(s.rows)) {
				s.delete(key)
			}
		}
		send(sides)
	})
}

// play makes random changes of a few keys, all of which the primary allows.
func (s *side) play(rt *rapid.T) {
	keys := rapid.SampledFrom([][2]string{{"1", "x"}, {"2", "x"}, {"10", "x"}, {"1x", ""}, {"", "1x"}, {"", ""}, {"ä", "|"}})
	values := rapid.SampledFrom([]cell{nil, text(""), text("p"), text("q"), text("r"), same})
	for range rapid.IntRange(0, 40).Draw(rt, "changes") {
		key, to := keys.Draw(rt, "key"), keys.Draw(rt, "to")
		v := [2]cell{values.Draw(rt, "v"), values.Draw(rt, "w")}
		_, there := s.rows[key]
		_, taken := s.rows[to]
		switch rapid.IntRange(0, 5).Draw(rt, "verb") {
		case 0:
			if there || v[0] == same || v[1] == same || s.clash(key, v[0]) {
				continue
			}
			s.insert(key, v)
		case 1, 2:
			if !there || s.clash(key, v[0]) {
				continue
			}
			s.update(key, key, v)
		case 3:
			if !there || taken || s.clash(key, v[0]) {
				continue
			}
			s.update(key, to, v)
		case 4:
			if !there {
				continue
			}
			s.delete(key)
		case 5:
			if rapid.IntRange(0, 9).Draw(rt, "truncate") == 0 {
				s.truncate()
			}
		}
	}
}

// clash tells whether another row has a value that must be unique.
func (s *side) clash(key [2]string, v cell) bool {
	if s.oid != tableUnique || v == nil || v == same {
		return false
	}
	for other, row := range s.rows {
		if other != key && row[0] != nil && *row[0] == *v {
			return true
		}
	}
	return false
}

// TestManyAlike: statements of many rows, of a few, and of the rest.
func TestManyAlike(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), gatherTables[0])
	frames := make(chan frame.Frame, 10)
	_, _, end := r.run(frames, func(frame.Ack) {})
	defer func() { _ = end() }()
	s := &side{oid: tableNet, rows: map[[2]string][2]cell{}}
	key := func(i int) [2]string { return [2]string{strconv.Itoa(i), "k"} }
	const n = 2*leastRows + 75
	for i := range n {
		s.insert(key(i), [2]cell{text("v"), text(strings.Repeat("w", 100))})
	}
	for i := range n {
		s.update(key(i), key(i), [2]cell{text(fmt.Sprint("changed ", i)), []cell{same, nil, text("w")}[i%3]})
		if i%2 == 0 {
			s.delete(key(n - 1 - i/2))
		}
		if _, there := s.rows[key(i+1)]; !there {
			break
		}
	}
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	frames <- records(1000, slices.Concat([][]byte{msgBegin(1000, 990), msgTable(tableNet)}, s.sent, [][]byte{msgCommit(1000)})...)
	testpg.Eventually(t, 20*time.Second, "the changes are applied", func() (bool, error) { return r.passed(1008), nil })
	if got, want := r.table(r.c.Connect(t, r.db), tableNet), s.String(); got != want {
		t.Errorf("the table has %d rows and should have %d, or other values", strings.Count(got, "\n")+1, len(s.rows))
	}
}

// TestCopied: many new rows arrive by COPY, whatever their values hold; one row that the
// replica refuses stops the applier, and names the table.
func TestCopied(t *testing.T) {
	special := []cell{text(""), nil, text(`\N`), text(`\.`), text("\\"), text("a\tb\nc\rd\\"), text("\b\f\v\x01"), text("ä\u2028\t漢"), text(`"',;`)}
	s := &side{oid: tableNet, rows: map[[2]string][2]cell{}}
	for i := range 3 * setRows * fewRows {
		n := len(special)
		s.insert([2]string{strconv.Itoa(i), `\.`}, [2]cell{special[i%n], special[i/n%n]})
	}
	transaction := records(1000, slices.Concat([][]byte{msgBegin(1000, 990), msgTable(tableNet)}, s.sent, [][]byte{msgCommit(1000)})...)
	t.Run("values", func(t *testing.T) {
		r := newReplica(t, testpg.Shared(t), gatherTables[0])
		frames := make(chan frame.Frame, 2)
		_, _, end := r.run(frames, func(frame.Ack) {})
		defer func() { _ = end() }()
		frames <- frame.Heartbeat{Snapshot: "900:900:"}
		frames <- transaction
		testpg.Eventually(t, 20*time.Second, "the changes are applied", func() (bool, error) { return r.passed(1008), nil })
		if got, want := r.table(r.c.Connect(t, r.db), tableNet), s.String(); got != want {
			t.Errorf("the table has\n%s\nand should have\n%s", got, want)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r := newReplica(t, testpg.Shared(t), gatherTables[0])
		r.c.Exec(t, r.db, `INSERT INTO net VALUES ('500', '\.')`)
		frames := make(chan frame.Frame, 2)
		a, _, end := r.run(frames, func(frame.Ack) {})
		frames <- frame.Heartbeat{Snapshot: "900:900:"}
		frames <- transaction
		testpg.Await(t, "the applier ends", a.done)
		if err := end(); err == nil || !strings.Contains(err.Error(), `INSERT on table "public"."net"`) {
			t.Errorf("the applier ended with %v", err)
		}
		if rows := testpg.Rows(t, r.c.Connect(t, r.db), `SELECT count(*) FROM net`); rows[0] != "1" {
			t.Errorf("%s rows are left of a transaction that failed", rows)
		}
	})
}

// TestMissingRow: a change that meets no row stops the applier before anything of its
// transaction is committed, alone or among many. COMMIT had been sent before the
// answer was read.
func TestMissingRow(t *testing.T) {
	for _, n := range []int{1, 20} {
		t.Run(fmt.Sprint(n, " changes"), func(t *testing.T) {
			r := newReplica(t, testpg.Shared(t), gatherTables[0])
			s := &side{oid: tableNet, rows: map[[2]string][2]cell{}}
			s.insert([2]string{"new", "k"}, [2]cell{})
			for i := range n {
				key := [2]string{strconv.Itoa(i), "k"}
				s.rows[key] = [2]cell{}
				s.delete(key)
				if i < n-1 {
					r.c.Exec(t, r.db, fmt.Sprintf(`INSERT INTO net VALUES ('%d', 'k')`, i))
				}
			}
			frames := make(chan frame.Frame, 10)
			a, before, end := r.run(frames, func(frame.Ack) {})
			frames <- frame.Heartbeat{Snapshot: "900:900:"}
			frames <- records(1000, slices.Concat([][]byte{msgBegin(1000, 990), msgTable(tableNet)}, s.sent, [][]byte{msgCommit(1000)})...)
			testpg.Await(t, "the applier ends", a.done)
			if err := end(); err == nil || !strings.Contains(err.Error(), "row-missing") && !strings.Contains(err.Error(), "the replica differs") {
				t.Errorf("the applier ended with %v", err)
			}
			if rows := testpg.Rows(t, r.c.Connect(t, r.db), `SELECT count(*) FROM net`); rows[0] != fmt.Sprint(n-1) {
				t.Errorf("%s rows are left of a transaction that failed", rows)
			}
			_, after, end := r.run(make(chan frame.Frame), func(frame.Ack) {})
			defer func() { _ = end() }()
			if after != before {
				t.Errorf("the position went from %s to %s with a transaction that failed", before, after)
			}
		})
	}
}

const tableBag = 6004

// TestBagOfRows: a table without a key holds what the primary's does, however often each
// row is in it, and whether it is read or has an index of Hawser's.
func TestBagOfRows(t *testing.T) {
	t.Run("by passes", func(t *testing.T) { bagOfRows(t, false, ``, 0) })
	t.Run("by an index", func(t *testing.T) { bagOfRows(t, true, ``, 1) })
	t.Run("beside an index of few values", func(t *testing.T) {
		bagOfRows(t, true, `; CREATE INDEX ON bag (a); INSERT INTO bag SELECT FROM generate_series(1, 1000); ANALYZE bag; TRUNCATE bag`, 1)
	})
}

func bagOfRows(t *testing.T, impatient bool, also string, indexes int) {
	r := newReplica(t, testpg.Shared(t), `CREATE DOMAIN amount AS float8 CHECK (VALUE <> 7);
		CREATE TABLE bag (gone int, d text[], g int GENERATED ALWAYS AS (1) STORED, c amount, b char(5), a int, e json, f numeric); ALTER TABLE bag DROP gone`+also)
	r.odd = func(a *Applier) {
		if impatient {
			a.patience = -oddPatience
		}
	}
	conn := r.c.Connect(t, r.db)
	frames := make(chan frame.Frame, 10)
	a, _, end := r.run(frames, func(frame.Ack) {})
	defer func() { _ = end() }()
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	table := cat([]byte("R"), be32(tableBag), []byte("public\x00bag\x00f\x00\x06"))
	for i, c := range []string{"a", "b", "c", "d", "e", "f"} {
		table = cat(table, []byte{0}, []byte(c+"\x00"), be32([]uint32{23, 1042, 701, 1009, 114, 1700}[i]), be32(0xffffffff))
	}
	at, rows := uint64(1000), [][]cell{}
	play := func(changes [][]byte) {
		frames <- records(at, slices.Concat([][]byte{msgBegin(at, uint32(at)), table}, changes, [][]byte{msgCommit(at)})...)
		at += 16
	}
	value := func(rt *rapid.T) []cell {
		return []cell{
			rapid.SampledFrom([]cell{nil, text("1"), text("2")}).Draw(rt, "a"), rapid.SampledFrom([]cell{nil, text("     "), text("x    ")}).Draw(rt, "b"),
			rapid.SampledFrom([]cell{nil, text("0"), text("-0"), text("NaN")}).Draw(rt, "c"), rapid.SampledFrom([]cell{nil, text("{}"), text(`{"",NULL}`), text("{\"a\\\"b\",\"c\\\\d\",\",\",\"(\n)\"}")}).Draw(rt, "d"),
			rapid.SampledFrom([]cell{nil, text("1"), text(" 1")}).Draw(rt, "e"), rapid.SampledFrom([]cell{nil, text("1.0"), text("1.00")}).Draw(rt, "f"),
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 3).Draw(rt, "transactions") {
			var sent [][]byte
			for range rapid.IntRange(0, 40).Draw(rt, "changes") {
				verb := rapid.IntRange(0, 2).Draw(rt, "verb")
				if verb == 0 || len(rows) == 0 {
					rows = append(rows, value(rt))
					sent = append(sent, cat([]byte("I"), be32(tableBag), []byte("N"), msgRow(rows[len(rows)-1])))
					continue
				}
				n := rapid.IntRange(0, len(rows)-1).Draw(rt, "row")
				old := cat([]byte("O"), msgRow(rows[n]))
				if verb == 1 {
					sent = append(sent, cat([]byte("D"), be32(tableBag), old))
					rows = slices.Delete(rows, n, n+1)
					continue
				}
				to := value(rt)
				news := slices.Clone(to)
				if rapid.Bool().Draw(rt, "toasted") && rows[n][3] != nil {
					to[3], news[3] = rows[n][3], same
				}
				rows[n] = to
				sent = append(sent, cat([]byte("U"), be32(tableBag), old, []byte("N"), msgRow(news)))
			}
			play(sent)
		}
		want := at - 8
		testpg.Eventually(t, 20*time.Second, "the changes are applied", func() (bool, error) {
			select {
			case <-a.done:
				return false, end()
			default:
				return r.passed(want), nil
			}
		})
		var lines []string
		for _, row := range rows {
			line := ""
			for _, c := range row {
				if c == nil {
					line += "null|"
				} else {
					line += *c + "|"
				}
			}
			lines = append(lines, line)
		}
		slices.Sort(lines)
		got := testpg.Rows(t, conn, `SELECT concat(coalesce(a::text, 'null'), '|', coalesce(rpad(b::text, 5), 'null'), '|', coalesce(c::text, 'null'), '|', coalesce(d::text, 'null'), '|',
			coalesce(e::text, 'null'), '|', coalesce(f::text, 'null'), '|') FROM bag ORDER BY 1`)
		slices.Sort(got)
		if !slices.Equal(got, lines) {
			rt.Fatalf("the table is\n%s\nand should be\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
		}
	})
	if n := testpg.Rows(t, conn, `SELECT count(*) FROM pg_class WHERE relname LIKE 'hawser|_row|_%' ESCAPE '|' AND relkind = 'i'`); n[0] != strconv.Itoa(indexes) {
		t.Errorf("the table has %s indexes of Hawser's instead of %d", n[0], indexes)
	}
}

// TestRowIndexDropped: an index that somebody drops is done without.
func TestRowIndexDropped(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), `CREATE TABLE bag (a int); INSERT INTO bag SELECT i % 10 FROM generate_series(1, 60) i`)
	r.odd = func(a *Applier) { a.patience = -oddPatience }
	frames := make(chan frame.Frame, 10)
	a, _, end := r.run(frames, func(frame.Ack) {})
	defer func() { _ = end() }()
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	conn := r.c.Connect(t, r.db)
	index := func() []string {
		return testpg.Rows(t, conn, `SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'bag'::regclass`)
	}
	remove := func(at uint64, n int) {
		changes := [][]byte{msgBegin(at, uint32(at)), cat([]byte("R"), be32(tableBag), []byte("public\x00bag\x00f\x00\x01\x00a\x00"), be32(23), be32(0xffffffff))}
		for i := range n {
			changes = append(changes, cat([]byte("D"), be32(tableBag), []byte("O"), msgRow([]cell{text(strconv.Itoa(i))})))
		}
		frames <- records(at, append(changes, msgCommit(at))...)
		testpg.Eventually(t, 10*time.Second, "the rows are deleted", func() (bool, error) {
			select {
			case <-a.done:
				return false, end()
			default:
				return r.passed(at + 8), nil
			}
		})
	}
	remove(1000, 3)
	remove(1100, 1)
	if len(index()) != 1 {
		t.Fatalf("the table has the indexes %v", index())
	}
	r.c.Exec(t, r.db, `DROP INDEX `+index()[0])
	remove(1200, 4)
	remove(1300, 1)
	if got := testpg.Rows(t, conn, `SELECT count(*) FROM bag`); got[0] != "51" {
		t.Errorf("%s rows are left", got)
	}
}

// TestMissingRowOfBag: one of many rows that are not there stops the applier.
func TestMissingRowOfBag(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), `CREATE TABLE bag (a int, b char(5), c float8, d text[]); INSERT INTO bag SELECT i % 10 FROM generate_series(1, 30) i`)
	changes := [][]byte{msgBegin(1000, 990), cat([]byte("R"), be32(tableBag), []byte("public\x00bag\x00f\x00\x01\x00a\x00"), be32(23), be32(0xffffffff))}
	for i := range 31 { // one more than there are
		changes = append(changes, cat([]byte("D"), be32(tableBag), []byte("O"), msgRow([]cell{text(strconv.Itoa(i % 10))})))
	}
	frames := make(chan frame.Frame, 10)
	a, before, end := r.run(frames, func(frame.Ack) {})
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	frames <- records(1000, append(changes, msgCommit(1000))...)
	testpg.Await(t, "the applier ends", a.done)
	if err := end(); err == nil || !strings.Contains(err.Error(), "row-missing") && !strings.Contains(err.Error(), "the replica differs") {
		t.Errorf("the applier ended with %v", err)
	}
	_, after, end := r.run(make(chan frame.Frame), func(frame.Ack) {})
	defer func() { _ = end() }()
	if rows := testpg.Rows(t, r.c.Connect(t, r.db), `SELECT count(*) FROM bag`); rows[0] != "30" || after != before {
		t.Errorf("%s rows are left, and the position went from %s to %s", rows, before, after)
	}
}
