package schema

import (
	"context"
	"fmt"
	"strings"

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

// confined tells whether role $1 gives its members no right but in this database.
const confined = `
WITH RECURSIVE g (oid) AS (
	SELECT oid FROM pg_roles WHERE rolname = $1
	UNION SELECT m.roleid FROM pg_auth_members m JOIN g ON m.member = g.oid
)
SELECT NOT EXISTS (SELECT FROM g JOIN pg_roles r ON r.oid = g.oid
	WHERE r.oid < 16384 OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
AND NOT EXISTS (SELECT FROM g JOIN pg_shdepend d ON d.refclassid = 'pg_authid'::regclass AND d.refobjid = g.oid
	JOIN pg_database here ON here.datname = current_database()
	WHERE d.dbid <> here.oid AND d.classid <> 'pg_auth_members'::regclass
	AND NOT (d.dbid = 0 AND d.classid = 'pg_database'::regclass AND d.objid = here.oid))`

// give makes the role a member, by exec, which must roll back what fails. The note says
// why it did not.
func (m membership) give(ctx context.Context, db querier, exec func(sql string) error) (*problem.Problem, error) {
	is, mine, err := m.look(ctx, db)
	switch {
	case err != nil, is && !mine:
		return nil, err
	case !mine:
		return m.note("on the primary it is a member of role "+m.Role+", which is not opened by the link: it has rights here beyond the linked database", m.grant()), nil
	}
	switch err := exec(m.grant()); {
	case sqlState(err) == "0LP01": // the other is a member of this one
		return m.note("on the primary it is a member of role "+m.Role+", and can't be here: "+err.Error(), m.grant()), nil
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
	return m.note("on the primary it is no member of role "+m.Role+" any more; here it was left one, since that role has rights beyond the linked database, or somebody else made it one", m.revoke()), nil
}

// look reads whether the role is a member, and whether that is the link's affair.
func (m membership) look(ctx context.Context, db querier) (is, mine bool, err error) {
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
		WHERE g.rolname = $1 AND u.rolname = $2)`, m.Role, m.member).Scan(&is)
	if err == nil {
		err = db.QueryRow(ctx, confined, m.Role).Scan(&mine)
	}
	if err != nil {
		return false, false, fmt.Errorf("look for the groups of role %q: %w", m.member, err)
	}
	return is, mine, nil
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

func (m membership) note(cause, remedy string) *problem.Problem {
	remedy, _, _ = strings.Cut(remedy, ";")
	return problem.Warn("role-membership", "role "+m.member, cause, remedy+";")
}
