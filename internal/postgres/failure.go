package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// connectProblem names cause and remedy of a connection that could not be made.
func (s *Server) connectProblem(ctx context.Context, config *pgconn.Config, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("connect to server %s: %w", s, ctx.Err())
	}
	err = attemptsOf(err)
	// What a server said weighs more than the silence of another.
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return (&refusal{server: s, config: config, pg: pg}).problem().Because(err)
	}
	if p := s.wrongNode(err); p != nil {
		return p.Because(err)
	}
	if s.down != nil {
		if p := s.down(); p != nil {
			return p.Retry()
		}
	}
	return s.unreached(err).Because(err)
}

// wrongNode is about servers that answered and are not the one asked for.
func (s *Server) wrongNode(err error) *problem.Problem {
	object := "server " + s.String()
	switch {
	case errors.Is(err, pgconn.ErrStandbyConnection):
		return problem.New("no-primary", object, "none of the nodes that answer is the primary: all are in recovery",
			"host=NODE1,NODE2").Advise("name every node of the group in the connection string").Retry()
	case errors.Is(err, pgconn.ErrPrimaryConnection):
		return problem.New("no-standby", object, "no standby answers, and the connection string asks for one",
			"").Advise("leave target_session_attrs out of the connection string").Retry()
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return problem.New("server-read-only", object, "its sessions are read-only, which is so on a standby and in a fenced database",
			"").Advise("leave target_session_attrs out of the connection string").Retry()
	case errors.Is(err, pgconn.ErrReadWriteConnection):
		return problem.New("server-read-write", object, "its sessions are read-write, and the connection string asks for a read-only one",
			"").Advise("leave target_session_attrs out of the connection string").Retry()
	}
	return nil
}

// unreached is about servers that did not come as far as an answer.
func (s *Server) unreached(err error) *problem.Problem {
	object, first := "server "+s.String(), s.nodes()[0]
	look := fmt.Sprintf("pg_isready -h %s -p %s", first.host, first.port)
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dns):
		return problem.New("host-unknown", object, "the host name "+dns.Name+" can't be resolved",
			"getent hosts "+problem.Word(dns.Name)).Advise("mend DNS, or the name in the connection string").Retry()
	case errors.As(err, &certificate):
		return problem.New("server-certificate", object, "its certificate is not one that sslmode and sslrootcert accept",
			"sslrootcert=FILE").Advise("name the certificate of the authority that signed it in the connection string, and the host as the certificate does")
	case strings.Contains(err.Error(), withoutTLS): // pgconn has no type for it
		return problem.New("server-without-tls", object, "it does not speak TLS, and the connection string asks for it",
			"ALTER SYSTEM SET ssl = on;").Advise("with a certificate in its data directory; or sslmode=prefer in the connection string, where the network is trusted")
	case pgconn.Timeout(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return problem.New("server-timeout", object, "it did not answer in time; a firewall that drops packets looks like this", look).Retry()
	case errors.Is(err, syscall.ECONNREFUSED):
		return problem.New("server-unreachable", object, "nothing listens there: PostgreSQL is down, or listen_addresses or port are others", look).Retry()
	case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(first.host, "/"):
		return problem.New("server-unreachable", object, "there is no such socket: PostgreSQL is down, or unix_socket_directories or port are others", look).Retry()
	case errors.Is(err, fs.ErrPermission):
		return problem.New("server-unreachable", object, "the agent's user may not use this socket",
			"host=localhost").Advise("connect over TCP, or run the agent as a user who may use the socket")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return problem.New("server-unreachable", object, "it closed the connection before it was made: it ended just then, or is no PostgreSQL", look).Retry()
	}
	return problem.New("server-unreachable", object, "no connection could be made", look).Retry()
}

// refusal is a server's answer to a try to connect.
type refusal struct {
	server *Server
	config *pgconn.Config
	pg     *pgconn.PgError
}

