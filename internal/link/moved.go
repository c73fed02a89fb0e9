package link

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// primaryMoved is called when a link made its database a secondary, and again when
// the agent starts. The database's other links have a primary that is none any more.
// One that was forced out may hold what the new primary never had, and so may its
// other secondaries: they stand until a person has looked.
func (m *Manager) primaryMoved(l *link) {
	side, _ := l.now()
	for _, s := range m.siblings(l) {
		if theirs, _ := s.now(); theirs.Role != role.Primary || theirs.Phase != role.Steady {
			continue
		}
		s.done.Go(func() {
			if side.Rejoined {
				s.suspend(l.forcedMove(s.rec.Name))
				return
			}
			s.tell(role.PrimaryMoved{Heir: l.rec.Peer})
		})
	}
}

// forcedMove is why a sibling stands on a side that was forced out.
func (l *link) forcedMove(name string) *problem.Problem {
	return l.moved(name, "it was forced out by link "+l.rec.Name+": what this link's secondary received need not be what instance "+l.rec.Peer+" has")
}

// leadsHere refuses to lead a secondary while another link of the database closes it: what
// this side had to tell would be another primary's, and lack what that does not write here.
func (l *link) leadsHere() error {
	other := l.m.closes(l)
	if other == nil {
		return nil
	}
	side, _ := other.now()
	if side.Role == role.Secondary || expelled(side) {
		return other.forcedMove(l.rec.Name)
	}
	return changesBy(other.rec, side)
}

// leadsAgain has a link that stood since its database's primary was elsewhere say what it
// takes now that it is here: what the secondary has was not followed meanwhile.
func (l *link) leadsAgain(ctx context.Context, side role.State) error {
	l.slots.Lock()
	defer l.slots.Unlock()
	return l.notCompared(ctx, side)
}

// codeMoved is of a link that can't follow its database's primary by itself.
const codeMoved = "primary-moved"

// moved is the problem of a sibling that can't follow the new primary by itself.
func (l *link) moved(name, why string) *problem.Problem {
	return problem.New(codeMoved, "database "+l.rec.Database,
		"instance "+l.rec.Peer+" is its primary now, and link "+name+" can't follow it by itself: "+why,
		"hawser link follow "+name+" --primary "+l.rec.Peer).Advise("it compares the two and copies the tables that differ; they have to know each other (hawser peer add)").At("the link's secondary")
}

// whereRequest asks an instance how far it is in a link that it and the asking one may
// share no longer.
type whereRequest struct {
	ID string `json:"id"`
	// Database and Primary, an instance, ask by which link the one that is asked leads it
	// since that one does not. See askLeader.
	Database string `json:"database,omitempty"`
	Primary  string `json:"primary,omitempty"`
}

type whereReply struct {
	Known bool       `json:"known"` // it has the link, or is about to take it up
	Peer  string     `json:"peer,omitempty"`
	Side  role.State `json:"side,omitzero"`
	// Followed tells that the other side followed this one in its term.
	Followed bool `json:"followed,omitempty"`
	// Leads tells that it leads the database. Older agents do not say.
	Leads bool `json:"leads,omitempty"`
	// By is the link by which it leads the database that was asked for. Older agents do not say.
	By string `json:"by,omitempty"`
}

// where answers seeOff, await and askLeader. It changes nothing, so it may be asked by an
// instance that has no part in the link here.
func (m *Manager) where(ctx context.Context, from string, asked whereRequest) (r whereReply, err error) {
	select {
	case <-m.ready:
	default:
		return r, errStarting(m.cfg.Instance)
	}
	err = m.store.Do(ctx, func(conn *pgx.Conn) (err error) { r.Known, err = catalog.HasHeir(ctx, conn, asked.ID); return err })
	if err != nil {
		return r, err
	}
	by := m.leadBy(from, asked)
	r.By = by
	if l := m.holds("", asked.ID); l != nil {
		leads := !l.left() && m.leads(l.rec.Database)
		l.mu.Lock()
		defer l.mu.Unlock()
		r = whereReply{Known: true, Peer: l.rec.Peer, Side: l.side, Followed: l.followed, Leads: leads, By: by}
	}
	return r, nil
}

// seeOff is the old primary's: it forgets a link whose secondary follows the heir. The
// slot has to stay until then: it is all that the secondary can reach the handoff by.
func (l *link) seeOff(ctx context.Context, side role.State) error {
	var secondary, heir whereReply
	stranger := l.askWhere(ctx, l.rec.Peer, &secondary)
	gone := stranger == nil && (!secondary.Known || secondary.Side.Term > side.Term)
	var err error
	if by := l.heir(side); !gone && by != "" {
		err = l.askWhere(ctx, by, &heir)
		// An heir that had the link in a term of its own, and took it up once more, may be in our
		// term: the secondary is in it by following that one.
		gone = heir.Side.Role == role.Primary && heir.Side.Term >= side.Term && heir.Followed
	}
	if !gone {
		gone = l.leftTo(ctx)
	}
	if gone {
		l.log.Info("forgotten here: the secondary follows the new primary", "secondary", l.rec.Peer, "primary", l.heir(side))
		l.m.work.Go(func() { l.m.forget(l) })
		return nil
	}
	if side.Phase == role.Moved {
		l.standMoved(side, heir, err, stranger)
	}
	return err
}

