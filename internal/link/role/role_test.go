package role_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
)

var rewrite = flag.Bool("rewrite", false, "write the scenarios' output as it is")

// TestScenarios plays the scripts in testdata. A line names a side and an event;
// what follows it is the state after it and the actions asked for.
func TestScenarios(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *rewrite {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(got, want) {
				t.Errorf("%s differs; see with -rewrite and git diff\n%s", file, got)
			}
		})
	}
}

func play(t *testing.T, script string) []byte {
	t.Helper()
	sides := map[string]role.State{"A": role.Initial(role.Primary, 0), "B": role.Initial(role.Secondary, 0x100)}
	var out bytes.Buffer
	for _, line := range strings.Split(strings.TrimRight(script, "\n"), "\n") {
		if strings.HasPrefix(line, "  ") {
			continue // output of an earlier run
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words := strings.Fields(line)
		side := words[0]
		happened := event(t, sides, words[1:])
		next, actions := role.Step(sides[side], happened)
		sides[side] = next
		state, err := json.Marshal(next)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "  %s\n", state)
		for _, a := range actions {
			fmt.Fprintf(&out, "  %s\n", describe(a))
		}
	}
	return out.Bytes()
}

func describe(a role.Action) string {
	if r, ok := a.(role.Report); ok && r.Cause != nil {
		return "Report " + r.Cause.Error()
	}
	return strings.TrimSpace(strings.TrimPrefix(fmt.Sprintf("%T %+v", a, a), "role."))
}

