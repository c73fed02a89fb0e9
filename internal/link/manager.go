// Package link makes, runs and ends links. It carries out what link/role decides,
// owns the goroutines of every link, and adds up the checks of the packages below
// it into one validation.
//
// A link is known on both sides by the same name and id. What it is doing is told
// by Status; what it has to do is decided by link/role alone. This package must
// never write to a user's table itself: apply and seed do.
package link

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/peer"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Peers is what a link needs of the connection to the other instances.
type Peers interface {
	Call(ctx context.Context, peer, link, method string, payload []byte) ([]byte, error)
	Open(ctx context.Context, peer, link, kind string) (peer.ClientStream, error)
	Connected(peer string) <-chan struct{}
}

// Config is what a manager works with.
type Config struct {
	Instance    string // this instance's name
	Server      *postgres.Server
	Store       *Store
	Peers       Peers
	StateDir    string
	SeedWorkers int
	Memory      int   // bytes for changes under way, of all links
	MaxWAL      int64 // bytes that a link may hold back on the primary; 0 sets no bound
	Log         *slog.Logger
}

// Manager holds the links of one instance. Its methods may be called from any
// goroutine once Run has begun.
type Manager struct {
	cfg   Config
	store *Store
	watch *capture.Watch  // of the databases that this side is primary of
	ctx   context.Context // Run's
	end   context.CancelCauseFunc
	ready chan struct{} // closed when the links are loaded

	mu    sync.Mutex
	links map[string]*link
	busy  map[string]bool  // names that are being created or dropped
	gates map[string]turns // by database

	granting sync.RWMutex // guards grants; nothing else is taken under it
	grants   map[string]grant.Grant

	swap sync.Mutex // held while a failover of any link begins
	work crew       // what replaces or ends a link on its own account
}

// NewManager returns a manager that has touched nothing yet.
func NewManager(cfg Config) *Manager {
	return &Manager{cfg: cfg, store: cfg.Store, watch: capture.NewWatch(cfg.Server), ready: make(chan struct{}),
		links: map[string]*link{}, busy: map[string]bool{}, gates: map[string]turns{}}
}

// share is how many bytes of changes each link may gather, and as many again may be on
// their way to the server. It is a sixteenth of the memory: the garbage of what was
// written needs the rest.
func (m *Manager) share() int {
	const least, most = 128 << 10, 16 << 20
	m.mu.Lock()
	defer m.mu.Unlock()
	return min(most, max(least, m.cfg.Memory/16/max(1, len(m.links))))
}

// Run starts every link and returns when ctx has ended and all have stopped. With
// CodeRestored it ends by itself, and is to be run anew by another manager.
func (m *Manager) Run(ctx context.Context) error {
	ctx, m.end = context.WithCancelCause(ctx)
	defer m.end(nil)
	m.ctx = ctx
	var records []catalog.Link
	err := m.store.Do(ctx, func(conn *pgx.Conn) (err error) {
		records, err = catalog.Links(ctx, conn)
		return err
	})
	if err != nil {
		return err
	}
	for _, rec := range records {
		if err := m.load(rec); err != nil {
			return err
		}
	}
	// Only now: one that begins to run asks whether another one closes its database.
	for _, l := range m.all() {
		m.adopt(l)
	}
	m.store.keepTo(m.notRestored)
	close(m.ready)
	for _, l := range m.all() {
		// The agent may have ended between a failover and what it means to the others.
		if side, _ := l.now(); side.Role == role.Secondary {
			m.primaryMoved(l)
		}
	}
	<-ctx.Done()
	ended := m.all()
	for _, l := range ended {
		l.halt()
	}
	m.work.Wait()
	for _, l := range m.all() {
		if !slices.Contains(ended, l) {
			l.halt()
		}
	}
	return context.Cause(ctx)
}

// CodeRestored is of a catalog that was put back to an earlier time under a running agent.
const CodeRestored = "catalog-restored"

// notRestored ends the manager when the catalog has an earlier term than one of its links:
// terms only rise, and none is acted on before it is stored. What the links hold in memory
// is of a time that PostgreSQL knows nothing of.
func (m *Manager) notRestored(ctx context.Context, conn *pgx.Conn) error {
	records, err := catalog.Links(ctx, conn)
	if err != nil {
		return err
	}
	for _, rec := range records {
		stored, err := sideOf(rec)
		if err != nil {
			return err
		}
		m.mu.Lock()
		l := m.links[rec.Name]
		m.mu.Unlock()
		if l == nil || l.rec.ID != rec.ID {
			continue
		}
		if side, _ := l.now(); stored.Term < side.Term {
			p := problem.New(CodeRestored, "link "+rec.Name,
				fmt.Sprintf("PostgreSQL was put back to a state from before a failover: the link was in term %d, and is stored in term %d; the agent begins anew by what is stored", side.Term, stored.Term),
				"hawser link show "+rec.Name).Advise("it tells what the link stands for then").Retry()
			m.end(p)
			return p
		}
	}
	return nil
}

