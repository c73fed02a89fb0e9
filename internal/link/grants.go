package link

import (
	"fmt"
	"maps"
	"slices"

	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// A peer may do what its grant says. granted is asked for each of its calls and streams
// at the door (calls.go), and by what this side begins itself. A link whose way is not
// granted stands as disconnected: it stores nothing of it, and goes on when the grant is
// widened.

// SetGrants says what the peers may do from now on; one that is missing may do nothing.
// Links that it concerns stop or go on.
func (m *Manager) SetGrants(all map[string]grant.Grant) {
	m.granting.Lock()
	m.grants = all
	m.granting.Unlock()
	for _, l := range m.all() {
		l.update(func() {}) // wakes what has to stop, or may go on
	}
}

// Grants returns what the peers may do. It is not to be changed.
func (m *Manager) Grants() map[string]grant.Grant {
	m.granting.RLock()
	defer m.granting.RUnlock()
	return m.grants
}

// granted returns why a peer may not move data of a database that way, or nil.
func (m *Manager) granted(peer, database string, way grant.Direction) *problem.Problem {
	g, known := m.Grants()[peer]
	if g.Allows(database, way) {
		return nil
	}
	if !known {
		return m.unknown(peer, database, way)
	}
	return problem.New("peer-not-granted", "database "+database,
		fmt.Sprintf("instance %s grants peer %s %s; this needs database %s, %s", m.cfg.Instance, peer, g, database, needed(way)),
		"hawser peer set "+peer+" "+g.With(database, way).Flags())
}

// unknown is granted's answer for a peer that this instance was not given.
func (m *Manager) unknown(peer, database string, way grant.Direction) *problem.Problem {
	p := problem.New("peer-not-granted", "database "+database,
		fmt.Sprintf("instance %s does not know peer %s; this needs database %s, %s", m.cfg.Instance, peer, database, needed(way)),
		"hawser peer add "+problem.Word(peer+".pem"))
	if near := problem.Nearest(peer, slices.Sorted(maps.Keys(m.Grants()))); near != "" {
		return p.Meant(near)
	}
	return p.Advise(fmt.Sprintf("with --address HOST:5022 on one of the two; and on instance %s: hawser peer add %s; hawser cert show prints the certificates", peer, problem.Word(m.cfg.Instance+".pem")))
}

func needed(way grant.Direction) string {
	switch way {
	case grant.ToPeer:
		return "data to the peer"
	case grant.FromPeer:
		return "data from the peer"
	case grant.Both:
		return "data both ways, since the roles swap"
	}
	return "either way"
}

// wayOf is where data flows when this side has that role.
func wayOf(here role.Role) grant.Direction {
	if here == role.Primary {
		return grant.ToPeer
	}
	return grant.FromPeer
}

// mayFlow returns why the link's data may not flow as its roles say just now, or nil. The
// caller holds mu.
func (l *link) mayFlow() *problem.Problem {
	if p := l.m.granted(l.rec.Peer, l.rec.Database, wayOf(l.side.Role)); p != nil {
		return p.Retry()
	}
	return nil
}

// maySwap returns why the link's roles may not be swapped, or nil.
func (l *link) maySwap() error {
	if p := l.m.granted(l.rec.Peer, l.rec.Database, grant.Both); p != nil {
		return p
	}
	return nil
}

// oneWay warns of a link that is granted, and whose failover is not.
func (m *Manager) oneWay(peer, database string) problem.Findings {
	p := m.granted(peer, database, grant.Both)
	if p == nil {
		return nil
	}
	return problem.Findings{problem.Warn("failover-not-granted", p.Object, p.Cause+"; a planned failover of this link will be refused", p.Remedy).Advise(p.Advice).At(p.Place)}
}

// need is what the grant of the peer that calls has to allow.
type need int

// The needs. The zero need is met by nobody.
const (
	// settles: nothing. So do the two sides of one link tell each other what they are,
	// that there be one primary and none that waits for ever, and end the link. No row
	// or definition is in it.
	settles need = iota + 1
	// flows: the link's data may flow as its roles say.
	flows
	// swaps: and the other way.
	swaps
)

// permits refuses a call on a link by its need.
func (l *link) permits(n need) error {
	switch n {
	case settles:
		return nil
	case flows:
		l.mu.Lock()
		defer l.mu.Unlock()
		if p := l.mayFlow(); p != nil {
			return p
		}
		return nil
	case swaps:
		return l.maySwap()
	}
	return problem.New("peer-not-granted", "link "+l.rec.Name, "no grant allows this call", "").Advise("this is a fault of Hawser: report it")
}
