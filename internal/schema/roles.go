package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Role is a role that the database's definitions name: as owner, as grantee, in
// a policy, a default privilege, a user mapping or a setting. It never holds a
// password. Of its attributes only Inherit is given to the role that
// RestoreRoles creates; the others are there to be reported.
type Role struct {
	Name       string `json:"name"`
	Inherit    bool   `json:"inherit"`
	Login      bool   `json:"login,omitempty"`
	Superuser  bool   `json:"superuser,omitempty"`
	BypassRLS  bool   `json:"bypass_rls,omitempty"`
	CreateRole bool   `json:"create_role,omitempty"`
	CreateDB   bool   `json:"create_db,omitempty"`
	// Settings are its own for all databases, as name=value.
	Settings []string `json:"settings,omitempty"`
	// MemberOf holds its memberships in other roles of the same list.
	MemberOf []Membership `json:"member_of,omitempty"`
}

// Membership is a role's place in another one. Inherit and Set are as in
// PostgreSQL 16 and later. Where the primary is older the member says whether it
// inherits, and Set is true.
type Membership struct {
	Role    string `json:"role"`
	Admin   bool   `json:"admin,omitempty"`
	Inherit bool   `json:"inherit"`
	Set     bool   `json:"set"`

	opens bool // the other role is neither PostgreSQL's own nor the one that made the cluster
}

// namedHere begins a query with the roles that the current database names: those that
// own something or have a privilege in it, other than what is Hawser's own, and those with a setting of their own for
// it. Those that are members of one of them, and so of what it may do, are among them.
const namedHere = `
		WITH RECURSIVE here AS (SELECT oid FROM pg_database WHERE datname = current_database()), named AS (
			(SELECT d.refobjid AS oid FROM pg_shdepend d, here WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid >= 16384
				AND (d.dbid = here.oid AND (d.classid, d.objid) NOT IN (` + postgres.OwnObjects + `) OR d.dbid = 0 AND d.classid = 'pg_database'::regclass AND d.objid = here.oid)
			UNION SELECT setrole FROM pg_db_role_setting, here WHERE setdatabase = here.oid AND setrole >= 16384)
			UNION SELECT m.member FROM pg_auth_members m JOIN named n ON n.oid = m.roleid)`

// readRoles returns every role that the current database may name: those that it names
// (see namedHere), the role that made the cluster, and PostgreSQL's predefined ones, which
// no catalog ties to a database.
func readRoles(ctx context.Context, db querier) ([]Role, error) {
	rows, err := db.Query(ctx, namedHere+`
		SELECT r.rolname, r.rolinherit, r.rolcanlogin, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb,
			coalesce(s.setconfig, '{}')
		FROM pg_roles r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid AND s.setdatabase = 0
		WHERE r.oid < 16384 OR r.oid IN (SELECT oid FROM named)
		ORDER BY r.rolname`)
	if err != nil {
		return nil, err
	}
	roles, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Role, err error) {
		err = row.Scan(&r.Name, &r.Inherit, &r.Login, &r.Superuser, &r.BypassRLS, &r.CreateRole, &r.CreateDB, &r.Settings)
		return r, err
	})
	if err != nil {
		return nil, err
	}
	return roles, readMemberships(ctx, db, roles)
}

// readMemberships fills in who is a member of whom.
func readMemberships(ctx context.Context, db querier, roles []Role) error {
	var member string
	var m Membership
	return forEach(ctx, db, `
		SELECT member.rolname, role.rolname, bool_or(m.admin_option),
			bool_or(coalesce((to_jsonb(m)->>'inherit_option')::bool, member.rolinherit)),
			bool_or(coalesce((to_jsonb(m)->>'set_option')::bool, true)), bool_or(role.oid >= 16384)
		FROM pg_auth_members m JOIN pg_roles member ON member.oid = m.member JOIN pg_roles role ON role.oid = m.roleid
		GROUP BY 1, 2 ORDER BY 1, 2`,
		[]any{&member, &m.Role, &m.Admin, &m.Inherit, &m.Set, &m.opens}, func() {
			if i := indexRole(roles, member); i >= 0 && indexRole(roles, m.Role) >= 0 {
				roles[i].MemberOf = append(roles[i].MemberOf, m)
			}
		})
}

