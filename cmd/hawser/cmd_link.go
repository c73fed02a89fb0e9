package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
)

func (a *app) link() *cobra.Command {
	return group("link", "Links: one database tied to another instance",
		a.validate("validate"), a.linkCreate(), a.linkList(), a.linkShow(), a.linkWatch(), a.linkSet(), a.linkPause(), a.linkResume(), a.linkVerify(), a.linkFailover(), a.linkRejoin(), a.linkResync(), a.linkFollow(), a.linkDrop())
}

// specFlags adds the flags that describe a link.
func (a *app) specFlags(c *cobra.Command, spec *api.LinkSpec) {
	c.Flags().StringVar(&spec.Database, "database", "", "`name` of the database to link (required)")
	c.Flags().StringVar(&spec.Peer, "peer", "", "`name` of the instance at the other end")
	c.Flags().StringVar((*string)(&spec.Role), "role", string(api.RolePrimary), "`role` of this instance: primary or secondary")
	c.Flags().StringArrayVar(&spec.Tables, "tables", nil, "carry the rows of the tables that match this `pattern` alone, as SCHEMA.TABLE with * and ?; may be repeated")
	c.Flags().StringArrayVar(&spec.ExcludeTables, "exclude-tables", nil, "do not carry the rows of the tables that match this `pattern`; may be repeated")
	c.Flags().Var(boundFlag{&spec.MaxWALBytes}, "max-wal", "`size` of WAL, such as 32GiB, that the link may hold back on the primary before it is given up; 0 for no bound (default: limits.wal_held of the primary's agent)")
	_ = c.RegisterFlagCompletionFunc("database", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.databaseNames(c)
	}) // fails for a flag that does not exist
	_ = c.RegisterFlagCompletionFunc("peer", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.peerNames(c)
	})
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"primary", "secondary"}, cobra.ShellCompDirectiveNoFileComp))
}

func checkSpec(spec api.LinkSpec) error {
	if spec.Database == "" {
		return usagef("--database is missing: name the database to link")
	}
	if spec.Role != api.RolePrimary && spec.Role != api.RoleSecondary {
		return usagef("--role is %q: want primary or secondary", spec.Role)
	}
	return nil
}

func (a *app) validate(use string) *cobra.Command {
	var spec api.LinkSpec
	c := &cobra.Command{
		Use:   use + " [NAME]",
		Short: "Check whether a database is fit to be linked",
		Long: `Checks what link create would check, and changes nothing: this server, the database,
and with --peer the other side. All findings are shown at once, each with the exact
statement that mends it. The exit code is 5 when one of them blocks.`,
		Example: "  hawser validate --database shop\n  hawser validate orders --database shop --peer mi-west\n  hawser validate --database shop --tables 'sales.*' --exclude-tables 'sales.audit_*'",
		Args:    optional("NAME"),
	}
	a.specFlags(c, &spec)
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if err := checkSpec(spec); err != nil {
			return err
		}
		spec.Name = slices.Concat(args, []string{""})[0]
		findings, err := c.ValidateLink(ctx, spec)
		if err != nil {
			return err
		}
		a.show(struct {
			Findings problem.Findings `json:"findings"`
		}{findings}, func(p page) {
			p.findings(findings)
			p.line("%s", verdict(p, spec, findings))
		})
		if len(findings.Blocking()) > 0 {
			return quietly{exitBlocked}
		}
		return nil
	})
	return c
}

func verdict(p page, spec api.LinkSpec, findings problem.Findings) string {
	database := spec.Database
	if n := len(findings.Blocking()); n > 0 {
		return p.paint(bad, fmt.Sprintf("%s can't be linked yet: %s.", clean(database), map[bool]string{true: "1 finding blocks", false: count(n) + " findings block"}[n == 1]))
	}
	if spec.Peer == "" {
		return p.paint(good, clean(database)+" is fit to be linked, as far as this side can tell.")
	}
	return p.paint(good, clean(database)+" is fit to be linked.")
}

func (a *app) linkList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the links of this instance",
		Long:    "Lists the links of this instance with their state, lag, and the WAL that they hold on the primary.",
		Example: "  hawser link list",
		Args:    args(),
		RunE: a.ask(func(ctx context.Context, c *api.Client, _ []string) error {
			links, err := c.Links(ctx)
			if err != nil {
				return err
			}
			a.show(struct {
				Links []api.Link `json:"links"`
			}{links}, func(p page) { linkTable(p, links) })
			return nil
		}),
	}
}

