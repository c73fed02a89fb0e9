package schema_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/testpg"
)

// TestAttacks: whoever may give commands on the primary, and knows how the capture of
// DDL works, gets no more rights on the secondary than he has on the primary. The role
// plays him; at_secret is a table of a superuser's.
func TestAttacks(t *testing.T) {
	t.Parallel()
	from, to := testpg.Shared(t), testpg.Start(t, nil)
	const helpers = `CREATE FUNCTION at_super() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN END'`
	for _, s := range []struct {
		name, role string
		sent       []string // in a session of the role
	}{
		{"what a command dropped, told by its user", "at_dropper", []string{
			`SET hawser.ddl_state = '{"pending": {"d41d8cd98f00b204e9800998ecf8427e": {"dropped": [{"class": "pg_class", "type": "table",
				"schema": "public", "name": "x", "root": true, "identity": "x; ALTER ROLE at_dropper SUPERUSER"}, {"root": true, "identity": "y"}]}}}'`,
			`DROP TABLE IF EXISTS missing`,
		}},
		{"the count of commands, told by their user", "at_counter", []string{
			`CREATE TABLE mine (a int)`, helpers,
			`SELECT set_config('hawser.ddl_order', (extract(epoch FROM statement_timestamp()) * 1000000)::bigint || ':1', false);
			 ALTER FUNCTION at_super() OWNER TO CURRENT_USER; COMMIT; ALTER FUNCTION at_super() OWNER TO postgres`,
		}},
		{"a function that replaces itself", "at_changer", []string{
			helpers, `CREATE FUNCTION next(body text) RETURNS void LANGUAGE plpgsql AS $$BEGIN
				EXECUTE format('CREATE OR REPLACE FUNCTION run() RETURNS void LANGUAGE sql AS %L', body); END$$`,
			`CREATE FUNCTION run() RETURNS void LANGUAGE sql AS $$
				SELECT next('SELECT 1; ALTER FUNCTION at_super() OWNER TO postgres; SELECT'); ALTER FUNCTION at_super() OWNER TO CURRENT_USER; SELECT $$`,
			`SELECT run()`,
		}},
		{"a domain's check at CREATE TABLE AS", "at_maker", []string{
			`CREATE FUNCTION checked(text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN
				BEGIN EXECUTE 'ALTER ROLE at_maker SUPERUSER'; EXCEPTION WHEN OTHERS THEN END; RETURN true; END$$`,
			`CREATE DOMAIN checking AS text CHECK (checked(VALUE))`, `CREATE TABLE made AS SELECT 'x'::checking AS a`,
		}},
		{"a search_path with a command in it", "at_path", []string{
			`SET search_path = 'public'; SELECT set_config('search_path', 'public;alter/**/role/**/at_path/**/superuser', false); ALTER ROLE at_path IN DATABASE @ SET search_path FROM CURRENT`,
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Cleanup(func() { dropRoles(t, from, "CREATE ROLE "+s.role+";") })
			p := newPair(t, from, to)
			p.play("CREATE ROLE " + s.role + "; GRANT ALL ON SCHEMA public TO " + s.role + "; CREATE TABLE at_secret (a int)")
			p.exec(p.primary, "SET SESSION AUTHORIZATION "+s.role)
			for _, text := range s.sent {
				var refused *pgconn.PgError
				_, err := p.primary.PgConn().Exec(t.Context(), inDatabase(text, p.source)).ReadAll()
				if err != nil && !(errors.As(err, &refused) && refused.Code == "42501") {
					t.Fatalf("%s: %v", text, err)
				}
			}
			p.exec(p.primary, "RESET SESSION AUTHORIZATION; RESET ALL")
			if _, err := capture.SweepDDL(t.Context(), p.primary); err != nil {
				t.Fatal(err)
			}
			if err := p.sync(); err != nil {
				t.Logf("the link stops: %v", err)
			}
			for what, sql := range map[string]string{
				"a user of the primary became a superuser of the secondary": `SELECT rolsuper::text FROM pg_roles WHERE rolname = '` + s.role + `'`,
				"his function became a superuser's":                         `SELECT coalesce(bool_or(rolsuper), false)::text FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE proname = 'at_super'`,
				"he may read what he may not":                               `SELECT has_table_privilege('` + s.role + `', 'public.at_secret', 'SELECT')::text`,
			} {
				if got := column(t, p.secondary, sql); got[0] != "false" {
					t.Error(what)
				}
			}
		})
	}
}

// inDatabase puts the database's name in the place of @.
func inDatabase(text, name string) string {
	return strings.ReplaceAll(text, "@", pgx.Identifier{name}.Sanitize())
}
