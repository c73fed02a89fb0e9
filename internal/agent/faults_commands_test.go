package agent_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// duel is a link between two instances whose agents are processes, so that they can
// be killed, and which of them leads.
type duel struct {
	t    *testing.T
	a, b *instance
}

func (d duel) leads(i *instance) bool {
	l, err := i.Link(context.Background(), "shop")
	return err == nil && l.Role == api.RolePrimary
}

// sides returns primary and secondary of a link that is at rest.
func (d duel) sides() (primary, secondary *instance) {
	d.t.Helper()
	testpg.Eventually(d.t, 120*time.Second, "one side leads, and the other follows", func() (bool, error) {
		var states []string
		for _, i := range []*instance{d.a, d.b} {
			l, err := i.Link(context.Background(), "shop")
			if err != nil {
				return false, err
			}
			states = append(states, fmt.Sprintf("%s is %s and %s: %v", i.name, l.Role, l.State, l.Cause))
			if l.State != api.StateSynchronized {
				return false, errors.New(strings.Join(states, "; "))
			}
		}
		primary, secondary = d.a, d.b
		if d.leads(d.b) {
			primary, secondary = d.b, d.a
		}
		if !d.leads(primary) || d.leads(secondary) {
			return false, errors.New(strings.Join(states, "; "))
		}
		return true, nil
	})
	return primary, secondary
}

// commands are a life of the link. Each is run again until it succeeds, so it has to
// notice that it is done.
func (d duel) commands() map[string]func(primary, secondary *instance) error {
	ctx := context.Background()
	return map[string]func(primary, secondary *instance) error{
		"failover": func(primary, secondary *instance) error {
			if d.leads(secondary) {
				return nil
			}
			_, err := primary.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 20 * time.Second})
			return err
		},
		"force and rejoin": func(primary, secondary *instance) error {
			if !d.leads(secondary) {
				if _, err := secondary.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
					return err
				}
			}
			if !d.leads(primary) {
				return nil
			}
			return primary.RejoinLink(ctx, "shop")
		},
		"resync": func(_, secondary *instance) error { return secondary.ResyncLink(ctx, "shop", nil) },
		"resync of a table": func(_, secondary *instance) error {
			return secondary.ResyncLink(ctx, "shop", []string{`public."My Order"`})
		},
		"index": func(primary, _ *instance) error {
			if err := try(d.t, primary, `DROP INDEX CONCURRENTLY IF EXISTS built`); err != nil {
				return err
			}
			return try(d.t, primary, `CREATE INDEX CONCURRENTLY built ON "My Order" (total)`)
		},
		"rotate": func(primary, _ *instance) error { _, err := primary.RotateCertificate(ctx); return err },
		"verify": func(primary, _ *instance) error {
			r, err := primary.VerifyLink(ctx, "shop", api.VerifyOptions{})
			if err == nil && !r.Equal {
				d.t.Errorf("the sides differ: %+v", r)
			}
			return err
		},
	}
}

// TestKillsInEveryCommand kills agents and PostgreSQL while each command is under way,
// with clients that write. Run again, the command succeeds; one side leads, the other
// follows, both hold the same, and a drop leaves nothing.
func TestKillsInEveryCommand(t *testing.T) {
	t.Parallel()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	for _, i := range []*instance{a, b} {
		i.stop()
		i.process = true
		i.run(t)
	}
	d := duel{t, a, b}
	d.sides()
	dsn := fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres dbname=shop sslmode=disable target_session_attrs=read-write", a.Port(), b.Port())
	n, stop := write(t, dsn, "w")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	faults := map[string]func(i *instance){
		"its agent dies":         func(i *instance) { i.stop(); i.run(t) },
		"its PostgreSQL crashes": func(i *instance) { i.Kill(t); i.Cluster.Start(t) },
	}
	for name, command := range d.commands() {
		for fault, strike := range faults {
			for _, primaries := range []bool{true, false} {
				primary, secondary := d.sides()
				more(t, n)
				victim := map[bool]*instance{true: primary, false: secondary}[primaries]
				wait := time.Duration(random.IntN(300)) * time.Millisecond
				t.Logf("%s: after %s, of %s (primary: %v), %s", name, wait, victim.name, primaries, fault)
				done := make(chan error, 1)
				go func() { done <- command(primary, secondary) }()
				<-time.After(wait)
				strike(victim)
				if err := <-done; err == nil {
					continue
				}
				testpg.Eventually(t, 120*time.Second, name+" is done at last", func() (bool, error) {
					err := command(primary, secondary)
					return err == nil, err
				})
			}
		}
	}
	primary, secondary := d.sides()
	stop()
	equal(t, primary, secondary, "shop")
	if _, err := primary.DropLink(t.Context(), "shop", api.DropOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*instance{a, b} {
		for _, line := range traces(t, i, "shop") {
			if !strings.HasPrefix(line, "setting|hawser.created") && !strings.HasPrefix(line, "identity") {
				t.Errorf("left on %s: %s", i.name, line)
			}
		}
	}
}
