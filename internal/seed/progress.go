package seed

import (
	"sync"
	"time"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
)

// Progress tells how far a copy is. Totals are sizes on the primary's disk and
// the planner's row estimates; what is done is measured in bytes of COPY's text.
type Progress struct {
	Tables, TablesDone int
	Bytes, BytesDone   int64
	Rows, RowsDone     int64
	BytesPerSecond     float64       // over the last seconds
	Elapsed            time.Duration // of this run
	Remaining          time.Duration // an estimate; 0 when unknown
	Each               []TableProgress
}

// TableProgress is one table's part.
type TableProgress struct {
	Schema, Name     string
	State            catalog.TableState
	Bytes, BytesDone int64
	Rows, RowsDone   int64
}

// rateWindow is the time over which the rate is taken.
const rateWindow = 5 * time.Second

// meter adds up what the workers report.
type meter struct {
	mu     sync.Mutex
	tables map[uint32]*TableProgress
	order  []uint32
	copy   int // tables whose rows are still to arrive
	all    chan struct{}
	began  time.Time
	moved  int64 // bytes in this run
	marks  []markAt
}

type markAt struct {
	at    time.Time
	bytes int64
}

func newMeter() *meter { return &meter{tables: map[uint32]*TableProgress{}, all: make(chan struct{})} }

func (m *meter) begin(tables []catalog.SeedTable, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.began = now
	for _, t := range tables {
		p := &TableProgress{Schema: t.Schema, Name: t.Name, State: t.State, Bytes: t.Bytes, Rows: max(t.Rows, 0)}
		switch t.State {
		case catalog.Loaded, catalog.Live:
			p.BytesDone, p.RowsDone = t.BytesDone, t.RowsDone
		default:
			m.copy++
		}
		m.tables[t.OID] = p
		m.order = append(m.order, t.OID)
	}
	if m.copy == 0 {
		close(m.all)
	}
}

// allCopied is closed when no table waits for rows any more.
func (m *meter) allCopied() <-chan struct{} { return m.all }

func (m *meter) with(oid uint32, f func(t *TableProgress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tables[oid]; t != nil {
		f(t)
	}
}

func (m *meter) open(s frame.SeedStart) {
	m.with(s.OID, func(t *TableProgress) {
		t.Schema, t.Name, t.State, t.Bytes = s.Schema, s.Name, catalog.Copying, s.Bytes
		t.Rows, t.BytesDone, t.RowsDone = max(s.Rows, 0), 0, 0
	})
}

func (m *meter) bytes(oid uint32, n int) {
	m.with(oid, func(t *TableProgress) {
		t.BytesDone += int64(n)
		m.moved += int64(n)
	})
}

func (m *meter) rows(oid uint32, n int64) {
	m.with(oid, func(t *TableProgress) { t.RowsDone += n })
}

func (m *meter) copied(oid uint32) {
	m.with(oid, func(t *TableProgress) {
		t.State, t.Rows = catalog.Loaded, t.RowsDone
		if m.copy--; m.copy == 0 {
			close(m.all)
		}
	})
}

func (m *meter) live(oid uint32) {
	m.with(oid, func(t *TableProgress) { t.State = catalog.Live })
}

func (m *meter) read(now time.Time) Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := Progress{Tables: len(m.order)}
	if !m.began.IsZero() {
		p.Elapsed = now.Sub(m.began)
	}
	var share float64
	for _, oid := range m.order {
		t := *m.tables[oid]
		p.Bytes += t.Bytes
		p.Rows += max(t.Rows, t.RowsDone)
		p.RowsDone += t.RowsDone
		switch t.State {
		case catalog.Live:
			p.TablesDone++
			p.BytesDone += t.Bytes
		case catalog.Loaded:
			p.BytesDone += t.Bytes
		default:
			// Text and pages differ in size; never tell more than all.
			p.BytesDone += min(t.BytesDone, t.Bytes)
		}
		p.Each = append(p.Each, t)
	}
	m.marks = append(m.marks, markAt{now, m.moved})
	for len(m.marks) > 1 && now.Sub(m.marks[0].at) > rateWindow {
		m.marks = m.marks[1:]
	}
	if d := now.Sub(m.marks[0].at).Seconds(); d > 0 {
		p.BytesPerSecond = float64(m.moved-m.marks[0].bytes) / d
	} else if s := p.Elapsed.Seconds(); s > 0 {
		p.BytesPerSecond = float64(m.moved) / s
	}
	if p.Bytes > 0 {
		share = float64(p.BytesDone) / float64(p.Bytes)
	}
	if share > 0 && share < 1 && p.BytesPerSecond > 0 {
		p.Remaining = time.Duration(float64(p.Bytes-p.BytesDone) / p.BytesPerSecond * float64(time.Second))
	}
	return p
}
