package link

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/seed"
)

// Validate checks both sides, and changes nothing. All findings come at once; an
// error means that the check itself could not be made. Without a peer, this side
// alone is checked.
func (m *Manager) Validate(ctx context.Context, s Spec) (problem.Findings, error) {
	if s.Name != "" {
		if _, err := m.find(s.Name); err == nil {
			return problem.Findings{taken(s.Name)}, nil
		}
	}
	if p := checkMaxWAL(s.MaxWAL); p != nil {
		return nil, p
	}
	if s.Peer == "" {
		findings, err := m.validateSide(ctx, s.Name, "", validateRequest{Database: s.Database, Role: s.Role, Filter: s.Filter})
		return append(findings, problem.Noted("one-side", "instance "+m.cfg.Instance, "this side alone was looked at; with --peer the other one is, too, and whether it is fit for this database")), err
	}
	if p := m.granted(s.Peer, s.Database, wayOf(s.Role)); p != nil {
		return problem.Findings{p}, nil
	}
	primary, err := m.onSide(ctx, s, role.Primary, nil)
	if err != nil {
		return nil, err
	}
	if len(primary.Blocking()) > 0 && primary[0].Code == "no-such-database" {
		return problem.Findings{otherRole(primary[0], s)}, nil
	}
	if len(primary.Blocking()) > 0 && primary[0].Code == "peer-not-granted" {
		return primary, nil
	}
	requirements, err := m.requirements(ctx, s)
	if err != nil {
		return nil, err
	}
	secondary, err := m.onSide(ctx, s, role.Secondary, requirements)
	return append(primary, secondary...), err
}

func taken(name string) *problem.Problem {
	return problem.New("link-exists", "link "+name, "a link of this name exists", "hawser link show "+name).Advise("choose another name for another link")
}

// otherRole says of a primary without the database what was most likely meant: it is the
// other side that has it.
func otherRole(p *problem.Problem, s Spec) *problem.Problem {
	q := *p
	q.Cause, q.Place = p.Cause+"; the primary of a link is the side that has it", ""
	turned, who := "--role "+string(other(s.Role)), "instance "+s.Peer
	if s.Role == role.Secondary {
		who = "this instance"
	}
	if strings.HasPrefix(p.Remedy, "--database ") {
		q.Advice = turned + " if it is " + who + " that has it; " + p.Advice
		return &q
	}
	q.Remedy, q.Advice = turned, "if it is "+who+" that has it"
	return &q
}

// onSide runs the check of one role where that role is.
func (m *Manager) onSide(ctx context.Context, s Spec, r role.Role, source []byte) (problem.Findings, error) {
	request := validateRequest{Database: s.Database, Role: r, Source: source, Filter: s.Filter}
	if s.Role == r {
		return m.validateSide(ctx, s.Name, s.Peer, request)
	}
	var findings problem.Findings
	err := m.call(ctx, s.Peer, s.Name, callValidate, request, &findings)
	if p, ok := problem.As(err); ok && p.Code == "peer-not-granted" {
		return problem.Findings{p}, nil
	}
	return findings.On(s.Peer), err
}

// requirements asks the primary what its database needs of a target.
func (m *Manager) requirements(ctx context.Context, s Spec) ([]byte, error) {
	if s.Role == role.Primary {
		return m.inspect(ctx, s.Database)
	}
	var out []byte
	err := m.call(ctx, s.Peer, s.Name, callInspect, inspectRequest{s.Database}, &out)
	return out, err
}