func (m *Manager) all() []*link {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.links))
}

// sideOf is the stored state of this side of a link.
func sideOf(rec catalog.Link) (side role.State, err error) {
	if err := json.Unmarshal(rec.Side, &side); err != nil {
		return side, fmt.Errorf("read the role of link %s: %w", rec.Name, err)
	}
	return side, nil
}

// load takes in a stored link.
func (m *Manager) load(rec catalog.Link) error {
	side, err := sideOf(rec)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.links[rec.Name] = newLink(m, rec, side)
	return nil
}

// adopt starts a link that was loaded. One that was being made or dropped when the
// agent ended is removed, and the other side is told.
func (m *Manager) adopt(l *link) {
	l.start()
	if l.rec.Progress != catalog.Running {
		l.log.Warn("the agent stopped while the link was "+string(l.rec.Progress)+": removing it", "progress", l.rec.Progress)
		m.finishSoon(l)
	}
}

// find returns a link by name once the links are loaded.
func (m *Manager) find(name string) (*link, error) {
	select {
	case <-m.ready:
	default:
		return nil, errStarting(m.cfg.Instance)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.links[name]; l != nil {
		return l, nil
	}
	return nil, notFound(name).Meant(problem.Nearest(name, slices.Sorted(maps.Keys(m.links))))
}

func errStarting(instance string) error {
	return problem.New("starting", "instance "+instance, "the agent is starting", "").Advise("wait a moment").Retry()
}

func notFound(name string) *problem.Problem {
	return problem.New("link-not-found", "link "+name, "there is no link of this name on this instance", "hawser link list")
}

// List returns every link's status, by name.
func (m *Manager) List(ctx context.Context) []Status {
	links := m.all()
	out := make([]Status, len(links))
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() { out[i] = l.full(ctx) })
	}
	wg.Wait()
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Show returns one link's status.
func (m *Manager) Show(ctx context.Context, name string) (Status, error) {
	l, err := m.find(name)
	if err != nil {
		return Status{}, err
	}
	return l.full(ctx), nil
}

// SetPaused pauses a link or lets it go on. Going on also ends a suspension. The secondary
// comes first: where it can't be asked, nothing changes.
func (m *Manager) SetPaused(ctx context.Context, name string, paused bool) error {
	l, err := m.find(name)
	if err != nil {
		return err
	}
	if side, _ := l.now(); side.Role == role.Primary {
		if err := m.call(ctx, l.rec.Peer, name, callPause, pauseRequest{paused}, nil); err != nil {
			return l.explained(ctx, err)
		}
	}
	return l.pause(ctx, paused)
}

// Failover makes the secondary the primary, with nothing lost.
func (m *Manager) Failover(ctx context.Context, name string, o FailoverOptions) (FailoverResult, error) {
	l, err := m.find(name)
	if err != nil {
		return FailoverResult{}, err
	}
	result, err := l.failover(ctx, o)
	return result, l.explained(ctx, err)
}

// Rejoin makes this side, which was forced out, follow the new primary.
func (m *Manager) Rejoin(ctx context.Context, name string) error {
	l, err := m.find(name)
	if err != nil {
		return err
	}
	return l.rejoin(ctx)
}

// Follow makes this side, a secondary that another link of its database left behind,
// follow the instance that leads the database now.
func (m *Manager) Follow(ctx context.Context, name, primary string) error {
	l, err := m.find(name)
	if err != nil {
		return err
	}
	return m.attach(ctx, l, primary)
}

// Resync copies tables again while the link runs; without names, every table that
// differs from the primary's.
func (m *Manager) Resync(ctx context.Context, name string, tables []string) error {
	l, err := m.find(name)
	if err != nil {
		return err
	}
	return l.explained(ctx, l.resync(ctx, tables))
}

// UsesPeer returns the names of the links with a peer.
func (m *Manager) UsesPeer(peer string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for name, l := range m.links {
		if l.rec.Peer == peer {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out
}

const codeBusy = "link-busy"

func busy(name string) error {
	return problem.New(codeBusy, "link "+name, "it is being created or dropped", "hawser link list").Advise("wait a moment").Retry()
}

func (m *Manager) claimed(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.busy[name]
}

// claim takes a name for an operation that makes or removes a link.
func (m *Manager) claim(name string) (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[name] {
		return nil, busy(name)
	}
	m.busy[name] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.busy, name)
	}, nil
}
