package peer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

// Handler answers trusted peers. from is the peer's name here. Its methods run on
// goroutines of their own, many at a time. ctx ends with the call or stream, or when
// the caller, the session or Run ends; a method has to return then, since Run waits
// for it. The first *problem.Problem of an error arrives as one on the other side.
type Handler interface {
	Call(ctx context.Context, from, link, method string, payload []byte) ([]byte, error)
	Stream(ctx context.Context, from, link, kind string, s Stream) error
}

// Config is what a node works with.
type Config struct {
	Identity *Identity // at first; see Renew
	Trust    TrustStore
	Handler  Handler
	Listen   string // host:port
	Version  string // of the agent
	Log      *slog.Logger

	// Renewed is told that a peer with several certificates has shown the last of them:
	// those before are needed no more. It may be nil.
	Renewed func(ctx context.Context, peer, certificatePEM string)

	// KeepAlive is how often a sign of life is asked for; a session from which
	// nothing came for three times as long is over. 0 means 5 s.
	KeepAlive time.Duration
}

const (
	defaultKeepAlive = 5 * time.Second
	// greetWithin bounds everything up to the session: TLS, hello, verdict, decision.
	greetWithin = 10 * time.Second
)

func (c Config) keepAlive() time.Duration {
	if c.KeepAlive > 0 {
		return c.KeepAlive
	}
	return defaultKeepAlive
}

// idle is the silence after which a session is over.
func (c Config) idle() time.Duration { return 3 * c.keepAlive() }

// Node is this instance's end of the sessions with all its peers.
type Node struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	gate     gate
	epoch    uint64 // of the decisions made here

	reloading sync.Mutex // held while the trust store is read and acted upon

	identity atomic.Pointer[Identity]

	mu        sync.Mutex
	run       context.Context // Run's, nil before it
	over      bool            // Run waits for its goroutines; none may begin
	wg        sync.WaitGroup  // Run's goroutines; Add under mu
	serial    uint64          // of the last decision made here
	loadedAt  time.Time
	peers     map[string]*remote       // by name
	prints    map[string]*remote       // by fingerprint
	connected map[string]chan struct{} // by name, also of peers that do not exist yet
	refused   refusals
}

// New opens the listener. Nothing is accepted or dialled before Run, which closes it.
func New(cfg Config) (*Node, error) {
	l, err := net.Listen("tcp", cfg.Listen)
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, problem.New("endpoint-not-here", "endpoint "+cfg.Listen, "no interface of this machine has this address",
			"").Advise("name one of its own in endpoint.listen; without a host (:5022) the agent listens on all").Because(err)
	case err != nil:
		return nil, problem.New("endpoint-taken", "endpoint "+cfg.Listen, "the agent can't listen there",
			"ss -ltnp").Advise("end what uses the port, or name another in endpoint.listen: two agents on one machine need different ones").Because(err)
	}
	n := &Node{
		cfg: cfg, log: cfg.Log, listener: l, epoch: uint64(time.Now().UnixNano()),
		peers: map[string]*remote{}, prints: map[string]*remote{}, connected: map[string]chan struct{}{},
	}
	n.identity.Store(cfg.Identity)
	return n, nil
}

// Identity is this instance's present one.
func (n *Node) Identity() *Identity { return n.identity.Load() }

// Renew shows id to the peers from now on, who have to trust it already. Sessions that
// were made with the identity before are ended, and made again at once.
func (n *Node) Renew(id *Identity) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.identity.Store(id)
	for _, r := range n.peers {
		s := r.session
		if s == nil {
			continue
		}
		n.detach(r)
		r.last = left(r.name, leaveRenewed, true)
		if !n.startLocked(func(context.Context) { s.leave(leaveRenewed) }) {
			s.end(r.last)
		}
	}
}

// Addr is where the node listens.
func (n *Node) Addr() net.Addr { return n.listener.Addr() }

// Run accepts and dials until ctx ends, tells the peers that it stops, and returns
// when all its goroutines and handlers have. It is called once.
func (n *Node) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = n.listener.Close() })()
	n.mu.Lock()
	n.run = ctx
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.over = true
		n.mu.Unlock()
		n.wg.Wait()
	}()
	// Who is not known yet would be refused as a stranger, so nobody is let in before.
	if n.loadUntil(ctx) {
		n.accept(ctx)
	}
	return nil
}

