package agent_test

import (
	"context"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/agent/api"
)

// TestForcedThereAndBack forces one side after the other, while the old primary's clients
// go on writing where its agent is away; in the second round that agent comes back first,
// and leads on until it hears of the other. Each time both sides are equal when the old
// primary has rejoined, and what is lost is exactly what the reports name.
func TestForcedThereAndBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := newDuel(t)
	d.again("create", d.create)
	for round := range 2 {
		d.rest()
		old, next := d.p, d.s
		d.moreEntries(old)
		old.stop()
		d.moreEntries(old)
		d.again("force", d.force)
		d.moreEntries(next)
		if round == 1 {
			next.stop()
			old.run(t)
			d.moreEntries(old)
			next.run(t)
		} else {
			old.run(t)
		}
		old.awaitState(t, "shop", api.StateDiverged)
		if err := try(t, old, `INSERT INTO trail VALUES ('nobody', 0)`); err == nil || !strings.Contains(err.Error(), "25006") {
			t.Errorf("%s, diverged, takes a write: %v", old.name, err)
		}
		if _, err := old.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err == nil || !strings.Contains(err.Error(), "hawser link drop shop --force") {
			t.Errorf("%s, diverged, is opened by force: %v", old.name, err)
		}
		d.moreEntries(next)
		d.rejoined()
		d.rest()
		for _, i := range []*instance{d.a, d.b} {
			if l, err := i.Link(ctx, "shop"); err != nil || int(l.Term) != 2+round || l.Role == api.RolePrimary != (i == next) {
				t.Errorf("%s is %s of term %d: %v", i.name, l.Role, l.Term, err)
			}
		}
		d.again("verify", d.verify)
		d.ledger.check(d.p, d.lost)
	}
	if len(d.lost) == 0 {
		t.Error("no transaction was lost: the test tries nothing")
	}
}
