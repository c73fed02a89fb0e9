package apply

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

// oddTables have keys of which two texts may be one key, and constraints beside the key
// that tell in which order changes come. The values are what keys are drawn from.
var oddTables = []struct{ name, definition, values string }{
	{"num", `k numeric PRIMARY KEY, v text`, `1|1.0|1.00|2|2.50|2.5|NaN`},
	{"folded", `k text COLLATE folded PRIMARY KEY, v text`, `a|A|b|B|é|É`},
	{"cit", `k public.citext PRIMARY KEY, v text`, `a|A|b|B|ab|AB`},
	{"padded", `k char(4) PRIMARY KEY, v text`, `a|a |b|ab|ab  `},
	{"float", `k float8 PRIMARY KEY, v text`, `0|-0|1|1e0|NaN|0.1`},
	{"span", `k interval PRIMARY KEY, v text`, `1 day|24 hours|1 mon|30 days`},
	{"doc", `k jsonb PRIMARY KEY, v text`, `1|1.0|{"a": 1}|{"a": 1.0}|[]`},
	{"list", `k numeric[] PRIMARY KEY, v text`, `{1}|{1.0}|[0:0]={1}|{1,2}`},
	{"pair", `k numeric, l int DEFAULT 1, v text, PRIMARY KEY (l, k)`, `1|1.0|2|2.0`},
	{"other", `k int PRIMARY KEY, u numeric UNIQUE, v text`, `1|2|3|4|5`},
	{"late", `k int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text`, `1|2|3|4|5`},
	{"apart", `k int PRIMARY KEY, u int4range, v text, EXCLUDE USING gist (u WITH &&)`, `1|2|3|4|5`},
	{"checked", `k int PRIMARY KEY, v text, CHECK (length(v) < 100000)`, `1|2|3`},
	{"whole", `k numeric, v text`, `1|1.0|2`},
	{"loose", `k public.citext, f float8 DEFAULT '-0', c text COLLATE folded DEFAULT 'É', j json DEFAULT '{"a": 1}', p point DEFAULT '(1,2)', i interval DEFAULT '1 day', v text`, `a|A|b`},
	{"partly", `k int, v text`, `1|2|3|4`},
	{"indexed", `k numeric NOT NULL UNIQUE, v text`, `1|1.0|1.00|2|2.0`},
	{"parted", `k int PRIMARY KEY, v text`, `1|2|3|11|12|13`},
	{"always", `k int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, g text GENERATED ALWAYS AS (v || '!') STORED, v text`, `1|2|3`},
	{"plain", `k int PRIMARY KEY, w text, v text`, `1|2|3|4|5|6|7|8|9|10|11|12`},
}

// oddSchema makes the tables, alike on both sides.
func oddSchema() []string {
	out := []string{`CREATE EXTENSION citext SCHEMA public; CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`}
	for _, t := range oddTables {
		sql := "CREATE TABLE " + t.name + " (" + t.definition + ")"
		if t.name == "parted" {
			sql += ` PARTITION BY RANGE (k); CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10);
				CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (100)`
		}
		out = append(out, sql)
	}
	return append(out, `CREATE UNIQUE INDEX ON partly (k) WHERE k > 1; ALTER TABLE partly REPLICA IDENTITY FULL; ALTER TABLE loose REPLICA IDENTITY FULL; ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE indexed REPLICA IDENTITY FULL; ALTER TABLE plain ALTER v SET STORAGE external, ALTER w SET STORAGE external`)
}

// oddState is a query for the rows of all tables, as one text.
func oddState() string {
	var parts []string
	for _, t := range oddTables {
		parts = append(parts, fmt.Sprintf(`SELECT '%[1]s ' || coalesce(string_agg(t::text, ' ' ORDER BY t::text COLLATE "C"), '') AS x FROM public.%[1]s t`, t.name))
	}
	return `SELECT string_agg(CASE WHEN length(x) > 4000 THEN left(x, 200) || md5(x) ELSE x END, E'\n' ORDER BY x COLLATE "C") FROM (` + strings.Join(parts, " UNION ALL ") + `) s`
}

