package apply

import (
	"slices"
	"strings"

	"github.com/hawser/hawser/internal/pgoutput"
)

// A table without a key or any index, of which the primary sends whole old rows, is held
// as well (see gather.go): it is a bag of rows, so an UPDATE is one row that goes and one
// that comes. Rows that went are found by what they print as, thousands of them by one
// pass over the table, which takes as many of those that are alike as the primary did.
// (Where there is an index, each is looked for by itself.)

// remove takes one of the rows that are like old, of a table without a key: of those
// held, or of the table's.
func (g *gather) remove(old []pgoutput.Column) {
	at, ok := g.find(old)
	if !ok {
		g.add(deleted, old, 0)
		return
	}
	g.rows[at].verb = nothing
	if like := g.rows[at].like; like > 0 {
		g.byKey[string(g.key)] = like - 1
	} else {
		delete(g.byKey, string(g.key))
	}
}

// put inserts a row in the place of old, from which it takes what was not sent.
func (g *gather) put(old, row []pgoutput.Column) {
	filled := slices.Clone(row)
	for i := range filled {
		if filled[i].Kind == pgoutput.Unchanged {
			filled[i] = old[i]
		}
	}
	g.insert(filled)
}

// takeAway deletes rows of a table without a key: one by itself, more by a pass over the
// table. Statistics of a table that was just filled would have the planner compare each
// with each.
func (w *writer) takeAway(g *gather, rows []heldRow, cells [][]byte) error {
	what := &doing{deleted.String(), g.rel}
	if len(rows) == 1 {
		return w.takeOne(g, cells[rows[0].first:][:len(g.rel.target.columns)], what)
	}
	array := []byte{'{'}
	for n, h := range rows {
		if n > 0 {
			array = append(array, ',')
		}
		array = g.appendRow(array, cells[h.first:])
	}
	if err := w.nestLoops("off"); err != nil {
		return err
	}
	err := w.send(g.statement(setKey{verb: deleted}), [][]byte{append(array, '}')}, expectation{affected: int64(len(rows)), what: what})
	if err != nil {
		return err
	}
	return w.nestLoops("on")
}

func (w *writer) nestLoops(value string) error {
	return w.send(w.own(`SELECT pg_catalog.set_config('enable_nestloop', $1, true)`), [][]byte{[]byte(value)}, expectation{affected: -1})
}

// appendRow appends a row of the table's own type as an array's element: its text form,
// where quotes and backslashes are escaped, inside of quotes, where they are once more.
func (g *gather) appendRow(array []byte, row [][]byte) []byte {
	array = append(array, '"', '(')
	for n, i := range g.rel.target.layout {
		if n > 0 {
			array = append(array, ',')
		}
		if i < 0 || row[i] == nil {
			continue // NULL
		}
		array = append(array, '\\', '"')
		for _, c := range row[i] {
			switch c {
			case '"':
				array = append(array, '\\', '\\', '\\')
			case '\\':
				array = append(array, '\\', '\\', '\\')
			}
			array = append(array, c)
		}
		array = append(array, '\\', '"')
	}
	return append(array, ')', '"')
}

func (w *writer) takeOne(g *gather, cells [][]byte, what *doing) error {
	old := make([]pgoutput.Column, len(cells))
	for i, v := range cells {
		old[i] = pgoutput.Column{Kind: pgoutput.Null}
		if v != nil {
			old[i] = pgoutput.Column{Kind: pgoutput.Text, Data: v}
		}
	}
	var b builder
	b.WriteString("DELETE FROM " + g.rel.target.rows + " AS t")
	g.rel.whereLike(&b, old)
	return w.send(g.prepare(g.rel, b.String(), b.oids, what.verb), b.values, expectation{affected: 1, what: what})
}

// sqlTakeAway deletes as many rows of a table without a key as there are of each in an
// array of them.
func (g *gather) sqlTakeAway() string {
	t := g.rel.target
	image := func(row string) string {
		var names []string
		for _, i := range g.writable {
			names = append(names, row+"."+t.columns[i].name)
		}
		return "ROW(" + strings.Join(names, ", ") + ")::text"
	}
	images := "SELECT " + image("v") + " AS image, count(*) AS n FROM unnest($1::" + g.rel.quoted + "[]) AS v GROUP BY 1"
	return "DELETE FROM " + t.rows + " AS t WHERE t.ctid = ANY (ARRAY(SELECT f.ctid FROM (" +
		"SELECT i.ctid, v.n, row_number() OVER (PARTITION BY v.image) AS k FROM (" + images + ") AS v JOIN " + t.rows + " AS i ON " + image("i") + " = v.image" +
		") AS f WHERE f.k <= f.n))"
}
