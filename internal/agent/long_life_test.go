package agent_test

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// What befalls a link that runs for years: servers and agents are upgraded, moved, and
// given other passwords and certificates. Elsewhere are an agent and a server that end
// at any moment (TestCrashesInEveryStep), protocols that differ (peer's
// TestOlderAndNewerProtocols), and what a dropped link leaves (TestDropLeavesNothing).

// alive proves that the link goes on: what is written now arrives.
func alive(t *testing.T, a, b *instance, after string) {
	t.Helper()
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO customer (name) VALUES ('after %s')`, after))
	testpg.Eventually(t, 30*time.Second, "a row arrives after "+after, func() (bool, error) {
		got := b.Rows(t, "shop", `SELECT FROM customer WHERE name = $1`, "after "+after)
		return len(got) == 1, nil
	})
}

// TestMoves restarts and moves all that a link hangs on, one after the other, while
// clients write: servers, as a minor upgrade of PostgreSQL does, and agents, each with
// its address changed by the documented way.
func TestMoves(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	newPort := func() int {
		t.Helper()
		port, err := testpg.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a restart of the replica", func() { b.Restart(t) }},
		{"a restart of the primary", func() { a.Restart(t) }},
		{"a restart of both servers", func() { a.Stop(t); b.Restart(t); a.Cluster.Start(t) }},
		{"a new port of the replica", func() { b.Move(t); b.stop(); b.run(t) }},
		{"a new port of the primary", func() { a.stop(); a.Move(t); a.run(t) }},
		{"a new port of the agent of the replica", func() {
			b.stop()
			b.port = newPort()
			b.run(t)
			cert, err := b.Certificate(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.AddPeer(ctx, api.AddPeer{Name: b.name, Certificate: cert.PEM, Address: fmt.Sprintf("127.0.0.1:%d", b.port)}); err != nil {
				t.Fatal(err)
			}
		}},
		{"a new port of the agent of the primary", func() { a.stop(); a.port = newPort(); a.run(t) }},
	} {
		// One writer for each step: the server's address is another one.
		n, stop := write(t, a.DSN("shop"), strings.ReplaceAll(step.what, " ", ""))
		more(t, n)
		begun := time.Now()
		step.do()
		stop()
		alive(t, a, b, step.what)
		t.Logf("%s: %s", step.what, time.Since(begun).Round(time.Millisecond))
	}
	equal(t, a, b, "shop")
}

// TestNewerCatalog: an agent that meets what a newer one made does not touch it, and
// says which agent it takes.
func TestNewerCatalog(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)

	b.stop()
	b.Exec(t, "postgres", `INSERT INTO hawser.migration (kind, version) VALUES ('instance', 99)`)
	cfg := agent.DefaultConfig()
	cfg.Name, cfg.StateDir, cfg.Socket, cfg.Endpoint.Listen = b.name, b.dir, filepath.Join(b.dir, "s"), fmt.Sprintf("127.0.0.1:%d", b.port)
	cfg.Postgres.Connection = agent.ConnString(b.DSN("postgres"))
	err := agent.Run(ctx, cfg, "test")
	if p, ok := problem.As(err); !ok || p.Code != "catalog-newer" || !strings.Contains(p.Cause, "version 99") || !strings.Contains(p.Advice, "newer version of hawser") {
		t.Errorf("an agent with a newer catalog ended with %v", err)
	}
	b.Exec(t, "postgres", `DELETE FROM hawser.migration WHERE version = 99`)
	b.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)

	// The linked databases have a version of their own, on either side.
	for _, i := range []*instance{b, a} {
		inside(t, i, `INSERT INTO hawser.migration (kind, version) VALUES ('database', 99)`)
		i.stop()
		i.run(t)
		cause, remedy := b.awaitCause(t, api.StateSuspended, "catalog-newer")
		if i == a && !strings.Contains(cause, "instance alpha") || !strings.Contains(cause, "version 99") || !strings.Contains(remedy, "newer version of hawser") {
			t.Errorf("cause %q, remedy %q", cause, remedy)
		}
		inside(t, i, `DELETE FROM hawser.migration WHERE version = 99`)
		if err := b.ResumeLink(ctx, "shop"); err != nil {
			t.Fatal(err)
		}
		b.awaitState(t, "shop", api.StateSynchronized)
	}
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'goes on')`)
	equal(t, a, b, "shop")
}

// inside runs a statement in database shop, past a fence.
func inside(t *testing.T, i *instance, sql string) {
	t.Helper()
	i.Exec(t, "shop", `SET session_replication_role = replica`, `SET hawser.agent = on`, `SET default_transaction_read_only = off`, sql)
}

