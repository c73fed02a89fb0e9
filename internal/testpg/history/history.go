// Package history accounts for every transaction of a workload: what clients tried
// and were told, what readers saw, what is there at the end; and it finds where the
// three contradict each other.
//
// A transaction moves money between two accounts, appends itself to one list, sets
// its client's counter, and writes itself into a ledger. So a state tells which
// transactions it is made of in four ways, and half of one shows. The package is
// pure: whoever runs the workload brings the database and the clock. It is for tests
// alone and must never be imported by shipped code.
package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// ID names a transaction: its client, and a number that grows with each one that
// the client tries.
type ID int64

const idBits = 32

// MakeID is the ID of a client's n-th transaction.
func MakeID(client int, n int64) ID { return ID(int64(client)<<idBits | n) }

// Client is who tries it.
func (id ID) Client() int { return int(id >> idBits) }

// N is its number among its client's.
func (id ID) N() int64 { return int64(id) & (1<<idBits - 1) }

func (id ID) String() string { return fmt.Sprintf("%d:%d", id.Client(), id.N()) }

// Workload is the size of the playing field, and the seed of what is done on it.
type Workload struct {
	Seed                     uint64
	Clients, Lists, Accounts int
	Opening                  int64 // what each account begins with
}

// Op is one transaction as it is meant.
type Op struct {
	ID       ID
	List     int
	From, To int // accounts, different ones
	Amount   int64
	Bulk     int  // bytes that the ledger's row carries besides
	Detour   bool // does something wrong first, inside a savepoint that is rolled back
	GiveUp   bool // is rolled back at the end
	HangUp   bool // its client goes away as soon as it has sent the COMMIT
}

// Op returns what a client's n-th transaction does. It is the same at every call.
func (w Workload) Op(client int, n int64) Op {
	id := MakeID(client, n)
	r := rand.New(rand.NewPCG(w.Seed, uint64(id)))
	op := Op{ID: id, List: r.IntN(w.Lists), From: r.IntN(w.Accounts), Amount: 1 + r.Int64N(9)}
	op.To = (op.From + 1 + r.IntN(w.Accounts-1)) % w.Accounts
	op.Detour, op.GiveUp, op.HangUp = r.IntN(8) == 0, r.IntN(12) == 0, r.IntN(60) == 0
	if r.IntN(60) == 0 {
		op.Bulk = 50_000 + r.IntN(250_000) // streamed before its commit
	}
	return op
}

// State is what one look at the database showed.
type State struct {
	Accounts []int64   // the balance of each
	Lists    [][]ID    // in the order of the appends
	Counters []Counter // of each client
	Ledger   [][]int64 // the numbers of each client's transactions, ascending
}

// Counter is the last number that a client committed, and how many it did.
type Counter struct{ Last, Count int64 }

// Initial is the state before the first transaction.
func (w Workload) Initial() State {
	s := State{
		Accounts: make([]int64, w.Accounts), Lists: make([][]ID, w.Lists),
		Counters: make([]Counter, w.Clients), Ledger: make([][]int64, w.Clients),
	}
	for i := range s.Accounts {
		s.Accounts[i] = w.Opening
	}
	return s
}

// apply does a transaction.
func (s *State) apply(op Op) {
	s.Accounts[op.From] -= op.Amount
	s.Accounts[op.To] += op.Amount
	s.Lists[op.List] = append(s.Lists[op.List], op.ID)
	c := op.ID.Client()
	s.Counters[c] = Counter{op.ID.N(), s.Counters[c].Count + 1}
	s.Ledger[c] = append(s.Ledger[c], op.ID.N())
}

// Equal tells whether two states are the same.
func (s State) Equal(o State) bool {
	return slices.Equal(s.Accounts, o.Accounts) && slices.Equal(s.Counters, o.Counters) &&
		slices.EqualFunc(s.Lists, o.Lists, slices.Equal) && slices.EqualFunc(s.Ledger, o.Ledger, slices.Equal)
}

// Outcome is what a client knows of its transaction.
type Outcome string

// The outcomes. A transaction whose COMMIT was sent and not answered is Unknown. One
// that was GivenUp was committed by a primary that a forced failover left behind, and
// is reported there.
const (
	Aborted   Outcome = "aborted"
	Committed Outcome = "committed"
	Unknown   Outcome = "unknown"
	GivenUp   Outcome = "given up"
)

// Attempt is one transaction as its client lived through it.
type Attempt struct {
	Op      Op
	Side    string // where
	Outcome Outcome
	// Sent is just before the COMMIT, Ended when the outcome was there.
	Sent, Ended time.Duration
	// What it saw: its client's counter before it, and its own place in its list.
	Before Counter
	Place  int
}

// Read is one look at one side.
type Read struct {
	Side string
	// Life counts the crashes of that side's PostgreSQL. A replica commits
	// asynchronously: a crash may take back what was seen and was not yet durable.
	Life int
	// Replica: the side was secondary all the while. Current: it was primary, and
	// has to show all that was acknowledged before.
	Replica, Current bool
	Began, Ended     time.Duration
	State            State
}

// Reported is a transaction of which a side says that a forced failover lost it.
type Reported struct {
	Side string
	ID   ID
}

// History is all that is known when everything is quiet.
type History struct {
	Workload Workload
	Attempts []Attempt
	Reads    []Read
	Reported []Reported
	// Finals is the end on each side, the primary's first.
	Finals []Read
}

// Recorder collects a history from many goroutines.
type Recorder struct {
	start     time.Time
	mu        sync.Mutex
	h         History
	committed int
	lists     [][]ID // the longest that was read, of each
	ledger    [][]int64
}

// NewRecorder begins a history. Its clock begins now.
func NewRecorder(w Workload) *Recorder {
	return &Recorder{start: time.Now(), h: History{Workload: w}, lists: make([][]ID, w.Lists), ledger: make([][]int64, w.Clients)}
}

// Now is the history's clock. It never goes backwards.
func (r *Recorder) Now() time.Duration { return time.Since(r.start) }

// Attempt adds what a client lived through.
func (r *Recorder) Attempt(a Attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Attempts = append(r.h.Attempts, a)
	if a.Outcome == Committed {
		r.committed++
	}
}

// Read adds what a reader saw. The read's lists and ledger are kept once for all
// reads of which they are the beginning: each look shows nearly what the last did.
func (r *Recorder) Read(read Read) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, list := range read.State.Lists {
		if i < len(r.lists) {
			read.State.Lists[i] = share(&r.lists[i], list)
		}
	}
	for i, numbers := range read.State.Ledger {
		if i < len(r.ledger) {
			read.State.Ledger[i] = share(&r.ledger[i], numbers)
		}
	}
	r.h.Reads = append(r.h.Reads, read)
}

// Report adds what a side reports as lost.
func (r *Recorder) Report(lost ...Reported) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Reported = append(r.h.Reported, lost...)
}

// share returns got out of known's memory, if the one is the beginning of the other.
func share[T comparable](known *[]T, got []T) []T {
	both := min(len(*known), len(got))
	if !slices.Equal((*known)[:both], got[:both]) {
		return got
	}
	*known = append(*known, got[both:]...)
	return (*known)[:len(got):len(got)]
}

// Committed is how many transactions were acknowledged by now.
func (r *Recorder) Committed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.committed
}

// Finish returns the history with its end. Nothing may be added later.
func (r *Recorder) Finish(finals ...Read) History {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.h
	h.Finals = finals
	return h
}
