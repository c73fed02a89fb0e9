package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// bar is what Hawser has to reach in one figure of a work: so many times as good as
// a rival, where there is one, else at most or at least so much.
type bar struct {
	metric  string // of the samples; empty: value
	what    string // its name for the reader; empty: the work's unit says it
	form    string // how it is printed; empty: as the value
	each    bool   // it is seconds, and meant for each change, in µs
	against string
	ratio   float64
	most    float64
	least   float64
}

// bars of works that write a backlog.
var (
	cpuBar    = bar{metric: "cpu_primary", what: "primary's CPU a change", form: "%.1f µs", each: true, against: "native", ratio: 1}
	memoryBar = bar{metric: largerAgent, what: "larger agent's memory", form: "%.0f MB", most: 256}
)

// latencyBars are at most 1.25 × native's.
var latencyBars = []bar{
	{against: "native", ratio: 0.8},
	{metric: "p99", what: "99th percentile", against: "native", ratio: 0.8},
}

// largerAgent is the most memory that either agent had in any round.
const largerAgent = "rss_agents"

// outcome is what a run says of a bar.
type outcome struct {
	bar
	work         *work
	ours, theirs float64
	measured     bool
	short        bool
}

func (p *page) outcome(w *work, b bar) outcome {
	o := outcome{bar: b, work: w, short: p.Short}
	var have bool
	o.ours, o.measured = p.figure("hawser", b)
	if b.against != "" {
		o.theirs, have = p.figure(b.against, b)
		// A ratio to nothing is none.
		o.measured = o.measured && have && o.ours > 0 && o.theirs > 0
	}
	return o
}

// figure is a rival's median of what the bar is about, and whether it was measured.
func (p *page) figure(rival string, b bar) (float64, bool) {
	if b.metric == largerAgent {
		v := append(p.of(rival, "rss_agent_primary"), p.of(rival, "rss_agent_replica")...)
		if len(v) == 0 {
			return 0, false
		}
		return slices.Max(v), true
	}
	v := p.of(rival, cmp.Or(b.metric, "value"))
	if len(v) == 0 {
		return 0, false
	}
	if !b.each {
		return median(v), true
	}
	changes := median(p.of(rival, "changes"))
	return median(v) / changes * 1e6, changes > 0
}

// result is Hawser's figure as a multiple of the rival's, more being better; of a
// figure that stands alone, itself.
func (o outcome) result() float64 {
	switch {
	case o.against == "":
		return o.ours
	case o.more():
		return o.ours / o.theirs
	}
	return o.theirs / o.ours
}

func (o outcome) more() bool { return o.work.more && o.metric == "" }

func (o outcome) met() bool {
	r := o.result()
	switch {
	case o.against != "":
		return r >= o.ratio
	case o.most > 0:
		return r <= o.most
	}
	return r >= o.least
}

// print says a figure in its unit.
func (o outcome) print(v float64) string {
	if o.form != "" {
		return fmt.Sprintf(o.form, v)
	}
	return amount(v, o.work.unit)
}

func (o outcome) name() string { return cmp.Or(o.what, o.work.figure()) }

func (o outcome) goal() string {
	switch {
	case o.against != "":
		return fmt.Sprintf("at least %.2f ×", o.ratio)
	case o.most > 0:
		return "at most " + o.print(o.most)
	}
	return "at least " + o.print(o.least)
}

func (o outcome) verdict() string {
	switch {
	case !o.measured:
		return "not measured"
	case o.short:
		return "short run, no proof"
	case o.met():
		return "met"
	}
	return "**missed**"
}

// outcomes are all bars of the works that have run.
func (b *book) outcomes() []outcome {
	var out []outcome
	for _, p := range b.Works {
		if w := workOf(p.Work); w != nil {
			for _, bar := range w.bars {
				out = append(out, p.outcome(w, bar))
			}
		}
	}
	return out
}

// summary is one line for each bar.
func summary(b *book) string {
	var out strings.Builder
	out.WriteString("| work | figure | Hawser | rival's | Hawser is better by | bar | |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, o := range b.outcomes() {
		ours, theirs, ratio := "–", "–", "–"
		if o.measured {
			ours = o.print(o.ours)
			if o.against != "" {
				theirs, ratio = o.print(o.theirs), fmt.Sprintf("%.2f ×", o.result())
			}
		}
		if o.against != "" {
			theirs += ", " + title(o.against)
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %s | %s |\n", o.work.name, o.name(), ours, theirs, ratio, o.goal(), o.verdict())
	}
	return out.String()
}