// TestOlderCapture: an agent that was upgraded brings the capture of DDL that its
// predecessor installed to its own version, though the link runs already.
func TestOlderCapture(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	capture := func() string {
		return strings.Join(testpg.Rows(t, a.Connect(t, "shop"), `SELECT version, hawser.ddl_stack(E'a\nb') FROM hawser.ddl_capture`), "")
	}
	captured := capture()
	a.stop()
	inside(t, a, `UPDATE hawser.ddl_capture SET version = 1;
		CREATE OR REPLACE FUNCTION hawser.ddl_stack(context text) RETURNS text LANGUAGE sql AS $$ SELECT 'old' $$`)
	a.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'goes on')`, `CREATE TABLE later (id int PRIMARY KEY)`)
	equal(t, a, b, "shop")
	if got := capture(); got != captured {
		t.Errorf("the capture of DDL is %s, want %s", got, captured)
	}
}

//go:embed testdata/capture_v3.sql
var captureV3 string

// TestCaptureOfVersion3: a link that runs with the capture of an older version goes on
// with this one, and DDL that the older one wrote and nobody has received is replayed.
func TestCaptureOfVersion3(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	version := func() string {
		return strings.Join(testpg.Rows(t, a.Connect(t, "shop"), `SELECT version FROM hawser.ddl_capture`), "")
	}
	current := version()
	a.stop()
	inside(t, a, `CREATE TEMP TABLE keys AS SELECT key, ipad, opad FROM hawser.ddl_capture;
		DO $$ DECLARE n name; BEGIN
			FOR n IN SELECT evtname FROM pg_event_trigger WHERE evtfoid::regproc::text LIKE 'hawser.ddl\_%' LOOP
				EXECUTE format('DROP EVENT TRIGGER %I', n);
			END LOOP;
		END $$;
		DO $$ DECLARE f regprocedure; BEGIN
			FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'hawser'::regnamespace AND (proname LIKE 'ddl\_%' OR proname LIKE '%\_identity') LOOP
				EXECUTE format('DROP FUNCTION %s', f);
			END LOOP;
			DROP TABLE hawser.ddl_capture, hawser.ddl_seen, hawser.ddl_mark, hawser.ddl_filter;
		END $$;`+captureV3+`;
		INSERT INTO hawser.ddl_capture (version, key, ipad, opad) SELECT 3, key, ipad, opad FROM keys;
		CREATE EVENT TRIGGER "!hawser_begin_caller" ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION', 'ALTER EXTENSION', 'CREATE TABLE AS', 'SELECT INTO') EXECUTE FUNCTION hawser.ddl_caller();
		CREATE EVENT TRIGGER "!hawser_ddl_begin" ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION', 'ALTER EXTENSION', 'CREATE TABLE AS', 'SELECT INTO') EXECUTE FUNCTION hawser.ddl_begin();
		CREATE EVENT TRIGGER "!hawser_ddl_caller" ON ddl_command_end EXECUTE FUNCTION hawser.ddl_caller();
		CREATE EVENT TRIGGER "!hawser_ddl_end" ON ddl_command_end EXECUTE FUNCTION hawser.ddl_end();
		CREATE EVENT TRIGGER "!hawser_sql_caller" ON sql_drop EXECUTE FUNCTION hawser.ddl_caller();
		CREATE EVENT TRIGGER "!hawser_sql_drop" ON sql_drop EXECUTE FUNCTION hawser.ddl_drop();
		CREATE EVENT TRIGGER "!hawser_table_rewrite" ON table_rewrite EXECUTE FUNCTION hawser.ddl_rewrite();`)
	a.Exec(t, "shop", `CREATE TABLE early (id int PRIMARY KEY); INSERT INTO early VALUES (1); ALTER TABLE early ADD v text DEFAULT 'x'`,
		`DO $$ BEGIN CREATE TABLE in_a_block (id int PRIMARY KEY); END $$`, `CREATE TABLE made AS SELECT * FROM early`)
	a.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	if got := version(); got != current {
		t.Errorf("the capture of DDL is of version %s, want %s", got, current)
	}
	a.Exec(t, "shop", `CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (2)`, `ALTER TABLE early DROP COLUMN v`)
	equal(t, a, b, "shop")
	if r, err := a.VerifyLink(context.Background(), "shop", api.VerifyOptions{}); err != nil || !r.Equal {
		t.Errorf("verify: %+v, %v", r, err)
	}
}

// TestServerUpgraded upgrades a server in place, which takes its replication slots and
// origins with it: the link stands until a person has both sides compared. (pg_upgrade
// does the same within one version, of which all programs are here.)
func TestServerUpgraded(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	bin := testpg.Version(t, 15)
	a, b := newInstanceOn(t, "alpha", testpg.StartVersion(t, bin, nil)), newInstanceOn(t, "beta", testpg.StartVersion(t, bin, nil))
	introduce(t, a, b)
	link(t, a, b, zoo)
	b.awaitState(t, "shop", api.StateSynchronized)
	for _, i := range []*instance{a, b} {
		n, stop := write(t, a.DSN("shop"), i.name)
		more(t, n)
		stop()
		equal(t, a, b, "shop")
		i.stop()
		i.Upgrade(t, bin)
		n, stop = write(t, a.DSN("shop"), "upgraded "+i.name) // before its agent is back
		more(t, n)
		i.run(t)
		if i == a {
			_, remedy := b.awaitCause(t, api.StateSuspended, "slot-lost")
			if !strings.Contains(remedy, "hawser link resync shop") {
				t.Errorf("remedy %q", remedy)
			}
			if err := b.ResyncLink(ctx, "shop", nil); err != nil {
				t.Fatal(err)
			}
		}
		b.awaitState(t, "shop", api.StateSynchronized)
		more(t, n)
		stop()
		a.Exec(t, "shop", `CREATE TABLE of_`+i.name+` (id int PRIMARY KEY); INSERT INTO of_`+i.name+` VALUES (1)`)
		equal(t, a, b, "shop")
	}
	for _, i := range []*instance{b, a} {
		if _, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		i.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('`+i.name+` leads')`)
		equal(t, a, b, "shop")
	}
}

