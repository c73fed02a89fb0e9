package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

func TestIdentityIsKeptAndClosed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	a, err := LoadOrCreateIdentity(dir, "east")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, identityFile), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := LoadOrCreateIdentity(dir, "east")
	if err != nil {
		t.Fatal(err)
	}
	if a.Fingerprint() != b.Fingerprint() || b.Name != "east" {
		t.Errorf("another identity: %v, %v", a, b)
	}
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, filepath.Join(dir, identityFile): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	if fp, err := Fingerprint(a.CertificatePEM()); err != nil || fp != a.Fingerprint() || !strings.HasPrefix(fp, "sha256:") {
		t.Errorf("fingerprint %q, %v", fp, err)
	}
	if left := time.Until(a.NotAfter()); left < 9*365*24*time.Hour {
		t.Errorf("valid for %s", left)
	}
	if s := fmt.Sprintf("%v %+v %#v", a, a, a); strings.Contains(s, "PRIVATE") || strings.Contains(s, "D:") {
		t.Errorf("the key is shown: %s", s)
	}
	if _, err := LoadOrCreateIdentity(dir, "west"); !isCode(err, "identity-name") {
		t.Errorf("another name: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateIdentity(dir, "east"); !isCode(err, "identity-broken") {
		t.Errorf("a broken file: %v", err)
	}
}

func TestFingerprintRefuses(t *testing.T) {
	good := newIdentity(t, "east").CertificatePEM()
	old := newIdentityUntil(t, "east", time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)).CertificatePEM()
	nameless := newIdentity(t, "").CertificatePEM()
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	for what, in := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "two": append(bytes.Clone(good), good...), "expired": old, "no name": nameless, "a key": key, "broken": broken,
	} {
		if fp, err := Fingerprint(in); !isCode(err, "certificate-invalid") {
			t.Errorf("%s: %q, %v", what, fp, err)
		}
	}
}

// Each side says why, in its own words.
func TestRefusals(t *testing.T) {
	hour := time.Hour
	for _, c := range []struct {
		name         string
		from, to     time.Duration // of east's certificate, from now
		west         func(east, west *instance) []Trusted
		there, here  string // west's and east's code
		remedyBegins string
	}{
		{"unknown", -hour, hour, func(_, _ *instance) []Trusted { return nil },
			"peer-certificate-unknown", "own-certificate-unknown", "hawser cert show > east.pem  # on east\nhawser peer add east.pem  # on west"},
		{"wrong", -hour, hour, func(e, _ *instance) []Trusted {
			return []Trusted{{Name: "east", CertificatePEM: string(newIdentity(e.t, "east").CertificatePEM())}}
		}, "peer-certificate-wrong", "own-certificate-wrong", "hawser cert show > east.pem  # on east"},
		{"expired", -2 * hour, -hour, func(e, _ *instance) []Trusted { return []Trusted{e.entry("")} },
			"peer-certificate-expired", "own-certificate-expired", "hawser cert show > east.pem  # on east"},
		{"not yet good", hour, 2 * hour, func(e, _ *instance) []Trusted { return []Trusted{e.entry("")} },
			"peer-certificate-not-yet-valid", "own-certificate-not-yet-valid", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := newIdentityUntil(t, "east", time.Now().Add(c.from), time.Now().Add(c.to))
			east, west := start(t, id, handlers{}), start(t, newIdentity(t, "west"), handlers{})
			west.trusts(c.west(east, west)...)
			east.trusts(west.entry(west.address()))
			p := east.waitProblem("west", c.here)
			if !strings.HasPrefix(p.Remedy, c.remedyBegins) {
				t.Errorf("remedy %q", p.Remedy)
			}
			r := west.waitRefused(c.there)
			if r.Name != "east" || r.Fingerprint != id.Fingerprint() || r.Address != "127.0.0.1" || r.At.IsZero() || r.Count == 0 {
				t.Errorf("refused: %+v", r)
			}
			if !strings.Contains(west.log.String(), "peer refused") || !strings.Contains(west.log.String(), id.Fingerprint()) {
				t.Error("west did not log it")
			}
			if !strings.Contains(east.log.String(), "can't connect to peer") {
				t.Error("east did not log it")
			}
			_, err := east.Call(t.Context(), "west", "", "", nil)
			if !isCode(err, "peer-disconnected") || !strings.Contains(err.Error(), p.Cause) {
				t.Errorf("a call says %v", err)
			}
			steps := east.Test(t.Context(), "west")
			failed := 0
			for _, s := range steps {
				if !s.OK {
					failed++
					if s.Name != "our certificate accepted by them" || s.Problem.Code != c.here {
						t.Errorf("step %+v", s)
					}
				}
			}
			if failed != 1 {
				t.Errorf("steps %+v", steps)
			}
		})
	}
}

