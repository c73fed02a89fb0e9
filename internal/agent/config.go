package agent

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Config is all that an agent is told. The tag koanf is a key's name in the
// file, from which its flag and its environment variable follow; doc is what
// help and documentation say of it; default stands in for a default that
// depends on the machine or on another key.
type Config struct {
	Name     string         `koanf:"name" doc:"name of this instance; its peers know it by this name, and it is written into its certificate" default:"required"`
	StateDir string         `koanf:"state_dir" doc:"directory of what the agent keeps outside PostgreSQL: key, certificate, spool, socket" default:"/var/lib/hawser as root, else ~/.local/state/hawser"`
	Socket   string         `koanf:"socket" doc:"path of the Unix socket on which the agent serves its API to its owner" default:"hawser.sock in state_dir"`
	Endpoint EndpointConfig `koanf:"endpoint"`
	API      APIConfig      `koanf:"api"`
	Postgres PostgresConfig `koanf:"postgres"`
	Limits   Limits         `koanf:"limits"`
	Log      LogConfig      `koanf:"log"`
}

// EndpointConfig is where peers connect.
type EndpointConfig struct {
	Listen string `koanf:"listen" doc:"host:port on which peers connect, by mutual TLS; without a host, on every address"`
}

// APIConfig is the HTTP API's second door, beside the socket.
type APIConfig struct {
	Listen    string `koanf:"listen" doc:"loopback host:port on which the API is served as well, to whoever shows the token" default:"none"`
	TokenFile string `koanf:"token_file" doc:"file with the token for api.listen; made on first start" default:"api.token in state_dir"`
}

// PostgresConfig says which PostgreSQL the instance is. Exactly one of the two
// is set.
type PostgresConfig struct {
	Connection ConnString     `koanf:"connection" doc:"connection string or URL of a server that runs already; name several hosts for an availability group" default:"none"`
	Managed    *ManagedConfig `koanf:"managed"`
}

// ManagedConfig describes a cluster that the agent owns.
type ManagedConfig struct {
	DataDir         string            `koanf:"data_dir" doc:"data directory of the managed cluster; made when it is missing or empty" default:"data in state_dir"`
	Port            int               `koanf:"port" doc:"port of the managed cluster"`
	ListenAddresses string            `koanf:"listen_addresses" doc:"addresses on which the managed cluster listens, as PostgreSQL's own setting"`
	BinDir          string            `koanf:"bin_dir" doc:"directory of PostgreSQL's programs" default:"that of the newest installed version"`
	RunAs           string            `koanf:"run_as" doc:"user that PostgreSQL runs as, when the agent runs as root" default:"postgres as root"`
	Settings        map[string]string `koanf:"settings" doc:"further settings of the managed cluster: name=value,…"`
}

// Limits bound what the agent takes of its machine and of the primary.
type Limits struct {
	Memory      ByteSize `koanf:"memory" doc:"memory of the agent, which collects its garbage earlier as it comes near; a transaction that is sent before its end lies on disk"`
	SeedWorkers int      `koanf:"seed_workers" doc:"tables or parts of tables that one link copies at the same time" default:"the cores of the agent's machine, at least 2, at most 4"`
	WALHeld     ByteSize `koanf:"wal_held" doc:"WAL that one link without a --max-wal of its own may hold back on the primary before the agent ends it to save the disk; 0 leaves that to max_slot_wal_keep_size"`
}

// LogConfig says what is logged, to standard error.
type LogConfig struct {
	Level  slog.Level `koanf:"level" doc:"debug, info, warn or error"`
	Format LogFormat  `koanf:"format" doc:"text or json"`
}

// LogFormat is the form of a log line.
type LogFormat string

// The forms of log lines.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Logger returns a logger of this level and format.
func (c LogConfig) Logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level}
	if c.Format == LogJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// DefaultConfig returns the configuration of which nothing was said. It lacks a
// name and a PostgreSQL. Paths that follow from others are filled in by
// LoadConfig.
func DefaultConfig() Config {
	return Config{
		StateDir: DefaultStateDir(),
		Endpoint: EndpointConfig{Listen: ":5022"},
		Limits:   Limits{Memory: 256 << 20, SeedWorkers: fewWorkers(), WALHeld: 16 << 30},
		Log:      LogConfig{Level: slog.LevelInfo, Format: LogText},
	}
}

// fewWorkers are enough to keep a machine busy: more sessions than cores wait for one
// another to extend the table that they fill.
func fewWorkers() int { return min(max(runtime.GOMAXPROCS(0), 2), 4) }

func defaultManaged() *ManagedConfig {
	return &ManagedConfig{Port: 5432, ListenAddresses: "localhost"}
}

