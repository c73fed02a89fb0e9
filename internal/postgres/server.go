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
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

const (
	connectTimeout = 10 * time.Second // per address, where the string has no connect_timeout
	lookupTimeout  = 3 * time.Second  // per host name: one that hangs must not keep the others waiting
)

// keepAlive ends a connection whose other side is gone after half a minute.
// TCP_USER_TIMEOUT would also cover data on its way, but it breaks a COPY into a
// table whose server does not read since it waits for a lock.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// Server is a cluster seen from outside. It is immutable and holds no connection. The
// files that its connection string names are read for each connection, as libpq does:
// passwords and certificates change under an agent that runs for years.
type Server struct {
	text     string // the connection string
	config   *pgx.ConnConfig
	settings map[string]string       // what pgconn does not tell: sslmode, sslrootcert …
	down     func() *problem.Problem // why it does not run, where the agent runs it and knows; nil: nobody knows
}

// Session says what a connection is for.
type Session struct {
	Database string            // "" means the connection string's
	Purpose  string            // shown as application_name hawser:PURPOSE
	Settings map[string]string // run-time parameters from the start on
	Ahead    int               // bytes that may be written before the server reads them; 0: as the socket takes them
}

// Open reads a libpq connection string or URL, which may name several hosts. It
// does not connect. Where nothing else is said, only a node that is not in
// recovery is taken: target_session_attrs=primary. (read-write would refuse a
// fenced database, which is read-only by default.)
func Open(connString string) (*Server, error) {
	if err := checkSecrets(connString); err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(connString)
	if err != nil {
		return nil, unreadable(reason(err))
	}
	s := &Server{text: connString, config: config, settings: settingsOf(connString)}
	if err := s.checkParts(); err != nil {
		return nil, err
	}
	if err := checkKeywords(connString); err != nil {
		return nil, err
	}
	s.complete(config)
	return s, nil
}

// complete adds what every connection needs.
func (s *Server) complete(config *pgx.ConnConfig) {
	if file := s.passwordFile(); readByOthers(file) && !givesPassword(s.text, s.settings) {
		config.Password = ""
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	if s.settings["target_session_attrs"] == "" {
		config.ValidateConnect = primaryOnly
	}
	dialer := &net.Dialer{KeepAliveConfig: keepAlive}
	config.DialFunc = dialer.DialContext
	config.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		return net.DefaultResolver.LookupHost(ctx, host)
	}
}

// fresh is the configuration with what the files say now. Where one can't be read, as
// while it is replaced, what was known before is tried.
func (s *Server) fresh() *pgx.ConnConfig {
	config, err := pgx.ParseConfig(s.text)
	if err != nil {
		return s.config.Copy()
	}
	s.complete(config)
	if config.Password == "" {
		config.Password = s.config.Password
	}
	return config
}

// primaryOnly needs no round trip: PostgreSQL 14 and later tell it unasked.
func primaryOnly(ctx context.Context, conn *pgconn.PgConn) error {
	switch conn.ParameterStatus("in_hot_standby") {
	case "off":
		return nil
	case "on":
		return pgconn.ErrStandbyConnection
	}
	return pgconn.ValidateConnectTargetSessionAttrsPrimary(ctx, conn)
}

// Database is the one that the connection string names: the maintenance database.
func (s *Server) Database() string {
	if s.config.Database == "" {
		return s.config.User
	}
	return s.config.Database
}

// String names the server without a secret: host:port, several with commas.
func (s *Server) String() string {
	nodes := s.nodes()
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = net.JoinHostPort(n.host, n.port)
	}
	return strings.Join(names, ",")
}

type node struct{ host, port string }

