package link

import (
	"context"

	"github.com/hawser/hawser/internal/problem"
)

type digestRequest struct{}

type digestReply struct{}

func (l *link) digest(context.Context, digestRequest) (digestReply, error) {
	return digestReply{}, problem.New("not-built", "", "not built yet", "none")
}
