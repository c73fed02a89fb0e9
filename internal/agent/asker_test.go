package agent_test

import (
	"context"
	"fmt"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// asker is an agent's client that gives up on an answer that never comes: a test that
// hangs on it fails, and says what it asked. What only reads is bounded by the client.
type asker struct{ *api.Client }

func bounded[T any](ctx context.Context, what string, within time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("%s: no answer within %s", what, within))
	defer cancel()
	return ask(ctx)
}

func boundedErr(ctx context.Context, what string, ask func(context.Context) error) error {
	_, err := bounded(ctx, what, testpg.Patience, func(ctx context.Context) (struct{}, error) { return struct{}{}, ask(ctx) })
	return err
}

func (a asker) ValidateLink(ctx context.Context, spec api.LinkSpec) (problem.Findings, error) {
	return bounded(ctx, "validate link "+spec.Name, testpg.Patience, func(ctx context.Context) (problem.Findings, error) { return a.Client.ValidateLink(ctx, spec) })
}

func (a asker) CreateLink(ctx context.Context, spec api.LinkSpec) (api.Link, error) {
	return bounded(ctx, "create link "+spec.Name, testpg.Patience, func(ctx context.Context) (api.Link, error) { return a.Client.CreateLink(ctx, spec) })
}

func (a asker) PauseLink(ctx context.Context, name string) error {
	return boundedErr(ctx, "pause link "+name, func(ctx context.Context) error { return a.Client.PauseLink(ctx, name) })
}

func (a asker) ResumeLink(ctx context.Context, name string) error {
	return boundedErr(ctx, "resume link "+name, func(ctx context.Context) error { return a.Client.ResumeLink(ctx, name) })
}

func (a asker) ResyncLink(ctx context.Context, name string, tables []string) error {
	return boundedErr(ctx, "resync link "+name, func(ctx context.Context) error { return a.Client.ResyncLink(ctx, name, tables) })
}

func (a asker) RejoinLink(ctx context.Context, name string) error {
	return boundedErr(ctx, "rejoin link "+name, func(ctx context.Context) error { return a.Client.RejoinLink(ctx, name) })
}

func (a asker) FollowLink(ctx context.Context, name, primary string) error {
	return boundedErr(ctx, "follow "+primary+" with link "+name, func(ctx context.Context) error { return a.Client.FollowLink(ctx, name, primary) })
}

func (a asker) FailoverLink(ctx context.Context, name string, o api.FailoverOptions) (api.FailoverResult, error) {
	return bounded(ctx, "fail over link "+name, o.Timeout+testpg.Patience, func(ctx context.Context) (api.FailoverResult, error) { return a.Client.FailoverLink(ctx, name, o) })
}

func (a asker) VerifyLink(ctx context.Context, name string, o api.VerifyOptions) (api.VerifyReport, error) {
	return bounded(ctx, "verify link "+name, o.Timeout+testpg.Patience, func(ctx context.Context) (api.VerifyReport, error) { return a.Client.VerifyLink(ctx, name, o) })
}

func (a asker) DropLink(ctx context.Context, name string, o api.DropOptions) (api.DropResult, error) {
	return bounded(ctx, "drop link "+name, testpg.Patience, func(ctx context.Context) (api.DropResult, error) { return a.Client.DropLink(ctx, name, o) })
}
