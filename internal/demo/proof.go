package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// prove compares both databases by its own means: every table's rows, every
// sequence, and every transaction that was acknowledged to a client.
func (w *world) prove(ctx context.Context, acked [clients][]int64) (string, error) {
	var sides [2]string
	err := until(ctx, 30*time.Second, func() (bool, error) {
		for i, in := range []*instance{w.server, w.managed} {
			text, err := digest(ctx, in)
			if err != nil {
				return false, err
			}
			sides[i] = text
		}
		if sides[0] != sides[1] {
			return false, fmt.Errorf("the sides differ:\n%s\nand\n%s", indent(sides[0]), indent(sides[1]))
		}
		return true, nil
	})
	if err != nil {
		return "", err
	}
	total := 0
	for _, in := range []*instance{w.server, w.managed} {
		n, err := accounted(ctx, in, acked)
		if err != nil {
			return "", err
		}
		total = n
	}
	return fmt.Sprintf("%s\nall %d acknowledged transactions are on both sides", sides[0], total), nil
}

// digest is a line for each table (its rows, and a sum over the hashes of its rows)
// and one for each sequence.
func digest(ctx context.Context, i *instance) (string, error) {
	conn, err := i.connect(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `
		SELECT c.oid::regclass::text, c.relkind::text FROM pg_class c
		WHERE c.relkind IN ('r', 'S') AND c.relnamespace = 'public'::regnamespace ORDER BY 2 DESC, 1`)
	if err != nil {
		return "", err
	}
	objects, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o [2]string, err error) { return o, row.Scan(&o[0], &o[1]) })
	if err != nil {
		return "", err
	}
	var out []string
	for _, o := range objects {
		sql := `SELECT count(*)::text || ' rows, hash ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM ONLY ` + o[0] + ` t`
		if o[1] == "S" {
			sql = `SELECT 'at ' || last_value || CASE WHEN is_called THEN '' ELSE ', not called' END FROM ` + o[0]
		}
		var text string
		if err := conn.QueryRow(ctx, sql).Scan(&text); err != nil {
			return "", fmt.Errorf("%s: %w", o[0], err)
		}
		out = append(out, fmt.Sprintf("%-22s %s", o[0], text))
	}
	return strings.Join(out, "\n"), nil
}

// accounted looks for every acknowledged transaction in the ledger.
func accounted(ctx context.Context, i *instance, acked [clients][]int64) (int, error) {
	conn, err := i.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	total := 0
	for client, numbers := range acked {
		rows, err := conn.Query(ctx, `SELECT n FROM ledger WHERE client = $1 ORDER BY n`, client)
		if err != nil {
			return 0, err
		}
		have, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return 0, err
		}
		for _, n := range numbers {
			if _, ok := slices.BinarySearch(have, n); !ok {
				return 0, fmt.Errorf("transaction %d of client %d was acknowledged and is not on %s", n, client, i.name)
			}
		}
		total += len(numbers)
	}
	return total, nil
}
