package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// A partial link carries the definitions of the whole database and the rows of chosen
// tables (package capture says how). Its replica can be read, but it is no second
// primary: it lacks rows, and what it lacks is nowhere but on the primary. So such a link
// has no planned failover and no rejoin. By force it can be opened, when the primary is
// lost and part of the data is better than none.

// filter chooses the tables whose rows the link carries.
func (l *link) filter() filter.Filter {
	return filter.Filter{Tables: l.rec.Tables, Exclude: l.rec.ExcludeTables}
}

// publication is the one that lists the tables of a partial link; "" for another link.
func (l *link) publication() string {
	if l.filter().All() {
		return ""
	}
	return capture.Object(l.rec.ID)
}

// whole refuses what a partial link can't do, and says why not.
func (l *link) whole(why string) error {
	if l.filter().All() {
		return nil
	}
	return problem.New("link-is-partial", "link "+l.rec.Name, "it carries the rows of some tables alone ("+l.filter().String()+"); "+why, "hawser link drop "+l.rec.Name).Advise(partsForGood)
}

// partsForGood goes with the remedy that drops a link of chosen tables.
const partsForGood = "that parts the two sides for good, each with what it has and open for writes: stop writing and hawser link verify before"

// aloneWithPart warns on a side that was opened by force. The caller holds mu.
func (l *link) aloneWithPart() *problem.Problem {
	if l.filter().All() || l.side.Role != role.Primary || !l.side.Forced {
		return nil
	}
	return problem.Warn("partial-primary", "database "+l.rec.Database,
		"it was opened by force and has the rows of the link's tables alone; those of the others are on instance "+l.rec.Peer+", which can't follow", "hawser link drop "+l.rec.Name).Advise(partsForGood)
}

// rechoose looks for tables that came in or went out unseen.
func (l *link) rechoose(ctx context.Context) {
	side, _ := l.now()
	if side.Role != role.Primary || side.Phase != role.Steady || side.Forced { // opened by force, it captures nothing
		return
	}
	conn, err := l.connect(ctx, "tables")
	if err == nil {
		defer conn.Close(context.WithoutCancel(ctx))
		var n int
		if n, err = capture.Rechoose(ctx, conn); n > 0 {
			l.log.Warn("tables came into the link or went out of it by DDL that fired no event trigger", "tables", n)
		}
	}
	if err != nil {
		l.log.Warn("can't look for tables that came into the link or went out of it", "error", err)
	}
}

// bareTables are the ordinary tables whose rows the link does not carry, as tx sees them.
func (l *link) bareTables(ctx context.Context, tx pgx.Tx) ([]uint32, error) {
	if l.publication() == "" {
		return nil, nil
	}
	rows, err := tx.Query(ctx, `
		SELECT c.oid FROM pg_class c WHERE c.relkind = 'r' AND c.oid >= 16384 AND NOT EXISTS (
			SELECT FROM pg_publication_rel g JOIN pg_publication p ON p.oid = g.prpubid WHERE p.pubname = $1 AND g.prrelid = c.oid)`, l.publication())
	if err != nil {
		return nil, fmt.Errorf("list the tables that are not carried: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[uint32])
}

// prepareAll puts the fence on every table, before any row is there: those that are
// partitioned, too, and those of which no rows are copied.
func prepareAll(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'f') AND c.oid >= 16384 AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')`)
	if err != nil {
		return fmt.Errorf("list the tables for the fence: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Schema, Name string }])
	if err != nil {
		return fmt.Errorf("list the tables for the fence: %w", err)
	}
	for _, n := range names {
		if err := fence.PrepareTable(ctx, tx, n.Schema, n.Name); err != nil {
			return err
		}
	}
	return nil
}

// buildEntry runs one entry of the schema. A foreign key to rows that a partial link does
// not carry, which was made after the link, stays NOT VALID on the replica.
func (l *link) buildEntry(ctx context.Context, tx pgx.Tx, e schema.Entry) error {
	if l.filter().All() || e.Kind != laterDDL {
		return schema.Apply(ctx, tx, []schema.Entry{e})
	}
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return schema.Apply(ctx, tx, []schema.Entry{e}) })
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "23503" { // foreign_key_violation
		l.log.Warn("a foreign key to rows that the link does not carry stays NOT VALID on the replica", "statement", e.SQL)
		return nil
	}
	return err
}
