// Package peerpb is what two agents say to each other once they trust each other,
// generated from peer.proto. Links, frames and problems are opaque in it. It must
// never be used outside of package peer: its types are not domain types.
package peerpb

//go:generate protoc -I ../../.. --go_out=../../.. --go_opt=paths=source_relative --go-grpc_out=../../.. --go-grpc_opt=paths=source_relative internal/peer/peerpb/peer.proto
