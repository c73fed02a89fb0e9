package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// twins makes two databases by the same statements.
func twins(t testing.TB, c *testpg.Cluster, sql ...string) (primary, secondary string) {
	t.Helper()
	primary, secondary = c.CreateDatabase(t), c.CreateDatabase(t)
	c.Exec(t, primary, sql...)
	c.Exec(t, secondary, sql...)
	return primary, secondary
}

func TestNamesTheRows(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `
		CREATE SCHEMA "My ""schema""";
		CREATE TABLE "My ""schema"""."Täble 'x'" ("Key" text, n int, "V v" text, PRIMARY KEY (n, "Key"));
		INSERT INTO "My ""schema"""."Täble 'x'" SELECT 'k' || i, i % 7, 'v' FROM generate_series(1, 5000) i;
		CREATE TABLE same (id int UNIQUE NOT NULL); INSERT INTO same SELECT generate_series(1, 10);
		CREATE TABLE nothing ();
		CREATE TABLE empty (id int)`)
	c.Exec(t, secondary, `
		DELETE FROM "My ""schema"""."Täble 'x'" WHERE "Key" = 'k70';
		INSERT INTO "My ""schema"""."Täble 'x'" VALUES ('k70', 6, 'v');
		UPDATE "My ""schema"""."Täble 'x'" SET "V v" = 'V' WHERE "Key" = 'k4999'`)
	r := compare(t, c, primary, secondary, RunOptions{})
	if r.Equal || !r.Complete || len(r.Tables) != 4 {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"same", "nothing", "empty"} {
		if table := tableOf(t, r, name); table.Verdict != Same {
			t.Errorf("%+v", table)
		}
	}
	k := tableOf(t, r, "Täble 'x'")
	want := []Difference{
		{Kind: Missing, Key: []string{"0", "k70"}, Primary: 1},
		{Kind: Extra, Key: []string{"6", "k70"}, Secondary: 1},
		{Kind: Different, Key: []string{"1", "k4999"}, Columns: []string{"V v"}, Primary: 1, Secondary: 1},
	}
	if k.Verdict != Differs || k.More || len(k.Differences) != 3 || !slices.Equal(k.Key, []string{"n", "Key"}) || k.PrimaryRows != 5000 || k.SecondaryRows != 5000 {
		t.Fatalf("%+v", k)
	}
	for _, w := range want {
		if !slices.ContainsFunc(k.Differences, func(d Difference) bool { return fmt.Sprint(d) == fmt.Sprint(w) }) {
			t.Errorf("%+v is not among %+v", w, k.Differences)
		}
	}
}

// Equal rows count: the sum of their hashes is not that of one, nor zero.
func TestDuplicates(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `
		CREATE TABLE log (at date, line text);
		INSERT INTO log SELECT '2024-01-01', 'line ' || i % 10 FROM generate_series(1, 40000) i; ANALYZE;
		CREATE TABLE flat (v int); INSERT INTO flat SELECT 7 FROM generate_series(1, 30000)`)
	mustEqual(t, compare(t, c, primary, secondary, RunOptions{}))
	for _, table := range []string{"log", "flat"} {
		c.Exec(t, secondary, `DELETE FROM `+table+` WHERE ctid IN (SELECT ctid FROM `+table+` LIMIT 2)`)
	}
	c.Exec(t, primary, `INSERT INTO log VALUES ('2024-01-01', 'line one more')`)
	r := compare(t, c, primary, secondary, RunOptions{})
	k := tableOf(t, r, "log")
	if k.Verdict != Differs || k.More || len(k.Key) > 0 {
		t.Fatalf("%+v", k)
	}
	var gone int64
	for _, d := range k.Differences {
		gone += d.Primary - d.Secondary
		if d.Kind != Missing || d.Text == "" || d.Key != nil {
			t.Errorf("%+v", d)
		}
	}
	if gone != 3 {
		t.Errorf("%d rows are missing, want 3: %+v", gone, k.Differences)
	}
	if k = tableOf(t, r, "flat"); len(k.Differences) != 1 || fmt.Sprint(k.Differences[0]) != fmt.Sprint(Difference{Kind: Missing, Text: "(7)", Primary: 30000, Secondary: 29998}) {
		t.Errorf("%+v", k)
	}
}

