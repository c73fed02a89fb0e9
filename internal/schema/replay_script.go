package schema

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	pgq "github.com/pganalyze/pg_query_go/v6"

	"github.com/hawser/hawser/internal/problem"
)

// A ddlScript is one string of SQL, split.
type ddlScript struct {
	statements []*ddlStatement
	at         string // of the message that find was last called for
	last       int    // what it found
}

// A ddlStatement is one statement of a script.
type ddlStatement struct {
	text  string
	node  *pgq.Node // nil: the parser, whose grammar is one version's, cannot read it
	tag   string    // of the event that it fires; "" none
	live  bool      // it was not rolled back within the script
	order int       // live statements before it that fired
}

// parseDDL splits text and works out which of its statements fire an event and
// survive. The string that a client sends has no control flow, so what its own
// SAVEPOINT, ROLLBACK and so on do to each statement can be read off.
func parseDDL(text string, m *ddlMessage) *ddlScript {
	if m.Settings["standard_conforming_strings"] == "off" {
		text = escapeStrings(text)
	}
	s := &ddlScript{statements: split(text)}
	for _, st := range s.statements {
		st.live = true
		if st.node != nil {
			st.tag = commandTag(st.node, m.Server)
		} else {
			st.tag = guessTag(st.text)
		}
	}
	s.number()
	return s
}

// split cuts text into statements. Where the parser fails, the lexer cuts, so that
// one statement of a newer grammar does not hide its neighbours.
func split(text string) []*ddlStatement {
	if tree, err := parse(text); err == nil {
		var out []*ddlStatement
		for _, raw := range tree.Stmts {
			from, to := int(raw.StmtLocation), len(text)
			if raw.StmtLen > 0 {
				to = from + int(raw.StmtLen)
			}
			out = append(out, &ddlStatement{text: strings.TrimSpace(text[from:to]), node: raw.Stmt})
		}
		return out
	}
	var out []*ddlStatement
	for _, piece := range cut(text) {
		st := &ddlStatement{text: piece}
		if tree, err := parse(piece); err == nil && len(tree.Stmts) == 1 {
			st.node = tree.Stmts[0].Stmt
		}
		out = append(out, st)
	}
	return out
}

// cut splits text at the semicolons outside of parentheses and BEGIN ATOMIC bodies.
func cut(text string) []string {
	scan, err := pgq.Scan(text)
	if err != nil {
		return []string{text}
	}
	var pieces []string
	depth, from := 0, 0
	add := func(to int) {
		if piece := strings.TrimSpace(text[from:to]); piece != "" {
			pieces = append(pieces, piece)
		}
	}
	for i, t := range scan.Tokens {
		switch t.Token {
		case pgq.Token_ASCII_40: // (
			depth++
		case pgq.Token_ASCII_41: // )
			depth--
		case pgq.Token_ATOMIC:
			if i > 0 && scan.Tokens[i-1].Token == pgq.Token_BEGIN_P {
				depth++
			}
		case pgq.Token_CASE:
			if depth > 0 {
				depth++
			}
		case pgq.Token_END_P:
			if depth > 0 {
				depth--
			}
		case pgq.Token_ASCII_59: // ;
			if depth == 0 {
				add(int(t.Start))
				from = int(t.End)
			}
		}
	}
	add(len(text))
	return pieces
}

// plainString finds what may hold quotes: comments, quoted names, dollar-quoted
// bodies, and strings, with the letter or ampersand before them.
var plainString = regexp.MustCompile(`(?s)--[^\n]*|/\*.*?\*/|"[^"]*"|\$([A-Za-z_][\w]*)?\$|[\w&]?'(?:[^'\\]|\\.|'')*'`)

