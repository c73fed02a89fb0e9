package capture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Identity is the replica identity of a table that is FULL or that of an index. Kind is
// pg_class.relreplident, and Was what it was before Hawser changed it; "" if it did not.
type Identity struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Index  string `json:"index,omitempty"`
	Was    string `json:"was,omitempty"`
}

// Identities lists the replica identities of a primary that AdoptIdentities gives to its
// secondary.
func Identities(ctx context.Context, conn *pgx.Conn) ([]Identity, error) {
	rows, err := conn.Query(ctx, `
		SELECT n.nspname, c.relname, c.relreplident::text, coalesce((SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
				WHERE i.indrelid = c.oid AND i.indisreplident AND c.relreplident = 'i'), ''), ''
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relreplident IN ('f', 'i') AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384 AND n.nspname <> 'hawser' ORDER BY 1, 2`)
	if err != nil {
		return nil, fmt.Errorf("list replica identities: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Identity])
	if err != nil {
		return nil, fmt.Errorf("list replica identities: %w", err)
	}
	changed, err := ChangedIdentities(ctx, conn)
	if err != nil {
		return nil, err
	}
	was := map[[2]string]string{}
	for _, c := range changed {
		was[[2]string{c.Schema, c.Name}] = c.Was
	}
	for i, t := range list {
		list[i].Was = was[[2]string{t.Schema, t.Name}]
	}
	return list, nil
}

// AdoptIdentities gives the tables of a secondary the identities of the primary's, and
// records what the primary's agent changed, as AdoptReplicaIdentity does. One that was made
// by hand may have none, and a publication that is left of another term would keep the
// stream from changing its rows. It waits for whoever uses such a table until ctx ends.
func AdoptIdentities(ctx context.Context, conn *pgx.Conn, list []Identity) error {
	var schemas, names, kinds, indexes []string
	var changed []ChangedIdentity
	for _, t := range list {
		schemas, names, kinds, indexes = append(schemas, t.Schema), append(names, t.Name), append(kinds, t.Kind), append(indexes, t.Index)
		if t.Was != "" {
			changed = append(changed, ChangedIdentity{t.Schema, t.Name, t.Was})
		}
	}
	err := eachTable(ctx, conn, "adopt replica identities", otherIdentity, func(t changedTable) error { return adoptIdentity(ctx, conn, t) },
		schemas, names, kinds, indexes)
	if err != nil {
		return err
	}
	return AdoptReplicaIdentity(ctx, conn, changed)
}

// otherIdentity are the tables that have another identity than the one wanted, which they
// can have. An index must be fit for it.
const otherIdentity = `
	SELECT c.oid, n.nspname, c.relname, CASE w.kind WHEN 'f' THEN 'FULL' ELSE format('USING INDEX %I', w.index) END
	FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) w (schema, name, kind, index)
	JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
	LEFT JOIN LATERAL (SELECT i.indisreplident AS identifies FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
		WHERE i.indrelid = c.oid AND x.relname = w.index AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
		AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[]) AND NOT a.attnotnull)) i ON true
	WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND CASE w.kind
		WHEN 'f' THEN c.relreplident <> 'f'
		WHEN 'i' THEN i.identifies IS NOT NULL AND NOT (c.relreplident = 'i' AND i.identifies) END`

func adoptIdentity(ctx context.Context, conn *pgx.Conn, t changedTable) error {
	return quietly(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "ALTER TABLE ONLY "+pgx.Identifier{*t.Schema, *t.Name}.Sanitize()+" REPLICA IDENTITY "+*t.Was)
		return err
	})
}
