package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var field = Workload{Seed: 7, Clients: 3, Lists: 4, Accounts: 6, Opening: 100}

// forge plays a workload on a primary that commits one transaction at a time, and
// on a replica that shows each state a little later. It returns the history and
// the state after each commit.
func forge(seed uint64, transactions int) (History, []State) {
	r := rand.New(rand.NewPCG(seed, 1))
	h := History{Workload: field}
	now := time.Duration(0)
	tick := func() time.Duration { now += time.Millisecond; return now }
	state := field.Initial()
	states := []State{clone(state)}
	next := make([]int64, field.Clients)
	for range transactions {
		client := r.IntN(field.Clients)
		next[client]++
		op := field.Op(client, next[client])
		a := Attempt{Op: op, Side: "alpha", Outcome: Committed, Before: state.Counters[client], Place: len(state.Lists[op.List]) + 1, Sent: tick()}
		lost := r.IntN(10) == 0
		switch {
		case op.GiveUp:
			a.Outcome = Aborted
		case r.IntN(10) == 0: // the connection was lost at COMMIT
			a.Outcome = Unknown
			if lost {
				break
			}
			fallthrough
		default:
			state.apply(op)
			states = append(states, clone(state))
		}
		a.Ended = tick()
		h.Attempts = append(h.Attempts, a)
		h.Reads = append(h.Reads, Read{Side: "alpha", Current: true, Began: tick(), Ended: tick(), State: clone(state)})
		h.Reads = append(h.Reads, Read{Side: "beta", Replica: true, Began: tick(), Ended: tick(), State: clone(states[max(0, len(states)-3)])})
	}
	h.Finals = []Read{{Side: "alpha", State: clone(state)}, {Side: "beta", State: clone(state)}}
	return h, states
}

func clone(s State) State {
	out := State{Accounts: slices.Clone(s.Accounts), Counters: slices.Clone(s.Counters)}
	for _, l := range s.Lists {
		out.Lists = append(out.Lists, slices.Clone(l))
	}
	for _, l := range s.Ledger {
		out.Ledger = append(out.Ledger, slices.Clone(l))
	}
	return out
}

// built is the state that some transactions make, in this order.
func built(ids ...ID) State {
	s := field.Initial()
	for _, id := range ids {
		s.apply(field.Op(id.Client(), id.N()))
	}
	return s
}

// committed returns what was done, in the order of the acknowledgements.
func committed(h History) (ids []ID) {
	for _, a := range h.Attempts {
		if _, ok := slices.BinarySearch(h.Finals[0].State.Ledger[a.Op.ID.Client()], a.Op.ID.N()); ok {
			ids = append(ids, a.Op.ID)
		}
	}
	return ids
}

func TestTrueHistoriesHold(t *testing.T) {
	for seed := range uint64(50) {
		h, states := forge(seed, 80)
		if got := Check(h); len(got) > 0 {
			t.Fatalf("seed %d: %v", seed, got)
		}
		// A crash of the replica may take back what was not durable.
		end := h.Reads[len(h.Reads)-1].Ended
		h.Reads = append(h.Reads, Read{Side: "beta", Life: 1, Replica: true, Began: end + 1, Ended: end + 2, State: states[1]})
		if got := Check(h); len(got) > 0 {
			t.Fatalf("seed %d, after a crash: %v", seed, got)
		}
	}
}

func TestEqualToItselfAlone(t *testing.T) {
	_, states := forge(1, 30)
	for i, s := range states {
		for j, o := range states {
			if s.Equal(o) != (i == j) {
				t.Fatalf("states %d and %d", i, j)
			}
		}
	}
}

