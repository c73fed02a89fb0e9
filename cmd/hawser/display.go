package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
)

// display shows links again and again: in one place on a terminal, as plain
// lines in a pipe, as JSON lines with -o json.
type display struct {
	a          *app
	render     func(page, []api.Link) []string // for a terminal
	every      int                             // plain lines: one in so many looks, and at each change of state
	silentJSON bool

	lines, looks int // written in place; looks since the last plain line
	last         string
}

func (d *display) show(links []api.Link) {
	switch {
	case d.a.output == outputJSON:
		d.encode(links)
	case d.a.inPlace():
		d.rewrite(d.render(d.a.page(), links))
	default:
		var state, text []string
		for _, l := range links {
			state = append(state, l.Name+" "+string(l.State))
			text = append(text, d.a.plainLine(l))
		}
		d.plain(strings.Join(state, ","), text)
	}
}

// trouble shows that the agent is away.
func (d *display) trouble(err error) {
	text := "waiting for the agent: " + clean(problem.Of(err, api.CodeUnreachable).Cause)
	switch {
	case d.a.output == outputJSON:
	case d.a.inPlace():
		d.rewrite([]string{text})
	default:
		d.plain("trouble", []string{instant(d.a.now()) + " " + text})
	}
}

func (d *display) encode(links []api.Link) {
	if d.silentJSON {
		return
	}
	e := json.NewEncoder(d.a.out)
	e.SetEscapeHTML(false)
	for _, l := range links {
		_ = e.Encode(l) // a reader that went away
	}
}

func (d *display) plain(state string, lines []string) {
	d.looks++
	if state == d.last && d.looks < d.every {
		return
	}
	d.last, d.looks = state, 0
	for _, line := range lines {
		fmt.Fprintln(d.a.out, line)
	}
}

// rewrite writes lines over those that it wrote before, without letting the
// terminal wrap them.
func (d *display) rewrite(lines []string) {
	if rows := d.a.rows(); len(lines) > rows-1 {
		lines = append(lines[:rows-2], fmt.Sprintf("… and %d lines more", len(lines)-rows+2))
	}
	var b strings.Builder
	b.WriteString("\x1b[?7l" + d.home())
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	b.WriteString("\x1b[?7h")
	d.lines = len(lines)
	fmt.Fprint(d.a.out, b.String())
}

// home moves to where the lines begin and clears them.
func (d *display) home() string {
	if d.lines == 0 {
		return "\r\x1b[J"
	}
	return fmt.Sprintf("\r\x1b[%dA\x1b[J", d.lines)
}

// clear takes away what was written in place.
func (d *display) clear() {
	if d.lines > 0 {
		fmt.Fprint(d.a.out, d.home())
		d.lines = 0
	}
}

// tableLines shows links as hawser link list does.
func tableLines(p page, links []api.Link) []string {
	var b bytes.Buffer
	p.w = &b
	linkTable(p, links)
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// progressLines shows how far new links are.
func (a *app) progressLines(p page, links []api.Link) []string {
	var lines []string
	for _, l := range links {
		line := p.paint(linkTone(l), string(l.State))
		if s := l.Seeding; s != nil && l.State == api.StateSeeding {
			line += "  " + p.paint(busy, bar(fraction(s), 24)) + "  " + seedingText(s)
		} else {
			line += "  " + lagText(l)
		}
		lines = append(lines, line)
		if c := comparison(l); c != "" {
			lines = append(lines, "  "+c)
		}
		if telling(l.Cause) {
			lines = append(lines, "  "+clean(causeText(l.Cause)))
		}
	}
	return lines
}

// plainLine is a link in one line, for a pipe.
func (a *app) plainLine(l api.Link) string {
	line := instant(a.now()) + " " + clean(l.Name) + " " + string(l.State)
	if s := l.Seeding; s != nil && l.State == api.StateSeeding {
		line += " " + seedingText(s)
	} else {
		line += ", lag " + lagText(l) + ", WAL held " + orUnknown(l.WALHeldBytes, bytesText[uint64])
	}
	if c := comparison(l); c != "" {
		line += ", " + c
	}
	if telling(l.Cause) {
		line += ", because: " + clean(causeText(l.Cause)) + " [" + clean(l.Cause.Code) + "]"
	}
	return line
}

// comparison tells how far the comparison of a link's sides is, "" when there is none.
func comparison(l api.Link) string {
	for _, f := range l.Findings {
		if f.Code == "comparing" {
			return clean(f.Cause)
		}
	}
	return ""
}

// causeText is a cause with what it concerns.
func causeText(p *problem.Problem) string {
	if p.Object == "" {
		return p.Cause
	}
	return p.Object + ": " + p.Cause
}

func lagText(l api.Link) string {
	if l.LagSeconds == nil && l.LagBytes == nil {
		return "unknown"
	}
	return orUnknown(l.LagSeconds, span) + ", " + orUnknown(l.LagBytes, bytesText[uint64])
}

func seedingText(s *api.Seeding) string {
	text := fmt.Sprintf("%s, %s of %s, %s rows, %d of %d tables", percent(s), bytesText(s.BytesDone), bytesText(s.BytesTotal), count(s.RowsDone), s.TablesDone, s.TablesTotal)
	if s.RateBytesPerSecond > 0 {
		text += ", " + bytesText(s.RateBytesPerSecond) + "/s"
	}
	if s.ETASeconds != nil {
		text += ", " + span(*s.ETASeconds) + " left"
	}
	return text
}

// fraction is how much of the bytes is copied. Sizes on disk are no exact
// measure of what COPY sends: it is 1 only when all tables are done.
func fraction(s *api.Seeding) float64 {
	switch {
	case s.TablesDone >= s.TablesTotal:
		return 1
	case s.BytesTotal <= 0:
		return 0
	}
	return min(0.99, float64(s.BytesDone)/float64(s.BytesTotal))
}

func percent(s *api.Seeding) string { return fmt.Sprintf("%d%%", int(100*fraction(s))) }

func bar(fraction float64, width int) string {
	full := int(math.Round(fraction * float64(width)))
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

// qualified is a table's name as PostgreSQL reads it, quoted where it must be.
func qualified(schema, name string) string { return quoted(schema) + "." + quoted(name) }

func quoted(name string) string {
	bare := name != ""
	for i, r := range name {
		bare = bare && ('a' <= r && r <= 'z' || r == '_' || i > 0 && '0' <= r && r <= '9')
	}
	if bare {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}
