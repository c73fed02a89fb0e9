package history

import (
	"slices"
	"testing"
	"time"
)

// forced is a history in which alpha is left behind by a forced failover: the last of
// what it acknowledged is not on beta, which goes on without it, and is reported.
func forced(seed uint64) (h History, lost []ID) {
	h, _ = forge(seed, 60)
	done := committed(h)
	kept := done[:len(done)-5]
	lost = done[len(done)-5:]
	h.Reads = slices.DeleteFunc(h.Reads, func(r Read) bool {
		return r.Side == "beta" && slices.ContainsFunc(lost, r.State.has)
	})
	state := built(kept...)
	now := h.Reads[len(h.Reads)-1].Ended
	for client := range field.Clients {
		now += time.Millisecond
		op := field.Op(client, 1000)
		a := Attempt{Op: op, Side: "beta", Outcome: Committed, Before: state.Counters[client], Place: len(state.Lists[op.List]) + 1, Sent: now, Ended: now + 1}
		state.apply(op)
		h.Attempts = append(h.Attempts, a)
		h.Reads = append(h.Reads, Read{Side: "beta", Current: true, Began: now + 2, Ended: now + 3, State: clone(state)})
	}
	h.Reads = append(h.Reads, Read{Side: "alpha", Replica: true, Began: now + 4, Ended: now + 5, State: clone(state)})
	h.Finals = []Read{{Side: "beta", State: clone(state)}, {Side: "alpha", State: clone(state)}}
	for _, id := range lost {
		h.Reported = append(h.Reported, Reported{"alpha", id})
	}
	return h, lost
}

func TestTrueForcedFailoversHold(t *testing.T) {
	for seed := range uint64(50) {
		h, _ := forced(seed)
		if got := Check(h); len(got) > 0 {
			t.Fatalf("seed %d: %v", seed, got)
		}
	}
}

// TestLiesOfReportsAreCaught forges reports that say too little or too much, and
// replicas that show what was given up.
func TestLiesOfReportsAreCaught(t *testing.T) {
	for _, lie := range []struct {
		name string
		want Kind
		tell func(h *History, lost []ID)
	}{
		{"one is neither there nor reported", Lost, func(h *History, _ []ID) { h.Reported = h.Reported[1:] }},
		{"one is reported twice", Doubled, func(h *History, lost []ID) { h.Reported = append(h.Reported, Reported{"alpha", lost[2]}) }},
		{"one is reported and is there", Phantom, func(h *History, _ []ID) {
			h.Reported = append(h.Reported, Reported{"alpha", committed(*h)[0]})
		}},
		{"one is reported that nobody tried", Phantom, func(h *History, _ []ID) {
			h.Reported = append(h.Reported, Reported{"alpha", MakeID(1, 5000)})
		}},
		{"one is reported that was rolled back", Phantom, func(h *History, _ []ID) {
			h.Attempts = append(h.Attempts, Attempt{Op: field.Op(1, 5000), Side: "alpha", Outcome: Aborted})
			h.Reported = append(h.Reported, Reported{"alpha", MakeID(1, 5000)})
		}},
		{"one is reported by another side", Phantom, func(h *History, lost []ID) { h.Reported[0].Side = "beta" }},
		{"the secondary had shown one before", Phantom, func(h *History, lost []ID) {
			state := clone(h.Finals[0].State)
			state.apply(field.Op(lost[0].Client(), lost[0].N()))
			h.Reads = append([]Read{{Side: "beta", Replica: true, Began: 1, Ended: 2, State: state}}, h.Reads...)
		}},
	} {
		h, lost := forced(3)
		lie.tell(&h, lost)
		if got := Check(h); !slices.ContainsFunc(got, func(v Violation) bool { return v.Kind == lie.want }) {
			t.Errorf("%s: %v", lie.name, got)
		}
	}
}

// TestCrashBeforeAForcedFailover: what the new primary showed as a replica, and a crash of it
// took back, may be given up when the old one is lost before it came once more. A crash
// behind the failover explains nothing.
func TestCrashBeforeAForcedFailover(t *testing.T) {
	for _, crash := range []struct {
		name          string
		look, leading int // lives
		holds         bool
	}{{"before", 0, 1, true}, {"none", 1, 1, false}, {"before the look", 2, 1, false}} {
		h, lost := forced(3)
		state := built(committed(h)...)
		for _, id := range lost {
			state.apply(field.Op(id.Client(), id.N()))
		}
		for i := range h.Reads {
			h.Reads[i].Life = crash.leading
		}
		h.Reads = append(h.Reads, Read{Side: "beta", Life: crash.look, Replica: true, Began: 1, Ended: 2, State: clone(state)})
		if got := Check(h); (len(got) == 0) != crash.holds {
			t.Errorf("crash %s: %v", crash.name, got)
		}
	}
}
