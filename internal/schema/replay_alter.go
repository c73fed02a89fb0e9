package schema

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	pgq "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// alterTable runs ALTER TABLE so that existing rows get the values that they have on
// the primary. There are three ways:
//   - All its expressions are deterministic: the text gives equal rows.
//   - A default that is not, such as now(), but was evaluated once for all rows: the
//     column is added with the primary's value, then gets its default.
//   - The table was rewritten row by row with values that only the primary knows, or
//     became logged: it is emptied here and named in Result.Reseed.
func (r *replay) alterTable(ctx context.Context, st *ddlStatement) error {
	alter := st.node.GetAlterTableStmt()
	if alter == nil {
		return r.plain(ctx, st)
	}
	inventing, err := r.inventing(ctx, alter)
	if err != nil {
		return err
	}
	if err := r.reseed(ctx, len(inventing) > 0); err != nil {
		return err
	}
	if err := r.meetPartitions(ctx, alter); err != nil {
		return err
	}
	r.result.Keys = newKeys(alter)
	fixed, defaults := r.withValues(inventing)
	if !fixed {
		err = r.orNotValid(ctx, st)
	} else {
		err = r.deparsed(ctx, st)
	}
	if err != nil {
		return err
	}
	for _, sql := range defaults {
		if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
			return err
		}
	}
	if err := r.afterwards(ctx, st); err != nil {
		return err
	}
	return r.keepFence(ctx, alter)
}

// reseed empties the tables whose rows this side can't compute. It comes before the
// statement, which then has nothing to rewrite.
func (r *replay) reseed(ctx context.Context, inventing bool) error {
	for _, t := range r.m.Tables {
		reason := r.m.reason(t.OID)
		logged := reason&rewritePersistence != 0
		if !logged && !(inventing && reason&(rewriteDefault|rewriteColumn) != 0) || !t.Rows {
			continue
		}
		table := Table{t.OID, t.Schema, t.Name}
		if err := r.empty(ctx, table); err != nil {
			return err
		}
		if t.Persistence == "p" {
			r.result.Reseed = append(r.result.Reseed, table)
		}
	}
	return nil
}

// empty removes a table's rows. TRUNCATE is refused where a foreign key refers to it.
func (r *replay) empty(ctx context.Context, t Table) error {
	var referenced bool
	err := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE k.contype = 'f' AND k.conrelid <> k.confrelid AND n.nspname = $1 AND c.relname = $2)`, t.Schema, t.Name).Scan(&referenced)
	if err != nil {
		return fmt.Errorf("look for foreign keys to %s: %w", t.sql(), err)
	}
	sql := "TRUNCATE ONLY " + t.sql()
	if referenced {
		sql = "DELETE FROM ONLY " + t.sql()
	}
	return r.run(ctx, order{sql: sql, generated: true, agent: true})
}

// inventing are the subcommands whose values would be other ones on this side.
func (r *replay) inventing(ctx context.Context, alter *pgq.AlterTableStmt) ([]*pgq.AlterTableCmd, error) {
	var out []*pgq.AlterTableCmd
	for _, c := range alter.Cmds {
		cmd := c.GetAlterTableCmd()
		column := cmd.GetDef().GetColumnDef()
		var invents bool
		var err error
		switch {
		case column == nil:
		case cmd.Subtype == pgq.AlterTableType_AT_AddColumn:
			invents, err = r.columnInvents(ctx, column)
		case cmd.Subtype == pgq.AlterTableType_AT_AlterColumnType && column.RawDefault != nil: // USING
			invents, err = r.invents(ctx, column.RawDefault)
		case cmd.Subtype == pgq.AlterTableType_AT_AlterColumnType:
			invents, err = r.castsInvent(ctx)
		}
		if err != nil {
			return nil, err
		}
		if invents {
			out = append(out, cmd)
		}
	}
	return out, nil
}

// columnInvents reports whether a new column's value for old rows is the server's choice.
func (r *replay) columnInvents(ctx context.Context, column *pgq.ColumnDef) (bool, error) {
	if names := column.TypeName.GetNames(); len(names) == 1 {
		switch names[0].GetString_().GetSval() {
		case "serial", "serial2", "serial4", "serial8", "smallserial", "bigserial":
			return true, nil
		}
	}
	explicit := false
	for _, c := range column.Constraints {
		switch k := c.GetConstraint(); k.GetContype() {
		case pgq.ConstrType_CONSTR_IDENTITY:
			return true, nil
		case pgq.ConstrType_CONSTR_GENERATED:
			return false, nil // immutable by the server's rule
		case pgq.ConstrType_CONSTR_DEFAULT:
			explicit = true
			if invents, err := r.invents(ctx, k.RawExpr); err != nil || invents {
				return invents, err
			}
		}
	}
	if explicit {
		return false, nil
	}
	return r.domainDefault(ctx, column)
}

// domainDefault reports whether the column's type is a domain that has a default,
// which may be anything.
func (r *replay) domainDefault(ctx context.Context, column *pgq.ColumnDef) (has bool, err error) {
	names := column.TypeName.GetNames()
	if len(names) == 0 || names[0].GetString_().GetSval() == "pg_catalog" {
		return false, nil
	}
	name := names[len(names)-1].GetString_().GetSval()
	err = r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_type WHERE typname = $1 AND typtype = 'd' AND typdefault IS NOT NULL)`, name).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("look for domain %q: %w", name, err)
	}
	return has, nil
}

