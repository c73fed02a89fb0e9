package schema_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hawser/hawser/internal/testpg"
)

// scripts are those of two extensions with tables of their own.
var scripts = map[string]string{
	"mine.control": "default_version = '1.0'\nschema = public\n",
	"mine--1.0.sql": `CREATE TABLE mine_config (k text PRIMARY KEY, v int); INSERT INTO mine_config VALUES ('a', 1);
		CREATE TABLE passing (a int); INSERT INTO passing VALUES (1); DROP TABLE passing; CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
	"mine--1.0--1.1.sql": `ALTER TABLE mine_config ADD w int; UPDATE mine_config SET w = 5`,
	"mine--1.1--1.2.sql": `INSERT INTO public.registry VALUES ('mine', random()); UPDATE public.registry SET at = random() WHERE what = 'before'; UPDATE mine_config SET w = 6`,
	"mine--1.2--1.3.sql": `TRUNCATE public.registry`,
	"other.control":      "default_version = '1.0'\nschema = public\n",
	"other--1.0.sql":     `CREATE TABLE other_jobs (n int, what text); SELECT pg_catalog.pg_extension_config_dump('other_jobs', '')`,
}

// TestReplayRowsOfScripts: what an extension's script writes is made by the script here
// too; what others write meanwhile is carried, or the table is copied.
func TestReplayRowsOfScripts(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "hawser-test-") // which the server's user may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "extension"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, "extension", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := testpg.StartVersion(t, testpg.Version(t, 18), map[string]string{"extension_control_path": "$system:" + dir})
	for _, s := range []struct {
		name, before, text string
		want               []string
	}{
		{"its own tables", ``, `CREATE EXTENSION mine; ALTER EXTENSION mine UPDATE TO '1.1'`, nil},
		{"an event trigger's", `CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION audit()`, `CREATE EXTENSION mine; ALTER EXTENSION mine UPDATE TO '1.1'; CREATE EXTENSION IF NOT EXISTS mine`, nil},
		{"another table of the script's", ``, `CREATE EXTENSION mine VERSION '1.2'`, []string{"public.registry"}},
		{"truncated by the script", `CREATE EXTENSION mine VERSION '1.2'`, `ALTER EXTENSION mine UPDATE TO '1.3'`, nil},
		{"another extension's", `CREATE EXTENSION other; CREATE EVENT TRIGGER jobs ON ddl_command_end EXECUTE FUNCTION job()`, `CREATE EXTENSION mine; ALTER EXTENSION mine UPDATE TO '1.1'`, []string{"public.other_jobs", "public.other_jobs"}},
		{"between the scripts", `CREATE EXTENSION other`, `BEGIN; CREATE EXTENSION mine; INSERT INTO other_jobs VALUES (1, 'a'); UPDATE mine_config SET v = 2; ALTER EXTENSION mine UPDATE TO '1.1'; UPDATE mine_config SET v = 3; COMMIT`, nil},
	} {
		t.Run(s.name, func(t *testing.T) {
			p := newPair(t, c, c)
			p.play(`CREATE TABLE audit (n serial PRIMARY KEY, what text); CREATE TABLE registry (what text, at float); ALTER TABLE registry REPLICA IDENTITY FULL; INSERT INTO registry VALUES ('before', 1)`,
				`CREATE FUNCTION audit() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.audit (what) VALUES (tg_tag); END$$`,
				`CREATE FUNCTION job() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.other_jobs VALUES (1, tg_tag); END$$`, s.before)
			p.results = nil
			p.play(s.text)
			p.exec(p.primary, `DROP EVENT TRIGGER IF EXISTS mine; DROP EVENT TRIGGER IF EXISTS jobs`) // which the sweep would carry
			got := p.reseed()
			if fmt.Sprint(got) != fmt.Sprint(s.want) {
				t.Errorf("copied again: %v, want %v", got, s.want)
			}
			var except []string
			for _, name := range slices.Compact(got) {
				except = append(except, name[len("public."):])
			}
			p.equal(except...)
		})
	}
}
