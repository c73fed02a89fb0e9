package postgres_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// TestEncoding: Go's strings are UTF-8, and so is every session, also where the
// database, the role, the string or PGOPTIONS say otherwise. (pgx sends none.)
func TestEncoding(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	role, db := "latin_"+fmt.Sprint(os.Getpid()), "latin1_"+fmt.Sprint(os.Getpid())
	c.Exec(t, "postgres", "CREATE ROLE "+role+" LOGIN REPLICATION", "ALTER ROLE "+role+" SET client_encoding = 'LATIN1'",
		"CREATE DATABASE "+db+" ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'", "ALTER DATABASE "+db+" SET client_encoding = 'LATIN9'")
	t.Cleanup(func() {
		if err := c.DropDatabase(db); err != nil {
			t.Error(err)
		}
		c.Exec(t, "postgres", "DROP ROLE "+role)
	})
	s := open(t, fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=%s sslmode=disable client_encoding=LATIN2 options='-c client_encoding=LATIN5'", c.Port(), role, db))
	ctx := t.Context()

	conn, err := s.Connect(ctx, postgres.Session{Settings: map[string]string{"client_encoding": "LATIN1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if got := testpg.Rows(t, conn, `SELECT current_setting('client_encoding'), 'ü', length('ü'), convert_to('ü', 'UTF8')`); got[0] != `UTF8|ü|1|\xc3bc` {
		t.Errorf("an ordinary session: %s", got)
	}
	stream, err := s.ConnectReplication(ctx, postgres.Session{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close(ctx)
	if got := stream.ParameterStatus("client_encoding"); got != "UTF8" {
		t.Errorf("a replication session has client_encoding %s", got)
	}
	psql, err := postgres.Tool("psql", 14)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, psql, "-XAtc", `SHOW client_encoding`)
	cmd.Env = append([]string{"PGCLIENTENCODING=LATIN1"}, s.Environ(db)...)
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "UTF8" {
		t.Errorf("psql has client_encoding %s (%v)", out, err)
	}
}

func TestSession(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	conn, err := c.Server().Connect(t.Context(), postgres.Session{Database: db, Purpose: "look", Settings: map[string]string{"work_mem": "123kB"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	want := db + "|hawser:look|123kB"
	if got := testpg.Rows(t, conn, `SELECT current_database(), current_setting('application_name'), current_setting('work_mem')`); got[0] != want {
		t.Errorf("session %s, want %s", got[0], want)
	}
	// One session's settings are not the next one's.
	other := c.Connect(t, "postgres")
	if got := testpg.Rows(t, other, `SELECT current_setting('work_mem')`); got[0] == "123kB" {
		t.Error("the settings of a session stay with the server")
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	pid := fmt.Sprint(os.Getpid())
	c.Exec(t, "postgres", `CREATE ROLE "My Role `+pid+`" LOGIN`, `CREATE ROLE streamer_`+pid+` LOGIN REPLICATION`)
	t.Cleanup(func() { c.Exec(t, "postgres", `DROP ROLE "My Role `+pid+`"`, `DROP ROLE streamer_`+pid) })
	conn := c.Connect(t, "postgres")
	want := testpg.Rows(t, conn, `SELECT current_setting('server_version_num'), system_identifier, current_setting('data_directory') FROM pg_control_system()`)[0]
	for role, c := range map[string]struct {
		server                 *postgres.Server
		superuser, replication bool
	}{
		"postgres":        {c.Server(), true, true},
		"My Role " + pid:  {open(t, fmt.Sprintf("host=127.0.0.1 port=%d user='My Role %s' dbname=postgres sslmode=disable", c.Port(), pid)), false, false},
		"streamer_" + pid: {open(t, fmt.Sprintf("host=127.0.0.1 port=%d user=streamer_%s dbname=postgres sslmode=disable", c.Port(), pid)), false, true},
	} {
		i, err := c.server.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i.User != role || i.Superuser != c.superuser || i.Replication != c.replication || i.InRecovery || i.Settings["wal_level"] != "logical" || i.VersionText == "" {
			t.Errorf("%s: %+v", role, i)
		}
		if i.SystemID == "" || i.Timeline != 1 {
			t.Errorf("%s: system identifier %q, timeline %d: every role may see them", role, i.SystemID, i.Timeline)
		}
		if role == "postgres" {
			if got := fmt.Sprintf("%d|%s|%s", i.Version, i.SystemID, i.DataDirectory); got != want {
				t.Errorf("info %s, want %s", got, want)
			}
		} else if i.DataDirectory != "" {
			t.Errorf("%s is told the data directory %s, which PostgreSQL does not show it", role, i.DataDirectory)
		}
	}
}

// TestInfoWithoutIdentity: where the functions of pg_control are closed, the rest
// is told all the same.
func TestInfoWithoutIdentity(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	role := "blind_" + fmt.Sprint(os.Getpid())
	db := c.CreateDatabase(t)
	c.Exec(t, db, "CREATE ROLE "+role+" LOGIN", "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
	t.Cleanup(func() { c.Exec(t, "postgres", "DROP ROLE "+role) })
	i, err := open(t, fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=%s sslmode=disable", c.Port(), role, db)).Info(t.Context())
	if err != nil || i.SystemID != "" || i.Timeline != 0 || i.User != role {
		t.Errorf("info %+v, %v", i, err)
	}
}

// TestTool: the newest program is taken that is as new as the server; pg_dump
// refuses a newer server.
func TestTool(t *testing.T) {
	dir := t.TempDir()
	for _, major := range []string{"14", "15", "16", "17"} {
		program(t, dir+"/"+major, "pg_dump", "pg_dump (PostgreSQL) "+major+".3 (Debian "+major+".3-1)")
	}
	program(t, dir+"/beta", "pg_dump", "pg_dump (PostgreSQL) 99beta1")
	program(t, dir+"/stranger", "pg_dump", "my own program 99.9")
	notRunnable := program(t, dir+"/text", "pg_dump", "pg_dump (PostgreSQL) 77.0")
	if err := os.Chmod(notRunnable, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dirs  []string
		major int
		want  string // "" is the system's
	}{
		"newest that fits":     {[]string{"14", "17", "16"}, 15, "17"},
		"exactly as new":       {[]string{"14", "15"}, 15, "15"},
		"beta":                 {[]string{"17", "beta"}, 18, "beta"},
		"no program at all":    {[]string{"text", "stranger", "missing", "16"}, 14, "16"},
		"too old: the usual":   {[]string{"14"}, 15, ""},
		"relative: not looked": {nil, 15, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var path []string
			for _, d := range c.dirs {
				path = append(path, dir+"/"+d)
			}
			if path == nil {
				t.Chdir(dir)
				path = []string{"17", "./17"}
			}
			t.Setenv("HAWSER_PG_BIN", strings.Join(path, ":"))
			got, err := postgres.Tool("pg_dump", c.major)
			if err != nil {
				t.Fatal(err)
			}
			if c.want != "" && got != dir+"/"+c.want+"/pg_dump" || c.want == "" && strings.HasPrefix(got, dir) {
				t.Errorf("took %s, want that of %q", got, c.want)
			}
		})
	}
	_, err := postgres.Tool("pg_dump", 98)
	wantProblem(t, err, "tool-missing", "apt-get install postgresql", false)
	_, err = postgres.Tool("no-such-program", 14)
	wantProblem(t, err, "tool-missing", "HAWSER_PG_BIN", false)
}

// program writes one that tells a version.
func program(t *testing.T, dir, name, says string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/"+name, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir + "/" + name
}

func TestQuoteIdent(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	conn := c.Connect(t, c.CreateDatabase(t))
	for _, name := range []string{`My Table`, `a"b`, `a.b`, `Ünï`, `select`, strings.Repeat("x", 63)} {
		q := postgres.QuoteIdent(name)
		if _, err := conn.Exec(t.Context(), "CREATE SCHEMA "+q+"; CREATE TABLE "+postgres.QuoteIdent(name, name)+" ()"); err != nil {
			t.Errorf("%s: %v", q, err)
		}
		if got := testpg.Rows(t, conn, `SELECT schemaname FROM pg_tables WHERE tablename = $1`, name); !slices.Equal(got, []string{name}) {
			t.Errorf("%s made %q", q, got)
		}
	}
}
