package link

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// FailoverOptions are what a person asks for.
type FailoverOptions struct {
	// Timeout is after which the failover is taken back; 0 means one minute.
	Timeout time.Duration `json:"timeout"`
	// Force opens the secondary without the primary.
	Force bool `json:"force,omitempty"`
	// Check changes nothing: it only refuses what this side would refuse.
	Check bool `json:"-"`
}

// Phase is one timed part of a failover.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// FailoverResult tells how a failover went.
type FailoverResult struct {
	Link       string     `json:"link"`
	Forced     bool       `json:"forced,omitempty"`
	OldPrimary string     `json:"old_primary"`
	NewPrimary string     `json:"new_primary"`
	Term       frame.Term `json:"term"`
	At         time.Time  `json:"at"`
	Phases     []Phase    `json:"phases"`
	// LockedOut are roles whose clients used the database on the old primary and that
	// can't log in on the new one.
	LockedOut []string `json:"locked_out,omitempty"`
	// Closed is how long neither side took writes, by the old primary's clock:
	// from the fence's closing to the news that the other side is open. Of a forced
	// failover it is not known.
	Closed float64 `json:"closed_seconds"`
	Total  float64 `json:"total_seconds"`
	// LastApplied is, of a forced failover, the last transaction that the new primary has.
	LastApplied *LastApplied `json:"last_applied,omitempty"`
}

// LastApplied is a transaction of the old primary.
type LastApplied struct {
	Transaction uint32     `json:"transaction,omitempty"` // its id; 0: none was applied in that term
	Position    frame.LSN  `json:"position"`              // of its commit, or where this side began to follow
	Time        *time.Time `json:"time,omitempty"`        // of its commit, by the old primary's clock
}

const (
	defaultFailoverTimeout = time.Minute
)

// failoverRun is a failover that somebody waits for.
type failoverRun struct {
	started time.Time
	within  time.Duration // the time limit
	closed  time.Time     // when the fence began to close
	phases  []Phase
	locked  []string // see FailoverResult.LockedOut
	done    chan error
}

// failover swaps the roles. Asked of a secondary, it asks the primary.
func (l *link) failover(ctx context.Context, o FailoverOptions) (FailoverResult, error) {
	if o.Force && o.Check {
		return FailoverResult{}, l.checkForce(ctx)
	}
	if o.Force {
		return l.force(ctx)
	}
	if err := l.whole("the other side would be a primary that lacks the others"); err != nil {
		return FailoverResult{}, err
	}
	if err := l.maySwap(); err != nil || o.Check {
		return FailoverResult{}, err
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultFailoverTimeout
	}
	side, _ := l.now()
	if side.Role == role.Secondary {
		within, cancel := context.WithTimeout(ctx, o.Timeout+answersWithin)
		defer cancel()
		var result FailoverResult
		err := l.m.call(within, l.rec.Peer, l.rec.Name, callFailover, o, &result)
		if p, ok := problem.As(err); ok && p.Code == "peer-disconnected" {
			lost := *p
			lost.Advice = joined(p.Advice, "if instance "+l.rec.Peer+" is lost: hawser link failover "+l.rec.Name+" --force, which opens this side without it")
			return result, &lost
		}
		return result, err
	}
	l.mu.Lock()
	suspended := l.suspended
	l.mu.Unlock()
	if suspended != nil {
		return FailoverResult{}, suspended
	}
	run, err := l.begin()
	if err != nil {
		return FailoverResult{}, err
	}
	l.update(func() { run.within = o.Timeout })
	l.swapWithin(o.Timeout)
	if err := l.enter(ctx, o.Timeout); err != nil {
		l.ended(run)
		l.swaps.end()
		return FailoverResult{}, err
	}
	// Whoever asked may go away; the failover and its time limit go on to the end.
	ended := make(chan failoverEnd, 1)
	seen := l.done.Go(func() {
		result, err := l.see(run, time.Until(run.started.Add(o.Timeout)), ended)
		l.ended(run)
		tellOnce(ended, failoverEnd{result, err})
	})
	if !seen {
		return FailoverResult{}, errHalted
	}
	select {
	case end := <-ended:
		return end.result, end.err
	case <-ctx.Done():
		return FailoverResult{}, ctx.Err()
	}
}

