package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// AgentSetting is a parameter that is on (or AgentFills) in the agents' sessions. The event triggers
// that capture DDL fire in every session, those with session_replication_role = replica
// included, and by this one know Hawser's own. (Anybody may set it; it counts together
// with replica mode, which is a superuser's.)
const AgentSetting = "hawser.agent"

// AgentFills is AgentSetting's value while an agent fills a materialized view. The query
// is a user's and may write: what it wrote on the primary is in the stream, so the fence
// refuses to have it written once more.
const AgentFills = "fills"

// CreatedSetting is true for a database that Hawser created as a replica.
const CreatedSetting = "hawser.created"

// ByHand are the statements with which a superuser's session begins that repairs a
// secondary: they let it pass the fence, as an agent's sessions do. The last serves a string
// of statements, as of psql -c, which is one transaction that began read-only.
const ByHand = "SET session_replication_role = replica; SET " + AgentSetting + " = on; SET default_transaction_read_only = off; SET transaction_read_only = off;"

// ValueSettings give values in text one meaning on every server, whatever ALTER
// DATABASE or ALTER ROLE say there. Sessions whose values travel use them.
func ValueSettings() map[string]string {
	return map[string]string{
		"client_encoding":    "UTF8",
		"datestyle":          "ISO, YMD",
		"intervalstyle":      "postgres",
		"timezone":           "UTC",
		"extra_float_digits": "3",
		"bytea_output":       "hex",
		"lc_monetary":        "C",
		"xmloption":          "content",
	}
}

// KeepBytes lets text of a database in SQL_ASCII, which takes any bytes, out and in as it
// is. To a session in UTF-8 the server refuses what is not that.
func KeepBytes(ctx context.Context, conn *pgconn.PgConn) error {
	if conn.ParameterStatus("server_encoding") != "SQL_ASCII" {
		return nil
	}
	if _, err := conn.Exec(ctx, `SET client_encoding = 'SQL_ASCII'`).ReadAll(); err != nil {
		return fmt.Errorf("have text sent as it is stored: %w", err)
	}
	return nil
}

// SQLSortInMemory lets a session sort an index of millions of rows in memory, and by as
// many parallel workers as the server allows, each of which needs 32 MB of it. The size of
// shared_buffers tells how large the server is.
const SQLSortInMemory = `SELECT pg_catalog.set_config('maintenance_work_mem', greatest(pg_size_bytes(current_setting('maintenance_work_mem')),
	least(pg_size_bytes(current_setting('shared_buffers')), 256 << 20)) / 1024 || 'kB', false)`