// relative are functions that PostgreSQL calls stable and that depend on who asks
// and when; all other stable ones of its own give the same on both sides at the same
// position, under the same settings.
var relative = []string{
	"now", "transaction_timestamp", "statement_timestamp", "clock_timestamp", "timeofday", "age",
	"pg_backend_pid", "pg_current_xact_id", "txid_current", "current_setting", "version", "inet_client_addr",
	"inet_client_port", "inet_server_addr", "inet_server_port", "pg_postmaster_start_time", "pg_conf_load_time",
	"current_database", "session_user", "current_user", "getdatabaseencoding", "pg_relation_size", "pg_table_size",
	"pg_total_relation_size", "pg_database_size", "pg_current_wal_lsn", "pg_current_snapshot", "pg_is_in_recovery",
}

// invents reports whether an expression may have another value on this side. A
// user's function counts as deterministic only when it is declared immutable.
func (r *replay) invents(ctx context.Context, expr *pgq.Node) (bool, error) {
	found, casts := false, false
	var functions, operators []string
	walk(expr, func(m protoreflect.Message) {
		switch n := m.Interface().(type) {
		case *pgq.SQLValueFunction:
			found = true
		case *pgq.FuncCall:
			functions = append(functions, n.Funcname[len(n.Funcname)-1].GetString_().GetSval())
		case *pgq.A_Expr:
			if len(n.Name) > 0 {
				operators = append(operators, n.Name[len(n.Name)-1].GetString_().GetSval())
			}
		case *pgq.TypeCast:
			casts = true
		case *pgq.A_Const:
			found = found || relativeTime(n.GetSval().GetSval())
		}
	})
	if !found && casts {
		var err error
		if found, err = r.castsInvent(ctx); err != nil {
			return false, err
		}
	}
	if found || len(functions)+len(operators) == 0 {
		return found, nil
	}
	err := r.conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_proc p WHERE p.proname = ANY ($1) AND (
			p.provolatile = 'v' OR p.provolatile = 's' AND (p.oid >= 16384 OR p.proname = ANY ($3))))
		OR EXISTS (SELECT FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode
			WHERE o.oprname = ANY ($2) AND (p.provolatile = 'v' OR p.provolatile = 's' AND o.oid >= 16384))`,
		functions, operators, relative).Scan(&found)
	if err != nil {
		return false, fmt.Errorf("look up the functions of an expression: %w", err)
	}
	return found, nil
}

// castsInvent reports whether a user has made a cast that may give another value on this
// side. Which casts an expression takes is the server's business, so any counts.
func (r *replay) castsInvent(ctx context.Context) (yes bool, err error) {
	err = r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc WHERE c.oid >= 16384 AND p.provolatile <> 'i')`).Scan(&yes)
	if err != nil {
		return false, fmt.Errorf("look for casts: %w", err)
	}
	return yes, nil
}

// relativeTime reports whether a string is one that date and time types read as a
// time relative to the moment.
func relativeTime(s string) bool { return relativeWords.MatchString(s) }

var relativeWords = regexp.MustCompile(`(?i)(?:^|[^a-z])(?:now|today|tomorrow|yesterday)(?:$|[^a-z])`)

// withValues puts the primary's value in place of each default that it evaluated
// once, and returns the statements that set the defaults afterwards. Columns of a
// rewritten table have no such value; their rows come by seeding.
func (r *replay) withValues(inventing []*pgq.AlterTableCmd) (changed bool, defaults []string) {
	for _, cmd := range inventing {
		if cmd.Subtype != pgq.AlterTableType_AT_AddColumn {
			continue
		}
		column := cmd.GetDef().GetColumnDef()
		table, told, ok := r.told(column.Colname)
		if !ok { // no row is older than the column
			continue
		}
		set := "DROP DEFAULT"
		if told.Default != "" {
			set = "SET DEFAULT " + told.Default
		}
		defaults = append(defaults, "ALTER TABLE "+pgx.Identifier{table.Schema, table.Name}.Sanitize()+
			" ALTER COLUMN "+pgx.Identifier{told.Name}.Sanitize()+" "+set)
		value := pgq.MakeAConstStrNode(*told.Missing, -1)
		at := slices.IndexFunc(column.Constraints, func(c *pgq.Node) bool {
			return c.GetConstraint().GetContype() == pgq.ConstrType_CONSTR_DEFAULT
		})
		if at >= 0 {
			column.Constraints[at].GetConstraint().RawExpr = value
		} else {
			column.Constraints = append(column.Constraints, &pgq.Node{Node: &pgq.Node_Constraint{Constraint: &pgq.Constraint{
				Contype: pgq.ConstrType_CONSTR_DEFAULT, RawExpr: value}}})
		}
		changed = true
	}
	return changed, defaults
}

