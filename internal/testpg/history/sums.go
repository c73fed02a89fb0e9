package history

import "slices"

// sums answer whether a state is whole without building it: for a state that is a
// beginning of the truth, all follows from how many transactions of each client it
// has. Thousands of looks at thousands of transactions would take minutes else.
type sums struct {
	w     Workload
	truth State
	// moved is what a client's first so many transactions did to each account.
	moved [][][]int64
	// reach is how many of each client's transactions a state must have that has the
	// first so many of a list.
	reach [][][]int
}

// addUp prepares the truth, which has been found whole.
func (c *check) addUp() *sums {
	s := &sums{w: c.h.Workload, truth: c.truth()}
	place := map[ID]int{}
	for client, numbers := range s.truth.Ledger {
		now := make([]int64, s.w.Accounts)
		moved := [][]int64{now}
		for i, n := range numbers {
			op := c.tried[MakeID(client, n)].Op
			now = slices.Clone(now)
			now[op.From] -= op.Amount
			now[op.To] += op.Amount
			moved = append(moved, now)
			place[op.ID] = i + 1
		}
		s.moved = append(s.moved, moved)
	}
	for _, list := range s.truth.Lists {
		now := make([]int, s.w.Clients)
		reach := [][]int{now}
		for _, id := range list {
			now = slices.Clone(now)
			now[id.Client()] = max(now[id.Client()], place[id])
			reach = append(reach, now)
		}
		s.reach = append(s.reach, reach)
	}
	return s
}

// fit tells that a state is a beginning of the truth and whole. One that does not
// fit may be anything.
func (s *sums) fit(state State) bool {
	if len(state.Ledger) != len(s.truth.Ledger) || len(state.Lists) != len(s.truth.Lists) || len(state.Counters) != s.w.Clients {
		return false
	}
	accounts, total, listed := s.w.Initial().Accounts, 0, 0
	for client, numbers := range state.Ledger {
		k := len(numbers)
		if !begins(numbers, s.truth.Ledger[client]) {
			return false
		}
		want := Counter{Count: int64(k)}
		if k > 0 {
			want.Last = numbers[k-1]
		}
		if state.Counters[client] != want {
			return false
		}
		for i, d := range s.moved[client][k] {
			accounts[i] += d
		}
		total += k
	}
	for i, list := range state.Lists {
		if !begins(list, s.truth.Lists[i]) || short(s.reach[i][len(list)], size(state)) >= 0 {
			return false
		}
		listed += len(list)
	}
	return listed == total && slices.Equal(state.Accounts, accounts)
}

func begins[T comparable](some, all []T) bool {
	return len(some) <= len(all) && slices.Equal(some, all[:len(some)])
}
