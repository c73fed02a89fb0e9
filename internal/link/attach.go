package link

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// A secondary that can't go over by itself (goover.go) follows another primary, or the
// same one once more, when a person says so. Nothing proves the two equal, so they are
// compared: the secondary asks (attach), and the primary makes its half (takeUp).

// mayFollow refuses to take a secondary away from an instance that leads its database, and
// returns the term in which another one may lead it. When that instance can't be asked, the
// person who names another one is believed: it has to lead a database of this name, and
// whatever differs from it is copied.
func (l *link) mayFollow(ctx context.Context, side role.State, primary string) (next frame.Term, err error) {
	object := "link " + l.rec.Name
	if side.Role != role.Secondary {
		return 0, l.ledHere(side, primary)
	}
	if primary == l.m.cfg.Instance {
		return 0, problem.New("peer-is-self", object, "it is this instance that is to follow another one", "hawser link failover "+l.rec.Name).Advise("if it is to lead")
	}
	var reply outcomeReply
	err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callHandoff, outcomeRequest{side.By, side.Term}, &reply)
	switch {
	case primary == l.rec.Peer && !reply.Back && !l.notThere(err):
		return 0, problem.New("same-primary", object, "instance "+primary+" is its primary already", "hawser link resync "+l.rec.Name).Advise("it compares the two")
	case err == nil && reply.Outcome != handoffTaken:
		return 0, problem.New("primary-not-moved", object, "instance "+l.rec.Peer+" leads its database, or may still",
			"hawser link list").Advise("see which instance leads; where instance " + l.rec.Peer + " was forced out, hawser link rejoin there first; else hawser link failover, of the link between instance " + l.rec.Peer + " and instance " + primary + ", makes the other one lead")
	}
	return max(side.Following(), reply.Next), nil
}

// heldIn is the term in which that instance may lead the link: no less than next, and that in
// which it took the link up at a handoff. The primary of then told it, which had spent some.
func (l *link) heldIn(ctx context.Context, side role.State, primary string, next frame.Term) (frame.Term, error) {
	var there whereReply
	if err := l.askWhere(ctx, primary, &there); err != nil {
		return 0, err
	}
	if there.Side.Role == role.Primary && there.Side.After == side.Term {
		next = max(next, there.Side.Term)
	}
	return next, nil
}

// leaveTo has this side never take over with a term in which another instance may lead the
// link from now on: opened by force after a follow that did not end, it is in a later one,
// and that instance closes.
func (l *link) leaveTo(ctx context.Context, next frame.Term) (role.State, error) {
	side, err := l.ask(ctx, role.RefusalAsked{Term: next})
	if err == nil && (side.Role != role.Secondary || side.Floor < next) {
		err = l.rolesChanged(side)
	}
	return side, err
}

// ledHere is why a primary does not follow, and what whoever wants the link to follow that
// instance does instead.
func (l *link) ledHere(side role.State, primary string) error {
	here := l.m.cfg.Instance
	p := problem.New("not-secondary", "link "+l.rec.Name, "instance "+here+" is its primary; it is the secondary that can follow another one",
		"hawser link follow "+l.rec.Name+" --primary "+primary).At("instance " + l.rec.Peer)
	switch {
	case expelled(side):
		p.Remedy, p.Place = "hawser link rejoin "+l.rec.Name, ""
		return p.Advise("it follows instance " + l.rec.Peer + " then, which took over by force")
	case primary == l.rec.Peer && side.Phase == role.Moved:
		p.Remedy, p.Place = "hawser link show "+l.rec.Name, ""
		return p.Advise("it tells how instance " + primary + " follows; then hawser link failover " + l.rec.Name + " makes it the primary")
	case primary == l.rec.Peer:
		p.Remedy, p.Place = "hawser link failover "+l.rec.Name, ""
		return p.Advise("it makes instance " + primary + " the primary")
	case primary == here && side.Phase == role.Steady && !l.left():
		p.Remedy, p.Place = "hawser link resync "+l.rec.Name, ""
		return p.Advise("it compares the two")
	case primary == here && !l.m.leads(l.rec.Database):
		return l.leadsHere()
	}
	return p
}

// takeUpRequest asks an instance that leads a database to lead the secondary that asks.
type takeUpRequest struct {
	ID       string     `json:"id"`
	Database string     `json:"database"`
	After    frame.Term `json:"after"` // the term that the link is in
	Next     frame.Term `json:"next"`  // the one that it will be in
	MaxWAL   *int64     `json:"max_wal,omitempty"`
	filter.Filter
}

// codeNotCompared is of a secondary that was attached to a primary, and not compared with
// it to the end.
const codeNotCompared = "not-compared"

