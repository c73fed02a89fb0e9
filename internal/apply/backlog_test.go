package apply

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

func msgDelete(v string) []byte {
	return cat([]byte("D"), be32(5000), []byte("K\x00\x01t"), be32(uint32(len(v))), []byte(v))
}

// endOf is where transaction n of pileUp ends.
func endOf(n int) frame.LSN { return frame.LSN(1000 + 16*n + 8) }

// behind gives the frames that a stream begins with.
func behind(frames chan<- frame.Frame) {
	frames <- frame.Heartbeat{Snapshot: "900:900:", At: time.Now()}
	frames <- records(0, msgRelation(), cat([]byte("R"), be32(5001), []byte("public\x00u\x00d\x00\x01\x01id\x00"), be32(23), be32(0xffffffff)))
}

// otherTable is the transaction that meets a table which the applier has to look up,
// while it collects behind a target transaction that is not committed yet.
const otherTable = 16000

// pileUp gives frames of transactions first to last, committed long ago: the n-th
// inserts row n and, when it is odd, deletes the row before.
func pileUp(frames chan<- frame.Frame, first, last int) {
	var d frame.Data
	for n := first; n <= last; n++ {
		at := uint64(endOf(n)) - 8
		messages := [][]byte{msgBegin(at, uint32(990+n)), msgInsert(fmt.Sprint(n))}
		if n%2 == 1 {
			messages = append(messages, msgDelete(fmt.Sprint(n-1)))
		}
		if n == otherTable {
			messages = append(messages, cat([]byte("I"), be32(5001), []byte("N\x00\x01t"), be32(1), []byte("1")))
		}
		d.Records = append(d.Records, records(at, append(messages, msgCommit(at))...).Records...)
		if len(d.Records) > 2000 || n == last {
			frames <- d
			d = frame.Data{}
		}
	}
}

// TestBacklog: a replica that is behind has, whenever its applier ends, exactly the
// transactions up to its stored position, and goes on from there to the last.
func TestBacklog(t *testing.T) {
	const transactions = 60000 // some target transactions, of which the larger ones overlap
	r := newReplica(t, testpg.Shared(t), `CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE positions (xid text, lsn pg_lsn)`,
		`CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.positions VALUES (pg_current_xact_id()::xid, NEW.lsn); RETURN NULL; END$$`,
		`CREATE TRIGGER noted AFTER UPDATE OF lsn ON hawser.position FOR EACH ROW EXECUTE FUNCTION noted(); ALTER TABLE hawser.position ENABLE ALWAYS TRIGGER noted`)
	conn := r.c.Connect(t, r.db)
	check := func() (applied int) {
		stored, _, err := catalog.Position(context.Background(), conn, r.origin)
		if err != nil {
			t.Fatal(err)
		}
		if stored.Commit > 0 {
			applied = int(stored.End-1008)/16 + 1
		}
		want := fmt.Sprintf("%d|%d", (applied+1)/2, max(0, applied-1))
		if got := testpg.Rows(t, conn, `SELECT count(*), coalesce(max(id), 0) FROM t`)[0]; got != want {
			t.Fatalf("up to %s there are %s rows and the last, and not %s", stored.End, got, want)
		}
		if got := testpg.Rows(t, conn, `SELECT t.id, lsn FROM t LEFT JOIN positions p ON p.xid = t.xmin::text WHERE lsn IS NULL OR t.id > (lsn - '0/3F0') / 16 LIMIT 3`); len(got) > 0 {
			t.Fatalf("rows were committed with a position in front of them: %s", got)
		}
		return applied
	}
	for cut, from := []time.Duration{150 * time.Millisecond, 300 * time.Millisecond, time.Minute}, 0; len(cut) > 0; cut = cut[1:] {
		frames := make(chan frame.Frame, 100)
		a, at, end := r.run(frames, func(frame.Ack) {})
		if from > 0 && at != endOf(from-1)-8 {
			t.Fatalf("the applier asks for the stream from %s; the last transaction is that of %s", at, endOf(from-1)-8)
		}
		behind(frames)
		pileUp(frames, max(0, from-1), transactions-1)
		ctx, cancel := context.WithTimeout(context.Background(), cut[0])
		err := a.Await(ctx, endOf(transactions-1))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		_ = end()
		from = check()
	}
	if n := check(); n != transactions {
		t.Errorf("%d of %d transactions arrived", n, transactions)
	}
}

// TestBacklogMeetsNoRow: a change of a target transaction that waits for its COMMIT met
// no row. Neither that one nor the next, which was collected behind it, is committed.
func TestBacklogMeetsNoRow(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), `CREATE TABLE u (id int PRIMARY KEY)`)
	frames := make(chan frame.Frame, 300)
	a, _, end := r.run(frames, func(frame.Ack) {})
	behind(frames)
	pileUp(frames, 0, 20000) // the first target transaction, and some
	frames <- records(0, msgBegin(500000, 70000), msgDelete("-1"), msgCommit(500000))
	pileUp(frames, 31000, 90000)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := a.Await(ctx, endOf(90000)); !errors.Is(err, errStopped) {
		t.Errorf("the applier goes on: %v", err)
	}
	if err := end(); err == nil {
		t.Error("the applier tells no error")
	}
	conn := r.c.Connect(t, r.db)
	stored, _, err := catalog.Position(context.Background(), conn, r.origin)
	if err != nil {
		t.Fatal(err)
	}
	if got := testpg.Rows(t, conn, `SELECT count(*) FROM t WHERE id > 20000`)[0]; stored.End >= 500000 || got != "0" {
		t.Errorf("position %s is stored, and %s rows from behind the failure are there", stored.End, got)
	}
}

// TestBacklogLimits: how long a target transaction stays open follows the lag, and never
// leaves its bounds, whatever the primary's clock does.
func TestBacklogLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(1e9, 0)
		b := backlog{heard: start.Add(time.Duration(rapid.Int64().Draw(t, "heard"))), last: start.Add(time.Duration(rapid.Int64().Draw(t, "last")))}
		if w := b.wait(); w < leastBatchTime || w > mostBatchTime {
			t.Fatalf("wait %s", w)
		}
		was := b.changes
		b.closed(batch{changes: rapid.IntRange(0, 1<<20).Draw(t, "changes")})
		if b.changes > mostBatchChanges || b.changes > max(leastBatchChanges, 2*was) {
			t.Fatalf("from %d to %d changes", was, b.changes)
		}
	})
}
