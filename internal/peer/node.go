package peer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

// Handler answers the other instances. Its methods are called from many goroutines
// at a time, for trusted peers alone; from is the peer's name in the trust store.
// Their context ends with the caller's, with the session, and with Run.
type Handler interface {
	// Call answers one question. A *problem.Problem in the error's chain arrives as
	// one, with the text of the whole error.
	Call(ctx context.Context, from, link, method string, payload []byte) ([]byte, error)
	// Stream serves a stream until it returns; the error is as Call's. Neither s nor
	// what it gave may be used for sending afterwards.
	Stream(ctx context.Context, from, link, kind string, s Stream) error
}

// Config is what a node works with. Only Trust and Handler are called back.
type Config struct {
	Identity *Identity
	Trust    TrustStore
	Handler  Handler
	Listen   string // host:port; "": nobody can dial this instance
	Version  string // of the agent, told to the peers
	Log      *slog.Logger

	timing *timing // nil: the usual; tests set it
}

// timing is how long things may take.
type timing struct {
	dial    time.Duration // name resolution and TCP
	hello   time.Duration // TLS, hello and verdicts, as a whole
	idle    time.Duration // without a byte, a session is dead
	ping    time.Duration // well below idle
	alive   time.Duration // for a sign of life when two sessions compete
	backoff time.Duration // the first pause between two tries to dial, doubled up to …
	longest time.Duration
	measure time.Duration // of the rate, each way, in Test
}

var usual = timing{
	dial: 10 * time.Second, hello: 10 * time.Second, idle: 12 * time.Second, ping: 4 * time.Second, alive: 2 * time.Second,
	backoff: 250 * time.Millisecond, longest: 10 * time.Second, measure: time.Second,
}

// Node is this instance among its peers. Its methods may be called from any
// goroutine, before, during and after Run.
type Node struct {
	cfg   Config
	timing
	log   *slog.Logger
	ln    net.Listener // nil: does not listen
	epoch uint64       // of this run of the agent, for decision
	gate  gate
	wg    sync.WaitGroup // what Run owns

	reloads chan chan struct{}

	mu      sync.Mutex
	running context.Context // Run's, nil before
	loaded  bool            // the trust store was read
	peers   map[string]*remote
	prints  map[string]*remote       // the same by fingerprint
	up      map[string]chan struct{} // closed while a session stands
	refused []Refused                // oldest first
}

// New makes a node and binds its endpoint, so that Addr is known. Run serves it.
func New(cfg Config) (*Node, error) {
	n := &Node{
		cfg: cfg, timing: usual, log: cfg.Log, reloads: make(chan chan struct{}),
		peers: map[string]*remote{}, prints: map[string]*remote{}, up: map[string]chan struct{}{},
	}
	if cfg.timing != nil {
		n.timing = *cfg.timing
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	var epoch [8]byte
	if _, err := rand.Read(epoch[:]); err != nil {
		return nil, err
	}
	n.epoch = binary.BigEndian.Uint64(epoch[:])
	if cfg.Listen == "" {
		return n, nil
	}
	var err error
	if n.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, bindProblem(cfg.Listen, err)
	}
	return n, nil
}

func bindProblem(address string, err error) error {
	p := problem.New("endpoint-unusable", "endpoint "+address, "the agent can't listen there for its peers", "give another address: --endpoint-listen HOST:PORT")
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(address)
		p.Cause, p.Remedy = "another process listens there already", "find it: ss -ltnp 'sport = :"+port+"'; or give another address"
	}
	return p.Because(err)
}

// Addr is where the node listens, nil if it does not.
func (n *Node) Addr() net.Addr {
	if n.ln == nil {
		return nil
	}
	return n.ln.Addr()
}

// Run listens, dials and keeps one session with each trusted peer, until ctx ends.
// It returns nil when every session, handler and goroutine of the node has ended.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.mu.Lock()
	n.running = ctx
	n.mu.Unlock()
	if n.ln != nil {
		defer context.AfterFunc(ctx, func() { _ = n.ln.Close() })()
		n.wg.Go(func() { n.accept(ctx) })
	}
	n.keepTrust(ctx)
	cancel()
	if n.ln != nil {
		_ = n.ln.Close()
	}
	n.wg.Wait()
	return nil
}

// keepTrust reads the trust store at the start and when it is asked to, and again
// while it can't be read.
func (n *Node) keepTrust(ctx context.Context) {
	pause := newBackoff(n.backoff, n.longest)
	for {
		var again <-chan time.Time
		if err := n.reload(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("the trusted peers can't be read; those known stay", "error", err)
			again = time.After(pause.next())
		} else {
			pause.reset()
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case answer := <-n.reloads:
			defer close(answer)
		}
	}
}

