package schema

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hawser/hawser/internal/postgres"
)

// Phase says when an entry can be run.
type Phase string

// The phases, in their order. The package comment says what each is for.
const (
	PhasePre   Phase = "pre"
	PhaseTable Phase = "table"
	PhaseFinal Phase = "final"
	// PhaseRows is the part of PhaseFinal that needs the rows: see Entry.When.
	PhaseRows Phase = "rows"
)

// Kinds of entries that pg_dump does not write, or not in a dump of definitions.
// All other kinds are pg_dump's: "TABLE", "INDEX", "FK CONSTRAINT", "COMMENT" ….
const (
	// KindRefresh fills a materialized view.
	KindRefresh = "MATERIALIZED VIEW DATA"
	// KindValidate checks the rows that a foreign key was not checked for when it was made.
	KindValidate = "FK VALIDATE"
)

// Entry is SQL that makes one object, or says one thing about it.
type Entry struct {
	// ID orders the entries of one phase, of all phases too.
	ID int `json:"id"`
	// Kind, Schema, Name and Owner are for people. Schema and Owner may be "".
	Kind   string `json:"kind"`
	Schema string `json:"schema,omitempty"`
	Name   string `json:"name"`
	Owner  string `json:"owner,omitempty"`
	// OID is the object's on the primary; 0 where the entry is about another
	// object (a comment, a privilege, an attachment).
	OID uint32 `json:"oid,omitempty"`
	// Table is the OID, on the primary, of the table or view that the index,
	// constraint, trigger, policy, comment … belongs to; 0 if there is none.
	Table uint32 `json:"table,omitempty"`
	Phase Phase  `json:"phase"`
	// SQL is one or more statements, each of which can run in a transaction.
	SQL string `json:"sql"`
	// Index and WithIndex do the same in two steps, where SQL makes the index of a
	// constraint; "" otherwise. See Ahead.
	Index     string `json:"index,omitempty"`
	WithIndex string `json:"with_index,omitempty"`
}

// Ahead divides an entry that has an Index: the first makes it, beside those that make
// other indexes of the table, and the second what remains then.
func (e Entry) Ahead() (index, rest Entry) {
	index, rest = e, e
	index.SQL, rest.SQL = e.Index, e.WithIndex
	index.Index, index.WithIndex, rest.Index, rest.WithIndex = "", "", "", ""
	return index, rest
}

// rank orders what comes at the end of the final phase: what the user may have
// to mend, or what answers to commands, comes after what can't fail.
type rank int

const (
	rankMain     rank = iota
	rankRefresh       // needs the privileges of the views' owners
	rankMatview       // indexes of materialized views, faster when these are filled
	rankValidate      // fails when the primary's rows violate its own constraint
	rankSettings      // settings of the database, for sessions that begin later
	rankEvent         // event triggers, which may answer to everything above
)

// node is an entry on its way.
type node struct {
	Entry
	toc   *tocEntry
	rank  rank
	left  bool // not carried, and nothing that depends on it
	path  bool // sets the database's search_path
	makes bool // creates an object that default privileges apply to
}

// assembly turns the entries of an archive into ours.
type assembly struct {
	facts *facts
	nodes []*node // in the order of the archive
	byTOC map[int]*node
}

// assemble sorts the archive's entries into phases.
func assemble(toc []tocEntry, f *facts) ([]Entry, error) {
	a := &assembly{facts: f, byTOC: make(map[int]*node, len(toc))}
	a.public()
	for i := range toc {
		if err := a.add(&toc[i]); err != nil {
			return nil, err
		}
	}
	a.refresh()
	a.settleDefaults()
	a.pathFirst()
	return a.entries(), nil
}

// public makes schema public, with which the target's database is born, what it was at
// first on the primary, or nothing where its owner dropped it. The archive has what was
// changed since. Before 15 everybody might create objects in it.
func (a *assembly) public() {
	sql := `ALTER SCHEMA "public" OWNER TO "pg_database_owner"; REVOKE CREATE ON SCHEMA "public" FROM PUBLIC;`
	switch {
	case a.facts.noPublic:
		sql = `DROP SCHEMA IF EXISTS "public";`
	case a.facts.version < 150000:
		return // the archive of a newer pg_dump has it
	}
	a.nodes = append(a.nodes, &node{Entry: Entry{Kind: "SCHEMA", Name: "public", Phase: PhasePre, SQL: sql}})
}

