package capture

import (
	"testing"
	"time"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

func newBatch(t *testing.T) *batch {
	t.Helper()
	b := &batch{}
	b.init()
	t.Cleanup(b.close)
	return b
}

func put(t *testing.T, b *batch, lsn frame.LSN, payload string) {
	t.Helper()
	if err := b.add(lsn, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

func take(t *testing.T, b *batch) []frame.Record {
	t.Helper()
	records, _, err := b.take()
	if err != nil {
		t.Fatal(err)
	}
	return append([]frame.Record(nil), records...)
}

// A transaction on an idle line travels whole, and at once.
func TestBatchWaitsForTheCommit(t *testing.T) {
	b := newBatch(t)
	put(t, b, 1, "B")
	if b.due(b.first) != linger {
		t.Errorf("a begin alone is due in %s, not in %s", b.due(b.first), linger)
	}
	put(t, b, 2, "I")
	put(t, b, 3, "C")
	if b.due(time.Now()) != 0 {
		t.Error("a whole transaction has to wait on an idle line")
	}
	if got := take(t, b); len(got) != 3 {
		t.Errorf("%d records, not 3", len(got))
	}
}

// A transaction whose end is long in coming is sent in parts.
func TestBatchDoesNotWaitForeverForTheCommit(t *testing.T) {
	b := newBatch(t)
	put(t, b, 1, "B")
	if got := take(t, b); len(got) != 1 {
		t.Errorf("%d records, not 1", len(got))
	}
}

// A keepalive goes by itself where nothing follows it, and with the transaction, or not at
// all, where one does.
func TestBatchHoldsKeepalives(t *testing.T) {
	b := newBatch(t)
	tell := func(end frame.LSN) {
		t.Helper()
		if err := b.keepalive(end); err != nil {
			t.Fatal(err)
		}
	}
	tell(9)
	if wait, some := b.next(b.ended); !some || wait != linger {
		t.Errorf("a keepalive is due in %s (%v), not in %s", wait, some, linger)
	}
	tell(10)
	if records, end, err := b.take(); err != nil || len(records) != 0 || end != 10 {
		t.Errorf("%d records and the end %s (%v), not the keepalive alone", len(records), end, err)
	}
	tell(11)
	put(t, b, 12, "B")
	put(t, b, 13, "C")
	if records, end, err := b.take(); err != nil || len(records) != 2 || end != 0 {
		t.Errorf("%d records and the end %s (%v), not the transaction alone", len(records), end, err)
	}
	put(t, b, 14, "B")
	tell(15)
	if records, end, err := b.take(); err != nil || len(records) != 1 || end != 15 {
		t.Errorf("%d records and the end %s (%v), not the record and the keepalive behind it", len(records), end, err)
	}
}

// Nor while the sender waits already, and the reader has nothing more.
func TestBatchWakesForHalfATransaction(t *testing.T) {
	b := newBatch(t)
	got := make(chan int)
	go func() {
		records, _, _ := b.take()
		got <- len(records)
	}()
	put(t, b, 1, "B")
	put(t, b, 2, "I")
	b.rest()
	if n := testpg.Await(t, "the batch is taken", got); n != 2 {
		t.Errorf("%d records, not 2", n)
	}
}

// Many small transactions share frames; a large one does not wait.
func TestBatchKeepsPace(t *testing.T) {
	b := newBatch(t)
	for range 2 * burst / pace {
		put(t, b, 1, "C")
		take(t, b)
	}
	put(t, b, 1, "C")
	if now := b.paid.Add(-burst - pace/2); b.due(now) != pace/2 {
		t.Errorf("due in %s behind a burst, not in %s", b.due(now), pace/2)
	}
	put(t, b, 2, string(make([]byte, enoughBytes)))
	if b.due(time.Now()) != 0 {
		t.Error("a large batch has to wait")
	}
}

// What is taken has the order and the bytes of what was put in, whatever was lent.
func TestBatchKeepsOrder(t *testing.T) {
	b := newBatch(t)
	const n = 20000
	go func() {
		scratch := make([]byte, 1)
		for i := range n {
			scratch[0] = "BIC"[i%3]
			if b.add(frame.LSN(i+1), scratch) != nil {
				return
			}
		}
	}()
	frames := 0
	for next := 0; next < n; frames++ {
		for _, r := range take(t, b) {
			if r.LSN != frame.LSN(next+1) || r.Payload[0] != "BIC"[next%3] {
				t.Fatalf("record %d is %s %q", next, r.LSN, r.Payload)
			}
			next++
		}
	}
	if frames > n/10 {
		t.Errorf("%d records travelled in %d frames", n, frames)
	}
}

// Behind a secondary that lags the batches are farther apart, and no farther than a
// bound; when it has caught up they are not.
func TestBatchYieldsToALag(t *testing.T) {
	b := newBatch(t)
	for _, c := range []struct{ lag, apart time.Duration }{
		{0, pace}, {3 * lagParts * pace, 3 * pace}, {time.Hour, mostPace}, {pace, pace},
	} {
		if b.lags(c.lag); b.apart() != c.apart {
			t.Errorf("with %s of lag batches are %s apart, not %s", c.lag, b.apart(), c.apart)
		}
	}
}
