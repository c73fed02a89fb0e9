package link

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// wayBackWithin bounds how long a forced failover waits for the slot by which the
// old primary could follow. A disaster is no time to wait: without the slot the
// old primary comes back by copying.
const wayBackWithin = 10 * time.Second

// force opens this side, the secondary, without the primary.
func (l *link) force(ctx context.Context) (FailoverResult, error) {
	if err := l.mayForce(); err != nil {
		return FailoverResult{}, err
	}
	run, err := l.begin()
	if err != nil {
		return FailoverResult{}, err
	}
	defer l.ended(run)
	if err := l.needless(ctx); err != nil {
		return FailoverResult{}, err
	}
	if err := l.notBeside(ctx); err != nil {
		return FailoverResult{}, err
	}
	last, side, err := l.decideAlone(ctx)
	if err != nil {
		return FailoverResult{}, err
	}
	if err := l.awaitOpen(l.ctx); err != nil {
		return FailoverResult{}, err
	}
	r := FailoverResult{
		Link: l.rec.Name, Forced: true, OldPrimary: l.rec.Peer, NewPrimary: l.m.cfg.Instance, Term: side.Term, At: time.Now(),
		Phases: run.phases, Total: time.Since(run.started).Seconds(), LastApplied: lastOf(last),
	}
	l.remember(r)
	return r, nil
}

// checkForce tells what force would refuse, as far as that can be seen without a change.
func (l *link) checkForce(ctx context.Context) error {
	if err := l.mayForce(); err != nil {
		return err
	}
	if err := l.needless(ctx); err != nil {
		return err
	}
	if err := l.notBeside(ctx); err != nil {
		return err
	}
	conn, err := l.connectOwn(ctx, "failover")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return l.fitToForce(ctx, conn)
}

// mayForce refuses to open by force what is no secondary.
func (l *link) mayForce() error {
	side, _ := l.now()
	if expelled(side) {
		l.mu.Lock()
		defer l.mu.Unlock()
		p := *l.diverged()
		p.Cause += "; it is no copy that could be opened by force"
		return p.Advise(joined(p.Advice, "if instance "+l.rec.Peer+" is gone for good: hawser link drop "+l.rec.Name+" --force, which opens this database as it is"))
	}
	if side.Phase == role.Handing || side.Phase == role.Aborting {
		return l.unanswered(nil)
	}
	if side.Role != role.Secondary {
		return problem.New("not-secondary", "link "+l.rec.Name,
			"this side is the primary; it is the secondary that can be opened without the other side", "hawser link failover "+l.rec.Name+" --force").At("instance " + l.rec.Peer)
	}
	return nil
}

// decideAlone makes this side the primary of a later term, ready to open, and returns the
// last transaction that it has of the old one.
func (l *link) decideAlone(ctx context.Context) (last catalog.Applied, side role.State, err error) {
	resume, err := l.rest(ctx)
	if err != nil {
		return last, side, err
	}
	defer resume()
	release, err := l.readying.take(ctx)
	if err != nil {
		return last, side, err
	}
	defer release()
	if side, err = l.mayLead(ctx); err != nil {
		return last, side, err
	}
	var asked role.ForceAsked
	err = l.inSwap(ctx, func(conn *pgx.Conn) (err error) { // which is kept, to open with
		if err = l.fitToForce(ctx, conn); err != nil {
			return err
		}
		if last, err = followed(ctx, conn, apply.Origin(l.rec.ID, side.Term), side.From); err != nil {
			return err
		}
		asked, err = l.getReady(ctx, conn, last)
		return err
	})
	if err == nil {
		err = l.notBeside(ctx) // once more: to get ready can take long
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return last, side, err
	}
	// From here on it happens, whether or not whoever asked still listens.
	if side, err = l.ask(l.ctx, asked); err == nil && !side.Forced {
		err = l.rolesChanged(side)
	}
	return last, side, err
}

// rest ends the applier and keeps it from beginning anew until resume is called.
func (l *link) rest(ctx context.Context) (resume func(), err error) {
	ends := false
	l.update(func() {
		if ends = l.leaving > 0; !ends {
			l.forcing = true
		}
	})
	if ends {
		return nil, busy(l.rec.Name)
	}
	release, err := l.turn.take(ctx)
	if err != nil {
		l.update(func() { l.forcing = false })
		return nil, err
	}
	return func() { release(); l.update(func() { l.forcing = false }) }, nil
}

// stillSecondary returns the role that this side has when all that happened to it so far is
// stored, a handoff that it applied just now too; it refuses to go on if that is another one.
func (l *link) stillSecondary(ctx context.Context) (role.State, error) {
	side, err := l.ask(ctx, nil)
	if err == nil && side.Role != role.Secondary {
		err = l.rolesChanged(side)
	}
	return side, err
}

// mayLead refuses to make a database the primary that would stay closed.
func (l *link) mayLead(ctx context.Context) (role.State, error) {
	side, err := l.stillSecondary(ctx)
	if err == nil {
		err = l.closedElsewhere()
	}
	return side, err
}

