package verify

import (
	"context"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed facts.sql
var factsSQL string

// KindMembership is the Kind of memberships of roles, whose facts are the commands that
// make them. A link follows those alone that open nothing but its database.
const KindMembership = "role membership"

func describe(ctx context.Context, conn db) ([]Fact, error) {
	rows, err := conn.Query(ctx, factsSQL)
	if err != nil {
		return nil, fmt.Errorf("describe the schema: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Fact, err error) {
		return f, row.Scan(&f.Kind, &f.Object, &f.Text, &f.Deparsed)
	})
	if err != nil {
		return nil, fmt.Errorf("describe the schema: %w", err)
	}
	return out, nil
}

// SchemaDifference is one fact that the sides don't agree on. A side that has no
// such object says nothing.
type SchemaDifference struct {
	Kind      string `json:"kind"`
	Object    string `json:"object"`
	Primary   string `json:"primary,omitempty"`
	Secondary string `json:"secondary,omitempty"`
	// Uncertain: the sides are of different major versions, which may print what
	// means the same in different words.
	Uncertain bool `json:"uncertain,omitempty"`
}

// Filled tells of a materialized view that both sides have, filled on one of them alone.
func (d SchemaDifference) Filled() bool {
	return d.Kind == "materialized view" && d.Primary != "" && d.Secondary != ""
}

// compareSchemas names what differs, ordered by kind and object.
func compareSchemas(p, s Inventory) []SchemaDifference {
	type name struct{ kind, object string }
	older, mixed := min(p.Version, s.Version)/10000, p.Version/10000 != s.Version/10000
	if mixed {
		p.Schema, s.Schema = unquoted(p.Schema), unquoted(s.Schema)
	}
	if hasDatabase(p.Schema) != hasDatabase(s.Schema) {
		p.Schema, s.Schema = withoutDatabase(p.Schema), withoutDatabase(s.Schema)
	}
	theirs := map[name]Fact{}
	for _, f := range s.Schema {
		theirs[name{f.Kind, f.Object}] = f
	}
	var out []SchemaDifference
	for _, f := range p.Schema {
		n := name{f.Kind, f.Object}
		g := theirs[n]
		delete(theirs, n)
		if f.means(older) != g.means(older) {
			out = append(out, SchemaDifference{f.Kind, f.Object, f.Text, g.Text, mixed && f.Deparsed && g.Text != ""})
		}
	}
	for n, g := range theirs {
		if g.means(older) != "" {
			out = append(out, SchemaDifference{Kind: n.kind, Object: n.object, Secondary: g.Text})
		}
	}
	slices.SortFunc(out, func(a, b SchemaDifference) int {
		return strings.Compare(a.Kind+"\x00"+a.Object, b.Kind+"\x00"+b.Object)
	})
	return out
}

// hasDatabase: an older agent says nothing of the database itself.
func hasDatabase(facts []Fact) bool {
	return slices.ContainsFunc(facts, func(f Fact) bool { return f.Kind == "database" })
}

func withoutDatabase(facts []Fact) []Fact {
	return slices.DeleteFunc(slices.Clone(facts), func(f Fact) bool {
		return f.Kind == "database" || f.Kind == "setting" || f.Kind == "grant" && strings.HasPrefix(f.Object, "database to ")
	})
}

// needless are quotes that a name has for being a keyword, which not every version does.
var needless = regexp.MustCompile(`"([a-z_][a-z0-9_$]*)"`)

// unquoted are facts as they read without such quotes.
func unquoted(facts []Fact) []Fact {
	facts = slices.Clone(facts)
	for i := range facts {
		facts[i].Object = needless.ReplaceAllString(facts[i].Object, "$1")
		facts[i].Text = needless.ReplaceAllString(facts[i].Text, "$1")
	}
	return facts
}

// means is what a fact says as far as a major version knows it: MAINTAIN came with 17.
func (f Fact) means(major int) string {
	if major >= 17 || f.Kind != "grant" && f.Kind != "default privileges" {
		return f.Text
	}
	known := slices.DeleteFunc(strings.Split(f.Text, ", "), func(p string) bool { return strings.TrimSuffix(p, "*") == "MAINTAIN" })
	return strings.Join(known, ", ")
}
