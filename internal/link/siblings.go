package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// A primary may have several links of one database. When one of them hands over, the
// others go over to the new primary without a copy; package role has the rule, and
// these carry it out:
//
//	the new primary, while the old one still writes, makes a slot for each sibling
//	(prepareHeirs), and takes them up when it has taken over (inherit): heirs.go
//	the old primary names them in its handoff, streams what lies before it, and
//	forgets a sibling when its secondary has gone over (seeOff): moved.go
//	a sibling's secondary stops at the handoff, asks both who has it, and goes over
//	(await, goOver): goover.go
//
// This file has what one link of a database has to know of the others.

// siblings are the other links of a link's database.
func (m *Manager) siblings(l *link) []*link {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*link
	for _, s := range m.links {
		if s != l && s.database() == l.database() {
			out = append(out, s)
		}
	}
	return out
}

// closes returns another link by which the database is closed, if there is one: it is a
// secondary by that link, or handed over by it and does not know what became of that.
func (m *Manager) closes(l *link) *link {
	for _, s := range m.siblings(l) {
		side, _ := s.now()
		switch side.Phase {
		case role.Fencing, role.Handing, role.Aborting, role.Expelled, role.Diverged:
			return s
		}
		if side.Role == role.Secondary {
			return s
		}
	}
	return nil
}

// closedElsewhere says by which other link the database is closed, and would stay so if this
// one made it the primary; nil if by none.
func (l *link) closedElsewhere() error {
	other := l.m.closes(l)
	if other == nil {
		return nil
	}
	side, _ := other.now()
	return problem.New("closed-elsewhere", "database "+l.rec.Database,
		fmt.Sprintf("link %s of the same database is %s and %s here, and keeps it closed: it can't become the primary by link %s", other.rec.Name, side.Role, side.Phase, l.rec.Name),
		"hawser link drop "+other.rec.Name).Advise("instance " + other.rec.Peer + " keeps what it has, as a database of its own").At("instance " + l.m.cfg.Instance)
}

// gate is taken while a database's fence is opened or closed: a link that opens it has
// seen that no other closes it.
func (m *Manager) gate(ctx context.Context, database string) (release func(), err error) {
	m.mu.Lock()
	g := m.gates[database]
	if g == nil {
		g = make(turns, 1)
		m.gates[database] = g
	}
	m.mu.Unlock()
	return g.take(ctx)
}

// elsewhere returns why the link can't change its roles now: another link of the
// database changes them, or made it a secondary. Two handoffs of one database could
// both be taken up.
func (m *Manager) elsewhere(l *link) *problem.Problem {
	for _, s := range m.siblings(l) {
		side, _ := s.now()
		if side.Role == role.Primary && (side.Phase == role.Steady || side.Phase == role.Moved) {
			continue
		}
		return changesBy(s.rec, side)
	}
	return nil
}

func changesBy(rec catalog.Link, side role.State) *problem.Problem {
	if side.Role == role.Secondary && side.Phase == role.Steady {
		return problem.New("failover-elsewhere", "database "+rec.Database,
			"instance "+rec.Peer+" leads it, by link "+rec.Name+", which is the one that can hand it over to this instance", "hawser link failover "+rec.Name).Advise("if this instance is to lead")
	}
	return problem.New("failover-elsewhere", "database "+rec.Database,
		fmt.Sprintf("link %s of the same database is %s and %s here; one database changes its primary by one link at a time", rec.Name, side.Role, side.Phase),
		"hawser link show "+rec.Name).Advise("run it again when that link is steady")
}

// standSiblings has the database's other links stand while a rejoin takes rows away: what it
// does until it is through is no state that a primary had, and may reach nobody. They go on
// when it ended without that; what becomes of them otherwise is told by rowsTaken.
func (l *link) standSiblings(ctx context.Context) (release func(), err error) {
	stand := l.m.siblings(l)
	for _, s := range stand {
		why := l.takesRows(s.rec.Name, "is under way: it takes").Advise("it goes on, or says what it takes, when that has ended")
		s.update(func() { s.stands = why })
	}
	release = func() {
		for _, s := range stand {
			s.update(func() { s.stands = nil })
		}
	}
	for _, s := range stand {
		if err := s.until(ctx, func() bool { return s.serving == 0 }); err != nil && !errors.Is(err, errHalted) {
			release()
			return nil, err
		}
	}
	return release, nil
}

// takesRows is why a sibling stands during the rejoin, or after one that did not end: what
// says which.
func (l *link) takesRows(name, what string) *problem.Problem {
	return problem.New(codeRowsTaken, "link "+name,
		"a rejoin of the database by link "+l.rec.Name+" "+what+" rows away on instance "+l.m.cfg.Instance+", to fetch them from instance "+l.rec.Peer+", and this link's secondary stays as it is",
		"hawser link show "+l.rec.Name).At("instance " + l.m.cfg.Instance).Retry()
}

const codeRowsTaken = "rows-taken-away"

// beginServing enters a stream of changes, unless the link stands for a rejoin.
func (l *link) beginServing() (end func(), err error) {
	l.update(func() {
		if l.stands != nil {
			err = l.stands
			return
		}
		l.serving++
	})
	if err != nil {
		return nil, err
	}
	return func() { l.update(func() { l.serving-- }) }, nil
}

// rowsTaken refuses to stream what a rejoin by another link left: rows that it took away,
// and did not live to fetch, or those of another primary. The database itself tells.
func (l *link) rowsTaken(ctx context.Context) error {
	for _, s := range l.m.siblings(l) {
		side, _ := s.now()
		switch {
		case side.Role == role.Secondary && side.Rejoined && l.steady():
			return s.forcedMove(l.rec.Name)
		case side.Phase != role.Diverged:
			continue
		}
		conn, err := l.connect(ctx, "rows")
		if err != nil {
			return err
		}
		lacks, err := catalog.Lacking(ctx, conn, s.rec.ID)
		_ = conn.Close(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		if lacks != nil {
			p := s.takesRows(l.rec.Name, "did not end: it took")
			p.Remedy = "hawser link rejoin " + s.rec.Name
			return p.Advise("if instance " + s.rec.Peer + " is gone for good: hawser link failover " + l.rec.Name + " --force on instance " + l.rec.Peer + ", which has all rows")
		}
	}
	return nil
}

// steady tells that this side leads the link, as far as it knows.
func (l *link) steady() bool {
	side, _ := l.now()
	return side.Role == role.Primary && side.Phase == role.Steady
}

// notCompared is leadsAgain for who holds slots.
func (l *link) notCompared(ctx context.Context, side role.State) error {
	if side.Phase != role.Steady || !l.left() || l.m.closes(l) != nil {
		return nil
	}
	// What its slot holds is of before, and of the time between, when DDL came from elsewhere.
	if err := l.m.store.Do(ctx, func(conn *pgx.Conn) error { return capture.DropSlot(ctx, conn, l.rec.ID) }); err != nil {
		return err
	}
	l.suspend(problem.New(codeNotCompared, "link "+l.rec.Name,
		"this instance leads the database again, and had been forced out since the secondary followed it: the two need not be equal", "hawser link resync "+l.rec.Name))
	return nil
}

// leads reports whether this instance is the primary of a database by every link of it.
func (m *Manager) leads(database string) bool {
	found := false
	for _, l := range m.all() {
		if l.rec.Database != database {
			continue
		}
		if side, _ := l.now(); side.Role != role.Primary || side.Phase != role.Steady && side.Phase != role.Moved {
			return false
		}
		found = true
	}
	return found
}
