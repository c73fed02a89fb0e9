package seed

import (
	"context"
	"sync"
	"time"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

// limits bound batches of small tables.
type limits struct {
	small  int64 // bytes on disk of a table that goes into a batch, TOAST included
	tables int   // in a batch
	disk   int64 // bytes on disk of a batch
	memory int   // bytes of rows that a batch may hold
}

// batchTables requests at most are ahead of their answers.
const batchTables = 64

var defaultLimits = limits{small: 128 << 10, tables: batchTables, disk: 2 << 20, memory: 1 << 20}

// table is one table on its way through a pass. Whoever holds its job owns it.
type table struct {
	catalog.SeedTable
	retakes int            // snapshots that would not do, one after another
	misfits int            // times that the replica's table did not take the rows
	waits   time.Time      // locked on the primary since
	passed  frame.Snapshot // every transaction that it sees was applied
	due     time.Time      // not before
}

func (t *table) String() string { return postgres.QuoteIdent(t.Schema, t.Name) }

// part is a piece of the work on a table, for any worker.
type part struct {
	of *split
	do func(context.Context, *worker) error
}

// split is the work on a table that the workers share: ranges of its pages, or indexes.
type split struct {
	parts   []*part
	rows    bool       // a snapshot waits for it
	results chan error // one for each part that was taken by others; never blocks
}

// newSplit makes a split of n parts, the i-th of which is done by do(i).
func newSplit(rows bool, n int, do func(i int) func(context.Context, *worker) error) *split {
	s := &split{rows: rows, results: make(chan error, n)}
	for i := range n {
		s.parts = append(s.parts, &part{of: s, do: do(i)})
	}
	return s
}

// job is what a worker does next: one of these, or nothing when all is done.
type job struct {
	part   *part
	copy   []*table // one alone, or a batch
	batch  bool
	finish []*table // to build
}

// queue knows what is to be done. Parts of rows go first, since a snapshot waits for
// them; then tables that have their rows, since changes are deferred for them, but by no
// more than half of the workers while rows can be copied; then tables, the largest
// first; then small ones. Who has none of these helps to make indexes.
type queue struct {
	workers int
	limits  limits

	mu        sync.Mutex
	changed   chan struct{} // closed at every change
	parts     []*part       // of rows
	indexes   []*part
	large     []*table
	small     []*table
	again     []*table // put off until they are due
	filled    []*table // have their rows
	loaded    []*table // are built
	finishing int      // workers
	unbuilt   int      // tables before loaded
	unlive    int      // tables before live
	aside     int      // tables that wait for DDL, which does not come in this run
}

func newQueue(tables []catalog.SeedTable, workers int, l limits) *queue {
	q := &queue{workers: workers, limits: l, changed: make(chan struct{}), unbuilt: len(tables), unlive: len(tables)}
	for _, s := range tables {
		t := &table{SeedTable: s}
		switch {
		case s.State == catalog.Loaded:
			q.loaded = append(q.loaded, t)
			q.unbuilt--
		case s.State == catalog.Copying && s.BytesDone > 0: // recorded with the last row
			q.filled = append(q.filled, t)
		case s.Bytes <= l.small:
			q.small = append(q.small, t)
		default:
			q.large = append(q.large, t)
		}
	}
	return q
}

// change runs f and wakes those who wait.
func (q *queue) change(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
	close(q.changed)
	q.changed = make(chan struct{})
}

// next waits for a job. It returns none when nothing is left to do.
func (q *queue) next(ctx context.Context) (job, error) {
	for {
		q.mu.Lock()
		j, ok := q.pick(time.Now())
		changed, wait, done := q.changed, q.untilDue(), q.unbuilt == 0
		q.mu.Unlock()
		if ok || done {
			return j, ctx.Err()
		}
		select {
		case <-ctx.Done():
			return job{}, ctx.Err()
		case <-changed:
		case <-time.After(wait):
		}
	}
}

func (q *queue) pick(now time.Time) (job, bool) {
	if len(q.parts) > 0 {
		return job{part: take(&q.parts, 1)[0]}, true
	}
	if len(q.filled) > 0 && q.finishing < max(1, q.workers/2) {
		return q.pickFinish(), true
	}
	if len(q.large) > 0 {
		return job{copy: take(&q.large, 1)}, true
	}
	for i, t := range q.again {
		if !now.Before(t.due) {
			q.again = append(q.again[:i:i], q.again[i+1:]...)
			return job{copy: []*table{t}}, true
		}
	}
	if len(q.small) > 0 {
		return job{copy: take(&q.small, q.batch(q.small)), batch: true}, true
	}
	if len(q.indexes) > 0 {
		return job{part: take(&q.indexes, 1)[0]}, true
	}
	if len(q.filled) > 0 {
		return q.pickFinish(), true
	}
	return job{}, false
}

func (q *queue) pickFinish() job {
	q.finishing++
	n := 1
	if q.filled[0].Bytes <= q.limits.small {
		n = q.batch(q.filled)
	}
	return job{finish: take(&q.filled, n)}
}

// batch counts the tables of the next batch: few enough that each worker has one.
func (q *queue) batch(tables []*table) int {
	n, disk := 0, int64(0)
	for n < len(tables) && n < q.limits.tables && n*q.workers < len(tables) {
		disk += tables[n].Bytes
		if n > 0 && (disk > q.limits.disk || tables[n].Bytes > q.limits.small) {
			break
		}
		n++
	}
	return n
}

func take[T any](list *[]T, n int) []T {
	head := (*list)[:n:n]
	*list = (*list)[n:]
	return head
}

func (q *queue) untilDue() time.Duration {
	wait := time.Hour
	for _, t := range q.again {
		wait = min(wait, time.Until(t.due))
	}
	return wait
}

// putOff has the table copied later, alone.
func (q *queue) putOff(t *table, wait time.Duration) {
	t.due = time.Now().Add(wait)
	q.change(func() { q.again = append(q.again, t) })
}

// setAside leaves a table to a later run.
func (q *queue) setAside() {
	q.change(func() {
		q.aside++
		q.unbuilt--
		q.unlive--
	})
}

// fill says that the tables have their rows.
func (q *queue) fill(tables ...*table) {
	q.change(func() { q.filled = append(q.filled, tables...) })
}

// finished says that the tables of a finish job are built.
func (q *queue) finished(tables []*table) {
	q.change(func() {
		q.finishing--
		q.unbuilt -= len(tables)
		q.loaded = append(q.loaded, tables...)
	})
}

// dropped says that a table needs no copy any more.
func (q *queue) dropped() {
	q.change(func() {
		q.unbuilt--
		q.unlive--
	})
}

// nextLoaded waits for a table that is to be made live. It returns none when all are.
func (q *queue) nextLoaded(ctx context.Context) (*table, error) {
	for {
		q.mu.Lock()
		var t *table
		if len(q.loaded) > 0 {
			t = take(&q.loaded, 1)[0]
		}
		changed, done := q.changed, q.unlive == 0
		q.mu.Unlock()
		if t != nil || done {
			return t, ctx.Err()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func (q *queue) enlivened() { q.change(func() { q.unlive-- }) }

// offer lets every worker take parts.
func (q *queue) offer(s *split) {
	q.change(func() {
		list := q.list(s)
		*list = append(*list, s.parts...)
	})
}

func (q *queue) list(s *split) *[]*part {
	if s.rows {
		return &q.parts
	}
	return &q.indexes
}

// takeOwn gives the worker that offered a split a part of it, nil when others have taken
// the rest.
func (q *queue) takeOwn(s *split) *part {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.list(s)
	for i, p := range *list {
		if p.of == s {
			*list = append((*list)[:i:i], (*list)[i+1:]...)
			return p
		}
	}
	return nil
}

// withdraw takes back the parts that nobody has taken.
func (q *queue) withdraw(s *split) (n int) {
	for q.takeOwn(s) != nil {
		n++
	}
	return n
}
