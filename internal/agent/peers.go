package agent

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/peer"
	"github.com/hawser/hawser/internal/problem"
)

// changePeers changes whom this instance trusts and what they may do, and acts upon it.
// It is the one way to do so: what the links and the node know is what was stored last.
func (a *agent) changePeers(ctx context.Context, change func(tx pgx.Tx, all []catalog.Peer) error) error {
	a.trusting.Lock()
	defer a.trusting.Unlock()
	var now []catalog.Peer
	err := a.do(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			all, err := catalog.Peers(ctx, tx)
			if err != nil {
				return err
			}
			if err := change(tx, all); err != nil {
				return err
			}
			now, err = catalog.Peers(ctx, tx)
			return err
		})
	})
	if err != nil {
		return err
	}
	granted := map[string]grant.Grant{}
	for _, p := range now {
		granted[p.Name] = grantOf(p)
	}
	a.links.SetGrants(granted)
	a.peers.Refresh()
	return nil
}

// readGrants has the links know what is granted, before they run.
func (a *agent) readGrants(ctx context.Context) error {
	return a.changePeers(ctx, func(pgx.Tx, []catalog.Peer) error { return nil })
}

func grantOf(p catalog.Peer) grant.Grant {
	return grant.Grant{Databases: p.Databases, Direction: grant.Direction(p.Direction)}
}

// AddPeer trusts an instance. What is not said of a peer that is known stays as it is.
func (s *service) AddPeer(ctx context.Context, request api.AddPeer) (api.Peer, error) {
	said := api.SetPeer{Address: request.Address, NoAddress: request.NoAddress, Databases: request.Databases, Direction: request.Direction}
	return s.putPeer(ctx, request.Name, said, func(before *catalog.Peer, others []catalog.Peer) (catalog.Peer, error) {
		if known := holderOf(request.Certificate, others); known != "" {
			return catalog.Peer{}, problem.New("peer-duplicate", "peer "+request.Name, "its certificate is trusted under the name "+known+" already",
				"hawser peer set "+known+" --address HOST:PORT").Advise("that changes what is known of it; to give it another name, hawser peer remove " + known + " first")
		}
		p := catalog.Peer{Name: request.Name, Databases: grant.All().Databases, Direction: string(grant.Both)}
		if before != nil {
			p = *before
		}
		p.Certificate = request.Certificate
		return p, nil
	})
}

// SetPeer changes what is said of an instance that is trusted.
func (s *service) SetPeer(ctx context.Context, name string, said api.SetPeer) (api.Peer, error) {
	return s.putPeer(ctx, name, said, func(before *catalog.Peer, others []catalog.Peer) (catalog.Peer, error) {
		if before == nil {
			return catalog.Peer{}, api.PeerNotFound(name, namesOf(others)...)
		}
		return *before, nil
	})
}

// putPeer stores a peer as begin makes it of the one that is known, if any, with what was
// said of it.
func (s *service) putPeer(ctx context.Context, name string, said api.SetPeer, begin func(before *catalog.Peer, others []catalog.Peer) (catalog.Peer, error)) (api.Peer, error) {
	if err := (grant.Grant{Databases: said.Databases}).Check(); err != nil {
		return api.Peer{}, err
	}
	var changed []string
	err := s.changePeers(ctx, func(tx pgx.Tx, all []catalog.Peer) error {
		var before *catalog.Peer
		if i := slices.IndexFunc(all, func(p catalog.Peer) bool { return p.Name == name }); i >= 0 {
			known := all[i]
			before, all = &known, slices.Delete(all, i, i+1)
		}
		p, err := begin(before, all)
		if err != nil {
			return err
		}
		p = withSaid(p, said)
		if before != nil {
			changed = changes(*before, p)
		}
		return catalog.PutPeer(ctx, tx, p)
	})
	if err != nil {
		return api.Peer{}, err
	}
	list, err := s.Peers(ctx)
	if err != nil {
		return api.Peer{}, err
	}
	for _, known := range list.Peers {
		if known.Name == name {
			known.Changed = changed
			return known, nil
		}
	}
	return api.Peer{}, problem.New("peer-not-found", "peer "+name, "it was removed meanwhile", "hawser peer list")
}

func namesOf(peers []catalog.Peer) []string {
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = p.Name
	}
	return names
}

