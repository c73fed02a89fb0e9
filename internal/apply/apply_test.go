package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// These tests came of bugs that a review found.

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

const testID = "00000000000000bb"

type noDDL struct{}

func (noDDL) Reset()                                         {}
func (noDDL) Author(context.Context, []byte) (uint32, error) { return 0, nil }
func (noDDL) Replay(context.Context, *pgx.Conn, []byte) (Effect, error) {
	return Effect{}, errors.New("no DDL here")
}
func (noDDL) Provide(context.Context, *pgx.Conn, uint32, *pgoutput.Relation, map[uint32]pgoutput.Type) error {
	return errors.New("no table is provided here")
}
func (noDDL) InScript() bool { return false }
func (noDDL) OfScript(context.Context, *pgx.Conn, *pgoutput.Relation) (bool, error) {
	return false, nil
}
func (noDDL) Finish() error { return nil }

// replica is a database with the catalog, an origin, and a table t (id int PRIMARY KEY).
type replica struct {
	t      *testing.T
	c      *testpg.Cluster
	db     string
	origin string

	hurried bool                      // transactions are applied early however busy the stream is
	accept  func(content []byte) bool // of a handoff; nil: none is
	odd     func(*Applier)            // changes its limits; it has a link's session then

	visible atomic.Uint64 // as the applier acknowledged it last
}

func newReplica(t *testing.T, c *testpg.Cluster, sql ...string) *replica {
	t.Helper()
	r := &replica{t: t, c: c, db: c.CreateDatabase(t), origin: Origin(testID, 1)}
	conn := c.Connect(t, r.db)
	if err := catalog.MigrateDatabase(context.Background(), conn); err != nil {
		t.Fatal(err)
	}
	if err := catalog.Join(context.Background(), conn, testID, "l"); err != nil {
		t.Fatal(err)
	}
	if err := BeginAt(context.Background(), conn, r.origin, 100, func(context.Context, pgx.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = DropOrigins(context.Background(), c.Connect(t, r.db), testID, "") })
	c.Exec(t, r.db, `CREATE TABLE t (id int PRIMARY KEY)`)
	c.Exec(t, r.db, sql...)
	return r
}

