package link

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/seed"
	"github.com/hawser/hawser/internal/verify"
)

// link is one side of one link while its agent runs. Its goroutines:
//
//	steward   takes events, steps the role, stores it, hands the actions over
//	performer carries out one action list; a newer list ends an older one
//	follower  on a secondary: seeds and applies, again and again
//	guard     on a primary: gives the link up before it fills the disk
//	streams   on a primary: one for each stream that the secondary opened
//
// mu guards the fields below it and is never held during I/O.
type link struct {
	m   *Manager
	log *slog.Logger
	rec catalog.Link // what never changes: Name, ID, Peer, Database, CreatedAt

	events chan happened
	turn   turns // held by whoever applies, or must be sure that nobody does
	// readying is held while the slots by which others would follow this side, a secondary,
	// are made or dropped, and while it is opened by force on the strength of one.
	readying turns
	reading  turns           // held while the tail is read: a slot has one reader
	ctx      context.Context // ends with the link
	stop     context.CancelFunc
	done     crew

	renewing sync.Mutex // guards renewed
	renewed  bool       // what a predecessor put into the database is of this version

	slots    sync.Mutex  // held while the slot is renewed, or a renewed one given up
	userPath atomic.Bool // changes need the search_path of the database's sessions

	renamed atomic.Pointer[string] // what the database is called now, where that is known to be something else, see locate

	dropping  sync.Mutex  // held while the link is removed
	finishing atomic.Bool // its removal goes on by itself

	heirs    sync.Mutex // held while links that are to be taken up are made, taken up or discarded
	heirless bool       // there are none

	bare bool // the guard's: this side is a primary without the indexes that the applier made

	glances keeper // of its statuses
	swaps   keeper // of a failover, see inSwap

	mu          sync.Mutex
	side        role.State
	changed     chan struct{} // closed and made anew when side, paused or suspended change
	progress    catalog.Progress
	paused      bool
	suspended   *problem.Problem
	renewal     *catalog.Renewal // of a primary: its slot is a new one, from which nobody streamed yet
	cause       *problem.Problem // why the link does not run just now
	applier     *apply.Applier
	seeder      *seed.Seeder
	compared    *verify.Progress // while a resync compares
	seeded      bool
	heard       frame.Heartbeat
	heardAt     time.Time // when that was sent
	readAt      time.Time // when the stream last brought something, or was last read again
	busySince   time.Time // when the applier last left the stream unread; zero while it reads
	ack         frame.Ack // on a secondary, in ackTerm
	arrived     frame.LSN // on a secondary: what came over the wire, never behind ack
	ackTerm     frame.Term
	capture     *capture.Capture
	streaming   bool
	running     *failoverRun
	swapUntil   time.Time        // how long the steps of a failover may take on this side
	led         *leader          // who leads the database instead of the peer, which is away
	obstructed  *problem.Problem // what keeps the fence from being opened or closed, or the role from being stored, just now
	awaits      *problem.Problem // whose transaction a step of a failover waits for, just now
	last        json.RawMessage  // result of the last failover
	ownsDB      bool
	notes       problem.Findings
	passable    problem.Findings // what could pass the fence of this side
	holes       problem.Findings // that it had, and that are closed; and what noteUntold found
	comparisons map[string]*comparison
	shut        bool                     // this side was closed, as its role asks, since the agent began
	forcing     bool                     // a forced failover or a resync is under way: nothing may be applied
	rejoining   bool                     // a rejoin is under way
	verifying   int                      // comparisons that wait for the stream
	leaving     int                      // drops of the link that were let through, see leave
	serving     int                      // streams of changes that may have begun
	stands      *problem.Problem         // a rejoin by another link of the database takes rows away
	tail        string                   // what this side alone has, in words
	reports     map[string]reportSummary // of what it had alone, by path
	tailDDL     *problem.Problem         // why this side can't rejoin, if it can't
	held        int64                    // bytes of WAL that the slot keeps
	maxWAL      *int64                   // that it may keep; nil: the agent's limit
	repairing   bool                     // rows that differ are still to be fetched
	followed    bool                     // the secondary followed this side in this term
	swept       string                   // the mark of what a failover's sweep has seen, before the fence
	accepted    []string                 // ids of the links that the other side takes up with this one
	incomplete  bool                     // tables were to be copied where another link handed over
	lastState   State                    // as last told, and since when
	since       time.Time
	troubles    Troubles  // guards itself
	turned      time.Time // when this side began, or its role or phase changed
}

