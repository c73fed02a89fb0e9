package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
)

// Position returns up to where the stream of an origin is applied; ok is false when
// nothing is known of that origin.
func Position(ctx context.Context, db DB, origin string) (lsn frame.LSN, ok bool, err error) {
	var text string
	err = db.QueryRow(ctx, `SELECT lsn::text FROM hawser.position WHERE origin = $1`, origin).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read the position of origin %s: %w", origin, err)
	}
	lsn, err = frame.ParseLSN(text)
	return lsn, err == nil, err
}

// SQLSetPosition moves the position $2 of origin $1. The applier sends it with every
// transaction, in its own pipeline.
const SQLSetPosition = `UPDATE hawser.position SET lsn = $2 WHERE origin = $1`

// StartPosition records where an origin begins; one that is known stays.
func StartPosition(ctx context.Context, db DB, origin string, lsn frame.LSN) error {
	_, err := db.Exec(ctx, `INSERT INTO hawser.position (origin, lsn) VALUES ($1, $2::text::pg_lsn) ON CONFLICT DO NOTHING`, origin, lsn.String())
	if err != nil {
		return fmt.Errorf("record the position of origin %s: %w", origin, err)
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
