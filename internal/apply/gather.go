package apply

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"github.com/hawser/hawser/internal/pgoutput"
)

// Changes of one table are held until there are enough of them, and written by
// statements of many rows: these cost the server a half to a third of one statement
// for each row.
//
// Held changes are written before anything but a change is: before COMMIT above all.
// The changes of different tables may change places within the target transaction,
// and so may those of one table where nobody can tell: its readers see only the
// whole, and the session fires neither triggers nor foreign keys. What could tell is
//
//   - a CHECK constraint, or a domain's, which may call a function that looks at any
//     table: where there is one, nothing changes places;
//   - a unique index beside the key's, or an exclusion constraint: a value may pass
//     from one row to another within a transaction. Only INSERTs that follow one
//     another are held then.
//
// Every other table with a key is held as net changes: of each key what the changes
// come to, deleted first, then updated, then inserted, in the order of the keys,
// which finds neighbouring rows on the same pages.
//
// The keys are compared as text. Two texts of one key (1.0 and 1.00) are no trouble:
// PostgreSQL sends an UPDATE from one to the other with both, and such an UPDATE is
// not held.

const (
	// setRows are written by one statement, or a few of the smaller number.
	setRows, fewRows = 64, 8
	// setParams bounds a statement's parameters: wide tables get fewer rows.
	setParams = 1024
	// copyRows are held, where they are INSERTs alone, before they are written by COPY:
	// it costs the server less for a row, and more to begin. Fewer than leastCopy are
	// not worth one.
	copyRows, leastCopy = leastRows, 4
	// heldBytes bounds what is held of all tables, unless the link has less. A row above
	// wideRow is not held. A row and each of its values take a few bytes beside their own.
	heldBytes  = 8 << 20
	wideRow    = 256 << 10
	rowBytes   = 96
	valueBytes = 24
)

type gather struct {
	rel     *relation
	prepare func(r *relation, sql string, oids []uint32, verb string) *statement

	place int // among all that hold rows
	rows  []heldRow
	vals  values // of all rows, each with all columns
	bytes int
	byKey map[string]int // the row of each key; nil while there are INSERTs alone

	writable []int  // columns that an INSERT writes
	copies   bool   // many rows are written by COPY
	key      []byte // for reuse
}

// heldRow is the net change of one row.
type heldRow struct {
	verb  verb
	first int    // its first value
	sent  uint64 // of an UPDATE: the columns with a value
	order uint64 // of the key, for sort
	like  int    // of a loose row that came: the one before it that is like it, counted from 1
}

type verb byte

const (
	nothing verb = iota // inserted and deleted again
	deleted
	updated
	inserted
)

// setKey names a statement of several rows. One of INSERT for no number of them is COPY,
// one of DELETE takes an array.
type setKey struct {
	verb verb
	sent uint64
	rows int
}

// held returns the gather of r's table.
func (a *Applier) held(r *relation) *gather {
	if r.target.held == nil {
		g := &gather{rel: r, prepare: a.statement, copies: true}
		for i, c := range r.target.columns {
			if !c.generated {
				g.writable = append(g.writable, i)
			}
			g.copies = g.copies && c.lenient == "" // COPY would have its domain check old values
		}
		g.copies = g.copies && len(g.writable) > 0
		r.target.held = g
	}
	return r.target.held
}

// wide tells whether a row is too large to be copied and kept.
func wide(row []pgoutput.Column) bool {
	n := 0
	for _, c := range row {
		n += len(c.Data)
	}
	return n > wideRow
}

// add holds a change that is the first of its key.
func (g *gather) add(v verb, row []pgoutput.Column, sent uint64) {
	g.rows = append(g.rows, heldRow{verb: v, first: g.vals.len(), sent: sent})
	g.bytes += rowBytes + valueBytes*len(row)
	for i, c := range row {
		if v == deleted && !g.rel.target.loose && !slices.Contains(g.rel.target.key, i) {
			c = pgoutput.Column{}
		}
		g.vals.add(g.copy(c))
	}
}

