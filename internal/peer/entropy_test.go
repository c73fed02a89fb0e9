package peer

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/peer/peerpb"
)

// counted is a way out that counts bytes.
type counted struct{ bytes int }

func (c *counted) Send(p *peerpb.Packet) error { c.bytes += len(p.Data); return nil }

func (c *counted) Recv() (*peerpb.Packet, error) { return nil, errors.ErrUnsupported }

// TestHexHalved: random bytes that travel as hexadecimal text repeat nothing, yet a
// digit needs only half of its byte.
func TestHexHalved(t *testing.T) {
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	text := []byte(hex.EncodeToString(noise))
	out := &counted{}
	s := sender{packets: out, near: func() bool { return false }}
	if err := s.send(frame.SeedChunk{Data: text}); err != nil {
		t.Fatal(err)
	}
	if most := len(text) * 52 / 100; out.bytes > most {
		t.Errorf("%d bytes of text took %d on the wire, want at most %d", len(text), out.bytes, most)
	}
}