// TestLiesAreCaught forges each kind of lie in one place of a true history.
func TestLiesAreCaught(t *testing.T) {
	// replica changes the last look at the replica; ends changes both ends.
	replica := func(do func(*State)) func(*History, []State) {
		return func(h *History, _ []State) { do(&h.Reads[len(h.Reads)-1].State) }
	}
	ends := func(do func(*State)) func(*History, []State) {
		return func(h *History, _ []State) { do(&h.Finals[0].State); do(&h.Finals[1].State) }
	}
	for _, lie := range []struct {
		name string
		want Kind
		tell func(*History, []State)
	}{
		{"an acknowledged commit is on neither side", Lost, func(h *History, _ []State) {
			rest := built(committed(*h)[:len(committed(*h))-1]...)
			h.Finals[0].State, h.Finals[1].State = rest, clone(rest)
		}},
		{"an acknowledged commit is not on the replica", Lost, func(h *History, _ []State) {
			h.Finals[1].State = built(committed(*h)[:len(committed(*h))-1]...)
		}},
		{"one in the middle is lost, and what follows is not", Lost, func(h *History, _ []State) {
			rest := built(slices.Delete(committed(*h), 20, 21)...)
			h.Finals[0].State, h.Finals[1].State = rest, clone(rest)
		}},
		{"the new primary lacks what the old one acknowledged", Lost, func(h *History, states []State) {
			end := h.Reads[len(h.Reads)-1].Ended
			h.Reads = append(h.Reads, Read{Side: "gamma", Current: true, Began: end + 1, Ended: end + 2, State: states[len(states)-3]})
		}},
		{"a reader saw one that is gone at the end", Lost, func(h *History, _ []State) {
			gone := Attempt{Op: field.Op(0, 999), Side: "alpha", Outcome: Unknown}
			h.Attempts = append(h.Attempts, gone)
			h.Reads[len(h.Reads)-1].State.apply(gone.Op)
		}},
		{"a writer did not see its own last commit", Lost, func(h *History, _ []State) {
			a := h.Attempts[slices.IndexFunc(h.Attempts, func(a Attempt) bool { return a.Before.Count == 5 && a.Outcome == Committed })]
			a.Before.Count--
			h.Attempts[slices.IndexFunc(h.Attempts, func(b Attempt) bool { return b.Op.ID == a.Op.ID })] = a
		}},
		{"a list has one twice", Doubled, ends(func(s *State) { s.Lists[1] = append(s.Lists[1], s.Lists[1][0]) })},
		{"a ledger has one twice", Doubled, ends(func(s *State) { s.Ledger[1] = slices.Insert(s.Ledger[1], 1, s.Ledger[1][0]) })},
		{"a whole transaction was done twice, on the replica", Doubled, func(h *History, _ []State) {
			ids := committed(*h)
			h.Finals[1].State = built(append(ids, ids[len(ids)-1])...)
		}},
		{"a transfer was done twice", Half, ends(func(s *State) { s.Accounts[0]--; s.Accounts[1]++ })},
		{"money is gone", Half, replica(func(s *State) { s.Accounts[2] -= 3 })},
		{"the ledger lacks one", Half, replica(func(s *State) { s.Ledger[0] = s.Ledger[0][:len(s.Ledger[0])-1] })},
		{"a list lacks one", Half, replica(func(s *State) { s.Lists[2] = s.Lists[2][:len(s.Lists[2])-1] })},
		{"a counter is behind", Half, replica(func(s *State) { s.Counters[2].Count-- })},
		{"one that was rolled back is there", Phantom, func(h *History, _ []State) {
			op := h.Attempts[slices.IndexFunc(h.Attempts, func(a Attempt) bool { return a.Outcome == Aborted })].Op
			for i := range h.Finals {
				h.Finals[i].State.Lists[op.List] = append(h.Finals[i].State.Lists[op.List], op.ID)
			}
		}},
		{"one that nobody tried is there", Phantom, ends(func(s *State) { s.apply(field.Op(1, 5000)) })},
		{"what a savepoint took back is there", Phantom, replica(func(s *State) { s.Lists[0] = append(s.Lists[0], -1) })},
		{"a look shows what was committed after it", Phantom, func(h *History, states []State) {
			h.Reads[9].State = states[len(states)-1]
		}},
		{"a client's later one without its earlier one", Reordered, func(h *History, _ []State) {
			ids := committed(*h)
			last := ids[len(ids)-1]
			i := slices.IndexFunc(ids, func(id ID) bool { return id.Client() == last.Client() && id != last })
			h.Reads[len(h.Reads)-1].State = built(slices.Delete(slices.Clone(ids), i, i+1)...)
		}},
		{"one that began later without one that was acknowledged before", Reordered, func(h *History, _ []State) {
			// The last of another client than the very last is left out, so each
			// client's are a prefix; its list is looked after.
			ids := committed(*h)
			i := len(ids) - 2
			for ids[i].Client() == ids[len(ids)-1].Client() || h.tried(ids[i]).Outcome != Committed {
				i--
			}
			rest := slices.DeleteFunc(slices.Clone(ids), func(id ID) bool { return id.Client() == ids[i].Client() && id.N() >= ids[i].N() })
			h.Reads[len(h.Reads)-1].State = built(rest...)
		}},
		{"a list in another order", Reordered, replica(func(s *State) { l := s.Lists[0]; l[0], l[1] = l[1], l[0] })},
		{"two concurrent commits in one order, and in the other", Reordered, func(h *History, _ []State) {
			concurrent(h)
			end := h.Reads[len(h.Reads)-1].Ended
			ids := committed(*h)
			rest := ids[:len(ids)-2]
			for i, id := range ids[len(ids)-2:] {
				h.Reads = append(h.Reads, Read{Side: fmt.Sprint("replica ", i), Replica: true, Began: end + 1, Ended: end + 2, State: built(append(slices.Clone(rest), id)...)})
			}
		}},
		{"a reader goes back", Backwards, func(h *History, states []State) {
			end := h.Reads[len(h.Reads)-1].Ended
			h.Reads = append(h.Reads, Read{Side: "beta", Replica: true, Began: end + 1, Ended: end + 2, State: states[3]})
		}},
		{"the replica has more than the primary at the end", Differ, func(h *History, _ []State) {
			op := field.Op(0, 999)
			h.Attempts = append(h.Attempts, Attempt{Op: op, Side: "alpha", Outcome: Unknown})
			h.Finals[1].State.apply(op)
		}},
	} {
		t.Run(lie.name, func(t *testing.T) {
			h, states := forge(3, 80)
			if got := Check(h); len(got) > 0 {
				t.Fatalf("before the lie: %v", got)
			}
			lie.tell(&h, states)
			got := Check(h)
			if !slices.ContainsFunc(got, func(v Violation) bool { return v.Kind == lie.want }) {
				t.Fatalf("want %s, got %v", lie.want, got)
			}
			t.Log(got[0])
		})
	}
}

