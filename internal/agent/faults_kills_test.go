package agent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// ledger is a client of each of two instances that writes whenever it may, and knows
// what was acknowledged.
type ledger struct {
	t    *testing.T
	stop func()

	mu    sync.Mutex
	acked map[string]map[int64]bool // by client
}

const ledgerTables = `
	CREATE TABLE entry (client text, n bigint, id bigserial UNIQUE, PRIMARY KEY (client, n));
	CREATE TABLE trail (client text, n bigint);
	CREATE TABLE total (client text PRIMARY KEY, entries bigint, filler text);
	INSERT INTO total SELECT 'nobody' || i, 0, repeat('x', 2000) FROM generate_series(1, 500) i;
	INSERT INTO total VALUES ('alpha', 0), ('beta', 0);`

// newLedger begins to write on each instance.
func newLedger(t *testing.T, instances ...*instance) *ledger {
	ctx, cancel := context.WithCancel(context.Background())
	l := &ledger{t: t, acked: map[string]map[int64]bool{}}
	var clients sync.WaitGroup
	for _, i := range instances {
		l.acked[i.name] = map[int64]bool{}
		clients.Go(func() { l.write(ctx, i) })
	}
	l.stop = func() { cancel(); testpg.Returns(t, "the clients end", clients.Wait) }
	t.Cleanup(l.stop)
	return l
}

const entryEvery = 10 * time.Millisecond

func (l *ledger) write(ctx context.Context, i *instance) {
	tick := time.NewTicker(entryEvery)
	defer tick.Stop()
	var conn *pgx.Conn
	for n := int64(1); ; n++ {
		select {
		case <-ctx.Done():
			if conn != nil {
				_ = conn.Close(context.Background())
			}
			return
		case <-tick.C:
		}
		var err error
		if conn == nil {
			if conn, err = pgx.Connect(ctx, i.DSN("shop")); err != nil {
				conn = nil
				continue
			}
		}
		if err = enter(ctx, conn, i.name, n); err == nil {
			l.mu.Lock()
			l.acked[i.name][n] = true
			l.mu.Unlock()
			continue
		}
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "23505" {
			l.t.Errorf("a sequence of %s is behind: %v", i.name, err)
		}
		_ = conn.Close(ctx) // one that began on a replica stays read-only
		conn = nil
	}
}

func enter(ctx context.Context, conn *pgx.Conn, client string, n int64) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, sql := range []string{
			`INSERT INTO entry (client, n) VALUES ($1, $2)`, `INSERT INTO trail VALUES ($1, $2)`,
			`UPDATE total SET entries = entries + 1 WHERE client = $1 AND $2::bigint > 0`,
		} {
			if _, err := tx.Exec(ctx, sql, client, n); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *ledger) written(client string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked[client])
}

// last is the last transaction of a client that was acknowledged.
func (l *ledger) last(client string) (last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.acked[client] {
		last = max(last, n)
	}
	return last
}

// forget drops what a client wrote later, into a database that was no replica any more.
func (l *ledger) forget(client string, later int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.acked[client], func(n int64, _ bool) bool { return n > later })
}

// check looks whether a primary has each acknowledged transaction, whole and once, but
// for those that a forced failover left behind, which are exactly those of its report.
func (l *ledger) check(primary *instance, reported map[string]bool) {
	l.t.Helper()
	l.mu.Lock()
	var acked []string
	for client, entries := range l.acked {
		for n := range entries {
			acked = append(acked, fmt.Sprintf("%s|%d", client, n))
		}
	}
	l.mu.Unlock()
	there := map[string]bool{}
	conn := primary.Connect(l.t, "shop")
	for _, e := range testpg.Rows(l.t, conn, `SELECT client, n FROM entry`) {
		there[e] = true
	}
	var lost []string
	for _, e := range acked {
		if !there[e] && !reported[e] {
			lost = append(lost, e)
		}
	}
	if len(lost) > 0 {
		l.t.Errorf("%s lost %d of %d acknowledged transactions: %.20q", primary.name, len(lost), len(acked), lost)
	}
	for e := range reported {
		if there[e] {
			l.t.Errorf("transaction %s was reported as lost, and is there", e)
		}
	}
	for _, line := range testpg.Rows(l.t, conn, `
		SELECT coalesce(e.client, t.client), e.n, t.n FROM entry e
		FULL JOIN (SELECT client, n, count(*) AS times FROM trail GROUP BY 1, 2) t ON t.client = e.client AND t.n = e.n
		WHERE e.n IS NULL OR t.n IS NULL OR t.times <> 1 LIMIT 5`) {
		l.t.Errorf("%s has half a transaction, or one twice: %s", primary.name, line)
	}
	for _, line := range testpg.Rows(l.t, conn, `
		SELECT t.client, t.entries, count(e.n) FROM total t LEFT JOIN entry e ON e.client = t.client GROUP BY 1, 2 HAVING t.entries <> count(e.n)`) {
		l.t.Errorf("%s has another sum than entries: %s", primary.name, line)
	}
}

