package link

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// A primary that is lost can't tell its secondaries which of them was opened by force. So
// each asks the instances that it reaches itself: before it is opened by force, and again
// and again while it has no primary. Only who answers counts, since a disaster is no time
// to wait for others; two that are opened at one moment do not see each other in time, and
// say it afterwards.

// leadBy answers askLeader: the link by which this instance leads the database that the
// asking one's primary led; "" if by none.
func (m *Manager) leadBy(from string, r whereRequest) string {
	if r.Database == "" || m.granted(from, r.Database, grant.None) != nil {
		return ""
	}
	for _, l := range m.all() {
		side, _ := l.now()
		// In its first term a link tells of no primary that it took over from.
		same := l.rec.ID == r.ID || l.rec.Peer == r.Primary && side.Term > 1
		if l.rec.Database == r.Database && same && l.leadsOn(side) {
			return l.rec.Name
		}
	}
	return ""
}

// leadsOn tells that this side leads the database, or has decided to.
func (l *link) leadsOn(side role.State) bool {
	return side.Role == role.Primary && !expelled(side) && side.Phase != role.Moved && l.stays() && !l.left() && l.m.closes(l) == nil
}

// leader is another instance than the link's peer that leads the database, by that link.
type leader struct{ instance, link string }

// askLeader asks all instances in reach at once; nil: none of them leads.
func (l *link) askLeader(ctx context.Context) *leader {
	ctx, cancel := context.WithTimeout(ctx, otherSideWithin)
	defer cancel()
	var asked sync.WaitGroup
	var mu sync.Mutex
	var found []leader
	for instance := range maps.Keys(l.m.Grants()) {
		if instance == l.rec.Peer || !l.m.reaches(instance) {
			continue
		}
		asked.Go(func() {
			var there whereReply
			request := whereRequest{ID: l.rec.ID, Database: l.rec.Database, Primary: l.rec.Peer}
			if err := l.m.call(ctx, instance, l.rec.Name, callWhere, request, &there); err != nil || there.By == "" {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, leader{instance, there.By})
		})
	}
	asked.Wait()
	if len(found) == 0 {
		return nil
	}
	first := slices.MinFunc(found, func(a, b leader) int { return strings.Compare(a.instance, b.instance) })
	return &first
}

// reaches tells that there is a connection to an instance just now.
func (m *Manager) reaches(instance string) bool {
	select {
	case <-m.cfg.Peers.Connected(instance):
		return true
	default:
		return false
	}
}

// notBeside refuses to open a second primary beside one that is in reach.
func (l *link) notBeside(ctx context.Context) error {
	if by := l.askLeader(ctx); by != nil {
		return l.ledBy(*by)
	}
	return nil
}

// ledBy is what a secondary says, or whoever opens it is told, whose database another
// instance leads by another link.
func (l *link) ledBy(by leader) *problem.Problem {
	return problem.New(codeMoved, "database "+l.rec.Database,
		"instance "+by.instance+" leads it, by link "+by.link+", since it took over from instance "+l.rec.Peer+": opened here too, it would take writes on both",
		"hawser link follow "+l.rec.Name+" --primary "+by.instance).
		Advise("it compares the two and copies the tables that differ; if this instance is to lead and not that one: hawser link drop " + by.link + " --force on instance " + by.instance +
			", whose database then stands for itself and is to be kept from clients, and then hawser link failover " + l.rec.Name + " --force").At("instance " + l.m.cfg.Instance)
}

// codeTwice is of a database that two instances lead.
const codeTwice = "primary-twice"

// ledTwice is what a side says that was opened by force beside another one.
func (l *link) ledTwice(by leader) *problem.Problem {
	return problem.Warn(codeTwice, "database "+l.rec.Database,
		"instance "+by.instance+" leads it too, by link "+by.link+": both were opened by force, and each takes writes that the other does not have",
		"hawser link drop "+by.link+" --force").
		Advise("if this instance is to lead: that leaves the other database to itself; keep clients from it, and take from it what it alone has. If the other one is to lead: hawser link drop " + l.rec.Name + " --force here").At("instance " + by.instance)
}

// ledNote says who else leads where the link's state does not. The caller holds mu.
func (l *link) ledNote(s Status) *problem.Problem {
	switch {
	case l.led == nil || s.Cause != nil && s.Cause.Code == codeMoved:
		return nil
	case l.side.Role == role.Primary:
		return l.ledTwice(*l.led)
	}
	return l.ledBy(*l.led)
}

// seekLeader has a side without its peer see whether another instance leads the database: a
// secondary that lost its primary, or one that was opened by force.
func (l *link) seekLeader(ctx context.Context) {
	l.mu.Lock()
	alone := !l.streaming && l.progress == catalog.Running && l.side.Phase == role.Steady && (l.side.Role == role.Secondary || l.forcedOut())
	l.mu.Unlock()
	var by *leader
	if alone && (!l.m.reaches(l.rec.Peer) || l.side.Role == role.Primary) {
		by = l.askLeader(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if by != nil && l.led == nil {
		l.log.Warn("another instance leads the database", "instance", by.instance, "by", by.link)
	}
	l.led = by
}
