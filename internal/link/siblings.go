package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// A primary may have several links of one database. When one of them hands over, the
// others go over to the new primary without a copy; package role has the rule, and
// this file carries it out:
//
//	the new primary, while the old one still writes, makes a slot for each sibling
//	(prepareHeirs), and takes them up when it has taken over (inherit);
//	the old primary names them in its handoff, streams what lies before it, and
//	forgets a sibling when its secondary has gone over (seeOff);
//	a sibling's secondary stops at the handoff, asks both who has it, and goes over
//	(await, goOver).

// siblings are the other links of a link's database.
func (m *Manager) siblings(l *link) []*link {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*link
	for _, s := range m.links {
		if s != l && s.rec.Database == l.rec.Database {
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

// codeMoved is of a link that can't follow its database's primary by itself.
const codeMoved = "primary-moved"

// moved is the problem of a sibling that can't follow the new primary by itself.
func (l *link) moved(name, why string) *problem.Problem {
	return problem.New(codeMoved, "database "+l.rec.Database,
		"instance "+l.rec.Peer+" is its primary now, and link "+name+" can't follow it by itself: "+why,
		"hawser link follow "+name+" --primary "+l.rec.Peer).Advise("it compares the two and copies the tables that differ; they have to know each other (hawser peer add)").At("the link's secondary")
}

// sibling is what the new primary has to know of a link that it is to take up.
type sibling struct {
	ID, Name, Peer string
	After, Next    frame.Term
	MaxWAL         *int64
	filter.Filter
}

type prepareReply struct {
	Heirs     []string `json:"heirs,omitempty"`      // ids of the siblings that will be taken up
	LockedOut []string `json:"locked_out,omitempty"` // of the request's users
	// Term is what the handoff is to bring: no less than was asked for, and one that this
	// side has neither spent nor refused.
	Term frame.Term `json:"term,omitempty"`
}

// successors are the siblings that can follow a new primary.
func (m *Manager) successors(l *link) []sibling {
	var out []sibling
	for _, s := range m.siblings(l) {
		side, _ := s.now()
		s.mu.Lock()
		runs, maxWAL := s.progress == catalog.Running && s.suspended == nil, s.maxWAL
		s.mu.Unlock()
		if runs && side.Role == role.Primary && side.Phase == role.Steady {
			out = append(out, sibling{s.rec.ID, s.rec.Name, s.rec.Peer, side.Term, side.Following(), maxWAL, s.filter()})
		}
	}
	return out
}

// prepareHeirs makes the slots of the siblings, before this side can take a write. A
// sibling for which that fails is left out, and the failover goes on without it.
func (l *link) prepareHeirs(ctx context.Context, conn *pgx.Conn, r prepareRequest) (prepareReply, error) {
	reply := prepareReply{Term: r.Term}
	if err := l.discardHeirs(ctx); err != nil {
		return reply, err
	}
	l.heirs.Lock()
	defer l.heirs.Unlock()
	for _, s := range r.Siblings {
		if err := l.prepareHeir(ctx, conn, r.Term, s); err != nil {
			if ctx.Err() != nil {
				return reply, ctx.Err()
			}
			l.log.Warn("another link of the database can't be taken up", "sibling", s.Name, "error", err)
			continue
		}
		reply.Heirs = append(reply.Heirs, s.ID)
	}
	return reply, nil
}

func (l *link) prepareHeir(ctx context.Context, conn *pgx.Conn, term frame.Term, s sibling) error {
	if s.Peer == l.m.cfg.Instance {
		return problem.New("peer-is-self", "link "+s.Name, "its secondary is on this instance", "hawser link drop "+s.Name)
	}
	if other := l.m.holds(s.Name, s.ID); other != nil {
		return problem.New("link-exists", "link "+s.Name, "this instance has a link of this name or id, with instance "+other.rec.Peer, "hawser link show "+other.rec.Name)
	}
	l.heirless = false
	// First the record, so that a crash finds the slot.
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		return catalog.PutHeir(ctx, conn, catalog.Heir{ID: s.ID, Link: l.rec.Name, Name: s.Name, Peer: s.Peer, Term: term, After: s.After, Next: s.Next,
			Tables: s.Tables, ExcludeTables: s.Exclude, MaxWAL: s.MaxWAL})
	})
	if err == nil {
		err = capture.Install(ctx, conn, s.ID, s.Filter)
	}
	if err == nil {
		err = capture.DropSlot(ctx, conn, s.ID)
	}
	if err == nil {
		_, err = capture.CreateSlot(ctx, conn, s.ID)
	}
	if err != nil {
		return errors.Join(err, l.discardHeir(context.WithoutCancel(ctx), s.ID))
	}
	return nil
}

// holds returns the link of that name or id.
func (m *Manager) holds(name, id string) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.links {
		if l.rec.Name == name || l.rec.ID == id {
			return l
		}
	}
	return nil
}

