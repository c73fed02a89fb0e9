// Package frame holds what travels on a link's ordered streams and the types in
// which positions are told: LSN, Term, Snapshot, Ack.
//
// One stream carries one sequence of frames from the primary to the secondary;
// acknowledgements walk the other way. A frame's meaning depends only on the
// frames before it. The codec is bounded: a length that was read from the wire
// is checked before anything is allocated for it, and Decode never panics.
// This package knows neither PostgreSQL nor the network, and imports nothing
// of Hawser.
package frame

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// LSN is a byte position in PostgreSQL's write-ahead log. 0 means none.
type LSN uint64

// String returns the LSN as PostgreSQL prints it: two hexadecimal halves.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// ParseLSN reads the form that PostgreSQL prints.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("LSN %q: want two hexadecimal numbers with a slash between", s)
	}
	h, err := strconv.ParseUint(hi, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("LSN %q: %w", s, err)
	}
	l, err := strconv.ParseUint(lo, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("LSN %q: %w", s, err)
	}
	return LSN(h<<32 | l), nil
}

// MarshalText writes the form that PostgreSQL prints.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the form that PostgreSQL prints.
func (l *LSN) UnmarshalText(b []byte) error {
	v, err := ParseLSN(string(b))
	if err != nil {
		return err
	}
	*l = v
	return nil
}

// Sub returns the bytes from m to l, and 0 where m is ahead.
func (l LSN) Sub(m LSN) uint64 {
	if l < m {
		return 0
	}
	return uint64(l - m)
}

// Term numbers the role changes of a link. The higher term is right.
type Term uint64

// Snapshot is a transaction snapshot as pg_current_snapshot() gives it: 64-bit
// transaction ids with their epoch.
type Snapshot struct {
	Xmin, Xmax uint64
	Xip        []uint64 // in progress, ascending, Xmin ≤ x < Xmax
}

// ParseSnapshot reads `xmin:xmax:xip,xip…`.
func ParseSnapshot(s string) (Snapshot, error) {
	var snap Snapshot
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return snap, fmt.Errorf("snapshot %q: want xmin:xmax:list", s)
	}
	var err error
	if snap.Xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return snap, fmt.Errorf("snapshot %q: %w", s, err)
	}
	if snap.Xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return snap, fmt.Errorf("snapshot %q: %w", s, err)
	}
	if parts[2] == "" {
		return snap, nil
	}
	for _, x := range strings.Split(parts[2], ",") {
		v, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			return snap, fmt.Errorf("snapshot %q: %w", s, err)
		}
		snap.Xip = append(snap.Xip, v)
	}
	return snap, nil
}

// String writes the form that ParseSnapshot reads.
func (s Snapshot) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d:", s.Xmin, s.Xmax)
	for i, x := range s.Xip {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(x, 10))
	}
	return b.String()
}

// FullXID gives the 32-bit id of a top-level transaction the epoch in which it
// lies nearest to the snapshot. PostgreSQL keeps all living ids within 2^31 of
// each other, so the answer is exact for a transaction that the slot can still send.
func (s Snapshot) FullXID(xid uint32) uint64 {
	delta := int32(xid - uint32(s.Xmax))
	return uint64(int64(s.Xmax) + int64(delta))
}

// Sees reports whether the changes of the committed top-level transaction xid
// are visible in the snapshot. Subtransaction ids must not be asked for: the
// snapshot lists top-level ids alone.
func (s Snapshot) Sees(xid uint32) bool {
	full := s.FullXID(xid)
	if full < s.Xmin {
		return true
	}
	if full >= s.Xmax {
		return false
	}
	for _, x := range s.Xip {
		if x == full {
			return false
		}
	}
	return true
}

// Ack tells the primary how far the secondary is. Durable alone may be confirmed
// to the replication slot.
type Ack struct {
	Received LSN // read from the stream
	Durable  LSN // flushed to the secondary's disk; a restart does not lose it
	Visible  LSN // committed on the secondary, seen by its readers
}

