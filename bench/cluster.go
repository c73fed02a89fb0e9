package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
)

const database = "bench"

// settings are the same on every cluster. Vacuum and checkpoints are done by hand
// before each measurement, so that they fall into nobody's.
var settings = map[string]string{
	"shared_buffers":                    "256MB",
	"max_wal_size":                      "8GB",
	"min_wal_size":                      "2GB",
	"checkpoint_timeout":                "1h",
	"autovacuum":                        "off",
	"logging_collector":                 "off",
	"shared_preload_libraries":          "",
	"max_sync_workers_per_subscription": "4",
	"wal_retrieve_retry_interval":       "100ms", // else native rests up to 5 s before it starts again
}

// server is one PostgreSQL that the bench started.
type server struct {
	cluster *postgres.Cluster
	pg      *postgres.Server
	data    string
	port    int
}

// withPglogical is what a cluster needs for that extension. Those of one work have it
// or not, all of them. While it is loaded DROP DATABASE never returns, since its
// supervisor does not answer the server's barriers.
var withPglogical = map[string]string{"shared_preload_libraries": "pglogical"}

func newServer(dir string, more map[string]string) (*server, error) {
	port, err := postgres.FreePort()
	if err != nil {
		return nil, err
	}
	s := &server{data: filepath.Join(dir, "data"), port: port}
	with := maps.Clone(settings)
	maps.Copy(with, more)
	s.cluster, err = postgres.NewCluster(postgres.ClusterConfig{DataDir: s.data, Port: port, ListenAddresses: "127.0.0.1", Settings: with})
	if err != nil {
		return nil, err
	}
	s.pg, err = s.cluster.Server()
	return s, err
}

// copyFrom makes the data directory a copy of another that is at rest.
func (s *server) copyFrom(data string) error {
	if err := os.MkdirAll(filepath.Dir(s.data), 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", "--reflink=auto", data, s.data).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the prepared cluster: %w: %s", err, out)
	}
	return nil
}

func (s *server) start(ctx context.Context) error { return s.cluster.Ensure(ctx) }
func (s *server) stop(ctx context.Context) error  { return s.cluster.Stop(ctx) }

// conninfo is how programs of PostgreSQL's user and root reach it, without password.
func (s *server) conninfo(db string) string {
	return fmt.Sprintf("host=%s.sock port=%d user=postgres dbname=%s", s.data, s.port, db)
}

func (s *server) connect(ctx context.Context, db string) (*pgx.Conn, error) {
	return s.pg.Connect(ctx, postgres.Session{Database: db})
}

func (s *server) exec(ctx context.Context, db string, sql ...string) error {
	conn, err := s.connect(ctx, db)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, q := range sql {
		if _, err := conn.PgConn().Exec(ctx, q).ReadAll(); err != nil {
			return fmt.Errorf("%.60s: %w", q, err)
		}
	}
	return nil
}

func (s *server) text(ctx context.Context, db, sql string, args ...any) (string, error) {
	conn, err := s.connect(ctx, db)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var text string
	return text, conn.QueryRow(ctx, sql, args...).Scan(&text)
}

// tool runs one of PostgreSQL's programs against the server.
func (s *server) tool(ctx context.Context, name string, args ...string) error {
	out, err := s.command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, last(out))
	}
	return nil
}

func (s *server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, err := postgres.Tool(name, 14)
	if err != nil {
		path = name
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), s.pg.Environ(database)...)
	return cmd
}

func last(out []byte) string {
	s := strings.TrimSpace(string(out))
	return s[max(0, len(s)-500):]
}

func (s *server) postmaster() int {
	data, err := os.ReadFile(filepath.Join(s.data, "postmaster.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.SplitN(string(data), "\n", 2)[0])
	return pid
}

// pair is a contestant's primary and replica.
type pair struct {
	dir              string
	primary, replica *server
}

// newPair starts two copies of the prepared cluster; the replica's database is gone.
func newPair(ctx context.Context, dir, prepared string, more map[string]string) (p *pair, err error) {
	p = &pair{dir: dir}
	for name, s := range map[string]**server{"primary": &p.primary, "replica": &p.replica} {
		if *s, err = newServer(filepath.Join(dir, name), more); err != nil {
			return nil, err
		}
	}
	if err := p.primary.copyFrom(prepared); err != nil {
		return nil, err
	}
	for _, s := range []*server{p.primary, p.replica} {
		if err := s.start(ctx); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *pair) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(p.replica.stop(ctx), p.primary.stop(ctx))
}

// copySchema makes the replica's database with the primary's tables, empty.
func (p *pair) copySchema(ctx context.Context) error {
	if err := p.replica.exec(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return err
	}
	file := filepath.Join(p.dir, "schema.sql")
	if err := p.primary.tool(ctx, "pg_dump", "--schema-only", "--no-publications", "--no-subscriptions", "--file", file, database); err != nil {
		return err
	}
	return p.replica.tool(ctx, "psql", "-qXv", "ON_ERROR_STOP=1", "-f", file, database)
}

// rest vacuums and checkpoints both sides, outside of any measurement.
func (p *pair) rest(ctx context.Context) error {
	for _, s := range []*server{p.primary, p.replica} {
		if err := s.exec(ctx, database, "VACUUM", "CHECKPOINT"); err != nil {
			return err
		}
	}
	return nil
}
