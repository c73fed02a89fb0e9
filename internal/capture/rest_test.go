package capture

import (
	"testing"
	"time"
)

// TestRest: none returns before its time, and one that was never begun costs nothing.
func TestRest(t *testing.T) {
	t.Parallel()
	r, err := newRester()
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for _, d := range []time.Duration{-time.Second, 0, time.Nanosecond, busyRest, mostPace} {
		begun := time.Now()
		if err := r.rest(d); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < d {
			t.Errorf("%s lasted %s", d, took)
		}
	}
}
