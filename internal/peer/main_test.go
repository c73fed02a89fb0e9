package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// TestMain fails when goroutines of this package, or of what it is built on,
// outlive the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := leaked(10 * time.Second); left != "" && code == 0 {
		fmt.Fprintf(os.Stderr, "goroutines that outlived the tests:\n%s\n", left)
		code = 1
	}
	os.Exit(code)
}

func leaked(within time.Duration) string {
	deadline := time.After(within)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		buf := make([]byte, 4<<20)
		var left []string
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			ours := strings.Contains(g, "hawser/internal/peer") || strings.Contains(g, "hashicorp/yamux") || strings.Contains(g, "google.golang.org/grpc")
			if ours && !strings.Contains(g, "peer.TestMain") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return ""
		}
		select {
		case <-deadline:
			return strings.Join(left, "\n\n")
		case <-tick.C:
		}
	}
}

// soon bounds what has to happen on this machine, also when it is busy.
const soon = 30 * time.Second

func newIdentity(t testing.TB, name string) *Identity {
	t.Helper()
	return newIdentityUntil(t, name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

func newIdentityUntil(t testing.TB, name string, from, to time.Time) *Identity {
	t.Helper()
	data, err := generate(name, from, to)
	if err != nil {
		t.Fatal(err)
	}
	id, err := parseIdentity(data)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// trustList is a trust store that tests change.
type trustList struct {
	mu   sync.Mutex
	list []Trusted
	err  error
}

func (l *trustList) Trusted(context.Context) ([]Trusted, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list), l.err
}

func (l *trustList) set(list ...Trusted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = list
}

// handlers is a Handler made of functions.
type handlers struct {
	call   func(ctx context.Context, from, link, method string, payload []byte) ([]byte, error)
	stream func(ctx context.Context, from, link, kind string, s Stream) error
}

func (h handlers) Call(ctx context.Context, from, link, method string, payload []byte) ([]byte, error) {
	if h.call == nil {
		return payload, nil
	}
	return h.call(ctx, from, link, method, payload)
}

func (h handlers) Stream(ctx context.Context, from, link, kind string, s Stream) error {
	if h.stream == nil {
		return echo(ctx, from, link, kind, s)
	}
	return h.stream(ctx, from, link, kind, s)
}

func echo(_ context.Context, _, _, _ string, s Stream) error {
	for {
		f, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(f); err != nil {
			return err
		}
	}
}

// instance is a node under test.
type instance struct {
	*Node
	t     testing.TB
	id    *Identity
	trust *trustList
	stop  func() // ends Run and waits for it
	log   *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start makes and runs an instance. It trusts nobody until trusts was called.
func start(t testing.TB, id *Identity, h Handler, options ...func(*Config)) *instance {
	t.Helper()
	i := &instance{t: t, id: id, trust: &trustList{}, log: &logBuffer{}}
	cfg := Config{
		Identity: id, Trust: i.trust, Handler: h, Listen: "127.0.0.1:0", Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(i.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, o := range options {
		o(&cfg)
	}
	var err error
	if i.Node, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	i.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: Run: %v", id.Name, err)
			}
		case <-time.After(soon):
			buf := make([]byte, 1<<20)
			t.Errorf("%s: Run did not end\n%s", id.Name, buf[:runtime.Stack(buf, true)])
		}
	})
	t.Cleanup(func() {
		i.stop()
		if t.Failed() {
			t.Logf("log of %s:\n%s", id.Name, i.log)
		}
	})
	testpg.Eventually(t, soon, id.Name+" runs", func() (bool, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		return !i.loadedAt.IsZero(), nil
	})
	return i
}

// entry is that by which others trust i; address "" has them wait for it.
func (i *instance) entry(address string) Trusted {
	return Trusted{Name: i.id.Name, CertificatePEM: string(i.id.CertificatePEM()), Address: address}
}

func (i *instance) address() string { return i.Addr().String() }

func (i *instance) trusts(list ...Trusted) {
	i.trust.set(list...)
	i.Refresh()
}

func (i *instance) waitFor(peer string) {
	i.t.Helper()
	select {
	case <-i.Connected(peer):
	case <-time.After(soon):
		peers, refused := i.Status()
		i.t.Fatalf("%s: no session with %s; peers %+v, refused %+v", i.id.Name, peer, peers, refused)
	}
}

func (i *instance) status(peer string) Status {
	peers, _ := i.Status()
	for _, p := range peers {
		if p.Name == peer {
			return p
		}
	}
	return Status{}
}

// waitProblem waits for a reason why there is no session.
func (i *instance) waitProblem(peer, code string) *problem.Problem {
	i.t.Helper()
	var p *problem.Problem
	testpg.Eventually(i.t, soon, i.id.Name+" has problem "+code+" with "+peer, func() (bool, error) {
		if p = i.status(peer).Problem; p == nil {
			return false, errors.New("no problem")
		}
		if p.Code != code {
			return false, p
		}
		return true, nil
	})
	return p
}

func (i *instance) waitRefused(code string) Refused {
	i.t.Helper()
	var found Refused
	testpg.Eventually(i.t, soon, i.id.Name+" refused somebody: "+code, func() (bool, error) {
		_, refused := i.Status()
		for _, r := range refused {
			if found = r; r.Problem.Code == code {
				return true, nil
			}
		}
		return false, fmt.Errorf("%+v", refused)
	})
	return found
}

// pair starts two instances that trust each other; west is dialled by east.
func pair(t testing.TB, h Handler, options ...func(*Config)) (east, west *instance) {
	t.Helper()
	east, west = start(t, newIdentity(t, "east"), h, options...), start(t, newIdentity(t, "west"), h, options...)
	west.trusts(east.entry(""))
	east.trusts(west.entry(west.address()))
	east.waitFor("west")
	west.waitFor("east")
	return east, west
}

// open opens a stream that ends by itself when a test hangs on it.
func (i *instance) open(ctx context.Context, peer string) ClientStream {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, testpg.Patience)
	i.t.Cleanup(cancel)
	s, err := i.Open(ctx, peer, "orders", "changes")
	if err != nil {
		i.t.Fatal(err)
	}
	return s
}

