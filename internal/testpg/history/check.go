package history

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"
)

// Kind is a way in which a history can be wrong.
type Kind string

// The kinds of violation.
const (
	Lost      Kind = "lost"      // acknowledged or seen, and not there
	Doubled   Kind = "doubled"   // there more than once
	Phantom   Kind = "phantom"   // there, though it was rolled back or never tried
	Half      Kind = "half"      // some of its changes are there, not all
	Reordered Kind = "reordered" // there without one that was committed before it
	Backwards Kind = "backwards" // a later look saw less
	Differ    Kind = "differ"    // the sides are not the same at the end
)

// Violation is one contradiction.
type Violation struct {
	Kind Kind
	Text string
}

func (v Violation) String() string { return string(v.Kind) + ": " + v.Text }

// most bounds how many violations are told: one mistake shows in every later read.
const most = 20

// Check returns the contradictions in a history, none when it holds.
//
// What it takes as true is the primary's end and what clients were told. A commit
// whose outcome is unknown counts as done when it is in the primary's end. From
// there every look is held against these rules:
//
//   - it is made of whole transactions: the ledger names them, and balances, lists
//     and counters have to follow from it;
//   - it holds the first so many of each client's transactions, the first so many
//     of each list's, and everything that was acknowledged before the COMMIT of
//     anything in it was sent: what may not be missing when commits arrive in order;
//   - the looks at replicas, put in order, each contain the one before;
//   - a later look at one side contains an earlier one, unless its PostgreSQL
//     crashed in between.
//
// After a forced failover, what the old primary reports as lost has to be what it
// acknowledged and the new one has not: a transaction that is in neither is lost, one
// that is in both a phantom, and no look at a replica may show it. Looks at the old
// primary that show it are left out: they saw an end that was given up. So are looks at
// the new one when it was a replica whose PostgreSQL crashed before it took over: what
// was not durable may not have come a second time.
//
// Looks at a primary are not compared with those at a replica one by one: PostgreSQL
// may show two concurrent commits on the primary in another order than its WAL has.
func Check(h History) []Violation {
	if len(h.Finals) == 0 {
		panic("history: no end to check against")
	}
	c := &check{tried: map[ID]Attempt{}}
	h = c.giveUp(h)
	c.h = h
	for _, a := range h.Attempts {
		if _, twice := c.tried[a.Op.ID]; twice {
			panic(fmt.Sprintf("history: transaction %s was tried twice", a.Op.ID))
		}
		c.tried[a.Op.ID] = a
	}
	for _, final := range h.Finals {
		c.whole("the end on "+final.Side, final.State)
		c.acknowledged(final)
	}
	for _, final := range h.Finals[1:] {
		if !final.State.Equal(h.Finals[0].State) {
			c.found(Differ, "%s and %s have not come to the same end", h.Finals[0].Side, final.Side)
		}
	}
	if len(c.out) > 0 {
		return c.out // the end is no measure for the reads
	}
	c.order()
	c.writersSaw()
	sums := c.addUp()
	for _, r := range h.Reads {
		name := fmt.Sprintf("a look at %s at %s", r.Side, r.Began.Round(time.Millisecond))
		if !sums.fit(r.State) {
			c.whole(name, r.State)
		}
		c.prefixes(name, r)
	}
	c.forward()
	c.chain()
	return c.out
}

type check struct {
	h     History
	tried map[ID]Attempt
	out   []Violation
	// acks are each client's acknowledged transactions that lie in the truth, and
	// at which place in the ledger.
	acks [][]ack
}

type ack struct {
	ended time.Duration
	place int // how many of the client's a look has that has this one
}