// copy keeps a value: the stream's own bytes are valid for a moment only.
func (g *gather) copy(c pgoutput.Column) place {
	if c.Kind != pgoutput.Text {
		return place{size: -1}
	}
	g.bytes += len(c.Data)
	return g.vals.keep(c.Data)
}

// find looks a row's key up among the held changes.
func (g *gather) find(row []pgoutput.Column) (at int, ok bool) {
	if g.byKey == nil {
		g.byKey = make(map[string]int, len(g.rows))
		for i, h := range g.rows {
			key := string(g.keyOf(func(c int) []byte { return g.vals.at(h.first + c) }))
			if before, alike := g.byKey[key]; alike {
				g.rows[i].like = before + 1
			}
			g.byKey[key] = i
		}
	}
	at, ok = g.byKey[string(g.keyOf(func(c int) []byte {
		if row[c].Kind == pgoutput.Text {
			return nonNil(row[c].Data)
		}
		return nil
	}))]
	return at, ok
}

// identity are the columns by which a row is found.
func (g *gather) identity() []int {
	if g.rel.target.loose {
		return g.writable
	}
	return g.rel.target.key
}

// keyOf is a key as one string of bytes.
func (g *gather) keyOf(cell func(column int) []byte) []byte {
	g.key = g.key[:0]
	for _, i := range g.identity() {
		v := cell(i)
		if v == nil { // NULL
			g.key = binary.AppendUvarint(g.key, 0)
			continue
		}
		g.key = binary.AppendUvarint(g.key, uint64(len(v))+1)
		g.key = append(g.key, v...)
	}
	return g.key
}

// insert takes a row. False: it has to be written after what is held.
func (g *gather) insert(row []pgoutput.Column) bool {
	if g.byKey == nil {
		g.add(inserted, row, 0)
		return true
	}
	at, ok := g.find(row)
	if ok && g.rows[at].verb != nothing && !g.rel.target.loose {
		return false
	}
	g.byKey[string(g.key)] = len(g.rows)
	g.add(inserted, row, 0)
	if ok && g.rel.target.loose {
		g.rows[len(g.rows)-1].like = at + 1
	}
	return true
}

// update takes a change that leaves the key as it is.
func (g *gather) update(row []pgoutput.Column, sent uint64) bool {
	at, ok := g.find(row)
	if !ok {
		g.byKey[string(g.key)] = len(g.rows)
		g.add(updated, row, sent)
		return true
	}
	h := &g.rows[at]
	if h.verb != updated && h.verb != inserted {
		return false
	}
	for i, c := range row {
		if c.Kind != pgoutput.Unchanged {
			g.vals.places[h.first+i] = g.copy(c)
		}
	}
	h.sent |= sent
	return true
}

// delete takes the old row, of which the key alone counts.
func (g *gather) delete(old []pgoutput.Column) bool {
	at, ok := g.find(old)
	if !ok {
		g.byKey[string(g.key)] = len(g.rows)
		g.add(deleted, old, 0)
		return true
	}
	switch h := &g.rows[at]; h.verb {
	case inserted:
		h.verb = nothing
	case updated:
		h.verb = deleted
	default:
		return false
	}
	return true
}

// hold takes a change in, and writes what is held where it is much.
func (w *writer) hold(g *gather, take func() bool) error {
	if err := w.order(g.rel.target, true); err != nil {
		return err
	}
	rows, size := len(g.rows), g.bytes
	if !take() {
		if err := w.drop(g); err != nil {
			return err
		}
		rows, size = 0, 0
		take() // nothing is held that it could contradict
	}
	if rows == 0 {
		g.place = len(w.gathered)
		w.gathered = append(w.gathered, g)
	}
	w.held += g.bytes - size
	switch {
	case w.held >= w.most:
		return w.settle()
	case g.byKey == nil && w.turn == nil && len(g.rows) >= g.run(), len(g.rows) >= w.rows && !g.rel.target.loose:
		return w.drop(g)
	}
	return nil
}

