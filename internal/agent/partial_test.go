package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// partial makes database shop on a and links some of its tables to b.
func partial(t *testing.T, tables, exclude []string, sql ...string) (a, b *instance) {
	t.Helper()
	a, b = pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", sql...)
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary, Tables: tables, ExcludeTables: exclude}
	if _, err := a.CreateLink(context.Background(), spec); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	return a, b
}

// rows are the rows of a table as text, or why they can't be read.
func rows(t *testing.T, i *instance, table string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), i.DSN("shop"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close(context.Background())
	r, err := conn.Query(t.Context(), `SELECT t::text FROM ONLY `+table+` t ORDER BY 1`)
	if err != nil {
		return err.Error()
	}
	out, err := pgx.CollectRows(r, pgx.RowTo[string])
	if err != nil {
		return err.Error()
	}
	return strings.Join(out, " ")
}

// caughtUp waits until the replica shows what was written last.
func caughtUp(t *testing.T, a, b *instance) {
	t.Helper()
	a.Exec(t, "shop", `INSERT INTO s.mark DEFAULT VALUES`)
	want := rows(t, a, "s.mark")
	testpg.Eventually(t, 60*time.Second, "the replica has caught up", func() (bool, error) {
		got := rows(t, b, "s.mark")
		if got == want {
			return true, nil
		}
		l, err := b.Link(context.Background(), "shop")
		if err == nil && l.State == api.StateSuspended {
			t.Fatalf("suspended: %v", l.Cause)
		}
		return false, fmt.Errorf("marks %q, want %q; %s: %v; %v", got, want, l.State, l.Cause, err)
	})
}

// carried checks that the replica has the same rows of some tables and none of others.
func carried(t *testing.T, a, b *instance, with, without []string) {
	t.Helper()
	for _, table := range with {
		testpg.Eventually(t, 30*time.Second, table+" has the primary's rows", func() (bool, error) {
			got, want := rows(t, b, table), rows(t, a, table)
			if got != want || got == "" {
				return false, fmt.Errorf("%.2000q, want %.2000q", got, want)
			}
			return true, nil
		})
	}
	for _, table := range without {
		if got := rows(t, b, table); got != "" {
			t.Errorf("%s has rows: %q", table, got)
		}
		if rows(t, a, table) == "" {
			t.Errorf("%s has no rows on the primary", table)
		}
	}
}

