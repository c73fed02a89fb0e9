package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// TestFailoverOfADeadPrimary: a primary whose PostgreSQL is down, while its agent is up,
// refuses a planned failover at once, and names the one by force. Nothing begins later by
// itself.
func TestFailoverOfADeadPrimary(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	a.Stop(t)
	for _, i := range []*instance{a, b} {
		_, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute})
		if p, ok := problem.As(err); !ok || p.Code != "primary-unreachable" || !strings.Contains(p.Remedy, "hawser link failover shop --force") {
			t.Errorf("asked of %s: %v", i.name, err)
		}
	}
	a.Cluster.Start(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	if l, err := a.Link(ctx, "shop"); err != nil || l.Role != api.RolePrimary || l.Term != 1 {
		t.Errorf("the link is %+v, %v", l, err)
	}
}

// TestPauseReachesNobody: a primary that can't tell the secondary changes nothing.
func TestPauseReachesNobody(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	b.stop()
	if err := a.PauseLink(ctx, "shop"); err == nil {
		t.Fatal("it was paused without the secondary")
	}
	if l, err := a.Link(ctx, "shop"); err != nil || l.State == api.StatePaused {
		t.Errorf("the link is %s, %v", l.State, err)
	}
	b.run(t)
	b.awaitState(t, "shop", api.StateSynchronized)

	// What was paused on one side and resumed on the other stays so after a failover.
	if err := errors.Join(a.PauseLink(ctx, "shop"), b.ResumeLink(ctx, "shop")); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	if _, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
}

// TestTemplatesAreNotLinked: while a session is in template1, nobody can create a database.
func TestTemplatesAreNotLinked(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	_, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "t1", Database: "template1", Peer: "beta", Role: api.RolePrimary})
	if err == nil || !strings.Contains(err.Error(), "it is a template") {
		t.Errorf("linked template1: %v", err)
	}
}

// TestTwoAgentsOfOneServer: the second is refused, and told which session is the first's.
// An agent whose own session was cut off without a word is not kept out by it.
func TestTwoAgentsOfOneServer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a := newInstance(t, "alpha")
	port, err := testpg.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	cfg := agent.DefaultConfig()
	cfg.Name, cfg.StateDir = "second", t.TempDir()
	cfg.Socket = filepath.Join(cfg.StateDir, "s")
	cfg.Endpoint.Listen = fmt.Sprintf("127.0.0.1:%d", port)
	cfg.Postgres.Connection = agent.ConnString(a.DSN("postgres"))
	err = agent.Run(ctx, cfg, "test")
	var p *problem.Problem
	if !errors.As(err, &p) || p.Code != "another-agent" || !strings.Contains(p.Remedy, "pg_terminate_backend(") {
		t.Fatalf("the second agent: %v", err)
	}
	if _, err := os.Stat(cfg.Socket); err == nil {
		t.Error("the second agent listened")
	}
	testpg.Rows(t, a.Connect(t, "postgres"), p.Remedy[strings.Index(p.Remedy, "SELECT"):])
	testpg.Eventually(t, time.Minute, "the first agent has its catalog again", func() (bool, error) {
		_, err := a.Links(ctx)
		return err == nil, err
	})
}

