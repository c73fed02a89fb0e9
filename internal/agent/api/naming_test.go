package api

import (
	"context"
	"errors"
	"testing"

	"github.com/hawser/hawser/internal/problem"
)

// TestRemediesNameTheLink: whoever reads a remedy can type it as it stands.
func TestRemediesNameTheLink(t *testing.T) {
	t.Parallel()
	resume := func() *problem.Problem {
		return problem.New("statement-failed", "table t", "It failed.", "mend it, then hawser link resume NAME").Because(errors.New("(remedy: hawser link resync LINK --table t)"))
	}
	const want = "table t: It failed.: (remedy: hawser link resync shop --table t) (remedy: mend it, then hawser link resume shop)"
	s := &stub{
		links: func() ([]Link, error) {
			return []Link{{Name: "shop", Cause: resume(), Findings: problem.Findings{resume()}}}, nil
		},
		link:     func(string) (Link, error) { return Link{Name: "shop", Cause: resume()}, nil },
		validate: func(LinkSpec) (problem.Findings, error) { return problem.Findings{resume()}, nil },
		create: func(context.Context, LinkSpec) (Link, error) {
			return Link{}, &Blocked{Findings: problem.Findings{resume()}}
		},
		failover: func(string, FailoverOptions) (FailoverResult, error) { return FailoverResult{}, resume() },
		verify: func(context.Context, string, VerifyOptions) (VerifyReport, error) {
			return VerifyReport{Tables: []VerifyTable{{Problem: resume()}}, Findings: problem.Findings{resume()}}, nil
		},
		drop:      func(string, DropOptions) error { return resume() },
		pauseFail: resume(),
	}
	n := naming{s}
	got := map[string]error{}
	links, _ := n.Links(t.Context())
	got["links"], got["notes"] = links[0].Cause, links[0].Findings[0]
	l, _ := n.Link(t.Context(), "shop")
	got["link"] = l.Cause
	f, _ := n.ValidateLink(t.Context(), LinkSpec{Name: "shop"})
	got["validate"] = f[0]
	_, got["create"] = n.CreateLink(t.Context(), LinkSpec{Name: "shop"})
	_, got["failover"] = n.FailoverLink(t.Context(), "shop", FailoverOptions{})
	r, _ := n.VerifyLink(t.Context(), "shop", VerifyOptions{})
	got["table"], got["finding"] = r.Tables[0].Problem, r.Findings[0]
	_, got["drop"] = n.DropLink(t.Context(), "shop", DropOptions{})
	got["pause"] = n.PauseLink(t.Context(), "shop")
	for what, err := range got {
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestOtherNamesStay(t *testing.T) {
	t.Parallel()
	p := problem.New("x", "", "It is wrong.", "hawser peer test NAME; ALTER DATABASE NAME; hawser link resumed NAMES")
	if q := namedProblem(p, "shop"); q != p {
		t.Errorf("got %v", q)
	}
	if q := namedProblem(problem.New("x", "", "", "hawser link resume NAME"), ""); q.Remedy != "hawser link resume NAME" {
		t.Errorf("without a name: %v", q)
	}
}
