package schema

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	pgq "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// rowIndexPrefix begins the names of the applier's own indexes of tables without a key
// (apply.RowIndexPrefix).
const rowIndexPrefix = "hawser_row_"

// withoutRowIndexes drops the applier's own indexes of tables without a key where they
// would stand in the way of the command: of a table whose columns become of another type,
// which may have no hash; that may get a key; that is the pattern of another one; or whose
// index has a name that the command speaks of. The applier makes one again when it needs it.
func (r *replay) withoutRowIndexes(ctx context.Context, st *ddlStatement) error {
	tables := disturbed(st.node)
	if len(tables) == 0 && !strings.Contains(st.text, rowIndexPrefix) {
		return nil
	}
	rows, err := r.conn.Query(ctx, `
		WITH RECURSIVE tree AS (
			SELECT oid FROM pg_class WHERE relname = ANY ($1) AND relkind IN ('r', 'p')
			UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid)
		SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
		JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = x.oid AND d.refclassid = 'pg_proc'::regclass
		JOIN pg_proc p ON p.oid = d.refobjid AND p.pronamespace = to_regnamespace('hawser')
		WHERE i.indrelid IN (SELECT oid FROM tree) OR strpos($2, x.relname) > 0`, tables, st.text)
	if err != nil {
		return fmt.Errorf("look for indexes of Hawser's: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for indexes of Hawser's: %w", err)
	}
	for _, name := range names {
		if err := r.exec(ctx, "DROP INDEX "+name); err != nil {
			return fmt.Errorf("drop index %s, which Hawser made: %w", name, err)
		}
	}
	return nil
}

// disturbed are the names of tables whose indexes a command would change or copy.
func disturbed(node *pgq.Node) (names []string) {
	walk(node, func(m protoreflect.Message) {
		switch n := m.Interface().(type) {
		case *pgq.TableLikeClause:
			names = append(names, n.Relation.GetRelname())
		case *pgq.AlterTableStmt:
			if slices.ContainsFunc(n.Cmds, func(c *pgq.Node) bool {
				t := c.GetAlterTableCmd().GetSubtype()
				return t == pgq.AlterTableType_AT_AlterColumnType || t == pgq.AlterTableType_AT_AddConstraint
			}) {
				names = append(names, n.Relation.GetRelname())
			}
		}
	})
	return names
}