// duel is a link, or none, between two instances whose agents are processes with taps
// on their PostgreSQL.
type duel struct {
	t      *testing.T
	a, b   *instance
	p, s   *instance // that led, and followed, when both were at rest last
	taps   map[*instance]*tap
	ledger *ledger
	lost   map[string]bool // transactions that forced failovers left behind
	mark   int64           // the last transaction of the client of s when both were at rest
	n      int             // of changes
}

func newDuel(t *testing.T) *duel {
	d := &duel{t: t, taps: map[*instance]*tap{}, lost: map[string]bool{}}
	d.a, d.b = pair(t)
	for _, i := range []*instance{d.a, d.b} {
		i.stop()
		i.process = true
		d.taps[i] = newTap(t, i)
		i.run(t)
	}
	d.p, d.s = d.a, d.b
	d.a.Exec(t, "postgres", `CREATE DATABASE shop`)
	d.a.Exec(t, "shop", ledgerTables, `CREATE VIEW seen AS SELECT client, count(*) FROM entry GROUP BY 1`)
	d.ledger = newLedger(t, d.a, d.b)
	return d
}

// command is one of a link's life. It is run again until it succeeds, so it has to
// notice that it is done.
type command struct {
	name   string
	run    func() error
	before func()   // brings the link to where the command can be run; nil: it is at rest
	after  func()   // ends what the command begins
	deaf   []string // sessions that ask for other reasons, too
	asks   int      // how many questions each side asks, in about
}

func (d *duel) commands() []command {
	busy := []string{":apply"} // the clients keep it asking
	return []command{
		{name: "create", run: d.create, before: d.dropped, deaf: busy, asks: 100},
		{name: "seeding", run: d.synchronized, before: func() { d.dropped(); d.again("create", d.create) }, asks: 60},
		{name: "follow", run: d.change, before: func() { d.n++ }, asks: 60},
		{name: "failover", run: d.failover, deaf: busy, asks: 50},
		{name: "force", run: d.force, after: d.rejoined, deaf: busy, asks: 20},
		{name: "rejoin", run: d.rejoin, before: d.forcedOut, after: d.rejoined, deaf: busy, asks: 90},
		{name: "resync", run: func() error { return d.resync() }, deaf: busy, asks: 40},
		{name: "resync of a table", run: func() error { return d.resync("public.total") }, deaf: busy, asks: 8},
		{name: "index", run: d.index, asks: 20},
		{name: "rotate", run: d.rotate, deaf: busy, asks: 6},
		{name: "verify", run: d.verify, deaf: busy, asks: 25},
		{name: "drop", run: d.drop, deaf: busy, asks: 30},
	}
}

// again runs a command until it succeeds.
func (d *duel) again(what string, run func() error) {
	d.t.Helper()
	testpg.Eventually(d.t, 120*time.Second, what+" is done at last", func() (bool, error) {
		err := run()
		return err == nil, err
	})
}

func (d *duel) create() error {
	if l, err := d.p.Link(context.Background(), "shop"); err == nil && l.State != api.StateDropped {
		return nil
	}
	_, err := d.p.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: d.s.name, Role: api.RolePrimary})
	return err
}

func (d *duel) synchronized() error {
	tick := time.NewTicker(entryEvery)
	defer tick.Stop()
	for range tick.C {
		l, err := d.s.Link(context.Background(), "shop")
		if err != nil || l.State == api.StateSynchronized {
			return err
		}
	}
	return nil
}

