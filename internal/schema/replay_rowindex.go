package schema

import (
	"context"
	"fmt"
	"slices"
	"strings"

	pgq "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hawser/hawser/internal/postgres"
)

// withoutRowIndexes drops the applier's own indexes of tables without a key where they
// would stand in the way of the command: of a table whose columns become of another type,
// which may have no hash; that may get a key; that is the pattern of another one; or whose
// index has a name that the command speaks of. The applier makes one again when it needs it.
func (r *replay) withoutRowIndexes(ctx context.Context, st *ddlStatement) error {
	tables := disturbed(st.node)
	if len(tables) == 0 && !strings.Contains(st.text, postgres.RowIndexPrefix) {
		return nil
	}
	names, err := postgres.RowIndexes(ctx, r.conn, `strpos($2, x.relname) > 0 OR i.indrelid IN (
		WITH RECURSIVE tree AS (
			SELECT oid FROM pg_class WHERE relname = ANY ($1) AND relkind IN ('r', 'p')
			UNION SELECT h.inhrelid FROM tree JOIN pg_inherits h ON h.inhparent = tree.oid)
		SELECT oid FROM tree)`, tables, st.text)
	if err != nil {
		return err
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
