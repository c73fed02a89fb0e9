package schema

import (
	"fmt"

	pgq "github.com/pganalyze/pg_query_go/v6"
)

// maxDepth and maxDeparsed bound how deep a parse tree may be. The library is PostgreSQL's
// parser in C and walks a tree by recursion without PostgreSQL's own check of the stack:
// with 0.4 kB a level where it reads, 1.7 kB where it writes. A thread's stack has 2 MB at
// least, and beyond it the process would end.
const (
	maxDepth    = 3000
	maxDeparsed = 1000
)

// parse is PostgreSQL's raw parser. A text that may be nested too deep is refused, as
// one that can't be read.
func parse(text string) (*pgq.ParseResult, error) {
	if err := shallow(text, maxDepth); err != nil {
		return nil, err
	}
	return pgq.Parse(text)
}

// deparse writes anew the statement that node was read from, and has been changed since.
func deparse(text string, node *pgq.Node) (string, error) {
	if err := shallow(text, maxDeparsed); err != nil {
		return "", err
	}
	return pgq.Deparse(&pgq.ParseResult{Stmts: []*pgq.RawStmt{{Stmt: node}}})
}

func shallow(text string, limit int) error {
	scan, err := pgq.Scan(text)
	if err != nil {
		return err
	}
	if d := depth(scan.Tokens); d > limit {
		return fmt.Errorf("a statement may be nested %d levels deep, %d can be read", d, limit)
	}
	return nil
}

// depth is more than the levels of any parse tree of the text: in the grammar only
// tokens add levels, and those before a comma or semicolon are beside, not above, those
// behind it. Except for the set operations: the lists of SELECT hold commas between them.
func depth(tokens []*pgq.ScanToken) int {
	type level struct{ sets, tokens int }
	open := []level{{}}
	sum, most := 0, 0
	for _, t := range tokens {
		here := &open[len(open)-1]
		switch t.Token {
		case pgq.Token_SQL_COMMENT, pgq.Token_C_COMMENT:
			continue
		case pgq.Token_ASCII_44: // ,
			sum, here.tokens = sum-here.tokens, 0
			continue
		case pgq.Token_ASCII_59: // ;
			sum -= here.tokens + here.sets
			*here = level{}
			continue
		case pgq.Token_ASCII_41, pgq.Token_ASCII_93: // ) ]
			if len(open) > 1 {
				sum -= here.tokens + here.sets
				open = open[:len(open)-1]
			}
			continue
		case pgq.Token_UNION, pgq.Token_INTERSECT, pgq.Token_EXCEPT:
			here.sets++
		default:
			here.tokens++
		}
		sum++
		most = max(most, sum)
		if t.Token == pgq.Token_ASCII_40 || t.Token == pgq.Token_ASCII_91 { // ( [
			open = append(open, level{})
		}
	}
	return most
}
