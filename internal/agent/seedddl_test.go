package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestDDLOfRestoredSchema gives DDL, while tables are copied, of what comes last of the
// restored schema: foreign keys, triggers, rules, checks and filled views.
func TestDDLOfRestoredSchema(t *testing.T) {
	t.Parallel()
	for name, kill := range map[string]bool{"running": false, "agent stops between": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			setup := []string{`CREATE TABLE p (id int PRIMARY KEY, v text); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
				CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM p; CREATE MATERIALIZED VIEW gone AS SELECT count(*) FROM p; CREATE UNIQUE INDEX ON counted (count)`}
			for i := range 6 {
				setup = append(setup, fmt.Sprintf(`CREATE TABLE c%[1]d (id int PRIMARY KEY, p int CONSTRAINT c_p REFERENCES p, n int);
					CREATE TRIGGER tr BEFORE INSERT ON c%[1]d FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE c%[1]d ENABLE ALWAYS TRIGGER tr;
					CREATE RULE r AS ON DELETE TO c%[1]d WHERE false DO INSTEAD NOTHING; ALTER TABLE c%[1]d ADD CONSTRAINT late CHECK (n IS NULL) NOT VALID`, i))
			}
			setup = append(setup, `INSERT INTO p SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i; REFRESH MATERIALIZED VIEW counted; REFRESH MATERIALIZED VIEW gone`)
			for i := range 6 {
				setup = append(setup, fmt.Sprintf(`INSERT INTO c%d SELECT i, i FROM generate_series(1, 500) i`, i),
					fmt.Sprintf(`CREATE TABLE large%d AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 30000) i`, i))
			}
			a.Exec(t, "postgres", `CREATE DATABASE shop`)
			a.Exec(t, "shop", setup...)
			made := make(chan error, 1)
			go func() {
				_, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
				made <- err
			}()
			awaitCopy(t, b, "shop", 0)
			a.Exec(t, "shop", `ALTER TABLE c0 DROP CONSTRAINT c_p; DROP TRIGGER tr ON c0; DROP RULE r ON c0; ALTER TABLE c0 DROP CONSTRAINT late`,
				`ALTER TABLE c1 RENAME CONSTRAINT c_p TO renamed; ALTER TABLE c1 RENAME TO c1b`,
				`BEGIN; ALTER TABLE c2 ADD extra int; ALTER TABLE c2 ALTER p TYPE bigint; ALTER TABLE c2 RENAME CONSTRAINT c_p TO k; ALTER TABLE c2 ADD more int DEFAULT 3; DROP TRIGGER tr ON c2; INSERT INTO c2 VALUES (1000, 1); COMMIT`)
			if kill {
				b.stop()
				b.run(t)
			}
			a.Exec(t, "shop", `DROP TABLE c3`, `ALTER MATERIALIZED VIEW counted RENAME TO total; DROP MATERIALIZED VIEW gone`,
				`ALTER TABLE c4 ADD CONSTRAINT second FOREIGN KEY (id) REFERENCES p; ALTER TABLE c4 DROP CONSTRAINT c_p`, `UPDATE c5 SET p = 7 WHERE id < 10`)
			if err := testpg.Await(t, "the link's creation is answered", made); err != nil {
				t.Fatal(err)
			}
			b.awaitState(t, "shop", api.StateSynchronized)
			arrived(t, a, b, "shop")
			equal(t, a, b, "shop")
			const keys = `SELECT conrelid::regclass, conname, convalidated FROM pg_constraint WHERE contype IN ('f', 'c') AND connamespace = 'public'::regnamespace ORDER BY conrelid::regclass::text, 2`
			if was, is := fmt.Sprint(testpg.Rows(t, a.Connect(t, "shop"), keys)), fmt.Sprint(testpg.Rows(t, b.Connect(t, "shop"), keys)); was != is {
				t.Errorf("the primary's constraints are %s, the replica's %s", was, is)
			}
			if got := testpg.Rows(t, b.Connect(t, "shop"), `SELECT count FROM total`)[0]; got != "20000" {
				t.Errorf("the view holds %s", got)
			}
		})
	}
}

