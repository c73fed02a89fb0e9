package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

const strictHBA = `local   all         all                               peer map=hawser
host    all         postgres,limited,"Closed Out" 127.0.0.1/32 trust
host    all         by_password       127.0.0.1/32   scram-sha-256
hostssl all         tls_only          127.0.0.1/32   trust
hostssl all         by_certificate    127.0.0.1/32   cert
host    all         crowd,nobody_here 127.0.0.1/32   trust
host    replication postgres          127.0.0.1/32   trust
`

// strict is a cluster that refuses in every way, with TLS and a certificate for
// localhost, whose authority's file it returns.
func strict(t *testing.T) (c *testpg.Cluster, root string) {
	t.Helper()
	c = testpg.Start(t, map[string]string{"max_connections": "8", "max_wal_senders": "1", "max_replication_slots": "1", "autovacuum": "off"})
	dir := filepath.Dir(c.DataDir())
	_, key, cert := selfSigned(t, "localhost")
	write(t, filepath.Join(dir, "pg_hba.conf"), []byte(strictHBA), 0o644)
	write(t, filepath.Join(dir, "server.key"), key, 0o600)
	write(t, filepath.Join(dir, "server.crt"), cert, 0o644)
	giveToPostgres(t, filepath.Join(dir, "server.key"))
	for _, sql := range []string{
		"ALTER SYSTEM SET ssl_key_file = '" + dir + "/server.key'", "ALTER SYSTEM SET ssl_cert_file = '" + dir + "/server.crt'",
		"ALTER SYSTEM SET ssl_ca_file = '" + dir + "/server.crt'", "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()",
		"CREATE ROLE by_password LOGIN PASSWORD 'right'", "CREATE ROLE tls_only LOGIN", "CREATE ROLE by_certificate LOGIN", "CREATE ROLE crowd LOGIN",
		"CREATE ROLE stranger LOGIN", "CREATE ROLE limited LOGIN CONNECTION LIMIT 0", `CREATE ROLE "Closed Out" LOGIN`,
		`CREATE DATABASE "My DB"`, `REVOKE CONNECT ON DATABASE "My DB" FROM public`,
		"CREATE DATABASE narrow CONNECTION LIMIT 0", "CREATE DATABASE shut ALLOW_CONNECTIONS false",
	} {
		c.Exec(t, "postgres", sql)
	}
	testpg.Eventually(t, within, "the server speaks TLS", func() (bool, error) {
		conn, err := open(t, fmt.Sprintf("host=127.0.0.1 port=%d user=tls_only dbname=postgres sslmode=require", c.Port())).Connect(t.Context(), postgres.Session{})
		if err != nil {
			return false, err
		}
		return true, conn.Close(t.Context())
	})
	return c, filepath.Join(dir, "server.crt")
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// giveToPostgres makes a file that of the user whom testpg's servers run as.
func giveToPostgres(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Lchown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

// TestConnectProblems: each way in which a server says no has its code and the
// statement that mends it, and no error holds the password.
func TestConnectProblems(t *testing.T) {
	t.Parallel()
	c, root := strict(t)
	_, _, other := selfSigned(t, "localhost")
	stranger := filepath.Join(t.TempDir(), "ca.pem")
	write(t, stranger, other, 0o600)
	closed, silent, rude := closedPort(t), listen(t, hold), listen(t, hangUp)
	at := fmt.Sprintf("host=127.0.0.1 port=%d password=hunter2 dbname=postgres ", c.Port())
	localhost := strings.Replace(at, "127.0.0.1", "localhost", 1)
	for name, p := range map[string]struct {
		in, code, remedy string
		retry            bool
	}{
		"refused port":                 {fmt.Sprintf("host=127.0.0.1 port=%d password=hunter2", closed), "server-unreachable", fmt.Sprintf("pg_isready -h 127.0.0.1 -p %d", closed), true},
		"no socket":                    {"host=/nonexistent password=hunter2", "server-unreachable", "pg_isready -h /nonexistent", true},
		"unknown host":                 {"host=no-such-host.invalid password=hunter2", "host-unknown", "getent hosts no-such-host.invalid", true},
		"silent":                       {fmt.Sprintf("host=127.0.0.1 port=%d sslmode=disable connect_timeout=1 password=hunter2", silent), "server-timeout", "pg_isready", true},
		"no PostgreSQL":                {fmt.Sprintf("host=127.0.0.1 port=%d password=hunter2", rude), "server-unreachable", "pg_isready", true},
		"wrong password":               {at + "user=by_password", "password-wrong", `ALTER ROLE "by_password" LOGIN PASSWORD`, false},
		"wrong password behind a dead": {fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=by_password password=hunter2 dbname=postgres", closed, c.Port()), "password-wrong", "PASSWORD", false},
		"no password":                  {strings.Replace(at, "password=hunter2", "passfile=/nonexistent/pass", 1) + "user=by_password", "password-missing", fmt.Sprintf("127.0.0.1:%d:*:by_password:PASSWORD", c.Port()), false},
		"no such role":                 {at + "user=nobody_here", "no-such-role", `CREATE ROLE "nobody_here" SUPERUSER LOGIN`, false},
		"no such database":             {at + `user=postgres dbname='No "DB"'`, "no-such-database", `CREATE DATABASE "No ""DB"""`, false},
		"database shut":                {at + "user=postgres dbname=shut", "database-closed", `ALTER DATABASE "shut" ALLOW_CONNECTIONS true`, false},
		"no right to connect":          {at + `user='Closed Out' dbname='My DB'`, "no-connect-privilege", `GRANT CONNECT ON DATABASE "My DB" TO "Closed Out"`, false},
		"database's limit":             {at + `user='Closed Out' dbname=narrow`, "too-many-connections", `ALTER DATABASE "narrow" CONNECTION LIMIT -1`, true},
		"role's limit":                 {at + "user=limited", "too-many-connections", `ALTER ROLE "limited" CONNECTION LIMIT -1`, true},
		"not in pg_hba.conf":           {at + "user=stranger sslmode=require", "not-admitted", `host "postgres" "stranger"`, false},
		"TLS required":                 {at + "user=tls_only sslmode=disable", "not-admitted", "sslmode=require", false},
		"TLS not spoken":               {testpg.Shared(t).DSN("postgres") + " sslmode=require password=hunter2", "server-without-tls", "ssl = on", false},
		"certificate of another":       {localhost + "user=postgres sslmode=verify-full sslrootcert=" + stranger, "server-certificate", "sslrootcert", false},
		"certificate's host":           {at + "user=postgres sslmode=verify-full sslrootcert=" + root, "server-certificate", "host", false},
		"client's certificate":         {at + "user=by_certificate sslmode=require", "not-admitted", "sslcert=FILE", false},
		"peer":                         {fmt.Sprintf("host=%s/socket port=%d user=stranger dbname=postgres password=hunter2", filepath.Dir(c.DataDir()), c.Port()), "authentication-failed", "belongs to this user", false},
		"unknown parameter":            {at + "user=postgres options='-c shared_bufers=1'", "connection-refused", "remove the parameter", false},
		"a primary, not a standby":     {at + "user=postgres target_session_attrs=standby", "no-standby", "target_session_attrs", true},
		"read-write, not read-only":    {at + "user=postgres target_session_attrs=read-only", "server-read-write", "target_session_attrs", true},
		"read-only, not read-write":    {at + "user=postgres target_session_attrs=read-write options='-c default_transaction_read_only=on'", "server-read-only", "target_session_attrs", true},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := open(t, p.in).Connect(t.Context(), postgres.Session{})
			if err == nil {
				_ = conn.Close(t.Context())
			}
			wantProblem(t, err, p.code, p.remedy, p.retry)
			if text := fmt.Sprint(errors.Unwrap(err)); strings.Contains(text, "SQLSTATE") && !strings.Contains(strings.Split(text, "; ")[0], "SQLSTATE") {
				t.Errorf("the text does not begin with the server's words: %s", text)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), secret) {
				t.Errorf("the error holds the password: %#v", err)
			}
		})
	}
	t.Run("no TLS, and a wrong database", func(t *testing.T) { // sslmode=prefer tries both ways
		_, err := open(t, testpg.Shared(t).DSN("absent")+" sslmode=prefer").Connect(t.Context(), postgres.Session{})
		if wantProblem(t, err, "no-such-database", "absent", false); strings.Contains(err.Error(), "tls") {
			t.Error(err)
		}
	})
	t.Run("verified", func(t *testing.T) {
		conn, err := open(t, localhost+"user=postgres sslmode=verify-full sslrootcert="+root).Connect(t.Context(), postgres.Session{})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if got := testpg.Rows(t, conn, `SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`); got[0] != "t" {
			t.Error("the session is not encrypted")
		}
	})
	t.Run("replication", func(t *testing.T) {
		_, err := open(t, at+"user=crowd").ConnectReplication(t.Context(), postgres.Session{})
		wantProblem(t, err, "no-replication-privilege", `ALTER ROLE "crowd" REPLICATION`, false)
		first, err := open(t, at+"user=postgres").ConnectReplication(t.Context(), postgres.Session{})
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close(t.Context())
		_, err = open(t, at+"user=postgres").ConnectReplication(t.Context(), postgres.Session{})
		wantProblem(t, err, "too-many-connections", "max_wal_senders", true)
	})
	t.Run("too many", func(t *testing.T) {
		var err error
		for range 9 {
			var conn *pgx.Conn
			if conn, err = open(t, at+"user=crowd").Connect(t.Context(), postgres.Session{}); err != nil {
				break
			}
			defer conn.Close(t.Context())
		}
		wantProblem(t, err, "too-many-connections", "max_connections", true)
	})
	t.Run("given up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := open(t, at+"user=postgres").Connect(ctx, postgres.Session{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that the caller gave up", err)
		}
	})
}

