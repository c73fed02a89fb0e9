package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	pgq "github.com/pganalyze/pg_query_go/v6"

	"github.com/hawser/hawser/internal/postgres"
)

// An index that CREATE INDEX CONCURRENTLY could not finish was told by no event: it is the
// primary's alone, until REINDEX makes it valid. Meanwhile it has its name, and commands
// take it for the index of a partition. So the primary names each index, and describes the
// trees of those of partitioned tables where there is such a one.

// ddlIndex is an index of the primary.
type ddlIndex struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Table   string   `json:"table"`
	Def     string   `json:"def"`    // "": it is unfinished
	Parent  string   `json:"parent"` // quoted: what it is a partition of
	Comment string   `json:"comment"`
	Invalid []string `json:"invalid"` // those above that are not valid
}

func (x ddlIndex) quoted() string { return pgx.Identifier{x.Schema, x.Name}.Sanitize() }

// create are the statements that make it where it may be there.
func (x ddlIndex) create() (statements []string) {
	statements = []string{ifMissing(x.Def)}
	if x.Comment != "" {
		statements = append(statements, "COMMENT ON INDEX "+x.quoted()+" IS "+postgres.QuoteLiteral(x.Comment))
	}
	return statements
}

// attach are the statements that put it under its parent, which may become valid here by
// that and stays as it is on the primary.
func (x ddlIndex) attach() (statements []string) {
	if x.Parent == "" {
		return nil
	}
	statements = []string{"ALTER INDEX " + x.Parent + " ATTACH PARTITION " + x.quoted()}
	for _, above := range x.Invalid {
		statements = append(statements, "UPDATE pg_catalog.pg_index SET indisvalid = false WHERE indexrelid = "+
			postgres.QuoteLiteral(above)+"::pg_catalog.regclass AND indisvalid")
	}
	return statements
}

// unfinished reports whether the command concerns nothing but indexes that are not here.
func (r *replay) unfinished() bool {
	return len(r.m.Objects) > 0 && len(r.m.Dropped) == 0 &&
		!slices.ContainsFunc(r.m.Objects, func(o ddlObject) bool { return !o.Unfinished })
}

// DropInvalidIndexes takes such indexes from a side that was the primary: the new one does not
// have them, nor what their names and their uniqueness stand in the way of.
func DropInvalidIndexes(ctx context.Context, tx pgx.Tx) error {
	// No command takes an index out of the tree that it is part of.
	_, err := tx.Exec(ctx, `
		DO $$
		DECLARE r record;
		BEGIN
			FOR r IN
				SELECT x.oid, x.relispartition FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid AND x.relkind = 'i'
				WHERE NOT i.indisvalid AND x.relnamespace <> ALL (ARRAY['pg_catalog', 'pg_toast']::regnamespace[])
				AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.oid)
			LOOP
				IF r.relispartition THEN
					DELETE FROM pg_inherits WHERE inhrelid = r.oid;
					DELETE FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = r.oid AND deptype IN ('P', 'S');
					UPDATE pg_class SET relispartition = false WHERE oid = r.oid;
				END IF;
				EXECUTE format('DROP INDEX %s', r.oid::regclass);
			END LOOP;
		END $$`)
	if err != nil {
		return fmt.Errorf("drop the indexes that CREATE INDEX CONCURRENTLY left unfinished: %w", err)
	}
	return nil
}

// grows reports whether a command makes an index, or attaches one.
func grows(node *pgq.Node) bool {
	return node.GetIndexStmt() != nil || slices.ContainsFunc(node.GetAlterTableStmt().GetCmds(), func(c *pgq.Node) bool {
		return c.GetAlterTableCmd().GetSubtype() == pgq.AlterTableType_AT_AttachPartition
	})
}

