package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

// inStream gives a message the form that it has within a stream block.
func inStream(sub uint32, m []byte) []byte { return cat(m[:1], be32(sub), m[1:]) }

func msgStreamStart(xid uint32, first byte) []byte { return cat([]byte("S"), be32(xid), []byte{first}) }
func msgStreamCommit(xid uint32, at uint64) []byte {
	return cat([]byte("c"), be32(xid), []byte{0}, be64(at), be64(at+8), be64(0))
}
func msgStreamAbort(xid, sub uint32) []byte { return cat([]byte("A"), be32(xid), be32(sub)) }

// block is a part of a transaction as it streams in before its commit.
func block(xid, sub uint32, first bool, messages [][]byte) [][]byte {
	mark := byte(0)
	out := [][]byte{}
	if first {
		mark = 1
		messages = append([][]byte{msgTable(tableNet)}, messages...)
	}
	out = append(out, msgStreamStart(xid, mark))
	for _, m := range messages {
		out = append(out, inStream(sub, m))
	}
	return append(out, []byte("E"))
}

// writing tells whether a transaction that is open writes to table net.
func (r *replica) writing() bool {
	rows := testpg.Rows(r.t, r.c.Connect(r.t, r.db), `SELECT count(*) FROM pg_locks WHERE relation = 'net'::regclass AND mode = 'RowExclusiveLock'`)
	return rows[0] != "0"
}

// TestEarly: a transaction that is alone is applied before its commit; what comes
// between takes it back, and it is applied at its commit all the same.
func TestEarly(t *testing.T) {
	ctx := context.Background()
	for name, between := range map[string]func(a *Applier, frames chan<- frame.Frame){
		"nothing": nil,
		"another transaction": func(_ *Applier, frames chan<- frame.Frame) {
			frames <- records(1100, msgBegin(1100, 995), msgRelation(), msgInsert("7"), msgCommit(1100))
		},
		"a command": func(a *Applier, _ chan<- frame.Frame) { _ = a.Requested(ctx, 1) },
		"a rolled back subtransaction": func(_ *Applier, frames chan<- frame.Frame) {
			frames <- records(1100, append(block(990, 991, false, (&side{oid: tableNet, rows: map[[2]string][2]cell{}}).inserts(200, 210)), msgStreamAbort(990, 991))...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t, testpg.Shared(t), gatherTables[0])
			frames := make(chan frame.Frame, 10)
			a, _, end := r.run(frames, func(frame.Ack) {})
			defer func() { _ = end() }()
			s := &side{oid: tableNet, rows: map[[2]string][2]cell{}}
			frames <- frame.Heartbeat{Snapshot: "900:900:"}
			frames <- records(1000, block(990, 990, true, s.inserts(0, 100))...)
			testpg.Eventually(t, 10*time.Second, "changes are applied early", func() (bool, error) { return r.writing(), nil })
			if between != nil {
				between(a, frames)
				testpg.Eventually(t, 10*time.Second, "they are taken back", func() (bool, error) { return !r.writing(), nil })
			}
			if n := testpg.Rows(t, r.c.Connect(t, r.db), `SELECT count(*) FROM net`)[0]; n != "0" {
				t.Errorf("%s rows are seen before the commit", n)
			}
			frames <- records(1200, append(block(990, 990, false, s.inserts(100, 150)), msgStreamCommit(990, 1200))...)
			testpg.Eventually(t, 10*time.Second, "it is committed", func() (bool, error) { return r.passed(1208), nil })
			if got, want := r.table(r.c.Connect(t, r.db), tableNet), s.String(); got != want {
				t.Errorf("the table is\n%s\nand should be\n%s", got, want)
			}
		})
	}
}

