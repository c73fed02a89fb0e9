package link

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/seed"
)

// State is what a link is doing.
type State string

// The states of a link.
const (
	Seeding      State = "seeding"
	CatchingUp   State = "catching-up"
	Synchronized State = "synchronized"
	Paused       State = "paused"
	Suspended    State = "suspended"
	Disconnected State = "disconnected"
	FailingOver  State = "failing-over"
	Diverged     State = "diverged"
	Dropped      State = "dropped"
)

// synchronizedLag is the lag in seconds up to which a link counts as synchronized.
const synchronizedLag = 5

// silent is how long a stream that is read may bring nothing, not even a heartbeat,
// before it counts as broken.
const silent = 5 * time.Second

// stale is the age from which a heartbeat tells of the past: they come every second.
const stale = 2 * time.Second

// Status is one side's view of a link, or both sides' where the other answered.
type Status struct {
	Name, ID, Database, Peer string
	Role                     role.Role
	Term                     frame.Term
	State                    State
	Cause                    *problem.Problem
	Notes                    problem.Findings
	Seeding                  *seed.Progress // while it runs, and its end
	LagKnown                 bool
	LagBytes                 uint64
	LagSeconds               float64
	Ack                      frame.Ack
	Sent                     frame.LSN
	WALHeld                  *int64
	Behind                   *int64    // WAL that the secondary has not confirmed, where no stream tells the lag
	MaxWAL                   *int64    // the bound on it; 0: none, nil: the primary's agent has it
	Since                    time.Time // in this state
	CreatedAt                time.Time
	Failover                 json.RawMessage
	Tables, ExcludeTables    []string // patterns; both empty: all tables
	Comparing                *bool    // it is about to follow from a slot that was made for that; nil: not told
}

// status is what this side knows by itself.
func (l *link) status() Status {
	lag, away := l.capture.Lag(), l.unreached()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{
		Name: l.rec.Name, ID: l.rec.ID, Database: l.rec.Database, Peer: l.rec.Peer,
		Role: l.side.Role, Term: l.side.Term,
		Notes: append(problem.Findings(nil), l.notes...), CreatedAt: l.rec.CreatedAt, Failover: l.last,
		Tables: l.rec.Tables, ExcludeTables: l.rec.ExcludeTables, MaxWAL: l.maxWAL,
	}
	comparing := l.forcing || l.rejoining
	s.Comparing = &comparing
	s.Notes = append(append(s.Notes, l.holes...), l.passable...)
	s.Notes = append(s.Notes, l.reportNotes()...)
	if l.awaits != nil {
		s.Notes = append(s.Notes, l.awaits)
	}
	if l.verifying > 0 {
		s.Notes = append(s.Notes, problem.Noted("verify-waits", "link "+l.rec.Name, "a comparison waits until the two sides agree on their roles and the stream between them is open"))
	}
	if n := l.comparison(); n != nil {
		s.Notes = append(s.Notes, n)
	}
	if n := l.aloneWithPart(); n != nil {
		s.Notes = append(s.Notes, n)
	}
	if l.side.Role == role.Primary {
		bound := l.bound()
		s.MaxWAL = &bound
		s.LagKnown = !lag.At.IsZero() && l.streaming
		s.LagBytes, s.LagSeconds, s.Ack, s.Sent = lag.Bytes, lag.Seconds, lag.Ack, lag.Sent
		if w := l.walWarning(); w != nil {
			s.Notes = append(s.Notes, w)
		}
	} else {
		s.LagKnown = !l.heardAt.IsZero() && l.streaming
		s.LagBytes, s.LagSeconds, s.Ack, s.Sent = l.heard.LagBytes, l.heard.LagSeconds, l.ack, l.arrived
		if age := time.Since(l.heardAt); s.LagKnown && age > stale {
			s.LagSeconds += age.Seconds() // at most: what was written since is not counted in
		}
		if l.seeder != nil {
			p := l.seeder.Progress()
			s.Seeding = &p
		}
	}
	s.State, s.Cause = l.state(s, away)
	if n := l.ledNote(s); n != nil {
		s.Notes = append(s.Notes, n)
	}
	if s.State != l.lastState {
		l.lastState, l.since = s.State, time.Now()
	}
	s.Since = l.since
	return s
}

// unreached is why there is no connection to the other side just now; nil: there is one.
func (l *link) unreached() *problem.Problem {
	if l.m.reaches(l.rec.Peer) {
		return nil
	}
	ctx, cancel := context.WithCancel(l.ctx)
	cancel() // nothing is asked of it, should it be there by now
	_, err := l.m.cfg.Peers.Call(ctx, l.rec.Peer, l.rec.Name, callStatus, nil)
	p, _ := problem.As(err)
	return p
}