// failoverEnd is what whoever asked for a failover is told.
type failoverEnd struct {
	result FailoverResult
	err    error
}

func tellOnce(to chan<- failoverEnd, end failoverEnd) {
	select {
	case to <- end:
	default: // that it is not over yet was told
	}
}

// enter begins a failover, within its time limit.
func (l *link) enter(ctx context.Context, timeout time.Duration) error {
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tooLate := problem.New("failover-timeout", "link "+l.rec.Name, "the failover could not begin within its time limit", "hawser link show "+l.rec.Name)
	if err := l.answering(within); err != nil && within.Err() != nil && ctx.Err() == nil {
		return tooLate // which tells nothing of the server
	} else if err != nil {
		return err
	}
	l.awaitPromoted(within)
	side, err := l.askFailover(within)
	switch {
	case err != nil && within.Err() != nil && ctx.Err() == nil:
		// It may have begun, and its state wait to be stored.
		l.done.Go(func() { l.tell(role.TimedOut{}) })
		return tooLate
	case err != nil:
		return err
	case side.Phase != role.Preparing:
		return problem.New("failover-not-now", "link "+l.rec.Name,
			fmt.Sprintf("this side is %s and %s; only a steady primary can hand over", side.Role, side.Phase), "hawser link show "+l.rec.Name).Advise("run it when the link is steady")
	}
	return nil
}

// answering refuses a failover of a primary whose PostgreSQL is down: it can't hand over.
func (l *link) answering(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	err := l.inSwap(within, func(conn *pgx.Conn) error { return conn.Ping(within) })
	if p, ok := problem.As(err); err == nil || ok && p.Code == "too-many-connections" { // it is there, and says why not
		return err
	}
	return problem.New("primary-unreachable", "link "+l.rec.Name, "PostgreSQL of instance "+l.m.cfg.Instance+", the primary, does not answer its agent, so nothing can be handed over",
		"hawser link failover "+l.rec.Name+" --force").Advise("that opens the secondary without it; better bring it back").At("instance " + l.rec.Peer).Because(err)
}

// awaitPromoted lets a primary that has only just taken over come to rest.
func (l *link) awaitPromoted(ctx context.Context) {
	if side, _ := l.now(); side.Phase == role.Promoting {
		_ = l.awaitOpen(ctx) // what is asked next says why not
	}
}

// askFailover begins a failover, unless another link of the database is at it.
func (l *link) askFailover(ctx context.Context) (role.State, error) {
	l.m.swap.Lock()
	defer l.m.swap.Unlock()
	if p := l.m.elsewhere(l); p != nil {
		return role.State{}, p
	}
	return l.ask(ctx, role.FailoverAsked{})
}

// backWithin is how long, after the time limit, the taking back of a failover is waited for.
const backWithin = 10 * time.Second

// see waits for the end of a failover. Where that does not come, it tells so, and goes on.
func (l *link) see(run *failoverRun, timeout time.Duration, late chan<- failoverEnd) (FailoverResult, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for over := false; ; over = true {
		select {
		case err := <-run.done:
			l.ended(run) // what is still to be told keeps nobody from another one
			if err != nil {
				return FailoverResult{}, err
			}
			return l.succeeded(l.ctx, run), nil
		case <-timer.C:
			if over {
				tellOnce(late, failoverEnd{err: l.notBack()})
				continue
			}
			l.tell(role.TimedOut{Cause: l.obstacle()})
			timer.Reset(backWithin)
		case <-l.ctx.Done():
			return FailoverResult{}, errHalted
		}
	}
}

// notBack is told of a failover that did not end in time, and is not taken back yet.
func (l *link) notBack() error {
	p := problem.New("failover-timeout", "link "+l.rec.Name, "the failover did not end within its time limit, and is not taken back yet: this side takes no writes until it is, or until the other one says that it took over",
		"hawser link show "+l.rec.Name).Advise("it tells how the failover ends")
	if met, ok := problem.As(l.obstacle()); ok {
		p.Cause, p.Remedy, p.Advice, p.Place = p.Cause+". What it meets: "+met.Cause, met.Remedy, met.Advice, met.Place
	}
	return p
}

