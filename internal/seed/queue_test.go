package seed

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/catalog"
)

// However the workers take turns, every table is copied and built once, batches
// keep their limits, and all workers come to an end.
func TestQueueLosesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		l := limits{small: 100, tables: rapid.IntRange(1, 5).Draw(rt, "batch"), disk: 300}
		workers := rapid.IntRange(1, 4).Draw(rt, "workers")
		var tables []catalog.SeedTable
		for i := range rapid.IntRange(1, 30).Draw(rt, "tables") {
			tables = append(tables, catalog.SeedTable{
				OID: uint32(i + 1), Bytes: rapid.Int64Range(0, 250).Draw(rt, "bytes"),
				State:     rapid.SampledFrom([]catalog.TableState{catalog.Pending, catalog.Copying, catalog.Loaded}).Draw(rt, "state"),
				BytesDone: rapid.SampledFrom([]int64{0, 1}).Draw(rt, "done"),
			})
		}
		q := newQueue(tables, workers, l)
		copied, built, live := map[uint32]int{}, map[uint32]int{}, map[uint32]int{}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var open []job // taken and not done, by workers of whom each has one
		for {
			if len(open) == workers || len(open) > 0 && rapid.Bool().Draw(rt, "end one") {
				i := rapid.IntRange(0, len(open)-1).Draw(rt, "which")
				j := open[i]
				open = append(open[:i], open[i+1:]...)
				for _, t := range j.copy {
					switch rapid.IntRange(0, 9).Draw(rt, "outcome") {
					case 0:
						q.putOff(t, 0)
					case 1:
						q.dropped()
						copied[t.OID], built[t.OID], live[t.OID] = 1, 1, 1
					default:
						copied[t.OID]++
						q.fill(t)
					}
				}
				if j.finish != nil {
					for _, t := range j.finish {
						built[t.OID]++
					}
					q.finished(j.finish)
				}
				continue
			}
			q.mu.Lock()
			j, ok := q.pick(time.Now())
			done := q.unbuilt == 0
			q.mu.Unlock()
			if !ok {
				if len(open) == 0 {
					if !done {
						rt.Fatal("nothing to do, and not done")
					}
					break
				}
				continue
			}
			disk := int64(0)
			for _, t := range append(j.copy, j.finish...) {
				disk += t.Bytes
			}
			if n := len(j.copy) + len(j.finish); n > 1 && (n > l.tables || disk > l.disk) {
				rt.Fatalf("a batch of %d tables, %d bytes", n, disk)
			}
			open = append(open, j)
		}
		for len(live) < len(tables) {
			t, err := q.nextLoaded(ctx)
			if err != nil || t == nil {
				rt.Fatalf("%v, %d of %d live", err, len(live), len(tables))
			}
			live[t.OID]++
			q.enlivened()
		}
		for _, s := range tables {
			rows, index := 1, 1
			if s.State == catalog.Loaded {
				rows, index = 0, 0
			} else if s.State == catalog.Copying && s.BytesDone > 0 {
				rows = 0
			}
			if copied[s.OID] != rows || built[s.OID] != index || live[s.OID] != 1 {
				rt.Fatalf("table %+v: copied %d, built %d, live %d times", s, copied[s.OID], built[s.OID], live[s.OID])
			}
		}
		for range workers {
			if j, err := q.next(ctx); err != nil || j.copy != nil || j.finish != nil {
				rt.Fatalf("a worker does not end: %v %v", j, err)
			}
		}
	})
}

// Parts of rows go first, the largest table next, and building leaves half of the workers
// to copying while there is something to copy.
func TestQueueOrder(t *testing.T) {
	t.Parallel()
	var tables []catalog.SeedTable
	for i := range 5 {
		tables = append(tables, catalog.SeedTable{OID: uint32(i + 1), Bytes: int64(1<<30 - i)})
	}
	tables = append(tables, catalog.SeedTable{OID: 6}, catalog.SeedTable{OID: 7})
	q := newQueue(tables, 4, defaultLimits)
	pick := func() (string, job) {
		j, ok := q.pick(time.Now())
		switch {
		case !ok:
			return "nothing", j
		case j.part != nil:
			return "part", j
		case j.finish != nil:
			return fmt.Sprint("finish ", j.finish[0].OID), j
		}
		return fmt.Sprintf("copy %d of %d", j.copy[0].OID, len(j.copy)), j
	}
	var took job
	for i, step := range []struct {
		want string
		then func()
	}{
		{"copy 1 of 1", func() { q.fill(took.copy...) }},
		{"finish 1", nil},
		{"copy 2 of 1", func() { q.fill(took.copy...) }},
		{"finish 2", nil},
		{"copy 3 of 1", func() { q.fill(took.copy...) }},
		{"copy 4 of 1", func() { q.offer(&split{rows: true, parts: []*part{{}}}) }},
		{"part", func() { q.putOff(&table{SeedTable: tables[3]}, 0) }},
		{"copy 5 of 1", nil},
		{"copy 4 of 1", func() { q.putOff(&table{SeedTable: tables[3]}, time.Hour) }},
		{"copy 6 of 1", func() { q.offer(&split{parts: []*part{{}}}) }},
		{"copy 7 of 1", nil},
		{"part", nil},
		{"finish 3", nil},
		{"nothing", nil},
	} {
		got, j := pick()
		if got != step.want {
			t.Fatalf("step %d: %s, want %s", i, got, step.want)
		}
		if took = j; step.then != nil {
			step.then()
		}
	}
}
