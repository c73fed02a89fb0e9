package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// defaultPort is the endpoint's.
const defaultPort = "5022"

// withPort completes an address that names no port.
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), defaultPort)
}

// backoff spaces repeated tries, with jitter.
type backoff struct{ first, most, now time.Duration }

func newBackoff(first, most time.Duration) *backoff { return &backoff{first, most, first} }

func (b *backoff) next() time.Duration {
	d := b.now/2 + rand.N(b.now)
	b.now = min(2*b.now, b.most)
	return d
}

func (b *backoff) reset() { b.now = b.first }

// sleep waits for d, or until one of the channels wakes it. It reports whether ctx
// still stands.
func sleep(ctx context.Context, d time.Duration, wake, up <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-up:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// keepDialled starts, restarts or ends the peer's dialler as its entry demands, and
// has it try at once. It is called with the mutex held.
func (n *Node) keepDialled(r *remote) {
	address := r.address
	if len(r.prints) == 0 {
		address = ""
	}
	if r.dials == address {
		select {
		case r.retry <- struct{}{}:
		default:
		}
		return
	}
	r.stop()
	r.stop, r.dials = func() {}, address
	if address == "" || n.running == nil {
		return
	}
	ctx, cancel := context.WithCancel(n.running)
	r.stop = cancel
	n.wg.Go(func() { n.dialForEver(ctx, r, address) })
}

// dialForEver dials whenever there is no session.
func (n *Node) dialForEver(ctx context.Context, r *remote, address string) {
	pause := newBackoff(n.backoff, n.longest)
	for ctx.Err() == nil {
		if s := n.current(r); s != nil {
			select {
			case <-ctx.Done():
				return
			case <-s.done:
			}
			if time.Since(s.since) > n.longest {
				pause.reset()
			}
			n.uninstall(r, s) // before another look; it is done once
		} else if err := n.dialOnce(ctx, r, address); err == nil {
			continue
		}
		if n.current(r) == nil {
			sleep(ctx, pause.next(), r.retry, n.Connected(r.name))
		}
	}
}

// dialOnce makes one try. On success the session runs on its own.
func (n *Node) dialOnce(ctx context.Context, r *remote, address string) error {
	g, w, err := n.reach(ctx, r, address, false)
	if err == nil {
		var s *session
		if s, err = n.settle(ctx, r, g, w); err == nil {
			ctx := n.running // the session outlives a change of the address
			n.wg.Go(func() { n.keep(ctx, r, s) })
			return nil
		}
		_ = w.Close()
	}
	if ctx.Err() != nil || errors.Is(err, errDuplicate) {
		return err
	}
	p, ok := problem.As(err)
	if !ok { // the handshake was good, and broke off at its last word
		p = noHawser(r.name, address, false, err)
	}
	n.note(r, p)
	return err
}

// reach connects to a peer's address and greets who answers. It returns a greeting
// in which both accepted each other, or a problem.
func (n *Node) reach(ctx context.Context, r *remote, address string, test bool) (*greeting, *wire, error) {
	w, err := n.connect(ctx, r.name, address)
	if err != nil {
		return nil, nil, err
	}
	g, err := n.greetAt(ctx, r, address, w, test)
	if err == nil {
		if p := n.refusal(g, w, r); p != nil {
			err = p
		}
	}
	if err != nil {
		_ = w.Close()
		return nil, nil, err
	}
	return g, w, nil
}

func (n *Node) connect(ctx context.Context, name, address string) (*wire, error) {
	d := net.Dialer{Timeout: n.dial}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, unreachable(name, address, err)
	}
	return &wire{Conn: conn, dialled: true}, nil
}

func (n *Node) greetAt(ctx context.Context, r *remote, address string, w *wire, test bool) (*greeting, error) {
	g, err := greet(ctx, w, n.cfg.Identity, n.introduce(test), time.Now().Add(n.hello), func(g *greeting) refusal { return n.judge(g, r) })
	if err != nil {
		return nil, noHawser(r.name, address, w.out.Load() > 0 && w.in.Load() == 0, err)
	}
	return g, nil
}