// Sink takes frames in order. Send blocks while the receiver is behind; that is
// the only back-pressure there is. The frame's byte slices may be reused after
// Send returned.
type Sink interface {
	Send(ctx context.Context, f Frame) error
}

// Frame is one of the types of this package that have a frame kind.
type Frame interface{ kind() byte }

// Start is the secondary's first frame: who asks, and from where.
type Start struct {
	Term     Term
	Position LSN // the last position whose data is durable on the secondary
}

// Record is one message of the replication stream, as the server sent it.
type Record struct {
	LSN     LSN    // WAL start of the message
	Payload []byte // pgoutput, not decoded
}

// Data is a batch of records, in order.
type Data struct{ Records []Record }

// Heartbeat tells where the primary is, at least once a second.
type Heartbeat struct {
	End        LSN       // everything before End that concerns the link was sent before this frame
	At         time.Time // the primary's clock
	Snapshot   string    // pg_current_snapshot() at about At; "" when not taken
	LagBytes   uint64    // as the primary counts them
	LagSeconds float64
}

// SequenceValue is a sequence's state on the primary.
type SequenceValue struct {
	Schema, Name string
	Last         int64
	Called       bool
}

// Sequences are the states that changed since the last such frame.
type Sequences struct{ Values []SequenceValue }

// SeedRequest is the secondary's first frame on a seeding stream. With an empty
// Export it opens a table: the answer is a SeedStart, and the stream stays open
// for as long as the snapshot is needed. With Export set it asks for the rows of
// the heap pages [FirstPage, EndPage) under that snapshot.
type SeedRequest struct {
	OID                uint32
	Export             string
	FirstPage, EndPage uint32
}

// SeedStart opens the copy of one table: its definition and the snapshot under
// which its rows are read.
type SeedStart struct {
	OID          uint32
	Schema, Name string
	Columns      []string // in the order of the rows
	Snapshot     Snapshot
	Export       string // the exported snapshot's id, for SeedRequest
	LSN          LSN    // every transaction that Snapshot sees was committed before LSN
	Bytes        int64  // size on disk, TOAST included
	Rows         int64  // the planner's estimate; -1 if unknown
	Pages        uint32 // of the heap, when the snapshot was taken
	ChunkPages   uint32 // how many of them one SeedRequest should ask for
	// Defined are the transactions, as far as the catalogs still name them, that gave
	// the table its name and columns.
	Defined []uint32
}

// SeedChunk is a piece of COPY's text output; a row may cross chunks of one stream.
type SeedChunk struct{ Data []byte }

// SeedEnd closes the rows of one SeedRequest.
type SeedEnd struct{ Rows int64 }

const (
	kindStart byte = iota + 1
	kindAck
	kindData
	kindHeartbeat
	kindSequences
	kindSeedRequest
	kindSeedStart
	kindSeedChunk
	kindSeedEnd
)

func (Start) kind() byte       { return kindStart }
func (Ack) kind() byte         { return kindAck }
func (Data) kind() byte        { return kindData }
func (Heartbeat) kind() byte   { return kindHeartbeat }
func (Sequences) kind() byte   { return kindSequences }
func (SeedRequest) kind() byte { return kindSeedRequest }
func (SeedStart) kind() byte   { return kindSeedStart }
func (SeedChunk) kind() byte   { return kindSeedChunk }
func (SeedEnd) kind() byte     { return kindSeedEnd }

// MarshalJSON writes a snapshot in PostgreSQL's text form.
func (s Snapshot) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// UnmarshalJSON reads PostgreSQL's text form.
func (s *Snapshot) UnmarshalJSON(b []byte) error {
	var t string
	if err := json.Unmarshal(b, &t); err != nil {
		return err
	}
	v, err := ParseSnapshot(t)
	if err != nil {
		return err
	}
	*s = v
	return nil
}
