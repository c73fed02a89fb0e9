package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/link"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/seed"
	"github.com/hawser/hawser/internal/verify"
)

// service answers the API from the packages below. It translates, no more.
type service struct{ *agent }

// askWithin bounds how long an answer waits for a PostgreSQL that does not.
const askWithin = 3 * time.Second

func (s *service) Instance(ctx context.Context) (api.Instance, error) {
	i := api.Instance{
		Name: s.cfg.Name, Kind: api.KindServer, Version: s.version, Endpoint: s.peers.Addr().String(), Fingerprint: s.peers.Identity().Fingerprint(),
		StartedAt: s.started, UptimeSeconds: time.Since(s.started).Seconds(),
		Postgres: api.Postgres{Address: s.server.String(), State: api.PostgresRunning},
	}
	if s.cluster != nil {
		i.Kind, i.Tier = api.KindManaged, api.TierGeneralPurpose
		i.Postgres.Address = fmt.Sprintf("%s:%d", s.cfg.Postgres.Managed.ListenAddresses, s.cfg.Postgres.Managed.Port)
		status := s.cluster.Status()
		i.Postgres.Restarts = status.Restarts
		if !status.Since.IsZero() {
			i.Postgres.Since = &status.Since
		}
		if !status.Running {
			i.Postgres.State, i.Postgres.Cause = api.PostgresStarting, status.Problem
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	info, err := s.server.Info(ctx)
	if err != nil {
		i.Postgres.Cause = problem.Of(err, "server-unreachable")
		if i.Postgres.State == api.PostgresRunning {
			i.Postgres.State = api.PostgresUnreachable
		}
		return i, nil
	}
	i.Postgres.Version = info.VersionText
	return i, nil
}

func (s *service) Certificate(context.Context) (api.Certificate, error) {
	return certificateOf(s.peers.Identity()), nil
}

func (s *service) Links(ctx context.Context) ([]api.Link, error) {
	statuses := s.links.List(ctx)
	out := make([]api.Link, len(statuses))
	for i, l := range statuses {
		out[i] = linkOf(l)
		if out[i].Seeding != nil {
			out[i].Seeding.Tables = nil
		}
	}
	return out, nil
}

func (s *service) Link(ctx context.Context, name string) (api.Link, error) {
	l, err := s.links.Show(ctx, name)
	if err != nil {
		return api.Link{}, err
	}
	return linkOf(l), nil
}

func linkOf(l link.Status) api.Link {
	out := api.Link{
		Name: l.Name, ID: l.ID, Database: l.Database, Peer: l.Peer, Role: api.Role(l.Role), Term: l.Term,
		State: api.State(l.State), Cause: l.Cause, Since: l.Since, CreatedAt: l.CreatedAt, Mode: api.ModeAsync,
		Position: api.Position{Sent: l.Sent, Received: l.Ack.Received, Durable: l.Ack.Durable, Visible: l.Ack.Visible},
		Slot:     "hawser_" + l.ID, Findings: l.Notes, Tables: l.Tables, ExcludeTables: l.ExcludeTables, MaxWALBytes: unsigned(l.MaxWAL), WALHeldBytes: unsigned(l.WALHeld),
	}
	if l.LagKnown {
		out.LagBytes, out.LagSeconds = &l.LagBytes, &l.LagSeconds
	} else {
		out.LagBytes = unsigned(l.Behind)
	}
	if l.Seeding != nil {
		out.Seeding = seedingOf(*l.Seeding)
	}
	var last link.FailoverResult
	if len(l.Failover) > 0 && json.Unmarshal(l.Failover, &last) == nil {
		result := failoverOf(last)
		out.Failover = &result
	}
	return out
}

func unsigned(bytes *int64) *uint64 {
	if bytes == nil {
		return nil
	}
	n := uint64(max(*bytes, 0))
	return &n
}

func seedingOf(p seed.Progress) *api.Seeding {
	out := &api.Seeding{
		BytesTotal: p.Bytes, BytesDone: p.BytesDone, RowsTotal: p.Rows, RowsDone: p.RowsDone,
		TablesTotal: p.Tables, TablesDone: p.TablesDone, RateBytesPerSecond: p.BytesPerSecond,
	}
	if p.Remaining > 0 {
		eta := p.Remaining.Seconds()
		out.ETASeconds = &eta
	}
	for _, t := range p.Each {
		out.Tables = append(out.Tables, api.TableProgress{
			Schema: t.Schema, Name: t.Name, State: api.TableState(t.State),
			BytesTotal: t.Bytes, BytesDone: t.BytesDone, RowsTotal: t.Rows, RowsDone: t.RowsDone,
		})
	}
	return out
}

func specOf(spec api.LinkSpec) link.Spec {
	r := role.Primary
	if spec.Role == api.RoleSecondary {
		r = role.Secondary
	}
	return link.Spec{Name: spec.Name, Database: spec.Database, Peer: spec.Peer, Role: r, Filter: filter.Filter{Tables: spec.Tables, Exclude: spec.ExcludeTables}, MaxWAL: spec.MaxWALBytes}
}

func (s *service) ValidateLink(ctx context.Context, spec api.LinkSpec) (problem.Findings, error) {
	if err := s.knownPeer(ctx, spec.Peer); err != nil {
		return nil, err
	}
	return s.links.Validate(ctx, specOf(spec))
}

func (s *service) CreateLink(ctx context.Context, spec api.LinkSpec) (api.Link, error) {
	if err := s.knownPeer(ctx, spec.Peer); err != nil {
		return api.Link{}, err
	}
	findings, err := s.links.Validate(ctx, specOf(spec))
	if err != nil {
		return api.Link{}, err
	}
	if len(findings.Blocking()) > 0 {
		return api.Link{}, &api.Blocked{Findings: findings}
	}
	if err := s.links.Create(ctx, specOf(spec)); err != nil {
		return api.Link{}, err
	}
	return s.Link(ctx, spec.Name)
}

func (s *service) knownPeer(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	peers, err := trust{s.agent}.Trusted(ctx)
	if err != nil {
		return err
	}
	known := make([]string, len(peers))
	for i, p := range peers {
		known[i] = p.Name
	}
	if slices.Contains(known, name) {
		return nil
	}
	return api.PeerNotFound(name, known...)
}

func (s *service) PauseLink(ctx context.Context, name string) error {
	return s.links.SetPaused(ctx, name, true)
}

func (s *service) ResumeLink(ctx context.Context, name string) error {
	return s.links.SetPaused(ctx, name, false)
}

func (s *service) FailoverLink(ctx context.Context, name string, o api.FailoverOptions) (api.FailoverResult, error) {
	r, err := s.links.Failover(ctx, name, link.FailoverOptions{Timeout: o.Timeout, Force: o.Force, Check: o.Check})
	if err != nil {
		return api.FailoverResult{}, err
	}
	if o.Check {
		return api.FailoverResult{Link: name}, nil
	}
	return failoverOf(r), nil
}

func (s *service) SetLinkMaxWAL(ctx context.Context, name string, bytes *int64) error {
	return s.links.SetMaxWAL(ctx, name, bytes)
}

func (s *service) RejoinLink(ctx context.Context, name string) error {
	return s.links.Rejoin(ctx, name)
}

func (s *service) FollowLink(ctx context.Context, name, primary string) error {
	return s.links.Follow(ctx, name, primary)
}

func (s *service) ResyncLink(ctx context.Context, name string, tables []string) error {
	return s.links.Resync(ctx, name, tables)
}

func failoverOf(r link.FailoverResult) api.FailoverResult {
	out := api.FailoverResult{
		Link: r.Link, Forced: r.Forced, OldPrimary: r.OldPrimary, NewPrimary: r.NewPrimary, Term: r.Term,
		WriteOutageSeconds: r.Closed, TotalSeconds: r.Total,
		StartedAt: r.At.Add(-time.Duration(r.Total * float64(time.Second))), FinishedAt: &r.At,
	}
	if last := r.LastApplied; last != nil {
		out.LastApplied = &api.LastApplied{Transaction: last.Transaction, Position: last.Position, Time: last.Time}
	}
	for _, p := range r.Phases {
		out.Phases = append(out.Phases, api.FailoverPhase{Name: p.Name, Seconds: p.Seconds})
	}
	for _, p := range schema.TellLockedOut(r.LockedOut, r.OldPrimary, r.NewPrimary) {
		out.Findings = append(out.Findings, p.At("instance "+r.NewPrimary))
	}
	return out
}

func (s *service) VerifyLink(ctx context.Context, name string, o api.VerifyOptions) (api.VerifyReport, error) {
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Timeout)
		defer cancel()
	}
	r, err := s.links.Verify(ctx, name)
	if err != nil {
		return api.VerifyReport{}, err
	}
	return verifyOf(name, s.links.Database(name), r), nil
}

