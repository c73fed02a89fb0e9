package api

import (
	"time"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// Kind tells who runs an instance's PostgreSQL.
type Kind string

// The kinds of instance.
const (
	KindServer  Kind = "server"
	KindManaged Kind = "managed"
)

// Tier is the service tier of a managed instance.
type Tier string

// TierGeneralPurpose is an instance of one node.
const TierGeneralPurpose Tier = "general-purpose"

// Role is what one side of a link does.
type Role string

// The roles.
const (
	RolePrimary   Role = "primary"
	RoleSecondary Role = "secondary"
)

// Mode says whether a commit on the primary waits for the secondary.
type Mode string

// ModeAsync: it does not wait.
const ModeAsync Mode = "async"

// Direction is a way of data between an instance and its peer.
type Direction string

// The directions.
const (
	DirectionBoth     Direction = "both"
	DirectionToPeer   Direction = "to-peer"
	DirectionFromPeer Direction = "from-peer"
)

// State is where a link stands.
type State string

// The states of a link.
const (
	StateSeeding      State = "seeding"
	StateCatchingUp   State = "catching-up"
	StateSynchronized State = "synchronized"
	StatePaused       State = "paused"
	StateSuspended    State = "suspended"
	StateDisconnected State = "disconnected"
	StateFailingOver  State = "failing-over"
	StateDiverged     State = "diverged"
	StateDropped      State = "dropped"
)

// PostgresState tells whether an instance's PostgreSQL can be used.
type PostgresState string

// The states of PostgreSQL.
const (
	PostgresRunning     PostgresState = "running"
	PostgresStarting    PostgresState = "starting"
	PostgresUnreachable PostgresState = "unreachable"
)

// Instance is one PostgreSQL cluster and the agent in front of it.
type Instance struct {
	Name          string    `json:"name" doc:"The instance's name"`
	Kind          Kind      `json:"kind" enum:"server,managed" doc:"Who runs its PostgreSQL: somebody else (server) or the agent (managed)"`
	Tier          Tier      `json:"tier,omitempty" enum:"general-purpose" doc:"Service tier of a managed instance"`
	Version       string    `json:"version" doc:"Version of the agent"`
	Endpoint      string    `json:"endpoint" doc:"Address on which the agent listens for its peers"`
	Fingerprint   string    `json:"fingerprint" doc:"SHA-256 of the instance's certificate"`
	StartedAt     time.Time `json:"started_at" doc:"When the agent started"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	Postgres      Postgres  `json:"postgres"`
}

// Postgres is an instance's cluster as its agent sees it.
type Postgres struct {
	Version  string           `json:"version,omitempty" doc:"As PostgreSQL tells it, for instance 17.2" example:"17.2"`
	Address  string           `json:"address" doc:"Where the agent reaches it; never holds a secret"`
	State    PostgresState    `json:"state" enum:"running,starting,unreachable"`
	Cause    *problem.Problem `json:"cause,omitempty" doc:"Why it is not running"`
	Since    *time.Time       `json:"since,omitempty" doc:"When it came into this state"`
	Restarts int              `json:"restarts" doc:"How often the agent restarted it after a crash"`
}

// Certificate is an instance's public key as its peers take it.
type Certificate struct {
	Name        string    `json:"name" doc:"The instance's name"`
	Fingerprint string    `json:"fingerprint" doc:"SHA-256 of the certificate"`
	NotAfter    time.Time `json:"not_after" doc:"The certificate is good until then"`
	PEM         string    `json:"pem" doc:"The certificate"`
}

// Rotation is the outcome of a change of the certificate.
type Rotation struct {
	Certificate Certificate `json:"certificate" doc:"The new one"`
	Peers       []string    `json:"peers" nullable:"false" doc:"The instances that took it"`
}

// PeerList holds those that an instance trusts and those that it refused.
type PeerList struct {
	Peers   []Peer        `json:"peers" nullable:"false"`
	Refused []RefusedPeer `json:"refused" nullable:"false" doc:"Instances that lately tried to connect and are not trusted"`
}

// Peer is an instance that this one trusts.
type Peer struct {
	Name             string           `json:"name"`
	Fingerprint      string           `json:"fingerprint" doc:"SHA-256 of its certificate"`
	NotAfter         time.Time        `json:"not_after" doc:"Its certificate is good until then"`
	Address          string           `json:"address,omitempty" doc:"Where this instance dials it; empty when this instance waits for it to dial"`
	Connected        bool             `json:"connected"`
	DialledBy        string           `json:"dialled_by,omitempty" enum:"us,them" doc:"Who opened the connection"`
	RemoteAddress    string           `json:"remote_address,omitempty" doc:"The other end of the connection"`
	Since            *time.Time       `json:"since,omitempty" doc:"When it was connected or lost"`
	Version          string           `json:"version,omitempty" doc:"Version of its agent"`
	RoundTripSeconds *float64         `json:"round_trip_seconds" doc:"null when not connected, or not measured yet"`
	BytesSent        uint64           `json:"bytes_sent" doc:"On the wire, since the agent started"`
	BytesReceived    uint64           `json:"bytes_received" doc:"On the wire, since the agent started"`
	Cause            *problem.Problem `json:"cause,omitempty" doc:"Why it is not connected"`
	Databases        []string         `json:"databases" nullable:"false" doc:"Its grant: patterns of the databases that links with it may concern"`
	Direction        Direction        `json:"direction" enum:"both,to-peer,from-peer" doc:"Its grant: which way their data may flow; to-peer means that this instance is the primary"`
	Changed          []string         `json:"changed,omitempty" doc:"In the answer to add-peer and set-peer, of a peer that was known: what is other than before"`
}

// RefusedPeer is an instance that was turned away.
type RefusedPeer struct {
	Name        string           `json:"name,omitempty" doc:"The name that it claims; nothing proves it"`
	Fingerprint string           `json:"fingerprint,omitempty" doc:"SHA-256 of the certificate that it showed"`
	Address     string           `json:"address" doc:"Where it came from"`
	Cause       *problem.Problem `json:"cause,omitempty" doc:"Why it was refused"`
	At          time.Time        `json:"at" doc:"When it was last refused"`
	Count       int              `json:"count,omitempty" doc:"How often"`
}

// AddPeer is the request to trust an instance.
type AddPeer struct {
	Name        string `json:"name,omitempty" maxLength:"64" doc:"Empty takes the name in the certificate"`
	Certificate string `json:"certificate" minLength:"1" maxLength:"65536" doc:"PEM, as hawser cert show prints it there"`
	Address     string `json:"address,omitempty" maxLength:"300" doc:"host:port of its endpoint. Empty keeps the one that is known; of a new peer, waits until it dials" example:"mi-west.example.com:5022"`
	NoAddress   bool   `json:"no_address,omitempty" doc:"Forget its address, and wait until it dials"`

	Databases []string  `json:"databases,omitempty" maxItems:"1000" nullable:"false" doc:"Patterns of the databases that links with it may concern, with * and ?, folded to lower case outside of double quotes. Empty keeps what is granted; of a new peer, every database" example:"sales_*"`
	Direction Direction `json:"direction,omitempty" enum:"both,to-peer,from-peer" doc:"Which way their data may flow; to-peer means that this instance is the primary. A failover needs both. Empty keeps what is granted; of a new peer, both"`
}

// SetPeer changes what is said of a peer that is trusted; what is empty stays as it is.
type SetPeer struct {
	Address   string    `json:"address,omitempty" maxLength:"300" doc:"host:port of its endpoint" example:"mi-west.example.com:5022"`
	NoAddress bool      `json:"no_address,omitempty" doc:"Forget its address, and wait until it dials"`
	Databases []string  `json:"databases,omitempty" maxItems:"1000" nullable:"false" doc:"Patterns of the databases that links with it may concern, in place of those before" example:"sales_*"`
	Direction Direction `json:"direction,omitempty" enum:"both,to-peer,from-peer" doc:"Which way their data may flow"`
}

// PeerTestStep is one step of the way to a peer.
type PeerTestStep struct {
	Name            string           `json:"name" doc:"What was tried"`
	OK              bool             `json:"ok"`
	Detail          string           `json:"detail,omitempty" doc:"What was found"`
	DurationSeconds float64          `json:"duration_seconds"`
	Problem         *problem.Problem `json:"problem,omitempty" doc:"Why the step failed, with its remedy"`
}

// LinkSpec is the request for a link.
type LinkSpec struct {
	Name     string `json:"name" minLength:"1" maxLength:"64" doc:"Name of the new link"`
	Database string `json:"database" minLength:"1" maxLength:"63" doc:"The database to link; it has the same name on both sides"`
	Peer     string `json:"peer" minLength:"1" maxLength:"64" doc:"The instance at the other end"`
	Role     Role   `json:"role,omitempty" enum:"primary,secondary" default:"primary" doc:"What this instance will be"`

	Tables        []string `json:"tables,omitempty" maxItems:"1000" nullable:"false" doc:"Carry the rows of the tables that match one of these patterns alone; empty carries all. A pattern is SCHEMA.TABLE with * and ?, folded to lower case outside of double quotes" example:"sales.order_*"`
	ExcludeTables []string `json:"exclude_tables,omitempty" maxItems:"1000" nullable:"false" doc:"Do not carry the rows of tables that match one of these patterns"`

	MaxWALBytes *int64 `json:"max_wal_bytes,omitempty" minimum:"0" doc:"WAL that the link may hold back on the primary before it is given up; absent: limits.wal_held of the primary's agent, 0: no bound"`
}

// Link is one database tied to another instance.
type Link struct {
	Name         string           `json:"name"`
	ID           string           `json:"id" doc:"The same on both sides" example:"9f86d081884c7d65"`
	Database     string           `json:"database"`
	Peer         string           `json:"peer" doc:"The instance at the other end"`
	Role         Role             `json:"role" enum:"primary,secondary" doc:"What this instance is"`
	Term         frame.Term       `json:"term" doc:"Grows at every change of roles"`
	State        State            `json:"state" enum:"seeding,catching-up,synchronized,paused,suspended,disconnected,failing-over,diverged,dropped"`
	Cause        *problem.Problem `json:"cause,omitempty" doc:"Why it is in this state"`
	Since        time.Time        `json:"since" doc:"When it came into this state"`
	CreatedAt    time.Time        `json:"created_at"`
	Mode         Mode             `json:"mode" enum:"async"`
	LagBytes     *uint64          `json:"lag_bytes" doc:"WAL between commit on the primary and visible on the secondary; null when not known"`
	LagSeconds   *float64         `json:"lag_seconds" doc:"The same in time; null when not known"`
	Position     Position         `json:"position"`
	WALHeldBytes *uint64          `json:"wal_held_bytes" doc:"WAL that the primary keeps for the link; null when not known"`
	MaxWALBytes  *uint64          `json:"max_wal_bytes" doc:"WAL that it may keep before the link is given up; 0: no bound, null: limits.wal_held of the primary's agent, told there"`
	Slot         string           `json:"slot,omitempty" doc:"The replication slot on the primary"`
	Seeding      *Seeding         `json:"seeding,omitempty" doc:"The initial copy, while it runs and after"`
	Failover     *FailoverResult  `json:"failover,omitempty" doc:"The running or the last failover"`
	Findings     problem.Findings `json:"findings,omitempty" nullable:"false" doc:"What to know while the link runs, such as objects that it can't carry"`

	Tables        []string `json:"tables,omitempty" nullable:"false" doc:"Patterns of the tables whose rows it carries; empty: all"`
	ExcludeTables []string `json:"exclude_tables,omitempty" nullable:"false" doc:"Patterns of the tables whose rows it does not carry"`
}

// Position tells how far a link is.
type Position struct {
	Sent     frame.LSN `json:"sent" doc:"Sent by the primary" example:"0/16B3748"`
	Received frame.LSN `json:"received" doc:"Read by the secondary"`
	Durable  frame.LSN `json:"durable" doc:"On the secondary's disk"`
	Visible  frame.LSN `json:"visible" doc:"Seen by the secondary's readers"`
}

// Seeding is the progress of an initial copy. Totals of rows are estimates.
type Seeding struct {
	BytesTotal         int64           `json:"bytes_total"`
	BytesDone          int64           `json:"bytes_done"`
	RowsTotal          int64           `json:"rows_total" doc:"The planner's estimate"`
	RowsDone           int64           `json:"rows_done"`
	TablesTotal        int             `json:"tables_total"`
	TablesDone         int             `json:"tables_done"`
	RateBytesPerSecond float64         `json:"rate_bytes_per_second"`
	ETASeconds         *float64        `json:"eta_seconds" doc:"null when it can't be told yet"`
	Tables             []TableProgress `json:"tables,omitempty" nullable:"false" doc:"Only when one link is asked for"`
}

// TableState is how far the copy of one table is.
type TableState string

// The states of a table.
const (
	TablePending TableState = "pending"
	TableCopying TableState = "copying"
	TableLoaded  TableState = "loaded"
	TableLive    TableState = "live"
)

// TableProgress is the copy of one table.
type TableProgress struct {
	Schema     string     `json:"schema"`
	Name       string     `json:"name"`
	State      TableState `json:"state" enum:"pending,copying,loaded,live"`
	BytesTotal int64      `json:"bytes_total"`
	BytesDone  int64      `json:"bytes_done"`
	RowsTotal  int64      `json:"rows_total" doc:"The planner's estimate; -1 when it has none"`
	RowsDone   int64      `json:"rows_done"`
}

// FailoverResult tells what a failover did, or has done so far.
type FailoverResult struct {
	Link       string          `json:"link"`
	Forced     bool            `json:"forced"`
	OldPrimary string          `json:"old_primary"`
	NewPrimary string          `json:"new_primary"`
	Term       frame.Term      `json:"term" doc:"The term that began"`
	Phases     []FailoverPhase `json:"phases" nullable:"false" doc:"In their order, as far as they are done"`
	// WriteOutageSeconds is 0 for as long as it is not measured.
	WriteOutageSeconds float64          `json:"write_outage_seconds" doc:"From the fence on the old primary to the opening of the new one"`
	TotalSeconds       float64          `json:"total_seconds"`
	Findings           problem.Findings `json:"findings,omitempty" doc:"What clients of the new primary will miss"`
	StartedAt          time.Time        `json:"started_at"`
	FinishedAt         *time.Time       `json:"finished_at,omitempty" doc:"Absent while it runs"`
	LastApplied        *LastApplied     `json:"last_applied,omitempty" doc:"Of a forced failover: the last transaction of the old primary that the new one has. What the old one committed later is lost to it"`
}

// LastApplied is a transaction of the old primary.
type LastApplied struct {
	Transaction uint32     `json:"transaction,omitempty" doc:"Its id; absent when none was applied in that term"`
	Position    frame.LSN  `json:"position" doc:"Of its commit; without a transaction, where the new primary had begun to follow"`
	Time        *time.Time `json:"time,omitempty" doc:"Of its commit, by the old primary's clock"`
}

// FailoverPhase is one part of a failover.
type FailoverPhase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// DropResult tells what went with a link.
type DropResult struct {
	Dropped                string `json:"dropped" doc:"The link's name"`
	RemoveReplicaRequested bool   `json:"remove_replica_requested"`
	// ReplicaRemoved is nil where only the other instance knows whether Hawser
	// had created its database.
	ReplicaRemoved *bool            `json:"replica_removed" doc:"Whether the secondary's database was dropped: only one that Hawser had created is. null when only the other instance knows"`
	Findings       problem.Findings `json:"findings,omitempty" doc:"What is left of the link, or lacks in a replica that stays"`
}

// VerifyReport is the comparison of both sides at one position. It tells what
// differs, and what could not be compared; what is in neither was the same.
type VerifyReport struct {
	Link     string    `json:"link"`
	Equal    bool      `json:"equal" doc:"Everything was compared, and both sides held the same"`
	Complete bool      `json:"complete" doc:"All that the link carries was compared: the rows of each table, the definitions and the sequences; when it is false and nothing differs, nothing is proved"`
	Position frame.LSN `json:"position" doc:"The primary's position at which they were compared"`

	Tables    []VerifyTable    `json:"tables" nullable:"false" doc:"Every table"`
	Schema    []VerifyObject   `json:"schema" nullable:"false" doc:"Definitions that differ"`
	Sequences []VerifySequence `json:"sequences" nullable:"false" doc:"Sequences whose state differs"`
	LeftOut   []VerifyLeftOut  `json:"left_out" nullable:"false" doc:"What has rows that the link does not carry, and that were not compared therefore; the definitions were"`
	Findings  problem.Findings `json:"findings" nullable:"false" doc:"What could not be compared, tables apart"`

	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds" doc:"How long it took"`
}

// VerifyLeftOut is a relation whose rows the link does not carry.
type VerifyLeftOut struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Why    string `json:"why" example:"unlogged table"`
}

