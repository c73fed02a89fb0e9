package postgres

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// FreePort returns a TCP port of loopback that was free a moment ago, for a cluster that
// is started soon. It lies below those that the kernel gives to connections, and to
// whoever listens on any port: each of these may be somebody's before the cluster is up.
func FreePort() (int, error) {
	const first, kernels = 10_000, 32_768
	var err error
	for range 100 {
		var l net.Listener
		port := first + rand.IntN(kernels-first)
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}
