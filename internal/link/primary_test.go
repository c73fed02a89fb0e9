package link

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// scripted is a stream of which frames arrive, and then the last one for ever.
type scripted []frame.Frame

func (s *scripted) Send(frame.Frame) error { return errors.New("nobody listens") }
func (s *scripted) Recv() (frame.Frame, error) {
	f := (*s)[0]
	if len(*s) > 1 {
		*s = (*s)[1:]
	}
	return f, nil
}

// TestSchemaIsBounded: a peer that sends a schema without an end does not take all memory.
func TestSchemaIsBounded(t *testing.T) {
	chunk := frame.SeedChunk{Data: []byte(`{"tables":[]}`)}
	if _, err := readSchema(&scripted{chunk, frame.SeedEnd{}}, len(chunk.Data)); err != nil {
		t.Error(err)
	}
	endless := frame.SeedChunk{Data: bytes.Repeat([]byte{' '}, 100)}
	_, err := readSchema(&scripted{chunk, endless}, 1000)
	if p, ok := problem.As(err); !ok || p.Code != "schema-too-large" {
		t.Errorf("a schema without an end: %v", err)
	}
}
