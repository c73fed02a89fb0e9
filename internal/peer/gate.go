package peer

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

const (
	// maxPending bounds the connections that have not yet proved who they are, in
	// all and from one address. Beyond it the oldest gives way: a true peer proves
	// itself in a few round trips, who holds a place for longer is none.
	maxPending     = 64
	maxPendingFrom = 16
)

// gate holds the connections that have not yet proved who they are.
type gate struct {
	mu      sync.Mutex
	pending []pending // oldest first
	dropped uint64
}

type pending struct {
	conn net.Conn
	from netip.Prefix
}

func (g *gate) enter(conn net.Conn) {
	p := pending{conn, origin(conn)}
	g.mu.Lock()
	defer g.mu.Unlock()
	from := 0
	for _, q := range g.pending {
		if q.from == p.from {
			from++
		}
	}
	switch {
	case from >= maxPendingFrom:
		g.drop(slices.IndexFunc(g.pending, func(q pending) bool { return q.from == p.from }))
	case len(g.pending) >= maxPending:
		g.drop(0)
	}
	g.pending = append(g.pending, p)
}

func (g *gate) drop(i int) {
	_ = g.pending[i].conn.Close()
	g.pending = slices.Delete(g.pending, i, i+1)
	g.dropped++
}

func (g *gate) leave(conn net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.IndexFunc(g.pending, func(p pending) bool { return p.conn == conn }); i >= 0 {
		g.pending = slices.Delete(g.pending, i, i+1)
	}
}

// origin is the network that one sender can have to himself: an IPv4 address, or
// an IPv6 network of 64 bits.
func origin(conn net.Conn) netip.Prefix {
	addr, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := addr.AddrPort().Addr().Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	prefix, _ := ip.WithZone("").Prefix(bits) // the zero prefix is an origin as well
	return prefix
}
