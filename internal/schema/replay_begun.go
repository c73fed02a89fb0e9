package schema

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	pgq "github.com/pganalyze/pg_query_go/v6"
)

// CREATE SCHEMA is told when all that it makes is there. A function in a partition's bound
// may run commands before, inside of the new schema: then that is told first, by itself,
// and its command makes the rest.

// beginSchema makes the schema whose CREATE SCHEMA is under way.
func (r *replay) beginSchema(ctx context.Context, owner ddlUser, name string) error {
	quoted := pgx.Identifier{name}.Sanitize()
	there, err := r.schemaExists(ctx, quoted)
	if err != nil || there {
		return err
	}
	r.begun[name] = owner
	was := r.m
	defer func() { r.m = was }()
	r.m = &ddlMessage{Tag: "CREATE SCHEMA", User: owner, Objects: []ddlObject{{Class: "pg_namespace", Type: "schema", Identity: quoted}}}
	return r.run(ctx, order{sql: "CREATE SCHEMA " + quoted, generated: true})
}

// begunSchema is the schema that the message's command made, if it was begun.
func (r *replay) begunSchema() (name string, begun bool) {
	for _, o := range r.m.Objects {
		if o.Class == "pg_namespace" {
			name = strings.Join(nameParts(o.Identity, ""), "")
			_, begun = r.begun[name]
			return name, begun
		}
	}
	return "", false
}

// completeSchema makes what CREATE SCHEMA makes beside the schema, as its owner.
func (r *replay) completeSchema(ctx context.Context, name string, st *ddlStatement) error {
	elements, ok := schemaElements(st)
	if !ok {
		return notFound(r.m, st.text)
	}
	was := r.m
	defer func() { r.m = was }()
	inside := *was
	inside.SearchPath = withSchema(name, was.SearchPath)
	if owner := r.begun[name]; owner.Name != was.User.Name {
		inside.User = owner
	}
	r.m = &inside
	for _, e := range elements {
		if err := r.plain(ctx, e); err != nil {
			return err
		}
	}
	delete(r.begun, name)
	return nil
}

func withSchema(name, path string) string {
	if path == "" {
		return pgx.Identifier{name}.Sanitize()
	}
	return pgx.Identifier{name}.Sanitize() + ", " + path
}

// schemaElements are the commands inside of CREATE SCHEMA, in the order in which the
// server runs them.
func schemaElements(st *ddlStatement) (elements []*ddlStatement, ok bool) {
	nodes := st.node.GetCreateSchemaStmt().GetSchemaElts()
	scan, err := pgq.Scan(st.text)
	if err != nil {
		return nil, false
	}
	starts := elementStarts(scan.Tokens)
	if len(starts) != len(nodes) {
		return nil, false
	}
	for i, node := range nodes {
		to := len(st.text)
		if i+1 < len(starts) {
			to = starts[i+1]
		}
		elements = append(elements, &ddlStatement{text: st.text[starts[i]:to], node: node})
	}
	slices.SortStableFunc(elements, func(a, b *ddlStatement) int { return elementRank(a.node) - elementRank(b.node) })
	return elements, true
}

// elementStarts are the places of CREATE and GRANT, which are reserved words, where they
// begin a command inside of CREATE SCHEMA.
func elementStarts(tokens []*pgq.ScanToken) (starts []int) {
	depth := 0
	before := pgq.Token_NUL
	for i, t := range tokens {
		switch t.Token {
		case pgq.Token_SQL_COMMENT, pgq.Token_C_COMMENT:
			continue
		case pgq.Token_ASCII_40: // (
			depth++
		case pgq.Token_ASCII_41: // )
			depth--
		case pgq.Token_CREATE, pgq.Token_GRANT:
			switch before {
			// A privilege, GRANT OPTION, and labels of columns.
			case pgq.Token_GRANT, pgq.Token_ASCII_44, pgq.Token_WITH, pgq.Token_WITH_LA, pgq.Token_AS, pgq.Token_ASCII_46:
			default:
				if depth == 0 && i > 0 {
					starts = append(starts, int(t.Start))
				}
			}
		}
		before = t.Token
	}
	return starts
}

// elementRank orders as the server does: sequences, tables, views, indexes, triggers, grants.
func elementRank(node *pgq.Node) int {
	switch node.GetNode().(type) {
	case *pgq.Node_CreateSeqStmt:
		return 0
	case *pgq.Node_CreateStmt:
		return 1
	case *pgq.Node_ViewStmt:
		return 2
	case *pgq.Node_IndexStmt:
		return 3
	case *pgq.Node_CreateTrigStmt:
		return 4
	}
	return 5
}
