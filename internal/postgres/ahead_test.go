package postgres

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAhead: what is written before the peer reads arrives whole and in its order, also
// what was written just before Close.
func TestAhead(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe() // holds nothing by itself
	testAhead(t, near, far)
}

// TestAheadOfSocket: the same of a socket, which takes a part at once.
func TestAheadOfSocket(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // or a server that another test starts keeps it open
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
	}
	if err := ends[0].(*net.UnixConn).SetWriteBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	testAhead(t, ends[0], ends[1])
}

func testAhead(t *testing.T, near, far net.Conn) {
	t.Helper()
	conn := ahead(near, 1<<20)
	var want bytes.Buffer
	for i := range 1000 {
		p := bytes.Repeat([]byte{byte(i)}, i)
		want.Write(p)
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan []byte, 1)
	go func() { all, _ := io.ReadAll(far); got <- all }()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case all := <-got:
		if !bytes.Equal(all, want.Bytes()) {
			t.Error("what arrived is not what was written")
		}
	case <-time.After(time.Minute): // package testpg, which could wait, imports this one
		t.Fatal("not all that was written arrives")
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write behind Close: %v", err)
	}
}

// TestAheadOfNobody: a peer that does not read holds up neither Close nor, by a
// deadline, a writer for which there is no room.
func TestAheadOfNobody(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer far.Close()
	conn := ahead(near, 10)
	if _, err := conn.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() { _, err := conn.Write([]byte("x")); failed <- err }()
	select {
	case err := <-failed:
		t.Fatalf("a write without room returned: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := conn.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-failed:
		if err == nil {
			t.Error("a write that was cut off says that it succeeded")
		}
	case <-time.After(time.Minute):
		t.Fatal("a write without room waits behind its deadline")
	}
	closed := make(chan error)
	go func() { closed <- conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	select {
	case <-closed:
	case <-ctx.Done():
		t.Error("Close waits for a peer that does not read")
	}
}
