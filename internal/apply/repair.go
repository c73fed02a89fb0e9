package apply

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// repair holds the rows of a side that was forced out: the transactions that only
// it has touched them, so they can't be brought to where the new primary's stream
// begins. They were deleted when it rejoined. Until all of them are fetched:
//
//   - A change of such a row is skipped. Where it moves a row from one key to
//     another, both keys are such rows from then on, and the row is deleted.
//   - The rows are fetched under a snapshot of the primary when the replica is, but
//     for them, in exactly the state of that snapshot. Nothing is left to be
//     repaired then, and the same transaction records it.
type repair struct {
	tables map[uint32]*repairTable // by the replica's oid
}

type repairTable struct {
	columns []int16
	keys    map[string]bool // as keyText has them
}

func (p *repair) load(ctx context.Context, db catalog.DB, link string) error {
	p.tables = map[uint32]*repairTable{}
	list, err := catalog.Repairs(ctx, db, link)
	for _, t := range list {
		r := &repairTable{columns: t.Columns, keys: make(map[string]bool, len(t.Keys))}
		for _, key := range t.Keys {
			r.keys[keyText(key)] = true
		}
		p.tables[t.OID] = r
	}
	return err
}

// keyText is a key as one string.
func keyText(key []string) string {
	text, _ := json.Marshal(key) // never fails
	return string(text)
}

// withheld tells whether a change is skipped since it concerns a row that is to be
// repaired. rows are the row before and after the change, or one of them.
func (a *Applier) withheld(ctx context.Context, r *relation, rows ...[]pgoutput.Column) (bool, error) {
	if len(a.repair.tables) == 0 {
		return false, nil
	}
	t := a.repair.tables[r.target.oid]
	if t == nil {
		return false, nil
	}
	keys := make([][]string, len(rows))
	known := false
	for i, row := range rows {
		key, err := t.keyOf(r, row)
		if err != nil {
			return false, err
		}
		keys[i] = key
		known = known || t.keys[keyText(key)]
	}
	if !known {
		return false, nil
	}
	for _, key := range keys {
		if err := a.withhold(ctx, r, t, key); err != nil {
			return false, err
		}
	}
	return true, nil
}

// withhold makes a row one that is to be repaired.
func (a *Applier) withhold(ctx context.Context, r *relation, t *repairTable, key []string) error {
	if t.keys[keyText(key)] {
		return nil
	}
	if err := a.ensureBatch(ctx); err != nil {
		return err
	}
	if err := a.out.idle(); err != nil {
		return err
	}
	var where []string
	for i, n := range t.columns { // a cast to text prints some types otherwise than the stream does
		c := r.columnOf(n)
		where = append(where, fmt.Sprintf("%s %s $%d", c.name, c.equals(), i+1))
	}
	err := postgres.InUserPath(ctx, a.conn, func() error {
		taker, err := catalog.NewTaker(ctx, a.conn, catalog.RepairTable{OID: r.target.oid, Columns: t.columns}, r.quoted, strings.Join(where, " AND "))
		if err != nil {
			return err
		}
		return taker.Take(ctx, a.conn, a.cfg.ID, key)
	})
	if err != nil {
		return failed(nil, err)
	}
	t.keys[keyText(key)] = true
	return nil
}

// columnOf finds a column by its number on the replica.
func (r *relation) columnOf(attnum int16) (c column) {
	i := slices.IndexFunc(r.target.columns, func(c column) bool { return c.attnum == attnum })
	if i < 0 {
		return column{}
	}
	return r.target.columns[i]
}

// keyOf takes the key out of a row.
func (t *repairTable) keyOf(r *relation, row []pgoutput.Column) ([]string, error) {
	key := make([]string, len(t.columns))
	for i, n := range t.columns {
		at := slices.IndexFunc(r.target.columns, func(c column) bool { return c.attnum == n })
		if at < 0 || at >= len(row) || row[at].Kind == pgoutput.Null || row[at].Kind == pgoutput.Unchanged {
			return nil, problem.New("repair-key-lost", "table "+r.quoted,
				"its key changed on the primary before the rows that differ here were repaired", "hawser link resync NAME --table "+problem.Word(r.quoted))
		}
		key[i] = string(row[at].Data)
	}
	return key, nil
}

// Repair ends the repair at a snapshot of the primary: fetch puts the rows of one
// table, as that snapshot shows them, into tx. open is as in AtSnapshot, and so is
// ErrNotPrefix.
func (a *Applier) Repair(ctx context.Context, open func(ctx context.Context) (frame.Snapshot, frame.LSN, error), fetch func(ctx context.Context, tx pgx.Tx, t catalog.RepairTable) error) error {
	return a.atBarrier(ctx, &barrier{open: open, exact: true, take: func(ctx context.Context) error {
		if err := a.out.idle(); err != nil {
			return err
		}
		err := pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
			list, err := catalog.Repairs(ctx, tx, a.cfg.ID)
			if err != nil {
				return err
			}
			for _, t := range list {
				if err := fetch(ctx, tx, t); err != nil {
					return err
				}
			}
			// Transactions that were withheld whole opened none here, and so left the stored
			// position in front of them; the rows have their effect from now on.
			if _, err := tx.Exec(ctx, catalog.SQLSetPosition, a.cfg.Origin, a.position.String(), a.last.Commit.String(), int64(a.last.XID), pgtype.Timestamptz{Time: a.last.At, Valid: !a.last.At.IsZero()}); err != nil {
				return err
			}
			return catalog.ForgetRepairs(ctx, tx, a.cfg.ID)
		})
		if err != nil {
			return a.lost(fmt.Errorf("repair the rows that differ: %w", err))
		}
		a.repair.tables = nil
		return nil
	}})
}

// errBarrierTaken: there is one barrier at a time.
var errBarrierTaken = errors.New("another comparison is under way")
