package capture

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// A link that chooses its tables carries the definitions of the whole database, and
// the rows of the tables that its publication lists. The list is the one truth that
// everything else asks: what is copied, what is streamed, what is compared.
//
// Why a list, and not FOR ALL TABLES with a filter behind it: the server decodes by the
// catalogs as they were at each change's place in the WAL. So a table that is renamed
// into the patterns, attached, or moved to another schema comes in exactly there, also
// when the stream begins again from an older position, and rows that the link is not to
// carry never leave the primary. The event triggers keep the list, in the transaction of
// the command that changes what the patterns mean (ddl_choose in ddl.sql), and tell the
// secondary in the message of that command: it copies what came in and empties what
// went out. Definitions are replayed alike for all tables, so that no DDL meets a
// replica that lacks what it names.

// choose stores by what a link chooses, and fills its publication.
func choose(ctx context.Context, conn *pgx.Conn, id string, f filter.Filter) error {
	likes, err := f.Likes()
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `
		INSERT INTO hawser.ddl_filter (link, whole, in_schema, in_table, out_schema, out_table) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (link) DO UPDATE SET whole = excluded.whole, in_schema = excluded.in_schema, in_table = excluded.in_table,
			out_schema = excluded.out_schema, out_table = excluded.out_table`,
		append([]any{id, f.All()}, likes.Args()...)...)
	if err != nil {
		return fmt.Errorf("store the tables that are chosen: %w", err)
	}
	if f.All() {
		return nil
	}
	if err := publication(ctx, conn, id, ""); err != nil {
		return err
	}
	return eachTable(ctx, conn, "publish the chosen tables", fmt.Sprintf(`
		SELECT c.oid, n.nspname, c.relname, '' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN hawser.ddl_filter f ON f.link = '%s'
		WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384 AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')
		AND %s <> `, id, filter.Chosen("f.in_schema", "f.in_table", "f.out_schema", "f.out_table"))+published("'"+Object(id)+"'"),
		func(t changedTable) error {
			return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `SELECT hawser.ddl_choose(ARRAY[$1::oid], '{}', false)`, t.OID); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `SELECT hawser.ddl_identity(ARRAY[$1::oid])`, t.OID)
				return err
			})
		})
}

// unchoose forgets by what a link chose. A link that was never installed chose nothing.
func unchoose(ctx context.Context, conn *pgx.Conn, id string) error {
	var there bool
	err := conn.QueryRow(ctx, `SELECT to_regclass('hawser.ddl_filter') IS NOT NULL`).Scan(&there)
	if err == nil && there {
		_, err = conn.Exec(ctx, `DELETE FROM hawser.ddl_filter WHERE link = $1`, id)
	}
	if err != nil {
		return fmt.Errorf("forget the tables that were chosen: %w", err)
	}
	return nil
}

// published is true of a table c that a publication lists.
func published(name string) string {
	return `EXISTS (SELECT FROM pg_publication_rel g JOIN pg_publication p ON p.oid = g.prpubid WHERE g.prrelid = c.oid AND p.pubname = ` + name + `)`
}

// Rechoose brings the publication to where the patterns want it, when DDL that fired no
// event trigger changed what they mean, and tells the secondary. It returns how many
// tables came in or went out.
func Rechoose(ctx context.Context, conn *pgx.Conn) (changes int, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT hawser.ddl_rechoose()`).Scan(&changes)
	})
	return changes, ddlProblem("look for tables that came in or went out", err)
}

// checkChoice tells what a filter chooses and which patterns choose nothing, and names
// the foreign keys, views and functions that cross the border.
func checkChoice(ctx context.Context, conn *pgx.Conn, f filter.Filter) (problem.Findings, error) {
	if f.All() {
		return nil, nil
	}
	likes, err := f.Likes()
	if p, ok := problem.As(err); ok {
		return problem.Findings{p}, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := checkPatterns(ctx, conn, f)
	if err != nil {
		return nil, err
	}
	var chosen, all int
	if err := conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE `+filter.Params()+`), count(*)`+choosable, likes.Args()...).Scan(&chosen, &all); err != nil {
		return nil, fmt.Errorf("count the tables that are chosen: %w", err)
	}
	if chosen == 0 {
		return append(out, problem.New("no-table-chosen", "the tables", fmt.Sprintf("the patterns choose none of the database's %d tables", all),
			"").Advise("choose others with --tables; without it and without --exclude-tables all are carried")), nil
	}
	out = append(out, problem.Noted("tables-chosen", "the tables",
		fmt.Sprintf("the rows of %d of %d tables are carried, partitions counted one by one; the other tables are on the replica without rows", chosen, all)))
	keys, err := checkBorderKeys(ctx, conn, f, likes)
	if err != nil {
		return nil, err
	}
	readers, err := checkBorderReaders(ctx, conn, likes)
	return append(append(out, keys...), readers...), err
}