// escapeStrings marks the strings of a text that was written under
// standard_conforming_strings=off, so that it means the same to the parser.
func escapeStrings(text string) string {
	var out strings.Builder
	for {
		at := plainString.FindStringIndex(text)
		if at == nil {
			out.WriteString(text)
			return out.String()
		}
		out.WriteString(text[:at[0]])
		found := text[at[0]:at[1]]
		text = text[at[1]:]
		switch {
		case found[0] == '$':
			end := strings.Index(text, found)
			if end < 0 {
				end = len(text)
			} else {
				end += len(found)
			}
			found, text = found+text[:end], text[end:]
		case found[0] == '\'' && strings.Contains(found, `\`):
			found = "E" + found
		}
		out.WriteString(found)
	}
}

// tagWords finds the tag of a statement that the parser cannot read.
var tagWords = regexp.MustCompile(`(?i)^\s*(create|alter|drop)\s+(?:or\s+replace\s+)?(?:unique\s+|unlogged\s+|global\s+|recursive\s+|trusted\s+|constraint\s+)*` +
	`(table|foreign\s+table|materialized\s+view|view|index|sequence|schema|function|procedure|trigger|type|domain|policy|publication|statistics|aggregate|extension|server|collation|rule|operator|cast)\b`)

func guessTag(text string) string {
	if m := tagWords.FindStringSubmatch(text); m != nil {
		return strings.ToUpper(m[1] + " " + strings.Join(strings.Fields(m[2]), " "))
	}
	return ""
}

// number sets live and order of each statement by following the transaction control
// between them, as hawser.ddl_order counted them on the primary.
func (s *ddlScript) number() {
	type savepoint struct {
		name      string
		at, count int
	}
	var points []savepoint
	start, startCount, count := 0, 0, 0 // of the transaction at hand
	kill := func(from, to int) {
		for _, st := range s.statements[from:to] {
			st.live = false
		}
	}
	for i, st := range s.statements {
		if t := st.node.GetTransactionStmt(); t != nil {
			switch t.Kind {
			case pgq.TransactionStmtKind_TRANS_STMT_SAVEPOINT:
				points = append(points, savepoint{t.SavepointName, i, count})
			case pgq.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:
				at := len(points) - 1
				for at >= 0 && points[at].name != t.SavepointName {
					at--
				}
				if at < 0 { // it was set by an earlier string
					kill(start, i)
					count, points = startCount, nil
					break
				}
				kill(points[at].at, i)
				count, points = points[at].count, points[:at+1]
			case pgq.TransactionStmtKind_TRANS_STMT_ROLLBACK:
				kill(start, i)
				start, count, points = i, startCount, nil
			case pgq.TransactionStmtKind_TRANS_STMT_COMMIT, pgq.TransactionStmtKind_TRANS_STMT_PREPARE:
				start, startCount, points = i, count, nil
			}
			continue
		}
		if v := st.node.GetVariableSetStmt(); v != nil && v.Kind == pgq.VariableSetKind_VAR_RESET_ALL {
			count = 0
		}
		if d := st.node.GetDiscardStmt(); d != nil && d.Target == pgq.DiscardMode_DISCARD_ALL {
			count = 0
		}
		if st.tag != "" {
			st.order = count
			count++
		}
	}
}

// find returns the statement that fired m. order is the count on the primary; the
// tag and the objects decide where the count can't be right. RESET ALL resets the
// count, too: where two statements have the same, the one that is after the last that
// was found is meant.
func (s *ddlScript) find(m *ddlMessage) *ddlStatement {
	st := s.choose(m)
	if st != nil {
		s.at, s.last = m.At, slices.Index(s.statements, st)
	}
	return st
}

func (s *ddlScript) choose(m *ddlMessage) *ddlStatement {
	if len(s.statements) == 1 && (s.statements[0].tag == m.Tag || s.statements[0].node == nil) {
		return s.statements[0]
	}
	var all []*ddlStatement
	fired := 0
	for _, st := range s.statements {
		if !st.live || st.tag == "" {
			continue
		}
		fired++
		if st.tag == m.Tag {
			all = append(all, st)
		}
	}
	order := m.Order
	if m.Nested && fired > 0 {
		order %= fired // a loop ran the same string again
	}
	var counted, named []*ddlStatement
	for _, st := range all {
		if !st.concerns(m) {
			continue
		}
		named = append(named, st)
		if st.order == order {
			counted = append(counted, st)
		}
	}
	if !m.Nested && len(counted) > 1 {
		counted = slices.DeleteFunc(counted, func(st *ddlStatement) bool {
			return m.At == s.at && slices.Index(s.statements, st) <= s.last
		})
		counted = counted[:min(1, len(counted))]
	}
	switch {
	case len(counted) > 0 && same(counted):
		return counted[0]
	case len(counted) == 0 && len(named) > 0 && same(named):
		return named[0]
	}
	return nil // better none than a wrong one
}

// same reports whether all statements have one text.
func same(list []*ddlStatement) bool {
	for _, st := range list {
		if st.text != list[0].text {
			return false
		}
	}
	return true
}

// concerns reports whether an object that the statement is about is among those of m;
// true where it names none.
func (st *ddlStatement) concerns(m *ddlMessage) bool {
	names, creates := subjects(st.node)
	if len(names) == 0 {
		return true
	}
	for _, list := range [][]ddlObject{m.Objects, m.Dropped} {
		for _, o := range list {
			for _, n := range names {
				if n.is(o, creates, m.Schema) {
					return true
				}
			}
		}
	}
	return false
}

// subject is a name in a statement; schema is "" where it is not qualified.
type subject struct{ schema, name string }

func (s subject) is(o ddlObject, creates bool, current string) bool {
	in := o.Schema
	if in == "" {
		in = o.TableSchema
	}
	switch {
	case s.schema != "" && in != "" && s.schema != in:
		return false
	case s.schema == "" && creates && in != "" && in != current:
		return false
	}
	return o.Table == s.name || o.Name == s.name || slices.Contains(nameParts(o.Identity, in), s.name)
}

var nameToken = regexp.MustCompile(`"(?:[^"]|"")*"|[^\s"().,]+`)

// nameParts are the names in an object's identity, without the schema's.
func nameParts(identity, schema string) (parts []string) {
	for i, t := range nameToken.FindAllString(identity, -1) {
		if strings.HasPrefix(t, `"`) {
			t = strings.ReplaceAll(t[1:len(t)-1], `""`, `"`)
		}
		if i > 0 || t != schema {
			parts = append(parts, t)
		}
	}
	return parts
}

