// Command hawser runs an instance's agent and speaks to one. It holds flags and
// printing and no logic: what it does, the agent does.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/demo"
)

func main() {
	ctx, stop := untilSignal(context.Background())
	a := &app{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ(),
		inTerminal: isTerminal(os.Stdin), outTerminal: isTerminal(os.Stdout), errTerminal: isTerminal(os.Stderr),
		rows: terminalRows, now: time.Now, poll: time.Second,
		runAgent: runAgent, runDemo: demo.Run,
	}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// runAgent runs the agent that has this process for itself, and with it its memory.
func runAgent(ctx context.Context, config agent.Config, version string) error {
	debug.SetMemoryLimit(int64(config.Limits.Memory))
	return agent.Run(ctx, config, version)
}

// signalled is the cause of a context that a signal ended.
type signalled struct{ signal syscall.Signal }

func (s signalled) Error() string { return "ended by " + s.signal.String() }

// Is has it known for a context's end where whoever ran under that tells its cause, as
// package link does.
func (s signalled) Is(target error) bool { return target == context.Canceled }

// sameAsking is how soon behind the first a signal means the same: who stops a process
// with its group, as timeout does, sends it two.
const sameAsking = time.Second

// untilSignal returns a context that the first SIGINT or SIGTERM ends. A second
// one, but for those of the same asking, ends the process at once.
func untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s, ok := (<-signals).(syscall.Signal)
		if !ok {
			return // stopped
		}
		cancel(signalled{s})
		for first := time.Now(); ok && time.Since(first) < sameAsking; {
			s, ok = (<-signals).(syscall.Signal)
		}
		if ok {
			fmt.Fprintln(os.Stderr, "hawser: ended at once by a second signal")
			os.Exit(exitSignal + int(s))
		}
	}()
	return ctx, func() { signal.Stop(signals); close(signals); cancel(nil) }
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// terminalRows is the height of the terminal on standard output.
func terminalRows() int {
	_, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || rows < 4 {
		return 24
	}
	return rows
}
