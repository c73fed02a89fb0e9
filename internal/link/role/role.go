// Package role decides which side of a link is primary. It is a pure function:
// Step takes a state and an event and returns the next state and the actions to
// carry out, in order. It knows no clock, network or database; the host does.
//
// The protocol of a planned failover, A being primary and B secondary at term t:
//
//	A  Preparing   both sides get ready for the swap; A still writes
//	A  Fencing     A refuses writes and ends the transactions that are under way
//	A  Handing     A writes the handoff of term t+1 into its stream, behind everything
//	B  Promoting   B applied all of it: it is primary of term t+1 from the moment
//	               that this is stored, opens, and tells A
//	A  Steady      A is secondary of term t+1 and follows B
//
// In a forced failover B decides alone, while A is away: it is primary of a later
// term from the moment that this is stored. A, which may have gone on writing,
// closes when it hears of it, and is Diverged until it is asked to rejoin.
//
// Until A is Handing it may go back alone. From then on only B knows whether it
// took over, so A stays fenced and asks: B either answers that it did, or
// promises, stored first, to refuse that term for ever. Whichever of the two B
// stores first wins, and at any moment at most one side is open.
//
// A database may have several links, of which one hands over. The others have no
// say in it, and their two sides move as follows, P being the old primary, S the
// secondary of such a link, and N the new primary of the database:
//
//	N  before it opens it has a slot for the link; then it takes up P's place: it
//	   is primary of the link's next term, from the position at which it opened
//	P  Moved       it is fenced; it still streams what lies before the handoff
//	S  Waiting     it has applied P's stream up to the very handoff by which N took
//	               over, and nothing behind it: its rows are those with which N
//	               opened. It follows N from there, or P again if N refused
//
// So S goes over on one proof alone: the handoff that N took up is the one at which
// S stands, and the term that N continues is the one that S was in. The old primary's
// word is not needed, and it may be gone.
//
// The host stores the state of a Persist action before it carries out the next
// action, and repeats nothing of an action list after a crash: it reads the
// stored state and gives the event Restarted, whose actions bring the side to
// where it has to be. Every action can be carried out twice without harm.
package role

