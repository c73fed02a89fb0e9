package api

import (
	"context"
	"errors"
	"regexp"

	"github.com/hawser/hawser/internal/problem"
)

// naming is a Service whose problems name their link. Those who find a problem
// deep inside, such as a table that is missing, don't know for which link they
// work, and write `hawser link resume NAME`. Whoever reads it wants to type it as it
// stands. This is the one place through which all of them pass on their way out.
type naming struct{ Service }

func (s naming) Links(ctx context.Context) ([]Link, error) {
	links, err := s.Service.Links(ctx)
	for i := range links {
		links[i] = namedLink(links[i])
	}
	return links, err
}

func (s naming) Link(ctx context.Context, name string) (Link, error) {
	l, err := s.Service.Link(ctx, name)
	return namedLink(l), namedError(err, name)
}

func (s naming) ValidateLink(ctx context.Context, spec LinkSpec) (problem.Findings, error) {
	f, err := s.Service.ValidateLink(ctx, spec)
	return namedFindings(f, spec.Name), namedError(err, spec.Name)
}

func (s naming) CreateLink(ctx context.Context, spec LinkSpec) (Link, error) {
	l, err := s.Service.CreateLink(ctx, spec)
	return namedLink(l), namedError(err, spec.Name)
}

func (s naming) PauseLink(ctx context.Context, name string) error {
	return namedError(s.Service.PauseLink(ctx, name), name)
}

func (s naming) ResumeLink(ctx context.Context, name string) error {
	return namedError(s.Service.ResumeLink(ctx, name), name)
}

func (s naming) FailoverLink(ctx context.Context, name string, o FailoverOptions) (FailoverResult, error) {
	r, err := s.Service.FailoverLink(ctx, name, o)
	return r, namedError(err, name)
}

func (s naming) ResyncLink(ctx context.Context, name string, tables []string) error {
	return namedError(s.Service.ResyncLink(ctx, name, tables), name)
}

func (s naming) SetLinkMaxWAL(ctx context.Context, name string, bytes *int64) error {
	return namedError(s.Service.SetLinkMaxWAL(ctx, name, bytes), name)
}

func (s naming) FollowLink(ctx context.Context, name, primary string) error {
	return namedError(s.Service.FollowLink(ctx, name, primary), name)
}

func (s naming) RejoinLink(ctx context.Context, name string) error {
	return namedError(s.Service.RejoinLink(ctx, name), name)
}

func (s naming) VerifyLink(ctx context.Context, name string, o VerifyOptions) (VerifyReport, error) {
	r, err := s.Service.VerifyLink(ctx, name, o)
	for i := range r.Tables {
		r.Tables[i].Problem = namedProblem(r.Tables[i].Problem, name)
	}
	r.Findings = namedFindings(r.Findings, name)
	return r, namedError(err, name)
}

func (s naming) DropLink(ctx context.Context, name string, o DropOptions) (DropResult, error) {
	r, err := s.Service.DropLink(ctx, name, o)
	r.Findings = namedFindings(r.Findings, name)
	return r, namedError(err, name)
}

func namedLink(l Link) Link {
	l.Cause, l.Findings = namedProblem(l.Cause, l.Name), namedFindings(l.Findings, l.Name)
	return l
}

func namedFindings(all problem.Findings, link string) problem.Findings {
	for i := range all {
		all[i] = namedProblem(all[i], link)
	}
	return all
}

func namedError(err error, link string) error {
	if b, ok := AsBlocked(err); ok {
		return &Blocked{Findings: namedFindings(b.Findings, link)}
	}
	if p, ok := problem.As(err); ok {
		if q := namedProblem(p, link); q != p {
			return q
		}
	}
	return err
}

// namedProblem returns p itself where there is nothing to name: problems are shared.
func namedProblem(p *problem.Problem, link string) *problem.Problem {
	if p == nil || link == "" {
		return p
	}
	q := *p
	q.Cause, q.Remedy, q.Advice = namedText(p.Cause, link), namedText(p.Remedy, link), namedText(p.Advice, link)
	changed := q.Cause != p.Cause || q.Remedy != p.Remedy || q.Advice != p.Advice
	if p.Err != nil {
		if text := namedText(p.Err.Error(), link); text != p.Err.Error() {
			q.Err, changed = errors.New(text), true
		}
	}
	if !changed {
		return p
	}
	return &q
}

var unnamed = regexp.MustCompile(`\b(hawser link [a-z]+) (?:NAME|LINK)\b`)

// namedText leaves other placeholders alone, such as that of hawser peer test NAME.
func namedText(text, link string) string {
	return unnamed.ReplaceAllString(text, "${1} "+link)
}