// run starts an applier; end stops it and returns Apply's error.
func (r *replica) run(frames <-chan frame.Frame, ack func(frame.Ack)) (a *Applier, from frame.LSN, end func() error) {
	r.t.Helper()
	a = New(Config{Link: "l", ID: testID, Origin: r.origin, SpoolDir: r.t.TempDir(), Replayer: noDDL{},
		Accept: func(content []byte, _ bool) bool { return r.accept != nil && r.accept(content) },
		Connect: func(ctx context.Context) (*pgx.Conn, error) {
			if r.odd != nil {
				return oddConnect(ctx, r.c.DSN(r.db))
			}
			return pgx.Connect(ctx, r.c.DSN(r.db)+" session_replication_role=replica synchronous_commit=off")
		}})
	if r.odd != nil {
		r.odd(a)
	}
	testpg.Eventually(r.t, 10*time.Second, "the applier starts", func() (_ bool, err error) { // the last one's session may not have ended yet
		from, err = a.Start(context.Background())
		return err == nil, err
	})
	if r.hurried {
		a.quiet = 0
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	acked := func(k frame.Ack) {
		r.visible.Store(uint64(k.Visible))
		ack(k)
	}
	go func() { _, err := a.Apply(ctx, frames, acked); done <- err }()
	return a, from, func() error { cancel(); err := testpg.Await(r.t, "the applier ends", done); a.Close(); return err }
}

// passed reports whether all before a position is committed and acknowledged.
func (r *replica) passed(lsn uint64) bool { return r.visible.Load() >= lsn }

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func cat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func msgBegin(final uint64, xid uint32) []byte {
	return cat([]byte("B"), be64(final), be64(0), be32(xid))
}
func msgCommit(at uint64) []byte {
	return cat([]byte("C\x00"), be64(at), be64(at+8), be64(0))
}
func msgRelation() []byte { // oid 5000, public.t (id int4 key)
	return cat([]byte("R"), be32(5000), []byte("public\x00t\x00d\x00\x01\x01id\x00"), be32(23), be32(0xffffffff))
}
func msgInsert(v string) []byte {
	return cat([]byte("I"), be32(5000), []byte("N\x00\x01t"), be32(uint32(len(v))), []byte(v))
}

func records(at uint64, messages ...[]byte) frame.Data {
	var d frame.Data
	for _, m := range messages {
		d.Records = append(d.Records, frame.Record{LSN: frame.LSN(at), Payload: m})
	}
	return d
}

// TestSkippedIsForgotten: transaction 990 is streamed while its table is
// pending, before other sessions see it (it waits for a synchronous standby). It is
// skipped and acknowledged as durable, so the slot forgets it; but which
// transactions were skipped is stored only when a target transaction is open.
// After a restart a snapshot that does not see it is taken for good: it is lost.
func TestSkippedIsForgotten(t *testing.T) {
	r := newReplica(t, testpg.Shared(t))
	ctx := context.Background()
	conn := r.c.Connect(t, r.db)
	before := frame.Snapshot{Xmin: 990, Xmax: 991, Xip: []uint64{990}}
	if err := errors.Join(catalog.StartSeeding(ctx, conn, testID), catalog.SetRestored(ctx, conn, testID, frame.Snapshot{Xmin: 980, Xmax: 980}),
		catalog.PutSeedTable(ctx, conn, testID, catalog.SeedTable{OID: 5000, Schema: "public", Name: "t"})); err != nil {
		t.Fatal(err)
	}
	var durable atomic.Uint64
	frames := make(chan frame.Frame, 10)
	_, _, end := r.run(frames, func(k frame.Ack) { durable.Store(uint64(k.Durable)) })
	frames <- frame.Heartbeat{Snapshot: before.String()}
	frames <- records(1000, msgBegin(1000, 990), msgRelation(), msgInsert("1"), msgCommit(1000))
	testpg.Eventually(t, 10*time.Second, "the transaction is acknowledged as durable", func() (bool, error) { return durable.Load() >= 1008, nil })
	_ = end() // the agent restarts

	a, from, end := r.run(make(chan frame.Frame), func(frame.Ack) {})
	defer end()
	if err := a.Requested(ctx, 5000); err != nil {
		t.Fatal(err)
	}
	err := a.SnapshotTaken(ctx, catalog.SeedTable{OID: 5000, Schema: "public", Name: "t", Snapshot: before, LSN: 1100})
	if !errors.Is(err, ErrRetake) {
		t.Errorf("the slot was told %s, the applier starts at %s, and a snapshot without the skipped transaction is accepted (%v)",
			frame.LSN(durable.Load()), from, err)
	}
}

// TestSecondSnapshot: the copy of a table begins anew, under a second snapshot. A
// transaction that was deferred under the first one, and that the second does not see
// either, was forgotten: it is in no copy.
func TestSecondSnapshot(t *testing.T) {
	r := newReplica(t, testpg.Shared(t))
	ctx := context.Background()
	conn := r.c.Connect(t, r.db)
	table := catalog.SeedTable{OID: 5000, Schema: "public", Name: "t"}
	if err := errors.Join(catalog.StartSeeding(ctx, conn, testID), catalog.SetRestored(ctx, conn, testID, frame.Snapshot{Xmin: 980, Xmax: 980}),
		catalog.PutSeedTable(ctx, conn, testID, table)); err != nil {
		t.Fatal(err)
	}
	frames := make(chan frame.Frame, 10)
	a, _, end := r.run(frames, func(frame.Ack) {})
	defer func() { _ = end() }()
	frames <- frame.Heartbeat{Snapshot: "985:985:"}
	table.Snapshot, table.LSN = frame.Snapshot{Xmin: 985, Xmax: 985}, 900
	if err := errors.Join(a.Requested(ctx, table.OID), a.SnapshotTaken(ctx, table)); err != nil {
		t.Fatal(err)
	}
	frames <- records(1000, msgBegin(1000, 990), msgRelation(), msgInsert("1"), msgCommit(1000), msgBegin(1016, 992), msgInsert("2"), msgCommit(1016))
	testpg.Eventually(t, 10*time.Second, "the changes are deferred", func() (bool, error) { return r.passed(1024), nil })
	table.Snapshot, table.LSN = frame.Snapshot{Xmin: 991, Xmax: 991}, 1020
	if err := errors.Join(a.Requested(ctx, table.OID), a.SnapshotTaken(ctx, table)); err != nil {
		t.Fatal(err)
	}
	r.c.Exec(t, r.db, `INSERT INTO t VALUES (1)`) // the copy: it has what the second snapshot sees
	frames <- records(1032, msgBegin(1032, 994), msgInsert("3"), msgCommit(1032))
	if err := a.Loaded(ctx, 5000); err != nil {
		t.Fatal(err)
	}
	testpg.Eventually(t, 10*time.Second, "the last transaction is applied", func() (bool, error) { return r.passed(1040), nil })
	if rows := testpg.Rows(t, conn, `SELECT id FROM t ORDER BY 1`); fmt.Sprint(rows) != "[1 2 3]" {
		t.Errorf("the table has rows %s", rows)
	}
}

// TestCommitFailsAfterOriginSetup: COMMIT is refused, here by a deferred
// trigger that fires always, after pg_replication_origin_xact_setup. From
// PostgreSQL 16 on an abort moves the session's origin too: the next applier
// starts behind the transaction, which is lost.
func TestCommitFailsAfterOriginSetup(t *testing.T) {
	r := newReplica(t, testpg.Shared(t), `CREATE TABLE switch (closed boolean); INSERT INTO switch VALUES (true);
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF (SELECT closed FROM public.switch) THEN RAISE EXCEPTION ''no''; END IF; RETURN NULL; END';
		CREATE CONSTRAINT TRIGGER c AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE t ENABLE ALWAYS TRIGGER c`)
	frames := make(chan frame.Frame, 10)
	a, first, _ := r.run(frames, func(frame.Ack) {})
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	frames <- records(1000, msgBegin(1000, 990), msgRelation(), msgInsert("1"), msgCommit(1000))
	testpg.Await(t, "the applier ends", a.done)
	a.Close()
	r.c.Exec(t, r.db, `UPDATE switch SET closed = false`)
	_, from, end := r.run(make(chan frame.Frame), func(frame.Ack) {})
	defer end()
	if rows := testpg.Rows(t, r.c.Connect(t, r.db), `SELECT count(*) FROM t`); from != first {
		t.Errorf("the applier began at %s, its only transaction was rolled back (%s rows), and now it begins at %s", first, rows, from)
	}
}

// TestIdleSessionEnds: the replica's PostgreSQL ends the session of an applier that has
// nothing to write, and it is not the next write that tells.
func TestIdleSessionEnds(t *testing.T) {
	r := newReplica(t, testpg.Shared(t))
	frames := make(chan frame.Frame)
	a, _, end := r.run(frames, func(frame.Ack) {})
	r.c.Exec(t, r.db, fmt.Sprintf(`DO $$ BEGIN PERFORM pg_terminate_backend(%d, 10000); END $$`, a.conn.PgConn().PID()))
	testpg.Eventually(t, 10*time.Second, "the applier notices", func() (bool, error) {
		select {
		case frames <- frame.Heartbeat{Snapshot: "900:900:"}:
			return false, nil
		case <-a.done:
			return true, nil
		}
	})
	if p, ok := problem.As(end()); !ok || p.Code != "replica-lost" || !p.Retryable {
		t.Errorf("the applier ended with %+v", p)
	}
}

// TestCommandsStarve: while there is a backlog, no frame happens to end where
// the target transaction ends, so commands, which seeding and comparisons need, wait
// for as long as the backlog lasts.
func TestCommandsStarve(t *testing.T) {
	r := newReplica(t, testpg.Shared(t))
	frames := make(chan frame.Frame, 4)
	a, _, end := r.run(frames, func(frame.Ack) {})
	defer end()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		send := func(f frame.Frame) bool {
			select {
			case frames <- f:
				return true
			case <-stop:
				return false
			}
		}
		send(frame.Heartbeat{Snapshot: "900:900:"})
		var pending [][]byte
		pending = append(pending, msgRelation())
		at := uint64(1000)
		for i := 0; ; i++ {
			v := []byte{}
			for n := i; ; n /= 10 {
				v = append([]byte{byte('0' + n%10)}, v...)
				if n < 10 {
					break
				}
			}
			pending = append(pending, msgBegin(at, uint32(1000+i)), msgInsert(string(v)), msgCommit(at))
			at += 16
			if len(pending) > 3000 {
				n := 2000 + rand.N(1000)
				if !send(records(at, pending[:n]...)) {
					return
				}
				pending = pending[n:]
			}
		}
	}()
	testpg.Eventually(t, 10*time.Second, "the backlog is applied", func() (bool, error) { return r.passed(1000 + 5000*16), nil })
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for range 5 { // a table needs three or four of them
		if err := a.Requested(ctx, 1); err != nil {
			t.Fatalf("after %s (%s rows are visible): %v", time.Since(begin), testpg.Rows(t, r.c.Connect(t, r.db), `SELECT count(*) FROM t`), err)
		}
	}
	t.Logf("five commands took %s", time.Since(begin))
}

