package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

var kinds = []string{"instance", "database"}

func do(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		do(t, err)
		return v
	}
}

func want[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v\nwant %+v", what, got, want)
	}
}

// shape is all that the migrations made, but for what differs from day to day.
func shape(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	return testpg.Rows(t, conn, `
		SELECT c.relname, c.relkind, a.attnum, a.attname, a.atttypid::regtype, a.attnotnull, pg_get_expr(d.adbin, d.adrelid), c.reloptions
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
		WHERE c.relnamespace = 'hawser'::regnamespace AND a.attnum > 0
		UNION ALL
		SELECT conrelid::regclass::text, contype, 0, conname, 'text', convalidated, pg_get_constraintdef(oid), NULL
		FROM pg_constraint WHERE connamespace = 'hawser'::regnamespace
		UNION ALL
		SELECT 'migration', 'v', version, kind, 'text', true, '', NULL FROM hawser.migration
		ORDER BY 1, 2, 3, 4`)
}

// fresh returns a session in a database of its own, migrated for the kinds.
func fresh(t testing.TB, of ...string) *pgx.Conn {
	t.Helper()
	c := testpg.Shared(t)
	conn := c.Connect(t, c.CreateDatabase(t))
	for _, kind := range of {
		do(t, migrate(context.Background(), conn, kind))
	}
	return conn
}

// TestNotSuperuser: an agent whose role may not make its schema says which command lets it.
func TestNotSuperuser(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	conn := fresh(t)
	role := fmt.Sprintf("Plain %d", time.Now().UnixNano())
	for _, sql := range []string{`CREATE ROLE "` + role + `"`, `SET ROLE "` + role + `"`} {
		_, err := conn.Exec(ctx, sql)
		do(t, err)
	}
	p, ok := problem.As(MigrateInstance(ctx, conn))
	if !ok || p.Code != "not-superuser" || p.Remedy != `ALTER ROLE "`+role+`" SUPERUSER;` {
		t.Errorf("got %v", p)
	}
	_, err := conn.Exec(ctx, `RESET ROLE; DROP ROLE "`+role+`"`)
	do(t, err)
}

// TestMigrate: from nothing and from every older version the same schema comes
// out, again and again, and both kinds may live in one database.
func TestMigrate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, kind := range kinds {
		steps := get[[]string](t)(fs.Glob(migrations, kind+"/*.sql"))
		conn := fresh(t, kind)
		now := shape(t, conn)
		do(t, migrate(ctx, conn, kind))
		want(t, kind+" migrated twice", shape(t, conn), now)
		for have := range steps {
			t.Run(fmt.Sprintf("%s from %d", kind, have), func(t *testing.T) {
				t.Parallel()
				conn := fresh(t)
				do(t, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					err := ensureMigrationTable(ctx, tx, kind)
					for _, step := range steps[:have] {
						if err == nil {
							err = applyStep(ctx, tx, kind, step)
						}
					}
					return err
				}))
				do(t, migrate(ctx, conn, kind))
				want(t, "the schema", shape(t, conn), now)
			})
		}
		for i, step := range steps {
			if !strings.HasPrefix(step, fmt.Sprintf("%s/%04d_", kind, i+1)) {
				t.Errorf("migration %s stands where number %d is expected", step, i+1)
			}
		}
	}
	both, reversed := fresh(t, "instance", "database"), fresh(t, "database", "instance")
	want(t, "both kinds in either order", shape(t, both), shape(t, reversed))
}

// TestMigrateKeepsRows: a secondary that was half-way through its repair goes on with
// the newer agent.
func TestMigrateKeepsRows(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t)
	do(t, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		return errors.Join(ensureMigrationTable(ctx, tx, "database"), applyStep(ctx, tx, "database", "database/0001_start.sql"), applyStep(ctx, tx, "database", "database/0002_secondary.sql"))
	}))
	do(t, Join(ctx, conn, "1", "orders"))
	_ = get[pgconn.CommandTag](t)(conn.Exec(ctx, `INSERT INTO hawser.repair VALUES ('1', 9, '{1}', $1), ('1', 9, '{1}', '{2}')`, []string{strange[1]}))
	do(t, MigrateDatabase(ctx, conn))
	do(t, putRepair(ctx, conn, "1", RepairTable{9, []int16{1}, [][]string{{strange[1]}, {"3"}}}))
	want(t, "rows", testpg.Rows(t, conn, `SELECT count(*), count(DISTINCT key) FROM hawser.repair`), []string{"3|3"})
}

