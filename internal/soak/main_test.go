// Package soak runs the whole product for as long as one likes, with faults.
//
// Two instances are linked: a server, and a managed instance whose agent runs its
// own PostgreSQL. Agents are real processes, and the network between them leads
// through a proxy. Clients write and readers read on both sides all the while; a
// schedule that follows from a seed kills, stops, freezes and cuts, with planned
// failovers in between, and forced ones whose old primary rejoins. After each round everything is quiet for a moment, and
// package history judges what clients and readers saw. The schedule is the same for
// the same seed; when exactly a fault meets a transaction is not.
//
// It uses the product as a user would, and must never reach into it.
package soak

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/testpg"
)

var (
	duration = flag.Duration("soak", 30*time.Second, "how long rounds are begun")
	seed     = flag.Uint64("seed", 0, "seed of the schedule; 0 takes a new one, which is printed")
	first    = flag.Int("first", 0, "the round to begin with: one that failed needs none before it")
	keep     = flag.Bool("keep", false, "leave the instances' directory, with the agents' logs, when the test failed")
)

// program is cmd/hawser, built once.
var program string

// buildWithin bounds that build, which the time limit of go test does not.
const buildWithin = 15 * time.Minute

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hawser-soak-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "hawser")
	ctx, cancel := context.WithTimeout(context.Background(), buildWithin)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/hawser/hawser/cmd/hawser").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build hawser: %v\n%s", err, out)
		return 1
	}
	return testpg.Main(m)
}