func TestDialledTheWrongOne(t *testing.T) {
	east, west, north := start(t, newIdentity(t, "east"), handlers{}), start(t, newIdentity(t, "west"), handlers{}), start(t, newIdentity(t, "north"), handlers{})
	north.trusts(east.entry(""))
	east.trusts(west.entry(north.address()), north.entry(""))
	east.waitProblem("west", "peer-other-instance")
	east.trusts(west.entry(north.address())) // and now north is a stranger
	east.waitProblem("west", "peer-certificate-wrong")
	east.trusts(west.entry(east.address()))
	east.waitProblem("west", "peer-is-self")
	east.trusts(Trusted{Name: "me", CertificatePEM: string(east.id.CertificatePEM())})
	east.waitProblem("me", "peer-is-self")
}

func TestTrustComesAndGoes(t *testing.T) {
	east, west := pair(t, handlers{})
	s := east.open(t.Context(), "west")
	defer s.Close()
	west.trusts()
	if _, err := s.Recv(); !isCode(err, "peer-disconnected") {
		t.Errorf("Recv: %v", err)
	}
	if _, err := west.Call(t.Context(), "east", "", "", nil); !isCode(err, "peer-not-found") {
		t.Errorf("call of a removed peer: %v", err)
	}
	east.waitProblem("west", "own-certificate-unknown")
	west.trusts(Trusted{Name: "east", CertificatePEM: string(newIdentity(t, "east").CertificatePEM())}) // another one's
	west.waitRefused("peer-certificate-wrong")
	if _, err := west.Call(t.Context(), "east", "", "", nil); !isCode(err, "peer-disconnected") || !strings.Contains(err.Error(), "refused here for its certificate") {
		t.Errorf("call of a peer that is known by another certificate: %v", err)
	}
	west.trust.set(east.entry("")) // without Refresh: the handshake reads it
	east.waitFor("west")
	west.waitFor("east")
	if _, refused := west.Status(); len(refused) != 0 {
		t.Errorf("still refused: %+v", refused)
	}

	// The same name with a renewed certificate: the old one is let go.
	next := newIdentity(t, "east")
	west.trusts(Trusted{Name: "east", CertificatePEM: string(next.CertificatePEM())})
	east.waitProblem("west", "own-certificate-wrong")
	// Both certificates, while it is being renewed.
	west.trusts(Trusted{Name: "east", CertificatePEM: string(next.CertificatePEM())}, east.entry(""))
	west.waitFor("east")
}

func TestStoreThatFailsChangesNothing(t *testing.T) {
	east, west := pair(t, handlers{})
	west.trust.mu.Lock()
	west.trust.list, west.trust.err = nil, errors.New("the database is away")
	west.trust.mu.Unlock()
	west.Refresh()
	if _, err := east.Call(t.Context(), "west", "", "", nil); err != nil {
		t.Error(err)
	}
	west.trust.mu.Lock()
	west.trust.err = nil
	west.trust.mu.Unlock()
	testpg.Eventually(t, soon, "the store is read again", func() (bool, error) {
		peers, _ := west.Status()
		return len(peers) == 0, nil
	})
}