// subjects are the names that a statement makes, changes or drops; of those that
// rename, the new name, which the message has.
func subjects(node *pgq.Node) (names []subject, creates bool) {
	relation := func(r *pgq.RangeVar) []subject {
		if r == nil {
			return nil
		}
		return []subject{{r.Schemaname, r.Relname}}
	}
	switch n := node.GetNode().(type) {
	case *pgq.Node_CreateStmt:
		return relation(n.CreateStmt.Relation), true
	case *pgq.Node_ViewStmt:
		return relation(n.ViewStmt.View), true
	case *pgq.Node_CreateSeqStmt:
		return relation(n.CreateSeqStmt.Sequence), true
	case *pgq.Node_CreateFunctionStmt:
		return []subject{lastName(n.CreateFunctionStmt.Funcname)}, true
	case *pgq.Node_AlterTableStmt:
		return relation(n.AlterTableStmt.Relation), false
	case *pgq.Node_IndexStmt:
		return relation(n.IndexStmt.Relation), false
	case *pgq.Node_CreateTrigStmt:
		return relation(n.CreateTrigStmt.Relation), false
	case *pgq.Node_RefreshMatViewStmt:
		return relation(n.RefreshMatViewStmt.Relation), false
	case *pgq.Node_RenameStmt:
		if n.RenameStmt.Relation != nil && n.RenameStmt.Subname != "" {
			return relation(n.RenameStmt.Relation), false
		}
		return []subject{{"", n.RenameStmt.Newname}}, false
	case *pgq.Node_CreateSchemaStmt:
		if n.CreateSchemaStmt.Schemaname != "" {
			return []subject{{"", n.CreateSchemaStmt.Schemaname}}, false
		}
	case *pgq.Node_DropStmt:
		for _, o := range n.DropStmt.Objects {
			if s := droppedName(o, n.DropStmt.RemoveType); s.name != "" {
				names = append(names, s)
			}
		}
	}
	return names, false
}

