package link

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/seed"
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
	conn, err := l.connect(ctx, "create")
	if err != nil {
		return reply, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		return reply, err
	}
	if err := catalog.Join(ctx, conn, l.rec.ID, l.rec.Name); err != nil {
		return reply, err
	}
	if err := capture.Install(ctx, conn, l.rec.ID, l.filter()); err != nil {
		return reply, err
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

// DropOptions say what is to be left.
type DropOptions struct {
	RemoveReplica bool
	Force         bool // drop this side though the other can't be reached, or the replica is not complete
}

// Drop ends a link on both sides. A replica that is kept becomes an independent
// database that takes writes. It returns what stays that a person has to know of.
func (m *Manager) Drop(ctx context.Context, name string, o DropOptions) (problem.Findings, error) {
	l, err := m.find(name)
	if err != nil {
		return nil, err
	}
	release, err := m.claim(name)
	if err != nil {
		return nil, err
	}
	defer release()
	stay, err := l.leave(ctx, o.Force)
	if err != nil {
		return nil, err
	}
	defer stay()
	side, _ := l.now()
	request := dropRequest{RemoveReplica: o.RemoveReplica, Force: o.Force, ID: l.rec.ID}
	found, err := l.leaves(ctx, request)
	if err != nil {
		return nil, err
	}
	if side.Phase == role.Waiting {
		// It may have taken the link up. If it can't be told, its half is dropped there.
		if err := m.call(ctx, side.Heir, name, callDrop, dropRequest{ID: l.rec.ID}, nil); err != nil {
			l.log.Warn("the instance that takes the database over could not be told", "instance", side.Heir, "error", err)
		}
	}
	var reply dropReply
	err = m.call(ctx, l.rec.Peer, name, callDrop, request, &reply)
	p, ok := problem.As(err)
	switch {
	case err == nil || ok && p.Code == "link-not-found":
	case ok && (p.Code == codeIncomplete || slices.Contains([]string{codeSwapping, codeRejoining, codeBusy}, p.Code) && !o.Force): // it was told, and refuses
		return nil, err
	case !o.Force:
		return nil, problem.New("peer-not-told", "link "+name, "the other side could not be told, and would keep its half of the link",
			"hawser link drop "+name+" --force").Advise("or try again when it is connected; with --force the same has to be run on instance " + l.rec.Peer + ", too").Because(err)
	default:
		there := problem.Warn("peer-not-told", "instance "+l.rec.Peer, "it could not be told, and keeps its half of the link: slot, publication, triggers, replica identities and schema hawser",
			"hawser link drop "+name+" --force").At("instance " + l.rec.Peer)
		if o.RemoveReplica && side.Role == role.Primary { // the replica is there
			there.Remedy += " --remove-replica"
		}
		found = append(found, there)
	}
	left, err := m.dropSide(ctx, l, o.RemoveReplica)
	return append(append(found, reply.Left.On(l.rec.Peer)...), left...), err
}

// dropAsked is the other side's wish. A replica goes only for a peer that may still fill
// it, or that never did.
func (l *link) dropAsked(ctx context.Context, r dropRequest) (reply dropReply, err error) {
	if r.ID != "" && r.ID != l.rec.ID { // an earlier one of this name
		return reply, notFound(l.rec.Name)
	}
	l.mu.Lock()
	creating := l.progress == catalog.Creating
	l.mu.Unlock()
	if creating {
		release, err := l.m.claim(l.rec.Name) // not under the hands of who makes it
		if err != nil {
			return reply, err
		}
		defer release()
	}
	if r.RemoveReplica && !creating {
		if err := l.permits(flows); err != nil {
			return reply, err
		}
	}
	stay, err := l.leave(ctx, false)
	if err != nil {
		return reply, err
	}
	defer stay()
	found, err := l.leaves(ctx, r)
	if err != nil {
		return reply, err
	}
	left, err := l.m.dropSide(ctx, l, r.RemoveReplica)
	return dropReply{append(found, left...)}, err
}

// leave is the first step of a link's end: from then on no change of roles and no rejoin
// begins on this side, and it is refused while one is under way. A failover that began
// behind the look at it could leave both sides writable, and neither told; a rejoin takes
// rows away that nobody would bring back. stay ends it where the link stays.
func (l *link) leave(ctx context.Context, force bool) (stay func(), err error) {
	within, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	side, err := l.ask(within, nil) // all that happened so far is stored
	switch {
	case errors.Is(err, errHalted):
		side, _ = l.now()
	case err != nil && ctx.Err() == nil:
		return nil, l.unstored(err)
	case err != nil:
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case (side.Swapping() || l.running != nil) && !force:
		return nil, l.swapping()
	case l.rejoining:
		return nil, l.rejoinRuns()
	}
	l.leaving++
	return func() { l.update(func() { l.leaving-- }) }, nil
}

// unstored is told where the role that this side has is not stored in time.
func (l *link) unstored(err error) error {
	if why := l.obstacle(); why != nil {
		return why
	}
	return problem.New(codeBusy, "link "+l.rec.Name, "it is not known in time which role this side has", "hawser link show "+l.rec.Name).Advise("wait a moment").Retry().Because(err)
}

// codeSwapping is of what can't be done while a failover is under way.
const codeSwapping = "failover-running"

// swapping refuses to end a link while it is not known which side has all: both would open.
func (l *link) swapping() *problem.Problem {
	return problem.New(codeSwapping, "link "+l.rec.Name, "a failover is under way, and both sides could be left writable",
		"hawser link show "+l.rec.Name).Advise("wait for it; if the other side is gone for good: hawser link drop " + l.rec.Name + " --force")
}

// finishSoon has finishDrop run, once for a link.
func (m *Manager) finishSoon(l *link) {
	if !l.finishing.Swap(true) {
		m.work.Go(func() { m.finishDrop(l) })
	}
}

// finishDrop removes a link whose making or removal did not end. Of one that was being
// made the other side is told until it has heard of it: it would wait for ever.
func (m *Manager) finishDrop(l *link) {
	making := l.rec.Progress == catalog.Creating
	steps := []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := m.dismantle(ctx, l, making || l.rec.Progress == catalog.Removing)
			return err
		},
		func(ctx context.Context) error {
			if err := l.disown(ctx); making {
				return err
			}
			return nil
		},
		func(ctx context.Context) error { return m.erase(ctx, l) },
	}
	for _, step := range steps {
		for wait := NewBackoff(); ; {
			err := step(m.ctx)
			l.obstruct(err)
			if err == nil {
				break
			}
			l.log.Warn("can't remove the link yet", "error", err)
			if !wait.Sleep(m.ctx) {
				return
			}
		}
	}
}

