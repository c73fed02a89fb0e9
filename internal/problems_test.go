package house

import (
	"cmp"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/troubleshoot.md's table of codes")

// said is a problem as the source words it, with … for what is put in at run time.
type said struct {
	code, cause, remedy, advice string
	note                        bool
	at                          string
}

// TestProblems holds every problem of the source against docs/troubleshoot.md, and its
// remedy against the form that package problem asks for.
func TestProblems(t *testing.T) {
	all := problems(t)
	for _, p := range all {
		switch {
		case p.note || p.cause == "": // a code alone
		case p.remedy == "" && p.advice == "":
			t.Errorf("%s: %s has neither remedy nor advice", p.at, p.code)
		case p.remedy != "" && !typed(p.remedy):
			t.Errorf("%s: the remedy of %s can't be typed as it is; words go into Advise: %s", p.at, p.code, p.remedy)
		}
	}
	const path = "../docs/troubleshoot.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- codes: written by go test ./internal -run TestProblems -update -->\n", "<!-- end of codes -->\n"
	before, rest, found := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no table of codes", path)
	}
	want := before + begin + table(all) + end + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("%s does not have the codes of the source: go test ./internal -run TestProblems -update", path)
	}
	known := map[string]bool{}
	for _, p := range all {
		known[p.code] = true
	}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|").FindAllStringSubmatch(before, -1) {
		for code := range strings.SplitSeq(row[1], ", ") {
			code, open := strings.CutSuffix(strings.Trim(code, "`"), "…")
			if !known[code] && !(open && slices.ContainsFunc(all, func(p said) bool { return strings.HasPrefix(p.code, code) })) {
				t.Errorf("%s names %s, which no problem has", path, code)
			}
		}
	}
}

// forms are those of a remedy's lines: SQL, a command, a flag, a line of the
// configuration, a word of a connection string, a line of a password file.
var forms = regexp.MustCompile(`^(…;?|[A-Z]{3,} .*;|…=.*|--[a-z-]+ \S.*|[a-z_]+: \S+.*|[a-z]+=\S+( [a-z]+=\S+)*|\S+:\S+:\*:\S+:PASSWORD|` +
	`(hawser|apt-get|chmod|chown|getent|localedef|pg_config|pg_isready|psql|rm|ss|ssh|sudo|tail|useradd) [^;,]*( # on .*)?)$`)

func typed(remedy string) bool {
	for line := range strings.SplitSeq(remedy, "\n") {
		if !forms.MatchString(line) {
			return false
		}
	}
	return true
}

// table has one row for each code: of several problems of one code what each says.
func table(all []said) string {
	var b strings.Builder
	b.WriteString("| code | it says | what mends it |\n| --- | --- | --- |\n")
	byCode := map[string][]said{}
	for _, p := range all {
		byCode[p.code] = append(byCode[p.code], p)
	}
	for _, code := range slices.Sorted(maps.Keys(byCode)) {
		var causes, helps []string
		for _, p := range byCode[code] {
			causes, helps = append(causes, cell(p.cause, false)), append(helps, help(p))
		}
		b.WriteString("| `" + code + "` | " + cmp.Or(distinct(causes), "(what it met)") + " | " + distinct(helps) + " |\n")
	}
	return b.String()
}

func help(p said) string {
	remedy, advice := cell(p.remedy, true), cell(p.advice, false)
	if remedy != "" && advice != "" {
		return remedy + ": " + advice
	}
	return remedy + advice
}

func distinct(texts []string) string {
	texts = slices.DeleteFunc(texts, func(s string) bool { return strings.Trim(s, "… `") == "" })
	slices.Sort(texts)
	return strings.Join(slices.Compact(texts), "; or ")
}

func cell(text string, code bool) string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		line = strings.ReplaceAll(line, "|", `\|`)
		if code && line != "" {
			line = "`" + strings.ReplaceAll(line, "`", "'") + "`"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, " ")
}

