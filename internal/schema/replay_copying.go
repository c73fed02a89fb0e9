package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
	pgq "github.com/pganalyze/pg_query_go/v6"
)

// While tables are copied, each is at a time of its own. What the primary could do with
// all rows at one time may then be impossible here: to validate a foreign key, or to fill
// a materialized view. The command is carried out as far as it makes something, and the
// rest is left for the end.

func (r *replay) copying(ctx context.Context) (bool, error) {
	if r.options.Copying == nil {
		return false, nil
	}
	return r.options.Copying(ctx, r.conn)
}

// fills reports whether a statement fills a materialized view.
func fills(node *pgq.Node) bool {
	if as := node.GetCreateTableAsStmt(); as.GetObjtype() == pgq.ObjectType_OBJECT_MATVIEW {
		return !as.GetInto().GetSkipData()
	}
	refresh := node.GetRefreshMatViewStmt()
	return refresh != nil && !refresh.SkipData
}

// fill runs such a statement. Where it fails while tables are copied, a new view is made
// empty, and one that is there stays as it is. One whose query writes has no rows here.
func (r *replay) fill(ctx context.Context, st *ddlStatement, view string, run func() error) error {
	copying, err := r.copying(ctx)
	if err != nil {
		return err
	}
	failed := r.attempt(ctx, run)
	if refresh := st.node.GetRefreshMatViewStmt(); refresh.GetConcurrent() && sqlState(failed) == "0A000" { // feature_not_supported: it has no rows here
		refresh.Concurrent = false
		failed = r.attempt(ctx, func() error { return r.deparsed(ctx, st) })
	}
	switch {
	case sqlState(failed) == readOnly:
		r.result.Notes = append(r.result.Notes, writes(view, failed))
		r.result.Refreshed, r.result.Emptied = nil, append(r.result.Emptied, r.result.Refreshed...)
	case !copying || sqlState(failed) == "":
		return failed
	case st.node.GetCreateTableAsStmt() == nil:
		return nil
	}
	switch n := st.node.GetNode().(type) {
	case *pgq.Node_CreateTableAsStmt:
		n.CreateTableAsStmt.Into.SkipData = true
	case *pgq.Node_RefreshMatViewStmt:
		n.RefreshMatViewStmt.Concurrent, n.RefreshMatViewStmt.SkipData = false, true
	default: // it was made empty
		return nil
	}
	return r.deparsed(ctx, st)
}

// orNotValid runs the statement. Where a foreign key does not hold since the rows of
// its other table are still being seeded, it is added without a check of the rows, which
// is left for the end.
func (r *replay) orNotValid(ctx context.Context, st *ddlStatement) error {
	text, err := r.adapt(ctx, st)
	if err != nil || text == "" {
		return err
	}
	run := func() error {
		return r.orSoft(ctx, st, func() error { return r.run(ctx, order{sql: text, node: st.node}) })
	}
	err = r.attempt(ctx, run)
	if sqlState(err) != "23503" { // foreign_key_violation
		return err
	}
	if r.options.Partial && validates(st.node) {
		r.note("foreign-key-not-valid", "it refers to rows that the link does not carry, so on the replica it stays NOT VALID")
		return nil
	}
	copying, lookup := r.copying(ctx)
	if lookup != nil {
		return lookup
	}
	unchecked := r.attempt(ctx, func() error { return r.unchecked(ctx, st, copying, err) })
	if unchecked == nil && r.options.Partial {
		r.note("foreign-key-not-valid", "it may refer to rows that the link does not carry; on the replica it is NOT VALID until all rows that it refers to are here")
	}
	if unchecked == nil || !copying {
		return unchecked
	}
	return r.withoutRows(ctx, run)
}

// unchecked runs the statement, which violated a foreign key, without a check of the rows
// of foreign keys. It returns the violation where the statement has nothing to leave out.
func (r *replay) unchecked(ctx context.Context, st *ddlStatement, copying bool, violation error) error {
	before, err := r.openKeys(ctx)
	if err != nil {
		return err
	}
	alter := st.node.GetAlterTableStmt()
	var later []Place
	if copying {
		if later, err = r.leaveValidation(ctx, alter, before); err != nil {
			return err
		}
	}
	open, marked := notValid(alter)
	if !marked && len(later) == 0 {
		return violation
	}
	if len(alter.Cmds) > 0 {
		if err := r.deparsed(ctx, st); err != nil {
			return err
		}
	}
	after, err := r.openKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range after {
		if !slices.Contains(before, k) && !slices.Contains(open, k.Name) {
			later = append(later, k)
		}
	}
	r.result.Later = append(r.result.Later, later...)
	return nil
}

