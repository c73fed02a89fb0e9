package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

func TestOneDirectionOpenCarriesBoth(t *testing.T) {
	who := handlers{call: func(_ context.Context, from, link, method string, payload []byte) ([]byte, error) {
		return fmt.Appendf(nil, "%s/%s/%s/%s", from, link, method, payload), nil
	}}
	east, west := pair(t, who)
	for _, c := range []struct {
		from *instance
		to   string
		want string
	}{{east, "west", "east/orders/status/x"}, {west, "east", "west/orders/status/x"}} {
		got, err := c.from.Call(t.Context(), c.to, "orders", "status", []byte("x"))
		if err != nil || string(got) != c.want {
			t.Errorf("call to %s: %q, %v", c.to, got, err)
		}
	}
	e, w := east.status("west"), west.status("east")
	if !e.Connected || !w.Connected || !e.Dialled || w.Dialled {
		t.Errorf("who dialled: %+v, %+v", e, w)
	}
	if e.Version != "1.2.3" || e.BytesIn == 0 || e.BytesOut == 0 || e.Since.IsZero() || e.Remote != west.address() || e.Problem != nil {
		t.Errorf("status: %+v", e)
	}
	testpg.Eventually(t, soon, "the round trip is measured", func() (bool, error) { return east.status("west").RTT > 0, nil })
}