// problems reads them out of the source of everything that is shipped.
func problems(t *testing.T) []said {
	t.Helper()
	s := source{set: token.NewFileSet(), consts: map[string]ast.Expr{}, files: map[string][]*ast.File{}, coded: map[string][]string{}}
	for _, root := range []string{".", "../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "problem") || strings.HasPrefix(path, "testpg") {
				return err
			}
			f, err := parser.ParseFile(s.set, path, nil, parser.SkipObjectResolution)
			if err == nil {
				s.files[f.Name.Name] = append(s.files[f.Name.Name], f)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.declare()
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		for _, f := range s.files[name] {
			s.read(name, f)
		}
	}
	for _, p := range s.found {
		if strings.Trim(p.code, "…") == "" {
			t.Errorf("%s: its code can't be told from the source", p.at)
		}
	}
	return s.found
}

type source struct {
	set    *token.FileSet
	files  map[string][]*ast.File // by package
	consts map[string]ast.Expr    // package.name, and package.function.name of those that a function sets once
	coded  map[string][]string    // functions that are given a code: their names, and those of their parameters
	found  []said

	// Of the function that is read: its names, and what is assigned to its variables.
	pkg, function, method string
	assigned              map[string][]ast.Expr
	depth                 int // of variables that are followed: one may be set by itself
}

// declare notes constants, and functions with a parameter named code.
func (s *source) declare() {
	for pkg, files := range s.files {
		for _, f := range files {
			for _, d := range f.Decls {
				if d, ok := d.(*ast.GenDecl); ok && d.Tok == token.CONST {
					s.constants(pkg, d)
				}
				fn, ok := d.(*ast.FuncDecl)
				if !ok {
					continue
				}
				var parameters []string
				for _, field := range fn.Type.Params.List {
					for _, name := range field.Names {
						parameters = append(parameters, name.Name)
					}
				}
				if slices.Contains(parameters, "code") && fn.Name.Name != "reportJSON" { // that is an exit code
					s.coded[method(pkg, fn)] = parameters
				}
				ast.Inspect(fn, func(n ast.Node) bool {
					if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
						s.constants(pkg+"."+fn.Name.Name, d)
					}
					return true
				})
			}
		}
	}
}

// method is a function's name, which is not that of a method.
func method(pkg string, fn *ast.FuncDecl) string {
	if fn.Recv != nil {
		return pkg + ".()." + fn.Name.Name
	}
	return pkg + "." + fn.Name.Name
}

func (s *source) constants(scope string, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		v := spec.(*ast.ValueSpec)
		for i, name := range v.Names {
			if i < len(v.Values) {
				s.consts[scope+"."+name.Name] = v.Values[i]
			}
		}
	}
}

// read finds the problems of a file: calls of package problem, calls of functions that
// are given a code, and codes in tables and assignments.
func (s *source) read(pkg string, f *ast.File) {
	s.pkg = pkg
	chained := map[*ast.CallExpr]*ast.CallExpr{} // a call, and the one of a method of its result
	for _, d := range f.Decls {
		s.function, s.method, s.assigned = "", "", map[string][]ast.Expr{}
		if fn, ok := d.(*ast.FuncDecl); ok {
			s.function, s.method = fn.Name.Name, method(pkg, fn)
		}
		ast.Inspect(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok {
					if inner, ok := sel.X.(*ast.CallExpr); ok {
						chained[inner] = n
					}
				}
				s.call(n, chained)
			case *ast.AssignStmt:
				s.assign(n)
			case *ast.CompositeLit:
				s.literal(n)
			}
			return true
		})
	}
}

func (s *source) assign(n *ast.AssignStmt) {
	p, code := said{at: s.position(n), note: true}, ast.Expr(nil)
	for i, left := range n.Lhs {
		if i >= len(n.Rhs) {
			break
		}
		switch left := left.(type) {
		case *ast.Ident:
			s.assigned[left.Name] = append(s.assigned[left.Name], n.Rhs[i])
		case *ast.SelectorExpr:
			s.field(&p, &code, left.Sel.Name, n.Rhs[i])
		}
	}
	if code != nil {
		s.add(p, code)
	}
}

// field notes a field of a problem.
func (s *source) field(p *said, code *ast.Expr, name string, value ast.Expr) {
	switch strings.ToLower(name) {
	case "code":
		*code = value
	case "cause":
		p.cause = s.text(value)
	case "remedy":
		p.remedy = s.text(value)
	case "advice":
		p.advice = s.text(value)
	}
}

