package demo

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// report tells what happens: lines for people, or JSON lines.
type report struct {
	Options
	began time.Time
	step  string
	open  bool // a progress line is on the terminal
}

func (r *report) begin(step string) {
	r.step = step
	if !r.JSON {
		r.clear()
		fmt.Fprintf(r.Out, "\n[%5.1f s] %s\n", time.Since(r.began).Seconds(), step)
	}
}

func (r *report) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if r.JSON {
		r.line(map[string]any{"at_seconds": time.Since(r.began).Seconds(), "step": r.step, "text": text})
		return
	}
	r.clear()
	fmt.Fprintln(r.Out, "  "+indent(text))
}

func (r *report) line(v any) {
	data, err := json.Marshal(v)
	if err == nil {
		fmt.Fprintln(r.Out, string(data))
	}
}

// progress draws in place on a terminal, and is silent elsewhere.
func (r *report) progress(format string, args ...any) {
	if r.Terminal && !r.JSON {
		fmt.Fprintf(r.Out, "\r\x1b[K  "+format, args...)
		r.open = true
	}
}

func (r *report) clear() {
	if r.open {
		fmt.Fprint(r.Out, "\r\x1b[K")
		r.open = false
	}
}

func (r *report) note(text string) {
	if r.JSON {
		r.say("%s", text)
		return
	}
	fmt.Fprintln(r.Out, "\n"+text)
}

// fail shows what the agents said last.
func (r *report) fail(err error, w *world) {
	r.say("failed: %v", err)
	for _, i := range []*instance{w.server, w.managed} {
		r.say("the last of agent %s's log:\n%s", i.name, tail(i.log))
	}
}

func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

func eta(seconds *float64) string {
	if seconds == nil {
		return ""
	}
	return fmt.Sprintf(", about %.0f s left", *seconds)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func most(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Max(v)
}

func indent(s string) string { return strings.ReplaceAll(s, "\n", "\n  ") }