// provenPart has both sides compared.
func provenPart(t *testing.T, b *instance, tables int) {
	t.Helper()
	r, err := b.VerifyLink(context.Background(), "shop", api.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Equal || !r.Complete {
		t.Errorf("the sides differ: %+v", r)
	}
	if len(r.Tables) != tables {
		t.Errorf("%d tables compared, want %d: %+v", len(r.Tables), tables, r.Tables)
	}
}

const partialSchema = `
	CREATE SCHEMA s; CREATE SCHEMA other; CREATE SCHEMA "My Schema";
	CREATE TABLE s.mark (id serial PRIMARY KEY);
	CREATE TABLE s.order_1 (id int PRIMARY KEY, v text);
	CREATE TABLE s.order_log (at int, what text);
	CREATE TABLE s.secret (id int PRIMARY KEY REFERENCES s.order_1, v text);
	CREATE TABLE "My Schema"."Big.Table" (id int PRIMARY KEY);
	CREATE TABLE "My Schema".small (id int);
	CREATE TABLE other.x (id int PRIMARY KEY, v text);
	CREATE TABLE other.keyless (id int);
	CREATE INDEX x_v ON other.x (v);
	INSERT INTO s.order_1 VALUES (1, 'a'), (2, 'b');
	INSERT INTO s.order_log VALUES (1, 'log');
	INSERT INTO s.secret VALUES (1, 'secret');
	INSERT INTO "My Schema"."Big.Table" VALUES (1);
	INSERT INTO "My Schema".small VALUES (1);
	INSERT INTO other.x VALUES (1, 'x');
	INSERT INTO other.keyless VALUES (1);`

// TestPartialLink carries the rows of chosen tables, whatever becomes of the others.
func TestPartialLink(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := partial(t, []string{`s.mark`, `S.order_*`, `"My Schema".*`}, []string{`*.order_log`, `"My Schema".small`}, partialSchema)
	with := []string{`s.order_1`, `"My Schema"."Big.Table"`}
	without := []string{`s.order_log`, `s.secret`, `"My Schema".small`, `other.x`, `other.keyless`}
	carried(t, a, b, with, without)
	provenPart(t, b, 3)

	l, err := b.Link(ctx, "shop")
	if err != nil || !slices.Contains(l.Tables, `S.order_*`) || !slices.Contains(l.ExcludeTables, `*.order_log`) {
		t.Errorf("the link does not name its filter: %+v, %v", l, err)
	}
	if got := testpg.Rows(t, a.Connect(t, "shop"), `SELECT relname FROM pg_class WHERE relreplident = 'f'`); len(got) != 0 {
		t.Errorf("tables that the link does not carry got REPLICA IDENTITY FULL: %v", got)
	}
	for _, table := range append(with, without...) {
		if err := try(t, b, `DELETE FROM `+table); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("%s can be written on the replica: %v", table, err)
		}
	}

	// Rows and definitions of what is not carried do no harm.
	a.Exec(t, "shop",
		`UPDATE s.secret SET v = 'y'; DELETE FROM other.keyless; INSERT INTO other.keyless VALUES (2); TRUNCATE s.order_log; INSERT INTO s.order_log VALUES (2, 'z')`,
		`TRUNCATE s.order_1 CASCADE; INSERT INTO s.order_1 VALUES (1, 'c'), (3, 'd'); INSERT INTO s.secret VALUES (3, 'again')`,
		`ALTER TABLE other.x ADD COLUMN w uuid NOT NULL DEFAULT gen_random_uuid(), ADD CHECK (v <> 'never')`,
		`DROP INDEX other.x_v; CREATE UNIQUE INDEX ON other.x (w); ALTER TABLE other.x ALTER v TYPE varchar USING v || random()`,
		`CREATE TABLE other.later (id int PRIMARY KEY, v text); INSERT INTO other.later VALUES (1, 'x'); UPDATE other.later SET v = 'y'`,
		`CREATE TABLE other.made AS SELECT * FROM other.x; CREATE VIEW s.v AS SELECT x.v FROM other.x, s.order_1`,
		`ALTER TABLE other.later ALTER id SET DEFAULT 7; INSERT INTO other.later (v) VALUES ('z'); CREATE TABLE other.dropped (); DROP TABLE other.dropped`)
	caughtUp(t, a, b)
	carried(t, a, b, with, append(without, `other.later`, `other.made`))
	// Tables of later that match, made in every way.
	a.Exec(t, "shop",
		`CREATE TABLE s.order_2 (v text); INSERT INTO s.order_2 VALUES ('x'); UPDATE s.order_2 SET v = 'y'`,
		`CREATE TABLE s.order_as AS SELECT * FROM s.order_1`,
		`SELECT * INTO s.order_into FROM other.x`,
		`DO $$BEGIN CREATE TABLE s.order_do (id int); INSERT INTO s.order_do VALUES (1); CREATE TABLE s.order_log2 (id int); INSERT INTO s.order_log2 VALUES (5); END$$`)
	a.Exec(t, "shop", `INSERT INTO s.order_as VALUES (9, 'late'); DELETE FROM s.order_into; INSERT INTO s.order_into (id, v) VALUES (9, 'late'); UPDATE s.order_2 SET v = 'z'`)
	caughtUp(t, a, b)
	with = append(with, `s.order_2`, `s.order_as`, `s.order_into`, `s.order_do`, `s.order_log2`)
	carried(t, a, b, with, without)
	b.awaitState(t, "shop", api.StateSynchronized)
	provenPart(t, b, 8)

	// A copy again, by name and of all that differ.
	if err := a.ResyncLink(ctx, "shop", []string{"other.x"}); err == nil || !strings.Contains(err.Error(), "no table of this name") {
		t.Errorf("resync of a table that is not carried: %v", err)
	}
	change(t, b, `DELETE FROM s.order_1; INSERT INTO other.x (id, w) VALUES (77, gen_random_uuid())`)
	if err := b.ResyncLink(ctx, "shop", nil); err != nil {
		t.Fatal(err)
	}
	carried(t, a, b, with, nil)
	b.awaitState(t, "shop", api.StateSynchronized)
	provenPart(t, b, 8)

	// What Hawser put into the database goes with the link.
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := testpg.Rows(t, a.Connect(t, "shop"), `SELECT pubname FROM pg_publication UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'hawser'
		UNION ALL SELECT relname FROM pg_class WHERE relreplident = 'f'`); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	if err := try(t, b, `INSERT INTO s.order_1 VALUES (100, 'free')`); err != nil {
		t.Errorf("the replica is no database of its own: %v", err)
	}
}