// Both dial at once: one connection stays, and both sides use the same.
func TestBothDialAtOnce(t *testing.T) {
	for round := range 8 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			east, west := start(t, newIdentity(t, "east"), handlers{}), start(t, newIdentity(t, "west"), handlers{})
			var both sync.WaitGroup
			both.Go(func() { east.trusts(west.entry(west.address())) })
			both.Go(func() { west.trusts(east.entry(east.address())) })
			both.Wait()
			east.waitFor("west")
			west.waitFor("east")
			testpg.Eventually(t, soon, "both use the same connection, and it stays", func() (bool, error) {
				e, w := east.session("west"), west.session("east")
				if e == nil || w == nil || e.serial != w.serial || e.epoch != w.epoch || e.dialled == w.dialled {
					return false, fmt.Errorf("%+v, %+v", e, w)
				}
				return time.Since(e.since) > 300*time.Millisecond, nil
			})
			for range 10 {
				if _, err := east.Call(t.Context(), "west", "", "", nil); err != nil {
					t.Fatal(err)
				}
				if _, err := west.Call(t.Context(), "east", "", "", nil); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func (i *instance) session(peer string) *session {
	s, _ := i.live(peer)
	return s
}

func TestProblemsCrossTheWire(t *testing.T) {
	deep := problem.New("term-differs", "link orders", "this side is older", "hawser link show orders").Retry().Because(errors.New("term 3"))
	fail := handlers{
		call: func(context.Context, string, string, string, []byte) ([]byte, error) {
			return nil, fmt.Errorf("exchange: %w", deep)
		},
		stream: func(_ context.Context, _, _, _ string, s Stream) error { return deep },
	}
	east, _ := pair(t, fail)
	check := func(what string, err error) {
		t.Helper()
		p, ok := problem.As(err)
		if !ok || p.Code != deep.Code || p.Object != "on instance west: link orders" || p.Cause != deep.Cause || p.Remedy != "hawser link show orders" || p.Place != "instance west" || !p.Retryable || p.Err.Error() != "term 3" {
			t.Errorf("%s: got %#v", what, err)
		}
	}
	_, err := east.Call(t.Context(), "west", "orders", "status", nil)
	check("call", err)
	if want := "exchange: " + deep.Error(); err.Error() != want {
		t.Errorf("text %q, want %q", err, want)
	}
	s := east.open(t.Context(), "west")
	_, err = s.Recv()
	check("stream", err)
	testpg.Eventually(t, soon, "Send says so too", func() (bool, error) {
		return isCode(s.Send(frame.Ack{}), deep.Code), nil
	})
	_ = s.Close()
	if _, err := east.Call(t.Context(), "north", "", "", nil); !isCode(err, "peer-not-found") {
		t.Errorf("unknown peer: %v", err)
	}
	if _, err := east.Open(t.Context(), "north", "", ""); !isCode(err, "peer-not-found") {
		t.Errorf("unknown peer: %v", err)
	}
}

func TestFramesOfAllSizes(t *testing.T) {
	east, _ := pair(t, handlers{})
	s := east.open(t.Context(), "west")
	defer s.Close()
	for _, n := range []int{0, 1, 100, storeBelow - 40, storeBelow, storeBelow * 2, 10, packetBytes - 1, packetBytes, packetBytes + 1, 3 << 20, 64 << 20, 5} {
		payload := make([]byte, n)
		_, _ = rand.Read(payload[:n/2])
		sent := make(chan error, 1)
		go func() { sent <- s.Send(data(payload)) }()
		f, err := s.Recv()
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err := testpg.Await(t, "the frame is sent", sent); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(payloadOf(t, f), payload) {
			t.Fatalf("%d bytes came back otherwise", n)
		}
	}
}

func TestConcurrentStreamsBothWays(t *testing.T) {
	east, west := pair(t, handlers{})
	var all sync.WaitGroup
	for i := range 8 {
		from, to := east, "west"
		if i%2 == 1 {
			from, to = west, "east"
		}
		all.Go(func() {
			s, err := from.Open(t.Context(), to, "orders", "changes")
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			const frames = 200
			all.Go(func() {
				payload := make([]byte, 16<<10)
				for k := range frames {
					payload[0], payload[1] = byte(i), byte(k)
					if err := s.Send(data(payload)); err != nil {
						t.Error(err)
						return
					}
				}
			})
			for k := range frames {
				f, err := s.Recv()
				if err != nil {
					t.Error(err)
					return
				}
				if p := f.(frame.Data).Records[0].Payload; p[0] != byte(i) || p[1] != byte(k) {
					t.Errorf("stream %d frame %d: got %d, %d", i, k, p[0], p[1])
					return
				}
			}
		})
	}
	testpg.Returns(t, "all streams end", all.Wait)
}

// A reader that does not read stops its writer, and nobody else.
func TestBackPressure(t *testing.T) {
	release := make(chan struct{})
	slow := handlers{stream: func(ctx context.Context, _, _, kind string, s Stream) error {
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		return echo(ctx, "", "", kind, s)
	}}
	east, _ := pair(t, slow)
	s := east.open(t.Context(), "west")
	noise := make([]byte, 256<<10)
	_, _ = rand.Read(noise)
	const frames = 100 // 25 MiB: far over every window
	sent := make(chan int, frames)
	go func() {
		defer close(sent)
		for k := range frames {
			_, _ = rand.Read(noise) // else it is compressed
			if err := s.Send(data(noise)); err != nil {
				return
			}
			sent <- k
		}
	}()
	testpg.Eventually(t, soon, "the sender stands still", func() (bool, error) {
		before := len(sent)
		if before == frames {
			t.Fatal("everything was sent, though nobody reads")
		}
		for range 20 {
			if _, err := east.Call(t.Context(), "west", "", "", nil); err != nil { // takes time, and has to pass
				t.Fatal(err)
			}
		}
		return before > 0 && len(sent) == before, nil
	})
	close(release)
	for range frames {
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseUnblocks(t *testing.T) {
	ended := make(chan error, 1)
	deaf := handlers{stream: func(ctx context.Context, _, _, _ string, _ Stream) error {
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}}
	east, _ := pair(t, deaf)
	s := east.open(t.Context(), "west")
	noise := make([]byte, 1<<20)
	results := make(chan error, 2)
	go func() {
		_, err := s.Recv()
		results <- err
	}()
	full := make(chan struct{})
	go func() {
		for k := 0; ; k++ {
			if k == 1 {
				close(full)
			}
			_, _ = rand.Read(noise)
			if err := s.Send(data(noise)); err != nil {
				results <- err
				return
			}
		}
	}()
	testpg.Await(t, "the stream's window is full", full)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case err := <-results:
			if err == nil {
				t.Error("no error after Close")
			}
		case <-time.After(soon):
			t.Fatal("Close did not unblock")
		}
	}
	select {
	case <-ended:
	case <-time.After(soon):
		t.Fatal("the handler's context did not end")
	}
}

// What was sent before Close arrives, and the handler's end is a good one.
func TestCloseIsAGoodEnd(t *testing.T) {
	got := make(chan error, 1)
	count := handlers{stream: func(_ context.Context, _, _, _ string, s Stream) error {
		for k := 0; ; k++ {
			if _, err := s.Recv(); errors.Is(err, io.EOF) && k == 50 {
				got <- nil
				return nil
			} else if err != nil {
				got <- fmt.Errorf("after %d: %w", k, err)
				return err
			}
		}
	}}
	east, _ := pair(t, count)
	s := east.open(t.Context(), "west")
	for range 50 {
		if err := s.Send(data(make([]byte, 10<<10))); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Close()
	if err := testpg.Await(t, "all frames arrive", got); err != nil {
		t.Error(err)
	}
}

func TestHandlerContextEndsWithCaller(t *testing.T) {
	in, out := make(chan struct{}), make(chan struct{})
	wait := handlers{call: func(ctx context.Context, _, _, _ string, _ []byte) ([]byte, error) {
		close(in)
		<-ctx.Done()
		close(out)
		return nil, ctx.Err()
	}}
	east, _ := pair(t, wait)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-in; cancel() }()
	if _, err := east.Call(ctx, "west", "", "", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	testpg.Await(t, "the handler ends with its call", out)
}

func TestCutMidStream(t *testing.T) {
	gone := make(chan struct{}, 16)
	h := handlers{stream: func(ctx context.Context, a, b, c string, s Stream) error {
		defer func() { gone <- struct{}{} }()
		return echo(ctx, a, b, c, s)
	}}
	east, west := start(t, newIdentity(t, "east"), h), start(t, newIdentity(t, "west"), h)
	line := newCable(t, west.address())
	west.trusts(east.entry(""))
	east.trusts(west.entry(line.Addr().String()))
	for range 3 {
		east.waitFor("west")
		west.waitFor("east")
		was := east.Connected("west")
		s := east.open(t.Context(), "west")
		if err := s.Send(data(make([]byte, 1<<20))); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		held := east.session("west")
		line.cut()
		if _, err := s.Recv(); !isCode(err, "peer-disconnected") {
			t.Errorf("Recv: %v", err)
		} else if p, _ := problem.As(err); !p.Retryable {
			t.Errorf("not retryable: %v", err)
		}
		testpg.Await(t, "the handler hears that the cable was cut", gone)
		testpg.Await(t, "the session ends", held.done)
		_ = s.Close()
		testpg.Eventually(t, soon, "Connected gives a new channel", func() (bool, error) { return east.Connected("west") != was, nil })
		testpg.Eventually(t, soon, "another session stands", func() (bool, error) {
			e, w := east.session("west"), west.session("east")
			return e != nil && w != nil && e != held && e.serial == w.serial, nil
		})
	}
}

// A line that swallows everything and closes nothing is found by silence.
func TestHalfOpen(t *testing.T) {
	short := func(c *Config) { c.KeepAlive = 300 * time.Millisecond } // a busy machine may be silent for less
	east, west := start(t, newIdentity(t, "east"), handlers{}, short), start(t, newIdentity(t, "west"), handlers{}, short)
	line := newCable(t, west.address())
	west.trusts(east.entry(""))
	east.trusts(west.entry(line.Addr().String()))
	east.waitFor("west")
	west.waitFor("east")
	s := east.open(t.Context(), "west")
	defer s.Close()
	e, w := east.session("west"), west.session("east")
	line.freeze()
	from := time.Now()
	if _, err := s.Recv(); !isCode(err, "peer-disconnected") {
		t.Errorf("Recv: %v", err)
	}
	testpg.Await(t, "the session of east ends", e.done)
	testpg.Await(t, "the session of west ends", w.done)
	if d := time.Since(from); d > soon {
		t.Errorf("found after %s", d)
	}
	if p := e.ended(); p.Code != "peer-lost" || !p.Retryable {
		t.Errorf("cause: %v", p)
	}
}

// The first call of a session over a slow line waits for gRPC's own greeting, which
// takes a round trip more. It failed where that took longer than 50 ms.
func TestSlowLine(t *testing.T) {
	t.Parallel()
	east, west := start(t, newIdentity(t, "east"), handlers{}), start(t, newIdentity(t, "west"), handlers{})
	line := newCable(t, west.address())
	line.delay.Store(int64(100 * time.Millisecond))
	west.trusts(east.entry(""))
	east.trusts(west.entry(line.Addr().String()))
	east.waitFor("west")
	if _, err := east.Call(t.Context(), "west", "orders", "status", nil); err != nil {
		t.Error(err)
	}
	west.waitFor("east")
	if _, err := west.Call(t.Context(), "east", "orders", "status", nil); err != nil {
		t.Error(err)
	}
}

// A session that is idle lives on.
func TestIdleSessionStays(t *testing.T) {
	east, _ := pair(t, handlers{}, func(c *Config) { c.KeepAlive = 300 * time.Millisecond })
	s := east.session("west")
	select {
	case <-s.done:
		t.Fatalf("the session ended: %v", s.ended())
	case <-time.After(3 * time.Second): // several times the silence that ends it
	}
}

func TestStopTellsThePeer(t *testing.T) {
	east, west := pair(t, handlers{})
	held := east.session("west")
	west.stop()
	testpg.Await(t, "the session ends", held.done)
	if p := held.ended(); p.Code != "peer-stopped" {
		t.Errorf("the session ended: %v", p)
	}
	if _, err := east.Call(t.Context(), "west", "", "", nil); !isCode(err, "peer-disconnected") {
		t.Errorf("a call: %v", err)
	}
}

func TestEndsReachTheOtherSide(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(east, west *instance, s ClientStream, cancel func())
		good bool // the handler's Recv ends with io.EOF
	}{
		{"close", func(_, _ *instance, s ClientStream, _ func()) { _ = s.Close() }, true},
		{"context", func(_, _ *instance, _ ClientStream, cancel func()) { cancel() }, false},
		{"session", func(east, _ *instance, _ ClientStream, _ func()) { _ = east.session("west").wire.Close() }, false},
		{"opener stops", func(east, _ *instance, _ ClientStream, _ func()) { go east.stop() }, false},
		{"trust", func(_, west *instance, _ ClientStream, _ func()) { west.trusts() }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			handled, began := make(chan error, 1), make(chan struct{})
			ended := make(chan struct{})
			east, west := pair(t, handlers{stream: func(ctx context.Context, _, _, _ string, s Stream) error {
				close(began)
				_, err := s.Recv()
				handled <- err
				if !errors.Is(err, io.EOF) {
					<-ctx.Done()
				}
				close(ended)
				return err
			}})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := east.open(ctx, "west")
			testpg.Await(t, "the handler begins", began)
			c.end(east, west, s, cancel)
			select {
			case err := <-handled:
				if (errors.Is(err, io.EOF)) != c.good {
					t.Errorf("handler's Recv: %v", err)
				}
			case <-time.After(soon):
				t.Fatal("the handler's Recv did not end")
			}
			testpg.Await(t, "the handler ends", ended)
			if _, err := s.Recv(); err == nil {
				t.Error("the opener's Recv gave a frame")
			}
		})
	}
}

func TestHandlerEndReachesOpener(t *testing.T) {
	east, _ := pair(t, handlers{stream: func(_ context.Context, _, _, _ string, s Stream) error {
		return s.Send(data([]byte("last")))
	}})
	s := east.open(t.Context(), "west")
	defer s.Close()
	if f, err := s.Recv(); err != nil || string(payloadOf(t, f)) != "last" {
		t.Fatal(f, err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("Recv: %v, want io.EOF", err)
	}
}
