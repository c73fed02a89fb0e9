package schema

import (
	"runtime/debug"
	"sync"

	pgq "github.com/pganalyze/pg_query_go/v6"
	pgquery "github.com/wasilibs/go-pgquery"
)

// parsing lets one goroutine at a time use PostgreSQL's parser: the library compiles
// another one, for a second or more of CPU and with its memory, whenever all that
// there are are in use.
var parsing sync.Mutex

// warm gives back once what compiling the parser took: more than the agent works with.
var warm sync.Once

// WarmParser makes the parser, so that the first command of a stream does not have
// to wait for it.
func WarmParser() {
	_, _ = parse("SELECT") // it fails on no valid text
	warm.Do(debug.FreeOSMemory)
}

func parse(text string) (*pgq.ParseResult, error) {
	parsing.Lock()
	defer parsing.Unlock()
	return pgquery.Parse(text)
}

func scan(text string) (*pgq.ScanResult, error) {
	parsing.Lock()
	defer parsing.Unlock()
	return pgquery.Scan(text)
}

func deparse(tree *pgq.ParseResult) (string, error) {
	parsing.Lock()
	defer parsing.Unlock()
	return pgquery.Deparse(tree)
}