// state names what the link is doing and why; away is why the other side can't be reached.
// The caller holds mu.
func (l *link) state(s Status, away *problem.Problem) (State, *problem.Problem) {
	if state, why := l.standing(s); state != "" {
		return state, why
	}
	return l.flowing(s, away)
}

// standing names what keeps changes from being carried, by what this side knows of itself;
// "" when nothing does.
func (l *link) standing(s Status) (State, *problem.Problem) {
	switch {
	case (l.progress == catalog.Dropping || l.progress == catalog.Removing) && l.obstructed != nil:
		return Dropped, problem.New("not-dropped", "link "+s.Name, "it is being dropped, and this is in the way: "+l.obstructed.Cause,
			l.obstructed.Remedy).Advise(joined(l.obstructed.Advice, "then hawser link drop "+s.Name+", unless it is gone by itself"))
	case l.progress == catalog.Dropping || l.progress == catalog.Removing:
		return Dropped, problem.Noted("dropping", "link "+s.Name, "it is being dropped")
	case l.progress == catalog.Creating && l.obstructed != nil:
		return Seeding, problem.New("not-created", "link "+s.Name, "it is being created, and the other side can't be asked whether it still makes it: "+l.obstructed.Cause,
			l.obstructed.Remedy).At(l.obstructed.Place).Advise(joined(l.obstructed.Advice, "or hawser link drop "+s.Name+" --force, which removes this half of it"))
	case l.progress == catalog.Creating:
		return Seeding, problem.Noted("creating", "link "+s.Name, "it is being created")
	case l.obstructed != nil && l.side.Phase != role.Diverged:
		return l.unsettled(), l.obstructed
	case l.side.Phase == role.Expelled:
		return FailingOver, problem.Noted("expelled", "link "+s.Name, "instance "+s.Peer+" took over by force; the database is being closed here")
	case l.side.Phase == role.Diverged:
		return Diverged, l.diverged()
	case l.side.Phase == role.Moved && l.cause != nil && l.cause.Code == codeMoved: // of now
		return Suspended, l.cause
	case l.suspended != nil && (l.side.Phase == role.Waiting || l.side.Phase == role.Moved):
		return Suspended, l.suspended
	case (l.side.Phase == role.Waiting || l.side.Phase == role.Moved) && l.cause != nil && l.cause.Code == codeUnseen:
		return Disconnected, l.cause
	case l.side.Phase == role.Moved:
		return FailingOver, problem.Noted("moved", "link "+s.Name, "instance "+l.side.Heir+" is the primary now; this side stays until instance "+s.Peer+" follows it")
	case l.side.Phase == role.Waiting && l.cause != nil && l.cause.Code == codeMoved:
		return Suspended, l.cause
	case l.side.Phase == role.Waiting:
		return FailingOver, problem.Noted("waiting", "link "+s.Name, "another link hands the database over to instance "+l.side.Heir+"; this link follows it, or goes on if that is taken back")
	case l.side.Phase != role.Steady:
		return FailingOver, problem.Noted("failing-over", "link "+s.Name, "a failover is under way: "+string(l.side.Phase))
	case l.suspended != nil:
		return Suspended, l.suspended
	case l.stands != nil:
		return Disconnected, l.stands
	case l.paused:
		return Paused, problem.Noted("paused", "link "+s.Name, "a person paused it")
	}
	return "", nil
}

