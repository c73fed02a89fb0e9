package peer

import (
	"context"
	"slices"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// Status is what is known of a trusted peer.
type Status struct {
	Trusted
	Fingerprint       string // of the first certificate that can be used
	Connected         bool
	Dialled           bool      // by us
	Since             time.Time // connected, or not connected, since
	Remote            string    // the other end's address
	Version           string    // of its agent
	RTT               time.Duration
	BytesIn, BytesOut uint64           // on the wire, since the agent began
	Problem           *problem.Problem // why it is not connected
}

// Refused is somebody who came and was turned away.
type Refused struct {
	Name        string // as claimed; nothing proves it
	Fingerprint string // of the certificate whose key he holds
	Address     string // without the port
	Problem     *problem.Problem
	At          time.Time // the last time
	Count       int
}

// Status returns the trusted peers by name, and who was lately refused, the latest
// first.
func (n *Node) Status() ([]Status, []Refused) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Status, 0, len(n.peers))
	for _, name := range n.names() {
		out = append(out, n.peers[name].status())
	}
	n.refused.settle(time.Now(), func(print string) bool {
		r := n.prints[print]
		return r != nil && r.session != nil && r.session.ended() == nil
	})
	return out, n.refused.latest()
}

// status is called with the node's mutex held.
func (r *remote) status() Status {
	st := Status{
		Trusted: Trusted{Name: r.name, CertificatePEM: r.pem, Address: r.address},
		Since:   r.since, BytesIn: r.in, BytesOut: r.out, Problem: r.last,
	}
	if len(r.prints) > 0 {
		st.Fingerprint = r.prints[0]
	}
	if r.last == nil || len(r.prints) == 0 {
		st.Problem = r.unfit
	}
	if s := r.session; s != nil {
		st.Fingerprint, st.Dialled, st.Remote, st.Version = s.print, s.dialled, s.wire.RemoteAddr().String(), s.version
		st.BytesIn, st.BytesOut = st.BytesIn+s.wire.in.Load(), st.BytesOut+s.wire.out.Load()
		if cause := s.ended(); cause != nil {
			st.Problem = cause
		} else {
			st.Connected = true
			st.RTT = time.Duration(s.rtt.Load())
		}
	}
	return st
}

const (
	maxRefused = 32
	// sayAgain is how long the same refusal is not logged again, and maxSaid how many
	// are logged in that time: strangers do not fill the disk.
	sayAgain = time.Minute
	maxSaid  = 20
	// mendedAfter is how long who is connected was not refused again when what was wrong,
	// as an address, is mended: each dialler tries every few seconds.
	mendedAfter = 10 * maxPause
)

// refusals is a bounded list of who was refused. The node's mutex guards it.
type refusals struct {
	list  []*refusedBefore // the latest last
	since time.Time        // of said
	said  int
}

type refusedBefore struct {
	Refused
	said time.Time
}

// add notes a refusal, and reports whether it should be logged.
func (l *refusals) add(r Refused) bool {
	e := &refusedBefore{Refused: r}
	if i := slices.IndexFunc(l.list, func(e *refusedBefore) bool { return e.Fingerprint == r.Fingerprint && e.Name == r.Name }); i >= 0 {
		e = l.list[i]
		l.list = slices.Delete(l.list, i, i+1)
		r.Count = e.Count
		if e.Problem.Code != r.Problem.Code {
			e.said = time.Time{}
		}
		e.Refused = r
	} else if len(l.list) >= maxRefused {
		l.list = slices.Delete(l.list, 0, 1)
	}
	e.Count++
	l.list = append(l.list, e)
	if r.At.Sub(l.since) > sayAgain {
		l.since, l.said = r.At, 0
	}
	if r.At.Sub(e.said) <= sayAgain || l.said >= maxSaid {
		return false
	}
	e.said = r.At
	l.said++
	return true
}

// claims tells whether somebody was refused who called itself so.
func (l *refusals) claims(name string) bool {
	return slices.ContainsFunc(l.list, func(e *refusedBefore) bool { return e.Name == name })
}

// forget drops the refusals of a certificate that is let in now.
func (l *refusals) forget(print string) {
	l.list = slices.DeleteFunc(l.list, func(e *refusedBefore) bool { return e.Fingerprint == print })
}

// settle drops the refusals of who is connected and did not come in vain again.
func (l *refusals) settle(now time.Time, connected func(print string) bool) {
	l.list = slices.DeleteFunc(l.list, func(e *refusedBefore) bool {
		return connected(e.Fingerprint) && now.Sub(e.At) > mendedAfter
	})
}

func (l *refusals) latest() []Refused {
	out := make([]Refused, 0, len(l.list))
	for _, e := range slices.Backward(l.list) {
		out = append(out, e.Refused)
	}
	return out
}

// refuse notes that one side refused the other, and words it. What a stranger claims
// to be has no effect on the peer of that name.
func (n *Node) refuse(g *greeting, dialled *remote) *problem.Problem {
	parties := n.parties(g, dialled)
	p := g.theirs.theirs(parties)
	if g.ours != accepted {
		p = g.ours.ours(parties)
	}
	if dialled != nil {
		return p // it is noted as why there is no session
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.prints[g.print]; r != nil && r.session == nil {
		r.last = p
	}
	at := host(g.conn.RemoteAddr().String())
	if n.refused.add(Refused{Name: g.hello.Name, Fingerprint: g.print, Address: at, Problem: p, At: time.Now()}) {
		n.log.Warn("peer refused", "claims", g.hello.Name, "fingerprint", g.print, "remote", at, "by_us", g.ours != accepted, "cause", p.Error())
	}
	return p
}

// serveTest lets the other side measure, on a connection that it made for that.
func (n *Node) serveTest(ctx context.Context, g *greeting, w *wire) {
	n.mu.Lock()
	r := n.prints[g.print]
	if r == nil || r.tests >= maxTests {
		n.mu.Unlock()
		_ = w.Close()
		return
	}
	r.tests++
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		r.tests--
	}()
	s, err := newSession(g, w, r.name, nil, n.cfg.idle(), n.log)
	if err != nil {
		_ = w.Close()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, maxTest)
	defer cancel()
	s.run(ctx, n.cfg.keepAlive(), func() {})
}
