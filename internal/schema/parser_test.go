package schema

import (
	"strings"
	"testing"
)

// deepTexts are nested n levels deep, each in another way.
func deepTexts(n int) map[string]string {
	return map[string]string{
		"operators":   "SELECT 1" + strings.Repeat("+1", n),
		"postfix":     "SELECT 1" + strings.Repeat(" NOTNULL", n),
		"prefix":      "SELECT " + strings.Repeat("- ", n) + "1",
		"parentheses": "SELECT " + strings.Repeat("(", n) + "1" + strings.Repeat(")", n),
		"calls":       "SELECT " + strings.Repeat("f(1,", n) + "1" + strings.Repeat(")", n),
		"casts":       "SELECT 1" + strings.Repeat("::int", n),
		"arrays":      "SELECT " + strings.Repeat("ARRAY[1,", n) + "1" + strings.Repeat("]", n),
		"cases":       "SELECT " + strings.Repeat("CASE WHEN true THEN ", n) + "1" + strings.Repeat(" END", n),
		"unions":      "SELECT 1, 2" + strings.Repeat(" UNION SELECT 1, 2", n),
		"joins":       "SELECT 1, 2 FROM a" + strings.Repeat(" JOIN a ON true", n),
		"subqueries":  strings.Repeat("SELECT 1, 2 FROM (", n) + "SELECT 1" + strings.Repeat(") a", n),
		"with":        strings.Repeat("WITH a AS (SELECT 1), b AS (", n) + "SELECT 1" + strings.Repeat(") SELECT 1", n),
		"explain":     strings.Repeat("EXPLAIN ", n) + "SELECT 1",
	}
}

// A user of the primary may write any text: none may end the agent, whose parser has no
// other bound on its stack. Without the bound these end the test.
func TestDeepText(t *testing.T) {
	for _, levels := range []int{maxDeparsed / 6, maxDeparsed, maxDepth, 100_000} {
		for name, text := range deepTexts(levels) {
			tree, err := parse(text)
			if err == nil {
				_, err = deparse(text, tree.Stmts[0].Stmt)
			}
			if levels < maxDeparsed/5 && err != nil && !strings.Contains(err.Error(), "syntax error") {
				t.Errorf("%s, %d levels: %v", name, levels, err)
			}
			if levels > maxDepth && err == nil {
				t.Errorf("%s, %d levels: was read", name, levels)
			}
		}
	}
}

// What is long but not deep is read.
func TestLongText(t *testing.T) {
	const n = 20_000
	for name, text := range map[string]string{
		"rows":       "INSERT INTO t VALUES (1, 'a')" + strings.Repeat(", (-1::int, 'b' || 'c')", n),
		"columns":    "SELECT a.b" + strings.Repeat(", a.b + 1 AS c", n),
		"statements": strings.Repeat("CREATE TABLE a (b int CHECK (b > 0), c text);\n", n),
		"comments":   "SELECT 1" + strings.Repeat(" -- one\n /* two */", n),
		"rule":       "CREATE RULE r AS ON INSERT TO t DO (" + strings.Repeat("INSERT INTO u SELECT 1 + 1;", n/10) + ")",
	} {
		if _, err := parse(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
