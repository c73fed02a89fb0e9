package peer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sort"
	"sync"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// Trusted is an instance whose certificate was given to this one.
type Trusted struct {
	Name           string
	CertificatePEM string
	Address        string // host:port; "" when they dial us
}

// TrustStore knows who is trusted.
type TrustStore interface {
	Trusted(ctx context.Context) ([]Trusted, error)
}

// Handler answers a trusted peer. Its methods are called from many goroutines; ctx
// ends with the caller or the connection. A *problem.Problem arrives as one.
type Handler interface {
	Call(ctx context.Context, from, link, method string, payload []byte) ([]byte, error)
	Stream(ctx context.Context, from, link, kind string, s Stream) error
}

// Config is what a node works with.
type Config struct {
	Identity *Identity
	Trust    TrustStore
	Handler  Handler
	Listen   string // host:port
	Version  string // of the agent
	Log      *slog.Logger

	// KeepAlive overrides the interval of keepalives, for tests.
	KeepAlive time.Duration
}

func (c Config) keepAlive() time.Duration {
	if c.KeepAlive > 0 {
		return c.KeepAlive
	}
	return keepAlive
}

const (
	dialTimeout = 10 * time.Second
	// strangers is how many connections may be greeted at a time.
	strangers = 64
	// maxRefused bounds the list of those that were refused.
	maxRefused = 32
)

// Node is this instance's end of the connections to all its peers.
type Node struct {
	cfg      Config
	listener net.Listener
	changed  chan chan<- error // trust changed; the answer says whether it was taken in

	mu       sync.Mutex
	trust    map[string]*trustee
	sessions map[string]*session
	refused  []Refused
}

// trustee is a trusted peer and what is known of the connection to it.
type trustee struct {
	Trusted
	print     string
	connected chan struct{} // closed while there is a session
	last      *problem.Problem
	lastAt    time.Time
	in, out   uint64             // of ended sessions
	stop      context.CancelFunc // of its dialler
}

// Refused is somebody who was turned away.
type Refused struct {
	Name, Fingerprint, Address string // as claimed; nothing proves the name
	Problem                    *problem.Problem
	At                         time.Time
	Count                      int
}

// New opens the listener. Nothing is accepted before Run.
func New(cfg Config) (*Node, error) {
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, problem.New("endpoint-taken", "endpoint "+cfg.Listen, "the agent can't listen there",
			"end what uses the port (ss -ltnp), or name another in endpoint.listen").Because(err)
	}
	return &Node{cfg: cfg, listener: l, changed: make(chan chan<- error), trust: map[string]*trustee{}, sessions: map[string]*session{}}, nil
}

// Addr is where the node listens.
func (n *Node) Addr() net.Addr { return n.listener.Addr() }

// Refresh takes in a change of trust. It needs Run.
func (n *Node) Refresh(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case n.changed <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return <-done
}

// Run accepts and dials until ctx ends, and returns when every goroutine has.
func (n *Node) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer context.AfterFunc(ctx, func() { _ = n.listener.Close() })()
	all.Go(func() { n.accept(ctx, &all) })
	wait, next := 100*time.Millisecond, time.After(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case done := <-n.changed:
			done <- n.load(ctx, &all)
		case <-next:
			if err := n.load(ctx, &all); err != nil {
				n.cfg.Log.Warn("can't read whom to trust, trying again", "error", err)
				wait = min(2*wait, 5*time.Second)
				next = time.After(wait)
			}
		}
	}
}

// load brings the node in line with the trust store.
func (n *Node) load(ctx context.Context, all *sync.WaitGroup) error {
	list, err := n.cfg.Trust.Trusted(ctx)
	if err != nil {
		return err
	}
	now := map[string]Trusted{}
	for _, t := range list {
		now[t.Name] = t
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, t := range n.trust {
		if now[name] == t.Trusted {
			continue
		}
		t.stop()
		if s := n.sessions[name]; s != nil && now[name].CertificatePEM != t.CertificatePEM {
			n.cfg.Log.Info("peer is not trusted any more", "peer", name)
			_ = s.mux.Close()
			delete(n.sessions, name)
		}
		if now[name].Name == "" {
			delete(n.trust, name)
		}
	}
	for name, t := range now {
		old := n.trust[name]
		if old != nil && old.Trusted == t {
			continue
		}
		print, err := Fingerprint([]byte(t.CertificatePEM))
		if err != nil {
			n.cfg.Log.Error("the certificate of a peer can't be read", "peer", name, "error", err)
			continue
		}
		dctx, stop := context.WithCancel(ctx)
		fresh := &trustee{Trusted: t, print: print, connected: make(chan struct{}), stop: stop}
		if old != nil {
			fresh.in, fresh.out = old.in, old.out
			if s := n.sessions[name]; s != nil {
				close(fresh.connected)
			}
		}
		n.trust[name] = fresh
		if t.Address != "" {
			all.Go(func() { n.dialForever(dctx, t, all) })
		}
	}
	return nil
}

func (n *Node) trusted(name string) *trustee {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.trust[name]
}

func (n *Node) byFingerprint(print string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, t := range n.trust {
		if t.print == print {
			return name
		}
	}
	return ""
}

func (n *Node) hello() hello {
	return hello{Name: n.cfg.Identity.Name, Version: n.cfg.Version, Oldest: oldestProtocol, Newest: newestProtocol}
}

func (n *Node) accept(ctx context.Context, all *sync.WaitGroup) {
	places := make(chan struct{}, strangers)
	for {
		raw, err := n.listener.Accept()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			n.cfg.Log.Warn("can't accept a connection", "error", err)
			time.Sleep(50 * time.Millisecond) // out of files, most likely
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			_ = raw.Close()
			continue
		}
		all.Go(func() {
			bytes := &counter{Conn: raw}
			g, err := greet(ctx, bytes, n.cfg.Identity, false, n.hello(), n.judge)
			<-places
			if err != nil {
				_ = raw.Close()
				if ctx.Err() == nil {
					n.cfg.Log.Warn("a connection did not become a peer's", "remote", raw.RemoteAddr(), "error", err)
				}
				return
			}
			n.greeted(ctx, g, bytes, false)
		})
	}
}

