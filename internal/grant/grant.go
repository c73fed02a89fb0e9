// Package grant says what an instance allows one of its peers: which of its databases
// the links with that peer may concern, and which way their data may flow. It is pure:
// package link asks it at every call and stream, and holds what is granted to whom.
//
// The zero value allows nothing, so whoever was forgotten is refused.
package grant

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/problem"
)

// Direction is a way of data between this instance and the peer.
type Direction string

// The directions. None is of what moves no data.
const (
	None     Direction = ""
	Both     Direction = "both"
	ToPeer   Direction = "to-peer"   // this instance is the primary
	FromPeer Direction = "from-peer" // the peer is
)

// Grant is what one peer may do.
type Grant struct {
	Databases []string // patterns, as filter.Name reads them
	Direction Direction
}

// All allows everything, as the trust alone does.
func All() Grant { return Grant{Databases: []string{"*"}, Direction: Both} }

// Check returns a problem when a pattern can't be read.
func (g Grant) Check() error {
	for _, p := range g.Databases {
		if _, err := filter.Name(p); err != nil {
			return err
		}
	}
	return nil
}

// Covers reports whether links may concern the database.
func (g Grant) Covers(database string) bool {
	return slices.ContainsFunc(g.Databases, func(p string) bool {
		n, err := filter.Name(p)
		return err == nil && n.MatchString(database)
	})
}

// Allows reports whether data of the database may flow that way; Both asks for the one
// and the other.
func (g Grant) Allows(database string, way Direction) bool {
	return g.Covers(database) && (way == None || g.Direction == Both || g.Direction == way)
}

// With is the grant widened by a database and a way.
func (g Grant) With(database string, way Direction) Grant {
	wide := Grant{Databases: slices.Clone(g.Databases), Direction: g.Direction}
	if !g.Covers(database) {
		wide.Databases = append(wide.Databases, pattern(database))
	}
	switch wide.Direction {
	case None:
		wide.Direction = way
	case ToPeer, FromPeer:
		if way != None && way != wide.Direction {
			wide.Direction = Both
		}
	}
	return wide
}

var plain = regexp.MustCompile(`^[a-z0-9_.-]+$`)

// pattern matches this name alone.
func pattern(name string) string {
	if plain.MatchString(name) {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// Flags is the grant as flags of hawser peer set.
func (g Grant) Flags() string {
	var b strings.Builder
	for _, p := range g.Databases {
		b.WriteString("--databases " + problem.Word(p) + " ")
	}
	return b.String() + "--direction " + string(g.Direction)
}

// String is the grant in words.
func (g Grant) String() string {
	if len(g.Databases) == 0 {
		return "nothing"
	}
	databases := "databases " + strings.Join(g.Databases, ", ")
	if slices.Contains(g.Databases, "*") {
		databases = "every database"
	}
	return fmt.Sprintf("%s, %s", databases, g.Direction.Words())
}

// Words says which way data may flow.
func (d Direction) Words() string {
	switch d {
	case Both:
		return "data both ways"
	case ToPeer:
		return "data to the peer alone"
	case FromPeer:
		return "data from the peer alone"
	}
	return "no data"
}
