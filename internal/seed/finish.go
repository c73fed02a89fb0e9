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
		if err := w.cfg.Build(ctx, w.conn, t.OID); err != nil {
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