const systemStateDir = "/var/lib/hawser"

// DefaultStateDir is where an agent keeps its state unless told otherwise.
func DefaultStateDir() string {
	if os.Geteuid() == 0 {
		return systemStateDir
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "hawser")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return systemStateDir
	}
	return filepath.Join(home, ".local", "state", "hawser")
}

// DefaultSocket is where a client looks for the agent: at the caller's own
// default, or else at the system's.
func DefaultSocket() string {
	own := filepath.Join(DefaultStateDir(), socketName)
	if _, err := os.Stat(own); err != nil {
		return filepath.Join(systemStateDir, socketName)
	}
	return own
}

const socketName = "hawser.sock"

// complete fills in the paths that follow from others, and makes all absolute.
func (c *Config) complete() error {
	defaults := map[*string]string{&c.Socket: socketName, &c.API.TokenFile: "api.token"}
	paths := []*string{&c.StateDir, &c.Socket, &c.API.TokenFile}
	if m := c.Postgres.Managed; m != nil {
		defaults[&m.DataDir] = "data"
		paths = append(paths, &m.DataDir)
		if m.BinDir != "" {
			paths = append(paths, &m.BinDir)
		}
	}
	for path, name := range defaults {
		if *path == "" {
			*path = filepath.Join(c.StateDir, name)
		}
	}
	for _, path := range paths {
		if strings.Contains(*path, "://") { // Check refuses it; as a path it could not be recognized
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("find the directory %s: %w", *path, err)
		}
		*path = abs
	}
	return nil
}

// LogValue returns what the log may know: everything but secrets.
func (c Config) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("name", c.Name), slog.String("state_dir", c.StateDir), slog.String("socket", c.Socket),
		slog.String("endpoint", c.Endpoint.Listen), slog.String("api", c.API.Listen),
		slog.String("memory", c.Limits.Memory.String()), slog.String("wal_held", c.Limits.WALHeld.String()), slog.Int("seed_workers", c.Limits.SeedWorkers),
	}
	if m := c.Postgres.Managed; m != nil {
		return slog.GroupValue(append(attrs, slog.String("data_dir", m.DataDir), slog.Int("port", m.Port), slog.String("listen_addresses", m.ListenAddresses))...)
	}
	return slog.GroupValue(append(attrs, slog.String("postgres", c.Postgres.Connection.String()))...)
}

// String is LogValue in one line, so that no way of printing shows a secret.
func (c Config) String() string { return c.LogValue().String() }

// ConnString is a connection string or URL. Printed in any way it shows user,
// hosts and database alone; string(c) is the whole of it.
type ConnString string

// String shows what is no secret.
func (c ConnString) String() string {
	if c == "" {
		return ""
	}
	p, err := pgconn.ParseConfig(string(c))
	if err != nil {
		return "(not readable)"
	}
	hosts := []string{p.Host + ":" + strconv.Itoa(int(p.Port))}
	for _, f := range p.Fallbacks {
		if h := f.Host + ":" + strconv.Itoa(int(f.Port)); h != hosts[len(hosts)-1] { // TLS or not is a fallback, too
			hosts = append(hosts, h)
		}
	}
	return p.User + "@" + strings.Join(hosts, ",") + "/" + p.Database
}

// GoString is String.
func (c ConnString) GoString() string { return strconv.Quote(c.String()) }

// MarshalText is String.
func (c ConnString) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// LogValue is String.
func (c ConnString) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ByteSize is a number of bytes. Its text is a number with one of PostgreSQL's
// units, in which kB is 1024 bytes, or of IEC's.
type ByteSize int64

// UnmarshalText reads a number and a unit.
func (b *ByteSize) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	digits := strings.TrimRight(s, "kKMGTiB ")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, known := byteUnits()[strings.TrimSpace(s[len(digits):])]
	if err != nil || !known || n < 0 || n > 1<<(62-shift) {
		return fmt.Errorf("%q is not a size such as 256MiB or 16GB", s)
	}
	*b = ByteSize(n << shift)
	return nil
}

func byteUnits() map[string]int {
	return map[string]int{
		"": 0, "B": 0, "k": 10, "kB": 10, "K": 10, "KB": 10, "KiB": 10,
		"M": 20, "MB": 20, "MiB": 20, "G": 30, "GB": 30, "GiB": 30, "T": 40, "TB": 40, "TiB": 40,
	}
}

// String writes the largest unit that leaves no fraction.
func (b ByteSize) String() string {
	for _, u := range []struct {
		name  string
		shift int
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if b != 0 && b%(1<<u.shift) == 0 {
			return strconv.FormatInt(int64(b)>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText is String.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }
