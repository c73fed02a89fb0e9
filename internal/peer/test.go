package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

// Step is one step of the way to a peer.
type Step struct {
	Name     string
	OK       bool
	Detail   string // what was found
	Duration time.Duration
	Problem  *problem.Problem // why it is not OK
}

// The steps, in their order. Those behind the first that fails are left out, but
// for the two verdicts, which are known together.
const (
	stepName       = "name"
	stepTCP        = "TCP"
	stepTLS        = "TLS"
	stepTheirs     = "their certificate"
	stepOurs       = "our certificate"
	stepVersion    = "version"
	stepSession    = "session"
	stepRoundTrip  = "round trip"
	stepRateToUs   = "rate to us"
	stepRateToThem = "rate to them"
)

const (
	maxProbe   = 256 << 20 // bytes of one measurement
	probePiece = 64 << 10
	probeTrips = 5
	// maxTests bounds the tests of one peer at a time, and testWithin each of them.
	maxTests   = 2
	testWithin = 30 * time.Second
)

// Test walks the way to a peer, on a connection of its own that disturbs no
// session, and says of each step whether it is good and what to do if it is not.
// A peer that has no address dials us: there its session is measured.
func (n *Node) Test(ctx context.Context, peer string) []Step {
	n.mu.Lock()
	r := n.peers[peer]
	n.mu.Unlock()
	w := &walk{}
	if r == nil {
		_, err := n.session(peer)
		w.step(stepSession, func() (string, error) { return "", err })
		return w.steps
	}
	n.mu.Lock()
	address, unfit, live := r.address, r.unfit, r.session
	n.mu.Unlock()
	switch {
	case unfit != nil:
		w.step(stepTheirs, func() (string, error) { return "", unfit })
	case address == "":
		n.testAwaited(ctx, w, r, live)
	default:
		n.testDialled(ctx, w, r, address)
	}
	return w.steps
}

// walk collects steps until one fails.
type walk struct {
	steps  []Step
	failed bool
}

func (w *walk) step(name string, do func() (string, error)) {
	if w.failed {
		return
	}
	start := time.Now()
	detail, err := do()
	w.done(name, detail, time.Since(start), err)
}

func (w *walk) done(name, detail string, took time.Duration, err error) {
	w.steps = append(w.steps, Step{Name: name, OK: err == nil, Detail: detail, Duration: took, Problem: problem.Of(err, "peer-test")})
	w.failed = w.failed || err != nil
}

// testAwaited tests a peer that dials us.
func (n *Node) testAwaited(ctx context.Context, w *walk, r *remote, s *session) {
	const notApplicable = "not applicable: they dial us"
	w.done(stepName, notApplicable, 0, nil)
	w.done(stepTCP, notApplicable, 0, nil)
	w.step(stepSession, func() (string, error) {
		if s == nil {
			return "", n.whyAwaited(r)
		}
		return "they dialled from " + s.wire.RemoteAddr().String(), nil
	})
	if w.failed {
		return
	}
	const sinceStart = "as when the session began"
	w.done(stepTLS, "TLS 1.3, "+sinceStart, 0, nil)
	w.done(stepTheirs, s.print+", "+sinceStart, 0, nil)
	w.done(stepOurs, n.cfg.Identity.Fingerprint()+", "+sinceStart, 0, nil)
	n.measureAll(ctx, w, s)
}

// whyAwaited is why a peer that should dial us has no session: the last reason, or
// that somebody of its name was refused.
func (n *Node) whyAwaited(r *remote) *problem.Problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range slices.Backward(n.refused) {
		if f.Name == r.name && r.session == nil {
			return f.Problem
		}
	}
	if p := r.problem(); p != nil {
		return p
	}
	return disconnected(r.name, nil)
}

// testDialled tests a peer at its address.
func (n *Node) testDialled(ctx context.Context, w *walk, r *remote, address string) {
	host, _, err := net.SplitHostPort(address)
	w.step(stepName, func() (string, error) {
		if err != nil {
			return "", unreachable(r.name, address, err)
		}
		return n.resolve(ctx, r.name, address, host)
	})
	var c *wire
	w.step(stepTCP, func() (string, error) {
		var err error
		if c, err = n.connect(ctx, r.name, address); err != nil {
			return "", err
		}
		return c.LocalAddr().String() + " to " + c.RemoteAddr().String(), nil
	})
	if w.failed {
		return
	}
	defer c.Close()
	var g *greeting
	w.step(stepTLS, func() (detail string, err error) {
		g, err = n.greetAt(ctx, r, address, c, true)
		return "TLS 1.3, " + alpn, err
	})
	if w.failed {
		return
	}
	n.testVerdicts(w, r, g)
	if w.failed {
		return
	}
	s, err := newSession(g, c, r.name, nil, n.idle, n.log.With("peer", r.name, "test", true))
	if err != nil {
		w.done(stepRoundTrip, "", 0, err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, testWithin)
	defer cancel()
	defer s.end(errTested)
	defer s.server.Stop()
	n.measureAll(ctx, w, s)
}

var errTested = problem.New("peer-tested", "", "the test is over", "none")

func (n *Node) resolve(ctx context.Context, name, address, host string) (string, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		return host + " is an address", nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.dial)
	defer cancel()
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return "", unreachable(name, address, err)
	}
	return host + " is " + strings.Join(found, ", "), nil
}

