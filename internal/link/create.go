package link

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// Spec is the link that a person asks for.
type Spec struct {
	Name, Database, Peer string
	Role                 role.Role // of this side
	Filter               filter.Filter
	MaxWAL               *int64 // bytes held back on the primary; nil: its agent's limit, 0: no bound
}

func other(r role.Role) role.Role {
	if r == role.Primary {
		return role.Secondary
	}
	return role.Primary
}

// Create makes a link on both sides. When it fails, nothing is left on either.
// It returns when the link stands; seeding goes on by itself.
func (m *Manager) Create(ctx context.Context, s Spec) error {
	release, err := m.claim(s.Name)
	if err != nil {
		return err
	}
	defer release()
	if p := m.granted(s.Peer, s.Database, wayOf(s.Role)); p != nil {
		return p
	}
	id := newID()
	ours := createRequest{ID: id, Database: s.Database, Role: s.Role, Filter: s.Filter, MaxWAL: s.MaxWAL}
	theirs := createRequest{ID: id, Database: s.Database, Role: other(s.Role), Filter: s.Filter, MaxWAL: s.MaxWAL}
	// The primary goes first: its slot has to exist before anything is copied.
	first := func() (createReply, error) { return m.createHere(ctx, s.Name, s.Peer, ours) }
	second := func(r createReply) (createReply, error) {
		theirs.From, theirs.Settings = r.From, r.Settings
		return m.createThere(ctx, s, theirs)
	}
	if s.Role == role.Secondary {
		first = func() (createReply, error) { return m.createThere(ctx, s, theirs) }
		second = func(r createReply) (createReply, error) {
			ours.From, ours.Settings = r.From, r.Settings
			return m.createHere(ctx, s.Name, s.Peer, ours)
		}
	}
	reply, err := first()
	if err == nil {
		_, err = second(reply)
	}
	if err == nil {
		err = m.call(ctx, s.Peer, s.Name, callStart, struct{}{}, nil)
	}
	if err == nil {
		var l *link
		if l, err = m.find(s.Name); err == nil {
			err = l.startRunning(ctx)
		}
	}
	if err != nil {
		return errors.Join(err, m.undo(context.WithoutCancel(ctx), s, id))
	}
	return nil
}

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (m *Manager) createThere(ctx context.Context, s Spec, r createRequest) (createReply, error) {
	var reply createReply
	err := m.call(ctx, s.Peer, s.Name, callCreate, r, &reply)
	if err == nil && !reply.Equal(s.Filter) {
		err = problem.New("peer-too-old", "instance "+s.Peer, "its agent does not know links that carry some tables alone", "").Advise("run the same version on both sides")
	}
	return reply, err
}

// undo removes a link that was made in part. What the other side has is removed
// by its own drop; if it can't be reached it removes it when it hears of us again.
func (m *Manager) undo(ctx context.Context, s Spec, id string) error {
	err := m.call(ctx, s.Peer, s.Name, callDrop, dropRequest{RemoveReplica: true, Force: true, ID: id}, nil)
	if p, ok := problem.As(err); ok && p.Code == "link-not-found" {
		err = nil
	}
	l, missing := m.find(s.Name)
	if missing != nil {
		return err // the other side's guard sees that nobody makes it any more
	}
	if err == nil {
		_, err = m.dropSide(ctx, l, true)
	}
	if err != nil {
		m.finishSoon(l)
	}
	return err
}

// createSide makes this side of a link that the other side asked for.
func (m *Manager) createSide(ctx context.Context, name, from string, r createRequest) (createReply, error) {
	release, err := m.claim(name)
	if err != nil {
		return createReply{}, err
	}
	defer release()
	return m.createHere(ctx, name, from, r)
}

// createHere records the link first, so that a crash finds what has to be undone.
func (m *Manager) createHere(ctx context.Context, name, peer string, r createRequest) (createReply, error) {
	if _, err := m.find(name); err == nil {
		return createReply{}, taken(name)
	}
	if p := m.unfit(r.Database, r.Role); p != nil {
		return createReply{}, p
	}
	side, err := json.Marshal(role.Initial(r.Role, r.From))
	if err != nil {
		return createReply{}, err
	}
	rec := catalog.Link{Name: name, ID: r.ID, Peer: peer, Database: r.Database, Side: side, Progress: catalog.Creating,
		Tables: r.Tables, ExcludeTables: r.Exclude, MaxWAL: r.MaxWAL}
	var stored bool
	err = m.store.Do(ctx, func(conn *pgx.Conn) (err error) {
		if err = catalog.StoreNewLink(ctx, conn, rec); err != nil {
			return err
		}
		rec, stored, err = catalog.FindLink(ctx, conn, name)
		return err
	})
	if err != nil || !stored {
		return createReply{}, err
	}
	l := newLink(m, rec, role.Initial(r.Role, r.From))
	m.mu.Lock()
	m.links[name] = l
	m.mu.Unlock()
	l.start()
	var reply createReply
	if r.Role == role.Primary {
		reply, err = m.makePrimary(ctx, l)
	} else {
		err = m.makeSecondary(ctx, l, r)
	}
	if err != nil {
		_, undone := m.dropSide(context.WithoutCancel(ctx), l, true)
		if undone != nil {
			m.finishSoon(l)
		}
		return createReply{}, errors.Join(err, undone)
	}
	reply.Filter = r.Filter
	return reply, nil
}

func (m *Manager) makePrimary(ctx context.Context, l *link) (createReply, error) {
	settings, err := schema.DatabaseOf(ctx, m.cfg.Server, l.rec.Database)
	if err != nil {
		return createReply{}, err
	}
	var reply createReply
	if reply.Settings, err = json.Marshal(settings); err != nil {
		return reply, err
	}
	conn, err := l.connectOwn(ctx, "create")
	if err != nil {
		return reply, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		return reply, capture.ByEventTrigger(ctx, conn, err)
	}
	if err := catalog.Join(ctx, conn, l.rec.ID, l.rec.Name); err != nil {
		return reply, err
	}
	if err := capture.Install(ctx, conn, l.rec.ID, l.filter()); err != nil {
		return reply, capture.ByEventTrigger(ctx, conn, err)
	}
	reply.From, err = capture.CreateSlot(ctx, conn, l.rec.ID)
	return reply, err
}

func (m *Manager) makeSecondary(ctx context.Context, l *link, r createRequest) error {
	var settings schema.DatabaseSettings
	if err := json.Unmarshal(r.Settings, &settings); err != nil {
		return fmt.Errorf("read the settings of the primary's database: %w", err)
	}
	created, err := schema.CreateDatabase(ctx, m.cfg.Server, settings, l.rec.ID)
	if err != nil {
		return err
	}
	if created {
		err := m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.SetOwnsDatabase(ctx, conn, l.rec.Name, true) })
		if err != nil {
			return err
		}
		l.update(func() { l.ownsDB = true })
	}
	conn, err := l.connect(ctx, "create")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		return err
	}
	if err := catalog.Join(ctx, conn, l.rec.ID, l.rec.Name); err != nil {
		return err
	}
	if err := catalog.StartSeeding(ctx, conn, l.rec.ID); err != nil {
		return err
	}
	if err := fence.Prepare(ctx, conn, nil); err != nil {
		return err
	}
	return fence.Close(ctx, conn, fence.Sign{Link: l.rec.Name, Primary: l.rec.Peer})
}