// TestMajorUpgrade follows docs/operate.md: each server is brought to a later major version by
// pg_upgrade, the secondary's and then the primary's, while their link is paused or not.
func TestMajorUpgrade(t *testing.T) {
	t.Parallel()
	bin, later := testpg.Upgrader(t, 15), testpg.Upgrader(t, 17)
	for _, paused := range []bool{false, true} {
		t.Run(map[bool]string{false: "running", true: "paused"}[paused], func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			a, b := newInstanceOn(t, "alpha", testpg.StartVersion(t, bin, nil)), newInstanceOn(t, "beta", testpg.StartVersion(t, bin, nil))
			introduce(t, a, b)
			link(t, a, b, zoo)
			b.awaitState(t, "shop", api.StateSynchronized)
			for _, i := range []*instance{b, a} {
				if paused {
					if err := a.PauseLink(ctx, "shop"); err != nil {
						t.Fatal(err)
					}
				}
				i.stop()
				if i == b { // the primary's clients go on
					a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('while beta is upgraded'); CREATE TABLE meanwhile (id int PRIMARY KEY); INSERT INTO meanwhile VALUES (1)`)
				}
				i.Upgrade(t, later)
				a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('before the agent of `+i.name+` is back')`)
				i.run(t)
				b.awaitPeer(t)
				if i == a {
					if paused {
						b.awaitState(t, "shop", api.StatePaused)
					} else if _, remedy := b.awaitCause(t, api.StateSuspended, "slot-lost"); !strings.Contains(remedy, "hawser link resync shop") {
						t.Errorf("remedy %q", remedy)
					}
					if err := a.ResyncLink(ctx, "shop", nil); err != nil {
						t.Fatal(err)
					}
				} else if paused {
					if err := a.ResumeLink(ctx, "shop"); err != nil {
						t.Fatal(err)
					}
				}
				b.awaitState(t, "shop", api.StateSynchronized)
				a.Exec(t, "shop", `CREATE TABLE of_`+i.name+` (id int PRIMARY KEY); INSERT INTO of_`+i.name+` VALUES (1); INSERT INTO audit (what) VALUES ('upgraded')`)
				equal(t, a, b, "shop")
				proven(t, a, "shop")
			}
			for _, i := range []*instance{b, a} {
				if _, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
					t.Fatal(err)
				}
				i.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('`+i.name+` leads')`)
				equal(t, a, b, "shop")
			}
		})
	}
}

// TestPasswordChanges: an agent reads its password file whenever it connects, as libpq
// does, so that its password can be changed under a running link.
func TestPasswordChanges(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	files := map[*instance]string{a: filepath.Join(t.TempDir(), "pgpass"), b: filepath.Join(t.TempDir(), "pgpass")}
	change := func(i *instance, to string) {
		t.Helper()
		if err := os.WriteFile(files[i], []byte("*:*:*:hawser:"+to+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		i.Exec(t, "postgres", `ALTER ROLE hawser PASSWORD '`+to+`'`)
	}
	for _, i := range []*instance{a, b} {
		i.Exec(t, "postgres", `CREATE ROLE hawser SUPERUSER LOGIN`)
		change(i, "one")
		hba := testpg.Rows(t, i.Connect(t, "postgres"), `SHOW hba_file`)[0]
		if err := os.WriteFile(hba, []byte("host all hawser all scram-sha-256\nhost all postgres 127.0.0.1/32 trust\nlocal all all peer map=hawser\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		i.Exec(t, "postgres", `SELECT pg_reload_conf()`)
		i.stop()
		i.connect = fmt.Sprintf("host=127.0.0.1 port=%d user=hawser dbname=postgres sslmode=disable passfile=%s", i.Port(), files[i])
		i.run(t)
	}
	introduce(t, a, b)
	link(t, a, b, zoo)
	b.awaitState(t, "shop", api.StateSynchronized)
	n, stop := write(t, a.DSN("shop"), "w")
	defer func() { stop() }()
	for _, i := range []*instance{a, b} {
		change(i, "two")
		i.Exec(t, "postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'hawser'`)
		more(t, n)
		alive(t, a, b, "a new password of "+i.name)
	}
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	stop()
	equal(t, a, b, "shop")
}