// partialStep is a string of statements, and tables that are carried behind it or not.
type partialStep struct {
	sql           string
	with, without []string
}

func (s partialStep) play(t *testing.T, a, b *instance) {
	t.Helper()
	a.Exec(t, "shop", strings.Split(s.sql, "; ")...)
	caughtUp(t, a, b)
	carried(t, a, b, s.with, s.without)
	if t.Failed() {
		t.Fatalf("after %s", s.sql)
	}
}

// TestPartialComingAndGoing has tables come into the patterns and go out of them.
func TestPartialComingAndGoing(t *testing.T) {
	t.Parallel()
	a, b := partial(t, []string{`s.*`}, []string{`s.no_*`}, partialSchema, `ALTER TABLE s.secret DROP CONSTRAINT secret_id_fkey`,
		`CREATE TABLE s.no_one (id int); CREATE TABLE s.ref (id int REFERENCES s.order_1); INSERT INTO s.ref VALUES (1)`,
		`INSERT INTO other.keyless SELECT generate_series(10, 20000)`)
	steps := []partialStep{
		{`ALTER TABLE s.secret RENAME TO no_secret; INSERT INTO s.no_secret VALUES (8, 'not to be seen')`, nil, []string{`s.no_secret`}},
		{`BEGIN; UPDATE s.no_secret SET v = 'still'; ALTER TABLE s.no_secret RENAME TO yes; UPDATE s.yes SET v = 'seen'; INSERT INTO s.yes VALUES (5, 'new'); COMMIT; DELETE FROM s.yes WHERE id = 8`,
			[]string{`s.yes`}, nil},
		{`ALTER TABLE other.keyless SET SCHEMA s; UPDATE s.keyless SET id = -id WHERE id < 50; DELETE FROM s.keyless WHERE id % 2 = 0`, []string{`s.keyless`}, nil},
		// TRUNCATE would be refused, since a foreign key refers to it.
		{`ALTER TABLE s.ref DROP CONSTRAINT ref_id_fkey; ALTER TABLE s.order_1 SET SCHEMA other; INSERT INTO other.order_1 VALUES (77, 'x')`, []string{`s.ref`}, []string{`other.order_1`}},
		{`BEGIN; ALTER TABLE s.order_log RENAME TO no_log; ALTER TABLE s.no_log RENAME TO order_log; INSERT INTO s.order_log VALUES (3, 'both'); COMMIT`, []string{`s.order_log`}, nil},
		// Nobody has a lock on the tables of a schema that is renamed.
		{`ALTER SCHEMA other RENAME TO gone; ALTER SCHEMA s RENAME TO t; INSERT INTO t.yes VALUES (6, 'out'); ALTER SCHEMA t RENAME TO s; INSERT INTO s.yes VALUES (7, 'in')`,
			[]string{`s.yes`, `s.keyless`, `s.ref`, `s.order_log`}, []string{`gone.x`, `gone.order_1`}},
		{`CREATE UNLOGGED TABLE s.fast (id int); INSERT INTO s.fast VALUES (1); ALTER TABLE s.fast SET LOGGED; INSERT INTO s.fast VALUES (2)`, []string{`s.fast`}, nil},
		{`CREATE SCHEMA sub CREATE TABLE t (id int); INSERT INTO sub.t VALUES (1); DROP TABLE s.yes; CREATE TABLE s.yes (id int); INSERT INTO s.yes VALUES (1)`, []string{`s.yes`}, []string{`sub.t`}},
	}
	for _, step := range steps {
		step.play(t, a, b)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	provenPart(t, b, 6)
}

// TestPartialWriters moves a table out and in under writers.
func TestPartialWriters(t *testing.T) {
	t.Parallel()
	a, b := partial(t, []string{`s.*`}, nil, partialSchema, `CREATE TABLE s.busy (id bigserial, v int); INSERT INTO s.busy (v) SELECT 0 FROM generate_series(1, 5000)`)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var committed atomic.Int64
	for range 2 {
		go func() {
			defer func() { done <- struct{}{} }()
			conn, err := pgx.Connect(ctx, a.DSN("shop"))
			if err != nil {
				return
			}
			defer conn.Close(context.Background())
			for i := 0; ctx.Err() == nil; i++ {
				err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					for range 3 {
						for _, name := range []string{"s.busy", "o.busy", "s.idle"} { // whatever it is called just now
							_, err := tx.Exec(ctx, `DO $$BEGIN
								INSERT INTO `+name+` (v) VALUES (1); UPDATE `+name+` SET v = v + 1 WHERE id = 1 + floor(random() * 5000)::int; DELETE FROM `+name+` WHERE id = 1 + floor(random() * 9000)::int;
								EXCEPTION WHEN undefined_table OR invalid_schema_name THEN NULL; END$$`)
							if err != nil {
								return err
							}
						}
					}
					return nil
				})
				if err == nil {
					committed.Add(1)
				}
			}
		}()
	}
	a.Exec(t, "shop", `CREATE SCHEMA o`)
	for range 5 {
		for _, sql := range []string{
			`ALTER TABLE s.busy SET SCHEMA o`, `ALTER TABLE o.busy SET SCHEMA s`,
			`ALTER SCHEMA o RENAME TO p`, `ALTER SCHEMA s RENAME TO o`, `ALTER SCHEMA o RENAME TO s`, `ALTER SCHEMA p RENAME TO o`,
		} {
			a.Exec(t, "shop", sql)
			from := committed.Load()
			testpg.Eventually(t, 30*time.Second, "the clients write behind "+sql, func() (bool, error) { return committed.Load() > from+2, nil })
		}
	}
	cancel()
	testpg.Await(t, "a writer ends", done)
	testpg.Await(t, "the other writer ends", done)
	caughtUp(t, a, b)
	carried(t, a, b, []string{`s.busy`, `s.order_1`}, nil)
	b.awaitState(t, "shop", api.StateSynchronized)
	provenPart(t, b, 5)
}

