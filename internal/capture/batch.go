package capture

import (
	"errors"
	"sync"
	"time"

	"github.com/hawser/hawser/internal/frame"
)

const (
	// A frame costs both agents as much as a hundred records do, and the server sends
	// each record by itself. So a batch goes at once only while few do: pace is their
	// distance in a long run, and burst is how far ahead of it they may be. A link with
	// fewer than a thousand transactions a second never waits.
	pace  = time.Millisecond
	burst = 20 * pace
	// A secondary that lags by some time loses nothing by a lagParts of it, and both agents
	// leave the more to whoever needs the processors. At mostPace a Unix socket's records
	// are those of 8,000 transactions a second.
	lagParts = 16
	mostPace = 8 * pace
	// linger is how long records wait for the end of their transaction, without which
	// they are of no use to the secondary; and a keepalive for the transaction that the
	// server is about to send: it says one before and one after each that comes alone.
	linger = 2 * time.Millisecond
	// enoughBytes go in any case.
	enoughBytes = 64 << 10
	// busyRecords within two paces are a busy stream. Its reader rests for busyRest: a
	// Unix socket takes some 270 records, and the server waits when it is full.
	busyRecords = 40
	busyRest    = pace / 2
)

// batch passes records from the goroutine that reads the server to the one that
// sends, in order. Two buffers take turns: while one is being sent the other is
// filled, and a full one blocks the reader.
type batch struct {
	mu     sync.Mutex
	cond   sync.Cond
	timer  *time.Timer // wakes take
	closed bool

	fill  buffer
	spare buffer
	first time.Time // when fill's first record came
	whole bool      // fill ends with a commit
	paid  time.Time // apart for each batch that went
	slow  time.Duration

	count   int       // records since counted
	counted time.Time // when counting began
	busy    bool      // there were many when it ended last

	end   frame.LSN // of the last keepalive; it stands behind the records in fill
	ended time.Time // when the first came that nobody was told of; it stands if fill is empty
	told  frame.LSN // of the last that take returned
}

// buffer holds records whose payloads lie one after another in bytes.
type buffer struct {
	bytes []byte
	lsns  []frame.LSN
	ends  []int
}

var errBatchClosed = errors.New("the stream is closing")

func (b *batch) init() {
	b.cond.L = &b.mu
	b.timer = time.AfterFunc(time.Hour, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.cond.Broadcast()
	})
	b.timer.Stop()
}

// due is how long the records in fill have to wait yet.
func (b *batch) due(now time.Time) time.Duration {
	if len(b.fill.bytes) >= enoughBytes {
		return 0
	}
	wait := b.paid.Add(-burst).Sub(now)
	if !b.whole && b.end == 0 {
		wait = max(wait, b.first.Add(linger).Sub(now))
	}
	return max(wait, 0)
}

// rest is asked by the reader of the server when it has nothing left, and is how long it
// may rest: while the stream is busy, or what it would bring had to wait for its turn
// anyway. It then reads many records at once, where each would wake it up, which costs
// more than all else that is done with the record. Only here does the clock begin for a
// transaction that came in part: most come whole, and need none.
func (b *batch) rest() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if len(b.fill.lsns) > 0 && !b.whole {
		b.wake(now)
	}
	if now.Sub(b.counted) >= 2*pace {
		b.busy = b.count >= busyRecords
		b.count, b.counted = 0, now
	}
	if b.busy {
		return busyRest
	}
	if len(b.fill.bytes) >= enoughBytes {
		return 0
	}
	return max(0, b.paid.Add(-burst).Sub(now))
}

// add copies a record; payload may be reused by the caller. It blocks while the
// batch is full. A record that is larger than a batch travels alone.
func (b *batch) add(lsn frame.LSN, payload []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed && len(b.fill.bytes) >= batchBytes {
		b.cond.Wait()
	}
	if b.closed {
		return errBatchClosed
	}
	if len(b.fill.lsns) == 0 {
		b.first = time.Now()
	}
	few := len(b.fill.bytes) < enoughBytes
	b.fill.bytes = append(b.fill.bytes, payload...)
	b.fill.lsns = append(b.fill.lsns, lsn)
	b.fill.ends = append(b.fill.ends, len(b.fill.bytes))
	b.count++
	b.end = 0 // a keepalive before this record says nothing more than the record does
	b.whole = isCommit(payload)
	// Waking take for each record would cost more than the record does.
	if few && (b.whole || len(b.fill.bytes) >= enoughBytes) {
		b.wake(time.Now())
	}
	return nil
}

// wake lets take run as soon as the records in fill are due.
func (b *batch) wake(now time.Time) {
	if wait := b.due(now); wait > 0 {
		b.timer.Reset(wait)
		return
	}
	b.cond.Broadcast()
}

func (b *batch) keepalive(end frame.LSN) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errBatchClosed
	}
	if end <= b.told {
		return nil // as an idle server says again and again
	}
	first := b.end == 0
	b.end = end
	switch {
	case len(b.fill.lsns) > 0:
		b.wake(time.Now())
	case first:
		b.ended = time.Now()
		b.timer.Reset(linger)
	}
	return nil
}

// lags tells how far the secondary is behind.
func (b *batch) lags(by time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slow = min(by/lagParts, mostPace)
}

// apart is how far from one another batches are in a long run.
func (b *batch) apart() time.Duration { return max(pace, b.slow) }

// next tells whether there is something to send, and how long it has to wait yet.
func (b *batch) next(now time.Time) (wait time.Duration, some bool) {
	if len(b.fill.lsns) > 0 {
		return b.due(now), true
	}
	return max(0, b.ended.Add(linger).Sub(now)), b.end > 0
}

// take waits for something to send. The records are valid until the next take.
func (b *batch) take() ([]frame.Record, frame.LSN, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed {
		wait, some := b.next(time.Now())
		if some && wait == 0 {
			break
		}
		if some {
			b.timer.Reset(wait)
		}
		b.cond.Wait()
	}
	if b.closed {
		return nil, 0, errBatchClosed
	}
	now := time.Now()
	if b.paid.Before(now) {
		b.paid = now
	}
	b.paid = b.paid.Add(b.apart())
	if most := now.Add(burst + b.apart()); b.paid.After(most) { // large batches pay no more
		b.paid = most
	}
	full, end := b.fill, b.end
	b.told = max(b.told, end)
	b.fill, b.spare, b.end = b.spare.reset(), full, 0
	b.cond.Broadcast()
	return full.records(), end, nil
}

// isCommit peeks at a record's type: Commit, or Stream Commit.
func isCommit(payload []byte) bool {
	return len(payload) > 0 && (payload[0] == 'C' || payload[0] == 'c')
}

func (b *batch) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.timer.Stop()
	b.cond.Broadcast()
}

// reset empties the buffer for reuse; one that held a very large value is let go.
func (f buffer) reset() buffer {
	if cap(f.bytes) > 4*batchBytes {
		return buffer{}
	}
	return buffer{bytes: f.bytes[:0], lsns: f.lsns[:0], ends: f.ends[:0]}
}

func (f buffer) records() []frame.Record {
	out := make([]frame.Record, len(f.lsns))
	from := 0
	for i, end := range f.ends {
		out[i] = frame.Record{LSN: f.lsns[i], Payload: f.bytes[from:end:end]}
		from = end
	}
	return out
}
