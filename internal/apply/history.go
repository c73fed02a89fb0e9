package apply

import (
	"context"
	"fmt"
	"time"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// A PostgreSQL may be put back to an earlier state under a link: a snapshot of its
// machine, a backup, a standby that took over without the last transactions. Its WAL
// then has other transactions at positions that were used before, and the slot would
// pass over them in silence. Two rules tell:
//
//   - The slot is never confirmed beyond what this database has noted (SQLSetReached,
//     and the position itself). A slot that is ahead of that has forgotten changes
//     which this replica does not have.
//   - The stream is asked for from the last transaction on that was applied here, not
//     from its end. Where the slot has not confirmed that one, it has to come first;
//     what comes in its stead is another history.

// reachedEvery is how often an idle applier notes how far the primary is. A primary
// that shuts down waits until all that it sent is confirmed.
const reachedEvery = time.Second

// from is where the stream has to begin.
func (a *Applier) from() frame.LSN {
	if a.last.Commit > 0 {
		return a.last.Commit
	}
	return a.position
}

// meetSlot compares what is applied here with how far the primary's slot is confirmed.
func (a *Applier) meetSlot(confirmed frame.LSN) error {
	if a.met || confirmed == 0 { // an older agent does not tell
		return nil
	}
	a.met = true
	if a.last.Known && confirmed > a.last.Reached {
		return problem.New("slot-ahead", "link "+a.cfg.Link,
			fmt.Sprintf("the primary's replication slot was confirmed up to %s, and this replica has only what came before %s: the replica was restored to an earlier state, or somebody moved the slot; the changes between are gone from the slot",
				confirmed, a.last.Reached),
			"hawser link resync NAME").Advise("it compares the tables and copies those that differ")
	}
	a.expected = a.last.Commit > 0 && confirmed <= a.last.Commit
	return nil
}

// meetTransaction is told of every transaction of the stream before it is committed.
func (a *Applier) meetTransaction(xid uint32, commit frame.LSN) error {
	if !a.expected {
		return nil
	}
	if xid != a.last.XID || commit != a.last.Commit {
		return a.otherHistory(fmt.Sprintf("has transaction %d at %s in its place", xid, commit))
	}
	a.expected = false
	return nil
}

// otherHistory is the end of a stream that does not go on from what is applied here.
func (a *Applier) otherHistory(found string) error {
	return restored(a.cfg.Link, fmt.Sprintf("the last transaction that this replica applied, %d at %s, is not in the primary's WAL, which %s", a.last.XID, a.last.Commit, found))
}

// restored says that the primary lost what this side has.
func restored(link, found string) *problem.Problem {
	return problem.New("primary-restored", "link "+link,
		found+": the primary's PostgreSQL was put back to an earlier state, or a standby took over that had not received everything; this replica has transactions that the primary lost",
		"hawser link resync NAME").Advise("that gives these transactions up; to keep them, open the secondary (there: hawser link failover NAME --force), then hawser link rejoin NAME on the other side")
}

// unnoted tells whether the primary is further than is stored.
func (a *Applier) unnoted() bool { return !a.expected && a.reached > max(a.durable, a.last.Reached) }

// noteReached lets the slot move on while nothing of this database is written.
func (a *Applier) noteReached() error {
	if a.txn != nil || a.batch.open || a.batch.end > 0 || a.backlog.closing != nil || len(a.pending) > 0 || !a.unnoted() ||
		time.Since(a.noted) < reachedEvery {
		return nil
	}
	reached := a.reached
	err := a.out.exec(a.out.own(catalog.SQLSetReached), [][]byte{[]byte(a.cfg.Origin), []byte(reached.String())}, expectation{affected: 1})
	if err == nil {
		err = a.out.idle() // its commit has to lie before the position that is asked for
	}
	if err != nil {
		return err
	}
	return a.askWhere(func(insert, flushed frame.LSN) {
		a.noted, a.last.Reached = time.Now(), reached
		a.pending = append(a.pending, commitMark{reached, insert})
		a.flushed(flushed)
	})
}

// flushAll makes all that is committed here durable, by whichever session.
func (a *Applier) flushAll(ctx context.Context) error {
	if _, err := a.conn.Exec(ctx, sqlFlush); err != nil {
		return fmt.Errorf("make the replica's position durable: %w", err)
	}
	return nil
}