// attach has this secondary follow an instance to which nothing proves it equal: the
// two are compared, and the tables that differ copied, before anything is applied. A
// crash in between leaves a link that says that it is to be compared.
func (m *Manager) attach(ctx context.Context, l *link, primary string) error {
	side, _ := l.now()
	next, err := l.mayFollow(ctx, side, primary)
	if err != nil {
		return err
	}
	if p := m.granted(primary, l.rec.Database, grant.FromPeer); p != nil {
		return p
	}
	if next, err = l.heldIn(ctx, side, primary, next); err != nil {
		return err
	}
	if side, err = l.leaveTo(ctx, next); err != nil {
		return err
	}
	var theirs role.State
	request := takeUpRequest{l.rec.ID, l.rec.Database, side.Term, next, l.ownMaxWAL(), l.filter()}
	if err := m.call(ctx, primary, l.rec.Name, callTakeUp, request, &theirs); err != nil {
		return err
	}
	why := problem.New(codeNotCompared, "link "+l.rec.Name, "it was not compared with instance "+primary+", its new primary, to the end", "hawser link resync "+l.rec.Name)
	now, err := m.exchangePrimary(ctx, l, primary, role.PrimaryChosen{Primary: theirs}, why)
	if err == nil && !now.follows(primary, theirs.Term) {
		err = problem.New("resync-not-now", "link "+l.rec.Name, "its state changed meanwhile", "hawser link show "+l.rec.Name).Retry()
	}
	if err != nil {
		return err
	}
	if l.rec.Peer == primary { // which made its half anew
		return now.resync(ctx, nil)
	}
	if err := m.call(ctx, l.rec.Peer, l.rec.Name, callDrop, dropRequest{ID: l.rec.ID}, nil); err != nil {
		l.log.Warn("the old primary could not be told that this link left it; it asks by itself", "error", err)
	}
	return now.resync(ctx, nil)
}

// follows tells that this side is the secondary of that instance in that term.
func (l *link) follows(primary string, term frame.Term) bool {
	side, _ := l.now()
	return l.rec.Peer == primary && side.Role == role.Secondary && side.Term == term
}

// takeUp answers attach. It may be asked again.
func (m *Manager) takeUp(ctx context.Context, name, from string, r takeUpRequest) (role.State, error) {
	release, err := m.claim(name)
	if err != nil {
		return role.State{}, err
	}
	defer release()
	l := m.holds(name, r.ID)
	if l != nil && (l.rec.ID != r.ID || l.peer() != from) {
		return role.State{}, taken(name)
	}
	if !m.leads(r.Database) {
		return role.State{}, m.leadsNot(r.Database)
	}
	if l != nil {
		switch side, _ := l.now(); {
		case l.finishing.Load():
			return role.State{}, busy(name)
		case l.stays() && l.steady() && side.After == r.After && side.Term <= r.Next:
			return side, nil
		case !l.stays() || l.ledBack() && (side.Term == r.After || side.After == r.After):
			// It did not come to stand, or its slot is of before, and does not tell what came
			// from elsewhere meanwhile.
			if err := m.endSide(ctx, l); err != nil {
				return role.State{}, err
			}
		default:
			return role.State{}, problem.New("link-busy", "link "+name, "instance "+m.cfg.Instance+" still keeps what it had of it in an earlier term",
				"hawser link drop "+name+" --force").Advise("if it stays so; run it again in some seconds first").At("instance " + m.cfg.Instance).Retry()
		}
	}
	return m.leadAnew(ctx, name, from, r)
}

// leadAnew makes the primary's half of a link whose secondary is elsewhere already.
func (m *Manager) leadAnew(ctx context.Context, name, from string, r takeUpRequest) (role.State, error) {
	state := role.Inherited(role.Handoff{}, r.After, r.Next, 0)
	data, err := json.Marshal(state)
	if err != nil {
		return role.State{}, err
	}
	rec := catalog.Link{Name: name, ID: r.ID, Peer: from, Database: r.Database, Side: data, Progress: catalog.Creating,
		Tables: r.Tables, ExcludeTables: r.Exclude, MaxWAL: r.MaxWAL}
	if err := m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.InsertLink(ctx, conn, rec) }); err != nil {
		return role.State{}, err
	}
	l := newLink(m, rec, state)
	m.mu.Lock()
	m.links[name] = l
	m.mu.Unlock()
	l.start()
	if err = l.beginLeading(ctx); err != nil {
		return role.State{}, errors.Join(err, m.endSide(context.WithoutCancel(ctx), l))
	}
	state, _ = l.now()
	return state, nil
}

func (m *Manager) leadsNot(database string) error {
	return problem.New("not-primary", "database "+database, "instance "+m.cfg.Instance+" does not lead it", "hawser link list").At("instance " + m.cfg.Instance)
}

// beginLeading makes the slot of a link that is taken up. One that came behind a handoff of
// the database would not show it: whoever follows from there would follow a secondary.
func (l *link) beginLeading(ctx context.Context) error {
	reply, err := l.m.makePrimary(ctx, l)
	if err != nil {
		return err
	}
	if !l.m.leads(l.rec.Database) {
		return l.m.leadsNot(l.rec.Database)
	}
	side, err := l.ask(ctx, role.LeadsFrom{Position: reply.From})
	if err != nil {
		return err
	}
	if side.Position != reply.From { // it moved there and back
		return l.m.leadsNot(l.rec.Database)
	}
	return l.startRunning(ctx)
}
