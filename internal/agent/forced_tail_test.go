package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// divergedPair is a link whose old primary, a, is diverged: b was opened by force, and tail
// is what b never received.
func divergedPair(t *testing.T, setup []string, tail ...string) (a, b *instance) {
	t.Helper()
	a, b = pair(t)
	diverge(t, a, b, setup, tail...)
	return a, b
}

func diverge(t *testing.T, a, b *instance, setup []string, tail ...string) {
	t.Helper()
	link(t, a, b, setup...)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	a.stop()
	a.Exec(t, "shop", tail...)
	if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
}

// TestTailThatOnlyRewrites: commands of the tail that change no definition, and no row of a
// table, do not forbid a rejoin. A materialized view that they filled is filled again from
// the new primary's rows; one that they emptied is not.
func TestTailThatOnlyRewrites(t *testing.T) {
	t.Parallel()
	for _, version := range []int{15, 17} {
		t.Run("PostgreSQL "+map[int]string{15: "15", 17: "17"}[version], func(t *testing.T) {
			t.Parallel()
			a, b := versionPair(t, version, version)
			diverge(t, a, b, []string{`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i; CREATE INDEX t_v ON t (v); ALTER TABLE t CLUSTER ON t_pkey`,
				`CREATE SCHEMA "My Schema"; CREATE MATERIALIZED VIEW "My Schema"."A View" AS SELECT v, count(*) FROM t GROUP BY 1; CREATE UNIQUE INDEX ON "My Schema"."A View" (v)`,
				`CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW emptied AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW filled AS SELECT count(*) FROM t WITH NO DATA`,
				`CREATE MATERIALIZED VIEW "Stale" AS SELECT count(*) FROM t`},
				`INSERT INTO t VALUES (101, 'of a'); DELETE FROM t WHERE id <= 10`, `REFRESH MATERIALIZED VIEW "Stale"`, `REFRESH MATERIALIZED VIEW CONCURRENTLY "My Schema"."A View"; REFRESH MATERIALIZED VIEW counted`,
				`DO $$BEGIN REFRESH MATERIALIZED VIEW emptied WITH NO DATA; EXECUTE 'REFRESH MATERIALIZED VIEW filled'; END$$`,
				`REINDEX TABLE t`, `REINDEX INDEX CONCURRENTLY t_v`, `CLUSTER t`, `VACUUM FULL t`, `VACUUM t`, `ANALYZE t`, `CHECKPOINT`,
				`CREATE TEMP TABLE work (id int); INSERT INTO work VALUES (1); CREATE INDEX ON work (id); ALTER TABLE work ADD COLUMN v text; DROP TABLE work`)
			a.run(t)
			a.awaitState(t, "shop", api.StateDiverged)
			b.Exec(t, "shop", `INSERT INTO t VALUES (200, 'of b')`, `REFRESH MATERIALIZED VIEW counted; REFRESH MATERIALIZED VIEW "My Schema"."A View"; REFRESH MATERIALIZED VIEW emptied`)
			if err := a.RejoinLink(context.Background(), "shop"); err != nil {
				t.Fatal(err)
			}
			a.awaitState(t, "shop", api.StateSynchronized)
			equal(t, b, a, "shop")
			p := finding(t, a, "shop", "tail-has-views", `materialized view "public"."Stale"`) // which beta alone has not filled since
			b.Exec(t, "shop", p.Remedy)
			unsaid(t, a, "shop", "tail-has-views")
			alike(t, b, a, "shop")
			for _, view := range []string{`"My Schema"."A View"`, "counted", "emptied"} {
				q := `SELECT * FROM ` + view + ` ORDER BY 1`
				if want, got := strings.Join(b.Rows(t, "shop", q), "\n"), strings.Join(a.Rows(t, "shop", q), "\n"); got != want {
					t.Errorf("view %s has %s, and the new primary's %s", view, got, want)
				}
			}
		})
	}
}