// choosable are the tables that have rows of their own, and could be carried.
const choosable = ` FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
	AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')`

// checkPatterns names the patterns that match no table, partitioned ones included:
// most likely they are misspelt, and what they were to choose would be missing.
func checkPatterns(ctx context.Context, conn *pgx.Conn, f filter.Filter) (problem.Findings, error) {
	var out problem.Findings
	check := func(flag, pattern string) error {
		schema, table, err := filter.Like(pattern)
		if err != nil {
			return err
		}
		if names, err := matching(ctx, conn, schema, table); err != nil || len(names) > 0 {
			return err
		}
		near, err := nearestPattern(ctx, conn, pattern)
		p := problem.New("pattern-matches-nothing", flag+" "+pattern, "no table matches it; letters outside of double quotes are folded to lower case",
			"").Advise("correct it or leave it out")
		if near != "" {
			p.Remedy, p.Advice = flag+" "+problem.Word(near), problem.DidYouMean(near)
		}
		out = append(out, p)
		return err
	}
	for _, p := range f.Tables {
		if err := check("--tables", p); err != nil {
			return nil, fmt.Errorf("look for tables that match %s: %w", p, err)
		}
	}
	for _, p := range f.Exclude {
		if err := check("--exclude-tables", p); err != nil {
			return nil, fmt.Errorf("look for tables that match %s: %w", p, err)
		}
	}
	return out, nil
}

// matching are the tables, each as its schema and its name, that two patterns of LIKE match.
func matching(ctx context.Context, conn *pgx.Conn, schema, table string) ([][]string, error) {
	rows, err := conn.Query(ctx, `SELECT ARRAY[n.nspname::text, c.relname::text] FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')
		AND n.nspname LIKE $1 COLLATE "C" AND c.relname LIKE $2 COLLATE "C"`, schema, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[[]string])
}

// nearestPattern is the one that was most likely meant by one that matches nothing: as
// often as not its letters stand between double quotes.
func nearestPattern(ctx context.Context, conn *pgx.Conn, pattern string) (string, error) {
	exact := filter.Exact(pattern)
	schema, table, err := filter.Like(exact)
	if err != nil {
		return "", err
	}
	names, err := matching(ctx, conn, schema, table)
	if err != nil || len(names) > 0 {
		return exact, err
	}
	if names, err = matching(ctx, conn, "%", "%"); err != nil {
		return "", err
	}
	known := make([]string, len(names))
	for i, n := range names {
		known[i] = strings.Join(n, ".")
	}
	if i := slices.Index(known, problem.Nearest(pattern, known)); i >= 0 {
		return filter.Written(names[i]...), nil
	}
	return "", nil
}

// border has the leaves: the tables with rows, whether they are chosen, and all the
// partitioned tables above them, which are both when some of their leaves are.
const border = `
	WITH leaf(oid, chosen) AS (SELECT c.oid, %s` + choosable + `),
	side(oid, chosen) AS (
		SELECT * FROM leaf UNION SELECT a.id, l.chosen FROM leaf l CROSS JOIN LATERAL pg_partition_ancestors(l.oid) a(id))`

