// Package peer is the connection between two instances: who they are, that they
// trust each other, and one TCP connection that carries calls and streams both ways.
//
// # From the wire up
//
// Trust is a certificate that a person gave: exactly this one, whoever signed it.
// Mutual TLS 1.3 proves that the other side holds its key. Behind it each side
// says hello and then its verdict on the other's certificate, so that a refusal has
// its reason on both sides. Only when both verdicts are good does yamux begin, and
// over it gRPC: each side serves the streams that it accepts and calls over one
// that it opens, so it is all the same who dialled. Frames are compressed by one
// encoder for each stream and direction, zstd or, where the round trip is that of one
// site, the cheaper S2, and cut into packets.
//
// # One session a peer
//
// When both dial at once, the side with the lower fingerprint decides which
// connection is used, numbers it, and tells the other; the higher number wins on
// both sides. It keeps a session that still answers against one dialled from the
// other end, and gives way to a newer one from the same end: who dials again has
// lost what he had.
//
// A session ends when nothing was read from it for a while (each side pings), when
// its certificate is no longer trusted, or when Run ends. With it end all its calls
// and streams, and their contexts. Nothing is repeated here: callers know whether
// they may ask again.
//
// # What it must never do
//
// It is blind to what it carries: it declares the handler that it calls. It must
// never let an unproven name, or a length from the wire, have any effect, nor show
// text that a stranger sent: a verdict is a code, and each side words it itself.
package peer
