package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Relation describes a table as the stream does, before its rows.
type Relation struct {
	Table
	Columns []Column
}

// Column is one column of a Relation. TypeSchema and TypeName are as the stream named
// the type, and empty where it did not since the type comes with PostgreSQL.
type Column struct {
	Name                 string
	Type                 uint32 // OID on the primary
	TypeSchema, TypeName string
	Modifier             int32
}

// Maker is what the primary knows of a table that no command announced.
type Maker struct {
	// New says that the table was made by the transaction at hand or later, or is
	// dropped since: no earlier transaction has rows of it.
	New bool
	// Owner is a role of the primary's; "" when the table is dropped.
	Owner     string
	Superuser bool
}

// Provide makes a table for rows that come before the command which made it, as those of
// CREATE TABLE AS and SELECT INTO do, or without one: EXPLAIN ANALYZE of such a command
// makes the table and fires no event. announced tells the two apart. For any other
// table that is unknown it returns a problem. xid is the transaction of the rows.
func (r *Replayer) Provide(ctx context.Context, conn *pgx.Conn, xid uint32, rel Relation) (announced bool, err error) {
	if n := len(r.creating); n > 0 {
		if err := r.provide(ctx, conn, r.creating[n-1], rel); err != nil {
			return true, err
		}
		r.provided[rel.OID] = rel.Table
		return true, nil
	}
	var by Maker
	if r.options.Maker != nil {
		if by, err = r.options.Maker(ctx, rel.OID, xid); err != nil {
			return false, fmt.Errorf("ask the primary of table %s: %w", rel.sql(), err)
		}
	}
	if !by.New {
		return false, problem.New("table-unknown", "table "+rel.sql(),
			"rows of it came, and this side has no such table", "hawser link resync NAME --table "+problem.Word(rel.sql()))
	}
	return false, r.provide(ctx, conn, ddlUser{Name: by.Owner, Superuser: by.Superuser, Session: by.Owner}, rel)
}

// provide makes the table as the stream describes it.
func (r *Replayer) provide(ctx context.Context, conn *pgx.Conn, user ddlUser, rel Relation) error {
	run := &replay{Replayer: r, conn: conn, m: &ddlMessage{Tag: "CREATE TABLE AS", User: user,
		Objects: []ddlObject{{Class: "pg_class", Type: "table", Identity: rel.sql(), TableSchema: rel.Schema, Table: rel.Name}}}}
	var columns []string
	for _, c := range rel.Columns {
		kind, err := typeName(ctx, conn, c)
		if err != nil {
			return err
		}
		if unwritable[kind] {
			kind = "text"
		}
		columns = append(columns, pgx.Identifier{c.Name}.Sanitize()+" "+kind)
	}
	return run.run(ctx, order{sql: "CREATE TABLE " + rel.sql() + " (" + strings.Join(columns, ", ") + ")", generated: true, agent: user.Name == ""})
}

// typeName writes a column's type as this side knows it.
func typeName(ctx context.Context, conn *pgx.Conn, c Column) (name string, err error) {
	err = conn.QueryRow(ctx, `SELECT format_type(t.oid, $4) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
		WHERE CASE WHEN $3 = '' THEN t.oid = $1 ELSE n.nspname = coalesce(nullif($2, ''), 'pg_catalog') AND t.typname = $3 END`,
		c.Type, c.TypeSchema, c.TypeName, c.Modifier).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", problem.New("type-unknown", fmt.Sprintf("type %s.%s (OID %d)", c.TypeSchema, c.TypeName, c.Type),
			"a column has it, and this side has no such type", "hawser link resume NAME").Advise("create it on this side first")
	}
	if err != nil {
		return "", fmt.Errorf("look for the type of column %q: %w", c.Name, err)
	}
	return name, nil
}

// createTableAs makes the table of CREATE TABLE AS or SELECT INTO from what the
// primary says of it; the query is not run. Its rows are in the stream.
func (r *replay) createTableAs(ctx context.Context) error {
	if n := len(r.creating); n > 0 {
		r.creating = r.creating[:n-1]
	}
	for _, t := range r.m.Tables {
		_, provided := r.provided[t.OID]
		delete(r.provided, t.OID)
		if err := r.makeTable(ctx, t, provided); err != nil {
			return err
		}
	}
	return nil
}

