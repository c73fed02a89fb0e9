package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/peer"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// framesAhead is how many frames may wait between the network and the applier;
// with capture's batches that is a few MiB.
const framesAhead = 4

// follow runs while the agent does: whenever this side is a secondary that should
// run, it seeds and applies; after an error it waits a little and begins again.
func (l *link) follow() {
	wait := NewBackoff()
	for l.ctx.Err() == nil {
		l.mu.Lock()
		run, changed := l.shouldRun(), l.changed
		l.mu.Unlock()
		if !run {
			select {
			case <-changed:
			case <-l.ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := l.followOnce(changed)
		if l.ctx.Err() != nil {
			return
		}
		if err != nil {
			l.stopped(err)
		}
		if err == nil || time.Since(began) > 10*time.Second {
			wait = NewBackoff()
		}
		if err != nil && !wait.Sleep(l.ctx) {
			return
		}
	}
}

// shouldRun reports whether this side is a secondary that should run. One that waits for
// an heir takes in nothing that would have to be granted. The caller holds mu.
func (l *link) shouldRun() bool {
	return l.side.Role == role.Secondary && !l.paused && !l.forcing && l.suspended == nil && l.progress == catalog.Running &&
		(l.side.Phase == role.Waiting || l.mayFlow() == nil)
}

// stopped sorts an error: what passes by itself is the cause of a disconnected
// link, all else suspends it.
func (l *link) stopped(err error) {
	if p, ok := problem.As(err); ok && p.Code == apply.CodeUserPath {
		l.userPath.Store(true)
	}
	if p, ok := problem.As(err); ok && !p.Retryable {
		if l.notThere(err) {
			p = l.gone()
		} else if l.forgot() { // which is why it lacks what it was refused for
			p = l.forgotten()
		}
		why := *p
		if p.Err != nil { // it is stored as JSON, which has no place for an error
			why.Cause, why.Err = p.Cause+": "+p.Err.Error(), nil
		}
		l.log.Error("the link stopped", "error", err)
		l.suspend(&why)
		return
	}
	l.trouble("the link stopped and will go on", err)
	l.update(func() { l.cause = l.away(withReason(problem.Of(err, "disconnected"))) })
}

// withReason puts into the cause what the system or PostgreSQL says of what it lacks: a
// state that is shown has no place for the error underneath.
func withReason(p *problem.Problem) *problem.Problem {
	var path *fs.PathError
	var pg *pgconn.PgError
	switch {
	case errors.As(p.Err, &path):
	case errors.As(p.Err, &pg) && strings.Contains(p.Cause, pg.Message): // it has it
		return p
	case errors.As(p.Err, &pg) && (strings.HasPrefix(pg.Code, "53") || strings.HasPrefix(pg.Code, "58")):
	default:
		return p
	}
	why := *p
	why.Cause, why.Err = p.Cause+": ", nil
	if path != nil {
		why.Cause += path.Error()
	} else {
		why.Cause += pg.Message
	}
	return &why
}

// away words what the other agent says as it stops: here nothing is being stopped.
func (l *link) away(p *problem.Problem) *problem.Problem {
	if !errors.Is(p, errHalted) && p.Code != codeStopped {
		return p
	}
	return agentStopped(l.rec.Peer)
}

const codeStopped = "peer-stopped"

// agentStopped is what a stream ends with when the other side's agent stops.
func agentStopped(instance string) *problem.Problem {
	return problem.New(codeStopped, "peer "+instance, "the agent of instance "+instance+" was stopped",
		"").Advise("start it, if nothing else does: the link goes on by itself").Retry()
}

// followOnce follows until something that decides about it changes, or fails. A
// change that merely ends it is no error.
func (l *link) followOnce(changed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			l.mu.Lock()
			changed = l.changed
			run := l.shouldRun()
			l.mu.Unlock()
			if !run {
				cancel()
				return
			}
		}
	}()
	err := error(nil)
	if side, _ := l.now(); side.Phase == role.Waiting {
		err = l.await(ctx, side)
	} else {
		err = l.replicate(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (l *link) replicate(ctx context.Context) error {
	select {
	case <-l.m.cfg.Peers.Connected(l.rec.Peer):
	case <-ctx.Done():
		return ctx.Err()
	}
	theirs, err := l.exchange(ctx)
	if err != nil {
		return err
	}
	side, _ := l.now()
	if side.Role != role.Secondary {
		return nil
	}
	if p := l.backInTime(side, theirs); p != nil {
		return p
	}
	l.exchangeOutcomes(ctx)
	l.learnMaxWAL(ctx)
	conn, err := l.connect(ctx, "setup")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.recall(ctx, conn); err != nil {
		return err
	}
	if err := l.settleSecondary(ctx, conn, side, theirs.Next > 0); err != nil {
		return err
	}
	repairs, err := catalog.Repairs(ctx, conn, l.rec.ID)
	if err != nil {
		return err
	}
	state, copied, err := catalog.LoadSeeding(ctx, conn, l.rec.ID)
	if err != nil {
		return err
	}
	if !copied {
		state.Done = true // this side began as the primary
	}
	if !state.Done && !state.Restored {
		if err := l.restoreSchema(ctx, conn); err != nil {
			return err
		}
	}
	if err := l.adoptIdentities(ctx, conn); err != nil {
		return err
	}
	_ = conn.Close(ctx)
	l.update(func() { l.seeded, l.repairing = state.Done, len(repairs) > 0 })
	return l.stream(ctx, side, !state.Done)
}

// exchange tells the other side our state and takes in theirs.
func (l *link) exchange(ctx context.Context) (theirs role.State, err error) {
	if theirs, err = l.meet(ctx); err != nil {
		return theirs, err
	}
	_, err = l.ask(ctx, role.PeerSeen{Peer: theirs})
	return theirs, err
}

// backInTime is what this side, a secondary, can't follow: one of the two was put back to
// an earlier state, and knows nothing of the failovers since. What it has is of a past that
// no position of this term tells of.
func (l *link) backInTime(ours, theirs role.State) error {
	switch {
	case theirs.Role == role.Primary && theirs.Term > ours.Term:
		return problem.New("replica-restored", "link "+l.rec.Name,
			fmt.Sprintf("this side is in term %d and its primary, instance %s, in term %d: PostgreSQL was put back here to a state from before a failover", ours.Term, l.rec.Peer, theirs.Term),
			"hawser link drop "+l.rec.Name+" --remove-replica").Advise("then make the link again; a database that Hawser did not create is yours to drop; or put PostgreSQL back to a later state")
	case theirs.Role == role.Secondary:
		last := l.m.cfg.Instance
		if theirs.Term > ours.Term {
			last = l.rec.Peer
		}
		return problem.New("no-primary", "link "+l.rec.Name,
			fmt.Sprintf("both sides are secondaries, in term %d here and %d on instance %s: PostgreSQL of the one that was the primary was put back to a state from before it took over", ours.Term, theirs.Term, l.rec.Peer),
			"hawser link failover "+l.rec.Name+" --force").Advise("it opens the side that has the later state; or put PostgreSQL of the other one back to a later state").At("instance " + last).Retry()
	}
	return nil
}

// settleSecondary brings the database to where a secondary of this term is: the
// origin begins where the other side's term does, and the slot by which the other
// side followed us is gone, so that it holds no WAL. While the other side is about to
// hand over, the slot is the one by which it will follow.
func (l *link) settleSecondary(ctx context.Context, conn *pgx.Conn, side role.State, handing bool) error {
	if err := l.noteUntold(ctx, conn, side); err != nil {
		return err
	}
	if err := l.beginTerm(ctx, conn, side); err != nil {
		return err
	}
	origin := apply.Origin(l.rec.ID, side.Term)
	if err := apply.DropOrigins(ctx, conn, l.rec.ID, origin); err != nil {
		return err
	}
	if err := catalog.ForgetPositions(ctx, conn, apply.OriginPrefix(l.rec.ID), origin); err != nil {
		return err
	}
	if handing {
		return nil
	}
	return errors.Join(capture.DropSlot(ctx, conn, l.rec.ID), l.discardHeirs(ctx))
}

// beginTerm has this side follow from where the term began. What it left unfinished as the
// primary goes once: what is unfinished later, somebody is making here.
func (l *link) beginTerm(ctx context.Context, conn *pgx.Conn, side role.State) error {
	if err := fence.Quiet(ctx, conn); err != nil {
		return err
	}
	return apply.BeginAt(ctx, conn, apply.Origin(l.rec.ID, side.Term), side.From, schema.DropInvalidIndexes)
}

// codeUntold is of what changed as this side handed over, and is told to nobody.
const codeUntold = "changed-behind-handoff"

func isUntold(p *problem.Problem) bool { return p.Code == codeUntold }

// noteUntold names what sessions of other databases, which no fence keeps out, changed
// behind the handoff. It looks once, before anything of the new primary comes, and stores
// what it found until a comparison finds both sides equal, or this side leads again.
func (l *link) noteUntold(ctx context.Context, conn *pgx.Conn, side role.State) error {
	if !side.Handed {
		return nil
	}
	_, followed, err := catalog.Position(ctx, conn, apply.Origin(l.rec.ID, side.Term))
	if err != nil || followed {
		return err
	}
	changes, err := capture.Untold(ctx, conn)
	if err != nil || len(changes) == 0 {
		return err
	}
	p := problem.Warn(codeUntold, "database "+l.rec.Database,
		"these changed as it was handed over, in sessions of other databases, and the new primary was not told of them: "+strings.Join(changes[:min(len(changes), maxStates)], "; "),
		"").Advise("set them there as they are to be, and they are carried").At("instance " + l.rec.Peer)
	l.log.Warn("note", "note", p.Error())
	return l.setHoles(ctx, append(l.holesBut(isUntold), p))
}

// restoreSchema makes the objects that rows need, and records what is left to
// do, in one transaction: after a crash there is either all of it or nothing.
func (l *link) restoreSchema(ctx context.Context, conn *pgx.Conn) error {
	l.log.Info("restoring the schema")
	reply, err := l.fetchSchema(ctx)
	if err != nil {
		return err
	}
	identities, err := l.theirIdentities(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		created, notes, err := schema.RestoreRoles(ctx, tx, reply.Dump.Roles)
		if err != nil {
			return err
		}
		l.note(schema.Result{Roles: created, Notes: notes})
		var now []schema.Entry
		var later []catalog.SchemaEntry
		for _, e := range reply.Dump.Entries {
			if e.Phase == schema.PhasePre || e.Phase == schema.PhaseTable && slices.Contains(reply.Bare, e.Table) {
				now = append(now, e)
				continue
			}
			data, err := json.Marshal(e)
			if err != nil {
				return err
			}
			later = append(later, catalog.SchemaEntry{ID: e.ID, Phase: string(e.When()), Table: e.Table, Entry: data})
		}
		if err := schema.Apply(ctx, tx, now); err != nil {
			return err
		}
		if err := catalog.PutSchemaEntries(ctx, tx, l.rec.ID, later); err != nil {
			return err
		}
		for _, t := range reply.Tables {
			if err := catalog.PutSeedTable(ctx, tx, l.rec.ID, t); err != nil {
				return err
			}
		}
		if err := prepareAll(ctx, tx); err != nil {
			return err
		}
		if err := catalog.SetRestored(ctx, tx, l.rec.ID, reply.Snapshot); err != nil {
			return err
		}
		return capture.AdoptReplicaIdentity(ctx, tx, identities)
	})
}

// stream applies the primary's changes, and copies tables beside it while there
// are any to copy.
func (l *link) stream(ctx context.Context, side role.State, seeding bool) error {
	key, err := l.fetchDDLKey(ctx)
	if err != nil {
		return err
	}
	a := l.newApplier(side, key)
	from, err := a.Start(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	l.update(func() { l.applier = a; l.startFrom(side.Term, from) })
	defer l.glances.end()
	defer l.update(func() { l.applier, l.seeder, l.streaming = nil, nil, false })

	s, err := l.m.cfg.Peers.Open(ctx, l.rec.Peer, l.rec.Name, streamChanges)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Send(frame.Start{Term: side.Term, Position: from}); err != nil {
		return err
	}
	l.log.Info("following", "primary", l.rec.Peer, "from", from, "term", side.Term)

	g, gctx := errgroup.WithContext(ctx)
	frames := make(chan frame.Frame, framesAhead)
	acks := newLatest[frame.Ack]()
	var over *apply.Handoff
	g.Go(func() error { return l.receive(gctx, s, frames) })
	g.Go(func() error { return sendAcks(gctx, s, acks) })
	g.Go(func() error { <-gctx.Done(); return s.Close() })
	g.Go(func() error {
		h, err := a.Apply(gctx, frames, func(k frame.Ack) { l.acknowledged(k); acks.put(k) })
		if err != nil {
			return err
		}
		over = h
		return errHandedOver
	})
	if seeding {
		g.Go(func() error { return l.seed(gctx, a) })
	}
	if l.isRepairing() {
		g.Go(func() error { return l.repair(gctx, a) })
	}
	err = g.Wait()
	switch {
	case errors.Is(err, errHandedOver):
		return l.takeOver(ctx, over, key)
	case errors.Is(err, apply.ErrTablesFirst):
		_ = s.Close()
		a.Close()
		return l.tablesFirst(ctx, side, key)
	case errors.Is(err, apply.ErrReseed):
		return nil
	}
	return err
}

var errHandedOver = errors.New("the primary handed over")

// spoolDir is where transactions that do not fit into memory are kept.
func (l *link) spoolDir() string { return filepath.Join(l.m.cfg.StateDir, "spool", l.rec.ID) }

func (l *link) newApplier(side role.State, key []byte) *apply.Applier {
	return apply.New(apply.Config{
		Link: l.rec.Name, ID: l.rec.ID, Origin: apply.Origin(l.rec.ID, side.Term),
		Connect:  l.connectApplier,
		UserPath: l.userPath.Load(),
		Hold:     l.m.share(),
		SpoolDir: l.spoolDir(),
		Replayer: newReplayer(l, key),
		MakeWay:  l.makeWay,
		Copied:   func(ctx context.Context, tx pgx.Tx) error { return schema.Harden(ctx, tx) },
		Accept:   func(content []byte, complete bool) bool { return l.accepts(content, key, complete) },
	})
}

// connectApplier opens the session that applies.
func (l *link) connectApplier(ctx context.Context) (*pgx.Conn, error) {
	settings := postgres.ValueSettings()
	maps.Copy(settings, apply.Settings())
	return l.m.openValues(ctx, postgres.Session{Database: l.rec.Database, Purpose: l.rec.Name + ":apply", Settings: settings, Ahead: l.m.share()})
}

// receive passes frames from the network to the applier.
func (l *link) receive(ctx context.Context, s peer.Stream, frames chan<- frame.Frame) error {
	// What was heard in an earlier stream tells nothing about this one.
	l.update(func() {
		l.streaming, l.cause, l.heardAt, l.readAt, l.busySince = true, nil, time.Time{}, time.Now(), time.Time{}
	})
	var clock ages
	for {
		asked := time.Now()
		f, err := s.Recv()
		if err != nil {
			return lostStream(err)
		}
		l.mu.Lock()
		l.readAt = time.Now()
		l.arrived = max(l.arrived, arrivedUpTo(f))
		if h, ok := f.(frame.Heartbeat); ok && h.Snapshot != "" {
			l.heard, l.heardAt = h, clock.sent(h.At, l.readAt, l.readAt.Sub(asked))
		}
		l.mu.Unlock()
		if err := l.pass(ctx, f, frames); err != nil {
			return err
		}
	}
}

// ages tells when heartbeats were sent, by this side's clock: one that waited on the way
// while nobody read tells of the past. The clocks of the two sides may differ.
type ages struct {
	first  time.Time     // when the first one was read: this side's clock may be set since
	last   time.Time     // when the last one was sent
	differ time.Duration // of the clocks, and what the quickest heartbeat took
}

// fresh is how long the reader must have waited for a frame to know that it was not
// the frame that waited.
const fresh = 100 * time.Millisecond

func (c *ages) sent(at, read time.Time, waited time.Duration) time.Time {
	began := c.first.IsZero()
	if began {
		c.first = read
	}
	// At has no monotonic clock. Heartbeats come in the order in which they were sent, so
	// one that is older than the last shows that the other clock was put back.
	d := c.first.Round(0).Add(read.Sub(c.first)).Sub(at)
	if began || waited >= fresh || d < c.differ || at.Before(c.last) {
		c.differ = d
	}
	c.last = at
	return read.Add(c.differ - d)
}

// pass hands a frame to the applier, and notes while that has no room: the primary may
// speak then without being heard.
func (l *link) pass(ctx context.Context, f frame.Frame, frames chan<- frame.Frame) error {
	select {
	case frames <- f:
		return nil
	default:
	}
	l.setBusySince(time.Now())
	select {
	case frames <- f:
		l.setBusySince(time.Time{})
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *link) setBusySince(since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busySince, l.readAt = since, time.Now()
}

// startFrom sets the positions that are shown to those of a stream that begins. The
// caller holds mu.
func (l *link) startFrom(term frame.Term, from frame.LSN) {
	if l.ackTerm != term {
		l.ackTerm, l.arrived = term, 0 // another primary's WAL
		l.ack = frame.Ack{Received: from, Visible: from, Durable: from}
	}
	l.arrived = max(l.arrived, from)
}

// arrivedUpTo is how far in the primary's WAL a frame tells of.
func arrivedUpTo(f frame.Frame) frame.LSN {
	switch f := f.(type) {
	case frame.Data:
		if n := len(f.Records); n > 0 {
			return f.Records[n-1].LSN
		}
	case frame.Heartbeat:
		return f.End
	}
	return 0
}

func lostStream(err error) error {
	if _, ok := problem.As(err); ok {
		return err
	}
	return problem.New("stream-lost", "", "the stream from the primary broke: its agent or the network went away", "").Advise("the link connects again by itself").Retry().Because(err)
}

func (l *link) acknowledged(k frame.Ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ack, l.arrived = k, max(l.arrived, k.Received)
}

func sendAcks(ctx context.Context, s peer.Stream, acks *latest[frame.Ack]) error {
	for {
		k, err := acks.take(ctx)
		if err != nil {
			return err
		}
		if err := s.Send(k); errors.Is(err, io.EOF) {
			return nil // receive learns why
		} else if err != nil {
			return lostStream(err)
		}
	}
}

// latest holds the newest of the values put into it.
type latest[T any] struct{ c chan T }

func newLatest[T any]() *latest[T] { return &latest[T]{make(chan T, 1)} }

// put is for one goroutine.
func (v *latest[T]) put(x T) {
	select {
	case <-v.c:
	default:
	}
	v.c <- x
}

func (v *latest[T]) take(ctx context.Context) (x T, err error) {
	select {
	case x = <-v.c:
		return x, nil
	case <-ctx.Done():
		return x, ctx.Err()
	}
}

// takeOver makes this side primary after a handoff: the sequences go where the
// old primary's were, and then the role decides.
func (l *link) takeOver(ctx context.Context, over *apply.Handoff, key []byte) error {
	body, _ := unsign(over.Content, key)
	var h handoff
	if err := json.Unmarshal(body, &h); err != nil {
		return fmt.Errorf("read the handoff: %w", err)
	}
	if h.Link != l.rec.ID {
		return l.standAt(ctx, h)
	}
	var unfit []unfitSequence
	var position frame.LSN
	err := l.inSwap(ctx, func(conn *pgx.Conn) (err error) {
		if unfit, err = unfitOf(ctx, conn, h.Sequences); err != nil || len(unfit) > 0 {
			return err
		}
		if _, err := apply.SetSequences(ctx, conn, h.Sequences); err != nil {
			return err
		}
		position, err = insertPosition(ctx, conn)
		return err
	})
	if err != nil {
		return err
	}
	if len(unfit) > 0 {
		return l.refuseHandoff(ctx, h.Term, unfit[0])
	}
	release, err := l.readying.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	_, err = l.ask(ctx, role.HandoffApplied{Term: h.Term, Position: position})
	return err
}

// refuseHandoff gives a handoff back for a sequence that went away since the failover
// was prepared. The primary writes again as soon as it hears of it.
func (l *link) refuseHandoff(ctx context.Context, term frame.Term, s unfitSequence) error {
	if _, err := l.refuse(ctx, term); err != nil {
		return err
	}
	l.meetPeer(ctx)
	return problem.New("sequence-missing", "sequence "+postgres.QuoteIdent(s.Schema, s.Name),
		"it is not here as the primary has it, so the handoff was refused", "hawser link failover "+l.rec.Name).Advise("it tells how to mend it").Retry()
}
