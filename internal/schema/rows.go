package schema

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
)

// When is the phase in which a secondary runs the entry. In the final phase all is made
// that DDL in the stream may speak of; what needs the rows of all tables, and makes
// nothing, comes when they are there.
func (e Entry) When() Phase {
	if e.Kind == KindValidate || e.Kind == KindRefresh {
		return PhaseRows
	}
	return e.Phase
}

// Place is the object, on this side, that waits for the rows of all tables.
type Place struct {
	Here     uint32 // the foreign key or materialized view
	Relation uint32 // the table of a foreign key; 0: it is a view
	Name     string // of a foreign key
}

// Place finds what an entry of PhaseRows is about, before any DDL may have renamed it.
func (e Entry) Place(ctx context.Context, db querier) (p Place, found bool, err error) {
	if e.Kind == KindRefresh {
		err = db.QueryRow(ctx, `SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'm'`, e.Schema, e.Name).Scan(&p.Here)
	} else {
		var table, key string
		if table, key, err = e.validates(); err != nil {
			return p, false, err
		}
		err = db.QueryRow(ctx, `SELECT k.oid, k.conrelid, k.conname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2 AND k.conname = $3 AND k.contype = 'f'`, e.Schema, table, key).Scan(&p.Here, &p.Relation, &p.Name)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("look for %s: %w", e.object(), err)
	}
	return p, true, nil
}

// validates returns the table and the foreign key of splitKey's statement:
// ALTER TABLE ONLY schema.table VALIDATE CONSTRAINT key;
func (e Entry) validates() (table, key string, err error) {
	stmts, err := statements(e.SQL)
	if err != nil || len(stmts) != 1 || stmts[0].word(6) != "validate" {
		return "", "", fmt.Errorf("unexpected statement of %s: %s", e.object(), e.SQL)
	}
	return stmts[0].word(5), stmts[0].word(8), nil
}

// MakeWay takes away what would refuse rows that are copied now. Constraints that may look
// at other tables become soft. Those that rows need not meet, since they were there before,
// are dropped: what makes them again is returned, of PhaseFinal.
func MakeWay(ctx context.Context, db DB) ([]Entry, error) {
	if err := Soften(ctx, db); err != nil {
		return nil, err
	}
	checks, err := takeChecks(ctx, db, `k.contype IN ('c', 'n') AND NOT k.convalidated AND NOT `+isSoft)
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, c := range checks {
		all = append(all, c.entry())
	}
	return all, nil
}

// takeChecks drops constraints of tables and domains. Those that only an inherited table
// has of its own come to light when the parent's are gone.
func takeChecks(ctx context.Context, db DB, where string) (all []openCheck, err error) {
	if _, err := db.Exec(ctx, `SET LOCAL search_path = ''`); err != nil {
		return nil, err
	}
	for {
		found, err := findChecks(ctx, db, where)
		if err != nil {
			return nil, fmt.Errorf("look for constraints that rows need not meet: %w", err)
		}
		if len(found) == 0 {
			return all, nil
		}
		for _, c := range found {
			if _, err := db.Exec(ctx, `UPDATE pg_constraint SET conislocal = true WHERE oid = ANY ($1)`, c.stay); err != nil {
				return nil, fmt.Errorf("keep what inherits constraint %s of %s: %w", c.name, c.of, err)
			}
			if _, err := db.Exec(ctx, "ALTER "+c.of+" DROP CONSTRAINT "+c.name); err != nil {
				return nil, fmt.Errorf("drop constraint %s of %s for the copy: %w", c.name, c.of, err)
			}
		}
		all = append(all, found...)
	}
}

// openCheck is a constraint that rows need not meet for a while.
type openCheck struct {
	schema, constraint string
	table, domain      uint32
	name               string // quoted
	of                 string // the table or domain, as ALTER takes it
	ofComment          string // as COMMENT takes it
	def                string
	validated          bool
	comment            *string
	heirs              []string // statements that make those that inherit it what they are
	stay               []uint32 // those of them that do not fall with it
}

