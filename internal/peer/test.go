package peer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

// Step is one part of the way to a peer, tried for real.
type Step struct {
	Name     string
	OK       bool
	Detail   string
	Duration time.Duration
	Problem  *problem.Problem // when it is not OK
}

const (
	// maxTests bounds the tests that a peer runs at a time, and maxTest one of them.
	maxTests = 4
	maxTest  = time.Minute

	// probePiece is the size of a measurement's packets, maxProbe what one may carry,
	// and measureFor how long one direction is measured.
	probePiece = 64 << 10
	maxProbe   = 256 << 20
	measureFor = time.Second
)

// tester walks the steps. After the first failure the rest is not tried.
type tester struct {
	steps  []Step
	failed bool
}

func (t *tester) try(name string, do func() (string, error)) {
	if t.failed {
		return
	}
	from := time.Now()
	detail, err := do()
	t.add(Step{Name: name, OK: err == nil, Detail: detail, Duration: time.Since(from)}, err)
}

func (t *tester) add(s Step, err error) {
	if err != nil {
		s.Detail, s.Problem, t.failed = "", problem.Of(err, "peer-test"), true
	}
	t.steps = append(t.steps, s)
}

// Test walks the way to a peer on a connection of its own, which never becomes the
// session. A peer whose address is not known is tested over the session.
func (n *Node) Test(ctx context.Context, peer string) []Step {
	ctx, cancel := context.WithTimeout(ctx, maxTest)
	defer cancel()
	t := &tester{}
	n.mu.Lock()
	r, address := n.peers[peer], ""
	unknown := n.notFound(peer)
	if r != nil {
		address = r.address
	}
	n.mu.Unlock()
	switch {
	case r == nil:
		t.try("trust", func() (string, error) { return "", unknown })
	case address == "":
		n.testSession(ctx, t, r)
	default:
		n.testWay(ctx, t, r, address)
	}
	return t.steps
}

func (n *Node) testSession(ctx context.Context, t *tester, r *remote) {
	for _, name := range []string{"name resolution", "TCP"} {
		t.try(name, func() (string, error) { return "not applicable: they dial us", nil })
	}
	s, err := n.live(r.name)
	t.try("TLS", func() (string, error) {
		if err != nil {
			p := problem.New("peer-not-dialling", "peer "+shown(r.name), "it has not connected, and no address is known to dial it",
				"hawser peer test "+problem.Word(n.Identity().Name)).Advise("or give its address here: hawser peer set " + problem.Word(r.name) + " --address HOST:PORT").At("the other instance")
			if cause := problem.Of(err, ""); cause.Cause != "" {
				p = p.Because(errors.New(cause.Cause))
			}
			return "", p
		}
		return "not applicable: they dialled from " + s.wire.RemoteAddr().String(), nil
	})
	if err != nil {
		return
	}
	t.try("our certificate accepted by them", func() (string, error) { return n.Identity().Fingerprint(), nil })
	t.try("their certificate accepted by us", func() (string, error) { return s.print, nil })
	t.try("version", func() (string, error) { return n.versions(s.version, s.protocol), nil })
	measure(ctx, t, s)
}

func (n *Node) versions(theirs string, protocol int) string {
	return fmt.Sprintf("their agent is %s, ours is %s, protocol %d", shown(theirs), shown(n.cfg.Version), protocol)
}

