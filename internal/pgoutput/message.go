// Package pgoutput decodes the messages of PostgreSQL's built-in output plugin,
// as the documentation's chapter "Logical Replication Message Formats" describes
// them, in protocol versions 1 to 4.
//
// It is pure: bytes go in, a message or an error comes out. Every length is
// checked before it is believed, bytes that are left over are an error, and no
// input makes it panic or take memory beyond a small multiple of its own size.
// It must never guess: what it does not know, it refuses.
package pgoutput

import "time"

// LSN is a position in the write-ahead log.
type LSN uint64

// Message is a pointer to one of the types below that have a message kind. The
// Decoder's comment says how long it is valid.
type Message interface{ message() }

// Begin starts a transaction.
type Begin struct {
	FinalLSN   LSN // of its commit record
	CommitTime time.Time
	XID        uint32
}

// Commit ends a transaction.
type Commit struct {
	CommitLSN, EndLSN LSN
	CommitTime        time.Time
}

// Origin names where a transaction came from.
type Origin struct {
	CommitLSN LSN
	Name      string
}

// Relation defines a table before its first change, and after it has changed.
type Relation struct {
	SubXID          uint32 // in a stream block only: the transaction, top-level or not
	ID              uint32
	Namespace, Name string // pg_catalog comes as the empty string: here by its name
	ReplicaIdentity byte   // d, n, f or i, as in pg_class.relreplident
	Columns         []RelationColumn
}

// RelationColumn is a column of a Relation.
type RelationColumn struct {
	Key      bool // part of the replica identity
	Name     string
	TypeOID  uint32
	Modifier int32
}

// Type names the type of a column that is not built in. For a domain, OID is the
// domain's, and the name is that of the type which it is made of.
type Type struct {
	SubXID          uint32
	OID             uint32
	Namespace, Name string
}

// Kind is what a column of a row holds.
type Kind byte

// Kinds, as the protocol writes them.
const (
	Null      Kind = 'n'
	Unchanged Kind = 'u' // a TOASTed value that did not change, and was not sent
	Text      Kind = 't'
	Binary    Kind = 'b'
)

// Column is one column of a row. Data aliases the message that was decoded.
type Column struct {
	Kind Kind
	Data []byte
}

// Insert is a new row.
type Insert struct {
	SubXID     uint32
	RelationID uint32
	New        []Column
}

// Update is a changed row. Old is empty when the replica identity did not change
// and is not full.
type Update struct {
	SubXID     uint32
	RelationID uint32
	OldKind    byte // 'K': Old holds the key alone; 'O': the whole row; 0: no Old
	Old, New   []Column
}

// Delete is a removed row.
type Delete struct {
	SubXID     uint32
	RelationID uint32
	OldKind    byte // 'K' or 'O'
	Old        []Column
}

// Truncate empties tables, all in one command. Those that CASCADE added are listed.
type Truncate struct {
	SubXID                   uint32
	Cascade, RestartIdentity bool
	RelationIDs              []uint32
}

// LogicalMessage is what pg_logical_emit_message wrote. One that is not
// transactional comes before the transaction in which it was written, if at all.
type LogicalMessage struct {
	XID           uint32 // in a stream block only, and always that of the top-level transaction
	Transactional bool
	LSN           LSN
	Prefix        string
	Content       []byte // aliases the message that was decoded
}

// StreamStart opens a block of changes of a transaction that is not committed yet.
type StreamStart struct {
	XID   uint32 // of the top-level transaction
	First bool
}

// StreamStop closes a block.
type StreamStop struct{}

// StreamCommit commits a transaction that was streamed.
type StreamCommit struct {
	XID               uint32
	CommitLSN, EndLSN LSN
	CommitTime        time.Time
}

// StreamAbort ends a transaction that was streamed, or one of its subtransactions.
type StreamAbort struct {
	XID, SubXID uint32
	// With protocol 4 and parallel streaming; else zero.
	AbortLSN  LSN
	AbortTime time.Time
}

// Prepared is one of the messages of two-phase commit. BeginPrepare stands where
// a Begin would, Prepare or StreamPrepare where a commit would; the transaction's
// end comes later and stands alone.
type Prepared struct {
	Action   PreparedAction
	LSN      LSN // of the PREPARE or COMMIT PREPARED record; of a rollback: the end of the PREPARE record
	EndLSN   LSN // the end of the record that the message tells of
	Time     time.Time
	XID      uint32
	GID      string
	Prepared time.Time // of a rollback: when it had been prepared
}

// PreparedAction tells the messages of two-phase commit apart.
type PreparedAction byte

// Actions, as the protocol writes them.
const (
	BeginPrepare     PreparedAction = 'b'
	Prepare          PreparedAction = 'P'
	CommitPrepared   PreparedAction = 'K'
	RollbackPrepared PreparedAction = 'r'
	StreamPrepare    PreparedAction = 'p'
)

func (*Begin) message()          {}
func (*Commit) message()         {}
func (*Origin) message()         {}
func (*Relation) message()       {}
func (*Type) message()           {}
func (*Insert) message()         {}
func (*Update) message()         {}
func (*Delete) message()         {}
func (*Truncate) message()       {}
func (*LogicalMessage) message() {}
func (*StreamStart) message()    {}
func (*StreamStop) message()     {}
func (*StreamCommit) message()   {}
func (*StreamAbort) message()    {}
func (*Prepared) message()       {}

// SubXID returns the transaction, top-level or not, that made a change which was
// decoded in a stream block; ok is false for other messages, and for logical ones, of
// which the server does not tell it.
func SubXID(m Message) (xid uint32, ok bool) {
	switch m := m.(type) {
	case *Relation:
		return m.SubXID, m.SubXID != 0
	case *Type:
		return m.SubXID, m.SubXID != 0
	case *Insert:
		return m.SubXID, m.SubXID != 0
	case *Update:
		return m.SubXID, m.SubXID != 0
	case *Delete:
		return m.SubXID, m.SubXID != 0
	case *Truncate:
		return m.SubXID, m.SubXID != 0
	}
	return 0, false
}