// told is what the primary says of a column that got its value for all rows at once.
func (r *replay) told(name string) (ddlTable, ddlColumn, bool) {
	for _, t := range r.m.Tables {
		for _, c := range t.Columns {
			if c.Name == name && c.Missing != nil {
				return t, c, true
			}
		}
	}
	return ddlTable{}, ddlColumn{}, false
}

// deparsed runs the statement's parse tree, which was changed.
func (r *replay) deparsed(ctx context.Context, st *ddlStatement) error {
	sql, err := deparse(st.text, st.node)
	if err != nil {
		return fmt.Errorf("write %s anew: %w", excerpt(st.text), err)
	}
	text, err := r.adapt(ctx, &ddlStatement{text: sql, node: st.node})
	if err != nil || text == "" {
		return err
	}
	return r.run(ctx, order{sql: text, node: st.node, fills: fills(st.node)})
}

// validates reports whether all that the statement does is to validate constraints.
func validates(node *pgq.Node) bool {
	cmds := node.GetAlterTableStmt().GetCmds()
	return len(cmds) > 0 && !slices.ContainsFunc(cmds, func(c *pgq.Node) bool {
		return c.GetAlterTableCmd().GetSubtype() != pgq.AlterTableType_AT_ValidateConstraint
	})
}

// keepFence enables again the trigger that keeps a secondary read-only, which
// DISABLE TRIGGER ALL and USER hit too.
func (r *replay) keepFence(ctx context.Context, alter *pgq.AlterTableStmt) error {
	hit := slices.ContainsFunc(alter.Cmds, func(c *pgq.Node) bool {
		t := c.GetAlterTableCmd().GetSubtype()
		return t == pgq.AlterTableType_AT_DisableTrigAll || t == pgq.AlterTableType_AT_DisableTrigUser ||
			t == pgq.AlterTableType_AT_EnableTrigAll || t == pgq.AlterTableType_AT_EnableTrigUser
	})
	if !hit {
		return nil
	}
	rows, err := r.conn.Query(ctx, `SELECT n.nspname, c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgname = 'hawser_fence' AND t.tgenabled = 'D' OR t.tgname = 'hawser_fence_replica' AND t.tgenabled <> 'R'`)
	if err != nil {
		return fmt.Errorf("look for disabled fences: %w", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Schema, Name, Trigger string }])
	if err != nil {
		return fmt.Errorf("look for disabled fences: %w", err)
	}
	for _, t := range tables {
		enable := "ENABLE"
		if t.Trigger != "hawser_fence" {
			enable = "ENABLE REPLICA"
		}
		sql := "ALTER TABLE ONLY " + pgx.Identifier{t.Schema, t.Name}.Sanitize() + " " + enable + " TRIGGER " + t.Trigger
		if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
			return err
		}
	}
	return nil
}

// loud lets a command that speaks of triggers or rules, or gives those of its parent to a
// partition, find them as they are on the primary.
func (r *replay) loud(ctx context.Context, st *ddlStatement) error {
	if r.options.Loud == nil || !r.ofTriggers(st) {
		return nil
	}
	r.result.Loud = true
	return r.options.Loud(ctx, r.conn)
}

func (r *replay) ofTriggers(st *ddlStatement) bool {
	switch {
	case strings.HasSuffix(r.m.Tag, " TRIGGER"), strings.HasSuffix(r.m.Tag, " RULE"):
		return true
	case r.m.Tag == "CREATE TABLE":
		return len(r.m.Bounds) > 0
	case r.m.Tag != "ALTER TABLE":
		return false
	}
	return st.node == nil || slices.ContainsFunc(st.node.GetAlterTableStmt().GetCmds(), func(c *pgq.Node) bool {
		switch c.GetAlterTableCmd().GetSubtype() {
		case pgq.AlterTableType_AT_EnableTrig, pgq.AlterTableType_AT_EnableAlwaysTrig, pgq.AlterTableType_AT_EnableReplicaTrig,
			pgq.AlterTableType_AT_DisableTrig, pgq.AlterTableType_AT_EnableTrigAll, pgq.AlterTableType_AT_DisableTrigAll,
			pgq.AlterTableType_AT_EnableTrigUser, pgq.AlterTableType_AT_DisableTrigUser, pgq.AlterTableType_AT_EnableRule,
			pgq.AlterTableType_AT_EnableAlwaysRule, pgq.AlterTableType_AT_EnableReplicaRule, pgq.AlterTableType_AT_DisableRule,
			pgq.AlterTableType_AT_AttachPartition:
			return true
		}
		return false
	})
}