// heirsOf returns the links that are to be taken up with this one. The caller holds heirs.
func (l *link) heirsOf(ctx context.Context) (heirs []catalog.Heir, err error) {
	if l.heirless {
		return nil, nil
	}
	err = l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		heirs, err = catalog.Heirs(ctx, conn, l.rec.Name)
		return err
	})
	l.heirless = err == nil && len(heirs) == 0
	return heirs, err
}

// discardHeirs takes back what prepareHeirs made. What was inherited is not among it.
func (l *link) discardHeirs(ctx context.Context) error {
	l.heirs.Lock()
	defer l.heirs.Unlock()
	heirs, err := l.heirsOf(ctx)
	for _, h := range heirs {
		if err == nil {
			err = l.discardHeir(ctx, h.ID)
		}
	}
	return err
}

func (l *link) discardHeir(ctx context.Context, id string) error {
	conn, err := l.connect(ctx, "heirs")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := capture.DropSlot(ctx, conn, id); err != nil {
		return err
	}
	if err := capture.Uninstall(ctx, conn, id, false); err != nil {
		return err
	}
	return l.m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.DeleteHeir(ctx, conn, id) })
}

// inherit takes up the siblings after this side took over by a handoff. Each is taken
// up once: its record comes and its place in the list of heirs goes in one
// transaction. It may be called at any time.
func (l *link) inherit(ctx context.Context) error {
	side, _ := l.now()
	if side.Role != role.Primary || side.Phase == role.Promoting {
		return nil
	}
	l.heirs.Lock()
	defer l.heirs.Unlock()
	heirs, err := l.heirsOf(ctx)
	if err != nil || len(heirs) == 0 {
		return err
	}
	for _, h := range heirs {
		if side.Forced || h.Term != side.Term || l.m.holds(h.Name, h.ID) != nil {
			// Of a failover that was taken back, and then came a forced one.
			err = l.discardHeir(ctx, h.ID)
		} else {
			err = l.inheritOne(ctx, side, h)
		}
		if err != nil {
			return fmt.Errorf("take up link %s: %w", h.Name, err)
		}
	}
	return nil
}

func (l *link) inheritOne(ctx context.Context, side role.State, h catalog.Heir) error {
	release, err := l.m.claim(h.Name)
	if err != nil {
		return err
	}
	defer release()
	conn, err := l.connect(ctx, "inherit")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := catalog.Join(ctx, conn, h.ID, h.Name); err != nil {
		return err
	}
	state := role.Inherited(role.Handoff{Link: l.rec.ID, Term: h.Term}, h.After, h.Next, side.Position)
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	rec := catalog.Link{Name: h.Name, ID: h.ID, Peer: h.Peer, Database: l.rec.Database, Side: data, Progress: catalog.Running,
		Tables: h.Tables, ExcludeTables: h.ExcludeTables, MaxWAL: h.MaxWAL}
	err = l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := catalog.InsertLink(ctx, tx, rec); err != nil {
				return err
			}
			if err := catalog.DeleteHeir(ctx, tx, h.ID); err != nil {
				return err
			}
			rec, _, err = catalog.FindLink(ctx, tx, h.Name)
			return err
		})
	})
	if err != nil {
		return err
	}
	taken := newLink(l.m, rec, state)
	l.m.mu.Lock()
	l.m.links[h.Name] = taken
	l.m.mu.Unlock()
	taken.start()
	taken.log.Info("taken up from the old primary of the database", "by", l.rec.Name, "term", state.Term)
	return nil
}

// whereRequest asks an instance how far it is in a link that it and the asking one may
// share no longer.
type whereRequest struct {
	ID string `json:"id"`
}

type whereReply struct {
	Known bool       `json:"known"` // it has the link, or is about to take it up
	Peer  string     `json:"peer,omitempty"`
	Side  role.State `json:"side,omitzero"`
	// Followed tells that the other side followed this one in its term.
	Followed bool `json:"followed,omitempty"`
}