// VerifyObject is an object, or a fact about one, that differs. A side that does not
// have it says nothing.
type VerifyObject struct {
	Kind      string `json:"kind" example:"index"`
	Name      string `json:"name"`
	Primary   string `json:"primary,omitempty"`
	Secondary string `json:"secondary,omitempty"`
	Remedy    string `json:"remedy,omitempty" doc:"What begins a superuser's session on the secondary that repairs it; … stands for the DDL that makes it equal"`
	Uncertain bool   `json:"uncertain,omitempty" doc:"It is a note: servers of different versions may print the same in different words"`
}

// VerifySequence is a sequence whose state differs.
type VerifySequence struct {
	Schema    string         `json:"schema"`
	Name      string         `json:"name"`
	Primary   *SequenceState `json:"primary,omitempty" doc:"Absent when the primary does not have it"`
	Secondary *SequenceState `json:"secondary,omitempty" doc:"Absent when the secondary does not have it"`
	Remedy    string         `json:"remedy,omitempty" doc:"What a superuser sets the secondary's with, there, where it has it"`
}

// SequenceState is where a sequence stands.
type SequenceState struct {
	Last   int64 `json:"last_value"`
	Called bool  `json:"is_called" doc:"false: last_value is the next one, not the last"`
}

// VerifyTable is the comparison of one table.
type VerifyTable struct {
	Schema        string           `json:"schema"`
	Name          string           `json:"name"`
	Compared      bool             `json:"compared" doc:"false when it could not be compared"`
	Equal         bool             `json:"equal" doc:"Compared, and the same"`
	RowsPrimary   int64            `json:"rows_primary"`
	RowsSecondary int64            `json:"rows_secondary"`
	HashPrimary   string           `json:"hash_primary,omitempty"`
	HashSecondary string           `json:"hash_secondary,omitempty"`
	Key           []string         `json:"key,omitempty" nullable:"false" doc:"The columns whose values the differences tell"`
	Differences   []VerifyRow      `json:"differences,omitempty" nullable:"false" doc:"Rows that differ"`
	More          bool             `json:"more,omitempty" doc:"More rows differ than are named"`
	Problem       *problem.Problem `json:"problem,omitempty" doc:"Why the table could not be compared, or what differs"`
}

