// Package agent is the one process of an instance: its configuration, its
// listeners, and the wiring of all other packages.
package agent

import (
	"context"
	"errors"
)

// Run is the agent until ctx ends.
func Run(_ context.Context, _ Config, _ string) error { return errors.New("not built yet") }