// oddStatement draws one statement.
func oddStatement(random *rand.Rand) string {
	t := oddTables[random.IntN(len(oddTables))]
	values := strings.Split(t.values, "|")
	key := func() string { return "'" + values[random.IntN(len(values))] + "'" }
	value := func() string {
		if random.IntN(8) == 0 {
			return fmt.Sprintf(`repeat('%x', 400)`, random.Uint32()) // out of the row, in some tables
		}
		return fmt.Sprintf("'%x'", random.Uint32())
	}
	columns, more := "(k, v)", ""
	switch t.name {
	case "other", "late":
		columns, more = "(k, v, u)", fmt.Sprintf(", %d", random.IntN(5))
	case "apart":
		columns, more = "(k, v, u)", fmt.Sprintf(", int4range(%[1]d, %[1]d + 2)", random.IntN(8))
	case "plain":
		columns, more = "(k, v, w)", ", "+value()
	}
	switch random.IntN(12) {
	case 0, 1, 2, 3:
		return "INSERT INTO " + t.name + " " + columns + " VALUES (" + key() + ", " + value() + more + ")"
	case 4, 5:
		return "DELETE FROM " + t.name + " WHERE k = " + key()
	case 6:
		return "UPDATE " + t.name + " SET k = " + key() + " WHERE k = " + key()
	case 7:
		if t.name == "other" || t.name == "late" { // a value passes from row to row
			return "UPDATE " + t.name + " SET u = u + 1 WHERE k = " + key()
		}
		return "UPDATE " + t.name + " SET k = " + key() + ", v = " + value() + " WHERE k = " + key()
	case 8:
		if t.name == "plain" { // large enough to be streamed
			return fmt.Sprintf(`INSERT INTO plain SELECT %d + i, md5(i::text), repeat(md5(i::text), 12) FROM generate_series(1, 400) i`, 1000*random.IntN(3))
		}
		return "DELETE FROM " + t.name
	default:
		return "UPDATE " + t.name + " SET v = " + value() + " WHERE k = " + key()
	}
}

// oddPatience has a table without a key get an index after its first pass.
const oddPatience = 1 << 62

// oddPrimary writes at random, by two sessions at once.
type oddPrimary struct {
	t      *testing.T
	c      *testpg.Cluster
	db     string
	states map[uint32]int // by transaction: the number of its state
	known  map[string]int // the first number of each state
	texts  []string
	each   func() // is called after each commit; nil: nothing is
}

func newOddPrimary(t *testing.T, c *testpg.Cluster) *oddPrimary {
	p := &oddPrimary{t: t, c: c, db: c.CreateDatabase(t), states: map[uint32]int{}, known: map[string]int{}}
	for _, sql := range oddSchema() {
		c.Exec(t, p.db, sql)
	}
	c.Exec(t, p.db, `CREATE PUBLICATION p FOR ALL TABLES`)
	c.Exec(t, p.db, `SELECT pg_create_logical_replication_slot('`+p.db+`', 'pgoutput')`)
	return p
}

