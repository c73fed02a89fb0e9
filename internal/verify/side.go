package verify

import (
	"context"

	"github.com/hawser/hawser/internal/problem"
)

// Side is one of the two databases, at its position. Local is the one at hand;
// the other is reached through whatever carries JSON.
type Side interface {
	// Inventory tells what is there. It is asked once.
	Inventory(ctx context.Context) (Inventory, error)
	// Sequences tells the sequences as they are now, which no snapshot fixes.
	Sequences(ctx context.Context) ([]Sequence, error)
	// Digest hashes whole tables; the answer has one digest for each, in order.
	Digest(ctx context.Context, r DigestRequest) ([]TableDigest, error)
	// Buckets hashes parts of one table.
	Buckets(ctx context.Context, r BucketsRequest) ([]Bucket, error)
	// Rows lists the rows in some buckets.
	Rows(ctx context.Context, r RowsRequest) ([]Row, error)
}

// Inventory is what a side has.
type Inventory struct {
	Version  int     `json:"version"`  // server_version_num
	Encoding string  `json:"encoding"` // of the server
	Probe    string  `json:"probe"`    // the hash of a fixed text; tells byte orders apart
	Tables   []Table `json:"tables"`
	Schema   []Fact  `json:"schema"`
	// LeftOut has rows too, which the link does not carry.
	LeftOut []LeftOut `json:"left_out,omitempty"`
	// Findings say what could not be read.
	Findings problem.Findings `json:"findings,omitempty"`
}

// Table is one table of rows: an ordinary table or a partition that has no
// partitions itself. Rows of tables that inherit from it do not count as its own.
type Table struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Columns []string `json:"columns"`       // ordered by name
	Key     []string `json:"key,omitempty"` // of the primary key, or of a unique index without NULLs
	Bytes   int64    `json:"bytes"`         // on disk, about
}

// LeftOut is a relation whose rows are not compared, since a link does not carry them.
// Its definition is.
type LeftOut struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Why    Why    `json:"why"`
}

// Why rows are not carried.
type Why string

// The reasons. A materialized view is refreshed on the secondary, by itself.
const (
	Refreshed Why = "materialized view"
	Foreign   Why = "foreign table"
	Unlogged  Why = "unlogged table"
	Internal  Why = "extension table"
	NotChosen Why = "unchosen table"
)

// Method is how rows are hashed; it must be the same on both sides.
type Method struct {
	Portable bool `json:"portable,omitempty"` // for sides of different encoding or byte order
	Wide     bool `json:"wide,omitempty"`     // for rows whose text is too large to be built
	// UserPath is for tables with an index whose functions name things without their
	// schema: the server calls them to plan the scan.
	UserPath bool `json:"user_path,omitempty"`
}

// DigestRequest asks for the hashes of tables. Columns says which columns count.
type DigestRequest struct {
	Tables []Table `json:"tables"`
	Method Method  `json:"method"`
}

// TableDigest is the number of rows of a table and their hash, or a problem.
type TableDigest struct {
	Schema  string           `json:"schema"`
	Name    string           `json:"name"`
	Rows    int64            `json:"rows"`
	Hash    Hash             `json:"hash"`
	Problem *problem.Problem `json:"problem,omitempty"` // why it could not be read
}

// BucketsRequest asks for the hashes of a table's buckets. A row's bucket at a
// depth is given by bucketBits × (depth+1) bits of the hash of its key, or of the
// whole row where there is no key. Only rows in the buckets Within of the depth
// above are looked at; at depth 0 all are.
type BucketsRequest struct {
	Table  Table   `json:"table"`
	Method Method  `json:"method"`
	Depth  int     `json:"depth"`
	Within []int64 `json:"within,omitempty"`
}

// Bucket is the rows of a table whose keys' hashes agree in some bits.
type Bucket struct {
	ID   int64 `json:"id"`
	Rows int64 `json:"rows"`
	Hash Hash  `json:"hash"`
}

// RowsRequest asks for the rows of some buckets of a depth.
type RowsRequest struct {
	Table   Table   `json:"table"`
	Method  Method  `json:"method"`
	Depth   int     `json:"depth"`
	Buckets []int64 `json:"buckets"`
	Limit   int     `json:"limit"` // of rows in the answer
}

// Row is one row by its key and hashes, or, where there is no key, all rows that
// are equal.
type Row struct {
	Key     []string `json:"key,omitempty"`
	Text    string   `json:"text,omitempty"` // where there is no key: the begin of the row's text
	Count   int64    `json:"count"`
	Hash    Hash     `json:"hash"`
	Columns []int32  `json:"columns,omitempty"` // a short hash of each column, where there is a key
}

// Sequence is the state of a sequence.
type Sequence struct {
	Schema    string `json:"schema"`
	Name      string `json:"name"`
	Last      int64  `json:"last"`
	Called    bool   `json:"called"`
	Increment int64  `json:"increment"`
}

// Fact is one thing that a schema says. What is deparsed by the server may read
// differently in another major version and mean the same.
type Fact struct {
	Kind     string `json:"kind"`
	Object   string `json:"object"`
	Text     string `json:"text"`
	Deparsed bool   `json:"deparsed,omitempty"`
}