func verifyOf(name, database string, r link.VerifyReport) api.VerifyReport {
	out := api.VerifyReport{Link: name, Equal: r.Equal, Complete: r.Complete, Position: r.Position, At: r.At, Seconds: r.Seconds, Findings: r.Findings}
	for _, t := range r.Tables {
		table := api.VerifyTable{
			Schema: t.Schema, Name: t.Name, Compared: t.Verdict != verify.Unchecked, Equal: t.Verdict == verify.Same,
			RowsPrimary: t.PrimaryRows, RowsSecondary: t.SecondaryRows,
			HashPrimary: t.PrimaryHash.String(), HashSecondary: t.SecondaryHash.String(), Key: t.Key, More: t.More, Problem: differenceOf(name, t),
		}
		for _, d := range t.Differences {
			table.Differences = append(table.Differences, api.VerifyRow(d))
		}
		out.Tables = append(out.Tables, table)
	}
	for _, d := range r.Schema {
		o := api.VerifyObject{Kind: d.Kind, Name: d.Object, Primary: d.Primary, Secondary: d.Secondary, Uncertain: d.Uncertain}
		if !d.Uncertain {
			o.Remedy = postgres.ByHand + " " + cmp.Or(makeEqual(database, d), "…") + ";"
		}
		out.Schema = append(out.Schema, o)
	}
	for _, d := range r.Sequences {
		out.Sequences = append(out.Sequences, api.VerifySequence{Schema: d.Schema, Name: d.Name, Primary: sequenceOf(d.Primary), Secondary: sequenceOf(d.Secondary), Remedy: setSequence(d)})
	}
	for _, t := range r.LeftOut {
		out.LeftOut = append(out.LeftOut, api.VerifyLeftOut{Schema: t.Schema, Name: t.Name, Why: string(t.Why)})
	}
	return out
}