// openKeys are the foreign keys whose rows were not checked.
func (r *replay) openKeys(ctx context.Context) (keys []Place, err error) {
	var k Place
	err = forEach(ctx, r.conn, `SELECT oid, conrelid, conname FROM pg_constraint WHERE contype = 'f' AND NOT convalidated AND conparentid = 0`,
		[]any{&k.Here, &k.Relation, &k.Name}, func() { keys = append(keys, k) })
	if err != nil {
		return nil, fmt.Errorf("look for foreign keys: %w", err)
	}
	return keys, nil
}

// leaveValidation takes the validation of foreign keys out of the statement, and returns
// which they are.
func (r *replay) leaveValidation(ctx context.Context, alter *pgq.AlterTableStmt, open []Place) (left []Place, err error) {
	var table uint32
	for _, o := range r.m.Objects {
		if o.Type == "table" && table == 0 {
			err = r.conn.QueryRow(ctx, `SELECT coalesce(to_regclass($1)::oid, 0)`, Table{Schema: o.TableSchema, Name: o.Table}.sql()).Scan(&table)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look for the table of foreign keys: %w", err)
	}
	alter.Cmds = slices.DeleteFunc(alter.Cmds, func(c *pgq.Node) bool {
		cmd := c.GetAlterTableCmd()
		i := slices.IndexFunc(open, func(k Place) bool { return k.Relation == table && k.Name == cmd.GetName() })
		if cmd.GetSubtype() != pgq.AlterTableType_AT_ValidateConstraint || i < 0 {
			return false
		}
		left = append(left, open[i])
		return true
	})
	return left, nil
}

// notValid marks the statement's new foreign keys, and reports whether there are any. open
// are the names of those that are to be NOT VALID anyway.
func notValid(alter *pgq.AlterTableStmt) (open []string, marked bool) {
	for _, c := range alter.GetCmds() {
		k := c.GetAlterTableCmd().GetDef().GetConstraint()
		switch {
		case k.GetContype() != pgq.ConstrType_CONSTR_FOREIGN:
		case k.SkipValidation:
			open = append(open, k.Conname)
		default:
			k.SkipValidation, k.InitiallyValid, marked = true, false, true
		}
	}
	return open, marked
}

// newKeys are the names that a statement gives to new foreign keys.
func newKeys(alter *pgq.AlterTableStmt) (names []string) {
	for _, c := range alter.GetCmds() {
		if k := c.GetAlterTableCmd().GetDef().GetConstraint(); k.GetContype() == pgq.ConstrType_CONSTR_FOREIGN && k.Conname != "" {
			names = append(names, k.Conname)
		}
	}
	return names
}

// meetPartitions has foreign keys of partitions, and of tables that become partitions,
// count as checked: the server makes one of such a key and the parent's like one, as it did
// on the primary, and a second one beside what is not checked.
func (r *replay) meetPartitions(ctx context.Context, alter *pgq.AlterTableStmt) error {
	meets := slices.ContainsFunc(alter.Cmds, func(c *pgq.Node) bool {
		cmd := c.GetAlterTableCmd()
		return cmd.GetSubtype() == pgq.AlterTableType_AT_AttachPartition || cmd.GetDef().GetConstraint().GetContype() == pgq.ConstrType_CONSTR_FOREIGN
	})
	if !meets || r.options.Unchecked == nil {
		return nil
	}
	copying, err := r.copying(ctx)
	if err != nil || !copying {
		return err
	}
	keys, err := r.options.Unchecked(ctx, r.conn)
	if err != nil || len(keys) == 0 {
		return err
	}
	var attached []string
	for _, b := range r.m.Bounds {
		attached = append(attached, Table{Schema: b.Schema, Name: b.Table}.sql())
	}
	_, err = r.conn.Exec(ctx, `
		WITH RECURSIVE t AS (SELECT to_regclass(n)::oid AS oid FROM unnest($2::text[]) n UNION SELECT i.inhrelid FROM pg_inherits i JOIN t ON i.inhparent = t.oid)
		UPDATE pg_constraint k SET convalidated = true FROM pg_class c
		WHERE k.oid = ANY ($1) AND NOT k.convalidated AND c.oid = k.conrelid AND (c.relispartition OR c.oid IN (SELECT oid FROM t))`, keys, append([]string{}, attached...))
	if err != nil {
		return fmt.Errorf("count the foreign keys of partitions as checked: %w", err)
	}
	return nil
}

// withoutRows runs a statement that has to check a foreign key, as that of a partitioned
// table has. Tables whose rows violate it have none meanwhile.
func (r *replay) withoutRows(ctx context.Context, run func() error) error {
	aside := map[Table]string{}
	for {
		err := r.attempt(ctx, run)
		if err == nil {
			break
		}
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "23503" || pg.TableName == "" {
			return err
		}
		t := Table{Schema: pg.SchemaName, Name: pg.TableName}
		if _, again := aside[t]; again {
			return err
		}
		if aside[t], err = r.putAside(ctx, t, len(aside)); err != nil {
			return err
		}
	}
	if len(aside) == 0 {
		return nil
	}
	return r.madeWay(ctx, func() error {
		for t, rows := range aside {
			if err := r.putBack(ctx, t, rows); err != nil {
				return err
			}
		}
		return nil
	})
}

// madeWay does something to rows that were there before, and so need not meet what is NOT
// VALID.
func (r *replay) madeWay(ctx context.Context, do func() error) error {
	var path string
	if err := r.conn.QueryRow(ctx, `SELECT current_setting('search_path')`).Scan(&path); err != nil {
		return fmt.Errorf("read the search_path: %w", err)
	}
	entries, err := MakeWay(ctx, r.conn) // while tables are copied, what is soft stays so
	if err != nil {
		return err
	}
	if _, err := r.conn.Exec(ctx, `SELECT set_config('search_path', $1, true)`, path); err != nil {
		return fmt.Errorf("set the search_path back: %w", err)
	}
	if err := do(); err != nil {
		return err
	}
	for _, e := range entries {
		if err := r.run(ctx, order{sql: e.SQL, generated: true, agent: true}); err != nil {
			return err
		}
	}
	return nil
}

// putAside moves a table's rows to another one, whose name it returns. Rows that the
// statement rewrites are copied again instead.
func (r *replay) putAside(ctx context.Context, t Table, n int) (string, error) {
	for _, told := range r.m.Tables {
		if told.Schema == t.Schema && told.Name == t.Name && r.m.reason(told.OID) != 0 {
			t.OID = told.OID
			r.result.Reseed = append(r.result.Reseed, t)
			return "", r.empty(ctx, t)
		}
	}
	rows := fmt.Sprintf("hawser.aside_%d", n)
	columns, err := r.written(ctx, t.sql(), t.sql())
	if err != nil {
		return "", err
	}
	for _, sql := range []string{"CREATE TABLE " + rows + " AS SELECT " + columns + " FROM ONLY " + t.sql(), "DELETE FROM ONLY " + t.sql()} {
		if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
			return "", err
		}
	}
	return rows, nil
}

func (r *replay) putBack(ctx context.Context, t Table, rows string) error {
	if rows == "" {
		return nil
	}
	columns, err := r.written(ctx, t.sql(), rows)
	if err != nil {
		return err
	}
	for _, sql := range []string{
		"INSERT INTO " + t.sql() + " (" + columns + ") OVERRIDING SYSTEM VALUE SELECT " + columns + " FROM " + rows, "DROP TABLE " + rows,
	} {
		if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
			return err
		}
	}
	return nil
}

// written lists the columns that both tables have, but for those that the server computes.
func (r *replay) written(ctx context.Context, table, other string) (columns string, err error) {
	err = r.conn.QueryRow(ctx, `SELECT coalesce(string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum), '')
		FROM pg_attribute a JOIN pg_attribute b ON b.attrelid = to_regclass($2) AND b.attname = a.attname AND NOT b.attisdropped
		WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''`, table, other).Scan(&columns)
	if err != nil {
		return "", fmt.Errorf("read the columns of %s: %w", table, err)
	}
	return columns, nil
}