func (m *Manager) inspect(ctx context.Context, database string) ([]byte, error) {
	r, err := schema.Inspect(ctx, m.cfg.Server, database)
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// validateSide checks this side in its role.
func (m *Manager) validateSide(ctx context.Context, name, peer string, r validateRequest) (problem.Findings, error) {
	if name != "" {
		if _, err := m.find(name); err == nil {
			return problem.Findings{taken(name)}, nil
		}
	}
	if p := m.unfit(r.Database, r.Role); p != nil {
		return problem.Findings{p}, nil
	}
	var findings problem.Findings
	var err error
	if r.Role == role.Secondary {
		findings, err = m.validateSecondary(ctx, r)
	} else {
		findings, err = m.validatePrimary(ctx, r.Database, r.Filter)
	}
	if p, ok := problem.As(err); ok && p.Code == "no-such-database" && r.Role == role.Primary {
		return problem.Findings{m.nearestDatabase(ctx, p, peer, r.Database)}, nil
	}
	if err == nil && peer != "" && r.Filter.All() { // a partial link has no failover
		findings = append(findings, m.oneWay(peer, r.Database)...)
	}
	return findings, err
}

// nearestDatabase adds to a database that does not exist the one that was most likely
// meant, of those that the peer may know of.
func (m *Manager) nearestDatabase(ctx context.Context, p *problem.Problem, peer, database string) *problem.Problem {
	var known []string
	err := m.store.Do(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> current_database()`)
		if err != nil {
			return err
		}
		known, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	known = slices.DeleteFunc(known, func(name string) bool { return peer != "" && m.granted(peer, name, grant.ToPeer) != nil })
	if near := problem.Nearest(database, known); err == nil && near != "" {
		q := *p
		q.Remedy, q.Advice = "--database "+problem.Word(near), "names of databases are taken as they are written; "+problem.DidYouMean(near)
		return &q
	}
	return p
}

// unfit refuses a database that can't have this role by what this instance knows
// already. A secondary belongs to one link alone.
func (m *Manager) unfit(database string, r role.Role) *problem.Problem {
	if database == m.cfg.Server.Database() {
		return problem.New("maintenance-database", "database "+database, "the agent keeps what it remembers in it, so it can't be linked itself",
			"").Advise("link another database, or name another one in postgres.connection")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, l := range m.links {
		if l.rec.Database == database && r == role.Secondary {
			return problem.New("already-linked", "database "+database, "link "+name+" uses it on instance "+m.cfg.Instance,
				"hawser link show "+name).Advise("a secondary belongs to one link")
		}
	}
	return nil
}

func (m *Manager) validatePrimary(ctx context.Context, database string, f filter.Filter) (problem.Findings, error) {
	if bad := f.Check(); len(bad) > 0 {
		return bad, nil
	}
	findings, err := capture.Check(ctx, m.cfg.Server, database, f)
	if err != nil {
		return nil, err
	}
	if p, ok := problem.As(schema.HasDumpDir()); ok {
		findings = append(findings, p)
	}
	conn, err := m.connect(ctx, database, "validate", nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var template bool
	if err := conn.QueryRow(ctx, `SELECT datistemplate FROM pg_database WHERE datname = current_database()`).Scan(&template); err != nil {
		return nil, fmt.Errorf("look whether the database is a template: %w", err)
	}
	if template {
		findings = append(findings, problem.New("template-database", "database "+database, "it is a template, which CREATE DATABASE can't copy while a link's sessions are in it",
			"ALTER DATABASE "+postgres.QuoteIdent(database)+" IS_TEMPLATE false;").Advise("if no databases are made from it; otherwise link those"))
	}
	state, _, err := fence.Check(ctx, conn)
	if err != nil {
		return nil, err
	}
	if state.Closed {
		findings = append(findings, problem.New("already-secondary", "database "+database,
			replicaOf(state.Sign), "").Advise("link the primary of that link instead"))
	}
	found, err := seed.Check(ctx, conn, f)
	if err != nil || state.Closed {
		return append(findings, found...), err
	}
	findings = append(findings, found...)
	found, err = capture.CheckEventTriggers(ctx, conn)
	return append(findings, found...), err
}

func replicaOf(s fence.Sign) string {
	return "it is the secondary of link " + s.Link + ", whose primary is on instance " + s.Primary
}

// replica refuses a database that is the replica of another link: one of another
// agent in front of the same PostgreSQL, of which this one knows nothing else.
func (m *Manager) replica(ctx context.Context, database string) (*problem.Problem, error) {
	conn, err := m.connect(ctx, database, "validate", nil)
	if p, ok := problem.As(err); ok && p.Code == "no-such-database" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	state, _, err := fence.Check(ctx, conn)
	if err != nil || !state.Closed {
		return nil, err
	}
	return problem.New("already-linked", "database "+database, replicaOf(state.Sign),
		"hawser link show "+state.Sign.Link).Advise("a secondary belongs to one link").At("the instance that has the link"), nil
}

func (m *Manager) validateSecondary(ctx context.Context, r validateRequest) (problem.Findings, error) {
	var out problem.Findings
	info, err := m.cfg.Server.Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.InRecovery {
		out = append(out, problem.New("not-writable", "server "+m.cfg.Server.String(), "it is a standby in recovery", "").Advise("point the agent at the primary of the group"))
	}
	if !info.Superuser {
		out = append(out, problem.New("not-superuser", "role "+info.User, "the agent's role is no superuser; replication origins and session_replication_role need one",
			"ALTER ROLE "+info.User+" SUPERUSER;"))
	}
	var level string
	var set bool
	if err := m.store.Do(ctx, func(conn *pgx.Conn) (err error) { level, set, err = postgres.WALLevel(ctx, conn); return err }); err != nil {
		return nil, err
	}
	if level != "logical" {
		out = append(out, postgres.Waiting(problem.Warn("wal-level", "setting wal_level",
			"it is "+level+" on the secondary; a failover, which makes it the primary, needs logical",
			"ALTER SYSTEM SET wal_level = logical;").Advise("then restart PostgreSQL"), set))
	}
	if r.Source == nil {
		return out, nil
	}
	linked, err := m.replica(ctx, r.Database)
	if err != nil {
		return nil, err
	}
	if linked != nil { // what it would have to be like does not matter then
		return append(out, linked), nil
	}
	var requirements schema.Requirements
	if err := json.Unmarshal(r.Source, &requirements); err != nil {
		return nil, fmt.Errorf("read the primary's requirements: %w", err)
	}
	found, err := requirements.Check(ctx, m.cfg.Server, r.Database)
	return append(out, found...), err
}
