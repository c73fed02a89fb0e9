package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// TestMajorVersions has the database of everything go from one major version to
// another and back, with changes and DDL on either side: each version is a target, and
// a source.
func TestMajorVersions(t *testing.T) {
	t.Parallel()
	for _, version := range []struct{ from, to int }{{14, 15}, {15, 14}, {15, 16}, {15, 17}, {15, 18}, {16, 15}, {17, 18}, {18, 15}, {18, 14}} {
		t.Run(fmt.Sprintf("%d to %d", version.from, version.to), func(t *testing.T) {
			t.Parallel()
			a, b := versionPair(t, version.from, version.to)
			a.Exec(t, "postgres", `CREATE DATABASE zoo`)
			a.Exec(t, "zoo", everyType(t, a, "zoo")...)
			a.Exec(t, "zoo", everything...)
			a.Exec(t, "zoo", `ALTER TABLE keyed CLUSTER ON keyed_pkey`) // CLUSTER sets it too, and fires no event trigger
			if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "zoo", Database: "zoo", Peer: "beta", Role: api.RolePrimary}); err != nil {
				t.Fatal(err)
			}
			mutate(t, a, 1)
			b.awaitState(t, "zoo", api.StateSynchronized)
			for round, side := range []struct{ primary, secondary *instance }{{a, b}, {b, a}, {a, b}} {
				if round > 0 {
					if _, err := side.primary.FailoverLink(context.Background(), "zoo", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
						t.Fatal(err)
					}
					side.secondary.awaitState(t, "zoo", api.StateSynchronized)
				}
				side.primary.Exec(t, "zoo", anyVersion(round)...)
				arrived(t, side.primary, side.secondary, "zoo") // a table copied again is ahead of the stream, and what is made of it too
				side.primary.Exec(t, "zoo", fmt.Sprintf(`REFRESH MATERIALIZED VIEW m%d`, round))
				mutate(t, side.primary, round+2)
				alike(t, side.primary, side.secondary, "zoo")
			}
		})
	}
}

// versionPair returns instances of two versions that know each other; both agents have a
// pg_dump that reads the first one's.
func versionPair(t *testing.T, from, to int) (a, b *instance) {
	t.Helper()
	client := testpg.Client(t, from)
	a, b = newInstanceOn(t, "alpha", testpg.StartVersion(t, testpg.Version(t, from), nil)), newInstanceOn(t, "beta", testpg.StartVersion(t, testpg.Version(t, to), nil))
	for _, i := range []*instance{a, b} {
		if _, err := postgres.Tool("pg_dump", from); err != nil {
			i.stop()
			i.process, i.env = true, []string{"HAWSER_PG_BIN=" + client}
			i.run(t)
		}
	}
	introduce(t, a, b)
	return a, b
}

// TestNewestFeatures links databases of version 18 with what came with 16, 17 and 18, in
// both directions.
func TestNewestFeatures(t *testing.T) {
	t.Parallel()
	a, b := versionPair(t, 18, 18)
	link(t, a, b, `CREATE EXTENSION btree_gist`, `CREATE TABLE parent (id int PRIMARY KEY, v text); INSERT INTO parent SELECT i, 'v' || i FROM generate_series(1, 100) i`, newest("0"))
	b.awaitState(t, "shop", api.StateSynchronized)
	for round, side := range []struct{ primary, secondary *instance }{{a, b}, {b, a}} {
		if round > 0 {
			if _, err := side.primary.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
				t.Fatal(err)
			}
			side.secondary.awaitState(t, "shop", api.StateSynchronized)
		}
		n := fmt.Sprint(round)
		side.primary.Exec(t, "shop", strings.Split(newest(fmt.Sprint(round+1)), ";\n")...)
		side.primary.Exec(t, "shop", strings.Split(strings.ReplaceAll(`INSERT INTO derived:n (id, a) SELECT 1000 + i, i FROM generate_series(1, 50) i; UPDATE derived:n SET a = a + 1 RETURNING OLD.a, NEW.v;
			ALTER TABLE derived:n ADD w int GENERATED ALWAYS AS (a * 3) VIRTUAL, ALTER v SET EXPRESSION AS (a * 5);
			ALTER TABLE loosely:n ALTER CONSTRAINT unenforced:n ENFORCED;
			ALTER TABLE loosely:n VALIDATE CONSTRAINT later:n;
			UPDATE booking:n SET during = '[2024-02-01,2024-02-20)' WHERE room = 2;
			DELETE FROM stay:n WHERE room = 1;
			MERGE INTO parent p USING (VALUES (1, 'merged'), (1000:n, 'new')) s (id, v) ON p.id = s.id WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)`, ":n", n), ";\n")...)
		alike(t, side.primary, side.secondary, "shop")
		for _, sql := range []string{
			`SELECT conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated, conenforced, connoinherit FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2`,
			`SELECT id, a, v, s FROM derived` + n + ` ORDER BY 1`, `SELECT attrelid::regclass, attname, attgenerated FROM pg_attribute WHERE attgenerated <> '' ORDER BY 1, 2`,
		} {
			if d := difference(testpg.Rows(t, side.primary.Connect(t, "shop"), sql), testpg.Rows(t, side.secondary.Connect(t, "shop"), sql)); d != "" {
				t.Errorf("%s:\n%s", sql, d)
			}
		}
	}
}

