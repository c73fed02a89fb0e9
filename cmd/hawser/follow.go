package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
)

func (a *app) linkCreate() *cobra.Command {
	var spec api.LinkSpec
	var noWait bool
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Validate and create a link",
		Long: `Validates, creates the link, copies the database, and returns when the secondary is
synchronized. When a finding blocks, all findings are shown and nothing is changed.

With --tables or --exclude-tables the replica has the definitions of the whole
database, and the rows of the tables that are chosen. Such a link has no planned
failover.

On a terminal it shows the progress of the copy, in a pipe it writes plain lines.
Ctrl-C leaves the command, not the link: that goes on.`,
		Example: "  hawser link create orders --database shop --peer mi-west\n  hawser link create orders --database shop --peer on-prem --role secondary --no-wait\n  hawser link create sales --database shop --peer mi-west --tables 'sales.*' --exclude-tables 'sales.audit_*'",
		Args:    args("NAME"),
	}
	a.specFlags(c, &spec)
	c.Flags().BoolVar(&noWait, "no-wait", false, "return when the link stands and its seeding runs")
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if err := checkSpec(spec); err != nil {
			return err
		}
		if spec.Peer == "" {
			return usagef("--peer is missing: name the instance at the other end")
		}
		spec.Name = args[0]
		return a.create(ctx, c, spec, noWait)
	})
	return c
}

func (a *app) create(ctx context.Context, c *api.Client, spec api.LinkSpec, noWait bool) error {
	if a.inPlace() {
		fmt.Fprint(a.out, "validating and preparing …")
	}
	l, err := c.CreateLink(ctx, spec)
	if err == nil {
		l = a.settled(ctx, c, l)
	}
	if a.inPlace() {
		fmt.Fprint(a.out, "\r\x1b[K")
	}
	known := l.Findings
	if err == nil && a.output == outputText {
		p := a.page()
		p.line("The link %s stands: %s is %s here, and seeding runs.", clean(l.Name), clean(l.Database), l.Role)
		p.findings(l.Findings)
	}
	if err == nil && !noWait {
		l, err = a.untilSynchronized(ctx, c, l)
	}
	if err != nil && ended(ctx) {
		a.note("Left. The link goes on; see it with: hawser link watch %s", clean(spec.Name))
	}
	if err != nil {
		return err
	}
	if noWait || a.output == outputJSON {
		a.show(l, func(page) {})
		return nil
	}
	p := a.page()
	p.line("%s", p.paint(good, clean(l.Name)+" is synchronized: "+doneText(l, a.now())))
	p.findings(since(known, l.Findings))
	return nil
}

// since are those of the findings that were not known before.
func since(known, all problem.Findings) problem.Findings {
	return slices.DeleteFunc(slices.Clone(all), func(p *problem.Problem) bool {
		return slices.ContainsFunc(known, func(k *problem.Problem) bool { return k.Code == p.Code && k.Object == p.Object })
	})
}

func doneText(l api.Link, now time.Time) string {
	took := span(now.Sub(l.CreatedAt).Seconds())
	if s := l.Seeding; s != nil {
		return fmt.Sprintf("%s, %s rows in %s, after %s.", bytesText(s.BytesDone), count(s.RowsDone), plural(s.TablesTotal, "table"), took)
	}
	return "after " + took + "."
}

// untilSynchronized follows a new link until its secondary has caught up, or
// until a person must act.
func (a *app) untilSynchronized(ctx context.Context, c *api.Client, l api.Link) (api.Link, error) {
	const patience = 2 * time.Minute // with an agent that is away
	const opening = 2 * time.Second  // in which a stream that is begun anew is still missing
	var away time.Time
	began := a.now()
	w := &display{a: a, render: a.progressLines, every: 5, silentJSON: true}
	defer w.clear()
	err := a.follow(ctx, func(ctx context.Context) ([]api.Link, error) {
		next, err := c.Link(ctx, l.Name)
		return []api.Link{next}, err
	}, func(links []api.Link, trouble error) (bool, error) {
		if trouble != nil {
			if away.IsZero() {
				away = a.now()
			}
			w.trouble(trouble)
			return a.now().Sub(away) > patience, trouble
		}
		l, away = links[0], time.Time{}
		switch {
		case l.State == api.StateSynchronized:
			return true, nil
		case stands(l.State):
			return true, stateProblem(l)
		case l.State == api.StateDisconnected && a.now().Sub(began) < opening:
			return false, nil
		}
		w.show(links)
		return false, nil
	})
	return l, err
}

// stateProblem is the error of a link that went where a person must act.
func stateProblem(l api.Link) error {
	p := problem.New("link-"+string(l.State), "link "+l.Name, "The link is "+string(l.State)+".", "hawser link show "+l.Name)
	if l.Cause == nil {
		return p
	}
	p.Code = l.Cause.Code
	if l.Cause.Remedy != "" || l.Cause.Advice != "" {
		p.Remedy, p.Advice, p.Place = l.Cause.Remedy, l.Cause.Advice, l.Cause.Place
	}
	p.Cause = "The link is " + string(l.State) + ". " + l.Cause.Cause
	if l.Cause.Object != "" {
		p.Cause = "The link is " + string(l.State) + ", because of " + l.Cause.Object + ". " + l.Cause.Cause
	}
	return p
}

func (a *app) linkWatch() *cobra.Command {
	var rounds int
	c := &cobra.Command{
		Use:   "watch [NAME]",
		Short: "Follow one link, or all",
		Long: `Follows one link, or all, once a second: on a terminal in one place, in a pipe one
line for each link, with -o json one JSON document a line. While the agent is away it
waits for it. Ctrl-C ends it.`,
		Example:           "  hawser link watch\n  hawser link watch orders -n 1",
		Args:              optional("NAME"),
		ValidArgsFunction: a.completeLink,
	}
	c.Flags().IntVarP(&rounds, "count", "n", 0, "end after so many looks (default: never)")
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		look := c.Links
		if len(args) == 1 {
			look = func(ctx context.Context) ([]api.Link, error) {
				l, err := c.Link(ctx, args[0])
				return []api.Link{l}, err
			}
		}
		w := &display{a: a, render: tableLines, every: 1}
		seen := 0
		return a.follow(ctx, look, func(links []api.Link, trouble error) (bool, error) {
			seen++
			switch {
			case trouble != nil && seen == 1:
				return true, trouble // later it is waited out
			case trouble != nil:
				w.trouble(trouble)
			default:
				w.show(links)
			}
			return seen == rounds, nil
		})
	})
	return c
}

// follow looks once in each interval until seen says that it is done, and with
// which error. It goes on while the agent is away, and tells seen so.
func (a *app) follow(ctx context.Context, look func(context.Context) ([]api.Link, error), seen func([]api.Link, error) (bool, error)) error {
	ticker := time.NewTicker(a.poll)
	defer ticker.Stop()
	for {
		links, err := look(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !passing(err) {
			return err
		}
		if done, err := seen(links, err); done {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// passing reports whether an error may go by itself: the agent restarts.
func passing(err error) bool {
	p, ok := problem.As(err)
	return ok && p.Retryable
}
