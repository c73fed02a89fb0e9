package apply

import (
	"strconv"
	"strings"

	"github.com/hawser/hawser/internal/pgoutput"
)

// Inserts into one table that follow one another are written by one statement of
// several rows, which costs the server less than half of what as many statements do.
//
// Rows are held until there are enough, until something else is done to their
// table, or until anything but a change is written: a COMMIT above all. So the
// changes of one table keep their order. Those of different tables may change
// places within the target transaction: its readers see only the whole, and the
// session fires neither triggers nor foreign keys. A CHECK constraint may call a
// function that looks at other tables; where there is one, nothing changes places.

const (
	// gatherRows are written by one statement; fewer by some of a row each.
	gatherRows = 64
	// gatherParams bounds a statement's parameters: wide tables get fewer rows.
	gatherParams = 1024
	// gatherBytes and heldBytes bound what is held for one table and for all.
	gatherBytes = 64 << 10
	heldBytes   = 1 << 20
)

// gather holds rows of one table that are to be inserted.
type gather struct {
	rel      *relation
	make     func(r *relation, sql string, oids []uint32, verb string) *statement
	columns  []int // those that can be written
	rows     int   // held
	most     int   // that one statement takes
	bytes    []byte
	ends     []int // of each value in bytes; -1 less the end for a null
	values   [][]byte
	one, all *statement
	what     *doing
}

func newGather(r *relation, make func(*relation, string, []uint32, string) *statement) *gather {
	g := &gather{rel: r, make: make, what: &doing{"INSERT", r}}
	for i, c := range r.target.columns {
		if !c.generated {
			g.columns = append(g.columns, i)
		}
	}
	g.most = max(1, min(gatherRows, gatherParams/max(1, len(g.columns))))
	return g
}

// sql inserts n rows. OVERRIDING SYSTEM VALUE lets an identity column take the
// primary's value.
func (g *gather) sql(n int) (sql string, oids []uint32) {
	if len(g.columns) == 0 {
		return "INSERT INTO " + g.rel.quoted + " DEFAULT VALUES", nil
	}
	var names, rows []string
	for _, i := range g.columns {
		names = append(names, g.rel.target.columns[i].name)
	}
	for range n {
		var values []string
		for _, i := range g.columns {
			oids = append(oids, g.rel.target.columns[i].oid)
			values = append(values, "$"+strconv.Itoa(len(oids)))
		}
		rows = append(rows, "("+strings.Join(values, ", ")+")")
	}
	return "INSERT INTO " + g.rel.quoted + " (" + strings.Join(names, ", ") + ") OVERRIDING SYSTEM VALUE VALUES " + strings.Join(rows, ", "), oids
}

func (g *gather) add(row []pgoutput.Column) (size int) {
	before := len(g.bytes)
	for _, i := range g.columns {
		if row[i].Kind == pgoutput.Null {
			g.ends = append(g.ends, -1-len(g.bytes))
			continue
		}
		g.bytes = append(g.bytes, row[i].Data...)
		g.ends = append(g.ends, len(g.bytes))
	}
	g.rows++
	return len(g.bytes) - before
}

// insert holds a row. Its bytes are copied.
func (w *writer) insert(g *gather, row []pgoutput.Column) error {
	t := g.rel.target
	if err := w.order(t, true); err != nil {
		return err
	}
	if g.rows == 0 {
		w.gathered = append(w.gathered, g)
	}
	w.held += g.add(row)
	switch {
	case w.held >= heldBytes:
		return w.settle()
	case g.rows >= g.most || len(g.bytes) >= gatherBytes || len(g.columns) == 0:
		return w.drop(g)
	}
	return nil
}

// order writes the rows that have to come before a change of table t: its own, but
// for another insert, and with CHECK constraints all. It comes before the change's
// statement is looked up, since it may make one, for which others are forgotten.
func (w *writer) order(t *target, insert bool) error {
	if w.late != nil {
		return w.late
	}
	for i := 0; i < len(w.gathered); {
		g := w.gathered[i]
		own := g.rel.target == t
		if own && insert || !own && !t.checks && !g.rel.target.checks {
			i++
			continue
		}
		if err := w.drop(g); err != nil {
			return err
		}
	}
	return nil
}

// settle writes all rows that are held.
func (w *writer) settle() error {
	for len(w.gathered) > 0 && w.late == nil {
		if err := w.drop(w.gathered[0]); err != nil {
			return err
		}
	}
	return w.late
}

// release writes a table's rows before its statements are forgotten.
func (w *writer) release(t *target) {
	g := t.inserts
	t.inserts = nil
	if g != nil && g.rows > 0 {
		if err := w.drop(g); err != nil && w.late == nil {
			w.late = err
		}
	}
}

// drop writes the rows of one table and empties its gather.
func (w *writer) drop(g *gather) error {
	for i, other := range w.gathered {
		if other == g {
			w.gathered = append(w.gathered[:i], w.gathered[i+1:]...)
			break
		}
	}
	rows, values := g.rows, g.lent()
	w.held -= len(g.bytes)
	g.rows, g.bytes, g.ends = 0, g.bytes[:0], g.ends[:0]
	if cap(g.bytes) > 4*gatherBytes {
		g.bytes = nil
	}
	if rows == g.most && rows > 1 {
		if g.all == nil {
			sql, oids := g.sql(rows)
			g.all = g.make(g.rel, sql, oids, "INSERT")
		}
		return w.send(g.all, values, expectation{affected: int64(rows), what: g.what})
	}
	if g.one == nil {
		sql, oids := g.sql(1)
		g.one = g.make(g.rel, sql, oids, "INSERT")
	}
	for n := len(g.columns); rows > 0; rows-- {
		if err := w.send(g.one, values[:n], expectation{affected: 1, what: g.what}); err != nil {
			return err
		}
		values = values[n:]
	}
	return nil
}

// lent are the values of all rows, as parts of bytes.
func (g *gather) lent() [][]byte {
	g.values = g.values[:0]
	from := 0
	for _, end := range g.ends {
		if end < 0 {
			g.values = append(g.values, nil)
			continue
		}
		g.values = append(g.values, nonNil(g.bytes[from:end:end]))
		from = end
	}
	return g.values
}
