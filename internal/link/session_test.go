package link

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

// TestSessionsHaveNoTimeLimits: what a database allows its clients ends no copy.
func TestSessionsHaveNoTimeLimits(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	conn := c.Connect(t, db)
	for _, name := range testpg.Rows(t, conn, `SELECT name FROM pg_settings WHERE name ~ '_timeout$' AND context = 'user' AND unit = 'ms' AND name NOT IN ('deadlock_timeout', 'tcp_user_timeout', 'wal_sender_timeout')`) {
		c.Exec(t, "postgres", `ALTER DATABASE `+db+` SET `+name+` = '7s'`)
	}
	m := &Manager{cfg: Config{Server: c.Server()}}
	ours, err := m.open(t.Context(), postgres.Session{Database: db, Purpose: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close(t.Context())
	const left = `SELECT name FROM pg_settings WHERE setting = '7000'`
	for _, name := range testpg.Rows(t, ours, left) {
		t.Errorf("%s ends the agent's session", name)
	}
	server, err := postgres.Open(c.DSN(db))
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(server)
	if err := s.Do(t.Context(), func(conn *pgx.Conn) error {
		for _, name := range testpg.Rows(t, conn, left) {
			t.Errorf("%s ends the session of the instance's catalog", name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.Close(t.Context())
}