// TestViewsOfALostTail: nobody knows what the tail did to materialized views, and after the
// rejoin they are as those of the new primary.
func TestViewsOfALostTail(t *testing.T) {
	t.Parallel()
	a, b := divergedPair(t, []string{`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i`,
		`CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW emptied AS SELECT count(*) FROM t; CREATE MATERIALIZED VIEW filled AS SELECT count(*) FROM t WITH NO DATA`},
		`INSERT INTO t VALUES (101, 'of a')`, `REFRESH MATERIALIZED VIEW counted; REFRESH MATERIALIZED VIEW emptied WITH NO DATA; REFRESH MATERIALIZED VIEW filled`,
		`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(context.Background(), "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	finding(t, a, "shop", "tail-unknown", "database shop")
	equal(t, b, a, "shop")
	alike(t, b, a, "shop")
	for _, view := range []string{"counted", "emptied"} {
		if want, got := b.Rows(t, "shop", `TABLE `+view), a.Rows(t, "shop", `TABLE `+view); !slices.Equal(got, want) {
			t.Errorf("view %s has %s, and the new primary's %s", view, got, want)
		}
	}
}

// TestRejoinCancelled: whoever asked for a rejoin goes away while it waits, here or on the
// other side. It ends soon, and the next one does all.
func TestRejoinCancelled(t *testing.T) {
	t.Parallel()
	const dropSlot = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`
	for _, c := range []struct {
		what    string
		compare bool
		where   string // whose table is locked
	}{{"while rows are taken away", false, "alpha"}, {"while this side is compared", true, "alpha"}, {"while the other side is compared", true, "beta"}} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			tail := []string{`UPDATE t SET v = 'of a' WHERE id <= 10; DELETE FROM t WHERE id = 20`}
			if c.compare {
				tail = append(tail, dropSlot)
			}
			a, b := divergedPair(t, []string{`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i`}, tail...)
			a.run(t)
			a.awaitState(t, "shop", api.StateDiverged)
			at := map[string]*instance{"alpha": a, "beta": b}[c.where]
			release := lock(t, at, "shop", "t")
			ctx, cancel := context.WithCancel(context.Background())
			asked := make(chan error, 1)
			go func() { asked <- a.RejoinLink(ctx, "shop") }()
			at.awaitSession(t, "waits for the table", `application_name LIKE 'hawser:shop:%' AND wait_event_type = 'Lock'`)
			cancel()
			<-asked
			testpg.Eventually(t, 10*time.Second, "the rejoin has ended", func() (bool, error) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				err := a.RejoinLink(ctx, "shop")
				if p, ok := problem.As(err); ok && p.Code == "rejoin-running" {
					return false, err
				}
				return true, nil // it waited for the table, too
			})
			at.awaitNoSession(t, `application_name LIKE 'hawser:shop:%' AND wait_event_type = 'Lock'`)
			release()
			testpg.Eventually(t, 20*time.Second, "it rejoins", func() (bool, error) {
				err := a.RejoinLink(context.Background(), "shop")
				return err == nil, err
			})
			a.awaitState(t, "shop", api.StateSynchronized)
			equal(t, b, a, "shop")
			for _, i := range []*instance{a, b} {
				i.awaitNoSession(t, `application_name IN ('hawser:shop:verify', 'hawser:shop:compare', 'hawser:shop:rejoin')`)
			}
		})
	}
}