func (h History) tried(id ID) Attempt {
	return h.Attempts[slices.IndexFunc(h.Attempts, func(a Attempt) bool { return a.Op.ID == id })]
}

// concurrent adds two transactions of two clients that commit at one time, and
// whose lists differ: only the order of commits ties them.
func concurrent(h *History) {
	now := h.Reads[len(h.Reads)-1].Ended + 1
	state := clone(h.Finals[0].State)
	var taken = -1
	for client := range 2 {
		n := int64(1000)
		for field.Op(client, n).List == taken || field.Op(client, n).GiveUp {
			n++
		}
		op := field.Op(client, n)
		taken = op.List
		h.Attempts = append(h.Attempts, Attempt{
			Op: op, Side: "alpha", Outcome: Committed, Before: state.Counters[client], Place: len(state.Lists[op.List]) + 1, Sent: now, Ended: now + 10,
		})
		state.apply(op)
	}
	for i := range h.Finals {
		h.Finals[i].State = clone(state)
	}
	h.Reads[len(h.Reads)-1].Ended = now + 10
}

// TestEveryMissingOneIsCaught leaves each acknowledged transaction out of the
// replica's last look in turn. Only one that is the last of all may be missing.
func TestEveryMissingOneIsCaught(t *testing.T) {
	h, _ := forge(5, 60)
	ids := committed(h)
	last := len(h.Reads) - 1
	for i, id := range ids {
		if h.tried(id).Outcome != Committed {
			continue
		}
		h.Reads[last].State = built(slices.Delete(slices.Clone(ids), i, i+1)...)
		if caught := len(Check(h)) > 0; caught != (i < len(ids)-1) {
			t.Errorf("%s, number %d of %d: caught %v", id, i+1, len(ids), caught)
		}
	}
}

func TestFewAreTold(t *testing.T) {
	h, _ := forge(3, 80)
	for i := range h.Reads {
		h.Reads[i].State.Accounts[0]++
	}
	if got := Check(h); len(got) != most || !strings.Contains(got[0].String(), "half: ") {
		t.Errorf("%d violations", len(got))
	}
}

// TestFitIsWhole holds the quick answer against the thorough one, on states with
// one thing changed.
func TestFitIsWhole(t *testing.T) {
	h, states := forge(9, 60)
	c := &check{h: h, tried: map[ID]Attempt{}}
	for _, a := range h.Attempts {
		c.tried[a.Op.ID] = a
	}
	sums := c.addUp()
	for i, s := range states {
		for name, change := range map[string]func(*State){
			"nothing": func(*State) {},
			"account": func(s *State) { s.Accounts[i%field.Accounts]++ },
			"counter": func(s *State) { s.Counters[i%field.Clients].Count++ },
			"list":    func(s *State) { shorten(s.Lists, i) },
			"ledger":  func(s *State) { shorten(s.Ledger, i) },
			"two lists": func(s *State) {
				from, to := i%field.Lists, (i+1)%field.Lists
				if n := len(s.Lists[to]); n < len(h.Finals[0].State.Lists[to]) && shorten(s.Lists, from) {
					s.Lists[to] = append(s.Lists[to], h.Finals[0].State.Lists[to][n])
				}
			},
		} {
			got := clone(s)
			change(&got)
			c.out = nil
			c.whole("it", got)
			if fit := sums.fit(got); fit != (len(c.out) == 0) {
				t.Errorf("state %d, %s changed: fit %v, and whole says %v", i, name, fit, c.out)
			}
		}
	}
}

// shorten takes the last off one of some lists.
func shorten[T any](lists [][]T, i int) bool {
	l := lists[i%len(lists)]
	if len(l) == 0 {
		return false
	}
	lists[i%len(lists)] = l[:len(l)-1]
	return true
}

func TestRecorderKeepsWhatWasRead(t *testing.T) {
	h, states := forge(4, 60)
	r := NewRecorder(field)
	odd := built(MakeID(1, 2), MakeID(0, 1)) // the beginning of nothing
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(len(states)) {
		r.Read(Read{Life: i, State: clone(states[i])})
		r.Read(Read{Life: -1, State: clone(odd)})
	}
	for _, a := range h.Attempts {
		r.Attempt(a)
	}
	for _, read := range r.Finish(h.Finals...).Reads {
		want := odd
		if read.Life >= 0 {
			want = states[read.Life]
		}
		if !read.State.Equal(want) {
			t.Fatalf("state %d came back as %+v, want %+v", read.Life, read.State, want)
		}
	}
}