// TestMigrateTogether: agents that start at the same time wait for each other, also
// where sessions are serializable by default and so see the past.
func TestMigrateTogether(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	c.Exec(t, "postgres", "ALTER DATABASE "+postgres.QuoteIdent(db)+" SET default_transaction_isolation = 'serializable'")
	var all sync.WaitGroup
	for i := range 8 {
		conn := c.Connect(t, db)
		all.Go(func() {
			for j := range kinds {
				if err := migrate(context.Background(), conn, kinds[(i+j)%2]); err != nil {
					t.Errorf("agent %d: %v", i, err)
				}
			}
		})
	}
	testpg.Returns(t, "all agents have migrated", all.Wait)
	want(t, "the schema", shape(t, c.Connect(t, db)), shape(t, fresh(t, kinds...)))
}

// TestMigrateRefuses a schema that a newer agent made, and leaves it as it is.
func TestMigrateRefuses(t *testing.T) {
	t.Parallel()
	for kind, migrate := range map[string]func(context.Context, *pgx.Conn) error{"instance": MigrateInstance, "database": MigrateDatabase} {
		conn := fresh(t, kind)
		_ = get[pgconn.CommandTag](t)(conn.Exec(t.Context(), `INSERT INTO hawser.migration (kind, version) VALUES ($1, 99)`, kind))
		before := shape(t, conn)
		err := migrate(t.Context(), conn)
		p, ok := problem.As(err)
		if !ok || p.Code != "catalog-newer" || p.Advice == "" || p.Retryable || !strings.Contains(p.Cause, "99") {
			t.Errorf("%s: got %v", kind, err)
		}
		want(t, kind, shape(t, conn), before)
		if tx := conn.PgConn().TxStatus(); tx != 'I' {
			t.Errorf("%s: the session is left in a transaction: %c", kind, tx)
		}
	}
}

// TestMigrateWithoutPrivilege: where there is nothing to do, no right to create is
// needed.
func TestMigrateWithoutPrivilege(t *testing.T) {
	t.Parallel()
	c, role := testpg.Shared(t), fmt.Sprintf("reader_%d", os.Getpid())
	c.Exec(t, "postgres", "CREATE ROLE "+role)
	t.Cleanup(func() { c.Exec(t, "postgres", "DROP ROLE "+role) }) // after its database
	conn := fresh(t, kinds...)
	_ = get[pgconn.CommandTag](t)(conn.Exec(t.Context(), "GRANT USAGE ON SCHEMA hawser TO "+role+"; GRANT SELECT ON hawser.migration TO "+role+"; SET ROLE "+role))
	for _, kind := range kinds {
		do(t, migrate(t.Context(), conn, kind))
	}
}

// TestDropSchema takes all that is the database's and nothing of the instance's.
func TestDropSchema(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for name, of := range map[string][]string{"database": {"database"}, "maintenance database": {"instance", "database"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := fresh(t, of...)
			do(t, Join(ctx, conn, "0123", "orders"))
			do(t, putRepair(ctx, conn, "0123", RepairTable{OID: 1, Columns: []int16{1}, Keys: [][]string{{"x"}}}))
			want(t, "installed", get[bool](t)(Installed(ctx, conn)), true)
			do(t, DropSchema(ctx, conn))
			want(t, "installed", get[bool](t)(Installed(ctx, conn)), false)
			if of[0] == "instance" {
				want(t, "what is left", shape(t, conn), shape(t, fresh(t, "instance")))
			} else if left := testpg.Rows(t, conn, `SELECT nspname FROM pg_namespace WHERE nspname = 'hawser'`); len(left) > 0 {
				t.Error("schema hawser is there still")
			}
			do(t, MigrateDatabase(ctx, conn))
			want(t, "made again", shape(t, conn), shape(t, fresh(t, of...)))
		})
	}
}

