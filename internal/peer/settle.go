package peer

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// aliveWithin is how long a session has to prove that it still answers, when the
// other side dialled again.
const aliveWithin = 2 * time.Second

// settle makes an accepted connection the session, unless the side with the lower
// fingerprint keeps another. After an error the caller closes w.
func (n *Node) settle(ctx context.Context, g *greeting, w *wire, deadline time.Time) error {
	n.mu.Lock()
	r := n.prints[g.print]
	n.mu.Unlock()
	if r == nil {
		return errTrustEnded
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	// A session takes leave before it ends, so nobody else may close its wire.
	adopt := func(d decision) error { stop(); return n.adopt(r, g, w, d) }
	if g.own < g.print {
		return n.decide(ctx, r, g, w.dialled, deadline, adopt)
	}
	var d decision
	if err := hear(g.conn, &d); err != nil {
		return fmt.Errorf("hear the decision: %w", err)
	}
	if !d.Use {
		return errNotUsed
	}
	return adopt(d)
}

var (
	errTrustEnded = errors.New("trust ended meanwhile")
	errRenewed    = errors.New("this instance's certificate was renewed meanwhile")
)

// decide says whether the connection is used. One at a time is decided for a peer,
// so that a number that is told is the highest that was told.
func (n *Node) decide(ctx context.Context, r *remote, g *greeting, dialled bool, deadline time.Time, adopt func(decision) error) error {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case r.claim <- struct{}{}:
	case <-timer.C:
		return errNotUsed
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.claim }()
	n.mu.Lock()
	held := r.session
	n.serial++
	d := decision{Use: true, Epoch: n.epoch, Serial: n.serial}
	n.mu.Unlock()
	if held != nil && held.dialled != dialled && held.alive(aliveWithin) {
		if err := say(g.conn, decision{}); err != nil {
			return err
		}
		return errNotUsed
	}
	if err := say(g.conn, d); err != nil {
		return fmt.Errorf("say the decision: %w", err)
	}
	return adopt(d)
}

// adopt makes the connection the session, and runs it. It replaces an older one.
func (n *Node) adopt(r *remote, g *greeting, w *wire, d decision) error {
	s, err := newSession(g, w, r.name, n.cfg.Handler, n.cfg.idle(), n.log)
	if err != nil {
		return err
	}
	s.epoch, s.serial = d.Epoch, d.Serial
	n.mu.Lock()
	defer n.mu.Unlock()
	held := r.session
	switch {
	case n.peers[r.name] != r || !r.trusts(g.print):
		err = errTrustEnded
	case g.own != n.Identity().Fingerprint():
		err = errRenewed
	case held != nil && held.epoch == d.Epoch && held.serial > d.Serial:
		err = errNotUsed // what was decided later arrived sooner
	case !n.startLocked(func(ctx context.Context) { n.attend(ctx, r, s) }):
		err = context.Canceled
	}
	if err != nil {
		s.end(left(s.peer, leaveReplaced, true))
		return err
	}
	n.detach(r)
	if held != nil {
		n.startLocked(func(context.Context) { held.leave(leaveReplaced) })
	}
	r.session, r.since, r.last = s, s.since, nil
	n.refused.forget(g.print)
	close(n.connectedTo(r.name))
	if len(r.prints) > 1 && s.print == r.prints[len(r.prints)-1] && n.cfg.Renewed != nil {
		certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.cert.Raw}))
		n.startLocked(func(ctx context.Context) { n.cfg.Renewed(ctx, r.name, certificate) })
	}
	n.log.Info("peer connected", "peer", s.peer, "remote", w.RemoteAddr().String(), "dialled_by", dialledBy(s.dialled), "version", s.version)
	return nil
}

func dialledBy(us bool) string {
	if us {
		return "us"
	}
	return "them"
}

// attend runs a session to its end.
func (n *Node) attend(ctx context.Context, r *remote, s *session) {
	s.run(ctx, n.cfg.keepAlive(), func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if r.session == s {
			n.detach(r)
			r.last = s.cause
		}
	})
	n.mu.Lock()
	r.in, r.out = r.in+s.wire.in.Load(), r.out+s.wire.out.Load()
	n.mu.Unlock()
	n.log.Info("peer disconnected", "peer", s.peer, "after", time.Since(s.since).Round(time.Millisecond), "cause", s.cause.Cause)
}

// detach takes the session from a peer. It is called with the mutex held.
func (n *Node) detach(r *remote) {
	if r.session == nil {
		return
	}
	r.session, r.since = nil, time.Now()
	n.connected[r.name] = make(chan struct{})
}
