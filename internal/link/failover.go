package link

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
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
			if err := l.notBeside(ctx); err != nil {
				return result, err
			}
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
	// A connection's deadline may pass a moment before the context's timer.
	over := func() bool { end, _ := within.Deadline(); return ctx.Err() == nil && !time.Now().Before(end) }
	if err := l.answering(within); err != nil && over() {
		return tooLate // which tells nothing of the server
	} else if err != nil {
		return err
	}
	l.awaitPromoted(within)
	side, err := l.askFailover(within)
	switch {
	case err != nil && over():
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
