package frame_test

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/frame"
)

func draw(t *rapid.T) frame.Frame {
	lsn := rapid.Custom(func(t *rapid.T) frame.LSN { return frame.LSN(rapid.Uint64().Draw(t, "lsn")) })
	data := rapid.SliceOfN(rapid.Byte(), 1, 50)
	switch rapid.IntRange(0, 8).Draw(t, "kind") {
	case 0:
		return frame.Start{Term: frame.Term(rapid.Uint64().Draw(t, "term")), Position: lsn.Draw(t, "position")}
	case 1:
		return frame.Ack{Received: lsn.Draw(t, "r"), Durable: lsn.Draw(t, "d"), Visible: lsn.Draw(t, "v")}
	case 2:
		d := frame.Data{Records: []frame.Record{}}
		for range rapid.IntRange(0, 5).Draw(t, "records") {
			d.Records = append(d.Records, frame.Record{LSN: lsn.Draw(t, "lsn"), Payload: data.Draw(t, "payload")})
		}
		return d
	case 3:
		return frame.Heartbeat{End: lsn.Draw(t, "end"), At: time.Unix(0, rapid.Int64Range(0, 1<<62).Draw(t, "at")),
			Snapshot: rapid.String().Draw(t, "snapshot"), LagBytes: rapid.Uint64().Draw(t, "bytes"), LagSeconds: rapid.Float64().Draw(t, "seconds")}
	case 4:
		s := frame.Sequences{Values: []frame.SequenceValue{}}
		for range rapid.IntRange(0, 5).Draw(t, "values") {
			s.Values = append(s.Values, frame.SequenceValue{Schema: rapid.String().Draw(t, "schema"), Name: rapid.String().Draw(t, "name"),
				Last: rapid.Int64().Draw(t, "last"), Called: rapid.Bool().Draw(t, "called")})
		}
		return s
	case 5:
		return frame.SeedRequest{OID: rapid.Uint32().Draw(t, "oid"), Export: rapid.String().Draw(t, "export"),
			FirstPage: rapid.Uint32().Draw(t, "first"), EndPage: rapid.Uint32().Draw(t, "end")}
	case 6:
		return frame.SeedStart{OID: rapid.Uint32().Draw(t, "oid"), Schema: rapid.String().Draw(t, "schema"), Name: rapid.String().Draw(t, "name"),
			Columns:  rapid.SliceOfN(rapid.String(), 1, 4).Draw(t, "columns"),
			Snapshot: frame.Snapshot{Xmin: 5, Xmax: 9, Xip: rapid.SliceOfN(rapid.Uint64Range(5, 8), 1, 3).Draw(t, "xip")},
			Export:   rapid.String().Draw(t, "export"), LSN: lsn.Draw(t, "lsn"), Bytes: rapid.Int64().Draw(t, "bytes"),
			Rows: rapid.Int64().Draw(t, "rows"), Pages: rapid.Uint32().Draw(t, "pages"), ChunkPages: rapid.Uint32().Draw(t, "chunk")}
	case 7:
		return frame.SeedChunk{Data: data.Draw(t, "data")}
	default:
		return frame.SeedEnd{Rows: rapid.Int64().Draw(t, "rows")}
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t)
		wire := frame.Encode([]byte("before"), f)
		got, err := frame.Decode(wire[len("before"):])
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, f) {
			t.Fatalf("\n got %#v\nwant %#v", got, f)
		}
		if _, err := frame.Decode(append(wire[len("before"):], 0)); err == nil {
			t.Fatal("a byte too many was accepted")
		}
		if _, err := frame.Decode(wire[len("before") : len(wire)-1]); err == nil {
			t.Fatal("a byte too few was accepted")
		}
	})
}

// FuzzDecode: no input makes Decode panic, and what it accepts is stable.
func FuzzDecode(f *testing.F) {
	for _, v := range []frame.Frame{
		frame.Start{Term: 1, Position: 2}, frame.Data{Records: []frame.Record{{LSN: 1, Payload: []byte("x")}}},
		frame.Heartbeat{End: 1, At: time.Unix(1, 2), Snapshot: "1:2:"}, frame.Sequences{Values: []frame.SequenceValue{{Schema: "s", Name: "n", Last: -1, Called: true}}},
		frame.SeedStart{OID: 1, Name: "t", Columns: []string{"a"}, Snapshot: frame.Snapshot{Xmin: 1, Xmax: 2}}, frame.SeedChunk{Data: []byte("r")},
	} {
		f.Add(frame.Encode(nil, v))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := frame.Decode(b)
		if err != nil {
			return
		}
		again := frame.Encode(nil, v)
		w, err := frame.Decode(again)
		if err != nil {
			t.Fatalf("what was decoded can't be decoded again: %v", err)
		}
		if !bytes.Equal(frame.Encode(nil, w), again) {
			t.Fatal("encoding is not stable")
		}
	})
}

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