// restored is a schema of which each part that comes last is spoken of by restoredDDL. Some
// rows do not meet what is NOT VALID.
const restored = `SET CONSTRAINTS ALL IMMEDIATE;
	CREATE DOMAIN d:s AS int;
	CREATE TABLE p:s (id int PRIMARY KEY, code varchar(20) UNIQUE, v text);
	CREATE TABLE c:s (id int PRIMARY KEY, a int CONSTRAINT a_drop REFERENCES p:s, b int CONSTRAINT b_ren REFERENCES p:s, c int CONSTRAINT c_alter REFERENCES p:s, code varchar(20) CONSTRAINT d_type REFERENCES p:s (code),
		e int CONSTRAINT e_swap REFERENCES p:s, f int CONSTRAINT f_kept REFERENCES p:s ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED, n int, m int, dom d:s, at bigint CONSTRAINT g_type REFERENCES p:s);
	CREATE TABLE heir:s (x int) INHERITS (c:s);
	CREATE FUNCTION f:s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.m := coalesce(NEW.m, 0) + 1; RETURN NEW; END $$;
	CREATE TRIGGER t_drop BEFORE INSERT OR UPDATE ON c:s FOR EACH ROW EXECUTE FUNCTION f:s(); CREATE TRIGGER t_ren BEFORE INSERT ON c:s FOR EACH ROW EXECUTE FUNCTION f:s();
	CREATE TRIGGER t_always BEFORE INSERT OR UPDATE ON c:s FOR EACH ROW EXECUTE FUNCTION f:s(); ALTER TABLE c:s ENABLE ALWAYS TRIGGER t_always;
	CREATE TABLE log:s (id serial PRIMARY KEY, what text);
	CREATE RULE r_drop AS ON UPDATE TO c:s DO ALSO INSERT INTO log:s (what) VALUES ('dropped'); CREATE RULE r_ren AS ON DELETE TO c:s DO ALSO INSERT INTO log:s (what) VALUES ('deleted');
	CREATE RULE also AS ON DELETE TO p:s DO ALSO INSERT INTO log:s (what) VALUES ('always'); ALTER TABLE p:s ENABLE ALWAYS RULE also;
	CREATE INDEX i_drop:s ON c:s (a); CREATE INDEX i_ren:s ON c:s (b); CREATE STATISTICS s_drop:s ON a, b FROM c:s;
	CREATE POLICY y_drop ON c:s USING (id > 0); CREATE POLICY y_ren ON c:s USING (id > 0); ALTER TABLE c:s ENABLE ROW LEVEL SECURITY;
	CREATE TABLE q:s (id int, k int, p int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE q1:s PARTITION OF q:s FOR VALUES IN (1); CREATE TABLE q2:s PARTITION OF q:s FOR VALUES IN (2);
	ALTER TABLE q:s ADD CONSTRAINT q_drop FOREIGN KEY (p) REFERENCES p:s, ADD CONSTRAINT q_ren FOREIGN KEY (p) REFERENCES p:s, ADD CONSTRAINT q_self FOREIGN KEY (p, k) REFERENCES q:s;
	CREATE TABLE to_q:s (id int PRIMARY KEY, q int, k int, CONSTRAINT to_q FOREIGN KEY (q, k) REFERENCES q:s, CONSTRAINT to_q_drop FOREIGN KEY (q, k) REFERENCES q:s);
	CREATE TABLE again:s (id int PRIMARY KEY, p int CONSTRAINT k REFERENCES p:s, n int);
	INSERT INTO p:s SELECT i, 'c' || i, repeat('x', 200) FROM generate_series(1, 2000) i;
	INSERT INTO c:s SELECT i, i, i, i, 'c' || i, i, i, NULL, 0, -1, i FROM generate_series(1, 1000) i; INSERT INTO heir:s (id, n, dom) SELECT i, NULL, -1 FROM generate_series(1, 50) i;
	INSERT INTO q:s SELECT i, 1 + i % 2, i FROM generate_series(1, 1000) i; INSERT INTO to_q:s SELECT i, i, 1 + i % 2 FROM generate_series(1, 500) i; INSERT INTO again:s SELECT i, i FROM generate_series(1, 100) i;
	ALTER TABLE c:s ADD CONSTRAINT n_kept CHECK (n IS NOT NULL) NOT VALID, ADD CONSTRAINT n_drop CHECK (n IS NOT NULL) NOT VALID, ADD CONSTRAINT n_ren CHECK (n IS NOT NULL) NO INHERIT NOT VALID, ADD CONSTRAINT n_valid CHECK (m >= 0 OR m IS NULL) NOT VALID;
	COMMENT ON CONSTRAINT n_kept ON c:s IS 'it''s kept'; ALTER TABLE heir:s ADD CONSTRAINT n_kept CHECK (n IS NOT NULL) NOT VALID, ADD CONSTRAINT n_own CHECK (n IS NOT NULL) NOT VALID;
	ALTER DOMAIN d:s ADD CONSTRAINT d_kept CHECK (VALUE > 0) NOT VALID; ALTER DOMAIN d:s ADD CONSTRAINT d_drop CHECK (VALUE > 1) NOT VALID; ALTER TABLE p:s ADD CONSTRAINT o_open FOREIGN KEY (id) REFERENCES again:s NOT VALID;
	CREATE MATERIALIZED VIEW m_drop:s AS SELECT count(*) FROM c:s; CREATE MATERIALIZED VIEW m_ren:s AS SELECT count(*) FROM p:s; CREATE TABLE w:s AS SELECT id FROM p:s; CREATE MATERIALIZED VIEW m_con:s AS SELECT id FROM w:s; CREATE UNIQUE INDEX ON m_con:s (id);
	CREATE MATERIALIZED VIEW m_on:s AS SELECT count(*) FROM m_con:s; CREATE MATERIALIZED VIEW m_empty:s AS SELECT 1 / count(*) AS x FROM p:s; CREATE MATERIALIZED VIEW m_div:s AS SELECT 1 / count(*) AS x FROM p:s;
	CREATE VIEW grouped:s AS SELECT id, v FROM p:s GROUP BY id;`

