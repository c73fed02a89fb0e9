package pgoutput

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Decoder decodes the messages of one stream, in their order. It knows whether the
// stream is inside a stream block, where changes carry a transaction id. The zero
// Decoder is ready; a new connection needs a new one. It may not be used by two
// goroutines at a time.
//
// A message and its rows are the decoder's, and valid until the next call; a
// Relation alone is the caller's to keep. The bytes in it (Column.Data,
// LogicalMessage.Content) are parts of the payload, and valid for as long as that
// is; the strings are copies.
type Decoder struct {
	streaming bool

	begin    Begin
	commit   Commit
	insert   Insert
	update   Update
	delete   Delete
	old, row []Column
}

// Reasons to refuse a message, beside those that name a value.
var (
	errShort   = errors.New("message ends too early")
	errNoRow   = errors.New("no row where one has to be")
	errUnknown = errors.New("unknown type")
	errNested  = errors.New("not allowed inside a stream block")
	errOutside = errors.New("no stream block is open")
)

// Decode decodes the next message of the stream. After an error the stream can't
// be followed any further.
func (d *Decoder) Decode(payload []byte) (Message, error) {
	m, err := d.decode(payload, d.streaming)
	if err == nil {
		err = d.follow(m)
	}
	if err != nil {
		return nil, refuse(payload, err)
	}
	return m, nil
}

// DecodeChange decodes one message that was taken out of its stream; streamed
// tells whether it stood inside a stream block.
func (d *Decoder) DecodeChange(payload []byte, streamed bool) (Message, error) {
	m, err := d.decode(payload, streamed)
	if err != nil {
		return nil, refuse(payload, err)
	}
	return m, nil
}

func refuse(payload []byte, err error) error {
	if len(payload) == 0 {
		return fmt.Errorf("pgoutput: empty message: %w", err)
	}
	return fmt.Errorf("pgoutput: message of type %q: %w", payload[0], err)
}

// follow keeps track of stream blocks, in which only changes and an origin stand.
func (d *Decoder) follow(m Message) error {
	switch m.(type) {
	case *Relation, *Type, *Insert, *Update, *Delete, *Truncate, *LogicalMessage, *Origin:
		return nil
	case *StreamStop:
		if !d.streaming {
			return errOutside
		}
		d.streaming = false
		return nil
	}
	if d.streaming {
		return errNested
	}
	_, d.streaming = m.(*StreamStart)
	return nil
}

func (d *Decoder) decode(payload []byte, streamed bool) (Message, error) {
	if len(payload) == 0 {
		return nil, errShort
	}
	r := reader{b: payload[1:]}
	m, err := d.message(payload[0], streamed, &r)
	switch {
	case err != nil:
		return nil, err
	case r.err != nil:
		return nil, r.err
	case len(r.b) > 0:
		return nil, fmt.Errorf("%d bytes too many", len(r.b))
	}
	return m, nil
}

func (d *Decoder) message(kind byte, streamed bool, r *reader) (Message, error) {
	switch kind {
	case 'B':
		d.begin = Begin{FinalLSN: r.lsn(), CommitTime: r.time(), XID: r.uint32()}
		return &d.begin, nil
	case 'C':
		r.flags(0)
		d.commit = Commit{CommitLSN: r.lsn(), EndLSN: r.lsn(), CommitTime: r.time()}
		return &d.commit, nil
	case 'O':
		return &Origin{CommitLSN: r.lsn(), Name: r.string()}, nil
	case 'S':
		return &StreamStart{XID: r.uint32(), First: r.flags(1) != 0}, nil
	case 'E':
		return &StreamStop{}, nil
	case 'c':
		xid := r.uint32()
		r.flags(0)
		return &StreamCommit{XID: xid, CommitLSN: r.lsn(), EndLSN: r.lsn(), CommitTime: r.time()}, nil
	case 'A':
		return streamAbort(r), nil
	case 'b', 'P', 'K', 'r', 'p':
		return prepared(PreparedAction(kind), r), nil
	}
	var sub uint32
	if streamed {
		sub = r.uint32()
	}
	return d.change(kind, sub, r)
}

// streamAbort: where and when it was aborted is told from protocol 4 on, if the
// client asked for parallel streaming.
func streamAbort(r *reader) *StreamAbort {
	m := &StreamAbort{XID: r.uint32(), SubXID: r.uint32()}
	if len(r.b) > 0 {
		m.AbortLSN, m.AbortTime = r.lsn(), r.time()
	}
	return m
}