// write runs transactions and notes the state after each.
func (p *oddPrimary) write(random *rand.Rand, transactions int) {
	ctx := context.Background()
	look := p.c.Connect(p.t, p.db)
	note := func(xid *uint32) {
		text := testpg.Rows(p.t, look, oddState())[0]
		if _, ok := p.known[text]; !ok {
			p.known[text] = len(p.texts)
		}
		if xid != nil {
			p.states[*xid] = len(p.texts)
		}
		p.texts = append(p.texts, text)
	}
	note(nil)
	sessions := []*pgx.Conn{p.c.Connect(p.t, p.db), p.c.Connect(p.t, p.db)}
	for _, s := range sessions {
		if _, err := s.Exec(ctx, `SET lock_timeout = '5ms'`); err != nil {
			p.t.Fatal(err)
		}
	}
	open := []bool{false, false}
	run := func(s *pgx.Conn, sql string) error { _, err := s.Exec(ctx, sql); return err }
	for done := 0; done < transactions; {
		n := random.IntN(2)
		s := sessions[n]
		if !open[n] {
			if err := run(s, "BEGIN"); err != nil {
				p.t.Fatal(err)
			}
			open[n] = true
		}
		for range 1 + random.IntN(8) {
			if err := run(s, "SAVEPOINT s"); err != nil {
				p.t.Fatal(err)
			}
			if err := run(s, oddStatement(random)); err != nil || random.IntN(12) == 0 {
				if err := run(s, "ROLLBACK TO s"); err != nil {
					p.t.Fatal(err)
				}
			}
		}
		if random.IntN(3) == 0 {
			continue
		}
		var xid *uint32
		if err := s.QueryRow(ctx, `SELECT pg_current_xact_id_if_assigned()::text::bigint % 4294967296`).Scan(&xid); err != nil {
			p.t.Fatal(err)
		}
		open[n] = false
		done++
		if random.IntN(10) == 0 {
			_ = run(s, "ROLLBACK")
			continue
		}
		if run(s, "SET CONSTRAINTS ALL IMMEDIATE") != nil {
			_ = run(s, "ROLLBACK")
			continue
		}
		if err := run(s, "COMMIT"); err != nil {
			p.t.Fatal(err)
		}
		note(xid)
		if p.each != nil {
			p.each()
		}
	}
	for n, s := range sessions {
		if open[n] {
			_ = run(s, "ROLLBACK")
		}
	}
}

