package verify

import (
	"slices"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Verdict is the answer for one table.
type Verdict string

// The three answers.
const (
	Same      Verdict = "same"
	Differs   Verdict = "differs"
	Unchecked Verdict = "unchecked" // it could not be read on one side
)

// Report is the outcome of a comparison.
type Report struct {
	// Equal: everything was compared, and nothing differs.
	Equal bool `json:"equal"`
	// Complete: everything could be compared. Where it is false and nothing differs,
	// nothing is proved.
	Complete  bool                 `json:"complete"`
	Tables    []TableReport        `json:"tables"`
	Sequences []SequenceDifference `json:"sequences,omitempty"` // those that differ
	Schema    []SchemaDifference   `json:"schema,omitempty"`
	LeftOut   []LeftOut            `json:"left_out,omitempty"` // the primary's, whose rows the link does not carry
	// Findings say what could not be compared, tables apart.
	Findings problem.Findings `json:"findings,omitempty"`
	Seconds  float64          `json:"seconds"`
}

// TableReport is the comparison of one table.
type TableReport struct {
	Schema        string           `json:"schema"`
	Name          string           `json:"name"`
	Verdict       Verdict          `json:"verdict"`
	PrimaryRows   int64            `json:"primary_rows"`
	SecondaryRows int64            `json:"secondary_rows"`
	PrimaryHash   Hash             `json:"primary_hash"`
	SecondaryHash Hash             `json:"secondary_hash"`
	Key           []string         `json:"key,omitempty"` // the columns whose values Differences tell
	Differences   []Difference     `json:"differences,omitempty"`
	More          bool             `json:"more,omitempty"`    // there are more differences than are named
	Problem       *problem.Problem `json:"problem,omitempty"` // why it is unchecked, or differs as a whole
}

// Where a row is.
const (
	Missing   = "missing"   // on the primary alone
	Extra     = "extra"     // on the secondary alone
	Different = "different" // on both, with other values
)

// Difference is one row that is not the same on both sides; of a table without a
// key, all rows that are equal to each other.
type Difference struct {
	Kind      string   `json:"kind"`
	Key       []string `json:"key,omitempty"`
	Columns   []string `json:"columns,omitempty"` // that differ, where both sides have the row
	Text      string   `json:"text,omitempty"`    // where there is no key: the begin of the row
	Primary   int64    `json:"primary"`           // how many such rows there are
	Secondary int64    `json:"secondary"`
}

// SequenceDifference is a sequence whose secondary's state the primary did not have
// within the time of the comparison. A side without the sequence has none.
type SequenceDifference struct {
	Schema    string    `json:"schema"`
	Name      string    `json:"name"`
	Primary   *Sequence `json:"primary,omitempty"`
	Secondary *Sequence `json:"secondary,omitempty"`
}

// Compare sets two sides' digests against each other. A table that one side has
// not is told as such.
func Compare(primary, secondary []TableDigest) Report {
	theirs := map[[2]string]TableDigest{}
	for _, d := range secondary {
		theirs[[2]string{d.Schema, d.Name}] = d
	}
	var r Report
	for _, p := range primary {
		n := [2]string{p.Schema, p.Name}
		s, ok := theirs[n]
		delete(theirs, n)
		if !ok {
			r.Tables = append(r.Tables, oneSided(p, "secondary", TableReport{PrimaryRows: p.Rows, PrimaryHash: p.Hash}))
			continue
		}
		r.Tables = append(r.Tables, compareTable(p, s))
	}
	for _, s := range secondary {
		if _, left := theirs[[2]string{s.Schema, s.Name}]; left {
			r.Tables = append(r.Tables, oneSided(s, "primary", TableReport{SecondaryRows: s.Rows, SecondaryHash: s.Hash}))
		}
	}
	r.conclude()
	return r
}

func compareTable(p, s TableDigest) TableReport {
	t := TableReport{
		Schema: p.Schema, Name: p.Name, Verdict: Same,
		PrimaryRows: p.Rows, SecondaryRows: s.Rows, PrimaryHash: p.Hash, SecondaryHash: s.Hash,
	}
	switch {
	case p.Problem != nil:
		t.Verdict, t.Problem = Unchecked, on("the primary", p.Problem)
	case s.Problem != nil:
		t.Verdict, t.Problem = Unchecked, on("the secondary", s.Problem)
	case p.Rows != s.Rows || p.Hash != s.Hash:
		t.Verdict = Differs
	}
	return t
}

// on says which side a problem is of.
func on(side string, p *problem.Problem) *problem.Problem {
	q := *p
	q.Object += " on " + side
	return &q
}

func oneSided(d TableDigest, lacking string, t TableReport) TableReport {
	t.Schema, t.Name, t.Verdict = d.Schema, d.Name, Differs
	do := byHandThen("make the table as it is on the primary", d.Schema, d.Name)
	if lacking == "primary" {
		do = "as superuser: drop the table, unless it is wanted"
	}
	t.Problem = problem.New("table-missing", "table "+postgres.QuoteIdent(d.Schema, d.Name), "the "+lacking+" has no such table", byHand).At("the secondary").Advise(do)
	return t
}

// byHand begins the repair of a definition that somebody changed on the secondary.
const byHand = postgres.ByHand + " …;"

// byHandThen is how it goes on. A copy mends rows alone.
func byHandThen(do, schema, name string) string {
	return "as superuser: " + do + "; then hawser link resync NAME --table " + problem.Word(postgres.QuoteIdent(schema, name))
}

// conclude sets what follows from the parts.
func (r *Report) conclude() {
	is := func(v Verdict) func(TableReport) bool { return func(t TableReport) bool { return t.Verdict == v } }
	sure := func(d SchemaDifference) bool { return !d.Uncertain }
	r.Complete = len(r.Findings) == 0 && !slices.ContainsFunc(r.Tables, is(Unchecked))
	r.Equal = r.Complete && !slices.ContainsFunc(r.Tables, is(Differs)) && len(r.Sequences) == 0 && !slices.ContainsFunc(r.Schema, sure)
}
