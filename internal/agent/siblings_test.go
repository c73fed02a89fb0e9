package agent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// know exchanges the certificates of two instances among several; a dials b.
func know(t *testing.T, a, b *instance) {
	t.Helper()
	ctx := context.Background()
	trust(t, a, b, fmt.Sprintf("127.0.0.1:%d", b.port))
	testpg.Eventually(t, 20*time.Second, a.name+" and "+b.name+" are connected", func() (bool, error) {
		list, err := b.Peers(ctx)
		for _, p := range list.Peers {
			if p.Name == a.name && p.Connected {
				return true, nil
			}
		}
		return false, err
	})
}

// family returns three instances, of which alpha is the primary of two links of
// database shop: shop to beta, and other to gamma.
func family(t *testing.T) (a, b, c *instance) {
	t.Helper()
	ctx := context.Background()
	a, b, c = newInstance(t, "alpha"), newInstance(t, "beta"), newInstance(t, "gamma")
	know(t, a, b)
	know(t, a, c)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo)
	for name, to := range map[string]*instance{"shop": b, "other": c} {
		if _, err := a.CreateLink(ctx, api.LinkSpec{Name: name, Database: "shop", Peer: to.name, Role: api.RolePrimary}); err != nil {
			t.Fatal(err)
		}
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	c.awaitState(t, "other", api.StateSynchronized)
	return a, b, c
}

// anywhere is a connection string that finds the writable one of the instances.
func anywhere(instances ...*instance) string {
	var hosts, ports []string
	for _, i := range instances {
		hosts, ports = append(hosts, "127.0.0.1"), append(ports, fmt.Sprint(i.Port()))
	}
	return fmt.Sprintf("host=%s port=%s user=postgres dbname=shop sslmode=disable target_session_attrs=read-write", strings.Join(hosts, ","), strings.Join(ports, ","))
}

// awaitPrimary waits until the secondary's link follows an instance.
func (i *instance) awaitPrimary(t *testing.T, link string, primary *instance) {
	t.Helper()
	testpg.Eventually(t, 60*time.Second, "link "+link+" of "+i.name+" follows "+primary.name, func() (bool, error) {
		l, err := i.Link(context.Background(), link)
		if err != nil {
			return false, err
		}
		if l.Peer != primary.name || l.Role != api.RoleSecondary || l.State != api.StateSynchronized {
			return false, fmt.Errorf("it is %s of %s and %s: %v", l.Role, l.Peer, l.State, l.Cause)
		}
		return true, nil
	})
}

// awaitForgotten waits until an instance has nothing of a link any more.
func (i *instance) awaitForgotten(t *testing.T, link, id string) {
	t.Helper()
	testpg.Eventually(t, 30*time.Second, i.name+" has forgotten link "+link, func() (bool, error) {
		if l, err := i.Link(context.Background(), link); err == nil {
			return false, fmt.Errorf("it is %s and %s: %v", l.Role, l.State, l.Cause)
		}
		return true, nil
	})
	for _, line := range traces(t, i, "shop") {
		if strings.Contains(line, id) {
			t.Errorf("link %s left %s on %s", link, line, i.name)
		}
	}
}

