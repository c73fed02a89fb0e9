package link

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

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
			side, _ := l.now()
			return outcomeReply{Outcome: handoffTaken, Next: side.Following()}
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
		if heir = l.askWhere(ctx, side.Heir, &theirs); heir == nil {
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
		conn, err := l.connectOwn(ctx, "inherit")
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
