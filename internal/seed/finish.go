package seed

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/postgres"
)

// finish builds what belongs to tables that have their rows, analyzes them, and
// records that they are loaded. That commit alone is waited for; with it, all that
// was committed before is on disk.
func (w *worker) finish(ctx context.Context, tables []*table) error {
	if err := w.connect(ctx); err != nil {
		return err
	}
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.String()
		if err := w.build(ctx, t); err != nil {
			return fmt.Errorf("build what belongs to table %s: %w", t, err)
		}
	}
	err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		err := postgres.InUserPath(ctx, tx, func() error {
			_, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on; ANALYZE `+strings.Join(names, ", "))
			return err
		})
		if err != nil {
			return fmt.Errorf("analyze what was copied: %w", err)
		}
		for _, t := range tables {
			if err := catalog.SetTableState(ctx, tx, w.cfg.Link, t.OID, catalog.Loaded); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return w.replicaError(err)
	}
	w.queue.finished(tables)
	return nil
}

// build makes a table's indexes, all workers helping when it is large, and its constraints.
func (w *worker) build(ctx context.Context, t *table) error {
	if t.Bytes > w.limits.small {
		steps, err := w.cfg.Indexes(ctx, w.conn, t.OID)
		if err != nil {
			return err
		}
		err = w.shareOut(ctx, newSplit(false, len(steps), func(i int) func(context.Context, *worker) error {
			return func(ctx context.Context, w *worker) error {
				if err := w.connect(ctx); err != nil {
					return err
				}
				return steps[i](ctx, w.conn)
			}
		}))
		if err != nil {
			return err
		}
	}
	return w.cfg.Build(ctx, w.conn, t.OID)
}
