package problem

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// DidYouMean asks for names that were most likely meant; "" where there are none.
func DidYouMean(near ...string) string {
	near = slices.DeleteFunc(slices.Clone(near), func(n string) bool { return n == "" })
	if len(near) == 0 {
		return ""
	}
	return "did you mean " + strings.Join(near, " or ") + "?"
}

// Nearest is the known name that was most likely meant by one that is not known, or "".
// How letters are written counts only between names that are equally near.
func Nearest(name string, known []string) string {
	best, least, exact := "", max(1, (len(name)+2)/3)+1, 0
	for _, k := range known {
		folded, written := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(k)), levenshtein.ComputeDistance(name, k)
		if folded < least || folded == least && best != "" && written < exact {
			best, least, exact = k, folded, written
		}
	}
	return best
}
