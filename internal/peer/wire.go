package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// wire is a TCP connection, below TLS. It counts the bytes, and it ends a session
// that is no longer alive: once watch was called, each read and each write has to
// make progress within a time. The other side pings, so silence means that it, or
// the way to it, is gone. It remembers the first thing that went wrong.
type wire struct {
	net.Conn
	dialled bool // by us

	in, out atomic.Uint64
	idle    atomic.Int64 // time.Duration; 0: deadlines are the caller's

	mu     sync.Mutex
	broken error
}

// watch hands the deadlines over to the wire.
func (w *wire) watch(idle time.Duration) error {
	w.idle.Store(int64(idle))
	return w.SetDeadline(time.Now().Add(idle))
}

func (w *wire) Read(p []byte) (int, error) {
	if d := w.idle.Load(); d > 0 {
		if err := w.SetReadDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, w.fail(err)
		}
	}
	n, err := w.Conn.Read(p)
	w.in.Add(uint64(n))
	return n, w.fail(err)
}

func (w *wire) Write(p []byte) (int, error) {
	if d := w.idle.Load(); d > 0 {
		if err := w.SetWriteDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, w.fail(err)
		}
	}
	n, err := w.Conn.Write(p)
	w.out.Add(uint64(n))
	return n, w.fail(err)
}

func (w *wire) fail(err error) error {
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil {
		w.broken = err
	}
	return err
}

// cause says in words why the connection ended.
func (w *wire) cause() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.broken == nil:
		return "the connection ended"
	case errors.Is(w.broken, os.ErrDeadlineExceeded):
		return fmt.Sprintf("nothing was heard of it for %s", time.Duration(w.idle.Load()))
	case errors.Is(w.broken, io.EOF), errors.Is(w.broken, syscall.ECONNRESET):
		return "the other side, or something between, closed the connection"
	}
	return w.broken.Error()
}

// joined writes a yamux header together with the body that follows it: one TLS
// record and one system call instead of two. yamux writes from one goroutine.
type joined struct {
	net.Conn
	buf []byte
}

// A yamux header is 12 bytes: version, type (0: data), flags (2), stream (4), length (4).
const muxHeader = 12

func (j *joined) Write(p []byte) (int, error) {
	if len(j.buf) == 0 && len(p) == muxHeader && p[0] == 0 && p[1] == 0 && p[8]|p[9]|p[10]|p[11] != 0 {
		j.buf = append(j.buf, p...)
		return len(p), nil
	}
	if len(j.buf) == 0 {
		return j.Conn.Write(p)
	}
	j.buf = append(j.buf, p...)
	n, err := j.Conn.Write(j.buf)
	j.buf = j.buf[:0]
	return max(0, n-muxHeader), err
}

// host is an address without its port.
func host(address string) string {
	if h, _, err := net.SplitHostPort(address); err == nil {
		return h
	}
	return address
}