// giveUp returns the history without what is reported as lost.
func (c *check) giveUp(h History) History {
	if len(h.Reported) == 0 {
		return h
	}
	lost := map[ID]string{}
	for _, r := range h.Reported {
		if _, twice := lost[r.ID]; twice {
			c.found(Doubled, "%s is reported as lost twice", r.ID)
		}
		lost[r.ID] = r.Side
	}
	h.Attempts = slices.Clone(h.Attempts)
	for i, a := range h.Attempts {
		side, reported := lost[a.Op.ID]
		delete(lost, a.Op.ID)
		switch {
		case !reported:
		case a.Outcome == Aborted:
			c.found(Phantom, "%s is reported as lost by %s, and was rolled back on %s", a.Op.ID, side, a.Side)
		case a.Side != side:
			c.found(Phantom, "%s is reported as lost by %s, and was tried on %s", a.Op.ID, side, a.Side)
		default:
			h.Attempts[i].Outcome = GivenUp
		}
	}
	for id, side := range lost {
		c.found(Phantom, "%s is reported as lost by %s, and nobody tried it", id, side)
	}
	reads := h.Reads
	h.Reads = slices.DeleteFunc(slices.Clone(reads), func(r Read) bool {
		return slices.ContainsFunc(h.Reported, func(l Reported) bool {
			return r.State.has(l.ID) && (l.Side == r.Side && !r.Replica || l.Side != r.Side && r.Replica && crashedBeforeLeading(reads, r))
		})
	})
	return h
}

// crashedBeforeLeading tells that the side's PostgreSQL crashed between a look at it, a
// replica, and the first one that met it as the primary.
func crashedBeforeLeading(reads []Read, look Read) bool {
	var first *Read
	for i, r := range reads {
		if r.Side == look.Side && r.Current && r.Began >= look.Ended && (first == nil || r.Began < first.Began) {
			first = &reads[i]
		}
	}
	return first != nil && first.Life > look.Life
}

// has tells whether a state's ledger names a transaction.
func (s State) has(id ID) bool {
	_, there := slices.BinarySearch(s.Ledger[id.Client()], id.N())
	return there
}

// undone tells whether a transaction may be nowhere.
func (a Attempt) undone() bool { return a.Outcome == Aborted || a.Outcome == GivenUp }

func (c *check) truth() State { return c.h.Finals[0].State }

func (c *check) found(k Kind, format string, args ...any) {
	if len(c.out) < most {
		c.out = append(c.out, Violation{k, fmt.Sprintf(format, args...)})
	}
}

// acknowledged holds an end against what clients were told.
func (c *check) acknowledged(final Read) {
	for _, a := range c.h.Attempts {
		there := final.State.has(a.Op.ID)
		switch {
		case a.Outcome == Committed && !there:
			c.found(Lost, "%s was acknowledged by %s at %s and is not on %s at the end", a.Op.ID, a.Side, a.Ended.Round(time.Millisecond), final.Side)
		case a.undone() && there:
			c.found(Phantom, "%s was %s on %s at %s and is on %s at the end", a.Op.ID, a.Outcome, a.Side, a.Ended.Round(time.Millisecond), final.Side)
		}
	}
}

// whole holds a state against the transactions that its ledger names.
func (c *check) whole(name string, s State) {
	want, count := c.h.Workload.Initial(), map[ID]int{}
	for client, numbers := range s.Ledger {
		for i, n := range numbers {
			id := MakeID(client, n)
			if i > 0 && numbers[i-1] == n {
				c.found(Doubled, "%s: %s is in the ledger twice", name, id)
			}
			if a, ok := c.tried[id]; !ok {
				c.found(Phantom, "%s: %s is in the ledger and nobody tried it", name, id)
				continue
			} else if a.undone() {
				c.found(Phantom, "%s: %s is in the ledger and was %s", name, id, a.Outcome)
			}
			want.apply(c.tried[id].Op)
			count[id] = 0
		}
	}
	for i, list := range s.Lists {
		c.listed(name, i, list, count)
	}
	for id, n := range count {
		if n == 0 {
			c.found(Half, "%s: %s is in the ledger and not in list %d", name, id, c.tried[id].Op.List)
		}
	}
	for i, got := range s.Counters {
		if got != want.Counters[i] {
			c.found(Half, "%s: the counter of client %d is %+v, by the ledger it is %+v", name, i, got, want.Counters[i])
		}
	}
	for i, got := range s.Accounts {
		if got != want.Accounts[i] {
			c.found(Half, "%s: account %d has %d, by the ledger it is %d", name, i, got, want.Accounts[i])
		}
	}
}

