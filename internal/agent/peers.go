package agent

import (
	"context"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/peer"
)

func (s *service) Peers(context.Context) (api.PeerList, error) {
	peers, refused := s.peers.Status()
	list := api.PeerList{Peers: make([]api.Peer, 0, len(peers)), Refused: make([]api.RefusedPeer, 0, len(refused))}
	for _, p := range peers {
		list.Peers = append(list.Peers, peerOf(p))
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