// change has DDL and rows follow.
func (d *duel) change() error {
	err := try(d.t, d.p, fmt.Sprintf(`
		CREATE TABLE made_%[1]d (id serial PRIMARY KEY, v text); INSERT INTO made_%[1]d (v) SELECT repeat('y', 100) FROM generate_series(1, 500);
		CREATE INDEX ON made_%[1]d (v); CREATE TABLE copied_%[1]d AS SELECT * FROM total; UPDATE total SET filler = filler || 'z' WHERE entries = 0;
		ALTER TABLE made_%[1]d ADD COLUMN c timestamptz DEFAULT clock_timestamp(); DROP TABLE copied_%[1]d`, d.n))
	if err != nil && !strings.Contains(err.Error(), "42P07") { // it is done already
		return err
	}
	if err := d.synchronized(); err != nil {
		return err
	}
	return d.verify()
}

func (d *duel) failover() error {
	if d.leads(d.s) {
		return nil
	}
	_, err := d.p.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 20 * time.Second})
	return err
}

func (d *duel) force() error {
	if d.leads(d.s) {
		return nil
	}
	if err := d.s.PauseLink(context.Background(), "shop"); err != nil {
		return err
	}
	_, err := d.s.FailoverLink(context.Background(), "shop", api.FailoverOptions{Force: true})
	return err
}

// forcedOut leaves the old primary diverged.
func (d *duel) forcedOut() {
	d.t.Helper()
	d.again("force", d.force)
	d.p.awaitState(d.t, "shop", api.StateDiverged)
}

// rejoin brings the old primary back, and takes its report.
func (d *duel) rejoin() error {
	l, err := d.p.Link(context.Background(), "shop")
	if err != nil || l.Role == api.RoleSecondary {
		return err
	}
	if l.State != api.StateDiverged {
		return fmt.Errorf("%s is %s: %v", d.p.name, l.State, l.Cause)
	}
	return d.p.RejoinLink(context.Background(), "shop")
}

// rejoined also takes in what the old primary reports as lost.
func (d *duel) rejoined() {
	d.t.Helper()
	d.again("rejoin", d.rejoin)
	l, err := d.s.Link(context.Background(), "shop")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, line := range report(d.t, d.p, fmt.Sprintf("shop-term%d.jsonl", l.Term-1)) {
		if line["table"] == "entry" && line["operation"] == "insert" {
			row := line["new"].(map[string]any)
			d.lost[fmt.Sprintf("%s|%s", row["client"], row["n"])] = true
		}
	}
}

func (d *duel) resync(tables ...string) error {
	return d.s.ResyncLink(context.Background(), "shop", tables)
}

func (d *duel) index() error {
	if err := try(d.t, d.p, `DROP INDEX CONCURRENTLY IF EXISTS built`); err != nil {
		return err
	}
	return try(d.t, d.p, `CREATE INDEX CONCURRENTLY built ON total (entries)`)
}

func (d *duel) rotate() error {
	_, err := d.p.RotateCertificate(context.Background())
	return err
}

func (d *duel) verify() error {
	r, err := d.p.VerifyLink(context.Background(), "shop", api.VerifyOptions{})
	if err == nil && !r.Equal {
		d.t.Errorf("the sides differ: %+v", r)
	}
	return err
}

func (d *duel) drop() error {
	for _, i := range []*instance{d.p, d.s} {
		_, err := i.DropLink(context.Background(), "shop", api.DropOptions{RemoveReplica: true})
		if err != nil && !strings.Contains(err.Error(), "no link of this name") {
			return err
		}
	}
	return nil
}

// dropped leaves the primary's database alone.
func (d *duel) dropped() {
	d.t.Helper()
	d.again("drop", d.drop)
	// One that was linked as the primary is kept, whatever it is now.
	d.again("removal of the replica", func() error { return d.s.DropDatabase("shop") })
	d.ledger.forget(d.s.name, d.mark)
	for _, i := range []*instance{d.p, d.s} {
		for _, line := range traces(d.t, i, "shop") {
			if line != "no database" && !strings.HasPrefix(line, "setting|hawser.created") && !strings.HasPrefix(line, "identity") {
				d.t.Errorf("left on %s: %s", i.name, line)
			}
		}
	}
}

func (d *duel) leads(i *instance) bool {
	l, err := i.Link(context.Background(), "shop")
	return err == nil && l.Role == api.RolePrimary
}

