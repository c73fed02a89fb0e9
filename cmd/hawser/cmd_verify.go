package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
)

func (a *app) linkVerify() *cobra.Command {
	var o api.VerifyOptions
	c := &cobra.Command{
		Use:   "verify NAME",
		Short: "Prove that both sides hold the same rows",
		Long: `Compares both sides at one position, while writes go on: the rows of every table, the
definitions of all objects, the database's own settings and privileges, and the
sequences. The exit code is 6 when something differs, and 1 when not all could be
compared.`,
		Example:           "  hawser link verify orders",
		Args:              args("NAME"),
		ValidArgsFunction: a.completeLink,
	}
	c.Flags().DurationVar(&o.Timeout, "timeout", 0, "how long it may take (default: as long as it needs)")
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if o.Timeout < 0 {
			return usagef("--timeout is %s: want a positive duration", o.Timeout)
		}
		report, err := a.verify(ctx, c, args[0], o)
		if err != nil {
			return err
		}
		a.show(report, func(p page) { verifyPage(p, report) })
		tables, objects := differing(report)
		switch {
		case tables+objects > 0:
			return quietly{exitDiffers}
		case !report.Equal:
			return quietly{exitFailed}
		}
		return nil
	})
	return c
}

// verify compares, and notes meanwhile what that waits for.
func (a *app) verify(ctx context.Context, c *api.Client, name string, o api.VerifyOptions) (report api.VerifyReport, err error) {
	err = a.showing(ctx, c, name, a.noteWaits(), func() (err error) {
		report, err = c.VerifyLink(ctx, name, o)
		return err
	})
	return report, err
}

// differing counts what was compared and differs. What two versions may only print
// in different words is a note.
func differing(r api.VerifyReport) (tables, objects int) {
	for _, t := range r.Tables {
		if t.Compared && !t.Equal {
			tables++
		}
	}
	for _, o := range r.Schema {
		if !o.Uncertain {
			objects++
		}
	}
	return tables, objects + len(r.Sequences)
}

// objectLines tell what differs beside rows.
func objectLines(p page, r api.VerifyReport) {
	var notes []string
	for _, o := range r.Schema {
		text := fmt.Sprintf("%s %s: the primary has %s, the secondary %s", clean(o.Kind), clean(o.Name), sideText(o.Primary), sideText(o.Secondary))
		if o.Uncertain {
			notes = append(notes, text)
			continue
		}
		p.line("%s  %s", p.paint(bad, "differs"), text)
		remedyLine(p, o.Remedy)
	}
	for _, s := range r.Sequences {
		p.line("%s  sequence %s: the primary is %s, the secondary %s", p.paint(bad, "differs"), clean(qualified(s.Schema, s.Name)), sequenceText(s.Primary), sequenceText(s.Secondary))
		remedyLine(p, s.Remedy)
	}
	if len(notes) == 0 {
		return
	}
	p.line("%s", p.paint(dim, fmt.Sprintf("notes (%d): the two versions of PostgreSQL print these in different words, or they differ", len(notes))))
	for _, text := range notes {
		p.line("  %s", text)
	}
}

func remedyLine(p page, remedy string) {
	if remedy != "" {
		p.line("  remedy on the secondary, as superuser: %s", block(remedy, "    "))
	}
}

// namedLeftOut bounds how many of a kind are named; JSON has all.
const namedLeftOut = 10

// leftOutLines name what has rows that were not compared.
func leftOutLines(p page, left []api.VerifyLeftOut) {
	for len(left) > 0 {
		why := left[0].Why
		n := slices.IndexFunc(left, func(t api.VerifyLeftOut) bool { return t.Why != why })
		if n < 0 {
			n = len(left)
		}
		var names []string
		for _, t := range left[:min(n, namedLeftOut)] {
			names = append(names, clean(qualified(t.Schema, t.Name)))
		}
		if n > namedLeftOut {
			names = append(names, "…")
		}
		p.line("rows not carried and not compared: %s: %s", plural(n, clean(why)), strings.Join(names, ", "))
		left = left[n:]
	}
}

func sideText(definition string) string {
	if definition == "" {
		return "none"
	}
	return block(definition, "    ")
}

func sequenceText(s *api.SequenceState) string {
	switch {
	case s == nil:
		return "without it"
	case !s.Called:
		return fmt.Sprintf("at %d, which it has not given out", s.Last)
	}
	return fmt.Sprintf("at %d", s.Last)
}

// differText counts what differs, in words.
func differText(tables, objects int) string {
	var parts []string
	if tables > 0 {
		parts = append(parts, plural(tables, "table"))
	}
	if objects > 0 {
		parts = append(parts, plural(objects, map[bool]string{true: "other object", false: "object"}[tables > 0]))
	}
	return strings.Join(parts, " and ")
}

func verifyPage(p page, r api.VerifyReport) {
	var rows [][]cell
	var total int64
	for _, t := range r.Tables {
		total += t.RowsPrimary
		mark := toned(good, "same")
		switch {
		case !t.Compared:
			mark = toned(warn, "not compared")
		case !t.Equal:
			mark = toned(bad, "differs")
		}
		rows = append(rows, []cell{mark, str(qualified(t.Schema, t.Name)), num(count(t.RowsPrimary)), num(count(t.RowsSecondary))})
	}
	if len(rows) > 0 {
		p.table([]string{"RESULT", "TABLE", "PRIMARY'S ROWS", "SECONDARY'S"}, rows)
	}
	for _, t := range r.Tables {
		if t.Problem != nil {
			title := ""
			if t.Problem.Object == "" { // else it names the table itself
				title = p.paint(bad, clean(qualified(t.Schema, t.Name))+": ")
			}
			p.problem("", title, t.Problem)
		}
	}
	objectLines(p, r)
	p.findings(r.Findings)
	leftOutLines(p, r.LeftOut)
	tables, objects := differing(r)
	switch {
	case tables+objects > 0:
		p.line("%s", p.paint(bad, fmt.Sprintf("The two sides differ in %s at %s.", differText(tables, objects), r.Position)))
		if !r.Complete {
			p.line("%s", p.paint(warn, "Not all could be compared."))
		}
	case r.Equal:
		p.line("%s", p.paint(good, fmt.Sprintf("Both sides hold the same %s rows in %s at %s, and the same definitions and sequences, compared in %s.", count(total), plural(len(r.Tables), "table"), r.Position, span(r.Seconds))))
	default:
		p.line("%s", p.paint(warn, "Nothing differs in what was compared, but not all could be."))
	}
}
