package peer

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

const (
	dialTimeout = 10 * time.Second
	firstPause  = 100 * time.Millisecond
	maxPause    = 3 * time.Second
	// steady is how long a session stands before the next failure is a new one.
	steady = 10 * time.Second
	// defaultPort is that of the agent's endpoint.
	defaultPort = "5022"
)

// withPort adds the port to an address that has none.
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	host := address
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	return net.JoinHostPort(host, defaultPort)
}

// redial sees to it that the peer's address is dialled, and no other. It is called
// with the mutex held.
func (n *Node) redial(r *remote) {
	if r.dials == r.address {
		return
	}
	r.stop()
	r.stop, r.dials = func() {}, ""
	if r.address == "" {
		return
	}
	if n.run == nil || n.over {
		return // Run begins by reading the trust store
	}
	address := r.address
	ctx, stop := context.WithCancel(n.run)
	r.stop, r.dials = stop, address
	n.startLocked(func(context.Context) {
		defer stop()
		n.dialForever(ctx, r, address)
	})
}

// dialForever keeps a session with a peer, whoever dials it.
func (n *Node) dialForever(ctx context.Context, r *remote, address string) {
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, maxPause) {
		if s, _ := n.live(r.name); s != nil {
			select {
			case <-s.done:
			case <-ctx.Done():
				return
			}
			if time.Since(s.since) > steady {
				pause = firstPause
			}
		} else if err := n.dialOnce(ctx, r, address); err == nil {
			continue
		} else if ctx.Err() == nil && !errors.Is(err, errNotUsed) {
			n.failed(r, problem.Of(err, "peer-unreachable"))
		}
		select {
		case <-ctx.Done():
			return
		case <-r.retry:
			pause = firstPause
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// dialOnce makes a session, or says why there is none. The session is Run's: a
// changed address ends the dialler, and not what it has dialled.
func (n *Node) dialOnce(ctx context.Context, r *remote, address string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(greetWithin)
	w := &wire{Conn: conn, dialled: true}
	g, err := greet(ctx, w, n.Identity(), n.hello(false), deadline, func(g *greeting) refusal {
		n.freshen(ctx, deadline)
		return n.judge(g, r)
	})
	if err != nil {
		_ = conn.Close()
		return notGreeted(address, err)
	}
	if g.ours != accepted || g.theirs != accepted {
		_ = g.conn.Close()
		return n.refuse(g, r)
	}
	if err := n.settle(ctx, g, w, deadline); err != nil {
		_ = conn.Close()
		if errors.Is(err, errNotUsed) {
			return err
		}
		return problem.New("peer-hello", "address "+address, "the other agent ended the connection before it was used", "").Advise("it is tried again by itself").Retry().Because(err)
	}
	return nil
}

// failed notes why there is no session, and logs what is new.
func (n *Node) failed(r *remote, p *problem.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.session != nil {
		return
	}
	if r.last == nil || r.last.Code != p.Code {
		n.log.Warn("can't connect to peer", "peer", r.name, "cause", p.Error())
	}
	r.last = p
}

// dial makes the TCP connection, and words what is in its way.
func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		return conn, nil
	}
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return nil, unresolved(address, dns.Name, err)
	}
	object := "address " + address
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return nil, problem.New("peer-timeout", object, "no answer: a firewall on the way swallows the packets, or the host is down",
			"").Advise("allow TCP to " + address + ", or let the other side dial: only one direction has to be open").Retry().Because(err)
	}
	return nil, problem.New("peer-unreachable", object, "no TCP connection: nothing listens there, or a firewall refuses",
		"hawser status").Advise("see there that the other agent runs, and where it listens; or let it dial").At("the machine of " + address).Retry().Because(err)
}

func unresolved(address, host string, err error) *problem.Problem {
	return problem.New("peer-name", "address "+address, "the host name can't be resolved", "getent hosts "+problem.Word(host)).Advise("mend the name, or DNS").Retry().Because(err)
}

// notGreeted words why who answered did not become known.
func notGreeted(address string, err error) *problem.Problem {
	object := "address " + address
	if t := (*errTLS)(nil); errors.As(err, &t) {
		return problem.New("peer-tls", object,
			"TCP connects, but what answers does not speak Hawser's TLS: another service on that port, or a proxy or firewall that looks into the traffic",
			"").Advise("give the port of the other agent's endpoint, and let TCP pass untouched").Retry().Because(err)
	}
	return problem.New("peer-hello", object, "TLS stands, but the other side ended the greeting", "").Advise("look into the other agent's log").Retry().Because(err)
}