func (l *link) begin() (*failoverRun, error) {
	run := &failoverRun{started: time.Now(), done: make(chan error, 1)}
	var err error
	l.update(func() {
		if l.leaving > 0 {
			err = busy(l.rec.Name)
			return
		}
		if l.running != nil {
			err = problem.New(codeSwapping, "link "+l.rec.Name, "a failover is under way", "hawser link show "+l.rec.Name).Advise("wait for it")
			return
		}
		l.running = run
	})
	return run, err
}

// ended lets another failover begin.
func (l *link) ended(run *failoverRun) {
	l.update(func() {
		if l.running == run {
			l.running = nil
		}
	})
}

func (l *link) succeeded(ctx context.Context, run *failoverRun) FailoverResult {
	side, _ := l.now()
	now := time.Now()
	l.mu.Lock()
	r := FailoverResult{
		Link: l.rec.Name, OldPrimary: l.m.cfg.Instance, NewPrimary: l.rec.Peer, Term: side.Term, At: now,
		Phases: append(run.phases, Phase{"drain and open", now.Sub(run.closed).Seconds() - sum(run.phases, "fence", "drain sessions")}),
		Closed: now.Sub(run.closed).Seconds(), Total: now.Sub(run.started).Seconds(), LockedOut: run.locked,
	}
	l.mu.Unlock()
	l.remember(r)
	l.exchangeOutcomes(ctx)
	return r
}

// outcomeWithin bounds how long whoever asked for a failover waits until the other side
// knows of its end as well.
const outcomeWithin = 2 * time.Second

// exchangeOutcomes sees that both sides know the last failover: its result arises on one.
// It is told again whenever a stream begins, so nothing depends on the other's answer.
func (l *link) exchangeOutcomes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, outcomeWithin)
	defer cancel()
	l.mu.Lock()
	ours := l.last
	l.mu.Unlock()
	var theirs *FailoverResult
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callOutcome, ours, &theirs)
	if err == nil {
		_, err = l.tellOutcome(ctx, theirs)
	}
	if err != nil {
		l.log.Debug("the other side was not told of the last failover", "error", err)
	}
}

// tellOutcome takes the other side's last failover over if it is newer, and returns
// this side's.
func (l *link) tellOutcome(_ context.Context, theirs *FailoverResult) (json.RawMessage, error) {
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	var ours FailoverResult
	if len(last) > 0 {
		if err := json.Unmarshal(last, &ours); err != nil {
			return nil, fmt.Errorf("read the result of the last failover: %w", err)
		}
	}
	if theirs != nil && theirs.Term > ours.Term {
		l.remember(*theirs)
	}
	return last, nil
}

// remember stores the result of the last failover. What happened is no failure since that
// can't be written down at once.
func (l *link) remember(r FailoverResult) {
	data, err := json.Marshal(r)
	if err != nil {
		l.log.Error("can't write the failover's result", "error", err)
		return
	}
	l.update(func() { l.last = data })
	if err := l.m.store.Do(l.ctx, func(conn *pgx.Conn) error { return l.storeLast(l.ctx, conn) }); err != nil {
		l.done.Go(func() { l.persist("the last failover's result", l.storeLast) })
	}
}

func (l *link) storeLast(ctx context.Context, conn *pgx.Conn) error {
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	return catalog.SetFailover(ctx, conn, l.rec.Name, last)
}

func sum(phases []Phase, names ...string) float64 {
	var s float64
	for _, p := range phases {
		for _, n := range names {
			if p.Name == n {
				s += p.Seconds
			}
		}
	}
	return s
}

