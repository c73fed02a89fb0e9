package seed

import (
	"sync"
	"time"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
)

// Progress tells how far a copy is. Bytes are those of the tables on the primary's
// disk, TOAST included, and rows are the planner's estimates until a table has all
// of its own.
type Progress struct {
	Tables, TablesDone int // done: live
	Bytes, BytesDone   int64
	Rows, RowsDone     int64
	BytesPerSecond     float64       // over the last seconds
	Elapsed            time.Duration // of this run
	Remaining          time.Duration // an estimate for the rows; 0 when unknown
	Each               []TableProgress
}

// TableProgress is one table's part.
type TableProgress struct {
	Schema, Name     string
	State            catalog.TableState
	Bytes, BytesDone int64
	Rows, RowsDone   int64
	Waits            string // why its copy can't begin; "" when nothing is in its way
}

// rateSeconds is the time over which the rate is taken.
const rateSeconds = 5

// meter adds up what the workers report.
type meter struct {
	now func() time.Time

	mu     sync.Mutex
	tables map[uint32]*TableProgress
	order  []uint32
	began  time.Time
	// What was done in each of the last seconds, at the second's index, and which
	// second that was.
	moved  [rateSeconds + 1]int64
	second [rateSeconds + 1]int64
}

func newMeter(now func() time.Time) *meter {
	return &meter{now: now, tables: map[uint32]*TableProgress{}}
}

// begin takes in what the catalog knows. A table that is to be copied again begins
// at nothing.
func (m *meter) begin(tables []catalog.SeedTable) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.began.IsZero() {
		m.began = m.now()
	}
	m.tables, m.order = make(map[uint32]*TableProgress, len(tables)), m.order[:0]
	for _, t := range tables {
		p := &TableProgress{Schema: t.Schema, Name: t.Name, State: t.State, Bytes: t.Bytes, Rows: max(t.Rows, 0)}
		if t.State == catalog.Loaded || t.State == catalog.Live || t.BytesDone > 0 {
			p.BytesDone, p.RowsDone, p.Rows = t.Bytes, t.RowsDone, t.RowsDone
		}
		m.tables[t.OID] = p
		m.order = append(m.order, t.OID)
	}
}

func (m *meter) with(oid uint32, f func(t *TableProgress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tables[oid]; t != nil {
		f(t)
	}
}

// open begins a table's copy, perhaps again.
func (m *meter) open(s frame.SeedStart) {
	m.with(s.OID, func(t *TableProgress) {
		*t = TableProgress{Schema: s.Schema, Name: s.Name, State: catalog.Copying, Bytes: s.Bytes, Rows: max(s.Rows, 0)}
	})
}

func (m *meter) waits(oid uint32, why string) { m.with(oid, func(t *TableProgress) { t.Waits = why }) }

// filled says that a table has all its rows.
func (m *meter) filled(oid uint32) {
	m.with(oid, func(t *TableProgress) {
		m.move(t.Bytes - t.BytesDone)
		t.BytesDone, t.Rows = t.Bytes, t.RowsDone
	})
}

func (m *meter) live(oid uint32) {
	m.with(oid, func(t *TableProgress) { t.State, t.BytesDone = catalog.Live, t.Bytes })
}

func (m *meter) gone(oid uint32) {
	m.with(oid, func(t *TableProgress) { *t = TableProgress{Schema: t.Schema, Name: t.Name, State: catalog.Live} })
}

// move counts bytes for the rate. m.mu is held.
func (m *meter) move(n int64) {
	now := m.now().Unix()
	i := now % int64(len(m.moved))
	if m.second[i] != now {
		m.second[i], m.moved[i] = now, 0
	}
	m.moved[i] += n
}

// share is what one COPY contributes to its table: as text arrives it counts that,
// and at the end the bytes on disk that the text stands for. So what is done never
// exceeds the whole, and never falls. A nil share counts nothing.
type share struct {
	m    *meter
	oid  uint32
	size int64
	seen int64
}

func (m *meter) share(oid uint32, size int64) *share { return &share{m: m, oid: oid, size: size} }

func (s *share) add(data []byte) {
	if s == nil {
		return
	}
	s.m.with(s.oid, func(t *TableProgress) {
		n := min(int64(len(data)), s.size-s.seen)
		s.seen += n
		t.BytesDone += n
		t.RowsDone += newlines(data)
		s.m.move(n)
	})
}

func (s *share) done() {
	s.m.with(s.oid, func(t *TableProgress) {
		t.BytesDone += s.size - s.seen
		s.m.move(s.size - s.seen)
		s.seen = s.size
	})
}

func (m *meter) read() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	p := Progress{Tables: len(m.order), BytesPerSecond: m.rate(now), Each: make([]TableProgress, 0, len(m.order))}
	if !m.began.IsZero() {
		p.Elapsed = now.Sub(m.began)
	}
	for _, oid := range m.order {
		t := *m.tables[oid]
		t.Rows = max(t.Rows, t.RowsDone)
		p.Bytes += t.Bytes
		p.BytesDone += t.BytesDone
		p.Rows += t.Rows
		p.RowsDone += t.RowsDone
		if t.State == catalog.Live {
			p.TablesDone++
		}
		p.Each = append(p.Each, t)
	}
	if left := p.Bytes - p.BytesDone; left > 0 && p.BytesPerSecond > 0 {
		p.Remaining = time.Duration(float64(left) / p.BytesPerSecond * float64(time.Second))
	}
	return p
}

// rate is taken over whole seconds, and in a run's first ones over what there is.
func (m *meter) rate(now time.Time) float64 {
	var sum int64
	for i, s := range m.second {
		if now.Unix()-s <= rateSeconds {
			sum += m.moved[i]
		}
	}
	over := min(now.Sub(m.began).Seconds(), rateSeconds+float64(now.Nanosecond())/1e9)
	if sum == 0 || over <= 0 {
		return 0
	}
	return float64(sum) / over
}