// TestPartialWhileSeeding changes what is carried, and what is not, while tables are copied.
func TestPartialWhileSeeding(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", partialSchema,
		`CREATE TABLE s.large (id int PRIMARY KEY, v text); INSERT INTO s.large SELECT i, repeat('x', 500) FROM generate_series(1, 200000) i; CREATE INDEX ON s.large (v)`,
		`CREATE TABLE s.leaves (id int, v text); INSERT INTO s.leaves SELECT i, repeat('y', 500) FROM generate_series(1, 50000) i`,
		`CREATE TABLE other.comes (id int, v text); INSERT INTO other.comes SELECT i, 'z' FROM generate_series(1, 1000) i`,
		`CREATE TABLE other.p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE other.p_1 PARTITION OF other.p FOR VALUES FROM (0) TO (10); CREATE INDEX p_v ON other.p (v); INSERT INTO other.p VALUES (1, 'p')`)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Tables: []string{`s.*`}}); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`DROP INDEX other.x_v`, `ALTER TABLE other.x ADD UNIQUE (v)`, `DROP INDEX other.p_v`, `ALTER TABLE other.p ADD COLUMN w int`,
		`UPDATE s.leaves SET v = 'a' WHERE id % 100 = 0`, `ALTER TABLE s.leaves SET SCHEMA other`, `UPDATE other.leaves SET v = 'b' WHERE id % 100 = 1`,
		`UPDATE other.comes SET v = 'a' WHERE id = 1`, `ALTER TABLE other.comes SET SCHEMA s`, `UPDATE s.comes SET v = 'b' WHERE id % 10 = 2`, `DELETE FROM s.comes WHERE id = 3`,
		`UPDATE s.large SET v = 'c' WHERE id % 1000 = 3`, `CREATE TABLE s.made AS SELECT * FROM s.large LIMIT 10`, `ALTER TABLE other.leaves RENAME TO gone`,
	} {
		a.Exec(t, "shop", sql)
	}
	if l, err := b.Link(ctx, "shop"); err != nil || l.State != api.StateSeeding {
		t.Logf("the copy had ended before: %s, %v", l.State, err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	caughtUp(t, a, b)
	carried(t, a, b, []string{`s.large`, `s.comes`, `s.made`, `s.order_1`}, []string{`other.gone`, `other.x`, `other.p_1`})
	b.awaitState(t, "shop", api.StateSynchronized)
	provenPart(t, b, 7)
}

const partialPartitions = `
	CREATE SCHEMA s; CREATE TABLE s.mark (id serial PRIMARY KEY);
	CREATE TABLE s.m (id int, at int, v text) PARTITION BY RANGE (at);
	CREATE TABLE s.m_1 PARTITION OF s.m FOR VALUES FROM (0) TO (10);
	CREATE TABLE s.m_2 PARTITION OF s.m FOR VALUES FROM (10) TO (20) PARTITION BY LIST (v);
	CREATE TABLE public.m_2a PARTITION OF s.m_2 FOR VALUES IN ('a');
	CREATE TABLE s.old_3 PARTITION OF s.m FOR VALUES FROM (20) TO (30);
	CREATE TABLE s.out (id int, at int) PARTITION BY RANGE (at);
	CREATE TABLE s.out_1 PARTITION OF s.out FOR VALUES FROM (0) TO (10);
	CREATE TABLE public.lone (id int, at int, v text); CREATE TABLE public.late (id int, at int, v text);
	INSERT INTO s.m VALUES (1, 1, 'a'), (2, 11, 'a'), (3, 21, 'a');
	INSERT INTO s.out VALUES (1, 1); INSERT INTO public.lone VALUES (31, 31, 'lone'); INSERT INTO public.late VALUES (41, 41, 'late')`

// TestPartialPartitions: a partition goes with its parent, unless it is left out by its
// own name.
func TestPartialPartitions(t *testing.T) {
	t.Parallel()
	a, b := partial(t, []string{`s.m`, `s.mark`}, []string{`s.old_*`}, partialPartitions)
	carried(t, a, b, []string{`s.m_1`, `public.m_2a`}, []string{`s.old_3`, `s.out_1`, `public.lone`})
	for _, step := range []partialStep{
		{`ALTER TABLE s.m ATTACH PARTITION public.lone FOR VALUES FROM (30) TO (40); INSERT INTO s.m VALUES (32, 32, 'x')`, []string{`public.lone`}, []string{`s.old_3`}},
		{`CREATE TABLE s.m_5 PARTITION OF s.m FOR VALUES FROM (50) TO (60); INSERT INTO s.m VALUES (51, 51, 'x')`, []string{`s.m_5`}, nil},
		{`ALTER TABLE s.m DETACH PARTITION public.lone; INSERT INTO public.lone VALUES (33, 33, 'alone')`, nil, []string{`public.lone`}},
		{`ALTER TABLE s.m ATTACH PARTITION public.late FOR VALUES FROM (40) TO (50); UPDATE s.m SET at = 42 WHERE at = 21; UPDATE s.m SET at = 22 WHERE at = 1; INSERT INTO s.m VALUES (9, 2, 'y')`,
			[]string{`public.late`, `s.m_1`}, []string{`s.old_3`}},
		{`ALTER TABLE s.m DETACH PARTITION public.late CONCURRENTLY; INSERT INTO public.late VALUES (43, 43, 'out')`, []string{`s.m_1`}, []string{`public.late`}},
		{`ALTER TABLE s.m RENAME TO n; INSERT INTO s.n VALUES (10, 3, 'z')`, nil, []string{`s.m_1`, `public.m_2a`, `s.m_5`}},
		{`ALTER TABLE s.out RENAME TO m; INSERT INTO s.m VALUES (5, 5); UPDATE s.m SET at = 6`, []string{`s.out_1`}, []string{`s.m_1`}},
		{`TRUNCATE s.n; INSERT INTO s.n VALUES (1, 1, 'a'); TRUNCATE s.m; INSERT INTO s.m VALUES (7, 7)`, []string{`s.out_1`}, []string{`s.m_1`}},
		{`ALTER TABLE s.m RENAME TO n2; ALTER TABLE s.n RENAME TO m; INSERT INTO s.m VALUES (2, 12, 'a')`, []string{`s.m_1`, `public.m_2a`}, []string{`s.out_1`}},
	} {
		step.play(t, a, b)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	provenPart(t, b, 4)
}

// TestPartialValidation names what a filter would do before anything is made.
func TestPartialValidation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", partialSchema, `CREATE TABLE "My Table" (id int); CREATE VIEW s.reads AS SELECT * FROM other.x; CREATE MATERIALIZED VIEW s.mat AS SELECT * FROM other.x`,
		`CREATE TABLE s.p (id int REFERENCES other.x) PARTITION BY LIST (id); CREATE TABLE s.p_1 PARTITION OF s.p FOR VALUES IN (1)`)
	validate := func(at *instance, role api.Role, tables, exclude []string) problem.Findings {
		t.Helper()
		peer := map[*instance]string{a: "beta", b: "alpha"}[at]
		f, err := at.ValidateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: peer, Role: role, Tables: tables, ExcludeTables: exclude})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	text := func(f problem.Findings) (out string) {
		for _, p := range f {
			out += fmt.Sprintf("%s: %s: %s %s\n", p.Code, strings.TrimPrefix(p.Object, "on instance alpha: "), p.Cause, p.Remedy)
		}
		return out
	}
	for _, c := range []struct {
		tables, exclude []string
		blocks          bool
		want            []string
	}{
		{[]string{`s.*`}, nil, true, []string{`foreign-key-crosses: foreign key p_id_fkey of s.p: it refers to other.x`, `the rows of 5 of 10 tables`,
			`reads-without-rows: view s.reads: it reads other.x`, `materialized view s.mat`}},
		{[]string{`s.*`}, []string{`s.p`}, false, []string{`the rows of 4 of 10 tables`}},
		{[]string{`s.*`, `other.x`}, nil, false, []string{`the rows of 6 of 10 tables`}},
		{nil, []string{`s.order_1`}, true, []string{`foreign key secret_id_fkey of s.secret: it refers to s.order_1`, `refer to nothing --exclude-tables s.secret`}},
		{nil, []string{`s.order_1`, `s.secret`}, false, nil},
		{[]string{`s.*`, `other.x`}, []string{`s.o*`, `oth?r.*`}, true, []string{`foreign key p_id_fkey of s.p: it refers to other.x, whose rows the link would not carry since --exclude-tables 'oth?r.*' leaves them out, so on the replica its rows would refer to nothing --exclude-tables s.p`}},
		{[]string{`s.*`, `My Schema.*`}, nil, true, []string{`pattern-matches-nothing: --tables My Schema.*`}},
		{[]string{`public.My Table`, `public.m? table`}, []string{`S.ordr_1`, `public.My T*`}, true, []string{`--tables 'public."My Table"'`, `--exclude-tables s.order_1`, `--exclude-tables 'public."My T"*'`}},
		{[]string{`s.secret`, `s.order_1`}, []string{`nowhere.*`}, true, []string{`pattern-matches-nothing: --exclude-tables nowhere.*`}},
		{[]string{`orders`}, nil, true, []string{`bad-pattern: table pattern orders: it names no schema`}},
		{[]string{`orders`}, []string{`a.b.c`}, true, []string{`bad-pattern: table pattern orders: it names no schema`, `bad-pattern: table pattern a.b.c: it has more than two parts`}},
		{[]string{`s.*`}, []string{`s.*`}, true, []string{`no-table-chosen`}},
	} {
		for _, f := range []problem.Findings{validate(a, api.RolePrimary, c.tables, c.exclude), validate(b, api.RoleSecondary, c.tables, c.exclude)} {
			if got := len(f.Blocking()) > 0; got != c.blocks {
				t.Errorf("%v but %v: blocks %v\n%s", c.tables, c.exclude, got, text(f))
			}
			for _, want := range c.want {
				if !strings.Contains(text(f), want) {
					t.Errorf("%v but %v: no %q in\n%s", c.tables, c.exclude, want, text(f))
				}
			}
		}
	}
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Tables: []string{`s.*`}}); err == nil {
		t.Error("a link was made across a foreign key")
	}
	// The border is crossed later.
	if _, err := b.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "alpha", Role: api.RoleSecondary, Tables: []string{`s.*`}, ExcludeTables: []string{`s.p`}}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `ALTER TABLE s.order_1 ADD FOREIGN KEY (id) REFERENCES other.x NOT VALID`, `INSERT INTO other.x VALUES (2, 'y')`,
		`ALTER TABLE s.order_1 VALIDATE CONSTRAINT order_1_id_fkey`, `CREATE TABLE s.n (id int); INSERT INTO s.n VALUES (1)`,
		`ALTER TABLE s.n ADD CONSTRAINT n_x FOREIGN KEY (id) REFERENCES other.x`, `INSERT INTO s.order_1 SELECT 9 FROM (SELECT) x WHERE false`)
	caughtUp(t, a, b)
	carried(t, a, b, []string{`s.n`, `s.order_1`}, []string{`other.x`})
	l, err := b.Link(ctx, "shop")
	if err != nil || !strings.Contains(text(l.Findings), "foreign-key-not-valid") {
		t.Errorf("the keys that are not valid on the replica are not named: %v\n%s", err, text(l.Findings))
	}
}