// Random damage to a table that has too many rows to be listed is found, all of it.
func TestFindsRandomDamage(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT i, md5(i::text) FROM generate_series(1, 120000) i; ANALYZE`)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	want := map[string]string{}
	conn := c.Connect(t, secondary)
	for range 60 {
		id := 1 + random.IntN(120000)
		if want[strconv.Itoa(id)] != "" {
			continue
		}
		switch random.IntN(3) {
		case 0:
			run(t, conn, fmt.Sprintf(`DELETE FROM big WHERE id = %d`, id))
			want[strconv.Itoa(id)] = Missing
		case 1:
			run(t, conn, fmt.Sprintf(`INSERT INTO big VALUES (%d, 'x')`, -id))
			want[strconv.Itoa(-id)] = Extra
		case 2:
			run(t, conn, fmt.Sprintf(`UPDATE big SET v = overlay(v PLACING 'x' FROM %d) WHERE id = %d`, 1+random.IntN(32), id))
			want[strconv.Itoa(id)] = Different
		}
	}
	k := tableOf(t, compare(t, c, primary, secondary, RunOptions{}), "big")
	if k.More || len(k.Differences) != len(want) {
		t.Errorf("%d differences, want %d, more: %v", len(k.Differences), len(want), k.More)
	}
	for _, d := range k.Differences {
		if want[d.Key[0]] != d.Kind {
			t.Errorf("%+v, want %q", d, want[d.Key[0]])
		}
	}
	// So many that not all are named, but as many as were asked for.
	run(t, conn, `UPDATE big SET v = 'x'`)
	k = tableOf(t, compare(t, c, primary, secondary, RunOptions{Differences: 10}), "big")
	if len(k.Differences) != 10 || !k.More {
		t.Errorf("%d differences, more: %v", len(k.Differences), k.More)
	}
	run(t, conn, `TRUNCATE big`)
	k = tableOf(t, compare(t, c, primary, secondary, RunOptions{Differences: 10}), "big")
	if len(k.Differences) != 10 || !k.More || k.Differences[0].Kind != Missing || k.SecondaryRows != 0 {
		t.Errorf("%+v", k)
	}
}

// Writers go on; the snapshot stays what it was, and nobody waits for us.
func TestUnderWriters(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE TABLE t (id bigserial PRIMARY KEY, v text); INSERT INTO t (v) SELECT 'v' || i FROM generate_series(1, 50000) i; ANALYZE`)
	snapshot := export(t, c, primary)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	writer := c.Connect(t, primary)
	run(t, writer, `SET lock_timeout = '2s'`)
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := writer.Exec(context.Background(), `UPDATE t SET v = v || 'x' WHERE id % 1000 = $1`, i%1000); err != nil {
				t.Errorf("a writer: %v", err)
				break
			}
		}
	}()
	for range 3 {
		r, err := Run(t.Context(), local(c, primary, snapshot), local(c, secondary, export(t, c, secondary)), RunOptions{Settle: time.Millisecond})
		must(t, err)
		mustEqual(t, r)
	}
	stop()
	testpg.Await(t, "the client ends", done)
}