// strange are names that users do give.
var strange = []string{`orders`, `My "Link"`, `it's; DROP TABLE hawser.link; --`, `Ünï cödé 🐘`, `a\b`, `%s $1 {}`, strings.Repeat("x", 63)}

func TestPeers(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "instance")
	var all []Peer
	for i, name := range strange {
		p := Peer{Name: name, Certificate: "-----BEGIN CERTIFICATE-----\n" + name + "\n", Address: fmt.Sprintf("host-%d:5022", i),
			Databases: []string{name, `"` + name + `"`}, Direction: []string{"both", "to-peer", "from-peer"}[i%3]}
		do(t, PutPeer(ctx, conn, Peer{Name: name, Certificate: "old", Address: "old", Direction: "both"}))
		do(t, PutPeer(ctx, conn, p))
		all = append(all, p)
	}
	got := get[[]Peer](t)(Peers(ctx, conn))
	for i := range got {
		if time.Since(got[i].AddedAt).Abs() > time.Hour {
			t.Errorf("peer %s was added at %s", got[i].Name, got[i].AddedAt)
		}
		got[i].AddedAt = time.Time{}
	}
	byName := func(a, b Peer) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(all, byName)
	slices.SortFunc(got, byName) // the database's order is that of its locale
	want(t, "peers", got, all)
	want(t, "removed", get[bool](t)(DeletePeer(ctx, conn, strange[2])), true)
	want(t, "removed twice", get[bool](t)(DeletePeer(ctx, conn, strange[2])), false)
	want(t, "peers left", len(get[[]Peer](t)(Peers(ctx, conn))), len(strange)-1)
}

func TestLinks(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "instance")
	do(t, PutPeer(ctx, conn, Peer{Name: "mi", Certificate: "c", Direction: "both"}))
	for i, name := range strange {
		l := Link{Name: name, ID: fmt.Sprintf("%016x", i), Peer: "mi", Database: name, Side: json.RawMessage(`{"role": "primary", "term": 1}`), Progress: Creating,
			Tables: []string{name + ".*", `"` + name + `"`}, ExcludeTables: []string{}}
		do(t, InsertLink(ctx, conn, l))
		if err := InsertLink(ctx, conn, l); err == nil {
			t.Errorf("link %s is stored twice", name)
		}
		do(t, SetProgress(ctx, conn, name, Running))
		do(t, SetSide(ctx, conn, name, json.RawMessage(`{"role": "secondary", "term": 18446744073709551615}`)))
		do(t, SetPaused(ctx, conn, name, true))
		why := &problem.Problem{Code: "c", Severity: problem.Warning, Object: name, Cause: name, Remedy: `ALTER TABLE "x"`, Retryable: true}
		do(t, SetSuspended(ctx, conn, name, why.Because(errors.New("not stored"))))
		do(t, SetFailover(ctx, conn, name, json.RawMessage(`{"lost": 0}`)))
		do(t, SetOwnsDatabase(ctx, conn, name, true))

		got, ok, err := FindLink(ctx, conn, name)
		if err != nil || !ok {
			t.Fatalf("link %s: %v, %v", name, ok, err)
		}
		if time.Since(got.CreatedAt).Abs() > time.Hour {
			t.Errorf("link %s was made at %s", name, got.CreatedAt)
		}
		got.CreatedAt = time.Time{}
		l.Side, l.Failover, l.Progress = json.RawMessage(`{"role": "secondary", "term": 18446744073709551615}`), json.RawMessage(`{"lost": 0}`), Running
		l.Paused, l.Suspended, l.OwnsDatabase = true, why, true
		want(t, "link", got, l)

		do(t, SetSuspended(ctx, conn, name, nil))
		do(t, SetFailover(ctx, conn, name, nil))
		got, _, err = FindLink(ctx, conn, name)
		do(t, err)
		if got.Suspended != nil || got.Failover != nil {
			t.Errorf("link %s that goes on: %+v", name, got)
		}
		if null := testpg.Rows(t, conn, `SELECT suspended IS NULL, failover IS NULL FROM hawser.link WHERE name = $1`, name)[0]; null != "t|t" {
			t.Errorf("suspended and failover are JSON's null, not SQL's: %s", null)
		}
		// Whoever leads is neither paused, nor stopped by what stopped it before.
		do(t, SetSuspended(ctx, conn, name, why))
		do(t, SetLeading(ctx, conn, name, json.RawMessage(`{"role": "primary", "term": 7}`), nil))
		do(t, SetPaused(ctx, conn, name, true))
	}
	want(t, "links", len(get[[]Link](t)(Links(ctx, conn))), len(strange))
	want(t, "the view", testpg.Rows(t, conn, `SELECT role, term, progress, paused, suspended_because, database = name FROM hawser.links WHERE name = $1`, strange[1]),
		[]string{"primary|7|running|f|NULL|t"})
	err := StoreNewLink(ctx, conn, Link{Name: "late", ID: "00000000000000ff", Peer: "gone", Database: "d", Side: json.RawMessage(`{}`), Progress: Creating, Tables: []string{}, ExcludeTables: []string{}})
	if p, ok := problem.As(err); !ok || p.Code != "peer-not-found" {
		t.Errorf("a link with a peer that was removed meanwhile: %v", err)
	}
	if _, err := DeletePeer(ctx, conn, "mi"); err == nil {
		t.Error("a peer that links need was removed")
	}
	do(t, DeleteLink(ctx, conn, strange[1]))
	do(t, DeleteLink(ctx, conn, strange[1]))
	if _, ok, err := FindLink(ctx, conn, strange[1]); ok || err != nil {
		t.Errorf("a link that was removed: %v, %v", ok, err)
	}
	err = SetPaused(ctx, conn, strange[1], true)
	if p, ok := problem.As(err); !ok || p.Code != "link-not-found" || !strings.Contains(p.Object, strange[1]) {
		t.Errorf("a write to a link that is not there: %v", err)
	}
}

