package frame_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/frame"
)

// draw returns any frame that a sender may make.
func draw(t *rapid.T) frame.Frame {
	lsn := rapid.Custom(func(t *rapid.T) frame.LSN { return frame.LSN(rapid.Uint64().Draw(t, "lsn")) })
	data := rapid.SliceOfN(rapid.Byte(), 0, 50)
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
		return frame.Heartbeat{End: lsn.Draw(t, "end"), At: time.Unix(0, rapid.Int64Range(math.MinInt64+1, math.MaxInt64).Draw(t, "at")),
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
		for end := len("before"); end < len(wire); end++ {
			if _, err := frame.Decode(wire[len("before"):end]); err == nil {
				t.Fatalf("the first %d of %d bytes were accepted", end-len("before"), len(wire)-len("before"))
			}
		}
	})
}

func TestZeroFrames(t *testing.T) {
	t.Parallel()
	for _, f := range []frame.Frame{
		frame.Start{}, frame.Ack{}, frame.Data{}, frame.Heartbeat{}, frame.Sequences{},
		frame.SeedRequest{}, frame.SeedStart{}, frame.SeedChunk{}, frame.SeedEnd{},
	} {
		wire := frame.Encode(nil, f)
		got, err := frame.Decode(wire)
		if err != nil {
			t.Errorf("%T: %v", f, err)
			continue
		}
		if !bytes.Equal(frame.Encode(nil, got), wire) || reflect.TypeOf(got) != reflect.TypeOf(f) {
			t.Errorf("%#v became %#v", f, got)
		}
	}
}

// TestDecodeAliases holds what Decode says of its memory: a payload is a part of
// the input, and an append to it can't reach what lies behind.
func TestDecodeAliases(t *testing.T) {
	t.Parallel()
	wire := frame.Encode(nil, frame.Data{Records: []frame.Record{{LSN: 1, Payload: []byte("one")}, {LSN: 2, Payload: []byte("two")}}})
	f, err := frame.Decode(wire)
	if err != nil {
		t.Fatal(err)
	}
	records := f.(frame.Data).Records
	_ = append(records[0].Payload, "overwritten"...)
	if got := string(records[1].Payload); got != "two" {
		t.Errorf("an append reached the next record: %q", got)
	}
	wire[bytes.Index(wire, []byte("one"))] = 'O'
	if got := string(records[0].Payload); got != "One" {
		t.Errorf("the payload is a copy: %q", got)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	uvarint := binary.AppendUvarint
	kind := func(f frame.Frame) byte { return frame.Encode(nil, f)[0] }
	data, sequences, request := kind(frame.Data{}), kind(frame.Sequences{}), kind(frame.SeedRequest{})
	for name, wire := range map[string][]byte{
		"nothing":                      nil,
		"kind 0":                       {0},
		"an unknown kind":              {255},
		"more records than bytes":      uvarint([]byte{data}, 1<<19),
		"too many records":             append(uvarint([]byte{data}, frame.MaxItems+1), make([]byte, 4*frame.MaxItems)...),
		"a count of 2^64-1":            uvarint([]byte{data}, math.MaxUint64),
		"a varint of 11 bytes":         append([]byte{data}, bytes.Repeat([]byte{0xff}, 11)...),
		"a payload longer than all":    uvarint([]byte{data, 1, 1}, 1<<40),
		"a boolean that is 2":          append(uvarint([]byte{sequences}, 1), 1, 's', 1, 'n', 0, 2),
		"an OID of 33 bits":            append(uvarint([]byte{request}, 1<<32), 0, 0, 0),
		"a very long name":             frame.Encode(nil, frame.SeedRequest{Export: strings.Repeat("x", 1<<12+1)}),
		"a very long snapshot":         frame.Encode(nil, frame.Heartbeat{Snapshot: strings.Repeat("1", 8<<20+1)}),
		"a table of very many columns": frame.Encode(nil, frame.SeedStart{Columns: make([]string, 1<<14+1)}),
		"a snapshot that is none":      bytes.Replace(frame.Encode(nil, frame.SeedStart{}), []byte("0:0:"), []byte("0:x:"), 1),
	} {
		if f, err := frame.Decode(wire); err == nil {
			t.Errorf("%s: accepted as %T", name, f)
		}
	}
}

// FuzzDecode: no input makes Decode panic, and what it accepts is stable.
func FuzzDecode(f *testing.F) {
	for _, v := range []frame.Frame{
		frame.Start{Term: 1, Position: 2}, frame.Data{Records: []frame.Record{{LSN: 1, Payload: []byte("x")}}},
		frame.Heartbeat{End: 1, At: time.Unix(1, 2), Snapshot: "1:2:"}, frame.Sequences{Values: []frame.SequenceValue{{Schema: "s", Name: "n", Last: -1, Called: true}}},
		frame.SeedStart{OID: 1, Name: "t", Columns: []string{"a"}, Snapshot: frame.Snapshot{Xmin: 1, Xmax: 2}}, frame.SeedChunk{Data: []byte("r")},
		frame.Ack{Received: 3, Durable: 1, Visible: 2}, frame.SeedRequest{OID: 1, Export: "1-2", FirstPage: 1, EndPage: 2}, frame.SeedEnd{Rows: 7},
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

// batch is what capture sends under load: 512 KiB of small changes.
func batch() frame.Data {
	var d frame.Data
	for i := range 4096 {
		d.Records = append(d.Records, frame.Record{LSN: frame.LSN(i) << 20, Payload: bytes.Repeat([]byte("x"), 128)})
	}
	return d
}

func BenchmarkEncode(b *testing.B) {
	var f frame.Frame = batch()
	wire := frame.Encode(nil, f)
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		wire = frame.Encode(wire[:0], f)
	}
}

func BenchmarkDecode(b *testing.B) {
	wire := frame.Encode(nil, batch())
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := frame.Decode(wire); err != nil {
			b.Fatal(err)
		}
	}
}