func withSaid(p catalog.Peer, said api.SetPeer) catalog.Peer {
	switch {
	case said.NoAddress:
		p.Address = ""
	case said.Address != "":
		p.Address = said.Address
	}
	if len(said.Databases) > 0 {
		p.Databases = said.Databases
	}
	if said.Direction != "" {
		p.Direction = string(said.Direction)
	}
	return p
}

// holderOf returns the name under which a certificate is trusted, or "".
func holderOf(certificate string, peers []catalog.Peer) string {
	print := printOf(certificate)
	for _, p := range peers {
		for _, known := range certificatesOf(p) {
			if printOf(known) == print {
				return p.Name
			}
		}
	}
	return ""
}

// printOf is a certificate's fingerprint, or says that there is none.
func printOf(certificate string) string {
	print, err := peer.Fingerprint([]byte(certificate))
	if err != nil {
		return "unreadable"
	}
	return print
}

// changes says what is other of a peer than before; never nil.
func changes(before, after catalog.Peer) []string {
	out := []string{}
	note := func(what, old, next string) {
		if old != next {
			out = append(out, what+": "+old+" -> "+next)
		}
	}
	note("certificate", printOf(certificatesOf(before)[0]), printOf(certificatesOf(after)[0]))
	note("address", cmp.Or(before.Address, "none"), cmp.Or(after.Address, "none"))
	note("databases", strings.Join(before.Databases, ", "), strings.Join(after.Databases, ", "))
	note("direction", before.Direction, after.Direction)
	return out
}

// RemovePeer ends the trust in an instance.
func (s *service) RemovePeer(ctx context.Context, name string) error {
	if err := s.knownPeer(ctx, name); err != nil {
		return err
	}
	if used := s.links.UsesPeer(name); len(used) > 0 {
		return problem.New("peer-in-use", "peer "+name, "links use it: "+strings.Join(used, ", "), "hawser link drop "+used[0])
	}
	return s.changePeers(ctx, func(tx pgx.Tx, _ []catalog.Peer) error {
		_, err := catalog.DeletePeer(ctx, tx, name)
		return err
	})
}

func (s *service) Peers(context.Context) (api.PeerList, error) {
	peers, refused := s.peers.Status()
	list := api.PeerList{Peers: make([]api.Peer, 0, len(peers)), Refused: make([]api.RefusedPeer, 0, len(refused))}
	grants := s.links.Grants()
	for _, p := range peers {
		of := peerOf(p)
		of.Databases, of.Direction = grants[p.Name].Databases, api.Direction(grants[p.Name].Direction)
		list.Peers = append(list.Peers, of)
	}
	for _, r := range refused {
		list.Refused = append(list.Refused, api.RefusedPeer{
			Name: r.Name, Fingerprint: r.Fingerprint, Address: r.Address, Cause: r.Problem, At: r.At, Count: r.Count,
		})
	}
	return list, nil
}

func peerOf(p peer.Status) api.Peer {
	out := api.Peer{
		Name: p.Name, Fingerprint: p.Fingerprint, Address: p.Address, Connected: p.Connected, RemoteAddress: p.Remote, Version: p.Version,
		BytesSent: p.BytesOut, BytesReceived: p.BytesIn, Cause: p.Problem,
	}
	out.NotAfter, _ = peer.Expiry([]byte(p.CertificatePEM)) // it was read when it was added
	if !p.Since.IsZero() {
		out.Since = &p.Since
	}
	if p.Connected {
		out.DialledBy = "them"
		if p.Dialled {
			out.DialledBy = "us"
		}
		if rtt := p.RTT.Seconds(); rtt > 0 { // 0: not measured yet
			out.RoundTripSeconds = &rtt
		}
	}
	return out
}

func (s *service) TestPeer(ctx context.Context, name string) ([]api.PeerTestStep, error) {
	if err := s.knownPeer(ctx, name); err != nil {
		return nil, err
	}
	steps := s.peers.Test(ctx, name)
	out := make([]api.PeerTestStep, len(steps))
	for i, t := range steps {
		out[i] = api.PeerTestStep{Name: t.Name, OK: t.OK, Detail: t.Detail, DurationSeconds: t.Duration.Seconds(), Problem: t.Problem}
	}
	return out, nil
}
