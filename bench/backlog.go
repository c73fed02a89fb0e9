package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// work is one kind of measurement.
type work struct {
	name, title string
	note        string // what is done, for the reader
	unit        string // of metric "value"
	measures    string // what the value is; empty: time
	more        bool   // more of it is better
	rivals      []string
	bars        []bar
	run         func(ctx context.Context, b *bench, w *work) error
	load        func(ctx context.Context, b *bench, s *server, round int) error // of a backlog
}

// figure is what the value is, in words.
func (w *work) figure() string { return cmp.Or(w.measures, "time") }

// works is filled by init, since works refer to functions that refer to it.
var works []*work

func init() {
	everyone := []string{"native", "native-streaming", "hawser", "pglogical", "decode"}
	copiers := []string{"native", "hawser", "pgcopydb", "raw"}
	works = []*work{
		{name: "small", title: "Backlog of small transactions", unit: "s", rivals: []string{"native", "hawser", "pglogical", "decode"},
			note: "200,000 transactions of pgbench -N (one update, one insert), scale 40",
			bars: []bar{{against: "native", ratio: 2}, cpuBar, memoryBar}, run: runBacklog, load: loadSmall},
		{name: "inserts", title: "Backlog of one transaction of inserts", unit: "s", rivals: everyone,
			note: "one transaction that inserts 1,000,000 rows",
			bars: []bar{{against: "native", ratio: 1.3}, {against: "native-streaming", ratio: 1}, cpuBar, memoryBar}, run: runBacklog, load: loadInserts},
		{name: "updates", title: "Backlog of one transaction of updates", unit: "s", rivals: everyone,
			note: "one transaction that updates 500,000 rows of pgbench_accounts",
			bars: []bar{{against: "native", ratio: 1.5}, cpuBar, memoryBar}, run: runBacklog, load: loadUpdates},
		{name: "mixed", title: "Backlog of mixed transactions", unit: "s", rivals: []string{"native", "hawser", "pglogical", "decode"},
			note: "40,000 transactions shaped after TPC-C: foreign keys, secondary indexes, deletes, large values, a table without a key",
			bars: []bar{{against: "native", ratio: 1.5}, cpuBar, memoryBar}, run: runBacklog, load: loadMixed},
		{name: "latency", title: "Latency, idle", unit: "ms", rivals: []string{"native", "hawser", "pglogical"},
			note:     "from commit to visible on the replica, one row ten times a second",
			measures: "median", bars: latencyBars, run: runLatency(10)},
		{name: "latency500", title: "Latency, 500 transactions a second", unit: "ms", rivals: []string{"native", "hawser", "pglogical"},
			note:     "from commit to visible on the replica, one writer, one row a transaction",
			measures: "median", bars: latencyBars, run: runLatency(500)},
		{name: "sustained", title: "Highest rate that the replica follows", unit: "tx/s", measures: "rate followed", more: true, rivals: []string{"native", "hawser"},
			note: "pgbench -N at the highest rate of transactions a second at which every row of a probe is visible on the replica within 1 s, found by doubling and halving in steps of 20 s",
			bars: []bar{{against: "native", ratio: 1.5}}, run: runSustained},
		{name: "linear", title: "Cost of a change in a larger backlog", unit: "×", measures: "growth of the cost", rivals: []string{"native", "hawser"},
			note: "small transactions of pgbench -N, 10,000 to 1,000,000 changes, start included; the figure is the largest ratio of a size's time for each change to the least of any smaller size's, 1 being linear",
			bars: []bar{{most: linearMost}, memoryBar, {metric: "flat", what: "memory, largest size to the one before", form: "%.2f ×", most: 1.5}}, run: runLinear},
		{name: "failover", title: "Planned failover, idle", unit: "ms", rivals: []string{"hawser"},
			note: "100 failovers, there and back, of a database with 200 tables; the longest time between two commits of the one client, which writes 100 times a second with a connection string of both servers",
			bars: []bar{{metric: "p99", what: "99th percentile", most: 1000}}, run: runFailover(1, 100)},
		{name: "failover1000", title: "Planned failover, 1,000 transactions a second", unit: "ms", rivals: []string{"hawser"},
			note: "as above, of each of 8 clients that together write 1,000 transactions a second",
			bars: []bar{{metric: "p99", what: "99th percentile", most: 1000}}, run: runFailover(8, 1000)},
		{name: "lineartables", title: "Cost of a change in a database of more tables", unit: "×", measures: "growth of the cost", rivals: []string{"native", "hawser"},
			note: "100,000 inserts, ten a transaction, spread over 10 to 1,000 tables; the figure is the largest ratio of a database's time for each change to the least of any with fewer tables, 1 being linear",
			bars: []bar{{most: linearMost}, memoryBar}, run: runLinearTables},
		{name: "idle100", title: "100 idle links", unit: "%", measures: "both agents' CPU, of one core", rivals: []string{"hawser"},
			note: "two agents with 100 links of as many databases of three small tables, for a minute in which nobody writes; memory is that of both agents together, at the end",
			bars: []bar{{most: 2}, {metric: "rss_link", what: "both agents' memory a link", form: "%.2f MB", most: 5},
				{metric: "connections_link", what: "connections to the replica's databases, a link", form: "%.2f", most: 1}}, run: runIdle},
		{name: "wan", title: "Rate over a line of 20 Mbit/s and 80 ms", unit: "Mbit/s", measures: "rate on the line", more: true, rivals: []string{"native", "hawser"},
			note: "a backlog of 50,000 inserts of 1 KB of random bytes, over a line of 80 ms there and back and 20 Mbit/s without loss (a proxy of streams can lose no packets); the rate is that of TCP's payload between the first and the last tenth of the bytes",
			bars: []bar{{metric: "line", what: "of the line's rate", form: "%.0f %%", least: 90}, memoryBar}, run: runWan(false), load: loadOpaque},
		{name: "wanbytes", title: "Bytes over that line", unit: "MB", measures: "bytes on the wire", rivals: []string{"native", "hawser"},
			note: "a backlog of 40,000 mixed transactions, as in `mixed`; all bytes of TCP's payload, both ways",
			bars: []bar{{against: "native", ratio: 3}}, run: runWan(true), load: loadMixed},
		{name: "copy", title: "Initial copy", unit: "s", rivals: copiers,
			note: "4,000,000 rows of pgbench with their indexes, scale 40, from the command until the replica holds all rows and indexes and, of those that can, follows",
			bars: []bar{{against: "native", ratio: 1}, {against: "pgcopydb", ratio: 1}, {against: "raw", ratio: 1 / 1.15}, memoryBar}, run: runCopy(fillCopy)},
		{name: "copytable", title: "Initial copy of one large table", unit: "s", rivals: copiers,
			note: "one table of 3,000,000 rows of about 250 bytes, with two indexes; COPY by hand is one pipe, pgcopydb splits the table",
			bars: []bar{{against: "native", ratio: 1}, {against: "pgcopydb", ratio: 1}, {against: "raw", ratio: 1 / 1.15}, memoryBar}, run: runCopy(fillCopyTable)},
		{name: "copytables", title: "Initial copy of 2,000 small tables", unit: "s", rivals: []string{"native", "hawser", "pgcopydb"},
			note: "2,000 tables of 100 rows, two indexes each",
			bars: []bar{{against: "native", ratio: 1}, {against: "pgcopydb", ratio: 1}, memoryBar}, run: runCopy(fillCopyTables)},
	}
}

