package link

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff spaces repeated tries: from 50 ms to 5 s, with jitter.
type Backoff struct{ next time.Duration }

// NewBackoff returns one that begins with its shortest pause.
func NewBackoff() *Backoff { return &Backoff{50 * time.Millisecond} }

// Sleep waits and reports whether ctx still stands.
func (b *Backoff) Sleep(ctx context.Context) bool {
	d := b.next/2 + rand.N(b.next/2)
	b.next = min(2*b.next, 5*time.Second)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
