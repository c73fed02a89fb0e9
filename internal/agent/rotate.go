package agent

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/peer"
	"github.com/hawser/hawser/internal/problem"
)

// A certificate is renewed in three steps. The peers are given the next one, over
// sessions that the present one made, and trust both from then on. When all have it, this
// instance shows it alone. A peer that has seen it forgets the one before. A crash
// between any two leaves both sides with a certificate that the other trusts.

// callCertificate is the method by which a peer is given the next certificate.
const callCertificate = "certificate"

// newCertificate is callCertificate's payload.
type newCertificate struct {
	Certificate string `json:"certificate"` // PEM
}

// identityDir is where key and certificate are.
func (a *agent) identityDir() string { return filepath.Join(a.cfg.StateDir, "identity") }

// RotateCertificate renews this instance's certificate.
func (s *service) RotateCertificate(ctx context.Context) (api.Rotation, error) {
	s.rotating.Lock()
	defer s.rotating.Unlock()
	var out api.Rotation
	peers, _ := s.peers.Status()
	for _, p := range peers {
		if !p.Connected {
			return out, problem.New("peer-away", "peer "+p.Name, "it is not connected, and would refuse this instance when it knows the old certificate alone",
				"hawser peer test "+p.Name).Advise("where it is gone for good: hawser peer remove " + p.Name)
		}
	}
	next, err := peer.NextIdentity(s.identityDir(), s.cfg.Name)
	if err != nil {
		return out, err
	}
	payload, err := json.Marshal(newCertificate{string(next.CertificatePEM())})
	if err != nil {
		return out, err
	}
	for _, p := range peers {
		if _, err := s.peers.Call(ctx, p.Name, "", callCertificate, payload); err != nil {
			return out, problem.New("certificate-not-taken", "peer "+p.Name, "it did not take the new certificate; the old one stays in use", "hawser cert rotate").Advise("when the cause is mended").Because(err)
		}
		out.Peers = append(out.Peers, p.Name)
	}
	if err := peer.UseNext(s.identityDir()); err != nil {
		return out, err
	}
	s.peers.Renew(next)
	s.log.Info("the certificate was renewed", "fingerprint", next.Fingerprint(), "peers", out.Peers)
	out.Certificate = certificateOf(next)
	return out, nil
}

func certificateOf(id *peer.Identity) api.Certificate {
	return api.Certificate{Name: id.Name, Fingerprint: id.Fingerprint(), NotAfter: id.NotAfter(), PEM: string(id.CertificatePEM())}
}

// takeCertificate trusts a peer's next certificate beside the present one.
func (a *agent) takeCertificate(ctx context.Context, from string, payload []byte) error {
	var request newCertificate
	if err := json.Unmarshal(payload, &request); err != nil {
		return fmt.Errorf("read the new certificate: %w", err)
	}
	print, err := peer.Fingerprint([]byte(request.Certificate))
	if err != nil {
		return err
	}
	err = a.changePeer(ctx, from, func(p *catalog.Peer, others []catalog.Peer) error {
		if other := holderOf(request.Certificate, others); other != "" {
			return problem.New("peer-duplicate", "peer "+from, "its new certificate is trusted under the name "+other+" already", "hawser peer list")
		}
		present := certificatesOf(*p)[0]
		if known, err := peer.Fingerprint([]byte(present)); err != nil || known != print {
			p.Certificate = present + request.Certificate
		}
		return nil
	})
	if err == nil {
		a.log.Info("a peer's new certificate is trusted beside the present one", "peer", from, "fingerprint", print)
	}
	return err
}

// renewed forgets the certificates before the one that a peer has shown.
func (a *agent) renewed(ctx context.Context, name, certificate string) {
	err := a.changePeer(ctx, name, func(p *catalog.Peer, _ []catalog.Peer) error {
		if all := certificatesOf(*p); all[len(all)-1] == certificate { // a person may have given another one meanwhile
			p.Certificate = certificate
		}
		return nil
	})
	if err != nil {
		a.log.Warn("a peer's old certificate can't be forgotten yet", "peer", name, "error", err)
	}
}

// changePeer changes what is stored of a peer, and acts upon it.
func (a *agent) changePeer(ctx context.Context, name string, change func(p *catalog.Peer, others []catalog.Peer) error) error {
	return a.changePeers(ctx, func(tx pgx.Tx, all []catalog.Peer) error {
		i := slices.IndexFunc(all, func(p catalog.Peer) bool { return p.Name == name })
		if i < 0 {
			return api.PeerNotFound(name, namesOf(all)...)
		}
		p := all[i]
		if err := change(&p, slices.Delete(all, i, i+1)); err != nil {
			return err
		}
		return catalog.PutPeer(ctx, tx, p)
	})
}

// certificatesOf are a peer's certificates, at least one. There are several while it
// renews its own.
func certificatesOf(p catalog.Peer) []string {
	var out []string
	for rest := []byte(p.Certificate); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		out = append(out, string(pem.EncodeToMemory(block)))
	}
	if len(out) == 0 {
		return []string{p.Certificate} // the peer's status tells what is wrong with it
	}
	return out
}