// stream returns what the slot sends, and where the last transaction ends.
func (p *oddPrimary) stream() (list []frame.Record, last frame.LSN) {
	ctx := context.Background()
	conn := p.c.Connect(p.t, p.db)
	if _, err := conn.Exec(ctx, `SET logical_decoding_work_mem = '64kB'; SET extra_float_digits = 1`); err != nil {
		p.t.Fatal(err)
	}
	rows, err := conn.Query(ctx, `SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '2', 'publication_names', 'p', 'messages', 'true', 'streaming', 'on')`, p.db)
	if err != nil {
		p.t.Fatal(err)
	}
	var lsn string
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&lsn, &data}, func() error {
		at, err := frame.ParseLSN(lsn)
		list = append(list, frame.Record{LSN: at, Payload: append([]byte(nil), data...)})
		if kind := data[0]; kind == 'C' || kind == 'c' {
			last = at
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return list, last
}

// TestRandomTransactions: whatever the keys and constraints are, however the stream is
// cut into target transactions and wherever the applier dies, the replica has the state
// that the primary had at the stored position, and its readers see states of the primary
// in their order.
func TestRandomTransactions(t *testing.T) {
	c := testpg.Shared(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	p := newOddPrimary(t, c)
	p.write(random, 150)
	records, last := p.stream()
	t.Logf("%d transactions, %d records", len(p.states), len(records))
	for round := range 4 {
		p.apply(random, round, records, last)
	}
}

// apply has a new replica take the stream.
func (p *oddPrimary) apply(random *rand.Rand, round int, list []frame.Record, last frame.LSN) {
	t := p.t
	r := newReplica(t, p.c, append([]string{`DROP TABLE t`}, oddSchema()...)...)
	r.odd = func(a *Applier) {
		a.cfg.Hold = []int{1, 500, 20000, 8 << 20}[random.IntN(4)]
		a.backlog.least = []int{1, 20, 200, 20000}[random.IntN(4)]
		a.patience = []int64{indexPatience, -oddPatience}[random.IntN(2)]
	}
	r.hurried = random.IntN(2) == 0
	conn := p.c.Connect(t, r.db)
	check := func(what string) int {
		stored, _, err := catalog.Position(context.Background(), conn, r.origin)
		if err != nil {
			t.Fatal(err)
		}
		at := p.states[stored.XID]
		if got := testpg.Rows(t, conn, oddState())[0]; got != p.texts[at] {
			t.Fatalf("round %d, %s: at state %d of %d (%s)\nprimary:\n%s\nreplica:\n%s", round, what, at, len(p.texts), stored.End, p.texts[at], got)
		}
		return at
	}
	stop := p.read(r, round)
	defer stop()
	for cuts := random.IntN(6); cuts >= 0; cuts-- {
		p.once(random, r, list, last, cuts > 0)
		check("stopped")
	}
	if at := check("at the end"); at < len(p.texts)-1 && p.texts[at] != p.texts[len(p.texts)-1] {
		t.Fatalf("round %d: it ends at state %d of %d", round, at, len(p.texts))
	}
}

// once runs one applier, to the end or until it is cut short.
func (p *oddPrimary) once(random *rand.Rand, r *replica, list []frame.Record, last frame.LSN, cut bool) {
	frames := make(chan frame.Frame, 1+random.IntN(50))
	a, from, end := r.run(frames, func(frame.Ack) {})
	behind := time.Duration(random.IntN(2)) * time.Hour
	list = p.since(list, from)
	upTo := len(list)
	if cut {
		upTo = random.IntN(len(list) + 1)
	}
	feed := func(f frame.Frame) bool {
		select {
		case frames <- f:
			return true
		case <-a.done:
			return false
		}
	}
	feed(frame.Heartbeat{Snapshot: "3:3:", At: time.Now().Add(behind)})
	for at := 0; at < upTo; {
		n := min(upTo-at, 1+random.IntN(200))
		if random.IntN(5) == 0 {
			n = min(upTo-at, 1+random.IntN(5000))
		}
		if !feed(frame.Data{Records: list[at : at+n]}) {
			break
		}
		at += n
		if random.IntN(20) == 0 && !feed(frame.Heartbeat{At: time.Now().Add(behind)}) {
			break
		}
	}
	if !cut {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := a.Await(ctx, last); err != nil {
			p.t.Error(errors.Join(err, end()))
			return
		}
	} else if random.IntN(2) == 0 {
		p.c.Exec(p.t, "postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+r.db+`' AND application_name = 'applier'`)
	}
	_ = end()
}

// since leaves out the transactions that a server would not send from a position on.
func (p *oddPrimary) since(list []frame.Record, from frame.LSN) (out []frame.Record) {
	before := func(commit []byte) bool { l := commit[:8]; return frame.LSN(be(l)) < from }
	gone := map[uint64]bool{} // transactions that were streamed
	for _, r := range list {
		if r.Payload[0] == 'c' && before(r.Payload[6:]) {
			gone[be(r.Payload[1:5])] = true
		}
	}
	skip, block := false, false
	var relations []frame.Record
	for _, r := range list {
		switch r.Payload[0] {
		case 'B':
			skip = before(r.Payload[1:])
		case 'S':
			block, skip = true, gone[be(r.Payload[1:5])]
		case 'c', 'A':
			if gone[be(r.Payload[1:5])] {
				continue
			}
		case 'R':
			switch { // a server that begins here would define it
			case skip && block:
				relations = append(relations, frame.Record{LSN: r.LSN, Payload: append([]byte("R"), r.Payload[5:]...)})
			case skip:
				relations = append(relations, r)
			}
		}
		if !skip || r.Payload[0] == 'c' || r.Payload[0] == 'A' {
			if len(relations) > 0 && !block {
				out, relations = append(out, relations...), nil
			}
			out = append(out, r)
		}
		if r.Payload[0] == 'E' || r.Payload[0] == 'C' {
			skip, block = false, false
		}
	}
	return out
}

func be(b []byte) (v uint64) {
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// read looks at the replica again and again until stop.
func (p *oddPrimary) read(r *replica, round int) (stop func()) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	conn := p.c.Connect(p.t, r.db)
	wg.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
			}
			text := testpg.Rows(p.t, conn, oddState())[0]
			if _, ok := p.known[text]; !ok {
				p.t.Errorf("round %d: a reader saw what the primary never was:\n%s", round, text)
				return
			}
		}
	})
	return func() { close(ended); wg.Wait() }
}

// oddConnect gives an applier the session that a link gives it.
func oddConnect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	for name, value := range Settings() {
		cfg.RuntimeParams[name] = value
	}
	cfg.RuntimeParams["session_replication_role"], cfg.RuntimeParams["search_path"], cfg.RuntimeParams["application_name"] = "replica", "", "applier"
	return pgx.ConnectConfig(ctx, cfg)
}