// report ends the failover, and tells whoever waits for it.
func (l *link) report(cause error) {
	if cause == nil {
		l.swaps.end() // nothing is to be opened here
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running != nil {
		select {
		case l.running.done <- cause:
		default:
		}
	}
}

// timed adds a phase to the failover under way, if there is one.
func (l *link) timed(name string, do func()) {
	from := time.Now()
	l.mu.Lock()
	if l.running != nil && name == "fence" {
		l.running.closed = from
	}
	l.mu.Unlock()
	do()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running != nil {
		l.running.phases = append(l.running.phases, Phase{name, time.Since(from).Seconds()})
	}
}

// prepareSwap gets both sides ready while this one still takes writes. It returns the
// first term that the other side takes.
func (l *link) prepareSwap(ctx context.Context) (term frame.Term, err error) {
	side, _ := l.now()
	l.timed("prepare", func() {
		if err = l.inSwap(ctx, func(conn *pgx.Conn) error {
			if err := l.intact(ctx, conn); err != nil {
				return err
			}
			return holdsAll(ctx, conn)
		}); err != nil {
			return
		}
		var reply prepareReply
		request := prepareRequest{Patience: l.patience(), Term: side.Next, Siblings: l.m.successors(l)}
		if request.Users, err = l.users(ctx); err != nil {
			return
		}
		if err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callPrepare, request, &reply); err != nil {
			return
		}
		l.update(func() {
			l.accepted, term = reply.Heirs, reply.Term
			if l.running != nil {
				l.running.locked = reply.LockedOut
			}
		})
		if err = l.installFence(ctx); err != nil {
			return
		}
		err = l.inSwap(ctx, func(conn *pgx.Conn) error { return l.sweepFirst(ctx, conn) })
	})
	if err != nil {
		return 0, err
	}
	l.timed("catch up", func() {
		if err = l.awaitCatchUp(ctx); err == nil {
			err = l.inSwap(ctx, func(conn *pgx.Conn) error { return l.checkSequences(ctx, conn) })
		}
	})
	return term, err
}

// sweepFirst puts what fires no event into the stream while this side still writes, and
// keeps what sweepRest compares with.
func (l *link) sweepFirst(ctx context.Context, conn *pgx.Conn) error {
	mark, err := capture.UnfiredMark(ctx, conn)
	if err == nil {
		err = l.sweep(ctx, conn)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swept = mark
	return err
}

// sweepRest does so behind the fence, for what came in between. A whole sweep takes some
// ten milliseconds in which nobody can write, so it looks first whether anything did.
func (l *link) sweepRest(ctx context.Context, conn *pgx.Conn) error {
	mark, err := capture.UnfiredMark(ctx, conn)
	if err != nil {
		return err
	}
	l.mu.Lock()
	same := mark == l.swept
	l.mu.Unlock()
	if same {
		return nil
	}
	return l.sweep(ctx, conn)
}

// holdsAll refuses to leave a database of which the secondary lacks something.
func holdsAll(ctx context.Context, conn *pgx.Conn) error {
	found, err := postgres.LargeObjects(ctx, conn)
	if err == nil && found != nil {
		err = found
	}
	return err
}

// users are the roles whose clients will look for the new primary.
func (l *link) users(ctx context.Context) (names []string, err error) {
	err = l.inSwap(ctx, func(conn *pgx.Conn) error {
		names, err = schema.Logins(ctx, conn)
		return err
	})
	return names, err
}

// patience is how long the secondary may wait until it follows: most of the time that
// the failover has left, so that it can say itself what it waited for.
func (l *link) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		return 0
	}
	return time.Until(l.running.started.Add(l.running.within)) * patiencePart / patienceOf
}

const patiencePart, patienceOf = 3, 4

// installFence puts the triggers of the fence, open, on tables that lack them,
// and refuses a failover that the fence could not complete.
func (l *link) installFence(ctx context.Context) error {
	return l.inSwap(ctx, func(conn *pgx.Conn) error {
		var gid *string
		err := conn.QueryRow(ctx, `SELECT min(quote_literal(gid)) FROM pg_prepared_xacts WHERE database = current_database()`).Scan(&gid)
		if err != nil {
			return fmt.Errorf("look for prepared transactions: %w", err)
		}
		if gid != nil {
			return problem.New("prepared-transaction", "prepared transaction "+*gid,
				"it is open and would be lost at the failover", "ROLLBACK PREPARED "+*gid+";").Advise("or COMMIT PREPARED, when it is to be kept")
		}
		// With some of the time left it can be said what holds a table.
		return fence.Prepare(ctx, conn, &fence.PrepareOptions{Patience: l.patience()})
	})
}