func workNames() []string {
	var names []string
	for _, w := range works {
		names = append(names, w.name)
	}
	return names
}

// runBacklog stops the contestants one after another, writes while they are
// stopped, and measures how long each needs to catch up.
func runBacklog(ctx context.Context, b *bench, w *work) error {
	entries, err := b.contestants(ctx, w.rivals)
	if err != nil {
		return err
	}
	b.book.start(w)
	for round := range b.rounds {
		for _, e := range turned(entries, round) {
			s, err := b.backlog(ctx, e, func(s *server) error { return w.load(ctx, b, s, round) })
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", e.name, round+1, err)
			}
			b.book.add(w, e.name, s)
			b.say("%-8s round %d  %-18s %6.2f s  %s", w.name, round+1, e.title, s["value"], s.cost())
		}
	}
	for _, e := range entries {
		if err := e.equal(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

// backlog is one measurement.
func (b *bench) backlog(ctx context.Context, e *entry, load func(*server) error) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	p := e.pair
	if err := p.rest(ctx); err != nil {
		return nil, err
	}
	if err := e.c.hold(ctx); err != nil {
		return nil, fmt.Errorf("stop following: %w", err)
	}
	before, err := written(ctx, p.primary)
	if err != nil {
		return nil, err
	}
	if err := load(p.primary); err != nil {
		return nil, err
	}
	changes, err := writtenSince(ctx, p.primary, before)
	if err != nil {
		return nil, err
	}
	b.marker++
	if err := p.primary.exec(ctx, database, fmt.Sprintf("INSERT INTO bench_marker VALUES (%d)", b.marker), "CHECKPOINT"); err != nil {
		return nil, err
	}
	end, err := p.primary.text(ctx, database, `SELECT pg_current_wal_flush_lsn()::text`)
	if err != nil {
		return nil, err
	}
	if err := p.replica.exec(ctx, database, "CHECKPOINT"); err != nil {
		return nil, err
	}
	m := startMeter(e.pair, e.c.agents())
	if err := e.c.catchUp(ctx, b.marker, end); err != nil {
		return nil, err
	}
	s := m.stop()
	s["changes"] = changes
	return s, nil
}

// writtenSince waits until the statistics are whole: a session hands in its own
// when it has ended, which is after whoever closed it went on.
func writtenSince(ctx context.Context, s *server, before float64) (float64, error) {
	last := before
	err := until(ctx, 30*time.Second, func() (bool, error) {
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return false, err
		}
		now, err := written(ctx, s)
		if err != nil {
			return false, err
		}
		whole := now > before && now == last
		last = now
		return whole, errors.New("the primary's statistics show no change, so no cost of one can be told")
	})
	return last - before, err
}

