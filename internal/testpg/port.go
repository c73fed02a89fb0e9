package testpg

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports lie below those that the kernel gives to connections, and to whoever listens on
// any port: each of these is soon somebody's.
const (
	firstPort   = 10_000
	kernelsPort = 32_768
	rangePorts  = 500
)

// ports is this process's range of them. It listens on the range's first port for as long
// as it lives, which keeps the processes of other packages' tests off the others.
var ports struct {
	sync.Mutex
	guard net.Listener
	first int
	given int
}

// FreePort returns a TCP port of loopback that is free. It is nobody else's, also while a
// cluster that was stopped does not listen on it.
func FreePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.guard == nil {
		if err := takeRange(); err != nil {
			return 0, err
		}
	}
	for range rangePorts - 1 {
		port := ports.first + 1 + ports.given%(rangePorts-1)
		ports.given++
		if l, err := listen(port); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("find a free port: this process has taken all of its own")
}

func takeRange() error {
	for _, n := range rand.Perm((kernelsPort - firstPort) / rangePorts) {
		first := firstPort + n*rangePorts
		if l, err := listen(first); err == nil {
			ports.guard, ports.first = l, first
			return nil
		}
	}
	return errors.New("find a free port: other processes have taken all ranges")
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}
