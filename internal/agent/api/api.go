// Package api is how people and programs speak to an agent: the wire types,
// the HTTP server with its OpenAPI description, and the typed client that the
// command line uses.
//
// The package declares what it needs of the agent as Service and knows nothing
// of links, peers or PostgreSQL beyond the words of its own types. The server
// checks the shape of a request, never its sense; that is the Service's work.
// It must never listen where another user of the machine, or another machine,
// could speak to it without a token, and never put a secret into an answer.
//
// The JSON is a contract: field names are snake_case, durations are numbers of
// seconds in fields that end in _seconds, log positions have PostgreSQL's text
// form, times are RFC 3339 in UTC. Fields are added, never renamed or given
// another meaning. A list is never null. A number that is not known is null,
// not zero.
package api

import (
	"context"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// Service is what the agent does for its users. The server calls it from many
// goroutines at once.
//
// A method that changes something gets a context that outlives the client: a
// closed terminal must not stop a failover halfway. It ends when the agent
// stops. The context of a method that only reads ends with the client.
//
// Errors should be problems; Classify says how their codes are understood. An
// operation that its own validation refuses returns *Blocked, or the error of
// problem.Findings.
type Service interface {
	Instance(ctx context.Context) (Instance, error)
	Certificate(ctx context.Context) (Certificate, error)
	// RotateCertificate gives the peers a new certificate, and then uses it.
	RotateCertificate(ctx context.Context) (Rotation, error)

	Peers(ctx context.Context) (PeerList, error)
	// AddPeer trusts an instance. The server has already read the certificate,
	// filled in the name, and refused the instance's own certificate.
	AddPeer(ctx context.Context, peer AddPeer) (Peer, error)
	// SetPeer changes a trusted instance's address and grant; its certificate stays.
	SetPeer(ctx context.Context, name string, change SetPeer) (Peer, error)
	RemovePeer(ctx context.Context, name string) error
	// TestPeer walks the real way to a peer. A step that fails is a result,
	// not an error.
	TestPeer(ctx context.Context, name string) ([]PeerTestStep, error)

	// Links lists the links without the progress of each table.
	Links(ctx context.Context) ([]Link, error)
	Link(ctx context.Context, name string) (Link, error)
	// ValidateLink checks what CreateLink would check and changes nothing. With
	// an empty Name or Peer it checks what does not depend on them.
	ValidateLink(ctx context.Context, spec LinkSpec) (problem.Findings, error)
	// CreateLink returns when the link stands and its seeding runs.
	CreateLink(ctx context.Context, spec LinkSpec) (Link, error)
	PauseLink(ctx context.Context, name string) error
	ResumeLink(ctx context.Context, name string) error
	FailoverLink(ctx context.Context, name string, o FailoverOptions) (FailoverResult, error)
	// SetLinkMaxWAL bounds the WAL that the link may hold back on its primary: nil
	// leaves it to that agent's limits.wal_held, 0 sets no bound.
	SetLinkMaxWAL(ctx context.Context, name string, bytes *int64) error
	ResyncLink(ctx context.Context, name string, tables []string) error
	RejoinLink(ctx context.Context, name string) error
	// FollowLink has a secondary compared with the primary that its database has now.
	FollowLink(ctx context.Context, name, primary string) error
	VerifyLink(ctx context.Context, name string, o VerifyOptions) (VerifyReport, error)
	DropLink(ctx context.Context, name string, o DropOptions) (DropResult, error)

	Databases(ctx context.Context) ([]Database, error)
}

// FailoverOptions say how the roles are swapped.
type FailoverOptions struct {
	// Force makes the secondary read-write without the primary.
	Force bool
	// Check changes nothing: it only refuses what this side would refuse.
	Check bool
	// Timeout bounds a planned failover. When the secondary has not caught up
	// by then, the primary opens again and nothing has changed. 0 leaves it to
	// the agent.
	Timeout time.Duration
}

// VerifyOptions say how both sides are compared.
type VerifyOptions struct {
	// Timeout bounds the comparison; 0 means none.
	Timeout time.Duration
}

// DropOptions say what stays when a link goes.
type DropOptions struct {
	// RemoveReplica drops the secondary's database too, if Hawser created it.
	// Otherwise it stays, as an ordinary read-write database.
	RemoveReplica bool
	// Force drops this side even when the other cannot be reached, and opens a replica
	// whose copy is not complete.
	Force bool
}
