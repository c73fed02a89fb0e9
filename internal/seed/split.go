package seed

import (
	"context"

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
	s := w.newSplit(start)
	w.queue.offer(s)
	left := len(s.parts)
	var err error
	for err == nil {
		p := w.queue.takeOwn(s)
		if p == nil {
			break
		}
		err = w.copyPart(ctx, p)
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
	if err != nil {
		return err
	}
	w.release(start)
	return w.replicaError(catalog.SetTableDone(ctx, w.conn, w.cfg.Link, start.OID, start.Bytes, s.rows.Load()))
}

func (w *worker) newSplit(start frame.SeedStart) *split {
	s := &split{}
	for first, pages := uint32(0), uint32(0); first < start.Pages; first += pages {
		pages = min(start.ChunkPages, start.Pages-first)
		p := &part{of: s, start: start, SeedRequest: frame.SeedRequest{OID: start.OID, Export: start.Export, FirstPage: first, EndPage: first + pages}}
		if p.EndPage == start.Pages {
			p.EndPage = endOfTable
		}
		p.share = w.meter.share(start.OID, start.Bytes/int64(start.Pages)*int64(pages))
		s.parts = append(s.parts, p)
	}
	s.results = make(chan error, len(s.parts))
	return s
}

func (w *worker) copyPart(ctx context.Context, p *part) error {
	if err := w.dial(ctx); err != nil {
		return err
	}
	if err := w.request(p.SeedRequest); err != nil {
		return err
	}
	var rows int64
	err := w.inPath(ctx, func() (err error) {
		rows, err = w.receive(ctx, p.start, p.share, "")
		return err
	})
	if err != nil {
		return w.replicaError(err)
	}
	p.of.rows.Add(rows)
	p.share.done()
	return nil
}

// inPath runs f in a transaction, with functions of the tables finding what they name.
func (w *worker) inPath(ctx context.Context, f func() error) error {
	return pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error { return postgres.InUserPath(ctx, tx, f) })
}
