package seed

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

// haul is a small table with all its rows.
type haul struct {
	table *table
	start frame.SeedStart
	to    target
	data  []byte
	rows  int64
}

// errAlone says that a table does not fit a batch.
var errAlone = errors.New("the table is too large for a batch")

// copyBatch copies small tables. Each has a snapshot of its own, which the applier
// hears of as soon as it arrives; the rows wait in memory, so that no snapshot
// grows old behind them, and are committed together. What can't be dealt with at
// once is put off, to be copied alone.
func (w *worker) copyBatch(ctx context.Context, tables []*table) error {
	if err := w.dial(ctx); err != nil {
		return err
	}
	for _, t := range tables {
		if err := w.ask(ctx, t, uint32(w.limits.small/blockBytes)); err != nil {
			return err
		}
	}
	type trouble struct {
		table *table
		start frame.SeedStart
		err   error
	}
	var troubles []trouble
	var hauls []*haul
	memory := w.limits.memory
	for _, t := range tables {
		h := &haul{table: t}
		switch err := w.haul(ctx, h, memory); {
		case err == nil:
			memory -= len(h.data)
			hauls = append(hauls, h)
		case errors.Is(err, errAlone), errors.Is(err, errEarly), errors.Is(err, ErrRetake), errors.Is(err, errLocked), errors.Is(err, errGone):
			troubles = append(troubles, trouble{t, h.start, err})
		default:
			return err
		}
	}
	if err := w.store(ctx, hauls); err != nil {
		return err
	}
	for _, t := range troubles {
		if err := w.settle(ctx, t.table, t.start, t.err); err != nil {
			return err
		}
	}
	return nil
}

// haul receives one table of a batch.
func (w *worker) haul(ctx context.Context, h *haul, memory int) (err error) {
	if h.start, err = w.answer(h.table); err != nil {
		return err
	}
	if h.start.Export != "" {
		return errAlone // it has grown; the next request ends this snapshot
	}
	refused := w.early(h.table, h.start)
	if refused == nil {
		refused = w.taken(ctx, h.table, h.start)
	}
	if refused != nil && !errors.Is(refused, ErrRetake) && !errors.Is(refused, errEarly) {
		return refused
	}
	in := &incoming{stream: w.stream}
	if refused == nil {
		in.share = w.meter.share(h.start.OID, h.start.Bytes)
	}
	for !in.ended {
		if err := in.next(); err != nil {
			return err
		}
		if refused == nil && len(h.data)+len(in.left) > memory {
			h.data, refused = nil, errAlone
		}
		if refused == nil {
			h.data = append(h.data, in.left...)
		}
		in.left = nil
	}
	h.rows = in.rows
	return refused
}

// store commits the rows of a batch. A table that does not take them is left out.
func (w *worker) store(ctx context.Context, hauls []*haul) error {
	starts := make([]frame.SeedStart, len(hauls))
	for i, h := range hauls {
		starts[i] = h.start
	}
	targets, err := w.targets(ctx, starts)
	if err != nil {
		return err
	}
	fitting := hauls[:0:0]
	for i, h := range hauls {
		if h.to = targets[i]; h.to.fits(h.start) != nil {
			w.queue.putOff(h.table, 0)
			continue
		}
		fitting = append(fitting, h)
	}
	for len(fitting) > 0 {
		bad, err := w.commit(ctx, fitting)
		var m misfit
		switch {
		case err == nil:
			w.stored(fitting)
			return nil
		case bad < 0 || !errors.As(err, &m):
			return err
		}
		w.queue.putOff(fitting[bad].table, 0)
		fitting = append(fitting[:bad], fitting[bad+1:]...)
	}
	return nil
}

// commit writes hauls in one transaction. bad is the one that failed, -1 if none did.
func (w *worker) commit(ctx context.Context, hauls []*haul) (bad int, err error) {
	bad = -1
	err = pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		err := postgres.InUserPath(ctx, tx, func() error {
			for i, h := range hauls {
				if err := w.copyHaul(ctx, h); err != nil {
					bad = i
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, h := range hauls {
			if err := catalog.SetTableDone(ctx, tx, w.cfg.Link, h.start.OID, h.start.Bytes, h.rows); err != nil {
				return err
			}
		}
		return nil
	})
	return bad, w.replicaError(err)
}

func (w *worker) copyHaul(ctx context.Context, h *haul) error {
	sql := copyInto(h.start)
	switch {
	case h.to.hasRows:
		sql = h.to.empty(h.start) + "; " + sql
	case len(h.data) == 0:
		return nil
	}
	tag, err := w.conn.PgConn().CopyFrom(ctx, bytes.NewReader(h.data), sql)
	if err != nil {
		return fmt.Errorf("copy table %s: %w", h.table, err)
	}
	return w.sameCount(h.start, h.rows, tag.RowsAffected())
}

func (w *worker) stored(hauls []*haul) {
	tables := make([]*table, len(hauls))
	for i, h := range hauls {
		tables[i] = h.table
		w.meter.filled(h.start.OID)
	}
	w.queue.fill(tables...)
}