// makeEqual is the statement that gives the secondary's database what the primary's has, ""
// where that is not known.
func makeEqual(database string, d verify.SchemaDifference) string {
	if database == "" {
		return ""
	}
	quoted := postgres.QuoteIdent(database)
	switch {
	case d.Kind == "setting":
		name, role, _ := strings.Cut(d.Object, " of role ")
		if d.Primary == "" {
			return schema.SetSetting(database, role, name, nil)
		}
		return schema.SetSetting(database, role, name, &d.Primary)
	case d.Kind != "database":
	case d.Object == "comment" && d.Primary == "":
		return "COMMENT ON DATABASE " + quoted + " IS NULL"
	case d.Object == "comment":
		return "COMMENT ON DATABASE " + quoted + " IS " + postgres.QuoteLiteral(d.Primary)
	case d.Object == "owner" && d.Primary != "":
		return "ALTER DATABASE " + quoted + " OWNER TO " + postgres.QuoteIdent(d.Primary)
	case d.Object == "connection limit" && d.Primary != "":
		return "ALTER DATABASE " + quoted + " CONNECTION LIMIT " + d.Primary
	}
	return ""
}

// setSequence is the remedy for a sequence that both sides have.
func setSequence(d verify.SequenceDifference) string {
	if d.Primary == nil || d.Secondary == nil {
		return ""
	}
	name := strings.ReplaceAll(postgres.QuoteIdent(d.Schema, d.Name), "'", "''")
	return fmt.Sprintf("%s SELECT setval('%s', %d, %t);", postgres.ByHand, name, d.Primary.Last, d.Primary.Called)
}