// TestPartialFailover: the secondary of a partial link is no second primary.
func TestPartialFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := partial(t, []string{`s.*`}, nil, partialSchema)
	for _, i := range []*instance{a, b} {
		_, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 10 * time.Second})
		if p, ok := problem.As(err); !ok || p.Code != "link-is-partial" || !strings.Contains(p.Cause, `--tables 's.*'`) {
			t.Errorf("failover on %s: %v", i.name, err)
		}
	}
	if err := try(t, a, `INSERT INTO s.order_1 VALUES (50, 'open')`); err != nil {
		t.Errorf("the primary does not write: %v", err)
	}
	caughtUp(t, a, b)
	a.stop()
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := try(t, b, `INSERT INTO s.order_1 VALUES (51, 'forced')`); err != nil {
		t.Errorf("the forced side does not write: %v", err)
	}
	if l, err := b.Link(ctx, "shop"); err != nil || !slices.ContainsFunc(l.Findings, func(p *problem.Problem) bool { return p.Code == "partial-primary" }) {
		t.Errorf("the forced side does not tell what it lacks: %+v, %v", l.Findings, err)
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if l, err := a.Link(ctx, "shop"); err != nil || !strings.Contains(l.Cause.Remedy, "hawser link drop shop") {
		t.Errorf("the remedy of the old primary: %+v, %v", l.Cause, err)
	}
	if err := a.RejoinLink(ctx, "shop"); err == nil || !strings.Contains(err.Error(), "some tables alone") {
		t.Errorf("rejoin: %v", err)
	}
	if _, err := b.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*instance{a, b} {
		if err := try(t, i, `INSERT INTO other.x VALUES (60, 'own'); INSERT INTO s.order_1 VALUES (60, 'own')`); err != nil {
			t.Errorf("%s is no database of its own: %v", i.name, err)
		}
	}
	if got := rows(t, a, "other.x"); !strings.Contains(got, "(1,x)") {
		t.Errorf("the old primary lost what it alone had: %s", got)
	}
}

