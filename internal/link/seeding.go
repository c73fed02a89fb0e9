package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/seed"
)

// gate lets the seeder speak with the applier.
type gate struct{ *apply.Applier }

func (g gate) SnapshotTaken(ctx context.Context, t catalog.SeedTable) error {
	return retake(g.Applier.SnapshotTaken(ctx, t))
}

func (g gate) Gone(ctx context.Context, oid uint32) error { return retake(g.Applier.Gone(ctx, oid)) }

func retake(err error) error {
	if errors.Is(err, apply.ErrRetake) {
		return seed.ErrRetake
	}
	return err
}

// seed copies every table that is not live, builds what needs all rows, and
// records the end.
func (l *link) seed(ctx context.Context, a *apply.Applier) error {
	for done := false; !done; {
		if err := l.copyTables(ctx, a, false); err != nil {
			return err
		}
		if err := l.awaitRepaired(ctx); err != nil {
			return err
		}
		if err := l.settleSeeded(ctx, a); err != nil {
			return err
		}
		var err error
		if done, err = a.SeedingDone(ctx); err != nil {
			return err
		}
	}
	l.log.Info("seeding is complete")
	l.update(func() { l.seeded = true })
	return nil
}

// settleSeeded gives the replica, whose tables have their rows, all else.
func (l *link) settleSeeded(ctx context.Context, a *apply.Applier) error {
	conn, err := l.connect(ctx, "build")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// Tables were copied under snapshots of different times. They agree with each
	// other when the stream has passed all of them.
	ready, err := readyAt(ctx, conn, l.rec.ID)
	if err != nil {
		return err
	}
	if err := a.Await(ctx, ready); err != nil {
		return err
	}
	if err := l.complete(ctx, conn); err != nil {
		return err
	}
	if err := l.buildOnRows(ctx, conn); err != nil {
		return err
	}
	if err := fence.Prepare(ctx, conn, nil); err != nil {
		return err
	}
	return l.adoptIdentities(ctx, conn)
}

// adoptWithin bounds how long a replica's tables are waited for that are to get another
// replica identity.
const adoptWithin = 5 * time.Second

// adoptIdentities gives the tables here the replica identities that they have on the primary.
// Those that are in use for too long get them when the link connects the next time.
func (l *link) adoptIdentities(ctx context.Context, conn *pgx.Conn) error {
	var all []capture.Identity
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callAllIdentities, struct{}{}, &all)
	if isUnknownCall(err) { // an older agent
		changed, err := l.theirIdentities(ctx)
		if err != nil {
			return err
		}
		return capture.AdoptReplicaIdentity(ctx, conn, changed)
	}
	if err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, adoptWithin)
	defer cancel()
	err = capture.AdoptIdentities(within, conn, all)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		l.log.Warn("tables do not have the replica identities of the primary's yet", "error", err)
		return nil
	}
	return err
}

// theirIdentities are the replica identities that the primary changed, and this side's tables
// are made with: they go with the link, when that is dropped before the copy ended, too.
func (l *link) theirIdentities(ctx context.Context) (changed []capture.ChangedIdentity, err error) {
	err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callIdentities, struct{}{}, &changed)
	return changed, err
}

func readyAt(ctx context.Context, conn *pgx.Conn, id string) (frame.LSN, error) {
	tables, err := catalog.SeedTables(ctx, conn, id)
	if err != nil {
		return 0, err
	}
	var ready frame.LSN
	for _, t := range tables {
		ready = max(ready, t.LSN)
	}
	return ready, nil
}

func (l *link) copyTables(ctx context.Context, a *apply.Applier, alone bool) error {
	s := seed.New(seed.Config{
		Link: l.rec.ID, Name: l.rec.Name,
		Open: func(ctx context.Context) (seed.ClientStream, error) {
			return l.m.cfg.Peers.Open(ctx, l.rec.Peer, l.rec.Name, streamSeed)
		},
		Connect: func(ctx context.Context) (*pgx.Conn, error) { return l.connect(ctx, "seed") },
		Gate:    gate{a},
		Alone:   alone,
		Indexes: l.indexes,
		Build: func(ctx context.Context, conn *pgx.Conn, oid uint32) error {
			return l.build(ctx, conn, schema.PhaseTable, oid)
		},
		Workers: l.m.cfg.SeedWorkers,
		Log:     l.log,
	})
	l.update(func() { l.seeder = s })
	return s.Run(ctx)
}

