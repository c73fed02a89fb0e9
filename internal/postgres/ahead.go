package postgres

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// aheadConn takes what is written into memory and hands it to the server as that reads
// it: the writer goes on with its work while the server is busy with earlier requests,
// far beyond what a socket's buffer holds. An error shows up with a later write, or with
// the read that waits for the answer.
//
// While nothing waits the writer hands over by itself what the socket takes at once: to
// wake up another thread for that costs an idle stream more than the system call does.
type aheadConn struct {
	net.Conn
	raw  syscall.RawConn // nil: it has no socket
	most int             // bytes; a writer waits beyond

	mu      sync.Mutex
	changed *sync.Cond
	waiting [][]byte // to be written, in blocks
	size    int      // of what waits
	spare   []byte   // a block for reuse
	closed  bool
	err     error
	ended   chan struct{}
}

func ahead(conn net.Conn, most int) net.Conn {
	c := &aheadConn{Conn: conn, most: most, ended: make(chan struct{})}
	c.changed = sync.NewCond(&c.mu)
	if s, ok := conn.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	go c.run()
	return c
}

// aheadDial has a dialler's connections written ahead.
func aheadDial(dial func(ctx context.Context, network, addr string) (net.Conn, error), most int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return ahead(conn, most), nil
	}
}

// NetConn is the connection underneath.
func (c *aheadConn) NetConn() net.Conn { return c.Conn }

func (c *aheadConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closed && c.size >= c.most {
		c.changed.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closed:
		return 0, net.ErrClosed
	}
	n := 0
	if c.size == 0 {
		n = c.atOnce(p)
	}
	if n < len(p) {
		c.queue(p[n:])
		c.changed.Broadcast()
	}
	return len(p), nil
}

// atOnce writes what the socket takes without waiting, and tells how much that was. What
// is wrong with the socket is left for run to find.
func (c *aheadConn) atOnce(p []byte) (n int) {
	if c.raw == nil {
		return 0
	}
	err := c.raw.Write(func(fd uintptr) bool {
		n, _ = unix.Write(int(fd), p)
		return true
	})
	if err != nil {
		return 0
	}
	return max(0, n)
}

// queue copies p to the end of what waits.
func (c *aheadConn) queue(p []byte) {
	c.size += len(p)
	for len(p) > 0 {
		last := len(c.waiting) - 1
		if last < 0 || len(c.waiting[last]) == cap(c.waiting[last]) {
			block := c.spare
			if c.spare = nil; block == nil {
				block = make([]byte, 0, blockBytes)
			}
			c.waiting, last = append(c.waiting, block), last+1
		}
		block := c.waiting[last]
		n := min(len(p), cap(block)-len(block))
		c.waiting[last], p = append(block, p[:n]...), p[n:]
	}
}

// run writes until the connection is closed and all is written, or an error.
func (c *aheadConn) run() {
	defer close(c.ended)
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(c.waiting) == 0 && !c.closed {
			c.changed.Wait()
		}
		if len(c.waiting) == 0 {
			return
		}
		block := c.waiting[0]
		c.waiting[0], c.waiting = nil, c.waiting[1:]
		c.mu.Unlock()
		_, err := c.Conn.Write(block)
		c.mu.Lock()
		c.size -= len(block)
		c.spare = block[:0]
		c.err = err
		c.changed.Broadcast()
		if err != nil {
			return
		}
	}
}

const (
	blockBytes = 64 << 10
	// farewell is how long a closed connection may take for its last words.
	farewell = time.Second
)

// Close writes what is waiting, as the last words to the server are, and ends the goroutine.
func (c *aheadConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	// A deadline that has passed already stays: who set it does not want to wait.
	cut := time.AfterFunc(farewell, func() { _ = c.Conn.SetWriteDeadline(time.Unix(1, 0)) })
	<-c.ended
	cut.Stop()
	return c.Conn.Close()
}