// where answers seeOff and await. It changes nothing, so it may be asked by an
// instance that has no part in the link here.
func (m *Manager) where(ctx context.Context, id string) (r whereReply, err error) {
	select {
	case <-m.ready:
	default:
		return r, errStarting(m.cfg.Instance)
	}
	err = m.store.Do(ctx, func(conn *pgx.Conn) (err error) { r.Known, err = catalog.HasHeir(ctx, conn, id); return err })
	if err != nil {
		return r, err
	}
	if l := m.holds("", id); l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		r = whereReply{Known: true, Peer: l.rec.Peer, Side: l.side, Followed: l.followed}
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

// heir is the instance that leads the database since this side does not, if it is known.
func (l *link) heir(side role.State) string {
	if by := l.m.closes(l); side.Heir == "" && by != nil {
		return by.rec.Peer
	}
	return side.Heir
}

func (l *link) askWhere(ctx context.Context, instance string, r *whereReply) error {
	return l.m.call(ctx, instance, l.rec.Name, callWhere, whereRequest{l.rec.ID}, r)
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
	if _, err := m.dropSide(m.ctx, l, false); err != nil {
		l.log.Warn("can't remove the link yet", "error", err)
	}
}

// outcomeRequest asks the primary what became of another link's handoff.
type outcomeRequest struct {
	By   role.Handoff `json:"by"`
	Term frame.Term   `json:"term"` // of the link that asks
}

type outcome string

const (
	handoffPending outcome = "pending"
	handoffRefused outcome = "refused" // this side writes again
	handoffTaken   outcome = "taken"
)

type outcomeReply struct {
	Outcome outcome `json:"outcome"`
	Back    bool    `json:"back,omitempty"` // it was taken, and this side leads the database again since
	// Next is the first term that this side has not spent.
	Next frame.Term `json:"next,omitempty"`
}

// outcome answers askOutcome. Only refused lets the other side go on with what lies
// behind the handoff, so it is said only where this database was opened again since.
func (l *link) outcome(r outcomeRequest) outcomeReply {
	for _, s := range l.m.siblings(l) {
		theirs, _ := s.now()
		switch {
		case theirs.Role == role.Secondary: // by this link or another; ours is moved, or will be
			return outcomeReply{Outcome: handoffTaken}
		case expelled(theirs):
			return outcomeReply{Outcome: handoffPending}
		case s.rec.ID == r.By.Link && theirs.Floor < r.By.Term && theirs.Term < r.By.Term:
			return outcomeReply{Outcome: handoffPending}
		}
	}
	side, _ := l.now()
	if side.Role != role.Primary || side.Phase == role.Moved || side.Term != r.Term {
		return outcomeReply{handoffTaken, l.backFrom(side, r.Term), side.Following()}
	}
	return outcomeReply{Outcome: handoffRefused}
}

// backFrom tells that this side led the link in that term, and leads the database again, with
// the half of the link of then or one that was made anew for the secondary (takeUp).
func (l *link) backFrom(side role.State, term frame.Term) bool {
	anew := side.Role == role.Primary && side.Phase == role.Steady && side.After == term && side.By == role.Handoff{}
	return anew && l.m.leads(l.rec.Database) || side.Term == term && l.ledBack()
}

// await is what the secondary does that stands at the handoff of another link.
func (l *link) await(ctx context.Context, side role.State) error {
	var heir error
	if !side.Stranded {
		var theirs whereReply
		if heir = l.m.call(ctx, side.Heir, l.rec.Name, callWhere, whereRequest{l.rec.ID}, &theirs); heir == nil {
			next, _ := role.Step(side, role.HeirSeen{Heir: theirs.Side})
			if theirs.Peer == l.m.cfg.Instance && next.Phase == role.Steady {
				done := make(chan struct{})
				l.m.work.Go(func() { defer close(done); l.m.goOver(l, theirs.Side) })
				select { // it ends this goroutine, unless the link is being dropped
				case <-ctx.Done():
				case <-done:
				}
				return ctx.Err()
			}
			heir = problem.New("heir-not-ready", "link "+l.rec.Name, "instance "+side.Heir+" has not taken over", "").Advise("it comes by itself while the failover runs").Retry()
			if !theirs.Known {
				heir = notFound(l.rec.Name)
			}
		}
	}
	var reply outcomeReply
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callHandoff, outcomeRequest{side.By, side.Term}, &reply)
	switch {
	case err == nil && reply.Outcome == handoffRefused:
		_, err = l.ask(ctx, role.ElsewhereRefused{By: side.By})
		return err
	case err == nil && reply.Outcome == handoffPending:
		return problem.New("handoff-pending", "link "+l.rec.Name, "another link of the database hands over to instance "+side.Heir, "").Advise("this link goes on by itself when that has ended").Retry()
	case side.Stranded && err != nil:
		return err
	case err == nil && reply.Back:
		return l.movedBack(l.rec.Peer, side.Heir)
	case side.Stranded:
		return l.movedTo(side.Heir, "instance "+side.Heir+" could not take it up, as its log tells, or tables were still to be copied")
	}
	return l.unmet(side, heir, err == nil)
}

