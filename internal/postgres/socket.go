package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patientConn is a connection whose reads block a thread, outside of Go's network
// poller. A walsender sends each record by itself, and every one of them wakes the
// poller, though the reader rests until there are many: 75,000 times a second on a
// busy server, which cost both processes more than all else they did with a record.
//
// A deadline that passes ends the connection: it must be set for that alone.
type patientConn struct {
	net.Conn // for its addresses
	file     *os.File

	mu    sync.Mutex
	timer *time.Timer
	late  bool
}

// patient takes over a connection that was just made.
func patient(conn net.Conn) (net.Conn, error) {
	file, err := blocking(conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("take the socket out of the poller: %w", err)
	}
	return &patientConn{Conn: conn, file: file}, conn.Close()
}

// blocking returns a copy of the connection's socket that no poller knows.
func blocking(conn net.Conn) (*os.File, error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T has no socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var file *os.File
	var failed error
	err = raw.Control(func(fd uintptr) {
		var own int
		if own, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed == nil {
			failed = unix.SetNonblock(own, false) // before NewFile, which asks
			file = os.NewFile(uintptr(own), "socket")
		}
	})
	return file, errors.Join(err, failed)
}

// patientDial makes a dialler's connections patient.
func patientDial(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return patient(conn)
	}
}

func (c *patientConn) Read(p []byte) (int, error) {
	n, err := c.file.Read(p)
	return n, c.explain(err)
}

func (c *patientConn) Write(p []byte) (int, error) {
	n, err := c.file.Write(p)
	return n, c.explain(err)
}

// explain tells the end that a deadline made from any other.
func (c *patientConn) explain(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late {
		return os.ErrDeadlineExceeded
	}
	return err
}

// Close wakes up whoever reads or writes.
func (c *patientConn) Close() error {
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.shutdown()
	return c.file.Close()
}

func (c *patientConn) shutdown() {
	if raw, err := c.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

func (c *patientConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if t.IsZero() {
		return nil
	}
	c.timer = time.AfterFunc(time.Until(t), func() {
		c.mu.Lock()
		c.late = true
		c.mu.Unlock()
		c.shutdown()
	})
	return nil
}

func (c *patientConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *patientConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }
