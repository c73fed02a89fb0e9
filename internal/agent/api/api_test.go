package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// stub is a Service of which a test sets what it needs.
type stub struct {
	Service
	own       Certificate
	link      func(name string) (Link, error)
	links     func() ([]Link, error)
	peers     PeerList
	added     AddPeer
	create    func(ctx context.Context, spec LinkSpec) (Link, error)
	validate  func(spec LinkSpec) (problem.Findings, error)
	failover  func(name string, o FailoverOptions) (FailoverResult, error)
	verify    func(ctx context.Context, name string, o VerifyOptions) (VerifyReport, error)
	drop      func(name string, o DropOptions) error
	pauseFail error
}

func (s *stub) Certificate(context.Context) (Certificate, error) { return s.own, nil }
func (s *stub) Peers(context.Context) (PeerList, error)          { return s.peers, nil }
func (s *stub) AddPeer(_ context.Context, p AddPeer) (Peer, error) {
	s.added = p
	return Peer{Name: p.Name, Address: p.Address}, nil
}
func (s *stub) Links(context.Context) ([]Link, error)             { return s.links() }
func (s *stub) Link(_ context.Context, name string) (Link, error) { return s.link(name) }
func (s *stub) PauseLink(_ context.Context, _ string) error       { return s.pauseFail }
func (s *stub) DropLink(_ context.Context, name string, o DropOptions) (DropResult, error) {
	return DropResult{Dropped: name, RemoveReplicaRequested: o.RemoveReplica}, s.drop(name, o)
}
func (s *stub) CreateLink(ctx context.Context, spec LinkSpec) (Link, error) {
	return s.create(ctx, spec)
}
func (s *stub) ValidateLink(_ context.Context, spec LinkSpec) (problem.Findings, error) {
	return s.validate(spec)
}
func (s *stub) SetLinkMaxWAL(context.Context, string, *int64) error { return nil }
func (s *stub) ResyncLink(context.Context, string, []string) error  { return nil }

func (s *stub) FollowLink(context.Context, string, string) error { return nil }
func (s *stub) RejoinLink(context.Context, string) error         { return nil }

func (s *stub) FailoverLink(_ context.Context, name string, o FailoverOptions) (FailoverResult, error) {
	return s.failover(name, o)
}
func (s *stub) VerifyLink(ctx context.Context, name string, o VerifyOptions) (VerifyReport, error) {
	return s.verify(ctx, name, o)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start serves s on a socket until the test ends, and returns its path and a stop.
func start(t *testing.T, s Service) (string, context.CancelFunc) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "a.sock")
	server, err := Listen(Config{Service: s, Version: "1.2.3", Socket: socket, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return socket, serve(t, server)
}

func serve(t *testing.T, server *Server) context.CancelFunc {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := testpg.Await(t, "the server ends", done); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, where, token string) *Client {
	t.Helper()
	c, err := Dial(where, token)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSocketIsItsOwnersAlone(t *testing.T) {
	t.Parallel()
	socket, stop := start(t, &stub{})
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("the socket's mode is %v, want a socket with 0600", info.Mode())
	}
	left, err := os.ReadDir(filepath.Dir(socket))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the socket stand %v (%v)", left, err)
	}
	_, err = Listen(Config{Service: &stub{}, Socket: socket, Log: quiet()})
	wantCode(t, err, "socket-in-use")
	stop()
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays after the end: %v", err)
	}
}