// TestRepairBesideWrites: while the rows of the tail are fetched, over a line that delivers in
// bursts, the new primary changes each of them once: nothing that is lost comes back by a
// later change.
func TestRepairBesideWrites(t *testing.T) {
	t.Parallel()
	const rows = 8000
	a, b, l := pairOver(t)
	diverge(t, a, b, []string{fmt.Sprintf(`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, %d) i`, rows)},
		`UPDATE t SET v = 'of a'`)
	l.toxic(t, `{"type": "latency", "stream": "WAY", "attributes": {"latency": 30, "jitter": 25}}`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(context.Background(), "shop"); err != nil {
		t.Fatal(err)
	}
	conn := b.Connect(t, "shop")
	for i := 1; i <= rows; i++ {
		within(t, conn, fmt.Sprintf(`UPDATE t SET v = 'of b' WHERE id = %d`, i))
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
}

// awaitNoSession waits until the server has no session like that.
func (i *instance) awaitNoSession(t *testing.T, where string) {
	t.Helper()
	testpg.Eventually(t, 10*time.Second, i.name+" has no session with "+where, func() (bool, error) {
		return len(i.Rows(t, "postgres", `SELECT FROM pg_stat_activity WHERE `+where)) == 0, nil
	})
}

// TestNewPrimaryLostAfterRejoin: a rejoin took rows away, and the new primary is gone for good
// before they are fetched, whether this side follows it by then or not. The link says what is
// away; dropped by force, the database has all rows as they were on this side, and the
// database of which nothing came is what it was.
func TestNewPrimaryLostAfterRejoin(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before it follows", "while it repairs", "after a second rejoin"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b := divergedPair(t, []string{takenZoo}, `UPDATE "My Table" SET "A Col" = 'of a', big = big WHERE "Id" <= 3; UPDATE customer SET name = 'of a' WHERE id = 1`,
				`DELETE FROM "My Table" WHERE "Id" = 4; INSERT INTO "My Table" ("A Col", big) VALUES ('new on a', repeat('n', 100000))`, `UPDATE part SET id = id + 100 WHERE id = 1`,
				`INSERT INTO keyless VALUES ('of a', NULL)`)
			a.run(t)
			a.awaitState(t, "shop", api.StateDiverged)
			before := digest(t, a.Cluster, "shop")
			if when != "while it repairs" {
				breakRejoin(t, a)
			}
			if when != "before it follows" {
				// What is repaired is fetched under a lock that nobody gets.
				lock(t, b, "shop", `"My Table"`)
				if err := a.RejoinLink(ctx, "shop"); err != nil {
					t.Fatal(err)
				}
			}
			p := finding(t, a, "shop", "rows-away", "database shop")
			for _, named := range []string{`public."My Table" (5)`, "public.part_low (1)", "public.part_high (1)", "hawser link drop shop --force"} {
				if !strings.Contains(p.Error(), named) {
					t.Errorf("it says %v, and does not name %s", p, named)
				}
			}
			b.stop()
			b.Stop(t)
			result, err := a.DropLink(ctx, "shop", api.DropOptions{Force: true})
			if err != nil {
				t.Fatal(err)
			}
			var told []string
			for _, f := range result.Findings {
				told = append(told, f.Error())
			}
			if all := strings.Join(told, "; "); !strings.Contains(all, "6 are back as they were on this side") || strings.Contains(all, "fit in") {
				t.Errorf("the drop tells %s", all)
			}
			if after := digest(t, a.Cluster, "shop"); after != before {
				t.Errorf("the database was\n%s\nand is\n%s", before, after)
			}
			a.Exec(t, "shop", `INSERT INTO "My Table" ("A Col") VALUES ('it takes writes')`)
		})
	}
}