func (a *assembly) add(t *tocEntry) error {
	sql, err := withoutVersions(t.sql)
	if err != nil {
		return err
	}
	n := &node{toc: t, Entry: Entry{Kind: t.kind, Schema: t.schema, Name: t.name, Owner: t.owner, OID: t.oid, SQL: sql}}
	a.byTOC[t.id] = n
	n.left = !carried(t.kind) || a.facts.own(t)
	n.Table = a.facts.owners[object{t.class, t.oid}]
	if t.class == 0 {
		n.Table = a.tableOf(t)
	}
	n.Phase, n.rank = a.place(t, n.Table)
	for _, id := range t.deps {
		if on := a.byTOC[id]; on != nil && on != n {
			n.follow(on)
		}
	}
	if n.left || n.SQL == "" {
		return nil
	}
	if t.class == databaseClass || strings.HasPrefix(t.kind, "DATABASE") || a.ofDatabase(t) {
		return a.addDatabase(n)
	}
	n.makes = slices.Contains([]string{"TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "FUNCTION", "PROCEDURE",
		"AGGREGATE", "TYPE", "DOMAIN", "SCHEMA"}, t.kind)
	if t.method != "" && t.method != "heap" && (t.kind == "TABLE" || t.kind == "MATERIALIZED VIEW") {
		n.SQL = "SET default_table_access_method = " + t.method + ";\n" + n.SQL + "\nSET default_table_access_method = heap;"
	}
	if k, ok := a.facts.unique[t.oid]; ok && t.kind == "CONSTRAINT" && n.Phase == PhaseTable {
		if err := n.ahead(k); err != nil {
			return err
		}
	}
	a.nodes = append(a.nodes, n)
	if k, ok := a.facts.keys[t.oid]; ok && t.kind == "FK CONSTRAINT" {
		switch {
		case k.validated && k.ofPartitions:
			a.hasten(t)
		case k.validated:
			a.splitKey(n, k)
		}
	}
	return nil
}

// hasten puts an entry, and what it needs, before the rows. The foreign key of a
// partitioned table can't be made first and be validated later, as splitKey does, and DDL,
// which may speak of the key, can't wait for the rows of all tables.
func (a *assembly) hasten(t *tocEntry) {
	n := a.byTOC[t.id]
	n.Phase, n.rank = PhasePre, rankMain
	for _, id := range t.deps {
		if on := a.byTOC[id]; on != nil && on != n && on.Phase != PhasePre {
			a.hasten(on.toc)
		}
	}
}

// columnVersion is the option in which the minor releases of November 2026 keep the
// version of a column. It is the server's own: a pg_dump that does not know it writes it
// out, and a server that does not know it refuses it.
const columnVersion = "pg_attver"

// withoutVersions takes the versions of columns out of an entry's statements.
func withoutVersions(sql string) (string, error) {
	if !strings.Contains(sql, columnVersion) {
		return sql, nil
	}
	stmts, err := statements(sql)
	if err != nil {
		return "", err
	}
	kept := make([]string, 0, len(stmts))
	for _, s := range stmts {
		if text := s.withoutVersion(); text != "" {
			kept = append(kept, text)
		}
	}
	return strings.Join(kept, "\n"), nil
}

// withoutVersion is ALTER TABLE … SET (pg_attver=1, …) without that option, "" when
// nothing is left to set, and any other statement as it is.
func (s statement) withoutVersion() string {
	options := slices.IndexFunc(s.tokens, func(t token) bool { return strings.EqualFold(s.text[t.start:t.end], "SET") })
	if s.word(0) != "alter" || options < 0 || s.word(options+1) != "(" {
		return s.text
	}
	for i, t := range s.tokens {
		if i < options || t.kind != tokenWord || s.word(i) != columnVersion || s.word(i+1) != "=" || i+3 >= len(s.tokens) {
			continue
		}
		from, to := t.start, s.tokens[i+2].end
		switch before, after := s.word(i-1), s.word(i+3); {
		case before == "(" && after == ")":
			return ""
		case after == ",":
			to = s.tokens[i+3].end
		default:
			from = s.tokens[i-1].start
		}
		return s.text[:from] + strings.TrimPrefix(s.text[to:], " ")
	}
	return s.text
}

// carried reports whether entries of a kind are taken over. Rows, the values of
// sequences, large objects and subscriptions are not.
func carried(kind string) bool {
	switch kind {
	case "SUBSCRIPTION", "SUBSCRIPTION TABLE", "TABLE DATA", "SEQUENCE SET", "STATISTICS DATA", KindRefresh,
		"BLOB", "BLOBS", "BLOB COMMENTS", "BLOB METADATA", "LARGE OBJECT", "LARGE OBJECTS", "LARGE OBJECT METADATA":
		return false
	}
	return true
}

// tableOf returns the relation that an entry without an OID of its own is about:
// that of what it depends on first.
func (a *assembly) tableOf(t *tocEntry) uint32 {
	if t.kind == "ROW SECURITY" {
		return t.oid
	}
	for _, id := range t.deps {
		switch on := a.byTOC[id]; {
		case on == nil:
		case on.Table != 0:
			return on.Table
		case a.facts.kinds[on.OID] != "" && isRelation(on.Kind):
			return on.OID
		}
	}
	return 0
}

