package link

import (
	"context"
	"errors"
	"testing"

	"github.com/hawser/hawser/internal/link/role"
)

// TestReportOfAStepThatIsOver: the next step comes before the end of a failover was told, as
// while its database can't be opened. It is told all the same: else no other could begin.
func TestReportOfAStepThatIsOver(t *testing.T) {
	t.Parallel()
	l := &link{running: &failoverRun{done: make(chan error, 1)}}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	why := errors.New("the time is up")
	l.perform(over, []role.Action{role.Open{}, role.Unprepare{}, role.Report{Cause: why}})
	select {
	case err := <-l.running.done:
		if !errors.Is(err, why) {
			t.Errorf("it is told %v", err)
		}
	default:
		t.Error("nobody is told")
	}
}
