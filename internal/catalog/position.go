package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
)

// Applied is how far the stream of an origin is applied, and what was applied last.
type Applied struct {
	End     frame.LSN // of the last transaction
	Commit  frame.LSN // of its commit record; 0: none was applied yet, or by an older version
	XID     uint32
	At      time.Time // when that was committed, by the primary's clock; zero: not known
	Reached frame.LSN // as far as the primary's slot may be confirmed
	Known   bool      // Reached was kept from the start on
}

// Position returns up to where the stream of an origin is applied; ok is false when
// nothing is known of that origin.
func Position(ctx context.Context, db DB, origin string) (p Applied, ok bool, err error) {
	var end, commit, reached string
	var at *time.Time
	err = db.QueryRow(ctx, `
		SELECT lsn::text, coalesce(commit_lsn, '0/0')::text, coalesce(xid, 0), commit_at, greatest(lsn, reached)::text, reached IS NOT NULL
		FROM hawser.position WHERE origin = $1`, origin).Scan(&end, &commit, &p.XID, &at, &reached, &p.Known)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, false, nil
	}
	if at != nil {
		p.At = at.UTC()
	}
	if err == nil {
		p.End, err = frame.ParseLSN(end)
	}
	if err == nil {
		p.Commit, err = frame.ParseLSN(commit)
	}
	if err == nil {
		p.Reached, err = frame.ParseLSN(reached)
	}
	if err != nil {
		return p, false, fmt.Errorf("read the position of origin %s: %w", origin, err)
	}
	return p, true, nil
}

// SQLSetPosition moves the position of origin $1 to the end $2 of transaction $4, whose
// commit record lies at $3 and was written at $5. The applier sends it with every transaction, in its own
// pipeline.
const SQLSetPosition = `UPDATE hawser.position SET lsn = $2, commit_lsn = $3, xid = $4, commit_at = $5 WHERE origin = $1`

// SQLSetReached notes that nothing for the database of origin $1 comes before $2.
const SQLSetReached = `UPDATE hawser.position SET reached = $2 WHERE origin = $1`

// StartPosition records where an origin begins; one that is known stays.
func StartPosition(ctx context.Context, db DB, origin string, lsn frame.LSN) error {
	_, err := db.Exec(ctx, `INSERT INTO hawser.position (origin, lsn, reached) VALUES ($1, $2::text::pg_lsn, $2::text::pg_lsn) ON CONFLICT DO NOTHING`, origin, lsn.String())
	if err != nil {
		return fmt.Errorf("record the position of origin %s: %w", origin, err)
	}
	return nil
}

// MovePosition records that an origin begins anew, after a comparison with the primary:
// also further back, where the primary's WAL is another one now. An acknowledgement
// that was on its way may have moved the slot, so how far is not known.
func MovePosition(ctx context.Context, db DB, origin string, lsn frame.LSN) error {
	_, err := db.Exec(ctx, `UPDATE hawser.position SET lsn = $2::text::pg_lsn, reached = NULL, commit_lsn = NULL, xid = NULL, commit_at = NULL WHERE origin = $1`, origin, lsn.String())
	if err != nil {
		return fmt.Errorf("move the position of origin %s: %w", origin, err)
	}
	return nil
}

// ForgetPositions removes those of a link's origins but for keep.
func ForgetPositions(ctx context.Context, db DB, prefix, keep string) error {
	if _, err := db.Exec(ctx, `DELETE FROM hawser.position WHERE starts_with(origin, $1) AND origin <> $2`, prefix, keep); err != nil {
		return fmt.Errorf("forget the positions of origins %s…: %w", prefix, err)
	}
	return nil
}
