package seed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// Text is exact whatever the databases and roles have set.
func TestTypesSurviveStrangeSettings(t *testing.T) {
	t.Parallel()
	p := newPair(t, `
		CREATE TYPE mood AS ENUM ('sad', 'so, "so"', 'it''s fine');
		CREATE TYPE spot AS (x int, label text);
		CREATE DOMAIN positive AS int CHECK (VALUE > 0);
		CREATE TABLE everything (
			a smallint, b bigint, c numeric, d real, e double precision, f money, g text, h varchar(20), i char(5), j bytea,
			k timestamp, l timestamptz, m date, n time, o timetz, p interval, q boolean, r mood, s point, t polygon, u inet, v cidr,
			w macaddr, x bit(5), y varbit, z tsvector, aa tsquery, bb uuid, cc json, dd jsonb, ee int[], ff text[][], gg int4range,
			hh tstzmultirange, ii spot, jj positive, kk spot[], ll name, mm oid, nn pg_lsn, oo xml)`)
	p.from.Exec(t, p.src, `
		INSERT INTO everything SELECT -32768, 9223372036854775807, 'NaN', 1.1, 0.1::float8 + 0.2, 12345.67, E'tab\tnew\nline\\N \u20ac', '\N', 'ab', '\x00ff5c',
			'infinity', '1883-11-18 12:03:57.123456+00', '0044-03-15 BC', '24:00:00', '12:00:00.5+05:30', '-1 year +3 days -04:05:06.789', true, 'so, "so"',
			'(1.5,-0)', '((0,0),(1,1),(1,0))', '::1/64', '10.1.0.0/16', '08:00:2b:01:02:03', B'10101', B'1', 'a fat cat''s:1A', 'fat & (rat | cat:*)',
			'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": [1,  2]}', '{"z": "\\u20ac"}', '{1,NULL,3}', '{{a,NULL},{"c d","\"e\\"}}', '[1,10)',
			'{[2020-01-01 00:00+00,2020-01-02 00:00+00)}', ROW(1, 'x,"y')::spot, 7, ARRAY[ROW(1,NULL)::spot], 'n', 42, 'A/1F', '<a>b</a>'`,
		`INSERT INTO everything (g) VALUES (NULL), (''), ('NULL')`,
		`INSERT INTO everything (c, d, e, p) VALUES (1e-300::numeric, '-Infinity', 5e-324, '178000000 years'), (repeat('9', 200)::numeric, 3.4028235e38, -0.0, '1 mon -1 day')`,
		`ALTER DATABASE `+p.src+` SET datestyle = 'German'`, `ALTER DATABASE `+p.src+` SET intervalstyle = 'sql_standard'`,
		`ALTER DATABASE `+p.src+` SET extra_float_digits = -10`, `ALTER DATABASE `+p.src+` SET bytea_output = 'escape'`,
		`ALTER DATABASE `+p.src+` SET timezone = 'America/St_Johns'`, `ALTER DATABASE `+p.src+` SET client_encoding = 'LATIN1'`,
		`ALTER DATABASE `+p.src+` SET statement_timeout = '5s'`, `ALTER DATABASE `+p.src+` SET default_transaction_isolation = 'serializable'`)
	p.to.Exec(t, p.dst, `ALTER DATABASE `+p.dst+` SET datestyle = 'SQL, DMY'`, `ALTER DATABASE `+p.dst+` SET array_nulls = off`,
		`ALTER DATABASE `+p.dst+` SET timezone = 'Asia/Kathmandu'`, `ALTER DATABASE `+p.dst+` SET default_transaction_isolation = 'repeatable read'`)
	p.list()
	p.mustRun()
	for _, db := range []string{p.src, p.dst} {
		p.from.Exec(t, "postgres", `ALTER DATABASE `+db+` RESET ALL`)
	}
	p.same(`everything`, `SELECT count(*) FROM everything`)
}

