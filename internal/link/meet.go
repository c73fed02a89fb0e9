package link

import (
	"context"
	"strings"

	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// met takes the other side's state and returns ours.
func (l *link) met(ctx context.Context, theirs meeting) (meeting, error) {
	if err := l.sameLink(theirs.ID); err != nil {
		return meeting{}, err
	}
	ours, err := l.ask(ctx, role.PeerSeen{Peer: theirs.State})
	return meeting{ours, l.rec.ID}, err
}

// meet tells the other side our state and returns theirs, of this very link.
func (l *link) meet(ctx context.Context) (role.State, error) {
	ours, _ := l.now()
	var theirs meeting
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callState, meeting{ours, l.rec.ID}, &theirs); err != nil {
		return role.State{}, err
	}
	return theirs.State, l.sameLink(theirs.ID)
}

const codeAnotherLink = "another-link"

// sameLink refuses to take another link of this name for this one: its roles, positions and
// handoffs are not this one's.
func (l *link) sameLink(id string) error {
	if id == "" || id == l.rec.ID {
		return nil
	}
	return problem.New(codeAnotherLink, "link "+l.rec.Name,
		"instances "+l.m.cfg.Instance+" and "+l.rec.Peer+" each have a link of this name, and not the same: it was made anew, and PostgreSQL of one of the two was put back to a state from before",
		"hawser link drop "+l.rec.Name).Advise("on both sides, of which each keeps its database, and then make the link anew; or put that PostgreSQL back to a later state")
}

// meetPeer exchanges states with the other side. It tries until that succeeds: a
// side that does not hear of another's term may take writes, or wait, for ever.
func (l *link) meetPeer(ctx context.Context) {
	var theirs role.State
	for wait := NewBackoff(); ; {
		var err error
		if theirs, err = l.meet(ctx); err == nil {
			break
		}
		l.log.Debug("can't tell the peer", "error", err)
		if p := l.unknownThere(ctx, err); p != nil {
			l.update(func() { l.cause = p })
		}
		if !wait.Sleep(ctx) {
			return
		}
	}
	select {
	case l.events <- happened{event: role.PeerSeen{Peer: theirs}}:
	case <-ctx.Done():
	}
}

// unknownThere says why the other side does not know this link, or not as one with this
// instance; nil where that is not what err is.
func (l *link) unknownThere(ctx context.Context, err error) *problem.Problem {
	p, ok := problem.As(err)
	switch {
	case ok && (p.Code == "peer-not-found" || p.Code == codeAnotherLink):
		return p
	case !l.notThere(err):
		return nil
	case !l.heldThere(ctx):
		return l.gone()
	}
	return problem.New(codeElsewhere, "link "+l.rec.Name, "instance "+l.rec.Peer+" does not have it with this one: it has not gone over to this primary yet, or was opened by force meanwhile",
		"hawser link drop "+l.rec.Name).Advise("if it stays so, and then hawser link create makes it anew").Retry()
}

// notThere reports whether err is the other side's, which has no such link with this one.
func (l *link) notThere(err error) bool {
	p, ok := problem.As(err)
	return ok && p.Code == "link-not-found" && strings.HasPrefix(p.Object, "on instance "+l.rec.Peer+": ")
}

// heldThere asks whether the other side has this very link all the same, with another
// instance. A link that was taken up has a secondary which may not know of that yet.
func (l *link) heldThere(ctx context.Context) bool {
	var there whereReply
	err := l.askWhere(ctx, l.rec.Peer, &there)
	return err != nil || there.Known
}

// explained is err as a person is told it, who asked for something that needs the other side.
func (l *link) explained(ctx context.Context, err error) error {
	if !l.notThere(err) {
		return err
	}
	return l.unknownThere(ctx, err)
}

// gone says that the other side does not have this link any more.
func (l *link) gone() *problem.Problem {
	advice := "the database stays here as it is"
	if side, _ := l.now(); side.Role == role.Secondary {
		advice = "the database stays here, and takes writes then; where another instance leads it: hawser link follow " + l.rec.Name + " --primary INSTANCE"
	}
	return problem.New(codeGone, "link "+l.rec.Name, "instance "+l.rec.Peer+" does not have it any more: it was dropped there, and this side could not be told",
		"hawser link drop "+l.rec.Name).Advise(advice)
}

const codeGone = "link-gone"

// codeElsewhere is of a link that this side took up, and the secondary does not have with it.
const codeElsewhere = "secondary-elsewhere"