// swapFor is how long the session of a failover is kept for the next of its steps, beyond
// the time limit.
const swapFor = time.Minute

// inSwap does a step of a failover in a session that is kept for the next one: each that
// is opened while no side takes writes makes that time longer, and there may be none to
// be had: clients that were sent away come back. Whoever does the last step on a side, or
// takes the failover back, ends it.
func (l *link) inSwap(ctx context.Context, step func(conn *pgx.Conn) error) error {
	conn, err := l.session(ctx, &l.swaps, "failover")
	if err != nil {
		return err
	}
	over := l.awaiting(ctx, conn)
	err = over(step(conn))
	l.mu.Lock()
	within := max(0, time.Until(l.swapUntil)) + swapFor
	l.mu.Unlock()
	l.swaps.keep(conn, within, func() bool { return l.ctx.Err() == nil && conn.PgConn().TxStatus() == 'I' })
	return err
}

// swapWithin tells how long the steps of a failover that begins may take on this side.
func (l *link) swapWithin(limit time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swapUntil = time.Now().Add(limit)
}

func (l *link) awaitCatchUp(ctx context.Context) error {
	for a := (approach{}); !l.isStreaming() || !a.near(l.capture.Lag(), time.Now()); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
	return nil
}

// What the secondary lacks when the fence closes is time in which nobody can write. So
// the fence waits for little lag, in bytes of WAL and in time: a busy machine may need
// long for few bytes. A lag that does not fall any more is taken as it is.
const (
	closeEnough = 4 << 20 // bytes
	soonEnough  = 50 * time.Millisecond
	stalled     = 2 * time.Second
	lookEvery   = 10 * time.Millisecond
)

// approach is a secondary's way to the moment at which the fence may close.
type approach struct {
	least float64 // seconds of lag
	since time.Time
}

// near tells whether it may close now.
func (a *approach) near(lag capture.Lag, now time.Time) bool {
	switch {
	case lag.At.IsZero() || lag.Bytes > closeEnough:
		return false
	case lag.Seconds <= soonEnough.Seconds():
		return true
	case a.since.IsZero() || lag.Seconds <= a.least-soonEnough.Seconds():
		a.least, a.since = lag.Seconds, now
	}
	return now.Sub(a.since) >= stalled
}

// unprepareSwap is best effort: a side that is away forgets by itself when it
// hears of the state again.
func (l *link) unprepareSwap(ctx context.Context) {
	l.swaps.end()
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callUnprepare, struct{}{}, nil); err != nil {
		l.log.Warn("the other side could not be told that the failover was taken back", "error", err)
	}
}

// prepareToLead makes the secondary ready: capture, and the slot from which the
// old primary will follow, and those of the database's other links. A slot has to
// exist before the first write here.
func (l *link) prepareToLead(ctx context.Context, r prepareRequest) (prepareReply, error) {
	l.swapWithin(r.Patience * patienceOf / patiencePart)
	if err := l.awaitFit(ctx, r.Patience); err != nil {
		return prepareReply{}, err
	}
	ctx, cancel := l.unlessForced(ctx)
	defer cancel()
	release, err := l.readying.take(ctx)
	if err != nil {
		return prepareReply{}, err
	}
	defer release()
	reply, err := l.makeReady(ctx, r)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return reply, err
}

// unlessForced ends a context when this side is opened by force, or rests for a resync.
func (l *link) unlessForced(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		if l.until(ctx, func() bool { return l.forcing }) == nil {
			cancel(problem.New("failover-not-now", "link "+l.rec.Name, "the secondary is being opened by force, or compared, just now", "hawser link show "+l.rec.Name))
		}
	})
	return ctx, func() { cancel(nil); watch.Wait() }
}