func linkTable(p page, links []api.Link) {
	if len(links) == 0 {
		p.line("no links; hawser link create NAME makes one")
		return
	}
	head, rows := linkRows(links)
	p.table(head, rows)
	for _, l := range links {
		if telling(l.Cause) {
			p.problem("", p.paint(linkTone(l), clean(l.Name)+": "), l.Cause)
		}
		for _, f := range l.Findings {
			if f.Code == "wal-held" { // soon it ends the link
				p.problem("", p.paint(busy, clean(l.Name)+": "), f)
			}
		}
	}
}

// telling reports whether the cause of a state says more than the state: that
// of a link in good order does not.
func telling(cause *problem.Problem) bool {
	return cause != nil && cause.Severity != problem.Note
}

func linkRows(links []api.Link) (head []string, rows [][]cell) {
	for _, l := range links {
		state := string(l.State)
		if s := l.Seeding; s != nil && l.State == api.StateSeeding {
			state += " " + percent(s)
		}
		rows = append(rows, []cell{
			str(l.Name), str(l.Database), str(roleText(l)), str(l.Peer), toned(linkTone(l), state),
			num(orUnknown(l.LagSeconds, span)), num(orUnknown(l.LagBytes, bytesText[uint64])), num(orUnknown(l.WALHeldBytes, bytesText[uint64])),
		})
	}
	return []string{"LINK", "DATABASE", "ROLE", "PEER", "STATE", "LAG", "LAG BYTES", "WAL HELD"}, rows
}

// roleText tells an old primary that was forced out from the one that took its place.
func roleText(l api.Link) string {
	if l.State == api.StateDiverged && l.Role == api.RolePrimary && l.Cause != nil && l.Cause.Place == "" { // what has to be done is to be done here
		return "old primary"
	}
	return string(l.Role)
}

func (a *app) linkShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show one link in full",
		Long:              "Shows one link in full: state and cause, positions, lag, the copy of each table, the last failover, and what the link can't carry.",
		Example:           "  hawser link show orders",
		Args:              args("NAME"),
		ValidArgsFunction: a.completeLink,
		RunE: a.ask(func(ctx context.Context, c *api.Client, args []string) error {
			l, err := c.Link(ctx, args[0])
			if err != nil {
				return err
			}
			a.show(l, func(p page) { linkPage(p, l) })
			return nil
		}),
	}
}

func linkPage(p page, l api.Link) {
	p.line("%s  %s", p.paint(bold, clean(l.Name)), p.paint(linkTone(l), string(l.State)))
	if l.Cause != nil {
		p.problem("  ", "", l.Cause)
	}
	fields := [][2]string{
		{"since", instant(l.Since)},
		{"database", l.Database},
		{"role", roleText(l) + " here; the other side is " + l.Peer},
		{"term", strconv.FormatUint(uint64(l.Term), 10)},
		{"mode", string(l.Mode)},
		{"lag", lagText(l)},
		{"WAL held", walText(l)},
		{"sent", l.Position.Sent.String()},
		{"received", l.Position.Received.String()},
		{"durable", l.Position.Durable.String()},
		{"visible", l.Position.Visible.String()},
		{"slot", l.Slot},
		{"id", l.ID},
		{"created", instant(l.CreatedAt)},
	}
	p.fields(append(fields, filterFields(l)...)...)
	if f := l.Failover; f != nil {
		p.line("")
		failoverPage(p, *f)
	}
	if s := l.Seeding; s != nil {
		p.line("")
		p.line("seeding %s", seedingText(s))
		tableTable(p, s.Tables)
	}
	if len(l.Findings) > 0 {
		p.line("")
		p.findings(l.Findings)
	}
}

// filterFields say of which tables a link carries the rows, where not of all.
func filterFields(l api.Link) (out [][2]string) {
	if len(l.Tables) > 0 {
		out = append(out, [2]string{"tables", strings.Join(l.Tables, ", ")})
	}
	if len(l.ExcludeTables) > 0 {
		out = append(out, [2]string{"without", strings.Join(l.ExcludeTables, ", ")})
	}
	return out
}

