package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/peer/peerpb"
)

const (
	// packetBytes is the size at which a frame is cut. With its head a packet fits into
	// 32 KB: gRPC takes, and clears, a buffer of 1 MB for any that is larger, on either side.
	packetBytes = 32<<10 - 256
	// zstdWindow is how far back compression looks. The sender holds twice as much:
	// with less its bytes are moved for each block.
	zstdWindow = 512 << 10
	// maxZstdWindow is taken from a peer: agents up to protocol 1 look back as far.
	maxZstdWindow = 1 << 20
	// s2Block bounds the memory of a near line's compression, which looks back within
	// a block alone.
	s2Block = 256 << 10
	// storeBelow: a direction that carries nothing but small frames, such as
	// acknowledgements, is not compressed and needs no window.
	storeBelow = 512
	// keepBytes is how much scratch a stream keeps from one frame to the next.
	keepBytes = 256 << 10
	// lengthBytes stand before each frame.
	lengthBytes = 4
)

// Stream is an ordered exchange of frames with a peer. Send and Recv may be called
// from different goroutines, and each from one at a time.
//
// Send has taken the frame when it returns: its bytes may be reused. It blocks
// while the other side does not read; the end of the stream's context unblocks it.
// After the stream is over it returns Recv's error, or one that is io.EOF where
// only Recv can tell the reason.
// Recv gives frames whose bytes are the caller's. It returns io.EOF when the other
// side ended well: its handler returned nil, or it called Close.
type Stream interface {
	Send(frame.Frame) error
	Recv() (frame.Frame, error)
}

// ClientStream is a stream that this side opened. Close ends it well, and returns
// at once: what was sent still arrives, and the other side has a moment to end. A
// Recv that waits meanwhile returns within that moment.
type ClientStream interface {
	Stream
	Close() error
}

// packets is gRPC's side of a stream, on either end.
type packets interface {
	Send(*peerpb.Packet) error
	Recv() (*peerpb.Packet, error)
}

// stream puts frames on packets.
type stream struct {
	wrap func(error) error // an error of packets, in the words of callers
	out  sender
	in   receiver
}

func newStream(p packets, near func() bool, wrap func(error) error) *stream {
	return &stream{wrap: wrap, out: sender{packets: p, near: near}, in: receiver{packets: p}}
}

func (s *stream) Send(f frame.Frame) error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	err := s.out.send(f)
	if errors.Is(err, io.EOF) { // gRPC: the stream is over, and Recv has the reason
		if err = s.in.reason(); err == nil {
			err = errOver
		}
		return err
	}
	return s.wrap(err)
}

var errOver = fmt.Errorf("the other side ended the stream: %w", io.EOF)

func (s *stream) Recv() (frame.Frame, error) {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	f, err := s.in.recv()
	if err != nil && !errors.Is(err, io.EOF) {
		err = s.wrap(err)
	}
	if err != nil {
		s.in.failed(err)
	}
	return f, err
}

// encoder compresses; what was written before a Flush is whole behind it.
type encoder interface {
	io.Writer
	Flush() error
}

// newEncoder is that of S2 for a near line, where bytes cost less than CPU does: it
// takes about a fourth of zstd's. The receiver tells them apart by their first bytes.
func newEncoder(w io.Writer, near bool) (encoder, error) {
	if near {
		return s2.NewWriter(w, s2.WriterConcurrency(1), s2.WriterBlockSize(s2Block)), nil
	}
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(zstdWindow),
		zstd.WithAllLitEntropyCompression(true),                    // bytea is hexadecimal text, which repeats nothing
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false)) // TLS proves the bytes
}

// newDecoder reads what newEncoder writes; first are its first bytes. An S2 stream
// begins with a chunk of type 0xff, a zstd frame with 0x28.
func newDecoder(r io.Reader, first []byte) (io.Reader, error) {
	if len(first) > 0 && first[0] == 0xff {
		return s2.NewReader(r, s2.ReaderMaxBlockSize(s2Block), s2.ReaderAllocBlock(s2Block)), nil
	}
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
}

// sender compresses frames and cuts them into packets.
type sender struct {
	mu      sync.Mutex
	packets packets
	near    func() bool // asked once, before enc is made
	enc     encoder     // made by the first frame that is worth it
	scratch []byte
	packet  []byte
	err     error // the encoder's state is lost after a failure
}

func (s *sender) send(f frame.Frame) error {
	if s.err == nil {
		s.err = s.write(f)
	}
	return s.err
}

func (s *sender) write(f frame.Frame) error {
	b := frame.Encode(append(slices.Grow(s.scratch[:0], lengthBytes+room(f)), 0, 0, 0, 0), f)
	if cap(b) <= keepBytes {
		s.scratch = b
	}
	n := len(b) - lengthBytes
	if n > frame.MaxFrame {
		return fmt.Errorf("frame of %d bytes, the limit is %d", n, frame.MaxFrame)
	}
	binary.BigEndian.PutUint32(b, uint32(n))
	if s.enc == nil {
		if n < storeBelow {
			return s.packets.Send(&peerpb.Packet{Data: b, Stored: true})
		}
		var err error
		if s.enc, err = newEncoder(s, s.near()); err != nil {
			return err
		}
	}
	if _, err := s.enc.Write(b); err != nil {
		return err
	}
	if err := s.enc.Flush(); err != nil {
		return err
	}
	return s.cut(len(s.packet))
}