// written is how many rows were written to the primary's database since its start.
func written(ctx context.Context, s *server) (float64, error) {
	text, err := s.text(ctx, database, `SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::text FROM pg_stat_user_tables WHERE schemaname = 'public'`)
	if err != nil {
		return 0, err
	}
	var n float64
	_, err = fmt.Sscan(text, &n)
	return n, err
}

// equal compares both sides, so that nobody is fast by leaving something out.
func (e *entry) equal(ctx context.Context) error {
	if e.limit {
		return nil
	}
	return e.pair.equal(ctx)
}

func (p *pair) equal(ctx context.Context) error {
	const digest = `
		SELECT string_agg(t, E'\n' ORDER BY t) FROM (
			SELECT format('%s %s', relname, (xpath('/row/x/text()', query_to_xml(format(
				'SELECT count(*) || '' rows, '' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) AS x FROM %s t', c.oid::regclass), false, true, '')))[1]) AS t
			FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace) x`
	var sides [2]string
	for i, s := range []*server{p.primary, p.replica} {
		var err error
		if sides[i], err = s.text(ctx, database, digest); err != nil {
			return fmt.Errorf("compare both sides: %w", err)
		}
	}
	if sides[0] != sides[1] {
		return errors.New("the replica differs:\n" + sides[0] + "\nand\n" + sides[1])
	}
	return nil
}

// pgbench writes without waiting for each commit's disk: only the WAL counts.
func (b *bench) pgbench(ctx context.Context, s *server, args ...string) error {
	_, err := b.pgbenchOutput(ctx, s, args...)
	return err
}

func (b *bench) pgbenchOutput(ctx context.Context, s *server, args ...string) ([]byte, error) {
	cmd := s.command(ctx, "pgbench", append([]string{"--no-vacuum", "--client=8", "--jobs=2", "--max-tries=10"}, append(args, database)...)...)
	cmd.Env = append(cmd.Env, "PGOPTIONS=-c synchronous_commit=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("pgbench: %w: %s", err, last(out))
	}
	return out, nil
}

func loadSmall(ctx context.Context, b *bench, s *server, round int) error {
	return b.small(ctx, s, b.size(200_000), round)
}

