// Package demo shows Hawser at work on one machine: two instances, a workload, a
// link, a planned failover and failback, and the proof that both sides hold the
// same rows.
package demo

import (
	"context"
	"errors"
	"io"
	"time"
)

// Options say how the demo runs.
type Options struct {
	Keep     bool          // leave all running at the end
	Duration time.Duration // of the workload; 0 chooses
	JSON     bool          // one JSON document a line instead of text
	Terminal bool          // Out is a terminal: colours, lines written over
	Out      io.Writer
}

// Run returns nil only when the proof holds.
func Run(context.Context, Options) error { return errors.New("not built yet") }