// order writes what has to come before a change of table t: its own held changes,
// unless the change joins them, and with CHECK constraints all. It comes before the
// change's statement is looked up, since it may make one, for which others are
// forgotten.
func (w *writer) order(t *target, joins bool) error {
	if w.late != nil {
		return w.late
	}
	// A table with CHECK constraints is held alone, so one look is enough.
	if len(w.gathered) > 0 {
		if first := w.gathered[0].rel.target; first != t && (t.checks || first.checks) {
			return w.settle()
		}
	}
	if joins || t.held == nil || len(t.held.rows) == 0 {
		return nil
	}
	return w.drop(t.held)
}

// settle writes all changes that are held.
func (w *writer) settle() error {
	for len(w.gathered) > 0 && w.late == nil {
		if err := w.drop(w.gathered[len(w.gathered)-1]); err != nil {
			return err
		}
	}
	return w.late
}

// release writes a table's changes before its statements are forgotten.
func (w *writer) release(t *target) {
	if t.held == nil || len(t.held.rows) == 0 {
		return
	}
	if err := w.drop(t.held); err != nil && w.late == nil {
		w.late = err
	}
}

// drop writes the changes of one table and empties its gather.
func (w *writer) drop(g *gather) error {
	// In no time, however many there are: the last one takes its place.
	last := len(w.gathered) - 1
	w.gathered[g.place], w.gathered[last].place = w.gathered[last], g.place
	w.gathered[last], w.gathered = nil, w.gathered[:last]
	w.held -= g.bytes
	rows, vals, mixed := g.rows, g.vals, g.byKey != nil
	// Emptied first: where a statement is made, others may be forgotten, and what is
	// held is written before that.
	g.rows, g.vals, g.byKey, g.bytes = nil, values{}, nil, 0
	if mixed {
		g.sort(rows, vals)
	}
	for todo := rows; len(todo) > 0; {
		n := 1
		for n < len(todo) && todo[n].verb == todo[0].verb && todo[n].sent == todo[0].sent {
			n++
		}
		if err := w.writeAlike(g, todo[:n], vals); err != nil {
			return err
		}
		todo = todo[n:]
	}
	g.rows, g.vals = rows[:0], vals.emptied() // the server's copy is made
	return nil
}

// sort brings net changes into the order in which they are written. Rows that compare
// the same stay in the order in which they came.
func (g *gather) sort(rows []heldRow, vals values) {
	key := g.rel.target.key
	if g.rel.target.loose {
		slices.SortStableFunc(rows, func(x, y heldRow) int { return cmp.Compare(x.verb, y.verb) })
		return
	}
	for i := range rows {
		if h := &rows[i]; h.verb != inserted {
			h.order = orderOf(vals.at(h.first + key[0]))
		}
	}
	slices.SortFunc(rows, func(x, y heldRow) int {
		if c := cmp.Or(cmp.Compare(x.verb, y.verb), cmp.Compare(x.sent, y.sent), cmp.Compare(x.order, y.order)); c != 0 {
			return c
		}
		if x.verb != inserted {
			for _, i := range key { // numbers in their order, as near as text comes to that
				a, b := vals.at(x.first+i), vals.at(y.first+i)
				if c := cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare(a, b)); c != 0 {
					return c
				}
			}
		}
		return cmp.Compare(x.first, y.first)
	})
}

// orderOf is what decides most comparisons of a value: its length and its first bytes.
func orderOf(v []byte) uint64 {
	var first [8]byte
	copy(first[1:], v)
	first[0] = byte(min(len(v), 255))
	return binary.BigEndian.Uint64(first[:])
}

