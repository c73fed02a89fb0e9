package apply

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
)

// A stream that begins meets one new table after another. To ask for each by itself takes
// a round trip, before which everything that is held is written. So whoever asks for one
// asks for those that the frame at hand defines further on too. What is known in
// advance is good until the next frame, or until anything may have changed the tables.

// asked is what a table is looked up by.
type asked struct {
	namespace, name string
	whole           bool // the primary sends whole old rows
}

func askedOf(def *pgoutput.Relation) asked {
	return asked{def.Namespace, def.Name, def.ReplicaIdentity == 'f'}
}

// lookUp finds a table's columns by their names, and one without a name where the
// table has no column. None: there is no such table.
func (a *Applier) lookUp(ctx context.Context, r *relation) (map[string]columnFound, error) {
	key := askedOf(r.def)
	if found, ok := a.foreseen[key]; ok {
		return found, nil
	}
	if err := a.out.idle(); err != nil {
		return nil, err
	}
	if a.foreseen == nil {
		a.foreseen = map[asked]map[string]columnFound{}
	}
	var ask []asked
	for _, k := range append(a.defined(), key) {
		if _, ok := a.foreseen[k]; !ok && k.whole == key.whole {
			a.foreseen[k] = map[string]columnFound{}
			ask = append(ask, k)
		}
	}
	if err := a.askFor(ctx, ask); err != nil {
		if p := ended(err); p != nil {
			return nil, p
		}
		return nil, fmt.Errorf("look up table %s on the replica: %w", r.quoted, err)
	}
	return a.foreseen[key], nil
}

// defined are the tables that the records ahead define, up to the first command.
func (a *Applier) defined() (tables []asked) {
	dec := a.dec
	for _, r := range a.ahead {
		if len(r.Payload) == 0 {
			continue
		}
		switch r.Payload[0] {
		default:
			continue
		case 'M': // a logical message
			return tables
		case 'R', 'S', 'E': // a relation, whose form hangs on whether a stream block is open
		}
		msg, err := dec.Decode(r.Payload)
		if err != nil {
			return tables // whoever comes to it tells
		}
		if def, ok := msg.(*pgoutput.Relation); ok && def.Namespace != "hawser" && a.seeds.tables[def.ID] == nil {
			tables = append(tables, askedOf(def))
		}
	}
	return tables
}

// askFor fills in what is foreseen of tables, whose whole is the same.
func (a *Applier) askFor(ctx context.Context, tables []asked) error {
	var namespaces, names []string
	for _, k := range tables {
		namespaces, names = append(namespaces, k.namespace), append(names, k.name)
	}
	whole := tables[0].whole
	rows, err := a.conn.Query(ctx, sqlTarget(whole), namespaces, names)
	if err != nil {
		return err
	}
	var namespace, table, name string
	var f columnFound
	_, err = pgx.ForEachRow(rows, []any{&namespace, &table, &f.table, &name, &f.attnum, &f.oid, &f.generated, &f.domain, &f.always, &f.lenient, &f.equal, &f.kind, &f.unique, &f.checks, &f.alone, &f.finds, &f.hashed, &f.index}, func() error {
		f.name = postgres.QuoteIdent(name)
		a.foreseen[asked{namespace, table, whole}][name] = f
		return nil
	})
	return err
}

// columnFound is a column of the replica's table.
type columnFound struct {
	column
	table  uint32 // the replica's oid
	kind   string // 'r', or 'p' of a partitioned table
	unique bool   // of the index that finds a row best
	checks bool   // the table has CHECK constraints, or the column's type may be of a domain that has one which looks around
	alone  bool   // the table has one index that is unique or excludes
	finds  bool   // it has an index of the user's that finds a row well enough
	hashed string // how the column goes into a row's hash; "": it does not
	index  string // what Hawser's index of the table is of; "": there is none
}