// restoredDDL are transactions of DDL, and of what rows make of it.
var restoredDDL = []string{
	`ALTER TABLE c:s DROP CONSTRAINT a_drop; ALTER TABLE c:s RENAME CONSTRAINT b_ren TO renamed; ALTER TABLE c:s ALTER CONSTRAINT c_alter DEFERRABLE INITIALLY DEFERRED`,
	`DROP TRIGGER t_drop ON c:s; ALTER TRIGGER t_ren ON c:s RENAME TO t_renamed; ALTER TABLE c:s DISABLE TRIGGER t_renamed; DROP RULE r_drop ON c:s; ALTER RULE r_ren ON c:s RENAME TO r_renamed`,
	`ALTER TABLE c:s DROP CONSTRAINT n_drop; ALTER TABLE c:s RENAME CONSTRAINT n_ren TO n_renamed; ALTER TABLE c:s VALIDATE CONSTRAINT n_valid; ALTER DOMAIN d:s DROP CONSTRAINT d_drop`,
	`DROP INDEX i_drop:s; ALTER INDEX i_ren:s RENAME TO i_renamed:s; DROP STATISTICS s_drop:s; DROP POLICY y_drop ON c:s; ALTER POLICY y_ren ON c:s RENAME TO y_renamed`,
	`UPDATE c:s SET n = 1, dom = 5 WHERE id % 2 = 0; DELETE FROM c:s WHERE id = 9; INSERT INTO c:s (id, n, dom) VALUES (5000, 1, 1); DELETE FROM p:s WHERE id = 1999`,
	`ALTER TABLE p:s ALTER code TYPE varchar(40); ALTER TABLE c:s ALTER code TYPE text; ALTER TABLE c:s ALTER at TYPE int; ALTER TABLE q:s ALTER p TYPE bigint`,
	`ALTER TABLE c:s DROP CONSTRAINT e_swap, ADD CONSTRAINT e_swap FOREIGN KEY (e) REFERENCES p:s ON DELETE CASCADE NOT VALID; ALTER TABLE c:s ADD CONSTRAINT later FOREIGN KEY (a) REFERENCES p:s NOT VALID; ALTER TABLE c:s VALIDATE CONSTRAINT later, ADD extra int DEFAULT 7`,
	`DROP MATERIALIZED VIEW m_drop:s; ALTER MATERIALIZED VIEW m_ren:s RENAME TO m_renamed:s; CREATE MATERIALIZED VIEW m_ren:s AS SELECT 5 WITH NO DATA`,
	`REFRESH MATERIALIZED VIEW CONCURRENTLY m_con:s; REFRESH MATERIALIZED VIEW m_on:s; CREATE MATERIALIZED VIEW m_new:s AS SELECT 1 / count(*) AS x FROM m_con:s; REFRESH MATERIALIZED VIEW m_empty:s WITH NO DATA; REFRESH MATERIALIZED VIEW m_div:s`,
	`ALTER TABLE q:s DROP CONSTRAINT q_drop; ALTER TABLE q:s RENAME CONSTRAINT q_ren TO q_renamed; ALTER TABLE to_q:s DROP CONSTRAINT to_q_drop; ALTER TABLE q:s ADD CONSTRAINT q_new FOREIGN KEY (id) REFERENCES p:s`,
	`CREATE TABLE q3:s (id int, k int NOT NULL, p bigint, PRIMARY KEY (id, k)); INSERT INTO q3:s VALUES (1, 3, 1); ALTER TABLE q:s ATTACH PARTITION q3:s FOR VALUES IN (3); CREATE TABLE q4:s PARTITION OF q:s FOR VALUES IN (4); INSERT INTO q:s VALUES (2, 4, 2)`,
	`DROP TABLE again:s CASCADE; CREATE TABLE again:s (id int PRIMARY KEY, p int CONSTRAINT k REFERENCES p:s NOT NULL); INSERT INTO again:s VALUES (7, 7); ALTER TABLE again:s RENAME CONSTRAINT k TO k2`,
	`DROP VIEW grouped:s; ALTER TABLE p:s ALTER id TYPE bigint; ALTER TABLE p:s RENAME TO renamed_p:s; ALTER TABLE c:s RENAME TO renamed_c:s; INSERT INTO renamed_p:s VALUES (9999, 'new', 'y'); UPDATE renamed_c:s SET f = 9999 WHERE id = 4; TRUNCATE log:s`,
}