// greeted takes up a session, or notes why there is none.
func (n *Node) greeted(ctx context.Context, g *greeted, bytes *counter, dialled bool) {
	if g.ours != nil || g.theirs != nil {
		n.refuse(g)
		_ = g.conn.Close()
		return
	}
	s, err := newSession(n, g, bytes, dialled)
	if err != nil {
		_ = g.conn.Close()
		n.cfg.Log.Warn("a session could not be made", "peer", g.hello.Name, "error", err)
		return
	}
	if g.hello.Probe {
		s.run(ctx, slog.New(slog.DiscardHandler))
		return
	}
	if !n.register(s) {
		_ = s.mux.Close()
		_ = s.client.Close()
		return
	}
	n.cfg.Log.Info("peer connected", "peer", s.peer, "remote", s.remote, "dialled", dialled, "version", s.version)
	s.run(ctx, n.cfg.Log)
	n.unregister(s)
}

// register makes s the session with its peer. When both sides dial at once, the
// connection of the side with the lower fingerprint stays: both sides decide so.
// A side's new connection replaces its old one, which it knows to be dead.
func (n *Node) register(s *session) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.trust[s.peer]
	if t == nil || t.print != s.print {
		return false // trust ended meanwhile
	}
	old := n.sessions[s.peer]
	if old != nil && !old.mux.IsClosed() && old.dialled != s.dialled {
		weWin := n.cfg.Identity.Fingerprint() < s.print
		if s.dialled != weWin {
			return false
		}
	}
	if old != nil {
		_ = old.mux.Close()
	}
	n.sessions[s.peer] = s
	t.last = nil
	if old == nil {
		close(t.connected)
	}
	return true
}

func (n *Node) unregister(s *session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.trust[s.peer]; t != nil {
		t.in, t.out = t.in+s.bytes.in.Load(), t.out+s.bytes.out.Load()
	}
	if n.sessions[s.peer] != s {
		return
	}
	delete(n.sessions, s.peer)
	if t := n.trust[s.peer]; t != nil {
		t.connected = make(chan struct{})
		t.last = problem.New("connection-lost", "peer "+s.peer, "the connection ended", "none: it is made again").Retry()
		t.lastAt = time.Now()
	}
}

// refuse notes a refusal, on whichever side it was decided.
func (n *Node) refuse(g *greeted) {
	why := g.ours
	if why == nil {
		why = g.theirs
	}
	n.cfg.Log.Warn("peer refused", "claims", g.hello.Name, "fingerprint", fingerprint(g.cert), "remote", g.conn.RemoteAddr(),
		"by_us", g.ours != nil, "cause", why.Error())
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.trust[g.hello.Name]; t != nil && t.print == fingerprint(g.cert) {
		t.last, t.lastAt = why, time.Now()
		return
	}
	host, _, _ := net.SplitHostPort(g.conn.RemoteAddr().String())
	for i := range n.refused {
		if r := &n.refused[i]; r.Fingerprint == fingerprint(g.cert) && r.Name == g.hello.Name {
			r.At, r.Problem, r.Address = time.Now(), why, host
			r.Count++
			return
		}
	}
	n.refused = append(n.refused, Refused{
		Name: fmt.Sprintf("%.64s", g.hello.Name), Fingerprint: fingerprint(g.cert), Address: host, Problem: why, At: time.Now(), Count: 1,
	})
	if len(n.refused) > maxRefused {
		n.refused = n.refused[1:]
	}
}