// writeAlike writes changes of one kind.
func (w *writer) writeAlike(g *gather, rows []heldRow, vals values) error {
	kind := setKey{verb: rows[0].verb, sent: rows[0].sent}
	if kind.verb == nothing {
		return nil
	}
	if kind.verb == deleted && g.rel.target.loose {
		return w.takeAway(g, rows, vals)
	}
	columns, most := g.parameters(kind), g.most(kind)
	what := &doing{kind.verb.String(), g.rel}
	if kind.verb == inserted && g.copies && len(rows) >= leastCopy {
		return w.writeCopy(g, rows, vals, what)
	}
	for len(rows) > 0 {
		switch {
		case len(rows) >= most:
			kind.rows = most
		case len(rows) >= fewRows && fewRows < most:
			kind.rows = fewRows
		default:
			kind.rows = 1
		}
		s := g.statement(kind) // first: to make one may take w.args
		w.args = w.args[:0]
		for _, h := range rows[:kind.rows] {
			for _, i := range columns {
				w.args = append(w.args, vals.at(h.first+i))
			}
		}
		if err := w.send(s, w.args, expectation{affected: int64(kind.rows), what: what}); err != nil {
			return err
		}
		rows = rows[kind.rows:]
	}
	clear(w.args)
	return nil
}