// commands gives a database's transactions of restoredDDL, in their order.
func commands(t *testing.T, i *instance, suffix string) {
	t.Helper()
	for _, sql := range restoredDDL {
		i.Exec(t, "shop", "BEGIN; SET CONSTRAINTS ALL IMMEDIATE; "+strings.ReplaceAll(sql, ":s", suffix)+"; COMMIT")
	}
}

// awaitCopy waits until the schema is restored on i, and n of the tables are live.
func awaitCopy(t *testing.T, i *instance, database string, n int, tables ...string) {
	t.Helper()
	ctx := context.Background()
	testpg.Eventually(t, 60*time.Second, fmt.Sprintf("the schema is restored, and of %v %d are live", tables, n), func() (bool, error) {
		conn, err := pgx.Connect(ctx, i.DSN(database))
		if err != nil {
			return false, nil
		}
		defer conn.Close(ctx)
		var all, live int
		err = conn.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE state = 'live' AND name = ANY ($1)) FROM hawser.seed_table`, tables).Scan(&all, &live)
		return err == nil && all > 0 && live >= n, nil
	})
}

// awaitMove waits until the position of the replica moves on, or the copy is complete.
func awaitMove(t *testing.T, i *instance) {
	t.Helper()
	was := ""
	testpg.Eventually(t, 60*time.Second, "the stream goes on", func() (bool, error) {
		conn, err := pgx.Connect(context.Background(), i.DSN("shop"))
		if err != nil {
			return false, nil
		}
		defer conn.Close(context.Background())
		var now string
		var done bool
		err = conn.QueryRow(context.Background(), `SELECT max(lsn)::text, (SELECT done FROM hawser.seeding) FROM hawser.position`).Scan(&now, &done)
		moved := was != "" && now != was
		was = now
		return moved || done, err
	})
}

// TestDDLOfEveryRestoredPart gives restoredDDL of tables that wait for their copy, that are
// copied just then, and that have arrived.
func TestDDLOfEveryRestoredPart(t *testing.T) {
	t.Parallel()
	for name, kill := range map[string]bool{"running": false, "agent killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b := pair(t)
			if kill {
				b.stop()
				b.process = true
				b.run(t)
			}
			a.Exec(t, "postgres", `CREATE DATABASE shop`)
			for _, suffix := range []string{"_live", "_copying", "_pending"} {
				a.Exec(t, "shop", strings.ReplaceAll(restored, ":s", suffix))
			}
			for n := range 4 {
				a.Exec(t, "shop", fmt.Sprintf(`CREATE TABLE large%d AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 40000) i`, n))
			}
			a.Exec(t, "shop", `UPDATE p_copying SET v = (SELECT string_agg(md5(i::text || id), '') FROM generate_series(1, 300) i)`, fmt.Sprintf(
				`CREATE FUNCTION e() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN IF current_setting('port') <> '%d' THEN RAISE EXCEPTION 'no DDL here'; END IF; END $$`, a.Port()),
				`CREATE EVENT TRIGGER refuses ON ddl_command_start EXECUTE FUNCTION e(); ALTER EVENT TRIGGER refuses ENABLE ALWAYS`)
			made := make(chan error, 1)
			go func() {
				_, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
				made <- err
			}()
			awaitCopy(t, b, "shop", 0) // the large tables come first
			lock := a.Connect(t, "shop")
			if _, err := lock.Exec(ctx, `BEGIN; SET CONSTRAINTS ALL IMMEDIATE; LOCK TABLE p_pending, c_pending, heir_pending, log_pending, q1_pending, q2_pending, to_q_pending, again_pending, w_pending IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			commands(t, a, "_copying")
			awaitCopy(t, b, "shop", 3, "p_live", "c_live", "q1_live")
			commands(t, a, "_live")
			for _, sql := range restoredDDL {
				if _, err := lock.Exec(ctx, strings.ReplaceAll(sql, ":s", "_pending")); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := lock.Exec(ctx, `COMMIT`); err != nil {
				t.Fatal(err)
			}
			if err := testpg.Await(t, "the link's creation is answered", made); err != nil {
				t.Fatal(err)
			}
			for n := 0; kill && n < 4; n++ {
				awaitMove(t, b)
				b.stop()
				b.run(t)
			}
			b.awaitState(t, "shop", api.StateSynchronized)
			same(t, a, b, "shop")
		})
	}
}

