package link

import (
	"testing"
	"time"

	"github.com/hawser/hawser/internal/capture"
)

// The fence closes when the secondary has as good as nothing left to apply, or when its
// lag, small in bytes, does not fall any more.
func TestApproach(t *testing.T) {
	t.Parallel()
	begun := time.Unix(0, 0)
	lag := func(bytes uint64, seconds float64) capture.Lag {
		return capture.Lag{Bytes: bytes, Seconds: seconds, At: begun}
	}
	for name, c := range map[string]struct {
		lag  func(after time.Duration) capture.Lag
		want time.Duration // from the begin; -1: not within a minute
	}{
		"idle":                  {func(time.Duration) capture.Lag { return lag(0, 0.001) }, 0},
		"never heard of":        {func(time.Duration) capture.Lag { return capture.Lag{} }, -1},
		"many bytes":            {func(time.Duration) capture.Lag { return lag(closeEnough+1, 0.3) }, -1},
		"few bytes, never less": {func(time.Duration) capture.Lag { return lag(1<<20, 3) }, stalled},
		"few bytes that take long": {func(after time.Duration) capture.Lag {
			return lag(1<<20, 20-after.Seconds())
		}, 20*time.Second - soonEnough},
		"few bytes, up and down": {func(after time.Duration) capture.Lag {
			return lag(1<<20, 0.3+0.1*float64(after/lookEvery%3))
		}, stalled},
		"a moment of nothing": {func(after time.Duration) capture.Lag {
			if after == time.Second {
				return lag(100, 0.04)
			}
			return lag(1<<20, 0.2)
		}, time.Second},
	} {
		got := time.Duration(-1)
		a := approach{}
		for after := time.Duration(0); after < time.Minute && got < 0; after += lookEvery {
			if a.near(c.lag(after), begun.Add(after)) {
				got = after
			}
		}
		if got.Round(100*time.Millisecond) != c.want.Round(100*time.Millisecond) {
			t.Errorf("%s: closed after %s, want %s", name, got, c.want)
		}
	}
}
