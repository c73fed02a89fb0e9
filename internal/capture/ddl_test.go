package capture

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// primary is a database with the capture of DDL and a slot that tells what it wrote.
type primary struct {
	t        *testing.T
	c        *testpg.Cluster
	database string
	conn     *pgx.Conn
}

func newPrimary(t *testing.T) *primary {
	t.Helper()
	c := testpg.Shared(t)
	p := &primary{t: t, c: c, database: c.CreateDatabase(t)}
	p.conn = c.Connect(t, p.database)
	if err := InstallDDL(t.Context(), p.conn); err != nil {
		t.Fatal(err)
	}
	p.exec(`SELECT pg_create_logical_replication_slot('` + p.database + `', 'test_decoding')`)
	return p
}

func (p *primary) exec(sql string) {
	p.t.Helper()
	execute(p.t, p.conn, sql)
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// tell returns the messages since the last call, their signature checked.
func (p *primary) tell() []map[string]any {
	p.t.Helper()
	key, err := DDLKey(p.t.Context(), p.conn)
	if err != nil {
		p.t.Fatal(err)
	}
	rows, err := p.conn.Query(p.t.Context(), `SELECT substr(data, strpos(data, 'content:') + 8) FROM pg_logical_slot_get_changes($1, NULL, NULL)
		WHERE data LIKE 'message: transactional: 1 prefix: hawser.ddl, sz: %' AND data NOT LIKE '%content:'`, p.database)
	if err != nil {
		p.t.Fatal(err)
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		p.t.Fatal(err)
	}
	var out []map[string]any
	for _, text := range texts {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text[64:]))
		if hex.EncodeToString(mac.Sum(nil)) != text[:64] {
			p.t.Errorf("the signature does not fit: %s", text)
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(text[64:]), &m); err != nil {
			p.t.Fatal(err)
		}
		if m["error"] != nil {
			p.t.Errorf("a command was not captured: %v", m)
		}
		out = append(out, m)
	}
	return out
}

func (p *primary) tags() (tags []string) {
	p.t.Helper()
	for _, m := range p.tell() {
		if m["phase"] == nil {
			tags = append(tags, fmt.Sprint(m["tag"]))
		}
	}
	return tags
}

func TestOneMessageForEachCommand(t *testing.T) {
	t.Parallel()
	p := newPrimary(t)
	for _, c := range []struct{ sent, want string }{
		{`CREATE TABLE t (a serial PRIMARY KEY, b text UNIQUE)`, "CREATE TABLE"},
		{`CREATE SCHEMA s CREATE TABLE t (a int) CREATE VIEW v AS SELECT * FROM t`, "CREATE SCHEMA"},
		{`ALTER TABLE t DROP b, ADD c int`, "ALTER TABLE"},
		{`CREATE TABLE IF NOT EXISTS t (a int); CREATE INDEX IF NOT EXISTS t_pkey ON t (a); DROP TABLE IF EXISTS none; ALTER TABLE IF EXISTS none ADD a int`, ""},
		{`CREATE TEMP TABLE x (a int); CREATE INDEX ON x (a); ALTER TABLE x ADD b int; COMMENT ON COLUMN x.a IS 'x'; DROP TABLE x; CREATE TEMP TABLE y AS SELECT 1; SELECT 1 AS a INTO TEMP z`, ""},
		{`BEGIN; SAVEPOINT s; DROP TABLE t; ROLLBACK TO s; CREATE TYPE e AS ENUM (); COMMIT`, "CREATE TYPE"},
		{`CREATE EXTENSION earthdistance CASCADE; CREATE EXTENSION IF NOT EXISTS cube; DROP EXTENSION cube CASCADE`, "CREATE EXTENSION,CREATE EXTENSION,DROP EXTENSION"},
		{`SET session_replication_role = replica; CREATE TABLE restored (a int); RESET session_replication_role`, "CREATE TABLE"},
		{`SET session_replication_role = replica; SET hawser.agent = on; CREATE TABLE unseen (a int); RESET session_replication_role`, ""},
		{`CREATE TABLE seen (a int); RESET hawser.agent`, "CREATE TABLE"},
		{`DROP SCHEMA s CASCADE; TRUNCATE t; VACUUM`, "DROP SCHEMA"},
		{`CREATE TABLE hawser.own (a int); CREATE INDEX ON hawser.own (a); DROP TABLE hawser.own`, ""},
	} {
		for _, statement := range strings.Split(c.sent, "; VACUUM") {
			p.exec(statement)
		}
		if got := strings.Join(p.tags(), ","); got != c.want {
			t.Errorf("%s:\ngot  %q\nwant %q", c.sent, got, c.want)
		}
	}
}

// TestSweepOfAnIdleDatabase: a look at a database in which nothing happens writes nothing,
// whatever happens in others. Else the WAL never stands still, and every link is looked at
// again and again.
func TestSweepOfAnIdleDatabase(t *testing.T) {
	t.Parallel()
	p := newPrimary(t)
	p.exec(`CREATE TABLE t (id int PRIMARY KEY)`)
	testpg.Eventually(t, 20*time.Second, "a sweep writes nothing", func() (bool, error) {
		p.exec(`SELECT txid_current()`) // as in another database
		return testpg.Rows(t, p.conn, `SELECT hawser.ddl_sweep(NULL), pg_current_xact_id_if_assigned() IS NULL`)[0] == "0|t", nil
	})
}

