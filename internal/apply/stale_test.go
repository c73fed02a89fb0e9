package apply

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

// TestOldCopyIsForgotten: table t was copied long ago, under a snapshot from which the
// transaction ids have come more than half round since. Another table is copied again;
// the old snapshot, asked then, would take every new transaction for one that it sees.
func TestOldCopyIsForgotten(t *testing.T) {
	r := newReplica(t, testpg.Shared(t))
	ctx := context.Background()
	conn := r.c.Connect(t, r.db)
	copied := catalog.SeedTable{OID: 5000, Schema: "public", Name: "t", Snapshot: frame.Snapshot{Xmin: 1 << 33, Xmax: 1 << 33}, LSN: 5000}
	if err := errors.Join(catalog.StartSeeding(ctx, conn, testID), catalog.SetRestored(ctx, conn, testID, frame.Snapshot{Xmin: 980, Xmax: 980}),
		catalog.PutSeedTable(ctx, conn, testID, copied), catalog.SetCopying(ctx, conn, testID, copied),
		catalog.SetTableState(ctx, conn, testID, copied.OID, catalog.Live), catalog.SetSeedingDone(ctx, conn, testID),
		catalog.Reseed(ctx, conn, testID, catalog.SeedTable{OID: 6000, Schema: "public", Name: "other"})); err != nil {
		t.Fatal(err)
	}
	frames := make(chan frame.Frame, 10)
	_, _, end := r.run(frames, func(frame.Ack) {})
	defer end()
	now := frame.Snapshot{Xmin: 1<<33 + 1<<31 + 5000, Xmax: 1<<33 + 1<<31 + 5000}
	frames <- frame.Heartbeat{Snapshot: now.String()}
	frames <- records(1000, msgBegin(1000, 1<<31+5000), msgRelation(), msgInsert("1"), msgCommit(1000))
	testpg.Eventually(t, 10*time.Second, "the row is there", func() (bool, error) {
		return testpg.Rows(t, conn, `SELECT count(*) FROM t`)[0] == "1", nil
	})
}
