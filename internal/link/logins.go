package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

const codeRoleCreated = "role-created"

// createdRole tells of a role that came to a secondary without login.
func createdRole(name string) *problem.Problem {
	return problem.Warn(codeRoleCreated, roleObject(name), "it was missing here and the primary's database names it: it was created without login",
		"ALTER ROLE "+postgres.QuoteIdent(name)+" LOGIN PASSWORD '…';").Advise("if it is to log in here")
}

func roleObject(name string) string { return "role " + postgres.QuoteIdent(name) }

// maxLockedOut bounds the findings of LockedOut; the last one tells of all others.
const maxLockedOut = 20

// LockedOut finds that roles can log in on one instance, and can't on the one that is, or
// may become, the primary in its place.
func LockedOut(names []string, on, not string) problem.Findings {
	cause := fmt.Sprintf("its clients use the database on %s, and can't log in on %s", on, not)
	var out problem.Findings
	one := names[:min(len(names), maxLockedOut)]
	for _, name := range one {
		out = append(out, problem.Warn("role-locked-out", roleObject(name), cause, "ALTER ROLE "+postgres.QuoteIdent(name)+" LOGIN PASSWORD '…';"))
	}
	if rest := names[len(one):]; len(rest) > 0 {
		var quoted, logins []string
		for _, name := range rest {
			name = postgres.QuoteIdent(name)
			quoted, logins = append(quoted, name), append(logins, "ALTER ROLE "+name+" LOGIN PASSWORD '…';")
		}
		out = append(out, problem.Warn("role-locked-out", fmt.Sprintf("%d more roles: %s", len(rest), strings.Join(quoted, ", ")),
			strings.Replace(cause, "its", "their", 1), strings.Join(logins, "\n")))
	}
	return out
}

// noteLogins tells which roles could not log in any more after a failover, while there is
// time to give them login. What was told of roles when they were created on the secondary
// goes with the need for it.
func (l *link) noteLogins(ctx context.Context, s *Status) {
	if side, _ := l.now(); side.Phase != role.Steady || l.unreached() != nil {
		return
	}
	locked, err := l.lockedOut(ctx, s.Role)
	if err != nil {
		l.log.Debug("can't compare who can log in on the two sides", "error", err)
		return
	}
	on, not, object := s.Peer, l.m.cfg.Instance, roleObject
	if s.Role == role.Primary {
		on, not = not, on
		object = func(name string) string { return createdRole(name).On(s.Peer).Object }
	}
	told := func(name string) bool {
		return slices.ContainsFunc(s.Notes, func(p *problem.Problem) bool { return p.Code == codeRoleCreated && p.Object == object(name) })
	}
	var found problem.Findings
	if l.filter().All() { // else nobody fails over
		found = LockedOut(slices.DeleteFunc(slices.Clone(locked), told), on, not)
	}
	if s.Role == role.Primary {
		found = found.On(s.Peer)
	}
	s.Notes = append(slices.DeleteFunc(s.Notes, func(p *problem.Problem) bool {
		return p.Code == codeRoleCreated && (s.Role == role.Secondary || p.Place != "") && // else of a time when this was the secondary
			!slices.ContainsFunc(locked, func(name string) bool { return p.Object == object(name) })
	}), found...)
}

// lockedOut are the roles whose clients use the database on the primary, and that can't
// log in on the secondary; our is the role of this side.
func (l *link) lockedOut(ctx context.Context, our role.Role) (locked []string, err error) {
	var logins []string
	if our == role.Primary {
		if logins, err = l.loginsHere(ctx); err != nil || len(logins) == 0 {
			return nil, err
		}
		err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callLockedOut, logins, &locked)
		return locked, err
	}
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callLogins, nothing{}, &logins); err != nil {
		return nil, err
	}
	return l.lockedOutHere(ctx, logins)
}

var errNoSession = errors.New("the database can't be asked")

// loginsHere answers lockedOut on the primary.
func (l *link) loginsHere(ctx context.Context) (names []string, err error) {
	err = errNoSession
	l.glance(ctx, func(conn *pgx.Conn) { names, err = schema.Logins(ctx, conn) })
	return names, err
}

// lockedOutHere answers it on the secondary.
func (l *link) lockedOutHere(ctx context.Context, names []string) (locked []string, err error) {
	err = l.m.store.Do(ctx, func(conn *pgx.Conn) (err error) {
		locked, err = schema.LockedOut(ctx, conn, names)
		return err
	})
	return locked, err
}

// withoutLogin are the notes but for those of roles that were created here and can log in by now.
func (l *link) withoutLogin(ctx context.Context, notes problem.Findings) problem.Findings {
	created := func(p *problem.Problem) bool { return p.Code == codeRoleCreated }
	if !slices.ContainsFunc(notes, created) {
		return notes
	}
	var can []string
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT rolname::text FROM pg_roles WHERE rolcanlogin`)
		if err == nil {
			can, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return err
	})
	if err != nil {
		return notes
	}
	return slices.DeleteFunc(notes, func(p *problem.Problem) bool {
		return created(p) && slices.ContainsFunc(can, func(name string) bool { return p.Object == roleObject(name) })
	})
}
