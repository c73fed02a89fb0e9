package link

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// DropOptions say what is to be left.
type DropOptions struct {
	RemoveReplica bool
	Force         bool // drop this side though the other can't be reached, or the replica is not complete
}

// Drop ends a link on both sides. A replica that is kept becomes an independent
// database that takes writes. It returns what stays that a person has to know of.
func (m *Manager) Drop(ctx context.Context, name string, o DropOptions) (problem.Findings, error) {
	l, err := m.find(name)
	if err != nil {
		return nil, err
	}
	release, err := m.claim(name)
	if err != nil {
		return nil, err
	}
	defer release()
	stay, err := l.leave(ctx, o.Force)
	if err != nil {
		return nil, err
	}
	defer stay()
	side, _ := l.now()
	request := dropRequest{RemoveReplica: o.RemoveReplica, Force: o.Force, ID: l.rec.ID}
	found, err := l.leaves(ctx, request)
	if err != nil {
		return nil, err
	}
	if side.Phase == role.Waiting {
		// It may have taken the link up. If it can't be told, its half is dropped there.
		if err := m.call(ctx, side.Heir, name, callDrop, dropRequest{ID: l.rec.ID}, nil); err != nil {
			l.log.Warn("the instance that takes the database over could not be told", "instance", side.Heir, "error", err)
		}
	}
	var reply dropReply
	err = m.call(ctx, l.rec.Peer, name, callDrop, request, &reply)
	p, ok := problem.As(err)
	switch {
	case err == nil || ok && p.Code == "link-not-found":
	case ok && (p.Code == codeIncomplete || slices.Contains([]string{codeSwapping, codeRejoining, codeBusy}, p.Code) && !o.Force): // it was told, and refuses
		return nil, err
	case !o.Force:
		return nil, problem.New("peer-not-told", "link "+name, "the other side could not be told, and would keep its half of the link",
			"hawser link drop "+name+" --force").Advise("or try again when it is connected; with --force the same has to be run on instance " + l.rec.Peer + ", too").Because(err)
	default:
		there := problem.Warn("peer-not-told", "instance "+l.rec.Peer, "it could not be told, and keeps its half of the link: slot, publication, triggers, replica identities and schema hawser",
			"hawser link drop "+name+" --force").At("instance " + l.rec.Peer)
		if o.RemoveReplica && side.Role == role.Primary { // the replica is there
			there.Remedy += " --remove-replica"
		}
		found = append(found, there)
	}
	left, err := m.dropSide(ctx, l, o.RemoveReplica)
	return append(append(found, reply.Left.On(l.rec.Peer)...), left...), err
}

// dropAsked is the other side's wish. A replica goes only for a peer that may still fill
// it, or that never did.
func (l *link) dropAsked(ctx context.Context, r dropRequest) (reply dropReply, err error) {
	if r.ID != "" && r.ID != l.rec.ID { // an earlier one of this name
		return reply, notFound(l.rec.Name)
	}
	l.mu.Lock()
	creating := l.progress == catalog.Creating
	l.mu.Unlock()
	if creating {
		release, err := l.m.claim(l.rec.Name) // not under the hands of who makes it
		if err != nil {
			return reply, err
		}
		defer release()
	}
	if r.RemoveReplica && !creating {
		if err := l.permits(flows); err != nil {
			return reply, err
		}
	}
	stay, err := l.leave(ctx, false)
	if err != nil {
		return reply, err
	}
	defer stay()
	found, err := l.leaves(ctx, r)
	if err != nil {
		return reply, err
	}
	left, err := l.m.dropSide(ctx, l, r.RemoveReplica)
	return dropReply{append(found, left...)}, err
}

// leave is the first step of a link's end: from then on no change of roles and no rejoin
// begins on this side, and it is refused while one is under way. A failover that began
// behind the look at it could leave both sides writable, and neither told; a rejoin takes
// rows away that nobody would bring back. stay ends it where the link stays.
func (l *link) leave(ctx context.Context, force bool) (stay func(), err error) {
	within, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	side, err := l.ask(within, nil) // all that happened so far is stored
	switch {
	case errors.Is(err, errHalted):
		side, _ = l.now()
	case err != nil && ctx.Err() == nil:
		return nil, l.unstored(err)
	case err != nil:
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case (side.Swapping() || l.running != nil) && !force:
		return nil, l.swapping()
	case l.rejoining:
		return nil, l.rejoinRuns()
	}
	l.leaving++
	return func() { l.update(func() { l.leaving-- }) }, nil
}

