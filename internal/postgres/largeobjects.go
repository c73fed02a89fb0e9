package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/problem"
)

// Remedy and advice for a database that holds large objects, which logical decoding does
// not carry and no trigger can guard.
const (
	ShowLargeObjects = "SELECT oid, pg_get_userbyid(lomowner), lo_get(oid) FROM pg_largeobject_metadata;"
	MoveLargeObjects = "move them into a bytea column, then SELECT lo_unlink(oid) FROM pg_largeobject_metadata"
)

// LargeObjects says of a database that it holds some, and nothing of one that does not.
func LargeObjects(ctx context.Context, conn interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (*problem.Problem, error) {
	var count int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_largeobject_metadata`).Scan(&count); err != nil {
		return nil, fmt.Errorf("count large objects: %w", err)
	}
	if count == 0 {
		return nil, nil
	}
	return problem.New("large-objects", "large objects",
		fmt.Sprintf("the database holds %d large objects; logical decoding does not carry them", count),
		ShowLargeObjects).Advise(MoveLargeObjects), nil
}
