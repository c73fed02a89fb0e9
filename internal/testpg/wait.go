package testpg

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime/debug"
	"testing"
	"time"
)

// Eventually waits until cond holds, and fails the test when it does not in time;
// an error of cond is told then, and until then is a reason to ask again. It is
// the one way in which this project's tests wait for a state.
func Eventually(t testing.TB, within time.Duration, what string, cond func() (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	// A cond that never returns would hold the test up until the whole binary's time is over.
	hangs := time.AfterFunc(within+Patience, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("%s: %s: the question itself had no answer for %s", t.Name(), what, Patience))
	})
	defer hangs.Stop()
	if err := poll(ctx, cond); err != nil {
		t.Fatalf("%s: not within %s: %v", what, within, err)
	}
}

// Await returns what comes next from a channel, the zero value when that is closed, and
// fails the test when neither happens within Patience.
func Await[T any](t testing.TB, what string, from <-chan T) (next T) {
	t.Helper()
	select {
	case next = <-from:
	case <-time.After(Patience):
		t.Fatalf("%s: not within %s", what, Patience)
	}
	return next
}

// Returns waits until f, which may not end the test, has returned: sync.WaitGroup's Wait,
// and whatever else takes no context.
func Returns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	Await(t, what, done)
}

// Command is a program that is killed when it runs longer than Patience, or than the test.
func Command(t testing.TB, program string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second // for what it started, which may hold its output open
	return cmd
}

var errNotYet = errors.New("the condition does not hold")

// poll asks until cond holds, at least once, with growing pauses.
func poll(ctx context.Context, cond func() (bool, error)) error {
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		ok, err := cond()
		if ok && err == nil {
			return nil
		}
		if err == nil {
			err = errNotYet
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}