// newest makes tables of what came with 16, 17 and 18.
func newest(n string) string {
	return strings.ReplaceAll(`CREATE TABLE derived:n (id int PRIMARY KEY, a int, v int GENERATED ALWAYS AS (a * 2) VIRTUAL, s int GENERATED ALWAYS AS (a + 1) STORED, u uuid DEFAULT uuidv7(), j jsonb STORAGE EXTERNAL);
		INSERT INTO derived:n (id, a) SELECT i, i FROM generate_series(1, 100) i;
		CREATE TABLE loosely:n (id int PRIMARY KEY, p int CONSTRAINT unenforced:n REFERENCES parent NOT ENFORCED, c int CONSTRAINT unchecked:n CHECK (c > 0) NOT ENFORCED, d int CONSTRAINT named:n NOT NULL, e int);
		INSERT INTO loosely:n VALUES (1, 1, -1, 1, NULL), (2, 2, 2, 2, 2);
		ALTER TABLE loosely:n ADD CONSTRAINT lazy:n NOT NULL e NOT VALID, ADD CONSTRAINT later:n CHECK (d > 0) NOT VALID;
		CREATE TABLE booking:n (room int, during daterange, PRIMARY KEY (room, during WITHOUT OVERLAPS));
		CREATE TABLE stay:n (room int, during daterange, guest text, FOREIGN KEY (room, PERIOD during) REFERENCES booking:n (room, PERIOD during));
		INSERT INTO booking:n VALUES (1, '[2024-01-01,2024-02-01)'), (2, '[2024-02-01,2024-03-01)');
		INSERT INTO stay:n VALUES (1, '[2024-01-05,2024-01-06)', 'a');
		CREATE TABLE split:n (id int GENERATED ALWAYS AS IDENTITY, v text) PARTITION BY RANGE (id);
		CREATE TABLE split:n_1 PARTITION OF split:n FOR VALUES FROM (1) TO (1000);
		INSERT INTO split:n (v) SELECT 'v' FROM generate_series(1, 20);
		GRANT MAINTAIN ON split:n TO PUBLIC`, ":n", n)
}

// anyVersion is DDL that every version knows.
func anyVersion(round int) (sql []string) {
	for _, s := range []string{
		`CREATE TABLE later_:n (id int PRIMARY KEY, v text DEFAULT 'd', at timestamptz DEFAULT now()); INSERT INTO later_:n VALUES (1)`,
		`ALTER TABLE own ADD COLUMN n:n numeric(9, 2) DEFAULT 1.5, ADD CHECK (n:n > 0), ADD r:n float DEFAULT random(); CREATE INDEX ON own (n:n)`,
		`CREATE VIEW seen_:n AS SELECT id, n:n FROM own; CREATE FUNCTION f:n(int) RETURNS int LANGUAGE sql AS 'SELECT $1 + 1'; CREATE MATERIALIZED VIEW m:n AS SELECT count(*) FROM parent`,
		`CREATE TABLE part_v:n PARTITION OF part_a FOR VALUES IN (10:n); INSERT INTO part VALUES (10:n, '2020-01-01', 'new'); ALTER TABLE part_a DETACH PARTITION part_v:n`,
		`ALTER TABLE later_:n ALTER id SET NOT NULL, ALTER v SET NOT NULL, ADD s:n serial; ALTER TABLE later_:n ALTER v DROP NOT NULL; ALTER TYPE mood ADD VALUE 'm:n'; DROP TABLE part_v:n`,
		`CREATE TABLE child_:n () INHERITS (later_:n); CREATE STATISTICS st_:n ON id, v FROM later_:n; ALTER TABLE later_:n ADD FOREIGN KEY (id) REFERENCES later_:n NOT VALID; COMMENT ON TABLE later_:n IS 'c'; GRANT SELECT ON later_:n TO PUBLIC`,
		`CREATE TABLE copy_:n AS SELECT * FROM own; CREATE INDEX CONCURRENTLY ON copy_:n (id)`,
	} {
		sql = append(sql, strings.Split(strings.ReplaceAll(s, ":n", fmt.Sprint(round)), "; ")...)
	}
	return sql
}

// alike waits until both sides have the same rows and sequences, and has the link itself
// compare definitions: the servers' dumps are of their versions.
func alike(t *testing.T, primary, secondary *instance, database string) {
	t.Helper()
	arrived(t, primary, secondary, database)
	testpg.Eventually(t, 20*time.Second, "both sides are alike", func() (bool, error) {
		if d := difference(contents(t, primary, database), contents(t, secondary, database)); d != "" {
			return false, fmt.Errorf("\n%s", d)
		}
		return true, nil
	})
	report, err := primary.VerifyLink(context.Background(), database, api.VerifyOptions{})
	if err != nil || !report.Equal {
		t.Errorf("verify: %v: %+v %+v %v", report.Equal, report.Schema, report.Sequences, err)
	}
}

// TestOldTools: an agent whose pg_dump is older than the primary says so before a link
// is made, and what to install.
func TestOldTools(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	newer := testpg.StartVersion(t, testpg.Version(t, 18), nil)
	if tool, err := postgres.Tool("pg_dump", 18); err == nil {
		t.Skipf("%s is new enough", tool)
	}
	a, b := newInstanceOn(t, "alpha", newer), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}
	findings, err := a.ValidateLink(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for _, f := range findings {
		told = told || f.Code == "tool-missing" && f.Blocks() && strings.Contains(f.Cause, "pg_dump of PostgreSQL 18") && strings.Contains(f.Help(), "postgresql-18")
	}
	if !told {
		t.Errorf("findings: %v", findings)
	}
	if _, err := a.CreateLink(ctx, spec); err == nil {
		t.Error("the link was created")
	}
	if got := traces(t, a, "shop"); len(got) != 0 {
		t.Errorf("left on the primary: %q", got)
	}
}
