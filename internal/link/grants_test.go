package link

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// granting returns a manager, without a server, of instance alpha that knows beta.
func granting(t *testing.T, g grant.Grant) *Manager {
	t.Helper()
	m := NewManager(Config{Instance: "alpha", Log: slog.New(slog.DiscardHandler)})
	m.ctx = t.Context()
	close(m.ready)
	m.SetGrants(map[string]grant.Grant{"beta": g})
	return m
}

func withLink(m *Manager, r role.Role) *link {
	l := newLink(m, catalog.Link{Name: "shop", ID: "1", Peer: "beta", Database: "shop", Progress: catalog.Running}, role.Initial(r, 0))
	m.links["shop"] = l
	return l
}

func refused(err error) bool {
	p, ok := problem.As(err)
	return ok && p.Code == "peer-not-granted"
}

// TestDoorAsksTheGrant sends what a peer's agent may send that asks its own side nothing.
// A call that was let in would fail for the server that is not there.
func TestDoorAsksTheGrant(t *testing.T) {
	t.Parallel()
	shop := func(way grant.Direction) grant.Grant { return grant.Grant{Databases: []string{"shop"}, Direction: way} }
	elsewhere := grant.Grant{Databases: []string{"other"}, Direction: grant.Both}
	for _, c := range []struct {
		method, payload string
		g               grant.Grant
	}{
		{callCreate, `{"database":"shop","role":"primary"}`, shop(grant.FromPeer)},
		{callCreate, `{"database":"shop","role":"secondary"}`, shop(grant.ToPeer)},
		{callCreate, `{"database":"shop","role":"primary"}`, elsewhere},
		{callCreate, `{"database":"shop"}`, shop(grant.ToPeer)},
		{callValidate, `{"database":"shop","role":"primary"}`, shop(grant.FromPeer)},
		{callValidate, `{"database":"shop","role":"secondary"}`, shop(grant.ToPeer)},
		{callValidate, `{"database":"shop","role":"secondary"}`, elsewhere},
		{callInspect, `{"database":"shop"}`, shop(grant.FromPeer)},
		{callInspect, `{"database":"shop"}`, elsewhere},
		{callTakeUp, `{"database":"shop"}`, shop(grant.FromPeer)},
		{callTakeUp, `{"database":"shop"}`, elsewhere},
		{callTakeUp, `{"database":"shop"}`, grant.Grant{}},
	} {
		_, err := granting(t, c.g).Call(t.Context(), "beta", "new", c.method, []byte(c.payload))
		if !refused(err) {
			t.Errorf("%s %s with %s: %v", c.method, c.payload, c.g, err)
		}
	}
	m := granting(t, grant.All())
	withLink(m, role.Primary)
	if _, err := m.Call(t.Context(), "gamma", "shop", callWhere, []byte(`{"id":"1"}`)); !refused(err) {
		t.Errorf("a peer without a grant asked where a link is: %v", err)
	}
}

// TestLinkCallsAskTheGrant: of a link that is not granted a peer gets nothing but what
// settles roles, and none of its streams.
func TestLinkCallsAskTheGrant(t *testing.T) {
	t.Parallel()
	free := []string{callState, callRefuse, callUnprepare, callOutcome, callHandoff, callStatus, callDrop}
	for method, call := range linkCalls {
		if call.need < settles || call.need > swaps {
			t.Errorf("%s has no need", method)
		}
		if (call.need == settles) != slices.Contains(free, method) {
			t.Errorf("%s has need %d", method, call.need)
		}
		if call.need == settles {
			continue
		}
		for r, other := range map[role.Role]grant.Direction{role.Primary: grant.FromPeer, role.Secondary: grant.ToPeer} {
			for _, g := range []grant.Grant{{}, {Databases: []string{"shop"}, Direction: other}, {Databases: []string{"x"}, Direction: grant.Both}} {
				m := granting(t, g)
				withLink(m, r)
				if _, err := m.Call(t.Context(), "beta", "shop", method, []byte(`{}`)); !refused(err) {
					t.Errorf("%s of a %s with %s: %v", method, r, g, err)
				}
			}
		}
	}
	if both := slices.DeleteFunc(slices.Collect(maps.Keys(databaseCalls)), func(k string) bool { _, ok := linkCalls[k]; return !ok }); len(both) > 0 {
		t.Errorf("entered twice: %v", both)
	}
	m := granting(t, grant.Grant{Databases: []string{"shop"}, Direction: grant.FromPeer})
	l := withLink(m, role.Primary)
	for _, kind := range []string{streamChanges, streamSeed, streamRows, streamHold, streamSchema} {
		if err := m.Stream(t.Context(), "beta", "shop", kind, nil); !refused(err) {
			t.Errorf("stream %s: %v", kind, err)
		}
	}
	if err := l.permits(0); !refused(err) {
		t.Errorf("a call without a need is let in: %v", err)
	}
	if _, err := m.Call(t.Context(), "beta", "shop", callDrop, []byte(`{"remove_replica":true}`)); !refused(err) {
		t.Errorf("a peer that is not granted removed the replica: %v", err)
	}
}

// TestNotGrantedTeaches: the problem names the side and the whole command.
func TestNotGrantedTeaches(t *testing.T) {
	t.Parallel()
	m := granting(t, grant.Grant{Databases: []string{"sales_*"}, Direction: grant.FromPeer})
	p := m.granted("beta", "shop", grant.ToPeer)
	want := problem.New("peer-not-granted", "database shop",
		"instance alpha grants peer beta databases sales_*, data from the peer alone; this needs database shop, data to the peer",
		"hawser peer set beta --databases 'sales_*' --databases shop --direction both")
	if *p != *want {
		t.Errorf("got %v\nwant %v", p, want)
	}
	p = m.granted("gamma", "shop", grant.FromPeer)
	if p.Code != want.Code || p.Remedy != "hawser peer add gamma.pem" || !strings.Contains(p.Advice, "on instance gamma: hawser peer add alpha.pem") {
		t.Errorf("a peer that is not known: %v", p)
	}
	if p = m.granted("betta", "shop", grant.FromPeer); !strings.Contains(p.Advice, "beta") {
		t.Errorf("a peer that is not known: %v", p)
	}
}

// TestGrantsNarrowed: a link shows it at once, and what waits for a change is woken.
func TestGrantsNarrowed(t *testing.T) {
	t.Parallel()
	m := granting(t, grant.All())
	l := withLink(m, role.Primary)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); l.endWhenNotServing(ctx, cancel) }()
	m.SetGrants(map[string]grant.Grant{"beta": {Databases: []string{"shop"}, Direction: grant.FromPeer}})
	testpg.Await(t, "the stream ends", ended)
	if !refused(context.Cause(ctx)) {
		t.Errorf("the stream ended for %v", context.Cause(ctx))
	}
	m.cfg.Peers = reach{}
	if s := l.status(); s.State != Disconnected || s.Cause.Code != "peer-not-granted" || !s.Cause.Retryable {
		t.Errorf("the link is %s: %v", s.State, s.Cause)
	}
	m.SetGrants(nil)
	if _, err := l.failover(t.Context(), FailoverOptions{}); !refused(err) {
		t.Errorf("failover: %v", err)
	}
	if data, _ := json.Marshal(l.status().Cause); !strings.Contains(string(data), "does not know peer beta") {
		t.Errorf("a peer that is not known: %s", data)
	}
}