func TestEveryKindOfTable(t *testing.T) {
	t.Parallel()
	p := newPair(t, `
		CREATE TABLE "My ""Table""; --" ("select" int, "né w" text, "a.b" text DEFAULT 'x');
		CREATE SCHEMA "Ünï 'code'"; CREATE TABLE "Ünï 'code'"."таблица" (id int, "列" text);
		CREATE TABLE nothing (); CREATE TABLE vacant (id int);
		CREATE TABLE parent (id int, v text); CREATE TABLE child (extra int) INHERITS (parent);
		CREATE TABLE parted (id int, at date) PARTITION BY RANGE (id);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
		CREATE TABLE parted_2 (at date, junk int, id int); ALTER TABLE parted_2 DROP junk;
		ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (100) TO (200);
		CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM (200) TO (300) PARTITION BY LIST (at);
		CREATE TABLE parted_3_rest PARTITION OF parted_3 DEFAULT;
		CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY, gone text, twice int GENERATED ALWAYS AS (id * 2) STORED, v text);
		ALTER TABLE made DROP gone;
		CREATE TABLE computed (x int GENERATED ALWAYS AS (7) STORED);
		CREATE UNLOGGED TABLE volatile (id int)`)
	p.from.Exec(t, p.src,
		`INSERT INTO "My ""Table""; --" SELECT g, 'ü' || g FROM generate_series(1, 100) g`,
		`INSERT INTO "Ünï 'code'"."таблица" VALUES (1, '日本')`,
		`INSERT INTO nothing SELECT FROM generate_series(1, 5)`,
		`INSERT INTO parent SELECT g, 'p' FROM generate_series(1, 10) g`, `INSERT INTO child SELECT g, 'c', g FROM generate_series(1, 20) g`,
		`INSERT INTO parted SELECT g, date '2024-01-01' + g FROM generate_series(0, 299) g`,
		`INSERT INTO made (v) SELECT 'v' FROM generate_series(1, 30)`, `INSERT INTO computed SELECT FROM generate_series(1, 3)`,
		`INSERT INTO volatile VALUES (1)`)
	for _, small := range []int64{0, defaultLimits.small} { // alone, and in a batch
		p.to.Exec(t, p.dst, `DELETE FROM hawser.seed_table`)
		p.limits.small = small
		var names []string
		for _, s := range p.list() {
			names = append(names, s.Name)
		}
		slices.Sort(names)
		want := []string{`My "Table"; --`, "child", "computed", "made", "nothing", "parent", "parted_1", "parted_2", "parted_3_rest", "vacant", "таблица"}
		if !slices.Equal(names, want) {
			t.Errorf("tables %q, want %q", names, want)
		}
		p.mustRun()
		p.allSame()
		p.same("SELECT count(*) FROM nothing", "SELECT count(*) FROM ONLY parent", "SELECT sum(twice) FROM made")
	}
}

