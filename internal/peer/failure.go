package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hawser/hawser/internal/peer/peerpb"
	"github.com/hawser/hawser/internal/problem"
)

// maxText bounds each text of an error that goes to the other side.
const maxText = 16 << 10

// remoteError is an error of the other side's handler that is more than its
// problem: the text is that of the whole error.
type remoteError struct {
	text string
	p    *problem.Problem
}

func (e *remoteError) Error() string { return e.text }

func (e *remoteError) Unwrap() error {
	if e.p == nil {
		return nil
	}
	return e.p
}

// outward makes a handler's error fit for the wire. Its first problem travels whole.
func outward(err error) error {
	if err == nil {
		return nil
	}
	f := &peerpb.Failure{Text: cut(err.Error())}
	if p, ok := problem.As(err); ok {
		q := *p
		q.Object, q.Cause, q.Remedy, q.Advice, q.Place = cut(q.Object), cut(q.Cause), cut(q.Remedy), cut(q.Advice), cut(q.Place)
		if p.Err != nil {
			f.Under = cut(p.Err.Error())
		}
		if f.Text == cut(p.Error()) {
			f.Text = ""
		}
		var bad error
		if f.Problem, bad = json.Marshal(&q); bad != nil {
			f.Problem = nil
		}
	}
	s, bad := status.New(codes.Unknown, "the handler failed").WithDetails(f)
	if bad != nil {
		return status.Error(codes.Unknown, f.Text)
	}
	return s.Err()
}

// inward is the other way: the handler's error, if err holds one, as one of instance
// from.
func inward(err error, from string) (error, bool) {
	for _, d := range status.Convert(err).Details() {
		f, ok := d.(*peerpb.Failure)
		if !ok {
			continue
		}
		e := &remoteError{text: f.Text}
		if len(f.Problem) > 0 {
			var p problem.Problem
			if json.Unmarshal(f.Problem, &p) == nil {
				e.p = p.On(from)
			}
		}
		if e.p != nil && f.Under != "" {
			e.p.Err = errors.New(f.Under)
		}
		if e.p != nil && e.text == "" {
			return e.p, true
		}
		return e, true
	}
	return nil, false
}

// cut bounds a text, and makes it the valid UTF-8 that protobuf insists on.
func cut(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// wrap turns an error of gRPC into one that callers know: the other handler's own,
// the context's, or a problem that says why there is no connection.
func (s *session) wrap(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if theirs, ok := inward(err, shown(s.peer)); ok {
		return theirs
	}
	if cause := s.ended(); cause != nil {
		return disconnected(s.peer, cause)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("peer %s: %w", shown(s.peer), context.Cause(ctx))
	}
	switch status.Code(err) {
	case codes.Canceled:
		return fmt.Errorf("peer %s: the other side gave up: %w", shown(s.peer), context.Canceled)
	case codes.DeadlineExceeded:
		return fmt.Errorf("peer %s: %w", shown(s.peer), context.DeadlineExceeded)
	case codes.Unavailable:
		return disconnected(s.peer, nil).Because(errors.New(status.Convert(err).Message()))
	}
	return fmt.Errorf("peer %s: %w", shown(s.peer), err)
}

// disconnected is the problem of every call and stream that has no session.
func disconnected(name string, last *problem.Problem) *problem.Problem {
	p := problem.New("peer-disconnected", "peer "+shown(name), "there is no connection to it", "hawser peer test "+problem.Word(name)).Retry()
	if last != nil {
		p.Cause += ": " + last.Cause
		if last.Remedy != "" || last.Advice != "" {
			p.Remedy, p.Advice, p.Place = last.Remedy, last.Advice, last.Place
		}
		p.Err = nil
	}
	return p
}
