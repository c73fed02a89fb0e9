package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/width"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
)

// tone is the colour of a piece of text, as a terminal's SGR parameter.
type tone string

const (
	plain tone = ""
	bold  tone = "1"
	dim   tone = "2"
	bad   tone = "31"
	good  tone = "32"
	warn  tone = "33"
	busy  tone = "36"
)

// page writes text for people.
type page struct {
	w      io.Writer
	colour bool
}

func (p page) paint(t tone, s string) string {
	if !p.colour || t == plain || s == "" {
		return s
	}
	return "\x1b[" + string(t) + "m" + s + "\x1b[0m"
}

func (p page) line(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) }

// cell is one field of a table.
type cell struct {
	text  string
	tone  tone
	right bool // numbers
}

func str(s string) cell           { return cell{text: s} }
func num(s string) cell           { return cell{text: s, right: true} }
func toned(t tone, s string) cell { return cell{text: s, tone: t} }
func orDash(s string) string      { return cmp.Or(s, "-") }

// table writes aligned columns under a head.
func (p page) table(head []string, rows [][]cell) {
	widths := make([]int, len(head))
	for i, h := range head {
		widths[i] = columns(h)
	}
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], columns(clean(c.text)))
		}
	}
	top := make([]cell, len(head))
	for i, h := range head {
		top[i] = cell{text: h, tone: dim, right: len(rows) > 0 && rows[0][i].right}
	}
	for _, row := range append([][]cell{top}, rows...) {
		p.row(row, widths)
	}
}

func (p page) row(row []cell, widths []int) {
	var b strings.Builder
	for i, c := range row {
		text := clean(c.text)
		gap := strings.Repeat(" ", widths[i]-columns(text))
		switch {
		case c.right:
			b.WriteString(gap + p.paint(c.tone, text))
		case i == len(row)-1:
			b.WriteString(p.paint(c.tone, text))
		default:
			b.WriteString(p.paint(c.tone, text) + gap)
		}
		if i < len(row)-1 {
			b.WriteString("  ")
		}
	}
	p.line("%s", b.String())
}

// fields writes names and their values below each other. Empty values are left out.
func (p page) fields(pairs ...[2]string) {
	most := 0
	for _, f := range pairs {
		if f[1] != "" {
			most = max(most, len(f[0]))
		}
	}
	for _, f := range pairs {
		if f[1] != "" {
			p.line("  %s  %s", p.paint(dim, f[0]+strings.Repeat(" ", most-len(f[0]))), clean(f[1]))
		}
	}
}

// findings writes a check's results, grouped by what they stop.
func (p page) findings(all problem.Findings) {
	for _, group := range []struct {
		title    string
		tone     tone
		severity problem.Severity
	}{{"blocking", bad, problem.Blocker}, {"warnings", warn, problem.Warning}, {"notes", dim, problem.Note}} {
		var in problem.Findings
		for _, f := range all {
			if f.Severity == group.severity || f.Severity == "" && group.severity == problem.Blocker {
				in = append(in, f)
			}
		}
		if len(in) == 0 {
			continue
		}
		p.line("%s", p.paint(group.tone, fmt.Sprintf("%s (%d)", group.title, len(in))))
		for _, f := range in {
			p.problem("  ", "", f)
		}
	}
}

// problem writes a problem: its object and cause, its code, by which documentation
// and programs know it, and its remedy below. A note's code says no more than its text.
func (p page) problem(indent, title string, f *problem.Problem) {
	text := f.Cause
	if f.Err != nil {
		text += ": " + f.Err.Error()
	}
	if f.Object != "" {
		text = f.Object + ": " + text
	}
	code := ""
	if f.Code != "" && f.Severity != problem.Note {
		code = " " + p.paint(dim, "["+clean(f.Code)+"]")
	}
	p.line("%s%s%s%s", indent, title, block(text, indent+"  "), code)
	p.help(indent+"  ", f)
}

// help writes what can be typed and what can't, apart from each other.
func (p page) help(indent string, f *problem.Problem) {
	on := ""
	if f.Place != "" {
		on = " on " + clean(f.Place)
	}
	if f.Remedy != "" {
		p.line("%s%s %s", indent, p.paint(dim, "remedy"+on+":"), p.paint(bold, block(f.Remedy, indent+strings.Repeat(" ", columns("remedy"+on+": ")))))
		on = ""
	}
	if f.Advice != "" {
		p.line("%s%s %s", indent, p.paint(dim, "advice"+on+":"), block(f.Advice, indent+"        "))
	}
}

// block cleans a text of several lines and indents all but the first.
func block(s, indent string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n"+indent)
}

// clean shows control characters instead of obeying them: a table's name may
// hold any, a terminal's commands among them.
func clean(s string) string {
	if strings.IndexFunc(s, hidden) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hidden(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func hidden(r rune) bool { return !unicode.IsPrint(r) && !unicode.Is(unicode.Zs, r) }

// columns is the width of a clean text on a terminal.
func columns(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me):
		case width.LookupRune(r).Kind() == width.EastAsianWide, width.LookupRune(r).Kind() == width.EastAsianFullwidth:
			n += 2
		default:
			n++
		}
	}
	return n
}

func bytesText[N int64 | uint64 | float64](n N) string {
	f := float64(n)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if f < 1023.95 || unit == "TiB" {
			if unit == "B" {
				return fmt.Sprintf("%.0f B", f)
			}
			return fmt.Sprintf("%.1f %s", f, unit)
		}
		f /= 1024
	}
	return ""
}

// count writes a whole number in groups of three digits.
func count[N int | int64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// span writes a duration with the two units that matter.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Microsecond:
		return "0 s"
	case d < time.Millisecond:
		return fmt.Sprintf("%.2f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1e3)
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh %02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd %02dh", int(d.Hours())/24, int(d.Hours())%24)
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func orUnknown[N uint64 | float64](n *N, text func(N) string) string {
	if n == nil {
		return "unknown"
	}
	return text(*n)
}

// linkTone is calm for a link that is not connected yet, and about to be.
func linkTone(l api.Link) tone {
	if l.State == api.StateDisconnected && l.Cause != nil && !telling(l.Cause) {
		return busy
	}
	return stateTone(l.State)
}

func stateTone(s api.State) tone {
	switch s {
	case api.StateSynchronized:
		return good
	case api.StateSeeding, api.StateCatchingUp, api.StateFailingOver:
		return busy
	case api.StatePaused, api.StateDropped:
		return warn
	}
	return bad
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + one + "s"
}