// A table of few pages and much TOAST is split, and its parts hold every row once.
func TestToastHeavyTableInParts(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE blobs (id int, b bytea); ALTER TABLE blobs ALTER b SET STORAGE EXTERNAL`)
	p.from.Exec(t, p.src, `INSERT INTO blobs SELECT g, decode(repeat(md5(g::text), 400), 'hex') FROM generate_series(1, 3000) g`,
		`DELETE FROM blobs WHERE id % 7 = 0`, `INSERT INTO blobs VALUES (-1, decode(repeat('ab', 3000000), 'hex'))`)
	p.sizes = sizes{split: 1 << 20, part: 1 << 20}
	p.list()
	p.mustRun()
	p.same("blobs", "SELECT count(*), sum(id), sum(length(b)) FROM blobs")
	s := p.states()[0]
	if s.RowsDone != 2573 || s.BytesDone != s.Bytes || s.Bytes < 15<<20 {
		t.Errorf("recorded %d rows and %d of %d bytes", s.RowsDone, s.BytesDone, s.Bytes)
	}
	if n := p.most.Load(); n != int64(p.workers) {
		t.Errorf("%d streams worked at a time, want %d", n, p.workers)
	}
	if got := p.seeder.Progress(); got.BytesDone != got.Bytes || got.RowsDone != 2573 || got.Rows != 2573 || got.TablesDone != 1 {
		t.Errorf("progress %+v", got)
	}
}

// Functions of indexes, checks and generated columns find what they name without a
// schema: when rows are read in parts, when they are written, and when the table is
// emptied to be copied again.
func TestFunctionsWithoutSchema(t *testing.T) {
	t.Parallel()
	p := newPair(t, `
		CREATE FUNCTION inside(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1'; CREATE FUNCTION outside(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT inside($1)';
		CREATE TABLE parts (id int CHECK (outside(id) > 0), g int GENERATED ALWAYS AS (outside(id)) STORED, class regclass, v text); CREATE INDEX ON parts (outside(id)); CREATE TABLE whole (LIKE parts INCLUDING ALL)`)
	p.from.Exec(t, p.src, `INSERT INTO parts (id, class, v) SELECT i, CASE i % 2 WHEN 0 THEN 'parts'::regclass ELSE 'pg_class' END, repeat('x', 100) FROM generate_series(1, 20000) i`,
		`INSERT INTO whole (id) SELECT id FROM parts`)
	for _, sizes := range []sizes{defaultSizes, {split: 1 << 20, part: 1 << 20}} {
		p.to.Exec(t, p.dst, `DELETE FROM hawser.seed_table`)
		p.sizes = sizes
		p.list()
		p.mustRun()
		p.same("SELECT count(*), sum(id), sum(g), min(class::text), max(class::text) FROM parts", "SELECT count(*), sum(g) FROM whole")
	}
}

// A thousand tables neither cost a connection each nor go lost.
func TestThousandTinyTables(t *testing.T) {
	t.Parallel()
	const n = 1000
	p := newPair(t, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE format('CREATE TABLE t%%s (id int, v text)', i); END LOOP; END $$`, n))
	p.from.Exec(t, p.src, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE format('INSERT INTO t%%s SELECT g, ''r'' || g FROM generate_series(1, %%s) g', i, i %% 5); END LOOP; END $$`, n))
	p.list()
	conn, most := p.from.Connect(t, "postgres"), 0
	p.gate.onLoaded = func(oid uint32) {
		if oid%20 == 0 {
			return
		}
		var here int
		if err := conn.QueryRow(context.Background(), `
			SELECT max(n) FROM (SELECT count(*) n FROM pg_stat_activity WHERE datname = ANY ($1) AND application_name = 'hawser:seed' GROUP BY datname) a`,
			[]string{p.src, p.dst}).Scan(&here); err == nil {
			most = max(most, here)
		}
	}
	built := make(map[uint32]int)
	var mu sync.Mutex
	p.build = func(_ context.Context, _ *pgx.Conn, oid uint32) error {
		mu.Lock()
		defer mu.Unlock()
		built[oid]++
		return nil
	}
	p.mustRun()
	if most == 0 || most > p.workers {
		t.Errorf("%d sessions in one database at a time, want at most %d", most, p.workers)
	}
	if len(built) != n {
		t.Errorf("%d tables were built, want %d", len(built), n)
	}
	var sum []string
	for i := 1; i <= n; i++ {
		sum = append(sum, fmt.Sprintf("SELECT count(*) FROM t%d", i))
	}
	if got := testpg.Rows(t, p.to.Connect(t, p.dst), "SELECT sum(count) FROM ("+strings.Join(sum, " UNION ALL ")+") s"); got[0] != "2000" {
		t.Errorf("%s rows arrived, want 2000", got[0])
	}
	if got := p.seeder.Progress(); got.TablesDone != n || got.RowsDone != 2000 {
		t.Errorf("progress: %d tables, %d rows", got.TablesDone, got.RowsDone)
	}
}

// Rows arrive exactly as the snapshot that the applier was told of saw them, while
// writers go on.
func TestRowsAreThoseOfTheSnapshot(t *testing.T) {
	t.Parallel()
	const tables = 6
	var schema strings.Builder
	for i := range tables {
		fmt.Fprintf(&schema, `CREATE TABLE t%[1]d (id int, v bigint); CREATE TABLE log%[1]d (id int, v bigint, xid xid8);`, i)
	}
	p := newPair(t, schema.String())
	for i := range tables {
		p.from.Exec(t, p.src, fmt.Sprintf(`INSERT INTO t%[1]d SELECT g, 0 FROM generate_series(1, %[2]d) g;
			INSERT INTO log%[1]d SELECT id, 0, pg_current_xact_id() FROM t%[1]d; ALTER TABLE t%[1]d ADD PRIMARY KEY (id)`, i, 200+i*i*300))
	}
	p.sizes, p.limits.small = sizes{split: 200 << 10, part: 64 << 10}, 64<<10
	list := p.list()
	ctx, stop := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for n := range 2 {
		conn := p.from.Connect(t, p.src)
		writers.Go(func() {
			for i := n; ctx.Err() == nil; i += 2 {
				_, err := conn.Exec(context.Background(), fmt.Sprintf(`
					WITH u AS (UPDATE t%[1]d SET v = %[2]d WHERE id %% 37 = %[2]d %% 37 RETURNING id, v)
					INSERT INTO log%[1]d SELECT id, v, pg_current_xact_id() FROM u`, i%tables, i+1))
				if err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	var once sync.Once
	p.gate.retake = func(catalog.SeedTable) (again bool) { // now and then
		once.Do(func() { again = true })
		return again
	}
	err := p.run(t.Context())
	stop()
	testpg.Returns(t, "the writers end", writers.Wait)
	if err != nil {
		t.Fatal(err)
	}
	src, dst := p.from.Connect(t, p.src), p.to.Connect(t, p.dst)
	between := 0 // tables whose snapshot lies among the writes
	for _, s := range list {
		if s.Name[0] != 't' {
			continue
		}
		writes := testpg.Rows(t, src, fmt.Sprintf(`
			SELECT bool_or(pg_visible_in_snapshot(xid, '%[2]s') AND v > 0) AND bool_or(NOT pg_visible_in_snapshot(xid, '%[2]s')) FROM log%[1]s`,
			s.Name[1:], p.gate.snapshots[s.OID].Snapshot))
		if writes[0] == "t" {
			between++
		}
		seen := p.gate.snapshots[s.OID].Snapshot.String()
		want := testpg.Rows(t, src, fmt.Sprintf(`
			SELECT DISTINCT ON (id) id, v FROM log%s WHERE pg_visible_in_snapshot(xid, '%s') ORDER BY id, v DESC`, s.Name[1:], seen))
		have := testpg.Rows(t, dst, "SELECT id, v FROM "+s.Name+" ORDER BY id")
		if !slices.Equal(want, have) {
			t.Errorf("table %s: its %d rows are not the %d of snapshot %s", s.Name, len(have), len(want), seen)
		}
	}
	if between < tables/2 {
		t.Errorf("only %d tables were written to before and after their snapshot", between)
	}
}

// What is small on disk may be large as text. A batch holds no more than its share
// of memory.
func TestSmallTablesOfLargeText(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE a (v text); CREATE TABLE b (v text); CREATE TABLE c (v text); CREATE TABLE d (id int)`)
	for _, name := range []string{"a", "b", "c"} {
		p.from.Exec(t, p.src, `INSERT INTO `+name+` SELECT repeat('x', 700000) FROM generate_series(1, 2)`)
	}
	p.from.Exec(t, p.src, `INSERT INTO d VALUES (1)`)
	p.limits.memory, p.workers = 2<<20, 1
	for _, s := range p.list() {
		if s.Bytes > p.limits.small {
			t.Fatalf("table %s has %d bytes", s.Name, s.Bytes)
		}
	}
	p.mustRun()
	p.same("a", "b", "c", "d")
	again := 0
	for _, n := range p.gate.requested {
		again += n - 1
	}
	if again != 2 { // one fits
		t.Errorf("%d tables were asked for again, want 2", again)
	}
}

