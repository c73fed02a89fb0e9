package peer

import (
	"context"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// Trusted is an instance that a person trusts.
type Trusted struct {
	// Name is the peer's name here; calls and streams arrive under it. Two entries
	// of one name trust either certificate, while one is being renewed.
	Name           string
	CertificatePEM string
	Address        string // host or host:port; "": we never dial, we wait for them
}

// TrustStore knows whom we trust. It is read when Run begins, by Refresh, and before
// a verdict (at most once a second), from one goroutine at a time.
type TrustStore interface {
	Trusted(ctx context.Context) ([]Trusted, error)
}

// remote is a trusted peer. The node's mutex guards it.
type remote struct {
	name    string
	address string
	certs   []*x509.Certificate
	prints  []string // their fingerprints, in the order given
	pem     string   // the first certificate

	session *session
	claim   chan struct{}    // a token: who holds it may decide which connection is used
	since   time.Time        // connected or lost since
	in, out uint64           // wire bytes of the sessions before
	unfit   *problem.Problem // what is wrong with the entry in the trust store
	last    *problem.Problem // why there is no session
	tests   int              // connections of their tests

	dials string             // the address that the dialler uses
	stop  context.CancelFunc // ends it
	retry chan struct{}      // ends its pause between two tries
}

func newRemote(name string) *remote {
	return &remote{name: name, claim: make(chan struct{}, 1), retry: make(chan struct{}, 1), stop: func() {}, since: time.Now()}
}

// trusts reports whether the certificate is the peer's.
func (r *remote) trusts(fp string) bool { return slices.Contains(r.prints, fp) }

const (
	// reloadWithin bounds one reading of the trust store.
	reloadWithin = 5 * time.Second
	// freshFor bounds how often a handshake has the trust store read.
	freshFor = time.Second
)

// freshen reads the trust store before a verdict, if it was not read just now. A
// store that can't be read leaves the verdict to what is known.
func (n *Node) freshen(ctx context.Context, deadline time.Time) {
	n.mu.Lock()
	fresh := time.Since(n.loadedAt) < freshFor
	n.mu.Unlock()
	if fresh || !n.reloading.TryLock() {
		return
	}
	defer n.reloading.Unlock()
	ctx, cancel := context.WithDeadline(ctx, time.Now().Add(time.Until(deadline)/4))
	defer cancel()
	if err := n.load(ctx); err != nil && ctx.Err() == nil {
		n.log.Warn("can't read whom to trust", "error", err)
	}
}

// reload reads the trust store and acts upon what changed. Nothing changes when it
// can't be read: a database that is away is no reason to drop links.
func (n *Node) reload(ctx context.Context) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	ctx, cancel := context.WithTimeout(ctx, reloadWithin)
	defer cancel()
	return n.load(ctx)
}

func (n *Node) load(ctx context.Context) error {
	list, err := n.cfg.Trust.Trusted(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loadedAt = time.Now()
	if err != nil {
		return err
	}
	before := n.peers
	n.peers, n.prints = n.read(list)
	for name, r := range before {
		if n.peers[name] == nil {
			r.stop()
		}
		s := r.session
		if s == nil || n.peers[name] != nil && r.trusts(s.print) {
			continue
		}
		n.log.Info("peer is no longer trusted", "peer", s.peer, "fingerprint", s.print)
		n.detach(r)
		r.last = left(r.name, leaveRemoved, true)
		if !n.startLocked(func(context.Context) { s.leave(leaveRemoved) }) {
			s.end(r.last)
		}
	}
	for _, r := range n.peers {
		n.redial(r)
	}
	return nil
}

// read makes the peers from the list; those that stay keep what they are. It is
// called with the mutex held.
func (n *Node) read(list []Trusted) (map[string]*remote, map[string]*remote) {
	peers, prints := map[string]*remote{}, map[string]*remote{}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Trusted) int { return strings.Compare(a.Name, b.Name) })
	for _, t := range list {
		r := peers[t.Name]
		if r == nil {
			if r = n.peers[t.Name]; r == nil {
				r = newRemote(t.Name)
			}
			r.certs, r.prints, r.pem, r.address, r.unfit = nil, nil, t.CertificatePEM, "", nil
			peers[t.Name] = r
		}
		if r.address == "" && t.Address != "" {
			r.address = withPort(t.Address)
		}
		c, err := parseCertificate([]byte(t.CertificatePEM))
		if err != nil {
			r.unfit = problem.Of(err, "certificate-invalid")
			continue
		}
		fp := fingerprint(c)
		switch holder := prints[fp]; {
		case fp == n.Identity().Fingerprint():
			r.unfit = self.ours(parties{them: t.Name})
			continue
		case holder != nil && holder != r:
			r.unfit = problem.New("peer-duplicate", "peer "+shown(t.Name), "its certificate is trusted under the name "+shown(holder.name)+" already", "hawser peer remove "+problem.Word(t.Name))
			continue
		}
		prints[fp] = r
		r.certs, r.prints = append(r.certs, c), append(r.prints, fp)
	}
	return peers, prints
}

// names returns the peers' names in order. It is called with the mutex held.
func (n *Node) names() []string { return slices.Sorted(maps.Keys(n.peers)) }

// judge is our verdict on who shows a certificate. dialled is the peer whose
// address it answers at, nil when it came to us.
func (n *Node) judge(g *greeting, dialled *remote) refusal {
	n.mu.Lock()
	defer n.mu.Unlock()
	r, now := n.prints[g.print], time.Now()
	switch {
	case g.print == n.Identity().Fingerprint():
		return self
	case r == nil && (dialled != nil || n.peers[g.hello.Name] != nil):
		return wrong
	case r == nil:
		return unknown
	case dialled != nil && dialled != r:
		return other
	case now.After(g.cert.NotAfter):
		return expired
	case now.Before(g.cert.NotBefore):
		return notYetGood
	case g.hello.Newest < oldestProtocol || g.hello.Oldest > newestProtocol:
		return version
	}
	return accepted
}

// parties names the two sides of a greeting.
func (n *Node) parties(g *greeting, dialled *remote) parties {
	p := parties{
		us: n.Identity().Name, ourPrint: n.Identity().Fingerprint(),
		them: g.hello.Name, theirPrint: g.print, notAfter: g.cert.NotAfter, hello: g.hello,
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.prints[g.print]
	if r == nil {
		r = n.peers[g.hello.Name]
	}
	if dialled != nil {
		r = dialled
	}
	if r != nil {
		p.them = r.name
		if len(r.prints) > 0 {
			p.known = r.prints[0]
		}
	}
	return p
}
