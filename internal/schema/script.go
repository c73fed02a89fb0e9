package schema

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// tokenKind is what a scanner tells apart: enough to know what is quoted.
type tokenKind uint8

const (
	tokenWord    tokenKind = iota // a key word, a plain identifier or a number
	tokenQuoted                   // "identifier"
	tokenString                   // 'string' or $tag$string$tag$
	tokenSymbol                   // one character of anything else
	tokenComment                  // to the end of its line, or /* */
	tokenMeta                     // a psql command such as \connect, to the end of its line
)

type token struct {
	kind       tokenKind
	start, end int
}

// scanner splits SQL, as pg_dump writes it, into tokens. It relies on
// standard_conforming_strings, which every dump turns on.
type scanner struct {
	src string
	pos int
}

// next returns the next token; ok is false at the end of the text.
func (s *scanner) next() (t token, ok bool, err error) {
	for s.pos < len(s.src) && isSpace(s.src[s.pos]) {
		s.pos++
	}
	if s.pos >= len(s.src) {
		return token{}, false, nil
	}
	t.start = s.pos
	t.kind, err = s.scan()
	t.end = s.pos
	return t, err == nil, err
}

func (s *scanner) scan() (tokenKind, error) {
	c := s.src[s.pos]
	switch {
	case strings.HasPrefix(s.src[s.pos:], "--"):
		s.toLineEnd()
		return tokenComment, nil
	case strings.HasPrefix(s.src[s.pos:], "/*"):
		return tokenComment, s.blockComment()
	case c == '\\':
		s.toLineEnd()
		return tokenMeta, nil
	case c == '\'':
		return tokenString, s.quoted('\'', false)
	case c == '"':
		return tokenQuoted, s.quoted('"', false)
	case c == '$':
		return s.dollar()
	case isWord(c):
		return s.word()
	}
	s.pos++
	return tokenSymbol, nil
}

func (s *scanner) toLineEnd() {
	if i := strings.IndexByte(s.src[s.pos:], '\n'); i >= 0 {
		s.pos += i
		return
	}
	s.pos = len(s.src)
}

func (s *scanner) blockComment() error {
	start := s.pos
	for depth := 0; s.pos < len(s.src); {
		switch rest := s.src[s.pos:]; {
		case strings.HasPrefix(rest, "/*"):
			depth++
			s.pos += 2
		case strings.HasPrefix(rest, "*/"):
			depth--
			s.pos += 2
			if depth == 0 {
				return nil
			}
		default:
			s.pos++
		}
	}
	return s.unterminated("comment", start)
}

// quoted passes a literal whose quote is doubled inside it. With escapes a
// backslash takes the character after it along.
func (s *scanner) quoted(quote byte, escapes bool) error {
	start := s.pos
	for s.pos++; s.pos < len(s.src); s.pos++ {
		switch c := s.src[s.pos]; {
		case escapes && c == '\\':
			s.pos++
		case c != quote:
		case s.pos+1 < len(s.src) && s.src[s.pos+1] == quote:
			s.pos++
		default:
			s.pos++
			return nil
		}
	}
	return s.unterminated("quote", start)
}

// dollar passes $tag$ … $tag$, or a lone dollar sign as of a parameter.
func (s *scanner) dollar() (tokenKind, error) {
	start, i := s.pos, s.pos+1
	for i < len(s.src) && isWord(s.src[i]) && s.src[i] != '$' {
		i++
	}
	isTag := i < len(s.src) && s.src[i] == '$' && !isDigit(s.src[start+1])
	if !isTag {
		s.pos++
		return tokenSymbol, nil
	}
	tag := s.src[start : i+1]
	end := strings.Index(s.src[i+1:], tag)
	if end < 0 {
		s.pos = len(s.src)
		return tokenString, s.unterminated("dollar quote", start)
	}
	s.pos = i + 1 + end + len(tag)
	return tokenString, nil
}

func (s *scanner) word() (tokenKind, error) {
	start := s.pos
	for s.pos < len(s.src) && isWord(s.src[s.pos]) {
		s.pos++
	}
	isEscape := strings.EqualFold(s.src[start:s.pos], "e") && s.pos < len(s.src) && s.src[s.pos] == '\''
	if isEscape {
		return tokenString, s.quoted('\'', true)
	}
	return tokenWord, nil
}

func (s *scanner) unterminated(what string, start int) error {
	line := 1 + strings.Count(s.src[:start], "\n")
	return fmt.Errorf("read the dump: the %s that begins in line %d does not end", what, line)
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c) || c == '_' || c == '$' || c >= 0x80
}