import (
	"strings"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// Role is what a side of a link is.
type Role string

// The two roles.
const (
	Primary   Role = "primary"
	Secondary Role = "secondary"
)

// Phase is how far a side is in a change of roles.
type Phase string

// Phases. All but Steady and Diverged pass by themselves.
const (
	Steady    Phase = "steady"
	Preparing Phase = "preparing" // primary: getting ready, still open
	Fencing   Phase = "fencing"   // primary: closed, nothing handed over yet
	Handing   Phase = "handing"   // primary: closed; the other side may have taken over
	Aborting  Phase = "aborting"  // primary: closed; the other side was asked to refuse
	Promoting Phase = "promoting" // the new primary: decided, not open yet
	Expelled  Phase = "expelled"  // a primary of an older term than the other side's, not closed yet
	Diverged  Phase = "diverged"  // the same, closed
	Moved     Phase = "moved"     // primary: closed; another link of the database took the primary away
	Waiting   Phase = "waiting"   // secondary: stands at the handoff of another link of the database
)

// Handoff names one handoff of one link.
type Handoff struct {
	Link string     `json:"link"` // its id
	Term frame.Term `json:"term"`
}

// Last is the last transaction that a side had of the other one's. By it that one sees
// whether its WAL, and its slot, are still those that were followed.
type Last struct {
	XID     uint32    `json:"xid,omitempty"`
	Commit  frame.LSN `json:"commit,omitempty"`  // of its commit record; 0: there was none
	Reached frame.LSN `json:"reached,omitempty"` // as far as the slot may be confirmed; 0: not known
}

// State is one side's part in a link. It is stored as JSON.
type State struct {
	Role  Role       `json:"role"`
	Term  frame.Term `json:"term"`
	Phase Phase      `json:"phase"`
	// Next is the term that a failover under way would bring; 0 when there is none.
	Next frame.Term `json:"next,omitempty"`
	// Floor is the highest term that this side promised to refuse.
	Floor frame.Term `json:"floor,omitempty"`
	// Position is where in this side's own WAL its time as primary begins. The
	// other side follows from there.
	Position frame.LSN `json:"position,omitempty"`
	// From is where in the other side's WAL this side began to follow it in Term.
	From frame.LSN `json:"from,omitempty"`
	// Forced tells that this side became primary without the other. Since is then
	// how far in the other side's WAL it had followed: what lies behind is lost to it.
	// On a diverged side it is where the transactions begin that only it has.
	// Last tells what it had followed last.
	Forced bool      `json:"forced,omitempty"`
	Since  frame.LSN `json:"since,omitempty"`
	Last   Last      `json:"last,omitzero"`
	// Handed tells that this secondary was the primary until it handed over.
	Handed bool `json:"handed,omitempty"`
	// Rejoined tells that this secondary was a primary that was forced out.
	Rejoined bool `json:"rejoined,omitempty"`

	// By is the handoff of another link at which this side stands (Waiting), or by
	// which it took up the place of the primary. After is the term that it continues
	// then.
	By    Handoff    `json:"by,omitzero"`
	After frame.Term `json:"after,omitempty"`
	// Heir is the instance that has the primary's place, if it took it (Waiting), or
	// since it did (Moved). Stranded tells that this side can't follow it by itself.
	Heir     string `json:"heir,omitempty"`
	Stranded bool   `json:"stranded,omitempty"`
	// Passed is the last handoff of another link that was taken back.
	Passed Handoff `json:"passed,omitzero"`
}

// Initial is the state of a side of a new link; from is where the primary's slot
// begins, for the secondary.
func Initial(r Role, from frame.LSN) State {
	return State{Role: r, Term: 1, Phase: Steady, From: from}
}

// Inherited is the state of the side that takes up a link's place of primary: by is
// the handoff by which it took over the database, after the term that the link was
// in, and position where it opened.
func Inherited(by Handoff, after, term frame.Term, position frame.LSN) State {
	return State{Role: Primary, Term: term, Phase: Steady, Position: position, By: by, After: after}
}

// Following is the term that comes after those of s; of one that moved also after that in
// which the heir took its place.
func (s State) Following() frame.Term {
	next := max(s.Term, s.Floor) + 1
	if s.Phase == Moved {
		next++
	}
	return next
}

// Writable reports whether clients may write on this side.
func (s State) Writable() bool {
	return s.Role == Primary && (s.Phase == Steady || s.Phase == Preparing)
}

// Swapping reports whether a planned failover is under way, or this side is about to open.
func (s State) Swapping() bool {
	return s.Phase == Preparing || s.Phase == Fencing || closed(s) || s.Phase == Promoting
}

// Event is what happened. One of the types below.
type Event interface{ event() }

type (
	// Restarted: the agent came up with a stored state.
	Restarted struct{}
	// FailoverAsked: a person asked this side, the primary, to hand over.
	FailoverAsked struct{}
	// Prepared: both sides are ready. Term is the first that the other side takes, 0 if it
	// did not say: a primary that was forced out has spent some that this side knows
	// nothing of.
	Prepared struct{ Term frame.Term }
	// Failed: an action of a failover did not succeed.
	Failed struct{ Cause error }
	// Fenced: nothing can be committed on this side any more.
	Fenced struct{}
	// TimedOut: the failover took longer than it was given. Cause is what it met, if known.
	TimedOut struct{ Cause error }
	// HandoffApplied: this side, the secondary, applied everything up to the
	// handoff of Term. Position is where its own WAL stands.
	HandoffApplied struct {
		Term     frame.Term
		Position frame.LSN
	}
	// Opened: the fence of this side is off.
	Opened struct{}
	// RefusalAsked: the other side wants the handoff of Term refused.
	RefusalAsked struct{ Term frame.Term }
	// Refused: the other side will never take over with Term.
	Refused struct{ Term frame.Term }
	// PeerSeen: the other side told its state.
	PeerSeen struct{ Peer State }
	// ForceAsked: a person wants this side, the secondary, to take over without the
	// other. Position is where its own WAL stands, or 0 when the other side will not
	// be able to follow from there; Since is how far it followed the other side, to Last.
	ForceAsked struct {
		Position, Since frame.LSN
		Last            Last
	}
	// RejoinAsked: this side, diverged, is ready to follow Peer.
	RejoinAsked struct{ Peer State }
	// LeadsFrom: this side, which took up a link's place of primary, streams from Position on.
	LeadsFrom struct{ Position frame.LSN }
	// PrimaryMoved: this side's database became a secondary of Heir by another link.
	PrimaryMoved struct{ Heir string }
	// ElsewhereHanded: this side, the secondary, applied everything up to the handoff
	// of another link to Heir. Stranded tells that Heir is not ready to lead this side,
	// or that this side is not complete.
	ElsewhereHanded struct {
		By       Handoff
		Heir     string
		Stranded bool
	}
	// ElsewhereRefused: the primary took the handoff back and writes again.
	ElsewhereRefused struct{ By Handoff }
	// HeirSeen: the heir told its state in this link.
	HeirSeen struct{ Heir State }
	// PrimaryChosen: a person wants this secondary to follow Primary, which has taken
	// the link up. Nothing proves that the two are equal: the host compares them
	// before it applies anything.
	PrimaryChosen struct{ Primary State }
)

func (Restarted) event()      {}
func (FailoverAsked) event()  {}
func (Prepared) event()       {}
func (Failed) event()         {}
func (Fenced) event()         {}
func (TimedOut) event()       {}
func (HandoffApplied) event() {}
func (Opened) event()         {}
func (RefusalAsked) event()   {}
func (Refused) event()        {}
func (PeerSeen) event()       {}
func (ForceAsked) event()     {}
func (RejoinAsked) event()    {}

func (LeadsFrom) event()        {}
func (PrimaryMoved) event()     {}
func (ElsewhereHanded) event()  {}
func (ElsewhereRefused) event() {}
func (HeirSeen) event()         {}
func (PrimaryChosen) event()    {}

// Action is what the host has to do. One of the types below.
type Action interface{ action() }

type (
	// Persist stores the state. Nothing after it may happen before it is durable.
	Persist struct{}
	// Prepare gets both sides ready to swap. Answer: Prepared or Failed.
	Prepare struct{}
	// Unprepare takes back what Prepare made on the other side.
	Unprepare struct{}
	// Close puts the fence on and ends what is under way. Answer: Fenced or Failed.
	Close struct{}
	// Hand writes the handoff of Term into the stream. Answer: Failed, or none.
	Hand struct{ Term frame.Term }
	// Open takes the fence off. Answer: Opened, if the state is Promoting.
	Open struct{}
	// AskRefusal asks the other side to refuse Term, again and again until it
	// answers. Answer: Refused or PeerSeen.
	AskRefusal struct{ Term frame.Term }
	// Tell sends this side's state to the other side.
	Tell struct{}
	// Serve streams to the other side when it asks.
	Serve struct{}
	// Follow applies the other side's stream, from the position that is stored with
	// the data for this term; in a new term that is the state's From.
	Follow struct{}
	// Account writes down the transactions that only this, diverged, side has.
	Account struct{}
	// Report ends a failover for whoever asked for it; nil is success.
	Report struct{ Cause error }
)

func (Persist) action()    {}
func (Prepare) action()    {}
func (Unprepare) action()  {}
func (Close) action()      {}
func (Hand) action()       {}
func (Open) action()       {}
func (AskRefusal) action() {}
func (Tell) action()       {}
func (Serve) action()      {}
func (Follow) action()     {}
func (Account) action()    {}
func (Report) action()     {}

// Step returns the state after an event and what has to be done. An event that
// does not fit the state changes nothing and asks for nothing. A list of actions
// takes the place of what is left of the one before it, so no event asks for
// actions that would push aside what still has to be done.
func Step(s State, e Event) (State, []Action) {
	switch e := e.(type) {
	case Restarted:
		return restarted(s)
	case FailoverAsked:
		return asked(s)
	case Prepared:
		if s.Phase == Preparing {
			s.Phase, s.Next = Fencing, max(s.Next, e.Term)
			return s, []Action{Persist{}, Close{}}
		}
	case Fenced:
		switch s.Phase {
		case Fencing:
			s.Phase = Handing
			return s, []Action{Persist{}, Hand{s.Next}}
		case Expelled:
			s.Phase = Diverged
			return s, []Action{Persist{}, Account{}}
		}
	case Failed:
		return back(s, e.Cause)
	case TimedOut:
		return back(s, timedOut(e.Cause))
	case HandoffApplied:
		return handoff(s, e)
	case Opened:
		if s.Phase == Promoting {
			s.Phase = Steady
			return s, []Action{Persist{}, Serve{}, Tell{}}
		}
	case RefusalAsked:
		return refuse(s, e.Term)
	case Refused:
		if (s.Phase == Aborting || s.Phase == Handing) && e.Term == s.Next {
			return reopen(s, problem.New("failover-rolled-back", "", "the secondary did not take over in time, and never will by this failover; the old primary writes again",
				"").Advise("look for the cause with hawser link show, then run it again or give it a larger --timeout"))
		}
	case PeerSeen:
		return peerSeen(s, e.Peer)
	case ForceAsked:
		return force(s, e)
	case RejoinAsked:
		return rejoin(s, e.Peer)
	case LeadsFrom:
		if s.Role == Primary && s.Phase == Steady && s.Position == 0 {
			s.Position = e.Position
			return s, []Action{Persist{}}
		}
	case PrimaryMoved:
		if s.Role == Primary && s.Phase == Steady {
			s.Phase, s.Heir = Moved, e.Heir
			return s, []Action{Persist{}, Serve{}}
		}
	case ElsewhereHanded:
		if s.Role == Secondary && s.Phase == Steady && e.By != s.Passed {
			s.Phase, s.By, s.Heir, s.Stranded = Waiting, e.By, e.Heir, e.Stranded
			return s, []Action{Persist{}, Follow{}}
		}
	case ElsewhereRefused:
		if s.Phase == Waiting && e.By == s.By {
			s.Phase, s.Passed = Steady, s.By
			s.By, s.Heir, s.Stranded = Handoff{}, "", false
			return s, []Action{Persist{}, Follow{}}
		}
	case HeirSeen:
		return goOver(s, e.Heir, s.Phase == Waiting && !s.Stranded && e.Heir.By == s.By)
	case PrimaryChosen:
		return goOver(s, e.Primary, s.Phase == Waiting || s.Phase == Steady)
	}
	return s, nil
}

func timedOut(cause error) error {
	p := problem.New("failover-timeout", "", "the failover did not end within its time limit; the old primary writes again",
		"").Advise("look for the cause with hawser link show, then run it again or give it a larger --timeout")
	if met, ok := problem.As(cause); ok {
		p.Cause, p.Remedy, p.Place = p.Cause+". What it met: "+met.Cause, met.Remedy, met.Place
		p.Advice = strings.TrimPrefix(met.Advice+"; then run it again", "; ")
	}
	return p
}

var errForcedOut = problem.New("forced-out", "", "the other side was opened by force meanwhile: it is the primary, and this side was closed",
	"").Advise("look with hawser link show; this side follows when it has rejoined")

// goOver makes a secondary follow who took up its primary's place after its own term.
// That one may be Moved itself by now: it still streams what this side lacks.
func goOver(s, p State, may bool) (State, []Action) {
	next := p.Role == Primary && p.After == s.Term && p.Term > s.Term && p.Position > 0
	if s.Role != Secondary || !may || !next {
		return s, nil
	}
	s = State{Role: Secondary, Term: p.Term, Phase: Steady, Floor: s.Floor, From: p.Position}
	return s, []Action{Persist{}, Follow{}}
}

// force makes the secondary the primary without the other side. It may bring a
// term that the other side has just handed over, so Forced tells the two apart.
func force(s State, e ForceAsked) (State, []Action) {
	if s.Role != Secondary || s.Phase != Steady && s.Phase != Waiting {
		return s, nil
	}
	s = State{Role: Primary, Term: s.Following(), Phase: Promoting, Floor: s.Floor, Position: e.Position, Forced: true, Since: e.Since, Last: e.Last}
	return s, []Action{Persist{}, Open{}}
}

// rejoin makes a diverged side the secondary of the one that took over.
func rejoin(s State, p State) (State, []Action) {
	if s.Phase != Diverged || p.Role != Primary || p.Phase != Steady || p.Term < s.Term {
		return s, nil
	}
	s = State{Role: Secondary, Term: p.Term, Phase: Steady, Floor: s.Floor, From: p.Position, Rejoined: true}
	return s, []Action{Persist{}, Follow{}}
}

// asked begins a failover, of a steady primary alone. The term must pass every one
// that was refused.
func asked(s State) (State, []Action) {
	if s.Role != Primary || s.Phase != Steady {
		return s, nil
	}
	s.Next = s.Following()
	s.Phase = Preparing
	return s, []Action{Persist{}, Prepare{}}
}

// back takes a failover back as far as this side may decide alone.
func back(s State, cause error) (State, []Action) {
	switch s.Phase {
	case Preparing:
		next, _ := reopen(s, cause)
		return next, []Action{Persist{}, Report{cause}, Open{}, Unprepare{}} // it is open
	case Fencing:
		return reopen(s, cause)
	case Handing:
		s.Phase = Aborting
		return s, []Action{Persist{}, AskRefusal{s.Next}}
	}
	return s, nil
}

// reopen ends a failover with the roles as they were. The refused term is spent.
func reopen(s State, cause error) (State, []Action) {
	s.Phase, s.Floor, s.Next = Steady, max(s.Floor, s.Next), 0
	return s, []Action{Persist{}, Open{}, Unprepare{}, Report{cause}}
}

// handoff makes the secondary the primary: the decision of the whole protocol.
func handoff(s State, e HandoffApplied) (State, []Action) {
	if s.Role != Secondary || s.Phase != Steady || e.Term <= s.Term || e.Term <= s.Floor {
		return s, nil
	}
	s = State{Role: Primary, Term: e.Term, Phase: Promoting, Floor: s.Floor, Position: e.Position}
	return s, []Action{Persist{}, Open{}}
}

// refuse promises never to take over with term, unless that has happened. The
// state after it is the answer.
func refuse(s State, term frame.Term) (State, []Action) {
	if s.Role == Primary || s.Term >= term || s.Floor >= term {
		return s, nil
	}
	s.Floor = term
	return s, []Action{Persist{}}
}

// peerSeen compares with the other side. The higher term is right.
func peerSeen(s State, p State) (State, []Action) {
	switch {
	case s.Phase == Moved:
		// Whoever leads this link now, this database has its own primary.
		return s, nil
	case s.Role == Primary && p.Term > s.Term && p.Role == Primary && s.Next == p.Term && closed(s) && !p.Forced:
		next := State{Role: Secondary, Term: p.Term, Phase: Steady, Floor: s.Floor, From: p.Position, Handed: true}
		return next, []Action{Persist{}, Follow{}, Report{nil}}
	case s.Role == Primary && p.Role == Primary && s.yields(p) && s.Phase != Expelled && s.Phase != Diverged:
		// It took over without this side, which may hold what it never received.
		actions := []Action{Persist{}, Close{}}
		if s.Next > 0 { // somebody waits for a failover
			actions = []Action{Persist{}, Report{errForcedOut}, Close{}}
		}
		s.Phase, s.Next, s.Since, s.Last = Expelled, 0, p.Since, p.Last
		return s, actions
	case closed(s) && s.Role == Primary && p.Role == Secondary && p.Floor >= s.Next && s.Next > 0:
		return Step(s, Refused{s.Next})
	case s.Role == Secondary && p.Role == Primary && p.Term > s.Term:
		// Another secondary of the same database took over, and this one knows
		// nothing of it: it may not apply the stream of an unknown primary.
		return s, nil
	}
	return s, nil
}

// yields tells whether a primary gives way to another one of the link. In the same term are one
// that was opened by force, and one that took the link up at handoffs which that knew nothing
// of: to these the database's other links go.
func (s State) yields(to State) bool {
	return to.Term > s.Term || to.Term == s.Term && s.Forced && !to.Forced
}

// closed reports whether this side has handed over and waits for the answer.
func closed(s State) bool { return s.Phase == Handing || s.Phase == Aborting }

// restarted brings a side to where its stored state says.
func restarted(s State) (State, []Action) {
	switch {
	case s.Role == Secondary:
		return s, []Action{Close{}, Follow{}}
	case s.Phase == Preparing || s.Phase == Fencing:
		next, actions := reopen(s, problem.New("failover-interrupted", "",
			"the agent stopped during the failover, which was taken back", "").Advise("run it again"))
		return next, append(actions, Serve{})
	case s.Phase == Handing || s.Phase == Aborting:
		// Nobody waits for the failover any more, nor keeps its time limit.
		s.Phase = Aborting
		return s, []Action{Persist{}, Close{}, Serve{}, AskRefusal{s.Next}}
	case s.Phase == Promoting:
		return s, []Action{Open{}}
	case s.Phase == Expelled:
		return s, []Action{Close{}}
	case s.Phase == Diverged:
		return s, []Action{Close{}, Account{}}
	case s.Phase == Moved:
		return s, []Action{Serve{}} // the fence is the other link's
	}
	return s, []Action{Open{}, Serve{}, Tell{}}
}