// happened is an event and, when somebody waits for the step, a way to say so.
// The answer to an action has that action's context: it is void once that ended.
type happened struct {
	event  role.Event
	answer context.Context
	done   chan role.State
}

func newLink(m *Manager, rec catalog.Link, side role.State) *link {
	l := &link{
		m: m, rec: rec, side: side,
		log:      m.cfg.Log.With("link", rec.Name),
		events:   make(chan happened, 16),
		turn:     make(turns, 1),
		readying: make(turns, 1),
		reading:  make(turns, 1),
		changed:  make(chan struct{}),
		progress: rec.Progress, paused: rec.Paused, suspended: rec.Suspended,
		last: rec.Failover, ownsDB: rec.OwnsDatabase, maxWAL: rec.MaxWAL, holes: rec.Holes, renewal: rec.Renewed,
		turned: time.Now(),
	}
	l.ctx, l.stop = context.WithCancel(m.ctx) // now: the other side may call before start
	l.capture = capture.New(capture.Config{
		Link: rec.Name, ID: rec.ID, Database: rec.Database, Server: m.cfg.Server, Watch: m.watch,
	})
	l.findReports()
	return l
}

func (l *link) peer() string { return l.rec.Peer }

// start begins the link's goroutines; they end with the manager or with halt, after
// which a new link has to take this one's place.
func (l *link) start() {
	l.done.Go(l.guard)
	l.done.Go(l.steward)
	l.done.Go(l.follow)
	if l.rec.Progress == catalog.Running {
		l.tell(role.Restarted{})
	}
}

// halt ends the link's goroutines and waits for them.
func (l *link) halt() {
	l.stop()
	l.done.Wait()
	l.swaps.end()
	l.mu.Lock()
	var open []string
	for id := range l.comparisons {
		open = append(open, id)
	}
	l.mu.Unlock()
	for _, id := range open {
		l.closeComparison(id)
	}
}

// tell queues an event.
func (l *link) tell(e role.Event) {
	select {
	case l.events <- happened{event: e}:
	case <-l.ctx.Done():
	}
}

// ask queues an event and returns the state after it. One whose ctx has ended before its
// turn comes is dropped.
func (l *link) ask(ctx context.Context, e role.Event) (role.State, error) {
	h := happened{event: e, answer: ctx, done: make(chan role.State, 1)}
	select {
	case l.events <- h:
	case <-l.ctx.Done():
		return role.State{}, errHalted
	case <-ctx.Done():
		return role.State{}, ctx.Err()
	}
	select {
	case s := <-h.done:
		return s, nil
	case <-l.ctx.Done():
		return role.State{}, errHalted
	case <-ctx.Done():
		return role.State{}, ctx.Err()
	}
}

// turns is a lock for which one need not wait for ever.
type turns chan struct{}