// unstored is told where the role that this side has is not stored in time.
func (l *link) unstored(err error) error {
	if why := l.obstacle(); why != nil {
		return why
	}
	return problem.New(codeBusy, "link "+l.rec.Name, "it is not known in time which role this side has", "hawser link show "+l.rec.Name).Advise("wait a moment").Retry().Because(err)
}

// codeSwapping is of what can't be done while a failover is under way.
const codeSwapping = "failover-running"

// swapping refuses to end a link while it is not known which side has all: both would open.
func (l *link) swapping() *problem.Problem {
	return problem.New(codeSwapping, "link "+l.rec.Name, "a failover is under way, and both sides could be left writable",
		"hawser link show "+l.rec.Name).Advise("wait for it; if the other side is gone for good: hawser link drop " + l.rec.Name + " --force")
}

// finishSoon has finishDrop run, once for a link.
func (m *Manager) finishSoon(l *link) {
	if !l.finishing.Swap(true) {
		m.work.Go(func() { m.finishDrop(l) })
	}
}

// finishDrop removes a link whose making or removal did not end. Of one that was being
// made the other side is told until it has heard of it: it would wait for ever. Where a
// replica was to go the other side is told as well. In any other case it knows, or follows
// another primary, or has only asked this side to lead it: what it has stays.
func (m *Manager) finishDrop(l *link) {
	side, _ := l.now()
	making := l.rec.Progress == catalog.Creating && side.After == 0 // not taken up
	remove := making || l.rec.Progress == catalog.Removing
	steps := []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := m.dismantle(ctx, l, remove)
			return err
		},
		func(ctx context.Context) error {
			if !remove {
				return nil
			}
			if err := l.disown(ctx); making {
				return err
			}
			return nil
		},
		func(ctx context.Context) error { return m.erase(ctx, l) },
	}
	for _, step := range steps {
		for wait := NewBackoff(); ; {
			err := step(m.ctx)
			l.obstruct(err)
			if err == nil {
				break
			}
			l.log.Warn("can't remove the link yet", "error", err)
			if !wait.Sleep(m.ctx) {
				return
			}
		}
	}
}

// disown has the other side remove its half of this very link, and a replica with it.
func (l *link) disown(ctx context.Context) error {
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callDrop, dropRequest{RemoveReplica: true, Force: true, ID: l.rec.ID}, nil)
	if p, ok := problem.As(err); ok && (p.Code == "link-not-found" || p.Code == "peer-not-found") {
		return nil
	}
	return err
}

// seeMade removes a link that was being made for the other side, which does not know it
// any more: its agent, or the way to it, went away before the link stood.
func (l *link) seeMade(ctx context.Context) error {
	release, err := l.m.claim(l.rec.Name)
	if err != nil {
		return nil // it is being made
	}
	defer release()
	var theirs Status
	err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs)
	if p, ok := problem.As(err); ok && p.Code == "link-not-found" || err == nil && theirs.ID != l.rec.ID {
		l.log.Warn("the other side does not make this link any more: removing it")
		l.m.finishSoon(l)
		return nil
	}
	return err
}

// dropSide removes this side, and returns what of it could not be.
func (m *Manager) dropSide(ctx context.Context, l *link, removeReplica bool) (problem.Findings, error) {
	left, err := m.dismantle(ctx, l, removeReplica)
	if err != nil {
		return nil, err // the link stays, as dropping; running the command again goes on
	}
	return left, m.erase(ctx, l)
}

// endSide removes this side where no person waits for that: what fails goes on by itself.
func (m *Manager) endSide(ctx context.Context, l *link) error {
	_, err := m.dropSide(ctx, l, false)
	if err != nil && !l.stays() {
		m.finishSoon(l)
	}
	return err
}

