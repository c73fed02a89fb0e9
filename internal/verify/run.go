package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// RunOptions say what is compared.
type RunOptions struct {
	// Only picks the tables that count; nil means all.
	Only func(schema, name string) bool
	// Listed says that the tables which the primary lists are all that count.
	Listed bool
	// Differences bounds the rows that are named of each table; 0 means 100,
	// negative none.
	Differences int
	// Settle is how long a secondary's sequences may take to reach what the
	// primary's were; 0 means 5 seconds.
	Settle time.Duration
	// Behind, if not nil, tells whether the secondary still takes in what the primary
	// wrote some while ago; Settle begins when it does not.
	Behind func() (bool, error)
	// Progress is called after each group of tables.
	Progress func(Progress)
}

// Progress is how far a comparison is. Bytes are the primary's, and estimates.
type Progress struct {
	Tables     int   `json:"tables"`
	TablesDone int   `json:"tables_done"`
	Bytes      int64 `json:"bytes"`
	BytesDone  int64 `json:"bytes_done"`
}

const (
	// A request names tables until one of these is reached.
	requestBytes  = 1 << 30
	requestTables = 200

	defaultDifferences = 100
	defaultSettle      = 5 * time.Second
	settlePause        = 200 * time.Millisecond
)

// Run compares two sides: rows, sequences and schemas. An error means that there
// is no report; what could not be compared of a pair that answers stands in it.
func Run(ctx context.Context, primary, secondary Side, o RunOptions) (Report, error) {
	begin := time.Now()
	if o.Differences == 0 {
		o.Differences = defaultDifferences
	}
	if o.Settle <= 0 {
		o.Settle = defaultSettle
	}
	c := comparison{primary: primary, secondary: secondary, o: o}
	r, err := c.run(ctx)
	r.Seconds = time.Since(begin).Seconds()
	return r, err
}

type comparison struct {
	primary, secondary Side
	o                  RunOptions
	p, s               Inventory
	method             Method
}

// pair is a table as each side has it, with the columns that both have.
type pair struct {
	p, s    Table
	columns *problem.Problem // that they have not the same ones
}

func (c *comparison) run(ctx context.Context) (Report, error) {
	err := both(ctx, func(ctx context.Context) (err error) { c.p, err = c.primary.Inventory(ctx); return err },
		func(ctx context.Context) (err error) { c.s, err = c.secondary.Inventory(ctx); return err })
	if err != nil {
		return Report{}, fmt.Errorf("list what is to be compared: %w", err)
	}
	c.method.Portable = c.p.Encoding != c.s.Encoding || c.p.Probe != c.s.Probe
	pairs, lone := c.match()
	digests, err := c.digest(ctx, pairs)
	if err != nil {
		return Report{}, fmt.Errorf("compare tables: %w", err)
	}
	r := Report{Tables: append(digests, lone...)}
	for _, t := range c.p.LeftOut {
		if c.counts(Table{Schema: t.Schema, Name: t.Name}) {
			r.LeftOut = append(r.LeftOut, t)
		}
	}
	c.schema(&r)
	if err := c.sequences(ctx, &r); err != nil {
		return Report{}, fmt.Errorf("compare sequences: %w", err)
	}
	slices.SortFunc(r.Tables, func(a, b TableReport) int {
		return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name))
	})
	r.conclude()
	return r, nil
}

// both runs a part on each side at the same time.
func both(ctx context.Context, p, s func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := p(ctx); err != nil {
			return fmt.Errorf("on the primary: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		if err := s(ctx); err != nil {
			return fmt.Errorf("on the secondary: %w", err)
		}
		return nil
	})
	return g.Wait()
}

// match finds the tables that both sides have, the largest first, and those that
// one has alone.
func (c *comparison) match() (pairs []pair, lone []TableReport) {
	theirs := map[[2]string]Table{}
	for _, t := range c.s.Tables {
		theirs[[2]string{t.Schema, t.Name}] = t
	}
	digest := func(t Table) TableDigest { return TableDigest{Schema: t.Schema, Name: t.Name} }
	for _, t := range c.p.Tables {
		n := [2]string{t.Schema, t.Name}
		s, ok := theirs[n]
		delete(theirs, n)
		switch {
		case !c.counts(t):
		case ok:
			pairs = append(pairs, pairOf(t, s))
		default:
			lone = append(lone, oneSided(digest(t), "secondary", TableReport{}))
		}
	}
	for n, t := range theirs {
		if !c.o.Listed && c.counts(t) {
			lone = append(lone, oneSided(TableDigest{Schema: n[0], Name: n[1]}, "primary", TableReport{}))
		}
	}
	slices.SortStableFunc(pairs, func(a, b pair) int { return cmp.Compare(b.p.Bytes, a.p.Bytes) })
	return pairs, lone
}

