package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hawser/hawser/internal/problem"
)

// Codes of the problems that arise between a client and its agent. The first
// three mean that nothing was asked of the agent at all.
const (
	CodeUnreachable  = "agent-unreachable"
	CodeForbidden    = "agent-forbidden"
	CodeUnauthorized = "unauthorized"
	// CodeInterrupted means that the agent went away while it answered:
	// whether it did what was asked is not known.
	CodeInterrupted = "agent-interrupted"
	// CodeNotHawser means that something else answered.
	CodeNotHawser = "not-hawser"
	// CodeBlocked stands for *Blocked in an answer.
	CodeBlocked = "validation-blocked"
	// CodeInternal stands for an error that is not a problem.
	CodeInternal = "internal"
	// CodeInvalidRequest means that a request does not have the right shape.
	CodeInvalidRequest = "invalid-request"
)

// Class sorts errors by what their reader can do. The HTTP status and the
// command line's exit code both follow from it.
type Class int

// The classes of error.
const (
	// ClassFailed: it could not be done as things stand.
	ClassFailed Class = iota
	// ClassInvalid: the request makes no sense; code `invalid-…`.
	ClassInvalid
	// ClassNotFound: what it names does not exist; code `…-not-found`.
	ClassNotFound
	// ClassConflict: what it makes exists, or is in use; code `…-exists`, `…-in-use`, `…-not-empty`.
	ClassConflict
	// ClassBlocked: validation refused it; *Blocked.
	ClassBlocked
	// ClassTimeout: it took too long and was given up; code `…-timeout`.
	ClassTimeout
	// ClassUnavailable: the same may succeed later without a person; a retryable problem.
	ClassUnavailable
	// ClassUnreachable: the agent can't be reached, or does not let this user in.
	ClassUnreachable
	// ClassInternal: an error that is not a problem.
	ClassInternal
)

// wrongArguments are the codes of requests that make no sense which do not say so.
var wrongArguments = []string{"max-wal-too-small", "no-such-table", "table-ambiguous"}

// Classify sorts err. Codes follow the conventions that the classes name.
func Classify(err error) Class {
	if _, ok := AsBlocked(err); ok {
		return ClassBlocked
	}
	p, ok := problem.As(err)
	switch {
	case !ok && errors.Is(err, context.DeadlineExceeded):
		return ClassTimeout
	case !ok:
		return ClassInternal
	case p.Code == CodeUnreachable, p.Code == CodeForbidden, p.Code == CodeUnauthorized:
		return ClassUnreachable
	case p.Code == CodeInternal:
		return ClassInternal
	case strings.HasPrefix(p.Code, "invalid-"), slices.Contains(wrongArguments, p.Code):
		return ClassInvalid
	case strings.HasSuffix(p.Code, "-not-found"):
		return ClassNotFound
	case strings.HasSuffix(p.Code, "-exists"), strings.HasSuffix(p.Code, "-in-use"), strings.HasSuffix(p.Code, "-not-empty"):
		return ClassConflict
	case strings.HasSuffix(p.Code, "-timeout"):
		return ClassTimeout
	case p.Retryable:
		return ClassUnavailable
	}
	return ClassFailed
}

// status is the HTTP status of an error of the class.
func (c Class) status() int {
	switch c {
	case ClassInvalid:
		return http.StatusBadRequest
	case ClassNotFound:
		return http.StatusNotFound
	case ClassConflict:
		return http.StatusConflict
	case ClassTimeout:
		return http.StatusGatewayTimeout
	case ClassUnavailable:
		return http.StatusServiceUnavailable
	case ClassUnreachable:
		return http.StatusUnauthorized
	case ClassInternal:
		return http.StatusInternalServerError
	}
	return http.StatusUnprocessableEntity
}

// Blocked is the error of an operation that its validation refused. It holds
// every finding, those that do not block among them.
type Blocked struct{ Findings problem.Findings }

// Error tells how many findings block, and the first of them.
func (b *Blocked) Error() string {
	blocking := b.Findings.Blocking()
	switch len(blocking) {
	case 0:
		return "refused by validation"
	case 1:
		return blocking[0].Error()
	}
	return fmt.Sprintf("%d findings stop it, the first: %s", len(blocking), blocking[0])
}

// Unwrap returns the findings that block.
func (b *Blocked) Unwrap() []error {
	var errs []error
	for _, p := range b.Findings.Blocking() {
		errs = append(errs, p)
	}
	return errs
}

// AsBlocked finds a *Blocked in err, or makes one of the error of
// problem.Findings, which is several problems joined.
func AsBlocked(err error) (*Blocked, bool) {
	var b *Blocked
	if errors.As(err, &b) {
		return b, true
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return nil, false
	}
	var findings problem.Findings
	for _, e := range joined.Unwrap() {
		p, ok := problem.As(e)
		if !ok {
			return nil, false
		}
		findings = append(findings, p)
	}
	return &Blocked{Findings: findings}, len(findings) > 0
}

// PeerNotFound is the problem of a peer that is not among those that are trusted.
func PeerNotFound(name string, known ...string) *problem.Problem {
	if len(known) == 0 {
		return problem.New("peer-not-found", "peer "+strconv.Quote(name), "This instance has no peer yet.",
			"hawser peer add "+problem.Word(name+".pem")+" --address HOST:5022").Advise("the file is what hawser cert show prints on that instance")
	}
	return problem.New("peer-not-found", "peer "+strconv.Quote(name), "This instance has no peer of this name.", "hawser peer list").
		Meant(problem.Nearest(name, known))
}

