package postgres_test

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/postgres"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, server, database string }{
		"key=value":             {`host=a port=5433 user=u password='p q' dbname=d`, "a:5433", "d"},
		"several hosts":         {`host=a,b,c port=1,2,3 dbname=d`, "a:1,b:2,c:3", "d"},
		"one port for all":      {`host=a,b port=6000 dbname=d`, "a:6000,b:6000", "d"},
		"default port":          {`host=a dbname=d`, "a:5432", "d"},
		"every host once":       {`host=a,b sslmode=prefer dbname=d`, "a:5432,b:5432", "d"},
		"URL":                   {`postgresql://u:p%40ss@a:5433/d`, "a:5433", "d"},
		"URL, short scheme":     {`postgres://u@a/d`, "a:5432", "d"},
		"URL of several hosts":  {`postgresql://u:p@a:1,b:2/d?sslmode=require`, "a:1,b:2", "d"},
		"URL, IPv6":             {`postgresql://u@[::1]:5433/d`, "[::1]:5433", "d"},
		"socket":                {`host=/var/run/x dbname=d`, "/var/run/x:5432", "d"},
		"socket in a URL":       {`postgresql:///d?host=/var/run/x&port=7`, "/var/run/x:7", "d"},
		"database of the role":  {`host=a user=u`, "a:5432", "u"},
		"strange database":      {`host=a dbname='My "D" \'1\' \\ ü'`, "a:5432", `My "D" '1' \ ü`},
		"encoded in a URL":      {`postgresql://u:%2F%3F%23@a/My%20D`, "a:5432", "My D"},
		"spaces around =":       {"  host = a\n dbname\t=\td ", "a:5432", "d"},
		"password like a URL":   {`host=a password=postgres://x:y@z/w dbname=d`, "a:5432", "d"},
		"password with an @, =": {`host=a password='a@b=c' dbname=d`, "a:5432", "d"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := postgres.Open(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if s.String() != c.server || s.Database() != c.database {
				t.Errorf("server %s, database %q; want %s, %q", s, s.Database(), c.server, c.database)
			}
		})
	}
}

// secret is a password that no error may hold, nor a part of it.
const secret = "hunter2"

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, cause string }{
		"not a string of pairs":     {`hunter2`, "keyword/value"},
		"open quote":                {`host=a password='hunter2`, "keyword/value"},
		"bad escape in a URL":       {`postgresql://u:hunter2%zz@a/d`, "URL"},
		"bad port":                  {`postgresql://u:x@a:hunter2/d`, ""},
		"port out of range":         {`host=a port=70000 password=hunter2`, "port"},
		"more ports than hosts":     {`host=a port=1,2,3 password=hunter2`, "port"},
		"bad sslmode":               {`host=a sslmode=maybe password=hunter2`, "TLS"},
		"no such certificate":       {`host=a sslmode=verify-full sslrootcert=/nonexistent/ca.pem password=hunter2`, "/nonexistent/ca.pem"},
		"no such service":           {`service=nowhere servicefile=/nonexistent/services password=hunter2`, "/nonexistent/services"},
		"bad target_session_attrs":  {`host=a target_session_attrs=boss password=hunter2`, "target_session_attrs"},
		"bad connect_timeout":       {`host=a connect_timeout=hunter2`, "connect_timeout"},
		"@ in a URL's password":     {`postgresql://u:x@hunter2@a/d`, "%40"},
		"/ in a URL's password":     {`postgresql://u:x/hunter2@a/d`, "%2F"},
		"? in a URL's password":     {`postgresql://u:1?hunter2@a/d`, "%3F"},
		"# in a URL's password":     {`postgresql://u:1#hunter2@a/d`, "%23"},
		"digits before a /":         {`postgresql://u:1/hunter2@a:5432/d`, "%2F"},
		"a URL as the database":     {`host=a dbname=postgresql://u:hunter2@b/d`, "URL"},
		"another scheme":            {`mysql://u:hunter2@a/d?x=y`, ""},
		"a misspelt keyword":        {`host=a prt=17432 password=hunter2`, "did you mean port?"},
		"a misspelt URL parameter":  {`postgresql://u:hunter2@a/d?sslmod=require`, "did you mean sslmode?"},
		"a server's setting":        {`host=a work_mem=hunter2`, "options='-c NAME=VALUE'"},
		"a space in the host":       {`host='a hunter2'`, "host"},
		"control characters inside": {"postgresql://u:hunter2\x00@a/d", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := postgres.Open(c.in)
			p := wantProblem(t, err, "bad-connection-string", "postgresql://USER@HOST", false)
			if !strings.Contains(p.Cause, c.cause) {
				t.Errorf("cause %q does not name %q", p.Cause, c.cause)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error holds the password: %v", err)
			}
		})
	}
}

