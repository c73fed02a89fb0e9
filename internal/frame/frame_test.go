package frame_test

import (
	"testing"

	"github.com/hawser/hawser/internal/frame"
)

func TestSnapshotSees(t *testing.T) {
	t.Parallel()
	s, err := frame.ParseSnapshot("4294967290:4294967300:4294967292,4294967298") // around the wrap of 32 bits
	if err != nil {
		t.Fatal(err)
	}
	for xid, want := range map[uint32]bool{
		4294967289: true, 4294967290: true, 4294967292: false, 4294967295: true, // before the wrap
		1: true, 2: false, 3: true, 4: false, 5: false, // behind it: 4294967297 …
	} {
		if got := s.Sees(xid); got != want {
			t.Errorf("Sees(%d) = %v", xid, got)
		}
	}
	if s.String() != "4294967290:4294967300:4294967292,4294967298" {
		t.Errorf("String() = %s", s)
	}
}

func TestLSN(t *testing.T) {
	t.Parallel()
	l, err := frame.ParseLSN("16/B374D848")
	if err != nil || l.String() != "16/B374D848" {
		t.Fatalf("%s %v", l, err)
	}
	for _, bad := range []string{"", "1", "1/", "/1", "g/1", "100000000/0", "1/2/3"} {
		if _, err := frame.ParseLSN(bad); err == nil {
			t.Errorf("ParseLSN(%q) succeeded", bad)
		}
	}
	if got := frame.LSN(5).Sub(7); got != 0 {
		t.Errorf("5 - 7 = %d", got)
	}
}
