package apply

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// relation is a table of the primary, as the stream defined it, and what is known
// of its twin on the replica. Columns are matched by name.
type relation struct {
	def     *pgoutput.Relation
	payload []byte // the definition as hawser.deferred keeps it
	quoted  string
	target  *target // nil until a change needs it
}

// target is the table on the replica. It is forgotten after DDL.
type target struct {
	oid        uint32
	rows       string   // how UPDATE and DELETE name it: without tables that inherit from it
	columns    []column // in the order of the stream's columns
	key        []int    // columns that find a row; nil: the whole row
	full       bool     // the primary sends whole old rows
	checks     bool     // it has CHECK constraints, or domains that have, which may look at other tables
	net        bool     // its changes may be held as net changes
	loose      bool     // these are of whole rows: no key names one, and no index of the user's finds one
	layout     []int    // of a loose table: which of columns each of the replica's is, or -1
	hashed     string   // of a loose table: what of a row can be hashed; "": nothing
	hash       string   // the hash, which rows that print the same have in common
	indexed    bool     // Hawser's index of it is here
	scans      *scans   // of a loose table
	statements map[string]*statement
	sets       map[setKey]*statement // of these, those of held changes
	held       *gather               // its changes that were not written yet; nil until one is
}

type column struct {
	name      string // quoted
	attnum    int16
	oid       uint32 // type on the replica, of a domain the one below it: a parameter's value is checked by no domain
	generated bool
	domain    bool
	always    bool   // GENERATED ALWAYS AS IDENTITY: an UPDATE may not set it
	lenient   string // its domain, when that has a check which older values need not meet
	equal     string // the equality of its type that an index may serve; "" when there is none, and for arrays
}

// equals is the operator that compares a column of a key. The session's search_path
// is empty, so one of a type that is not built in has to be named with its schema.
func (c column) equals() string {
	if c.equal == "" { // of a polymorphic class, as enums and arrays have, or oidvector, which is an array
		return "OPERATOR(pg_catalog.=)"
	}
	return c.equal
}

// value is what an UPDATE sets the column of a row to. An old value stays as it is
// where a domain would refuse it as a new one.
func (c column) value(row, parameter string) string {
	if c.lenient == "" {
		return parameter
	}
	old := row + "." + c.name
	return "CASE WHEN " + old + "::text = " + parameter + "::text THEN " + old + " ELSE " + parameter + "::" + c.lenient + " END"
}

// maxStatements bounds the prepared statements of one table; a table whose
// updates leave ever other columns unchanged or null would otherwise grow it.
const maxStatements = 64

// define takes a relation's definition from the stream.
func (a *Applier) define(m *pgoutput.Relation, payload []byte) {
	if old := a.relations[m.ID]; old != nil {
		a.forgetTarget(old)
	}
	a.relations[m.ID] = &relation{
		def:     m,
		payload: keep(payload, a.txn != nil && a.txn.streamed),
		quoted:  postgres.QuoteIdent(m.Namespace, m.Name),
	}
}

func (a *Applier) forgetTarget(r *relation) {
	if r.target == nil {
		return
	}
	a.forgetStatements(r.target)
	r.target = nil
}

func (a *Applier) forgetStatements(t *target) {
	a.out.release(t)
	for key, s := range t.statements {
		a.out.forget(s)
		delete(t.statements, key)
	}
	clear(t.sets)
}

// forgetTargets is called after DDL.
func (a *Applier) forgetTargets(context.Context) error {
	a.foreseen = nil
	for _, r := range a.relations {
		a.forgetTarget(r)
	}
	return a.out.idle()
}

// resolve reads the replica's side of a relation. One whose rows are worth an index is
// looked at anew before it gets one: by now an index of the user's may do.
func (a *Applier) resolve(ctx context.Context, r *relation) error {
	if r.target != nil && !a.worthIndex(r.target) {
		return nil
	}
	if err := a.look(ctx, r); err != nil || !a.worthIndex(r.target) {
		return err
	}
	if err := a.indexRows(ctx, r); err != nil {
		return err
	}
	return a.look(ctx, r)
}

