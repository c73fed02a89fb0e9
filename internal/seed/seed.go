// Package seed makes the initial copy of tables, beside the stream of changes.
//
// Each table is copied under a snapshot of its own, which is held for no longer
// than that table needs. The applier knows the snapshot before a row of it is
// written, and takes from the stream what the snapshot does not see (package apply
// has the rule). An interrupted copy repeats the tables whose rows were under way,
// no others.
//
// The secondary drives, with a fixed number of workers. Each has one stream to the
// primary and one session of the replica, and does one of three things at a time:
//
//   - copy a table. A large one is split into ranges of heap pages, which every
//     worker that is free copies under the same exported snapshot;
//   - copy a batch of small tables, whose requests travel ahead of the answers and
//     whose rows are committed together;
//   - build what belongs to tables that have their rows, and analyze them.
//
// This package must never decide when a table is live, which is the applier's to
// say, never write to the primary, and never show the secondary a table that the
// link does not carry.
package seed

import (
	"context"
	"errors"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

// Stream is what seed needs of a peer's stream.
type Stream interface {
	Send(frame.Frame) error
	Recv() (frame.Frame, error)
}

// ClientStream is a stream that this side opened. Close unblocks Recv.
type ClientStream interface {
	Stream
	Close() error
}

// The streams' protocol. A SeedRequest without Export opens a table and ends the
// snapshot that the stream held. One with Export asks for rows. Requests are
// answered in order, and up to batchTables of them may be sent ahead.
//
//	SeedRequest{OID, EndPage: n} -> SeedStart                        a table of more than n blocks, TOAST included
//	                             -> SeedStart, SeedChunk…, SeedEnd   a smaller one; its Export is empty
//	                             -> SeedStart{OID, Name}             it is locked: ask again later
//	                             -> SeedStart{OID, LSN}              it is gone: no such table at LSN
//	SeedRequest{OID, Export, …}  -> SeedChunk…, SeedEnd              the pages' rows under that snapshot
//
// The snapshot that a stream holds ends with the rows of the whole table. Where
// parts of it are asked for, on any stream, the one that opened it holds it until
// its next request without Export; OID 0 is no table and does nothing else.

// endOfTable as EndPage: as far as the table goes.
const endOfTable = math.MaxUint32

// blockBytes is the size of a block in SeedRequest.EndPage. It need not be that of
// the server.
const blockBytes = 8 << 10

func gone(s frame.SeedStart) bool   { return s.Name == "" }
func locked(s frame.SeedStart) bool { return s.Name != "" && s.Snapshot.Xmax == 0 }

// textSettings make COPY's text mean the same on both sides, whatever ALTER
// DATABASE or ALTER ROLE say there, and end a session soon whose agent is gone.
const textSettings = `
	SET client_encoding = 'UTF8'; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC';
	SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content'; SET array_nulls = on;
	SET standard_conforming_strings = on; SET search_path = ''; SET row_security = off; SET client_min_messages = 'warning';
	SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
	SET default_transaction_isolation = 'read committed'; SET synchronize_seqscans = off; SET jit = off;
	SET max_parallel_workers_per_gather = 0; SET enable_tidscan = on;
	SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3`

// session connects and makes the session fit for the copy.
func session(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), settings string) (*pgx.Conn, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, err = conn.Exec(ctx, textSettings+settings); err == nil {
		err = postgres.KeepBytes(ctx, conn.PgConn())
	}
	if err != nil {
		closeSession(conn)
		return nil, lost("a PostgreSQL was lost while a session of the copy was set up", err)
	}
	return conn, nil
}

// columnList writes the columns of a COPY or SELECT.
func columnList(columns []string) string {
	quoted := make([]string, len(columns))
	for i, c := range columns {
		quoted[i] = postgres.QuoteIdent(c)
	}
	return strings.Join(quoted, ", ")
}

// copyInto is the COPY that takes a table's rows. A table without columns has no list.
func copyInto(t frame.SeedStart) string {
	list := ""
	if len(t.Columns) > 0 {
		list = " (" + columnList(t.Columns) + ")"
	}
	return "COPY " + quoted(t) + list + " FROM STDIN"
}

func quoted(t frame.SeedStart) string { return postgres.QuoteIdent(t.Schema, t.Name) }

var errGone = errors.New("the table was dropped")
