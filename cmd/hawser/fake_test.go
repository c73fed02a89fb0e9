package main

import (
	"context"
	"sync"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
)

// fake is an agent with one instance's worth of everything.
type fake struct {
	mu       sync.Mutex
	links    []api.Link // Link and Links step through them; the last one stays
	looks    int
	onLook   func(look int) // called on each look at links
	err      error          // of every operation
	findings problem.Findings
	verify   api.VerifyReport
	steps    []api.PeerTestStep
	peers    *api.PeerList
	changed  []string // of a peer that is added
	removed  *bool    // of a drop
	untold   bool     // of a drop: the other side
	asked    []any    // options and requests, in order
	copying  func()   // what a resync waits for
}

func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func ptr[T any](v T) *T { return &v }

const testPEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

func (f *fake) ask(v any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, v)
	return f.err
}

func (f *fake) Instance(context.Context) (api.Instance, error) {
	return api.Instance{
		Name: "on-prem", Kind: api.KindServer, Version: "1.2.3", Endpoint: "[::]:5022", Fingerprint: "sha256:0a1b", StartedAt: start().Add(-time.Hour), UptimeSeconds: 3600,
		Postgres: api.Postgres{Version: "15.9", Address: "hawser@db1:5432,db2:5432/postgres", State: api.PostgresRunning, Since: ptr(start().Add(-time.Hour))},
	}, f.err
}

func (f *fake) Certificate(context.Context) (api.Certificate, error) {
	return api.Certificate{Name: "on-prem", Fingerprint: "sha256:0a1b", NotAfter: start().AddDate(10, 0, 0), PEM: testPEM}, f.err
}

func (f *fake) RotateCertificate(context.Context) (api.Rotation, error) {
	c, _ := f.Certificate(context.Background())
	return api.Rotation{Certificate: c, Peers: []string{"mi-east", "mi-west"}}, f.ask("rotate")
}

func (f *fake) Peers(context.Context) (api.PeerList, error) {
	if f.peers != nil {
		return *f.peers, f.err
	}
	return api.PeerList{
		Peers: []api.Peer{
			{Name: "mi-west", Fingerprint: "sha256:77aa", NotAfter: start().AddDate(9, 0, 0), Address: "west.example.com:5022", Connected: true, DialledBy: "us", RemoteAddress: "192.0.2.7:5022",
				Since: ptr(start().Add(-90 * time.Second)), Version: "1.2.3", RoundTripSeconds: ptr(0.0123), BytesSent: 5 << 20, BytesReceived: 700,
				Databases: []string{"*"}, Direction: api.DirectionBoth},
			{Name: "mi-east", Fingerprint: "sha256:88bb", NotAfter: start().AddDate(9, 0, 0), Since: ptr(start().Add(-2 * time.Hour)),
				Databases: []string{"shop", "sales_*"}, Direction: api.DirectionToPeer,
				Cause: problem.New("peer-disconnected", "peer mi-east", "It has not connected for 2 hours.", "Run hawser peer test on-prem there.").Retry()},
		},
		Refused: []api.RefusedPeer{{Name: "stranger", Fingerprint: "sha256:99cc", Address: "203.0.113.9:40000", At: start().Add(-3 * time.Second), Count: 4,
			Cause: problem.New("unknown-certificate", "instance stranger", "Its certificate is not trusted here.", "hawser peer add stranger.pem")}},
	}, f.err
}

func (f *fake) AddPeer(_ context.Context, p api.AddPeer) (api.Peer, error) {
	return api.Peer{Name: p.Name, Fingerprint: "sha256:77aa", NotAfter: start().AddDate(10, 0, 0), Address: p.Address,
		Databases: []string{"shop"}, Direction: p.Direction, Changed: f.changed}, f.ask(p)
}
func (f *fake) SetPeer(_ context.Context, name string, c api.SetPeer) (api.Peer, error) {
	return api.Peer{Name: name, Fingerprint: "sha256:77aa", Address: c.Address, Databases: c.Databases, Direction: c.Direction, Changed: f.changed}, f.ask(c)
}
func (f *fake) RemovePeer(_ context.Context, name string) error { return f.ask(name) }
func (f *fake) TestPeer(_ context.Context, name string) ([]api.PeerTestStep, error) {
	return f.steps, f.ask(name)
}

