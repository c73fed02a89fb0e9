package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// DDL in the stream may speak of anything that was restored. So before it is replayed, all
// of that is made that can be without rows (complete), and what has to come after the rows
// of all tables keeps to its object by OID (buildOnRows).

// makeWay keeps what schema.MakeWay takes away to be built again by complete.
func (l *link) makeWay(ctx context.Context, tx pgx.Tx) (bool, error) {
	entries, err := schema.MakeWay(ctx, tx)
	for _, e := range entries {
		data, err := json.Marshal(e)
		if err != nil {
			return false, err
		}
		if err := catalog.AddSchemaEntry(ctx, tx, l.rec.ID, string(e.Phase), data); err != nil {
			return false, err
		}
	}
	return len(entries) > 0, err
}

// harden ends for a copy that will not be completed what makeWay began.
func harden(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return schema.Harden(ctx, tx) })
}

// readEntry reads an entry as it is stored.
func readEntry(id int, stored json.RawMessage) (e schema.Entry, err error) {
	if err := json.Unmarshal(stored, &e); err != nil {
		return e, fmt.Errorf("read schema entry %d: %w", id, err)
	}
	e.ID = id
	return e, nil
}

// complete builds what is left of the restored schema, and then finds the objects of
// what still waits for rows: the names hold as long as no DDL was replayed.
func (l *link) complete(ctx context.Context, conn *pgx.Conn) error {
	for _, phase := range []schema.Phase{schema.PhaseTable, schema.PhaseFinal} {
		if err := l.build(ctx, conn, phase, 0); err != nil {
			return err
		}
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := schema.Soften(ctx, tx); err != nil {
			return err
		}
		entries, err := catalog.RowsEntries(ctx, tx, l.rec.ID)
		if err != nil {
			return err
		}
		for _, r := range entries {
			if r.Placed {
				continue
			}
			if err := l.place(ctx, tx, r); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *link) place(ctx context.Context, tx pgx.Tx, r catalog.RowsEntry) error {
	e, err := readEntry(r.ID, r.Entry)
	if err != nil {
		return err
	}
	p, found, err := e.Place(ctx, tx)
	if err != nil {
		return err
	}
	if !found {
		return catalog.SetEntryDone(ctx, tx, l.rec.ID, r.ID)
	}
	return catalog.PlaceEntry(ctx, tx, l.rec.ID, r.ID, catalog.Place(p))
}

// buildOnRows does what waited for the rows of all tables: foreign keys are checked,
// materialized views filled. DDL may come meanwhile, and rename, drop or empty what an
// entry needs: one that fails is tried again as long as others pass, and once more.
func (l *link) buildOnRows(ctx context.Context, conn *pgx.Conn) error {
	for stuck := 0; ; stuck++ {
		entries, err := catalog.RowsEntries(ctx, conn, l.rec.ID)
		if err != nil || len(entries) == 0 {
			return err
		}
		var failed error
		for _, r := range entries {
			switch err := l.buildOne(ctx, conn, r); {
			case err == nil:
				stuck = -1
			case failed == nil:
				failed = err
			}
		}
		if failed != nil && stuck > 0 {
			return l.unlessCopying(ctx, conn, failed)
		}
	}
}

// unlessCopying returns err, unless DDL has put tables down to be copied again: without
// their rows it means nothing.
func (l *link) unlessCopying(ctx context.Context, conn *pgx.Conn, err error) error {
	tables, lookup := catalog.SeedTables(ctx, conn, l.rec.ID)
	if lookup != nil {
		return errors.Join(err, lookup)
	}
	if slices.ContainsFunc(tables, func(t catalog.SeedTable) bool { return t.State != catalog.Live }) {
		return apply.ErrReseed
	}
	return err
}

// buildOne does what r says, and sees that its object, of which r has the name, is the
// one that was meant.
func (l *link) buildOne(ctx context.Context, conn *pgx.Conn, r catalog.RowsEntry) error {
	e, err := readEntry(r.ID, r.Entry)
	if err != nil {
		return err
	}
	e.SQL = r.SQL
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if e.SQL != "" {
			if err := l.onRows(ctx, tx, e); err != nil {
				return err
			}
			if err := l.sameObject(ctx, tx, r); err != nil {
				return err
			}
		}
		return catalog.SetEntryDone(ctx, tx, l.rec.ID, r.ID)
	})
}

func (l *link) onRows(ctx context.Context, tx pgx.Tx, e schema.Entry) error {
	if e.Kind != schema.KindRefresh {
		return l.buildEntry(ctx, tx, e)
	}
	finding, err := schema.Fill(ctx, tx, e)
	if err == nil && finding != nil {
		l.note(schema.Result{Notes: problem.Findings{finding}})
	}
	return err
}

// sameObject fails where a name came to mean another object since it was looked up.
func (l *link) sameObject(ctx context.Context, tx pgx.Tx, r catalog.RowsEntry) error {
	entries, err := catalog.RowsEntries(ctx, tx, l.rec.ID)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(entries, func(now catalog.RowsEntry) bool { return now.ID == r.ID })
	if i < 0 || !entries[i].There || entries[i].SQL != "" && entries[i].SQL != r.SQL {
		return fmt.Errorf("%s: it is another one now", r.SQL)
	}
	return nil
}