// TestSeeding walks through the copy of a database with two links.
func TestSeeding(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "database")
	const link, other = "0123456789abcdef", `it's "other"`
	do(t, Join(ctx, conn, link, "orders"))
	do(t, Join(ctx, conn, link, "orders"))
	do(t, Join(ctx, conn, other, "other"))
	load := func() Seeding {
		t.Helper()
		s, ok, err := LoadSeeding(ctx, conn, link)
		if err != nil || !ok {
			t.Fatalf("seeding: %v, %v", ok, err)
		}
		return s
	}
	if _, ok, err := LoadSeeding(ctx, conn, link); ok || err != nil {
		t.Errorf("a copy that was never made: %v, %v", ok, err)
	}
	do(t, StartSeeding(ctx, conn, link))
	want(t, "begun", load(), Seeding{Skipped: []uint64{}, Initial: true})
	snapshot := frame.Snapshot{Xmin: 3, Xmax: 1 << 40, Xip: []uint64{5, 1<<32 + 7}}
	xids := []uint64{3, 1<<32 + 1, 1<<64 - 1}
	do(t, SetRestored(ctx, conn, link, snapshot))
	_ = get[pgconn.CommandTag](t)(conn.Exec(ctx, `UPDATE hawser.seeding SET skipped = '{3,4294967297,18446744073709551615}' WHERE link = $1`, link)) // as package apply does
	do(t, StartSeeding(ctx, conn, link))
	want(t, "restored", load(), Seeding{Restored: true, Snapshot: snapshot, Skipped: xids, Initial: true})

	tables := map[uint32]SeedTable{}
	for i, name := range strange {
		table := SeedTable{OID: 1<<31 + uint32(i), Schema: name, Name: name, State: Pending, Bytes: int64(100 - i), Rows: -1}
		tables[table.OID] = table
		do(t, PutSeedTable(ctx, conn, link, table))
		do(t, PutSeedTable(ctx, conn, link, SeedTable{OID: table.OID, Schema: "late", Name: "late"}))
		do(t, PutSeedTable(ctx, conn, other, table))
	}
	check := func(what string) {
		t.Helper()
		got := get[[]SeedTable](t)(SeedTables(ctx, conn, link))
		if !slices.IsSortedFunc(got, func(a, b SeedTable) int { return int(b.Bytes - a.Bytes) }) {
			t.Errorf("%s: not the largest first: %+v", what, got)
		}
		have := map[uint32]SeedTable{}
		for _, table := range got {
			have[table.OID] = table
		}
		want(t, what, have, tables)
	}
	check("pending")
	const oid = 1 << 31
	table := tables[oid]
	table.State, table.Snapshot, table.LSN, table.Bytes, table.Rows, table.Name = Copying, snapshot, 1<<40+5, 1000, 12, "renamed"
	do(t, SetCopying(ctx, conn, link, table))
	table.BytesDone, table.RowsDone = 999, 11
	do(t, SetTableDone(ctx, conn, link, oid, 999, 11))
	tables[oid] = table
	check("copying")
	for _, table.State = range []TableState{Loaded, Live} {
		do(t, SetTableState(ctx, conn, link, oid, table.State))
		tables[oid] = table
		check(string(table.State))
	}
	if err := SetTableState(ctx, conn, link, oid, "half"); err == nil {
		t.Error("a state that there is not was stored")
	}

	_ = get[pgconn.CommandTag](t)(conn.Exec(ctx, `INSERT INTO hawser.deferred (link, oid, payload) VALUES ($1, $3, 'x'), ($1, $4, 'x'), ($2, $3, 'x')`, link, other, uint32(oid), uint32(oid+1)))
	do(t, SetSeedingDone(ctx, conn, link))
	want(t, "done", load(), Seeding{Restored: true, Snapshot: snapshot, Skipped: []uint64{}, Done: true})
	do(t, Reseed(ctx, conn, link, SeedTable{OID: oid, Schema: "s", Name: "t"}))
	want(t, "again", load(), Seeding{Restored: true, Snapshot: snapshot, Skipped: []uint64{}})
	clear(tables) // what the copy before it left is forgotten
	tables[oid] = SeedTable{OID: oid, Schema: "s", Name: "t", State: Pending}
	check("again")
	want(t, "deferred", testpg.Rows(t, conn, `SELECT count(*) FROM hawser.deferred`), []string{"2"})
	do(t, Reseed(ctx, conn, link, SeedTable{OID: oid + 1, Schema: "s", Name: "u"}))
	tables[oid+1] = SeedTable{OID: oid + 1, Schema: "s", Name: "u", State: Pending}
	check("and another")

	next := frame.Snapshot{Xmin: 9, Xmax: 9}
	do(t, StartReconciling(ctx, conn, link, next))
	clear(tables)
	check("reconciling")
	want(t, "reconciling", load(), Seeding{Restored: true, Snapshot: next, Skipped: []uint64{}, Initial: true})
	want(t, "the other link's tables", len(get[[]SeedTable](t)(SeedTables(ctx, conn, other))), len(strange))

	want(t, "links left", get[int](t)(Leave(ctx, conn, link)), 1)
	want(t, "links left", get[int](t)(Leave(ctx, conn, other)), 0)
	for _, name := range []string{"seeding", "seed_table", "deferred", "schema_entry", "repair"} {
		want(t, name+" after all left", testpg.Rows(t, conn, `SELECT count(*) FROM hawser.`+name), []string{"0"})
	}
}

