package seed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// receive writes the rows that arrive into the table, and holds the two sides'
// counts against each other. After an error the stream is closed: what is still to
// come on it belongs to nobody.
func (w *worker) receive(ctx context.Context, start frame.SeedStart, s *share, options string) (rows int64, err error) {
	in := &incoming{stream: w.stream, share: s}
	tag, err := w.conn.PgConn().CopyFrom(ctx, in, copyInto(start)+options)
	if err == nil {
		return in.rows, w.sameCount(start, in.rows, tag.RowsAffected())
	}
	w.dropStream()
	if cause := in.stop(); cause != nil {
		err = cause
	}
	return 0, err
}

func (w *worker) sameCount(start frame.SeedStart, sent, taken int64) error {
	if sent == taken {
		return nil
	}
	return problem.New("rows-lost", "table "+quoted(start), fmt.Sprintf("the primary sent %d rows and the replica took %d", sent, taken),
		"hawser link resume "+w.cfg.Name).Advise("it copies the table again")
}

// incoming reads the rows of one request from a stream.
type incoming struct {
	stream Stream
	share  *share

	mu    sync.Mutex // held while Read runs: CopyFrom may return earlier
	left  []byte
	rows  int64
	ended bool
	err   error
}

func (r *incoming) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.left) == 0 && r.err == nil {
		if r.ended {
			return 0, io.EOF
		}
		r.err = r.next()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func (r *incoming) next() error {
	f, err := r.stream.Recv()
	if err != nil {
		return lost(streamLost, err)
	}
	switch f := f.(type) {
	case frame.SeedChunk:
		r.left = f.Data
		r.share.add(f.Data)
	case frame.SeedEnd:
		r.rows, r.ended = f.Rows, true
	default:
		return fmt.Errorf("unexpected %T among rows", f)
	}
	return nil
}

var errStopped = errors.New("the copy was stopped")

// stop waits for a Read that still runs, whose stream was closed, and returns why
// reading failed, if it did.
func (r *incoming) stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.err
	if r.err == nil {
		r.err = errStopped
	}
	return err
}

// newlines counts rows: COPY's text has one at the end of each and none within.
func newlines(data []byte) int64 { return int64(bytes.Count(data, []byte{'\n'})) }
