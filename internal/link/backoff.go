package link

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff spaces repeated tries: from 50 ms to 5 s, with jitter.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{50 * time.Millisecond} }

// sleep waits and reports whether ctx still stands.
func (b *backoff) sleep(ctx context.Context) bool {
	d := b.next/2 + rand.N(b.next)
	b.next = min(2*b.next, 5*time.Second)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