// loadUntil reads the trust store as soon as it can be read.
func (n *Node) loadUntil(ctx context.Context) bool {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := n.reload(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		n.log.Warn("can't read whom to trust, trying again", "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// Refresh takes in a change of trust: it dials who is new, and ends the session of
// who is trusted no longer. When the trust store can't be read, nothing changes and
// it is read again by Run.
func (n *Node) Refresh() {
	n.mu.Lock()
	ctx := n.run
	n.mu.Unlock()
	if ctx == nil {
		return // Run begins by reading the trust store
	}
	if err := n.reload(ctx); err != nil {
		n.log.Warn("can't read whom to trust, trying again", "error", err)
		n.start(func(ctx context.Context) { n.loadUntil(ctx) })
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.peers {
		select {
		case r.retry <- struct{}{}:
		default:
		}
	}
}

// start runs f on one of Run's goroutines, and reports whether Run is still there.
func (n *Node) start(f func(ctx context.Context)) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.startLocked(f)
}

func (n *Node) startLocked(f func(ctx context.Context)) bool {
	if n.run == nil || n.over {
		return false
	}
	ctx := n.run
	n.wg.Go(func() { f(ctx) })
	return true
}

func (n *Node) accept(ctx context.Context) {
	for {
		conn, err := n.listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		if err != nil {
			n.log.Warn("can't accept a connection", "error", err)
			select { // out of files, most likely
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		n.gate.enter(conn)
		if !n.start(func(ctx context.Context) { n.welcome(ctx, conn) }) {
			_ = conn.Close()
		}
	}
}

// welcome greets whoever came.
func (n *Node) welcome(ctx context.Context, conn net.Conn) {
	deadline := time.Now().Add(greetWithin)
	w := &wire{Conn: conn}
	g, err := greet(ctx, w, n.Identity(), n.hello(false), deadline, func(g *greeting) refusal {
		n.freshen(ctx, deadline)
		return n.judge(g, nil)
	})
	n.gate.leave(conn)
	if err != nil {
		_ = conn.Close()
		n.log.Debug("a connection was not greeted", "remote", conn.RemoteAddr(), "error", err)
		return
	}
	if g.ours != accepted || g.theirs != accepted {
		n.refuse(g, nil)
		_ = g.conn.Close()
		return
	}
	if g.hello.Test {
		n.serveTest(ctx, g, w)
		return
	}
	if err := n.settle(ctx, g, w, deadline); err != nil {
		_ = w.Close()
		n.log.Debug("a connection did not become the session", "remote", conn.RemoteAddr(), "error", err)
	}
}

func (n *Node) hello(test bool) hello {
	return hello{Name: n.Identity().Name, Version: n.cfg.Version, Oldest: oldestProtocol, Newest: newestProtocol, Test: test}
}

// live returns the session with a peer, or why there is none.
func (n *Node) live(name string) (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.peers[name]
	if r == nil {
		return nil, n.notFound(name)
	}
	if r.session == nil && r.last == nil && n.refused.claims(name) {
		// Whoever it was: it is no word of the peer's.
		return nil, disconnected(name, problem.New("peer-refused", "peer "+shown(name), "who calls itself so was refused here for its certificate", "hawser peer list").
			Advise("it shows the certificate, which hawser peer add takes if it is that instance's").Retry())
	}
	if r.session == nil {
		return nil, disconnected(name, r.last)
	}
	if cause := r.session.ended(); cause != nil {
		return nil, disconnected(name, cause)
	}
	return r.session, nil
}

// notFound asks back with the peer that was most likely meant. The caller holds mu.
func (n *Node) notFound(name string) *problem.Problem {
	return problem.New("peer-not-found", "peer "+shown(name), "this instance does not know it", "hawser peer add "+file(name)).
		Meant(problem.Nearest(name, slices.Sorted(maps.Keys(n.peers))))
}

// Call asks a peer. It lasts as long as ctx and the session do. Without a session
// it fails at once, retryable; so it does when the session ends meanwhile, and then
// nobody knows whether the call was carried out.
func (n *Node) Call(ctx context.Context, peer, link, method string, payload []byte) ([]byte, error) {
	if err := fits(method, "request", payload); err != nil {
		return nil, err
	}
	s, err := n.live(peer)
	if err != nil {
		return nil, err
	}
	reply, err := s.stub.Call(ctx, &peerpb.CallRequest{Link: link, Method: method, Payload: payload})
	if err != nil {
		return nil, s.wrap(ctx, err)
	}
	return reply.Payload, nil
}

// Open opens a stream to a peer. It lasts until Close, the end of ctx, or the end of
// the session. That the peer refuses it is told by Recv. Who does not Close has to
// end ctx.
func (n *Node) Open(ctx context.Context, peer, link, kind string) (ClientStream, error) {
	s, err := n.live(peer)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p, err := s.stub.Stream(ctx)
	if err == nil {
		if err = p.Send(&peerpb.Packet{Link: link, Kind: kind}); err != nil {
			if _, why := p.Recv(); why != nil {
				err = why // gRPC's Send says io.EOF alone
			}
		}
	}
	if err != nil {
		err = s.wrap(ctx, err)
		cancel()
		return nil, err
	}
	return &clientStream{stream: newStream(p, s.near, func(err error) error { return s.wrap(ctx, err) }), cancel: cancel, packets: p}, nil
}

// Connected returns a channel that is closed while a session with the peer stands.
// Ask again after it ended. A peer that does not exist yet may be waited for.
func (n *Node) Connected(peer string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.connectedTo(peer)
}

func (n *Node) connectedTo(peer string) chan struct{} {
	c := n.connected[peer]
	if c == nil {
		c = make(chan struct{})
		n.connected[peer] = c
	}
	return c
}

// errNotUsed: the side that decides has a session that it keeps.
var errNotUsed = errors.New("another connection is used")
