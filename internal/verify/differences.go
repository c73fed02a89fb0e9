package verify

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
)

const (
	// rowsAtOnce bounds the rows that are listed of each side, cellsAtOnce their columns.
	rowsAtOnce  = 20_000
	cellsAtOnce = 400_000
)

// Differences finds rows of one table that are not the same on both sides, at most
// limit of them; more says that there are others. It narrows the search by hashes
// of buckets of keys until what is left is few enough to be listed.
func Differences(ctx context.Context, primary, secondary Side, p, s Table, m Method, limit int) (found []Difference, more bool, err error) {
	d := search{primary: primary, secondary: secondary, p: p, s: s, m: m, limit: limit}
	d.rows = max(limit, min(rowsAtOnce, cellsAtOnce/max(1, len(p.Columns))))
	return d.run(ctx)
}

type search struct {
	primary, secondary Side
	p, s               Table
	m                  Method
	limit              int // of differences
	rows               int // that may be listed
}

func (d search) run(ctx context.Context) (found []Difference, more bool, err error) {
	var within []int64
	for depth := 0; ; depth++ {
		differ, err := d.buckets(ctx, depth, within)
		if err != nil || len(differ) == 0 {
			return nil, false, err
		}
		take := d.affordable(differ)
		if len(take) < min(len(differ), d.limit) && depth < maxDepth {
			// Every bucket that differs has a row that does, so as many buckets suffice.
			within = ids(differ[:min(len(differ), d.limit)])
			more = more || len(within) < len(differ)
			continue
		}
		if len(take) == 0 {
			take = differ[:1] // rows that are all equal; they are counted, not listed
		}
		found, err = d.list(ctx, depth, ids(take))
		more = more || len(take) < len(differ)
		if len(found) > d.limit {
			found, more = found[:d.limit], true
		}
		return found, more, err
	}
}

// buckets are those that differ, the smallest first.
func (d search) buckets(ctx context.Context, depth int, within []int64) ([]Bucket, error) {
	var p, s []Bucket
	err := both(ctx, func(ctx context.Context) (err error) {
		p, err = d.primary.Buckets(ctx, BucketsRequest{d.p, d.m, depth, within})
		return err
	}, func(ctx context.Context) (err error) {
		s, err = d.secondary.Buckets(ctx, BucketsRequest{d.s, d.m, depth, within})
		return err
	})
	if err != nil {
		return nil, err
	}
	theirs := map[int64]Bucket{}
	for _, b := range s {
		theirs[b.ID] = b
	}
	var differ []Bucket
	for _, b := range p {
		o := theirs[b.ID]
		delete(theirs, b.ID)
		if o.Rows != b.Rows || o.Hash != b.Hash {
			differ = append(differ, Bucket{ID: b.ID, Rows: max(o.Rows, b.Rows)})
		}
	}
	for _, b := range theirs {
		differ = append(differ, Bucket{ID: b.ID, Rows: b.Rows})
	}
	slices.SortFunc(differ, func(a, b Bucket) int { return cmp.Or(cmp.Compare(a.Rows, b.Rows), cmp.Compare(a.ID, b.ID)) })
	return differ, nil
}

// affordable are the buckets, of those that differ, whose rows may be listed and
// that are needed; none where the smallest has too many.
func (d search) affordable(differ []Bucket) []Bucket {
	n, rows := 0, int64(0)
	for n < min(len(differ), d.limit) && rows+differ[n].Rows <= int64(d.rows) {
		rows += differ[n].Rows
		n++
	}
	return differ[:n]
}

func ids(buckets []Bucket) []int64 {
	out := make([]int64, len(buckets))
	for i, b := range buckets {
		out[i] = b.ID
	}
	return out
}

// list compares the rows of some buckets one by one.
func (d search) list(ctx context.Context, depth int, buckets []int64) ([]Difference, error) {
	var p, s []Row
	err := both(ctx, func(ctx context.Context) (err error) {
		p, err = d.primary.Rows(ctx, RowsRequest{d.p, d.m, depth, buckets, d.rows})
		return err
	}, func(ctx context.Context) (err error) {
		s, err = d.secondary.Rows(ctx, RowsRequest{d.s, d.m, depth, buckets, d.rows})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(d.p.Key) == 0 {
		return compareCounts(p, s), nil
	}
	return d.compareRows(p, s), nil
}

// compareCounts compares rows that have no key, by how many there are of each.
func compareCounts(p, s []Row) []Difference {
	type counts struct {
		text string
		p, s int64
	}
	all := map[Hash]counts{}
	for _, r := range p {
		c := all[r.Hash]
		all[r.Hash] = counts{r.Text, c.p + r.Count, c.s}
	}
	for _, r := range s {
		c := all[r.Hash]
		all[r.Hash] = counts{r.Text, c.p, c.s + r.Count}
	}
	var out []Difference
	for _, c := range all {
		switch {
		case c.p > c.s:
			out = append(out, Difference{Kind: Missing, Text: c.text, Primary: c.p, Secondary: c.s})
		case c.p < c.s:
			out = append(out, Difference{Kind: Extra, Text: c.text, Primary: c.p, Secondary: c.s})
		}
	}
	slices.SortFunc(out, func(a, b Difference) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Text, b.Text)) })
	return out
}

// compareRows compares rows by their key. The secondary may hold a key twice, if
// its index is not there yet.
func (d search) compareRows(p, s []Row) []Difference {
	type rows struct{ p, s []Row }
	all := map[string]rows{}
	var order []string
	add := func(r Row, to func(*rows)) {
		text, _ := json.Marshal(r.Key) // strings: it can't fail
		k := string(text)
		pair, seen := all[k]
		if !seen {
			order = append(order, k)
		}
		to(&pair)
		all[k] = pair
	}
	for _, r := range p {
		add(r, func(x *rows) { x.p = append(x.p, r) })
	}
	for _, r := range s {
		add(r, func(x *rows) { x.s = append(x.s, r) })
	}
	var out []Difference
	for _, k := range order {
		switch x := all[k]; {
		case len(x.s) == 0:
			out = append(out, Difference{Kind: Missing, Key: x.p[0].Key, Primary: int64(len(x.p))})
		case len(x.p) == 0:
			out = append(out, Difference{Kind: Extra, Key: x.s[0].Key, Secondary: int64(len(x.s))})
		case !sameRows(x.p, x.s):
			out = append(out, Difference{Different, x.p[0].Key, d.columns(x.p[0], x.s[0]), "", int64(len(x.p)), int64(len(x.s))})
		}
	}
	return out
}

func sameRows(p, s []Row) bool {
	var a, b Hash
	for _, r := range p {
		a = a.Add(r.Hash)
	}
	for _, r := range s {
		b = b.Add(r.Hash)
	}
	return len(p) == len(s) && a == b
}

// columns are those in which two rows differ.
func (d search) columns(a, b Row) []string {
	var out []string
	for i, c := range d.p.Columns {
		if i < len(a.Columns) && i < len(b.Columns) && a.Columns[i] != b.Columns[i] {
			out = append(out, c)
		}
	}
	return out
}
