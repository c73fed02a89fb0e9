package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// grants changes on an instance what a peer may do. It dials whom it dialled.
func (i *instance) grants(t *testing.T, of *instance, direction api.Direction, databases ...string) api.Peer {
	t.Helper()
	ctx := context.Background()
	p, err := i.SetPeer(ctx, of.name, api.SetPeer{Databases: databases, Direction: direction})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// notGranted wants an error that the grant of an instance is the reason of, with the
// command for it.
func notGranted(t *testing.T, what string, err error, by, to *instance) {
	t.Helper()
	p, ok := problem.As(err)
	if !ok || p.Code != "peer-not-granted" || !strings.HasPrefix(p.Remedy, "hawser peer set "+to.name+" --databases ") ||
		!strings.HasSuffix(p.Object, "database shop") {
		t.Errorf("%s: %v, want the grant of %s on %s", what, err, to.name, by.name)
	}
}

// TestGrantsRefuse has links refused that the grant of either side does not cover, from
// either side, with nothing left behind; and made when it does.
func TestGrantsRefuse(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	list, err := a.Peers(ctx)
	if err != nil || !slices.Equal(list.Peers[0].Databases, []string{"*"}) || list.Peers[0].Direction != api.DirectionBoth {
		t.Fatalf("by default %+v is granted, %v", list.Peers, err)
	}
	for _, i := range []*instance{a, b} {
		i.Exec(t, "postgres", `CREATE DATABASE shop`)
	}
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY)`)
	a.Exec(t, "shop", `INSERT INTO t SELECT generate_series(1, 100)`)
	link := func(on, peer *instance, r api.Role) error {
		_, err := on.CreateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: peer.name, Role: r})
		return err
	}
	for _, c := range []struct {
		by, to       *instance
		direction    api.Direction
		databases    string
		aLeads, want bool
	}{
		{a, b, api.DirectionFromPeer, "*", true, false},
		{a, b, api.DirectionToPeer, "*", false, false},
		{b, a, api.DirectionToPeer, "*", true, false},
		{b, a, api.DirectionFromPeer, "*", false, false},
		{a, b, api.DirectionBoth, "Sho?_*", true, false},
		{b, a, api.DirectionBoth, `"Shop"`, true, false},
	} {
		what := fmt.Sprintf("%s grants %s %s, alpha leads: %v", c.by.name, c.databases, c.direction, c.aLeads)
		c.by.grants(t, c.to, c.direction, c.databases)
		here, there := api.RolePrimary, api.RoleSecondary
		if !c.aLeads {
			here, there = there, here
		}
		notGranted(t, what+", asked of alpha", link(a, b, here), c.by, c.to)
		notGranted(t, what+", asked of beta", link(b, a, there), c.by, c.to)
		c.by.grants(t, c.to, api.DirectionBoth, "*")
	}
	for _, i := range []*instance{a, b} {
		if links, err := i.Links(ctx); err != nil || len(links) > 0 {
			t.Errorf("%s has links %v, %v", i.name, links, err)
		}
		if left := traces(t, i, "shop"); len(left) > 0 {
			t.Errorf("%s keeps %v", i.name, left)
		}
	}
	a.grants(t, b, api.DirectionToPeer, "Shop") // folded, as names are
	findings, err := a.ValidateLink(ctx, api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
	warned := slices.ContainsFunc(findings, func(p *problem.Problem) bool {
		return p.Code == "failover-not-granted" && !p.Blocks() && strings.HasSuffix(p.Remedy, "--databases Shop --direction both")
	})
	if err != nil || !warned {
		t.Errorf("validation does not warn of the failover: %v, %v", findings, err)
	}
	b.Exec(t, "postgres", `DROP DATABASE shop WITH (FORCE)`)
	if err := link(a, b, api.RolePrimary); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestGrantsNarrow takes the grant of a running link away, on either side, also over a
// restart; writers go on, and so does the link when it has it back. A failover that is
// not granted is refused with the primary open.
func TestGrantsNarrow(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := linked(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	n, stop := write(t, a.DSN("shop"), "w")
	defer func() { stop() }()
	for _, c := range []struct {
		by, to    *instance
		direction api.Direction
		databases string
		restart   *instance
	}{
		{a, b, api.DirectionFromPeer, "*", nil},
		{a, b, api.DirectionBoth, "other", a},
		{b, a, api.DirectionToPeer, "*", b},
		{b, a, api.DirectionBoth, "other", a},
	} {
		c.by.grants(t, c.to, c.direction, c.databases)
		if c.restart != nil {
			c.restart.stop()
			c.restart.run(t)
		}
		for _, i := range []*instance{a, b} {
			testpg.Eventually(t, 30*time.Second, i.name+" says why the link stands", func() (bool, error) {
				l, err := i.Link(ctx, "shop")
				if err != nil {
					return false, err
				}
				if l.State != api.StateDisconnected || l.Cause.Code != "peer-not-granted" || !strings.HasPrefix(l.Cause.Help(), map[bool]string{false: "on instance " + c.by.name + ": "}[i == c.by]+"hawser peer set "+c.to.name) {
					return false, fmt.Errorf("%s: %v", l.State, l.Cause)
				}
				return true, nil
			})
		}
		more(t, n)
		c.by.grants(t, c.to, api.DirectionBoth, "*")
		a.awaitState(t, "shop", api.StateSynchronized)
		b.awaitState(t, "shop", api.StateSynchronized)
	}
	for _, c := range []struct {
		by, to    *instance
		direction api.Direction
	}{{a, b, api.DirectionToPeer}, {b, a, api.DirectionFromPeer}} {
		c.by.grants(t, c.to, c.direction, "shop")
		b.awaitState(t, "shop", api.StateSynchronized)
		for _, i := range []*instance{a, b} {
			_, err := i.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 20 * time.Second})
			notGranted(t, "failover asked of "+i.name, err, c.by, c.to)
		}
		more(t, n)
		l, err := a.Link(ctx, "shop")
		if err != nil || l.Role != api.RolePrimary || l.Term != 1 || l.Failover != nil {
			t.Errorf("after a failover that was refused: %+v, %v", l, err)
		}
		c.by.grants(t, c.to, api.DirectionBoth, "*")
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	stop()
	failover(t, b, "shop")
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestRejoinNotGranted: a side that was forced out, and which the new primary's grant
// keeps out, is refused before a row of it changes.
func TestRejoinNotGranted(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.stop()
	a.Exec(t, "shop", `INSERT INTO t VALUES (1)`)
	if _, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	a.awaitState(t, "shop", api.StateDiverged)
	b.grants(t, a, api.DirectionFromPeer, "shop")
	notGranted(t, "rejoin", a.RejoinLink(ctx, "shop"), b, a)
	a.awaitState(t, "shop", api.StateDiverged)
	if got := testpg.Rows(t, a.Connect(t, "shop"), `SELECT id FROM t`); len(got) != 1 {
		t.Errorf("the rejoin that was refused left the rows %q", got)
	}
	b.grants(t, a, api.DirectionBoth, "shop")
	if err := a.RejoinLink(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	equal(t, b, a, "shop")
}

// TestGrantsStay: a grant outlives a new certificate, a new address and a restart; what
// changed is told.
func TestGrantsStay(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	introduce(t, a, b)
	address := fmt.Sprintf("127.0.0.1:%d", b.port)
	p := a.grants(t, b, api.DirectionToPeer, "shop", "sales_*")
	if want := []string{"databases: * -> shop, sales_*", "direction: both -> to-peer"}; !slices.Equal(p.Changed, want) {
		t.Errorf("changed %q, want %q", p.Changed, want)
	}
	var odd *problem.Problem
	cert, err := b.Certificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.AddPeer(ctx, api.AddPeer{Certificate: cert.PEM, Address: address, Databases: []string{`"shop`}}); !errors.As(err, &odd) || odd.Code != "invalid-pattern" {
		t.Errorf("an odd pattern: %v", err)
	}
	connected := func() {
		t.Helper()
		testpg.Eventually(t, 20*time.Second, "the peers are connected", func() (bool, error) {
			list, err := b.Peers(ctx)
			return err == nil && list.Peers[0].Connected, err
		})
	}
	stays := func(what string) {
		t.Helper()
		list, err := a.Peers(ctx)
		if err != nil || !slices.Equal(list.Peers[0].Databases, []string{"shop", "sales_*"}) || list.Peers[0].Direction != api.DirectionToPeer {
			t.Errorf("after %s: %+v, %v", what, list.Peers, err)
		}
	}
	stays("a pattern that can't be read")
	connected()
	if _, err := b.RotateCertificate(ctx); err != nil {
		t.Fatal(err)
	}
	connected()
	testpg.Eventually(t, 10*time.Second, "the old certificate is forgotten", func() (bool, error) {
		stored := a.Rows(t, "postgres", `SELECT certificate FROM hawser.peer`)[0]
		return strings.Count(stored, "BEGIN CERTIFICATE") == 1, nil
	})
	stays("a new certificate")
	if cert, err = b.Certificate(ctx); err != nil {
		t.Fatal(err)
	}
	if p, err = a.AddPeer(ctx, api.AddPeer{Certificate: cert.PEM}); err != nil || len(p.Changed) > 0 || p.Address != address {
		t.Errorf("the same again changed %q, %v", p.Changed, err)
	}
	if _, err := a.AddPeer(ctx, api.AddPeer{Name: "west", Certificate: cert.PEM}); !errors.Is(err, problem.New("peer-duplicate", "", "", "")) {
		t.Errorf("a certificate that is trusted under another name: %v", err)
	}
	if _, err := a.SetPeer(ctx, "west", api.SetPeer{Address: "x:1"}); !errors.Is(err, api.PeerNotFound("west")) {
		t.Errorf("setting a peer that is not known: %v", err)
	}
	if p, err = a.SetPeer(ctx, "beta", api.SetPeer{NoAddress: true}); err != nil || !slices.Equal(p.Changed, []string{"address: " + address + " -> none"}) {
		t.Errorf("without its address: %q, %v", p.Changed, err)
	}
	if p, err = a.SetPeer(ctx, "beta", api.SetPeer{Address: address}); err != nil || !slices.Equal(p.Changed, []string{"address: none -> " + address}) {
		t.Errorf("with its address: %q, %v", p.Changed, err)
	}
	own, err := a.Certificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = b.AddPeer(ctx, api.AddPeer{Name: "other", Certificate: own.PEM}); !errors.Is(err, problem.New("peer-duplicate", "", "", "")) {
		t.Errorf("a peer that dials, under another name: %v, %v", p, err)
	}
	stays("peer add without a grant")
	a.stop()
	a.run(t)
	stays("a restart")
}