// repairing has a replica whose row with id 1 was taken away, to be fetched.
func repairing(t *testing.T) *replica {
	t.Helper()
	r := newReplica(t, testpg.Shared(t))
	ctx := context.Background()
	conn := r.c.Connect(t, r.db)
	var oid uint32
	if err := conn.QueryRow(ctx, `SELECT 't'::regclass::oid`).Scan(&oid); err != nil {
		t.Fatal(err)
	}
	taker, err := catalog.NewTaker(ctx, conn, catalog.RepairTable{OID: oid, Columns: []int16{1}}, "t", "id::text = $1")
	if err == nil {
		err = taker.Take(ctx, conn, testID, []string{"1"})
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// repairAt fetches the row under a snapshot of the primary.
func repairAt(a *Applier, s frame.Snapshot, until frame.LSN) error {
	return a.Repair(context.Background(), func(context.Context) (frame.Snapshot, frame.LSN, error) { return s, until, nil },
		func(ctx context.Context, tx pgx.Tx, _ catalog.RepairTable) error {
			_, err := tx.Exec(ctx, `INSERT INTO t VALUES (1)`)
			return err
		})
}

// TestRepairStoresThePosition: a transaction is withheld whole, so it opens no target
// transaction; the row is then fetched with its effect. After a restart it would be
// applied once more.
func TestRepairStoresThePosition(t *testing.T) {
	r := repairing(t)
	frames := make(chan frame.Frame, 10)
	a, _, end := r.run(frames, func(frame.Ack) {})
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	frames <- records(1000, msgBegin(1000, 990), msgRelation(), msgInsert("1"), msgCommit(1000))
	if err := a.Await(context.Background(), 1008); err != nil {
		t.Fatal(err)
	}
	err := repairAt(a, frame.Snapshot{Xmin: 991, Xmax: 991}, 1008)
	_ = end()
	if err != nil {
		t.Fatal(err)
	}
	_, from, end := r.run(make(chan frame.Frame), func(frame.Ack) {})
	defer end()
	if from < 1008 {
		t.Errorf("the repair covers the transaction up to 0/3F0, and the applier begins again at %s", from)
	}
}

// TestRepairOfWhatIsNotSeen: a transaction was withheld, and the snapshot that is offered
// does not see it: it was taken before, or the transaction is not visible on the primary yet.
// Its effect on the row would be lost. A later snapshot serves.
func TestRepairOfWhatIsNotSeen(t *testing.T) {
	r := repairing(t)
	frames := make(chan frame.Frame, 10)
	a, _, end := r.run(frames, func(frame.Ack) {})
	defer func() { _ = end() }()
	frames <- frame.Heartbeat{Snapshot: "900:900:"}
	frames <- records(1000, msgBegin(1000, 990), msgRelation(), msgInsert("1"), msgCommit(1000), msgBegin(1008, 992), msgInsert("2"), msgCommit(1008))
	if err := a.Await(context.Background(), 1016); err != nil {
		t.Fatal(err)
	}
	for _, s := range []frame.Snapshot{{Xmin: 985, Xmax: 985}, {Xmin: 990, Xmax: 993, Xip: []uint64{990}}} {
		if err := repairAt(a, s, 1000); !errors.Is(err, ErrNotPrefix) {
			t.Errorf("snapshot %s does not see transaction 990: %v", s, err)
		}
	}
	frames <- frame.Heartbeat{Snapshot: "990:993:990"}
	frames <- frame.Heartbeat{Snapshot: "993:993:"}
	if err := repairAt(a, frame.Snapshot{Xmin: 993, Xmax: 993}, 1016); err != nil {
		t.Error(err)
	}
}

// TestDrainConfirmsWhatIsStored: transactions without changes for this replica move the
// position that is not stored; the end of a table's copy took it for durable. The next
// applier found the slot ahead of the replica.
func TestDrainConfirmsWhatIsStored(t *testing.T) {
	r := newReplica(t, testpg.Shared(t))
	ctx := context.Background()
	conn := r.c.Connect(t, r.db)
	table := catalog.SeedTable{OID: 5000, Schema: "public", Name: "t"}
	if err := errors.Join(catalog.StartSeeding(ctx, conn, testID), catalog.SetRestored(ctx, conn, testID, frame.Snapshot{Xmin: 980, Xmax: 980}),
		catalog.PutSeedTable(ctx, conn, testID, table)); err != nil {
		t.Fatal(err)
	}
	var durable atomic.Uint64
	frames := make(chan frame.Frame, 10)
	a, _, end := r.run(frames, func(k frame.Ack) { durable.Store(uint64(k.Durable)) })
	frames <- frame.Heartbeat{Snapshot: "985:985:"}
	frames <- records(1000, msgBegin(1000, 990), msgCommit(1000))
	testpg.Eventually(t, 10*time.Second, "the first position is noted", func() (bool, error) { return durable.Load() >= 1008, nil })
	frames <- records(1016, msgBegin(1016, 992), msgCommit(1016)) // is noted a second later
	if err := a.Await(ctx, 1024); err != nil {
		t.Fatal(err)
	}
	table.Snapshot, table.LSN = frame.Snapshot{Xmin: 993, Xmax: 993}, 1020
	if err := errors.Join(a.Requested(ctx, table.OID), a.SnapshotTaken(ctx, table), a.Loaded(ctx, 5000)); err != nil {
		t.Fatal(err)
	}
	if done, err := a.SeedingDone(ctx); err != nil || !done {
		t.Fatal(done, err)
	}
	time.Sleep(4 * flushEvery) // nothing may come: it asks a few times what is durable
	_ = end()
	stored, _, err := catalog.Position(ctx, conn, r.origin)
	if err != nil {
		t.Fatal(err)
	}
	if confirmed := frame.LSN(durable.Load()); confirmed > stored.Reached {
		t.Errorf("%s was confirmed, and %s is stored", confirmed, stored.Reached)
	}
}

func msgHandoff(term string) []byte {
	return cat([]byte("M\x01"), be64(0), []byte(handoffPrefix+"\x00"), be32(uint32(len(term))), []byte(term))
}

// TestPassedHandoffIsNotMetAgain: two failovers of another link were taken back, with no
// change between them. The secondary remembers the last one that was; it met the first
// again when it went on behind the second, and stood there for ever, in turns.
func TestPassedHandoffIsNotMetAgain(t *testing.T) {
	r := newReplica(t, testpg.Shared(t))
	passed := ""
	r.accept = func(content []byte) bool { return string(content) != passed }
	for _, term := range []string{"2", "3"} {
		frames := make(chan frame.Frame, 10)
		a, from, end := r.run(frames, func(frame.Ack) {})
		for i, handed := range []string{"2", "3"} {
			if at := uint64(1000 + 16*i); frame.LSN(at) >= from {
				frames <- records(at, msgBegin(at, uint32(990+i)), msgHandoff(handed), msgCommit(at))
			}
		}
		testpg.Await(t, "the applier ends", a.done)
		if met := string(a.handoff.Content); met != term {
			t.Fatalf("behind handoff %q, the applier that begins at %s meets %s", passed, from, met)
		}
		_ = end()
		passed = term
	}
	frames := make(chan frame.Frame, 10)
	a, from, end := r.run(frames, func(frame.Ack) {})
	defer func() { _ = end() }()
	if from < 1000 {
		t.Fatalf("the applier begins at %s", from)
	}
	for i, handed := range []string{"2", "3"} {
		if at := uint64(1000 + 16*i); frame.LSN(at) >= from {
			frames <- records(at, msgBegin(at, uint32(990+i)), msgHandoff(handed), msgCommit(at))
		}
	}
	frames <- records(1100, msgBegin(1100, 999), msgRelation(), msgInsert("1"), msgCommit(1100))
	if err := a.Await(context.Background(), 1100); err != nil {
		t.Error(err)
	}
}
