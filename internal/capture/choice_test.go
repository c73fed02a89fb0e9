package capture

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/testpg"
)

// chosen tells, of the messages since the last call, what came in (+, and * when it is to
// be copied) and what went out (-).
func (p *primary) chosen() string {
	p.t.Helper()
	var out []string
	for _, m := range p.tell() {
		list, _ := m["chosen"].([]any)
		for _, c := range list {
			c := c.(map[string]any)
			sign := "-"
			if c["in"] == true {
				sign = "+"
			}
			if c["copy"] == true {
				sign = "*"
			}
			out = append(out, fmt.Sprintf("%s%s.%s", sign, c["schema"], c["name"]))
		}
	}
	return strings.Join(out, " ")
}

// published is what the link's publication lists.
func (p *primary) published(link string) string {
	p.t.Helper()
	return p.list(`SELECT r.prrelid::regclass FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
		WHERE p.pubname = '` + Object(link) + `'`)
}

func (p *primary) list(sql string) string {
	p.t.Helper()
	out := testpg.Rows(p.t, p.conn, sql)
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestChoice keeps a publication by its patterns, in the transaction of each command.
func TestChoice(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := newPrimary(t)
	link, other := "one"+p.database, "two"+p.database
	p.exec(`SET session_replication_role = replica; SET hawser.agent = on; CREATE SCHEMA s; CREATE SCHEMA o; CREATE TABLE s.a (id int); CREATE TABLE s.b (id int PRIMARY KEY); CREATE TABLE o.c (id int);
		CREATE TABLE s.not_this (id int); CREATE TABLE s.child () INHERITS (s.not_this); CREATE UNLOGGED TABLE s.u (id int); RESET hawser.agent; RESET session_replication_role`)
	if err := Install(ctx, p.conn, link, filter.Filter{Tables: []string{"s.*"}, Exclude: []string{"*.not_*"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := p.published(link), "s.a s.b s.child"; got != want {
		t.Fatalf("published: %s, want %s", got, want)
	}
	full := `SELECT oid::regclass FROM pg_class WHERE relreplident = 'f'`
	if got, want := p.list(full), "s.a s.child"; got != want {
		t.Errorf("REPLICA IDENTITY FULL: %s, want %s", got, want)
	}
	p.tell()
	role := "plain_" + p.database
	p.exec(`CREATE ROLE "` + role + `"`)
	t.Cleanup(func() { p.c.Exec(t, p.database, `DROP OWNED BY "`+role+`"`, `DROP ROLE "`+role+`"`) })
	p.exec(`GRANT ALL ON SCHEMA s TO "` + role + `"`)
	p.tell()
	for _, c := range []struct{ sql, chosen, published string }{
		{`CREATE TABLE s.d (id int)`, "+s.d", "s.a s.b s.child s.d"},
		{`CREATE TABLE s.e AS SELECT 1 AS id`, "*s.e", "s.a s.b s.child s.d s.e"},
		{`CREATE TABLE o.d (id int); CREATE TEMP TABLE tmp (id int); CREATE TABLE s.not_that (id int)`, "", "s.a s.b s.child s.d s.e"},
		{`ALTER TABLE s.e RENAME TO not_e; ALTER TABLE o.c SET SCHEMA s`, "-s.not_e *s.c", "s.a s.b s.c s.child s.d"},
		{`DROP TABLE s.d, s.child`, "", "s.a s.b s.c"},
		{`BEGIN; CREATE TABLE s.f (id int); ROLLBACK; BEGIN; SAVEPOINT x; ALTER TABLE s.a SET SCHEMA o; ROLLBACK TO x; COMMIT`, "", "s.a s.b s.c"},
		{`ALTER SCHEMA s RENAME TO gone`, "-gone.a -gone.b -gone.c", ""},
		{`ALTER SCHEMA gone RENAME TO s`, "*s.a *s.b *s.c", "s.a s.b s.c"},
		{`ALTER TABLE s.u SET LOGGED`, "*s.u", "s.a s.b s.c s.u"},
		{`SET ROLE "` + role + `"; SET search_path = s; CREATE TABLE mine (id int); ALTER TABLE mine RENAME TO mine2; RESET ROLE; RESET search_path`, "+s.mine", "s.a s.b s.c s.mine2 s.u"},
		{`CREATE TABLE o.p (id int) PARTITION BY LIST (id); CREATE TABLE s.p1 PARTITION OF o.p FOR VALUES IN (1); CREATE TABLE o.p2 PARTITION OF o.p FOR VALUES IN (2)`,
			"+s.p1", "s.a s.b s.c s.mine2 s.p1 s.u"},
		{`ALTER TABLE o.p RENAME TO not_p`, "-s.p1", "s.a s.b s.c s.mine2 s.u"},
		{`ALTER TABLE o.not_p SET SCHEMA s; ALTER TABLE s.not_p RENAME TO p`, "*s.p1 *o.p2", "o.p2 s.a s.b s.c s.mine2 s.p1 s.u"},
		{`ALTER TABLE s.p DETACH PARTITION o.p2`, "-o.p2", "s.a s.b s.c s.mine2 s.p1 s.u"},
		{`SET session_replication_role = replica; SET hawser.agent = on; CREATE TABLE s.unseen (id int); RESET hawser.agent; RESET session_replication_role`, "", "s.a s.b s.c s.mine2 s.p1 s.u"},
	} {
		p.exec(c.sql)
		if got := p.chosen(); got != c.chosen {
			t.Errorf("%s: chosen %q, want %q", c.sql, got, c.chosen)
		}
		if got := p.published(link); got != c.published {
			t.Errorf("%s: published %q, want %q", c.sql, got, c.published)
		}
	}
	if bare := testpg.Rows(t, p.conn, `SELECT c.oid::regclass FROM pg_class c JOIN pg_publication_rel r ON r.prrelid = c.oid WHERE `+bare); len(bare) > 0 {
		t.Errorf("published without a replica identity: %v", bare)
	}
	if n, err := Rechoose(ctx, p.conn); n != 1 || err != nil {
		t.Errorf("%d tables came in unseen, %v, want 1", n, err)
	}
	if got := p.chosen(); got != "*s.unseen" {
		t.Errorf("came in unseen: %q", got)
	}
	// A second link, of the whole database.
	if err := Install(ctx, p.conn, other, filter.Filter{}); err != nil {
		t.Fatal(err)
	}
	p.exec(`UPDATE s.not_this SET id = 1; CREATE TABLE o.later (id int); UPDATE o.later SET id = 1`)
	if err := Uninstall(ctx, p.conn, other, false); err != nil {
		t.Fatal(err)
	}
	p.exec(`CREATE TABLE o.after (id int)`)
	if got := p.list(full); strings.Contains(got, "o.after") || !strings.Contains(got, "o.later") {
		t.Errorf("REPLICA IDENTITY FULL: %s", got)
	}
	if err := Uninstall(ctx, p.conn, link, true); err != nil {
		t.Fatal(err)
	}
	if left := testpg.Rows(t, p.conn, `SELECT pubname FROM pg_publication UNION ALL SELECT relname FROM pg_class WHERE relreplident = 'f'
		UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'hawser'::regnamespace`); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
