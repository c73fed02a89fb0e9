package schema

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Logins are the roles whose clients use the current database: that can log in to it, and
// are named in it or have a session there. The agent's own role is one where others use it.
func Logins(ctx context.Context, db querier) ([]string, error) {
	rows, err := db.Query(ctx, namedHere+`, present AS (
			SELECT usesysid AS oid FROM pg_stat_activity
			WHERE datname = current_database() AND backend_type = 'client backend' AND NOT starts_with(application_name, 'hawser:'))
		SELECT r.rolname::text FROM pg_roles r
		WHERE r.rolcanlogin AND has_database_privilege(r.oid, current_database(), 'CONNECT')
		AND (r.oid IN (SELECT oid FROM present) OR r.oid IN (SELECT oid FROM named) AND r.rolname <> current_user)
		ORDER BY 1`)
	if err == nil {
		var names []string
		if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil {
			return names, nil
		}
	}
	return nil, fmt.Errorf("look who can log in: %w", err)
}

// LockedOut are those of the names that no client can log in by on this server.
func LockedOut(ctx context.Context, db querier, names []string) ([]string, error) {
	rows, err := db.Query(ctx, `
		SELECT name FROM unnest($1::text[]) name LEFT JOIN pg_roles ON rolname = name WHERE rolcanlogin IS NOT TRUE ORDER BY name`, names)
	if err == nil {
		var out []string
		if out, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil {
			return out, nil
		}
	}
	return nil, fmt.Errorf("look who can log in: %w", err)
}

// CodeRoleCreated is the code of what tells of a role that the secondary lacked.
const CodeRoleCreated = "role-created"

// RoleObject names a role in a problem.
func RoleObject(name string) string { return "role " + postgres.QuoteIdent(name) }

// giveLogin is the statement for a role, quoted.
const giveLogin = "ALTER ROLE %s LOGIN PASSWORD '…';"

// created tells what RestoreRoles leaves for a person to decide.
func (r Role) created() *problem.Problem {
	var has []string
	for _, a := range []struct {
		set  bool
		name string
	}{{r.Superuser, "SUPERUSER"}, {r.BypassRLS, "BYPASSRLS"}, {r.CreateRole, "CREATEROLE"}, {r.CreateDB, "CREATEDB"}} {
		if a.set {
			has = append(has, a.name)
		}
	}
	for _, s := range r.Settings {
		name, _, _ := strings.Cut(s, "=")
		has = append(has, "SET "+name)
	}
	p := problem.Noted(CodeRoleCreated, RoleObject(r.Name),
		"the target lacks it; it is created there without login and without a password")
	if len(has) > 0 {
		p.Cause += ", and without its " + strings.Join(has, ", ")
	}
	if r.Login {
		p = p.At("the secondary").Advise("when it is to be used there")
		p.Remedy = fmt.Sprintf(giveLogin, postgres.QuoteIdent(r.Name))
	}
	return p
}

// CreatedRole tells of a role that came to a secondary without login.
func CreatedRole(name string) *problem.Problem {
	return problem.Warn(CodeRoleCreated, RoleObject(name), "it was missing here and the primary's database names it: it was created without login",
		fmt.Sprintf(giveLogin, postgres.QuoteIdent(name))).Advise("if it is to log in here")
}

// maxLockedOut bounds the findings of TellLockedOut; the last one tells of all others.
const maxLockedOut = 20

const codeLockedOut = "role-locked-out"

// lockedOut tells it of a role before there is a link.
func (r Role) lockedOut() *problem.Problem {
	return problem.Warn(codeLockedOut, RoleObject(r.Name), "it can log in on the primary and not on the target, where its clients could not come back after a failover",
		fmt.Sprintf(giveLogin, postgres.QuoteIdent(r.Name)))
}

// TellLockedOut finds that roles can log in on one instance, and can't on the one that is, or
// may become, the primary in its place.
func TellLockedOut(names []string, on, not string) (out problem.Findings) {
	cause := fmt.Sprintf("its clients use the database on %s, and can't log in on %s", on, not)
	one := names[:min(len(names), maxLockedOut)]
	for _, name := range one {
		out = append(out, problem.Warn(codeLockedOut, RoleObject(name), cause, fmt.Sprintf(giveLogin, postgres.QuoteIdent(name))))
	}
	if rest := names[len(one):]; len(rest) > 0 {
		var quoted, logins []string
		for _, name := range rest {
			quoted, logins = append(quoted, postgres.QuoteIdent(name)), append(logins, fmt.Sprintf(giveLogin, postgres.QuoteIdent(name)))
		}
		out = append(out, problem.Warn(codeLockedOut, fmt.Sprintf("%d more roles: %s", len(rest), strings.Join(quoted, ", ")),
			strings.Replace(cause, "its", "their", 1), strings.Join(logins, "\n")))
	}
	return out
}
