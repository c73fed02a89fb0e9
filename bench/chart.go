package main

import (
	"fmt"
	"html"
	"path/filepath"
	"slices"
	"strings"
)

// chartFile stands beside the Markdown, which shows it. It is SVG, since a diagram
// in the Markdown itself has no way to draw each bar's goal.
func (b *book) chartFile() string {
	return strings.TrimSuffix(b.md, filepath.Ext(b.md)) + ".svg"
}

// Sizes in the chart, in pixels.
const (
	chartLeft, chartWidth, chartRight = 370, 470, 260
	chartRow, chartHead               = 22, 44
)

// svg draws what was measured: how many times as good as a rival, and how much of
// what is allowed was used.
func (b *book) svg() string {
	var races, limits []outcome
	for _, o := range b.outcomes() {
		switch {
		case !o.measured:
		case o.against != "":
			races = append(races, o)
		default:
			limits = append(limits, o)
		}
	}
	var body strings.Builder
	y := drawPanel(&body, 0, "How many times as good as the rival (the mark is the bar)", races, func(o outcome) (float64, float64, string) {
		return o.result(), o.ratio, fmt.Sprintf("%.2f × of %.2f ×", o.result(), o.ratio)
	})
	y = drawPanel(&body, y, "Figures with a limit of their own, as a multiple of it (the mark is the limit)", limits, func(o outcome) (float64, float64, string) {
		limit := max(o.most, o.least)
		return o.ours / limit, 1, o.print(o.ours) + ", " + o.goal()
	})
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="#ffffff"/>
%s</svg>
`, chartLeft+chartWidth+chartRight, y+10, body.String())
}

// drawPanel returns where the next one begins. A bar that is longer than the panel
// is cut, and its figure stands behind it.
func drawPanel(out *strings.Builder, y int, head string, list []outcome, read func(outcome) (value, goal float64, text string)) int {
	if len(list) == 0 {
		return y
	}
	fmt.Fprintf(out, `<text x="10" y="%d" font-weight="bold" fill="#222222">%s</text>`+"\n", y+26, html.EscapeString(head))
	var goals []float64
	for _, o := range list {
		_, goal, _ := read(o)
		goals = append(goals, goal)
	}
	scale := chartWidth / (1.4 * slices.Max(goals))
	for i, o := range list {
		value, goal, text := read(o)
		top := y + chartHead + i*chartRow
		colour := "#2f855a"
		switch {
		case o.short:
			colour, text = "#a0aec0", text+" (short run)"
		case !o.met():
			colour = "#c05621"
		}
		width := min(value*scale, chartWidth)
		label := o.work.name + ": " + o.name()
		if o.against != "" {
			label += ", " + title(o.against)
		}
		fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end" fill="#222222">%s</text>`+"\n", chartLeft-8, top+12, html.EscapeString(label))
		fmt.Fprintf(out, `<rect x="%d" y="%d" width="%.1f" height="14" fill="%s"/>`+"\n", chartLeft, top, width, colour)
		fmt.Fprintf(out, `<rect x="%.1f" y="%d" width="2" height="20" fill="#222222"/>`+"\n", chartLeft+goal*scale-1, top-3)
		fmt.Fprintf(out, `<text x="%.1f" y="%d" fill="#222222">%s</text>`+"\n", chartLeft+max(width, goal*scale)+6, top+12, html.EscapeString(text))
	}
	return y + chartHead + len(list)*chartRow
}