// rest waits until one side leads and the other follows, and looks for what is lost.
func (d *duel) rest() {
	d.t.Helper()
	testpg.Eventually(d.t, 120*time.Second, "one side leads, and the other follows", func() (bool, error) {
		var states []string
		rest := true
		for _, i := range []*instance{d.a, d.b} {
			l, err := i.Link(context.Background(), "shop")
			if err != nil {
				return false, err
			}
			states = append(states, fmt.Sprintf("%s is %s and %s: %v", i.name, l.Role, l.State, l.Cause))
			rest = rest && l.State == api.StateSynchronized
			if l.State == api.StateSuspended && (l.Cause == nil || l.Cause.Help() == "") {
				d.t.Errorf("%s stands without a remedy: %+v", i.name, l.Cause)
			}
		}
		d.p, d.s = d.a, d.b
		if d.leads(d.b) {
			d.p, d.s = d.b, d.a
		}
		if !rest || !d.leads(d.p) || d.leads(d.s) {
			return false, errors.New(strings.Join(states, "; "))
		}
		return true, nil
	})
	d.mark = d.ledger.last(d.s.name)
}

// kill is one fault of the matrix.
type kill struct {
	command string
	primary bool // it strikes the primary's side, as it was before the command
	fault   string
	at      int // which question of that side's agent to its PostgreSQL is under way
}

func (k kill) String() string {
	side := "secondary"
	if k.primary {
		side = "primary"
	}
	return fmt.Sprintf("%s, at question %d of the %s: %s", k.command, k.at, side, k.fault)
}

const (
	agentDies     = "its agent dies"
	serverCrashes = "its PostgreSQL crashes"
	serverDidIt   = "its PostgreSQL crashes having answered"
	serverFull    = "its PostgreSQL ends the session and takes no more for a while"
)

var killFaults = []string{agentDies, serverCrashes, serverDidIt, serverFull}

// play runs a command with a fault in it, and looks at what becomes of the link. It
// tells whether the fault came before the command had ended.
func (d *duel) play(k kill) (within bool) {
	d.t.Helper()
	c := d.commands()[slices.IndexFunc(d.commands(), func(c command) bool { return c.name == k.command })]
	d.ready(c)
	victim := d.s
	if k.primary {
		victim = d.p
	}
	tap := d.taps[victim]
	var held <-chan struct{}
	if k.fault == serverFull {
		held = tap.fill(k.at, true, but(c.deaf...))
	} else {
		held = tap.arm(k.at, k.fault == serverDidIt, but(c.deaf...))
	}
	var err error
	ended := make(chan struct{})
	go func() { defer close(ended); err = c.run() }()
	select {
	case <-held:
		within = true
	case <-ended:
	case <-time.After(20 * time.Second): // it waits for more than one question can tell
		within = true
	}
	asked := d.strike(victim, k.fault, ended)
	testpg.Await(d.t, "the command is answered", ended)
	if within {
		d.t.Logf("%s: %v", k, err)
	} else {
		d.t.Logf("%s, after all %d: %v", k, asked, err)
	}
	d.conclude(c, err)
	return within
}

// ready brings the link to where a command can be run.
func (d *duel) ready(c command) {
	d.t.Helper()
	if _, err := d.p.Link(context.Background(), "shop"); err != nil { // dropped
		d.again("create", d.create)
	}
	d.rest()
	d.moreEntries(d.p)
	if c.before != nil {
		c.before()
	}
}

// conclude runs a command that failed again until it succeeds, and looks at what became
// of the link.
func (d *duel) conclude(c command, err error) {
	d.t.Helper()
	if err != nil {
		d.again(c.name, c.run)
	}
	d.nothingHeld()
	if c.after != nil {
		c.after()
	}
	if c.name == "drop" {
		d.dropped()
		return
	}
	d.rest()
	d.again("verify", d.verify)
	d.ledger.check(d.p, d.lost)
}

// nothingHeld waits until no comparison is left that holds a snapshot: on the primary it
// would hold up VACUUM and CREATE INDEX CONCURRENTLY.
func (d *duel) nothingHeld() {
	d.t.Helper()
	for _, i := range []*instance{d.p, d.s} {
		testpg.Eventually(d.t, 30*time.Second, "no comparison is left on "+i.name, func() (bool, error) {
			held := testpg.Rows(d.t, i.Connect(d.t, "postgres"), `SELECT pid, query FROM pg_stat_activity WHERE application_name = 'hawser:shop:verify' AND xact_start IS NOT NULL`)
			return len(held) == 0, nil
		})
	}
}