// TestReseedOfPrimary: a database that began as the primary was never seeded.
func TestReseedOfPrimary(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "database")
	do(t, Join(ctx, conn, "1", "orders"))
	do(t, Reseed(ctx, conn, "1", SeedTable{OID: 7, Schema: "s", Name: "t", Rows: 5}))
	s, ok, err := LoadSeeding(ctx, conn, "1")
	if err != nil || !ok || !s.Restored || s.Initial || s.Done {
		t.Errorf("seeding %+v, %v, %v", s, ok, err)
	}
	want(t, "tables", get[[]SeedTable](t)(SeedTables(ctx, conn, "1")), []SeedTable{{OID: 7, Schema: "s", Name: "t", State: Pending, Rows: 5}})
}

func TestSchemaEntries(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "database")
	do(t, Join(ctx, conn, "1", "orders"))
	do(t, Join(ctx, conn, "2", "other"))
	entry := func(s string) json.RawMessage {
		return get[[]byte](t)(json.Marshal(map[string]string{"sql": s}))
	}
	do(t, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		return errors.Join(
			PutSchemaEntries(ctx, tx, "1", []SchemaEntry{{3, "late", 0, entry("c")}, {1, "early", 1<<32 - 1, entry("a")}, {2, "early", 8, entry("b")}}),
			PutSchemaEntries(ctx, tx, "2", []SchemaEntry{{1, "early", 8, entry("z")}}), PutSchemaEntries(ctx, tx, "2", nil))
	}))
	do(t, AddSchemaEntry(ctx, conn, "1", "early", entry(strange[3])))
	list := func(phase string, table uint32) (sql []string) {
		t.Helper()
		for _, e := range get[[]SchemaEntry](t)(SchemaEntries(ctx, conn, "1", phase, table)) {
			var m map[string]string
			do(t, json.Unmarshal(e.Entry, &m))
			sql = append(sql, fmt.Sprintf("%d %s %d %s", e.ID, e.Phase, e.Table, m["sql"]))
		}
		return sql
	}
	want(t, "every table's", list("early", 0), []string{"1 early 4294967295 a", "2 early 8 b", "4 early 0 " + strange[3]})
	want(t, "one table's", list("early", 8), []string{"2 early 8 b"})
	want(t, "late", list("late", 0), []string{"3 late 0 c"})
	do(t, SetEntryDone(ctx, conn, "1", 2))
	want(t, "one is built", list("early", 0), []string{"1 early 4294967295 a", "4 early 0 " + strange[3]})
	want(t, "it is not built", get[bool](t)(Unbuilt(ctx, conn, "1")), true)
	do(t, StartSeeding(ctx, conn, "1"))
	do(t, SetSeedingDone(ctx, conn, "1"))
	want(t, "when all is done", list("early", 0), nil)
	want(t, "nor is the other link's", get[bool](t)(Unbuilt(ctx, conn, "2")), true)
}

