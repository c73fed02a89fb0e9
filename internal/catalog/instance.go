package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/problem"
)

// Claim makes the catalog that of the instance, unless it is another one's. A copy of the
// server, or a standby that was promoted, is the same instance.
func Claim(ctx context.Context, db DB, name string) error {
	var database, owner string
	_, err := db.Exec(ctx, `INSERT INTO hawser.instance (name) VALUES ($1) ON CONFLICT (one) DO NOTHING`, name)
	if err == nil {
		err = db.QueryRow(ctx, `SELECT name, quote_ident(current_database()) FROM hawser.instance`).Scan(&owner, &database)
	}
	switch {
	case err != nil:
		return fmt.Errorf("look whose catalog it is: %w", err)
	case owner != name:
		return problem.New("catalog-of-another", "schema hawser of database "+database,
			fmt.Sprintf("the catalog in it is that of instance %q, with its links and peers, and this agent's instance is named %q", owner, name),
			"--name "+problem.Word(owner)).Advise("if this is that instance; another one needs a PostgreSQL of its own, to be named in postgres.connection or postgres.managed; " +
			"an instance that is to have a new name and has no links any more: UPDATE hawser.instance SET name = '…'; in that database, and a new state_dir")
	}
	return nil
}

// Peer is an instance whose certificate was given to this one.
type Peer struct {
	Name        string
	Certificate string // PEM
	Address     string // host:port; "" when they dial us
	AddedAt     time.Time
	Databases   []string // patterns of those that links with it may concern
	Direction   string   // both, to-peer or from-peer
}

// Peers returns every peer, by name.
func Peers(ctx context.Context, db DB) ([]Peer, error) {
	rows, err := db.Query(ctx, `SELECT name, certificate, address, added_at, databases, direction FROM hawser.peer ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read the peers: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Peer])
}

// PutPeer adds a peer or replaces its certificate, address and grant.
func PutPeer(ctx context.Context, db DB, p Peer) error {
	_, err := db.Exec(ctx, `
		INSERT INTO hawser.peer (name, certificate, address, databases, direction) VALUES ($1, $2, $3, coalesce($4::text[], '{}'), $5)
		ON CONFLICT (name) DO UPDATE SET certificate = excluded.certificate, address = excluded.address,
			databases = excluded.databases, direction = excluded.direction`,
		p.Name, p.Certificate, p.Address, p.Databases, p.Direction)
	if err != nil {
		return fmt.Errorf("store peer %s: %w", p.Name, err)
	}
	return nil
}

// DeletePeer removes a peer and reports whether it was there. One that a link needs
// stays. (A link may need a peer that is not there: see Heir.)
func DeletePeer(ctx context.Context, db DB, name string) (bool, error) {
	var used bool
	if err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM hawser.link WHERE peer = $1)`, name).Scan(&used); err != nil {
		return false, fmt.Errorf("remove peer %s: %w", name, err)
	}
	if used {
		return false, problem.New("peer-in-use", "peer "+name, "links need it", "hawser link list").Advise("drop them first")
	}
	tag, err := db.Exec(ctx, `DELETE FROM hawser.peer WHERE name = $1`, name)
	if err != nil {
		return false, fmt.Errorf("remove peer %s: %w", name, err)
	}
	return tag.RowsAffected() > 0, nil
}

// Progress is how far a link's own existence is.
type Progress string

const (
	// Creating: the link is being made; a crash here ends in its removal.
	Creating Progress = "creating"
	// Running: both sides hold the link.
	Running Progress = "running"
	// Dropping: the link is being removed; a crash here ends in its removal.
	Dropping Progress = "dropping"
	// Removing: the same, and the replica goes with it.
	Removing Progress = "removing"
)

// Link is one side's record of a link.
type Link struct {
	Name, ID, Peer, Database string
	Side                     json.RawMessage // link/role's State
	Progress                 Progress
	Paused                   bool
	Suspended                *problem.Problem
	Failover                 json.RawMessage
	OwnsDatabase             bool
	CreatedAt                time.Time
	Tables, ExcludeTables    []string         // patterns; both empty: it carries all tables
	MaxWAL                   *int64           // bytes held back on the primary; nil: limits.wal_held, 0: no bound
	Holes                    problem.Findings // that the fence had, and that nobody has compared the sides since
	Renewed                  *Renewal         // nil: the slot is one that the link follows from
}

// Renewal is a slot that a primary made in place of a lost one. It counts when the
// secondary streams from it.
type Renewal struct {
	Term   frame.Term       `json:"term"`
	Before *problem.Problem `json:"before,omitempty"` // why the primary had given the link up
}

const linkColumns = `name, id, peer, database, side, progress, paused, suspended, failover, owns_db, created_at, tables, exclude_tables, max_wal, holes, renewed`

