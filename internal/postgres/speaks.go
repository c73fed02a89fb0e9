package postgres

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Speaks tells, in one system call that waits for nothing, whether a server has said
// something on a connection, or ended it, that nobody has read.
func Speaks(conn net.Conn) bool {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn }) // TLS, and what writes ahead
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true // closed
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		_, _, failed = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return err != nil || failed != unix.EAGAIN && failed != unix.EINTR
}