// Write takes compressed bytes from the encoder.
func (s *sender) Write(p []byte) (int, error) {
	s.packet = append(s.packet, p...)
	for len(s.packet) >= packetBytes {
		if err := s.cut(packetBytes); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// cut sends the first n bytes. gRPC has encoded them when its Send returns, and
// nothing of ours looks at a message later, so they are written over.
func (s *sender) cut(n int) error {
	if n == 0 {
		return nil
	}
	if err := s.packets.Send(&peerpb.Packet{Data: s.packet[:n]}); err != nil {
		return err
	}
	s.packet = append(s.packet[:0], s.packet[n:]...)
	return nil
}

// room estimates a frame's size, so that a large one is not copied as it grows.
func room(f frame.Frame) int {
	const head = 64
	switch f := f.(type) {
	case frame.SeedChunk:
		return head + len(f.Data)
	case frame.Data:
		n := head
		for _, r := range f.Records {
			n += 2*binary.MaxVarintLen64 + len(r.Payload)
		}
		return n
	}
	return head
}

// receiver joins packets to frames.
type receiver struct {
	mu      sync.Mutex
	packets packets
	dec     io.Reader // made by the first compressed packet
	rest    []byte    // of the packet that the decoder reads

	errMu sync.Mutex
	err   error // the first that Recv returned
}

func (r *receiver) failed(err error) {
	r.errMu.Lock()
	defer r.errMu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

// reason is why the stream is over, nil if Recv does not know it yet.
func (r *receiver) reason() error {
	r.errMu.Lock()
	defer r.errMu.Unlock()
	if errors.Is(r.err, io.EOF) {
		return errOver
	}
	return r.err
}

func (r *receiver) recv() (frame.Frame, error) {
	if len(r.rest) == 0 {
		// Frames begin with a packet, so the stream may end well here alone.
		p, err := r.packets.Recv()
		if err != nil {
			return nil, err
		}
		if p.Stored && r.dec == nil {
			return stored(p.Data)
		}
		if err := r.take(p); err != nil {
			return nil, err
		}
	}
	if r.dec == nil {
		var err error
		if r.dec, err = newDecoder(r, r.rest); err != nil {
			return nil, err
		}
	}
	b, err := r.body()
	if err != nil {
		return nil, notEOF(err)
	}
	return frame.Decode(b)
}

// body reads one frame from the decoder. Memory is taken as the bytes arrive, not
// as the length promises.
func (r *receiver) body() ([]byte, error) {
	var head [lengthBytes]byte
	if _, err := io.ReadFull(r.dec, head[:]); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > frame.MaxFrame {
		return nil, fmt.Errorf("frame of %d bytes, the limit is %d", n, frame.MaxFrame)
	}
	var b []byte
	for int64(len(b)) < n {
		have := len(b)
		b = slices.Grow(b, int(min(n-int64(have), max(keepBytes, int64(have)))))
		b = b[:min(int64(cap(b)), n)]
		if _, err := io.ReadFull(r.dec, b[have:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Read gives the decoder the packets' bytes.
func (r *receiver) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		next, err := r.packets.Recv()
		if err != nil {
			return 0, notEOF(err)
		}
		if err := r.take(next); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *receiver) take(p *peerpb.Packet) error {
	if p.Stored {
		return errors.New("a packet that is not compressed among those that are")
	}
	r.rest = p.Data
	return nil
}

// stored reads a frame that was not compressed.
func stored(b []byte) (frame.Frame, error) {
	if len(b) < lengthBytes || int64(binary.BigEndian.Uint32(b)) != int64(len(b)-lengthBytes) {
		return nil, errors.New("a packet whose length is not that of its frame")
	}
	return frame.Decode(b[lengthBytes:])
}

// notEOF: the end of the packets within a frame is not a good end.
func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// clientStream is a stream that this side opened.
type clientStream struct {
	*stream
	cancel  context.CancelFunc
	packets peerpb.Peer_StreamClient
	once    sync.Once
}

const (
	// closeWithin and closeBytes bound what a closed stream still waits for and
	// throws away until the other side has ended it.
	closeWithin = time.Second
	closeBytes  = 2 * streamWindow
)

// Close ends our direction. The other side sees it behind what was sent, and ends
// its own; if it does not soon, the stream is cancelled.
func (s *clientStream) Close() error {
	s.once.Do(func() {
		timer := time.AfterFunc(closeWithin, s.cancel)
		go func() { // for closeWithin at most
			defer s.cancel()
			defer timer.Stop()
			if s.halfClose() {
				s.drain()
			}
		}()
	})
	return nil
}

// halfClose waits for a Send that still runs.
func (s *clientStream) halfClose() bool {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if s.out.err == nil {
		s.out.err = errClosed
	}
	return s.packets.CloseSend() == nil
}

// drain waits for the other side's end.
func (s *clientStream) drain() {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	for n := 0; n < closeBytes; {
		p, err := s.packets.Recv()
		if err != nil {
			return
		}
		n += len(p.Data)
	}
}

var errClosed = errors.New("the stream was closed here")