// The lock comes before the snapshot: a TRUNCATE that commits while the lock is
// waited for is part of what is copied.
func TestLockedTableIsPutOff(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE busy (id int); CREATE TABLE idle (id int); CREATE TABLE other (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO busy SELECT generate_series(1, 1000)`, `INSERT INTO idle SELECT generate_series(1, 10)`)
	p.list()
	ctx := context.Background()
	holder := p.from.Connect(t, p.src)
	for _, sql := range []string{`BEGIN`, `TRUNCATE busy`, `INSERT INTO busy VALUES (-1)`} {
		if _, err := holder.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if tables := p.tables(); len(tables) != 3 {
		t.Errorf("a locked table keeps others from being listed: %v", tables)
	}
	live := make(chan uint32, 3)
	p.gate.onLoaded = func(oid uint32) { live <- oid }
	done := make(chan error, 1)
	go func() { done <- p.run(t.Context()) }()
	for range 2 {
		select {
		case <-live:
		case err := <-done:
			t.Fatalf("the copy ended: %v", err)
		}
	}
	testpg.Eventually(t, 10*time.Second, "progress tells what the table waits for", func() (bool, error) {
		return slices.ContainsFunc(p.seeder.Progress().Each, func(t TableProgress) bool { return t.Name == "busy" && t.Waits != "" }), nil
	})
	if _, err := holder.Exec(ctx, `COMMIT`); err != nil {
		t.Fatal(err)
	}
	if err := testpg.Await(t, "the copy ends", done); err != nil {
		t.Fatal(err)
	}
	p.same("busy", "idle", "other")
}

func TestRetake(t *testing.T) {
	t.Parallel()
	for _, small := range []int64{0, defaultLimits.small} {
		p := newPair(t, `CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE TABLE empty (id int)`)
		p.limits.small = small
		p.from.Exec(t, p.src, `INSERT INTO a SELECT generate_series(1, 1000)`, `INSERT INTO b VALUES (1)`)
		p.list()
		refused := map[uint32]int{}
		writer := p.from.Connect(t, p.src)
		p.gate.retake = func(s catalog.SeedTable) bool {
			if refused[s.OID]++; refused[s.OID] > 3 {
				return false
			}
			if _, err := writer.Exec(context.Background(), "INSERT INTO "+s.Name+" VALUES (2)"); err != nil {
				t.Error(err)
			}
			return true
		}
		p.mustRun()
		p.same("a", "b", "empty")
		for oid, n := range p.gate.requested {
			if n != refused[oid] {
				t.Errorf("table %d: %d snapshots were announced and %d taken", oid, n, refused[oid])
			}
		}
	}
}

func TestDroppedTable(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE stays (id int); CREATE TABLE goes (id int); CREATE TABLE loses (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO goes VALUES (1)`, `INSERT INTO stays VALUES (1)`)
	tables := p.list()
	p.from.Exec(t, p.src, `DROP TABLE goes`, `ALTER TABLE loses SET UNLOGGED`)
	var mu sync.Mutex // two workers await
	var awaited []frame.LSN
	p.gate.await = func(_ context.Context, lsn frame.LSN) error {
		mu.Lock()
		defer mu.Unlock()
		awaited = append(awaited, lsn)
		return nil
	}
	p.mustRun()
	p.same("stays")
	for _, s := range tables {
		if slices.Contains(p.gate.goneAt, s.OID) != (s.Name != "stays") {
			t.Errorf("table %s: gone are %d", s.Name, p.gate.goneAt)
		}
	}
	if len(awaited) != 2 || awaited[0] == 0 {
		t.Errorf("awaited %v", awaited)
	}
}