func sequenceOf(s *verify.Sequence) *api.SequenceState {
	if s == nil {
		return nil
	}
	return &api.SequenceState{Last: s.Last, Called: s.Called}
}

// namedRows bounds the differing rows that a problem names.
const namedRows = 10

func differenceOf(link string, t verify.TableReport) *problem.Problem {
	if t.Problem != nil || t.Verdict != verify.Differs {
		return t.Problem
	}
	var rows []string
	for _, d := range t.Differences[:min(namedRows, len(t.Differences))] {
		row := d.Text
		if len(d.Key) > 0 {
			row = strings.Join(t.Key, ",") + "=" + strings.Join(d.Key, ",")
		}
		if len(d.Columns) > 0 {
			row += " in " + strings.Join(d.Columns, ",")
		}
		rows = append(rows, d.Kind+" "+row)
	}
	if t.More || len(t.Differences) > namedRows {
		rows = append(rows, "and more")
	}
	cause := "rows differ"
	if len(rows) > 0 {
		cause += ": " + strings.Join(rows, "; ")
	}
	return problem.New("rows-differ", "table "+postgres.QuoteIdent(t.Schema, t.Name), cause,
		"hawser link resync "+link+" --table "+problem.Word(postgres.QuoteIdent(t.Schema, t.Name)))
}

func (s *service) DropLink(ctx context.Context, name string, o api.DropOptions) (api.DropResult, error) {
	var rec catalog.Link
	err := s.do(ctx, func(conn *pgx.Conn) (err error) {
		rec, _, err = catalog.FindLink(ctx, conn, name)
		return err
	})
	if err != nil {
		return api.DropResult{}, err
	}
	var side role.State
	if len(rec.Side) > 0 {
		if err := json.Unmarshal(rec.Side, &side); err != nil {
			return api.DropResult{}, fmt.Errorf("read the role of link %s: %w", name, err)
		}
	}
	found, err := s.links.Drop(ctx, name, link.DropOptions{RemoveReplica: o.RemoveReplica, Force: o.Force})
	if err != nil {
		return api.DropResult{}, err
	}
	return api.DropResult{
		Dropped: name, Findings: found, RemoveReplicaRequested: o.RemoveReplica, ReplicaRemoved: removed(o.RemoveReplica, side.Role, rec.OwnsDatabase),
	}, nil
}

// removed tells whether a secondary's database went with its link: when it was asked
// for, and Hawser had created the database. ownsHere is said of this side's, so a
// primary that does not own its database can't tell; of the two sides at most one was
// created.
func removed(asked bool, here role.Role, ownsHere bool) *bool {
	gone := asked && ownsHere && here == role.Secondary
	if asked && here == role.Primary && !ownsHere {
		return nil
	}
	return &gone
}

func (s *service) Databases(ctx context.Context) ([]api.Database, error) {
	byDatabase := map[string]link.Status{}
	for _, l := range s.links.List(ctx) {
		byDatabase[l.Database] = l
	}
	var out []api.Database
	err := s.do(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			SELECT datname, pg_get_userbyid(datdba), pg_database_size(oid) FROM pg_database
			WHERE NOT datistemplate AND datallowconn ORDER BY datname`)
		if err != nil {
			return fmt.Errorf("list the databases: %w", err)
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d api.Database, err error) {
			return d, row.Scan(&d.Name, &d.Owner, &d.SizeBytes)
		})
		return err
	})
	for i := range out {
		out[i].Maintenance = out[i].Name == s.server.Database()
		if l, ok := byDatabase[out[i].Name]; ok {
			out[i].Link, out[i].Role, out[i].State = l.Name, api.Role(l.Role), api.State(l.State)
			out[i].ReadOnly = l.Role == role.Secondary || l.State == link.Diverged
		}
	}
	return out, err
}