// writeCopy writes new rows by COPY, some at a time.
func (w *writer) writeCopy(g *gather, rows []heldRow, vals values, what *doing) error {
	s := g.statement(setKey{verb: inserted})
	for len(rows) > 0 {
		n := 0
		for w.lines = w.lines[:0]; n < len(rows) && len(w.lines) < groupBytes; n++ {
			w.lines = g.appendLine(w.lines, vals, rows[n].first)
		}
		if err := w.sendCopy(s, w.lines, expectation{affected: int64(n), what: what}); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// appendLine appends a row in COPY's text format.
func (g *gather) appendLine(lines []byte, vals values, first int) []byte {
	for n, i := range g.writable {
		if n > 0 {
			lines = append(lines, '\t')
		}
		lines = appendCopied(lines, vals.at(first+i))
	}
	return append(lines, '\n')
}

// appendCopied appends a value, nil for NULL. In UTF-8 no byte of a longer character is
// one of those that COPY reads as its own.
func appendCopied(line, value []byte) []byte {
	if value == nil {
		return append(line, '\\', 'N')
	}
	from := 0
	for i, c := range value {
		switch c {
		case '\\':
		case '\t':
			c = 't'
		case '\n':
			c = 'n'
		case '\r':
			c = 'r'
		default:
			continue
		}
		line = append(append(line, value[from:i]...), '\\', c)
		from = i + 1
	}
	return append(line, value[from:]...)
}

func (v verb) String() string { return [...]string{"nothing", "DELETE", "UPDATE", "INSERT"}[v] }

// run is how many new rows are held before they are written.
func (g *gather) run() int {
	if g.copies {
		return copyRows
	}
	return g.most(setKey{verb: inserted})
}

// most is how many rows one statement takes.
func (g *gather) most(kind setKey) int {
	n := len(g.writable)
	if kind.verb != inserted {
		n = len(g.parameters(kind))
	}
	if n == 0 {
		return 1 // DEFAULT VALUES is of one row
	}
	return max(1, min(setRows, setParams/n))
}

// parameters are the columns that a statement needs of each row, in their order.
func (g *gather) parameters(kind setKey) []int {
	switch kind.verb {
	case inserted:
		return g.writable
	case updated:
		return append(slices.Clone(g.rel.target.key), g.rel.target.settable(kind.sent)...)
	default:
		return g.rel.target.key
	}
}

// names are those of columns, quoted, for a list.
func (t *target) names(columns []int) string {
	var names []string
	for _, i := range columns {
		names = append(names, t.columns[i].name)
	}
	return strings.Join(names, ", ")
}

// pinned tells whether the key may be matched with an array of one value. An array for a
// column behind the first may be left out of what the index is searched by, where the
// statistics say that this is as good. And one of an array's own type can't be: an array
// of those is an array of their elements.
func (t *target) pinned() bool {
	return len(t.key) == 1 && t.columns[t.key[0]].equal != ""
}

// settable are the columns of those sent that an UPDATE sets when the key stays.
func (t *target) settable(sent uint64) (columns []int) {
	for i, c := range t.columns {
		if sent&(1<<i) != 0 && !c.generated && !c.always && !slices.Contains(t.key, i) {
			columns = append(columns, i)
		}
	}
	return columns
}

// statement returns the prepared statement of a kind.
func (g *gather) statement(kind setKey) *statement {
	t := g.rel.target
	s := t.sets[kind]
	if s == nil {
		sql, oids := g.sql(kind)
		if t.loose && kind.verb == deleted {
			sql, oids = g.sqlTakeAway(), nil
		}
		s = g.prepare(g.rel, sql, oids, kind.verb.String())
		t.sets[kind] = s
	}
	return s
}

// sql writes a statement of a kind. One that finds several rows leaves the planner no
// choice but to look each of the values up: the statistics of a table that grows are
// always those of a smaller one. A match with an array of one is no equality by which
// the planner could join in another way (pinned); else a subquery says what comes first,
// and costs a second look at each row.
func (g *gather) sql(kind setKey) (sql string, oids []uint32) {
	t, columns := g.rel.target, g.parameters(kind)
	if len(columns) == 0 {
		return "INSERT INTO " + g.rel.quoted + " DEFAULT VALUES", nil
	}
	if kind.verb == inserted && kind.rows == 0 {
		return "COPY " + g.rel.quoted + " (" + t.names(columns) + ") FROM STDIN", nil
	}
	var rows []string
	for range kind.rows {
		var values []string
		for _, i := range columns {
			oids = append(oids, t.columns[i].oid)
			values = append(values, "$"+strconv.Itoa(len(oids)))
		}
		rows = append(rows, "("+strings.Join(values, ", ")+")")
	}
	if kind.verb == inserted {
		// OVERRIDING SYSTEM VALUE lets an identity column take the primary's value, as COPY does.
		return "INSERT INTO " + g.rel.quoted + " (" + t.names(columns) + ") OVERRIDING SYSTEM VALUE VALUES " + strings.Join(rows, ", "), oids
	}
	value := func(n int) string { return "$" + strconv.Itoa(n+1) }
	if kind.rows > 1 {
		value = func(n int) string { return "v.c" + strconv.Itoa(n) }
	}
	pinned := t.pinned() && kind.rows > 1
	var match, sets, names []string
	for n, i := range columns {
		c := t.columns[i]
		names = append(names, "c"+strconv.Itoa(n))
		switch {
		case n >= len(t.key):
			sets = append(sets, c.name+" = "+c.value("t", value(n)))
		case pinned:
			match = append(match, "t."+c.name+" "+c.equals()+" ANY (ARRAY["+value(n)+"])")
		default:
			match = append(match, "t."+c.name+" "+c.equals()+" "+value(n))
		}
	}
	where, from := strings.Join(match, " AND "), ""
	if kind.rows > 1 {
		from = " (VALUES " + strings.Join(rows, ", ") + ") AS v (" + strings.Join(names, ", ") + ")"
		if !pinned {
			from += " CROSS JOIN LATERAL (SELECT t.ctid FROM " + t.rows + " AS t WHERE " + where + " OFFSET 0) AS i"
			where = "t.ctid = i.ctid"
		}
	}
	switch {
	case kind.verb == deleted && from != "":
		from = " USING" + from
	case from != "":
		from = " FROM" + from
	}
	if kind.verb == deleted {
		return "DELETE FROM " + t.rows + " AS t" + from + " WHERE " + where, oids
	}
	return "UPDATE " + t.rows + " AS t SET " + strings.Join(sets, ", ") + from + " WHERE " + where, oids
}
