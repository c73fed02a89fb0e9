// Package filter says which tables a link carries, where it does not carry all of a
// database: a list of patterns that choose, and a list that leaves out.
//
// # Patterns
//
// A pattern is SCHEMA.TABLE, written as psql and pg_dump write theirs: * stands for
// any characters, none included, and ? for exactly one; letters outside of double
// quotes are folded to lower case, as PostgreSQL folds names; inside of them every
// character is itself, and "" is a quote. Nothing else has a meaning: no pattern is a
// regular expression, and none goes without its schema, since a link has no
// search_path.
//
// # The rule
//
// A table is chosen when some pattern of Tables matches it (all tables where there is
// none) and no pattern of Exclude does. A partition goes by its own name and by those
// of the tables that it is a partition of: a pattern that matches the parent matches
// the partition. A table that merely inherits goes by its own name.
//
// What the rule means for a link stands in package capture, which keeps a publication
// by it. This package is pure but for the SQL in which it words the rule, so that a
// server can be asked before anything of Hawser's is in its database.
package filter

import (
	"regexp"
	"slices"
	"strings"

	"github.com/hawser/hawser/internal/problem"
)

// Filter chooses tables. The zero value chooses all.
type Filter struct {
	Tables  []string `json:"tables,omitempty"`
	Exclude []string `json:"exclude_tables,omitempty"`
}

// All reports whether every table is chosen, those to come included.
func (f Filter) All() bool { return len(f.Tables) == 0 && len(f.Exclude) == 0 }

// Equal reports whether both choose by the same patterns.
func (f Filter) Equal(g Filter) bool {
	return strings.Join(f.Tables, "\x00") == strings.Join(g.Tables, "\x00") && strings.Join(f.Exclude, "\x00") == strings.Join(g.Exclude, "\x00")
}

// String is the filter as flags of the command.
func (f Filter) String() string {
	var out []string
	for _, p := range f.Tables {
		out = append(out, "--tables "+problem.Word(p))
	}
	for _, p := range f.Exclude {
		out = append(out, "--exclude-tables "+problem.Word(p))
	}
	return strings.Join(out, " ")
}

// Likes are the patterns in the words of SQL's LIKE. The two lists of a pair are of
// one length.
type Likes struct {
	InSchema, InTable, OutSchema, OutTable []string
}

// Likes translates the patterns. One that can't be read is a problem that names it.
func (f Filter) Likes() (Likes, error) {
	l := Likes{InSchema: []string{}, InTable: []string{}, OutSchema: []string{}, OutTable: []string{}}
	tables := f.Tables
	if len(tables) == 0 {
		tables = []string{"*.*"}
	}
	for _, p := range tables {
		schema, table, err := Like(p)
		if err != nil {
			return l, err
		}
		l.InSchema, l.InTable = append(l.InSchema, schema), append(l.InTable, table)
	}
	for _, p := range f.Exclude {
		schema, table, err := Like(p)
		if err != nil {
			return l, err
		}
		l.OutSchema, l.OutTable = append(l.OutSchema, schema), append(l.OutTable, table)
	}
	return l, nil
}

// Check returns a problem for each pattern that can't be read.
func (f Filter) Check() problem.Findings {
	var out problem.Findings
	for _, p := range slices.Concat(f.Tables, f.Exclude) {
		if _, _, err := Like(p); err != nil {
			out = append(out, problem.Of(err, "bad-pattern"))
		}
	}
	return out
}

// Args are the arguments of Chosen's SQL, $1 to $4.
func (l Likes) Args() []any { return []any{l.InSchema, l.InTable, l.OutSchema, l.OutTable} }

// Like translates one pattern.
func Like(pattern string) (schema, table string, err error) {
	parts, closed := split(pattern, like)
	switch {
	case !closed:
		return "", "", bad(pattern, "a double quote in it is not closed")
	case len(parts) == 1:
		return "", "", bad(pattern, "it names no schema")
	case len(parts) > 2:
		return "", "", bad(pattern, "it has more than two parts; a dot in a name stands between double quotes")
	case parts[0] == "" || parts[1] == "":
		return "", "", bad(pattern, "one of its parts is empty")
	case strings.ContainsRune(pattern, 0):
		return "", "", bad(pattern, "it holds a character that no name can hold")
	}
	return parts[0], parts[1], nil
}

func bad(pattern, cause string) error {
	return problem.New("bad-pattern", "table pattern "+pattern, cause,
		"").Advise(`write it as SCHEMA.TABLE: public.orders, sales.order_*, "My Schema".*, *.audit`)
}

