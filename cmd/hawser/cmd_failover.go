package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
)

func (a *app) linkFailover() *cobra.Command {
	var o api.FailoverOptions
	var yes bool
	c := &cobra.Command{
		Use:   "failover NAME",
		Short: "Swap the roles of a link",
		Long: `Swaps the roles of a link. Planned: the primary stops taking writes, the secondary
catches up and opens, and the old primary follows it at once; nothing is lost. Run it
again to fail back. When the secondary has not caught up within --timeout, the
primary opens again and nothing has changed.

With --force the secondary opens without the primary: what it had not received
is not in it. The result names the last transaction that it has, and when that was
committed. It asks first; without a terminal it needs --yes.

Ctrl-C leaves the command, not the failover: that goes on to its end.`,
		Example:           "  hawser link failover orders\n  hawser link failover orders --force --yes",
		Args:              args("NAME"),
		ValidArgsFunction: a.completeLink,
	}
	c.Flags().BoolVar(&o.Force, "force", false, "open the secondary without the primary")
	c.Flags().DurationVar(&o.Timeout, "timeout", 30*time.Second, "how long a planned failover may take before it is called off")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if o.Timeout <= 0 {
			return usagef("--timeout is %s: want a positive duration", o.Timeout)
		}
		if o.Force {
			if err := a.confirm(yes, fmt.Sprintf("Open the secondary of %s without its primary? What it has not received is not in it.", clean(args[0]))); err != nil {
				return err
			}
		}
		result, err := a.failover(ctx, c, args[0], o)
		if ended(ctx) && err != nil {
			a.note("Left. The failover goes on; see it with: hawser link show %s", clean(args[0]))
		}
		if err != nil {
			return err
		}
		a.show(result, func(p page) { failoverPage(p, result) })
		return nil
	})
	return c
}

// failover asks for a failover and, on a terminal, shows its phases meanwhile.
func (a *app) failover(ctx context.Context, c *api.Client, name string, o api.FailoverOptions) (api.FailoverResult, error) {
	if !a.inPlace() {
		return c.FailoverLink(ctx, name, o)
	}
	var result api.FailoverResult
	done := make(chan error, 1)
	go func() {
		var err error
		result, err = c.FailoverLink(ctx, name, o)
		done <- err
	}()
	d := &display{a: a, render: failoverLines}
	defer d.clear()
	ticker := time.NewTicker(a.poll)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return result, err
		case <-ticker.C:
			if l, err := c.Link(ctx, name); err == nil { // what goes wrong is told by the failover itself
				d.show([]api.Link{l})
			}
		}
	}
}

// failoverLines shows the failover that runs.
func failoverLines(p page, links []api.Link) []string {
	var b bytes.Buffer
	p.w = &b
	for _, l := range links {
		if f := l.Failover; f != nil && f.FinishedAt == nil {
			failoverPage(p, *f)
		} else {
			p.line("%s", p.paint(stateTone(l.State), string(l.State)))
		}
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

func failoverPage(p page, r api.FailoverResult) {
	kind := "planned"
	if r.Forced {
		kind = "forced"
	}
	if r.FinishedAt == nil {
		p.line("%s failover under way: %s to %s, term %d", kind, clean(r.OldPrimary), p.paint(bold, clean(r.NewPrimary)), r.Term)
	} else {
		p.line("%s failover: %s is the primary, %s was; term %d", kind, p.paint(bold, clean(r.NewPrimary)), clean(r.OldPrimary), r.Term)
	}
	rows := make([][2]string, 0, len(r.Phases)+2)
	for _, phase := range r.Phases {
		rows = append(rows, [2]string{phase.Name, span(phase.Seconds)})
	}
	if r.WriteOutageSeconds > 0 {
		rows = append(rows, [2]string{"write outage", span(r.WriteOutageSeconds)})
	}
	rows = append(rows, [2]string{"in all", span(r.TotalSeconds)})
	if r.LastApplied != nil {
		rows = append(rows, [2]string{"last applied", lastApplied(*r.LastApplied, clean(r.OldPrimary))})
	}
	p.fields(rows...)
	p.findings(r.Findings)
}

// lastApplied says how much may be lost.
func lastApplied(last api.LastApplied, old string) string {
	switch {
	case last.Transaction == 0:
		return fmt.Sprintf("no transaction of %s since position %s", old, last.Position)
	case last.Time == nil:
		return fmt.Sprintf("transaction %d of %s, at %s; what it committed later is not here", last.Transaction, old, last.Position)
	}
	return fmt.Sprintf("transaction %d of %s, committed %s at %s; what it committed later is not here", last.Transaction, old, last.Time.UTC().Format(commitTime), last.Position)
}

// commitTime shows what part of a second was lost.
const commitTime = "2006-01-02 15:04:05.000 UTC"

// confirm asks a question that -y answers. Without a terminal there is nobody to ask.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !a.inTerminal || a.output == outputJSON {
		return usagef("this can't be undone: add --yes to confirm it")
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer == "y" || answer == "yes" {
		return nil
	}
	if err != nil {
		fmt.Fprintln(a.err)
	}
	a.note("Nothing was done.")
	return quietly{exitFailed}
}

func (a *app) linkVerify() *cobra.Command {
	var o api.VerifyOptions
	c := &cobra.Command{
		Use:   "verify NAME",
		Short: "Prove that both sides hold the same rows",
		Long: `Compares both sides at one position, while writes go on: the rows of every table, the
definitions of all objects, and the sequences. The exit code is 6 when something
differs, and 1 when not all could be compared.`,
		Example:           "  hawser link verify orders",
		Args:              args("NAME"),
		ValidArgsFunction: a.completeLink,
	}
	c.Flags().DurationVar(&o.Timeout, "timeout", 0, "how long it may take (default: as long as it needs)")
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if o.Timeout < 0 {
			return usagef("--timeout is %s: want a positive duration", o.Timeout)
		}
		report, err := c.VerifyLink(ctx, args[0], o)
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
		p.line("  remedy: %s", block(remedy, "    "))
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

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + one + "s"
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
