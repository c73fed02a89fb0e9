package link

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/postgres"
)

// Store is the instance's one connection to its maintenance database. It is made
// again when it broke; callers take turns.
type Store struct {
	server *postgres.Server
	mu     sync.Mutex
	conn   *pgx.Conn
}

// NewStore returns a store that connects on first use.
func NewStore(server *postgres.Server) *Store { return &Store{server: server} }

// Migrate brings the instance's catalog to this agent's version.
func (s *Store) Migrate(ctx context.Context) error {
	return s.Do(ctx, func(conn *pgx.Conn) error { return catalog.MigrateInstance(ctx, conn) })
}

// Do runs f alone on the connection. That PostgreSQL restarted since the last time
// shows up before f has begun, and is no failure of it.
func (s *Store) Do(ctx context.Context, f func(conn *pgx.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || s.conn.IsClosed() || !answers(ctx, s.conn) {
		conn, err := s.server.Connect(ctx, postgres.Session{Database: s.server.Database(), Purpose: "catalog", Settings: map[string]string{
			"default_transaction_read_only": "off",
			"synchronous_commit":            "on",
			"statement_timeout":             "0",
		}})
		if err != nil {
			return err
		}
		if s.conn != nil {
			_ = s.conn.Close(ctx)
		}
		s.conn = conn
	}
	return f(s.conn)
}

// answersWithin is after how long a connection counts as dead: that to a host which
// went away without a word does not fail by itself for long.
const answersWithin = 5 * time.Second

func answers(ctx context.Context, conn *pgx.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	return conn.Ping(ctx) == nil
}

// Close ends the connection.
func (s *Store) Close(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close(ctx)
	}
}
