package fence

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Remove opens the fence and takes everything away that Prepare and Close put into
// the database, one table and one short lock at a time. Schema hawser stays. It
// can be run again after it was interrupted.
func Remove(ctx context.Context, conn *pgx.Conn) error {
	if err := Open(ctx, conn); err != nil {
		return err
	}
	w := walk{
		conn: conn, o: &PrepareOptions{}, doing: "take the fence off table", list: fenced, changed: map[uint32]int{},
		change: func(t table) string {
			return "DROP TRIGGER IF EXISTS " + trigger + " ON " + t.String() + "; DROP TRIGGER IF EXISTS " + replicaTrigger + " ON " + t.String()
		},
	}
	if err := w.run(ctx); err != nil {
		return err
	}
	err := write(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			DROP EVENT TRIGGER IF EXISTS hawser_fence;
			DROP FUNCTION IF EXISTS hawser.fence_ddl(), hawser.fence()`)
		return err
	})
	return explain("remove the fence", err)
}

// fenced lists the tables that have a trigger of ours.
const fenced = `
	SELECT DISTINCT c.oid, n.nspname, c.relname, false FROM pg_trigger t
	JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE t.tgname IN ('hawser_fence', 'hawser_fence_replica') AND t.tgfoid = to_regprocedure('hawser.fence()')`
