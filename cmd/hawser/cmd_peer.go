package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
)

func (a *app) peer() *cobra.Command {
	return group("peer", "The instances that this one trusts", a.peerAdd(), a.peerSet(), a.peerList(), a.peerRemove(), a.peerTest())
}

func (a *app) peerAdd() *cobra.Command {
	var request api.AddPeer
	cmd := &cobra.Command{
		Use:   "add FILE|-",
		Short: "Trust an instance, by its certificate",
		Long: `Trusts the instance whose certificate stands in FILE, or on standard input, as
hawser cert show printed it there. Trust is mutual: run it on both instances. Only
one of the two needs the other's --address; the connection that it opens carries
both directions.

The trust alone lets the peer link every database, either way. --databases names
those that links with it may concern, and --direction the way that their data may
flow: to-peer lets it be the secondary alone, from-peer the primary alone. A planned
failover needs both. Each side has its own say; a link needs that of both.

For a peer that is trusted already this takes its new certificate. Of address and grant
it changes what is said, and leaves the rest; hawser peer set does so without the
certificate.`,
		Example: "  hawser peer add mi-west.pem --address mi-west.example.com:5022\n  ssh mi-west hawser cert show | hawser peer add -\n" +
			"  hawser peer add reports.pem --databases shop --databases 'sales_*' --direction to-peer",
		Args: args("FILE"),
	}
	cmd.Flags().StringVar(&request.Name, "name", "", "`name` of the peer here (default: the name in its certificate)")
	a.peerFlags(cmd, &request.Address, &request.Databases, &request.Direction)
	cmd.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) error {
		certificate, err := a.readFile(args[0])
		if err != nil {
			return err
		}
		request.Certificate = certificate
		if request.NoAddress, err = checkPeerFlags(cmd, request.Address, request.Direction); err != nil {
			return err
		}
		peer, err := c.AddPeer(ctx, request)
		if p, ok := problem.As(err); ok && p.Object == "" { // the agent knows what it was given, not from where
			named := *p
			named.Object = map[bool]string{true: "standard input", false: "file " + args[0]}[args[0] == "-"]
			return &named
		}
		if err != nil {
			return err
		}
		a.show(peer, func(p page) {
			p.line("%s is trusted.", clean(peer.Name))
			peerFields(p, peer)
			p.line("Compare the fingerprint with hawser cert show there.")
			if peer.Address != "" {
				p.line("Prove the way with: hawser peer test %s", clean(peer.Name))
			} else {
				p.line("It has to dial this instance; prove the way there, with hawser peer test and this instance's name.")
			}
		})
		return nil
	})
	return cmd
}

// peerFlags adds the flags that say what is known of a peer and granted to it.
func (a *app) peerFlags(c *cobra.Command, address *string, databases *[]string, direction *api.Direction) {
	c.Flags().StringVar(address, "address", "", "`host:port` of its endpoint; '' forgets it (default: as before, or none: this instance waits for the peer to connect)")
	c.Flags().StringArrayVar(databases, "databases", nil, "let links with it concern the databases that match this `pattern` alone, with * and ?; may be repeated (default: as before, or all)")
	c.Flags().StringVar((*string)(direction), "direction", "", "the `way` that their data may flow: both, to-peer or from-peer (default: as before, or both)")
	_ = c.RegisterFlagCompletionFunc("databases", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.everyDatabase(c)
	})
	_ = c.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{"both", "to-peer", "from-peer"}, cobra.ShellCompDirectiveNoFileComp))
}

// checkPeerFlags reports whether the address is to be forgotten.
func checkPeerFlags(c *cobra.Command, address string, direction api.Direction) (noAddress bool, err error) {
	if !slices.Contains([]api.Direction{"", api.DirectionBoth, api.DirectionToPeer, api.DirectionFromPeer}, direction) {
		return false, usagef("--direction is both, to-peer or from-peer, not %q", direction)
	}
	return address == "" && c.Flags().Changed("address"), nil
}

func peerFields(p page, peer api.Peer) {
	p.fields([2]string{"fingerprint", peer.Fingerprint}, [2]string{"address", cmp.Or(peer.Address, "none: this instance waits for it to connect")},
		[2]string{"databases", strings.Join(peer.Databases, ", ")}, [2]string{"direction", string(peer.Direction)})
	if len(peer.Changed) > 0 {
		p.line("Changed: %s.", clean(strings.Join(peer.Changed, "; ")))
	}
}

func (a *app) peerSet() *cobra.Command {
	var change api.SetPeer
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a peer's address, and what it may do",
		Long: `Changes the address of a peer that is trusted, and its grant: see hawser peer add. What
is not said stays as it is, and so does the certificate. Links that the grant no longer
covers stop, and go on when it covers them again.`,
		Example:           "  hawser peer set mi-west --address mi-west.example.com:5023\n  hawser peer set reports --databases shop --databases 'sales_*' --direction to-peer",
		Args:              args("NAME"),
		ValidArgsFunction: a.completePeer,
	}
	a.peerFlags(cmd, &change.Address, &change.Databases, &change.Direction)
	cmd.MarkFlagsOneRequired("address", "databases", "direction")
	cmd.RunE = a.ask(func(ctx context.Context, c *api.Client, args []string) (err error) {
		if change.NoAddress, err = checkPeerFlags(cmd, change.Address, change.Direction); err != nil {
			return err
		}
		peer, err := c.SetPeer(ctx, args[0], change)
		if err != nil {
			return err
		}
		a.show(peer, func(p page) {
			p.line("%s is set.", clean(peer.Name))
			peerFields(p, peer)
		})
		return nil
	})
	return cmd
}

