package peer

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// Status is a trusted peer as it is now.
type Status struct {
	Name           string
	Fingerprint    string // of the certificate; of the one in use, when there are two
	CertificatePEM string
	Address        string // where it is dialled; "": it dials us
	Connected      bool
	Dialled        bool      // by us
	Since          time.Time // connected or not connected since
	Remote         string    // the other end's address
	Version        string    // of its agent
	RTT            time.Duration
	BytesIn        uint64           // on the wire, since Run began
	BytesOut       uint64           //
	Problem        *problem.Problem // why it is not connected
}

// Refused is somebody who was turned away. What the stranger claims is not proved.
type Refused struct {
	Name        string // claimed
	Fingerprint string // of the certificate that was shown; "" where it did not come to that
	Address     string // the last it came from
	Problem     *problem.Problem
	At          time.Time // the last time
	Count       int
}

const (
	// maxRefused bounds how many strangers are remembered.
	maxRefused = 32
	// refusedQuiet is how long the same stranger is not logged again.
	refusedQuiet = time.Minute
)

// Status returns the trusted peers by name, and the strangers that were refused
// lately, the latest first.
func (n *Node) Status() ([]Status, []Refused) {
	n.mu.Lock()
	defer n.mu.Unlock()
	peers := make([]Status, 0, len(n.peers))
	for _, name := range n.names() {
		peers = append(peers, n.peers[name].status())
	}
	refused := slices.Clone(n.refused)
	slices.Reverse(refused)
	return peers, refused
}

func (r *remote) status() Status {
	s := Status{
		Name: r.name, CertificatePEM: r.pem, Address: r.address, Since: r.since,
		BytesIn: r.in, BytesOut: r.out, Problem: r.problem(),
	}
	if len(r.prints) > 0 {
		s.Fingerprint = r.prints[0]
	}
	if live := r.session; live != nil {
		s.Connected, s.Dialled, s.Version, s.Fingerprint = true, live.dialled, live.version, live.print
		s.Remote = live.wire.RemoteAddr().String()
		s.RTT = time.Duration(live.rtt.Load())
		s.BytesIn += live.wire.in.Load()
		s.BytesOut += live.wire.out.Load()
	}
	return s
}

// problem is why there is no session, nil while there is one.
func (r *remote) problem() *problem.Problem {
	switch {
	case r.session != nil:
		return nil
	case r.unfit != nil && len(r.prints) == 0:
		return r.unfit
	case r.last != nil:
		return r.last
	case r.address == "":
		return problem.New("peer-awaited", "peer "+shown(r.name), "it has not connected yet, and no address is known at which to dial it",
			"on "+shown(r.name)+": hawser peer add FILE --address HOST:PORT, with the address of this instance; or the other way round").Retry()
	}
	return problem.New("peer-connecting", "peer "+shown(r.name), "it is being dialled", "none: wait a moment").Retry()
}

// note remembers why there is no session. It is logged when it is another reason.
func (n *Node) note(r *remote, p *problem.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.session != nil {
		return
	}
	if r.last == nil || r.last.Code != p.Code || r.last.Cause != p.Cause {
		n.log.Warn("peer can't be connected", "peer", r.name, "code", p.Code, "cause", p.Cause, "remedy", p.Remedy, "error", p.Err)
	}
	r.last = p
}

// turnedAway remembers a stranger. One who comes again is counted.
func (n *Node) turnedAway(who Refused) {
	n.mu.Lock()
	defer n.mu.Unlock()
	who.At, who.Count = time.Now(), 1
	quiet := false
	host, _, _ := net.SplitHostPort(who.Address)
	i := slices.IndexFunc(n.refused, func(r Refused) bool {
		before, _, _ := net.SplitHostPort(r.Address)
		return r.Fingerprint == who.Fingerprint && r.Problem.Code == who.Problem.Code && (who.Fingerprint != "" || before == host)
	})
	if i >= 0 {
		who.Count += n.refused[i].Count
		quiet = who.At.Sub(n.refused[i].At) < refusedQuiet
		n.refused = slices.Delete(n.refused, i, i+1)
	}
	n.refused = append(n.refused, who)
	if len(n.refused) > maxRefused {
		n.refused = slices.Delete(n.refused, 0, 1)
	}
	if !quiet {
		n.log.Warn("a connection was refused", "claims", who.Name, "fingerprint", who.Fingerprint, "address", who.Address,
			"code", who.Problem.Code, "cause", who.Problem.Cause, "remedy", who.Problem.Remedy)
	}
}

// spoiled takes note of a connection whose handshake failed. One that closes
// without a word, as port scans and health checks do, is not worth a note.
func (n *Node) spoiled(w *wire, err error) error {
	var notTLS *errTLS
	var record tls.RecordHeaderError
	if w.in.Load() == 0 && closed(err) || n.running.Err() != nil {
		return err
	}
	address := w.RemoteAddr().String()
	host, _, _ := net.SplitHostPort(address)
	object := "connection from " + host
	var p *problem.Problem
	switch {
	case errors.As(err, &record):
		p = problem.New("not-tls", object, "it does not speak TLS", "only agents may dial this port; if one does, something between changes its bytes")
	case timedOut(err):
		p = problem.New("handshake-timeout", object, "it did not complete the handshake in time", "if it is a peer: hawser peer test there")
	case errors.As(err, &notTLS):
		p = problem.New("not-hawser", object, "it is not an agent: "+word(notTLS.err.Error()), "only agents may dial this port")
	default:
		p = problem.New("handshake-failed", object, "it broke the handshake off", "if it is a peer: hawser peer test there")
	}
	n.turnedAway(Refused{Address: address, Problem: p.Because(err)})
	return err
}