// VerifyRow is a row that differs; of a table without a key, all rows that are equal
// to each other.
type VerifyRow struct {
	Kind      string   `json:"kind" enum:"missing,extra,different" doc:"missing: on the primary alone; extra: on the secondary alone"`
	Key       []string `json:"key,omitempty" nullable:"false"`
	Columns   []string `json:"columns,omitempty" nullable:"false" doc:"Those that differ, where both sides have the row"`
	Text      string   `json:"text,omitempty" doc:"Where there is no key: the beginning of the row"`
	Primary   int64    `json:"primary" doc:"How many such rows the primary has"`
	Secondary int64    `json:"secondary" doc:"How many such rows the secondary has"`
}

// Database is one database of an instance.
type Database struct {
	Name      string `json:"name"`
	Owner     string `json:"owner"`
	SizeBytes int64  `json:"size_bytes"`
	ReadOnly  bool   `json:"read_only" doc:"Hawser keeps it read-only, being the secondary side of a link"`
	Link      string `json:"link,omitempty" doc:"Its link; empty for an independent database"`

	Maintenance bool  `json:"maintenance,omitempty" doc:"The agent keeps what it remembers in it, so it can't be linked"`
	Role        Role  `json:"role,omitempty" enum:"primary,secondary"`
	State       State `json:"state,omitempty" doc:"The link's state"`
}
