package peer

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

const (
	// streamWindow bounds what one stream holds that its reader has not read, on
	// either side. It is also what a stream can have in flight in a round trip.
	streamWindow = 2 << 20
	// sessionWindow bounds the same for one direction of a session.
	sessionWindow = 8 << 20
	maxStreams    = 1024 // that one peer opens at a time

	ioBuffer = 64 << 10
	// maxPayload bounds a call's request and its answer.
	maxPayload = 16 << 20
	maxMessage = maxPayload + 64<<10
)

// session is one connection to a proven peer, carrying both directions. It ends
// once and for all: by end, or when the wire breaks.
type session struct {
	peer     string // its name here
	print    string
	version  string
	protocol int
	dialled  bool // by us
	epoch    uint64
	serial   uint64
	since    time.Time

	wire   *wire
	mux    *yamux.Session
	server *grpc.Server
	client *grpc.ClientConn
	stub   peerpb.PeerClient
	rtt    atomic.Int64 // time.Duration, of the last ping
	least  atomic.Int64 // the shortest of all; 0: none yet

	done  chan struct{} // closed when it is over for callers
	once  sync.Once
	cause *problem.Problem // why it ended; read it after done
}

// newSession starts yamux and gRPC over a connection that both sides accepted.
// Until run nothing is served. A nil handler serves the probes of a test alone.
func newSession(g *greeting, w *wire, name string, h Handler, idle time.Duration, log *slog.Logger) (*session, error) {
	if err := w.watch(idle); err != nil {
		return nil, err
	}
	s := &session{
		peer: name, print: g.print, version: g.hello.Version, protocol: g.protocol(), dialled: w.dialled,
		since: time.Now(), wire: w, done: make(chan struct{}),
	}
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false             // the wire watches, with every byte as a sign of life
	cfg.ConnectionWriteTimeout = 2 * idle   // as above: the wire ends it sooner
	cfg.MaxStreamWindowSize = sessionWindow // gRPC makes all its streams over one of yamux's
	cfg.StreamOpenTimeout = 2 * idle
	cfg.LogOutput, cfg.Logger = nil, muxLog{log}
	begin := yamux.Server
	if w.dialled {
		begin = yamux.Client
	}
	var err error
	if s.mux, err = begin(&joined{Conn: g.conn}, cfg); err != nil {
		return nil, err
	}
	if s.client, err = grpc.NewClient("passthrough:///peer", clientOptions(s.mux)...); err != nil {
		_ = s.mux.Close()
		return nil, err
	}
	s.stub = peerpb.NewPeerClient(s.client)
	s.server = grpc.NewServer(serverOptions()...)
	peerpb.RegisterPeerServer(s.server, &service{session: s, handler: h})
	return s, nil
}

func clientOptions(mux *yamux.Session) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is below
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return mux.OpenStream() }),
		grpc.WithAuthority("peer"),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second},
			MinConnectTimeout: greetWithin, // without it a try ends after the delay, shorter than a slow line's round trip
		}),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(sessionWindow),
		grpc.WithReadBufferSize(ioBuffer), grpc.WithWriteBufferSize(ioBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	}
}

func serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(sessionWindow),
		grpc.ReadBufferSize(ioBuffer), grpc.WriteBufferSize(ioBuffer),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.WaitForHandlers(true),
	}
}

// run serves until the session has ended and every handler has returned. When ctx
// ends, it takes leave. ended is called between the end and the wait for handlers.
func (s *session) run(ctx context.Context, ping time.Duration, ended func()) {
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.server.Serve(s.mux) })
	wg.Go(func() { s.pings(ping) })
	select {
	case <-ctx.Done():
		s.leave(leaveStopping)
	case <-s.mux.CloseChan():
		s.end(nil)
	}
	ended()
	s.server.Stop()
	wg.Wait()
}

// pings keeps the wire awake on both sides, and measures.
func (s *session) pings(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if d, err := s.mux.Ping(); err == nil {
			s.rtt.Store(int64(d))
			if least := s.least.Load(); least == 0 || int64(d) < least {
				s.least.Store(int64(d))
			}
		}
		select {
		case <-s.mux.CloseChan():
			return
		case <-tick.C:
		}
	}
}

