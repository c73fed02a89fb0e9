package apply

import (
	"context"
	"errors"
	"slices"

	"github.com/hawser/hawser/internal/frame"
)

// ErrNotPrefix says that a snapshot of the primary sees a transaction and not one
// that was committed before it. It happens between a commit's record in the WAL
// and its visibility to others; the next snapshot will do.
var ErrNotPrefix = errors.New("the snapshot is no prefix of the commit order")

// barrier stops the replica, for a moment, in exactly the state that a snapshot of
// the primary shows: every transaction that the snapshot sees is committed here,
// and none that it does not see.
type barrier struct {
	open     func(ctx context.Context) (frame.Snapshot, frame.LSN, error)
	snapshot frame.Snapshot
	until    frame.LSN // everything that the snapshot sees was committed before
	take     func(ctx context.Context) error
	exact    bool // take must not be undone: it is called when the state is sure, of what was applied before the snapshot, too
	taken    bool
	done     chan error
}

// AtSnapshot calls take, on Apply's goroutine, when the replica is in the state of
// the primary's snapshot. until is a position of the primary's WAL that was read
// behind the snapshot. It returns when it is sure that the state was that one.
//
// open takes the snapshot while nothing is applied: what is applied behind it would be
// in the replica and not in the snapshot.
func (a *Applier) AtSnapshot(ctx context.Context, open func(ctx context.Context) (frame.Snapshot, frame.LSN, error), take func(ctx context.Context) error) error {
	return a.atBarrier(ctx, &barrier{open: open, take: take})
}

func (a *Applier) atBarrier(ctx context.Context, b *barrier) error {
	b.done = make(chan error, 1)
	err := a.do(ctx, func(ctx context.Context) error {
		if a.barrier != nil {
			return errBarrierTaken
		}
		var err error
		if b.snapshot, b.until, err = b.open(ctx); err != nil {
			return err
		}
		if b.exact && a.unseen.any(b.snapshot) {
			return ErrNotPrefix // its effect is here, and would not be in what is taken
		}
		a.barrier = b
		return a.passBarrier(ctx)
	})
	if err != nil {
		return err
	}
	select {
	case err := <-b.done:
		return err
	case <-a.done:
		return errStopped
	case <-ctx.Done():
		// Left in place it would only be passed; it holds nothing.
		return ctx.Err()
	}
}

// meetBarrier is called before a source transaction, whose commit record lies at
// final, is applied. The first one that the snapshot does not see has to find the
// state taken.
func (a *Applier) meetBarrier(ctx context.Context, xid uint32, final frame.LSN) error {
	b := a.barrier
	if b == nil {
		return nil
	}
	sees := b.snapshot.Sees(xid)
	switch {
	case sees && b.taken:
		a.liftBarrier(ErrNotPrefix)
	case !sees && !b.taken:
		if err := a.settleBatch(ctx, false); err != nil {
			return err
		}
		if b.exact && final < b.until {
			a.liftBarrier(ErrNotPrefix) // one that it sees may still come
			return nil
		}
		b.taken = true
		if err := b.take(ctx); err != nil {
			a.liftBarrier(err)
		}
	}
	return nil
}

// passBarrier is called when the position has moved, between two transactions.
func (a *Applier) passBarrier(ctx context.Context) error {
	b := a.barrier
	if b == nil || a.txn != nil || a.batch.open || a.reached < b.until {
		return nil
	}
	if !b.taken {
		if err := b.take(ctx); err != nil {
			a.liftBarrier(err)
			return nil
		}
	}
	a.liftBarrier(nil)
	return nil
}

// unseen are the transactions that are applied here, and that no snapshot of the primary
// which came since is known to see: each becomes visible there a moment after its commit
// record can be streamed, or long after, while it waits for a synchronous standby.
type unseen []uint32

func (u *unseen) applied(xid uint32, latest frame.Snapshot) {
	if latest.Xmax == 0 || !latest.Sees(xid) {
		*u = append(*u, xid)
	}
}

func (u *unseen) observe(s frame.Snapshot) { *u = slices.DeleteFunc(*u, s.Sees) }

// any tells whether there is one that the snapshot does not see.
func (u unseen) any(s frame.Snapshot) bool {
	return slices.ContainsFunc(u, func(xid uint32) bool { return !s.Sees(xid) })
}

func (a *Applier) liftBarrier(err error) {
	a.barrier.done <- err
	a.barrier = nil
}