// sqlLooksAround tells of a domain's check x that it calls a user's function, which may look
// at any table: the value that a row has need not meet it any more.
const sqlLooksAround = `EXISTS (SELECT FROM pg_depend p LEFT JOIN pg_operator o ON p.refclassid = 'pg_operator'::regclass AND o.oid = p.refobjid
		JOIN pg_proc f ON f.oid = CASE p.refclassid WHEN 'pg_proc'::regclass THEN p.refobjid ELSE o.oprcode END JOIN pg_language l ON l.oid = f.prolang
		WHERE p.classid = 'pg_constraint'::regclass AND p.objid = x.oid AND l.lanname NOT IN ('internal', 'c'))`

// sqlTarget looks tables up. Whether the primary sends whole old rows of them is no
// parameter, and no domain is looked through where there is none: else the server would
// plan the query anew for each table, and take five times as long for it. LATERAL and
// OFFSET leave it no plan that reads the whole catalog.
func sqlTarget(whole bool) string {
	return strings.ReplaceAll(sqlTargetOf, "$whole", strconv.FormatBool(whole))
}

const sqlTargetOf = `
SELECT asked.n, asked.t, of.* FROM unnest($1::text[], $2::text[]) AS asked (n, t) CROSS JOIN LATERAL (
SELECT c.oid, coalesce(a.attname, ''), coalesce(a.attnum, 0), coalesce(b.base, 0), coalesce(a.attgenerated <> '', false), coalesce(a.atttypid <> b.base, false), coalesce(a.attidentity = 'a', false),
       CASE WHEN b.lenient THEN format_type(a.atttypid, NULL) ELSE '' END,
       coalesce((SELECT format('OPERATOR(%I.%s)', s.nspname, p.oprname)
                 FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree'
                 JOIN pg_amop f ON f.amopfamily = o.opcfamily AND f.amopstrategy = 3 AND f.amoplefttype = o.opcintype AND f.amoprighttype = o.opcintype
                 JOIN pg_operator p ON p.oid = f.amopopr JOIN pg_namespace s ON s.oid = p.oprnamespace
                 WHERE o.opcdefault AND o.opcintype = CASE b.base WHEN 'varchar'::regtype THEN 'text'::regtype WHEN 'cidr'::regtype THEN 'inet'::regtype ELSE b.base END AND b.base <> 'oidvector'::regtype), ''), c.relkind,
       coalesce(a.attnum = ANY (k.indkey::int2[]), false),
       EXISTS (SELECT FROM pg_constraint x WHERE x.conrelid = c.oid AND x.contype = 'c') OR a.atttypid >= 16384 AND EXISTS (SELECT FROM pg_constraint x WHERE x.conrelid = 0 AND x.contypid <> 0 AND ` + sqlLooksAround + `),
       (SELECT count(*) = 1 FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)),
       $whole AND EXISTS (` + sqlFinds + `), CASE WHEN $whole THEN coalesce(` + sqlHashed + `, '') ELSE '' END,
       CASE WHEN $whole THEN coalesce((` + sqlRowIndex + `), '') ELSE '' END
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type ty ON ty.oid = a.atttypid
LEFT JOIN LATERAL (
	SELECT ty.oid AS base, false AS lenient WHERE ty.typtype <> 'd'
	UNION ALL SELECT domain.* FROM (
		WITH RECURSIVE d AS (
			SELECT a.atttypid AS oid UNION ALL SELECT y.typbasetype FROM d JOIN pg_type y ON y.oid = d.oid WHERE y.typtype = 'd')
		SELECT y.oid AS base, EXISTS (SELECT FROM d JOIN pg_constraint x ON x.contypid = d.oid AND (NOT x.convalidated OR ` + sqlLooksAround + `)) AS lenient
		FROM d JOIN pg_type y ON y.oid = d.oid WHERE y.typtype <> 'd') AS domain WHERE ty.typtype = 'd'
) b ON true
LEFT JOIN LATERAL (
	SELECT i.indkey FROM pg_index i
	WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
	  AND i.indpred IS NULL AND i.indexprs IS NULL
	  AND NOT EXISTS (SELECT FROM pg_attribute x
	                  WHERE x.attrelid = c.oid AND x.attnum = ANY (i.indkey::int2[]) AND NOT x.attnotnull)
	ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1
) k ON true
WHERE n.nspname = asked.n AND c.relname = asked.t AND c.relkind IN ('r', 'p') OFFSET 0) AS of`