// flowing names how far changes are carried, which nothing on this side stands in the way of.
func (l *link) flowing(s Status, away *problem.Problem) (State, *problem.Problem) {
	if p := l.mayFlow(); p != nil {
		return Disconnected, p
	}
	if !l.streaming && l.led != nil && l.side.Role == role.Secondary {
		return Suspended, l.ledBy(*l.led)
	}
	if !l.streaming && l.forcedOut() {
		return Disconnected, problem.New("old-primary-diverged", "instance "+s.Peer,
			"it was the primary when this side took over by force, and is not connected: unless it has rejoined since, it is diverged, and follows when it has",
			"hawser link rejoin "+s.Name).Advise("when it is back").At("instance " + s.Peer).Retry()
	}
	if !l.streaming && l.opening() {
		return Disconnected, problem.Noted("opening", "link "+s.Name, "the stream between the two sides is being opened")
	}
	if !l.streaming {
		cause := l.cause
		if away != nil { // which is of now
			cause = away.Retry()
		}
		if cause == nil {
			cause = problem.New("disconnected", "link "+s.Name, "the two sides are not connected", "hawser peer test "+s.Peer).Retry()
		}
		return Disconnected, cause
	}
	if l.side.Role == role.Secondary && !l.seeded && !l.repairing {
		return Seeding, problem.Noted("seeding", "link "+s.Name, "tables are copied, at first or again; changes are taken in beside it")
	}
	if l.side.Role == role.Secondary && l.busySince.IsZero() && time.Since(l.readAt) > silent {
		return Disconnected, problem.New("silent", "link "+s.Name, "the primary has not been heard of for a while", "hawser peer test "+s.Peer).Retry()
	}
	if l.side.Role == role.Secondary && l.repairing {
		return CatchingUp, problem.Noted("repairing", "link "+s.Name, "the rows that only this side had changed are replaced by the primary's")
	}
	if busy := time.Since(l.busySince); l.side.Role == role.Secondary && !l.busySince.IsZero() && busy > silent {
		return CatchingUp, problem.Warn("replica-busy", "database "+l.rec.Database,
			fmt.Sprintf("the replica has worked on the same changes for %s, and what follows waits: a large statement, or a lock that one of its readers holds", busy.Round(time.Second)),
			"SELECT pid, wait_event_type, wait_event, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE application_name = 'hawser:"+s.Name+":apply';").At("the secondary")
	}
	if !s.LagKnown || s.LagSeconds > synchronizedLag {
		return CatchingUp, problem.Noted("catching-up", "link "+s.Name, "the secondary takes in what the primary wrote meanwhile")
	}
	return Synchronized, problem.Noted("synchronized", "link "+s.Name, "the secondary follows the primary")
}

// diverged tells what an old primary has to do. The other side tells it too, so it says
// which of the two it is. The caller holds mu.
func (l *link) diverged() *problem.Problem {
	name := l.rec.Name
	cause := "instance " + l.rec.Peer + " took over by force and is the primary now; the database on instance " + l.m.cfg.Instance + ", the old primary, is read-only"
	if l.tail != "" {
		cause += "; " + l.tail
	}
	switch {
	case !l.filter().All():
		return problem.New("diverged", "link "+name, cause+"; the tables that the link does not carry are here alone", "hawser link drop "+name).Advise(partsForGood)
	case l.tailDDL != nil:
		return problem.New("diverged", "link "+name, cause+"; it can't rejoin: "+l.tailDDL.Cause, l.tailDDL.Remedy).Advise(l.tailDDL.Advice)
	}
	return problem.New("diverged", "link "+name, cause, "hawser link rejoin "+name).Advise("it follows the new primary then")
}

// unsettled is the state of a side whose database, or record, is not yet as its role wants
// it. The caller holds mu.
func (l *link) unsettled() State {
	if l.side.Phase == role.Steady && l.running == nil { // most likely its PostgreSQL is away
		return Disconnected
	}
	return FailingOver
}

// openWithin is how long after a change of roles nobody has to look why nothing streams.
const openWithin = 10 * time.Second

// opening tells that this side could not have a stream yet: it has only just begun, or
// changed its role, and nothing but the other side's turn is in its way. The caller holds mu.
func (l *link) opening() bool {
	return time.Since(l.turned) < openWithin && (l.cause == nil || slices.Contains([]string{"not-primary", "term-differs", codeElsewhere}, l.cause.Code))
}

// forcedOut tells that this side is the primary by force, and the old one has not
// followed it since this agent began. The caller holds mu.
func (l *link) forcedOut() bool {
	if l.side.Role != role.Primary || l.followed || len(l.last) == 0 || !l.filter().All() {
		return false
	}
	var last FailoverResult
	err := json.Unmarshal(l.last, &last)
	return err == nil && last.Forced && last.NewPrimary == l.m.cfg.Instance && last.Term == l.side.Term
}

// otherSideWithin bounds how long a status waits for what only the other side knows.
const otherSideWithin = 2 * time.Second

// full adds what the database tells, and what only the other side knows: a secondary's
// seeding and state, and what became of the link on the primary of one that stands.
func (l *link) full(ctx context.Context) Status {
	s := l.informed(ctx)
	ctx, cancel := context.WithTimeout(ctx, otherSideWithin)
	defer cancel()
	l.glance(ctx, func(conn *pgx.Conn) {
		if missing, err := capture.NotCarried(ctx, conn, l.filter()); err == nil {
			if s.Role != role.Primary {
				missing = missing.On(s.Peer) // where it can be mended
			}
			s.Notes = append(s.Notes, missing...)
		}
		l.measure(ctx, conn, &s)
		for _, p := range []*problem.Problem{l.rowsAway(ctx, conn), l.standsIncomplete(ctx, conn, s)} {
			if p != nil {
				s.Notes = append(s.Notes, p)
			}
		}
	})
	s.Notes = l.withoutLogin(ctx, s.Notes)
	if s.Role == role.Primary {
		s = l.withTheirs(ctx, s)
	}
	l.besideSiblings(&s)
	l.noteLogins(ctx, &s)
	return s
}

