// Package agent is the one process of an instance: its configuration, its
// listeners, and the wiring of all other packages.
//
// What it decides by itself is only the order of things: PostgreSQL first, then
// the catalog, then the doors (API and peers), then the links; and back again at
// the end. It must never hold logic that a package below it could hold.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/link"
	"github.com/hawser/hawser/internal/peer"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Run is the agent until ctx ends. A managed PostgreSQL is started first and
// stopped last. What ends it otherwise is returned, and for the caller to tell. An agent
// that can't begin stops the one that it started, but where the reason is another agent:
// it is that one's.
func Run(ctx context.Context, cfg Config, version string) error {
	log := cfg.Log.Logger(os.Stderr).With("instance", cfg.Name)
	log.Info("agent starts", "version", version, "config", cfg)
	err := runOnce(ctx, cfg, version, log)
	for restored(err) && ctx.Err() == nil {
		log.Warn("the agent begins anew", "cause", err)
		err = runOnce(ctx, cfg, version, log)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	if err == nil {
		log.Info("agent ended, as it was asked to")
	}
	return err
}

func runOnce(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
	a := &agent{cfg: cfg, version: version, log: log, started: time.Now()}
	defer func() {
		if a.state != nil { // last: nobody else begins before all has ended
			a.state.release()
		}
	}()
	if err := a.open(ctx); err != nil {
		a.abandon(err)
		return err
	}
	defer a.close()
	return a.serve(ctx)
}

// abandon leaves nothing running that an agent started which could not begin.
func (a *agent) abandon(why error) {
	if a.store != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		a.store.Close(ctx)
	}
	if p, ok := problem.As(why); ok && p.Code == link.CodeAnotherAgent || a.cluster == nil || !a.cluster.Started() {
		return
	}
	a.stopCluster()
}

// restored tells that PostgreSQL was put back to an earlier time: all that the agent knows
// is to be read again.
func restored(err error) bool {
	p, ok := problem.As(err)
	return ok && p.Code == link.CodeRestored
}

// agent is what one of its runs owns.
type agent struct {
	cfg     Config
	version string
	log     *slog.Logger
	started time.Time

	state    *stateDir
	cluster  *postgres.Cluster // nil: a server that somebody else runs
	server   *postgres.Server
	store    *link.Store
	peers    *peer.Node
	links    *link.Manager
	api      *api.Server
	rotating sync.Mutex // held while the certificate is renewed
	trusting sync.Mutex // held while whom to trust is changed and acted upon
}

// open makes everything that serve needs, up to the listening doors.
func (a *agent) open(ctx context.Context) (err error) {
	if a.state, err = holdStateDir(a.cfg.StateDir); err != nil {
		return err
	}
	if err := peer.CheckIdentity(a.identityDir(), a.cfg.Name); err != nil { // before the catalog is this name's
		return err
	}
	if err := a.openPostgres(ctx); err != nil {
		return err
	}
	a.store = link.NewStore(a.server)
	if err := a.migrate(ctx); err != nil {
		return err
	}
	// Now: a name that the catalog refuses is to get no certificate.
	identity, err := peer.LoadOrCreateIdentity(a.identityDir(), a.cfg.Name)
	if err != nil {
		return err
	}
	a.peers, err = peer.New(peer.Config{
		Identity: identity, Trust: trust{a}, Handler: handler{a}, Listen: a.cfg.Endpoint.Listen, Version: a.version, Log: a.log,
		Renewed: a.renewed,
	})
	if err != nil {
		return err
	}
	a.links = link.NewManager(link.Config{
		Instance: a.cfg.Name, Server: a.server, Store: a.store, Peers: a.peers,
		StateDir: a.cfg.StateDir, SeedWorkers: a.cfg.Limits.SeedWorkers, Memory: int(a.cfg.Limits.Memory), MaxWAL: int64(a.cfg.Limits.WALHeld), Log: a.log,
	})
	if err := a.readGrants(ctx); err != nil {
		return err
	}
	token := ""
	if a.cfg.API.Listen != "" {
		if token, err = api.LoadOrCreateToken(a.cfg.API.TokenFile); err != nil {
			return err
		}
	}
	a.api, err = api.Listen(api.Config{
		Service: &service{a}, Version: a.version, Socket: a.cfg.Socket, Listen: a.cfg.API.Listen, Token: token, Log: a.log,
	})
	return err
}

