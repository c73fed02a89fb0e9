package peer

import (
	"bytes"
	"io"
	"testing"

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

// FuzzPackets: whatever a peer sends, and however it cuts it, ends in frames or in an error.
func FuzzPackets(f *testing.F) {
	for _, small := range []bool{true, false} {
		var out queued
		s := sender{packets: &out}
		for _, v := range []frame.Frame{frame.Ack{Received: 3, Durable: 1, Visible: 2}, frame.SeedChunk{Data: bytes.Repeat([]byte("row\n"), 200)}} {
			if err := s.send(v); err != nil {
				f.Fatal(err)
			}
			if small {
				break
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
