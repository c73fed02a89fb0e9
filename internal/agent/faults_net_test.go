package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// line is what lies between two agents.
type line struct{ *toxiproxy.Proxy }

var quietProxies = sync.OnceFunc(func() { zerolog.SetGlobalLevel(zerolog.Disabled) })

func newLine(t *testing.T, to string) line {
	t.Helper()
	quietProxies()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	l := line{toxiproxy.NewProxy(server, t.Name(), "127.0.0.1:0", to)}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	return l
}

func (l line) toxic(t *testing.T, json string) {
	t.Helper()
	for _, way := range []string{"upstream", "downstream"} {
		text := strings.ReplaceAll(json, "WAY", way)
		if _, err := l.Toxics.AddToxicJson(strings.NewReader(text)); err != nil && !errors.Is(err, toxiproxy.ErrToxicAlreadyExists) {
			t.Fatal(err)
		}
		if text == json {
			return
		}
	}
}

func (l line) heal(t *testing.T) {
	t.Helper()
	l.Toxics.ResetToxics(context.Background())
	if err := l.Start(); err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
		t.Fatal(err)
	}
}

// pairOver returns two instances that know each other over a line.
func pairOver(t *testing.T) (a, b *instance, l line) {
	t.Helper()
	a, b = newInstance(t, "alpha"), newInstance(t, "beta")
	l = newLine(t, fmt.Sprintf("127.0.0.1:%d", b.port))
	trust(t, a, b, l.Listen)
	b.awaitPeer(t)
	return a, b, l
}

// TestNetworkFaults plays a link's life over a line that fails in every step. A
// command may fail by that; once the line is whole, the same command succeeds, one
// side alone takes writes, and nothing is lost, doubled or left behind.
func TestNetworkFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*testing.T, line){
		"cut": func(_ *testing.T, l line) { l.Stop() },
		"reset": func(t *testing.T, l line) {
			l.toxic(t, `{"type": "reset_peer", "stream": "downstream", "attributes": {"timeout": 100}}`)
		},
		"mute": func(t *testing.T, l line) {
			l.toxic(t, `{"type": "timeout", "stream": "WAY", "attributes": {"timeout": 0}}`)
		},
		"deaf": func(t *testing.T, l line) {
			l.toxic(t, `{"type": "timeout", "stream": "downstream", "attributes": {"timeout": 0}}`)
		},
		"slow": func(t *testing.T, l line) {
			l.toxic(t, `{"type": "latency", "stream": "WAY", "attributes": {"latency": 80, "jitter": 60}}`)
			l.toxic(t, `{"type": "bandwidth", "stream": "WAY", "attributes": {"rate": 400}}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lifeOver(t, fault)
		})
	}
}

func lifeOver(t *testing.T, fault func(*testing.T, line)) {
	ctx := context.Background()
	a, b, l := pairOver(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", zoo, `CREATE TABLE wide AS SELECT i AS id, repeat(md5(i::text), 20) AS v FROM generate_series(1, 20000) i; ALTER TABLE wide ADD PRIMARY KEY (id)`)
	// during does something while the line fails, and again when it does not.
	during := func(what string, wait time.Duration, do func() error) {
		t.Helper()
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- do() }()
		time.Sleep(wait) // the fault comes at some time, not at an event
		fault(t, l)
		time.Sleep(1500 * time.Millisecond) // and lasts
		l.heal(t)
		err := testpg.Await(t, "what was done while the line failed is answered", done)
		if err != nil {
			t.Logf("%s: %v", what, err)
			testpg.Eventually(t, 60*time.Second, what+" on a line that is whole", func() (bool, error) {
				err := do()
				return err == nil, err
			})
		}
		t.Logf("%s: %.1f s", what, time.Since(began).Seconds())
	}
	during("create", 50*time.Millisecond, func() error {
		_, err := a.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
		if err != nil && strings.Contains(err.Error(), "exists") {
			return nil // the answer to the first try was lost
		}
		return err
	})
	during("seeding", 200*time.Millisecond, func() error { return nil })
	b.awaitState(t, "shop", api.StateSynchronized)
	dsn := fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres dbname=shop sslmode=disable target_session_attrs=read-write", a.Port(), b.Port())
	n, stop := write(t, dsn, "w")
	more(t, n)
	during("changes and DDL", 0, func() error {
		return try(t, a, `DROP TABLE IF EXISTS later; CREATE TABLE later AS SELECT i FROM generate_series(1, 1000) i; ALTER TABLE wide ALTER id TYPE bigint; UPDATE wide SET v = v || 'x' WHERE id % 3 = 0`)
	})
	for _, to := range []*instance{b, a} {
		from := map[*instance]*instance{a: b, b: a}[to]
		from.awaitState(t, "shop", api.StateSynchronized)
		to.awaitState(t, "shop", api.StateSynchronized)
		during("failover to "+to.name, 30*time.Millisecond, func() error {
			if l, err := to.Link(ctx, "shop"); err == nil && l.Role == api.RolePrimary {
				return nil
			}
			_, err := from.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 20 * time.Second})
			return err
		})
		from.awaitState(t, "shop", api.StateSynchronized)
		if err := try(t, from, `INSERT INTO audit (what) VALUES ('on the wrong side')`); err == nil {
			t.Errorf("%s takes writes after the failover to %s", from.name, to.name)
		}
		more(t, n)
	}
	stop()
	equal(t, a, b, "shop")
	report, err := b.VerifyLink(ctx, "shop", api.VerifyOptions{})
	if err != nil || !report.Equal {
		t.Errorf("verify: %+v, %v", report, err)
	}
	during("drop", 10*time.Millisecond, func() error {
		_, err := a.DropLink(ctx, "shop", api.DropOptions{RemoveReplica: true})
		if err != nil && strings.Contains(err.Error(), "no link of this name") {
			return nil
		}
		return err
	})
	if got := traces(t, a, "shop"); len(got) != 0 {
		t.Errorf("left on the primary: %q", got)
	}
	testpg.Eventually(t, 20*time.Second, "nothing is left on the secondary", func() (bool, error) {
		got := strings.Join(traces(t, b, "shop"), ", ")
		if got != "no database" {
			return false, errors.New(got)
		}
		return true, nil
	})
}

// TestHalfOpen: nothing arrives any more, and nobody is told. Both sides notice, and the
// lag that is shown does not stand still meanwhile.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	a, b, l := pairOver(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	l.toxic(t, `{"type": "timeout", "stream": "WAY", "attributes": {"timeout": 0}}`)
	a.Exec(t, "shop", `INSERT INTO t SELECT generate_series(1, 1000)`)
	b.awaitState(t, "shop", api.StateDisconnected)
	testpg.Eventually(t, 40*time.Second, "the primary shows that the replica does not follow", func() (bool, error) {
		s, err := a.Link(t.Context(), "shop")
		if err != nil {
			return false, err
		}
		if s.State == api.StateSynchronized {
			return false, fmt.Errorf("it is %s: %+v", s.State, s.LagSeconds)
		}
		return true, nil
	})
	l.heal(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}