// droppedName is the name of one object of a DROP.
func droppedName(o *pgq.Node, kind pgq.ObjectType) subject {
	switch n := o.GetNode().(type) {
	case *pgq.Node_ObjectWithArgs:
		return lastName(n.ObjectWithArgs.Objname)
	case *pgq.Node_List:
		return lastName(withoutHost(n.List.Items, kind))
	case *pgq.Node_TypeName:
		return lastName(n.TypeName.Names)
	case *pgq.Node_String_:
		return subject{"", n.String_.Sval}
	}
	return subject{}
}

// withoutHost leaves out of a name the table, or the index's access method, that the
// object belongs to, which stands where a schema's name would.
func withoutHost(parts []*pgq.Node, kind pgq.ObjectType) []*pgq.Node {
	n := len(parts)
	switch kind {
	case pgq.ObjectType_OBJECT_TRIGGER, pgq.ObjectType_OBJECT_RULE, pgq.ObjectType_OBJECT_POLICY:
		if n > 1 {
			return append(slices.Clone(parts[:n-2]), parts[n-1])
		}
	case pgq.ObjectType_OBJECT_OPCLASS, pgq.ObjectType_OBJECT_OPFAMILY:
		if n > 1 {
			return parts[1:]
		}
	}
	return parts
}

// lastName is a possibly qualified name.
func lastName(parts []*pgq.Node) (s subject) {
	if n := len(parts); n > 0 {
		s.name = parts[n-1].GetString_().GetSval()
		if n > 1 {
			s.schema = parts[n-2].GetString_().GetSval()
		}
	}
	return s
}

var (
	sqlFunctionFrame = regexp.MustCompile(`^SQL function ".*" statement ([0-9]+)`)
	// frameAfter is the end of the innermost statement: the line of its caller. The
	// statement stands in the context as it is, its quotes included.
	frameAfter = regexp.MustCompile(`"\n(?:PL/\w+ (?:function|anonymous code block)|SQL (?:statement|function) "|extension script file )`)
)

const statementFrame = `SQL statement "`

// locate finds the statement that fired m in source, the text that m refers to.
func locate(m *ddlMessage, source string, parse func(string) *ddlScript) (*ddlStatement, error) {
	if !m.Nested {
		if st := parse(source).find(m); st != nil {
			return st, nil
		}
		return nil, notFound(m, source)
	}
	if g := sqlFunctionFrame.FindStringSubmatch(source); g != nil {
		return inFunctions(m, g[1], source, parse)
	}
	if !strings.HasPrefix(source, statementFrame) {
		return nil, notFound(m, source)
	}
	text := source[len(statementFrame):]
	ends := frameAfter.FindAllStringIndex(text, -1)
	for _, end := range ends {
		if st := readable(parse(text[:end[0]]).find(m)); st != nil {
			return st, nil
		}
	}
	if st := parse(strings.TrimSuffix(text, `"`)).find(m); st != nil && (len(ends) == 0 || st.node != nil) {
		return st, nil
	}
	if len(ends) > 0 { // a statement of a newer grammar
		if st := parse(text[:ends[0][0]]).find(m); st != nil {
			return st, nil
		}
	}
	return nil, notFound(m, source)
}

func readable(st *ddlStatement) *ddlStatement {
	if st != nil && st.node != nil {
		return st
	}
	return nil
}

// inFunctions finds statement number n of one of the bodies that the context's bare
// function name may mean.
func inFunctions(m *ddlMessage, number, source string, parse func(string) *ddlScript) (*ddlStatement, error) {
	n, err := strconv.Atoi(number)
	if err != nil {
		return nil, notFound(m, source)
	}
	var found []*ddlStatement
	for _, body := range m.Functions {
		list := parse(body).statements
		if n >= 1 && n <= len(list) && list[n-1].tag == m.Tag && list[n-1].concerns(m) {
			found = append(found, list[n-1])
		}
	}
	if len(found) == 0 || !same(found) {
		return nil, notFound(m, source)
	}
	return found[0], nil
}

func notFound(m *ddlMessage, source string) error {
	return problem.New("ddl-not-found", m.object(),
		"the text of the command could not be told from its surroundings: "+excerpt(source),
		"hawser link drop NAME --remove-replica").Advise("then create the link again")
}

// excerpt shortens a text for people.
func excerpt(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + " …"
}
