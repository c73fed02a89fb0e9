package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link"
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
	granted := map[string]link.Granted{}
	for _, p := range now {
		granted[p.Name] = link.Granted{Grant: grantOf(p), Address: p.Address}
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

// AddPeer trusts an instance. What is not said of a peer's grant stays as it is.
func (s *service) AddPeer(ctx context.Context, request api.AddPeer) (api.Peer, error) {
	added := catalog.Peer{
		Name: request.Name, Certificate: request.Certificate, Address: request.Address, Databases: request.Databases, Direction: string(request.Direction),
	}
	if err := grantOf(added).Check(); err != nil {
		return api.Peer{}, err
	}
	var changed []string
	err := s.changePeers(ctx, func(tx pgx.Tx, all []catalog.Peer) error {
		before := catalog.Peer{Databases: grant.All().Databases, Direction: string(grant.Both)}
		i := slices.IndexFunc(all, func(p catalog.Peer) bool { return p.Name == added.Name })
		if i >= 0 {
			before = all[i]
		}
		if len(added.Databases) == 0 {
			added.Databases = before.Databases
		}
		if added.Direction == "" {
			added.Direction = before.Direction
		}
		if i >= 0 {
			changed = changes(before, added)
		}
		return catalog.PutPeer(ctx, tx, added)
	})
	if err != nil {
		return api.Peer{}, err
	}
	list, err := s.Peers(ctx)
	if err != nil {
		return api.Peer{}, err
	}
	for _, known := range list.Peers {
		if known.Name == added.Name {
			known.Changed = changed
			return known, nil
		}
	}
	return api.Peer{}, api.PeerNotFound(added.Name)
}

// changes says what is other of a peer than before; never nil.
func changes(before, after catalog.Peer) []string {
	out := []string{}
	note := func(what, old, next string) {
		if old != next {
			out = append(out, what+": "+old+" -> "+next)
		}
	}
	if strings.TrimSpace(before.Certificate) != strings.TrimSpace(after.Certificate) {
		out = append(out, "certificate")
	}
	orNone := func(address string) string {
		if address == "" {
			return "none"
		}
		return address
	}
	note("address", orNone(before.Address), orNone(after.Address))
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
		rtt := p.RTT.Seconds()
		out.RoundTripSeconds = &rtt
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