// TestAgentThatCantBegin: the managed PostgreSQL that it started ends with it.
func TestAgentThatCantBegin(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir, err := os.MkdirTemp("", "hawser-agent-") // t.TempDir's is closed to PostgreSQL's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	port, err := testpg.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	cfg := agent.DefaultConfig()
	cfg.Name, cfg.StateDir, cfg.Socket = "alpha", dir, filepath.Join(dir, "s")
	cfg.Endpoint.Listen = taken.Addr().String()
	data := filepath.Join(dir, "data")
	cfg.Postgres.Managed = &agent.ManagedConfig{DataDir: data, Port: port, ListenAddresses: "127.0.0.1", BinDir: os.Getenv("HAWSER_TEST_PG_BIN")}
	err = agent.Run(context.Background(), cfg, "test")
	if p, ok := problem.As(err); !ok || p.Code != "endpoint-taken" {
		t.Fatalf("the agent ended with %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err != nil {
		t.Errorf("no cluster was made: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, "postmaster.pid")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("PostgreSQL runs on (%v)", err)
	}
}

// TestFailoverNamesWhoIsLockedOut: roles come to the secondary without login, so a failover
// names those whose clients will stand before a closed door. Another one tells what it waits for.
func TestFailoverNamesWhoIsLockedOut(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	waitsAreTold(t, a, b)
	b.Exec(t, "postgres", `CREATE ROLE reports LOGIN`, `CREATE ROLE quiet`)
	// No session is of quiet, nightly or mended; staff is a group; elsewhere and aloof have nothing to do with the database.
	a.Exec(t, "shop", `CREATE ROLE "App" LOGIN; CREATE ROLE reports LOGIN; CREATE ROLE quiet LOGIN; CREATE ROLE mended LOGIN; CREATE ROLE nightly LOGIN; CREATE ROLE staff; CREATE ROLE elsewhere LOGIN; CREATE ROLE aloof LOGIN`,
		`GRANT SELECT ON t TO reports, quiet, mended, staff; GRANT staff TO nightly; REVOKE CONNECT ON DATABASE shop FROM PUBLIC; GRANT CONNECT ON DATABASE shop TO "App", reports, quiet, mended, staff; GRANT SELECT ON t TO aloof`)
	for _, user := range []string{"App", "reports"} {
		conn, err := pgx.Connect(ctx, a.DSN("shop")+" user="+user)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
	}
	told := func(i *instance, want ...string) {
		t.Helper()
		testpg.Eventually(t, time.Minute, "the link tells who is locked out", func() (bool, error) {
			l, err := i.Link(ctx, "shop")
			if got := withoutLogin(l.Findings); err == nil && !slices.Equal(got, want) {
				return false, fmt.Errorf("%s tells of %q, want %q: %v", i.name, got, want, l.Findings)
			}
			return err == nil, err
		})
	}
	told(a, `on instance beta: role "App"`, `on instance beta: role "mended"`, `on instance beta: role "nightly"`, `on instance beta: role "quiet"`)
	told(b, `role "App"`, `role "mended"`, `role "nightly"`, `role "quiet"`)
	b.Exec(t, "postgres", `ALTER ROLE mended LOGIN`)
	told(a, `on instance beta: role "App"`, `on instance beta: role "nightly"`, `on instance beta: role "quiet"`)
	told(b, `role "App"`, `role "nightly"`, `role "quiet"`)
	r, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if got := withoutLogin(r.Findings); !slices.Equal(got, []string{`role "App"`, `role "nightly"`, `role "quiet"`}) || !strings.Contains(r.Findings[0].Remedy, `ALTER ROLE "App" LOGIN`) {
		t.Errorf("the failover told %v", r.Findings)
	}
}

// withoutLogin are the roles that findings call without login.
func withoutLogin(found problem.Findings) (objects []string) {
	for _, p := range found {
		if p.Code == "role-locked-out" || p.Code == "role-created" {
			objects = append(objects, p.Object)
		}
	}
	slices.Sort(objects)
	return objects
}

// waitsAreTold: a transaction that writes in another database of the secondary's instance
// holds off the slot by which the old primary is to follow.
func waitsAreTold(t *testing.T, a, b *instance) {
	t.Helper()
	ctx := context.Background()
	conn := b.Connect(t, "postgres")
	within(t, conn, `BEGIN`, `CREATE TABLE long_at_work ()`)
	want := fmt.Sprintf("on instance beta: backend %d", conn.PgConn().PID())
	ended := make(chan error, 1)
	go func() {
		_, err := a.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 5 * time.Second})
		ended <- err
	}()
	testpg.Eventually(t, time.Minute, "the link tells what its failover waits for", func() (bool, error) {
		l, err := a.Link(ctx, "shop")
		return slices.ContainsFunc(l.Findings, func(p *problem.Problem) bool {
			return p.Code == "failover-waits" && strings.HasPrefix(p.Object, want) && strings.Contains(p.Cause, "open since")
		}), err
	})
	if p, ok := problem.As(testpg.Await(t, "the failover is answered", ended)); !ok || p.Code != "failover-waits" || !strings.HasPrefix(p.Object, want) || !strings.Contains(p.Remedy, "pg_terminate_backend") {
		t.Errorf("the failover ended with %v", p)
	}
	within(t, conn, `ROLLBACK`)
}

