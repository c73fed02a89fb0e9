package link

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

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
	on, not, object := s.Peer, l.m.cfg.Instance, schema.RoleObject
	if s.Role == role.Primary {
		on, not = not, on
		object = func(name string) string { return schema.CreatedRole(name).On(s.Peer).Object }
	}
	told := func(name string) bool {
		return slices.ContainsFunc(s.Notes, func(p *problem.Problem) bool { return p.Code == schema.CodeRoleCreated && p.Object == object(name) })
	}
	var found problem.Findings
	if l.filter().All() { // else nobody fails over
		found = schema.TellLockedOut(slices.DeleteFunc(slices.Clone(locked), told), on, not)
	}
	if s.Role == role.Primary {
		found = found.On(s.Peer)
	}
	s.Notes = append(slices.DeleteFunc(s.Notes, func(p *problem.Problem) bool {
		return p.Code == schema.CodeRoleCreated && (s.Role == role.Secondary || p.Place != "") && // else of a time when this was the secondary
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
	created := func(p *problem.Problem) bool { return p.Code == schema.CodeRoleCreated }
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
		return created(p) && slices.ContainsFunc(can, func(name string) bool { return p.Object == schema.RoleObject(name) })
	})
}
