package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// sibling is what the new primary has to know of a link that it is to take up.
type sibling struct {
	ID, Name, Peer string
	After, Next    frame.Term
	MaxWAL         *int64
	filter.Filter
}

type prepareReply struct {
	Heirs     []string `json:"heirs,omitempty"`      // ids of the siblings that will be taken up
	LockedOut []string `json:"locked_out,omitempty"` // of the request's users
	// Term is what the handoff is to bring: no less than was asked for, and one that this
	// side has neither spent nor refused.
	Term frame.Term `json:"term,omitempty"`
}

// successors are the siblings that can follow a new primary.
func (m *Manager) successors(l *link) []sibling {
	var out []sibling
	for _, s := range m.siblings(l) {
		side, _ := s.now()
		s.mu.Lock()
		runs, maxWAL := s.progress == catalog.Running && s.suspended == nil, s.maxWAL
		s.mu.Unlock()
		if runs && side.Role == role.Primary && side.Phase == role.Steady {
			out = append(out, sibling{s.rec.ID, s.rec.Name, s.rec.Peer, side.Term, side.Following(), maxWAL, s.filter()})
		}
	}
	return out
}

// prepareHeirs makes the slots of the siblings, before this side can take a write. A
// sibling for which that fails is left out, and the failover goes on without it.
func (l *link) prepareHeirs(ctx context.Context, conn *pgx.Conn, r prepareRequest) (prepareReply, error) {
	reply := prepareReply{Term: r.Term}
	if err := l.discardHeirs(ctx); err != nil {
		return reply, err
	}
	l.heirs.Lock()
	defer l.heirs.Unlock()
	for _, s := range r.Siblings {
		if err := l.prepareHeir(ctx, conn, r.Term, s); err != nil {
			if ctx.Err() != nil {
				return reply, ctx.Err()
			}
			l.log.Warn("another link of the database can't be taken up", "sibling", s.Name, "error", err)
			continue
		}
		reply.Heirs = append(reply.Heirs, s.ID)
	}
	return reply, nil
}

func (l *link) prepareHeir(ctx context.Context, conn *pgx.Conn, term frame.Term, s sibling) error {
	if s.Peer == l.m.cfg.Instance {
		return problem.New("peer-is-self", "link "+s.Name, "its secondary is on this instance", "hawser link drop "+s.Name)
	}
	if other := l.m.holds(s.Name, s.ID); other != nil {
		return problem.New("link-exists", "link "+s.Name, "this instance has a link of this name or id, with instance "+other.rec.Peer, "hawser link show "+other.rec.Name)
	}
	l.heirless = false
	// First the record, so that a crash finds the slot.
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		return catalog.PutHeir(ctx, conn, catalog.Heir{ID: s.ID, Link: l.rec.Name, Name: s.Name, Peer: s.Peer, Term: term, After: s.After, Next: s.Next,
			Tables: s.Tables, ExcludeTables: s.Exclude, MaxWAL: s.MaxWAL})
	})
	if err == nil {
		err = capture.Install(ctx, conn, s.ID, s.Filter)
	}
	if err == nil {
		err = capture.DropSlot(ctx, conn, s.ID)
	}
	if err == nil {
		_, err = capture.CreateSlot(ctx, conn, s.ID)
	}
	if err != nil {
		return errors.Join(err, l.discardHeir(context.WithoutCancel(ctx), s.ID))
	}
	return nil
}

// holds returns the link of that name or id.
func (m *Manager) holds(name, id string) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.links {
		if l.rec.Name == name || l.rec.ID == id {
			return l
		}
	}
	return nil
}

// heirsOf returns the links that are to be taken up with this one. The caller holds heirs.
func (l *link) heirsOf(ctx context.Context) (heirs []catalog.Heir, err error) {
	if l.heirless {
		return nil, nil
	}
	err = l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		heirs, err = catalog.Heirs(ctx, conn, l.rec.Name)
		return err
	})
	l.heirless = err == nil && len(heirs) == 0
	return heirs, err
}

// discardHeirs takes back what prepareHeirs made. What was inherited is not among it.
func (l *link) discardHeirs(ctx context.Context) error {
	l.heirs.Lock()
	defer l.heirs.Unlock()
	heirs, err := l.heirsOf(ctx)
	for _, h := range heirs {
		if err == nil {
			err = l.discardHeir(ctx, h.ID)
		}
	}
	return err
}

func (l *link) discardHeir(ctx context.Context, id string) error {
	conn, err := l.connectOwn(ctx, "heirs")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := capture.DropSlot(ctx, conn, id); err != nil {
		return err
	}
	if err := capture.Uninstall(ctx, conn, id, false); err != nil {
		return err
	}
	return l.m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.DeleteHeir(ctx, conn, id) })
}

// inherit takes up the siblings after this side took over by a handoff. Each is taken
// up once: its record comes and its place in the list of heirs goes in one
// transaction. It may be called at any time.
func (l *link) inherit(ctx context.Context) error {
	side, _ := l.now()
	if side.Role != role.Primary || side.Phase == role.Promoting {
		return nil
	}
	l.heirs.Lock()
	defer l.heirs.Unlock()
	heirs, err := l.heirsOf(ctx)
	if err != nil || len(heirs) == 0 {
		return err
	}
	for _, h := range heirs {
		if side.Forced || h.Term != side.Term || l.m.holds(h.Name, h.ID) != nil {
			// Of a failover that was taken back, and then came a forced one.
			err = l.discardHeir(ctx, h.ID)
		} else {
			err = l.inheritOne(ctx, side, h)
		}
		if err != nil {
			return fmt.Errorf("take up link %s: %w", h.Name, err)
		}
	}
	return nil
}

func (l *link) inheritOne(ctx context.Context, side role.State, h catalog.Heir) error {
	release, err := l.m.claim(h.Name)
	if err != nil {
		return err
	}
	defer release()
	conn, err := l.connectOwn(ctx, "inherit")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := catalog.Join(ctx, conn, h.ID, h.Name); err != nil {
		return err
	}
	state := role.Inherited(role.Handoff{Link: l.rec.ID, Term: h.Term}, h.After, h.Next, side.Position)
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	rec := catalog.Link{Name: h.Name, ID: h.ID, Peer: h.Peer, Database: l.rec.Database, Side: data, Progress: catalog.Running,
		Tables: h.Tables, ExcludeTables: h.ExcludeTables, MaxWAL: h.MaxWAL}
	err = l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := catalog.InsertLink(ctx, tx, rec); err != nil {
				return err
			}
			if err := catalog.DeleteHeir(ctx, tx, h.ID); err != nil {
				return err
			}
			rec, _, err = catalog.FindLink(ctx, tx, h.Name)
			return err
		})
	})
	if err != nil {
		return err
	}
	taken := newLink(l.m, rec, state)
	l.m.mu.Lock()
	l.m.links[h.Name] = taken
	l.m.mu.Unlock()
	taken.start()
	taken.log.Info("taken up from the old primary of the database", "by", l.rec.Name, "term", state.Term)
	return nil
}
