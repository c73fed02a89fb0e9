package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
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
	const total = 16 << 20 // far over the window of the compression, then it repeats
	noise := make([]byte, total)
	_, _ = rand.Read(noise)
	var rows bytes.Buffer
	for k := uint32(1); rows.Len() < total; k++ {
		h := k * 2654435761
		fmt.Fprintf(&rows, "%d\tcustomer %d\t2026-01-%02d 10:%02d:00+00\t%d.%02d\t%x\n", k, h%100000, h%28+1, h%60, h%5000, h%100, h)
	}
	for _, c := range []struct {
		name string
		data []byte
		size int
	}{{"noise-256KiB", noise, 256 << 10}, {"hex-256KiB", []byte(hex.EncodeToString(noise[:total/2])), 256 << 10}, {"rows-256KiB", rows.Bytes(), 256 << 10}, {"rows-1KiB", rows.Bytes(), 1 << 10}} {
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
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			for at := 0; b.Loop(); at = (at + c.size) % (total - c.size) {
				if err := s.Send(frame.SeedChunk{Data: c.data[at : at+c.size]}); err != nil {
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