func (a *agent) openPostgres(ctx context.Context) (err error) {
	m := a.cfg.Postgres.Managed
	if m == nil {
		a.server, err = postgres.Open(string(a.cfg.Postgres.Connection))
		return err
	}
	a.cluster, err = postgres.NewCluster(postgres.ClusterConfig{
		DataDir: m.DataDir, Port: m.Port, ListenAddresses: m.ListenAddresses, BinDir: m.BinDir, RunAs: m.RunAs,
		Settings: m.Settings, Log: a.log,
	})
	if err != nil {
		return err
	}
	if err := a.cluster.Ensure(ctx); err != nil {
		return err
	}
	a.server, err = a.cluster.Server()
	return err
}

// migrate waits for a server that is on its way up, and for nothing else.
func (a *agent) migrate(ctx context.Context) error {
	var said link.Troubles
	for wait, tried := link.NewBackoff(), 0; ; tried++ {
		err := a.store.Migrate(ctx, a.cfg.Name)
		if p, ok := problem.As(err); !ok || !p.Retryable || p.Code == link.CodeAnotherAgent {
			if err == nil && tried > 0 {
				a.log.Info("PostgreSQL can be reached", "tries", tried+1)
			}
			return err
		}
		const msg = "PostgreSQL can't be reached yet"
		a.log.Log(ctx, said.Level(msg, err, time.Now()), msg, "error", err)
		if !wait.Sleep(ctx) {
			return ctx.Err()
		}
	}
}

func (a *agent) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.peers.Run(ctx) })
	g.Go(func() error { return a.links.Run(ctx) })
	g.Go(func() error { return a.api.Serve(ctx) })
	if a.cluster != nil {
		g.Go(func() error { return a.cluster.Watch(ctx) })
	}
	a.log.Info("agent is ready", "endpoint", a.peers.Addr(), "socket", a.cfg.Socket, "fingerprint", a.peers.Identity().Fingerprint())
	return g.Wait()
}

// stopWithin bounds an orderly shutdown of a managed PostgreSQL.
const stopWithin = time.Minute

func (a *agent) close() {
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	_ = a.api.Close()
	a.store.Close(ctx)
	if a.cluster != nil {
		a.stopCluster()
	}
}

func (a *agent) stopCluster() {
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	if err := a.cluster.Stop(ctx); err != nil {
		a.log.Error("PostgreSQL did not stop", "error", err)
	}
}

// handler passes the peers' calls on to the links. It exists since the peers are
// made before the links.
type handler struct{ a *agent }

func (h handler) Call(ctx context.Context, from, link, method string, payload []byte) ([]byte, error) {
	if method == callCertificate {
		return nil, h.a.takeCertificate(ctx, from, payload)
	}
	return h.a.links.Call(ctx, from, link, method, payload)
}

func (h handler) Stream(ctx context.Context, from, link, kind string, s peer.Stream) error {
	return h.a.links.Stream(ctx, from, link, kind, s)
}

// do runs f on the connection to the maintenance database.
func (a *agent) do(ctx context.Context, f func(conn *pgx.Conn) error) error {
	err := a.store.Do(ctx, f)
	if postgres.SessionEnded(err) {
		return problem.New("server-not-ready", "server "+a.server.String(), "PostgreSQL ended the connection, as it does when it stops or restarts", "hawser status").Because(err).Retry()
	}
	return err
}

// trust tells the peers whom the catalog trusts.
type trust struct{ a *agent }

func (t trust) Trusted(ctx context.Context) ([]peer.Trusted, error) {
	var out []peer.Trusted
	err := t.a.do(ctx, func(conn *pgx.Conn) error {
		peers, err := catalog.Peers(ctx, conn)
		for _, p := range peers {
			for _, certificate := range certificatesOf(p) {
				out = append(out, peer.Trusted{Name: p.Name, CertificatePEM: certificate, Address: p.Address})
			}
		}
		return err
	})
	return out, err
}
