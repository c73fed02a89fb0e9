package catalog

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// Heir is a link that this instance will lead if it takes over its database by
// another link.
type Heir struct {
	ID   string
	Link string // the name of the one that hands over
	Name string
	Peer string     // its secondary
	Term frame.Term // that the handoff of Link brings
	// After is the term that the link is in, Next the one that it will be in.
	After, Next frame.Term
	// Tables and ExcludeTables are the link's patterns.
	Tables, ExcludeTables []string
	MaxWAL                *int64 // as the link's
}

// PutHeir records a link to be taken up, or replaces what is recorded of it.
func PutHeir(ctx context.Context, db DB, h Heir) error {
	_, err := db.Exec(ctx, `
		INSERT INTO hawser.heir (id, link, name, peer, term, after, next, tables, exclude_tables, max_wal)
		VALUES ($1, $2, $3, $4, $5, $6, $7, coalesce($8, '{}'::text[]), coalesce($9, '{}'::text[]), $10)
		ON CONFLICT (id) DO UPDATE SET link = excluded.link, name = excluded.name, peer = excluded.peer,
			term = excluded.term, after = excluded.after, next = excluded.next, tables = excluded.tables, exclude_tables = excluded.exclude_tables,
			max_wal = excluded.max_wal`,
		h.ID, h.Link, h.Name, h.Peer, int64(h.Term), int64(h.After), int64(h.Next), h.Tables, h.ExcludeTables, h.MaxWAL)
	if err != nil {
		return fmt.Errorf("record link %s to be taken up: %w", h.Name, err)
	}
	return nil
}

// Heirs returns the links that are to be taken up when the named one hands over.
func Heirs(ctx context.Context, db DB, link string) ([]Heir, error) {
	rows, err := db.Query(ctx, `SELECT id, link, name, peer, term, after, next, tables, exclude_tables, max_wal FROM hawser.heir WHERE link = $1 ORDER BY name`, link)
	if err != nil {
		return nil, fmt.Errorf("read the links to be taken up: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (h Heir, err error) {
		var term, after, next int64
		err = row.Scan(&h.ID, &h.Link, &h.Name, &h.Peer, &term, &after, &next, &h.Tables, &h.ExcludeTables, &h.MaxWAL)
		h.Term, h.After, h.Next = frame.Term(term), frame.Term(after), frame.Term(next)
		return h, err
	})
}

// HasHeir reports whether a link of that id is to be taken up.
func HasHeir(ctx context.Context, db DB, id string) (bool, error) {
	var ok bool
	if err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM hawser.heir WHERE id = $1)`, id).Scan(&ok); err != nil {
		return false, fmt.Errorf("look for a link to be taken up: %w", err)
	}
	return ok, nil
}

// DeleteHeir forgets a link that was to be taken up.
func DeleteHeir(ctx context.Context, db DB, id string) error {
	if _, err := db.Exec(ctx, `DELETE FROM hawser.heir WHERE id = $1`, id); err != nil {
		return fmt.Errorf("forget a link to be taken up: %w", err)
	}
	return nil
}

// SetPrimary stores that the link follows another instance now: peer and role at once,
// and why it stands, if it does; what stopped it before is over.
func SetPrimary(ctx context.Context, db DB, name, peer string, side json.RawMessage, why *problem.Problem) error {
	_, err := db.Exec(ctx, `UPDATE hawser.link SET peer = $2, side = $3, suspended = $4 WHERE name = $1`, name, peer, side, why)
	if err != nil {
		return fmt.Errorf("store the new primary of link %s: %w", name, err)
	}
	return nil
}