// Links returns every link of the instance, by name.
func Links(ctx context.Context, db DB) ([]Link, error) {
	rows, err := db.Query(ctx, `SELECT `+linkColumns+` FROM hawser.link ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read the links: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Link])
}

// FindLink returns the link of that name; ok is false when there is none.
func FindLink(ctx context.Context, db DB, name string) (l Link, ok bool, err error) {
	rows, err := db.Query(ctx, `SELECT `+linkColumns+` FROM hawser.link WHERE name = $1`, name)
	if err != nil {
		return Link{}, false, fmt.Errorf("read link %s: %w", name, err)
	}
	l, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Link])
	if errors.Is(err, pgx.ErrNoRows) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("read link %s: %w", name, err)
	}
	return l, true, nil
}

// InsertLink stores a new link; a name or id that is taken is an error.
func InsertLink(ctx context.Context, db DB, l Link) error {
	_, err := db.Exec(ctx, `
		INSERT INTO hawser.link (name, id, peer, database, side, progress, owns_db, tables, exclude_tables, max_wal)
		VALUES ($1, $2, $3, $4, $5, $6, $7, coalesce($8::text[], '{}'), coalesce($9::text[], '{}'), $10)`,
		l.Name, l.ID, l.Peer, l.Database, l.Side, l.Progress, l.OwnsDatabase, l.Tables, l.ExcludeTables, l.MaxWAL)
	if err != nil {
		return fmt.Errorf("store link %s: %w", l.Name, err)
	}
	return nil
}

// StoreNewLink stores a link of which the instance has none. What is there under its name
// is a record that an earlier try stored without hearing of it.
func StoreNewLink(ctx context.Context, conn *pgx.Conn, l Link) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var known bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM hawser.peer WHERE name = $1)`, l.Peer).Scan(&known); err != nil {
			return fmt.Errorf("look for peer %s: %w", l.Peer, err)
		}
		if !known { // it was removed while the link was being made
			return problem.New("peer-not-found", "peer "+l.Peer, "this instance does not know it any more", "hawser peer add "+problem.Word(l.Peer+".pem"))
		}
		if err := DeleteLink(ctx, tx, l.Name); err != nil {
			return err
		}
		return InsertLink(ctx, tx, l)
	})
}

// SetProgress stores how far the link's existence is.
func SetProgress(ctx context.Context, db DB, name string, p Progress) error {
	return update(ctx, db, name, `UPDATE hawser.link SET progress = $2 WHERE name = $1`, p)
}

// SetSide stores the role state. Roles and terms are acted on only after this.
func SetSide(ctx context.Context, db DB, name string, side json.RawMessage) error {
	return update(ctx, db, name, `UPDATE hawser.link SET side = $2 WHERE name = $1`, side)
}

// SetLeading does so for a side that becomes the primary: with that ends, in one step, what
// it stood for as a secondary. holes are those that are left.
func SetLeading(ctx context.Context, db DB, name string, side json.RawMessage, holes problem.Findings) error {
	return update(ctx, db, name, `UPDATE hawser.link SET side = $2, paused = false, suspended = NULL, holes = $3 WHERE name = $1`, side, holes)
}

// SetPaused stores whether a person paused the link, of a secondary alone, or that nothing
// stops it any more.
func SetPaused(ctx context.Context, db DB, name string, paused bool) error {
	return update(ctx, db, name, `UPDATE hawser.link SET paused = $2 AND side->>'role' = 'secondary', suspended = CASE WHEN $2 THEN suspended END WHERE name = $1`, paused)
}

// SetSuspended stores why the link stands, or nil when it goes on.
func SetSuspended(ctx context.Context, db DB, name string, why *problem.Problem) error {
	return update(ctx, db, name, `UPDATE hawser.link SET suspended = $2 WHERE name = $1`, why)
}

// SetFailover stores the result of the last failover.
func SetFailover(ctx context.Context, db DB, name string, result json.RawMessage) error {
	return update(ctx, db, name, `UPDATE hawser.link SET failover = $2 WHERE name = $1`, result)
}

// SetHoles stores what is said of the fence having been open.
func SetHoles(ctx context.Context, db DB, name string, holes problem.Findings) error {
	return update(ctx, db, name, `UPDATE hawser.link SET holes = $2 WHERE name = $1`, holes)
}

// SetRenewed stores that the slot is a new one, or with nil that it is followed from.
func SetRenewed(ctx context.Context, db DB, name string, r *Renewal) error {
	return update(ctx, db, name, `UPDATE hawser.link SET renewed = $2 WHERE name = $1`, r)
}

// SetMaxWAL stores how much WAL the link may hold back.
func SetMaxWAL(ctx context.Context, db DB, name string, bytes *int64) error {
	return update(ctx, db, name, `UPDATE hawser.link SET max_wal = $2 WHERE name = $1`, bytes)
}

// SetOwnsDatabase stores that the database was created for the link.
func SetOwnsDatabase(ctx context.Context, db DB, name string, owns bool) error {
	return update(ctx, db, name, `UPDATE hawser.link SET owns_db = $2 WHERE name = $1`, owns)
}

func update(ctx context.Context, db DB, name, sql string, values ...any) error {
	tag, err := db.Exec(ctx, sql, append([]any{name}, values...)...)
	if err != nil {
		return fmt.Errorf("store link %s: %w", name, err)
	}
	if tag.RowsAffected() == 0 {
		return problem.New("link-not-found", "link "+name, "there is no link of this name on this instance", "hawser link list")
	}
	return nil
}

// DeleteLink removes the link's record.
func DeleteLink(ctx context.Context, db DB, name string) error {
	if _, err := db.Exec(ctx, `DELETE FROM hawser.link WHERE name = $1`, name); err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}
