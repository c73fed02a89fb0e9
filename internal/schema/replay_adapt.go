package schema

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	pgq "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// edit replaces the bytes [from, to) of a statement.
type edit struct {
	from, to int
	with     string
}

// adapt returns the statement as it has to be run here, "" if not at all:
//   - without CONCURRENTLY, which can't stand in a transaction and would not be
//     in the statement's place among its neighbours;
//   - without a tablespace that this side does not have;
//   - with CURRENT_USER and SESSION_USER, as roles, spelled out;
//   - with the name that the primary chose for an index;
//   - without the temporary ones among the objects of a DROP.
//
// The text is edited, not written anew from the parse tree: the server is to read
// what the user wrote.
func (r *replay) adapt(ctx context.Context, st *ddlStatement) (string, error) {
	if st.node == nil {
		return st.text, nil
	}
	if drop := st.node.GetDropStmt(); drop != nil {
		return r.adaptDrop(st, drop)
	}
	// Places in the tree are those in the script; the statement's own are wanted.
	tree, err := parse(st.text)
	if err != nil || len(tree.Stmts) != 1 {
		return st.text, nil
	}
	scan, err := pgq.Scan(st.text)
	if err != nil {
		return st.text, nil
	}
	node := tree.Stmts[0].Stmt
	edits := userEdits(node, scan, r.m.User)
	if concurrent(node) {
		edits = append(edits, wordEdits(scan, pgq.Token_CONCURRENTLY, pgq.Token_FINALIZE)...)
	}
	spaces, gone, err := r.tablespaceEdits(ctx, node, scan, st.text)
	if err != nil || gone {
		return "", err
	}
	edits = append(edits, r.boundEdits(node, scan)...)
	edits = append(edits, r.nameEdit(node, scan)...)
	return apply(st.text, append(edits, spaces...)), nil
}

// boundEdits puts the primary's bound in place of one that is written as an expression,
// which has the value of the moment.
func (r *replay) boundEdits(node *pgq.Node, scan *pgq.ScanResult) (edits []edit) {
	for _, element := range node.GetCreateSchemaStmt().GetSchemaElts() {
		edits = append(edits, r.boundEdits(element, scan)...)
	}
	name, bound := node.GetCreateStmt().GetRelation(), node.GetCreateStmt().GetPartbound()
	for _, c := range node.GetAlterTableStmt().GetCmds() {
		if p := c.GetAlterTableCmd().GetDef().GetPartitionCmd(); p.GetBound() != nil {
			name, bound = p.Name, p.Bound
		}
	}
	if bound == nil || !computed(bound) {
		return edits
	}
	var def string
	for _, b := range r.m.Bounds {
		if b.Table == name.GetRelname() && (b.Schema == name.GetSchemaname() || name.GetSchemaname() == "") {
			def = b.Def
		}
	}
	from, to, ok := boundPlace(scan, bound.Location)
	if def == "" || !ok {
		return edits
	}
	return append(edits, edit{from, to, def})
}

// computed reports whether a bound is more than constants.
func computed(bound *pgq.PartitionBoundSpec) (any bool) {
	walkMessage(bound.ProtoReflect(), func(m protoreflect.Message) {
		switch n := m.Interface().(type) {
		case *pgq.FuncCall, *pgq.SQLValueFunction:
			any = true
		case *pgq.A_Const:
			any = any || relativeTime(n.GetSval().GetSval())
		}
	})
	return any
}