// TestTablesOfLongAgo: the primary has used more than 2^31 transaction ids since its tables
// were made. Their rows in the catalogs are frozen, and show an id that seems to be one of
// the future.
func TestTablesOfLongAgo(t *testing.T) {
	t.Parallel()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo)
	a.stop()
	a.SetNextXID(t, 1<<31+1_000_000)
	a.run(t)
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}
	if _, err := a.CreateLink(context.Background(), spec); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	if err := b.ResyncLink(context.Background(), "shop", []string{"public.customer"}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestXIDsWrapAround copies tables while the primary's transaction ids pass 2^32: the
// stream tells 32 bits of them, and snapshots 64.
func TestXIDsWrapAround(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo)
	a.stop()
	a.SetNextXID(t, 1<<32-150)
	a.run(t)
	next := func() (xid uint64) {
		t.Helper()
		if err := a.Connect(t, "shop").QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`).Scan(&xid); err != nil {
			t.Fatal(err)
		}
		return xid
	}
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}
	if _, err := a.CreateLink(ctx, spec); err != nil {
		t.Fatal(err)
	}
	// One transaction has an id from before, and commits behind the snapshots of tables.
	conn := a.Connect(t, "shop")
	for _, sql := range []string{`BEGIN`, `INSERT INTO customer (name) VALUES ('long')`, `UPDATE "My Order" SET total = 7 WHERE id = 5000`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if begun := next(); begun >= 1<<32 {
		t.Fatalf("the copy began at %d", begun)
	}
	n, stop := write(t, a.DSN("shop"), "w")
	testpg.Eventually(t, 30*time.Second, "the ids wrap around", func() (bool, error) { return next() > 1<<32+100, nil })
	b.awaitState(t, "shop", api.StateSynchronized)
	if err := b.ResyncLink(ctx, "shop", []string{"public.customer", `public."My Order"`}); err != nil {
		t.Fatal(err)
	}
	var snapshots []string
	testpg.Eventually(t, 30*time.Second, "snapshots of both sides of the wrap", func() (bool, error) {
		snapshots = b.Rows(t, "shop", `SELECT snapshot FROM hawser.seed_table WHERE name IN ('customer', 'My Order')
			AND pg_snapshot_xmin(snapshot::pg_snapshot)::text::bigint < 1::bigint << 32 AND pg_snapshot_xmax(snapshot::pg_snapshot)::text::bigint > 1::bigint << 32
			AND state IN ('loaded', 'live')`)
		return len(snapshots) == 2, nil
	})
	if _, err := conn.Exec(ctx, `COMMIT`); err != nil {
		t.Fatal(err)
	}
	more(t, n)
	stop()
	t.Logf("snapshots %s", snapshots)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('after')`)
	equal(t, a, b, "shop")
}