// testVerdicts reports both verdicts, whichever is bad.
func (n *Node) testVerdicts(w *walk, r *remote, g *greeting) {
	who := n.parties(g, r)
	ours, theirs := g.ours, g.theirs
	versions := ours == version || theirs == version
	if ours == accepted || versions {
		w.done(stepTheirs, g.print, 0, nil)
	} else {
		w.done(stepTheirs, "", 0, ours.ours(who))
	}
	if theirs == accepted || versions {
		w.done(stepOurs, who.ourPrint, 0, nil)
	} else {
		w.done(stepOurs, "", 0, theirs.theirs(who))
	}
	if versions {
		w.done(stepVersion, "", 0, version.ours(who))
	}
}

// measureAll is the end of the way: what the connection is worth.
func (n *Node) measureAll(ctx context.Context, w *walk, s *session) {
	w.step(stepVersion, func() (string, error) {
		return fmt.Sprintf("agent %s, protocol %d", shown(s.version), s.protocol), nil
	})
	w.step(stepRoundTrip, func() (string, error) {
		best, err := s.roundTrip(ctx)
		return "best of " + fmt.Sprint(probeTrips) + ": " + best.Round(time.Microsecond).String(), err
	})
	w.step(stepRateToUs, func() (string, error) { return rate(s.receiveProbe(ctx, n.measure)) })
	w.step(stepRateToThem, func() (string, error) { return rate(s.sendProbe(ctx, n.measure)) })
}

func rate(bytes uint64, took time.Duration, err error) (string, error) {
	if err != nil {
		return "", err
	}
	perSecond := float64(bytes) / max(took.Seconds(), 1e-6)
	return fmt.Sprintf("%.0f bytes/s (%.1f MB/s), %d bytes", perSecond, perSecond/1e6, bytes), nil
}

func (s *session) roundTrip(ctx context.Context) (time.Duration, error) {
	best := time.Duration(-1)
	for range probeTrips {
		start := time.Now()
		p, err := s.stub.Probe(ctx)
		if err == nil {
			err = errors.Join(p.Send(&peerpb.ProbePacket{}), p.CloseSend())
		}
		if err == nil {
			_, err = p.Recv()
		}
		if err != nil {
			return 0, s.wrap(ctx, err)
		}
		if d := time.Since(start); best < 0 || d < best {
			best = d
		}
		if _, err := p.Recv(); !errors.Is(err, io.EOF) {
			return 0, s.wrap(ctx, err)
		}
	}
	return best, nil
}

// receiveProbe takes what the other side can send in a time.
func (s *session) receiveProbe(ctx context.Context, within time.Duration) (uint64, time.Duration, error) {
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := s.stub.Probe(own)
	if err == nil {
		err = errors.Join(p.Send(&peerpb.ProbePacket{Want: maxProbe}), p.CloseSend())
	}
	if err != nil {
		return 0, 0, s.wrap(ctx, err)
	}
	var got uint64
	start := time.Now()
	for time.Since(start) < within && got < maxProbe {
		r, err := p.Recv()
		if err != nil {
			return 0, 0, s.wrap(ctx, err)
		}
		if got == 0 {
			start = time.Now() // the first round trip is not the rate
		}
		got += uint64(len(r.Data))
	}
	return got, time.Since(start), nil
}

// sendProbe sends what it can in a time, and counts what arrived.
func (s *session) sendProbe(ctx context.Context, within time.Duration) (uint64, time.Duration, error) {
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := s.stub.Probe(own)
	if err != nil {
		return 0, 0, s.wrap(ctx, err)
	}
	start := time.Now()
	piece := &peerpb.ProbePacket{Data: make([]byte, probePiece)}
	for sent := 0; time.Since(start) < within && sent+probePiece <= maxProbe; sent += probePiece {
		if err := p.Send(piece); errors.Is(err, io.EOF) {
			break // Recv has the reason
		} else if err != nil {
			return 0, 0, s.wrap(ctx, err)
		}
	}
	if err := p.CloseSend(); err != nil {
		return 0, 0, s.wrap(ctx, err)
	}
	r, err := p.Recv()
	if err != nil {
		return 0, 0, s.wrap(ctx, err)
	}
	return r.Got, time.Since(start), nil
}

// serveTest answers one test of a peer.
func (n *Node) serveTest(ctx context.Context, r *remote, g *greeting, w *wire) error {
	n.mu.Lock()
	r.tests++
	full := r.tests > maxTests
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		r.tests--
		n.mu.Unlock()
	}()
	if full {
		return errors.New("too many tests at a time")
	}
	s, err := newSession(g, w, r.name, nil, n.idle, n.log.With("peer", r.name, "test", true))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, testWithin)
	defer cancel()
	s.run(ctx, n.ping)
	return nil
}
