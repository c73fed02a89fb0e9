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
// a source. (A copy from 16 on needs a pg_dump that Debian's packages for 15 lack.)
func TestMajorVersions(t *testing.T) {
	t.Parallel()
	for _, version := range []struct{ from, to int }{{14, 15}, {15, 16}, {15, 17}, {15, 18}, {16, 15}, {17, 18}, {18, 15}} {
		t.Run(fmt.Sprintf("%d to %d", version.from, version.to), func(t *testing.T) {
			t.Parallel()
			from, to := testpg.Version(t, version.from), testpg.Version(t, version.to)
			if _, err := postgres.Tool("pg_dump", version.from); err != nil {
				t.Skip(err)
			}
			a, b := newInstanceOn(t, "alpha", testpg.StartVersion(t, from, nil)), newInstanceOn(t, "beta", testpg.StartVersion(t, to, nil))
			introduce(t, a, b)
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
		told = told || f.Code == "tool-missing" && f.Blocks() && strings.Contains(f.Cause, "pg_dump of PostgreSQL 18") && strings.Contains(f.Remedy, "postgresql-18")
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