// disown has the other side remove its half of this very link.
func (l *link) disown(ctx context.Context) error {
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callDrop, dropRequest{RemoveReplica: true, Force: true, ID: l.rec.ID}, nil)
	if p, ok := problem.As(err); ok && (p.Code == "link-not-found" || p.Code == "peer-not-found") {
		return nil
	}
	return err
}

// seeMade removes a link that was being made for the other side, which does not know it
// any more: its agent, or the way to it, went away before the link stood.
func (l *link) seeMade(ctx context.Context) error {
	release, err := l.m.claim(l.rec.Name)
	if err != nil {
		return nil // it is being made
	}
	defer release()
	var theirs Status
	err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs)
	if p, ok := problem.As(err); ok && p.Code == "link-not-found" || err == nil && theirs.ID != l.rec.ID {
		l.log.Warn("the other side does not make this link any more: removing it")
		l.m.finishSoon(l)
		return nil
	}
	return err
}

// dropSide removes this side, and returns what of it could not be.
func (m *Manager) dropSide(ctx context.Context, l *link, removeReplica bool) (problem.Findings, error) {
	left, err := m.dismantle(ctx, l, removeReplica)
	if err != nil {
		return nil, err // the link stays, as dropping; running the command again goes on
	}
	return left, m.erase(ctx, l)
}

// dismantle removes everything but the record: first that says so, then the goroutines
// end, then everything in the database goes.
func (m *Manager) dismantle(ctx context.Context, l *link, removeReplica bool) (left problem.Findings, err error) {
	l.dropping.Lock()
	defer l.dropping.Unlock()
	defer func() { l.obstruct(err) }()
	if !m.has(l) { // somebody else was quicker, and there may be another one of the name
		if m.holds("", l.rec.ID) != nil { // it follows another primary, or began anew with this one
			err = busy(l.rec.Name)
		}
		return nil, err
	}
	progress := catalog.Dropping
	if removeReplica {
		progress = catalog.Removing
	}
	err = m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.SetProgress(ctx, conn, l.rec.Name, progress) })
	if p, ok := problem.As(err); ok && p.Code == "link-not-found" {
		err = nil // the answer to its removal was lost
	}
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	made, owns := l.progress != catalog.Creating, l.ownsDB
	l.mu.Unlock()
	l.update(func() { l.progress = progress })
	l.halt()
	side, _ := l.now()
	err = l.discardHeirs(ctx)
	if err == nil && side.Role == role.Secondary {
		err = schema.DropUnfinished(ctx, m.cfg.Server, l.rec.ID)
	}
	switch {
	case err != nil:
	case side.Role == role.Secondary && owns && removeReplica:
		err = m.dropReplica(ctx, l)
	default:
		left, err = m.cleanDatabase(ctx, l, made)
	}
	if p, ok := problem.As(err); ok && p.Code == "no-such-database" {
		err = nil
	}
	for _, p := range left {
		l.log.Warn("this is left of the link", "object", p.Object, "cause", p.Cause, "remedy", p.Remedy)
	}
	return left, err
}