// look returns the link of this look, and steps on.
func (f *fake) look() []api.Link {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	if f.onLook != nil {
		f.onLook(f.looks)
	}
	if len(f.links) == 0 {
		return []api.Link{synchronized(), seeding(true)}
	}
	l := f.links[0]
	if len(f.links) > 1 {
		f.links = f.links[1:]
	}
	return []api.Link{l}
}

func (f *fake) Links(context.Context) ([]api.Link, error) {
	links := f.look() // may set err
	return links, f.err
}
func (f *fake) Link(_ context.Context, name string) (api.Link, error) {
	for _, l := range f.look() {
		if l.Name == name {
			return l, f.err
		}
	}
	return api.Link{}, problem.New("link-not-found", "link "+name, "there is no link of this name on this instance", "hawser link list")
}
func (f *fake) ValidateLink(_ context.Context, s api.LinkSpec) (problem.Findings, error) {
	return f.findings, f.ask(s)
}
func (f *fake) CreateLink(_ context.Context, s api.LinkSpec) (api.Link, error) {
	if len(f.findings.Blocking()) > 0 {
		return api.Link{}, &api.Blocked{Findings: f.findings}
	}
	l := seeding(false)
	l.Findings = f.findings
	return l, f.ask(s)
}
func (f *fake) PauseLink(_ context.Context, name string) error                { return f.ask(name) }
func (f *fake) ResumeLink(_ context.Context, name string) error               { return f.ask(name) }
func (f *fake) SetLinkMaxWAL(_ context.Context, _ string, bytes *int64) error { return f.ask(bytes) }
func (f *fake) ResyncLink(context.Context, string, []string) error {
	if f.copying != nil {
		f.copying()
	}
	return nil
}

func (f *fake) FollowLink(context.Context, string, string) error { return nil }
func (f *fake) RejoinLink(context.Context, string) error         { return nil }

func (f *fake) FailoverLink(_ context.Context, name string, o api.FailoverOptions) (api.FailoverResult, error) {
	if o.Check { // it is asked for no more than the way is clear
		return api.FailoverResult{}, f.err
	}
	return failover(), f.ask(o)
}
func (f *fake) VerifyLink(_ context.Context, name string, o api.VerifyOptions) (api.VerifyReport, error) {
	return f.verify, f.ask(o)
}
func (f *fake) DropLink(_ context.Context, name string, o api.DropOptions) (api.DropResult, error) {
	r := api.DropResult{Dropped: name, RemoveReplicaRequested: o.RemoveReplica, ReplicaRemoved: f.removed}
	if f.untold {
		r.Findings = problem.Findings{problem.Warn("peer-not-told", "instance mi-west", "it could not be told", "hawser link drop "+name+" --force")}
	}
	return r, f.ask(o)
}
func (f *fake) Databases(context.Context) ([]api.Database, error) {
	return []api.Database{
		{Name: "shop", Owner: "app", SizeBytes: 3 << 30, ReadOnly: true, Link: "orders", Role: api.RoleSecondary, State: api.StateSynchronized},
		{Name: "Ünïcode \x1b[2J", Owner: "postgres", SizeBytes: 7 << 20},
	}, f.err
}