// TestDropOfOneSide: the other side tells what is left to do there.
func TestDropOfOneSide(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	drop := func(one, other *instance, state api.State) {
		t.Helper()
		other.stop()
		if _, err := one.DropLink(ctx, "shop", api.DropOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		other.run(t)
		if _, remedy := other.awaitCause(t, state, "link-gone"); !strings.HasPrefix(remedy, "hawser link drop shop") {
			t.Errorf("%s says what to do: %s", other.name, remedy)
		}
		for what, err := range map[string]error{
			"failover": second(other.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 20 * time.Second})),
			"resume":   other.ResumeLink(ctx, "shop"),
			"verify":   second(other.VerifyLink(ctx, "shop", api.VerifyOptions{})),
			"resync":   other.ResyncLink(ctx, "shop", nil),
		} {
			if p, ok := problem.As(err); !ok || p.Code != "link-gone" || p.Remedy != "hawser link drop shop" {
				t.Errorf("%s of a link that %s has alone: %v", what, other.name, err)
			}
		}
		if _, err := other.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
			t.Error(err)
		}
		for _, i := range []*instance{one, other} {
			if left, err := filepath.Glob(filepath.Join(i.dir, "spool", "*")); err != nil || len(left) > 0 {
				t.Errorf("%s keeps %v, %v", i.name, left, err)
			}
		}
	}
	drop(a, b, api.StateSuspended)
	b.Exec(t, "postgres", `DROP DATABASE shop WITH (FORCE)`)
	if _, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	drop(b, a, api.StateDisconnected)
}

// TestTwoAgentsOfOneStateDir: the second one is refused before it touches anything.
func TestTwoAgentsOfOneStateDir(t *testing.T) {
	t.Parallel()
	a := newInstance(t, "alpha")
	cfg := agent.DefaultConfig()
	cfg.Name, cfg.StateDir = "alpha", a.dir
	cfg.Socket = filepath.Join(t.TempDir(), "s")
	cfg.Endpoint.Listen = "127.0.0.1:0"
	cfg.Postgres.Connection = agent.ConnString(a.DSN("postgres"))
	err := agent.Run(context.Background(), cfg, "test")
	if p, ok := problem.As(err); !ok || p.Code != "another-agent" || p.Object != "directory "+a.dir || !strings.Contains(p.Cause, fmt.Sprintf("process %d", os.Getpid())) {
		t.Fatalf("the second agent: %v", err)
	}
	// What a process of the agent's has inherited holds nothing, and no more does an agent that is gone.
	child := exec.Command("sleep", "300")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	a.stop()
	a.process = true
	a.run(t)
	a.stop() // kills it
	a.process = false
	a.run(t)
}