// DDL that the snapshot saw is waited for, without holding the snapshot.
func TestWaitsForDDL(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ primary, replica string }{
		"new column":    {`ALTER TABLE t ADD more text DEFAULT 'm'`, ``},
		"fewer columns": {`ALTER TABLE t DROP v`, ``},
		"renamed":       {`ALTER TABLE t RENAME TO "T 2"`, ``},
		"other schema":  {`CREATE SCHEMA far; ALTER TABLE t SET SCHEMA far`, ``},
		"retyped":       {`ALTER TABLE t ALTER id TYPE text USING 'x' || id`, `ALTER TABLE t ALTER id TYPE text`},
		"looser":        {`ALTER TABLE t ALTER v DROP NOT NULL; UPDATE t SET v = NULL`, `ALTER TABLE t ALTER v DROP NOT NULL`},
	} {
		for _, small := range []int64{0, defaultLimits.small} {
			p := newPair(t, `CREATE TABLE t (id int, v text NOT NULL); CREATE TABLE other (id int)`)
			p.limits.small = small
			p.from.Exec(t, p.src, `INSERT INTO t SELECT g, 'v' FROM generate_series(1, 500) g`, `INSERT INTO other VALUES (1)`)
			p.list()
			p.from.Exec(t, p.src, c.primary)
			if c.replica == "" {
				c.replica = c.primary
			}
			watch := p.from.Connect(t, p.src)
			p.gate.await = func(ctx context.Context, lsn frame.LSN) error {
				testpg.Eventually(t, 5*time.Second, "no snapshot is held", func() (bool, error) {
					return len(testpg.Rows(t, watch, `SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`)) == 0, nil
				})
				p.to.Exec(t, p.dst, c.replica)
				return nil
			}
			p.mustRun()
			p.allSame()
			if t.Failed() {
				t.Fatalf("%s, small %d", name, small)
			}
		}
	}
}

