// Package house holds the rules that no single package can hold: who may import
// whom, and that every package says what it is for.
package house

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hawser/hawser/internal/"

// allowed says what a package of ARCHITECTURE's table may import. "*" means any package.
var allowed = map[string][]string{
	"problem":     {},
	"frame":       {},
	"pgoutput":    {},
	"postgres":    {"problem"},
	"filter":      {"problem"},
	"grant":       {"problem", "filter"},
	"catalog":     {"problem", "frame"},
	"capture":     {"problem", "frame", "postgres", "filter"},
	"peer":        {"problem", "frame", "peer/peerpb"},
	"peer/peerpb": {},
	"schema":      {"problem", "postgres"},
	"apply":       {"problem", "frame", "pgoutput", "postgres", "catalog"},
	"seed":        {"problem", "frame", "postgres", "catalog", "filter"},
	"fence":       {"problem", "postgres"},
	"verify":      {"problem", "postgres"},
	"link/role":   {"problem", "frame"},
	"link":        {"problem", "frame", "filter", "grant", "pgoutput", "postgres", "catalog", "capture", "peer", "schema", "apply", "seed", "fence", "verify", "link/role"},
	"agent":       {"*"},
	"agent/api":   {"problem", "frame"},
	"demo":        {"*"},
	"testpg":      {"problem", "postgres"},

	"testpg/history": {},
}

// never may not be imported by shipped code, whatever else is allowed.
var never = map[string]string{
	"testpg":         "it is for tests alone",
	"testpg/history": "it is for tests alone",
	"demo":           "only the command starts the demonstration",
}

func packages(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			dir := filepath.ToSlash(filepath.Dir(path))
			out[dir] = append(out[dir], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestImportsPointOneWay(t *testing.T) {
	for name, files := range packages(t) {
		may, known := allowed[name]
		if !known {
			t.Errorf("package internal/%s is not in the table of the house: give it a line here and in ARCHITECTURE.md, with its reason to exist", name)
			continue
		}
		unused := slices.Clone(may)
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range f.Imports {
				target, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module)
				if !ours {
					continue
				}
				if why, ok := never[target]; ok {
					t.Errorf("%s imports internal/%s: %s", file, target, why)
				}
				unused = slices.DeleteFunc(unused, func(s string) bool { return s == target })
				if !slices.Contains(may, target) && !slices.Contains(may, "*") {
					t.Errorf("%s imports internal/%s: internal/%s may import %v; data flows one way, and a second way is a second architecture", file, target, name, may)
				}
			}
		}
		if len(unused) > 0 && !slices.Contains(may, "*") {
			t.Errorf("internal/%s may import %v and does not: take it off the list", name, unused)
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for name, files := range packages(t) {
		if name == "peer/peerpb" {
			continue // generated
		}
		var doc string
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			doc += f.Doc.Text()
		}
		if len(doc) < 100 {
			t.Errorf("package internal/%s has no doc comment that says what it is for and what it must never do", name)
		}
	}
}

// TestArchitectureNamesThePackages keeps ARCHITECTURE.md's table complete.
func TestArchitectureNamesThePackages(t *testing.T) {
	text, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range allowed {
		if name != "peer/peerpb" && !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("ARCHITECTURE.md does not name package `%s`", name)
		}
	}
}