// SQLSTATEs say too little: 28000 is a missing role as well as pg_hba.conf. The
// function of the server that refused tells them apart in every language.
const (
	inAuthentication = "ClientAuthentication"
	inRole           = "InitializeSessionUserId"
	inDatabase       = "CheckMyDatabase"
	inProcess        = "InitProcess" // no slot for one more process of this kind
)

func (r *refusal) database() string {
	if r.config.Database == "" {
		return r.config.User
	}
	return r.config.Database
}

func (r *refusal) problem() *problem.Problem {
	object := "server " + r.server.String()
	role, database := QuoteIdent(r.config.User), QuoteIdent(r.database())
	if SessionEnded(r.pg) {
		return problem.New("server-not-ready", object, "it starts, stops or recovers", "").Advise("Hawser tries again by itself").Retry()
	}
	switch r.pg.Code {
	case "28P01":
		return r.noPassword(object, role)
	case "28000":
		return r.notAdmitted(object, role, database)
	case "3D000", "57P04":
		return problem.New("no-such-database", "database "+database, "server "+r.server.String()+" has no database of this name",
			"CREATE DATABASE "+database+";").Advise("if it is to be a new one; psql --list shows those there are")
	case "55000":
		return problem.New("database-closed", "database "+database, "it takes no connections",
			"ALTER DATABASE "+database+" ALLOW_CONNECTIONS true;")
	case "42501":
		return r.noPrivilege(object, role, database)
	case "53300":
		return r.tooMany(object, role, database).Retry()
	case "22023", "42704":
		return problem.New("connection-refused", object, "it does not know a parameter of the connection string, or its value",
			"").Advise("remove the parameter that it names from the connection string")
	}
	return r.inItsWords(object)
}

// inItsWords tells of a refusal that has no case of its own. A state that is shown has no
// place for the error underneath, so the server's text stands in the cause.
func (r *refusal) inItsWords(object string) *problem.Problem {
	if r.pg.Code == "53100" {
		return problem.New("disk-full", object, "its disk is full: "+r.pg.Message, "").Advise("free space there; Hawser tries again by itself").Retry()
	}
	p := problem.New("connection-refused", object, "it refused the connection: "+r.pg.Message, "").Advise("mend what it names, with the help of its log")
	switch r.pg.Code[:min(2, len(r.pg.Code))] {
	case "53", "58": // insufficient resources, system error
		return p.Retry()
	}
	return p
}

// noPassword tells a password that the server does not take from one that nothing gave.
func (r *refusal) noPassword(object, role string) *problem.Problem {
	file := r.server.passwordFile()
	if r.config.Password != "" {
		where := "in the connection string or in password file " + file
		if os.Getenv("PGPASSWORD") == r.config.Password {
			where = "in PGPASSWORD of the agent's environment, which goes before password file " + file
		}
		return problem.New("password-wrong", object,
			"it refused the password of role "+role+"; where there is no such role it says the same",
			"ALTER ROLE "+role+" LOGIN PASSWORD '…';").Advise("and the same password " + where)
	}
	missing := "it asks for the password of role " + role + ", and there is none: "
	if readByOthers(file) {
		return problem.New("password-missing", object, missing+"password file "+file+" can be read by other users, and is passed over as libpq does", "chmod 600 "+problem.Word(file))
	}
	first := r.server.nodes()[0]
	line := fmt.Sprintf("%s:%s:*:%s:PASSWORD", passwordField(first.host), first.port, passwordField(r.config.User))
	return problem.New("password-missing", object, missing+faultOf(file), line).
		Advise("put this line into password file " + file + ", which only the agent's user may read; passfile=FILE in the connection string names another one")
}

// faultOf is why a password file gave no password.
func faultOf(file string) string {
	_, err := os.ReadFile(file)
	switch path := (*fs.PathError)(nil); {
	case errors.Is(err, fs.ErrNotExist):
		return "password file " + file + " does not exist"
	case errors.As(err, &path):
		return "password file " + file + " can't be read: " + path.Err.Error()
	}
	return "password file " + file + " has no line for it"
}

