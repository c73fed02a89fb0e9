package agent

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/link"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Check finds what can't work. It looks at the configuration, not at
// PostgreSQL or the network.
func (c Config) Check() problem.Findings {
	var f problem.Findings
	f = append(f, c.checkName()...)
	f = append(f, c.checkAddresses()...)
	f = append(f, c.Postgres.check()...)
	f = append(f, c.Limits.check()...)
	if c.Log.Format != LogText && c.Log.Format != LogJSON {
		f = append(f, invalid("log.format", fmt.Sprintf("%q is not a format of log lines.", c.Log.Format), "log: {format: text}").Advise("or json"))
	}
	return f
}

func invalid(key, cause, remedy string) *problem.Problem {
	return problem.New("invalid-config", "key "+key, cause, remedy)
}

func (c Config) checkName() problem.Findings {
	if c.Name == "" {
		return problem.Findings{invalid("name", "Every instance needs a name, by which its peers know it.", "name: on-prem").Advise("or --name on-prem")}
	}
	if p, bad := problem.As(api.CheckName("instance", c.Name)); bad {
		return problem.Findings{invalid("name", fmt.Sprintf("%q can't be a name. %s", c.Name, p.Cause), p.Remedy).Advise(p.Advice)}
	}
	return nil
}

func (c Config) checkAddresses() problem.Findings {
	var f problem.Findings
	_, port, err := net.SplitHostPort(c.Endpoint.Listen)
	cause := api.CheckPort(port)
	if err != nil {
		cause = fmt.Sprintf("%q is not host:port.", c.Endpoint.Listen)
	}
	if cause != "" && port != "0" { // which is any that is free
		f = append(f, invalid("endpoint.listen", cause, "endpoint: {listen: ':5022'}"))
	}
	switch {
	case strings.Contains(c.Socket, "://"):
		f = append(f, invalid("socket", fmt.Sprintf("%q is a URL; the agent serves its API on a socket first.", c.Socket), "").Advise("unset HAWSER_SOCKET or give a path; for a TCP address set api.listen"))
	case len(c.Socket) > api.MaxSocketPath:
		f = append(f, invalid("socket", fmt.Sprintf("The path of a Unix socket has at most %d bytes; %s has %d.", api.MaxSocketPath, c.Socket, len(c.Socket)), "socket: /run/hawser/hawser.sock"))
	}
	if c.API.Listen == "" {
		return f
	}
	if p, bad := problem.As(api.CheckListen(c.API.Listen)); bad {
		f = append(f, invalid("api.listen", p.Cause, p.Remedy).Advise(p.Advice))
	}
	return f
}

func (c PostgresConfig) check() problem.Findings {
	switch {
	case c.Connection == "" && c.Managed == nil:
		return problem.Findings{invalid("postgres", "Nothing says which PostgreSQL this instance is.",
			"postgres: {managed: {}}").Advise("for one that the agent runs; for a server that runs already: postgres: {connection: 'host=… user=… dbname=postgres'}")}
	case c.Connection != "" && c.Managed != nil:
		return problem.Findings{invalid("postgres", "An instance is either a server (postgres.connection) or managed (postgres.managed), not both.", "").Advise("remove one of the two; look at the environment and the flags, too")}
	case c.Managed != nil:
		return c.Managed.check()
	}
	return c.Connection.check()
}

// check never repeats what it read: a string that can't be read may hold a
// password anywhere.
func (c ConnString) check() problem.Findings {
	_, err := postgres.Open(string(c))
	if err == nil {
		return nil
	}
	p := problem.Of(err, "invalid-config")
	return problem.Findings{invalid("postgres.connection", p.Cause, p.Remedy).Advise(p.Advice)}
}

func (c *ManagedConfig) check() problem.Findings {
	var f problem.Findings
	if cause := api.CheckPort(strconv.Itoa(c.Port)); cause != "" {
		f = append(f, invalid("postgres.managed.port", cause, "postgres: {managed: {port: 5432}}"))
	}
	if c.BinDir != "" {
		if _, err := os.Stat(filepath.Join(c.BinDir, "postgres")); err != nil {
			f = append(f, invalid("postgres.managed.bin_dir", "PostgreSQL's program postgres is not in "+c.BinDir+".", "pg_config --bindir").Advise("name the directory that this prints, or leave the key out"))
		}
	}
	return append(append(f, c.checkRunAs()...), c.checkSettings()...)
}

func (c *ManagedConfig) checkRunAs() problem.Findings {
	if c.RunAs == "" {
		return nil
	}
	u, err := user.Lookup(c.RunAs)
	switch {
	case err != nil:
		return problem.Findings{invalid("postgres.managed.run_as", "There is no user "+c.RunAs+" on this machine.", "useradd --system "+c.RunAs)}
	case u.Uid == "0":
		return problem.Findings{invalid("postgres.managed.run_as", "PostgreSQL refuses to run as root.", "postgres: {managed: {run_as: postgres}}")}
	case os.Geteuid() != 0 && u.Uid != strconv.Itoa(os.Geteuid()):
		return problem.Findings{invalid("postgres.managed.run_as", "Only an agent that runs as root can start PostgreSQL as another user.", "").Advise("leave the key out, or start the agent as " + c.RunAs)}
	}
	return nil
}

// checkSettings refuses the settings that have a key of their own, or on which
// the agent relies.
func (c *ManagedConfig) checkSettings() problem.Findings {
	owned := []string{"config_file", "data_directory", "hba_file", "ident_file", "listen_addresses", "port", "unix_socket_directories", "wal_level"}
	wellFormed := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$`)
	var f problem.Findings
	for name := range c.Settings {
		switch {
		case !wellFormed.MatchString(name):
			f = append(f, invalid("postgres.managed.settings", strconv.Quote(name)+" is not the name of a setting.", "postgres: {managed: {settings: {work_mem: 64MB}}}"))
		case slices.Contains(owned, name):
			f = append(f, invalid("postgres.managed.settings", "The agent sets "+name+" itself.", "").Advise("remove it; data_dir, port and listen_addresses have keys of their own"))
		}
	}
	return f
}

func (l Limits) check() problem.Findings {
	const (
		leastMemory = 32 << 20
		mostWorkers = 64
	)
	var f problem.Findings
	if l.Memory < leastMemory {
		f = append(f, invalid("limits.memory", l.Memory.String()+" is too little to work with.", "limits: {memory: 256MiB}").Advise("at least 32MiB"))
	}
	if l.SeedWorkers < 1 || l.SeedWorkers > mostWorkers {
		f = append(f, invalid("limits.seed_workers", fmt.Sprintf("%d is not between 1 and %d.", l.SeedWorkers, mostWorkers), "limits: {seed_workers: 4}"))
	}
	if l.WALHeld != 0 && l.WALHeld < link.LeastWAL {
		f = append(f, invalid("limits.wal_held", l.WALHeld.String()+" would end every link at its first delay.", "limits: {wal_held: 16GiB}").Advise("at least 64MiB, or 0 for no limit of the agent's"))
	}
	return f
}