// TestCatalogOfAnotherInstance: an agent of another name is refused, makes no certificate,
// and leaves the catalog as it is. One from before it had a name is the first one's.
func TestCatalogOfAnotherInstance(t *testing.T) {
	t.Parallel()
	a := newInstance(t, "alpha")
	a.stop()
	begin := func(name, dir string) error {
		cfg := agent.DefaultConfig()
		cfg.Name, cfg.StateDir, cfg.Socket = name, dir, filepath.Join(t.TempDir(), "s")
		cfg.Endpoint.Listen = "127.0.0.1:0"
		cfg.Postgres.Connection = agent.ConnString(a.DSN("postgres"))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return agent.Run(ctx, cfg, "test")
	}
	dir := t.TempDir()
	if p, ok := problem.As(begin("beta", dir)); !ok || p.Code != "catalog-of-another" || p.Remedy != "--name alpha" || !strings.Contains(p.Cause, `"alpha"`) {
		t.Fatalf("an agent of another instance: %v", p)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "identity", "*")); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	a.Exec(t, "postgres", `DELETE FROM hawser.instance`) // as before there was one
	if p, ok := problem.As(begin("alpah", a.dir)); !ok || p.Code != "identity-name" {
		t.Errorf("a name that is not the certificate's: %v", p)
	}
	a.run(t)
	if got := a.Rows(t, "postgres", `SELECT name FROM hawser.instance`); len(got) != 1 || got[0] != "alpha" {
		t.Errorf("the catalog is that of %q", got)
	}
}

// TestValidateSaysItOnce: each thing is found once, and a check of one side says that it is.
func TestValidateSaysItOnce(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `SELECT lo_create(0)`, `CREATE UNLOGGED TABLE u (id int)`)
	for peer, want := range map[string][]string{"": {"copy-size", "large-objects", "one-side", "unlogged-table"}, "beta": {"copy-size", "large-objects", "unlogged-table"}} {
		found, err := a.ValidateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: peer, Role: api.RolePrimary})
		got := codes(found)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("with peer %q: %q, want %q: %v, %v", peer, got, want, found, err)
		}
	}
}

// TestPeersAreAskedBack: a name that is like a peer's, and one where there is no peer at all.
func TestPeersAreAskedBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a := newInstance(t, "alpha")
	validate := func(want, advice string) {
		t.Helper()
		_, err := a.ValidateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "estern", Role: api.RolePrimary})
		if p, ok := problem.As(err); !ok || p.Code != "peer-not-found" || p.Remedy != want || !strings.Contains(p.Advice, advice) {
			t.Errorf("a link with a peer that is not known: %v", err)
		}
	}
	validate("hawser peer add estern.pem --address HOST:5022", "hawser cert show")
	cert, err := newInstance(t, "eastern").Certificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.AddPeer(ctx, api.AddPeer{Certificate: cert.PEM}); err != nil {
		t.Fatal(err)
	}
	validate("hawser peer list", "did you mean eastern?")
	for what, err := range map[string]error{"test": second(a.TestPeer(ctx, "estern")), "set": second(a.SetPeer(ctx, "estern", api.SetPeer{NoAddress: true})), "remove": a.RemovePeer(ctx, "estern")} {
		if p, ok := problem.As(err); !ok || p.Advice != "did you mean eastern?" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestVerifyWaitsForTheStream: behind a failover, or when an agent has only just begun, the
// stream needs a moment.
func TestVerifyWaitsForTheStream(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := small(t)
	a.Exec(t, "shop", `INSERT INTO t VALUES (1, 'x')`)
	for range 3 {
		if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		for _, i := range []*instance{a, b} {
			if r, err := i.VerifyLink(ctx, "shop", api.VerifyOptions{}); err != nil || !r.Equal {
				t.Errorf("%s, just behind a failover: %+v, %v", i.name, r, err)
			}
		}
	}
	b.stop()
	a.stop()
	a.run(t) // it is the secondary
	ended := make(chan error, 1)
	go func() {
		_, err := a.VerifyLink(ctx, "shop", api.VerifyOptions{})
		ended <- err
	}()
	testpg.Eventually(t, 10*time.Second, "the link tells that a comparison waits", func() (bool, error) {
		l, err := a.Link(ctx, "shop")
		return slices.Contains(codes(l.Findings), "verify-waits"), err
	})
	b.run(t)
	if err := <-ended; err != nil {
		t.Errorf("it waited for the stream, and then: %v", err)
	}
}
