// Package postgres is a PostgreSQL cluster from outside: how to connect to it,
// what it is, and, for a managed instance, how to provision and run one.
//
// It knows nothing of links. It must never put a password into an error, a log or
// a process's arguments, and never change a cluster that it was only told to
// connect to.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

const (
	connectTimeout = 10 * time.Second
	keepAlive      = 15 * time.Second
)

// Server is a cluster seen from outside.
type Server struct {
	config *pgx.ConnConfig
}

// Session says what a connection is for.
type Session struct {
	Database string            // "" means the connection string's
	Purpose  string            // shown as application_name hawser:PURPOSE
	Settings map[string]string // run-time parameters; one with an empty value is left out
}

// Open reads a libpq connection string or URL, which may name several hosts. It
// does not connect. Where the string says nothing of it, only a node that is not
// in recovery is taken: target_session_attrs=primary. (read-write would refuse a
// fenced database, which is read-only by default.)
func Open(connString string) (*Server, error) {
	if !strings.Contains(connString, "target_session_attrs") {
		connString = withAttrs(connString)
	}
	config, err := pgx.ParseConfig(connString)
	if err != nil {
		// pgconn's ParseConfigError redacts the password.
		return nil, problem.New("bad-connection-string", "connection string", "it can't be read",
			"postgres://user@host1:5432,host2:5432/database, or host=… port=… user=… dbname=…").Because(err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	dialer := &net.Dialer{KeepAlive: keepAlive, Timeout: config.ConnectTimeout}
	config.DialFunc = dialer.DialContext
	return &Server{config: config}, nil
}

func withAttrs(s string) string {
	switch {
	case strings.Contains(s, "://") && strings.Contains(s, "?"):
		return s + "&target_session_attrs=primary"
	case strings.Contains(s, "://"):
		return s + "?target_session_attrs=primary"
	}
	return s + " target_session_attrs=primary"
}

// Database is the one that the connection string names: the maintenance database.
func (s *Server) Database() string {
	if s.config.Database == "" {
		return s.config.User
	}
	return s.config.Database
}

// String names the server without a secret.
func (s *Server) String() string {
	out := address(s.config.Host, s.config.Port)
	for _, f := range s.config.Fallbacks {
		if a := address(f.Host, f.Port); !strings.HasSuffix(out, a) {
			out += "," + a
		}
	}
	return out
}

func address(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// Connect opens an ordinary session. Errors are problems with a remedy.
func (s *Server) Connect(ctx context.Context, session Session) (*pgx.Conn, error) {
	config := s.config.Copy()
	session.apply(&config.Config)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, s.connectProblem(session, err)
	}
	return conn, nil
}

// ConnectReplication opens a session that can stream from a logical slot.
func (s *Server) ConnectReplication(ctx context.Context, session Session) (*pgconn.PgConn, error) {
	config := s.config.Config.Copy()
	session.apply(config)
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, s.connectProblem(session, err)
	}
	return conn, nil
}

func (s Session) apply(c *pgconn.Config) {
	if s.Database != "" {
		c.Database = s.Database
	}
	for k, v := range s.Settings {
		if v != "" || k == "search_path" {
			c.RuntimeParams[k] = v
		}
	}
	if s.Purpose != "" {
		c.RuntimeParams["application_name"] = "hawser:" + s.Purpose
	}
}

// Environ is the environment that lets libpq's programs reach a database of the
// server. The password travels in it alone.
func (s *Server) Environ(database string) []string {
	hosts, ports := []string{s.config.Host}, []string{strconv.Itoa(int(s.config.Port))}
	for _, f := range s.config.Fallbacks {
		if f.Host == hosts[len(hosts)-1] && strconv.Itoa(int(f.Port)) == ports[len(ports)-1] {
			continue // the same node with and without TLS
		}
		hosts, ports = append(hosts, f.Host), append(ports, strconv.Itoa(int(f.Port)))
	}
	env := []string{
		"PGHOST=" + strings.Join(hosts, ","), "PGPORT=" + strings.Join(ports, ","),
		"PGUSER=" + s.config.User, "PGDATABASE=" + database,
		"PGCONNECT_TIMEOUT=" + strconv.Itoa(int(connectTimeout.Seconds())), "PGTARGETSESSIONATTRS=any",
		"PGAPPNAME=hawser:tool",
	}
	if len(hosts) > 1 {
		env = append(env, "PGTARGETSESSIONATTRS=primary")
	}
	if s.config.Password != "" {
		env = append(env, "PGPASSWORD="+s.config.Password)
	}
	if s.config.TLSConfig != nil && len(s.config.Fallbacks) == 0 {
		env = append(env, "PGSSLMODE=require")
	}
	return env
}

// Info is what a server says of itself.
type Info struct {
	Version       int // as server_version_num: 150018
	VersionText   string
	SystemID      string
	Timeline      int32
	InRecovery    bool
	User          string
	Superuser     bool
	Replication   bool
	DataDirectory string
	Settings      map[string]string
}

// Info asks the server about itself.
func (s *Server) Info(ctx context.Context) (Info, error) {
	conn, err := s.Connect(ctx, Session{Purpose: "info"})
	if err != nil {
		return Info{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	i := Info{Settings: map[string]string{}}
	err = conn.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
		       r.rolname, r.rolsuper, r.rolreplication
		FROM pg_roles r WHERE r.rolname = current_user`).
		Scan(&i.Version, &i.VersionText, &i.InRecovery, &i.User, &i.Superuser, &i.Replication)
	if err != nil {
		return Info{}, fmt.Errorf("ask server %s about itself: %w", s, err)
	}
	rows, err := conn.Query(ctx, `SELECT name, setting FROM pg_settings`)
	if err != nil {
		return Info{}, fmt.Errorf("read the settings of server %s: %w", s, err)
	}
	var name, setting string
	if _, err = pgx.ForEachRow(rows, []any{&name, &setting}, func() error { i.Settings[name] = setting; return nil }); err != nil {
		return Info{}, fmt.Errorf("read the settings of server %s: %w", s, err)
	}
	i.DataDirectory = i.Settings["data_directory"]
	if !i.Superuser {
		return i, nil // what follows needs privileges that need not be there
	}
	err = conn.QueryRow(ctx, `SELECT system_identifier::text, timeline_id FROM pg_control_system(), pg_control_checkpoint()`).Scan(&i.SystemID, &i.Timeline)
	if err != nil {
		return Info{}, fmt.Errorf("read the identity of server %s: %w", s, err)
	}
	return i, nil
}

// QuoteIdent quotes the parts of a name: "a"."b".
func QuoteIdent(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// connectProblem names cause and remedy of a connection that could not be made.
// The driver's text never holds the password.
func (s *Server) connectProblem(session Session, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return s.refused(session, pg, err)
	}
	object := "server " + s.String()
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return problem.New("host-unknown", object, "the host name "+dns.Name+" can't be resolved",
			"mend the name in the connection string, or DNS: getent hosts "+dns.Name).Retry().Because(err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return problem.New("server-timeout", object, "it did not answer in time",
			"see that it runs and that no firewall is between: pg_isready -h HOST -p PORT").Retry().Because(err)
	}
	return problem.New("server-unreachable", object, "no connection could be made",
		"see that it runs and listens there: pg_isready -h HOST -p PORT").Retry().Because(err)
}

func (s *Server) refused(session Session, pg *pgconn.PgError, err error) error {
	object := "server " + s.String()
	user, database := QuoteIdent(s.config.User), session.Database
	if database == "" {
		database = s.Database()
	}
	switch pg.Code {
	case "28P01":
		return problem.New("password-wrong", object, "it refused the password of role "+user,
			"put the right one into the connection string or the password file").Because(err)
	case "28000":
		return problem.New("not-admitted", object, "it does not admit role "+user+" from here",
			"add a line to pg_hba.conf: hostssl all "+s.config.User+" ADDRESS scram-sha-256; then SELECT pg_reload_conf();").Because(err)
	case "3D000":
		return problem.New("no-such-database", "database "+QuoteIdent(database), "server "+s.String()+" has no database of this name",
			"name one of those that psql --list shows").Because(err)
	case "53300":
		return problem.New("too-many-connections", object, "all its connections are taken",
			"close some, or ALTER SYSTEM SET max_connections = …; and restart PostgreSQL").Retry().Because(err)
	case "57P01", "57P02", "57P03", "57P05", "08006", "08004", "58000":
		return problem.New("server-not-ready", object, "it starts, stops or recovers", "none: Hawser connects again").Retry().Because(err)
	}
	return problem.New("connection-refused", object, "it refused the connection", "mend what the server names").Because(err)
}