func TestFollowKeys(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "database")
	run := func(sql string, added ...string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
		do(t, FollowKeys(ctx, conn, "1", added))
	}
	do(t, Join(ctx, conn, "1", "l"))
	run(`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int)`)
	for _, k := range []string{"kept", "retyped", "replaced", "dropped", "valid"} {
		run(fmt.Sprintf(`ALTER TABLE b ADD CONSTRAINT %s FOREIGN KEY (id) REFERENCES a NOT VALID`, k))
		var p Place
		do(t, conn.QueryRow(ctx, `SELECT oid, conrelid, conname FROM pg_constraint WHERE conname = $1`, k).Scan(&p.Here, &p.Relation, &p.Name))
		do(t, AddRowsEntry(ctx, conn, "1", []byte(`{}`), p))
	}
	run(`ALTER TABLE b RENAME CONSTRAINT kept TO renamed`)
	run(`ALTER TABLE b RENAME TO c`)
	run(`ALTER TABLE c ALTER id TYPE bigint, DROP CONSTRAINT replaced, ADD CONSTRAINT replaced FOREIGN KEY (id) REFERENCES a ON DELETE CASCADE NOT VALID`, "replaced")
	run(`ALTER TABLE c DROP CONSTRAINT dropped`)
	run(`ALTER TABLE c ADD CONSTRAINT dropped FOREIGN KEY (id) REFERENCES a NOT VALID`)
	run(`ALTER TABLE c VALIDATE CONSTRAINT valid`)
	var left []string
	for _, e := range get[[]RowsEntry](t)(RowsEntries(ctx, conn, "1")) {
		left = append(left, e.SQL)
	}
	want(t, "to be validated", left, []string{"ALTER TABLE public.c VALIDATE CONSTRAINT renamed", "ALTER TABLE public.c VALIDATE CONSTRAINT retyped", ""})
}