func indexRole(roles []Role, name string) int {
	return slices.IndexFunc(roles, func(r Role) bool { return r.Name == name })
}

// namedRoles returns those roles whose names occur in the SQL of the dump, and their
// members. An object of the same name is taken for the role: one role too many does no harm.
func namedRoles(toc []tocEntry, f *facts) ([]Role, error) {
	roles := f.roles
	named := make(map[string]bool, len(roles))
	for i := range toc {
		if f.own(&toc[i]) { // of the agent's role
			continue
		}
		s := scanner{src: toc[i].sql}
		for {
			t, ok, err := s.next()
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			if t.kind == tokenWord || t.kind == tokenQuoted {
				named[tokenText(s.src, t)] = true
			}
		}
	}
	for grown := true; grown; {
		grown = false
		for _, r := range roles {
			if !named[r.Name] && slices.ContainsFunc(r.MemberOf, func(m Membership) bool { return m.opens && named[m.Role] }) {
				named[r.Name], grown = true, true
			}
		}
	}
	var out []Role
	for _, r := range roles {
		if !named[r.Name] {
			continue
		}
		r.MemberOf = slices.DeleteFunc(slices.Clone(r.MemberOf), func(m Membership) bool { return !named[m.Role] })
		out = append(out, r)
	}
	return out, nil
}

// predefined reports whether a role comes with PostgreSQL and can't be created.
func (r Role) predefined() bool { return strings.HasPrefix(r.Name, "pg_") }

// RestoreRoles creates the roles that the target lacks, without login and
// without a password, and returns their names. A role that is there stays as it
// is. Notes say which memberships were not restored (see membership).
func RestoreRoles(ctx context.Context, db DB, roles []Role) (created []string, notes problem.Findings, err error) {
	version, err := serverVersion(ctx, db)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range roles {
		made, err := createRole(ctx, db, r)
		if err != nil {
			return created, nil, err
		}
		if made {
			created = append(created, r.Name)
		}
	}
	exec := func(sql string) error {
		return inTx(ctx, db, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		})
	}
	for _, r := range roles {
		for _, m := range r.MemberOf {
			note, err := membership{r.Name, m, version}.give(ctx, db, exec)
			if err != nil {
				return created, nil, err
			}
			if note != nil {
				notes = append(notes, note)
			}
		}
	}
	return created, notes, nil
}

// createRole creates a role unless it is there. Another link may create it at
// the same moment: that is as good.
func createRole(ctx context.Context, db DB, r Role) (made bool, err error) {
	if r.predefined() {
		return false, nil
	}
	var exists bool
	if err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, r.Name).Scan(&exists); err != nil {
		return false, fmt.Errorf("look for role %q: %w", r.Name, err)
	}
	if exists {
		return false, nil
	}
	inherit := "INHERIT"
	if !r.Inherit {
		inherit = "NOINHERIT"
	}
	err = inTx(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "CREATE ROLE "+postgres.QuoteIdent(r.Name)+" NOLOGIN "+inherit)
		return err
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "42710" || pgErr.Code == "23505") { // duplicate_object, unique_violation
		return false, nil
	}
	if err != nil {
		return false, roleProblem(r.Name, "create it", err)
	}
	return true, nil
}

func roleProblem(role, what string, err error) error {
	return problem.New("role-not-restored", "role "+postgres.QuoteIdent(role),
		"the database's definitions name it, and the agent could not "+what,
		"CREATE ROLE "+postgres.QuoteIdent(role)+" NOLOGIN;").Advise("as a superuser").At("the secondary").Because(err)
}