func synchronized() api.Link {
	return api.Link{
		Name: "orders", ID: "9f86d081884c7d65", Database: "shop", Peer: "mi-west", Role: api.RolePrimary, Term: 3, State: api.StateSynchronized,
		Since: start().Add(-time.Minute), CreatedAt: start().Add(-41 * time.Second), Mode: api.ModeAsync, LagBytes: ptr(uint64(12 << 10)), LagSeconds: ptr(0.0042),
		Position:     api.Position{Sent: 0x16B3748, Received: 0x16B3748, Durable: 0x16B3700, Visible: 0x16B3700},
		WALHeldBytes: ptr(uint64(1 << 20)), Slot: "hawser_9f86d081884c7d65",
		Seeding:  &api.Seeding{BytesTotal: 2 << 30, BytesDone: 2<<30 - 5, RowsTotal: 3_400_000, RowsDone: 3_412_345, TablesTotal: 9, TablesDone: 9, ETASeconds: ptr(0.0)},
		Failover: ptr(failover()),
	}
}

func seeding(known bool) api.Link {
	l := synchronized()
	l.Name, l.ID, l.State, l.Term, l.Failover, l.LagBytes, l.LagSeconds, l.WALHeldBytes = "orders", "1f86d081884c7d65", api.StateSeeding, 1, nil, nil, nil, nil
	l.Cause = problem.Noted("copying", "", "The initial copy runs.")
	l.Seeding = &api.Seeding{BytesTotal: 2 << 30, BytesDone: 1 << 30, RowsTotal: 3_400_000, RowsDone: 1_700_000, TablesTotal: 3, TablesDone: 1, RateBytesPerSecond: 98 << 20, ETASeconds: ptr(10.4)}
	if known {
		l.Name, l.Database = "billing", "Bills"
		l.Seeding.Tables = []api.TableProgress{
			{Schema: "public", Name: "invoice", State: api.TableLive, BytesTotal: 1 << 29, BytesDone: 1 << 29, RowsTotal: 900_000, RowsDone: 912_345},
			{Schema: "public", Name: `My "Table"`, State: api.TableCopying, BytesTotal: 3 << 29, BytesDone: 1 << 29, RowsTotal: -1, RowsDone: 787_655},
			{Schema: "öl", Name: "stand", State: api.TablePending, BytesTotal: 8192},
		}
		l.Findings = problem.Findings{problem.Warn("unlogged-table", "table public.cache", "Logical decoding does not carry unlogged tables.", "ALTER TABLE public.cache SET LOGGED;")}
	}
	return l
}

func catchingUp() api.Link {
	l := seeding(false)
	l.State, l.LagBytes, l.LagSeconds, l.WALHeldBytes, l.Cause = api.StateCatchingUp, ptr(uint64(30<<20)), ptr(1.5), ptr(uint64(48<<20)), nil
	return l
}

func suspended() api.Link {
	l := catchingUp()
	l.State = api.StateSuspended
	l.Cause = problem.New("extension-missing", "extension postgis", "The replica's server lacks it.", "apt-get install postgresql-15-postgis-3")
	return l
}

func failover() api.FailoverResult {
	return api.FailoverResult{
		Link: "orders", OldPrimary: "mi-west", NewPrimary: "on-prem", Term: 3, WriteOutageSeconds: 0.183, TotalSeconds: 1.92, StartedAt: start().Add(-10 * time.Second), FinishedAt: ptr(start().Add(-8 * time.Second)),
		Phases: []api.FailoverPhase{{Name: "prepare", Seconds: 1.7}, {Name: "fence", Seconds: 0.02}, {Name: "drain", Seconds: 0.1}, {Name: "open", Seconds: 0.06}},
	}
}

func someFindings() problem.Findings {
	return problem.Findings{
		problem.Warn("unlogged-table", "table public.cache", "Logical decoding does not carry unlogged tables.", "ALTER TABLE public.cache SET LOGGED;"),
		problem.New("wal-level", "setting wal_level", "It is replica; logical decoding needs logical.", "ALTER SYSTEM SET wal_level = logical;\n-- then restart PostgreSQL"),
		problem.Noted("no-standby", "", "The server has no standby."),
		problem.New("slots-full", "setting max_replication_slots", "All 10 slots are taken.", "ALTER SYSTEM SET max_replication_slots = 20;"),
	}
}