// FuzzOpen looks for a connection string whose password comes out again: in an
// error, or in a Server's name. It builds strings around a password, well-formed
// and not, and takes any string as it is.
func FuzzOpen(f *testing.F) {
	for _, s := range []string{
		"", "p@ss", "a/b", "a?b=c", "a#b", "x y", `q'uo\te`, "%", "%41", "a:b", "üñ", "postgres://a:b@c/d", "1/2@3", "a&b=c", ",", "[::1]", "@", "a b=c", "=", "\x00", "\n",
	} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, around, raw string) {
		const mark = "S3kr1tS3kr1t"
		password := around + mark + around
		keyword := "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password) + "'"
		for _, s := range []string{
			"host=a user=u password=" + keyword + " dbname=d",
			"host=a password=" + keyword + raw,
			"password=" + password + " host=a",
			(&url.URL{Scheme: "postgresql", User: url.UserPassword("u", password), Host: "a:5433", Path: "/d"}).String(),
			"postgresql://u:" + password + "@a:5433/d",
			"postgres://u:" + password + "@a,b/d?sslmode=require",
			"postgresql://a/d?password=" + url.QueryEscape(password),
			raw,
		} {
			server, err := postgres.Open(s)
			if err != nil {
				wantProblem(t, err, "bad-connection-string", "postgresql://", false)
				if strings.Contains(err.Error(), mark) && !strings.Contains(raw, mark) {
					t.Errorf("Open(%q) tells the password: %v", s, err)
				}
				continue
			}
			if strings.Contains(server.String(), mark) && !strings.Contains(raw, mark) {
				t.Errorf("Open(%q) is named by its password: %s", s, server)
			}
			sameSettings(t, s, server)
		}
	})
}

// sameSettings holds our reading of a string against pgconn's: a tool that is led
// elsewhere than Connect, or with less safety, would be worse than an error.
func sameSettings(t *testing.T, s string, server *postgres.Server) {
	config, err := pgx.ParseConfig(s)
	if err != nil {
		t.Fatalf("Open took %q, which pgconn refuses: %v", s, err)
	}
	env := server.Environ("d")
	if config.Password != "" && !slices.Contains(env, "PGPASSWORD="+config.Password) {
		t.Errorf("%q: the tools get another password", s)
	}
	if o := config.RuntimeParams["options"]; o != "" && !slices.Contains(env, "PGOPTIONS="+o) {
		t.Errorf("%q: the tools get other options than %q: %q", s, o, env)
	}
	tools, err := pgconn.ParseConfig("host=" + config.Host + " sslmode=" + sslMode(env))
	if err == nil && (tools.TLSConfig == nil) != (config.TLSConfig == nil) {
		t.Errorf("%q: the tools use TLS otherwise than Connect: %q", s, env)
	}
}

func sslMode(env []string) string {
	for _, v := range env {
		if mode, ok := strings.CutPrefix(v, "PGSSLMODE="); ok {
			return mode
		}
	}
	return "prefer"
}

// TestEnviron: a tool is led where Connect goes, with all that makes it safe.
func TestEnviron(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := filepath.Join(dir, "my ca.pem")
	_, _, certificate := selfSigned(t, "localhost")
	if err := os.WriteFile(root, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	services := filepath.Join(dir, "services")
	if err := os.WriteFile(services, []byte("[far]\nhost=a,b\nsslmode=verify-ca\nsslrootcert="+root+"\nuser=u\npassword=pw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"verify-full": {"host=a sslmode=verify-full sslrootcert='" + root + "' user=u password='p w'",
			[]string{"PGHOST=a", "PGPORT=5432", "PGSSLMODE=verify-full", "PGSSLROOTCERT=" + root, "PGUSER=u", "PGPASSWORD=p w", "PGTARGETSESSIONATTRS=primary"}},
		"URL": {"postgresql://u:p%20w@a:1,b:2/d?sslmode=verify-full&sslrootcert=" + url.PathEscape(root) + "&target_session_attrs=any&options=-c%20jit%3Doff",
			[]string{"PGHOST=a,b", "PGPORT=1,2", "PGSSLMODE=verify-full", "PGSSLROOTCERT=" + root, "PGPASSWORD=p w", "PGTARGETSESSIONATTRS=any", "PGOPTIONS=-c jit=off"}},
		"service": {"service=far servicefile='" + services + "' port=9",
			[]string{"PGHOST=a,b", "PGPORT=9,9", "PGSSLMODE=verify-ca", "PGSSLROOTCERT=" + root, "PGUSER=u", "PGPASSWORD=pw"}},
		"always": {"host=a connect_timeout=3 client_encoding=LATIN1",
			[]string{"PGDATABASE=x y", "PGCONNECT_TIMEOUT=3", "PGCLIENTENCODING=UTF8"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := open(t, c.in).Environ("x y")
			for _, want := range c.want {
				if !slices.Contains(got, want) {
					t.Errorf("no %s in %q", want, got)
				}
			}
		})
	}
}