// TestUsersNeedNoRightOnHawser runs DDL as a role that may do nothing in schema hawser.
func TestUsersNeedNoRightOnHawser(t *testing.T) {
	t.Parallel()
	p := newPrimary(t)
	role := fmt.Sprintf("ddl_user_%d", rand.Uint32())
	p.exec(`CREATE ROLE ` + role + `; GRANT CREATE ON SCHEMA public TO ` + role + `; REVOKE ALL ON SCHEMA hawser FROM PUBLIC`)
	t.Cleanup(func() {
		conn := p.c.Connect(t, p.database)
		for _, sql := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := conn.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	p.tell()
	// What a hostile user may set, and what an old script sets, must not disturb.
	p.exec(`SET SESSION AUTHORIZATION ` + role + `; SET search_path = public, pg_catalog; SET standard_conforming_strings = off; SET DateStyle = 'German';
		CREATE FUNCTION public.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END';
		CREATE FUNCTION public.md5(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END';
		CREATE FUNCTION public.coalesce_text(text, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END';
		CREATE TABLE t (a int); ALTER TABLE t ADD b timestamptz DEFAULT now(); CREATE TABLE u AS SELECT 1 AS a; DROP TABLE u; RESET SESSION AUTHORIZATION`)
	messages := p.tell()
	if len(messages) != 8 { // one of them is the beginning of CREATE TABLE AS
		t.Fatalf("%d messages: %v", len(messages), messages)
	}
	for _, m := range messages {
		user := m["user"].(map[string]any)
		if user["name"] != role || user["superuser"] != false || user["session"] != role {
			t.Errorf("user: got %v, want %s", user, role)
		}
		if m["phase"] == nil && m["search_path"] != "public, pg_catalog" {
			t.Errorf("search_path: got %v", m["search_path"])
		}
	}
	conn := p.c.Connect(t, p.database)
	execute(t, conn, `SET ROLE `+role)
	for _, sql := range []string{`SELECT hawser.ddl_write('{}')`, `SELECT key FROM hawser.ddl_capture`, `SELECT hawser.keep_identity('{}')`} {
		if _, err := conn.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s: a user without rights may do it", sql)
		}
	}
}

func TestInstallAndRemove(t *testing.T) {
	t.Parallel()
	ctx, p := t.Context(), newPrimary(t)
	key, err := DDLKey(ctx, p.conn)
	if err != nil {
		t.Fatal(err)
	}
	p.exec(`UPDATE hawser.ddl_capture SET version = 0; DROP EVENT TRIGGER "!hawser_sql_drop"; ALTER EVENT TRIGGER "!hawser_ddl_end" DISABLE;
		CREATE OR REPLACE FUNCTION hawser.ddl_stack(context text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''old''; END'`)
	for range 2 {
		if err := InstallDDL(ctx, p.conn); err != nil {
			t.Fatal(err)
		}
	}
	p.exec(`CREATE TABLE t (a int); DROP TABLE t`)
	if got := p.tags(); !slices.Equal(got, []string{"CREATE TABLE", "DROP TABLE"}) {
		t.Errorf("after an upgrade: %q", got)
	}
	if again, err := DDLKey(ctx, p.conn); err != nil || !slices.Equal(key, again) {
		t.Errorf("the key changed with the upgrade (%v)", err)
	}
	p.exec(fmt.Sprintf(`UPDATE hawser.ddl_capture SET version = %d`, ddlVersion+1))
	if err := InstallDDL(ctx, p.conn); err != nil {
		t.Fatal(err)
	}
	var version int
	if err := p.conn.QueryRow(ctx, `SELECT version FROM hawser.ddl_capture`).Scan(&version); err != nil || version != ddlVersion+1 {
		t.Errorf("version %d, %v: a newer one was replaced", version, err)
	}
	for range 2 {
		if err := RemoveDDL(ctx, p.conn); err != nil {
			t.Fatal(err)
		}
	}
	var left int
	if err := p.conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'hawser'::regnamespace)`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d objects left, %v", left, err)
	}
	if _, err := DDLKey(ctx, p.conn); !isProblem(err, "ddl-capture-missing") {
		t.Errorf("key of nothing: %v", err)
	}
}

func isProblem(err error, code string) bool {
	p, ok := problem.As(err)
	return ok && p.Code == code && p.Cause != "" && p.Help() != ""
}

func TestInstallNeedsASuperuser(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	database, role := c.CreateDatabase(t), fmt.Sprintf("ddl_owner_%d", rand.Uint32())
	conn := c.Connect(t, database)
	execute(t, conn, `CREATE ROLE `+role+`; GRANT ALL ON DATABASE `+database+` TO `+role)
	t.Cleanup(func() { executeLast(t, c.Connect(t, database), "DROP OWNED BY "+role, "DROP ROLE "+role) })
	execute(t, conn, `SET ROLE `+role)
	if err := InstallDDL(t.Context(), conn); !isProblem(err, "ddl-capture-privilege") {
		t.Errorf("got %v", err)
	}
}

// executeLast is for a cleanup, when the test's context is done.
func executeLast(t *testing.T, conn *pgx.Conn, statements ...string) {
	for _, sql := range statements {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func TestReplicaIdentity(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	database := c.CreateDatabase(t)
	conn, other := c.Connect(t, database), c.Connect(t, database)
	const before = `CREATE TABLE key (a int PRIMARY KEY); CREATE TABLE "No key" (a int); CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
		CREATE TABLE own (a int); ALTER TABLE own REPLICA IDENTITY FULL; CREATE UNLOGGED TABLE unlogged (a int);
		CREATE TABLE part (a int) PARTITION BY LIST (a); CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1); CREATE TABLE gone (a int)`
	execute(t, conn, before)
	identities := func() string {
		var s string
		if err := conn.QueryRow(ctx, `SELECT string_agg(relname || '=' || relreplident::text, ' ' ORDER BY relname) FROM pg_class
			WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')`).Scan(&s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	was := identities()
	if err := InstallDDL(ctx, conn); err != nil {
		t.Fatal(err)
	}
	// A table that is in use is waited for.
	execute(t, other, `BEGIN; LOCK TABLE "No key"`)
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := EnsureReplicaIdentity(short, c.Connect(t, database)); err == nil {
		t.Error("a table that was locked got its identity")
	}
	execute(t, other, `COMMIT`)
	if err := EnsureReplicaIdentity(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if got, want := identities(), "No key=f gone=f key=d nothing=f own=f part=f part1=f unlogged=d"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	list, err := ChangedIdentities(ctx, conn)
	if err != nil || len(list) != 5 || list[0] != (ChangedIdentity{"public", "No key", "d"}) {
		t.Errorf("changed: %v, %v", list, err)
	}

	// Under a publication the user's changes pass; a key takes the identity back.
	execute(t, conn, `CREATE PUBLICATION p FOR ALL TABLES; UPDATE "No key" SET a = 1; UPDATE nothing SET a = 1; UPDATE part SET a = 1;
		CREATE TABLE later (a int); UPDATE later SET a = 1; CREATE TABLE aslater AS SELECT 1 AS a; UPDATE aslater SET a = 2;
		BEGIN; CREATE TABLE two (a int NOT NULL); ALTER TABLE two ADD PRIMARY KEY (a); UPDATE two SET a = 1; ALTER TABLE two DROP CONSTRAINT two_pkey; UPDATE two SET a = 2; COMMIT;
		CREATE TABLE at (a int NOT NULL); ALTER TABLE part ADD PRIMARY KEY (a); ALTER TABLE part ATTACH PARTITION at FOR VALUES IN (2); DROP TABLE gone`)
	if got, want := identities(), "No key=f aslater=f at=d key=d later=f nothing=f own=f part=d part1=d two=f unlogged=d"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	execute(t, conn, `DROP TABLE later, aslater, two, at; ALTER TABLE part DROP CONSTRAINT part_pkey; CREATE TABLE gone (a int)`)

	// Another side takes the list over.
	copyOf := c.CreateDatabase(t)
	secondary := c.Connect(t, copyOf)
	execute(t, secondary, before+`; ALTER TABLE "No key" REPLICA IDENTITY FULL`)
	if err := AdoptReplicaIdentity(ctx, secondary, append(list, ChangedIdentity{"public", "missing", "d"})); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []*pgx.Conn{secondary, conn} {
		if err := RestoreReplicaIdentity(ctx, conn); err != nil {
			t.Fatal(err)
		}
		if err := RestoreReplicaIdentity(ctx, conn); err != nil {
			t.Fatal(err)
		}
	}
	if got := identities(); got != was {
		t.Errorf("restored:\ngot  %s\nwant %s", got, was)
	}
}

// TestMessageStaysBeforeTheRowsThatNeedIt guards the empty message in hawser.ddl_write.
func TestMessageStaysBeforeTheRowsThatNeedIt(t *testing.T) {
	t.Parallel()
	p := newPrimary(t)
	p.exec(`CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)`)
	p.exec(`CREATE TABLE u (a int PRIMARY KEY); DO $$ BEGIN INSERT INTO u VALUES (1); EXCEPTION WHEN OTHERS THEN END $$`)
	p.exec(`BEGIN; SAVEPOINT s; CREATE TABLE v (a int PRIMARY KEY); RELEASE s; INSERT INTO v VALUES (1); COMMIT`)
	rows, err := p.conn.Query(t.Context(), `SELECT CASE WHEN data LIKE '%INSERT%' AND data NOT LIKE 'message%' THEN 'row' ELSE 'message' END
		FROM pg_logical_slot_get_changes($1, NULL, NULL)
		WHERE data LIKE 'table public.%INSERT%' OR data LIKE '%content:_%'`, p.database)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if want := "message row message row message row"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}
