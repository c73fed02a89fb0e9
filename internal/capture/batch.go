package capture

import (
	"errors"
	"sync"

	"github.com/hawser/hawser/internal/frame"
)

// batch passes records from the goroutine that reads the server to the one that
// sends, in order. Two buffers take turns: while one is being sent the other is
// filled, and a full one blocks the reader.
type batch struct {
	mu     sync.Mutex
	cond   sync.Cond
	closed bool

	fill  buffer
	spare buffer
	end   frame.LSN // of the last keepalive; it stands behind the records in fill
}

// buffer holds records whose payloads lie one after another in bytes.
type buffer struct {
	bytes []byte
	lsns  []frame.LSN
	ends  []int
}

var errBatchClosed = errors.New("the stream is closing")

func (b *batch) init() { b.cond.L = &b.mu }

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
	b.fill.bytes = append(b.fill.bytes, payload...)
	b.fill.lsns = append(b.fill.lsns, lsn)
	b.fill.ends = append(b.fill.ends, len(b.fill.bytes))
	b.end = 0 // a keepalive before this record says nothing more than the record does
	b.cond.Broadcast()
	return nil
}

func (b *batch) keepalive(end frame.LSN) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errBatchClosed
	}
	b.end = end
	b.cond.Broadcast()
	return nil
}

// take waits for something to send. The records are valid until the next take.
func (b *batch) take() ([]frame.Record, frame.LSN, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed && len(b.fill.lsns) == 0 && b.end == 0 {
		b.cond.Wait()
	}
	if b.closed {
		return nil, 0, errBatchClosed
	}
	full, end := b.fill, b.end
	b.fill, b.spare, b.end = b.spare.reset(), full, 0
	b.cond.Broadcast()
	return full.records(), end, nil
}

func (b *batch) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
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