// dialForever keeps a session with a peer whose address is known, whoever dials.
func (n *Node) dialForever(ctx context.Context, t Trusted, all *sync.WaitGroup) {
	for wait := 100 * time.Millisecond; ctx.Err() == nil; {
		if s, _ := n.session(t.Name); s != nil {
			wait = 100 * time.Millisecond
			select {
			case <-s.finished:
			case <-ctx.Done():
				return
			}
		} else if err := n.dialOnce(ctx, t, all); err != nil {
			n.failed(t.Name, err)
			wait = min(2*wait, 10*time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

// dialOnce returns when the session that it made has ended, or why there was none.
// The session belongs to the node's own goroutines: a changed address ends the
// dialler, and not what it has dialled.
func (n *Node) dialOnce(ctx context.Context, t Trusted, _ *sync.WaitGroup) error {
	raw, err := dial(ctx, t.Address)
	if err != nil {
		return err
	}
	bytes := &counter{Conn: raw}
	g, err := greet(ctx, bytes, n.cfg.Identity, true, n.hello(), func(c *x509.Certificate, h hello) *problem.Problem {
		if p := n.judge(c, h); p != nil || h.Name == t.Name {
			return p
		}
		return problem.New("peer-other", "address "+t.Address, "instance "+h.Name+" answers there, not "+t.Name,
			"give the right address: hawser peer add FILE --address HOST:PORT")
	})
	if err != nil {
		_ = raw.Close()
		return greetProblem(t.Address, err)
	}
	if p := either(g.ours, g.theirs); p != nil {
		n.refuse(g)
		_ = g.conn.Close()
		return p
	}
	n.greeted(ctx, g, bytes, true)
	return nil
}

func either(a, b *problem.Problem) *problem.Problem {
	if a != nil {
		return a
	}
	return b
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	raw, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		return raw, nil
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return nil, problem.New("peer-name", "address "+address, "the host name can't be resolved", "mend the name, or DNS: getent hosts "+dns.Name).Retry().Because(err)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil, problem.New("peer-timeout", "address "+address, "no answer: a firewall on the way swallows the packets, or the host is down",
			"allow TCP to "+address+"; or let the other side dial: only one direction has to be open").Retry().Because(err)
	}
	return nil, problem.New("peer-unreachable", "address "+address, "no TCP connection: nothing listens there, or a firewall refuses",
		"see that the other agent runs and listens there (hawser status on its machine); or let it dial").Retry().Because(err)
}

func greetProblem(address string, err error) *problem.Problem {
	var t *tlsError
	if errors.As(err, &t) {
		return problem.New("peer-tls", "address "+address, "TCP connects, but what answers does not speak Hawser's TLS: another service on that port, or a proxy or firewall that looks into the traffic",
			"give the port of the other agent's endpoint, and let TCP pass untouched").Retry().Because(err)
	}
	return problem.New("peer-hello", "address "+address, "TLS stands, but the other side ended the greeting", "look into the other agent's log").Retry().Because(err)
}

func (n *Node) failed(peer string, err error) {
	p := problem.Of(err, "peer-unreachable")
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.trust[peer]
	if t == nil {
		return
	}
	if t.last == nil || t.last.Code != p.Code {
		n.cfg.Log.Warn("can't connect to peer", "peer", peer, "cause", p.Error())
	}
	t.last, t.lastAt = p, time.Now()
}

// session returns the live session with a peer, or why there is none.
func (n *Node) session(peer string) (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sessions[peer]; s != nil && !s.mux.IsClosed() {
		return s, nil
	}
	t := n.trust[peer]
	if t == nil {
		return nil, problem.New("peer-not-found", "peer "+peer, "this instance does not know it", "hawser peer add FILE")
	}
	return nil, disconnected(peer, t.last)
}

// Connected returns a channel that is closed while a session with the peer stands.
func (n *Node) Connected(peer string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.trust[peer]; t != nil {
		return t.connected
	}
	return nil
}

// Status is what is known of a trusted peer.
type Status struct {
	Trusted
	Fingerprint       string
	Connected         bool
	Dialled           bool // by us
	Since             time.Time
	Remote            string
	Version           string
	RTT               time.Duration
	BytesIn, BytesOut uint64 // on the wire
	Problem           *problem.Problem
}

// Status returns the trusted peers by name, and those that were lately refused.
func (n *Node) Status() ([]Status, []Refused) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Status, 0, len(n.trust))
	for name, t := range n.trust {
		st := Status{Trusted: t.Trusted, Fingerprint: t.print, Problem: t.last, Since: t.lastAt, BytesIn: t.in, BytesOut: t.out}
		if s := n.sessions[name]; s != nil && !s.mux.IsClosed() {
			st.Connected, st.Dialled, st.Since, st.Remote, st.Version = true, s.dialled, s.since, s.remote, s.version
			st.RTT, st.Problem = time.Duration(s.rtt.Load()), nil
			st.BytesIn, st.BytesOut = st.BytesIn+s.bytes.in.Load(), st.BytesOut+s.bytes.out.Load()
		}
		out = append(out, st)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, append([]Refused(nil), n.refused...)
}
