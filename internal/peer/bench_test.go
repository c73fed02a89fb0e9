package peer

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"testing"

	"github.com/hawser/hawser/internal/frame"
)

func BenchmarkCall(b *testing.B) {
	east, _ := pair(b, handlers{})
	payload := make([]byte, 100)
	for b.Loop() {
		if _, err := east.Call(b.Context(), "west", "orders", "status", payload); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream is one stream in one direction.
func BenchmarkStream(b *testing.B) {
	noise := make([]byte, 256<<10)
	_, _ = rand.Read(noise)
	text := make([]byte, 256<<10)
	for i := range text {
		text[i] = "12345\tsome customer\t2026-01-01 00:00:00+00\t"[(i+i*i/4096)%42]
	}
	for _, c := range []struct {
		name    string
		payload []byte
	}{{"incompressible", noise}, {"text", text}, {"1KiB", noise[:1024]}} {
		b.Run(c.name, func(b *testing.B) {
			done := make(chan error, 1)
			east, _ := pair(b, handlers{stream: func(_ context.Context, _, _, _ string, s Stream) error {
				for {
					if _, err := s.Recv(); err != nil {
						done <- err
						return nil
					}
				}
			}})
			s := east.open(b.Context(), "west")
			f := frame.SeedChunk{Data: c.payload}
			b.SetBytes(int64(len(c.payload)))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Send(f); err != nil {
					b.Fatal(err)
				}
			}
			_ = s.Close()
			if err := <-done; !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		})
	}
}