func (s *source) call(c *ast.CallExpr, chained map[*ast.CallExpr]*ast.CallExpr) {
	name := s.name(c.Fun)
	p := said{at: s.position(c), note: true}
	switch name {
	case "problem.New", "problem.Warn":
		p.note, p.cause, p.remedy = false, s.text(c.Args[2]), s.text(c.Args[3])
		for outer := chained[c]; outer != nil; outer = chained[outer] {
			if outer.Fun.(*ast.SelectorExpr).Sel.Name == "Advise" {
				p.advice = s.text(outer.Args[0])
			}
		}
	case "problem.Noted":
		p.cause = s.text(c.Args[2])
	case "problem.Of":
		c.Args = c.Args[1:]
	default:
		var code ast.Expr
		for i, parameter := range s.coded[name] {
			if parameter == "text" || parameter == "effect" {
				parameter = "cause"
			}
			s.field(&p, &code, parameter, c.Args[min(i, len(c.Args)-1)])
		}
		if code != nil {
			s.add(p, code)
		}
		return
	}
	s.add(p, c.Args[0])
}

// literal reads an entry of a table that problems are made of.
func (s *source) literal(n *ast.CompositeLit) {
	p, code := said{at: s.position(n), note: true}, ast.Expr(nil)
	for _, e := range n.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		if key, ok := kv.Key.(*ast.Ident); ok {
			s.field(&p, &code, key.Name, kv.Value)
		}
	}
	if code != nil {
		p.note = p.cause == ""
		s.add(p, code)
	}
}

// add notes a problem under each code that the expression may be; a parameter's are
// found where its function is called.
func (s *source) add(p said, code ast.Expr) {
	id, named := code.(*ast.Ident)
	if _, given := s.coded[s.method]; given && named && id.Name == "code" {
		return
	}
	if sel, ok := code.(*ast.SelectorExpr); ok && strings.EqualFold(sel.Sel.Name, "code") { // another problem's, or a table's
		return
	}
	var codes []string
	if index, ok := code.(*ast.IndexExpr); ok { // one of a map's
		ast.Inspect(index.X, func(n ast.Node) bool {
			if kv, ok := n.(*ast.KeyValueExpr); ok {
				codes = append(codes, s.text(kv.Value))
			}
			return true
		})
	} else if named && len(s.assigned[id.Name]) > 0 {
		for _, value := range s.assigned[id.Name] {
			codes = append(codes, s.text(value))
		}
	} else {
		codes = append(codes, s.text(code))
	}
	for _, c := range codes {
		if p.code = c; c != "" {
			s.found = append(s.found, p)
		}
	}
}

var verb = regexp.MustCompile(`%(\[\d+\])?[-+ #0-9.]*[a-zA-Z]`)

// text is a string as far as the source tells it, with … for the rest.
func (s *source) text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if err == nil {
			return text
		}
	case *ast.BinaryExpr:
		return strings.ReplaceAll(s.text(e.X)+s.text(e.Y), "……", "…")
	case *ast.ParenExpr:
		return s.text(e.X)
	case *ast.Ident, *ast.SelectorExpr:
		name := s.name(e)
		local := s.pkg + "." + s.function + strings.TrimPrefix(name, s.pkg)
		if value := cmp.Or(s.consts[local], s.consts[name]); value != nil {
			in := s.pkg // of another package its own constants
			s.pkg, _, _ = strings.Cut(name, ".")
			defer func() { s.pkg = in }()
			return s.text(value)
		}
		if id, ok := e.(*ast.Ident); ok && len(s.assigned[id.Name]) > 0 && s.depth < 3 {
			s.depth++
			defer func() { s.depth-- }()
			return s.text(s.assigned[id.Name][0])
		}
	case *ast.CallExpr:
		switch s.name(e.Fun) {
		case "fmt.Sprintf":
			return verb.ReplaceAllString(s.text(e.Args[0]), "…")
		case "problem.Word":
			return s.text(e.Args[0])
		}
	}
	return "…"
}

// name is a function's or constant's, with its package.
func (s *source) name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return s.pkg + "." + e.Name
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		if _, imported := s.files[cmp.Or(x, &ast.Ident{}).Name]; ok && (imported || x.Name == "problem" || x.Name == "fmt") {
			return x.Name + "." + e.Sel.Name
		}
		return s.pkg + ".()." + e.Sel.Name
	}
	return ""
}

func (s *source) position(n ast.Node) string { return s.set.Position(n.Pos()).String() }