// makeReady is prepareToLead's part that nothing else may come between.
func (l *link) makeReady(ctx context.Context, r prepareRequest) (prepareReply, error) {
	side, err := l.mayLead(ctx)
	if err != nil {
		return prepareReply{}, err
	}
	r.Term = max(r.Term, side.Following()) // one that is spent here would be refused
	// With some of the time left this side can still say what it waited for.
	if r.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Patience)
		defer cancel()
	}
	findings, err := capture.Check(ctx, l.m.cfg.Server, l.rec.Database, l.filter())
	if err != nil {
		return prepareReply{}, err
	}
	if err := findings.Err(); err != nil {
		return prepareReply{}, err
	}
	var reply prepareReply
	err = l.inSwap(ctx, func(conn *pgx.Conn) (err error) {
		if err := capture.Install(ctx, conn, l.rec.ID, l.filter()); err != nil {
			return err
		}
		if err := fence.Prepare(ctx, conn, nil); err != nil {
			return err
		}
		// One from an earlier try would hold WAL from then.
		if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
			return err
		}
		if _, err := capture.CreateSlot(ctx, conn, l.rec.ID); err != nil {
			return err
		}
		if reply, err = l.prepareHeirs(ctx, conn, r); err != nil {
			return err
		}
		reply.LockedOut, err = schema.LockedOut(ctx, conn, r.Users)
		return err
	})
	return reply, err
}

// fitEvery is how often a secondary that is waited for looks whether it follows.
const fitEvery = 20 * time.Millisecond

// awaitFit waits for a secondary that is only just connecting, as it is after a
// failover that ended a moment ago.
func (l *link) awaitFit(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		passing, err := l.fitToLead(ctx)
		if err == nil || !passing {
			return err
		}
		select {
		case <-time.After(fitEvery):
		case <-ctx.Done():
			return err
		case <-l.ctx.Done():
			return errHalted
		}
	}
}

// fitToLead tells whether this secondary may take over; passing says that what stands
// against it goes by itself.
func (l *link) fitToLead(ctx context.Context) (passing bool, err error) {
	s := l.informed(ctx)
	// One that is catching up is waited for, within the failover's time limit.
	if s.Role == role.Secondary && (s.State == Synchronized || s.State == CatchingUp && !l.isRepairing()) {
		return false, nil
	}
	return s.Role == role.Secondary && s.State == Disconnected, notFollowing(s,
		fmt.Sprintf("a planned failover needs the secondary to follow, and it is %s", s.State), "run the failover when it is synchronized")
}

func (l *link) unprepareToLead(ctx context.Context) error {
	release, err := l.readying.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	if side, err := l.ask(ctx, nil); err != nil || side.Role != role.Secondary {
		return err
	}
	defer l.swaps.end()
	return l.inSwap(ctx, func(conn *pgx.Conn) error {
		return errors.Join(capture.DropSlot(ctx, conn, l.rec.ID), l.discardHeirs(ctx))
	})
}

// handoff is the message that ends a term. Any user of the primary may write a
// logical message, so what counts is signed with the key of the DDL messages.
type handoff struct {
	Link      string                `json:"link"`
	Term      frame.Term            `json:"term"` // the new one
	Sequences []frame.SequenceValue `json:"sequences"`
	// For the database's other links: the instance that takes over, and the ids of
	// those that it will take up.
	To    string   `json:"to,omitempty"`
	Heirs []string `json:"heirs,omitempty"`
}

func (h handoff) name() role.Handoff { return role.Handoff{Link: h.Link, Term: h.Term} }

// sign puts a message's HMAC-SHA256, in hexadecimal, in front of it.
func sign(body, key []byte) []byte {
	return append(hex.AppendEncode(nil, digestOf(body, key)), body...)
}

// unsign returns the body of a message that key signed.
func unsign(content, key []byte) (body []byte, ok bool) {
	n := hex.EncodedLen(sha256.Size)
	if len(content) < n || len(key) == 0 {
		return nil, false
	}
	sum, err := hex.DecodeString(string(content[:n]))
	return content[n:], err == nil && hmac.Equal(sum, digestOf(content[n:], key))
}

func digestOf(body, key []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(handoffPrefix))
	h.Write(body)
	return h.Sum(nil)
}

const handoffPrefix = "hawser.handoff"

