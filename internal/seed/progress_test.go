package seed

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
)

func TestProgressRateAndEstimate(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	m := newMeter(func() time.Time { return now })
	if p := m.read(); p.Elapsed != 0 || p.BytesPerSecond != 0 || p.Remaining != 0 {
		t.Errorf("before the beginning: %+v", p)
	}
	m.begin([]catalog.SeedTable{{OID: 1, Name: "t", Bytes: 1000, Rows: -1, State: catalog.Pending}})
	m.open(frame.SeedStart{OID: 1, Name: "t", Bytes: 10000, Rows: -1})
	s := m.share(1, 10000)
	for range 20 {
		s.add(make([]byte, 100))
		now = now.Add(time.Second)
	}
	p := m.read()
	if p.Bytes != 10000 || p.BytesDone != 2000 || p.Elapsed != 20*time.Second {
		t.Errorf("%+v", p)
	}
	if p.BytesPerSecond < 90 || p.BytesPerSecond > 110 || p.Remaining < 70*time.Second || p.Remaining > 90*time.Second {
		t.Errorf("rate %.0f, %s remain; want about 100 and 80s", p.BytesPerSecond, p.Remaining)
	}
	now = now.Add(time.Minute)
	if p := m.read(); p.BytesPerSecond != 0 || p.Remaining != 0 {
		t.Errorf("a copy that stands: %+v", p)
	}
}

// After a restart, progress goes on from what the catalog knows.
func TestProgressAfterRestart(t *testing.T) {
	t.Parallel()
	m := newMeter(time.Now)
	m.begin([]catalog.SeedTable{
		{OID: 1, State: catalog.Live, Bytes: 100, BytesDone: 100, RowsDone: 10},
		{OID: 2, State: catalog.Loaded, Bytes: 200, BytesDone: 200, RowsDone: 20},
		{OID: 3, State: catalog.Copying, Bytes: 300, BytesDone: 300, RowsDone: 30},
		{OID: 4, State: catalog.Copying, Bytes: 400, Rows: 44},
		{OID: 5, State: catalog.Pending, Bytes: 500, Rows: -1},
	})
	p := m.read()
	if p.Tables != 5 || p.TablesDone != 1 || p.Bytes != 1500 || p.BytesDone != 600 || p.RowsDone != 60 || p.Rows != 104 || len(p.Each) != 5 {
		t.Errorf("%+v", p)
	}
}

// What is done grows, and never exceeds the whole, however text and pages differ.
func TestProgressNeverFalls(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		m := newMeter(time.Now)
		size := rapid.Int64Range(0, 1000).Draw(rt, "size")
		m.begin([]catalog.SeedTable{{OID: 1, Bytes: size}})
		m.open(frame.SeedStart{OID: 1, Bytes: size})
		parts := []*share{m.share(1, size/3), m.share(1, size/3), m.share(1, size/3)}
		before := int64(0)
		look := func() {
			p := m.read()
			if p.BytesDone < before || p.BytesDone > p.Bytes {
				rt.Fatalf("%d done after %d, of %d", p.BytesDone, before, p.Bytes)
			}
			before = p.BytesDone
		}
		for _, i := range rapid.SliceOf(rapid.IntRange(0, 2)).Draw(rt, "parts") {
			parts[i].add(make([]byte, rapid.IntRange(0, 300).Draw(rt, "n")))
			look()
		}
		for _, s := range parts {
			s.done()
			look()
		}
		m.filled(1)
		look()
		m.live(1)
		if look(); before != size {
			rt.Fatalf("%d of %d at the end", before, size)
		}
	})
}
