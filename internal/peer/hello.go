package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

const (
	alpn = "hawser/1"

	// oldestProtocol to newestProtocol is what this agent speaks behind the hello.
	oldestProtocol = 1
	newestProtocol = protocolS2

	protocolS2 = 2 // streams may be compressed with S2

	maxHello = 16 << 10 // of each message
	maxWord  = 64       // of a name or version that the other side tells
)

// hello is each side's first message. All of it is claimed and nothing proved: it
// is shown to people, and the protocol's versions are compared.
type hello struct {
	Name    string `json:"name"`
	Version string `json:"version"` // of the agent
	Oldest  int    `json:"oldest"`  // protocol
	Newest  int    `json:"newest"`
	Test    bool   `json:"test,omitempty"` // dialled by Node.Test; never becomes the session
}

// verdict is each side's second message: the code of its refusal, or nothing.
type verdict struct {
	Refusal refusal `json:"refusal,omitempty"`
}

// decision is said third, by the side with the lower fingerprint alone: whether
// this connection becomes the session. Serials grow within an epoch, which is one
// run of the agent that decides.
type decision struct {
	Use    bool   `json:"use"`
	Epoch  uint64 `json:"epoch"`
	Serial uint64 `json:"serial"`
}

// greeting is what a handshake found out.
type greeting struct {
	conn   *tls.Conn
	cert   *x509.Certificate
	print  string // its fingerprint
	own    string // the fingerprint that we showed
	hello  hello
	ours   refusal // of them, by us
	theirs refusal // of us, by them
}

// protocol is the newest that both sides speak.
func (g *greeting) protocol() int { return min(newestProtocol, g.hello.Newest) }

func tlsConfig(id *Identity) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		NextProtos:   []string{alpn},
		ClientAuth:   tls.RequireAnyClientCert,
		// The handshake proves that the other side holds the key of the certificate
		// that it shows. Whether it is the one that was given is judged behind the
		// handshake, where the reason of a refusal can be told.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
	}
}

// errTLS is a failure before the hello: the other side may not be Hawser at all.
type errTLS struct{ err error }

func (e *errTLS) Error() string { return "TLS: " + e.err.Error() }
func (e *errTLS) Unwrap() error { return e.err }

// greet makes the TLS connection over w and exchanges hello and verdict, all until
// deadline, which stays set on w. A greeting without an error may be a refusal. On
// an error the caller closes w.
func greet(ctx context.Context, w *wire, id *Identity, mine hello, deadline time.Time, judge func(*greeting) refusal) (*greeting, error) {
	if err := w.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	conn := tls.Server(w, tlsConfig(id))
	if w.dialled {
		conn = tls.Client(w, tlsConfig(id))
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, &errTLS{err}
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != alpn || len(state.PeerCertificates) == 0 {
		return nil, &errTLS{errNotHawser}
	}
	g := &greeting{conn: conn, cert: state.PeerCertificates[0], own: id.Fingerprint()}
	g.print = fingerprint(g.cert)
	if err := say(conn, mine); err != nil {
		return nil, fmt.Errorf("say hello: %w", err)
	}
	if err := hear(conn, &g.hello); err != nil {
		// A server that turns our certificate away says so only now (TLS 1.3).
		return nil, fmt.Errorf("hear hello: %w", err)
	}
	g.hello.Name, g.hello.Version = word(g.hello.Name), word(g.hello.Version)
	g.ours = judge(g)
	if err := say(conn, verdict{g.ours}); err != nil {
		return nil, fmt.Errorf("say the verdict: %w", err)
	}
	var v verdict
	if err := hear(conn, &v); err != nil {
		return nil, fmt.Errorf("hear the verdict: %w", err)
	}
	g.theirs = refusal(word(string(v.Refusal)))
	return g, nil
}

var errNotHawser = errors.New("the other side speaks TLS, but not Hawser's protocol")

// say writes a message behind its length (4 bytes, big-endian).
func say(w io.Writer, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// hear reads a message. Fields that it does not know are ignored: a newer agent
// may say more.
func hear(r io.Reader, message any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxHello {
		return fmt.Errorf("a message of %d bytes, the limit is %d", n, maxHello)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, message)
}

// word makes text of the other side fit to be shown: short, and no control
// characters that a terminal would obey.
func word(s string) string {
	n := 0
	return strings.Map(func(r rune) rune {
		n++
		if n > maxWord || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}
