package schema_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hawser/hawser/internal/testpg"
)

// TestReplayRandomStrings sends strings of random statements, with transaction
// control that does not care for the borders between strings and functions that run
// several of them. Many fail on the primary; what it kept must be on the secondary.
func TestReplayRandomStrings(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	statement := rapid.Custom(func(t *rapid.T) string {
		table := rapid.SampledFrom([]string{"a", "b", `"C d"`}).Draw(t, "table")
		column := rapid.SampledFrom([]string{"x", "y", `"Z;"`}).Draw(t, "column")
		return rapid.SampledFrom([]string{
			"CREATE TABLE IF NOT EXISTS " + table + " (x int)",
			"CREATE TABLE " + table + " (x int)",
			"DROP TABLE IF EXISTS " + table,
			"CREATE TEMP TABLE IF NOT EXISTS t (x int)",
			"ALTER TABLE IF EXISTS " + table + " ADD COLUMN IF NOT EXISTS " + column + " text DEFAULT ';--'",
			"ALTER TABLE IF EXISTS " + table + " DROP COLUMN IF EXISTS " + column,
			"INSERT INTO " + table + " DEFAULT VALUES",
			"CREATE INDEX ON " + table + " (x)",
			"COMMENT ON TABLE " + table + " IS '" + column + "'",
			"ALTER TABLE IF EXISTS " + table + " RENAME TO e", "ALTER TABLE IF EXISTS e RENAME TO " + table,
			"CREATE TABLE IF NOT EXISTS " + table + " AS SELECT 1 AS x",
			"SELECT 1", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "SAVEPOINT s2", "ROLLBACK TO s", "RELEASE s", "RESET ALL",
		}).Draw(t, "statement")
	})
	plain := rapid.Map(rapid.SliceOfN(statement, 1, 9), func(list []string) string { return strings.Join(list, ";\n") })
	inside := rapid.Map(rapid.SliceOfN(statement.Filter(func(s string) bool {
		return !strings.ContainsAny(s[:2], "BR") && !strings.HasPrefix(s, "COMMIT") && !strings.HasPrefix(s, "SA") && !strings.HasPrefix(s, "SELECT")
	}), 1, 6), func(list []string) string {
		half := len(list) / 2
		return fmt.Sprintf("DO $do$ BEGIN %s; BEGIN EXECUTE $x$%s$x$; EXCEPTION WHEN OTHERS THEN END; END $do$",
			strings.Join(append([]string{"NULL"}, list[:half]...), "; "), strings.Join(list[half:], "; "))
	})
	strs := rapid.SliceOfN(rapid.OneOf(plain, plain, inside), 1, 8)
	p := newPair(t, c, c)
	rapid.Check(t, func(rt *rapid.T) {
		defer p.clear()
		sent := strs.Draw(rt, "strings")
		client, err := pgx.Connect(t.Context(), c.DSN(p.source))
		if err != nil {
			rt.Fatal(err)
		}
		for _, text := range sent {
			// An error is the primary's business.
			_, _ = client.PgConn().Exec(t.Context(), text).ReadAll()
		}
		if err := client.Close(t.Context()); err != nil {
			rt.Fatal(err)
		}
		if err := p.sync(); err != nil {
			rt.Fatalf("%v\nexecuted: %s", err, p.executed())
		}
		want, got := shapes(t, p.primary), shapes(t, p.secondary)
		if !slices.Equal(want, got) {
			rt.Fatalf("the tables differ:\nprimary:   %q\nsecondary: %q\nexecuted: %s", want, got, p.executed())
		}
	})
}

// clear empties both databases, whatever state they are in.
func (p *pair) clear() {
	const empty = `DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public`
	p.exec(p.primary, empty)
	p.exec(p.primary, `SELECT pg_replication_slot_advance('`+p.source+`', pg_current_wal_lsn())`)
	p.exec(p.secondary, empty)
	p.results = nil
}

// shapes describes the tables of schema public with their rows.
func shapes(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	return column(t, conn, `SELECT c.relname || c.relreplident::text || coalesce(obj_description(c.oid), '')
		|| (SELECT coalesce(string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || coalesce(pg_get_expr(d.adbin, d.adrelid), ''), ','  ORDER BY a.attnum), '')
			FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
		|| (SELECT coalesce(string_agg(pg_get_indexdef(i.indexrelid), ',' ORDER BY pg_get_indexdef(i.indexrelid)), '') FROM pg_index i WHERE i.indrelid = c.oid)
		|| query_to_xml(format('SELECT * FROM public.%I t ORDER BY t::text', c.relname), true, true, '')::text
		FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY 1`)
}