// testWay dials and greets as for a session, and tells each part apart.
func (n *Node) testWay(ctx context.Context, t *tester, r *remote, address string) {
	name, port, _ := net.SplitHostPort(address)
	t.try("name resolution", func() (string, error) {
		found, err := net.DefaultResolver.LookupHost(ctx, name)
		if err != nil {
			return "", unresolved(address, name, err)
		}
		return name + " is " + strings.Join(found, ", "), nil
	})
	var conn net.Conn
	t.try("TCP", func() (_ string, err error) {
		conn, err = dial(ctx, address)
		return "port " + port + " takes connections", err
	})
	if t.failed {
		return
	}
	defer conn.Close()
	w := &wire{Conn: conn, dialled: true}
	var g *greeting
	t.try("TLS", func() (_ string, err error) {
		g, err = greet(ctx, w, n.Identity(), n.hello(true), time.Now().Add(greetWithin), func(g *greeting) refusal { return n.judge(g, r) })
		if err != nil {
			return "", notGreeted(address, err)
		}
		return "TLS 1.3, " + g.print, nil
	})
	if t.failed {
		return
	}
	n.testVerdicts(t, g, r)
	if t.failed {
		return
	}
	s, err := newSession(g, w, r.name, nil, n.cfg.idle(), n.log)
	if err != nil {
		t.add(Step{Name: "round trip"}, err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { // until cancel
		defer close(ended)
		s.run(ctx, n.cfg.keepAlive(), func() {})
	}()
	measure(ctx, t, s)
	cancel()
	<-ended
}

// testVerdicts tells all that the two sides said of each other, also if it is more
// than one refusal.
func (n *Node) testVerdicts(t *tester, g *greeting, r *remote) {
	between := n.parties(g, r)
	verdict := func(refused bool, p func(parties) *problem.Problem) error {
		if !refused {
			return nil
		}
		return p(between)
	}
	t.add(Step{Name: "our certificate accepted by them", OK: g.theirs == accepted || g.theirs == version, Detail: n.Identity().Fingerprint()},
		verdict(g.theirs != accepted && g.theirs != version, g.theirs.theirs))
	t.add(Step{Name: "their certificate accepted by us", OK: g.ours == accepted || g.ours == version, Detail: g.print},
		verdict(g.ours != accepted && g.ours != version, g.ours.ours))
	t.try("version", func() (string, error) {
		return n.versions(g.hello.Version, g.protocol()), verdict(g.ours == version || g.theirs == version, version.ours)
	})
}

// measure takes the round trip and the rate of a session.
func measure(ctx context.Context, t *tester, s *session) {
	t.try("round trip", func() (string, error) {
		const trips = 5
		best := time.Duration(0)
		for range trips {
			d, err := s.mux.Ping()
			if err != nil {
				return "", disconnected(s.peer, s.ended()).Because(err)
			}
			if best == 0 || d < best {
				best = d
			}
		}
		return best.Round(time.Microsecond).String(), nil
	})
	t.try("rate", func() (string, error) {
		in, err := s.download(ctx, measureFor)
		if err != nil {
			return "", s.wrap(ctx, err)
		}
		out, err := s.upload(ctx, measureFor)
		if err != nil {
			return "", s.wrap(ctx, err)
		}
		return fmt.Sprintf("%.1f MiB/s from them, %.1f MiB/s to them", in/(1<<20), out/(1<<20)), nil
	})
}

// download measures bytes a second from the other side.
func (s *session) download(ctx context.Context, lasting time.Duration) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := s.stub.Probe(ctx)
	if err != nil {
		return 0, err
	}
	from, got := time.Now(), 0
	if err := p.Send(&peerpb.ProbePacket{Want: maxProbe}); err != nil {
		return 0, err
	}
	for got < maxProbe && time.Since(from) < lasting {
		next, err := p.Recv()
		if err != nil {
			return 0, err
		}
		got += len(next.Data)
	}
	return float64(got) / time.Since(from).Seconds(), nil
}

// upload measures bytes a second to the other side, by its own count.
func (s *session) upload(ctx context.Context, lasting time.Duration) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := s.stub.Probe(ctx)
	if err != nil {
		return 0, err
	}
	piece := make([]byte, probePiece)
	_, _ = rand.Read(piece) // never fails; something between may compress
	from := time.Now()
	for sent := 0; sent < maxProbe && time.Since(from) < lasting; sent += len(piece) {
		if err := p.Send(&peerpb.ProbePacket{Data: piece}); err != nil {
			if errors.Is(err, io.EOF) {
				_, err = p.Recv()
			}
			return 0, err
		}
	}
	if err := p.CloseSend(); err != nil {
		return 0, err
	}
	answer, err := p.Recv()
	if err != nil {
		return 0, err
	}
	return float64(answer.Got) / time.Since(from).Seconds(), nil
}
