package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// finding waits until a link tells something.
func finding(t *testing.T, i *instance, link, code, object string) *problem.Problem {
	t.Helper()
	var found *problem.Problem
	testpg.Eventually(t, 100*time.Second, i.name+" tells "+code+" of "+object, func() (bool, error) {
		l, err := i.Link(context.Background(), link)
		at := slices.IndexFunc(l.Findings, func(p *problem.Problem) bool {
			return p.Code == code && (p.Object == object || strings.HasSuffix(p.Object, ": "+object))
		})
		if err != nil || at < 0 {
			return false, err
		}
		found = l.Findings[at]
		return true, nil
	})
	return found
}

// unsaid waits until the link tells nothing of a code.
func unsaid(t *testing.T, i *instance, link, code string) {
	t.Helper()
	testpg.Eventually(t, 100*time.Second, i.name+" tells no "+code, func() (bool, error) {
		l, err := i.Link(context.Background(), link)
		if err == nil && slices.ContainsFunc(l.Findings, func(p *problem.Problem) bool { return p.Code == code }) {
			err = fmt.Errorf("it tells %v", l.Findings)
		}
		return err == nil, err
	})
}

// TestForeignWrites: a superuser whose triggers rest is refused on a replica. Who takes
// the fence off is found out, with the table and the remedy, and it is put on again.
func TestForeignWrites(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10); CREATE TABLE u (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for _, sql := range []string{`DELETE FROM t`, `TRUNCATE t`, `CREATE TABLE mine ()`, `ALTER TABLE t DISABLE TRIGGER ALL`, `DROP TABLE u`} {
		if err := refused(t, b, `SET default_transaction_read_only = off`, `SET session_replication_role = replica`, sql); !strings.Contains(err, "25006") {
			t.Errorf("%s with triggers at rest: %q", sql, err)
		}
	}
	change(t, b, `ALTER TABLE t DISABLE TRIGGER ALL; ALTER DATABASE shop RESET default_transaction_read_only`)
	if err := refused(t, b, `DELETE FROM t WHERE id = 1`); err != "" {
		t.Fatalf("the fence has no hole: %s", err)
	}
	p := finding(t, b, "shop", "fence-was-open", `table "public"."t"`)
	if want := `hawser link resync shop --table '"public"."t"'`; !strings.Contains(p.Remedy, want) {
		t.Errorf("the remedy is %q, want %q", p.Remedy, want)
	}
	finding(t, a, "shop", "fence-was-open", `database "shop"`)
	b.stop()
	b.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	finding(t, a, "shop", "fence-was-open", `table "public"."t"`)
	for _, sql := range []string{`DELETE FROM t`, `SET default_transaction_read_only = off; DELETE FROM t`} {
		if err := refused(t, b, sql); !strings.Contains(err, "25006") {
			t.Errorf("after the hole was closed, %s: %q", sql, err)
		}
	}
	if r, err := a.VerifyLink(ctx, "shop", api.VerifyOptions{}); err != nil || r.Equal {
		t.Errorf("what was written through the hole is not found: %+v, %v", r, err)
	}
	if err := b.ResyncLink(ctx, "shop", []string{`"public"."t"`}); err != nil {
		t.Fatal(err)
	}
	equal(t, a, b, "shop")
	b.awaitState(t, "shop", api.StateSynchronized)
	if r, err := a.VerifyLink(ctx, "shop", api.VerifyOptions{}); err != nil || !r.Equal {
		t.Errorf("after the resync: %+v, %v", r, err)
	}
	if l, err := b.Link(ctx, "shop"); err != nil || slices.ContainsFunc(l.Findings, func(p *problem.Problem) bool { return p.Code == "fence-was-open" }) {
		t.Errorf("both sides are equal, and the link still tells %v, %v", l.Findings, err)
	}
}

// TestFenceWhileCopying: no table of a replica takes a write while others are still
// to be copied, partitioned ones included.
func TestFenceWhileCopying(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE large AS SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 100000) i`,
		`CREATE TABLE part (id int) PARTITION BY LIST (id); CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)`)
	if _, err := a.CreateLink(t.Context(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	conn := b.Connect(t, "shop")
	testpg.Eventually(t, 30*time.Second, "the tables are there", func() (bool, error) {
		return testpg.Rows(t, conn, `SELECT to_regclass('part') IS NOT NULL`)[0] == "t", nil
	})
	if err := refused(t, b, `SET default_transaction_read_only = off`, `INSERT INTO part VALUES (1)`); !strings.Contains(err, "25006") {
		t.Errorf("a partitioned table of a replica that is being copied: %q", err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
}