func (c *comparison) counts(t Table) bool { return c.o.Only == nil || c.o.Only(t.Schema, t.Name) }

// pairOf restricts both sides to the columns that they share, and to the primary's key.
func pairOf(p, s Table) pair {
	lacks := func(of Table) func(string) bool {
		return func(c string) bool { return !slices.Contains(of.Columns, c) }
	}
	gone, more := slices.Collect(filter(p.Columns, lacks(s))), slices.Collect(filter(s.Columns, lacks(p)))
	if len(gone) == 0 && len(more) == 0 {
		s.Key = p.Key
		return pair{p: p, s: s}
	}
	shared := slices.DeleteFunc(slices.Clone(p.Columns), lacks(s))
	if slices.ContainsFunc(p.Key, lacks(s)) {
		p.Key = nil
	}
	p.Columns, s.Columns, s.Key = shared, shared, p.Key
	return pair{p, s, problem.New("columns-differ", "table "+postgres.QuoteIdent(p.Schema, p.Name),
		fmt.Sprintf("the primary alone has the columns %q, the secondary alone %q; the others were compared", gone, more),
		byHand).At("the secondary").Advise(byHandThen("change its columns", p.Schema, p.Name))}
}

func filter(list []string, keep func(string) bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, s := range list {
			if keep(s) && !yield(s) {
				return
			}
		}
	}
}

// digest compares the pairs, some at a time, and looks into those that differ.
func (c *comparison) digest(ctx context.Context, pairs []pair) ([]TableReport, error) {
	done := Progress{Tables: len(pairs)}
	for _, p := range pairs {
		done.Bytes += p.p.Bytes
	}
	out := make([]TableReport, 0, len(pairs))
	for len(pairs) > 0 {
		n, bytes := 0, int64(0)
		for n < len(pairs) && n < requestTables && bytes < requestBytes {
			bytes += pairs[n].p.Bytes
			n++
		}
		tables, err := c.group(ctx, pairs[:n])
		if err != nil {
			return nil, err
		}
		out, pairs = append(out, tables...), pairs[n:]
		done.TablesDone, done.BytesDone = done.TablesDone+n, done.BytesDone+bytes
		if c.o.Progress != nil {
			c.o.Progress(done)
		}
	}
	return out, nil
}

func (c *comparison) group(ctx context.Context, pairs []pair) ([]TableReport, error) {
	tables, err := c.digestBy(ctx, pairs, c.method)
	if err != nil {
		return nil, err
	}
	for i, t := range tables {
		m := c.method
		for m.mends(t.Problem) {
			again, err := c.digestBy(ctx, pairs[i:i+1], m)
			if err != nil {
				return nil, err
			}
			t = again[0]
		}
		if t.Verdict == Differs && c.o.Differences > 0 {
			if err := c.explain(ctx, pairs[i], m, &t); err != nil {
				return nil, err
			}
		}
		if p := pairs[i].columns; p != nil && t.Verdict != Unchecked {
			t.Verdict, t.Problem = Differs, p
		}
		tables[i] = t
	}
	return tables, nil
}

// mends changes the method to one that can do with a table what this one can't.
func (m *Method) mends(p *problem.Problem) bool {
	switch {
	case p == nil:
	case p.Code == codeTooWide && !m.Wide:
		m.Wide = true
		return true
	case p.Code == codeUserPath && !m.UserPath:
		m.UserPath = true
		return true
	}
	return false
}

func (c *comparison) digestBy(ctx context.Context, pairs []pair, m Method) ([]TableReport, error) {
	requests := [2]DigestRequest{{Method: m}, {Method: m}}
	for _, p := range pairs {
		requests[0].Tables, requests[1].Tables = append(requests[0].Tables, p.p), append(requests[1].Tables, p.s)
	}
	var p, s []TableDigest
	err := both(ctx, func(ctx context.Context) (err error) { p, err = c.primary.Digest(ctx, requests[0]); return err },
		func(ctx context.Context) (err error) { s, err = c.secondary.Digest(ctx, requests[1]); return err })
	if err != nil {
		return nil, err
	}
	if len(p) != len(pairs) || len(s) != len(pairs) {
		return nil, fmt.Errorf("%d and %d digests came for %d tables", len(p), len(s), len(pairs))
	}
	return Compare(p, s).Tables, nil
}