func tableTable(p page, tables []api.TableProgress) {
	if len(tables) == 0 {
		return
	}
	rows := make([][]cell, len(tables))
	for i, t := range tables {
		state := toned(busy, string(t.State))
		switch t.State {
		case api.TableLive:
			state.tone = good
		case api.TablePending:
			state.tone = dim
		}
		expected := "unknown"
		if t.RowsTotal >= 0 {
			expected = count(t.RowsTotal)
		}
		rows[i] = []cell{str(qualified(t.Schema, t.Name)), state, num(bytesText(t.BytesDone)), num(bytesText(t.BytesTotal)), num(count(t.RowsDone)), num(expected)}
	}
	p.table([]string{"TABLE", "STATE", "COPIED", "OF", "ROWS", "OF ABOUT"}, rows)
}

func (a *app) linkPause() *cobra.Command {
	return a.linkStep("pause", "Stop applying changes",
		"Stops applying changes on the secondary. Meanwhile the primary keeps its WAL: see WAL HELD in hawser link list.",
		func(ctx context.Context, c *api.Client, name string) error { return c.PauseLink(ctx, name) })
}

func (a *app) linkResume() *cobra.Command {
	return a.linkStep("resume", "Go on after a pause or a suspension",
		`Goes on where the link stopped, after hawser link pause or after the cause of a
suspension was mended. It fails where the link stands again at once.`,
		func(ctx context.Context, c *api.Client, name string) error { return c.ResumeLink(ctx, name) })
}

func (a *app) linkSet() *cobra.Command {
	var bytes *int64
	c := a.linkStep("set", "Change what a link may hold back",
		`Bounds the WAL that a link may hold back on its primary. Beyond the bound the link is
given up, not the primary's disk, and hawser link resync takes it up again. It counts
on both sides, and is kept at a failover. Without a bound of its own (default) a link
has limits.wal_held of the primary's agent.`,
		nil)
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if err := c.SetLinkMaxWAL(ctx, args[0], bytes); err != nil {
			return err
		}
		l, err := c.Link(ctx, args[0])
		if err != nil {
			return err
		}
		a.show(l, func(p page) { p.line("The link %s may hold back %s.", clean(l.Name), boundText(bytes)) })
		return nil
	})
	c.Use = "set NAME --max-wal SIZE"
	c.Example = "  hawser link set orders --max-wal 32GiB\n  hawser link set orders --max-wal default"
	c.Flags().Var(boundFlag{&bytes}, "max-wal", "`size` of WAL, such as 32GiB; 0 for no bound; default for the agent's")
	_ = c.MarkFlagRequired("max-wal")
	return c
}

func boundText(bytes *int64) string {
	switch {
	case bytes == nil:
		return "what limits.wal_held of its primary's agent allows"
	case *bytes == 0:
		return "any amount of WAL"
	}
	return bytesText(uint64(*bytes)) + " of WAL"
}

// walText tells the WAL held, and the bound on it.
func walText(l api.Link) string {
	held := orUnknown(l.WALHeldBytes, bytesText[uint64])
	switch {
	case l.MaxWALBytes == nil:
		return held
	case *l.MaxWALBytes == 0:
		return held + ", without a bound"
	}
	return held + " of at most " + bytesText(*l.MaxWALBytes)
}

// linkStep is a command that changes a link and shows what became of it.
// tells are the codes of findings that are shown with it.
func (a *app) linkStep(use, short, long string, do func(context.Context, *api.Client, string) error, tells ...string) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME", Short: short, Long: long, Example: "  hawser link " + use + " orders",
		Args: args("NAME"), ValidArgsFunction: a.completeLink,
		RunE: a.ask(func(ctx context.Context, c *api.Client, args []string) error {
			if err := do(ctx, c, args[0]); err != nil {
				return err
			}
			l, err := c.Link(ctx, args[0])
			if err != nil {
				return err
			}
			l = a.settled(ctx, c, l)
			if use != "pause" && stands(l.State) { // it was to go on
				return stateProblem(l)
			}
			a.showStep(l, tells)
			return nil
		}),
	}
}

// stands tells the state of a link that a person must see to.
func stands(s api.State) bool {
	return s == api.StateSuspended || s == api.StateDiverged || s == api.StateDropped
}

func (a *app) showStep(l api.Link, tells []string) {
	a.show(l, func(p page) {
		p.line("%s", a.plainLine(l))
		p.findings(slices.DeleteFunc(slices.Clone(l.Findings), func(f *problem.Problem) bool { return !slices.Contains(tells, f.Code) }))
	})
}