func TestPositions(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "database")
	const origin = "hawser_0123456789abcdef_2"
	if _, ok, err := Position(ctx, conn, origin); ok || err != nil {
		t.Errorf("an origin that is not known: %v, %v", ok, err)
	}
	do(t, StartPosition(ctx, conn, origin, 1<<63+5))
	do(t, StartPosition(ctx, conn, origin, 7))
	at := func() frame.LSN {
		t.Helper()
		p, ok, err := Position(ctx, conn, origin)
		if err != nil || !ok {
			t.Fatalf("position: %v, %v", ok, err)
		}
		return p.End
	}
	want(t, "one that is known stays", at(), frame.LSN(1<<63+5))
	committed := time.Date(2026, 11, 27, 1, 2, 3, 4000, time.UTC)
	_ = get[pgconn.CommandTag](t)(conn.Exec(ctx, SQLSetPosition, origin, frame.LSN(1<<64-1).String(), "7/8", 9, committed))
	want(t, "moved", at(), frame.LSN(1<<64-1))
	last, _, err := Position(ctx, conn, origin)
	do(t, err)
	want(t, "what was applied last", last, Applied{End: 1<<64 - 1, Commit: 7<<32 + 8, XID: 9, At: committed, Reached: 1<<64 - 1, Known: true})
	do(t, MovePosition(ctx, conn, origin, 5))
	last, _, err = Position(ctx, conn, origin)
	do(t, err)
	want(t, "begun anew", last, Applied{End: 5, Reached: 5})
	// _ and % are no patterns here.
	for _, o := range []string{"hawser_0123456789abcdef_1", "hawserX0123456789abcdef_1", "hawser_fedcba9876543210_1"} {
		do(t, StartPosition(ctx, conn, o, 1))
	}
	do(t, ForgetPositions(ctx, conn, "hawser_0123456789abcdef_", origin))
	want(t, "left", testpg.Rows(t, conn, `SELECT origin FROM hawser.position ORDER BY origin COLLATE "C"`),
		[]string{"hawserX0123456789abcdef_1", origin, "hawser_fedcba9876543210_1"})
}

// TestRepairs: a key may be as large as the user's own index allows, and larger as
// text: 2,600 bytes of bytea are 5,202 characters, more than an index row holds.
func TestRepairs(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "database")
	do(t, Join(ctx, conn, "1", "orders"))
	do(t, Join(ctx, conn, "2", "other"))
	var wide strings.Builder
	for i := uint64(1); wide.Len() < 5200; i++ {
		fmt.Fprintf(&wide, "%016x", i*0x9e3779b97f4a7c15) // what compression can't shrink
	}
	keys := [][]string{{"1", "a"}, {"", ""}, {strange[2], strange[3]}, {`{"a",NULL}`, `,`}, {wide.String(), "x"}, {wide.String(), "y"}}
	put := func(db DB, link string, tables ...RepairTable) {
		t.Helper()
		for _, table := range tables {
			do(t, putRepair(ctx, db, link, table))
		}
	}
	put(conn, "1", RepairTable{9, []int16{2, 1}, keys}, RepairTable{1<<32 - 1, []int16{3}, [][]string{{"z"}}})
	put(conn, "1", RepairTable{9, []int16{2, 1}, keys[:3]}, RepairTable{10, []int16{1}, nil})
	put(conn, "2", RepairTable{9, []int16{1}, [][]string{{"1"}}})
	sorted := func(link string) []RepairTable {
		t.Helper()
		list := get[[]RepairTable](t)(Repairs(ctx, conn, link))
		for _, r := range list {
			slices.SortFunc(r.Keys, slices.Compare[[]string])
		}
		return list
	}
	slices.SortFunc(keys, slices.Compare[[]string])
	want(t, "repairs", sorted("1"), []RepairTable{{9, []int16{2, 1}, keys}, {1<<32 - 1, []int16{3}, [][]string{{"z"}}}})
	do(t, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		put(tx, "1", RepairTable{9, []int16{2, 1}, [][]string{{"in a", "transaction"}}})
		return ForgetRepairs(ctx, tx, "1")
	}))
	want(t, "forgotten", sorted("1"), nil)
	want(t, "the other link's", len(sorted("2")), 1)
}

