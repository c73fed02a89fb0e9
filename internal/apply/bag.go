package apply

import (
	"slices"
	"strings"

	"github.com/hawser/hawser/internal/pgoutput"
)

// A table without a key, of which the primary sends whole old rows, is held as well (see
// gather.go): it is a bag of rows, so an UPDATE is one row that goes and one that comes.
// Those that go are written before those that come, so no unique index meets more than it
// does on the primary. As many rows go of those that print the same as went there. They
// are looked for by a hash: by a pass over the table, or by Hawser's index of it, which is
// made when passes take too much (rowindex.go). Where an index of the user's finds a row
// well enough, each is looked for by itself (whereLike).

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

// takeAway deletes rows of a table without a key: one by itself where there is no index,
// more by one statement. Statistics of a table that was just filled would have the planner
// compare each with each in a pass, or sort the table.
func (w *writer) takeAway(g *gather, rows []heldRow, vals values) error {
	t, what := g.rel.target, &doing{deleted.String(), g.rel}
	if err := w.noteScan(t); err != nil {
		return err
	}
	if len(rows) == 1 && !t.indexed {
		return w.takeOne(g, vals, rows[0].first, what)
	}
	if err := w.otherJoins("off"); err != nil {
		return err
	}
	if err := w.takeRows(g, rows, vals, what); err != nil {
		return err
	}
	return w.otherJoins("on")
}

// takeRows sends the rows as an array.
func (w *writer) takeRows(g *gather, rows []heldRow, vals values, what *doing) error {
	array := []byte{'{'}
	for n, h := range rows {
		if n > 0 {
			array = append(array, ',')
		}
		array = g.appendRow(array, vals, h.first)
	}
	return w.send(g.statement(setKey{verb: deleted}), [][]byte{append(array, '}')}, expectation{affected: int64(len(rows)), what: what})
}

// otherJoins forbids, or allows again, to join tables in another way than by a hash.
func (w *writer) otherJoins(on string) error {
	return w.send(w.own(`SELECT pg_catalog.set_config(name, $1, true) FROM unnest('{enable_nestloop,enable_mergejoin}'::text[]) AS name`), [][]byte{[]byte(on)}, expectation{affected: -1})
}

// appendRow appends a row of the table's own type as an array's element: its text form,
// where quotes and backslashes are escaped, inside of quotes, where they are once more.
func (g *gather) appendRow(array []byte, vals values, first int) []byte {
	array = append(array, '"', '(')
	for n, i := range g.rel.target.layout {
		if n > 0 {
			array = append(array, ',')
		}
		if i < 0 || vals.at(first+i) == nil {
			continue // NULL
		}
		array = append(array, '\\', '"')
		for _, c := range vals.at(first + i) {
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

func (w *writer) takeOne(g *gather, vals values, first int, what *doing) error {
	old := make([]pgoutput.Column, len(g.rel.target.columns))
	for i := range old {
		old[i] = pgoutput.Column{Kind: pgoutput.Null}
		if v := vals.at(first + i); v != nil {
			old[i] = pgoutput.Column{Kind: pgoutput.Text, Data: v}
		}
	}
	var b builder
	b.WriteString("DELETE FROM " + g.rel.target.rows + " AS t")
	g.rel.whereLike(&b, old)
	return w.send(g.prepare(g.rel, b.String(), b.oids, what.verb), b.values, expectation{affected: 1, what: what})
}

// image is how a row prints, by names of columns alone: who reads a table's rows in a
// SELECT of their own may use it.
func (t *target) image() string {
	var names []string
	for _, c := range t.columns {
		if !c.generated {
			names = append(names, c.name)
		}
	}
	return "ROW(" + strings.Join(names, ", ") + ")::text"
}

// sqlTakeAway deletes as many rows of a table without a key as there are of each in an
// array of them. The plan is the one that it says: the table is read once, or rows are
// looked up in its index one after the other, if nobody has dropped that.
func (g *gather) sqlTakeAway() string {
	t := g.rel.target
	gone := "(SELECT v.hash, v.image, count(*) AS n FROM (SELECT " + t.hash + " AS hash, " + t.image() + " COLLATE pg_catalog.\"C\" AS image FROM unnest($1::" + g.rel.quoted + "[]) AS v) AS v GROUP BY 1, 2 ORDER BY 1) AS v"
	// IS NOT DISTINCT FROM is no clause to join by: what matches is printed, and no other row.
	found := "SELECT f.ctid FROM (SELECT i.ctid, v.n, row_number() OVER (PARTITION BY v.hash, v.image) AS k FROM " + gone + " JOIN (" +
		"SELECT i.ctid, " + t.hash + " AS hash, " + t.image() + " AS image FROM " + t.rows + " AS i) AS i ON i.hash = v.hash AND i.image IS NOT DISTINCT FROM v.image" +
		") AS f WHERE f.k <= f.n"
	if t.indexed {
		found += " AND NOT " + t.hasIndex() + " UNION ALL SELECT i.ctid FROM " + gone + " CROSS JOIN LATERAL (" +
			"SELECT i.ctid FROM " + t.rows + " AS i WHERE " + t.hash + " = v.hash AND " + t.image() + " = v.image LIMIT v.n) AS i WHERE " + t.hasIndex()
	}
	return "DELETE FROM " + t.rows + " AS t WHERE t.ctid = ANY (ARRAY(" + found + "))"
}
