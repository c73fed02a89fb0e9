package link

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// LeastWAL is the least bound on the WAL that a link holds back: with less, the first
// delay would end it.
const LeastWAL = 64 << 20

// maxWALSetting is what the two sides tell each other of a link's own bound.
type maxWALSetting struct {
	Set   bool   `json:"set"`             // it is an order; otherwise a question
	Bytes *int64 `json:"bytes,omitempty"` // nil: limits.wal_held of the primary's agent; 0: no bound
}

func checkMaxWAL(bytes *int64) *problem.Problem {
	if bytes == nil || *bytes == 0 || *bytes >= LeastWAL {
		return nil
	}
	return problem.New("max-wal-too-small", "the bound on WAL held", bytesText(*bytes)+" would end the link at its first delay",
		"--max-wal 16GiB").Advise("at least " + bytesText(LeastWAL) + ", 0 for no bound, or default for limits.wal_held of the primary's agent")
}

// bound is how much WAL the link may hold back on this side; 0 sets no bound. The caller
// holds mu.
func (l *link) bound() int64 {
	if l.maxWAL != nil {
		return *l.maxWAL
	}
	return max(0, l.m.cfg.MaxWAL)
}

func (l *link) ownMaxWAL() *int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.maxWAL
}

// SetMaxWAL bounds the WAL that a link may hold back on its primary; nil leaves it to
// limits.wal_held of the primary's agent, 0 sets no bound.
func (m *Manager) SetMaxWAL(ctx context.Context, name string, bytes *int64) error {
	l, err := m.find(name)
	if err != nil {
		return err
	}
	if p := checkMaxWAL(bytes); p != nil {
		return p
	}
	setting := maxWALSetting{Set: true, Bytes: bytes}
	if side, _ := l.now(); side.Role == role.Secondary { // the primary's word counts
		if err := m.call(ctx, l.rec.Peer, name, callMaxWAL, setting, nil); err != nil {
			return err
		}
		return l.storeMaxWAL(ctx, bytes)
	}
	if err := l.storeMaxWAL(ctx, bytes); err != nil {
		return err
	}
	// One that is away asks when it is back.
	ctx, cancel := context.WithTimeout(ctx, maxWALWithin)
	defer cancel()
	if err := m.call(ctx, l.rec.Peer, name, callMaxWAL, setting, nil); err != nil {
		l.log.Debug("the secondary was not told of the bound on WAL yet", "error", err)
	}
	return nil
}

// maxWALWithin bounds how long the other side is waited for.
const maxWALWithin = 2 * time.Second

// takeMaxWAL answers the other side.
func (l *link) takeMaxWAL(ctx context.Context, s maxWALSetting) (maxWALSetting, error) {
	if s.Set {
		if p := checkMaxWAL(s.Bytes); p != nil {
			return maxWALSetting{}, p
		}
		if err := l.storeMaxWAL(ctx, s.Bytes); err != nil {
			return maxWALSetting{}, err
		}
	}
	return maxWALSetting{Bytes: l.ownMaxWAL()}, nil
}

func (l *link) storeMaxWAL(ctx context.Context, bytes *int64) error {
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.SetMaxWAL(ctx, conn, l.rec.Name, bytes) })
	if err == nil {
		l.update(func() { l.maxWAL = bytes })
	}
	return err
}

// learnMaxWAL takes over the primary's bound, which counts here after a failover.
func (l *link) learnMaxWAL(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, maxWALWithin)
	defer cancel()
	var theirs maxWALSetting
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callMaxWAL, maxWALSetting{}, &theirs)
	if ours := l.ownMaxWAL(); err == nil && (ours == nil) == (theirs.Bytes == nil) && (ours == nil || *ours == *theirs.Bytes) {
		return
	}
	if err == nil {
		err = l.storeMaxWAL(ctx, theirs.Bytes)
	}
	if err != nil {
		l.log.Debug("the primary's bound on WAL is not known", "error", err)
	}
}