// CheckName refuses what can't be the name of a link or an instance; what says
// which of them it is. The length leaves room for `hawser:<link>:<purpose>` in
// PostgreSQL's application_name.
func CheckName(what, name string) error {
	const most = 40
	valid := name != "" && len(name) <= most && isAlphanumeric(name[0])
	for i := range len(name) {
		valid = valid && (isAlphanumeric(name[i]) || strings.IndexByte("-_.", name[i]) >= 0)
	}
	if valid {
		return nil
	}
	return problem.New("invalid-name", what+" "+strconv.Quote(name),
		fmt.Sprintf("A name has 1 to %d letters (a to z), digits, '-', '_' and '.', and begins with a letter or a digit.", most),
		"").Advise("choose another name, for instance orders-west")
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// errorBody is an error on the wire: RFC 9457's fields, and a problem's.
type errorBody struct {
	Type       string           `json:"type" doc:"about:blank: the code tells the kind of problem"`
	Title      string           `json:"title" doc:"The HTTP status in words"`
	Status     int              `json:"status"`
	Detail     string           `json:"detail" doc:"Object, cause and remedy in one line"`
	Code       string           `json:"code" doc:"Stable; what programs compare" example:"link-not-found"`
	Object     string           `json:"object,omitempty" doc:"What it concerns, as PostgreSQL names it"`
	Cause      string           `json:"cause" doc:"What is wrong, and why it matters"`
	Underlying string           `json:"underlying,omitempty" doc:"The error underneath, as its source told it"`
	Remedy     string           `json:"remedy,omitempty" doc:"What mends it, to be typed as it is: SQL with its semicolons, a command, a flag or a line of the configuration"`
	Place      string           `json:"place,omitempty" doc:"Where remedy and advice hold, when that is not this instance" example:"instance mi-west"`
	Advice     string           `json:"advice,omitempty" doc:"What can't be typed, in words: what comes before or after the remedy, or what else would do"`
	Retryable  bool             `json:"retryable,omitempty" doc:"The same may succeed later without a person"`
	Findings   problem.Findings `json:"findings,omitempty" nullable:"false" doc:"All findings of the validation that refused the operation"`
}

var (
	_ huma.StatusError       = (*errorBody)(nil)
	_ huma.ContentTypeFilter = (*errorBody)(nil)
)

func (b *errorBody) Error() string { return b.Detail }

// GetStatus is called by huma.
func (b *errorBody) GetStatus() int { return b.Status }

// ContentType is called by huma.
func (b *errorBody) ContentType(string) string { return "application/problem+json" }

// encodeError gives an error the form in which it crosses the wire.
func encodeError(err error) *errorBody {
	class := Classify(err)
	body := &errorBody{Type: "about:blank", Status: class.status(), Title: http.StatusText(class.status())}
	if b, ok := AsBlocked(err); ok {
		body.Code, body.Cause, body.Detail = CodeBlocked, b.Error(), b.Error()
		body.Advice = "mend each of the findings, then try again"
		body.Findings = b.Findings
		return body
	}
	code := CodeInternal
	if class == ClassTimeout {
		code = "request-timeout"
	}
	p := problem.Of(err, code)
	if p.Code == "request-timeout" && p.Advice == "" {
		p = problem.New(p.Code, p.Object, "it took longer than it was allowed, and was given up", "").Advise("run it again with a longer --timeout")
	}
	body.Code, body.Object, body.Cause, body.Retryable = p.Code, p.Object, p.Cause, p.Retryable
	body.Remedy, body.Place, body.Advice = p.Remedy, p.Place, p.Advice
	body.Detail = p.Error()
	if p.Err != nil {
		body.Underlying = p.Err.Error()
	}
	return body
}

// decode makes of a body the error that encodeError was given.
func (b *errorBody) decode() error {
	if b.Code == CodeBlocked {
		return &Blocked{Findings: b.Findings}
	}
	p := &problem.Problem{Code: b.Code, Object: b.Object, Cause: b.Cause, Remedy: b.Remedy, Place: b.Place, Advice: b.Advice, Retryable: b.Retryable}
	if b.Underlying != "" {
		return p.Because(errors.New(b.Underlying))
	}
	return p
}

// shapeError makes our body of an error that huma found in a request.
func shapeError(m *huma.ErrorModel) *errorBody {
	var cause strings.Builder
	cause.WriteString("The request does not have the right shape")
	for i, d := range m.Errors {
		cause.WriteString(map[bool]string{true: ": ", false: "; "}[i == 0])
		if d.Location != "" {
			cause.WriteString(d.Location + ": ")
		}
		cause.WriteString(d.Message)
	}
	if len(m.Errors) == 0 && m.Detail != "" {
		cause.WriteString(": " + m.Detail)
	}
	cause.WriteString(".")
	p := problem.New(CodeInvalidRequest, "", cause.String(), "").Advise("/openapi.json describes the API")
	body := encodeError(p)
	body.Status, body.Title = m.Status, http.StatusText(m.Status)
	return body
}
