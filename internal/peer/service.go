package peer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

// service answers the other side of one session.
type service struct {
	peerpb.UnimplementedPeerServer
	session *session
	handler Handler // nil on a test's connection
}

var errTestOnly = status.Error(codes.FailedPrecondition, "this connection was made for a test")

func (v *service) Call(ctx context.Context, r *peerpb.CallRequest) (*peerpb.CallReply, error) {
	if v.handler == nil {
		return nil, errTestOnly
	}
	payload, err := v.handler.Call(ctx, v.session.peer, r.Link, r.Method, r.Payload)
	if err == nil {
		err = fits(r.Method, "answer", payload)
	}
	if err != nil {
		return nil, outward(err)
	}
	return &peerpb.CallReply{Payload: payload}, nil
}

func (v *service) Stream(packets peerpb.Peer_StreamServer) error {
	if v.handler == nil {
		return errTestOnly
	}
	first, err := packets.Recv()
	if err != nil {
		return err
	}
	ctx := packets.Context()
	s := newStream(packets, v.session.near, func(err error) error { return v.session.wrap(ctx, err) })
	return outward(v.handler.Stream(ctx, v.session.peer, first.Link, first.Kind, s))
}

// Probe sends and counts what a measurement asks for, within bounds.
func (v *service) Probe(packets peerpb.Peer_ProbeServer) error {
	first, err := packets.Recv()
	if err != nil {
		return err
	}
	piece := make([]byte, probePiece)
	for want := min(first.Want, maxProbe); want > 0; {
		n := min(want, probePiece)
		if err := packets.Send(&peerpb.ProbePacket{Data: piece[:n]}); err != nil {
			return err
		}
		want -= n
	}
	got := uint64(len(first.Data))
	for {
		p, err := packets.Recv()
		if errors.Is(err, io.EOF) {
			return packets.Send(&peerpb.ProbePacket{Got: got})
		}
		if err != nil {
			return err
		}
		if got += uint64(len(p.Data)); got > maxProbe {
			return status.Error(codes.ResourceExhausted, "the probe is too large")
		}
	}
}

func (v *service) Leave(_ context.Context, r *peerpb.LeaveRequest) (*peerpb.LeaveReply, error) {
	v.session.end(left(v.session.peer, r.Reason, false))
	return &peerpb.LeaveReply{}, nil
}

// fits refuses a payload that gRPC would not carry.
func fits(method, what string, payload []byte) error {
	if len(payload) <= maxPayload {
		return nil
	}
	return problem.New("call-too-large", "call "+method,
		fmt.Sprintf("its %s of %d bytes is over the limit of %d", what, len(payload), maxPayload), "").Advise("this is a fault of Hawser: report it")
}
