package schema

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// membership is that of a role in another, on a server of a version.
//
// It is followed where the other role gives no right but in the database at hand, in
// which the primary could as well have granted it: a role that has an attribute, comes
// with PostgreSQL, or has a right on anything else of this instance, by itself or by a
// role that it is a member of, is opened and closed by a person alone.
type membership struct {
	member string
	Membership
	version int
}

// confined tells whether a role gives its members no right but in this database. A user's
// search_path may be in force.
func confined(ctx context.Context, db querier, role string) (yes bool, err error) {
	err = db.QueryRow(ctx, `
WITH RECURSIVE g (oid) AS (
	SELECT oid FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name
	UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN g ON m.member OPERATOR(pg_catalog.=) g.oid
)
SELECT NOT EXISTS (SELECT FROM g JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) g.oid
	WHERE r.oid OPERATOR(pg_catalog.<) 16384::pg_catalog.oid OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
AND NOT EXISTS (SELECT FROM g JOIN pg_catalog.pg_shdepend d
	ON d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.refobjid OPERATOR(pg_catalog.=) g.oid
	JOIN pg_catalog.pg_database here ON here.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
	WHERE d.dbid OPERATOR(pg_catalog.<>) here.oid AND d.classid OPERATOR(pg_catalog.<>) 'pg_catalog.pg_auth_members'::pg_catalog.regclass
	AND NOT (d.dbid OPERATOR(pg_catalog.=) 0::pg_catalog.oid AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_database'::pg_catalog.regclass
		AND d.objid OPERATOR(pg_catalog.=) here.oid))`, pgx.QueryExecModeExec, role).Scan(&yes)
	if err != nil {
		return false, fmt.Errorf("look for the rights of role %q: %w", role, err)
	}
	return yes, nil
}

// give makes the role a member, by exec, which must roll back what fails. The note says
// why it did not.
func (m membership) give(ctx context.Context, db querier, exec func(sql string) error) (*problem.Problem, error) {
	is, mine, err := m.look(ctx, db)
	switch {
	case err != nil, is && !mine:
		return nil, err
	case !mine:
		return m.warn("on the primary it is a member of role "+m.Role+", which is not opened by the link: it has rights here beyond the linked database", m.grant()), nil
	}
	switch err := exec(m.grant()); {
	case sqlState(err) == "0LP01": // the other is a member of this one
		return m.warn("on the primary it is a member of role "+m.Role+", and can't be here: "+err.Error(), m.grant()), nil
	case err != nil:
		return nil, roleProblem(m.Role, "grant it to role "+postgres.QuoteIdent(m.member), err)
	}
	return nil, nil
}

// end is give's counterpart.
func (m membership) end(ctx context.Context, db querier, exec func(sql string) error) (*problem.Problem, error) {
	is, mine, err := m.look(ctx, db)
	if err != nil || !is {
		return nil, err
	}
	if mine {
		if err = exec(m.revoke()); err != nil && sqlState(err) == "" {
			return nil, err
		}
		if is, _, err = m.look(ctx, db); err != nil || !is {
			return nil, err
		}
	}
	return m.warn("on the primary it is no member of role "+m.Role+" any more; here it was left one, since that role has rights beyond the linked database, or somebody else made it one", m.revoke()), nil
}

// look reads whether the role is a member, and whether that is the link's affair.
func (m membership) look(ctx context.Context, db querier) (is, mine bool, err error) {
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
		WHERE g.rolname = $1 AND u.rolname = $2)`, m.Role, m.member).Scan(&is)
	if err != nil {
		return false, false, fmt.Errorf("look for the groups of role %q: %w", m.member, err)
	}
	mine, err = confined(ctx, db, m.Role)
	return is, mine, err
}

// grant returns the statement that makes member one of m.Role. The options of
// each membership can be told apart from PostgreSQL 16 on.
func (m membership) grant() string {
	sql := "GRANT " + postgres.QuoteIdent(m.Role) + " TO " + postgres.QuoteIdent(m.member)
	switch {
	case m.version >= 160000:
		sql += fmt.Sprintf(" WITH ADMIN %t, INHERIT %t, SET %t", m.Admin, m.Inherit, m.Set)
	case m.Admin:
		sql += " WITH ADMIN OPTION"
	default:
		sql += "; REVOKE ADMIN OPTION FOR " + postgres.QuoteIdent(m.Role) + " FROM " + postgres.QuoteIdent(m.member)
	}
	return sql
}

func (m membership) revoke() string {
	return "REVOKE " + postgres.QuoteIdent(m.Role) + " FROM " + postgres.QuoteIdent(m.member)
}

func (m membership) warn(cause, remedy string) *problem.Problem {
	remedy, _, _ = strings.Cut(remedy, ";")
	return problem.Warn("role-membership", "role "+m.member, cause, remedy+";")
}