// Name translates a pattern of single names, as those of databases, in which a dot is
// itself.
func Name(pattern string) (*regexp.Regexp, error) {
	parts, closed := split(pattern, like)
	name := strings.Join(parts, ".")
	cause := ""
	switch {
	case !closed:
		cause = "a double quote in it is not closed"
	case name == "":
		cause = "it is empty"
	case strings.ContainsRune(pattern, 0):
		cause = "it holds a character that no name can hold"
	}
	if cause != "" {
		return nil, problem.New("invalid-pattern", "name pattern "+pattern, cause, "").Advise(`write it as a name with * and ?: shop, sales_*, "My Shop"`)
	}
	var b strings.Builder
	escaped := false
	for _, r := range name {
		switch {
		case r == '\\' && !escaped:
			escaped = true
			continue
		case r == '%' && !escaped:
			b.WriteString(".*")
		case r == '_' && !escaped:
			b.WriteString(".")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
		escaped = false
	}
	return regexp.Compile(`(?s)\A` + b.String() + `\z`)
}

// Parts are the parts of a name, without patterns, as PostgreSQL reads it; closed is
// false when a double quote in it is not closed.
func Parts(name string) (parts []string, closed bool) { return split(name, plain) }

// Written is the reverse of Parts: a name, in double quotes where it needs them.
func Written(parts ...string) string {
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = quote(p)
	}
	return strings.Join(out, ".")
}

// Exact is a pattern without double quotes that means its letters as they are written.
func Exact(pattern string) string {
	if strings.Contains(pattern, `"`) {
		return pattern
	}
	parts := strings.Split(pattern, ".")
	for i, p := range parts {
		parts[i] = literal.ReplaceAllStringFunc(p, quote)
	}
	return strings.Join(parts, ".")
}

var (
	literal = regexp.MustCompile(`[^*?]+`)
	folded  = regexp.MustCompile(`^[a-z0-9_]+$`) // it means the same with and without double quotes
)

func quote(name string) string {
	if folded.MatchString(name) {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// plain writes a character of a name.
func plain(b *strings.Builder, r rune, quoted bool) {
	if 'A' <= r && r <= 'Z' && !quoted {
		r += 'a' - 'A'
	}
	b.WriteRune(r)
}

// like writes a character of a pattern in LIKE's form.
func like(b *strings.Builder, r rune, quoted bool) {
	switch {
	case r == '*' && !quoted:
		b.WriteRune('%')
	case r == '?' && !quoted:
		b.WriteRune('_')
	case r == '%' || r == '_' || r == '\\':
		b.WriteRune('\\')
		b.WriteRune(r)
	default:
		plain(b, r, quoted)
	}
}

// split cuts a text at its dots outside of double quotes, and has each character written.
func split(text string, write func(b *strings.Builder, r rune, quoted bool)) (parts []string, closed bool) {
	var b strings.Builder
	quoted := false
	runes := []rune(text)
	for i := 0; i < len(runes); i++ {
		r := runes[i]
		switch {
		case r == '"' && quoted && i+1 < len(runes) && runes[i+1] == '"':
			write(&b, r, quoted)
			i++
		case r == '"':
			quoted = !quoted
		case r == '.' && !quoted:
			parts = append(parts, b.String())
			b.Reset()
		default:
			write(&b, r, quoted)
		}
	}
	return append(parts, b.String()), !quoted
}

// Chosen is the rule in SQL, for c of pg_class and n of pg_namespace. The arguments
// are expressions of type text[]; Likes.Args fits Params.
func Chosen(inSchema, inTable, outSchema, outTable string) string {
	return `(` + Matched(inSchema, inTable) + ` AND NOT ` + Matched(outSchema, outTable) + `)`
}

// Params is Chosen with the parameters $1 to $4.
func Params() string { return Chosen("$1::text[]", "$2::text[]", "$3::text[]", "$4::text[]") }

// Matched is true of c of pg_class and n of pg_namespace where one of the patterns matches
// it, or what it is a partition of.
func Matched(schemas, tables string) string {
	return `EXISTS (
		SELECT FROM (
			SELECT n.nspname::text, c.relname::text
			UNION ALL SELECT an.nspname::text, a.relname::text FROM pg_partition_ancestors(c.oid) x(id)
			JOIN pg_class a ON a.oid = x.id AND a.oid <> c.oid JOIN pg_namespace an ON an.oid = a.relnamespace WHERE c.relispartition) l(s, t)
		JOIN unnest(` + schemas + `, ` + tables + `) p(s, t) ON l.s LIKE p.s COLLATE "C" AND l.t LIKE p.t COLLATE "C")`
}