// listed counts a list's transactions, and finds those that do not belong there.
func (c *check) listed(name string, list int, ids []ID, count map[ID]int) {
	for _, id := range ids {
		n, known := count[id]
		a, tried := c.tried[id]
		switch {
		case !tried:
			c.found(Phantom, "%s: %s is in list %d and nobody tried it", name, id, list)
		case !known && a.undone():
			c.found(Phantom, "%s: %s is in list %d and was %s", name, id, list, a.Outcome)
		case !known:
			c.found(Half, "%s: %s is in list %d and not in the ledger", name, id, list)
		case a.Op.List != list:
			c.found(Phantom, "%s: %s is in list %d, it belongs to list %d", name, id, list, a.Op.List)
		case n == 1:
			c.found(Doubled, "%s: %s is in list %d twice", name, id, list)
		}
		if known {
			count[id]++
		}
	}
}

// order notes the acknowledged transactions of each client in the truth.
func (c *check) order() {
	c.acks = make([][]ack, c.h.Workload.Clients)
	for client, numbers := range c.truth().Ledger {
		for i, n := range numbers {
			if a := c.tried[MakeID(client, n)]; a.Outcome == Committed {
				c.acks[client] = append(c.acks[client], ack{a.Ended, i + 1})
			}
		}
	}
}

// due is how many of a client's transactions were acknowledged by at, or lie before
// one that was.
func (c *check) due(client int, at time.Duration) int {
	acks := c.acks[client]
	i := sort.Search(len(acks), func(i int) bool { return acks[i].ended >= at })
	if i == 0 {
		return 0
	}
	return acks[i-1].place
}

// prefixes holds a look against the truth.
func (c *check) prefixes(name string, r Read) {
	var last time.Duration // when the newest COMMIT in it was sent
	if r.Current {
		last = r.Began
	}
	for client, numbers := range r.State.Ledger {
		c.clientPrefix(name, client, numbers)
		if len(numbers) > 0 {
			last = max(last, c.tried[MakeID(client, numbers[len(numbers)-1])].Sent)
		}
	}
	if last > r.Ended {
		c.found(Phantom, "%s shows a transaction whose COMMIT was sent at %s", name, last.Round(time.Millisecond))
	}
	for client, numbers := range r.State.Ledger {
		if due := c.due(client, last); len(numbers) < due {
			kind, why := Reordered, "one that began to commit later"
			if r.Current {
				kind, why = Lost, "it is the primary, or has one that began to commit later"
			}
			c.found(kind, "%s lacks %s, acknowledged before %s: %s", name,
				MakeID(client, c.truth().Ledger[client][len(numbers)]), last.Round(time.Millisecond), why)
		}
	}
	for i, list := range r.State.Lists {
		whole := c.truth().Lists[i]
		if len(list) > len(whole) || !slices.Equal(list, whole[:len(list)]) {
			c.found(Reordered, "%s: list %d does not begin as it ends: %s", name, i, firstDifference(list, whole))
		}
	}
}

func firstDifference(got, want []ID) string {
	for i, id := range got {
		if i >= len(want) || want[i] != id {
			return fmt.Sprintf("%s at place %d", id, i+1)
		}
	}
	return "no difference"
}