func failover(t *testing.T, i *instance, link string) {
	t.Helper()
	r, err := i.FailoverLink(context.Background(), link, api.FailoverOptions{Timeout: 40 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("failover of link %s to %s: closed for %.3f s", link, r.NewPrimary, r.WriteOutageSeconds)
}

// proven has both sides of a link compared.
func proven(t *testing.T, i *instance, link string) {
	t.Helper()
	r, err := i.VerifyLink(context.Background(), link, api.VerifyOptions{Timeout: time.Minute})
	if err != nil || !r.Equal {
		t.Errorf("link %s: %+v, %v", link, r, err)
	}
}

// TestSiblingsFollow: alpha hands over to beta, idle at first, then under load; gamma
// follows, without a copy, and follows back.
func TestSiblingsFollow(t *testing.T) {
	t.Parallel()
	a, b, c := family(t)
	know(t, b, c)
	id := idOf(t, c, "other")
	dsn := anywhere(a, b, c)

	failover(t, a, "shop")
	c.awaitPrimary(t, "other", b)
	a.awaitForgotten(t, "other", id)
	b.Exec(t, "shop", `CREATE TABLE later (id serial PRIMARY KEY, v text); INSERT INTO later (v) VALUES ('one'), ('two')`)
	equal(t, b, c, "shop")
	equal(t, b, a, "shop")
	notCopied(t, c)

	n, stop := write(t, dsn, "one")
	for _, way := range []struct{ from, to *instance }{{b, a}, {a, b}, {b, a}} {
		more(t, n)
		failover(t, way.from, "shop")
		more(t, n)
		way.from.awaitState(t, "shop", api.StateSynchronized)
		c.awaitPrimary(t, "other", way.to)
		way.from.awaitForgotten(t, "other", id)
	}
	more(t, n)
	stop()
	t.Logf("%d transactions", n.Load())
	equal(t, a, b, "shop")
	equal(t, a, c, "shop")
	notCopied(t, c)
	proven(t, a, "shop")
	proven(t, a, "other")

	// The link that only followed hands over as well: now beta is the one that follows.
	failover(t, a, "other")
	b.awaitPrimary(t, "shop", c)
	a.awaitState(t, "other", api.StateSynchronized)
	c.Exec(t, "shop", `INSERT INTO later (v) VALUES ('three'); DROP TABLE audit`)
	equal(t, c, a, "shop")
	equal(t, c, b, "shop")
	proven(t, c, "shop")
	proven(t, c, "other")
}

func idOf(t *testing.T, i *instance, link string) string {
	t.Helper()
	l, err := i.Link(context.Background(), link)
	if err != nil {
		t.Fatal(err)
	}
	return l.ID
}

// notCopied: no table of a secondary that went over was put down to be copied.
func notCopied(t *testing.T, i *instance) {
	t.Helper()
	if got := testpg.Rows(t, i.Connect(t, "shop"), `SELECT name FROM hawser.seed_table`); len(got) > 0 {
		t.Errorf("%s copied %q", i.name, got)
	}
}

// TestOneFailoverOfADatabase: two links of one database are failed over at once. With
// both handoffs in the stream, each secondary had taken up its own: two writable sides.
func TestOneFailoverOfADatabase(t *testing.T) {
	t.Parallel()
	a, b, c := family(t)
	know(t, b, c)
	errs := make(chan error, 2)
	for _, name := range []string{"shop", "other"} {
		go func() {
			_, err := a.FailoverLink(context.Background(), name, api.FailoverOptions{Timeout: 20 * time.Second})
			errs <- err
		}()
	}
	failed := errors.Join(testpg.Await(t, "both failovers are answered", errs), testpg.Await(t, "both failovers are answered", errs))
	if failed == nil || !strings.Contains(failed.Error(), "one link at a time") {
		t.Errorf("both failovers: %v", failed)
	}
	open := 0
	for _, i := range []*instance{a, b, c} {
		if try(t, i, `INSERT INTO audit (what) VALUES ('x')`) == nil {
			open++
		}
	}
	if open != 1 {
		t.Errorf("%d instances took a write", open)
	}
}

// asProcess has this program run as an agent: name, directory, port and connection.
const asProcess = "HAWSER_TEST_AGENT"

func runAsProcess() {
	var port int
	part := strings.SplitN(os.Getenv(asProcess), "|", 4)
	if _, err := fmt.Sscan(part[2], &port); err != nil {
		panic(err)
	}
	cfg := agent.DefaultConfig()
	cfg.Name, cfg.StateDir, cfg.Socket = part[0], part[1], filepath.Join(part[1], "s")
	cfg.Endpoint.Listen = fmt.Sprintf("127.0.0.1:%d", port)
	cfg.Postgres.Connection = agent.ConnString(part[3])
	cfg.Log.Level = slog.LevelDebug
	debug.SetMemoryLimit(int64(cfg.Limits.Memory)) // as the command does
	if err := agent.Run(context.Background(), cfg, "test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startProcess runs the agent as a process; stop ends it with SIGKILL.
func startProcess(t *testing.T, i *instance) (stop func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), i.env...), fmt.Sprintf("%s=%s|%s|%d|%s", asProcess, i.name, i.dir, i.port, i.connection()))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	i.pid = cmd.Process.Pid
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

// awaitFamily waits until one of the instances leads both links and the others follow
// it, and returns it.
func awaitFamily(t *testing.T, family []*instance) (primary *instance) {
	t.Helper()
	testpg.Eventually(t, 90*time.Second, "one instance leads, and the others follow it", func() (bool, error) {
		primary = nil
		following, leading := map[string]bool{}, map[string]bool{}
		for _, i := range family {
			list, err := i.Links(context.Background())
			if err != nil {
				return false, err
			}
			for _, l := range list {
				switch {
				case l.State != api.StateSynchronized:
					return false, fmt.Errorf("link %s of %s is %s: %v", l.Name, i.name, l.State, l.Cause)
				case l.Role == api.RoleSecondary:
					following[l.Peer+l.Name] = true
				case primary != nil && primary != i:
					return false, fmt.Errorf("%s leads as well as %s", i.name, primary.name)
				default:
					primary = i
					leading[i.name+l.Name] = true
				}
			}
		}
		if primary == nil || len(leading) != 2 || !leading[primary.name+"shop"] || !leading[primary.name+"other"] {
			return false, fmt.Errorf("leading: %v", leading)
		}
		if len(following) != 2 || !following[primary.name+"shop"] || !following[primary.name+"other"] {
			return false, fmt.Errorf("following: %v", following)
		}
		return true, nil
	})
	return primary
}

// TestSiblingsThroughKills fails over again and again, under load, while agents are
// ended with SIGKILL at any moment. Whatever became of each failover, all three are
// one family afterwards.
func TestSiblingsThroughKills(t *testing.T) {
	t.Parallel()
	a, b, c := family(t)
	know(t, b, c)
	all := []*instance{a, b, c}
	for _, i := range all {
		i.stop()
		i.process = true
		i.run(t)
	}
	primary := awaitFamily(t, all)
	n, stop := write(t, anywhere(all...), "k")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for round := range 8 {
		more(t, n)
		link := []string{"shop", "other"}[random.IntN(2)]
		victim := all[random.IntN(3)]
		after := time.Duration(random.IntN(500)) * time.Millisecond
		ended := make(chan error, 1)
		go func(client *api.Client) {
			_, err := client.FailoverLink(context.Background(), link, api.FailoverOptions{Timeout: 20 * time.Second})
			ended <- err
		}(primary.Client)
		time.Sleep(after) // any moment, not an event
		victim.stop()
		victim.run(t)
		err := testpg.Await(t, "the failover is answered", ended)
		primary = awaitFamily(t, all)
		t.Logf("round %d: link %s, %s killed after %s: %v; %s leads", round, link, victim.name, after, err, primary.name)
	}
	more(t, n)
	stop()
	t.Logf("%d transactions", n.Load())
	equal(t, a, b, "shop")
	equal(t, a, c, "shop")
	proven(t, primary, "shop")
	proven(t, primary, "other")
	for _, i := range all {
		want := 0
		if i == primary {
			want = 2
		}
		if slots := testpg.Rows(t, i.Connect(t, "postgres"), `SELECT slot_name FROM pg_replication_slots`); len(slots) != want {
			t.Errorf("%s has slots %q", i.name, slots)
		}
	}
}

// TestSiblingAway: gamma is away while alpha hands over to beta, which does not know
// gamma. Back again it says what is missing, and follows when it has been given. By
// then alpha is gone for good.
func TestSiblingAway(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	n, stop := write(t, anywhere(a, b, c), "away")
	more(t, n)
	c.stop()
	more(t, n)
	failover(t, a, "shop")
	more(t, n)
	b.Exec(t, "shop", `CREATE TABLE later (id int PRIMARY KEY)`)
	c.run(t)
	testpg.Eventually(t, 30*time.Second, "gamma says what is missing", func() (bool, error) {
		l, err := c.Link(ctx, "other")
		if err != nil || l.Cause == nil || l.State != api.StateSuspended || l.Cause.Code != "primary-moved" {
			return false, fmt.Errorf("it is %s: %v, %v", l.State, l.Cause, err)
		}
		t.Logf("gamma: %v", l.Cause)
		return strings.Contains(l.Cause.Help(), "hawser peer add beta.pem"), nil
	})
	if l, err := b.Link(ctx, "other"); err != nil || l.Role != api.RolePrimary || l.Peer != "gamma" {
		t.Errorf("beta's side: %+v, %v", l, err)
	} else if l.Cause == nil || !strings.Contains(l.Cause.Help(), "hawser peer add gamma.pem") {
		t.Errorf("beta: %s, %v", l.State, l.Cause)
	}
	a.stop() // what gamma needs it has: the proof is beta's
	know(t, b, c)
	c.awaitPrimary(t, "other", b)
	more(t, n)
	stop()
	equal(t, b, c, "shop")
	proven(t, b, "other")
	a.run(t)
	a.awaitForgotten(t, "other", idOf(t, c, "other"))
	equal(t, b, a, "shop")

	// Away once more, it is opened by force where it can't know that alpha has taken it up.
	a.awaitState(t, "shop", api.StateSynchronized)
	c.stop()
	failover(t, b, "shop")
	a.stop()
	b.stop()
	c.run(t)
	if _, err := c.FailoverLink(ctx, "other", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	b.run(t)
	testpg.Eventually(t, 60*time.Second, "alpha says that gamma left it", func() (bool, error) {
		l, err := a.Link(ctx, "other")
		if err != nil || l.Cause == nil || l.Cause.Code != "secondary-elsewhere" || l.Cause.Remedy != "hawser link drop other" {
			return false, fmt.Errorf("it is %s: %v, %v", l.State, l.Cause, err)
		}
		return true, nil
	})
	for _, i := range []*instance{a, c} {
		if _, err := i.DropLink(ctx, "other", api.DropOptions{}); err != nil {
			t.Errorf("%s: %v", i.name, err)
		}
		if err := try(t, i, `INSERT INTO audit (what) VALUES ('x')`); err != nil {
			t.Errorf("%s: %v", i.name, err)
		}
	}
}

// TestSiblingPassesARefusedHandoff: the handoff stands in the stream, but beta, held up
// by a lock, is too late. Gamma, which stopped there, goes on behind it.
func TestSiblingPassesARefusedHandoff(t *testing.T) {
	t.Parallel()
	a, b, c := family(t)
	know(t, b, c)
	release := hold(t, b, "shop", "audit")
	a.Exec(t, "shop", `INSERT INTO audit (what) VALUES ('held up')`)
	if _, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 3 * time.Second}); err == nil {
		t.Fatal("beta took over")
	}
	release()
	a.Exec(t, "shop", `INSERT INTO audit (what) VALUES ('behind it')`, `CREATE TABLE later (id int PRIMARY KEY)`)
	equal(t, a, c, "shop")
	equal(t, a, b, "shop")
	c.awaitPrimary(t, "other", a)
	// What was got ready for gamma on beta is gone, or it would hold WAL for ever.
	testpg.Eventually(t, 30*time.Second, "beta has no slot", func() (bool, error) {
		slots := b.Rows(t, "postgres", `SELECT slot_name FROM pg_replication_slots UNION ALL SELECT name FROM hawser.heir`)
		if len(slots) > 0 {
			return false, fmt.Errorf("%q", slots)
		}
		return true, nil
	})
	failover(t, a, "shop")
	c.awaitPrimary(t, "other", b)
	equal(t, b, c, "shop")
}

// TestSiblingOfAForcedFailover: nobody knows what gamma has that beta lacks, so gamma
// does not go over by itself.
func TestSiblingOfAForcedFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	know(t, b, c)
	b.stop()
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('only alpha and gamma have it')`)
	equal(t, a, c, "shop")
	a.stop()
	b.run(t)
	b.awaitState(t, "shop", api.StateDisconnected)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta')`)
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	c.awaitState(t, "other", api.StateSuspended)
	l, err := c.Link(ctx, "other")
	if err != nil || l.Cause.Code != "primary-moved" || !strings.Contains(l.Cause.Remedy, "hawser link follow other --primary beta") {
		t.Errorf("gamma: %+v, %v", l.Cause, err)
	}
	a.stop()
	a.run(t)
	a.awaitState(t, "other", api.StateSuspended)
	if err := try(t, a, `INSERT INTO audit (what) VALUES ('x')`); err == nil {
		t.Error("alpha took a write")
	}
	turnedDown(t, "resume", a.ResumeLink(ctx, "other"), "primary-moved", "can't follow it by itself")
	a.awaitState(t, "other", api.StateSuspended)
	// A person has it compared, under load. What only gamma had is gone with it.
	n, stop := write(t, anywhere(a, b, c), "f")
	more(t, n)
	if err := c.FollowLink(ctx, "other", "beta"); err != nil {
		t.Fatal(err)
	}
	c.awaitPrimary(t, "other", b)
	more(t, n)
	stop()
	equal(t, b, c, "shop")
	equal(t, b, a, "shop")
	proven(t, b, "other")
	a.awaitForgotten(t, "other", l.ID)
	failover(t, b, "other")
	a.awaitPrimary(t, "shop", c)
	equal(t, c, a, "shop")
	equal(t, c, b, "shop")
	// A primary that leads is not left.
	for primary, why := range map[string]string{"beta": "leads its database", "gamma": "is its primary already"} {
		if err := a.FollowLink(ctx, "shop", primary); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("alpha leaves gamma for %s: %v", primary, err)
		}
	}
	// Gamma is lost, and beta opened by force: alpha can't ask gamma, and follows beta.
	c.stop()
	b.awaitState(t, "other", api.StateDisconnected)
	if _, err := b.FailoverLink(ctx, "other", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	b.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('beta again')`)
	testpg.Eventually(t, 30*time.Second, "alpha follows beta, which has forgotten its earlier part in the link", func() (bool, error) {
		err := a.FollowLink(ctx, "shop", "beta")
		return err == nil, err
	})
	a.awaitPrimary(t, "shop", b)
	equal(t, a, b, "shop")
	proven(t, b, "shop")
}

// TestDropOfADivergedSibling: alpha is forced out by one of its links. When a person drops
// that, nothing closes the database any more, and the other link leads it.
func TestDropOfADivergedSibling(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	forcedBeside(t, b, "shop")
	a.awaitState(t, "shop", api.StateDiverged)
	if err := try(t, a, `INSERT INTO audit (what) VALUES ('x')`); err == nil {
		t.Error("alpha took a write while it was diverged")
	}
	a.stop()
	a.run(t) // the other link finds the database closed
	a.awaitState(t, "shop", api.StateDiverged)
	if _, err := a.DropLink(ctx, "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "shop", `INSERT INTO customer (name) VALUES ('alpha leads again')`)
	equal(t, a, c, "shop")
	a.awaitState(t, "other", api.StateSynchronized)
	proven(t, a, "other")
}

// TestSiblingAwayThereAndBack: gamma is away while alpha hands over to beta, and beta
// back to alpha, which still keeps what gamma needs to get to the first handoff. Gamma
// stops at the second one, since nobody has what follows it, and a person has it compared.
func TestSiblingAwayThereAndBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, c := family(t)
	know(t, b, c)
	id := idOf(t, c, "other")
	n, stop := write(t, anywhere(a, b, c), "back")
	c.stop()
	more(t, n)
	failover(t, a, "shop")
	more(t, n)
	a.awaitState(t, "shop", api.StateSynchronized)
	failover(t, b, "shop")
	more(t, n)
	c.run(t)
	testpg.Eventually(t, 60*time.Second, "gamma stands at the second handoff", func() (bool, error) {
		l, err := c.Link(ctx, "other")
		if err != nil || l.Peer != "beta" || l.State != api.StateSuspended || l.Cause.Code != "primary-moved" {
			return false, fmt.Errorf("it is %s with %s: %v, %v", l.State, l.Peer, l.Cause, err)
		}
		return true, nil
	})
	testpg.Eventually(t, 30*time.Second, "gamma is compared with alpha", func() (bool, error) {
		err := c.FollowLink(ctx, "other", "alpha")
		return err == nil, err
	})
	c.awaitPrimary(t, "other", a)
	more(t, n)
	stop()
	equal(t, a, b, "shop")
	equal(t, a, c, "shop")
	proven(t, a, "other")
	b.awaitForgotten(t, "other", id)
}

// TestSiblingDoesNotOpen: alpha has handed the database over by one link, and can't hear
// whether beta took it, when its agent starts again. The other link, of which alpha is
// the primary still, opened the database: beta may be open as well.
func TestSiblingDoesNotOpen(t *testing.T) {
	t.Parallel()
	a, b, _ := family(t)
	release := hold(t, b, "shop", "audit")
	a.Exec(t, "shop", `INSERT INTO audit (what) VALUES ('held up')`)
	failed := make(chan error, 1)
	go func() {
		_, err := a.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: time.Minute})
		failed <- err
	}()
	conn := a.Connect(t, "postgres")
	testpg.Eventually(t, 20*time.Second, "alpha hands over", func() (bool, error) {
		phase := testpg.Rows(t, conn, `SELECT side->>'phase' FROM hawser.link WHERE name = 'shop'`)
		if phase[0] != "handing" {
			return false, fmt.Errorf("it is %s", phase)
		}
		return true, nil
	})
	b.stop()
	release()
	a.stop()
	testpg.Await(t, "the failover is answered", failed)
	stop, written := make(chan struct{}), make(chan int, 1)
	session := a.Connect(t, "shop")
	go func() {
		n := 0
		defer func() { written <- n }()
		for {
			if _, err := session.Exec(context.Background(), `INSERT INTO audit (what) VALUES ('x')`); err == nil {
				n++
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	a.run(t)
	for range 20 {
		if err := try(t, a, `INSERT INTO audit (what) VALUES ('x')`); err == nil {
			t.Fatal("alpha takes writes that beta may never get")
		}
	}
	close(stop)
	if n := testpg.Await(t, "the client ends", written); n > 0 {
		t.Errorf("alpha took %d writes that beta may never get", n)
	}
	b.run(t)
	testpg.Eventually(t, 30*time.Second, "one of the two takes writes", func() (bool, error) {
		one, other := try(t, a, `INSERT INTO audit (what) VALUES ('a')`), try(t, b, `INSERT INTO audit (what) VALUES ('b')`)
		if (one == nil) == (other == nil) {
			return false, fmt.Errorf("alpha: %v, beta: %v", one, other)
		}
		return true, nil
	})
}

// TestPreparedIsTakenBack: alpha got beta ready for a failover and is lost. The slots on
// beta, by which alpha and the other links would have followed, held WAL back for ever.
func TestPreparedIsTakenBack(t *testing.T) {
	t.Parallel()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	b.maxWAL = 1 << 20
	b.stop()
	b.run(t)
	know(t, a, b)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	b.awaitState(t, "shop", api.StateDisconnected)
	const heir = "00000000000000aa"
	ids := []string{idOf(t, b, "shop"), heir}
	b.stop() // as if it had got ready before
	b.Exec(t, "postgres", `INSERT INTO hawser.heir (id, link, name, peer, term, after, next, tables, exclude_tables) VALUES ('`+heir+`', 'shop', 'other', 'gamma', 2, 1, 2, '{}', '{}')`)
	for _, id := range ids {
		b.Exec(t, "shop", `SELECT pg_create_logical_replication_slot('hawser_`+id+`', 'pgoutput')`)
	}
	b.run(t)
	b.Exec(t, "postgres", `CREATE TABLE busy AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)`)
	testpg.Eventually(t, 60*time.Second, "nothing is held back on beta", func() (bool, error) {
		left := b.Rows(t, "postgres", `SELECT slot_name FROM pg_replication_slots UNION ALL SELECT id FROM hawser.heir`)
		if len(left) > 0 {
			return false, fmt.Errorf("there are %q", left)
		}
		return true, nil
	})
}
