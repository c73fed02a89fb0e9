package schema

import (
	"context"
	"fmt"
	"strings"

	pgq "github.com/pganalyze/pg_query_go/v6"
)

// A CHECK may call a function that reads other tables. While tables are copied, each is at
// a time of its own, so it may refuse rows that the primary has. Until the copy is complete
// such constraints are soft: they hold for every row, and keep their names, so that DDL may
// speak of them, and all that they depend on. Those that the primary has validated are
// marked so again without a look at the rows, which are the primary's.

// softly stands before the expression of a soft constraint. The planner makes true of it,
// so what follows OR is not run. isSoft finds it in what the server says of constraint k.
const (
	softly = `('hawser'::text = 'hawser'::text) OR `
	isSoft = `pg_get_constraintdef(k.oid) LIKE 'CHECK (((''hawser''::text = ''hawser''::text) OR %'`
)

// Soften makes constraints that may look at other tables soft.
func Soften(ctx context.Context, db DB) error {
	return remakeChecks(ctx, db, `NOT `+isSoft+` AND pg_get_constraintdef(k.oid) NOT LIKE '%) NOT ENFORCED' AND EXISTS (
		SELECT FROM pg_depend d LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
		JOIN pg_proc p ON p.oid = CASE d.refclassid WHEN 'pg_proc'::regclass THEN d.refobjid ELSE o.oprcode END
		JOIN pg_language l ON l.oid = p.prolang
		WHERE d.classid = 'pg_constraint'::regclass AND d.objid = k.oid AND l.lanname NOT IN ('internal', 'c'))`,
		func(expr string) string { return softly + "(" + expr + ")" })
}

// Harden makes soft constraints what they were.
func Harden(ctx context.Context, db DB) error {
	return remakeChecks(ctx, db, isSoft, func(expr string) string {
		return strings.TrimSuffix(strings.TrimPrefix(expr, "("+softly), ")")
	})
}

// remakeChecks gives other expressions to those CHECK constraints of tables and domains
// for which where is true.
func remakeChecks(ctx context.Context, db DB, where string, with func(expr string) string) error {
	checks, err := takeChecks(ctx, db, `k.contype = 'c' AND `+where)
	if err != nil {
		return err
	}
	for _, c := range checks {
		if c.def, err = withExpression(c.def, with); err != nil {
			return err
		}
		if err := c.remake(ctx, db); err != nil {
			return fmt.Errorf("make constraint %s of %s anew: %w", c.name, c.of, err)
		}
	}
	return nil
}

// withExpression changes the expression in pg_get_constraintdef's text, CHECK (…), behind
// which words may stand, and adds NOT VALID.
func withExpression(def string, with func(string) string) (string, error) {
	body, words := strings.TrimSuffix(def, " NOT VALID"), " NOT VALID"
	if cut, ok := strings.CutSuffix(body, " NO INHERIT"); ok {
		body, words = cut, " NO INHERIT"+words
	}
	expr, ok := strings.CutPrefix(body, "CHECK (")
	expr, closed := strings.CutSuffix(expr, ")")
	if !ok || !closed {
		return "", fmt.Errorf("unexpected definition of a constraint: %s", def)
	}
	return "CHECK (" + with(expr) + ")" + words, nil
}

// remake adds the constraint again, and marks it as validated where it was, with those
// that inherit it.
func (c openCheck) remake(ctx context.Context, db DB) error {
	if _, err := db.Exec(ctx, c.entry().SQL); err != nil || !c.validated {
		return err
	}
	_, err := db.Exec(ctx, `
		WITH RECURSIVE t AS (SELECT $1::oid AS oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN t ON i.inhparent = t.oid)
		UPDATE pg_constraint SET convalidated = true
		WHERE contype = 'c' AND conname = $3 AND NOT convalidated AND (contypid = $2 AND $2 <> 0 OR conrelid IN (SELECT oid FROM t) AND $1 <> 0)`,
		c.table, c.domain, c.constraint)
	return err
}

// orSoft runs a statement. Where it makes a CHECK that does not hold since other tables are
// still being copied, or that is to be one with a soft one, it makes it soft.
func (r *replay) orSoft(ctx context.Context, st *ddlStatement, run func() error) error {
	checks := newChecks(st.node)
	if len(checks) == 0 {
		return run()
	}
	copying, err := r.copying(ctx)
	if err != nil {
		return err
	}
	if !copying {
		return run()
	}
	err = r.attempt(ctx, run)
	if code := sqlState(err); code != "23514" && code != "42710" { // check_violation, duplicate_object
		return err
	}
	always, parseErr := parse("SELECT " + strings.TrimSuffix(softly, " OR "))
	if parseErr != nil {
		return parseErr
	}
	truth := always.Stmts[0].Stmt.GetSelectStmt().TargetList[0].GetResTarget().Val
	for _, c := range checks {
		c.RawExpr = pgq.MakeBoolExprNode(pgq.BoolExprType_OR_EXPR, []*pgq.Node{truth, c.RawExpr}, -1)
	}
	return r.deparsed(ctx, st)
}

// newChecks are the CHECK constraints that a statement makes.
func newChecks(node *pgq.Node) (checks []*pgq.Constraint) {
	add := func(list ...*pgq.Node) {
		for _, n := range list {
			if k := n.GetConstraint(); k.GetContype() == pgq.ConstrType_CONSTR_CHECK {
				checks = append(checks, k)
			}
			for _, c := range n.GetColumnDef().GetConstraints() {
				if k := c.GetConstraint(); k.GetContype() == pgq.ConstrType_CONSTR_CHECK {
					checks = append(checks, k)
				}
			}
		}
	}
	for _, c := range node.GetAlterTableStmt().GetCmds() {
		add(c.GetAlterTableCmd().GetDef())
	}
	add(node.GetAlterDomainStmt().GetDef())
	add(node.GetCreateStmt().GetTableElts()...)
	return checks
}