func TestReplicaThatNeverFits(t *testing.T) {
	t.Parallel()
	for sql, says := range map[string]string{
		`ALTER TABLE t ADD extra int`:                         `its columns are "extra", "id" there and "id" on the primary`,
		`DROP TABLE t`:                                        `it does not exist there`,
		`ALTER TABLE t ADD CHECK (id < 0)`:                    `t_id_check`,
		`ALTER TABLE t ALTER id TYPE date USING '2020-01-01'`: `date`,
	} {
		p := newPair(t, `CREATE TABLE t (id int)`)
		p.from.Exec(t, p.src, `INSERT INTO t VALUES (1)`)
		p.to.Exec(t, p.dst, sql)
		p.list()
		awaits := 0
		p.gate.await = func(context.Context, frame.LSN) error { awaits++; return nil }
		found, ok := problem.As(p.run(t.Context()))
		if !ok || found.Code != "rows-refused" || found.Object != `table "public"."t"` || found.Retryable || !strings.Contains(found.Error(), says) {
			t.Errorf("%s: %v", sql, found)
		}
		if awaits != misfitsMax {
			t.Errorf("%s: the stream was awaited %d times", sql, awaits)
		}
	}
}

// A link that waits with DDL for its tables, and a table that waits for that DDL,
// would wait for each other. The gate's own error comes out.
func TestGateErrorsComeOut(t *testing.T) {
	t.Parallel()
	mine := errors.New("mine")
	for _, call := range []string{"requested", "taken", "loaded"} {
		p := newPair(t, `CREATE TABLE t (id int)`)
		p.list()
		p.gate.fail = func(c string) error {
			if c == call {
				return mine
			}
			return nil
		}
		if err := p.run(t.Context()); !errors.Is(err, mine) {
			t.Errorf("%s: %v", call, err)
		}
	}
}