// checkBorderKeys refuses foreign keys by which chosen rows need rows that are not
// carried: the replica could not have such a key, and after a forced failover could not
// keep it.
func checkBorderKeys(ctx context.Context, conn *pgx.Conn, f filter.Filter, likes filter.Likes) (problem.Findings, error) {
	rows, err := conn.Query(ctx, fmt.Sprintf(border, filter.Params())+`
		SELECT quote_ident(k.conname), k.conrelid::regclass::text,
			(SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = k.conrelid),
			format('%I.%I', n.nspname, c.relname), ARRAY(
			SELECT o.i FROM unnest($3::text[], $4::text[]) WITH ORDINALITY o(s, t, i) WHERE EXISTS (
				SELECT FROM side x JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE NOT x.chosen AND (x.oid = k.confrelid OR x.oid IN (SELECT relid FROM pg_partition_tree(k.confrelid)))
				AND `+filter.Matched("ARRAY[o.s]", "ARRAY[o.t]")+`) ORDER BY o.i)
		FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0
		AND EXISTS (SELECT FROM side s WHERE s.oid = k.conrelid AND s.chosen)
		AND EXISTS (SELECT FROM side s WHERE s.oid = k.confrelid AND NOT s.chosen) ORDER BY 2, 1`, likes.Args()...)
	if err != nil {
		return nil, fmt.Errorf("look for foreign keys that cross the border: %w", err)
	}
	var out problem.Findings
	var k borderKey
	var left []int
	_, err = pgx.ForEachRow(rows, []any{&k.name, &k.from, &k.qualified, &k.to, &left}, func() error {
		k.left = nil
		for _, n := range left {
			k.left = append(k.left, "--exclude-tables "+problem.Word(f.Exclude[n-1]))
		}
		out = append(out, k.problem(len(f.Tables) > 0))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for foreign keys that cross the border: %w", err)
	}
	return out, nil
}

// borderKey is a foreign key that crosses the border.
type borderKey struct {
	name, from, qualified, to string
	left                      []string // the flags that leave out what it refers to
}

// problem tells what to do. What --exclude-tables leaves out --tables does not bring back.
func (k borderKey) problem(chosen bool) *problem.Problem {
	const code, and = "foreign-key-crosses", ", so on the replica its rows would refer to nothing"
	object, drop := "foreign key "+k.name+" of "+k.from, ", or drop the constraint "+k.name
	if len(k.left) == 0 {
		return problem.New(code, object, "it refers to "+k.to+", whose rows the link would not carry"+and,
			"--tables "+problem.Word(k.to)).Advise("or leave out " + k.from + " too" + drop)
	}
	flags, with := strings.Join(k.left, " "), ""
	if chosen {
		with = ", with --tables " + problem.Word(k.to) + " if no other pattern chooses it"
	}
	return problem.New(code, object, "it refers to "+k.to+", whose rows the link would not carry since "+flags+" leaves them out"+and,
		"--exclude-tables "+problem.Word(k.qualified)).Advise("or carry " + k.to + ": without " + flags + with + drop)
}

// checkBorderReaders names the views, and the functions whose bodies PostgreSQL has
// parsed, that read tables without rows.
func checkBorderReaders(ctx context.Context, conn *pgx.Conn, likes filter.Likes) (problem.Findings, error) {
	rows, err := conn.Query(ctx, fmt.Sprintf(border, filter.Params())+`
		SELECT reader, string_agg(DISTINCT reads, ', ') FROM (
			SELECT CASE v.relkind WHEN 'm' THEN 'materialized view ' ELSE 'view ' END || v.oid::regclass, s.oid::regclass::text
			FROM side s JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid AND d.classid = 'pg_rewrite'::regclass
			JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class
			WHERE NOT s.chosen AND v.relkind IN ('v', 'm')
			UNION ALL SELECT 'function ' || d.objid::regprocedure, s.oid::regclass::text
			FROM side s JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid AND d.classid = 'pg_proc'::regclass
			WHERE NOT s.chosen AND d.deptype = 'n') x(reader, reads) GROUP BY reader ORDER BY 1`, likes.Args()...)
	if err != nil {
		return nil, fmt.Errorf("look for views that cross the border: %w", err)
	}
	var out problem.Findings
	var reader, reads string
	more := 0
	_, err = pgx.ForEachRow(rows, []any{&reader, &reads}, func() error {
		if len(out) == namedTables {
			more++
			return nil
		}
		out = append(out, problem.Warn("reads-without-rows", reader,
			"it reads "+reads+", whose rows are not all carried; on the replica it finds none of those that are not", "").Advise("carry what it reads, or do not use it on the replica"))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for views that cross the border: %w", err)
	}
	if more > 0 {
		out = append(out, problem.Warn("reads-without-rows", fmt.Sprintf("%d more views and functions", more), "they read tables whose rows are not carried", "").Advise("carry what they read, or do not use them on the replica"))
	}
	return out, nil
}

// publication makes the link's publication unless it is there. From 18 on a whole row
// identifies a row only with its generated columns: without them the user's UPDATE fails.
func publication(ctx context.Context, conn *pgx.Conn, id, of string) error {
	var exists, generated bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
		current_setting('server_version_num')::int >= 180000 AND NOT EXISTS (SELECT FROM pg_publication p WHERE pubname = $1 AND to_jsonb(p)->>'pubgencols' = 's')`,
		Object(id)).Scan(&exists, &generated)
	if err != nil {
		return fmt.Errorf("look for the publication: %w", err)
	}
	name := postgres.QuoteIdent(Object(id))
	if !exists {
		if _, err := conn.Exec(ctx, `CREATE PUBLICATION `+name+of); err != nil {
			return fmt.Errorf("create the publication: %w", err)
		}
	}
	if generated {
		if _, err := conn.Exec(ctx, `ALTER PUBLICATION `+name+` SET (publish_generated_columns = stored)`); err != nil {
			return fmt.Errorf("publish generated columns: %w", err)
		}
	}
	return nil
}