// makeTable makes the table, or completes what was made for its rows.
func (r *replay) makeTable(ctx context.Context, t ddlTable, provided bool) error {
	r.writable(t)
	r.result.Created = append(r.result.Created, Table{t.OID, t.Schema, t.Name})
	if provided {
		return r.complete(ctx, t)
	}
	sql, err := r.createTable(ctx, t)
	if err != nil {
		return err
	}
	for _, sql := range append([]string{sql}, t.Indexes...) {
		if err := r.run(ctx, order{sql: sql, generated: true}); err != nil {
			return err
		}
	}
	return nil
}

// likeTemporary reports whether CREATE TABLE takes columns from a temporary table.
func (r *replay) likeTemporary(st *ddlStatement) bool {
	create := st.node.GetCreateStmt()
	if create == nil || len(create.InhRelations) > 0 || create.Partspec != nil {
		return false
	}
	for _, e := range create.TableElts {
		if name := e.GetTableLikeClause().GetRelation(); name.GetSchemaname() == "pg_temp" || name.GetSchemaname() == "" && slices.Contains(r.m.Temporary, name.GetRelname()) {
			return true
		}
	}
	return false
}

// createLike makes what CREATE TABLE LIKE a temporary table made on the primary.
func (r *replay) createLike(ctx context.Context) error {
	for _, t := range r.m.Tables {
		sql, err := r.createTable(ctx, t)
		if err != nil {
			return err
		}
		for _, sql := range append([]string{sql}, t.Indexes...) {
			if err := r.run(ctx, order{sql: sql, generated: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// unwritable are types that take no input: only the server itself makes their values.
var unwritable = map[string]bool{"pg_node_tree": true, "pg_ndistinct": true, "pg_dependencies": true, "pg_mcv_list": true,
	"pg_brin_bloom_summary": true, "pg_brin_minmax_multi_summary": true, "gtsvector": true}

// writable has columns of such types hold their values as text here.
func (r *replay) writable(t ddlTable) {
	for i, c := range t.Columns {
		if unwritable[c.Type] {
			t.Columns[i].Type, t.Columns[i].Default = "text", ""
			name := pgx.Identifier{t.Schema, t.Name}.Sanitize()
			r.result.Notes = append(r.result.Notes, problem.Warn("column-type", "column "+pgx.Identifier{c.Name}.Sanitize()+" of table "+name,
				"nothing can be written into type "+c.Type+", so the column is of type text on this side",
				"ALTER TABLE "+name+" ALTER COLUMN "+pgx.Identifier{c.Name}.Sanitize()+" TYPE text;").At("the primary"))
		}
	}
}

func (r *replay) createTable(ctx context.Context, t ddlTable) (string, error) {
	sql := "CREATE TABLE "
	if t.Persistence == "u" {
		sql = "CREATE UNLOGGED TABLE "
	}
	elements := strings.Join(slices.DeleteFunc(append([]string{columnList(t)}, t.Constraints...), func(s string) bool { return s == "" }), ", ")
	sql += pgx.Identifier{t.Schema, t.Name}.Sanitize() + " (" + elements + ")"
	if t.Method != "" {
		sql += " USING " + pgx.Identifier{t.Method}.Sanitize()
	}
	if len(t.Options) > 0 {
		sql += " WITH (" + optionList(t.Options, " = ") + ")"
	}
	if t.Tablespace != "" {
		exists, err := r.tablespaceExists(ctx, t.Tablespace)
		if err != nil {
			return "", err
		}
		if exists {
			sql += " TABLESPACE " + pgx.Identifier{t.Tablespace}.Sanitize()
		}
	}
	return sql, nil
}

func columnList(t ddlTable) string {
	var out []string
	for _, c := range t.Columns {
		s := pgx.Identifier{c.Name}.Sanitize() + " " + c.Type
		if len(c.Options) > 0 {
			s += " OPTIONS (" + optionList(c.Options, " ") + ")"
		}
		if c.Collation != "" {
			s += " COLLATE " + c.Collation
		}
		if c.NotNull {
			s += " NOT NULL"
		}
		switch {
		case c.Generated != "":
			s += " GENERATED ALWAYS AS (" + c.Generated + ") STORED"
		case c.Identity == "a":
			s += " GENERATED ALWAYS AS IDENTITY"
		case c.Identity == "d":
			s += " GENERATED BY DEFAULT AS IDENTITY"
		case c.Default != "":
			s += " DEFAULT " + c.Default
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// optionList writes a catalog's name=value pairs as SQL takes them.
func optionList(options []string, sep string) string {
	var out []string
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		out = append(out, pgx.Identifier{name}.Sanitize()+sep+postgres.QuoteLiteral(value))
	}
	return strings.Join(out, ", ")
}

// complete gives a table that Provide made what the stream does not say of it: the
// collations, the options, and the domains, for which it names the type underneath.
func (r *replay) complete(ctx context.Context, t ddlTable) error {
	here, options, err := r.columnsHere(ctx, t)
	if err != nil {
		return err
	}
	var changes []string
	for _, c := range t.Columns {
		if is := here[c.Name]; is.Type == c.Type && is.Collation == c.Collation {
			continue
		}
		change := "ALTER COLUMN " + pgx.Identifier{c.Name}.Sanitize() + " TYPE " + c.Type
		if c.Collation != "" {
			change += " COLLATE " + c.Collation
		}
		changes = append(changes, change)
	}
	if len(t.Options) > 0 && !slices.Equal(t.Options, options) {
		changes = append(changes, "SET ("+optionList(t.Options, " = ")+")")
	}
	same, err := r.sameMethod(ctx, t)
	if err != nil {
		return err
	}
	if !same {
		changes = append(changes, "SET ACCESS METHOD "+pgx.Identifier{t.Method}.Sanitize())
	}
	if len(changes) == 0 {
		return nil
	}
	sql := "ALTER TABLE " + pgx.Identifier{t.Schema, t.Name}.Sanitize() + " " + strings.Join(changes, ", ")
	return r.run(ctx, order{sql: sql, generated: true}) // a domain has checks
}

// columnsHere are the types and collations of the table's columns on this side, and its options.
func (r *replay) columnsHere(ctx context.Context, t ddlTable) (columns map[string]ddlColumn, options []string, err error) {
	columns = map[string]ddlColumn{}
	var c ddlColumn
	err = forEach(ctx, r.conn, `SELECT a.attname, format_type(a.atttypid, a.atttypmod),
			CASE WHEN a.attcollation <> y.typcollation THEN a.attcollation::regcollation::text ELSE '' END, coalesce(c.reloptions, '{}')
		FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.oid = to_regclass(`+postgres.QuoteLiteral(pgx.Identifier{t.Schema, t.Name}.Sanitize())+`) AND a.attnum > 0 AND NOT a.attisdropped`,
		[]any{&c.Name, &c.Type, &c.Collation, &options}, func() { columns[c.Name] = c })
	if err != nil {
		return nil, nil, fmt.Errorf("read the columns of %q: %w", t.Name, err)
	}
	return columns, options, nil
}

func (r *replay) sameMethod(ctx context.Context, t ddlTable) (same bool, err error) {
	err = r.conn.QueryRow(ctx, `SELECT $3 = '' OR a.amname = $3 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_am a ON a.oid = c.relam WHERE n.nspname = $1 AND c.relname = $2`, t.Schema, t.Name, t.Method).Scan(&same)
	if err != nil {
		return false, fmt.Errorf("look for the access method of %q: %w", t.Name, err)
	}
	return same, nil
}

// importForeign makes the foreign tables that IMPORT FOREIGN SCHEMA made, without
// asking the foreign server, which this side may not reach.
func (r *replay) importForeign(ctx context.Context) error {
	for _, t := range r.m.Tables {
		sql := "CREATE FOREIGN TABLE " + pgx.Identifier{t.Schema, t.Name}.Sanitize() + " (" + columnList(t) + ") SERVER " +
			pgx.Identifier{t.Server}.Sanitize()
		if len(t.ServerOptions) > 0 {
			sql += " OPTIONS (" + optionList(t.ServerOptions, " ") + ")"
		}
		if err := r.run(ctx, order{sql: sql, generated: true}); err != nil {
			return err
		}
	}
	return nil
}