// look is resolve without regard to what is known. A table that is not there yet may be
// one whose rows come before its command.
func (a *Applier) look(ctx context.Context, r *relation) error {
	if r.target != nil {
		a.foreseen = nil
	}
	a.forgetTarget(r)
	found, err := a.lookUp(ctx, r)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		if err := a.provide(ctx, r); err != nil {
			return err
		}
		if found, err = a.lookUp(ctx, r); err != nil {
			return err
		}
	}
	if r.target, err = match(r, found); err == nil && r.target.loose {
		r.target.scans = a.scansOf(r.target.oid)
	}
	return err
}

// provide makes a missing table inside the open target transaction.
func (a *Applier) provide(ctx context.Context, r *relation) error {
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	if err := a.out.idle(); err != nil {
		return err
	}
	a.txn.ddl, a.foreseen = true, nil
	return a.cfg.Replayer.Provide(ctx, a.conn, a.txn.xid, r.def, a.types)
}

// match brings the replica's columns into the order of the stream's, and chooses
// how a row is found.
func match(r *relation, byName map[string]columnFound) (*target, error) {
	if len(byName) == 0 {
		return nil, problem.New("table-missing", "table "+r.quoted, "it has changes on the primary and does not exist on the replica",
			postgres.ByHand+" CREATE TABLE "+r.quoted+" (…);").Advise("as superuser, make it as it is on the primary; then hawser link resync NAME --table " + problem.Word(r.quoted)).At("the secondary")
	}
	t := &target{full: r.def.ReplicaIdentity == 'f', statements: map[string]*statement{}, sets: map[setKey]*statement{}}
	net := len(r.def.Columns) <= maxNetColumns
	loose := net && t.full
	for _, f := range byName { // of the table, each says the same
		t.oid, t.rows, t.checks = f.table, "ONLY "+r.quoted, t.checks || f.checks
		if f.kind == "p" {
			t.rows = r.quoted
		}
		net = net && f.kind == "r" && f.alone && !f.checks
		loose = loose && f.kind == "r" && !f.finds && !f.checks && f.lenient == "" && !(f.generated && f.domain)
	}
	var flagged, unique []int
	for i, c := range r.def.Columns {
		f, ok := byName[c.Name]
		if !ok {
			return nil, problem.New("column-missing", "column "+postgres.QuoteIdent(c.Name)+" of table "+r.quoted,
				"it exists on the primary and not on the replica", postgres.ByHand+" ALTER TABLE "+r.quoted+" ADD COLUMN "+postgres.QuoteIdent(c.Name)+" …;").Advise("as superuser, make it as it is on the primary; then hawser link resume NAME").At("the secondary")
		}
		t.columns = append(t.columns, f.column)
		if c.Key {
			flagged = append(flagged, i)
		}
		if f.unique {
			unique = append(unique, i)
		}
	}
	if uniqueColumns(byName) != len(unique) {
		unique = nil
	}
	t.key = flagged
	if t.full {
		// Whole old rows: a unique index of the replica finds the row as well as
		// any. Without one the row itself has to.
		t.key = unique
	}
	t.net = net && len(t.key) > 0 && slices.Equal(t.key, unique)
	t.loose = loose && len(t.key) == 0 && slices.ContainsFunc(t.columns, func(c column) bool { return !c.generated })
	if t.loose {
		t.lookAtRows(slices.SortedFunc(maps.Values(byName), func(x, y columnFound) int { return cmp.Compare(x.attnum, y.attnum) }))
	}
	return t, nil
}

// lookAtRows finds out how whole rows of a table without a key are written and found.
func (t *target) lookAtRows(all []columnFound) {
	var hashed []string
	for _, f := range all {
		t.layout = append(t.layout, slices.IndexFunc(t.columns, func(c column) bool { return c.attnum == f.attnum }))
		if f.hashed != "" {
			hashed = append(hashed, f.hashed)
		}
		t.hash = f.index // the same of each
	}
	if len(hashed) > 0 {
		t.hashed = "ROW(" + strings.Join(hashed, ", ") + ")"
	}
	switch t.indexed = t.hash != ""; {
	case t.indexed:
	case t.hashed != "":
		t.hash = "pg_catalog.hash_record(" + t.hashed + ")"
	default:
		t.hash = "pg_catalog.hashtext(" + t.image() + ")"
	}
}

func uniqueColumns(byName map[string]columnFound) int {
	n := 0
	for _, f := range byName {
		if f.unique {
			n++
		}
	}
	return n
}
