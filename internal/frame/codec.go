package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Limits of the codec. Decode refuses a frame beyond them before it takes memory
// for it; Encode does not look at them, so a sender has to keep to the first two.
const (
	// MaxFrame is the size of the largest frame: a record of 1 GiB, PostgreSQL's
	// largest value, with its row around it.
	MaxFrame = 1<<30 + 64<<20
	// MaxItems bounds the records of a Data and the values of a Sequences. An item
	// is up to 16 times larger in memory than on the wire.
	MaxItems = 1 << 20
	// maxColumns bounds the columns of a table; PostgreSQL's own limit is 1,600.
	maxColumns = 1 << 14
	// maxName bounds a name or an exported snapshot's id; PostgreSQL cuts names
	// at 63 bytes, unless it was built with other constants.
	maxName = 1 << 12
	// maxSnapshot bounds a snapshot's text: 2^18 sessions, which is PostgreSQL's
	// own limit, with 20 digits each.
	maxSnapshot = 8 << 20
)

var errShort = errors.New("frame ends too early")

// Encode appends the wire form of f to dst and returns the longer slice: the kind,
// then the fields in order, integers as varints, byte strings with their length
// before them. It copies, so f's slices are the caller's again when it returns.
func Encode(dst []byte, f Frame) []byte {
	dst = append(dst, f.kind())
	switch f := f.(type) {
	case Start:
		dst = binary.AppendUvarint(dst, uint64(f.Term))
		dst = binary.AppendUvarint(dst, uint64(f.Position))
	case Ack:
		dst = binary.AppendUvarint(dst, uint64(f.Received))
		dst = binary.AppendUvarint(dst, uint64(f.Durable))
		dst = binary.AppendUvarint(dst, uint64(f.Visible))
	case Data:
		dst = binary.AppendUvarint(dst, uint64(len(f.Records)))
		for _, r := range f.Records {
			dst = binary.AppendUvarint(dst, uint64(r.LSN))
			dst = appendBytes(dst, r.Payload)
		}
	case Heartbeat:
		dst = binary.AppendUvarint(dst, uint64(f.End))
		dst = binary.AppendVarint(dst, unixNano(f.At))
		dst = appendBytes(dst, f.Snapshot)
		dst = binary.AppendUvarint(dst, f.LagBytes)
		dst = binary.AppendUvarint(dst, math.Float64bits(f.LagSeconds))
	case Sequences:
		dst = binary.AppendUvarint(dst, uint64(len(f.Values)))
		for _, v := range f.Values {
			dst = appendBytes(dst, v.Schema)
			dst = appendBytes(dst, v.Name)
			dst = binary.AppendVarint(dst, v.Last)
			dst = appendBool(dst, v.Called)
		}
	case SeedRequest:
		dst = binary.AppendUvarint(dst, uint64(f.OID))
		dst = appendBytes(dst, f.Export)
		dst = binary.AppendUvarint(dst, uint64(f.FirstPage))
		dst = binary.AppendUvarint(dst, uint64(f.EndPage))
	case SeedStart:
		dst = appendSeedStart(dst, f)
	case SeedChunk:
		dst = appendBytes(dst, f.Data)
	case SeedEnd:
		dst = binary.AppendVarint(dst, f.Rows)
	}
	return dst
}

func appendSeedStart(dst []byte, f SeedStart) []byte {
	dst = binary.AppendUvarint(dst, uint64(f.OID))
	dst = appendBytes(dst, f.Schema)
	dst = appendBytes(dst, f.Name)
	dst = binary.AppendUvarint(dst, uint64(len(f.Columns)))
	for _, c := range f.Columns {
		dst = appendBytes(dst, c)
	}
	dst = appendBytes(dst, f.Snapshot.String())
	dst = appendBytes(dst, f.Export)
	dst = binary.AppendUvarint(dst, uint64(f.LSN))
	dst = binary.AppendVarint(dst, f.Bytes)
	dst = binary.AppendVarint(dst, f.Rows)
	dst = binary.AppendUvarint(dst, uint64(f.Pages))
	dst = binary.AppendUvarint(dst, uint64(f.ChunkPages))
	dst = binary.AppendUvarint(dst, uint64(len(f.Defined)))
	for _, x := range f.Defined {
		dst = binary.AppendUvarint(dst, uint64(x))
	}
	return dst
}

func appendBytes[T string | []byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// unixNano keeps the zero time apart from 1970.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return math.MinInt64
	}
	return t.UnixNano()
}

