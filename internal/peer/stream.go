package peer

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

const (
	// packetBytes bounds a packet, so that streams share the line fairly.
	packetBytes = 256 << 10
	// zstdWindow lives as long as the stream: what repeats within it costs little.
	zstdWindow = 1 << 20
)

// Stream carries frames in order. One goroutine may send and one may receive at
// the same time.
type Stream interface {
	// Send blocks while the other side is behind. f may be reused afterwards.
	Send(f frame.Frame) error
	// Recv returns io.EOF when the other side ended the stream well. What it
	// returns is the caller's.
	Recv() (frame.Frame, error)
}

// ClientStream is a stream that this side opened. Close may be called by any
// goroutine, and ends a Send or Recv that waits.
type ClientStream interface {
	Stream
	Close() error
}

// packets is either side of the gRPC stream.
type packets interface {
	Send(*peerpb.Packet) error
	Recv() (*peerpb.Packet, error)
}

// stream turns frames into a zstd stream in packets: each frame behind its length,
// flushed, so that it arrives at once. Encoder and decoder come with first use.
type stream struct {
	p   packets
	enc *zstd.Encoder
	buf []byte

	dec *zstd.Decoder
	in  *bufio.Reader
}

func (s *stream) Send(f frame.Frame) error {
	if s.enc == nil {
		enc, err := zstd.NewWriter(packetWriter{s.p}, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return err
		}
		s.enc = enc
	}
	s.buf = frame.Encode(s.buf[:0], f)
	var head [binary.MaxVarintLen64]byte
	if _, err := s.enc.Write(head[:binary.PutUvarint(head[:], uint64(len(s.buf)))]); err != nil {
		return fromStatus(err)
	}
	if _, err := s.enc.Write(s.buf); err != nil {
		return fromStatus(err)
	}
	if cap(s.buf) > 8*packetBytes {
		s.buf = nil
	}
	return fromStatus(s.enc.Flush())
}