// Refresh reads the trust store again: new peers are dialled, and sessions whose
// certificate is no longer trusted are closed. When it returns, Status shows what
// was read. If the store can't be read now, that is repeated until it can.
func (n *Node) Refresh() {
	n.mu.Lock()
	ctx := n.running
	n.mu.Unlock()
	if ctx == nil { // Run will read it
		return
	}
	answer := make(chan struct{})
	select {
	case n.reloads <- answer:
		select {
		case <-answer:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
}

// accept lets connections in. Each is served by its own goroutine.
func (n *Node) accept(ctx context.Context) {
	pause := newBackoff(5*time.Millisecond, time.Second)
	for ctx.Err() == nil {
		conn, err := n.ln.Accept()
		if err != nil {
			if ctx.Err() == nil { // out of file descriptors, most likely
				n.log.Warn("a connection could not be accepted", "error", err)
				sleep(ctx, pause.next(), nil, nil)
			}
			continue
		}
		pause.reset()
		n.gate.enter(conn)
		n.wg.Go(func() {
			defer n.gate.leave(conn)
			w := &wire{Conn: conn}
			if err := n.welcome(ctx, w); err != nil {
				_ = w.Close()
				n.log.Debug("a connection came to nothing", "from", conn.RemoteAddr(), "error", err)
			}
		})
	}
}

// welcome serves one connection that was dialled by the other side, to its end.
func (n *Node) welcome(ctx context.Context, w *wire) error {
	deadline := time.Now().Add(n.hello)
	g, err := greet(ctx, w, n.cfg.Identity, n.introduce(false), deadline, func(g *greeting) refusal { return n.judge(g, nil) })
	if err != nil {
		return n.spoiled(w, err)
	}
	if p := n.refusal(g, w, nil); p != nil {
		return p
	}
	n.gate.leave(w.Conn)
	r := n.byPrint(g.print)
	if r == nil {
		return errNotTrusted // since a moment
	}
	if g.hello.Test {
		return n.serveTest(ctx, r, g, w)
	}
	s, err := n.settle(ctx, r, g, w)
	if err != nil {
		return err
	}
	n.keep(ctx, r, s)
	return nil
}

func (n *Node) introduce(test bool) hello {
	return hello{Name: n.cfg.Identity.Name, Version: n.cfg.Version, Oldest: oldestProtocol, Newest: newestProtocol, Test: test}
}

func (n *Node) byPrint(fp string) *remote {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.prints[fp]
}

var (
	errNotTrusted = errors.New("its certificate is no longer trusted")
	errDuplicate  = errors.New("another connection to this peer is used")
	errStopped    = errors.New("the agent stops")
)

// refusal records and words it if one side refused the other.
func (n *Node) refusal(g *greeting, w *wire, dialled *remote) *problem.Problem {
	if g.ours == accepted && g.theirs == accepted {
		return nil
	}
	who := n.parties(g, dialled)
	p := g.theirs.theirs(who)
	if g.ours != accepted {
		p = g.ours.ours(who)
	}
	if dialled == nil && g.ours != accepted {
		n.turnedAway(Refused{Name: g.hello.Name, Fingerprint: g.print, Address: w.RemoteAddr().String(), Problem: p})
	}
	if r := n.byPrint(g.print); r != nil && dialled == nil && g.ours == accepted {
		n.note(r, p) // a trusted peer refused us: that is why there is no session
	}
	return p
}

// settle agrees with the other side whether this connection is used. What it
// returns is installed: calls go there. The caller has to keep it.
func (n *Node) settle(ctx context.Context, r *remote, g *greeting, w *wire) (*session, error) {
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	var d decision
	if n.cfg.Identity.Fingerprint() < g.print {
		select { // one decision at a time
		case r.claim <- struct{}{}:
			defer func() { <-r.claim }()
		case <-ctx.Done():
			return nil, errStopped
		}
		d = n.decide(r, w.dialled)
		if err := say(g.conn, d); err != nil {
			return nil, fmt.Errorf("say the decision: %w", err)
		}
	} else if err := hear(g.conn, &d); err != nil {
		return nil, fmt.Errorf("hear the decision: %w", err)
	}
	if !d.Use {
		return nil, errDuplicate
	}
	s, err := newSession(g, w, r.name, n.cfg.Handler, n.idle, n.log.With("peer", r.name))
	if err != nil {
		return nil, err
	}
	s.epoch, s.serial = d.Epoch, d.Serial
	if err := n.install(ctx, r, s); err != nil {
		s.end(nil)
		return nil, err
	}
	return s, nil
}

// decide is for the side with the lower fingerprint. A session that was dialled
// from the other end stays if it still answers.
func (n *Node) decide(r *remote, dialled bool) decision {
	if cur := n.current(r); cur != nil && cur.dialled != dialled && cur.alive(n.alive) {
		return decision{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r.serial++
	return decision{Use: true, Epoch: n.epoch, Serial: r.serial}
}

func (n *Node) current(r *remote) *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return r.session
}

// install makes s the peer's session, and ends the one before it.
func (n *Node) install(ctx context.Context, r *remote, s *session) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := r.session
	switch {
	case ctx.Err() != nil:
		return errStopped
	case n.peers[r.name] != r || !r.trusts(s.print):
		return errNotTrusted
	case old != nil && old.epoch == s.epoch && old.serial > s.serial:
		return errDuplicate
	}
	r.session, r.last, r.since = s, nil, s.since
	if old != nil {
		r.in, r.out = r.in+old.wire.in.Load(), r.out+old.wire.out.Load()
		n.wg.Go(func() { old.leave(leaveReplaced) })
	} else {
		close(n.upOf(r.name))
	}
	n.log.Info("peer connected", "peer", r.name, "dialled by", dialler(s.dialled), "address", s.wire.RemoteAddr(), "version", s.version)
	return nil
}

func dialler(us bool) string {
	if us {
		return "us"
	}
	return "them"
}

// keep runs an installed session to its end.
func (n *Node) keep(ctx context.Context, r *remote, s *session) {
	n.wg.Go(func() { // callers learn at once; handlers may take longer to return
		<-s.done
		n.uninstall(r, s)
	})
	s.run(ctx, n.ping)
}

func (n *Node) uninstall(r *remote, s *session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.session != s {
		return // replaced
	}
	r.session, r.last, r.since = nil, s.cause, time.Now()
	r.in, r.out = r.in+s.wire.in.Load(), r.out+s.wire.out.Load()
	n.up[r.name] = make(chan struct{})
	n.log.Info("peer disconnected", "peer", r.name, "cause", s.cause.Cause, "after", r.since.Sub(s.since).Round(time.Millisecond))
}

// upOf returns the channel of Connected. It is called with the mutex held.
func (n *Node) upOf(name string) chan struct{} {
	c := n.up[name]
	if c == nil {
		c = make(chan struct{})
		n.up[name] = c
	}
	return c
}

// Connected returns a channel that is closed once a session with the peer stands.
// Ask again after it was lost. The peer may still be unknown.
func (n *Node) Connected(peer string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.upOf(peer)
}

// session returns the peer's session, or the problem that there is none.
func (n *Node) session(peer string) (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.peers[peer]
	switch {
	case r == nil && n.loaded:
		return nil, problem.New("peer-not-found", "peer "+shown(peer), "this instance trusts no peer of this name", "hawser peer add FILE")
	case r == nil:
		return nil, disconnected(peer, nil)
	case r.session == nil:
		return nil, disconnected(peer, r.problem())
	}
	return r.session, nil
}

// Call asks the peer, over the session that stands. An error of the other side's
// handler comes back as it was there. Without a session, or when it is lost
// meanwhile, it is the retryable problem peer-disconnected.
func (n *Node) Call(ctx context.Context, peer, link, method string, payload []byte) ([]byte, error) {
	s, err := n.session(peer)
	if err != nil {
		return nil, err
	}
	if err := fits(method, "request", payload); err != nil {
		return nil, err
	}
	reply, err := s.stub.Call(ctx, &peerpb.CallRequest{Link: link, Method: method, Payload: payload})
	if err != nil {
		return nil, s.wrap(ctx, err)
	}
	return reply.Payload, nil
}

// Open begins a stream to the peer. It lasts until Close, the end of ctx, the other
// side's end or the session's. Errors are as Call's; those of the other side's
// handler come from Recv.
func (n *Node) Open(ctx context.Context, peer, link, kind string) (ClientStream, error) {
	s, err := n.session(peer)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p, err := s.stub.Stream(ctx)
	if err == nil {
		err = p.Send(&peerpb.Packet{Link: link, Kind: kind})
	}
	if err != nil {
		cancel()
		return nil, s.wrap(ctx, err)
	}
	return &clientStream{
		stream: newStream(p, func(err error) error { return s.wrap(ctx, err) }),
		ctx:    ctx, cancel: cancel, packets: p,
	}, nil
}