// What the snapshot does not show any more is unchecked, not different, and not
// the same either.
func TestCouldNotCheck(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE TABLE cut (id int); CREATE TABLE gone (id int); CREATE TABLE changed (id int, v int); CREATE TABLE renamed (id int); CREATE TABLE rewritten (id int); CREATE TABLE fine (id int);
		INSERT INTO cut VALUES (1); INSERT INTO gone VALUES (1); INSERT INTO changed VALUES (1); INSERT INTO renamed VALUES (1); INSERT INTO rewritten VALUES (1); INSERT INTO fine VALUES (1)`)
	p, s := local(c, primary, export(t, c, primary)), local(c, secondary, export(t, c, secondary))
	c.Exec(t, secondary, `TRUNCATE cut`, `DROP TABLE gone`, `ALTER TABLE changed DROP COLUMN v`, `ALTER TABLE renamed RENAME TO other; CREATE TABLE renamed (id int); INSERT INTO renamed VALUES (1)`, `ALTER TABLE rewritten ALTER id TYPE bigint`)
	r, err := Run(t.Context(), p, wire{s}, RunOptions{})
	must(t, err)
	if r.Equal || r.Complete {
		t.Errorf("equal %v, complete %v", r.Equal, r.Complete)
	}
	for _, table := range r.Tables {
		if table.Name == "fine" {
			if table.Verdict != Same {
				t.Errorf("%+v", table)
			}
			continue
		}
		if table.Verdict != Unchecked || table.Problem == nil || table.Problem.Code != "table-changed" || !table.Problem.Retryable {
			t.Errorf("%s: %s, %v", table.Name, table.Verdict, table.Problem)
		}
	}
}

func TestUnreadableRows(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE TABLE plain (id int); CREATE TABLE broken (id int, v regrole)`, `INSERT INTO plain VALUES (1)`)
	// A type whose output fails stands for a page that can't be read.
	c.Exec(t, secondary, `ALTER TABLE broken DROP v; CREATE TYPE bad;
		CREATE FUNCTION bad_in(cstring) RETURNS bad LANGUAGE internal IMMUTABLE STRICT AS 'textin';
		CREATE FUNCTION bad_out(bad) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'enum_out';
		CREATE TYPE bad (INPUT = bad_in, OUTPUT = bad_out, INTERNALLENGTH = variable);
		ALTER TABLE broken ADD v bad; INSERT INTO broken VALUES (1, 'x')`)
	r := compare(t, c, primary, secondary, RunOptions{})
	k := tableOf(t, r, "broken")
	if r.Equal || r.Complete || k.Verdict != Unchecked || k.Problem.Code != "table-unreadable" || tableOf(t, r, "plain").Verdict != Same {
		t.Errorf("%+v", r)
	}
}