// A table that is copied again has rows, indexes and foreign keys that point to it, and
// readers, who see the rows that it had until the new ones are there.
func TestTableIsCopiedAgain(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE owner (id int PRIMARY KEY, boss int REFERENCES owner); CREATE TABLE dog (id int PRIMARY KEY, owner int REFERENCES owner)`)
	p.from.Exec(t, p.src, `INSERT INTO owner SELECT g, g FROM generate_series(1, 5000) g`, `INSERT INTO dog SELECT g, g FROM generate_series(1, 5000) g`)
	p.list()
	p.mustRun()
	reader := p.to.Connect(t, p.dst)
	var mu sync.Mutex
	p.inject = func(int) error {
		mu.Lock()
		defer mu.Unlock()
		var owners, dogs int
		err := reader.QueryRow(context.Background(), `SELECT (SELECT count(*) FROM owner), (SELECT count(*) FROM dog), set_config('lock_timeout', '5s', false)`).Scan(&owners, &dogs, nil)
		if err == nil && (owners != 5000 || dogs != 5000) {
			t.Errorf("a reader sees %d and %d rows", owners, dogs)
		}
		return err
	}
	for _, cut := range []struct {
		sizes sizes
		small int64
	}{{defaultSizes, 1 << 20}, {defaultSizes, 0}, {sizes{64 << 10, 32 << 10}, 0}} {
		p.sizes, p.limits.small = cut.sizes, cut.small
		for _, s := range p.list() {
			if err := catalog.Retake(context.Background(), p.gate.conn, linkID, s.OID, s.Snapshot); err != nil {
				t.Fatal(err)
			}
		}
		p.mustRun()
		p.same("owner", "dog")
	}
}

// The second of two runs goes on where the first stood: rows that are there are not
// copied again, and what is loaded is only made live.
func TestGoesOnWithBuilding(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE big (id int); CREATE TABLE split (id int); CREATE TABLE small (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO big SELECT generate_series(1, 20000)`, `INSERT INTO split SELECT generate_series(1, 100000)`, `INSERT INTO small VALUES (1)`)
	p.sizes = sizes{split: 1 << 20, part: 1 << 20}
	p.list()
	broken := errors.New("no index today")
	p.build = func(_ context.Context, conn *pgx.Conn, _ uint32) error {
		testpg.Eventually(t, 10*time.Second, "the other tables have their rows", func() (bool, error) {
			return testpg.Rows(t, conn, `SELECT count(*) FROM hawser.seed_table WHERE bytes_done > 0`)[0] == "3", nil
		})
		return broken
	}
	if err := p.run(t.Context()); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	clear(p.gate.requested)
	p.build = func(context.Context, *pgx.Conn, uint32) error { return nil }
	p.gate.fail = func(call string) error {
		if call == "loaded" {
			return broken
		}
		return nil
	}
	if err := p.run(t.Context()); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	for _, s := range p.states() {
		if s.State == catalog.Live || s.BytesDone == 0 {
			t.Errorf("table %s is %s, %d bytes", s.Name, s.State, s.BytesDone)
		}
	}
	before := p.seeder.Progress()
	p.gate.fail = nil
	p.mustRun()
	if len(p.gate.requested) > 0 {
		t.Errorf("snapshots were asked for again: %v", p.gate.requested)
	}
	after := p.seeder.Progress()
	if before.RowsDone > after.RowsDone || after.RowsDone != 120001 || after.BytesDone != after.Bytes {
		t.Errorf("progress went from %+v to %+v", before, after)
	}
	p.same("big", "split", "small")
}