func data(payload []byte) frame.Frame {
	return frame.Data{Records: []frame.Record{{LSN: 7, Payload: payload}}}
}

func payloadOf(t testing.TB, f frame.Frame) []byte {
	t.Helper()
	d, ok := f.(frame.Data)
	if !ok || len(d.Records) != 1 {
		t.Fatalf("got %T", f)
	}
	return d.Records[0].Payload
}

func isCode(err error, code string) bool {
	p, ok := problem.As(err)
	return ok && p.Code == code
}

// cable is a TCP proxy between two instances whose cable can be pulled.
type cable struct {
	net.Listener
	to     string
	mu     sync.Mutex
	conns  []net.Conn
	frozen chan struct{} // closed: nothing passes, and nothing closes
	delay  atomic.Int64  // of each piece, in nanoseconds
	once   sync.Once
}

func newCable(t testing.TB, to string) *cable {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{Listener: ln, to: to, frozen: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			wg.Go(func() { c.pump(in, out) })
			wg.Go(func() { c.pump(out, in) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		c.cut()
		c.freeze()
		wg.Wait()
	})
	return c
}

func (c *cable) pump(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-c.frozen: // what was read is lost; hold the connection open
			for err == nil {
				_, err = from.Read(buf)
			}
			return
		default:
		}
		if err != nil {
			return
		}
		time.Sleep(time.Duration(c.delay.Load())) // the length of the cable
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (c *cable) freeze() { c.once.Do(func() { close(c.frozen) }) }

// cut closes every connection that runs through the cable.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

var quiet = slog.New(slog.DiscardHandler)