// copyStep is a linkStep that has tables or rows copied: it shows how far that is, and
// returns when the secondary is synchronized.
func (a *app) copyStep(use, short, long string, do func(context.Context, *api.Client, string) error, tells ...string) *cobra.Command {
	var noWait bool
	c := a.linkStep(use, short, long, do, tells...)
	atOnce := c.RunE
	wait := a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if err := a.comparing(ctx, c, args[0], do); err != nil {
			return err
		}
		l, err := a.untilSynchronized(ctx, c, api.Link{Name: args[0]})
		if err != nil {
			if ended(ctx) {
				a.note("Left. The link goes on; see it with: hawser link watch %s", clean(args[0]))
			}
			return err
		}
		a.showStep(l, tells)
		return nil
	})
	c.RunE = func(c *cobra.Command, args []string) error {
		if noWait {
			return atOnce(c, args)
		}
		return wait(c, args)
	}
	c.Flags().BoolVar(&noWait, "no-wait", false, "return when the copy is under way")
	return c
}

// comparing does what begins with a comparison of both sides, and shows how far that is.
func (a *app) comparing(ctx context.Context, c *api.Client, name string, do func(context.Context, *api.Client, string) error) error {
	w := &display{a: a, render: a.progressLines, every: 5, silentJSON: true}
	defer w.clear()
	done := make(chan error, 1)
	go func() { done <- do(ctx, c, name) }()
	for next := time.Second; ; next = a.poll { // what takes less shows nothing
		select {
		case err := <-done:
			return err
		case <-time.After(next):
		}
		if l, err := c.Link(ctx, name); err == nil && comparison(l) != "" { // do tells what is wrong
			w.show([]api.Link{l})
		}
	}
}

// settled gives a link that has just been started the moment that its stream needs to
// open, so that what is shown is what becomes of it.
func (a *app) settled(ctx context.Context, c *api.Client, l api.Link) api.Link {
	const patience, between = 2 * time.Second, 100 * time.Millisecond
	for began := time.Now(); l.State == api.StateDisconnected && time.Since(began) < patience; {
		select {
		case <-ctx.Done():
			return l
		case <-time.After(min(a.poll, between)):
		}
		next, err := c.Link(ctx, l.Name)
		if err != nil {
			return l // whoever looks next will tell
		}
		l = next
	}
	return l
}

func (a *app) linkRejoin() *cobra.Command {
	return a.copyStep("rejoin", "Follow the side that took over by force",
		`Makes this instance, which was the primary until the other side took over with
hawser link failover --force, the secondary. Its transactions that the other side
never received are written to a report first: this command, and hawser link show NAME
for as long as the file is there, tell where. The rows that they touched are fetched
from the new primary; nothing else is copied. Ctrl-C ends the rejoin until it takes
rows away; from there on it goes to its end.`,
		func(ctx context.Context, c *api.Client, name string) error { return c.RejoinLink(ctx, name) }, "report-kept", "tail-has-settings", "tail-has-views")
}

func (a *app) linkResync() *cobra.Command {
	var tables []string
	c := a.copyStep("resync", "Copy tables again while the link runs",
		`Copies tables again, from the primary to the secondary, while the link runs. Without
--table it compares all tables and copies those that differ; so it takes up a link
whose replication slot was lost. Readers of the secondary see a table's old rows until
its copy is complete; meanwhile it takes up to twice its room there.`,
		func(ctx context.Context, c *api.Client, name string) error { return c.ResyncLink(ctx, name, tables) })
	c.Example = "  hawser link resync orders\n  hawser link resync orders --table public.invoice"
	c.Flags().StringArrayVar(&tables, "table", nil, "a `table` to copy, as SCHEMA.NAME, read as in SQL: letters outside of double quotes are folded to lower case; may be repeated")
	return c
}