// explain names the rows that differ. Where they can't be found the table still differs.
func (c *comparison) explain(ctx context.Context, of pair, m Method, t *TableReport) error {
	found, more, err := Differences(ctx, c.primary, c.secondary, of.p, of.s, m, c.o.Differences)
	t.Key, t.Differences, t.More = of.p.Key, found, more
	if p, ok := problem.As(err); ok && strings.HasPrefix(p.Code, "table-") {
		t.Problem, t.More = p, true
		return nil
	}
	return err
}

// schema is compared only where all tables are: a link of some tables carries a
// part of the schema.
func (c *comparison) schema(r *Report) {
	if c.o.Only != nil {
		return
	}
	for _, f := range c.p.Findings {
		r.Findings = append(r.Findings, on("the primary", f))
	}
	for _, f := range c.s.Findings {
		r.Findings = append(r.Findings, on("the secondary", f))
	}
	if len(r.Findings) == 0 {
		r.Schema = compareSchemas(c.p, c.s)
	}
}

// sequences compares them until the secondary's have reached what the primary's
// were, which running writes keep changing.
func (c *comparison) sequences(ctx context.Context, r *Report) error {
	deadline := time.Now().Add(c.o.Settle)
	before, err := c.primary.Sequences(ctx)
	for err == nil {
		var behind bool
		if behind, err = c.behind(); err != nil {
			break
		}
		if behind { // what is seen now says nothing yet
			deadline = time.Now().Add(c.o.Settle)
		}
		var theirs, after []Sequence
		if theirs, err = c.secondary.Sequences(ctx); err != nil {
			break
		}
		if after, err = c.primary.Sequences(ctx); err != nil {
			break
		}
		r.Sequences = compareSequences(before, after, theirs)
		if c.o.Only != nil {
			r.Sequences = slices.DeleteFunc(r.Sequences, func(d SequenceDifference) bool { return d.Primary == nil || d.Secondary == nil })
		}
		if len(r.Sequences) == 0 || !behind && time.Now().After(deadline) {
			return nil
		}
		err = pause(ctx, settlePause)
	}
	if p, ok := problem.As(err); ok && p.Code == "sequences-unreadable" {
		r.Findings = append(r.Findings, p)
		return nil
	}
	return err
}

func (c *comparison) behind() (bool, error) {
	if c.o.Behind == nil {
		return false, nil
	}
	return c.o.Behind()
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// compareSequences names the secondary's sequences that are not between what the
// primary's were before and after.
func compareSequences(before, after, theirs []Sequence) []SequenceDifference {
	type name struct{ schema, name string }
	index := func(list []Sequence) map[name]*Sequence {
		m := map[name]*Sequence{}
		for i := range list {
			m[name{list[i].Schema, list[i].Name}] = &list[i]
		}
		return m
	}
	first, second := index(before), index(theirs)
	var out []SequenceDifference
	for _, now := range after {
		n := name{now.Schema, now.Name}
		s := second[n]
		delete(second, n)
		was := first[n]
		if was == nil {
			was = &now
		}
		if s == nil || !s.between(*was, now) {
			out = append(out, SequenceDifference{now.Schema, now.Name, &now, s})
		}
	}
	for _, s := range theirs {
		if n := (name{s.Schema, s.Name}); second[n] != nil {
			out = append(out, SequenceDifference{s.Schema, s.Name, nil, second[n]})
		}
	}
	return out
}

// between also takes the two themselves, which covers a sequence that was set back.
func (s Sequence) between(was, now Sequence) bool {
	order := func(a, b Sequence) int {
		by := cmp.Compare(a.Last, b.Last)
		if a.Increment < 0 {
			by = -by
		}
		if by == 0 && a.Called != b.Called {
			if a.Called {
				return 1
			}
			return -1
		}
		return by
	}
	return order(s, was) == 0 || order(s, now) == 0 || order(was, s) < 0 && order(s, now) < 0
}
