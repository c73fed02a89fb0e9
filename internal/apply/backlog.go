package apply

import (
	"context"
	"time"
)

// A replica that is behind gains by larger target transactions: the more changes of a
// table are held together, the more of them find their pages and their places in its
// indexes beside one another. The changes of the next target transaction are collected
// while the server still works on the last one, whose COMMIT is sent when all its
// changes are known to have met their rows, and before anything else is.
//
// How far it is behind is told by the primary's clock alone: from the commit of the
// last transaction that was received to the last heartbeat.

const (
	// A target transaction takes in further source transactions until one of these
	// is reached, and only while more of them are waiting.
	leastBatchChanges = 20000
	leastBatchTime    = 50 * time.Millisecond

	// The same for a replica that is behind: it may stay open for a part of the lag, and
	// with each that is full the next one may be twice as large. The part is small, since
	// a lag is caught up within a fraction of its length, and nothing is collected any
	// more while the last target transaction is written.
	mostBatchChanges = 1 << 18
	mostBatchTime    = 2 * time.Second
	lagParts         = 16

	// leastRows and mostRows are what may be held of one table.
	leastRows = 4096
	mostRows  = 1 << 17
)

// backlog is what the applier knows of how far the replica is behind.
type backlog struct {
	heard   time.Time // the primary's clock at its last heartbeat
	last    time.Time // and at the commit of the last transaction that was received
	least   int       // changes that fill a target transaction when not behind
	changes int       // of one at most
	closing *batch    // sent, and not yet committed
	begin   bool      // the next target transaction was opened behind it
}

// wait is how long a target transaction may stay open while more is waiting.
func (b *backlog) wait() time.Duration {
	if b.heard.IsZero() || b.last.IsZero() {
		return leastBatchTime
	}
	return min(mostBatchTime, max(leastBatchTime, b.heard.Sub(b.last)/lagParts))
}

// behind tells whether the replica lags by more than it does when it keeps up.
func (b *backlog) behind() bool { return b.wait() > leastBatchTime }

// rows is how many rows may be held of one table.
func (b *backlog) rows() int {
	if b.behind() {
		return mostRows
	}
	return leastRows
}

// full tells whether a target transaction holds as much as one may now.
func (b *backlog) full(open batch) bool {
	return open.changes >= max(b.least, b.changes) || open.open && time.Since(open.since) >= b.wait()
}

// closed takes note of how large a target transaction was.
func (b *backlog) closed(was batch) {
	switch {
	case !b.behind():
		b.changes = b.least
	case was.changes >= b.changes:
		b.changes = min(mostBatchChanges, max(b.least, 2*b.changes))
	}
}

// closeBehind sends what the target transaction holds and leaves its COMMIT for later:
// it is committed by conclude, before anything else is sent.
func (a *Applier) closeBehind(ctx context.Context, b batch) error {
	if err := a.storeSkipped(ctx); err != nil {
		return err
	}
	if err := a.out.begin(); err != nil {
		return err
	}
	a.backlog.closing, a.out.turn = &b, a.conclude
	return nil
}

// conclude commits the target transaction that is left to be, and begins the next one
// where that was opened.
func (a *Applier) conclude() error {
	b := a.backlog.closing
	if b == nil {
		return nil
	}
	a.backlog.closing, a.out.turn = nil, nil
	if err := a.commitTarget(*b); err != nil {
		return err
	}
	a.committed(*b)
	if !a.backlog.begin {
		return nil
	}
	a.backlog.begin = false
	return a.out.send(a.out.own(sqlBegin), nil, expectation{affected: -1})
}