// Decode reads one frame, which has to fill b. The frame is one of the package's
// types by value. The payloads of a Data and the bytes of a SeedChunk alias b: they
// are good for as long as b is left alone; all else is copied. It never panics, and
// takes memory in proportion to len(b) alone.
func Decode(b []byte) (Frame, error) {
	if len(b) == 0 {
		return nil, errShort
	}
	if len(b) > MaxFrame {
		return nil, fmt.Errorf("frame of %d bytes, the limit is %d", len(b), MaxFrame)
	}
	r := reader{b: b[1:]}
	f := r.frame(b[0])
	switch {
	case r.err != nil:
		return nil, fmt.Errorf("frame of kind %d: %w", b[0], r.err)
	case len(r.b) > 0:
		return nil, fmt.Errorf("frame of kind %d: %d bytes too many", b[0], len(r.b))
	}
	return f, nil
}

// reader takes fields off the front. After an error all of them are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) frame(kind byte) Frame {
	switch kind {
	case kindStart:
		return Start{Term: Term(r.uint()), Position: LSN(r.uint())}
	case kindAck:
		return Ack{Received: LSN(r.uint()), Durable: LSN(r.uint()), Visible: LSN(r.uint())}
	case kindData:
		return r.data()
	case kindHeartbeat:
		return Heartbeat{End: LSN(r.uint()), At: r.time(), Snapshot: r.text(maxSnapshot), LagBytes: r.uint(), LagSeconds: math.Float64frombits(r.uint())}
	case kindSequences:
		return r.sequences()
	case kindSeedRequest:
		return SeedRequest{OID: r.uint32(), Export: r.name(), FirstPage: r.uint32(), EndPage: r.uint32()}
	case kindSeedStart:
		return r.seedStart()
	case kindSeedChunk:
		return SeedChunk{Data: r.bytes()}
	case kindSeedEnd:
		return SeedEnd{Rows: r.int()}
	}
	r.fail(errors.New("unknown kind"))
	return nil
}

func (r *reader) data() Data {
	n := r.count(2, MaxItems) // a record takes two bytes at least
	d := Data{Records: make([]Record, 0, n)}
	for range n {
		d.Records = append(d.Records, Record{LSN: LSN(r.uint()), Payload: r.bytes()})
	}
	return d
}

func (r *reader) sequences() Sequences {
	n := r.count(4, MaxItems)
	s := Sequences{Values: make([]SequenceValue, 0, n)}
	for range n {
		s.Values = append(s.Values, SequenceValue{Schema: r.name(), Name: r.name(), Last: r.int(), Called: r.bool()})
	}
	return s
}

func (r *reader) seedStart() SeedStart {
	s := SeedStart{OID: r.uint32(), Schema: r.name(), Name: r.name()}
	for range r.count(1, maxColumns) {
		s.Columns = append(s.Columns, r.name())
	}
	snapshot := r.text(maxSnapshot)
	s.Export, s.LSN, s.Bytes, s.Rows = r.name(), LSN(r.uint()), r.int(), r.int()
	s.Pages, s.ChunkPages = r.uint32(), r.uint32()
	for range r.count(1, maxColumns+2) {
		s.Defined = append(s.Defined, r.uint32())
	}
	if r.err == nil {
		var err error
		if s.Snapshot, err = ParseSnapshot(snapshot); err != nil {
			r.fail(err)
		}
	}
	return s
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uint()
	if v > math.MaxUint32 {
		r.fail(fmt.Errorf("%d does not fit 32 bits", v))
		return 0
	}
	return uint32(v)
}

// count reads a number of items, each of which takes size bytes at least.
func (r *reader) count(size, limit int) int {
	n := r.uint()
	switch {
	case n > uint64(limit):
		r.fail(fmt.Errorf("%d items, the limit is %d", n, limit))
		return 0
	case n > uint64(len(r.b)/size):
		r.fail(fmt.Errorf("%d items in %d bytes", n, len(r.b)))
		return 0
	}
	return int(n)
}

func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail(errShort)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) name() string { return r.text(maxName) }

func (r *reader) text(limit int) string {
	b := r.bytes()
	if len(b) > limit {
		r.fail(fmt.Errorf("a text of %d bytes, the limit is %d", len(b), limit))
		return ""
	}
	return string(b)
}

func (r *reader) bool() bool {
	switch v := r.uint(); v {
	case 0:
		return false
	case 1:
		return true
	default:
		r.fail(fmt.Errorf("%d is no boolean", v))
		return false
	}
}

func (r *reader) time() time.Time {
	ns := r.int()
	if ns == math.MinInt64 || r.err != nil {
		return time.Time{}
	}
	return time.Unix(0, ns)
}
