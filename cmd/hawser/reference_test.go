package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestReference holds docs/cli.md against the commands; -update writes it.
func TestReference(t *testing.T) {
	t.Parallel()
	const (
		path     = "../../docs/cli.md"
		codes    = "<!-- exit codes: written by go test ./cmd/hawser -run TestReference -update -->\n"
		codesEnd = "<!-- end of exit codes -->"
		commands = "<!-- commands: written by go test ./cmd/hawser -run TestReference -update -->\n"
	)
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(doc), codes)
	_, middle, ok2 := strings.Cut(rest, codesEnd)
	middle, _, ok3 := strings.Cut(middle, commands)
	if !ok1 || !ok2 || !ok3 {
		t.Fatal("the marks of the generated parts are missing")
	}
	var b strings.Builder
	b.WriteString(head + codes + "| code | |\n| --- | --- |\n")
	for _, m := range exitMeanings() {
		fmt.Fprintf(&b, "| %d | %s |\n", m.code, m.meaning)
	}
	b.WriteString(codesEnd + middle + commands)
	a, _, _ := call{}.app(t)
	root := a.root()
	root.InitDefaultHelpFlag()
	b.WriteString("\nEvery command has these flags:\n\n" + flagTable(root.PersistentFlags()))
	describe(t, &b, root)
	_, documents, _ := strings.Cut(middle, "## JSON")
	documents, _, _ = strings.Cut(documents, "\n## ")
	for _, c := range leaves(root) {
		if name := strings.TrimPrefix(c.CommandPath(), "hawser "); c.Name() != "agent" && c.Name() != "demo" && !strings.Contains(documents, "`"+name+"`") {
			t.Errorf("%s does not tell the document of hawser %s", path, name)
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if b.String() != string(doc) {
		t.Errorf("%s is behind the code: run go test ./cmd/hawser -run TestReference -update", path)
	}
}

// leaves are the commands that do something, in the order of their names.
func leaves(parent *cobra.Command) (all []*cobra.Command) {
	for _, c := range parent.Commands() {
		switch {
		case c.HasSubCommands():
			all = append(all, leaves(c)...)
		case c.Runnable(): // else a topic of help
			all = append(all, c)
		}
	}
	return all
}

// describe writes the commands that do something.
func describe(t *testing.T, b *strings.Builder, root *cobra.Command) {
	for _, c := range leaves(root) {
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s lacks a description or an example", c.CommandPath())
		}
		fmt.Fprintf(b, "\n### %s\n\n%s.\n\n", c.CommandPath(), c.Short)
		fmt.Fprintf(b, "    %s\n\n%s\n\n%s\n", c.UseLine(), strings.TrimSpace(c.Long), indent(c.Example))
		if c.Name() == "agent" {
			b.WriteString("\nEvery key of [the configuration](configuration.md) is a flag, too.\n")
			continue
		}
		if table := flagTable(c.LocalNonPersistentFlags()); table != "" {
			b.WriteString("\n" + table)
		}
	}
}

func indent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = "    " + strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}

func flagTable(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		if b.Len() == 0 {
			b.WriteString("| flag | |\n| --- | --- |\n")
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", strings.TrimSpace(name+" "+kind), usage)
	})
	return b.String()
}