// TestEarlySentAgain: the transaction that the stream begins with is the last one that is
// applied here. It is not applied once more.
func TestEarlySentAgain(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), gatherTables[0])
	s := &side{oid: tableNet, rows: map[[2]string][2]cell{}}
	changes := block(990, 990, true, s.inserts(0, 100))
	for round := range uint64(2) {
		frames := make(chan frame.Frame, 10)
		var received atomic.Uint64
		_, _, end := r.run(frames, func(k frame.Ack) { received.Store(uint64(k.Received)) })
		frames <- frame.Heartbeat{Snapshot: "900:900:"}
		frames <- records(1250, changes...)
		testpg.Eventually(t, 10*time.Second, "the changes are received", func() (bool, error) { return received.Load() == 1250, nil })
		frames <- records(1250, msgStreamCommit(990, 1200))
		if round == 1 {
			frames <- records(1300, append([][]byte{msgBegin(1300, 995)}, append(s.inserts(200, 201), msgCommit(1300))...)...)
		}
		testpg.Eventually(t, 10*time.Second, "all is committed", func() (bool, error) { return r.passed(1208 + 100*round), nil })
		if err := end(); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if got, want := r.table(r.c.Connect(t, r.db), tableNet), s.String(); got != want {
			t.Errorf("the table is\n%s\nand should be\n%s", got, want)
		}
	}
}

// inserts makes rows and returns the messages.
func (s *side) inserts(from, to int) [][]byte {
	s.sent = nil
	for i := from; i < to; i++ {
		s.insert([2]string{strconv.Itoa(i), "k"}, [2]cell{text("v")})
	}
	return s.sent
}

// TestStreamsOfAllKinds: transactions that stream in, alone, among each other and among
// small ones, and are committed or rolled back as a whole or in part.
func TestStreamsOfAllKinds(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), gatherTables[0])
	r.hurried = true
	conn := r.c.Connect(t, r.db)
	frames := make(chan frame.Frame, 10)
	var visible atomic.Uint64
	a, _, end := r.run(frames, func(k frame.Ack) { visible.Store(uint64(k.Visible)) })
	defer func() { _ = end() }()
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	at, xid := uint64(1000), uint32(1000)
	s := &side{oid: tableNet, rows: map[[2]string][2]cell{}}
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 6).Draw(rt, "transactions") {
			before := maps.Clone(s.rows)
			xid += 10
			if rapid.IntRange(0, 3).Draw(rt, "small") == 0 {
				s.sent = nil
				s.play(rt)
				frames <- records(at, slices.Concat([][]byte{msgBegin(at, xid), msgTable(tableNet)}, s.sent, [][]byte{msgCommit(at)})...)
				at += 16
				continue
			}
			for i := range rapid.IntRange(1, 4).Draw(rt, "blocks") {
				sub := xid + uint32(i)
				saved := maps.Clone(s.rows)
				s.sent = nil
				s.play(rt)
				b := block(xid, sub, i == 0, s.sent)
				if i > 0 && rapid.Bool().Draw(rt, "rolled back") {
					b = append(b, msgStreamAbort(xid, sub))
					s.rows = saved
				}
				frames <- records(at, b...)
				if rapid.IntRange(0, 9).Draw(rt, "command") == 0 {
					if err := a.Requested(context.Background(), 1); err != nil {
						rt.Fatal(err, end())
					}
				}
			}
			if rapid.IntRange(0, 3).Draw(rt, "abort") == 0 {
				frames <- records(at, msgStreamAbort(xid, xid))
				s.rows = before
			} else {
				frames <- records(at, msgStreamCommit(xid, at))
				at += 16
			}
		}
		at += 16
		frames <- frame.Heartbeat{End: frame.LSN(at)}
		testpg.Eventually(t, 20*time.Second, "the changes are applied", func() (bool, error) {
			select {
			case <-a.done:
				return false, fmt.Errorf("the applier ended: %w", end())
			default:
			}
			return visible.Load() >= at, nil
		})
		if got, want := r.table(conn, tableNet), s.String(); got != want {
			rt.Fatalf("the table is\n%s\nand should be\n%s", got, want)
		}
	})
}