// makeIndexes makes of the primary's indexes those that this side lacks, parents first, and
// attaches them as they are there.
func (r *replay) makeIndexes(ctx context.Context, indexes []ddlIndex) error {
	for _, x := range indexes {
		if x.Def == "" {
			continue
		}
		if err := r.makeIndex(ctx, x); err != nil {
			return err
		}
		if x.Parent == "" {
			continue
		}
		var attached bool
		err := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1) AND inhparent = to_regclass($2))`,
			x.quoted(), x.Parent).Scan(&attached)
		if err != nil {
			return fmt.Errorf("look for the parent of index %s: %w", x.quoted(), err)
		}
		if attached {
			continue
		}
		for _, sql := range x.attach() {
			if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeIndex makes an index where it is missing. Who gave the command need not own the table.
func (r *replay) makeIndex(ctx context.Context, x ddlIndex) error {
	if index := alone(x.Def).GetIndexStmt(); index != nil {
		owner, err := r.ownerWithout(ctx, index)
		if err != nil || owner == "" {
			return err
		}
		if user := r.m.User; !user.Superuser {
			r.m.User = ddlUser{Name: owner}
			defer func() { r.m.User = user }()
		}
	}
	for _, sql := range x.create() {
		if err := r.run(ctx, order{sql: sql, generated: true}); err != nil {
			return err
		}
	}
	return nil
}

// ownerWithout is the owner of an index's table, "" where the index is there.
func (r *replay) ownerWithout(ctx context.Context, index *pgq.IndexStmt) (owner string, err error) {
	err = r.conn.QueryRow(ctx, `SELECT pg_get_userbyid(c.relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND NOT EXISTS (SELECT FROM pg_class i WHERE i.relnamespace = n.oid AND i.relname = $3)`,
		index.Relation.GetSchemaname(), index.Relation.GetRelname(), index.Idxname).Scan(&owner)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("look for index %q: %w", index.Idxname, err)
	}
	return owner, nil
}

// ifMissing is pg_get_indexdef's text as the command for an index that may be there.
func ifMissing(indexdef string) string {
	before, after, _ := strings.Cut(indexdef, "INDEX ")
	return before + "INDEX IF NOT EXISTS " + after
}

// reindex builds only what this side lacks.
func (r *replay) reindex(ctx context.Context) error {
	if len(r.m.Tree) > 0 {
		return r.makeIndexes(ctx, slices.DeleteFunc(r.m.Tree, func(x ddlIndex) bool { return !slices.Contains(r.m.Indexes, x.Def) }))
	}
	for _, def := range r.m.Indexes { // a primary of an earlier version
		if err := r.makeIndex(ctx, ddlIndex{Def: def}); err != nil {
			return err
		}
	}
	return nil
}

// renameIndexes gives those that came with a partition the primary's names. The last one
// first: where a name was taken, each has a name there that another has here.
func (r *replay) renameIndexes(ctx context.Context) error {
	for _, x := range slices.Backward(r.m.Tree) {
		if x.Parent == "" {
			continue
		}
		err := r.renameFound(ctx, x, `SELECT x.relname FROM pg_inherits h JOIN pg_index i ON i.indexrelid = h.inhrelid JOIN pg_class x ON x.oid = i.indexrelid
			WHERE h.inhparent = to_regclass($1) AND i.indrelid = to_regclass($2) AND x.relname <> $3`,
			x.Parent, pgx.Identifier{x.Schema, x.Table}.Sanitize(), x.Name)
		if err != nil {
			return err
		}
	}
	return nil
}

// renameFound gives the index that a query finds, if any, the primary's name.
func (r *replay) renameFound(ctx context.Context, x ddlIndex, query string, args ...any) error {
	var here string
	err := r.conn.QueryRow(ctx, query, args...).Scan(&here)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the index of %q that is to be %s: %w", x.Table, x.quoted(), err)
	}
	sql := "ALTER INDEX " + pgx.Identifier{x.Schema, here}.Sanitize() + " RENAME TO " + pgx.Identifier{x.Name}.Sanitize()
	return r.run(ctx, order{sql: sql, generated: true, agent: true})
}

// numberIndexes gives those that came with a table, or a constraint, the primary's names.
// The last one first, as renameIndexes does.
func (r *replay) numberIndexes(ctx context.Context) error {
	finished := slices.DeleteFunc(r.m.Names, func(x ddlIndex) bool { return x.Def == "" })
	var names []string
	for _, x := range finished {
		names = append(names, x.Name)
	}
	for _, x := range slices.Backward(finished) {
		err := r.renameFound(ctx, x, `SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
			WHERE i.indrelid = to_regclass($1) AND to_regclass($2) IS NULL AND x.relname <> ALL ($3)
			AND replace(pg_get_indexdef(x.oid), format(' INDEX %I ON ', x.relname), '') = replace($4, format(' INDEX %I ON ', $5::text), '')
			ORDER BY x.oid DESC LIMIT 1`,
			pgx.Identifier{x.Schema, x.Table}.Sanitize(), x.quoted(), names, x.Def, x.Name)
		if err != nil {
			return err
		}
	}
	return nil
}

// nameEdit gives an index that has no name in its command the one that the primary chose.
func (r *replay) nameEdit(node *pgq.Node, scan *pgq.ScanResult) (edits []edit) {
	index := node.GetIndexStmt()
	if index == nil || index.Idxname != "" || r.m.Tag != "CREATE INDEX" || len(r.m.Objects) == 0 { // of CREATE SCHEMA it is one of many
		return nil
	}
	name, err := pgq.Scan(r.m.Objects[0].Identity)
	if err != nil || len(name.Tokens) == 0 {
		return nil
	}
	last := name.Tokens[len(name.Tokens)-1]
	at := slices.IndexFunc(scan.Tokens, func(t *pgq.ScanToken) bool { return t.Token == pgq.Token_ON })
	if at < 0 {
		return nil
	}
	place := int(scan.Tokens[at].Start)
	return []edit{{place, place, r.m.Objects[0].Identity[last.Start:last.End] + " "}}
}