// boundPlace finds FOR VALUES … in a statement: location is the place of the third
// word, IN, FROM or WITH, behind which one list stands, or two with TO between them.
func boundPlace(scan *pgq.ScanResult, location int32) (from, to int, ok bool) {
	tokens := slices.DeleteFunc(slices.Clone(scan.Tokens), func(t *pgq.ScanToken) bool {
		return t.Token == pgq.Token_SQL_COMMENT || t.Token == pgq.Token_C_COMMENT
	})
	at := slices.IndexFunc(tokens, func(t *pgq.ScanToken) bool { return t.Start == location })
	if at < 2 || tokens[at-2].Token != pgq.Token_FOR {
		return 0, 0, false
	}
	lists := 1
	if tokens[at].Token == pgq.Token_FROM {
		lists = 2
	}
	depth := 0
	for _, t := range tokens[at:] {
		switch t.Token {
		case pgq.Token_ASCII_40:
			depth++
		case pgq.Token_ASCII_41:
			if depth--; depth == 0 {
				lists--
			}
		}
		if lists == 0 {
			return int(tokens[at-2].Start), int(t.End), true
		}
	}
	return 0, 0, false
}

func apply(text string, edits []edit) string {
	slices.SortFunc(edits, func(a, b edit) int { return b.from - a.from })
	for _, e := range edits {
		text = text[:e.from] + e.with + text[e.to:]
	}
	return text
}

// concurrent reports whether the statement is one that runs in transactions of its
// own. REFRESH MATERIALIZED VIEW CONCURRENTLY is not.
func concurrent(node *pgq.Node) bool {
	if node.GetIndexStmt().GetConcurrent() {
		return true
	}
	for _, c := range node.GetAlterTableStmt().GetCmds() {
		cmd := c.GetAlterTableCmd()
		if cmd.GetSubtype() == pgq.AlterTableType_AT_DetachPartitionFinalize || cmd.GetDef().GetPartitionCmd().GetConcurrent() {
			return true
		}
	}
	return false
}

func wordEdits(scan *pgq.ScanResult, words ...pgq.Token) []edit {
	var out []edit
	for _, t := range scan.Tokens {
		if slices.Contains(words, t.Token) {
			out = append(out, edit{int(t.Start), int(t.End), ""})
		}
	}
	return out
}

// userEdits spells out the roles that depend on who runs the statement.
func userEdits(node *pgq.Node, scan *pgq.ScanResult, user ddlUser) []edit {
	var out []edit
	walk(node, func(m protoreflect.Message) {
		spec, ok := m.Interface().(*pgq.RoleSpec)
		if !ok {
			return
		}
		name := user.Name
		switch spec.Roletype {
		case pgq.RoleSpecType_ROLESPEC_SESSION_USER:
			name = user.Session
		case pgq.RoleSpecType_ROLESPEC_CURRENT_USER, pgq.RoleSpecType_ROLESPEC_CURRENT_ROLE:
		default:
			return
		}
		for _, t := range scan.Tokens {
			if t.Start == spec.Location {
				out = append(out, edit{int(t.Start), int(t.End), pgx.Identifier{name}.Sanitize()})
			}
		}
	})
	return out
}

// tablespaceEdits takes out the clauses that name a tablespace which this side does
// not have. gone: nothing is left of the statement.
func (r *replay) tablespaceEdits(ctx context.Context, node *pgq.Node, scan *pgq.ScanResult, text string) (edits []edit, gone bool, err error) {
	if node.GetAlterTableMoveAllStmt() != nil {
		r.note("ddl-tablespace", "tables are not moved between tablespaces on this side")
		return nil, true, nil
	}
	tokens := slices.DeleteFunc(slices.Clone(scan.Tokens), func(t *pgq.ScanToken) bool {
		return t.Token == pgq.Token_SQL_COMMENT || t.Token == pgq.Token_C_COMMENT
	})
	word := func(i int) pgq.Token {
		if i < 0 || i >= len(tokens) {
			return pgq.Token_NUL
		}
		return tokens[i].Token
	}
	for i := range tokens {
		if word(i) != pgq.Token_TABLESPACE || i+1 == len(tokens) {
			continue
		}
		name := identifier(text[tokens[i+1].Start:tokens[i+1].End])
		exists, err := r.tablespaceExists(ctx, name)
		if err != nil {
			return nil, false, err
		}
		if exists {
			continue
		}
		first, last := i, i+1
		switch {
		case word(i-1) == pgq.Token_INDEX && word(i-2) == pgq.Token_USING:
			first = i - 2
		case word(i-1) == pgq.Token_SET && node.GetAlterTableStmt() != nil:
			if len(node.GetAlterTableStmt().Cmds) == 1 {
				r.note("ddl-tablespace", fmt.Sprintf("this side has no tablespace %q; the relation stays where it is", name))
				return nil, true, nil
			}
			first = i - 1
			if word(last+1) == pgq.Token_ASCII_44 { // the comma goes too
				last++
			} else {
				first--
			}
		}
		r.note("ddl-tablespace", fmt.Sprintf("this side has no tablespace %q; the default one is used", name))
		edits = append(edits, edit{int(tokens[first].Start), int(tokens[last].End), ""})
	}
	return edits, false, nil
}