// TestChecksThatReadOtherTables copies tables whose rows a CHECK, through a function, holds
// against rows that are not there yet, or no more, and gives DDL of them meanwhile.
func TestChecksThatReadOtherTables(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE allowed (id int PRIMARY KEY, v text); CREATE FUNCTION ok(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN EXISTS (SELECT FROM allowed WHERE id = $1); END';
		CREATE DOMAIN d AS int CHECK (ok(VALUE)); CREATE TABLE calls (id int PRIMARY KEY, v int CHECK (ok(v)), w d, x int); CREATE TABLE late (id int PRIMARY KEY, v int);
		CREATE TABLE parts (id int, v int CONSTRAINT k CHECK (ok(v))) PARTITION BY LIST (id); CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1);
		INSERT INTO allowed SELECT i, repeat('x', 1000) FROM generate_series(1, 3000) i; INSERT INTO calls SELECT i, i, i, i FROM generate_series(1, 3000) i; INSERT INTO late SELECT i, i FROM generate_series(1, 100) i; INSERT INTO parts VALUES (1, 1);
		ALTER TABLE late ADD CONSTRAINT open CHECK (ok(v + 1)) NOT VALID; DELETE FROM allowed WHERE id = 3000`)
	for n := range 4 {
		a.Exec(t, "shop", fmt.Sprintf(`CREATE TABLE large%d AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 30000) i`, n))
	}
	made := make(chan error, 1)
	go func() {
		_, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
		made <- err
	}()
	awaitCopy(t, b, "shop", 0)
	a.Exec(t, "shop", `ALTER TABLE calls ALTER x TYPE bigint; INSERT INTO calls VALUES (5000, 7, 7, 7); DELETE FROM allowed WHERE id = 7`, `ALTER TABLE calls RENAME CONSTRAINT calls_v_check TO renamed`)
	a.Exec(t, "shop", `INSERT INTO allowed VALUES (10000, 'y'); INSERT INTO calls VALUES (5001, 10000, 10000, 1); DELETE FROM allowed WHERE id = 10000`,
		`DELETE FROM calls WHERE id = 5001; ALTER TABLE late ADD CONSTRAINT added CHECK (ok(v) OR v = 7); ALTER DOMAIN d ADD CONSTRAINT added CHECK (ok(VALUE) OR VALUE IN (7, 3000))`,
		`CREATE TABLE parts2 (id int, v int CONSTRAINT k CHECK (ok(v))); ALTER TABLE parts ATTACH PARTITION parts2 FOR VALUES IN (2); INSERT INTO parts VALUES (2, 2); CREATE TABLE heir (w int, CONSTRAINT open CHECK (ok(v + 1))) INHERITS (late)`,
		`CREATE TABLE new (v int CHECK (ok(v)), w d); INSERT INTO new VALUES (5, 5); DELETE FROM late WHERE v = 6; ALTER TABLE late VALIDATE CONSTRAINT open`)
	if err := testpg.Await(t, "the link's creation is answered", made); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	same(t, a, b, "shop")
	a.Exec(t, "shop", `ALTER TABLE allowed ADD u uuid DEFAULT gen_random_uuid()`, `INSERT INTO calls VALUES (6000, 20, 20, 1)`)
	same(t, a, b, "shop")
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 60 * time.Second}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Connect(t, "shop").Exec(ctx, `INSERT INTO calls VALUES (7000, -1, NULL, 1)`); err == nil {
		t.Error("the check is gone")
	}
}

// TestKeysOfPartitionsMeet attaches a table whose foreign key is like the parent's, and
// gives a parent the key that its partition has, while tables are copied.
func TestKeysOfPartitionsMeet(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b SELECT generate_series(1, 100);
		CREATE TABLE p (id int, x int CONSTRAINT k1 REFERENCES b) PARTITION BY LIST (x); CREATE TABLE p1 (id int, x int CONSTRAINT k1 REFERENCES b); INSERT INTO p1 SELECT i, i FROM generate_series(1, 100) i;
		CREATE TABLE q (id int, x int) PARTITION BY LIST (x); CREATE TABLE q1 PARTITION OF q DEFAULT; ALTER TABLE q1 ADD CONSTRAINT k2 FOREIGN KEY (x) REFERENCES b; INSERT INTO q SELECT i, i FROM generate_series(1, 100) i`)
	for n := range 4 {
		a.Exec(t, "shop", fmt.Sprintf(`CREATE TABLE large%d AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 30000) i`, n))
	}
	made := make(chan error, 1)
	go func() {
		_, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
		made <- err
	}()
	awaitCopy(t, b, "shop", 0)
	a.Exec(t, "shop", `ALTER TABLE p ATTACH PARTITION p1 DEFAULT; ALTER TABLE q ADD CONSTRAINT k2 FOREIGN KEY (x) REFERENCES b`)
	if err := testpg.Await(t, "the link's creation is answered", made); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	same(t, a, b, "shop")
	const keys = `SELECT conrelid::regclass, conname, conparentid <> 0, convalidated FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace ORDER BY conrelid::regclass::text, 2`
	if was, is := fmt.Sprint(testpg.Rows(t, a.Connect(t, "shop"), keys)), fmt.Sprint(testpg.Rows(t, b.Connect(t, "shop"), keys)); was != is {
		t.Errorf("the primary's keys are %s, the replica's %s", was, is)
	}
}