// passwordField is a field of a password file's line.
func passwordField(s string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(s)
}

func (r *refusal) notAdmitted(object, role, database string) *problem.Problem {
	switch r.pg.Routine {
	case inRole:
		return problem.New("no-such-role", "role "+role, "server "+r.server.String()+" has no such role, or one that may not log in",
			"CREATE ROLE "+role+" SUPERUSER LOGIN PASSWORD '…';").Advise("or ALTER ROLE " + role + " LOGIN, where it exists")
	case inAuthentication:
		const reload = "SELECT pg_reload_conf();"
		line := fmt.Sprintf("add to pg_hba.conf first: host %s %s ADDRESS/32 scram-sha-256", database, role)
		if r.config.TLSConfig == nil {
			return problem.New("not-admitted", object, "its pg_hba.conf admits role "+role+" to database "+database+" from this address not at all, or with TLS alone",
				reload).Advise(line + "; where its lines are hostssl: sslmode=require in the connection string")
		}
		return problem.New("not-admitted", object, "its pg_hba.conf admits role "+role+" to database "+database+" from this address not at all, or with a certificate alone",
			reload).Advise(line + "; where the line asks for a certificate: sslcert=FILE sslkey=FILE in the connection string")
	}
	return problem.New("authentication-failed", object, "it does not believe that this is role "+role+": pg_hba.conf asks for a proof (peer, gss …) that was not given",
		"").Advise("name the role in the connection string that belongs to this user or certificate, or let pg_hba.conf ask for scram-sha-256")
}

func (r *refusal) noPrivilege(object, role, database string) *problem.Problem {
	if r.config.RuntimeParams["replication"] != "" && r.pg.Routine != inDatabase {
		return problem.New("no-replication-privilege", "role "+role, "it may not stream from server "+r.server.String(),
			"ALTER ROLE "+role+" REPLICATION;")
	}
	if r.pg.Routine == inDatabase {
		return problem.New("no-connect-privilege", "database "+database, "role "+role+" may not connect to it",
			"GRANT CONNECT ON DATABASE "+database+" TO "+role+";")
	}
	return problem.New("connection-refused", object, "role "+role+" lacks a privilege", "ALTER ROLE "+role+" SUPERUSER;")
}

func (r *refusal) tooMany(object, role, database string) *problem.Problem {
	const code = "too-many-connections"
	switch r.pg.Routine {
	case inDatabase:
		return problem.New(code, "database "+database, "all connections that its limit allows are taken", "ALTER DATABASE "+database+" CONNECTION LIMIT -1;")
	case inRole:
		return problem.New(code, "role "+role, "all connections that its limit allows are taken", "ALTER ROLE "+role+" CONNECTION LIMIT -1;")
	case inProcess:
		if r.config.RuntimeParams["replication"] == "" {
			break
		}
		return problem.New(code, object, "all its replication connections are taken",
			"ALTER SYSTEM SET max_wal_senders = 100;").Advise("then restart PostgreSQL")
	}
	return problem.New(code, object, "all its connections are taken",
		"ALTER SYSTEM SET max_connections = 500;").Advise("then restart PostgreSQL; or end some that pg_stat_activity shows")
}

// SessionEnded reports whether the server ended the session, or took none, since it stops,
// starts, recovers or crashed, or since somebody ended the session by name.
func SessionEnded(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "57P01", "57P02", "57P03": // admin_shutdown, crash_shutdown, cannot_connect_now
		return true
	}
	return false
}

// TooLarge reports whether the server could not build a text or a row: none may have 1 GB.
// The code is program_limit_exceeded; the allocator has words alone.
func TooLarge(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) &&
		(pg.Code == "54000" || pg.Code == "XX000" && strings.Contains(pg.Message, "invalid memory alloc request size"))
}