func (r *replay) tablespaceExists(ctx context.Context, name string) (exists bool, err error) {
	err = r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_tablespace WHERE spcname = $1)`, name).Scan(&exists)
	if err != nil {
		return false, fmt.Errorf("look for tablespace %q: %w", name, err)
	}
	return exists, nil
}

// identifier is the name that a token of SQL stands for.
func identifier(token string) string {
	if strings.HasPrefix(token, `"`) {
		return strings.ReplaceAll(strings.Trim(token, `"`), `""`, `"`)
	}
	return strings.ToLower(token)
}

// adaptDrop drops what the primary dropped: where the statement named temporary or
// missing objects too, the objects are listed anew. An index may be missing here,
// since one that CREATE INDEX CONCURRENTLY could not build is the primary's alone; and
// a function of a session's temporary types is not carried.
func (r *replay) adaptDrop(st *ddlStatement, drop *pgq.DropStmt) (string, error) {
	var roots []string
	// An index may be missing here, and so may what no event told of.
	missing := drop.RemoveType == pgq.ObjectType_OBJECT_INDEX
	for _, o := range r.m.Dropped {
		// A column counts as named when its type falls with the table that it is the type of.
		if o.Root && o.Type != "table column" {
			roots = append(roots, o.Identity)
			missing = missing || o.Untold
		}
	}
	if len(roots) == len(drop.Objects) && !missing && len(r.m.Temporary) == 0 {
		return st.text, nil
	}
	word, ok := droppedWords[drop.RemoveType]
	if !ok || len(roots) == 0 {
		return st.text, nil
	}
	text := "DROP " + word + " "
	if missing || drop.MissingOk || len(r.m.Temporary) > 0 {
		text += "IF EXISTS "
	}
	text += strings.Join(roots, ", ")
	if drop.Behavior == pgq.DropBehavior_DROP_CASCADE {
		text += " CASCADE"
	}
	return text, nil
}

// droppedWords are the objects whose identity, as sql_drop tells it, is what DROP takes.
var droppedWords = map[pgq.ObjectType]string{
	pgq.ObjectType_OBJECT_TABLE: "TABLE", pgq.ObjectType_OBJECT_INDEX: "INDEX", pgq.ObjectType_OBJECT_VIEW: "VIEW",
	pgq.ObjectType_OBJECT_MATVIEW: "MATERIALIZED VIEW", pgq.ObjectType_OBJECT_SEQUENCE: "SEQUENCE",
	pgq.ObjectType_OBJECT_FOREIGN_TABLE: "FOREIGN TABLE", pgq.ObjectType_OBJECT_SCHEMA: "SCHEMA",
	pgq.ObjectType_OBJECT_TYPE: "TYPE", pgq.ObjectType_OBJECT_DOMAIN: "DOMAIN", pgq.ObjectType_OBJECT_FUNCTION: "FUNCTION",
	pgq.ObjectType_OBJECT_PROCEDURE: "PROCEDURE", pgq.ObjectType_OBJECT_AGGREGATE: "AGGREGATE",
}