// TestCallersTransaction: what is remembered goes when the caller's transaction does.
func TestCallersTransaction(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, kinds...)
	before := len(testpg.Rows(t, conn, `SELECT FROM hawser.member`))
	stop := errors.New("no")
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		do(t, Join(ctx, tx, "1", "orders"))
		do(t, StartSeeding(ctx, tx, "1"))
		do(t, putRepair(ctx, tx, "1", RepairTable{1, []int16{1}, [][]string{{"1"}}}))
		return stop
	})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	want(t, "members", len(testpg.Rows(t, conn, `SELECT FROM hawser.member`)), before)
}

// putRepair records rows to be repaired that were not there.
func putRepair(ctx context.Context, db DB, link string, t RepairTable) error {
	for _, key := range t.Keys {
		_, err := db.Exec(ctx, `
			INSERT INTO hawser.repair (link, tbl, columns, key, digest)
			VALUES ($1, $2, $3, $4::text[], sha256(convert_to($4::text[]::text, 'UTF8'))) ON CONFLICT DO NOTHING`, link, t.OID, t.Columns, key)
		if err != nil {
			return err
		}
	}
	return nil
}

// TestTakenRows: rows that are taken away are put back as they were, of whatever types and
// names, and by a link's own record alone.
func TestTakenRows(t *testing.T) {
	t.Parallel()
	ctx, conn := t.Context(), fresh(t, "database")
	for _, id := range []string{"1", "2"} {
		do(t, Join(ctx, conn, id, "l"+id))
	}
	_ = get[pgconn.CommandTag](t)(conn.Exec(ctx, `CREATE TYPE pair AS (a int, b text); CREATE TABLE "T ""x" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gone int, "v\%s" text, p pair, g int GENERATED ALWAYS AS (id + 1) STORED, b bytea, e text[]);
		INSERT INTO "T ""x" ("v\%s", p, b, e) VALUES (E'a\\''b$1 ', ROW(NULL, NULL), '\x00ff', '{}'), (NULL, NULL, NULL, NULL), ('$do$', ROW(1, '"'), '', '{NULL,"a,b"}')`))
	all := func() []string { return testpg.Rows(t, conn, `SELECT t::text FROM "T ""x" t ORDER BY id`) }
	before := all()
	var oid uint32
	do(t, conn.QueryRow(ctx, `SELECT '"T ""x"'::regclass::oid`).Scan(&oid))
	taker := get[Taker](t)(NewTaker(ctx, conn, RepairTable{OID: oid, Columns: []int16{1}}, `"T ""x"`, "id::text = $1"))
	for _, key := range []string{"1", "2", "3", "4", "1"} {
		do(t, taker.Take(ctx, conn, "1", []string{key}))
	}
	want(t, "left", len(all()), 0)
	want(t, "counts", get[[]TakenCount](t)(TakenCounts(ctx, conn, "1")), []TakenCount{{`public."T ""x"`, 3, 1}})
	want(t, "of the other link", get[*TakenRow](t)(Taken(ctx, conn, "2", TakenRow{})), nil)
	_ = get[pgconn.CommandTag](t)(conn.Exec(ctx, `ALTER TABLE "T ""x" RENAME COLUMN p TO q; ALTER TABLE "T ""x" ADD COLUMN new int`))
	for r := get[*TakenRow](t)(Taken(ctx, conn, "1", TakenRow{})); r != nil; r = get[*TakenRow](t)(Taken(ctx, conn, "1", *r)) {
		do(t, PutBack(ctx, conn, "1", *r))
	}
	_ = get[pgconn.CommandTag](t)(conn.Exec(ctx, `ALTER TABLE "T ""x" DROP COLUMN new`))
	want(t, "back", all(), before)
}
