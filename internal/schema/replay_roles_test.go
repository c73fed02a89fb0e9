package schema_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// TestReplayRoles needs two clusters, since roles are a cluster's.
func TestReplayRoles(t *testing.T) {
	t.Parallel()
	from, to := testpg.Shared(t), testpg.Start(t, nil)
	for _, s := range []struct {
		name      string
		secondary string // on the secondary before
		sent      []string
		check     func(t *testing.T, p *pair)
	}{
		{name: "missing ones are created", sent: []string{
			`CREATE ROLE rr_app LOGIN; CREATE ROLE rr_reader; CREATE ROLE "rr Odd ""one"""; GRANT ALL ON SCHEMA public TO rr_app`,
			`SET ROLE rr_app; CREATE TABLE t (a int); GRANT SELECT ON t TO rr_reader WITH GRANT OPTION; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO rr_reader, "rr Odd ""one""";
			 CREATE TABLE later (a int); CREATE TABLE made AS SELECT 1 AS a; CREATE TABLE empty AS SELECT 1 AS a WHERE false; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; REVOKE ALL ON FUNCTION f() FROM PUBLIC; RESET ROLE`,
			`CREATE SCHEMA AUTHORIZATION rr_app; CREATE POLICY p ON t TO "rr Odd ""one""" USING (a > 0); ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER FUNCTION f() OWNER TO rr_reader; ALTER TABLE later OWNER TO SESSION_USER; ALTER TABLE later OWNER TO CURRENT_USER`,
			`SET ROLE rr_app; SET search_path = "$user"; CREATE TABLE mine (a serial PRIMARY KEY); GRANT USAGE ON SEQUENCE mine_a_seq TO rr_reader; RESET ROLE`,
		}, check: func(t *testing.T, p *pair) {
			login := column(t, p.secondary, `SELECT rolname::text FROM pg_roles WHERE rolcanlogin AND rolname LIKE 'rr%'`)
			if len(login) > 0 {
				t.Errorf("roles %q can log in", login)
			}
			var made []string
			for _, r := range p.results {
				made = append(made, r.Roles...)
			}
			slices.Sort(made)
			if want := []string{`rr Odd "one"`, "rr_app", "rr_reader"}; !slices.Equal(made, want) {
				t.Errorf("created roles: got %q, want %q", made, want)
			}
		}},
		{name: "a definer's DDL is its owner's", sent: []string{
			`CREATE ROLE rd_owner; CREATE ROLE rd_user LOGIN; CREATE SCHEMA s AUTHORIZATION rd_owner; GRANT USAGE ON SCHEMA s TO rd_user`,
			`SET ROLE rd_owner; CREATE FUNCTION s.make() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = s AS $$ BEGIN CREATE TABLE made (a int); PERFORM 1; ALTER TABLE made ADD b int; END $$; RESET ROLE`,
			`SET SESSION AUTHORIZATION rd_user; SELECT s.make(); RESET SESSION AUTHORIZATION`,
		}},
		{name: "roles that lack here what they have there", secondary: `CREATE ROLE rl_owner; CREATE ROLE rl_migrator; CREATE ROLE rl_other`, sent: []string{
			`CREATE ROLE rl_owner; CREATE ROLE rl_other; CREATE ROLE rl_migrator IN ROLE rl_owner, rl_other; CREATE SCHEMA s AUTHORIZATION rl_owner; SET ROLE rl_owner; CREATE TABLE s.t (a int); RESET ROLE`,
			`SET ROLE rl_migrator; ALTER TABLE s.t ADD b serial, ADD CHECK (a > 0); CREATE INDEX ON s.t (b); GRANT SELECT ON s.t TO rl_other; COMMENT ON TABLE s.t IS 'x'; ALTER TABLE s.t RENAME b TO c; DROP TABLE s.t; RESET ROLE`,
			`SET ROLE rl_owner; CREATE TABLE s.u (a int); RESET ROLE`, `SET ROLE rl_migrator; ALTER TABLE s.u OWNER TO rl_migrator; RESET ROLE`,
		}},
		{name: "the session's user", sent: []string{
			`CREATE ROLE ru_deploy SUPERUSER; CREATE ROLE ru_admin SUPERUSER`,
			`SET SESSION AUTHORIZATION ru_deploy; SET ROLE ru_admin; CREATE SCHEMA s AUTHORIZATION SESSION_USER; CREATE TABLE s.t (a int); GRANT SELECT ON s.t TO SESSION_USER; RESET SESSION AUTHORIZATION`,
		}},
		{name: "members of whom no sweep told yet", sent: []string{
			`CREATE ROLE rg_owner; CREATE ROLE rg_middle IN ROLE rg_owner; CREATE ROLE rg_member IN ROLE rg_middle; GRANT ALL ON SCHEMA public TO rg_owner, rg_middle, rg_member`,
			`SET ROLE rg_owner; CREATE TABLE parent (a int PRIMARY KEY, b text); RESET ROLE`,
			`SET ROLE rg_member; CREATE TABLE child () INHERITS (parent); CREATE TABLE refers (a int REFERENCES parent); CREATE INDEX ON parent (lower(b)); CREATE VIEW v AS SELECT * FROM parent; RESET ROLE`,
		}, check: func(t *testing.T, p *pair) {
			got := column(t, p.secondary, `SELECT r.rolname::text FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid WHERE m.member = 'rg_member'::regrole`)
			if want := []string{"rg_middle"}; !slices.Equal(got, want) {
				t.Errorf("it is a member of %q, want %q", got, want)
			}
		}},
		{name: "a schema under way", sent: []string{
			`CREATE ROLE rn_app; CREATE ROLE rn_admin; CREATE ROLE rn_super SUPERUSER; DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO rn_app', current_database()); END $$; CREATE SCHEMA f AUTHORIZATION rn_app; GRANT rn_admin TO rn_app; GRANT USAGE ON SCHEMA f TO PUBLIC`,
			`SET ROLE rn_app; CREATE FUNCTION f.made(n int) RETURNS int LANGUAGE plpgsql AS $f$ BEGIN
				CREATE EXTENSION seg VERSION '1.2'; EXECUTE format('CREATE FUNCTION compare%s(oid, regclass) RETURNS boolean LANGUAGE sql AS ''SELECT true''', n);
				EXECUTE format('CREATE OPERATOR === (LEFTARG = oid, RIGHTARG = regclass, PROCEDURE = compare%s)', n); ALTER EXTENSION seg UPDATE TO '1.3'; RETURN n; END $f$`,
			`CREATE SCHEMA s CREATE TABLE p (a int) PARTITION BY RANGE (a) CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (f.made(2))`,
			`RESET ROLE; DROP EXTENSION seg CASCADE; CREATE SCHEMA "S n" AUTHORIZATION rn_app CREATE TABLE p (a int) PARTITION BY RANGE (a) CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (f.made(3)) CREATE VIEW v AS SELECT a AS create, a AS "grant" FROM p`,
			`DROP EXTENSION seg CASCADE; SET ROLE rn_super; CREATE SCHEMA t CREATE TABLE p (a int) PARTITION BY RANGE (a) /* CREATE */ CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (f.made(4)) CREATE SEQUENCE q GRANT SELECT ON p TO rn_app WITH GRANT OPTION; RESET ROLE`,
		}},
		{name: "superusers that are none here", sent: []string{
			`CREATE ROLE rs_admin SUPERUSER; CREATE SCHEMA s; CREATE ROLE rs_reader`,
			`SET ROLE rs_admin; ALTER DEFAULT PRIVILEGES IN SCHEMA s GRANT SELECT ON TABLES TO rs_reader; CREATE TABLE s.t (id serial PRIMARY KEY); GRANT INSERT ON s.t TO rs_reader; CREATE TYPE s.e AS ENUM ('a'); CREATE SEQUENCE s.q;
			 CREATE FUNCTION s.c(int) RETURNS int LANGUAGE internal STRICT AS 'int4abs'; CREATE VIEW s.v AS SELECT 1 AS a; CREATE EXTENSION hstore; RESET ROLE`,
		}},
		{name: "owned", secondary: `CREATE ROLE ro_app; CREATE ROLE ro_new; CREATE DATABASE ro_other OWNER ro_app; GRANT CREATE ON DATABASE postgres TO ro_app`, sent: []string{
			`CREATE ROLE ro_app; CREATE ROLE ro_new; CREATE SCHEMA s AUTHORIZATION ro_app; SET ROLE ro_app; CREATE TABLE s.t (a int); CREATE TABLE s.u (a int); RESET ROLE; CREATE TABLE g (a int); GRANT SELECT ON g TO ro_app`,
			`REASSIGN OWNED BY ro_app TO ro_new`, `ALTER TABLE s.t ADD b int; CREATE TABLE s.x (a int)`, `SET ROLE ro_app; CREATE TEMP TABLE x (a int); RESET ROLE; DROP OWNED BY ro_app`, `SELECT hawser.ddl_sweep(NULL)`, `ALTER TABLE s.u OWNER TO ro_app; REASSIGN OWNED BY ro_app TO CURRENT_USER; DROP OWNED BY ro_new CASCADE`,
		}, check: func(t *testing.T, p *pair) {
			got := column(t, p.secondary, `SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = 'ro_other'
				UNION ALL SELECT (has_database_privilege('ro_app', 'postgres', 'CREATE'))::text`)
			if want := []string{"ro_app", "true"}; !slices.Equal(got, want) {
				t.Errorf("owner of another database and a right on one: got %q, want %q", got, want)
			}
		}},
		{name: "the database's new owner", sent: []string{
			`CREATE ROLE rw_owner; DO $$BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO rw_owner', current_database()); END$$; SELECT hawser.ddl_sweep(NULL)`,
			`SET ROLE rw_owner; CREATE TABLE t (a int); RESET ROLE`,
		}, check: func(t *testing.T, p *pair) {
			if got := column(t, p.secondary, `SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = current_database()`); got[0] != "rw_owner" {
				t.Errorf("it is %s", got)
			}
		}},
		{name: "owned types", sent: []string{
			`CREATE ROLE ry_app; CREATE ROLE ry_new; GRANT ALL ON SCHEMA public TO ry_app`,
			`SET ROLE ry_app; CREATE TYPE e AS ENUM ('red'); CREATE TYPE r AS RANGE (SUBTYPE = int4); CREATE TYPE c AS (a int); CREATE TABLE t (a serial); RESET ROLE`,
			`REASSIGN OWNED BY ry_app TO ry_new`, `DROP OWNED BY ry_app`, `ALTER TYPE r OWNER TO ry_app`, `REASSIGN OWNED BY ry_app TO ry_new`, `DROP OWNED BY ry_app`,
		}},
		{name: "rights on the database that come later", sent: []string{
			`CREATE ROLE rb_app; CREATE ROLE rb_admin SUPERUSER; CREATE ROLE rb_new; CREATE TABLE t (a int PRIMARY KEY)`,
			`DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO rb_app', current_database()); END $$`,
			`SET ROLE rb_app; CREATE PUBLICATION mine; ALTER PUBLICATION mine SET (publish = 'insert'); CREATE SCHEMA s CREATE TABLE t (a int) CREATE VIEW v AS SELECT * FROM t; RESET ROLE; ALTER PUBLICATION mine RENAME TO his; ALTER PUBLICATION his OWNER TO rb_admin`,
			`SET ROLE rb_app; CREATE EXTENSION citext; RESET ROLE; CREATE PUBLICATION of_app; ALTER PUBLICATION of_app OWNER TO rb_app; GRANT rb_new TO rb_app`,
			`DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO rb_new', current_database()); END $$`,
			`SET ROLE rb_app; ALTER PUBLICATION of_app OWNER TO rb_new; RESET ROLE`,
			`CREATE ROLE rb_group; CREATE FOREIGN DATA WRAPPER dummy; GRANT USAGE ON FOREIGN DATA WRAPPER dummy TO rb_group`,
			`GRANT rb_group TO rb_app; SET ROLE rb_app; CREATE SERVER srv FOREIGN DATA WRAPPER dummy; CREATE USER MAPPING FOR PUBLIC SERVER srv; ALTER SERVER srv VERSION '2'; RESET ROLE`,
			`SET ROLE rb_admin; CREATE PUBLICATION every FOR ALL TABLES; CREATE FOREIGN DATA WRAPPER admins; RESET ROLE; CREATE FOREIGN DATA WRAPPER w; ALTER FOREIGN DATA WRAPPER w OWNER TO rb_admin; CREATE PUBLICATION all_of FOR ALL TABLES; ALTER PUBLICATION all_of OWNER TO rb_admin`,
			`CREATE ROLE rb_member IN ROLE rb_admin; CREATE PUBLICATION of_member FOR TABLE t; ALTER PUBLICATION of_member OWNER TO rb_member; ALTER TABLE s.t OWNER TO rb_member; GRANT USAGE ON SCHEMA s TO rb_member`,
			`SET ROLE rb_member; ALTER PUBLICATION of_member OWNER TO rb_admin; ALTER TABLE s.t OWNER TO rb_admin; RESET ROLE`,
			`CREATE FUNCTION heard() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER heard ON sql_drop EXECUTE FUNCTION heard(); ALTER EVENT TRIGGER heard OWNER TO rb_admin`,
		}, check: func(t *testing.T, p *pair) {
			if got := column(t, p.secondary, `SELECT rolsuper::text FROM pg_roles WHERE rolname = 'rb_admin'`); got[0] != "false" {
				t.Error("a superuser of the primary is one of the secondary, too")
			}
		}},
		{name: "a tablespace that is missing here", sent: []string{
			`CREATE ROLE rt_none; SET allow_in_place_tablespaces = on`, `CREATE TABLESPACE rt_space LOCATION ''`,
			`SET default_tablespace = rt_space; CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE p (a int) PARTITION BY LIST (a) TABLESPACE rt_space; SET default_tablespace = pg_global; CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE as1 TABLESPACE rt_space AS SELECT 1 AS a; SET default_tablespace = pg_default; CREATE TABLE q (a int PRIMARY KEY USING INDEX TABLESPACE rt_space) PARTITION BY LIST (a) TABLESPACE rt_space; CREATE INDEX i ON t (a) TABLESPACE rt_space`,
			`DROP TABLE q; ALTER INDEX ALL IN TABLESPACE rt_space SET TABLESPACE pg_default`, `ALTER TABLE ALL IN TABLESPACE rt_space SET TABLESPACE pg_default; ALTER TABLE p SET TABLESPACE pg_default; ALTER TABLE p1 SET TABLESPACE pg_default; ALTER TABLE as1 SET TABLESPACE pg_default; ALTER TABLE t SET TABLESPACE pg_default; ALTER INDEX i SET TABLESPACE pg_default; ALTER INDEX t_pkey SET TABLESPACE pg_default`,
		}},
		{name: "a user's code gets no more rights", sent: []string{
			`CREATE ROLE re_evil; GRANT ALL ON SCHEMA public TO re_evil`,
			`SET ROLE re_evil; CREATE TABLE log (a text); CREATE TABLE t (a int); INSERT INTO t VALUES (1);
			 CREATE FUNCTION evil(int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $f$
				BEGIN
					BEGIN
						PERFORM set_config('role', 'none', true);
						EXECUTE 'ALTER ROLE re_evil SUPERUSER';
					EXCEPTION WHEN OTHERS THEN
					END;
					BEGIN
						EXECUTE 'SET SESSION AUTHORIZATION DEFAULT';
						EXECUTE 'ALTER ROLE re_evil SUPERUSER';
					EXCEPTION WHEN OTHERS THEN
					END;
					RETURN 'x';
				END $f$; RESET ROLE`,
			`SET SESSION AUTHORIZATION re_evil; ALTER TABLE t ALTER a TYPE text USING evil(a); CREATE INDEX ON t (evil(length(a))); ALTER TABLE t ADD CHECK (evil(length(a)) = 'x'); ALTER TABLE t ADD b text DEFAULT evil(1); RESET SESSION AUTHORIZATION`,
		}, check: func(t *testing.T, p *pair) {
			if got := column(t, p.secondary, `SELECT rolsuper::text FROM pg_roles WHERE rolname = 're_evil'`); got[0] != "false" {
				t.Error("a user of the primary became a superuser of the secondary")
			}
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() { dropRoles(t, from, s.sent[0]) })
			p := newPair(t, from, to)
			for _, statement := range strings.Split(s.secondary, ";") {
				p.exec(p.secondary, statement)
			}
			p.play(s.sent...)
			if _, err := capture.SweepDDL(t.Context(), p.primary); err != nil {
				t.Fatal(err)
			}
			p.play()
			if s.check != nil {
				s.check(t, p)
			}
			p.equal()
		})
	}
	// Another database of the secondary is nobody's business here, its end included.
	t.Run("owned, while another database is dropped", func(t *testing.T) {
		t.Parallel()
		script := `CREATE ROLE rz_app`
		t.Cleanup(func() { dropRoles(t, from, script) })
		p := newPair(t, from, to)
		p.exec(p.secondary, `CREATE DATABASE rz_other`)
		p.exec(p.secondary, fmt.Sprintf(`CREATE EXTENSION dblink SCHEMA public;
			CREATE FUNCTION public.drop_other() RETURNS event_trigger LANGUAGE plpgsql AS $f$
			BEGIN PERFORM public.dblink_exec(%s, 'DROP DATABASE rz_other'); END $f$;
			CREATE EVENT TRIGGER drop_other ON ddl_command_end WHEN TAG IN ('DROP OWNED') EXECUTE FUNCTION public.drop_other();
			ALTER EVENT TRIGGER drop_other ENABLE ALWAYS`, postgres.QuoteLiteral(to.DSN("postgres"))))
		p.play(script, `CREATE TABLE t (a int); GRANT SELECT ON t TO rz_app; DROP OWNED BY rz_app`)
		if got := column(t, p.secondary, `SELECT datname::text FROM pg_database WHERE datname = 'rz_other'`); len(got) > 0 {
			t.Error("the other database was not dropped meanwhile: the test shows nothing")
		}
	})
	t.Run("a group that has rights elsewhere stays shut", func(t *testing.T) {
		t.Parallel()
		script := `CREATE ROLE rx_owner; CREATE ROLE rx_member IN ROLE rx_owner; GRANT ALL ON SCHEMA public TO rx_owner, rx_member`
		t.Cleanup(func() { dropRoles(t, from, script) })
		p := newPair(t, from, to)
		p.exec(p.secondary, `CREATE ROLE rx_owner; GRANT CREATE ON DATABASE postgres TO rx_owner`)
		p.play(script, `SET ROLE rx_owner; CREATE TABLE parent (a int); RESET ROLE`)
		p.exec(p.primary, `SET ROLE rx_member; CREATE TABLE child () INHERITS (parent); RESET ROLE`)
		if refused, ok := problem.As(p.sync()); !ok || refused.Code != "ddl-permission" {
			t.Errorf("got %v", refused)
		}
	})
}

// dropRoles drops the roles that a script created, once their objects are gone with
// the database.
func dropRoles(t *testing.T, c *testpg.Cluster, script string) {
	conn := c.Connect(t, "postgres")
	for _, piece := range strings.Split(script, "CREATE ROLE ")[1:] {
		name := strings.TrimRight(strings.Split(piece, " ")[0], ";")
		if strings.HasPrefix(piece, `"`) {
			name = `"` + strings.Split(piece[1:], `";`)[0] + `"`
		}
		if _, err := conn.Exec(context.Background(), "DROP ROLE IF EXISTS "+name); err != nil {
			t.Logf("drop role: %v", err)
		}
	}
}
