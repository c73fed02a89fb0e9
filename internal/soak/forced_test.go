package soak

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
	"github.com/hawser/hawser/internal/testpg/history"
)

// force loses the primary, opens the other side by force, brings the old primary
// back, with faults on its way, and notes what it reports.
func (d *drill) force(t *testing.T, s step) {
	t.Helper()
	d.w.awaitSynchronized(t)
	old, _ := d.w.now.get()
	next := d.w.other(old)
	term := d.w.term(t, old)
	d.w.now.set(nil)
	d.w.astray.Store(old)
	defer d.w.astray.Store(nil)

	d.inject(t, fault{kind: networkCut})
	if s.forced.with != networkCut {
		d.inject(t, fault{kind: s.forced.with, side: d.w.index(old)})
	}
	pause(s.forced.before)
	testpg.Eventually(t, patience, next.name+" is opened by force", func() (bool, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := next.api.FailoverLink(ctx, linkName, api.FailoverOptions{Force: true})
		return err == nil, err
	})
	d.forced++
	pause(s.forced.after)
	d.w.heal(t)
	d.strike(t, s.faults, func() { _ = d.rejoin(old) }) // it may be too early
	began := time.Now()
	testpg.Eventually(t, patience, old.name+" follows again", func() (bool, error) {
		if now, err := d.w.agreed(); err == nil {
			return now == next, nil
		}
		d.w.calm.Store(time.Since(began) > calmAfter)
		return false, d.rejoin(old)
	})
	d.w.awaitSynchronized(t)
	d.report(d.reported(t, old, term)...)
}

// rejoin is asked for where it is due.
func (d *drill) rejoin(old *side) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l, err := old.api.Link(ctx, linkName)
	if err != nil {
		return err
	}
	if l.State != api.StateDiverged {
		return fmt.Errorf("%s is %s: %v", l.Role, l.State, l.Cause)
	}
	return old.api.RejoinLink(ctx, linkName)
}

// reported reads which transactions of a term a side says were lost: each wrote itself
// into the ledger.
func (d *drill) reported(t *testing.T, s *side, term uint64) (lost []history.Reported) {
	t.Helper()
	f, err := os.Open(filepath.Join(s.dir, "reports", fmt.Sprintf("%s-term%d.jsonl", linkName, term)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was lost
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := json.NewDecoder(bufio.NewReader(f)); lines.More(); {
		var line struct {
			Operation, Table string
			New              struct{ Client, N string }
		}
		if err := lines.Decode(&line); err != nil {
			t.Fatalf("%s: %v", f.Name(), err)
		}
		if line.Operation != "insert" || line.Table != "ledger" {
			continue
		}
		client, err := strconv.Atoi(line.New.Client)
		n, err2 := strconv.ParseInt(line.New.N, 10, 64)
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("%s: %v", f.Name(), err)
		}
		lost = append(lost, history.Reported{Side: s.name, ID: history.MakeID(client, n)})
	}
	d.lost += len(lost)
	return lost
}

func (w *world) term(t *testing.T, s *side) uint64 {
	t.Helper()
	l, err := s.api.Link(context.Background(), linkName)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(l.Term)
}

func (w *world) index(s *side) int {
	if s == w.sides[0] {
		return 0
	}
	return 1
}
