package seed

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

// copyParts splits a table over the workers. This one's stream holds the snapshot,
// and copies parts too. When it returns, no part is under way.
func (w *worker) copyParts(ctx context.Context, start frame.SeedStart, to target) error {
	if to.hasRows {
		err := w.inPath(ctx, func() error {
			_, err := w.conn.Exec(ctx, to.empty(start))
			return err
		})
		if err != nil {
			return w.replicaError(err)
		}
	}
	var rows atomic.Int64
	ranges := w.ranges(start)
	err := w.shareOut(ctx, newSplit(true, len(ranges), func(i int) func(context.Context, *worker) error {
		return func(ctx context.Context, w *worker) error { return w.copyRange(ctx, ranges[i], &rows) }
	}))
	if err != nil {
		return err
	}
	w.release(start)
	return w.replicaError(catalog.SetTableDone(ctx, w.conn, w.cfg.Link, start.OID, start.Bytes, rows.Load()))
}

// shareOut offers work to the other workers and does its share. When it returns, no part
// is under way.
func (w *worker) shareOut(ctx context.Context, s *split) error {
	w.queue.offer(s)
	left := len(s.parts)
	var err error
	for err == nil {
		p := w.queue.takeOwn(s)
		if p == nil {
			break
		}
		err = p.do(ctx, w)
		left--
	}
	if err != nil {
		left -= w.queue.withdraw(s)
	}
	for ; left > 0; left-- {
		if e := <-s.results; err == nil {
			err = e
		}
	}
	return err
}

// pageRange is one of a table whose snapshot a worker's stream holds.
type pageRange struct {
	frame.SeedRequest
	start frame.SeedStart
	share *share
}

func (w *worker) ranges(start frame.SeedStart) (ranges []pageRange) {
	for first, pages := uint32(0), uint32(0); first < start.Pages; first += pages {
		pages = min(start.ChunkPages, start.Pages-first)
		r := pageRange{start: start, SeedRequest: frame.SeedRequest{OID: start.OID, Export: start.Export, FirstPage: first, EndPage: first + pages}}
		if r.EndPage == start.Pages {
			r.EndPage = endOfTable
		}
		r.share = w.meter.share(start.OID, start.Bytes/int64(start.Pages)*int64(pages))
		ranges = append(ranges, r)
	}
	return ranges
}

func (w *worker) copyRange(ctx context.Context, r pageRange, total *atomic.Int64) error {
	if err := w.dial(ctx); err != nil {
		return err
	}
	if err := w.request(r.SeedRequest); err != nil {
		return err
	}
	var rows int64
	err := w.inPath(ctx, func() (err error) {
		rows, err = w.receive(ctx, r.start, r.share, "")
		return err
	})
	if err != nil {
		return w.replicaError(err)
	}
	total.Add(rows)
	r.share.done()
	return nil
}

// inPath runs f in a transaction, with functions of the tables finding what they name.
func (w *worker) inPath(ctx context.Context, f func() error) error {
	return pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error { return postgres.InUserPath(ctx, tx, f) })
}