func isRelation(kind string) bool {
	switch kind {
	case "TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW":
		return true
	}
	return false
}

// place returns the phase of an entry as far as its kind says it.
func (a *assembly) place(t *tocEntry, table uint32) (Phase, rank) {
	switch t.kind {
	case "CONSTRAINT", "INDEX", "STATISTICS":
		if a.facts.late[t.oid] && t.kind == "CONSTRAINT" {
			return PhaseFinal, rankMain
		}
		return a.placeByRelation(table)
	case "INDEX ATTACH":
		return a.placeAttach(table)
	case "RULE":
		if a.facts.viewRules[t.oid] {
			return PhasePre, rankMain
		}
		return PhaseFinal, rankMain
	case "CHECK CONSTRAINT", "FK CONSTRAINT", "TRIGGER",
		"PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA":
		return PhaseFinal, rankMain
	case "DATABASE PROPERTIES":
		return PhaseFinal, rankSettings
	case "EVENT TRIGGER":
		return PhaseFinal, rankEvent
	}
	return PhasePre, rankMain
}

// placeByRelation places what is built on rows. The rows of an ordinary table
// arrive in the table phase, those of a materialized view in the final one; a
// partitioned table has none, and its index must stand before those of the
// partitions can be attached to it.
func (a *assembly) placeByRelation(table uint32) (Phase, rank) {
	switch a.facts.kinds[table] {
	case "r":
		return PhaseTable, rankMain
	case "m":
		return PhaseFinal, rankMatview
	}
	return PhasePre, rankMain
}

// placeAttach places the attachment of an index to that of the partitioned parent.
// An index that becomes valid by its last attachment makes the one above it valid
// too. PostgreSQL looks for that without waiting for others who do the same, and
// then nobody finds the last one. So the upper levels are tied together at the
// end, one after the other; the leaves follow their tables.
func (a *assembly) placeAttach(table uint32) (Phase, rank) {
	if a.facts.kinds[table] == "p" {
		return PhaseFinal, rankMain
	}
	return PhasePre, rankMain
}

// follow moves n to where it comes after an entry that it depends on.
func (n *node) follow(on *node) {
	n.left = n.left || on.left
	switch {
	case on.Phase == PhaseFinal:
		n.Phase, n.rank = PhaseFinal, max(n.rank, on.rank)
	case on.Phase == PhaseTable && n.Phase == PhasePre && ridesAlong(n.Kind):
		n.Phase, n.Table = PhaseTable, on.Table
	case on.Phase == PhaseTable && n.Table != on.Table, on.Phase == PhaseTable && n.Phase == PhasePre:
		n.Phase = PhaseFinal
	}
}

// ridesAlong tells the kinds that speak about an object and so go where it goes.
func ridesAlong(kind string) bool {
	switch kind {
	case "COMMENT", "SECURITY LABEL", "ACL", "INDEX ATTACH":
		return true
	}
	return false
}

// splitKey cuts a foreign key in two: the constraint, which locks both tables
// for a moment, and the check of the rows, which locks out nobody.
func (a *assembly) splitKey(n *node, k foreignKey) {
	body, ok := strings.CutSuffix(n.SQL, ";")
	if !ok {
		return
	}
	n.SQL = body + " NOT VALID;"
	v := &node{Entry: n.Entry, rank: rankValidate}
	v.Kind = KindValidate
	v.SQL = fmt.Sprintf("ALTER TABLE ONLY %s VALIDATE CONSTRAINT %s;", postgres.QuoteIdent(k.table.schema, k.table.name), postgres.QuoteIdent(k.name))
	a.nodes = append(a.nodes, v)
}

// ahead says how the constraint's index can be made first. ALTER TABLE, which makes both,
// locks out whoever makes another index of the table.
func (n *node) ahead(k uniqueKey) error {
	stmts, err := statements(n.SQL)
	if err != nil {
		return err
	}
	with := []string{k.add}
	for _, s := range stmts[1:] { // that the table is clustered by it, and the like
		with = append(with, s.text)
	}
	n.Index, n.WithIndex = k.index, strings.Join(with, "\n")
	return nil
}

func (a *assembly) refresh() {
	for _, r := range a.facts.populated {
		a.nodes = append(a.nodes, &node{rank: rankRefresh, Entry: Entry{
			Kind: KindRefresh, Schema: r.schema, Name: r.name, Owner: r.owner, OID: r.oid, Table: r.oid, Phase: PhaseFinal,
			SQL: "REFRESH MATERIALIZED VIEW " + postgres.QuoteIdent(r.schema, r.name) + ";",
		}})
	}
}