// readFile reads a certificate's file, or standard input for "-".
func (a *app) readFile(name string) (string, error) {
	const most = 64 << 10
	in := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", usage{problem.New("file-not-found", "file "+name, "It can't be read", "").Advise("name the file that hawser cert show printed on the other instance").Because(err)}
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return "", fmt.Errorf("read the certificate: %w", err)
	}
	return string(b), nil
}

func (a *app) peerList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List trusted peers, and strangers that were refused",
		Long:    "Lists the instances that this one trusts, how they are connected, what is granted to them, and those that tried to connect and were refused, with the reason.",
		Example: "  hawser peer list",
		Args:    args(),
		RunE: a.ask(func(ctx context.Context, c *api.Client, _ []string) error {
			list, err := c.Peers(ctx)
			if err != nil {
				return err
			}
			a.show(list, func(p page) { a.peerTable(p, list) })
			return nil
		}),
	}
}

func (a *app) peerTable(p page, list api.PeerList) {
	if len(list.Peers) == 0 {
		p.line("no peers; hawser peer add FILE trusts one")
	} else {
		rows := make([][]cell, len(list.Peers))
		for i, peer := range list.Peers {
			rows[i] = a.peerRow(peer)
		}
		p.table([]string{"PEER", "STATE", "SINCE", "ADDRESS", "DATABASES", "DIRECTION", "VERSION", "ROUND TRIP", "SENT", "RECEIVED"}, rows)
	}
	for _, peer := range list.Peers {
		if peer.Cause != nil {
			f := *peer.Cause
			f.Object = cmp.Or(f.Object, "peer "+peer.Name)
			p.problem("", "", &f)
		}
	}
	if len(list.Refused) == 0 {
		return
	}
	p.line("")
	p.line("%s", p.paint(warn, fmt.Sprintf("refused (%d)", len(list.Refused))))
	for _, r := range list.Refused {
		p.line("  %s, calling itself %s, %s ago", clean(r.Address), clean(cmp.Or(r.Name, "nothing")), span(a.now().Sub(r.At).Seconds()))
		p.fields([2]string{"  fingerprint", r.Fingerprint})
		if r.Cause != nil {
			p.problem("    ", "", r.Cause)
		}
	}
}

func (a *app) peerRow(peer api.Peer) []cell {
	state, address := toned(bad, "disconnected"), peer.Address
	if peer.Connected {
		state = toned(good, "connected")
		address = cmp.Or(peer.RemoteAddress, address)
	}
	since := ""
	if peer.Since != nil {
		since = span(a.now().Sub(*peer.Since).Seconds())
	}
	trip := ""
	if peer.RoundTripSeconds != nil {
		trip = span(*peer.RoundTripSeconds)
	}
	return []cell{str(peer.Name), state, num(orDash(since)), str(cmp.Or(address, "waits for it")),
		str(strings.Join(peer.Databases, ", ")), str(string(peer.Direction)), str(orDash(peer.Version)), num(orDash(trip)), num(bytesText(peer.BytesSent)), num(bytesText(peer.BytesReceived))}
}

func (a *app) peerRemove() *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME",
		Short:             "Trust an instance no more",
		Long:              "Ends the trust in an instance and closes its connection. A peer that a link needs can't be removed.",
		Example:           "  hawser peer remove mi-west",
		Args:              args("NAME"),
		ValidArgsFunction: a.completePeer,
		RunE: a.ask(func(ctx context.Context, c *api.Client, args []string) error {
			if err := c.RemovePeer(ctx, args[0]); err != nil {
				return err
			}
			a.show(struct {
				Removed string `json:"removed"`
			}{args[0]}, func(p page) { p.line("%s is trusted no more.", clean(args[0])) })
			return nil
		}),
	}
}

func (a *app) peerTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test NAME",
		Short: "Walk the real way to a peer, step by step",
		Long: `Walks the way that a link takes, by the protocol that it speaks: name, TCP, TLS,
both certificates, version, round trip and rate. A step that fails names its remedy.
The exit code is 7 when a step failed.`,
		Example:           "  hawser peer test mi-west",
		Args:              args("NAME"),
		ValidArgsFunction: a.completePeer,
		RunE: a.ask(func(ctx context.Context, c *api.Client, args []string) error {
			steps, err := c.TestPeer(ctx, args[0])
			if err != nil {
				return err
			}
			a.show(struct {
				Steps []api.PeerTestStep `json:"steps"`
			}{steps}, func(p page) { stepTable(p, steps) })
			for _, s := range steps {
				if !s.OK {
					return quietly{exitPeerTest}
				}
			}
			return nil
		}),
	}
}

func stepTable(p page, steps []api.PeerTestStep) {
	rows := make([][]cell, len(steps))
	for i, s := range steps {
		mark := toned(good, "ok")
		if !s.OK {
			mark = toned(bad, "failed")
		}
		rows[i] = []cell{mark, str(s.Name), num(span(s.DurationSeconds)), str(s.Detail)}
	}
	p.table([]string{"RESULT", "STEP", "TOOK", "FOUND"}, rows)
	for _, s := range steps {
		if s.Problem != nil {
			p.problem("", p.paint(bad, clean(s.Name)+": "), s.Problem)
		}
	}
}