// TestNothingIsLeftBehind: what a change of roles leaves on either side is what the
// present term needs, however often the roles changed.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	l, err := a.Link(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	tidy := func(primary, secondary *instance, after string) {
		t.Helper()
		secondary.awaitState(t, "shop", api.StateSynchronized)
		testpg.Eventually(t, 15*time.Second, "what was of terms before is gone after "+after, func() (bool, error) {
			p, s := held(t, primary), held(t, secondary)
			_, origins, _ := strings.Cut(p, "origins=")
			if !strings.HasPrefix(p, "slots="+l.Slot+" ") || strings.Contains(origins, ",") { // that of the term before waits for the next change
				return false, fmt.Errorf("the primary has %s", p)
			}
			now, err := primary.Link(ctx, "shop")
			if want := fmt.Sprintf("slots= origins=%s_%d positions=1", l.Slot, now.Term); err != nil || s != want {
				return false, fmt.Errorf("the secondary has %s, want %s; %v", s, want, err)
			}
			return true, nil
		})
		for _, line := range traces(t, primary, "shop") {
			if strings.HasPrefix(line, "setting") && line != "setting|hawser.created=true" {
				t.Errorf("after %s the primary has %s", after, line)
			}
		}
	}
	tidy(a, b, "the creation")
	for _, i := range []*instance{b, a, b} {
		if _, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		tidy(i, map[*instance]*instance{a: b, b: a}[i], "a failover to "+i.name)
	}
	b.stop()
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.run(t)
	b.awaitState(t, "shop", api.StateDiverged)
	if err := b.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	tidy(a, b, "a rejoin")
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*instance{a, b} {
		for _, line := range traces(t, i, "shop") {
			if line != "setting|hawser.created=true" {
				t.Errorf("the dropped link left on %s: %s", i.name, line)
			}
		}
	}
}

// held is what a side keeps of a link's terms.
func held(t *testing.T, i *instance) string {
	t.Helper()
	list := func(sql string) string {
		return strings.Join(testpg.Rows(t, i.Connect(t, "shop"), sql), ",")
	}
	return fmt.Sprintf("slots=%s origins=%s positions=%s", list(`SELECT slot_name FROM pg_replication_slots ORDER BY 1`),
		list(`SELECT roname FROM pg_replication_origin ORDER BY 1`), list(`SELECT count(*) FROM hawser.position`))
}

// TestCertificatesRotate renews the certificate of the side that dials and of the one that is
// dialled, under a running link, and as it is done after a key was lost.
func TestCertificatesRotate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	n, stop := write(t, a.DSN("shop"), "w")
	defer func() { stop() }()
	for _, side := range []struct{ rotates, peer *instance }{{a, b}, {b, a}, {a, b}} {
		more(t, n)
		old, err := side.rotates.Certificate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		r, err := side.rotates.RotateCertificate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if r.Certificate.Fingerprint == old.Fingerprint || strings.Join(r.Peers, " ") != side.peer.name {
			t.Errorf("rotated to %+v", r)
		}
		alive(t, a, b, "a new certificate of "+side.rotates.name+" "+r.Certificate.Fingerprint)
		t.Logf("the link of %s was synchronized again within %s", side.rotates.name, time.Since(begun).Round(time.Millisecond))
		testpg.Eventually(t, 10*time.Second, "the old certificate is forgotten", func() (bool, error) {
			stored := side.peer.Rows(t, "postgres", `SELECT certificate FROM hawser.peer`)[0]
			return strings.TrimSpace(stored) == strings.TrimSpace(r.Certificate.PEM), nil
		})
		side.rotates.stop()
		side.rotates.run(t)
		if now, err := side.rotates.Certificate(ctx); err != nil || now.Fingerprint != r.Certificate.Fingerprint {
			t.Errorf("after a restart it has %s, %v", now.Fingerprint, err)
		}
		alive(t, a, b, "a restart with "+r.Certificate.Fingerprint)
	}

	// A peer that is away would refuse the new one; nothing changes.
	b.stop()
	before, err := a.Certificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.RotateCertificate(ctx); err == nil || !strings.Contains(err.Error(), "peer beta") {
		t.Errorf("a rotation without the peer: %v", err)
	}
	if now, err := a.Certificate(ctx); err != nil || now.Fingerprint != before.Fingerprint {
		t.Errorf("a rotation that was refused left %s, %v", now.Fingerprint, err)
	}

	// A key that is lost, or a certificate that expired: by hand, on either side.
	b.run(t)
	for _, side := range []struct{ renews, peer *instance }{{b, a}, {a, b}} {
		side.renews.stop()
		if err := os.Rename(filepath.Join(side.renews.dir, "identity"), filepath.Join(side.renews.dir, "identity.old")); err != nil {
			t.Fatal(err)
		}
		side.renews.run(t)
		cert, err := side.renews.Certificate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		add := api.AddPeer{Name: side.renews.name, Certificate: cert.PEM}
		if side.peer == a {
			add.Address = fmt.Sprintf("127.0.0.1:%d", b.port)
		}
		if _, err := side.peer.AddPeer(ctx, add); err != nil {
			t.Fatal(err)
		}
		alive(t, a, b, "a new key of "+side.renews.name)
	}
	stop()
	equal(t, a, b, "shop")
}
