package seed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// Wherever the copy is broken off, and however often, the next run completes it.
//
// It does not run beside other tests, whose goroutines it would take for its own.
func TestBrokenOffAnywhere(t *testing.T) {
	p := newPair(t, `CREATE TABLE split (id int, v text); CREATE TABLE whole (id int, v text); CREATE TABLE toast (id int, v text);
		CREATE TABLE s1 (id int); CREATE TABLE s2 (id int); CREATE TABLE s3 (id int); CREATE TABLE s4 (id int); CREATE TABLE none (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO split SELECT g, repeat('x', 50) FROM generate_series(1, 8000) g`,
		`INSERT INTO whole SELECT g, 'w' FROM generate_series(1, 3000) g`,
		`ALTER TABLE toast ALTER v SET STORAGE EXTERNAL`, `INSERT INTO toast SELECT g, repeat('t', 100000) FROM generate_series(1, 8) g`,
		`INSERT INTO s1 SELECT generate_series(1, 100); INSERT INTO s2 SELECT generate_series(1, 200); INSERT INTO s3 SELECT generate_series(1, 3); INSERT INTO s4 VALUES (1)`)
	p.sizes, p.limits.small, p.limits.tables = sizes{split: 400 << 10, part: 150 << 10}, 64<<10, 2
	cut := errors.New("the network broke")
	rapid.Check(t, func(rt *rapid.T) {
		p.to.Exec(t, p.dst, `DELETE FROM hawser.seed_table`)
		p.list()
		p.inject, p.gate.fail, p.build = nil, nil, func(context.Context, *pgx.Conn, uint32) error { return nil }
		for i := range rapid.IntRange(1, 3).Draw(rt, "breaks") {
			at := rapid.IntRange(1, 50).Draw(rt, fmt.Sprint("at", i))
			p.frames.Store(0)
			ctx, cancel := context.WithCancel(context.Background())
			switch rapid.SampledFrom([]string{"stream", "cancel", "taken", "loaded", "build", "session"}).Draw(rt, fmt.Sprint("what", i)) {
			case "stream":
				p.inject = func(n int) error { return when(n == at, cut) }
			case "cancel":
				p.inject = func(n int) error {
					if n == at {
						cancel()
					}
					return nil
				}
			case "taken", "loaded":
				p.gate.fail = func(string) error { return when(p.frames.Load() > int64(at), cut) }
				p.inject = func(int) error { return nil }
			case "build":
				p.build = func(context.Context, *pgx.Conn, uint32) error { return when(p.frames.Load() > int64(at), cut) }
				p.inject = func(int) error { return nil }
			case "session":
				p.inject = func(n int) error {
					if n == at {
						p.to.Exec(t, "postgres", fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hawser:seed' AND datname IN ('%s', '%s') AND pid %% 2 = %d`, p.src, p.dst, at%2))
					}
					return nil
				}
			}
			err := p.run(ctx)
			cancel()
			p.noneLeft()
			if found, ok := problem.As(err); err != nil && !errors.Is(err, cut) && !errors.Is(err, context.Canceled) && (!ok || !found.Retryable) {
				rt.Fatalf("broken off: %v", err)
			}
			p.inject, p.gate.fail, p.build = nil, nil, func(context.Context, *pgx.Conn, uint32) error { return nil }
		}
		p.mustRun()
		p.same("split", "whole", "toast", "s1", "s2", "s3", "s4", "none")
		if t.Failed() {
			rt.Fatal("the copy differs")
		}
	})
}

func when(cond bool, err error) error {
	if cond {
		return err
	}
	return nil
}

// The death of either server ends the run soon, as something that passes.
func TestServersDie(t *testing.T) {
	t.Parallel()
	from, to := testpg.Start(t, nil), testpg.Start(t, map[string]string{"fsync": "on"})
	p := newPairOn(t, from, to, `CREATE TABLE split (id int, v text); CREATE TABLE whole (id int, v text); CREATE TABLE small (id int)`)
	from.Exec(t, p.src, `INSERT INTO split SELECT g, repeat('x', 50) FROM generate_series(1, 60000) g`,
		`INSERT INTO whole SELECT g, repeat('y', 50) FROM generate_series(1, 20000) g`, `INSERT INTO small VALUES (1)`)
	p.sizes = sizes{split: 2 << 20, part: 1 << 20}
	p.list()
	for i, c := range []*testpg.Cluster{from, to, from, to} {
		reached, killed := make(chan struct{}), make(chan struct{})
		p.frames.Store(0)
		p.inject = func(n int) error {
			if n == 4+3*i {
				close(reached)
			}
			if n >= 4+3*i {
				<-killed
			}
			return nil
		}
		done := make(chan error, 1)
		go func() { done <- p.run(context.Background()) }()
		testpg.Await(t, "the copy comes to the frame at which it is killed", reached)
		c.Kill(t)
		close(killed)
		select {
		case err := <-done:
			if found, ok := problem.As(err); err == nil || ok && !found.Retryable {
				t.Errorf("kill %d: %v", i, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("kill %d: the run goes on", i)
		}
		p.noneLeft()
		c.Start(t)
		p.gate.conn = to.Connect(t, p.dst)
	}
	p.inject = nil
	p.mustRun()
	p.same("split", "whole", "small")
}

// A stream that hangs does not keep Run, nor does a server that hangs.
func TestCancelEndsAHangingCopy(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE big (id int, v text)`)
	p.from.Exec(t, p.src, `INSERT INTO big SELECT g, repeat('x', 50) FROM generate_series(1, 50000) g`)
	p.list()
	ctx, cancel := context.WithCancel(context.Background())
	hold := make(chan struct{})
	defer close(hold)
	p.inject = func(n int) error {
		if n == 3 {
			cancel()
			select { // as a peer's Recv does, which Close unblocks
			case <-hold:
			case <-time.After(500 * time.Millisecond):
			}
		}
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- p.run(ctx) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("the copy completed")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the run goes on")
	}
}

// lyingStream changes what the primary says.
type lyingStream struct {
	ClientStream
	lie func(frame.Frame) frame.Frame
}

func (l lyingStream) Recv() (frame.Frame, error) {
	f, err := l.ClientStream.Recv()
	if err == nil {
		f = l.lie(f)
	}
	return f, err
}

func TestWhatThePrimarySaysIsChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lie  func(frame.Frame) frame.Frame
		want string
	}{
		"rows lost": {func(f frame.Frame) frame.Frame {
			if e, ok := f.(frame.SeedEnd); ok {
				e.Rows++
				return e
			}
			return f
		}, "sent 11 rows and the replica took 10"},
		"chunk where a table is opened": {func(f frame.Frame) frame.Frame {
			if _, ok := f.(frame.SeedStart); ok {
				return frame.SeedChunk{}
			}
			return f
		}, "unexpected frame.SeedChunk"},
		"another table": {func(f frame.Frame) frame.Frame {
			if s, ok := f.(frame.SeedStart); ok {
				s.OID++
				return s
			}
			return f
		}, "unexpected frame.SeedStart"},
		"start among rows": {func(f frame.Frame) frame.Frame {
			if _, ok := f.(frame.SeedEnd); ok {
				return frame.SeedStart{}
			}
			return f
		}, "unexpected frame.SeedStart among rows"},
		"parts of no pages": {func(f frame.Frame) frame.Frame {
			if s, ok := f.(frame.SeedStart); ok {
				s.ChunkPages = 0
				return s
			}
			return f
		}, ""},
	} {
		for _, small := range []int64{0, defaultLimits.small} {
			p := newPair(t, `CREATE TABLE t (id int)`)
			p.from.Exec(t, p.src, `INSERT INTO t SELECT generate_series(1, 10)`)
			p.list()
			p.limits.small = small
			s := New(Config{Link: linkID, Name: "orders", Connect: p.connect(p.to, p.dst, ""), Gate: p.gate, Build: p.build, Log: discard,
				Indexes: func(context.Context, *pgx.Conn, uint32) ([]Step, error) { return nil, nil },
				Open: func(ctx context.Context) (ClientStream, error) {
					inner, err := p.open(ctx)
					return lyingStream{inner, c.lie}, err
				}})
			s.limits = p.limits
			err := s.Run(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s, small %d: %v", name, small, err)
			}
		}
	}
}
