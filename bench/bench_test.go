package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

func pageOf(rivals map[string]sample) *page {
	p := &page{Work: "small"}
	for name, s := range rivals {
		p.Samples = append(p.Samples, entered{name, s})
	}
	return p
}

func TestOutcomeIsOnlyOfWhatWasMeasured(t *testing.T) {
	w := &work{name: "small", unit: "s"}
	race, limit := bar{against: "native", ratio: 2}, bar{metric: "p99", most: 10, form: "%.0f ms"}
	for name, c := range map[string]struct {
		samples map[string]sample
		bar     bar
		verdict string
	}{
		"both":                 {map[string]sample{"hawser": {"value": 2}, "native": {"value": 4}}, race, "met"},
		"too slow":             {map[string]sample{"hawser": {"value": 3}, "native": {"value": 4}}, race, "**missed**"},
		"no rival":             {map[string]sample{"hawser": {"value": 2}}, race, "not measured"},
		"no Hawser":            {map[string]sample{"native": {"value": 2}}, race, "not measured"},
		"a rival's zero":       {map[string]sample{"hawser": {"value": 2}, "native": {"value": 0}}, race, "not measured"},
		"a limit":              {map[string]sample{"hawser": {"p99": 11}}, limit, "**missed**"},
		"a limit kept":         {map[string]sample{"hawser": {"p99": 9}}, limit, "met"},
		"a limit of nothing":   {map[string]sample{"hawser": {"value": 9}}, limit, "not measured"},
		"memory of either":     {map[string]sample{"hawser": {"rss_agent_primary": 1, "rss_agent_replica": 300}}, memoryBar, "**missed**"},
		"memory of nobody":     {map[string]sample{"hawser": {"value": 1}}, memoryBar, "not measured"},
		"CPU without a change": {map[string]sample{"hawser": {"cpu_primary": 1}, "native": {"cpu_primary": 1, "changes": 1}}, cpuBar, "not measured"},
	} {
		if got := pageOf(c.samples).outcome(w, c.bar).verdict(); got != c.verdict {
			t.Errorf("%s: %s, not %s", name, got, c.verdict)
		}
	}
}

func TestShortRunProvesNothing(t *testing.T) {
	p := pageOf(map[string]sample{"hawser": {"value": 1}, "native": {"value": 4}})
	p.Short = true
	if got := p.outcome(&work{}, bar{against: "native", ratio: 2}).verdict(); strings.Contains(got, "met") {
		t.Errorf("%s", got)
	}
}

func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		costs []float64
		want  float64
	}{
		{[]float64{8, 8, 8}, 1},
		{[]float64{80, 8, 16}, 2}, // the start's cost hides nothing
		{[]float64{8, 4, 2}, 0.5},
	} {
		if got := growth(c.costs); got != c.want {
			t.Errorf("growth(%v) is %v, not %v", c.costs, got, c.want)
		}
	}
}

func TestRateLeavesOutBeginAndEnd(t *testing.T) {
	t0 := time.Unix(0, 0)
	list := []passage{{t0, 7}} // what passed before does not count
	for i := range 101 {       // nothing for 10 s, then 1,000 bytes a second
		list = append(list, passage{t0.Add(10*time.Second + time.Duration(i)*time.Second), 7 + int64(i)*1000})
	}
	list = append(list, passage{t0.Add(time.Hour), 7 + 100_000})
	bytes, rate, err := bytesAndRate(list)
	if err != nil || bytes != 100_000 || math.Abs(rate-1000) > 1 {
		t.Errorf("%v bytes, %v a second, %v", bytes, rate, err)
	}
	if _, _, err := bytesAndRate([]passage{{t0, 7}, {t0.Add(time.Second), 7}}); err == nil {
		t.Error("a rate of nothing")
	}
}

func TestEveryWorkCanBeRun(t *testing.T) {
	for _, w := range works {
		if w.run == nil || len(w.bars) == 0 {
			t.Errorf("work %s has no way to run, or no bar", w.name)
		}
		for _, name := range w.rivals {
			if r := rivalOf(name); r.name == "" || r.make == nil && r.copies == nil {
				t.Errorf("work %s: rival %s can do nothing", w.name, name)
			}
		}
		for _, b := range w.bars {
			if b.against == "" && b.most == 0 && b.least == 0 {
				t.Errorf("work %s: a bar without a goal", w.name)
			}
		}
	}
}