// hand writes the handoff behind everything that was committed here. It may be
// written twice, after a crash; the second one meets a side that has taken over.
func (l *link) hand(ctx context.Context, term frame.Term) error {
	return l.retry(ctx, "hand over", func(ctx context.Context) error {
		return l.inSwap(ctx, func(conn *pgx.Conn) error { return l.writeHandoff(ctx, conn, term) })
	})
}

func (l *link) writeHandoff(ctx context.Context, conn *pgx.Conn, term frame.Term) error {
	if err := l.sweepRest(ctx, conn); err != nil {
		return err
	}
	values, err := capture.Sequences(ctx, conn)
	if err != nil {
		return err
	}
	l.mu.Lock()
	accepted := l.accepted
	l.mu.Unlock()
	content, err := json.Marshal(handoff{Link: l.rec.ID, Term: term, Sequences: values, To: l.rec.Peer, Heirs: accepted})
	if err != nil {
		return err
	}
	key, err := capture.DDLKey(ctx, conn)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `SELECT pg_logical_emit_message(true, $1::text, $2::text)`, handoffPrefix, string(sign(content, key)))
	if err != nil {
		return fmt.Errorf("write the handoff: %w", err)
	}
	return nil
}

// accepts tells the applier whether a handoff counts: it is of this link, and of
// a term that is neither over nor refused; or of another link of the database.
func (l *link) accepts(content, key []byte, complete bool) bool {
	body, ok := unsign(content, key)
	if !ok {
		l.log.Warn("a handoff that the primary's agent did not write was passed over")
		return false
	}
	var h handoff
	if err := json.Unmarshal(body, &h); err != nil {
		return false
	}
	if h.Link != l.rec.ID {
		return l.stopsAt(h, complete)
	}
	side, _ := l.now()
	if side.Role != role.Secondary || h.Term <= side.Term || h.Term <= side.Floor {
		return false
	}
	if !complete {
		// DDL just before the failover left tables to be copied again. The primary
		// writes again as soon as it hears of it.
		l.log.Warn("a handoff is refused: tables are still to be copied")
		l.done.Go(func() {
			if _, err := l.refuse(l.ctx, h.Term); err == nil {
				l.meetPeer(l.ctx)
			}
		})
		return false
	}
	return true
}

// refuse promises that this side will not take over with term, unless it has.
func (l *link) refuse(ctx context.Context, term frame.Term) (role.State, error) {
	return l.ask(ctx, role.RefusalAsked{Term: term})
}

// askRefusal asks until the other side answers: until then it may have taken over.
func (l *link) askRefusal(ctx context.Context, term frame.Term) {
	defer l.obstruct(nil)
	for wait := NewBackoff(); ; {
		var theirs role.State
		err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callRefuse, refuseRequest{term}, &theirs)
		if err == nil {
			l.answer(ctx, role.PeerSeen{Peer: theirs}, nil)
			return
		}
		l.log.Warn("this side stays fenced until the other one answers whether it took over", "error", err)
		l.obstruct(l.unanswered(err))
		if !wait.Sleep(ctx) {
			return
		}
	}
}

// unanswered is why a side that handed over stays closed, and what opens one of the two.
func (l *link) unanswered(err error) *problem.Problem {
	p := problem.New("outcome-unknown", "link "+l.rec.Name,
		"instance "+l.rec.Peer+" has not answered whether it took over, so this side takes no writes", "hawser link show "+l.rec.Name).Because(err)
	if err != nil {
		why := problem.Of(err, "")
		p.Cause, p.Remedy, p.Place, p.Advice = p.Cause+": "+why.Cause, cmp.Or(why.Remedy, p.Remedy), why.Place, why.Advice
	}
	return p.Advise(joined(p.Advice, "bring instance "+l.rec.Peer+" back, and this side opens or follows by itself; "+
		"if the two can't reach each other: hawser link failover "+l.rec.Name+" --force on instance "+l.rec.Peer+" opens that one, unless it is open; "+
		"if that is gone for good: hawser link drop "+l.rec.Name+" --force on instance "+l.m.cfg.Instance+", which opens its database as it is"))
}