// TestRandomDDLWhileCopying links databases of a random schema while random transactions of
// DDL and DML run, most of them while tables are copied, and compares both sides. What the
// primary refuses is rolled back there.
func TestRandomDDLWhileCopying(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	run := 0
	testpg.Check(t, 4, func(r *rapid.T) {
		run++
		name := fmt.Sprintf("random%d", run)
		a.Exec(t, "postgres", `CREATE DATABASE `+name)
		conn := a.Connect(t, name)
		play := func(text string) {
			_, err := conn.PgConn().Exec(ctx, text).ReadAll()
			r.Logf("%s-- %v", text, err)
			if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
				r.Fatal(err)
			}
		}
		draw := func(most int) (text string) {
			for range rapid.IntRange(1, most).Draw(r, "statements") {
				text += randomKeyStatement(r) + ";\n"
			}
			return text
		}
		play(randomTables)
		for range rapid.IntRange(20, 40).Draw(r, "definitions") {
			play(draw(1))
		}
		for n := range 4 {
			a.Exec(t, name, fmt.Sprintf(`CREATE TABLE large%d AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 30000) i`, n))
		}
		if _, err := a.CreateLink(ctx, api.LinkSpec{Name: name, Database: name, Peer: "beta", Role: api.RolePrimary}); err != nil {
			r.Fatal(err)
		}
		awaitCopy(t, b, name, 0)
		for range rapid.IntRange(10, 30).Draw(r, "transactions") {
			play(draw(3))
		}
		if rapid.Bool().Draw(r, "restart") {
			b.stop()
			b.run(t)
		}
		for range rapid.IntRange(0, 10).Draw(r, "more transactions") {
			play(draw(2))
		}
		// What a view holds depends on when it was filled last.
		play(`DO $$ DECLARE v regclass; BEGIN FOR v IN SELECT oid FROM pg_class WHERE relkind = 'm' AND relispopulated LOOP EXECUTE 'REFRESH MATERIALIZED VIEW ' || v; END LOOP; END $$`)
		if err := follow(t, a, b, name, time.Minute); err != nil {
			r.Fatal(err)
		}
		// Not by same, which ends the test without the commands that led here.
		var d string
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			if d = difference(following(state(t, a, name)), following(state(t, b, name))); d == "" {
				break
			}
		}
		if d != "" {
			r.Fatalf("the sides differ:\n%s", d)
		}
		if _, err := a.DropLink(ctx, name, api.DropOptions{RemoveReplica: true}); err != nil {
			r.Fatal(err)
		}
	})
}