// build runs the entries of a phase that are not done, of one table or of all
// (0). Each is committed with the record that it is done.
func (l *link) build(ctx context.Context, conn *pgx.Conn, phase schema.Phase, table uint32) error {
	entries, err := catalog.SchemaEntries(ctx, conn, l.rec.ID, string(phase), table)
	if err != nil {
		return err
	}
	for _, stored := range entries {
		e, err := readEntry(stored.ID, stored.Entry)
		if err != nil {
			return err
		}
		if err := l.buildStored(ctx, conn, e); err != nil {
			return err
		}
	}
	return nil
}

func (l *link) buildStored(ctx context.Context, conn *pgx.Conn, e schema.Entry) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := l.buildEntry(ctx, tx, e); err != nil {
			return err
		}
		if e.Kind == "TRIGGER" || e.Kind == "RULE" || e.Kind == "EVENT TRIGGER" {
			if err := fence.Quiet(ctx, tx); err != nil {
				return err
			}
		}
		return catalog.SetEntryDone(ctx, tx, l.rec.ID, e.ID)
	})
}

// indexes returns what makes the indexes of a table that are not there yet. Each may be
// run by a session of its own, at the same time; build does what is left.
func (l *link) indexes(ctx context.Context, conn *pgx.Conn, table uint32) ([]seed.Step, error) {
	entries, err := catalog.SchemaEntries(ctx, conn, l.rec.ID, string(schema.PhaseTable), table)
	if err != nil {
		return nil, err
	}
	var steps []seed.Step
	for _, stored := range entries {
		e, err := readEntry(stored.ID, stored.Entry)
		if err != nil {
			return nil, err
		}
		switch {
		case e.Index != "":
			steps = append(steps, func(ctx context.Context, conn *pgx.Conn) error { return l.buildAhead(ctx, conn, e) })
		case e.Kind == "INDEX":
			steps = append(steps, func(ctx context.Context, conn *pgx.Conn) error { return l.buildStored(ctx, conn, e) })
		}
	}
	return steps, nil
}

// buildAhead makes the index of an entry, and leaves of the entry what needs it.
func (l *link) buildAhead(ctx context.Context, conn *pgx.Conn, e schema.Entry) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		index, rest := e.Ahead()
		if err := schema.Apply(ctx, tx, []schema.Entry{index}); err != nil {
			return err
		}
		data, err := json.Marshal(rest)
		if err != nil {
			return err
		}
		return catalog.SetEntry(ctx, tx, l.rec.ID, e.ID, data)
	})
}

// tablesFirst copies the tables while the stream stands before a DDL command. Those
// that have that command in their rows already are left: they are built without rows,
// so that the command may pass them, and copied when it has. Then the command finds the
// whole schema as it was on the primary before it.
func (l *link) tablesFirst(ctx context.Context, side role.State, key []byte) error {
	l.log.Info("DDL on the primary waits until the tables being copied are complete")
	a := l.newApplier(side, key)
	if _, err := a.Start(ctx); err != nil {
		return err
	}
	defer a.Close()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { _, err := a.Apply(gctx, nil, func(frame.Ack) {}); return err })
	g.Go(func() error {
		if err := l.copyTables(gctx, a, true); err != nil {
			return err
		}
		return errTablesDone
	})
	err := g.Wait()
	if !errors.Is(err, errTablesDone) && !errors.Is(err, seed.ErrDDLFirst) {
		return err
	}
	conn, connErr := l.connect(ctx, "build")
	if connErr != nil {
		return connErr
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if errors.Is(err, seed.ErrDDLFirst) {
		if err := l.buildEmpty(ctx, conn); err != nil {
			return err
		}
	}
	return l.complete(ctx, conn)
}

var errTablesDone = errors.New("all tables are live")

// buildEmpty builds the tables that have no rows yet, or not all of them.
func (l *link) buildEmpty(ctx context.Context, conn *pgx.Conn) error {
	tables, err := catalog.SeedTables(ctx, conn, l.rec.ID)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.State == catalog.Live || t.State == catalog.Loaded {
			continue
		}
		name := postgres.QuoteIdent(t.Schema, t.Name)
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			var there bool
			if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&there); err != nil {
				return err
			}
			if there {
				err := postgres.InUserPath(ctx, tx, func() error {
					_, err := tx.Exec(ctx, "DELETE FROM ONLY "+name)
					return err
				})
				if err != nil {
					return err
				}
			}
			return catalog.Retake(ctx, tx, l.rec.ID, t.OID, frame.Snapshot{}) // what is deferred is pruned when there is a snapshot
		})
		if err != nil {
			return fmt.Errorf("empty table %s: %w", name, err)
		}
		if err := l.build(ctx, conn, schema.PhaseTable, t.OID); err != nil {
			return err
		}
	}
	return nil
}