// temporaryGrant reports whether the command concerns temporary relations only.
func (r *replay) temporaryGrant(st *ddlStatement) bool {
	grant := st.node.GetGrantStmt()
	if grant == nil || len(grant.Objects) == 0 || grant.Targtype != pgq.GrantTargetType_ACL_TARGET_OBJECT {
		return false
	}
	for _, o := range grant.Objects {
		v := o.GetRangeVar()
		if v == nil || v.Schemaname != "pg_temp" && (v.Schemaname != "" || !slices.Contains(r.m.Temporary, v.Relname)) {
			return false
		}
	}
	return true
}

// extensionCommand runs CREATE and ALTER EXTENSION with the version that the primary
// got, where this side has it too.
func (r *replay) extensionCommand(ctx context.Context) error {
	if len(r.m.Objects) == 0 { // it was there already
		return nil
	}
	st, err := r.statement()
	if err != nil {
		return err
	}
	r.describe(st)
	create, alter := st.node.GetCreateExtensionStmt(), st.node.GetAlterExtensionStmt()
	if len(r.m.Extensions) == 0 || create == nil && alter == nil {
		return r.plain(ctx, st)
	}
	e := r.m.Extensions[0]
	version, err := r.extensionVersion(ctx, e)
	if err != nil {
		return err
	}
	name := pgx.Identifier{e.Name}.Sanitize()
	if alter != nil {
		sql := "ALTER EXTENSION " + name + " UPDATE"
		if version {
			sql += " TO " + postgres.QuoteLiteral(e.Version)
		}
		return r.run(ctx, order{sql: sql, node: st.node})
	}
	sql := "CREATE EXTENSION IF NOT EXISTS " + name
	schema, err := r.schemaExists(ctx, e.Schema)
	if err != nil {
		return err
	}
	if schema { // otherwise the extension brings its own
		sql += " SCHEMA " + e.Schema
	}
	if version {
		sql += " VERSION " + postgres.QuoteLiteral(e.Version)
	}
	for _, o := range create.Options {
		if o.GetDefElem().GetDefname() == "cascade" {
			sql += " CASCADE"
		}
	}
	return r.run(ctx, order{sql: sql, node: st.node})
}

// schemaExists looks for a schema by its quoted name.
func (r *replay) schemaExists(ctx context.Context, quoted string) (exists bool, err error) {
	if err := r.conn.QueryRow(ctx, `SELECT to_regnamespace($1) IS NOT NULL`, quoted).Scan(&exists); err != nil {
		return false, fmt.Errorf("look for schema %s: %w", quoted, err)
	}
	return exists, nil
}

// extensionVersion reports whether this side's server has the extension in the
// primary's version; that it does not have it at all is a problem.
func (r *replay) extensionVersion(ctx context.Context, e ddlExtension) (same bool, err error) {
	var any bool
	var major int
	err = r.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_or(version = $2), false), current_setting('server_version_num')::int / 10000
		FROM pg_available_extension_versions WHERE name = $1`, e.Name, e.Version).Scan(&any, &same, &major)
	if err != nil {
		return false, fmt.Errorf("look for extension %q: %w", e.Name, err)
	}
	if !any {
		return false, problem.New("extension-missing", "extension "+pgx.Identifier{e.Name}.Sanitize(),
			"the primary created it, and this side's server does not have it (version "+e.Version+")",
			installExtension(e.Name, major)).Advise(otherPackage + "; the link goes on by itself").Retry()
	}
	if !same {
		r.result.Notes = append(r.result.Notes, problem.Warn("extension-version", "extension "+pgx.Identifier{e.Name}.Sanitize(),
			"this side's server does not have version "+e.Version+" of the primary; its own default version is used",
			"ALTER EXTENSION "+pgx.Identifier{e.Name}.Sanitize()+" UPDATE;").Advise("once version "+e.Version+" is installed on this side's server"))
	}
	return same, nil
}