func (s *stream) Recv() (frame.Frame, error) {
	if s.dec == nil {
		dec, err := zstd.NewReader(&packetReader{p: s.p}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		s.dec, s.in = dec, bufio.NewReader(dec)
	}
	n, err := binary.ReadUvarint(s.in)
	if err != nil {
		return nil, fromStatus(err)
	}
	if n > frame.MaxFrame {
		return nil, fmt.Errorf("a frame of %d bytes, the limit is %d", n, frame.MaxFrame)
	}
	body, err := readBody(s.in, int(n))
	if err != nil {
		return nil, fromStatus(err)
	}
	return frame.Decode(body)
}

// readBody takes memory as bytes arrive, not as the length promises.
func readBody(r io.Reader, n int) ([]byte, error) {
	const step = 4 << 20
	body := make([]byte, 0, min(n, step))
	for len(body) < n {
		from := len(body)
		body = append(body, make([]byte, min(n-from, max(step, from)))...)
		if _, err := io.ReadFull(r, body[from:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}

func (s *stream) release() {
	if s.dec != nil {
		s.dec.Close()
	}
}

type packetWriter struct{ p packets }

func (w packetWriter) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		n := min(len(b)-sent, packetBytes)
		if err := w.p.Send(&peerpb.Packet{Data: b[sent : sent+n]}); err != nil {
			if errors.Is(err, io.EOF) {
				// gRPC says so when the other side ended the stream; its reason
				// comes with Recv.
				if _, why := w.p.Recv(); why != nil && !errors.Is(why, io.EOF) {
					err = why
				}
			}
			return sent, err
		}
		sent += n
	}
	return len(b), nil
}

type packetReader struct {
	p    packets
	left []byte
}

func (r *packetReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		packet, err := r.p.Recv()
		if err != nil {
			return 0, err
		}
		r.left = packet.GetData()
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// opened is a stream of this side's.
type opened struct {
	*stream
	cancel context.CancelFunc
}

func (o *opened) Close() error {
	o.cancel()
	return nil
}

// serving answers the other side's gRPC, in its name.
type serving struct {
	peerpb.UnimplementedPeerServer
	n *Node
	s *session
}

func (v *serving) Call(ctx context.Context, r *peerpb.CallRequest) (*peerpb.CallReply, error) {
	payload, err := v.n.cfg.Handler.Call(ctx, v.s.peer, r.GetLink(), r.GetMethod(), r.GetPayload())
	if err != nil {
		return nil, toStatus(err)
	}
	return &peerpb.CallReply{Payload: payload}, nil
}

func (v *serving) Stream(g peerpb.Peer_StreamServer) error {
	first, err := g.Recv()
	if err != nil {
		return err
	}
	s := &stream{p: g}
	defer s.release()
	return toStatus(v.n.cfg.Handler.Stream(g.Context(), v.s.peer, first.GetLink(), first.GetKind(), s))
}

// maxProbe bounds what a probe may ask for.
const maxProbe = 64 << 20

func (v *serving) Probe(r *peerpb.ProbeRequest, g peerpb.Peer_ProbeServer) error {
	data := make([]byte, packetBytes)
	for left := int(min(r.GetBytes(), maxProbe)); left > 0; left -= len(data) {
		if err := g.Send(&peerpb.ProbeReply{Data: data[:min(left, len(data))]}); err != nil {
			return err
		}
	}
	return nil
}

// toStatus lets a problem arrive as one.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	p, ok := problem.As(err)
	if !ok {
		return status.Error(codes.Unknown, err.Error())
	}
	sent := *p
	if text := err.Error(); text != p.Error() {
		sent.Cause = p.Cause + " (" + text + ")"
	} else if p.Err != nil {
		sent.Cause = p.Cause + ": " + p.Err.Error()
	}
	body, encode := json.Marshal(sent)
	if encode != nil {
		return status.Error(codes.Unknown, err.Error())
	}
	st, encode := status.New(codes.FailedPrecondition, p.Error()).WithDetails(wrapperspb.Bytes(body))
	if encode != nil {
		return status.Error(codes.Unknown, err.Error())
	}
	return st.Err()
}

func fromStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range st.Details() {
		if b, ok := d.(*wrapperspb.BytesValue); ok {
			var p problem.Problem
			if json.Unmarshal(b.GetValue(), &p) == nil && p.Code != "" {
				return &p
			}
		}
	}
	switch st.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Unavailable:
		return problem.New("peer-disconnected", "", "the connection to the peer broke", "none: it is made again").Retry().Because(errors.New(st.Message()))
	}
	return errors.New(st.Message())
}

// Call asks a peer. It may take as long as ctx allows.
func (n *Node) Call(ctx context.Context, peer, link, method string, payload []byte) ([]byte, error) {
	s, err := n.session(peer)
	if err != nil {
		return nil, err
	}
	reply, err := s.stub.Call(ctx, &peerpb.CallRequest{Link: link, Method: method, Payload: payload})
	if err != nil {
		return nil, fromStatus(err)
	}
	return reply.GetPayload(), nil
}

// Open opens a stream to a peer. It ends with ctx, with Close, or with the session.
func (n *Node) Open(ctx context.Context, peer, link, kind string) (ClientStream, error) {
	s, err := n.session(peer)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	g, err := s.stub.Stream(ctx)
	if err == nil {
		err = g.Send(&peerpb.Packet{Link: link, Kind: kind})
	}
	if err != nil {
		cancel()
		return nil, fromStatus(err)
	}
	o := &opened{stream: &stream{p: g}, cancel: cancel}
	return o, nil
}

// rate measures how fast bytes come from the peer.
func (s *session) rate(ctx context.Context, bytes uint32) (perSecond float64, err error) {
	from := time.Now()
	g, err := s.stub.Probe(ctx, &peerpb.ProbeRequest{Bytes: bytes})
	if err != nil {
		return 0, fromStatus(err)
	}
	var got int
	for {
		r, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return float64(got) / time.Since(from).Seconds(), nil
		}
		if err != nil {
			return 0, fromStatus(err)
		}
		got += len(r.GetData())
	}
}
