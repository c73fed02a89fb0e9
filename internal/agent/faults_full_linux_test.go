package agent_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// ofFailover hears the session in which a side does the steps of a failover.
func ofFailover(purpose string) bool { return strings.HasSuffix(purpose, ":failover") }

// TestServersAtTheirLimits: either PostgreSQL runs out of connections or memory, or loses
// a process, while tables are copied and while roles are swapped, under clients that write
// wherever they may; or out of connections alone, from a question of a command on. No
// acknowledged transaction is lost, none is there twice.
func TestServersAtTheirLimits(t *testing.T) {
	t.Parallel()
	d := newDuel(t)
	d.starveSeeding()
	for _, primary := range []bool{true, false} {
		d.fullAtFailover(primary)
		for name, fault := range map[string]func(i *instance, like string) error{"killed": kill9, "starved": starve} {
			d.rest()
			victim := d.side(primary)
			d.taps[victim].when(4, ofFailover, func() {
				if err := fault(victim, "%:failover"); err != nil {
					t.Error(err)
				}
			})
			_, err := d.p.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 20 * time.Second})
			d.taps[victim].release()
			t.Logf("the failover's process of %s is %s: %v", victim.name, name, err)
			d.again("failover", d.failover)
			d.rest()
			d.ledger.check(d.p, d.lost)
		}
	}
	d.again("verify", d.verify)
	for _, f := range d.fullCommands() {
		d.fullIn(f)
	}
}

// side is the primary, or the secondary.
func (d *duel) side(primary bool) *instance {
	if primary {
		return d.p
	}
	return d.s
}

// starveSeeding makes the link, and lets the copy have no memory for its largest row.
func (d *duel) starveSeeding() {
	d.t.Helper()
	d.a.Exec(d.t, "shop", `CREATE TABLE large AS SELECT 1 AS id, repeat('x', 40000000) AS v`)
	starved := make(chan struct{})
	d.taps[d.s].when(3, func(purpose string) bool { return strings.Contains(purpose, ":seed") }, func() {
		if err := starve(d.s, "%:seed%"); err != nil {
			d.t.Error(err)
		}
		close(starved)
	})
	d.again("create", d.create)
	d.rest()
	d.taps[d.s].release()
	select {
	case <-starved:
	default:
		d.t.Error("nothing was copied")
	}
	d.a.Exec(d.t, "shop", `DROP TABLE large`)
}

// fullAtFailover has clients take all connections that one PostgreSQL has left, from each
// question of the failover's own session on. Either the failover succeeds, or the old
// primary writes again, though the server stays full.
func (d *duel) fullAtFailover(primary bool) {
	d.t.Helper()
	step := d.fullEvery()
	for at, asked := 1, 1; at <= asked; at += step {
		d.rest()
		d.moreEntries(d.p)
		victim := d.side(primary)
		tap := d.taps[victim]
		tap.fill(at, false, ofFailover)
		_, err := d.p.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 5 * time.Second})
		d.t.Logf("the server of %s is full from question %d on: %v", victim.name, at, err)
		if err != nil {
			d.writesAgain(err)
		}
		asked = max(asked, tap.release())
		d.rest()
		d.ledger.check(d.p, d.lost)
	}
}

// fullEvery is how many questions pass between two of those from which on a server is
// full: all are tried where all kills are.
func (d *duel) fullEvery() int {
	if os.Getenv("HAWSER_TEST_KILLS") != "" {
		return 1
	}
	return 23
}

// writesAgain looks whether a failover that failed left the old primary writable, and
// said what it met.
func (d *duel) writesAgain(failed error) {
	d.t.Helper()
	if !strings.Contains(failed.Error(), "connections") {
		d.t.Errorf("the failover does not tell of the connections: %v", failed)
	}
	if strings.Contains(failed.Error(), "--force") {
		d.t.Errorf("a person is sent to force the failover: %v", failed)
	}
	testpg.Eventually(d.t, 20*time.Second, "the old primary writes again", func() (bool, error) {
		err := try(d.t, d.p, `INSERT INTO trail VALUES ('nobody', 0); DELETE FROM trail WHERE client = 'nobody'`)
		return err == nil, err
	})
}

// full is a command from whose question on one side's PostgreSQL takes no more connections.
type full struct {
	command string
	primary bool
	at      int
}

// fullCommands are some of which each leaves the link in another state; all of them where
// all kills are played.
func (d *duel) fullCommands() (out []full) {
	if os.Getenv("HAWSER_TEST_KILLS") == "" {
		return []full{
			{"rejoin", false, 13}, {"rejoin", false, 43}, {"resync", true, 19}, {"resync", false, 19},
			{"drop", true, 1}, {"create", true, 70}, {"create", false, 20}, {"create", false, 60}, {"drop", false, 7},
		}
	}
	for _, c := range d.commands() {
		for at := 1; slices.Contains([]string{"create", "rejoin", "resync", "drop"}, c.name) && at <= c.asks; at++ {
			out = append(out, full{c.name, true, at}, full{c.name, false, at})
		}
	}
	return out
}

// fullIn runs a command whose server is full from a question on, and stays so. It ends,
// and says why it failed; or the link stands and says what for.
func (d *duel) fullIn(f full) {
	d.t.Helper()
	c := d.commandsNamed(f.command)[0]
	d.ready(c)
	victim := d.side(f.primary)
	tap := d.taps[victim]
	tap.fill(f.at, false, but(c.deaf...))
	err := c.run()
	d.t.Logf("the server of %s is full from question %d of %s on: %v", victim.name, f.at, f.command, err)
	if err != nil && !strings.Contains(err.Error(), "connections") {
		d.t.Errorf("%s does not tell of the connections: %v", f.command, err)
	}
	for _, i := range []*instance{d.p, d.s} {
		d.standsFor(i)
	}
	tap.release()
	d.conclude(c, err)
}

// standsFor looks whether what a link on an instance stands for is named, while a server
// takes no connections.
func (d *duel) standsFor(i *instance) {
	d.t.Helper()
	testpg.Eventually(d.t, 30*time.Second, "the link on "+i.name+" is gone, runs, or tells what it stands for", func() (bool, error) {
		l, err := i.Link(context.Background(), "shop")
		if err != nil {
			return strings.Contains(err.Error(), "no link of this name"), nil
		}
		if l.State == api.StateSynchronized || l.State == api.StateDiverged {
			return true, nil
		}
		if l.Cause != nil && strings.Contains(l.Cause.Cause, "connections") && l.Cause.Help() != "" {
			return true, nil
		}
		return false, fmt.Errorf("it is %s: %v", l.State, l.Cause)
	})
}