// unreachable words why there is no TCP connection.
func unreachable(name, address string, err error) *problem.Problem {
	host, port, _ := net.SplitHostPort(address)
	object := "peer " + shown(name)
	p := problem.New("peer-unreachable", object, address+" can't be reached", "check the address: hawser peer list")
	var dns *net.DNSError
	var parse *net.AddrError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		p = problem.New("peer-name-unknown", object, "the name "+host+" does not exist", "check it: getent hosts "+host+"; or give an IP address: hawser peer add FILE --address IP:"+port)
	case errors.As(err, &dns):
		p = problem.New("peer-name-unresolved", object, "the name "+host+" could not be resolved: the name server did not answer", "check this machine's DNS: getent hosts "+host)
	case errors.As(err, &parse):
		p = problem.New("peer-address-invalid", object, address+" is not an address", "hawser peer add FILE --address HOST:PORT")
	case errors.Is(err, syscall.ECONNREFUSED):
		p = problem.New("peer-refused-connection", object, "the machine answers, but nothing listens on "+address,
			"there: is the agent running, on this port, and on an address that other machines reach? hawser status, and its endpoint.listen")
	case timedOut(err):
		p = problem.New("peer-no-answer", object, address+" does not answer: a firewall drops the packets, or the machine is off",
			"open TCP port "+port+" from this machine to "+host+" in every firewall and security group between; try: nc -vz "+host+" "+port)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		p = problem.New("peer-no-route", object, "this machine has no way to "+host, "check network and VPN: ip route get "+host)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		p = problem.New("peer-forbidden", object, "this machine's own firewall forbids the connection to "+address, "allow it: nft list ruleset, or iptables -S OUTPUT")
	}
	return p.Because(err).Retry()
}

// noHawser words why what answers at a peer's address is not an agent.
func noHawser(name, address string, silent bool, err error) *problem.Problem {
	host, port, _ := net.SplitHostPort(address)
	object := "peer " + shown(name)
	check := "on " + shown(name) + ", endpoint.listen tells the right port: hawser status; here: hawser peer add FILE --address " + net.JoinHostPort(host, "PORT")
	var record tls.RecordHeaderError
	var notTLS *errTLS
	var p *problem.Problem
	switch {
	case errors.As(err, &record):
		p = problem.New("peer-other-service", object, "another service listens on "+address+": it does not speak TLS"+looksLike(record.RecordHeader[:]), check)
	case timedOut(err) && silent:
		p = problem.New("peer-silent", object, "TCP connects to "+address+", but TLS is never answered: a proxy, firewall or load balancer between accepts the connection and does not pass it on, or another service listens there",
			"have port "+port+" passed through as plain TCP by what stands between; "+check)
	case timedOut(err):
		p = problem.New("peer-silent", object, address+" began to answer, and then nothing more came: large packets get lost on the way, or its agent is overloaded",
			"check the path MTU (ping -M do -s 1372 "+host+"), and the load there")
	case closed(err):
		p = problem.New("peer-hung-up", object, address+" closed the connection during the handshake: something between breaks TLS off, another service listens there (PostgreSQL does so), or its agent is stopping", check)
	case errors.As(err, &notTLS):
		p = problem.New("peer-other-service", object, "another service, or a proxy that ends TLS, answers on "+address,
			check+"; a proxy or load balancer between has to pass TCP through as it is")
	default:
		p = problem.New("peer-handshake", object, "the handshake with "+address+" failed", check)
	}
	return p.Because(err).Retry()
}

// looksLike names services by their first bytes.
func looksLike(head []byte) string {
	for begin, name := range map[string]string{"HTTP/": "HTTP", "SSH-": "SSH", "220 ": "a mail or FTP server"} {
		if strings.HasPrefix(string(head), begin) {
			return ", but looks like " + name
		}
	}
	return fmt.Sprintf(" (it began with %q)", head)
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}