func TestSocketOfADeadAgentIsReplaced(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "a.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = dial(t, socket, "").Links(t.Context())
	wantCode(t, err, CodeUnreachable)

	server, err := Listen(Config{Service: &stub{links: func() ([]Link, error) { return nil, nil }}, Socket: socket, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server)
	if _, err := dial(t, socket, "").Links(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocketPathsThatCannotBe(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Listen(Config{Socket: file, Log: quiet()})
	wantCode(t, err, "socket-in-use")
	_, err = dial(t, file, "").Links(t.Context())
	wantCode(t, err, CodeUnreachable)
	_, err = Listen(Config{Socket: "/tmp/" + strings.Repeat("x", 100), Log: quiet()})
	wantCode(t, err, "invalid-socket")
	_, err = dial(t, filepath.Join(t.TempDir(), "none"), "").Links(t.Context())
	wantCode(t, err, CodeUnreachable)
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
}

func TestErrorsArriveAsTheyWereMade(t *testing.T) {
	t.Parallel()
	taken := problem.New("database-not-empty", `database "shop"`, "It holds 3 tables.", "DROP DATABASE shop;").Because(errors.New("3 tables")).Retry()
	unknown := problem.New("link-not-found", "link orders", "there is no link of this name on this instance", "hawser link list")
	s := &stub{
		link:      func(string) (Link, error) { return Link{}, unknown },
		create:    func(context.Context, LinkSpec) (Link, error) { return Link{}, taken },
		links:     func() ([]Link, error) { return nil, errors.New("boom") },
		pauseFail: problem.New("link-paused", "link x", "It is paused.", "").Retry(),
	}
	socket, _ := start(t, s)
	c := dial(t, socket, "")

	_, err := c.Link(t.Context(), "orders")
	if !errors.Is(err, unknown) || Classify(err) != ClassNotFound {
		t.Errorf("got %v", err)
	}
	_, err = c.CreateLink(t.Context(), LinkSpec{Name: "a", Database: "shop", Peer: "west"})
	p, _ := problem.As(err)
	if p == nil || p.Error() != taken.Error() || !p.Retryable || Classify(err) != ClassConflict {
		t.Errorf("got %v, want %v", err, taken)
	}
	_, err = c.Links(t.Context())
	if wantCode(t, err, CodeInternal); Classify(err) != ClassInternal {
		t.Errorf("class of %v is %v", err, Classify(err))
	}
	err = c.PauseLink(t.Context(), "x")
	if wantCode(t, err, "link-paused"); Classify(err) != ClassUnavailable {
		t.Errorf("class of %v is %v", err, Classify(err))
	}
}

func TestAllFindingsArrive(t *testing.T) {
	t.Parallel()
	findings := problem.Findings{
		problem.New("wal-level", "setting wal_level", "It is replica.", "ALTER SYSTEM SET wal_level = logical;"),
		problem.Warn("large-objects", "database shop", "It has large objects.", "Move them to bytea."),
		problem.New("too-few-slots", "setting max_replication_slots", "It is 0.", "ALTER SYSTEM SET max_replication_slots = 10;"),
	}
	for _, refusal := range []error{&Blocked{Findings: findings}, findings.Err(), problem.Findings(findings[:1]).Err()} {
		s := &stub{
			create:   func(context.Context, LinkSpec) (Link, error) { return Link{}, refusal },
			validate: func(LinkSpec) (problem.Findings, error) { return findings, nil },
		}
		socket, _ := start(t, s)
		c := dial(t, socket, "")
		_, err := c.CreateLink(t.Context(), LinkSpec{Name: "a", Database: "shop", Peer: "west"})
		if Classify(err) != ClassBlocked || err.Error() != mustBlocked(t, refusal).Error() {
			t.Errorf("got %v, want %v", err, refusal)
		}
		var b *Blocked
		if !errors.As(err, &b) || len(b.Findings) != len(mustBlocked(t, refusal).Findings) {
			t.Errorf("got the findings %v", b)
		}
		got, err := c.ValidateLink(t.Context(), LinkSpec{Database: "shop"})
		if err != nil || !reflect.DeepEqual(got, findings) {
			t.Errorf("validate gave %v, %v", got, err)
		}
	}
}

func mustBlocked(t *testing.T, err error) *Blocked {
	t.Helper()
	b, ok := AsBlocked(err)
	if !ok {
		t.Fatalf("%v is no refusal", err)
	}
	return b
}

func TestRequestsThatHaveNoSense(t *testing.T) {
	t.Parallel()
	socket, _ := start(t, &stub{})
	c := dial(t, socket, "")
	for name, spec := range map[string]LinkSpec{
		"no database": {Name: "a", Peer: "west"},
		"no name":     {Database: "shop", Peer: "west"},
		"bad name":    {Name: "a b", Database: "shop", Peer: "west"},
		"bad peer":    {Name: "a", Database: "shop", Peer: "-west"},
		"bad role":    {Name: "a", Database: "shop", Peer: "west", Role: "king"},
	} {
		if _, err := c.CreateLink(t.Context(), spec); Classify(err) != ClassInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestOptionsArrive(t *testing.T) {
	t.Parallel()
	var gotFailover FailoverOptions
	var gotVerify VerifyOptions
	var gotDrop DropOptions
	s := &stub{
		failover: func(_ string, o FailoverOptions) (FailoverResult, error) {
			gotFailover = o
			return FailoverResult{}, nil
		},
		verify: func(_ context.Context, _ string, o VerifyOptions) (VerifyReport, error) {
			gotVerify = o
			return VerifyReport{Position: 0x16B3748}, nil
		},
		drop: func(_ string, o DropOptions) error { gotDrop = o; return nil },
	}
	socket, _ := start(t, s)
	c := dial(t, socket, "")
	if _, err := c.FailoverLink(t.Context(), "a", FailoverOptions{Force: true, Timeout: 1500 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	r, err := c.VerifyLink(t.Context(), "a", VerifyOptions{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	dropped, err := c.DropLink(t.Context(), "a", DropOptions{RemoveReplica: true})
	if err != nil || !reflect.DeepEqual(dropped, DropResult{Dropped: "a", RemoveReplicaRequested: true}) {
		t.Fatalf("dropped %+v, %v", dropped, err)
	}
	if gotFailover != (FailoverOptions{Force: true, Timeout: 1500 * time.Millisecond}) || gotVerify.Timeout != time.Minute || gotDrop != (DropOptions{RemoveReplica: true}) {
		t.Errorf("got %+v %+v %+v", gotFailover, gotVerify, gotDrop)
	}
	if r.Position != 0x16B3748 || r.Tables == nil {
		t.Errorf("got the report %+v", r)
	}
}

// TestChangesOutliveTheirClient: a closed terminal ends a comparison, never the
// making of a link; the end of the agent ends both.
func TestChangesOutliveTheirClient(t *testing.T) {
	t.Parallel()
	begun, ended := make(chan struct{}), make(chan struct{})
	wait := func(ctx context.Context) error {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return ctx.Err()
	}
	s := &stub{
		create: func(ctx context.Context, _ LinkSpec) (Link, error) { return Link{}, wait(ctx) },
		verify: func(ctx context.Context, _ string, _ VerifyOptions) (VerifyReport, error) {
			return VerifyReport{}, wait(ctx)
		},
	}
	socket, stop := start(t, s)
	c := dial(t, socket, "")
	leave, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 2)
	go func() { _, err := c.VerifyLink(leave, "a", VerifyOptions{}); answered <- err }()
	testpg.Await(t, "the request begins", begun)
	cancel()
	testpg.Await(t, "the request ends with its client", ended)
	if err := testpg.Await(t, "the client that left returns", answered); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that left got %v", err)
	}
	go func() {
		_, err := c.CreateLink(t.Context(), LinkSpec{Name: "a", Database: "d", Peer: "p"})
		answered <- err
	}()
	testpg.Await(t, "the request begins", begun)
	go stop()
	testpg.Await(t, "the request ends with the server", ended)
	if err := testpg.Await(t, "the client returns", answered); err == nil {
		t.Error("an operation that the agent's end cut off succeeded")
	}
}

// TestWrongArguments: the codes that do not begin with invalid- and mean it.
func TestWrongArguments(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"max-wal-too-small", "no-such-table", "invalid-name"} {
		if got := Classify(problem.New(code, "", "x", "")); got != ClassInvalid {
			t.Errorf("%s is of class %v", code, got)
		}
	}
	body := encodeError(fmt.Errorf("compare: %w", context.DeadlineExceeded))
	if body.Code != "request-timeout" || body.Advice == "" {
		t.Errorf("a time limit that passed is told as %+v", body)
	}
}

func TestOutlive(t *testing.T) {
	t.Parallel()
	life, end := context.WithCancel(t.Context())
	client, leave := context.WithCancel(t.Context())
	ctx, cancel := (&handler{life: life}).outlive(client)
	defer cancel()
	leave()
	if ctx.Err() != nil {
		t.Error("the operation ended with its client")
	}
	end()
	<-ctx.Done()
}

func TestTCPAsksForTheToken(t *testing.T) {
	t.Parallel()
	s := &stub{links: func() ([]Link, error) { return []Link{{Name: "a"}}, nil }}
	config := Config{Service: s, Socket: filepath.Join(t.TempDir(), "s"), Listen: "127.0.0.1:0", Token: "secret", Log: quiet()}
	server, err := Listen(config)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server)
	base := "http://" + server.Addr().String()
	if l, err := dial(t, base, "secret").Links(t.Context()); err != nil || len(l) != 1 {
		t.Errorf("with the token: %v, %v", l, err)
	}
	for _, token := range []string{"", "secre", "secret2"} {
		_, err := dial(t, base, token).Links(t.Context())
		wantCode(t, err, CodeUnauthorized)
	}
	config.Token = ""
	_, err = Listen(config)
	wantCode(t, err, "token-missing")
	for _, address := range []string{"0.0.0.0:5023", ":5023", "[::]:5023", "example.com:1", "5023"} {
		config.Listen = address
		_, err = Listen(config)
		wantCode(t, err, "invalid-setting")
	}
	for _, where := range []string{"http://example.com:5023", "127.0.0.1:5023", "[::1]:5023"} {
		_, err = Dial(where, "secret")
		wantCode(t, err, "invalid-socket")
	}
}

func TestSomethingElseAnswers(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	go func() { _ = other.Serve(l) }()
	t.Cleanup(func() { _ = other.Close() })
	_, err = dial(t, "http://"+l.Addr().String(), "x").Links(t.Context())
	wantCode(t, err, CodeNotHawser)
}

func TestListsAreNeverNull(t *testing.T) {
	t.Parallel()
	s := &stub{
		links:    func() ([]Link, error) { return nil, nil },
		validate: func(LinkSpec) (problem.Findings, error) { return nil, nil },
		link: func(string) (Link, error) {
			return Link{Position: Position{Sent: 0x16B3748}, Seeding: &Seeding{}, Failover: &FailoverResult{Phases: []FailoverPhase{}}}, nil
		},
	}
	socket, _ := start(t, s)
	c := dial(t, socket, "")
	for _, path := range []string{"/v1/links", "/v1/peers"} {
		body, err := c.send(t.Context(), http.MethodGet, path, nil)
		if err != nil || strings.Contains(string(body), "null") {
			t.Errorf("%s: %s, %v", path, body, err)
		}
	}
	body, err := c.send(t.Context(), http.MethodGet, "/v1/links/a", nil)
	if err != nil || !strings.Contains(string(body), `"sent":"0/16B3748"`) || !strings.Contains(string(body), `"lag_bytes":null`) {
		t.Errorf("a link is %s, %v", body, err)
	}
	if strings.Contains(string(body), "$schema") {
		t.Errorf("a link is %s", body)
	}
}

func TestOpenAPIDescribesEveryEndpoint(t *testing.T) {
	t.Parallel()
	socket, _ := start(t, &stub{})
	c := dial(t, socket, "")
	resp, err := c.http.Get(c.base + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		Info  struct{ Version string }
		Paths map[string]map[string]struct {
			OperationID string
			Responses   map[string]struct{ Content map[string]any }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	operations := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			operations++
			if _, ok := op.Responses["default"].Content["application/problem+json"]; !ok || len(op.Responses) != 2 {
				t.Errorf("%s %s has the responses %v", method, path, op.Responses)
			}
		}
	}
	if operations != reflect.TypeFor[Service]().NumMethod() || doc.Info.Version != "1.2.3" {
		t.Errorf("%d operations, version %s; Service has %d methods", operations, doc.Info.Version, reflect.TypeFor[Service]().NumMethod())
	}
}

func TestUnknownEndpoint(t *testing.T) {
	t.Parallel()
	socket, _ := start(t, &stub{})
	_, err := dial(t, socket, "").send(t.Context(), http.MethodGet, "/v2/links", nil)
	wantCode(t, err, "endpoint-not-found")
}

func TestReadPeer(t *testing.T) {
	t.Parallel()
	now := time.Now()
	west, own := certificate(t, "mi-west", now.Add(time.Hour)), certificate(t, "on-prem", now.Add(time.Hour))
	self := Certificate{Name: "on-prem", PEM: own}
	got, err := readPeer(AddPeer{Certificate: "# name mi-west\n" + west, Address: "west.example.com"}, self, now)
	if err != nil || !reflect.DeepEqual(got, AddPeer{Name: "mi-west", Certificate: west, Address: "west.example.com:5022"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}}))
	for name, in := range map[string]AddPeer{
		"own":          {Certificate: own},
		"own, renamed": {Certificate: own, Name: "west"},
		"own name":     {Certificate: west, Name: "on-prem"},
		"bad name":     {Certificate: west, Name: "a/b"},
		"nothing":      {Certificate: "hello"},
		"a key":        {Certificate: key},
		"two":          {Certificate: west + own},
		"not DER":      {Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}))},
		"expired":      {Certificate: certificate(t, "old", now.Add(-time.Hour))},
		"bad port":     {Certificate: west, Address: "west:0"},
		"a URL":        {Certificate: west, Address: "https://west:5022"},
	} {
		if got, err := readPeer(in, self, now); Classify(err) != ClassInvalid {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func TestCompleteAddress(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "west": "west:5022", "west:1": "west:1", "::1": "[::1]:5022", "[::1]": "[::1]:5022", "[::1]:7": "[::1]:7", "10.0.0.1": "10.0.0.1:5022",
	} {
		if got, err := completeAddress(in); got != want || err != nil {
			t.Errorf("%q gave %q, %v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{"west:70000": `"70000" is not a port`, "west:0": "from 1 to 65535", "west:": `"" is not a port`, "a/b:1": "not host or host:port", ":1": "not host or host:port"} {
		if _, err := completeAddress(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestWireNames: the rule of the contract for names, units and numbers that
// are not known.
func TestWireNames(t *testing.T) {
	t.Parallel()
	seen := map[reflect.Type]bool{}
	for _, v := range []any{Instance{}, Certificate{}, PeerList{}, AddPeer{}, SetPeer{}, PeerTestStep{}, LinkSpec{}, Link{}, FailoverResult{}, VerifyReport{}, DropResult{}, Database{}, errorBody{}} {
		checkWireNames(t, reflect.TypeOf(v), seen)
	}
}

func checkWireNames(t *testing.T, typ reflect.Type, seen map[reflect.Type]bool) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() || seen[typ] {
		return
	}
	seen[typ] = true
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
			continue
		case name == "" || name != strings.ToLower(name):
			t.Errorf("%v.%s is %q on the wire", typ, f.Name, name)
		case f.Type == reflect.TypeFor[time.Duration]():
			t.Errorf("%v.%s is a Duration; want seconds", typ, f.Name)
		case f.Type == reflect.TypeFor[frame.LSN]() && !strings.Contains("sent received durable visible position", name):
			t.Errorf("%v.%s: an unknown position", typ, f.Name)
		}
		checkWireNames(t, f.Type, seen)
	}
}

func certificate(t *testing.T, name string, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: until.Add(-2 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if p, ok := problem.As(err); !ok || p.Code != code {
		t.Errorf("got the error %v, want code %s", err, code)
	}
}