// unmet says what keeps this side from the heir. It goes on by itself when that is
// mended, so it is never suspended for it.
func (l *link) unmet(side role.State, heir error, taken bool) error {
	p, ok := problem.As(heir)
	if !ok || p.Code == "heir-not-ready" {
		return heir
	}
	cause := "this link stands at the handoff of the database to instance " + side.Heir + "; it follows it, if it took over, as soon as the two reach each other: "
	if taken {
		cause = "instance " + side.Heir + " took the database over; this link follows it as soon as the two reach each other: "
	}
	switch p.Code {
	case "peer-not-found":
		return problem.New(codeMoved, "link "+l.rec.Name, cause+p.Object+": "+p.Cause,
			fmt.Sprintf("hawser peer add %s.pem --address HOST:5022", side.Heir)).Advise(fmt.Sprintf("and on instance %s: hawser peer add %s.pem; hawser cert show prints the certificates", side.Heir, l.m.cfg.Instance)).Retry().Because(heir)
	case "link-not-found":
		return problem.New(codeMoved, "link "+l.rec.Name, cause+"it does not have this link",
			"hawser link follow "+l.rec.Name+" --primary "+side.Heir).Advise("if it stays so: it compares the two and copies the tables that differ").Retry().Because(heir)
	}
	return problem.New(codeUnseen, "link "+l.rec.Name, cause+p.Cause, p.Remedy).Advise(p.Advice).At(p.Place).Retry().Because(heir)
}

// goOver makes this side, which waits, a secondary of the heir.
func (m *Manager) goOver(l *link, heir role.State) {
	side, _ := l.now()
	_, _ = m.exchangePrimary(m.ctx, l, side.Heir, role.HeirSeen{Heir: heir}, nil)
}

// exchangePrimary carries out an event that has the link follow another instance. A
// link's peer never changes while it runs, so it is ended and started anew. why is
// what it stands for afterwards, if anything.
func (m *Manager) exchangePrimary(ctx context.Context, l *link, primary string, e role.Event, why *problem.Problem) (*link, error) {
	release, err := m.claim(l.rec.Name)
	if err != nil {
		return nil, err // it is being dropped; else it is tried again
	}
	defer release()
	l.dropping.Lock() // the other side may have it dropped, of which this claim knows nothing
	defer l.dropping.Unlock()
	if !l.stays() {
		return nil, busy(l.rec.Name)
	}
	l.halt()
	for wait := NewBackoff(); ; {
		next, err := m.following(ctx, l, primary, e, why)
		if err == nil {
			m.mu.Lock()
			m.links[l.rec.Name] = next
			m.mu.Unlock()
			next.start()
			return next, nil
		}
		l.log.Warn("can't store the new primary, trying again", "error", err)
		if !wait.Sleep(m.ctx) {
			return nil, err
		}
	}
}

// stays tells that nobody has begun to remove the link.
func (l *link) stays() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.progress == catalog.Running && l.ctx.Err() == nil
}

// following stores that a link that was ended follows another instance, unless its
// state changed meanwhile, and returns the link as it is stored.
func (m *Manager) following(ctx context.Context, l *link, primary string, e role.Event, why *problem.Problem) (*link, error) {
	ctx = context.WithoutCancel(ctx) // a link that was ended has to be started again
	old, _ := l.now()
	side, actions := role.Step(old, e)
	if len(actions) > 0 {
		conn, err := l.connect(ctx, "inherit")
		if err != nil {
			return nil, err
		}
		err = catalog.ForgetSeeding(ctx, conn, l.rec.ID)
		_ = conn.Close(ctx)
		if err != nil {
			return nil, err
		}
	}
	data, err := json.Marshal(side)
	if err != nil {
		return nil, err
	}
	var rec catalog.Link
	err = m.store.Do(ctx, func(conn *pgx.Conn) error {
		if len(actions) > 0 {
			if err := catalog.SetPrimary(ctx, conn, l.rec.Name, primary, data, why); err != nil {
				return err
			}
		}
		var ok bool
		if rec, ok, err = catalog.FindLink(ctx, conn, l.rec.Name); err == nil && !ok {
			err = notFound(l.rec.Name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	next := newLink(m, rec, side)
	next.log.Info("role", "role", side.Role, "term", side.Term, "primary", rec.Peer)
	return next, nil
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

// stopsAt tells the applier whether a handoff of another link of the database counts
// here. What lies behind it is of the same primary only if the handoff is refused.
func (l *link) stopsAt(h handoff, complete bool) bool {
	side, _ := l.now()
	if h.To == "" || side.Role != role.Secondary || side.Phase != role.Steady || side.Passed == h.name() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.incomplete = !complete
	return true
}

// standAt stores that this side stands at another link's handoff.
func (l *link) standAt(ctx context.Context, h handoff) error {
	l.mu.Lock()
	incomplete := l.incomplete
	l.mu.Unlock()
	_, err := l.ask(ctx, role.ElsewhereHanded{By: h.name(), Heir: h.To, Stranded: incomplete || !slices.Contains(h.Heirs, l.rec.ID)})
	return err
}