// statement is the text of one statement, with its semicolon, and its tokens.
type statement struct {
	text   string
	tokens []token // positions in text
}

// word returns token i in lower case, "" if there is none. An identifier is
// returned without its quotes, unfolded.
func (s statement) word(i int) string {
	if i < 0 || i >= len(s.tokens) {
		return ""
	}
	return tokenText(s.text, s.tokens[i])
}

// tokenText returns what a token means: a word folded, an identifier unquoted.
func tokenText(src string, t token) string {
	text := src[t.start:t.end]
	switch t.kind {
	case tokenWord:
		return strings.ToLower(text)
	case tokenQuoted:
		return strings.ReplaceAll(text[1:len(text)-1], `""`, `"`)
	}
	return text
}

// statements splits SQL at its semicolons. It does not know BEGIN ATOMIC, so the
// body of such a function comes in pieces.
func statements(sql string) ([]statement, error) {
	var out []statement
	var tokens []token
	s := scanner{src: sql}
	for {
		t, ok, err := s.next()
		if err != nil {
			return nil, err
		}
		if ok && (t.kind == tokenComment || t.kind == tokenMeta) {
			continue
		}
		if ok {
			tokens = append(tokens, t)
		}
		ends := !ok || t.kind == tokenSymbol && sql[t.start] == ';'
		if ends && len(tokens) > 0 {
			out = append(out, newStatement(sql, tokens))
			tokens = nil
		}
		if !ok {
			return out, nil
		}
	}
}

func newStatement(sql string, tokens []token) statement {
	from, to := tokens[0].start, tokens[len(tokens)-1].end
	for i := range tokens {
		tokens[i].start -= from
		tokens[i].end -= from
	}
	return statement{text: sql[from:to], tokens: tokens}
}

// tocLine is a line of pg_restore --list.
type tocLine struct {
	class, oid uint32
	rest       string // kind, schema, name and owner, with blanks between and within
}

// tocEntry is an entry of an archive with its SQL.
type tocEntry struct {
	id         int
	class, oid uint32
	deps       []int
	kind       string // as pg_dump calls it: "TABLE", "FK CONSTRAINT"
	schema     string // "" if it has none
	name       string
	owner      string
	method     string // the table access method that holds for it, quoted as need be
	sql        string
}

var listLine = regexp.MustCompile(`^(\d+); (\d+) (\d+) (.*)$`)

// parseList reads the output of pg_restore --list.
func parseList(text string) (map[int]tocLine, error) {
	out := make(map[int]tocLine)
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == ';' {
			continue
		}
		m := listLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("read the list of the dump: unexpected line %q", line)
		}
		id, err1 := strconv.Atoi(m[1])
		class, err2 := strconv.ParseUint(m[2], 10, 32)
		oid, err3 := strconv.ParseUint(m[3], 10, 32)
		if err1 != nil || err2 != nil || err3 != nil {
			return nil, fmt.Errorf("read the list of the dump: a number is too large in line %q", line)
		}
		if _, twice := out[id]; twice {
			return nil, fmt.Errorf("read the list of the dump: entry %d stands twice", id)
		}
		out[id] = tocLine{class: uint32(class), oid: uint32(oid), rest: m[4]}
	}
	return out, nil
}

// scriptParser cuts the output of pg_restore --verbose into entries.
type scriptParser struct {
	src     string
	list    map[int]tocLine
	seen    map[int]bool
	entries []tocEntry
	current tocEntry // id 0: what stands before the first entry
	body    strings.Builder
	flushed int    // src is in body up to here
	method  string // the table access method in force
	header  bool   // inside the comment that starts an entry
}

// parseScript returns the entries in the order in which pg_restore would run
// them. An entry begins at a comment that names a number, class and OID of the
// list; only a comment outside every quote counts, so no name and no function
// body can pass for one. An entry that is missing, or stands twice, is an error.
func parseScript(script string, list map[int]tocLine) ([]tocEntry, error) {
	p := scriptParser{src: script, list: list, seen: make(map[int]bool, len(list))}
	s := scanner{src: script}
	for {
		t, ok, err := s.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if err := p.take(t); err != nil {
			return nil, err
		}
	}
	p.flush(len(script), len(script))
	if err := p.finish(); err != nil {
		return nil, err
	}
	if len(p.seen) != len(list) {
		return nil, fmt.Errorf("read the dump: it holds %d entries, its list has %d", len(p.seen), len(list))
	}
	return p.entries, nil
}