// besideSiblings says of a primary's link what another link of its database does to it: the
// database is closed, or this side follows another primary already.
func (l *link) besideSiblings(s *Status) {
	other := l.m.closes(l)
	if other == nil || s.Role != role.Primary {
		return
	}
	side, _ := other.now()
	switch {
	case s.State == Diverged && side.Role == role.Secondary:
		two := l.cantFollowToo(other) // what is here alone stays said
		s.Cause = problem.New(s.Cause.Code, s.Cause.Object, s.Cause.Cause+"; it can't rejoin: "+two.Cause, two.Remedy)
	case s.State != Diverged && (expelled(side) || side.Role == role.Secondary):
		s.Notes = append(s.Notes, problem.Warn("primary-closed", "database "+l.rec.Database,
			"it takes no writes on instance "+l.m.cfg.Instance+": it is closed by link "+other.rec.Name, "hawser link show "+other.rec.Name).At("instance "+l.m.cfg.Instance))
	}
}

// withTheirs is a primary's status with what the secondary knows.
func (l *link) withTheirs(ctx context.Context, s Status) Status {
	var theirs Status
	if side, _ := l.now(); side.Phase == role.Preparing && l.m.call(ctx, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs) == nil {
		s.Notes = append(s.Notes, awaited(theirs.Notes).On(s.Peer)...)
	}
	if l.obstacle() != nil || s.State == Diverged || s.State == FailingOver || s.State == Dropped || s.State == Suspended ||
		s.Cause != nil && s.Cause.Code == "peer-not-granted" {
		return s
	}
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs); err != nil {
		if l.notThere(err) && s.State == Disconnected && s.Cause.Code != "opening" {
			s.Cause = l.unknownThere(ctx, err)
		}
		return s
	}
	s.State, s.Cause, s.Seeding = theirs.State, theirs.Cause.On(s.Peer), theirs.Seeding
	s.Notes = append(s.Notes, theirs.Notes.On(s.Peer)...)
	return s
}

// informed is the status of a secondary that stands with what the primary says: it may
// have given the link up meanwhile, and knows how far behind it is.
func (l *link) informed(ctx context.Context) Status {
	s := l.status()
	if s.Role != role.Secondary || s.State != Paused && s.State != Suspended {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, otherSideWithin)
	defer cancel()
	var theirs Status
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs); err != nil {
		return s
	}
	again := s.State == Suspended && s.Cause.Code == codeMoved && theirs.Cause != nil && theirs.Cause.Code == codeNotCompared
	if (s.State == Paused || again) && theirs.State == Suspended {
		s.State, s.Cause = Suspended, theirs.Cause.On(s.Peer)
	}
	s.Behind = theirs.Behind
	return s
}

// told is the status for the other side.
func (l *link) told(ctx context.Context) (Status, error) {
	s := l.status()
	if s.Role == role.Primary {
		l.glance(ctx, func(conn *pgx.Conn) { l.measure(ctx, conn, &s) })
	}
	s.Notes = l.withoutLogin(ctx, s.Notes)
	return s, nil
}

// measure adds what the slot of a primary tells.
func (l *link) measure(ctx context.Context, conn *pgx.Conn, s *Status) {
	if s.Role != role.Primary {
		return
	}
	if held, err := capture.Held(ctx, conn, l.rec.ID); err == nil {
		s.WALHeld = &held
	}
	if s.LagKnown {
		return
	}
	if behind, found, err := capture.Behind(ctx, conn, l.rec.ID); err == nil && found {
		s.Behind = &behind
	}
}

// joined adds to an advice, which may be empty.
func joined(advice, more string) string { return strings.TrimPrefix(advice+"; "+more, "; ") }

// notFollowing is why something can't be done with a secondary that does not follow: what
// stopped it, where that needs a person. then is what to do when it follows.
func notFollowing(s Status, why, then string) *problem.Problem {
	p := problem.New("not-synchronized", "link "+s.Name, why, "hawser link watch "+s.Name).Advise(then)
	switch {
	case (s.State == Suspended || s.State == Diverged) && s.Cause != nil:
		return s.Cause
	case s.State == Paused:
		p.Remedy = "hawser link resume " + s.Name
	case s.State == Disconnected && s.Cause != nil:
		p.Cause += ": " + s.Cause.Cause
		if s.Cause.Remedy != "" {
			p.Remedy, p.Place = s.Cause.Remedy, s.Cause.Place
		}
		p.Advice = joined(s.Cause.Advice, then)
	}
	return p
}