func (t turns) take(ctx context.Context) (release func(), err error) {
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var errHalted = problem.New("link-stopping", "", "the link is being stopped", "").Advise("run the command again").Retry()

// now returns the role state and a channel that is closed at the next change of
// anything that decides what the link does.
func (l *link) now() (s role.State, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.side, l.changed
}

// update changes guarded fields and wakes whoever waits for a change.
func (l *link) update(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// until waits for something that is asked under mu.
func (l *link) until(ctx context.Context, so func() bool) error {
	for {
		l.mu.Lock()
		is, changed := so(), l.changed
		l.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return errHalted
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// steward owns the role: one event at a time, stored before it is acted on.
func (l *link) steward() {
	var performing context.CancelFunc
	var finished chan struct{}
	end := func() {
		if performing != nil {
			performing()
			<-finished
			performing = nil
		}
	}
	defer end()
	for {
		var h happened
		select {
		case <-l.ctx.Done():
			return
		case h = <-l.events:
		}
		if h.answer != nil && h.answer.Err() != nil {
			continue
		}
		old, _ := l.now()
		next, actions := role.Step(old, h.event)
		if len(actions) > 0 {
			l.log.Debug("role", "event", h.event, "from", old, "to", next)
			end()
			actions = l.store(next, actions)
			ctx, cancel := context.WithCancel(l.ctx)
			performing, finished = cancel, make(chan struct{})
			go func(done chan struct{}) { defer close(done); l.perform(ctx, actions) }(finished)
		}
		if h.done != nil {
			s, _ := l.now()
			h.done <- s
		}
	}
}

// store makes the new state durable and current, and returns what follows. It
// tries until it succeeds: nothing may be done on a state that is not stored.
func (l *link) store(next role.State, actions []role.Action) []role.Action {
	if _, ok := actions[0].(role.Persist); !ok {
		return actions
	}
	data, err := json.Marshal(next)
	if err != nil {
		l.log.Error("the role can't be encoded", "error", err)
		return nil
	}
	old, _ := l.now()
	stored := l.persist("role", func(ctx context.Context, conn *pgx.Conn) error {
		if becomesPrimary(old, next) {
			return catalog.SetLeading(ctx, conn, l.rec.Name, data, l.holesBut(isUntold))
		}
		return catalog.SetSide(ctx, conn, l.rec.Name, data)
	})
	if !stored {
		return nil
	}
	l.update(func() {
		l.side = next
		l.shut = l.shut && !next.Writable() && next.Phase != role.Promoting
		if becomesPrimary(old, next) {
			l.paused, l.suspended = false, nil
			l.holes = slices.DeleteFunc(slices.Clone(l.holes), isUntold)
		}
		if old.Role != next.Role || old.Phase != next.Phase {
			l.turned = time.Now()
		}
	})
	if old.Role == role.Primary && next.Role == role.Secondary {
		l.m.primaryMoved(l)
	}
	if old.Role != next.Role || old.Phase != next.Phase {
		l.log.Info("role", "role", next.Role, "term", next.Term, "phase", next.Phase)
	}
	return actions[1:]
}

// becomesPrimary tells of the step with which all ends that a secondary stood for.
func becomesPrimary(old, next role.State) bool {
	return old.Role == role.Secondary && next.Role == role.Primary
}

// persist writes to the instance's catalog until that succeeds or the link ends.
func (l *link) persist(what string, write func(context.Context, *pgx.Conn) error) bool {
	for wait := NewBackoff(); ; {
		err := l.m.store.Do(l.ctx, func(conn *pgx.Conn) error { return write(l.ctx, conn) })
		if err == nil {
			l.obstruct(nil)
			return true
		}
		l.obstruct(err)
		l.trouble("can't store the link's state, trying again", err, "what", what)
		if !wait.Sleep(l.ctx) {
			return false
		}
	}
}

// perform carries out actions in order until ctx ends. Whoever waits for a failover is told
// of its end all the same: no later step would.
func (l *link) perform(ctx context.Context, actions []role.Action) {
	for _, a := range actions {
		if r, ok := a.(role.Report); ok {
			l.report(r.Cause)
			continue
		}
		if ctx.Err() != nil {
			continue
		}
		switch a := a.(type) {
		case role.Prepare:
			term, err := l.prepareSwap(ctx)
			l.answer(ctx, role.Prepared{Term: term}, err)
		case role.Unprepare:
			l.unprepareSwap(ctx)
		case role.Close:
			err := l.closeFence(ctx)
			if err == nil {
				l.update(func() { l.shut = true })
			}
			l.answer(ctx, role.Fenced{}, err)
		case role.Hand:
			if err := l.hand(ctx, a.Term); err != nil {
				l.answer(ctx, nil, err)
			}
		case role.Open:
			l.answer(ctx, role.Opened{}, l.openFence(ctx))
		case role.AskRefusal:
			l.askRefusal(ctx, a.Term)
		case role.Tell:
			l.meetPeer(ctx)
		case role.Serve:
			// The streams look at the state by themselves. What fails here is tried again
			// by the guard.
			if err := l.inherit(ctx); err != nil {
				l.log.Warn("can't take up the database's other links yet", "error", err)
			}
		case role.Follow:
			// The follower looks at the state by itself.
		case role.Account:
			if err := l.retry(ctx, "write down what this side alone has", l.account); err != nil {
				l.log.Error("can't write down what this side alone has", "error", err)
			}
		}
	}
}

// answer turns the outcome of an action into an event. The queue is the
// steward's, which may be waiting for this goroutine to end: ctx says so.
func (l *link) answer(ctx context.Context, ok role.Event, err error) {
	e := ok
	if err != nil {
		l.log.Warn("failover", "error", err)
		e = role.Failed{Cause: err}
	}
	select {
	case l.events <- happened{event: e, answer: ctx}:
	case <-ctx.Done():
	}
}

// retry repeats an action that may fail for a passing reason, as a PostgreSQL
// that restarts, until it succeeds, ctx ends, or the failure is not passing.
func (l *link) retry(ctx context.Context, what string, do func(context.Context) error) error {
	return l.repeat(ctx, what, do, func(err error) bool {
		p, ok := problem.As(err)
		return !ok || p.Retryable
	})
}

// insist repeats an action that nobody else would carry out later, whatever it fails for.
func (l *link) insist(ctx context.Context, what string, do func(context.Context) error) error {
	return l.repeat(ctx, what, do, func(error) bool { return true })
}

func (l *link) repeat(ctx context.Context, what string, do func(context.Context) error, again func(error) bool) error {
	defer l.obstruct(nil)
	for wait := NewBackoff(); ; {
		err := do(ctx)
		if err == nil || ctx.Err() != nil || !again(err) {
			return err
		}
		l.obstruct(err)
		l.trouble("trying again", err, "what", what)
		if !wait.Sleep(ctx) {
			return err
		}
	}
}

// obstruct notes what keeps this side from where its role wants it; nil: nothing.
func (l *link) obstruct(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.obstructed = nil
		return
	}
	p := *withReason(problem.Of(err, "not-carried-out"))
	if p.Remedy == "" && p.Advice == "" {
		p.Advice = "it is tried again by itself"
	}
	l.obstructed = &p
}

// obstacle is what obstruct noted.
func (l *link) obstacle() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.obstructed == nil {
		return nil
	}
	return l.obstructed
}

// beyondResume are the causes of a suspension that a link would meet again at once.
var beyondResume = []string{"wal-limit", "slot-lost", "slot-invalidated", "primary-restored", codeMoved, codeNotCompared, codeForgotten, capture.CodeBroken}

// pause does what a person asks. A link that can't go on from where it stands is not
// resumed: what mends it is told.
func (l *link) pause(ctx context.Context, paused bool) error {
	s := l.informed(ctx)
	switch {
	case s.State == Diverged: // it neither runs nor would
		return s.Cause
	case !paused && s.State == Suspended && s.Cause != nil && slices.Contains(beyondResume, s.Cause.Code):
		return s.Cause
	case !paused && s.State == Suspended && s.Cause != nil && s.Cause.Code == codeGone:
		// It may be there again, where its PostgreSQL had been put back.
		var theirs Status
		if p := l.unknownThere(ctx, l.m.call(ctx, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs)); p != nil {
			return p
		}
	}
	return l.setPaused(ctx, paused)
}

// setPaused stores whether a person paused the link, or that nothing stops it any more. A
// primary is not paused: it would stand when it is the secondary. What a paused link stands
// for otherwise stays.
func (l *link) setPaused(ctx context.Context, paused bool) error {
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.SetPaused(ctx, conn, l.rec.Name, paused) })
	if err == nil {
		l.update(func() {
			l.paused = paused && l.side.Role == role.Secondary
			if !paused {
				l.suspended = nil
			}
		})
	}
	return err
}

// suspend stops the link until a person resumes it.
func (l *link) suspend(why *problem.Problem) {
	l.log.Error("suspended", "cause", why.Error())
	if l.persist("suspended", func(ctx context.Context, conn *pgx.Conn) error {
		return catalog.SetSuspended(ctx, conn, l.rec.Name, why)
	}) {
		l.update(func() { l.suspended = why })
	}
}

// startRunning says that both sides hold the link.
func (l *link) startRunning(ctx context.Context) error {
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		return catalog.SetProgress(ctx, conn, l.rec.Name, catalog.Running)
	})
	if err == nil {
		l.update(func() { l.progress, l.turned = catalog.Running, time.Now() })
		l.tell(role.Restarted{})
	}
	return err
}
