package agent_test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// tap lies between an agent and its PostgreSQL. It counts what the agent asks, and
// holds everything up at a chosen question, or does something else, so that a fault can
// strike just there; or has the server take no more connections from there on.
type tap struct {
	to string

	mu       sync.Mutex
	hears    func(purpose string) bool // of the sessions whose questions count
	count    int                       // questions since arm
	at       int                       // the one to hold; 0: none
	late     bool                      // hold when the server has done it, not before it hears of it
	held     chan struct{}             // closed when it is held
	released chan struct{}             // closed when what is held is to be given up

	doAt    int           // the question before which do is called; 0: none
	do      func()        //
	ends    bool          // the session of that question ends
	full    bool          // the server takes no more connections
	refused int           // connections since it is
	enough  chan struct{} // closed when some were refused
}

// newTap has the next run of an agent reach its PostgreSQL through a tap.
func newTap(t *testing.T, i *instance) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{to: fmt.Sprintf("127.0.0.1:%d", i.Port())}
	i.connect = fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable", l.Addr().(*net.TCPAddr).Port)
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	t.Cleanup(func() { // what is served ends with the agent
		_ = l.Close()
		p.release()
	})
	return p
}

// arm begins to count, and holds the question of that number; 0 holds none.
func (p *tap) arm(at int, late bool, hears func(purpose string) bool) (held <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count, p.at, p.late, p.hears = 0, at, late, hears
	p.held, p.released = make(chan struct{}), make(chan struct{})
	return p.held
}

// when begins to count, and calls do when the question of that number is asked.
func (p *tap) when(at int, hears func(purpose string) bool, do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count, p.at, p.hears, p.doAt, p.do, p.ends = 0, 0, hears, at, do, false
}

// fill begins to count, and has all other clients take every connection that is left
// when the question of that number is asked; with ends the server hears no more of its
// session either.
func (p *tap) fill(at int, ends bool, hears func(purpose string) bool) (full <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count, p.at, p.hears, p.doAt, p.ends, p.refused = 0, 0, hears, at, ends, 0
	p.held, p.enough = make(chan struct{}), make(chan struct{})
	p.do = func() { p.full = true; close(p.held) }
	return p.held
}

// enoughRefused is how often an agent tries in vain before the server has room again.
const enoughRefused = 4

// turnsAway tells whether the server is full, to a connection that is being made.
func (p *tap) turnsAway() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.full {
		return false
	}
	if p.refused++; p.refused == enoughRefused {
		close(p.enough)
	}
	return true
}

// tooMany is what a server says that is full.
var tooMany, _ = (&pgproto3.ErrorResponse{
	Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "53300", Message: "sorry, too many clients already", Routine: "InitProcess",
}).Encode(nil)

// release gives up what is held, and holds nothing from then on; a server that was full
// has room. It returns how many questions there were.
func (p *tap) release() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.doAt, p.full = 0, 0, false
	if p.released != nil {
		close(p.released)
		p.released = nil
	}
	return p.count
}

// fate is what becomes of a question.
type fate int

const (
	passes   fate = iota
	struck        // held: the server never hears of it
	answered      // held: the server answers, and the agent never hears of that
	standing      // asked while another one is held
	ended         // its session is ended
)

// ask counts a question.
func (p *tap) ask(purpose string) (fate, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := p.hears != nil && p.hears(purpose)
	if p.at > 0 && p.count >= p.at {
		return standing, p.released
	}
	if counts {
		p.count++
	}
	if counts && p.doAt > 0 && p.count == p.doAt {
		p.do()
		if p.ends {
			return ended, nil
		}
	}
	switch {
	case p.at == 0 || p.count < p.at:
		return passes, nil
	case p.late:
		return answered, p.released
	}
	return struck, p.released
}

// strike tells that the question is held.
func (p *tap) strike() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.held:
	default:
		close(p.held)
	}
}

// unheard are the sessions that look at the server or stream from it all the time.
var unheard = []string{":watch", "hawser:watch", ":heartbeat", ":capture", ":status"}

// purpose is what the agent says in its first message that a session is for.
func purpose(startup []byte) string {
	_, rest, _ := bytes.Cut(startup, []byte("application_name\x00"))
	name, _, _ := bytes.Cut(rest, []byte{0})
	return string(name)
}

// but hears all sessions except for those, and those that are at it all the time.
func but(deaf ...string) func(purpose string) bool {
	return func(purpose string) bool {
		for _, suffix := range append(deaf, unheard...) {
			if strings.HasSuffix(purpose, suffix) {
				return false
			}
		}
		return strings.HasPrefix(purpose, "hawser:")
	}
}

func (p *tap) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	var holding atomic.Bool
	replied := make(chan struct{})
	go func() { defer close(replied); p.reply(client, server, &holding) }()
	defer func() { _ = server.Close(); <-replied }()
	buf := make([]byte, 64<<10)
	n, err := client.Read(buf)
	if p.turnsAway() {
		_, _ = client.Write(tooMany)
		return
	}
	for name := purpose(buf[:n]); err == nil; n, err = client.Read(buf) {
		fate, released := p.ask(name)
		if fate == ended {
			return
		}
		holding.Store(fate == answered)
		if fate == passes || fate == answered {
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
		if fate == struck {
			p.strike()
		}
		if fate != passes {
			<-released
			return
		}
	}
}

// reply passes on what the server says. The answer to the question that is held is
// not passed on: it tells that the server has done what it was asked.
func (p *tap) reply(client, server net.Conn, holding *atomic.Bool) {
	defer client.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if holding.Load() {
			p.strike()
			continue
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}
