package link

import (
	"context"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// connect opens a session of the agent in the linked database.
func (l *link) connect(ctx context.Context, purpose string) (*pgx.Conn, error) {
	return l.m.connect(ctx, l.database(), l.rec.Name+":"+purpose, nil)
}

// connectOwn opens one in which Hawser makes or takes away what is its own. No event trigger
// fires in it, where the server can keep them from it (17 and later).
func (l *link) connectOwn(ctx context.Context, purpose string) (*pgx.Conn, error) {
	conn, err := l.connect(ctx, purpose)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, `SELECT set_config('event_triggers', 'off', false) WHERE current_setting('event_triggers', true) IS NOT NULL`)
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("settle the session: %w", err)
	}
	return conn, nil
}

// session settings of the agent in a linked database.
var agentSettings = map[string]string{
	"session_replication_role":            "replica",
	postgres.AgentSetting:                 "on",
	"default_transaction_read_only":       "off",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"row_security":                        "off",
}

// settled is set in a session, not as it begins: what a script of an extension's takes for
// the database's own search_path is that from which sessions begin.
const settled = `SET search_path = '';` + untimed

// untimed takes off the time limits that not every version has. A large table's copy takes
// longer than any of them.
const untimed = `SELECT set_config(n, '0', false) FROM unnest(ARRAY['idle_session_timeout', 'transaction_timeout']) n WHERE current_setting(n, true) IS NOT NULL`

func (m *Manager) connect(ctx context.Context, database, purpose string, extra map[string]string) (*pgx.Conn, error) {
	return m.open(ctx, postgres.Session{Database: database, Purpose: purpose, Settings: extra})
}

// open opens a session with the agent's settings and the session's own.
func (m *Manager) open(ctx context.Context, session postgres.Session) (*pgx.Conn, error) {
	settings := maps.Clone(agentSettings)
	maps.Copy(settings, session.Settings)
	session.Settings = settings
	conn, err := m.cfg.Server.Connect(ctx, session)
	if err != nil {
		return nil, keptOut(err)
	}
	if _, err := conn.PgConn().Exec(ctx, settled).ReadAll(); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("settle the session: %w", err)
	}
	return conn, nil
}

// openValues opens a session through which rows travel.
func (m *Manager) openValues(ctx context.Context, session postgres.Session) (*pgx.Conn, error) {
	conn, err := m.open(ctx, session)
	if err != nil {
		return nil, err
	}
	if err := postgres.KeepBytes(ctx, conn.PgConn()); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}

// keptOut marks what keeps the agent out of its own PostgreSQL, as a password that was
// changed there, as passing. A person has to mend it, but not by a command of Hawser's:
// the link goes on when the agent is let in again.
func keptOut(err error) error {
	p, ok := problem.As(err)
	if !ok || p.Retryable {
		return err
	}
	switch p.Code {
	case "password-wrong", "password-missing", "not-admitted", "no-such-role", "authentication-failed", "connection-refused", "no-connect-privilege",
		"no-replication-privilege", "database-closed", "server-certificate", "server-without-tls", "server-unreachable":
		return p.Retry()
	}
	return err
}