// settleDefaults puts default privileges behind the last entry that makes an
// object they would apply to. The dump states the privileges of its objects in
// full, so defaults must not add to them; later commands must find them.
func (a *assembly) settleDefaults() {
	late := slices.ContainsFunc(a.nodes, func(n *node) bool { return n.makes && n.Phase == PhaseFinal })
	for _, n := range a.nodes {
		if n.Kind == "DEFAULT ACL" && late {
			n.Phase = PhaseFinal
		}
	}
}

// entries returns the nodes in the order in which they must run, numbered.
func (a *assembly) entries() []Entry {
	order := map[Phase]int{PhasePre: 0, PhaseTable: 1, PhaseFinal: 2}
	slices.SortStableFunc(a.nodes, func(x, y *node) int {
		if x.Phase != y.Phase {
			return order[x.Phase] - order[y.Phase]
		}
		return int(x.rank) - int(y.rank)
	})
	out := make([]Entry, len(a.nodes))
	for i, n := range a.nodes {
		n.ID = i + 1
		out[i] = n.Entry
	}
	return out
}

const databaseClass = 1262 // pg_database

// ofDatabase reports whether an entry is a comment, label or privilege of the
// database itself.
func (a *assembly) ofDatabase(t *tocEntry) bool {
	if t.class != 0 || len(t.deps) == 0 {
		return false
	}
	on := a.byTOC[t.deps[0]]
	return on != nil && on.Kind == "DATABASE"
}

// addDatabase adds what an entry says about the database, one statement an
// entry, for the database that it will be run in, whatever its name.
// CREATE DATABASE is not among them: see CreateDatabase.
func (a *assembly) addDatabase(n *node) error {
	stmts, err := statements(n.SQL)
	if err != nil {
		return err
	}
	for _, s := range stmts {
		if !carriedDatabase(s) {
			continue
		}
		piece := &node{Entry: n.Entry, rank: n.rank}
		piece.SQL = onCurrentDatabase(s)
		piece.path = s.word(1) == "database" && s.setsPath()
		a.nodes = append(a.nodes, piece)
	}
	return nil
}

func (s statement) setsPath() bool {
	for i := range s.tokens {
		if s.word(i) == "set" {
			return s.word(i+1) == "search_path"
		}
	}
	return false
}

// pathFirst has the database's search_path set, in addition, before a function is called:
// Apply looks there for what it names without a schema. The scripts of extensions, which
// may add to the path as they find it, come first.
func (a *assembly) pathFirst() {
	i := slices.IndexFunc(a.nodes, func(n *node) bool { return n.path })
	if i < 0 {
		return
	}
	early := *a.nodes[i]
	early.Phase, early.rank = PhasePre, rankMain
	behind := 0
	for i, n := range a.nodes {
		if n.Kind == "EXTENSION" {
			behind = i + 1
		}
	}
	a.nodes = slices.Insert(a.nodes, behind, &early)
}

// carriedDatabase leaves out the creation, which has its own way, and what fences
// a database: default_transaction_read_only and Hawser's settings.
func carriedDatabase(s statement) bool {
	if s.word(0) == "create" || s.word(0) == "update" {
		return false
	}
	for i, t := range s.tokens {
		if t.kind != tokenWord || s.word(i) != "set" {
			continue
		}
		name := s.word(i + 1)
		if name == "default_transaction_read_only" || name == "hawser" || strings.HasPrefix(name, "hawser.") {
			return false
		}
	}
	return true
}

// onCurrentDatabase rewrites a statement about a named database to one about the
// database that runs it.
func onCurrentDatabase(s statement) string {
	for i, t := range s.tokens {
		isName := t.kind == tokenWord && s.word(i) == "database" && slices.Contains([]string{"alter", "on", "in"}, s.word(i-1))
		if !isName || i+1 >= len(s.tokens) {
			continue
		}
		name := s.tokens[i+1]
		escape := strings.NewReplacer("%", "%%", "'", "''", `\`, `\\`)
		body := fmt.Sprintf(" BEGIN EXECUTE pg_catalog.format(E'%s%%I%s', pg_catalog.current_database()); END ",
			escape.Replace(s.text[:name.start]), escape.Replace(s.text[name.end:]))
		tag := dollarTag(body)
		return "DO " + tag + body + tag + ";"
	}
	return s.text
}

// dollarTag returns a dollar quote that does not occur in s.
func dollarTag(s string) string {
	tag := "$hawser$"
	for i := 0; strings.Contains(s, tag); i++ {
		tag = fmt.Sprintf("$hawser%d$", i)
	}
	return tag
}
