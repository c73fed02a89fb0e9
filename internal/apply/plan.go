package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// builder writes one statement with its parameters.
type builder struct {
	strings.Builder
	oids   []uint32
	values [][]byte
}

func (b *builder) param(c column, v pgoutput.Column) string {
	b.oids = append(b.oids, c.oid)
	b.values = append(b.values, parameter(v))
	return "$" + strconv.Itoa(len(b.oids))
}

func parameter(v pgoutput.Column) []byte {
	if v.Kind == pgoutput.Null {
		return nil
	}
	return nonNil(v.Data)
}

// nonNil keeps an empty string from being sent as NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func (a *Applier) insert(ctx context.Context, r *relation, m *pgoutput.Insert) error {
	if err := a.resolve(ctx, r); err != nil {
		return err
	}
	if err := r.fits(m.New); err != nil {
		return err
	}
	if skip, err := a.withheld(ctx, r, m.New); skip || err != nil {
		return err
	}
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	a.batch.changes++
	if wide(m.New) {
		return a.sendRow(r, inserted, m.New, 0)
	}
	g := a.held(r)
	return a.out.hold(g, func() bool { return g.insert(m.New) })
}

func (a *Applier) update(ctx context.Context, r *relation, m *pgoutput.Update) error {
	if err := a.resolve(ctx, r); err != nil {
		return err
	}
	if err := r.fits(m.New); err != nil {
		return err
	}
	old := m.Old
	if len(old) == 0 {
		old = m.New // the key did not change
	} else if err := r.fits(old); err != nil {
		return err
	}
	if skip, err := a.withheld(ctx, r, old, m.New); skip || err != nil {
		return err
	}
	t := r.target
	if t.bag(m.Old) && !wide(m.New) {
		return a.changeLoose(ctx, r, old, m.New)
	}
	for i, c := range t.columns {
		if c.always && changes(t, i, m) {
			return a.replace(ctx, r, old, m.New)
		}
	}
	if sent, ok := t.sameKey(old, m.New); ok {
		return a.changeRow(ctx, r, updated, m.New, sent)
	}
	var b builder
	var sets []string
	for i, c := range t.columns {
		if c.generated || c.always || m.New[i].Kind == pgoutput.Unchanged {
			continue
		}
		sets = append(sets, c.name+" = "+c.value("t", b.param(c, m.New[i])))
	}
	if len(sets) == 0 {
		return nil
	}
	b.WriteString("UPDATE " + t.rows + " AS t SET " + strings.Join(sets, ", "))
	if err := a.where(&b, r, old); err != nil {
		return err
	}
	return a.run(ctx, r, "UPDATE", &b)
}

// maxNetColumns is what a mask of columns can name.
const maxNetColumns = 64

// sameKey tells whether an UPDATE leaves the key as it is and sets anything beside
// it, and which columns it was sent.
func (t *target) sameKey(old, row []pgoutput.Column) (sent uint64, same bool) {
	if len(row) > maxNetColumns || !t.keyed(old) || !t.keyed(row) {
		return 0, false
	}
	for _, i := range t.key {
		if !bytes.Equal(old[i].Data, row[i].Data) {
			return 0, false
		}
	}
	for i, v := range row {
		if v.Kind != pgoutput.Unchanged {
			sent |= 1 << i
		}
	}
	return sent, len(t.settable(sent)) > 0
}

// keyed tells whether a row can be found by its key alone.
func (t *target) keyed(row []pgoutput.Column) bool {
	for _, i := range t.key {
		if row[i].Kind != pgoutput.Text {
			return false
		}
	}
	return len(t.key) > 0
}

// changeRow updates or deletes the row that a key names.
func (a *Applier) changeRow(ctx context.Context, r *relation, v verb, row []pgoutput.Column, sent uint64) error {
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	a.batch.changes++
	if !r.target.net || wide(row) {
		return a.sendRow(r, v, row, sent)
	}
	g := a.held(r)
	return a.out.hold(g, func() bool {
		if v == deleted {
			return g.delete(row)
		}
		return g.update(row, sent)
	})
}

// bag tells whether a change of a row that was like old may be held.
func (t *target) bag(old []pgoutput.Column) bool {
	return t.loose && len(old) > 0 && !wide(old) && !slices.ContainsFunc(old, func(c pgoutput.Column) bool { return c.Kind == pgoutput.Unchanged })
}