func (p *scriptParser) take(t token) error {
	switch t.kind {
	case tokenComment:
		p.flush(t.start, t.end)
		atLineStart := t.start == 0 || p.src[t.start-1] == '\n'
		if !atLineStart {
			return nil
		}
		return p.comment(p.src[t.start:t.end])
	case tokenMeta:
		p.flush(t.start, t.end)
		if strings.HasPrefix(p.src[t.start:t.end], `\connect`) {
			return p.leave()
		}
	default:
		p.header = false
	}
	return nil
}

// flush adds the text up to from to the current entry and passes over what
// stands between from and to.
func (p *scriptParser) flush(from, to int) {
	p.body.WriteString(p.src[p.flushed:from])
	p.flushed = to
}

func (p *scriptParser) comment(line string) error {
	if rest, ok := strings.CutPrefix(line, "-- TOC entry "); ok {
		return p.begin(rest)
	}
	if !p.header {
		return nil
	}
	if rest, ok := strings.CutPrefix(line, "-- Dependencies:"); ok {
		for _, field := range strings.Fields(rest) {
			id, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("read the dump: unexpected line %q", line)
			}
			p.current.deps = append(p.current.deps, id)
		}
	}
	if rest, ok := strings.CutPrefix(line, "-- Name: "); ok {
		p.current.describe(rest, p.list[p.current.id].rest)
		p.header = false
	}
	return nil
}

// begin starts the entry whose header goes on with rest: "12 (class 1259 OID 16401)".
func (p *scriptParser) begin(rest string) error {
	if err := p.finish(); err != nil {
		return err
	}
	var id int
	var class, oid uint32
	if _, err := fmt.Sscanf(rest, "%d (class %d OID %d)", &id, &class, &oid); err != nil {
		return fmt.Errorf("read the dump: unexpected header %q", rest)
	}
	line, listed := p.list[id]
	if !listed || line.class != class || line.oid != oid {
		return fmt.Errorf("read the dump: entry %d (class %d OID %d) is not in its list", id, class, oid)
	}
	if p.seen[id] {
		return fmt.Errorf("read the dump: entry %d stands twice", id)
	}
	p.seen[id] = true
	p.current = tocEntry{id: id, class: class, oid: oid, method: p.method}
	p.header = true
	return nil
}

// leave closes the current entry: what follows sets up the session of the
// database that was connected to.
func (p *scriptParser) leave() error {
	err := p.finish()
	p.current, p.method = tocEntry{}, ""
	return err
}

// finish closes the current entry. The SET commands at its end were written for
// the entry after it.
func (p *scriptParser) finish() error {
	sql := strings.TrimSpace(p.body.String())
	p.body.Reset()
	stmts, err := statements(sql)
	if err != nil {
		return err
	}
	for len(stmts) > 0 {
		last := stmts[len(stmts)-1]
		isSet := len(last.tokens) == 5 && last.word(0) == "set" && strings.HasPrefix(last.word(1), "default_")
		if !isSet {
			break
		}
		if last.word(1) == "default_table_access_method" {
			p.method = strings.TrimSuffix(last.text[last.tokens[3].start:], ";")
		}
		sql = strings.TrimSpace(strings.TrimSuffix(sql, last.text))
		stmts = stmts[:len(stmts)-1]
	}
	if p.current.id != 0 {
		p.current.sql = sql
		p.entries = append(p.entries, p.current)
	}
	return nil
}

// describe takes kind, schema, name and owner from the header's line. Any of
// them may hold the very words that separate them, so of all ways to split the
// line the one is taken that the list agrees with.
func (e *tocEntry) describe(header, listed string) {
	header = strings.TrimSuffix(header, "\r")
	for _, name := range cuts(header, "; Type: ") {
		for _, kind := range cuts(name[1], "; Schema: ") {
			for _, schema := range cuts(kind[1], "; Owner: ") {
				e.set(name[0], kind[0], schema[0], schema[1])
				owner := strings.TrimPrefix(schema[1], "-")
				if listed == strings.Join([]string{kind[0], schema[0], name[0], schema[1]}, " ") ||
					listed == strings.Join([]string{kind[0], schema[0], name[0], owner}, " ") {
					return
				}
			}
		}
	}
}

func (e *tocEntry) set(name, kind, schema, owner string) {
	e.name, e.kind, e.schema, e.owner = name, kind, schema, owner
	if e.schema == "-" {
		e.schema = ""
	}
	if e.owner == "-" {
		e.owner = ""
	}
}

// cuts returns every way to cut s in two at sep, the last one first.
func cuts(s, sep string) [][2]string {
	var out [][2]string
	for from := 0; ; {
		i := strings.Index(s[from:], sep)
		if i < 0 {
			slices.Reverse(out)
			return out
		}
		out = append(out, [2]string{s[:from+i], s[from+i+len(sep):]})
		from += i + 1
	}
}