func TestSnapshotGone(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	_, err := Run(t.Context(), local(c, db, "00000003-0000001B-1"), local(c, db, ""), RunOptions{})
	if p, ok := problem.As(err); !ok || p.Code != "snapshot-gone" || !p.Retryable {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, local(c, db, ""), local(c, db, ""), RunOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestTablesThatOneSideLacks(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE TABLE common (id int PRIMARY KEY, a int, b int); INSERT INTO common VALUES (1, 2, 3)`)
	c.Exec(t, primary, `CREATE TABLE ours (id int); CREATE UNLOGGED TABLE unlogged (id int); CREATE SCHEMA hawser; CREATE TABLE hawser.link (id int)`)
	c.Exec(t, secondary, `CREATE TABLE theirs (id int); ALTER TABLE common DROP b; ALTER TABLE common ADD c int`)
	r := compare(t, c, primary, secondary, RunOptions{})
	if len(r.Tables) != 3 || r.Equal || !r.Complete {
		t.Errorf("%+v", r.Tables)
	}
	for name, code := range map[string]string{"ours": "table-missing", "theirs": "table-missing", "common": "columns-differ"} {
		if k := tableOf(t, r, name); k.Verdict != Differs || k.Problem == nil || k.Problem.Code != code || k.Problem.Help() == "" {
			t.Errorf("%s: %+v", name, k)
		}
	}
	r = compare(t, c, primary, secondary, RunOptions{Only: func(schema, name string) bool { return schema == "public" && name == "none" }})
	if len(r.Tables) != 0 || !r.Equal {
		t.Errorf("%+v", r)
	}
}

func TestSequences(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE SEQUENCE up; CREATE SEQUENCE down INCREMENT -1; CREATE SEQUENCE "Odd ""one"""; SELECT nextval('up')`)
	mustEqual(t, compare(t, c, primary, secondary, RunOptions{}))
	c.Exec(t, primary, `SELECT setval('up', 100); SELECT nextval('down')`)
	c.Exec(t, secondary, `SELECT setval('"Odd ""one"""', 5)`)
	r := compare(t, c, primary, secondary, RunOptions{Settle: time.Millisecond})
	if r.Equal || !r.Complete || len(r.Sequences) != 3 {
		t.Errorf("%+v", r.Sequences)
	}
	for _, s := range []struct {
		was, now, is Sequence
		ok           bool
	}{
		{Sequence{Last: 5, Called: true, Increment: 1}, Sequence{Last: 9, Called: true, Increment: 1}, Sequence{Last: 7, Called: true, Increment: 1}, true},
		{Sequence{Last: 5, Called: true, Increment: 1}, Sequence{Last: 9, Called: true, Increment: 1}, Sequence{Last: 4, Called: true, Increment: 1}, false},
		{Sequence{Last: 5, Called: true, Increment: 1}, Sequence{Last: 9, Called: true, Increment: 1}, Sequence{Last: 10, Called: true, Increment: 1}, false},
		{Sequence{Last: -5, Called: true, Increment: -1}, Sequence{Last: -9, Called: true, Increment: -1}, Sequence{Last: -7, Called: true, Increment: -1}, true},
		{Sequence{Last: 1, Increment: 1}, Sequence{Last: 1, Increment: 1}, Sequence{Last: 1, Called: true, Increment: 1}, false},
		{Sequence{Last: 90, Called: true, Increment: 1}, Sequence{Last: 1, Called: true, Increment: 1}, Sequence{Last: 1, Called: true, Increment: 1}, true}, // it was set back
	} {
		if got := len(compareSequences([]Sequence{s.was}, []Sequence{s.now}, []Sequence{s.is})) == 0; got != s.ok {
			t.Errorf("%+v between %+v and %+v: %v", s.is, s.was, s.now, got)
		}
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `DO $$ BEGIN FOR i IN 1..450 LOOP EXECUTE format('CREATE TABLE t%s (id int)', i); END LOOP; END $$`)
	var seen []int
	mustEqual(t, compare(t, c, primary, secondary, RunOptions{Progress: func(p Progress) { seen = append(seen, p.TablesDone) }}))
	if !slices.Equal(seen, []int{200, 400, 450}) {
		t.Errorf("progress %v", seen)
	}
}

// lagging has a secondary's sequences stand for some looks.
type lagging struct {
	Side
	looks int
}

func (s *lagging) Sequences(ctx context.Context) ([]Sequence, error) {
	all, err := s.Side.Sequences(ctx)
	if s.looks--; s.looks >= 0 {
		for i := range all {
			all[i].Last--
		}
	}
	return all, err
}

// TestSequencesOfOneThatIsBehind: sequences follow with the changes, so those of a
// secondary that takes in older ones say nothing yet, however long that takes.
func TestSequencesOfOneThatIsBehind(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE SEQUENCE s; SELECT setval('s', 7)`)
	late := &lagging{local(c, secondary, export(t, c, secondary)), 3}
	r, err := Run(t.Context(), local(c, primary, export(t, c, primary)), late,
		RunOptions{Settle: time.Nanosecond, Behind: func() (bool, error) { return late.looks > 0, nil }})
	must(t, err)
	mustEqual(t, r)
}

// TestConfigurationTables: of an extension's tables the link carries those that the
// extension declares to be the user's, so these are compared, and the others are named.
func TestConfigurationTables(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `
		CREATE EXTENSION pgcrypto; CREATE TABLE settings (id int PRIMARY KEY); CREATE TABLE internals (id int);
		ALTER EXTENSION pgcrypto ADD TABLE settings; ALTER EXTENSION pgcrypto ADD TABLE internals;
		CREATE UNLOGGED TABLE cache (id int); CREATE MATERIALIZED VIEW seen AS SELECT 1 AS one`,
		`SET allow_system_table_mods = on; UPDATE pg_extension SET extconfig = ARRAY['settings'::regclass], extcondition = '{""}' WHERE extname = 'pgcrypto'`)
	c.Exec(t, primary, `INSERT INTO settings VALUES (1)`)
	r := compare(t, c, primary, secondary, RunOptions{})
	if len(r.Tables) != 1 || tableOf(t, r, "settings").Verdict != Differs {
		t.Errorf("%+v", r.Tables)
	}
	if want := []LeftOut{{"public", "internals", Internal}, {"public", "seen", Refreshed}, {"public", "cache", Unlogged}}; !slices.Equal(r.LeftOut, want) {
		t.Errorf("left out are %v, want %v", r.LeftOut, want)
	}
}
