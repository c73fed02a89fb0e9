package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// db is a connection or a transaction.
type db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// internal is true of a table c that is an extension's own; package seed carries the
// others, whole.
const internal = `EXISTS (
			SELECT FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
			WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' AND NOT c.oid = ANY (coalesce(e.extconfig, '{}')))`

// listed is true of a table c that the publication $1 lists, if one is named.
const listed = `($1 = '' OR EXISTS (
			SELECT FROM pg_publication_rel g JOIN pg_publication p ON p.oid = g.prpubid WHERE p.pubname = $1 AND g.prrelid = c.oid))`

// leftOut lists what tables does not.
func leftOut(ctx context.Context, conn db, publication string) ([]LeftOut, error) {
	rows, err := conn.Query(ctx, `
		SELECT nspname, relname, why FROM (
			SELECT n.nspname, c.relname, CASE
				WHEN c.relkind = 'm' THEN '`+string(Refreshed)+`' WHEN c.relkind = 'f' THEN '`+string(Foreign)+`'
				WHEN c.relpersistence = 'u' THEN '`+string(Unlogged)+`' WHEN `+internal+` THEN '`+string(Internal)+`'
				WHEN NOT `+listed+` THEN '`+string(NotChosen)+`' END AS why
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'm', 'f') AND c.relpersistence <> 't' AND c.oid >= 16384
			AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')) x
		WHERE why IS NOT NULL ORDER BY why, nspname COLLATE "C", relname COLLATE "C"`, publication)
	if err != nil {
		return nil, fmt.Errorf("list what is left out: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LeftOut])
	if err != nil {
		return nil, fmt.Errorf("list what is left out: %w", err)
	}
	return out, nil
}

// tables lists the tables whose rows a link carries, ordered by name: ordinary tables
// and partitions that are neither temporary nor unlogged, nor Hawser's own, nor part of
// an extension that does not declare them to be the user's configuration; and of those
// the ones that a publication lists, if it is named. It reads what conn's transaction sees.
func tables(ctx context.Context, conn db, publication string) ([]Table, error) {
	rows, err := conn.Query(ctx, `
		SELECT n.nspname, c.relname,
		       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attname COLLATE "C") FROM pg_attribute a
		                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '{}'),
		       coalesce((SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey) WITH ORDINALITY k (attnum, n)
		                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= i.indnkeyatts), '{}'),
		       (c.relpages::bigint + coalesce(t.relpages, 0)) * current_setting('block_size')::bigint
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
		LEFT JOIN LATERAL (
			SELECT i.indkey, i.indnkeyatts FROM pg_index i
			WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
			AND NOT EXISTS (SELECT FROM unnest(i.indkey) WITH ORDINALITY k (attnum, n) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
				WHERE k.n <= i.indnkeyatts AND NOT a.attnotnull)
			ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1) i ON true
		WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
		AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')
		AND NOT `+internal+`
		AND `+listed+`
		ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`, publication)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Table])
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	return out, nil
}

// Inventory lists the tables and describes the schema, under the snapshot. A
// schema that changes meanwhile may be impossible to describe, which is a finding.
func (l *Local) Inventory(ctx context.Context) (Inventory, error) {
	p := l.pool()
	defer p.close(ctx)
	var out Inventory
	err := p.tx(ctx, func(tx pgx.Tx) (err error) {
		err = tx.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), hashtextextended('hawser' COLLATE "C", 1)::text`).
			Scan(&out.Version, &out.Encoding, &out.Probe)
		if err != nil {
			return fmt.Errorf("ask the server about itself: %w", err)
		}
		if out.Tables, err = tables(ctx, tx, l.o.Publication); err != nil {
			return err
		}
		out.LeftOut, err = leftOut(ctx, tx, l.o.Publication)
		return err
	})
	if err != nil {
		return out, err
	}
	err = p.tx(ctx, func(tx pgx.Tx) (err error) {
		out.Schema, err = describe(ctx, tx)
		return err
	})
	if finding := unreadable("schema", err); finding != nil {
		out.Findings = append(out.Findings, finding)
		return out, nil
	}
	return out, err
}

// unreadable makes a problem of an error that the server reports of a statement,
// and leaves the others: those of the connection.
func unreadable(what string, err error) *problem.Problem {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || severed(pg) {
		return nil
	}
	return problem.New(what+"-unreadable", what, "it could not be read; the server says: "+pg.Message+" (SQLSTATE "+pg.Code+")",
		"").Advise("run the comparison again when nobody changes the schema").Retry()
}

// Sequences reads every sequence as it is now.
func (l *Local) Sequences(ctx context.Context) ([]Sequence, error) {
	p := l.pool()
	defer p.close(ctx)
	conn, err := p.get(ctx)
	if err != nil {
		return nil, err
	}
	out, err := sequences(ctx, conn)
	if finding := unreadable("sequences", err); finding != nil {
		return nil, finding
	}
	return out, err
}

func sequences(ctx context.Context, conn db) ([]Sequence, error) {
	rows, err := conn.Query(ctx, `
		SELECT n.nspname, c.relname, 0::bigint, false, s.seqincrement FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
		WHERE c.relpersistence <> 't' AND n.nspname <> 'hawser'
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`)
	if err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sequence])
	if err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	b := &pgx.Batch{}
	for i := range out {
		s := &out[i]
		b.Queue(`SELECT last_value, is_called FROM ` + postgres.QuoteIdent(s.Schema, s.Name)).QueryRow(func(row pgx.Row) error { return row.Scan(&s.Last, &s.Called) })
	}
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("read the sequences: %w", err)
	}
	return out, nil
}