func event(t *testing.T, sides map[string]role.State, words []string) role.Event {
	t.Helper()
	number := func() uint64 {
		n, err := strconv.ParseUint(words[1], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	switch words[0] {
	case "Restarted":
		return role.Restarted{}
	case "FailoverAsked":
		return role.FailoverAsked{}
	case "Prepared":
		if len(words) == 1 {
			return role.Prepared{}
		}
		return role.Prepared{Term: frame.Term(number())}
	case "Failed":
		return role.Failed{Cause: errors.New(strings.Join(words[1:], " "))}
	case "Fenced":
		return role.Fenced{}
	case "TimedOut":
		return role.TimedOut{}
	case "HandoffApplied":
		return role.HandoffApplied{Term: frame.Term(number()), Position: 0x500}
	case "Opened":
		return role.Opened{}
	case "RefusalAsked":
		return role.RefusalAsked{Term: frame.Term(number())}
	case "Refused":
		return role.Refused{Term: frame.Term(number())}
	case "PeerSeen":
		return role.PeerSeen{Peer: sides[words[1]]}
	case "ForceAsked":
		return role.ForceAsked{Position: 0x700, Since: 0x300}
	case "RejoinAsked":
		return role.RejoinAsked{Peer: sides[words[1]]}
	case "PrimaryMoved":
		return role.PrimaryMoved{Heir: words[1]}
	case "ElsewhereHanded":
		return role.ElsewhereHanded{By: role.Handoff{Link: "other", Term: frame.Term(number())}, Heir: "N", Stranded: len(words) > 2}
	case "ElsewhereRefused":
		return role.ElsewhereRefused{By: role.Handoff{Link: "other", Term: frame.Term(number())}}
	case "Inherits": // no event: the new primary takes up A's place by a handoff of that term
		sides["N"] = role.Inherited(role.Handoff{Link: "other", Term: frame.Term(number())}, sides["B"].Term, sides["B"].Following(), 0x900)
		return role.PeerSeen{}
	case "TakesUp": // no event: N takes up A's place without a proof, and has no slot for it yet
		sides["N"] = role.Inherited(role.Handoff{}, sides["B"].Term, sides["B"].Following(), 0)
		return role.PeerSeen{}
	case "LeadsFrom":
		return role.LeadsFrom{Position: frame.LSN(number())}
	case "HeirSeen":
		return role.HeirSeen{Heir: sides[words[1]]}
	case "PrimaryChosen":
		return role.PrimaryChosen{Primary: sides[words[1]]}
	}
	t.Fatalf("unknown event %q", words[0])
	return nil
}

// world is both sides with what their agents would do: a database that is open or
// not, a store that survives a crash, and a stream that carries handoffs.
type world struct {
	a, b   side
	forced bool
}

type side struct {
	name    string
	stored  role.State
	state   role.State
	open    bool
	todo    []role.Action
	events  []queued     // what this side will be told, in order
	stream  []frame.Term // handoffs on their way to the other side
	reports []error
	told    []role.State
}

type queued struct {
	event  role.Event
	answer bool // to an action; void when another list of actions has taken its place
}

func (s *side) answer(e role.Event) { s.events = append(s.events, queued{e, true}) }

func newWorld() *world {
	w := &world{}
	for s, r := range map[*side]role.Role{&w.a: role.Primary, &w.b: role.Secondary} {
		s.state = role.Initial(r, 0)
		s.stored, s.open = s.state, r == role.Primary
	}
	w.a.name, w.b.name = "A", "B"
	return w
}

func (w *world) other(s *side) *side {
	if s == &w.a {
		return &w.b
	}
	return &w.a
}

// tell takes one event; a list of actions replaces what was still to do.
func (s *side) tell(e role.Event) {
	next, actions := role.Step(s.state, e)
	s.state = next
	if len(s.told) == 0 || s.told[len(s.told)-1] != next {
		s.told = append(s.told, next)
	}
	if len(actions) == 0 {
		return
	}
	s.todo = actions
	s.events = slices.DeleteFunc(s.events, func(q queued) bool { return q.answer })
	if _, ok := actions[0].(role.Persist); ok {
		s.stored, s.todo = next, actions[1:] // the host stores before it does anything else
	}
}

// act carries out the next action of a side. A message to the other side is lost
// when lose is set.
func (w *world) act(s *side, lose bool) {
	a := s.todo[0]
	s.todo = s.todo[1:]
	o := w.other(s)
	switch a := a.(type) {
	case role.Prepare:
		if lose || o.state.Role != role.Secondary {
			s.answer(role.Failed{Cause: errors.New("not ready")})
			return
		}
		s.answer(role.Prepared{Term: o.state.Following()})
	case role.Close:
		s.open = false
		s.answer(role.Fenced{})
	case role.Hand:
		s.stream = append(s.stream, a.Term)
	case role.Open:
		s.open = true
		s.answer(role.Opened{})
	case role.AskRefusal:
		if lose {
			s.todo = append([]role.Action{a}, s.todo...) // asked again until answered
			return
		}
		o.tell(role.RefusalAsked(a))
		s.answer(role.PeerSeen{Peer: o.state})
	case role.Tell:
		if !lose {
			o.events = append(o.events, queued{role.PeerSeen{Peer: s.state}, false})
			s.answer(role.PeerSeen{Peer: o.state})
		}
	case role.Report:
		s.reports = append(s.reports, a.Cause)
	}
}

func (s *side) crash() {
	s.state, s.todo, s.events = s.stored, nil, nil
	s.tell(role.Restarted{})
}

// receive lets a secondary apply the next handoff, as its applier would.
func (w *world) receive(s *side) {
	o := w.other(s)
	if s.state.Role != role.Secondary || len(o.stream) == 0 {
		return
	}
	term := o.stream[0]
	if term > s.state.Term && term > s.state.Floor {
		s.tell(role.HandoffApplied{Term: term, Position: 1}) // sent again if this is lost
		return
	}
	o.stream = o.stream[1:]
}

func (s *side) nextEvent() {
	e := s.events[0]
	s.events = s.events[1:]
	s.tell(e.event)
}

// check: both sides are open only while one that was forced out has not heard of it.
func (w *world) check(t *rapid.T) {
	if w.a.open && w.b.open && (!w.forced || w.a.state.Term == w.b.state.Term) {
		t.Fatalf("both sides are open: %+v %+v", w.a.state, w.b.state)
	}
}

// settle lets everything that is under way end, without further faults.
func (w *world) settle(t *rapid.T) {
	for range 1000 {
		moved := false
		for _, s := range []*side{&w.a, &w.b} {
			for len(s.todo) > 0 || len(s.events) > 0 {
				moved = true
				if len(s.todo) > 0 {
					w.act(s, false)
				} else {
					s.nextEvent()
				}
				w.check(t)
			}
			before := s.state
			w.receive(s)
			moved = moved || before != s.state
		}
		if !moved && !w.exchange() && !w.rejoin() {
			return
		}
	}
	t.Fatalf("the two sides never come to rest: %+v %+v", w.a, w.b)
}

// exchange is what happens whenever a connection is made: both tell their state.
func (w *world) exchange() (moved bool) {
	a, b := w.a.state, w.b.state
	w.a.tell(role.PeerSeen{Peer: b})
	w.b.tell(role.PeerSeen{Peer: a})
	return w.a.state != a || w.b.state != b || len(w.a.todo)+len(w.b.todo) > 0
}

// rejoin is what a person does with a diverged side.
func (w *world) rejoin() (moved bool) {
	for _, s := range []*side{&w.a, &w.b} {
		if s.state.Phase == role.Diverged {
			s.tell(role.RejoinAsked{Peer: w.other(s).state})
			moved = moved || s.state.Phase != role.Diverged
		}
	}
	return moved
}

// TestNeverTwoWritableSides plays failovers, forced ones among them, with crashes
// after any action, lost messages, time-outs and reconnects, in every order that
// rapid can think of.
func TestNeverTwoWritableSides(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			s := &w.a
			if rapid.Bool().Draw(t, "side B") {
				s = &w.b
			}
			switch rapid.SampledFrom([]string{"act", "act", "act", "event", "event", "receive", "receive", "ask", "crash", "timeout", "exchange", "fail", "force", "rejoin", "late"}).Draw(t, "what") {
			case "act":
				if len(s.todo) > 0 {
					w.act(s, rapid.Bool().Draw(t, "lost"))
				}
			case "event":
				if len(s.events) > 0 {
					s.nextEvent()
				}
			case "receive":
				w.receive(s)
			case "ask":
				if s.state.Role == role.Primary {
					s.tell(role.FailoverAsked{})
				}
			case "crash":
				s.crash()
			case "timeout":
				s.tell(role.TimedOut{})
			case "force":
				if s.state.Role == role.Secondary {
					w.forced = true
					s.tell(role.ForceAsked{Position: 1})
				}
			case "rejoin":
				w.rejoin()
			case "late": // a message that was long on its way
				if told := w.other(s).told; len(told) > 0 {
					s.tell(role.PeerSeen{Peer: told[rapid.IntRange(0, len(told)-1).Draw(t, "of")]})
				}
			case "fail":
				s.tell(role.Failed{Cause: errors.New("injected")})
			case "exchange":
				w.exchange()
			}
			w.check(t)
		}
		w.settle(t)
		a, b := w.a.state, w.b.state
		if w.a.open == w.b.open || a.Role == b.Role || a.Term != b.Term || a.Phase != role.Steady || b.Phase != role.Steady {
			t.Fatalf("at rest: A open %v %+v, B open %v %+v", w.a.open, a, w.b.open, b)
		}
		old := &w.a
		if b.Role == role.Primary {
			old = &w.b
		}
		old.tell(role.FailoverAsked{})
		w.settle(t)
		if old.state.Role != role.Secondary || !w.other(old).open {
			t.Fatalf("a failover without a fault was taken back: %v: A %+v, B %+v", old.reports, w.a.state, w.b.state)
		}
	})
}