// randomTables are tables that randomKeyStatement speaks of.
const randomTables = `
	CREATE DOMAIN dom AS int; CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
	CREATE TABLE a (id int PRIMARY KEY, x int, y int, d dom); CREATE TABLE b (id int PRIMARY KEY, x int, y int, d dom); CREATE TABLE c (id int PRIMARY KEY, x int, y int, d dom);
	CREATE TABLE p (id int, x int, y int, d dom, PRIMARY KEY (id, x)) PARTITION BY LIST (x); CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0, 2, 4, 6, 8); CREATE TABLE p1 PARTITION OF p DEFAULT;
	INSERT INTO a SELECT i, i % 10, NULL, i FROM generate_series(0, 400) i; INSERT INTO b SELECT i, i % 10, NULL, i FROM generate_series(0, 400) i; INSERT INTO c SELECT i, i % 10, NULL, i FROM generate_series(0, 400) i; INSERT INTO p SELECT i, i % 10, NULL, i FROM generate_series(0, 400) i;
	`

func randomKeyStatement(r *rapid.T) string {
	one := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(r, label) }
	t, u := one("table", "a", "b", "c", "p"), one("other", "a", "b", "c")
	k, l := one("constraint", "k1", "k2", "k3"), one("other constraint", "k1", "k2", "k3")
	col, n := one("column", "x", "y", "id"), rapid.IntRange(0, 9).Draw(r, "n")
	open := one("open", "", "", " NOT VALID")
	return one("statement",
		fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s FOREIGN KEY (%s) REFERENCES %s%s", t, k, col, u, open),
		fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s FOREIGN KEY (%s) REFERENCES %s ON DELETE CASCADE DEFERRABLE%s", t, k, col, u, open),
		fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s FOREIGN KEY (id, x) REFERENCES p%s", t, k, open),
		fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s CHECK (%s %% 7 <> %d)%s", t, k, col, n, open),
		fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s CHECK (%s %% 7 <> %d) NOT VALID", t, k, col, n),
		fmt.Sprintf("ALTER DOMAIN dom ADD CONSTRAINT %s CHECK (VALUE %% 7 <> %d) NOT VALID", k, n),
		fmt.Sprintf("ALTER DOMAIN dom DROP CONSTRAINT %s", k),
		fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s", t, k), fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s", t, l),
		fmt.Sprintf("ALTER TABLE %s RENAME CONSTRAINT %s TO %s", t, k, l),
		fmt.Sprintf("ALTER TABLE %s VALIDATE CONSTRAINT %s", t, k),
		fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s, ADD CONSTRAINT %s FOREIGN KEY (%s) REFERENCES %s%s", t, k, k, col, u, open),
		fmt.Sprintf("ALTER TABLE %s ALTER CONSTRAINT %s DEFERRABLE", t, k),
		fmt.Sprintf("ALTER TABLE %s ALTER y TYPE %s USING y::int", t, one("type", "int", "bigint", "numeric")),
		fmt.Sprintf("ALTER TABLE %s ALTER id TYPE %s", t, one("type", "int", "bigint")),
		fmt.Sprintf("ALTER TABLE %s ADD z%d int DEFAULT %d", t, n, n), fmt.Sprintf("ALTER TABLE %s DROP z%d", t, n),
		fmt.Sprintf("CREATE TRIGGER t%d BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION fire()", n, t), fmt.Sprintf("DROP TRIGGER t%d ON %s", n, t),
		fmt.Sprintf("ALTER TABLE %s DISABLE TRIGGER t%d", t, n), fmt.Sprintf("ALTER TRIGGER t%d ON %s RENAME TO t%d", n, t, (n+1)%10),
		fmt.Sprintf("CREATE RULE also%d AS ON UPDATE TO %s WHERE false DO INSTEAD NOTHING", n, u), fmt.Sprintf("DROP RULE also%d ON %s", n, u),
		fmt.Sprintf("CREATE MATERIALIZED VIEW m%d AS SELECT count(*) FROM %s", n, t), fmt.Sprintf("REFRESH MATERIALIZED VIEW m%d%s", n, one("data", "", " WITH NO DATA")),
		fmt.Sprintf("CREATE MATERIALIZED VIEW m%d AS SELECT * FROM m%d", n, (n+1)%10), fmt.Sprintf("DROP MATERIALIZED VIEW m%d CASCADE", n), fmt.Sprintf("ALTER MATERIALIZED VIEW m%d RENAME TO m%d", n, (n+1)%10),
		fmt.Sprintf("CREATE POLICY y%d ON %s USING (id > %d)", n, t, n), fmt.Sprintf("DROP POLICY y%d ON %s", n, t),
		fmt.Sprintf("CREATE INDEX i%d ON %s (%s)", n, t, col), fmt.Sprintf("DROP INDEX i%d", n), fmt.Sprintf("ALTER INDEX i%d RENAME TO i%d", n, (n+1)%10),
		fmt.Sprintf("ALTER TABLE %s RENAME TO swap; ALTER TABLE %s RENAME TO %s; ALTER TABLE swap RENAME TO %s", u, one("third", "a", "b", "c"), u, one("third", "a", "b", "c")),
		fmt.Sprintf("DROP TABLE %s CASCADE; CREATE TABLE %s (id int PRIMARY KEY, x int, y int, d dom); INSERT INTO %s SELECT i, i %% 10, i FROM generate_series(0, %d) i", u, u, u, n*20),
		fmt.Sprintf("ALTER TABLE p DETACH PARTITION p%d", n%2), "ALTER TABLE p ATTACH PARTITION p1 DEFAULT", "ALTER TABLE p ATTACH PARTITION p0 FOR VALUES IN (0, 2, 4, 6, 8)",
		fmt.Sprintf("INSERT INTO %s (id, x, y) SELECT i, i %% 10, i FROM generate_series(%d, %d) i", t, 1000+n*20, 1010+n*20),
		fmt.Sprintf("UPDATE %s SET y = %s WHERE id %% 10 = %d", t, one("value", "NULL", "id", "x"), n), fmt.Sprintf("UPDATE %s SET d = %d WHERE id %% 10 = %d", t, n, n),
		fmt.Sprintf("DELETE FROM %s WHERE id %% 10 = %d", t, n), fmt.Sprintf("TRUNCATE %s CASCADE", t),
		fmt.Sprintf("COMMENT ON CONSTRAINT %s ON %s IS 'n%d'", k, t, n))
}