// strike carries the fault out, and returns how many questions were asked before.
func (d *duel) strike(victim *instance, fault string, ended <-chan struct{}) (asked int) {
	d.t.Helper()
	if fault == serverFull {
		select {
		case <-d.taps[victim].enough:
		case <-ended:
		}
		return d.taps[victim].release()
	}
	if fault == agentDies {
		victim.stop()
		asked = d.taps[victim].release()
		victim.run(d.t)
		return asked
	}
	victim.Kill(d.t)
	asked = d.taps[victim].release()
	victim.Cluster.Start(d.t)
	return asked
}

// moreEntries waits until an instance's client has written some more.
func (d *duel) moreEntries(i *instance) {
	d.t.Helper()
	from := d.ledger.written(i.name)
	testpg.Eventually(d.t, 30*time.Second, i.name+" takes writes", func() (bool, error) { return d.ledger.written(i.name) > from+10, nil })
}

// TestKillsInEveryCommand kills agents and PostgreSQL while a command is under way, at a
// question that its agent asks, with clients that write on both sides whenever they
// may. Run again, the command succeeds; one side leads, the other follows, no
// acknowledged transaction is lost, none is there twice, and both sides hold the same.
// It plays a few kills that a seed chooses; make kills plays all of them, or more.
func TestKillsInEveryCommand(t *testing.T) {
	t.Parallel()
	d := newDuel(t)
	d.again("create", d.create)
	chosen, only := killsChosen, ""
	if which := os.Getenv("HAWSER_TEST_KILLS"); which != "" {
		name, count, some := strings.Cut(which, ":")
		if !some {
			d.all(which)
			return
		}
		var err error
		if chosen, err = strconv.Atoi(count); err != nil {
			t.Fatalf("HAWSER_TEST_KILLS: %v", err)
		}
		only = name
	}
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 0))
	among := d.commandsNamed(only)
	for range chosen {
		c := among[random.IntN(len(among))]
		d.play(kill{c.name, random.IntN(2) == 0, killFaults[random.IntN(len(killFaults))], 1 + random.IntN(c.asks)})
		if t.Failed() {
			return
		}
	}
}

// commandsNamed are those whose names begin so; "all" are all of them.
func (d *duel) commandsNamed(only string) []command {
	return slices.DeleteFunc(d.commands(), func(c command) bool { return only != "all" && !strings.HasPrefix(c.name, only) })
}

// killsChosen take about a minute.
const killsChosen = 6

// all plays each kill of the commands whose names begin so.
func (d *duel) all(only string) {
	for _, c := range d.commandsNamed(only) {
		for _, primary := range []bool{true, false} {
			for _, fault := range killFaults {
				for at := 1; d.play(kill{c.name, primary, fault, at}); at++ {
				}
			}
		}
	}
}

// seedOf is HAWSER_TEST_SEED, or a new one; it is told, so that a run can be repeated.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("HAWSER_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("HAWSER_TEST_SEED: %v", err)
		}
	}
	t.Logf("HAWSER_TEST_SEED=%d repeats this choice", seed)
	return seed
}

// TestCreateTakenBackLater: PostgreSQL goes away while a link is made on that side, so
// that what is there can't be taken back at once. It is when PostgreSQL is there again.
func TestCreateTakenBackLater(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"primary", "secondary"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			a.Exec(t, "postgres", `CREATE DATABASE shop`)
			a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY)`)
			victim := map[string]*instance{"primary": a, "secondary": b}[side]
			victim.stop()
			tap := newTap(t, victim)
			victim.run(t)
			a.awaitPeer(t)
			b.awaitPeer(t)
			held := tap.arm(3, true, func(purpose string) bool { return strings.HasSuffix(purpose, ":create") })
			create := func() error {
				_, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
				return err
			}
			done := make(chan error, 1)
			go func() { done <- create() }()
			testpg.Await(t, "the creation asks its third question", held)
			victim.Kill(t)
			tap.release()
			if err := testpg.Await(t, "the link's creation is answered", done); err == nil {
				t.Error("the link was made without PostgreSQL")
			}
			victim.Cluster.Start(t)
			testpg.Eventually(t, 60*time.Second, "the link is made", func() (bool, error) {
				err := create()
				return err == nil, err
			})
			b.awaitState(t, "shop", api.StateSynchronized)
		})
	}
}
