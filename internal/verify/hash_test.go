package verify

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// Sums that PostgreSQL makes of parts, in 128 bits and more, add up to that of the whole.
func TestSumsAddUp(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.SliceOf(rapid.Int64()).Draw(t, "rows")
		cut := rapid.IntRange(0, len(rows)).Draw(t, "cut")
		sum := func(list []int64) Hash {
			s := new(big.Int)
			for _, v := range list {
				s.Add(s, big.NewInt(v))
			}
			h, err := parseSums(s.String(), s.String())
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		if whole, parts := sum(rows), sum(rows[:cut]).Add(sum(rows[cut:])); whole != parts {
			t.Fatalf("%s, in parts %s", whole, parts)
		}
	})
}

func FuzzHash(f *testing.F) {
	f.Add([]byte("00112233445566778899aabbccddeeff"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, text []byte) {
		var h, again Hash
		if h.UnmarshalText(text) != nil {
			return
		}
		out, err := h.MarshalText()
		if err != nil || again.UnmarshalText(out) != nil || again != h {
			t.Errorf("%s became %s", text, out)
		}
	})
}

func TestPlanCoversEveryPage(t *testing.T) {
	t.Parallel()
	for _, p := range [][3]int64{{0, 0, 1}, {1, 8192, 1}, {100, 819200, 64 << 20}, {1000, 8192000, 1 << 20}, {3, 1 << 40, 1 << 20}} {
		parts := plan(p[0], p[1], p[2])
		if len(parts) == 0 || int64(len(parts)) > max(1, p[0]) {
			t.Errorf("%v: %q", p, parts)
		}
		if last := parts[len(parts)-1]; len(parts) > 1 && last[:7] != "ctid >=" {
			t.Errorf("the last part %q has an end", last)
		}
	}
}