// changeLoose takes one of the rows that are like old away, and puts row, if there is
// one, in its place.
func (a *Applier) changeLoose(ctx context.Context, r *relation, old, row []pgoutput.Column) error {
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	a.batch.changes++
	g := a.held(r)
	return a.out.hold(g, func() bool {
		g.remove(old)
		if row != nil {
			g.put(old, row)
		}
		return true
	})
}

// sendRow writes one change behind those that are held of its table.
func (a *Applier) sendRow(r *relation, v verb, row []pgoutput.Column, sent uint64) error {
	if err := a.out.order(r.target, false); err != nil {
		return err
	}
	g, kind := a.held(r), setKey{v, sent, 1}
	values := a.values[:0]
	for _, i := range g.parameters(kind) {
		values = append(values, parameter(row[i]))
	}
	a.values = values
	return a.out.send(g.statement(kind), values, expectation{affected: 1, what: &doing{v.String(), r}})
}

// changes tells whether an update may have changed column i. A column of the key
// whose old value was not sent did not change.
func changes(t *target, i int, m *pgoutput.Update) bool {
	if m.New[i].Kind == pgoutput.Unchanged {
		return false
	}
	inKey := t.full
	for _, k := range t.key {
		inKey = inKey || k == i
	}
	if !inKey {
		return true
	}
	if len(m.Old) == 0 {
		return false
	}
	return m.Old[i].Kind != m.New[i].Kind || string(m.Old[i].Data) != string(m.New[i].Data)
}

// replace carries out an UPDATE of a column that PostgreSQL lets nobody update
// (GENERATED ALWAYS AS IDENTITY): the row is deleted and inserted in one
// statement, which keeps the values that the primary did not send.
func (a *Applier) replace(ctx context.Context, r *relation, old, row []pgoutput.Column) error {
	var b builder
	b.WriteString("WITH old AS (DELETE FROM " + r.target.rows + " AS t")
	if err := a.where(&b, r, old); err != nil {
		return err
	}
	b.WriteString(" RETURNING t.*) INSERT INTO " + r.quoted)
	var names, values []string
	for i, c := range r.target.columns {
		if c.generated {
			continue
		}
		names = append(names, c.name)
		if row[i].Kind == pgoutput.Unchanged {
			values = append(values, "old."+c.name)
		} else {
			values = append(values, c.value("old", b.param(c, row[i])))
		}
	}
	b.WriteString(" (" + strings.Join(names, ", ") + ") OVERRIDING SYSTEM VALUE SELECT " + strings.Join(values, ", ") + " FROM old")
	return a.run(ctx, r, "UPDATE", &b)
}

func (a *Applier) delete(ctx context.Context, r *relation, m *pgoutput.Delete) error {
	if err := a.resolve(ctx, r); err != nil {
		return err
	}
	if err := r.fits(m.Old); err != nil {
		return err
	}
	if skip, err := a.withheld(ctx, r, m.Old); skip || err != nil {
		return err
	}
	if r.target.keyed(m.Old) {
		return a.changeRow(ctx, r, deleted, m.Old, 0)
	}
	if r.target.bag(m.Old) {
		return a.changeLoose(ctx, r, m.Old, nil)
	}
	var b builder
	b.WriteString("DELETE FROM " + r.target.rows + " AS t")
	if err := a.where(&b, r, m.Old); err != nil {
		return err
	}
	return a.run(ctx, r, "DELETE", &b)
}

// where finds exactly one row: by the key, or, where there is none, one of the rows
// that print as the old one does. (Rows that print the same may differ bit for bit: an
// array keeps the null bitmap of the larger one that it was cut from.) The plain
// equalities beside it let an index of the replica help.
func (a *Applier) where(b *builder, r *relation, old []pgoutput.Column) error {
	t := r.target
	if len(t.key) > 0 {
		for n, i := range t.key {
			if old[i].Kind == pgoutput.Unchanged || old[i].Kind == pgoutput.Null {
				return problem.New("key-missing", "table "+r.quoted,
					"the primary sent a change without the value of key column "+t.columns[i].name,
					"ALTER TABLE "+r.quoted+" REPLICA IDENTITY FULL;").Advise("then hawser link resume NAME").At("the primary")
			}
			b.WriteString([]string{" WHERE t.", " AND t."}[min(n, 1)] + t.columns[i].name + " " + t.columns[i].equals() + " " + b.param(t.columns[i], old[i]))
		}
		return nil
	}
	if !t.full {
		return problem.New("key-missing", "table "+r.quoted, "it has no replica identity, so a row of it can't be found on the replica",
			"ALTER TABLE "+r.quoted+" REPLICA IDENTITY FULL;").At("the primary")
	}
	r.whereLike(b, old)
	return nil
}

