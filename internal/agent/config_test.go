package agent

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/hawser/hawser/internal/problem"
)

var update = flag.Bool("update", false, "write the generated part of docs/configuration.md")

// source writes a file and parses flags into sources.
func source(t *testing.T, yaml string, environ []string, args ...string) Sources {
	t.Helper()
	s := Sources{Environ: environ, Flags: pflag.NewFlagSet("agent", pflag.ContinueOnError)}
	BindFlags(s.Flags)
	if err := s.Flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	if yaml != "" {
		s.File = filepath.Join(t.TempDir(), "hawser.yaml")
		if err := os.WriteFile(s.File, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestLaterSourcesWin(t *testing.T) {
	t.Parallel()
	c, err := LoadConfig(source(t, `
name: file
state_dir: /srv/hawser
endpoint: {listen: ':6000'}
log: {level: warn, format: json}
limits: {memory: 1GB, seed_workers: 2}
postgres:
  managed:
    port: 6001
    settings: {work_mem: 8MB, max_connections: 300, fsync: off, jit: false, pg_stat_statements.max: 10000}
`, []string{"HAWSER_LOG_LEVEL=debug", "HAWSER_ENDPOINT_LISTEN=:6002", "HAWSER_LIMITS_SEED_WORKERS=3",
		"HAWSER_POSTGRES_MANAGED_SETTINGS=work_mem=16MB,\"shared_preload_libraries=a,b\"", "HAWSER_SOCKET=/run/h.sock", "PATH=/bin"},
		"--endpoint-listen=127.0.0.1:6003", "--limits-seed-workers=5", "--postgres-managed-settings", "jit=on,auto_explain.log_min_duration=1s"))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Name: "file", StateDir: "/srv/hawser", Socket: "/run/h.sock",
		Endpoint: EndpointConfig{Listen: "127.0.0.1:6003"},
		API:      APIConfig{TokenFile: "/srv/hawser/api.token"},
		Postgres: PostgresConfig{Managed: &ManagedConfig{DataDir: "/srv/hawser/data", Port: 6001, ListenAddresses: "localhost", Settings: map[string]string{
			"work_mem": "16MB", "max_connections": "300", "fsync": "off", "jit": "on", "pg_stat_statements.max": "10000",
			"shared_preload_libraries": "a,b", "auto_explain.log_min_duration": "1s",
		}}},
		Limits: Limits{Memory: 1 << 30, SeedWorkers: 5, WALHeld: 16 << 30},
		Log:    LogConfig{Level: slog.LevelDebug, Format: LogJSON},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v", c, c.Postgres.Managed, want, want.Postgres.Managed)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]Sources{
		"empty section":  source(t, "name: a\nstate_dir: /s\npostgres: {managed: {}}", nil),
		"flags alone":    source(t, "", nil, "--name=a", "--state-dir=/s", "--postgres-managed-port=5432"),
		"variables":      source(t, "", []string{"HAWSER_NAME=a", "HAWSER_STATE_DIR=/s", "HAWSER_POSTGRES_MANAGED_DATA_DIR=/s/data"}),
		"null elsewhere": source(t, "name: a\nstate_dir: /s\nlog:\npostgres: {managed: {settings: {}}}", nil),
	} {
		c, err := LoadConfig(s)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := DefaultConfig()
		want.Name, want.StateDir, want.Socket, want.API.TokenFile = "a", "/s", "/s/hawser.sock", "/s/api.token"
		want.Postgres.Managed = defaultManaged()
		want.Postgres.Managed.DataDir = "/s/data"
		c.Postgres.Managed.Settings = nil
		if !reflect.DeepEqual(c, want) {
			t.Errorf("%s: got %+v, want %+v", name, c, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	const good = "name: a\npostgres: {managed: {}}\n"
	tests := map[string]struct {
		sources Sources
		want    string // in the error
	}{
		"key":                {source(t, good+"endpont: {listen: ':1'}", nil), "key endpont: There is no such key"},
		"misspelt section":   {source(t, good+"postgress: {managed: {}}", nil), "did you mean postgres?"},
		"key out of place":   {source(t, good+"bin_dir: /x", nil), "did you mean postgres.managed.bin_dir?"},
		"inner key":          {source(t, good+"endpoint: {lisen: ':1'}", nil), "did you mean endpoint.listen?"},
		"far key":            {source(t, good+"zzzzzzzzzzzz: 1", nil), "remove it"},
		"value for section":  {source(t, good+"endpoint: ':1'", nil), "key endpoint: It is a section"},
		"variable":           {source(t, good, []string{"HAWSER_LOG_LEVL=debug"}), "did you mean HAWSER_LOG_LEVEL?"},
		"map variable":       {source(t, good, []string{"HAWSER_POSTGRES_MANAGED_SETTINGS=work_mem"}), "variable HAWSER_POSTGRES_MANAGED_SETTINGS"},
		"no file":            {Sources{File: "/nonexistent/hawser.yaml"}, "does not exist"},
		"a directory":        {Sources{File: "/"}, "can't be read"},
		"not YAML":           {source(t, "a: [", nil), "not a map in YAML"},
		"a list":             {source(t, "- a", nil), "not a map in YAML"},
		"no name":            {source(t, "postgres: {managed: {}}", nil), "key name"},
		"bad name":           {source(t, "name: a b\npostgres: {managed: {}}", nil), "key name"},
		"no postgres":        {source(t, "name: a", nil), "key postgres: Nothing says"},
		"two postgres":       {source(t, good, []string{"HAWSER_POSTGRES_CONNECTION=host=x"}), "not both"},
		"bad connection":     {source(t, "name: a\npostgres: {connection: 'port=none'}", nil), "key postgres.connection"},
		"missing CA":         {source(t, "name: a\npostgres: {connection: 'host=x sslmode=verify-full sslrootcert=/nonexistent/ca'}", nil), "/nonexistent/ca"},
		"port":               {source(t, "name: a\npostgres: {managed: {port: 70000}}", nil), `"70000" is not a port: ports are whole numbers from 1 to 65535`},
		"port in words":      {source(t, "name: a\npostgres: {managed: {port: many}}", nil), `key postgres.managed.port: "many" is not a whole number`},
		"port as a list":     {source(t, "name: a\npostgres: {managed: {port: [1]}}", nil), "key postgres.managed.port: A list is not a whole number"},
		"name as a map":      {source(t, "name: {a: b}\npostgres: {managed: {}}", nil), "key name"},
		"settings as text":   {source(t, "name: a\npostgres: {managed: {settings: x}}", nil), "is not a map of names"},
		"port's variable":    {source(t, good, []string{"HAWSER_POSTGRES_MANAGD_PORT=5"}), "did you mean HAWSER_POSTGRES_MANAGED_PORT?"},
		"other's port":       {source(t, good, []string{"HAWSER_MANAGED_PORT=5433", "HAWSER_WEST_SERVICE_HOST=10.0.0.1"}), "variable HAWSER_MANAGED_PORT"},
		"service's port":     {source(t, good, []string{"HAWSER_POSTGRES_SERVICE_PORT=5"}), "variable HAWSER_POSTGRES_SERVICE_PORT"},
		"number's flag":      {source(t, good, nil, "--limits-seed-workers", "some"), `"some" is not a whole number`},
		"bin dir":            {source(t, "name: a\npostgres: {managed: {bin_dir: /nonexistent}}", nil), "key postgres.managed.bin_dir"},
		"run as root":        {source(t, "name: a\npostgres: {managed: {run_as: root}}", nil), "refuses to run as root"},
		"run as nobody here": {source(t, "name: a\npostgres: {managed: {run_as: no-such-user}}", nil), "There is no user"},
		"owned setting":      {source(t, "name: a\npostgres: {managed: {settings: {wal_level: minimal}}}", nil), "sets wal_level itself"},
		"no setting":         {source(t, "name: a\npostgres: {managed: {settings: {'a b': c}}}", nil), "not the name of a setting"},
		"endpoint's port":    {source(t, good+"endpoint: {listen: ':70000'}", nil), `key endpoint.listen: "70000" is not a port`},
		"API's port":         {source(t, good+"api: {listen: 'localhost:many'}", nil), `key api.listen: "many" is not a port`},
		"connection's port":  {source(t, "name: a\npostgres: {connection: 'host=x port=70000'}", nil), "invalid port"},
		"endpoint":           {source(t, good+"endpoint: {listen: 5022}", nil), "key endpoint.listen"},
		"open API":           {source(t, good+"api: {listen: ':5023'}", nil), "key api.listen"},
		"URL as socket":      {source(t, good, []string{"HAWSER_SOCKET=http://127.0.0.1:1"}), "is a URL"},
		"long socket":        {source(t, good+"socket: /"+strings.Repeat("s", 200), nil), "key socket"},
		"level":              {source(t, good+"log: {level: loud}", nil), `key log.level: "loud" is not a level`},
		"level's flag":       {source(t, good, nil, "--log-level", "loud"), `key log.level: "loud" is not a level`},
		"format":             {source(t, good+"log: {format: xml}", nil), "key log.format"},
		"size":               {source(t, good+"limits: {memory: 1 lot}", nil), `key limits.memory: "1 lot" is not a size`},
		"little memory":      {source(t, good+"limits: {memory: 1MB}", nil), "too little"},
		"workers":            {source(t, good+"limits: {seed_workers: 0}", nil), "key limits.seed_workers"},
		"WAL":                {source(t, good+"limits: {wal_held: 1MB}", nil), "key limits.wal_held"},
	}
	for name, test := range tests {
		c, err := LoadConfig(test.sources)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, c, err, test.want)
			continue
		}
		if p, ok := problem.As(err); !ok || p.Cause == "" || p.Help() == "" {
			t.Errorf("%s: %#v lacks a cause or a remedy", name, err)
		}
	}
}

func TestAllFindingsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := LoadConfig(source(t, "endpoint: {listen: x}\nlimits: {memory: 1}\n", nil))
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 { // name, endpoint, postgres, memory
		t.Errorf("got %v", err)
	}
	// What can't be read hides nothing, and is not found missing as well.
	_, err = LoadConfig(source(t, "name: [a]", []string{"HAWSER_NAM=a"}, "--limits-memory=3XB", "--log-level=loud", "--limits-seed-workers=x", "--endpoint-listen=x"))
	joined, ok = err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 7 { // HAWSER_NAM, name, memory, level, workers, endpoint, postgres
		t.Errorf("got %v", err)
	}
}

func TestVariablesOfOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	_, err := LoadConfig(source(t, "name: a\npostgres: {managed: {}}", []string{
		"HAWSER_CONFIG=x", "HAWSER_TOKEN_FILE=x", "HAWSER_PG_BIN=x",
		"HAWSER_SERVICE_HOST=10.0.0.1", "HAWSER_SERVICE_PORT=5022", "HAWSER_SERVICE_PORT_PEERS=5022", "HAWSER_PORT=tcp://10.0.0.1:5022",
		"HAWSER_EAST_SERVICE_HOST=10.0.0.2", "HAWSER_EAST_SERVICE_PORT=5022", "HAWSER_EAST_SERVICE_PORT_PEERS=5022", "HAWSER_EAST_PORT=tcp://10.0.0.2:5022",
		"HAWSER_PORT_5022_TCP=tcp://10.0.0.1:5022", "HAWSER_PORT_5022_TCP_ADDR=10.0.0.1", "HAWSER_WEST_SERVICE_HOST=10.0.0.1", "HAWSER_WEST_PORT_5022_TCP_PROTO=tcp",
	}))
	if err != nil {
		t.Error(err)
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	for _, conn := range []string{
		"host=db1,db2 port=5432 user=hawser password=s3cr3t dbname=app", "postgresql://hawser:s3cr3t@db1:5432,db2:5432/app",
		"postgres://hawser:s3cr3t@db1:x/app", "host=db1 passwrd=s3cr3t port=x", "postgres://hawser:s3cr3t/@db1", "password='s3cr3t",
	} {
		c := DefaultConfig()
		c.Name, c.Postgres.Connection = "a", ConnString(conn)
		var log bytes.Buffer
		for _, logger := range []*slog.Logger{LogConfig{Format: LogText}.Logger(&log), LogConfig{Format: LogJSON}.Logger(&log)} {
			logger.Info("configuration", "config", c, "postgres", c.Postgres, "connection", c.Postgres.Connection)
		}
		encoded, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		printed := fmt.Sprint(log.String(), string(encoded), c, c.Check().Err(), &c) +
			fmt.Sprintf("%v %+v %s %+v %#v", c, c, c, c.Postgres, c.Postgres)
		if strings.Contains(printed, secret) {
			t.Errorf("%s was printed: %s", conn, printed)
		}
	}
	if got := ConnString("host=db1,db2 user=hawser password=s3cr3t dbname=app").String(); got != "hawser@db1:5432,db2:5432/app" {
		t.Errorf("got %s", got)
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]ByteSize{"0": 0, "17": 17, "1kB": 1024, "1 KiB": 1024, "256MiB": 256 << 20, "16GB": 16 << 30, "2TiB": 2 << 40} {
		var b, again ByteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q gave %d, %v", text, b, err)
		}
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%q came back as %d, %v", b.String(), again, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5GB", "1XB", "1iB", "9223372036854775807TB", "1 2MB"} {
		var b ByteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q gave %d", text, b)
		}
	}
}

// TestDocumentation holds the table of keys against the code.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	const path = "../../docs/configuration.md"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(doc), "-update -->\n")
	_, tail, ok2 := strings.Cut(rest, "<!-- end of keys -->")
	if !ok || !ok2 {
		t.Fatal("the marks of the table are missing")
	}
	var table strings.Builder
	table.WriteString("| key | default | |\n| --- | --- | --- |\n")
	for _, key := range configKeys() {
		if key.doc == "" {
			t.Errorf("%s has no documentation", key.name)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", key.name, key.standard, key.doc)
	}
	want := head + "-update -->\n" + table.String() + "<!-- end of keys -->" + tail
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(doc) {
		t.Errorf("%s is behind the code: run go test ./internal/agent -run TestDocumentation -update", path)
	}
}