// clientPrefix: a look has the first so many of a client's transactions.
func (c *check) clientPrefix(name string, client int, numbers []int64) {
	whole := c.truth().Ledger[client]
	for i, n := range numbers {
		if i < len(whole) && whole[i] == n {
			continue
		}
		if _, there := slices.BinarySearch(whole, n); there {
			c.found(Reordered, "%s has %s and lacks %s before it", name, MakeID(client, n), MakeID(client, whole[i]))
		} else {
			c.found(Lost, "%s has %s, which is not there at the end", name, MakeID(client, n))
		}
		return
	}
}

// writersSaw holds what each transaction saw against its place in the truth.
func (c *check) writersSaw() {
	for client, numbers := range c.truth().Ledger {
		var before Counter
		for _, n := range numbers {
			a := c.tried[MakeID(client, n)]
			if a.Before != before {
				c.found(Lost, "%s, on %s at %s, saw its client's counter at %+v; %+v lies before it",
					a.Op.ID, a.Side, a.Sent.Round(time.Millisecond), a.Before, before)
			}
			before = Counter{n, before.Count + 1}
		}
	}
	for i, list := range c.truth().Lists {
		for place, id := range list {
			if a := c.tried[id]; a.Place != place+1 {
				c.found(Reordered, "%s, on %s at %s, was at place %d of list %d and is at %d", id, a.Side, a.Sent.Round(time.Millisecond), a.Place, i, place+1)
			}
		}
	}
}

// size is how many of each client's transactions a state has. Of states that are
// prefixes of one truth it says all.
func size(s State) []int {
	out := make([]int, len(s.Ledger))
	for i, numbers := range s.Ledger {
		out[i] = len(numbers)
	}
	return out
}

func sum(v []int) (n int) {
	for _, x := range v {
		n += x
	}
	return n
}

// short returns a client of which small has more than large, or -1.
func short(small, large []int) int {
	for i := range small {
		if small[i] > large[i] {
			return i
		}
	}
	return -1
}

// forward: a later look at one side, in one life of its PostgreSQL, sees no less.
func (c *check) forward() {
	type life struct {
		side string
		life int
	}
	lives := map[life][]Read{}
	for _, r := range c.h.Reads {
		l := life{r.Side, r.Life}
		lives[l] = append(lives[l], r)
	}
	for _, reads := range lives {
		byEnd := slices.Clone(reads)
		slices.SortFunc(byEnd, func(a, b Read) int { return cmp.Compare(a.Ended, b.Ended) })
		slices.SortFunc(reads, func(a, b Read) int { return cmp.Compare(a.Began, b.Began) })
		seen, from, next := make([]int, c.h.Workload.Clients), make([]Read, c.h.Workload.Clients), 0
		for _, r := range reads {
			for ; next < len(byEnd) && byEnd[next].Ended < r.Began; next++ {
				for client, n := range size(byEnd[next].State) {
					if n > seen[client] {
						seen[client], from[client] = n, byEnd[next]
					}
				}
			}
			if client := short(seen, size(r.State)); client >= 0 {
				c.found(Backwards, "%s showed %d transactions of client %d at %s, and %d at %s, without a crash in between", r.Side,
					seen[client], client, from[client].Ended.Round(time.Millisecond), len(r.State.Ledger[client]), r.Began.Round(time.Millisecond))
			}
		}
	}
}

// chain: of any two looks at replicas one contains the other, since there is one
// order of commits.
func (c *check) chain() {
	var reads []Read
	for _, r := range c.h.Reads {
		if r.Replica {
			reads = append(reads, r)
		}
	}
	slices.SortFunc(reads, func(a, b Read) int { return sum(size(a.State)) - sum(size(b.State)) })
	for i := 1; i < len(reads); i++ {
		a, b := reads[i-1], reads[i]
		if client := short(size(a.State), size(b.State)); client >= 0 {
			c.found(Reordered, "%s at %s has one of client %d that %s at %s lacks, which has others: no order of commits leads to both",
				a.Side, a.Began.Round(time.Millisecond), client, b.Side, b.Began.Round(time.Millisecond))
		}
	}
}