// dismantle removes everything but the record: first that says so, then the goroutines
// end, then everything in the database goes.
func (m *Manager) dismantle(ctx context.Context, l *link, removeReplica bool) (left problem.Findings, err error) {
	l.dropping.Lock()
	defer l.dropping.Unlock()
	defer func() { l.obstruct(err) }()
	if !m.has(l) { // somebody else was quicker, and there may be another one of the name
		if m.holds("", l.rec.ID) != nil { // it follows another primary, or began anew with this one
			err = busy(l.rec.Name)
		}
		return nil, err
	}
	progress := catalog.Dropping
	if removeReplica {
		progress = catalog.Removing
	}
	err = m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.SetProgress(ctx, conn, l.rec.Name, progress) })
	if p, ok := problem.As(err); ok && p.Code == "link-not-found" {
		err = nil // the answer to its removal was lost
	}
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	made, owns := l.progress != catalog.Creating, l.ownsDB
	l.mu.Unlock()
	l.update(func() { l.progress = progress })
	l.halt()
	side, _ := l.now()
	if err = l.locate(ctx); err == nil {
		err = l.discardHeirs(ctx)
	}
	if err == nil && side.Role == role.Secondary {
		err = schema.DropUnfinished(ctx, m.cfg.Server, l.rec.ID)
	}
	switch {
	case err != nil:
	case side.Role == role.Secondary && owns && removeReplica:
		err = m.dropReplica(ctx, l)
	default:
		left, err = m.cleanDatabase(ctx, l, made)
	}
	if p, ok := problem.As(err); ok && p.Code == "no-such-database" {
		err = nil
	}
	for _, p := range left {
		l.log.Warn("this is left of the link", "object", p.Object, "cause", p.Cause, "remedy", p.Remedy)
	}
	return left, err
}

// erase removes the record, the last of a link.
func (m *Manager) erase(ctx context.Context, l *link) error {
	l.dropping.Lock()
	defer l.dropping.Unlock()
	if !m.has(l) {
		return nil
	}
	if err := m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.DeleteLink(ctx, conn, l.rec.Name) }); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.links, l.rec.Name)
	m.mu.Unlock()
	if err := os.RemoveAll(l.spoolDir()); err != nil {
		l.log.Warn("what the link kept on disk could not be removed", "error", err)
	}
	l.log.Info("dropped")
	return nil
}

// has tells that the link is the one of its name.
func (m *Manager) has(l *link) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.links[l.rec.Name] == l
}

func (m *Manager) dropReplica(ctx context.Context, l *link) error {
	err := m.store.Do(ctx, func(conn *pgx.Conn) error {
		if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
			return err
		}
		return dropOrigins(ctx, conn, l)
	})
	if err != nil {
		return err
	}
	return schema.DropDatabase(ctx, m.cfg.Server, l.database())
}

// cleanDatabase takes everything of the link out of a database that stays. made tells that
// the link stood once.
func (m *Manager) cleanDatabase(ctx context.Context, l *link, made bool) (left problem.Findings, err error) {
	conn, err := l.connectOwn(ctx, "drop")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
		return nil, err
	}
	if err := dropOrigins(ctx, conn, l); err != nil {
		return nil, err
	}
	installed, err := catalog.Installed(ctx, conn)
	if err != nil {
		return nil, err
	}
	if !installed && made { // somebody dropped schema hawser, and left the rest
		left, err = l.reclaim(ctx, conn)
	}
	if err != nil || !installed && !made {
		return nil, err
	}
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		return nil, err
	}
	back, err := l.endTaken(ctx)
	if err != nil {
		return nil, err
	}
	return append(left, back...), l.cleanSchema(ctx, conn)
}

// cleanSchema takes the link out of schema hawser, and with the last one all of that.
func (l *link) cleanSchema(ctx context.Context, conn *pgx.Conn) error {
	others, err := catalog.Leave(ctx, conn, l.rec.ID)
	if err != nil {
		return err
	}
	if err := capture.Uninstall(ctx, conn, l.rec.ID, others == 0); err != nil {
		return err
	}
	if side, _ := l.now(); side.Role == role.Secondary { // before anybody else can write
		if err := apply.AdvanceSequences(ctx, conn); err != nil {
			return err
		}
		if err := harden(ctx, conn); err != nil {
			return err
		}
	}
	if _, err := l.unfence(ctx, conn); err != nil || others > 0 {
		return err
	}
	if err := fence.Remove(ctx, conn); err != nil {
		return err
	}
	if err := apply.DropRowIndexes(ctx, conn); err != nil {
		return err
	}
	return catalog.DropSchema(ctx, conn)
}

// unfence opens a database that stays, unless another of its links closes it.
func (l *link) unfence(ctx context.Context, conn *pgx.Conn) (opened bool, err error) {
	release, err := l.m.gate(ctx, l.database())
	if err != nil {
		return false, err
	}
	defer release()
	if other := l.m.closes(l); other != nil {
		l.log.Warn("the database stays read-only, since another link closes it", "other", other.rec.Name)
		return false, nil
	}
	if err := fence.Resume(ctx, conn); err != nil {
		return false, err
	}
	return true, fence.Open(ctx, conn)
}

func dropOrigins(ctx context.Context, conn *pgx.Conn, l *link) error {
	return apply.DropOrigins(ctx, conn, l.rec.ID, "")
}