// heirsOf has in heir what inherits constraint k from it alone, and falls with it. A NOT NULL
// constraint that is validated where k is not stays: a primary key may need it, and what is
// copied meets it. It may have a name of its own there, and each may be validated before k
// is, and have a comment of its own.
const heirsOf = `
	WITH RECURSIVE below AS (
		SELECT h.inhrelid FROM pg_inherits h WHERE h.inhparent = k.conrelid
		UNION SELECT h.inhrelid FROM below JOIN pg_inherits h ON h.inhparent = below.inhrelid),
	heir AS (
		SELECT b.oid, b.conname, b.convalidated, format('%I.%I', n.nspname, c.relname) AS tbl, k.contype = 'n' AND b.convalidated AND NOT k.convalidated AS stays
		FROM pg_constraint b JOIN pg_class c ON c.oid = b.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE b.conrelid IN (TABLE below) AND b.contype = k.contype AND b.coninhcount = 1 AND NOT b.conislocal AND CASE k.contype
			WHEN 'n' THEN (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = b.conrelid AND a.attnum = b.conkey[1])
				= (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = k.conkey[1])
			ELSE b.conname = k.conname END)`

// heirsAgain are the statements that make the heirs of constraint k what they were.
const heirsAgain = heirsOf + `
	SELECT CASE WHEN stays THEN format(' UPDATE pg_catalog.pg_constraint SET conislocal = false WHERE conrelid = %L::pg_catalog.regclass AND conname = %L;', tbl, conname)
		ELSE CASE WHEN conname <> k.conname THEN format( -- to rename an inherited one is refused
			' UPDATE pg_catalog.pg_constraint SET conname = %L WHERE conrelid = %L::pg_catalog.regclass AND conname = %L;', conname, tbl, k.conname) ELSE '' END
		|| CASE WHEN convalidated AND NOT k.convalidated THEN format(' ALTER TABLE %s VALIDATE CONSTRAINT %I;', tbl, conname) ELSE '' END
		|| coalesce(format(' COMMENT ON CONSTRAINT %I ON %s IS ', conname, tbl) || quote_literal(obj_description(oid, 'pg_constraint')) || ';', '') END
	FROM heir ORDER BY oid`

func findChecks(ctx context.Context, db DB, where string) (found []openCheck, err error) {
	var c openCheck
	err = forEach(ctx, db, `
		SELECT CASE WHEN t.oid IS NULL THEN CASE c.relkind WHEN 'f' THEN 'FOREIGN TABLE ' ELSE 'TABLE ' END ELSE 'DOMAIN ' END || o.name,
			quote_ident(k.conname), pg_get_constraintdef(k.oid), obj_description(k.oid, 'pg_constraint'),
			n.nspname, k.conname, CASE WHEN t.oid IS NULL THEN '' ELSE 'DOMAIN ' END || o.name, k.conrelid, k.contypid, k.convalidated,
			ARRAY(`+heirsAgain+`), ARRAY(`+heirsOf+` SELECT oid FROM heir WHERE stays)
		FROM pg_constraint k LEFT JOIN pg_class c ON c.oid = k.conrelid LEFT JOIN pg_type t ON t.oid = k.contypid
			JOIN pg_namespace n ON n.oid = coalesce(c.relnamespace, t.typnamespace),
			LATERAL (SELECT format('%I.%I', n.nspname, coalesce(c.relname, t.typname))) o(name)
		WHERE `+where+` AND k.coninhcount = 0 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'hawser')
		ORDER BY k.oid`,
		[]any{&c.of, &c.name, &c.def, &c.comment, &c.schema, &c.constraint, &c.ofComment, &c.table, &c.domain, &c.validated, &c.heirs, &c.stay},
		func() { found = append(found, c) })
	return found, err
}

func (c openCheck) entry() Entry {
	sql := "ALTER " + c.of + " ADD CONSTRAINT " + c.name + " " + c.def + ";"
	if c.comment != nil {
		sql += " COMMENT ON CONSTRAINT " + c.name + " ON " + c.ofComment + " IS " + postgres.QuoteLiteral(*c.comment) + ";"
	}
	sql += strings.Join(c.heirs, "")
	return Entry{Kind: "CHECK CONSTRAINT", Schema: c.schema, Name: c.constraint, Phase: PhaseFinal, SQL: sql}
}
