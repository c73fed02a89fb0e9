package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
)

// instanceStatus is the answer of hawser status.
type instanceStatus struct {
	Instance api.Instance      `json:"instance"`
	Links    []api.Link        `json:"links"`
	Peers    []api.Peer        `json:"peers"`
	Refused  []api.RefusedPeer `json:"refused"`
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show this instance: PostgreSQL, links, peers",
		Long:    "Shows this instance's PostgreSQL, its links with their lag and the WAL that they hold, and its peers.",
		Example: "  hawser status\n  hawser status -o json | jq '.links[] | select(.state != \"synchronized\")'",
		Args:    args(),
		RunE: a.ask(func(ctx context.Context, c *api.Client, _ []string) error {
			instance, err := c.Instance(ctx)
			if err != nil {
				return err
			}
			links, err := c.Links(ctx)
			if err != nil {
				return err
			}
			peers, err := c.Peers(ctx)
			if err != nil {
				return err
			}
			s := instanceStatus{Instance: instance, Links: links, Peers: peers.Peers, Refused: peers.Refused}
			a.show(s, func(p page) { a.statusPage(p, s) })
			return nil
		}),
	}
}

func (a *app) statusPage(p page, s instanceStatus) {
	i := s.Instance
	p.line("%s", p.paint(bold, clean(i.Name)))
	kind := string(i.Kind)
	if i.Tier != "" {
		kind += ", PostgreSQL run by this agent, one node"
	}
	p.fields(
		[2]string{"kind", kind},
		[2]string{"agent", fmt.Sprintf("%s, up %s", i.Version, span(i.UptimeSeconds))},
		[2]string{"endpoint", i.Endpoint},
		[2]string{"certificate", i.Fingerprint},
		[2]string{"postgres", postgresText(i.Postgres)},
	)
	if i.Postgres.Cause != nil {
		p.problem("  ", p.paint(bad, string(i.Postgres.State)+": "), i.Postgres.Cause)
	}
	p.line("")
	linkTable(p, s.Links)
	p.line("")
	a.peerTable(p, api.PeerList{Peers: s.Peers, Refused: s.Refused})
}

func postgresText(g api.Postgres) string {
	text := cmp.Or(g.Version, "of unknown version") + " at " + g.Address + ", " + string(g.State)
	if g.Since != nil {
		text += " since " + instant(*g.Since)
	}
	if g.Restarts > 0 {
		text += ", restarted " + strconv.Itoa(g.Restarts) + " times"
	}
	return text
}

func (a *app) cert() *cobra.Command {
	show := &cobra.Command{
		Use:   "show",
		Short: "Print this instance's certificate",
		Long: `Prints this instance's certificate, for hawser peer add on the other instance. It
is public; the key never leaves the instance. Compare the fingerprint there, over a
way that you trust.`,
		Example: "  hawser cert show > on-prem.pem\n  hawser cert show | ssh mi-west hawser peer add - --address on-prem.example.com:5022",
		Args:    args(),
		RunE: a.ask(func(ctx context.Context, c *api.Client, _ []string) error {
			cert, err := c.Certificate(ctx)
			if err != nil {
				return err
			}
			a.show(cert, func(p page) {
				p.line("# instance     %s\n# fingerprint  %s\n# not after    %s", clean(cert.Name), cert.Fingerprint, instant(cert.NotAfter))
				p.line("%s", strings.TrimSpace(cert.PEM))
			})
			return nil
		}),
	}
	return group("cert", "This instance's certificate", show, a.certRotate())
}

func (a *app) certRotate() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Renew this instance's certificate, while links run",
		Long: `Makes a new key and certificate, gives the certificate to every peer over the
connection that stands, and then uses it. Links connect again by themselves. All
peers have to be connected: one that lacks the new certificate would refuse this
instance. A rotation that failed has changed nothing; run it again.`,
		Example: "  hawser cert rotate",
		Args:    args(),
		RunE: a.ask(func(ctx context.Context, c *api.Client, _ []string) error {
			r, err := c.RotateCertificate(ctx)
			if err != nil {
				return err
			}
			a.show(r, func(p page) {
				p.line("%s has a new certificate.", clean(r.Certificate.Name))
				p.fields([2]string{"fingerprint", r.Certificate.Fingerprint}, [2]string{"not after", instant(r.Certificate.NotAfter)},
					[2]string{"peers", cmp.Or(clean(strings.Join(r.Peers, ", ")), "none")})
			})
			return nil
		}),
	}
}

func (a *app) database() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the databases of this instance",
		Long:    "Lists the databases of this instance, with the links that they belong to.",
		Example: "  hawser database list",
		Args:    args(),
		RunE: a.ask(func(ctx context.Context, c *api.Client, _ []string) error {
			all, err := c.Databases(ctx)
			if err != nil {
				return err
			}
			a.show(struct {
				Databases []api.Database `json:"databases"`
			}{all}, func(p page) { databaseTable(p, all) })
			return nil
		}),
	}
	return group("database", "The databases of this instance", list)
}

func databaseTable(p page, all []api.Database) {
	if len(all) == 0 {
		p.line("no databases")
		return
	}
	rows := make([][]cell, len(all))
	for i, d := range all {
		access := "read-write"
		if d.ReadOnly {
			access = "read-only"
		}
		rows[i] = []cell{str(d.Name), str(d.Owner), num(bytesText(d.SizeBytes)), str(access), str(orDash(d.Link)), str(orDash(string(d.Role))), toned(stateTone(d.State), orDash(string(d.State)))}
		if d.State == "" {
			rows[i][6].tone = plain
		}
	}
	p.table([]string{"NAME", "OWNER", "SIZE", "ACCESS", "LINK", "ROLE", "STATE"}, rows)
}

// versionReport is the answer of hawser version.
type versionReport struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Long:    "Prints the version of this program. That of the running agent is in hawser status.",
		Example: "  hawser version",
		Args:    args(),
		RunE: a.do(func(*cobra.Command, []string) error {
			v := versionReport{Version: version, Platform: runtime.GOOS + "/" + runtime.GOARCH}
			v.Revision, v.Go = build()
			a.show(v, func(p page) {
				p.line("hawser %s", v.Version)
				p.fields([2]string{"revision", v.Revision}, [2]string{"go", v.Go}, [2]string{"platform", v.Platform})
			})
			return nil
		}),
	}
}

// exitCodes is a topic of hawser help.
func exitCodes() *cobra.Command {
	var b strings.Builder
	b.WriteString("Every command ends with one of these codes:\n\n")
	for _, m := range exitMeanings() {
		fmt.Fprintf(&b, "  %3d  %s\n", m.code, m.meaning)
	}
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes of all commands", Long: strings.TrimSpace(b.String())}
}
