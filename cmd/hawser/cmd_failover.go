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
	"github.com/hawser/hawser/internal/problem"
)

func (a *app) linkFailover() *cobra.Command {
	var o api.FailoverOptions
	var yes bool
	c := &cobra.Command{
		Use:        "failover NAME",
		SuggestFor: []string{"failback", "switchover", "promote"},
		Short:      "Swap the roles of a link",
		Long: `Swaps the roles of a link. Planned: the primary stops taking writes, the secondary
catches up and opens, and the old primary follows it at once; nothing is lost. Run it
again to fail back. When the secondary has not caught up within --timeout, the
primary opens again and nothing has changed.

With --force the secondary opens without the primary: what it had not received
is not in it. The result names the last transaction that it has, and when that was
committed. It asks first; without a terminal it needs --yes. While the primary can be
reached and the secondary follows it, it is refused, unless the link is paused.

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
			if !yes {
				check := o
				check.Check = true
				if _, err := c.FailoverLink(ctx, args[0], check); err != nil {
					return err
				}
			}
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

// failover asks for a failover and shows meanwhile, on a terminal, its phases, and
// elsewhere what it waits for.
func (a *app) failover(ctx context.Context, c *api.Client, name string, o api.FailoverOptions) (result api.FailoverResult, err error) {
	show, d := a.noteWaits(), &display{a: a, render: failoverLines}
	if a.inPlace() {
		show = d.show
	}
	defer d.clear()
	err = a.showing(ctx, c, name, show, func() (err error) {
		result, err = c.FailoverLink(ctx, name, o)
		return err
	})
	return result, err
}

// showing shows a link again and again until do has returned, and returns its error.
func (a *app) showing(ctx context.Context, c *api.Client, name string, show func([]api.Link), do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	ticker := time.NewTicker(a.poll)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			if l, err := c.Link(ctx, name); err == nil { // what goes wrong is told by do itself
				show([]api.Link{l})
			}
		}
	}
}

// noteWaits notes what a command waits for, once each.
func (a *app) noteWaits() func([]api.Link) {
	noted := map[string]bool{}
	return func(links []api.Link) {
		for _, p := range waits(links[0]) {
			if text := clean(p.Error()); !noted[text] {
				noted[text] = true
				a.note("%s", text)
			}
		}
	}
}

// waits are the findings that tell what a failover, or a comparison, waits for.
func waits(l api.Link) problem.Findings {
	return slices.DeleteFunc(slices.Clone(l.Findings), func(p *problem.Problem) bool { return p.Code != "failover-waits" && p.Code != "verify-waits" })
}

// failoverLines shows the failover that runs.
func failoverLines(p page, links []api.Link) []string {
	var b bytes.Buffer
	p.w = &b
	for _, l := range links {
		if f := l.Failover; f != nil && f.FinishedAt == nil {
			failoverPage(p, *f)
		} else {
			why := ""
			if l.State == api.StateFailingOver && l.Cause != nil {
				why = ": " + clean(l.Cause.Cause)
			}
			p.line("%s%s", p.paint(stateTone(l.State), string(l.State)), why)
		}
		p.findings(waits(l))
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
	rows := make([][2]string, 0, len(r.Phases)+3)
	if !r.StartedAt.IsZero() {
		rows = append(rows, [2]string{"begun", instant(r.StartedAt)})
	}
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