// TestRowPutBackWithoutItsParent: the new primary deleted a row to which one refers that the
// rejoin took away, and is lost before that one's end is fetched. Put back, it refers to
// nothing, and the drop says so, with the query that lists it.
func TestRowPutBackWithoutItsParent(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := divergedPair(t, []string{`CREATE TABLE par (id int, of text, PRIMARY KEY (id, of)) PARTITION BY RANGE (id); CREATE TABLE par_1 PARTITION OF par FOR VALUES FROM (0) TO (1000)`,
		`CREATE TABLE "The Child" (id int PRIMARY KEY, "p Id" int, of text, v text, CONSTRAINT "its parent" FOREIGN KEY ("p Id", of) REFERENCES par ON DELETE CASCADE)`,
		`INSERT INTO par SELECT i, 'x' FROM generate_series(1, 30) i; INSERT INTO "The Child" SELECT i, i, 'x' FROM generate_series(1, 30) i; INSERT INTO "The Child" VALUES (31)`},
		`UPDATE "The Child" SET v = 'of a' WHERE id IN (19, 20, 21)`)
	b.Exec(t, "shop", `DELETE FROM par WHERE id = 20`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	lock(t, b, "shop", `"The Child"`)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	testpg.Eventually(t, 30*time.Second, "the deletion is here", func() (bool, error) {
		return len(a.Rows(t, "shop", `SELECT FROM par WHERE id = 20`)) == 0, nil
	})
	b.stop()
	b.Stop(t)
	result, err := a.DropLink(ctx, "shop", api.DropOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(result.Findings, func(p *problem.Problem) bool { return p.Code == "foreign-key-broken" })
	if i < 0 {
		t.Fatalf("the drop tells %v", result.Findings)
	}
	p := result.Findings[i]
	if !strings.Contains(p.Object, `"its parent" of table public."The Child"`) || !strings.HasPrefix(p.Cause, "1 rows refer to none") {
		t.Errorf("it says %v", p)
	}
	if got := a.Rows(t, "shop", strings.Replace(strings.TrimSuffix(p.Remedy, ";"), "c.*", "c.id", 1)); !slices.Equal(got, []string{"20"}) {
		t.Errorf("%s lists %q", p.Remedy, got)
	}
}

// takenZoo has rows that are not easily put back.
const takenZoo = `
	CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TYPE pair AS (a int, b text);
	CREATE TABLE customer (id int PRIMARY KEY, name text); INSERT INTO customer VALUES (1, 'c');
	CREATE TABLE "My Table" ("Id" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "A Col" text, big text, doubled int GENERATED ALWAYS AS ("Id" * 2) STORED,
		f float8 DEFAULT 0.1::float8 + 0.2, bytes bytea DEFAULT '\x00ff27', at timestamptz DEFAULT '2026-01-02 03:04:05.678901+05', m mood DEFAULT 'bad', p pair DEFAULT ROW(NULL, NULL), q pair DEFAULT ROW(1, 'x, "y"\z'),
		arr text[] DEFAULT '[0:1]={a,NULL}', j json DEFAULT '{"a" : 1,  "a":2}', span interval DEFAULT '1 year 2 days', c "char" DEFAULT 'x', none int, b boolean DEFAULT true, n numeric DEFAULT 'NaN', ch char(5) DEFAULT 'ab');
	INSERT INTO "My Table" ("A Col", big) SELECT E'a ''\\ row' || i, repeat(md5(i::text), 10000) FROM generate_series(1, 10) i;
	CREATE TABLE part (id int PRIMARY KEY, v text DEFAULT 'v') PARTITION BY RANGE (id); CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (100) TO (1000); INSERT INTO part SELECT generate_series(1, 5);
	CREATE TABLE keyless (v text, n int); INSERT INTO keyless VALUES ('k', 1)`

// TestReportIsNamed: as long as the report of a rejoin is there, the link names it on both
// sides, also after a restart of the agent; and a link of the same name that came later does
// not.
func TestReportIsNamed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := divergedPair(t, []string{`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i`},
		`UPDATE t SET v = 'of a' WHERE id <= 2`, `INSERT INTO t VALUES (101, 'of a')`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	path := filepath.Join(a.dir, "reports", "shop-term1.jsonl")
	named := func() {
		t.Helper()
		finding(t, b, "shop", "report-kept", "on instance alpha: file "+path)
		if p := finding(t, a, "shop", "report-kept", "file "+path); !strings.Contains(p.Cause, "never received: 2, with 3 changes, committed from 20") {
			t.Errorf("it says %v", p)
		}
	}
	named()
	a.stop()
	a.run(t)
	a.awaitState(t, "shop", api.StateSynchronized)
	named()
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	nameless := func() {
		t.Helper()
		if l, err := a.Link(ctx, "shop"); err != nil || slices.ContainsFunc(l.Findings, func(p *problem.Problem) bool { return p.Code == "report-kept" }) {
			t.Errorf("it still names a report: %v, %v", l.Findings, err)
		}
	}
	nameless()
	if err := os.Rename(path+".kept", path); err != nil {
		t.Fatal(err)
	}
	named()
	if _, err := b.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "postgres", `DROP DATABASE shop`)
	if _, err := b.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "alpha", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	nameless()
}

// TestTailWithDDLRemedy: what the refusal of a rejoin advises, run as it stands, ends in a
// link that is synchronized, and keeps what only the old primary has.
func TestTailWithDDLRemedy(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := divergedPair(t, []string{`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i`},
		`INSERT INTO t VALUES (101, 'of a')`, `ALTER TABLE t ADD COLUMN lost text DEFAULT 'x'`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	b.Exec(t, "shop", `INSERT INTO t VALUES (200, 'of b')`)
	err := a.RejoinLink(ctx, "shop")
	turnedDown(t, "rejoin", err, "tail-has-ddl", "ADD COLUMN lost")
	p, _ := problem.As(err)
	for _, step := range []string{"hawser link drop shop", `ALTER DATABASE "shop" RENAME TO "shop_old";`, "on instance beta: hawser link create shop --database shop --peer alpha"} {
		if !strings.Contains(p.Help(), step) {
			t.Errorf("the remedy %q does not name %s", p.Help(), step)
		}
	}
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "postgres", `ALTER DATABASE shop RENAME TO shop_old`)
	if _, err := b.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "alpha", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
	if got := a.Rows(t, "shop_old", `SELECT lost FROM t WHERE id = 101`); !slices.Equal(got, []string{"x"}) {
		t.Errorf("the old database has %q", got)
	}
	a.Exec(t, "shop_old", `INSERT INTO t VALUES (102, 'it takes writes')`)
}

// TestOddTail: a tail with all that is not an ordinary row of an ordinary table is taken back,
// and both sides are the same, whatever the new primary does meanwhile.
func TestOddTail(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := divergedPair(t, []string{takenZoo, `
		CREATE TABLE "Odd "" Name" ("Key Col" text COLLATE "C", "2" date, v text, PRIMARY KEY ("2", "Key Col")); INSERT INTO "Odd "" Name" SELECT 'k''' || i, date '2026-01-01' + i, 'v' FROM generate_series(1, 20) i;
		CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL; INSERT INTO whole SELECT i % 3, 'b' FROM generate_series(1, 20) i;
		CREATE TABLE keyed_full (id int PRIMARY KEY, b text, big text); ALTER TABLE keyed_full REPLICA IDENTITY FULL; INSERT INTO keyed_full SELECT i, 'b', repeat(md5(i::text), 3000) FROM generate_series(1, 20) i;
		CREATE TABLE by_index (a int NOT NULL, b int, v text); CREATE UNIQUE INDEX by_index_a ON by_index (a); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_a; INSERT INTO by_index SELECT i, i, 'v' FROM generate_series(1, 20) i;
		CREATE TABLE pk_and_index (id int PRIMARY KEY, a int NOT NULL UNIQUE, v text); ALTER TABLE pk_and_index REPLICA IDENTITY USING INDEX pk_and_index_a_key; INSERT INTO pk_and_index SELECT i, i + 100, 'v' FROM generate_series(1, 20) i;
		CREATE TABLE node (id int PRIMARY KEY, parent int REFERENCES node DEFERRABLE INITIALLY DEFERRED); INSERT INTO node SELECT i, nullif(i / 2, 0) FROM generate_series(1, 20) i;
		CREATE TABLE child (id int PRIMARY KEY, node int REFERENCES node ON DELETE CASCADE ON UPDATE CASCADE); INSERT INTO child SELECT i, i FROM generate_series(1, 20) i;
		CREATE TABLE emptied (id int PRIMARY KEY, v text); INSERT INTO emptied SELECT i, 'v' FROM generate_series(1, 20) i;
		CREATE TABLE tree (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region); CREATE TABLE tree_a PARTITION OF tree FOR VALUES IN ('a'); CREATE TABLE tree_b (v text, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region)); ALTER TABLE tree ATTACH PARTITION tree_b FOR VALUES IN ('b');
		INSERT INTO tree SELECT i, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, 'v' FROM generate_series(1, 20) i;
		CREATE SEQUENCE free; CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE TABLE by_domain (id positive PRIMARY KEY, r int4range UNIQUE, e mood); INSERT INTO by_domain VALUES (1, '[1,2)', 'good'), (2, '[2,3)', 'bad');
		CREATE TABLE by_float (f float8 PRIMARY KEY, n numeric, ts timestamptz); INSERT INTO by_float VALUES (0.1, 1, '2026-01-01'), ('NaN', 2, 'infinity'), ('-0', 3, '-infinity'), (1e-310, 4, now());
		CREATE TABLE heavy (id int PRIMARY KEY, v text, n int)`, `INSERT INTO heavy VALUES (1, repeat('x', 100000000), 1), (2, 'small', 1)`}, // 100 MB
		`UPDATE "My Table" SET f = 'NaN' WHERE "Id" = 1; UPDATE "My Table" SET big = repeat('z', 50000) WHERE "Id" = 2; INSERT INTO "My Table" ("A Col") OVERRIDING SYSTEM VALUE VALUES ('next')`,
		`UPDATE "Odd "" Name" SET "Key Col" = 'moved' WHERE "Key Col" = 'k''1'; DELETE FROM "Odd "" Name" WHERE "Key Col" = 'k''2'; UPDATE "Odd "" Name" SET v = 'a' WHERE "Key Col" = 'k''3'`,
		`UPDATE whole SET b = 'a' WHERE a = 1; DELETE FROM whole WHERE ctid = '(0,1)'; UPDATE keyed_full SET b = 'a' WHERE id < 5; UPDATE keyed_full SET id = id + 100 WHERE id = 6; DELETE FROM keyed_full WHERE id = 7`,
		`UPDATE by_index SET a = a + 100 WHERE a = 1; DELETE FROM by_index WHERE a = 2; UPDATE pk_and_index SET v = 'a' WHERE id = 1; UPDATE pk_and_index SET id = 50 WHERE id = 2; UPDATE pk_and_index SET a = 1 WHERE id = 3; DELETE FROM pk_and_index WHERE id = 4`,
		`BEGIN; DELETE FROM node WHERE id = 1; INSERT INTO node VALUES (1, 2); UPDATE node SET parent = 1 WHERE id = 2; COMMIT; UPDATE node SET id = 99 WHERE id = 20; DELETE FROM node WHERE id = 19`,
		`TRUNCATE emptied; INSERT INTO emptied VALUES (1, 'a'), (77, 'a')`, `UPDATE tree SET region = 'b' WHERE id = 2; UPDATE tree SET region = 'a', v = 'a' WHERE id = 3; DELETE FROM tree WHERE id = 4; INSERT INTO tree VALUES (50, 'b', 'a')`,
		`SELECT nextval('free') FROM generate_series(1, 50); SELECT setval('"My Table_Id_seq"', 5000)`, `UPDATE by_domain SET r = '[5,6)' WHERE id = 1; DELETE FROM by_domain WHERE id = 2; INSERT INTO by_domain VALUES (3, '[2,3)', 'good')`,
		`UPDATE by_float SET n = 10 WHERE f = 0.1; UPDATE by_float SET n = 20 WHERE f = 'NaN'; UPDATE by_float SET n = 30 WHERE f = 0; UPDATE by_float SET n = 40 WHERE f = 1e-310`,
		`UPDATE heavy SET n = 2; INSERT INTO heavy VALUES (3, repeat('y', 10000000), 3)`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	more := []string{`UPDATE "My Table" SET "A Col" = 'b' WHERE "Id" IN (1, 7); DELETE FROM "My Table" WHERE "Id" = 2; INSERT INTO "My Table" ("A Col") VALUES ('of b')`,
		`UPDATE "Odd "" Name" SET v = 'b' WHERE "Key Col" = 'k''1'; UPDATE "Odd "" Name" SET "Key Col" = 'moved', "2" = '2026-01-02' WHERE "Key Col" = 'k''9'`, `UPDATE keyed_full SET id = 106 WHERE id = 8; DELETE FROM keyed_full WHERE id = 7; UPDATE keyed_full SET id = 7, b = 'b' WHERE id = 9`,
		`UPDATE pk_and_index SET id = 60 WHERE id = 10; UPDATE pk_and_index SET a = a + 1000 WHERE id < 8; DELETE FROM by_index WHERE a = 3`, `BEGIN; UPDATE node SET id = 40 WHERE id = 2; UPDATE node SET parent = 40 WHERE parent = 2; COMMIT`,
		`INSERT INTO emptied VALUES (77, 'b'); DELETE FROM emptied WHERE id = 2`, `UPDATE tree SET region = 'a' WHERE id IN (3, 5); UPDATE tree SET id = 50 WHERE id = 2; DELETE FROM tree WHERE id = 4`,
		`UPDATE by_domain SET r = '[7,8)' WHERE id = 2; INSERT INTO by_domain VALUES (3, '[9,10)', 'bad'), (4, '[5,6)', 'bad')`, `UPDATE by_float SET f = f * 2; UPDATE heavy SET n = n + 5; SELECT nextval('free')`}
	b.Exec(t, "shop", more[:len(more)/2]...)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", more[len(more)/2:]...)
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
	proven(t, b, "shop")
	failover(t, a, "shop")
	a.Exec(t, "shop", `INSERT INTO "My Table" ("A Col") VALUES ('a leads'); SELECT nextval('free'); UPDATE tree SET region = 'b' WHERE id = 3`)
	equal(t, a, b, "shop")
	proven(t, a, "shop")
}

// TestRowsThatDontFit: a rejoin took rows away, and DDL and rows of the new primary came before
// that was lost. What has no place any more is written into a file, and named; all else is
// put back.
func TestRowsThatDontFit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := divergedPair(t, []string{`CREATE TABLE u (id int PRIMARY KEY, code text UNIQUE, gone text, note text); INSERT INTO u SELECT i, 'code' || i, 'g', 'n' FROM generate_series(1, 10) i`,
		`CREATE TABLE dropped (id int PRIMARY KEY, v text); INSERT INTO dropped VALUES (1, 'v')`},
		`UPDATE u SET note = 'of a' WHERE id <= 3`, `UPDATE dropped SET v = 'of a'`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	b.Exec(t, "shop", `UPDATE u SET code = 'other' WHERE id = 1; INSERT INTO u VALUES (11, 'code1', 'g', 'of b')`, `ALTER TABLE u DROP COLUMN gone; ALTER TABLE u RENAME COLUMN note TO remark; DROP TABLE dropped`)
	held := lock(t, b, "shop", "u")
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	testpg.Eventually(t, 30*time.Second, "what the new primary did has arrived", func() (bool, error) {
		return len(a.Rows(t, "shop", `SELECT FROM u WHERE id = 11`)) == 1 && len(a.Rows(t, "shop", `SELECT FROM pg_class WHERE relname = 'dropped'`)) == 0, nil
	})
	b.stop()
	b.Stop(t)
	held()
	result, err := a.DropLink(ctx, "shop", api.DropOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(a.dir, "reports", "shop-not-put-back.jsonl")
	for _, f := range result.Findings {
		if f.Code == "rows-not-put-back" && (!strings.Contains(f.Cause, "2 rows") || !strings.Contains(f.Cause, path)) {
			t.Errorf("it tells %v", f)
		}
	}
	if got := a.Rows(t, "shop", `SELECT id, code, remark FROM u WHERE id IN (1, 2, 3, 11) ORDER BY 1`); !slices.Equal(got, []string{"2|code2|of a", "3|code3|of a", "11|code1|of b"}) {
		t.Errorf("the database has %q", got)
	}
	var lines []string
	for _, line := range report(t, a, "shop-not-put-back.jsonl") {
		lines = append(lines, fmt.Sprint(line["table"], line["key"], line["row"]))
	}
	slices.Sort(lines)
	if want := []string{"<nil> [1] map[column 1:1 column 2:of a]", "public.u[1] map[code:code1 column 3:g id:1 remark:of a]"}; !slices.Equal(lines, want) {
		t.Errorf("the file has %q, want %q", lines, want)
	}
}

// TestTakenBytesOfNoEncoding: rows of a database in SQL_ASCII are put back with the bytes that
// they had, of which no session in UTF-8 may be told.
func TestTakenBytesOfNoEncoding(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0`)
	a.Exec(t, "shop", `CREATE TABLE customer (id int PRIMARY KEY, name text); INSERT INTO customer SELECT i, convert_from('\xff41e9', 'SQL_ASCII') || i FROM generate_series(1, 5) i`)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	a.Exec(t, "shop", `UPDATE customer SET name = name || convert_from('\xfe', 'SQL_ASCII') WHERE id <= 2`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	before := digest(t, a.Cluster, "shop")
	breakRejoin(t, a)
	b.stop()
	b.Stop(t)
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if after := digest(t, a.Cluster, "shop"); after != before {
		t.Errorf("the database was\n%s\nand is\n%s", before, after)
	}
}

// TestTailOfOddKeys: keys that print otherwise than their cast to text does, and keys that
// are one though they print as two. The new primary moves rows onto keys of the tail, and
// has its own rows of equal keys.
func TestTailOfOddKeys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, definition string
		setup, tail, new []string // values of keys
	}{
		{"padded", `k char(4) PRIMARY KEY`, []string{"a", "b", "c"}, []string{"x"}, nil},
		{"cit", `k citext PRIMARY KEY`, []string{"a", "b", "c"}, []string{"X", "Y"}, []string{"y"}},
		{"folded", `k text COLLATE folded PRIMARY KEY`, []string{"a", "b", "c"}, []string{"X", "Y"}, []string{"y"}},
		{"num", `k numeric PRIMARY KEY`, []string{"1.0", "2", "3"}, []string{"7.0", "8"}, []string{"8.0"}},
		{"span", `k interval PRIMARY KEY`, []string{"1 day", "2 days", "3 days"}, []string{"7 days", "8 days"}, []string{"192 hours"}},
		{"list", `k numeric[] PRIMARY KEY`, []string{"{1}", "{2}", "{3}"}, []string{"{7}", "{8}"}, []string{"{8.0}"}},
		{"flag", `k bool PRIMARY KEY`, []string{"t"}, []string{"f"}, nil},
		{"address", `k inet PRIMARY KEY`, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}, []string{"10.0.0.7", "10.0.0.8"}, []string{"10.0.0.9"}},
		{"two", `k inet, l char(3) DEFAULT 'x', PRIMARY KEY (l, k)`, []string{"10.0.0.1", "10.0.0.2"}, []string{"10.0.0.7"}, []string{"10.0.0.9"}},
		{"other index", `k int PRIMARY KEY, l serial UNIQUE`, []string{"1", "2", "3"}, []string{"7"}, []string{"8"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			setup := []string{`CREATE EXTENSION citext; CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE odd (` + c.definition + `, v text)`}
			for _, k := range c.setup {
				setup = append(setup, `INSERT INTO odd (k, v) VALUES ('`+k+`', 'old')`)
			}
			if c.what == "other index" {
				setup = append(setup, `ALTER TABLE odd REPLICA IDENTITY USING INDEX odd_l_key`)
			}
			var tail []string
			for _, k := range c.tail {
				tail = append(tail, `INSERT INTO odd (k, v) VALUES ('`+k+`', 'of a')`)
			}
			a, b := divergedPair(t, setup, tail...)
			for _, k := range c.new {
				b.Exec(t, "shop", `INSERT INTO odd (k, v) VALUES ('`+k+`', 'of b')`)
			}
			a.run(t)
			a.awaitState(t, "shop", api.StateDiverged)
			b.Exec(t, "shop", `UPDATE odd SET k = '`+c.tail[0]+`', v = 'moved' WHERE k = '`+c.setup[0]+`'`)
			if err := a.RejoinLink(context.Background(), "shop"); err != nil {
				t.Fatal(err)
			}
			same(t, b, a, "shop")
		})
	}
}