// TestPartialBesideWhole: two links of one database, of which one chooses.
func TestPartialBesideWhole(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := partial(t, []string{`s.*`}, nil, partialSchema)
	c := newInstance(t, "gamma")
	trust(t, c, a, fmt.Sprintf("127.0.0.1:%d", a.port))
	c.awaitPeer(t)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "whole", Database: "shop", Peer: "gamma", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	c.awaitState(t, "whole", api.StateSynchronized)
	a.Exec(t, "shop", `UPDATE other.keyless SET id = 3`, `ALTER TABLE s.secret SET SCHEMA other`, `ALTER TABLE other.x SET SCHEMA s`, `UPDATE s.x SET v = 'moved'`, `CREATE TABLE other.k (id int); INSERT INTO other.k VALUES (1); UPDATE other.k SET id = 2`)
	caughtUp(t, a, b)
	caughtUp(t, a, c)
	carried(t, a, b, []string{`s.x`, `s.order_1`}, []string{`other.secret`, `other.keyless`, `other.k`})
	carried(t, a, c, []string{`s.x`, `s.order_1`, `other.secret`, `other.keyless`, `other.k`}, nil)
	if _, err := a.DropLink(ctx, "whole", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "shop", `INSERT INTO s.order_1 VALUES (70, 'on')`)
	caughtUp(t, a, b)
	carried(t, a, b, []string{`s.order_1`}, nil)
}