func (l *link) rolesChanged(side role.State) error {
	return problem.New("failover-not-now", "link "+l.rec.Name, "the roles changed meanwhile: this side is "+string(side.Role), "hawser link show "+l.rec.Name)
}

// needless refuses to leave behind a primary that could hand over: it answers, with its
// PostgreSQL, and this side follows it. Whatever is amiss with one of them goes through.
func (l *link) needless(ctx context.Context) error {
	if l.status().State != Synchronized || l.whole("") != nil || l.maySwap() != nil {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, otherSideWithin)
	defer cancel()
	var theirs Status
	err := l.m.call(within, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs)
	if err != nil || theirs.State != Synchronized || theirs.WALHeld == nil { // which its PostgreSQL tells
		return nil
	}
	return problem.New("primary-in-reach", "link "+l.rec.Name,
		"instance "+l.rec.Peer+", the primary, can be reached, and this side follows it: a planned failover loses nothing", "hawser link failover "+l.rec.Name).
		Advise("where that can't work: hawser link pause " + l.rec.Name + ", and the secondary of a paused link opens by force")
}

// fitToForce refuses to open a copy that never was a state of the primary.
func (l *link) fitToForce(ctx context.Context, conn *pgx.Conn) error {
	lacks, err := l.lacking(ctx, conn, namedTables)
	if err != nil || lacks == "" {
		return err
	}
	return problem.New(codeIncomplete, "link "+l.rec.Name,
		"the copy is not complete: opened now, the database would be in a state that the primary never had: "+lacks,
		"hawser link drop "+l.rec.Name+" --force").Advise("it keeps what is there as an independent database")
}

// getReady prepares the opening: the fence's triggers, the sequences, and the way
// back for the old primary, if there is to be one.
func (l *link) getReady(ctx context.Context, conn *pgx.Conn, last catalog.Applied) (asked role.ForceAsked, err error) {
	asked.Since, asked.Last = last.End, role.Last{XID: last.XID, Commit: last.Commit}
	if last.Known {
		asked.Last.Reached = last.Reached
	}
	l.timed("prepare", func() {
		if err = fence.Prepare(ctx, conn, nil); err == nil {
			err = apply.AdvanceSequences(ctx, conn)
		}
	})
	if err != nil || !l.filter().All() { // the old primary of a partial link can't follow
		return asked, err
	}
	if l.unproven() {
		// Of what the old primary wrote, the positions tell nothing.
		asked.Since, asked.Last = 0, role.Last{}
		return asked, nil
	}
	l.timed("way back", func() {
		if slot := l.makeWayBack(ctx, conn); slot != nil {
			l.log.Warn("the old primary will not be able to follow without copying again", "error", slot)
			return
		}
		asked.Position, err = insertPosition(ctx, conn)
	})
	return asked, err
}

// unproven tells that this side stands since the primary lost what it has, or was never
// found to be equal.
func (l *link) unproven() bool {
	return l.standsFor("primary-restored") || l.standsFor(codeNotCompared)
}

// followed is how far this side has applied in a term that began at from. The origin's
// position is recorded when it first follows, which the primary may not have lived to see.
func followed(ctx context.Context, conn *pgx.Conn, origin string, from frame.LSN) (catalog.Applied, error) {
	p, known, err := catalog.Position(ctx, conn, origin)
	if err == nil && !known {
		p = catalog.Applied{End: from}
	}
	return p, err
}

func lastOf(p catalog.Applied) *LastApplied {
	if p.Commit == 0 {
		return &LastApplied{Position: p.End}
	}
	last := &LastApplied{Transaction: p.XID, Position: p.Commit}
	if !p.At.IsZero() {
		last.Time = &p.At
	}
	return last
}

func insertPosition(ctx context.Context, conn *pgx.Conn) (frame.LSN, error) {
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
		return 0, fmt.Errorf("read the position of the new term: %w", err)
	}
	return frame.ParseLSN(text)
}

func (l *link) makeWayBack(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, wayBackWithin)
	defer cancel()
	findings, err := capture.Check(ctx, l.m.cfg.Server, l.rec.Database, filter.Filter{})
	if err != nil {
		return err
	}
	if err := findings.Err(); err != nil {
		return err
	}
	// A session of its own: one that waits for the slot is cancelled with it.
	slot, err := l.connect(ctx, "slot")
	if err != nil {
		return err
	}
	defer slot.Close(context.WithoutCancel(ctx))
	if err := capture.Install(ctx, conn, l.rec.ID, l.filter()); err != nil {
		return err
	}
	if err := capture.DropSlot(ctx, slot, l.rec.ID); err != nil {
		return err
	}
	_, err = capture.CreateSlot(ctx, slot, l.rec.ID)
	return err
}

// awaitOpen waits until this side takes writes.
func (l *link) awaitOpen(ctx context.Context) error {
	return l.until(ctx, func() bool { return l.side.Role == role.Primary && l.side.Phase == role.Steady })
}
