package seed

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// lost is a problem that passes by itself: the copy goes on later. What the other
// side has made a problem already stays that.
func lost(cause string, err error) error {
	if _, ok := problem.As(err); ok {
		return err
	}
	return problem.New("copy-interrupted", "", cause, "").Advise("the copy goes on by itself").Retry().Because(err)
}

// passes tells errors of PostgreSQL that may not come again: a connection that
// broke, a server that stops, a conflict with another session.
func passes(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true
	}
	switch pg.Code {
	case diskFull:
		return false
	case "55006", "55P03", // in use, locked
		"42P01", "3F000", "42703": // a rename took effect meanwhile
		return true
	}
	switch pg.Code[:2] {
	case "08", "40", "53", "57", "72": // connection, rollback, resources, operator, snapshot too old
		return true
	}
	return false
}

const diskFull = "53100"

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// closeSession ends a session whose context may be over, and waits for it a moment.
func closeSession(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
