package peer

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

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

// probeBytes is how much is carried to measure the rate.
const probeBytes = 16 << 20

// tester walks the steps; after the first failure the rest is not tried.
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
	s := Step{Name: name, OK: err == nil, Detail: detail, Duration: time.Since(from)}
	if err != nil {
		s.Problem, t.failed = problem.Of(err, "peer-test"), true
	}
	t.steps = append(t.steps, s)
}

// Test walks the way to a peer by the protocol itself, on a connection of its own.
// A peer that only dials us is tested over the session that stands.
func (n *Node) Test(ctx context.Context, peer string) []Step {
	t := &tester{}
	trust := n.trusted(peer)
	if trust == nil {
		t.try("trust", func() (string, error) {
			return "", problem.New("peer-not-found", "peer "+peer, "this instance does not know it", "hawser peer add FILE")
		})
		return t.steps
	}
	if trust.Address == "" {
		n.testSession(ctx, t, peer)
		return t.steps
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := n.testWay(ctx, t, trust)
	if s != nil {
		done := make(chan struct{})
		go func() { defer close(done); s.run(ctx, slog.New(slog.DiscardHandler)) }()
		measure(ctx, t, s)
		cancel()
		<-done
	}
	return t.steps
}

func (n *Node) testSession(ctx context.Context, t *tester, peer string) {
	for _, name := range []string{"name", "TCP", "TLS"} {
		t.try(name, func() (string, error) { return "not tried: no address is known, they dial us", nil })
	}
	var s *session
	t.try("session", func() (detail string, err error) {
		if s, err = n.session(peer); err != nil {
			return "", problem.New("peer-not-dialling", "peer "+peer, "it has not connected, and no address is known to dial it",
				"on the other instance: hawser peer test "+n.cfg.Identity.Name+"; or give its address here: hawser peer add FILE --address HOST:PORT").Because(err)
		}
		return "they dialled from " + s.remote, nil
	})
	if s != nil {
		measure(ctx, t, s)
	}
}

// testWay dials and greets as a session would, and tells each part apart.
func (n *Node) testWay(ctx context.Context, t *tester, trust *trustee) *session {
	host, port, _ := net.SplitHostPort(trust.Address)
	t.try("name", func() (string, error) {
		found, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return "", problem.New("peer-name", "address "+trust.Address, "the host name can't be resolved", "mend the name, or DNS: getent hosts "+host).Because(err)
		}
		return host + " is " + strings.Join(found, ", "), nil
	})
	var raw net.Conn
	t.try("TCP", func() (detail string, err error) {
		raw, err = dial(ctx, trust.Address)
		return "port " + port + " takes connections", err
	})
	if t.failed {
		return nil
	}
	bytes := &counter{Conn: raw}
	mine := n.hello()
	mine.Probe = true
	var g *greeted
	t.try("TLS", func() (detail string, err error) {
		g, err = greet(ctx, bytes, n.cfg.Identity, true, mine, func(c *x509.Certificate, h hello) *problem.Problem { return n.judge(c, h) })
		if err != nil {
			return "", greetProblem(trust.Address, err)
		}
		return "TLS 1.3, " + fingerprint(g.cert), nil
	})
	if t.failed {
		_ = raw.Close()
		return nil
	}
	t.try("their certificate", func() (string, error) { return "is the one that was given to " + n.cfg.Identity.Name, orNil(g.ours) })
	t.try("our certificate", func() (string, error) { return "is trusted by " + g.hello.Name, orNil(g.theirs) })
	t.try("version", func() (string, error) {
		return fmt.Sprintf("their agent is %s, ours is %s, protocol %d", g.hello.Version, n.cfg.Version, min(newestProtocol, g.hello.Newest)), nil
	})
	if t.failed {
		_ = g.conn.Close()
		return nil
	}
	s, err := newSession(n, g, bytes, true)
	if err != nil {
		t.try("session", func() (string, error) { return "", err })
		_ = g.conn.Close()
		return nil
	}
	return s
}

// orNil keeps a nil problem from becoming an error that is not nil.
func orNil(p *problem.Problem) error {
	if p == nil {
		return nil
	}
	return p
}

func measure(ctx context.Context, t *tester, s *session) {
	t.try("round trip", func() (string, error) {
		d, err := s.mux.Ping()
		if err != nil {
			return "", disconnected(s.peer, nil).Because(err)
		}
		return d.Round(10 * time.Microsecond).String(), nil
	})
	t.try("rate", func() (string, error) {
		perSecond, err := s.rate(ctx, probeBytes)
		return fmt.Sprintf("%.0f MiB/s over the real protocol, %d MiB", perSecond/(1<<20), probeBytes>>20), err
	})
}
