package apply

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

// TestRandomCopies: each table is copied under a snapshot of its own, taken while transactions
// are open, beside the stream, and wherever the applier or a copy dies. In the end the replica
// is as the primary.
func TestRandomCopies(t *testing.T) {
	c := testpg.Shared(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	p := newOddPrimary(t, c)
	snapshots := []oddSnapshot{p.snapshot()}
	p.each = func() {
		if random.IntN(10) == 0 {
			snapshots = append(snapshots, p.snapshot())
		}
	}
	p.write(random, 120)
	snapshots = append(snapshots, p.snapshot())
	records, last := p.stream()
	for range 3 {
		p.copies(random, records, last, snapshots)
	}
}

// copies has a new replica take tables and stream.
func (p *oddPrimary) copies(random *rand.Rand, list []frame.Record, last frame.LSN, snapshots []oddSnapshot) {
	t, ctx := p.t, context.Background()
	r := newReplica(t, p.c, append([]string{`DROP TABLE t`}, oddSchema()...)...)
	r.odd = func(a *Applier) {
		a.cfg.Hold = []int{1, 500, 8 << 20}[random.IntN(3)]
		a.backlog.least = []int{1, 20, 20000}[random.IntN(3)]
	}
	conn := p.c.Connect(t, r.db)
	if err := errors.Join(catalog.StartSeeding(ctx, conn, testID), catalog.SetRestored(ctx, conn, testID, snapshots[0].sees)); err != nil {
		t.Fatal(err)
	}
	rows, err := p.c.Connect(t, p.db).Query(ctx, `SELECT oid, relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY oid`)
	if err != nil {
		t.Fatal(err)
	}
	table := catalog.SeedTable{Schema: "public"}
	_, err = pgx.ForEachRow(rows, []any{&table.OID, &table.Name}, func() error { return catalog.PutSeedTable(ctx, conn, testID, table) })
	if err != nil {
		t.Fatal(err)
	}
	for cuts := random.IntN(5); cuts > 0; cuts-- {
		a, end := p.feed(r, list, snapshots[0].sees, random.IntN(len(list)))
		for range random.IntN(8) {
			ctx, cancel := context.WithTimeout(ctx, time.Second/2) // the stream may have ended within a transaction
			_ = p.copyOne(ctx, random, a, conn, snapshots)
			cancel()
		}
		_ = end()
		conn = p.c.Connect(t, r.db)
	}
	a, end := p.feed(r, list, snapshots[0].sees, len(list))
	for {
		tables, err := catalog.SeedTables(ctx, conn, testID)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(tables, func(s catalog.SeedTable) bool { return s.State != catalog.Live }) {
			break
		}
		if err := p.copyOne(ctx, random, a, conn, snapshots); err != nil {
			t.Fatal(errors.Join(err, end()))
		}
	}
	if err := a.Await(ctx, last); err != nil {
		t.Fatal(errors.Join(err, end()))
	}
	if done, err := a.SeedingDone(ctx); err != nil || !done {
		t.Fatal(done, err)
	}
	_ = end()
	if got, want := testpg.Rows(t, conn, oddState())[0], p.texts[len(p.texts)-1]; got != want {
		t.Fatalf("primary:\n%s\nreplica:\n%s", want, got)
	}
}

// feed runs an applier and gives it the first records of those that a server would send, one
// in each frame.
func (p *oddPrimary) feed(r *replica, list []frame.Record, begin frame.Snapshot, most int) (a *Applier, end func() error) {
	frames := make(chan frame.Frame)
	a, from, stop := r.run(frames, func(frame.Ack) {})
	list = p.since(list, from)
	var wg sync.WaitGroup
	wg.Go(func() {
		send := func(f frame.Frame) bool {
			select {
			case frames <- f:
				return true
			case <-a.done:
				return false
			}
		}
		ok := send(frame.Heartbeat{Snapshot: begin.String()})
		for i := 0; ok && i < min(most, len(list)); i++ {
			ok = send(frame.Data{Records: list[i : i+1]})
		}
	})
	return a, func() error { err := stop(); wg.Wait(); return err }
}

// copyOne does the next step of a table that is not live.
func (p *oddPrimary) copyOne(ctx context.Context, random *rand.Rand, a *Applier, conn *pgx.Conn, snapshots []oddSnapshot) error {
	tables, err := catalog.SeedTables(ctx, conn, testID)
	if err != nil {
		return err
	}
	tables = slices.DeleteFunc(tables, func(t catalog.SeedTable) bool { return t.State == catalog.Live })
	if len(tables) == 0 {
		return nil
	}
	t := tables[random.IntN(len(tables))]
	if t.State == catalog.Loaded {
		return a.Loaded(ctx, t.OID)
	}
	var s oddSnapshot
	for at := random.IntN(len(snapshots)); ; at++ { // the last sees all
		if at == len(snapshots) {
			return errors.New("no snapshot of table " + t.Name + " serves")
		}
		s = snapshots[at]
		if err := a.Requested(ctx, t.OID); err != nil {
			return err
		}
		t.Snapshot, t.LSN = s.sees, s.until
		if err := a.SnapshotTaken(ctx, t); !errors.Is(err, ErrRetake) {
			if err != nil {
				return err
			}
			break
		}
	}
	if random.IntN(6) == 0 {
		return nil // the copy dies, and begins anew
	}
	if err := s.copyTable(ctx, conn, t.Name); err != nil {
		return err
	}
	if err := catalog.SetTableState(ctx, conn, testID, t.OID, catalog.Loaded); err != nil || random.IntN(6) == 0 {
		return err
	}
	return a.Loaded(ctx, t.OID)
}

// copyTable puts the rows of a table into a replica, in place of those that are there.
func (s oddSnapshot) copyTable(ctx context.Context, conn *pgx.Conn, table string) error {
	columns := "(SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND attgenerated = '')"
	var list string
	if err := conn.QueryRow(ctx, "SELECT "+columns, table).Scan(&list); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL session_replication_role = replica; DELETE FROM "+table); err != nil {
			return err
		}
		return s.copyRows(ctx, tx, "SELECT "+list+" FROM "+table, table+" ("+list+")")
	})
}