// leftTo tells that the instance which leads the database now leads this link's secondary
// too, in whatever term: a person had it follow that one, past the handoffs between. Should
// that be over again when it is told, the secondary is compared, as one is that meets no heir.
func (l *link) leftTo(ctx context.Context) bool {
	asked := map[string]bool{"": true, l.rec.Peer: true}
	for _, s := range l.m.siblings(l) {
		theirs, _ := s.now()
		for _, instance := range []string{s.rec.Peer, theirs.Heir} {
			if asked[instance] {
				continue
			}
			asked[instance] = true
			var r whereReply
			if err := l.askWhere(ctx, instance, &r); err == nil && r.leads(l.rec.Peer) {
				return true
			}
		}
	}
	return false
}

// leads tells that it is the primary that this secondary follows. One that was forced out,
// and has not heard that the secondary left it, leads nobody.
func (r whereReply) leads(secondary string) bool {
	return r.Leads && r.Side.Role == role.Primary && r.Side.Phase == role.Steady && r.Followed && r.Peer == secondary
}

// heir is the instance that leads the database since this side does not, if it is known.
func (l *link) heir(side role.State) string {
	if by := l.m.closes(l); side.Heir == "" && by != nil {
		return by.rec.Peer
	}
	return side.Heir
}

func (l *link) askWhere(ctx context.Context, instance string, r *whereReply) error {
	return l.m.call(ctx, instance, l.rec.Name, callWhere, whereRequest{ID: l.rec.ID}, r)
}

// standMoved says what a link takes whose primary went away from here, and whose secondary
// can't follow it by itself. unasked and stranger are why the heir and the secondary did
// not answer.
func (l *link) standMoved(side role.State, heir whereReply, unasked, stranger error) {
	l.mu.Lock()
	suspended := l.suspended
	l.mu.Unlock()
	var why *problem.Problem
	switch {
	case l.ledBack():
		why = l.movedBack(l.m.cfg.Instance, side.Heir)
	case unasked != nil:
		why = l.heirUnseen(side.Heir, unasked)
	case !heir.Known && suspended == nil:
		l.suspend(l.movedTo(side.Heir, "instance "+side.Heir+" could not take it up, as its log tells"))
	case !heir.Known:
		why = suspended
	case heir.Side.Role == role.Primary && heir.Side.Term < side.Term:
		why = l.movedTo(side.Heir, "instance "+side.Heir+" still keeps what it had of it in an earlier term")
	}
	if why != nil && stranger != nil {
		why = why.Advise(joined(why.Advice, "where instance "+l.rec.Peer+" does not have the link any more: hawser link drop "+l.rec.Name+" --force, on instance "+l.m.cfg.Instance))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cause = why
}

// heirUnseen is of a link whose heir does not tell whether the secondary follows it.
func (l *link) heirUnseen(heir string, err error) *problem.Problem {
	p := problem.Of(err, codeUnseen)
	return problem.New(codeUnseen, "link "+l.rec.Name, "instance "+heir+" is the primary now; this side stays until instance "+l.rec.Peer+" follows it, and can't ask: "+p.Cause,
		p.Remedy).Advise(p.Advice).At(p.Place).Retry()
}

const codeUnseen = "heir-unreachable"

// ledBack tells that the database's primary went away by another link, and came back here,
// while this link's secondary stood.
func (l *link) ledBack() bool {
	side, _ := l.now()
	return side.Phase == role.Moved && l.m.leads(l.rec.Database)
}

// movedBack is the problem of a secondary whose primary handed over to an heir that it did
// not reach, and leads again.
func (l *link) movedBack(primary, heir string) *problem.Problem {
	return problem.New(codeMoved, "link "+l.rec.Name,
		"instance "+heir+" took the database over, and instance "+primary+" leads it again; what came behind the handoff between them the secondary can't follow by itself",
		"hawser link follow "+l.rec.Name+" --primary "+primary).Advise("it compares the two and copies the tables that differ").At("the link's secondary").Retry()
}

// movedTo is moved, as the sibling itself says it.
func (l *link) movedTo(heir, why string) *problem.Problem {
	by := link{rec: catalog.Link{Database: l.rec.Database, Peer: heir}}
	return by.moved(l.rec.Name, why)
}

func (m *Manager) forget(l *link) {
	release, err := m.claim(l.rec.Name)
	if err != nil {
		return // a person drops it
	}
	defer release()
	if err := m.endSide(m.ctx, l); err != nil {
		l.log.Warn("can't remove the link yet", "error", err)
	}
}