// The indexes of one table are made by all workers at once, and what comes behind them
// waits for all; one that fails ends the run, and no other is under way then.
func TestIndexesSideBySide(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE t (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO t SELECT generate_series(1, 10000)`)
	p.list()
	p.workers = 3
	var made, running atomic.Int32
	broken := errors.New("no index today")
	together := make(chan struct{})
	step := func(ctx context.Context, conn *pgx.Conn) error {
		running.Add(1)
		defer running.Add(-1)
		if made.Add(1) == 3 {
			close(together)
		}
		select {
		case <-together:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.steps = []Step{step, step, step, func(context.Context, *pgx.Conn) error { return broken }}
	if err := p.run(t.Context()); !errors.Is(err, broken) || running.Load() != 0 {
		t.Fatalf("%v, and %d steps still run", err, running.Load())
	}
	p.steps = p.steps[:3]
	built := false
	p.build = func(context.Context, *pgx.Conn, uint32) error {
		built = true
		if made.Load() != 6 || running.Load() != 0 {
			return fmt.Errorf("%d steps were done and %d run before the rest is built", made.Load(), running.Load())
		}
		return nil
	}
	p.mustRun()
	if !built {
		t.Error("the rest was not built")
	}
	p.same("t")
}

// An agent that was killed may leave a COPY behind, which would add its rows later.
func TestLeftoverSessionsAreEnded(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE t (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO t SELECT generate_series(1, 10)`)
	p.list()
	ctx := context.Background()
	w := worker{cfg: Config{Link: linkID, Connect: p.connect(p.to, p.dst, "")}}
	if err := w.connect(ctx); err != nil {
		t.Fatal(err)
	}
	left, stop := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := w.conn.PgConn().CopyFrom(ctx, readerFunc(func([]byte) (int, error) { <-stop; return 0, errors.New("stopped") }), "COPY public.t FROM STDIN")
		left <- err
	}()
	other := worker{cfg: Config{Link: "another link", Connect: w.cfg.Connect}}
	if err := other.connect(ctx); err != nil {
		t.Fatal(err)
	}
	defer other.close()
	p.mustRun()
	if err := testpg.Await(t, "the worker that was left behind ends", left); err == nil {
		t.Error("the leftover copy went on")
	}
	close(stop)
	if err := other.conn.Ping(ctx); err != nil {
		t.Errorf("another link's session was ended: %v", err)
	}
	p.same("t")
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A table put down for a copy while others are copied is copied by the same run.
func TestTableAddedMeanwhile(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE a (id int); CREATE TABLE b (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO b VALUES (1)`)
	tables := p.list()
	p.to.Exec(t, p.dst, `DELETE FROM hawser.seed_table WHERE name = 'b'`)
	var once sync.Once
	p.gate.onLoaded = func(uint32) {
		once.Do(func() {
			i := slices.IndexFunc(tables, func(s catalog.SeedTable) bool { return s.Name == "b" })
			if err := catalog.PutSeedTable(context.Background(), p.gate.conn, linkID, tables[i]); err != nil {
				t.Error(err)
			}
		})
	}
	p.mustRun()
	p.same("b")
	if len(p.states()) != 2 {
		t.Errorf("states %v", p.states())
	}
}

// While a table's indexes are built, which may take hours, the primary is left alone.
func TestNoSnapshotOutlivesItsTable(t *testing.T) {
	t.Parallel()
	p := newPair(t, `CREATE TABLE big (id int); CREATE TABLE split (id int); CREATE TABLE small (id int)`)
	p.from.Exec(t, p.src, `INSERT INTO big SELECT generate_series(1, 20000)`, `INSERT INTO split SELECT generate_series(1, 100000)`, `INSERT INTO small VALUES (1)`)
	p.sizes = sizes{split: 1 << 20, part: 1 << 20}
	p.list()
	var building sync.WaitGroup
	building.Add(3)
	watch := p.from.Connect(t, p.src)
	var mu sync.Mutex
	p.build = func(ctx context.Context, _ *pgx.Conn, _ uint32) error {
		building.Done()
		building.Wait() // every worker builds: nothing is copied
		mu.Lock()
		defer mu.Unlock()
		if held := testpg.Rows(t, watch, `SELECT query FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL`); len(held) > 0 {
			return fmt.Errorf("held: %q", held)
		}
		return nil
	}
	p.mustRun()
}
