package capture

import (
	"sync"
	"time"

	"github.com/hawser/hawser/internal/frame"
)

// Lag is how far the secondary is behind, told by the primary's clock alone, so
// that clocks which differ do not matter.
type Lag struct {
	Bytes   uint64    // of WAL, from what the secondary shows to the primary's end
	End     frame.LSN // where the primary's WAL ended at the last look; 0 before the first
	Seconds float64   // since the primary wrote the oldest of them
	Sent    frame.LSN // never goes back, nor lies before Ack
	Ack     frame.Ack
	At      time.Time // of the last acknowledgement; zero before the first
}

// maxMarks bounds the memory of the meter. Beyond it every second mark goes, so
// the answer gets coarser, never wrong by more than the space between two marks.
const maxMarks = 4096

// lagMeter remembers when the primary was where. A position that the secondary
// has not shown yet is as old as its mark; when nothing arrives, lag grows.
type lagMeter struct {
	mu     sync.Mutex
	marks  []mark // ascending
	end    frame.LSN
	last   time.Duration // from mark to acknowledgement, of the newest mark acknowledged
	lastAt time.Time     // of that acknowledgement
	sentL  frame.LSN
	ack    frame.Ack
	ackAt  time.Time
}

// staleAfter is how long the delay of the last change tells anything about now.
const staleAfter = 2 * time.Second

type mark struct {
	lsn frame.LSN
	at  time.Time
}

// sample notes the primary's end of WAL.
func (m *lagMeter) sample(lsn frame.LSN, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end = max(m.end, lsn)
	m.add(mark{lsn, at})
}

// allReceived tells that the secondary has all that the primary's WAL held at the last
// look.
func (m *lagMeter) allReceived() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ack.Received >= m.end
}

// sent notes that a change at lsn is on its way.
func (m *lagMeter) sent(lsn frame.LSN, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sentL = max(m.sentL, lsn)
	m.end = max(m.end, lsn)
	m.add(mark{lsn, at})
}

// shipped notes that the other side was told of everything up to lsn, where nothing
// of this database may be.
func (m *lagMeter) shipped(lsn frame.LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sentL = max(m.sentL, lsn)
}

func (m *lagMeter) add(k mark) {
	if n := len(m.marks); n > 0 && m.marks[n-1].lsn >= k.lsn {
		return
	}
	if k.lsn <= m.ack.Visible {
		return
	}
	m.marks = append(m.marks, k)
	if len(m.marks) > maxMarks {
		thin := m.marks[:0]
		for i := 0; i < len(m.marks); i += 2 {
			thin = append(thin, m.marks[i])
		}
		m.marks = thin
	}
}

func (m *lagMeter) acked(a frame.Ack, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ack, m.ackAt = a, at
	// A record is sent under its start, and acknowledged with its transaction's end.
	m.sentL = max(m.sentL, a.Received)
	n := 0
	for n < len(m.marks) && m.marks[n].lsn <= a.Visible {
		m.last, m.lastAt = at.Sub(m.marks[n].at), at
		n++
	}
	m.marks = append(m.marks[:0], m.marks[n:]...)
}

func (m *lagMeter) read(now time.Time) Lag {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := Lag{Bytes: m.end.Sub(m.ack.Visible), End: m.end, Sent: m.sentL, Ack: m.ack, At: m.ackAt, Seconds: m.last.Seconds()}
	if len(m.marks) == 0 && now.Sub(m.lastAt) > staleAfter {
		l.Seconds = 0 // all is shown, and nothing was written since
	}
	if len(m.marks) > 0 {
		l.Seconds = max(l.Seconds, now.Sub(m.marks[0].at).Seconds())
	}
	if m.ackAt.IsZero() {
		l.Bytes = 0 // nothing is known yet of the other side
	}
	return l
}