// TestStandby: the primary of a group is found wherever it stands in the string,
// and standbys alone are not taken for one.
func TestStandby(t *testing.T) {
	t.Parallel()
	primary, standby := testpg.Shared(t), testpg.Start(t, nil)
	standby.Stop(t)
	signal := filepath.Join(standby.DataDir(), "standby.signal")
	write(t, signal, nil, 0o600)
	giveToPostgres(t, signal)
	standby.Start(t)

	group := fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres dbname=postgres", standby.Port(), primary.Port())
	info, err := open(t, group).Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.InRecovery {
		t.Error("a standby was taken for the primary")
	}
	_, err = standby.Server().Info(t.Context())
	wantProblem(t, err, "no-primary", "host=NODE1,NODE2", true)
	info, err = open(t, group+" target_session_attrs=standby").Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !info.InRecovery || info.Timeline != 1 || info.SystemID == "" {
		t.Errorf("a standby says %+v", info)
	}
}

func closedPort(t *testing.T) int {
	t.Helper()
	port, err := testpg.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func hold(net.Conn)        {}
func hangUp(conn net.Conn) { _ = conn.Close() }

// listen is a program on a port that does something else with its visitors than
// PostgreSQL.
func listen(t *testing.T, do func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			do(conn)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		testpg.Await(t, "the listener ends", done)
	})
	return l.Addr().(*net.TCPAddr).Port
}