// nodes are the hosts in their order. With sslmode=prefer pgconn lists each twice.
func (s *Server) nodes() []node {
	nodes := []node{{s.config.Host, strconv.Itoa(int(s.config.Port))}}
	for _, f := range s.config.Fallbacks {
		if n := (node{f.Host, strconv.Itoa(int(f.Port))}); n != nodes[len(nodes)-1] {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Connect opens an ordinary session. Errors are problems with a remedy.
func (s *Server) Connect(ctx context.Context, session Session) (*pgx.Conn, error) {
	config := s.fresh()
	session.apply(&config.Config)
	if session.Ahead > 0 {
		config.DialFunc = aheadDial(config.DialFunc, session.Ahead)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, s.connectProblem(ctx, &config.Config, err)
	}
	return conn, nil
}

// ConnectReplication opens a session that can stream from a logical slot. A context
// that ends while the session is in use ends the session.
func (s *Server) ConnectReplication(ctx context.Context, session Session) (*pgconn.PgConn, error) {
	config := &s.fresh().Config
	session.apply(config)
	config.RuntimeParams["replication"] = "database"
	config.DialFunc = patientDial(config.DialFunc)
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, s.connectProblem(ctx, config, err)
	}
	return conn, nil
}

func (s Session) apply(c *pgconn.Config) {
	if s.Database != "" {
		c.Database = s.Database
	}
	maps.Copy(c.RuntimeParams, s.Settings)
	// Go's strings, whatever the role, the database or the environment want.
	c.RuntimeParams["client_encoding"] = "UTF8"
	if s.Purpose != "" {
		c.RuntimeParams["application_name"] = "hawser:" + s.Purpose
	}
}

// toolVariables are the settings that libpq's programs take from the environment
// in the same meaning as pgconn does.
var toolVariables = map[string]string{
	"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
	"sslcertmode": "PGSSLCERTMODE", "sslsni": "PGSSLSNI", "sslnegotiation": "PGSSLNEGOTIATION",
	"channel_binding": "PGCHANNELBINDING", "require_auth": "PGREQUIREAUTH", "krbsrvname": "PGKRBSRVNAME",
	"passfile": "PGPASSFILE", "options": "PGOPTIONS",
}

// Environ is what libpq's programs need in their environment to reach a database
// of the server as Connect does. It is the only way for a password to reach them:
// arguments can be seen by every user of the machine.
func (s *Server) Environ(database string) []string {
	var hosts, ports []string
	for _, n := range s.nodes() {
		hosts, ports = append(hosts, n.host), append(ports, n.port)
	}
	attrs := s.settings["target_session_attrs"]
	if attrs == "" {
		attrs = "primary"
	}
	env := []string{
		"PGHOST=" + strings.Join(hosts, ","), "PGPORT=" + strings.Join(ports, ","),
		"PGUSER=" + s.config.User, "PGDATABASE=" + database, "PGAPPNAME=hawser:tool",
		"PGCONNECT_TIMEOUT=" + strconv.Itoa(int(max(s.config.ConnectTimeout, time.Second).Seconds())),
		"PGTARGETSESSIONATTRS=" + attrs, "PGCLIENTENCODING=UTF8",
	}
	for _, key := range slices.Sorted(maps.Keys(toolVariables)) {
		if value := s.settings[key]; value != "" {
			env = append(env, toolVariables[key]+"="+value)
		}
	}
	if password := s.fresh().Password; password != "" {
		env = append(env, "PGPASSWORD="+password)
	}
	return env
}

// Info is what a server says of itself.
type Info struct {
	Version       int // as server_version_num: 150018
	VersionText   string
	SystemID      string // "" where the role may not see it; so with Timeline
	Timeline      int32
	InRecovery    bool
	User          string
	Superuser     bool
	Replication   bool // may stream: superuser, REPLICATION, or a provider's role for it
	DataDirectory string
	Settings      map[string]string // as in pg_settings.setting: in the setting's own unit
}

// Info asks the server about itself.
func (s *Server) Info(ctx context.Context) (Info, error) {
	conn, err := s.Connect(ctx, Session{Purpose: "info", Settings: map[string]string{"search_path": ""}})
	if err != nil {
		return Info{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var i Info
	err = conn.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
		       r.rolname, r.rolsuper,
		       r.rolsuper OR r.rolreplication
		       OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER'))
		FROM pg_roles r WHERE r.rolname = current_user`).
		Scan(&i.Version, &i.VersionText, &i.InRecovery, &i.User, &i.Superuser, &i.Replication)
	if err != nil {
		return Info{}, fmt.Errorf("ask server %s about itself: %w", s, err)
	}
	if i.Settings, err = settings(ctx, conn); err != nil {
		return Info{}, fmt.Errorf("read the settings of server %s: %w", s, err)
	}
	i.DataDirectory = i.Settings["data_directory"]
	// The control file's timeline is that of the last checkpoint: after a promotion
	// it is late.
	err = conn.QueryRow(ctx, `
		SELECT s.system_identifier::text,
		       CASE WHEN pg_is_in_recovery() THEN greatest(c.timeline_id, r.min_recovery_end_timeline)
		            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END
		FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r`).Scan(&i.SystemID, &i.Timeline)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "42501" {
		return i, nil
	}
	if err != nil {
		return Info{}, fmt.Errorf("read the identity of server %s: %w", s, err)
	}
	return i, nil
}

func settings(ctx context.Context, conn *pgx.Conn) (map[string]string, error) {
	rows, err := conn.Query(ctx, `SELECT name, setting FROM pg_settings WHERE setting IS NOT NULL`)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	var name, setting string
	_, err = pgx.ForEachRow(rows, []any{&name, &setting}, func() error {
		all[name] = setting
		return nil
	})
	return all, err
}

// QuoteIdent quotes the parts of a name: "a"."b".
func QuoteIdent(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// QuoteLiteral quotes a string so that it means the same whatever
// standard_conforming_strings is.
func QuoteLiteral(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}
