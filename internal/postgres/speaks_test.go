package postgres

import (
	"net"
	"testing"
	"time"
)

func TestSpeaks(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near := ahead(conn, 1<<20)
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	await := func() {
		t.Helper()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err == nil {
			err = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		}
		if err == nil {
			err = raw.Read(func(uintptr) bool { return Speaks(near) }) // again whenever there is something to read
		}
		if err != nil {
			t.Fatalf("it was not heard: %v", err)
		}
	}
	if Speaks(near) {
		t.Error("a silent server speaks")
	}
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	await()
	if n, err := near.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	if Speaks(near) {
		t.Error("what was read is heard again")
	}
	_ = far.Close()
	await()
}