// whereLike finds one of the rows that print as old does.
func (r *relation) whereLike(b *builder, old []pgoutput.Column) {
	var equal, same []string
	for i, c := range r.target.columns {
		if c.generated {
			continue
		}
		if old[i].Kind == pgoutput.Null {
			same = append(same, "i."+c.name+" IS NULL")
			continue
		}
		p := b.param(c, old[i])
		same = append(same, "i."+c.name+"::text = "+p+"::text")
		if c.equal != "" {
			equal = append(equal, "i."+c.name+" "+c.equal+" "+p)
		}
	}
	if len(same) == 0 { // no column, or none that is sent: all rows are the same
		same = append(same, "true")
	}
	where := strings.Join(append(equal, same...), " AND ")
	b.WriteString(" WHERE t.ctid = (SELECT i.ctid FROM ONLY " + r.quoted + " AS i WHERE " + where + " LIMIT 1)")
}

// fits guards against a row that does not match its definition.
func (r *relation) fits(row []pgoutput.Column) error {
	if len(row) != len(r.def.Columns) {
		return fmt.Errorf("table %s: a row of %d columns where %d are defined", r.quoted, len(row), len(r.def.Columns))
	}
	for _, c := range row {
		if c.Kind == pgoutput.Binary {
			return errors.New("a value in binary form, which was not asked for")
		}
	}
	return nil
}

// run queues a change; it must meet exactly one row.
func (a *Applier) run(ctx context.Context, r *relation, verb string, b *builder) error {
	if err := a.out.order(r.target, false); err != nil {
		return err
	}
	return a.send(ctx, r, verb, a.statement(r, b.String(), b.oids, verb), b.values)
}

// statement returns a table's prepared statement.
func (a *Applier) statement(r *relation, sql string, oids []uint32, verb string) *statement {
	s := r.target.statements[sql]
	if s == nil {
		if len(r.target.statements) >= maxStatements {
			a.forgetStatements(r.target)
		}
		s = a.out.prepare(sql, oids, &doing{verb, r})
		r.target.statements[sql] = s
	}
	return s
}

func (a *Applier) send(ctx context.Context, r *relation, verb string, s *statement, values [][]byte) error {
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	a.batch.changes++
	return a.out.send(s, values, expectation{affected: 1, what: &doing{verb, r}})
}

// truncate empties the tables that are live.
func (a *Applier) truncate(ctx context.Context, m *pgoutput.Truncate, payload []byte) error {
	var names []string
	for _, id := range m.RelationIDs {
		err := a.route(ctx, id, payload, func(r *relation) error {
			names = append(names, r.quoted)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return nil
	}
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	if err := a.out.idle(); err != nil {
		return err
	}
	a.batch.changes++
	err := postgres.InUserPath(ctx, a.conn, func() error { return emptyTables(ctx, a.conn, names) })
	if err != nil {
		return failed(nil, err)
	}
	return nil
}

// emptyTables truncates tables in one statement: foreign keys between them allow no
// other way. Where another table refers to them, which the primary truncated too and
// which is not carried or still to be copied, their rows are deleted instead: the
// session fires no trigger of a foreign key.
func emptyTables(ctx context.Context, conn *pgx.Conn, names []string) error {
	var referenced bool
	err := conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = ANY ($1::text[]::regclass[]) AND conrelid <> ALL ($1::text[]::regclass[]))`, names).Scan(&referenced)
	if err != nil {
		return fmt.Errorf("look for tables that refer to those to be truncated: %w", err)
	}
	if !referenced {
		sql := "TRUNCATE ONLY " + strings.Join(names, ", ONLY ")
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		return nil
	}
	for _, name := range names {
		if _, err := conn.Exec(ctx, "DELETE FROM ONLY "+name); err != nil {
			return fmt.Errorf("delete the rows of the truncated table %s: %w", name, err)
		}
	}
	return nil
}