// erase removes the record, the last of a link.
func (m *Manager) erase(ctx context.Context, l *link) error {
	l.dropping.Lock()
	defer l.dropping.Unlock()
	if !m.has(l) {
		return nil
	}
	if err := m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.DeleteLink(ctx, conn, l.rec.Name) }); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.links, l.rec.Name)
	m.mu.Unlock()
	if err := os.RemoveAll(l.spoolDir()); err != nil {
		l.log.Warn("what the link kept on disk could not be removed", "error", err)
	}
	l.log.Info("dropped")
	return nil
}

// has tells that the link is the one of its name.
func (m *Manager) has(l *link) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.links[l.rec.Name] == l
}

func (m *Manager) dropReplica(ctx context.Context, l *link) error {
	err := m.store.Do(ctx, func(conn *pgx.Conn) error {
		if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
			return err
		}
		return dropOrigins(ctx, conn, l)
	})
	if err != nil {
		return err
	}
	return schema.DropDatabase(ctx, m.cfg.Server, l.rec.Database)
}

// cleanDatabase takes everything of the link out of a database that stays. made tells that
// the link stood once.
func (m *Manager) cleanDatabase(ctx context.Context, l *link, made bool) (left problem.Findings, err error) {
	conn, err := l.connect(ctx, "drop")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
		return nil, err
	}
	if err := dropOrigins(ctx, conn, l); err != nil {
		return nil, err
	}
	installed, err := catalog.Installed(ctx, conn)
	if err != nil {
		return nil, err
	}
	if !installed && made { // somebody dropped schema hawser, and left the rest
		left, err = l.reclaim(ctx, conn)
	}
	if err != nil || !installed && !made {
		return nil, err
	}
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		return nil, err
	}
	back, err := l.endTaken(ctx)
	if err != nil {
		return nil, err
	}
	return append(left, back...), l.cleanSchema(ctx, conn)
}

// cleanSchema takes the link out of schema hawser, and with the last one all of that.
func (l *link) cleanSchema(ctx context.Context, conn *pgx.Conn) error {
	others, err := catalog.Leave(ctx, conn, l.rec.ID)
	if err != nil {
		return err
	}
	if err := capture.Uninstall(ctx, conn, l.rec.ID, others == 0); err != nil {
		return err
	}
	if side, _ := l.now(); side.Role == role.Secondary { // before anybody else can write
		if err := apply.AdvanceSequences(ctx, conn); err != nil {
			return err
		}
		if err := harden(ctx, conn); err != nil {
			return err
		}
	}
	if _, err := l.unfence(ctx, conn); err != nil || others > 0 {
		return err
	}
	if err := fence.Remove(ctx, conn); err != nil {
		return err
	}
	if err := apply.DropRowIndexes(ctx, conn); err != nil {
		return err
	}
	return catalog.DropSchema(ctx, conn)
}

// unfence opens a database that stays, unless another of its links closes it.
func (l *link) unfence(ctx context.Context, conn *pgx.Conn) (opened bool, err error) {
	release, err := l.m.gate(ctx, l.rec.Database)
	if err != nil {
		return false, err
	}
	defer release()
	if other := l.m.closes(l); other != nil {
		l.log.Warn("the database stays read-only, since another link closes it", "other", other.rec.Name)
		return false, nil
	}
	if err := fence.Resume(ctx, conn); err != nil {
		return false, err
	}
	return true, fence.Open(ctx, conn)
}

func dropOrigins(ctx context.Context, conn *pgx.Conn, l *link) error {
	return apply.DropOrigins(ctx, conn, l.rec.ID, "")
}
