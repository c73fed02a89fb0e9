package testpg

import (
	"flag"
	"strconv"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

var checking sync.Mutex // holds whoever sets rapid's number of checks, which is the process's

// Check is rapid.Check with so many checks, for a property that takes seconds; with more
// or fewer if the command line asks for them.
func Check(t *testing.T, checks int, property func(*rapid.T)) {
	t.Helper()
	checking.Lock()
	restore := sync.OnceFunc(checking.Unlock)
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(strconv.Itoa(checks)); err != nil {
			t.Error(err)
		}
		restore = sync.OnceFunc(func() {
			_ = f.Value.Set(f.DefValue)
			checking.Unlock()
		})
	}
	defer restore()
	rapid.Check(t, func(rt *rapid.T) {
		restore() // rapid has read it
		property(rt)
	})
}