// change decodes what carries a transaction id in a stream block.
func (d *Decoder) change(kind byte, sub uint32, r *reader) (Message, error) {
	switch kind {
	case 'R':
		return relation(sub, r), nil
	case 'Y':
		return &Type{SubXID: sub, OID: r.uint32(), Namespace: namespace(r.string()), Name: r.string()}, nil
	case 'I':
		d.insert = Insert{SubXID: sub, RelationID: r.uint32()}
		if r.byte() != 'N' {
			return nil, errNoRow
		}
		d.row = r.columns(d.row[:0])
		d.insert.New = d.row
		return &d.insert, nil
	case 'U':
		return d.decodeUpdate(sub, r)
	case 'D':
		d.delete = Delete{SubXID: sub, RelationID: r.uint32(), OldKind: r.byte()}
		if d.delete.OldKind != 'K' && d.delete.OldKind != 'O' {
			return nil, errNoRow
		}
		d.old = r.columns(d.old[:0])
		d.delete.Old = d.old
		return &d.delete, nil
	case 'T':
		return truncate(sub, r), nil
	case 'M':
		return logicalMessage(sub, r), nil
	}
	return nil, errUnknown
}

func (d *Decoder) decodeUpdate(sub uint32, r *reader) (Message, error) {
	d.update = Update{SubXID: sub, RelationID: r.uint32()}
	next := r.byte()
	if next == 'K' || next == 'O' {
		d.old = r.columns(d.old[:0])
		d.update.OldKind, d.update.Old = next, d.old
		next = r.byte()
	}
	if next != 'N' {
		return nil, errNoRow
	}
	d.row = r.columns(d.row[:0])
	d.update.New = d.row
	return &d.update, nil
}

func relation(sub uint32, r *reader) *Relation {
	m := &Relation{SubXID: sub, ID: r.uint32(), Namespace: namespace(r.string()), Name: r.string(), ReplicaIdentity: r.identity()}
	n := int(r.uint16())
	if n > len(r.b)/10 { // a column takes ten bytes at least
		r.fail(errShort)
		return m
	}
	m.Columns = make([]RelationColumn, n)
	for i := range m.Columns {
		m.Columns[i] = RelationColumn{Key: r.flags(1) != 0, Name: r.string(), TypeOID: r.uint32(), Modifier: int32(r.uint32())}
	}
	return m
}

// namespace: the server writes the empty string for pg_catalog.
func namespace(s string) string {
	if s == "" {
		return "pg_catalog"
	}
	return s
}

func truncate(sub uint32, r *reader) *Truncate {
	n := r.uint32()
	options := r.flags(3)
	m := &Truncate{SubXID: sub, Cascade: options&1 != 0, RestartIdentity: options&2 != 0}
	if uint64(n) > uint64(len(r.b)/4) {
		r.fail(errShort)
		return m
	}
	m.RelationIDs = make([]uint32, n)
	for i := range m.RelationIDs {
		m.RelationIDs[i] = r.uint32()
	}
	return m
}

func logicalMessage(sub uint32, r *reader) *LogicalMessage {
	m := &LogicalMessage{XID: sub, Transactional: r.flags(1) != 0, LSN: r.lsn(), Prefix: r.string()}
	m.Content = r.bytes(int64(r.uint32()))
	return m
}

func prepared(action PreparedAction, r *reader) *Prepared {
	m := &Prepared{Action: action}
	if action != BeginPrepare {
		r.flags(0)
	}
	m.LSN, m.EndLSN = r.lsn(), r.lsn()
	if action == RollbackPrepared {
		m.Prepared = r.time()
	}
	m.Time, m.XID, m.GID = r.time(), r.uint32(), r.string()
	return m
}

// reader takes fields off the front. After an error all of them are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) bytes(n int64) []byte {
	if n < 0 || n > int64(len(r.b)) {
		r.fail(errShort)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) lsn() LSN { return LSN(r.uint64()) }

// flags reads a byte of flags and refuses those that are not known: what they
// would change in the rest of the message can't be guessed.
func (r *reader) flags(known byte) byte {
	f := r.byte()
	if f&^known != 0 {
		r.fail(fmt.Errorf("unknown flags %#x", f))
		return 0
	}
	return f
}

// identity reads a replica identity.
func (r *reader) identity() byte {
	c := r.byte()
	switch c {
	case 'd', 'n', 'f', 'i':
		return c
	}
	r.fail(fmt.Errorf("unknown replica identity %q", c))
	return 0
}

// epoch is where PostgreSQL counts microseconds from.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (r *reader) time() time.Time {
	micros := int64(r.uint64())
	if r.err != nil {
		return time.Time{}
	}
	return time.UnixMicro(epoch.UnixMicro() + micros).UTC()
}

func (r *reader) string() string {
	i := bytes.IndexByte(r.b, 0)
	if i < 0 {
		r.fail(errShort)
		return ""
	}
	s := string(r.b[:i])
	r.b = r.b[i+1:]
	return s
}

// columns appends a row to dst.
func (r *reader) columns(dst []Column) []Column {
	n := int(r.uint16())
	if n > len(r.b) { // a column takes one byte at least
		r.fail(errShort)
		return dst
	}
	for range n {
		c := Column{Kind: Kind(r.byte())}
		switch c.Kind {
		case Null, Unchanged:
		case Text, Binary:
			c.Data = r.bytes(int64(r.uint32()))
		default:
			r.fail(fmt.Errorf("unknown kind %q of a column", byte(c.Kind)))
		}
		if r.err != nil {
			return dst
		}
		dst = append(dst, c)
	}
	return dst
}
