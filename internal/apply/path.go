package apply

import (
	"context"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// A change runs under the empty search_path of the applier's session. Where a function that
// an index, a CHECK or a generated column calls does not find what it names, the next
// applier (Config.UserPath) has changes, and nothing else, run under postgres.UserPath.

// CodeUserPath is the code of the problem that asks for Config.UserPath.
const CodeUserPath = "search-path"

// takePath puts the path in force before a change. It ends with the transaction.
func (w *writer) takePath() error {
	if w.path == "" || w.inPath {
		return nil
	}
	w.inPath = true
	return w.send(w.own(postgres.SetPath), [][]byte{[]byte(w.path)}, expectation{affected: -1})
}

// leavePath takes it away before the applier's own statements.
func (w *writer) leavePath() error {
	if !w.inPath {
		return nil
	}
	w.inPath = false
	if _, err := w.pipe.conn.Exec(context.Background(), `SET LOCAL search_path = ''`).ReadAll(); err != nil {
		return w.fail(err)
	}
	return nil
}

// refused is failed for a statement of the pipeline.
func (w *writer) refused(d *doing, err error) error {
	if w.path != "" || d == nil || !postgres.Unqualified(err) {
		return failed(d, err)
	}
	return problem.New(CodeUserPath, d.String(), "a function that an index, a CHECK or a generated column of the table calls names things without their schema; it is tried again under the database's search_path",
		"ALTER FUNCTION … SET search_path = …;").At("the primary").Retry().Because(err)
}
