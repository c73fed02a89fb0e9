package apply

import (
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hawser/hawser/internal/pgoutput"
)

// A table without a key or any index, of which the primary sends whole old rows, is held
// as well (see gather.go): it is a bag of rows, so an UPDATE is one row that goes and one
// that comes. Rows that went are found by what they print as, thousands of them by one
// pass over the table, which takes as many of those that are alike as the primary did.
// (Where there is an index, each is looked for by itself.)

// looseRows without a key are found by one pass over their table at most, and
// looseParams bounds that statement's parameters.
const looseRows, looseParams = 4096, 60_000

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
// table for parameters that are filled up to one of a few numbers of rows.
func (w *writer) takeAway(g *gather, rows []heldRow, cells [][]byte) error {
	what := &doing{deleted.String(), g.rel}
	if len(rows) == 1 {
		return w.takeOne(g, cells[rows[0].first:][:len(g.rel.target.columns)], what)
	}
	most := min(looseRows, looseParams/len(g.writable))
	for len(rows) > 0 {
		kind := setKey{verb: deleted, rows: most}
		for _, fewer := range []int{setRows, fewRows} {
			if len(rows) <= fewer {
				kind.rows = min(fewer, most)
			}
		}
		n := min(kind.rows, len(rows))
		g.args = g.args[:0]
		for _, h := range rows[:n] {
			for _, c := range g.writable {
				g.args = append(g.args, cells[h.first+c])
			}
		}
		g.args = append(g.args, make([][]byte, (kind.rows-n)*len(g.writable))...)
		g.args = append(g.args, strconv.AppendInt(nil, int64(n), 10))
		if err := w.send(g.statement(kind), g.args, expectation{affected: int64(n), what: what}); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
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

// sqlTakeAway deletes as many rows of a table without a key as there are of each among the
// parameters. These are filled up with rows of NULL; the last one says how many count.
func (g *gather) sqlTakeAway(n int) (sql string, oids []uint32) {
	t := g.rel.target
	var names, mine, rows []string
	for _, i := range g.writable {
		names, mine = append(names, "c"+strconv.Itoa(i)), append(mine, "i."+t.columns[i].name)
	}
	for at := range n {
		var values []string
		for _, i := range g.writable {
			oids = append(oids, t.columns[i].oid)
			values = append(values, "$"+strconv.Itoa(len(oids)))
		}
		rows = append(rows, "("+strings.Join(values, ", ")+", "+strconv.Itoa(at)+")")
	}
	oids = append(oids, pgtype.Int4OID)
	images := "SELECT ROW(" + strings.Join(names, ", ") + ")::text AS image, count(*) AS n FROM (VALUES " + strings.Join(rows, ", ") +
		") AS v (" + strings.Join(names, ", ") + ", at) WHERE at < $" + strconv.Itoa(len(oids)) + " GROUP BY 1"
	return "DELETE FROM " + t.rows + " AS t WHERE t.ctid = ANY (ARRAY(SELECT f.ctid FROM (" +
		"SELECT i.ctid, v.n, row_number() OVER (PARTITION BY v.image) AS k FROM (" + images + ") AS v JOIN " + t.rows + " AS i ON ROW(" + strings.Join(mine, ", ") + ")::text = v.image" +
		") AS f WHERE f.k <= f.n))", oids
}
