package link

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Store is the instance's one connection to its maintenance database. It is made
// again when it broke; callers take turns.
type Store struct {
	server *postgres.Server
	mu     sync.Mutex
	conn   *pgx.Conn
	pid    uint32 // of the last session's backend
	same   func(ctx context.Context, conn *pgx.Conn) error
}

// NewStore returns a store that connects on first use.
func NewStore(server *postgres.Server) *Store { return &Store{server: server} }

// Migrate brings the instance's catalog to this agent's version, and sees that it is that
// instance's.
func (s *Store) Migrate(ctx context.Context, instance string) error {
	return s.Do(ctx, func(conn *pgx.Conn) error {
		if err := catalog.MigrateInstance(ctx, conn); err != nil {
			return err
		}
		return catalog.Claim(ctx, conn, instance)
	})
}

// keepTo has each later connection looked at before it is used: PostgreSQL behind it may
// be another one, or of another time.
func (s *Store) keepTo(same func(ctx context.Context, conn *pgx.Conn) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.same = same
}

// Do runs f alone on the connection. That PostgreSQL restarted since the last time
// shows up before f has begun, and is no failure of it.
func (s *Store) Do(ctx context.Context, f func(conn *pgx.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || s.conn.IsClosed() || !answers(ctx, s.conn) {
		if s.conn != nil {
			_ = s.conn.Close(ctx)
			s.conn = nil
		}
		conn, err := s.connect(ctx)
		if err != nil {
			return err
		}
		s.conn = conn
	}
	return f(s.conn)
}

func (s *Store) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := s.server.Connect(ctx, postgres.Session{Database: s.server.Database(), Purpose: "catalog", Settings: map[string]string{
		"default_transaction_read_only":       "off",
		"synchronous_commit":                  "on",
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
	}})
	if err != nil {
		return nil, err
	}
	// With an idle session the lock of being alone would end.
	if _, err = conn.PgConn().Exec(ctx, untimed).ReadAll(); err == nil {
		err = s.beAlone(ctx, conn)
	}
	if err == nil && s.same != nil {
		err = s.same(ctx, conn)
	}
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	s.pid = conn.PgConn().PID()
	return conn, nil
}

// agentLock is held, in the maintenance database, as long as an agent's connection to it:
// two agents would each act on the same links.
const agentLock = 0x6861777365720003

const (
	// goneWithin is how long the session of an agent that ended may need to end as well.
	goneWithin = 10 * time.Second
	aloneEvery = 50 * time.Millisecond
)

func (s *Store) beAlone(ctx context.Context, conn *pgx.Conn) error {
	for deadline := time.Now().Add(goneWithin); ; {
		var alone bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(agentLock)).Scan(&alone); err != nil {
			return fmt.Errorf("look for another agent: %w", err)
		}
		if alone {
			return nil
		}
		// The network may have taken the last session away without a word to the server.
		if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM (`+postgres.LockSessions+`) l WHERE granted AND pid = $2`, int64(agentLock), s.pid); err != nil {
			return fmt.Errorf("end the last session: %w", err)
		}
		if time.Now().After(deadline) {
			return s.another(ctx, conn)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(aloneEvery):
		}
	}
}

// CodeAnotherAgent is of a server whose links another agent looks after.
const CodeAnotherAgent = "another-agent"

// another names the agent that has the lock.
func (s *Store) another(ctx context.Context, conn *pgx.Conn) error {
	var pid int32
	var from string
	err := conn.QueryRow(ctx, `
		SELECT pid, coalesce(host(client_addr), 'the server''s own machine')
		FROM (`+postgres.LockSessions+`) l JOIN pg_stat_activity USING (pid) WHERE granted`, int64(agentLock)).Scan(&pid, &from)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look for another agent: %w", err)
	}
	return problem.New(CodeAnotherAgent, "server "+s.server.String(), fmt.Sprintf("another agent keeps its catalog in database %s, from %s, in the session with pid %d; two would act on the same links",
		s.server.Database(), from, pid),
		fmt.Sprintf("SELECT pg_terminate_backend(%d);", pid)).Advise("if the other agent's machine is gone; otherwise stop that agent").Retry()
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
