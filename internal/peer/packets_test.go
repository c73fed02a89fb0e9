package peer

import (
	"bytes"
	"io"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/peer/peerpb"
)

// queued is a way that keeps what is sent, and from which the same arrives.
type queued []*peerpb.Packet

func (q *queued) Send(p *peerpb.Packet) error {
	*q = append(*q, &peerpb.Packet{Data: bytes.Clone(p.Data), Stored: p.Stored})
	return nil
}

func (q *queued) Recv() (*peerpb.Packet, error) {
	if len(*q) == 0 {
		return nil, io.EOF
	}
	p := (*q)[0]
	*q = (*q)[1:]
	return p, nil
}

// TestNearAndFar: what either encoder writes arrives, and a session that speaks only
// protocol 1, or knows no round trip yet, never takes the newer one.
func TestNearAndFar(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &session{protocol: rapid.IntRange(1, 2).Draw(t, "protocol")}
		s.least.Store(int64(rapid.SampledFrom([]time.Duration{0, nearBelow - 1, nearBelow}).Draw(t, "round trip")))
		want := byte(0x28)
		if s.protocol == 2 && s.least.Load() == int64(nearBelow-1) {
			want = 0xff
		}
		var way queued
		out, in := sender{packets: &way, near: s.near}, receiver{packets: &way}
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, storeBelow, s2Block, s2Block + 1, 3 * packetBytes}), 1, 6).Draw(t, "sizes")
		for _, n := range sizes {
			f := frame.SeedChunk{Data: bytes.Repeat([]byte("a row\n"), n/6+1)[:n]}
			if err := out.send(f); err != nil {
				t.Fatal(err)
			}
			if first := way[0]; in.dec == nil && !first.Stored && first.Data[0] != want {
				t.Fatalf("begins with %#x, want %#x", first.Data[0], want)
			}
			got, err := in.recv()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.(frame.SeedChunk).Data, f.Data) {
				t.Fatalf("%d bytes arrived as others", n)
			}
		}
	})
}

// FuzzPackets: whatever a peer sends, and however it cuts it, ends in frames or in an error.
func FuzzPackets(f *testing.F) {
	ack, rows := frame.Ack{Received: 3, Durable: 1, Visible: 2}, frame.SeedChunk{Data: bytes.Repeat([]byte("row\n"), 200)}
	for _, seed := range []struct {
		near   bool
		frames []frame.Frame
	}{{false, []frame.Frame{ack}}, {false, []frame.Frame{ack, rows}}, {true, []frame.Frame{ack, rows}}} {
		var out queued
		s := sender{packets: &out, near: func() bool { return seed.near }}
		for _, v := range seed.frames {
			if err := s.send(v); err != nil {
				f.Fatal(err)
			}
		}
		for _, p := range out {
			f.Add(p.Data, p.Stored, len(p.Data)/2)
		}
	}
	f.Add([]byte{0, 0, 0, 1, 2}, true, 0)
	f.Fuzz(func(t *testing.T, in []byte, first bool, cut int) {
		cut = min(max(cut, 0), len(in))
		r := receiver{packets: &queued{{Data: in[:cut], Stored: first}, {Data: in[cut:]}}}
		for n := 0; ; n++ {
			if _, err := r.recv(); err != nil {
				return
			}
			if n > len(in)<<17 { // no byte makes more than a block of zstd
				t.Fatal("frames without end")
			}
		}
	})
}