func (a *app) linkFollow() *cobra.Command {
	var primary string
	c := a.copyStep("follow", "Follow the instance that leads the database now",
		`Makes this instance, a secondary, follow another primary: the one that took the
database over by another of its links. After a planned failover that goes by itself;
the command is for a secondary that was left behind, as by a forced one (the link's
cause is primary-moved then). All tables are compared with the new primary, and
those that differ are copied. Readers see such a table's old rows until its copy is
complete. The command shows progress and returns when the secondary is synchronized.`,
		func(ctx context.Context, c *api.Client, name string) error { return c.FollowLink(ctx, name, primary) })
	c.Use = "follow NAME --primary PEER"
	c.Example = "  hawser link follow orders --primary mi-west"
	c.Flags().StringVar(&primary, "primary", "", "the `peer` that leads the database now")
	_ = c.MarkFlagRequired("primary")
	return c
}

func (a *app) linkDrop() *cobra.Command {
	var o api.DropOptions
	var yes bool
	c := &cobra.Command{
		Use:        "drop NAME",
		SuggestFor: []string{"delete", "remove", "rm"},
		Short:      "Drop a link",
		Long: `Drops a link on both sides, and removes what Hawser put into the databases: slot,
publication, triggers and the schema hawser. The replica stays, as an ordinary
read-write database, unless --remove-replica drops it; that never drops a database
which Hawser had not created, such as the old primary's after a failover. One whose
copy is not complete is opened with --force alone, which names the tables that lack
rows. It asks before it drops a database, before it opens a replica that is known not
to be what the primary has, as that of a paused or suspended link, and before it ends a
link that is diverged: nothing brings together then what the two sides wrote. Without a
terminal that needs --yes.`,
		Example:           "  hawser link drop orders\n  hawser link drop orders --remove-replica --yes",
		Args:              args("NAME"),
		ValidArgsFunction: a.completeLink,
	}
	c.Flags().BoolVar(&o.RemoveReplica, "remove-replica", false, "drop the secondary's database, too, if Hawser created it")
	c.Flags().BoolVar(&o.Force, "force", false, "drop this side even when the other can't be reached, and open a replica whose copy is not complete")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		if !yes {
			l, err := c.Link(ctx, args[0])
			if err != nil {
				return err // there is nothing to confirm
			}
			if question := dropQuestion(l, o); question != "" {
				if err := a.confirm(yes, question); err != nil {
					return err
				}
			}
		}
		result, err := c.DropLink(ctx, args[0], o)
		if err != nil {
			return err
		}
		a.show(result, func(p page) {
			p.line("The link %s is dropped.%s", clean(args[0]), replicaText(result))
			p.findings(result.Findings)
		})
		return nil
	})
	return c
}

// dropQuestion is what has to be confirmed before a link is dropped; "": nothing is lost by it.
func dropQuestion(l api.Link, o api.DropOptions) string {
	var lost []string
	if o.RemoveReplica {
		lost = append(lost, "The database of its secondary goes, with all that is in it.")
	}
	if l.State == api.StateDiverged {
		lost = append(lost, "It is diverged: the old primary takes writes again, beside the new one, and neither gets any more what the other wrote. What the old primary alone has can't be brought together with the rest by hawser link rejoin then.")
	}
	if why := standing(l); why != "" && !o.RemoveReplica {
		lost = append(lost, why)
	}
	if len(lost) == 0 {
		return ""
	}
	return fmt.Sprintf("Drop the link %s? %s", clean(l.Name), strings.Join(lost, " "))
}

// standing says of a link that does not carry changes just now what its drop opens; "" where
// a drop is what its cause asks for, or where it carries them.
func standing(l api.Link) string {
	switch {
	case l.State == api.StatePaused:
		return "It is paused: its replica takes writes then without what the primary wrote since."
	case l.State != api.StateSuspended || l.Cause == nil || strings.HasPrefix(l.Cause.Remedy, "hawser link drop "):
		return ""
	}
	return "It is suspended (" + clean(l.Cause.Code) + "): its replica takes writes then as it is, which is not what the primary has."
}

// replicaText tells what became of a replica that was to be removed.
func replicaText(r api.DropResult) string {
	untold := slices.ContainsFunc(r.Findings, func(p *problem.Problem) bool { return p.Code == "peer-not-told" })
	switch {
	case !r.RemoveReplicaRequested:
		return ""
	case r.ReplicaRemoved == nil && untold:
		return " The replica is still there: its instance could not be told."
	case r.ReplicaRemoved == nil:
		return " The other instance removes the replica only if Hawser had created that database: see hawser database list there."
	case *r.ReplicaRemoved:
		return " The replica is removed."
	}
	return " The replica stays, as a database that takes writes: Hawser had not created it."
}