// nearBelow is a round trip within one site; a busy machine answers later than its
// line would, so the shortest one counts.
const nearBelow = 500 * time.Microsecond

// near tells whether bytes are cheap between the two, and both know what to make of it.
func (s *session) near() bool {
	least := time.Duration(s.least.Load())
	return s.protocol >= protocolS2 && least > 0 && least < nearBelow
}

// alive asks the other side for a sign of life.
func (s *session) alive(within time.Duration) bool {
	answer := make(chan error, 1)
	go func() {
		_, err := s.mux.Ping()
		answer <- err
	}()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case err := <-answer:
		return err == nil
	case <-timer.C:
		return false
	}
}

// Reasons to leave, as the other side is told them.
const (
	leaveStopping = "stopping"
	leaveRemoved  = "trust-removed"
	leaveReplaced = "replaced"
	leaveRenewed  = "renewed"
)

// leaveWithin bounds how long the other side is waited for when a session is ended.
const leaveWithin = 500 * time.Millisecond

// leave tells the other side why, if it listens, and ends the session.
func (s *session) leave(reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveWithin)
	defer cancel()
	_, _ = s.stub.Leave(ctx, &peerpb.LeaveRequest{Reason: reason})
	s.end(left(s.peer, reason, true))
}

// left words why a session was ended by one side.
func left(name, reason string, byUs bool) *problem.Problem {
	here, there := "this instance", "instance "+shown(name)
	if !byUs {
		here, there = there, here
	}
	switch reason {
	case leaveStopping:
		return problem.New("peer-stopped", "peer "+shown(name), "the agent of "+here+" was stopped", "").Advise("start it, if nothing else does").Retry()
	case leaveRemoved:
		p := problem.New("peer-removed", "peer "+shown(name), here+" trusts the certificate of "+there+" no longer", "hawser cert show").
			Advise("it prints the certificate of this instance, which hawser peer add takes there, if it is to be trusted")
		if byUs {
			p.Remedy, p.Advice = "hawser peer add "+file(name), "it takes the certificate that hawser cert show prints there, if it is to be trusted"
		}
		return p
	case leaveRenewed:
		return problem.New("peer-renewed", "peer "+shown(name), here+" renewed its certificate", "").Advise("it is connected again with the new one by itself").Retry()
	case leaveReplaced:
		return problem.New("peer-replaced", "peer "+shown(name), "a newer connection took its place", "").Advise("the newer connection is used").Retry()
	}
	return problem.New("peer-left", "peer "+shown(name), here+" closed the connection: "+word(reason), "hawser peer test "+problem.Word(name)).Retry()
}

// end closes the session at once. Without a cause the wire is asked for one.
func (s *session) end(cause *problem.Problem) {
	s.once.Do(func() {
		if cause == nil {
			cause = problem.New("peer-lost", "peer "+shown(s.peer), s.wire.cause(), "hawser peer test "+problem.Word(s.peer)).Advise("it is connected again by itself when it can be reached").Retry()
		}
		s.cause = cause
		close(s.done)
		_ = s.wire.Close() // first, since TLS would wait for a last word on a dead wire
		_ = s.mux.Close()
		_ = s.client.Close()
	})
	<-s.done
}

// ended returns why the session is over, or nil while it stands.
func (s *session) ended() *problem.Problem {
	select {
	case <-s.done:
		return s.cause
	default:
	}
	if s.mux.IsClosed() {
		s.end(nil)
		return s.cause
	}
	return nil
}

// muxLog passes what yamux says on; each end of a connection is told elsewhere.
type muxLog struct{ log *slog.Logger }

func (l muxLog) Printf(format string, args ...any) {
	l.log.Debug("yamux", "says", fmt.Sprintf(format, args...))
}
func (l muxLog) Print(args ...any)   { l.log.Debug("yamux", "says", fmt.Sprint(args...)) }
func (l muxLog) Println(args ...any) { l.Print(args...) }
