package apply

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestValues: what was kept comes back, NULL and empty apart, and a few values take a
// block of their size.
func TestValues(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var v values
		var want [][]byte
		for i, n := range rapid.SliceOf(rapid.SampledFrom([]int{-1, 0, 1, 300, leastBlock, mostBlock, wideRow})).Draw(t, "sizes") {
			if n < 0 {
				want = append(want, nil)
				v.add(place{size: -1})
				continue
			}
			data := bytes.Repeat([]byte{byte(i)}, n)
			want = append(want, bytes.Clone(data))
			v.add(v.keep(data))
			clear(data)
		}
		for i, w := range want {
			got := v.at(i)
			if (got == nil) != (w == nil) || !bytes.Equal(got, w) {
				t.Fatalf("value %d of %d bytes came back as one of %d", i, len(w), len(got))
			}
			_ = append(got, "beyond"...)
		}
		for i, w := range want {
			if !bytes.Equal(v.at(i), w) {
				t.Fatalf("value %d was written over", i)
			}
		}
	})
	var v values
	v.add(v.keep([]byte("few")))
	if got := cap(v.blocks[0]); got != leastBlock {
		t.Errorf("one short value takes %d bytes", got)
	}
}