func (b *bench) small(ctx context.Context, s *server, transactions, round int) error {
	return b.pgbench(ctx, s, "--skip-some-updates", "--protocol=prepared", fmt.Sprintf("--transactions=%d", transactions/8), fmt.Sprintf("--random-seed=%d", round+1))
}

func loadInserts(ctx context.Context, b *bench, s *server, round int) error {
	n := b.size(1_000_000)
	return s.exec(ctx, database, fmt.Sprintf(
		`INSERT INTO bulk SELECT i, i %% 1000, md5(i::text), now() FROM generate_series(%d, %d) i`, round*n+1, (round+1)*n))
}

func loadUpdates(ctx context.Context, b *bench, s *server, _ int) error {
	return s.exec(ctx, database, fmt.Sprintf(`UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= %d`, b.size(500_000)))
}

// mixedScripts are the kinds of transactions, with their weights.
var mixedScripts = []struct {
	name, text string
	weight     int
}{
	{"order", "SELECT mixed_order(:w, :d, :c, :i)", 40},
	{"payment", "SELECT mixed_payment(:w, :d, :c)", 40},
	{"delivery", "SELECT mixed_delivery(:w, :d)", 12},
	{"document", "SELECT mixed_document(:id, false)", 6},
	{"rewrite", "SELECT mixed_document(:id, true)", 2},
}

func loadMixed(ctx context.Context, b *bench, s *server, round int) error {
	vars := fmt.Sprintf("\\set w random(1, %d)\n\\set d random(1, 10)\n\\set c random(1, 1000)\n\\set i random(1, 9900)\n\\set id random(1, 2000)\n", b.size(10))
	args := []string{"--protocol=prepared", fmt.Sprintf("--transactions=%d", b.size(40_000)/8), fmt.Sprintf("--random-seed=%d", round+1)}
	for _, m := range mixedScripts {
		file := filepath.Join(b.dir, "mixed-"+m.name+".pgbench")
		if err := os.WriteFile(file, []byte(vars+m.text+";\n"), 0o644); err != nil {
			return err
		}
		args = append(args, fmt.Sprintf("--file=%s@%d", file, m.weight))
	}
	return b.pgbench(ctx, s, args...)
}

// sample is what one measurement gave, by name.
type sample map[string]float64

// cost is the sample's CPU and memory, in words.
func (s sample) cost() string {
	parts := []string{fmt.Sprintf("CPU primary %.1f s, replica %.1f s", s["cpu_primary"], s["cpu_replica"])}
	if s["rss_agent_primary"] > 0 {
		parts = append(parts, fmt.Sprintf("agents %.1f s %.0f MB, %.1f s %.0f MB",
			s["cpu_agent_primary"], s["rss_agent_primary"], s["cpu_agent_replica"], s["rss_agent_replica"]))
	}
	return strings.Join(append(parts, fmt.Sprintf("load %.1f", s["load"])), "; ")
}

// meter measures one stretch of work.
type meter struct {
	p      *pair
	agents []int
	cpu    []float64
	begun  time.Time
}

func startMeter(p *pair, agents []int) *meter {
	for _, pid := range agents {
		resetRSS(pid)
	}
	m := &meter{p: p, agents: agents}
	m.cpu, m.begun = m.used(), time.Now()
	return m
}

func (m *meter) stop() sample {
	s := sample{"value": time.Since(m.begun).Seconds(), "load": loadAverage()}
	for i, now := range m.used() {
		s[[]string{"cpu_primary", "cpu_replica", "cpu_agent_primary", "cpu_agent_replica"}[i]] = now - m.cpu[i]
	}
	for i, pid := range m.agents {
		s[[]string{"rss_agent_primary", "rss_agent_replica"}[i]] = peakRSS(pid)
	}
	return s
}

// used is the CPU of the primary, the replica and the agents, in this order.
func (m *meter) used() []float64 {
	out := []float64{cpuOfCluster(m.p.primary.postmaster()), cpuOfCluster(m.p.replica.postmaster())}
	for _, pid := range m.agents {
		out = append(out, cpu(pid))
	}
	return out
}