func TestAddressesThatDoNotAnswer(t *testing.T) {
	east := start(t, newIdentity(t, "east"), handlers{})
	west := newIdentity(t, "west")
	entry := func(address string) Trusted {
		return Trusted{Name: "west", CertificatePEM: string(west.CertificatePEM()), Address: address}
	}
	closed, err := testpg.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	east.trusts(entry(fmt.Sprintf("127.0.0.1:%d", closed)))
	east.waitProblem("west", "peer-unreachable")
	steps := east.Test(t.Context(), "west")
	if last := steps[len(steps)-1]; last.Name != "TCP" || last.OK || last.Problem.Code != "peer-unreachable" || last.Problem.Remedy == "" {
		t.Errorf("steps %+v", steps)
	}

	other, err := net.Listen("tcp", "127.0.0.1:0") // not Hawser
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 mail.example.com ESMTP\r\n"))
			_ = c.Close()
		}
	}()
	east.trusts(entry(other.Addr().String()))
	east.waitProblem("west", "peer-tls")
	east.trusts(entry("west.invalid:5022"))
	east.waitProblem("west", "peer-name")
}

// Who says nothing holds no place for ever, and many of them keep no peer out.
func TestSilentStrangersKeepNobodyOut(t *testing.T) {
	east, west := start(t, newIdentity(t, "east"), handlers{}), start(t, newIdentity(t, "west"), handlers{})
	for range 4 * maxPending {
		c, err := net.Dial("tcp", west.address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	west.trusts(east.entry(""))
	east.trusts(west.entry(west.address()))
	east.waitFor("west")
	west.gate.mu.Lock()
	defer west.gate.mu.Unlock()
	if len(west.gate.pending) > maxPendingFrom || west.gate.dropped == 0 {
		t.Errorf("%d pending, %d dropped", len(west.gate.pending), west.gate.dropped)
	}
}

func TestRefusedListIsBounded(t *testing.T) {
	var l refusals
	logged := 0
	for k := range 1000 {
		if l.add(Refused{Name: fmt.Sprint(k), Fingerprint: "sha256:" + fmt.Sprint(k), Problem: unknown.ours(parties{}), At: time.Now()}) {
			logged++
		}
	}
	if got := l.latest(); len(got) != maxRefused || got[0].Name != "999" || logged != maxSaid {
		t.Errorf("%d kept, %d logged, the first is %s", len(got), logged, got[0].Name)
	}
	l.add(Refused{Name: "990", Fingerprint: "sha256:990", Problem: unknown.ours(parties{}), At: time.Now()})
	if got := l.latest()[0]; got.Name != "990" || got.Count != 2 {
		t.Errorf("again: %+v", got)
	}
}

// What strangers call themselves does not become a command or a terminal's orders.
func TestHostileNames(t *testing.T) {
	for _, name := range []string{"$(reboot)", "a b; rm -rf /", "-rf", "\x1b[31mred", "'", "", strings.Repeat("x", 1000)} {
		p := unknown.ours(parties{them: word(name), theirPrint: "sha256:00"})
		if strings.ContainsAny(p.Remedy, "$'\x1b") || strings.Contains(p.Remedy, "rm -rf") || strings.Contains(p.Remedy, "add -") || len(p.Remedy) > 500 {
			t.Errorf("%q: %s", name, p.Remedy)
		}
		if strings.Contains(p.Object, "\x1b") {
			t.Errorf("%q: %s", name, p.Object)
		}
	}
}

func TestPeerTest(t *testing.T) {
	east, west := pair(t, handlers{})
	before := east.session("west")
	want := []string{
		"name resolution", "TCP", "TLS", "our certificate accepted by them", "their certificate accepted by us", "version", "round trip", "rate",
	}
	for _, c := range []struct {
		from *instance
		to   string
		na   int // steps that do not apply
	}{{east, "west", 0}, {west, "east", 3}} {
		steps := c.from.Test(t.Context(), c.to)
		if len(steps) != len(want) {
			t.Fatalf("%+v", steps)
		}
		na := 0
		for k, s := range steps {
			t.Logf("%s: %v %s (%s)", s.Name, s.OK, s.Detail, s.Duration)
			if s.Name != want[k] || !s.OK || s.Detail == "" || s.Problem != nil {
				t.Errorf("step %+v", s)
			}
			if strings.HasPrefix(s.Detail, "not applicable: they dial") {
				na++
			}
		}
		if na != c.na {
			t.Errorf("%d steps do not apply", na)
		}
	}
	if east.session("west") != before || before.ended() != nil {
		t.Error("the test took the session's place")
	}
	if steps := east.Test(t.Context(), "north"); len(steps) != 1 || steps[0].Problem.Code != "peer-not-found" {
		t.Errorf("%+v", steps)
	}
	east.stop()
	testpg.Eventually(t, soon, "west says that nobody dials", func() (bool, error) {
		steps := west.Test(t.Context(), "east")
		last := steps[len(steps)-1]
		return last.Problem != nil && last.Problem.Code == "peer-not-dialling", nil
	})
}

func TestOlderAndNewerProtocols(t *testing.T) {
	east := newIdentity(t, "east")
	west := start(t, newIdentity(t, "west"), handlers{})
	west.trusts(Trusted{Name: "east", CertificatePEM: string(east.CertificatePEM())})
	conn, err := net.Dial("tcp", west.address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	future := hello{Name: "east", Version: "9.0", Oldest: newestProtocol + 1, Newest: newestProtocol + 3}
	g, err := greet(t.Context(), &wire{Conn: conn, dialled: true}, east, future, time.Now().Add(soon), func(*greeting) refusal { return accepted })
	if err != nil || g.theirs != version {
		t.Fatalf("%+v, %v", g, err)
	}
	r := west.waitRefused("peer-version")
	if !strings.Contains(r.Problem.Advice, "of this instance") {
		t.Errorf("advice %q", r.Problem.Advice)
	}
}

func TestRunEndsWithoutATrustStore(t *testing.T) {
	n, err := New(Config{Identity: newIdentity(t, "east"), Trust: &trustList{err: errors.New("away")}, Handler: handlers{}, Listen: "127.0.0.1:0", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := n.Run(ctx); err != nil {
		t.Error(err)
	}
	for listen, code := range map[string]string{"127.0.0.1:99999": "endpoint-taken", "192.0.2.1:0": "endpoint-not-here"} {
		if _, err := New(Config{Listen: listen}); !isCode(err, code) {
			t.Errorf("%s: got %v", listen, err)
		}
	}
}

func FuzzHear(f *testing.F) {
	for _, m := range []any{hello{Name: "east", Version: "1", Oldest: 1, Newest: 1}, verdict{unknown}, decision{true, 1, 2}} {
		var b bytes.Buffer
		if err := say(&b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add(binary.BigEndian.AppendUint32(nil, maxHello+1))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		var h hello
		r := bytes.NewReader(in)
		if err := hear(r, &h); err == nil {
			if read := len(in) - r.Len(); read > maxHello+4 {
				t.Errorf("%d bytes were read", read)
			}
			if w := word(h.Name); len([]rune(w)) > maxWord || strings.ContainsAny(w, "\x00\x1b\n") {
				t.Errorf("shown: %q", w)
			}
			var out bytes.Buffer
			if err := say(&out, h); err != nil {
				t.Error(err)
			}
		}
		_ = hear(bytes.NewReader(in), &verdict{})
		_ = hear(bytes.NewReader(in), &decision{})
	})
}

// TestRefusalsSettle: what was mended is not shown for ever to who is connected.
func TestRefusalsSettle(t *testing.T) {
	t.Parallel()
	var l refusals
	now := time.Now()
	for print, ago := range map[string]time.Duration{"mended": 2 * mendedAfter, "still": time.Second, "stranger": 2 * mendedAfter} {
		l.add(Refused{Fingerprint: print, Problem: problem.New("own-address-wrong", "", "x", ""), At: now.Add(-ago)})
	}
	l.settle(now, func(print string) bool { return print != "stranger" })
	var left []string
	for _, r := range l.latest() {
		left = append(left, r.Fingerprint)
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"still", "stranger"}) {
		t.Errorf("%v is shown", left)
	}
}
