package seed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

// RowsRequest asks for the rows of some keys as a snapshot shows them that the
// primary exported and holds. It travels as JSON in one SeedChunk; the answer is
// SeedChunk…, SeedEnd, with the rows in COPY's text form.
type RowsRequest struct {
	Export  string     `json:"export"`
	Schema  string     `json:"schema"`
	Name    string     `json:"name"`
	Columns []string   `json:"columns"` // what is wanted of a row
	Key     []string   `json:"key"`     // columns
	Keys    [][]string `json:"keys"`
}

// keysAtOnce and keyBytesAtOnce bound one request.
const (
	keysAtOnce     = 500
	keyBytesAtOnce = 64 << 10
)

// sql finds rows by the index of their key, and of these the ones whose keys print the same:
// a row of an equal key (1.0 and 1.00) is another one, which the stream brings.
func (r RowsRequest) sql() (string, error) {
	if len(r.Key) == 0 || len(r.Columns) == 0 {
		return "", errors.New("rows were asked for without a key or columns")
	}
	var b strings.Builder
	for i, key := range r.Keys {
		if len(key) != len(r.Key) {
			return "", errors.New("a key with other columns than its table's")
		}
		b.WriteString([]string{"(", ", ("}[min(i, 1)])
		for j, v := range key {
			b.WriteString([]string{"", ", "}[min(j, 1)] + postgres.QuoteLiteral(v))
		}
		b.WriteString(")")
	}
	printed := make([]string, len(r.Key))
	for i, name := range r.Key { // not by a cast, which prints some types otherwise; nor by a collation that folds
		printed[i] = "pg_catalog.format('%s', " + postgres.QuoteIdent(name) + ") COLLATE \"C\""
	}
	keys := b.String()
	return "COPY (SELECT " + columnList(r.Columns) + " FROM ONLY " + postgres.QuoteIdent(r.Schema, r.Name) + " WHERE (" + columnList(r.Key) + ") IN (" + keys + ")" +
		" AND (" + strings.Join(printed, ", ") + ") IN (" + keys + ")) TO STDOUT", nil
}

// ServeRows answers FetchRows until the stream ends.
func ServeRows(ctx context.Context, connect func(ctx context.Context) (*pgx.Conn, error), s Stream) error {
	conn, err := session(ctx, connect, "; SET enable_seqscan = off")
	if err != nil {
		return err
	}
	defer closeSession(conn)
	out := chunks{s: s}
	held := ""
	for {
		r, err := receiveRequest(s)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if held != r.Export {
			if strings.Trim(r.Export, "0123456789ABCDEFabcdef-") != "" {
				return fmt.Errorf("%q is no snapshot", r.Export)
			}
			_, err := conn.Exec(ctx, `ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '`+r.Export+`'`)
			if err != nil {
				return lost("the snapshot of the rows to repair ended", err)
			}
			held = r.Export
		}
		sql, err := r.sql()
		if err != nil {
			return err
		}
		tag, err := copyOut(ctx, conn, &out, sql)
		if err != nil {
			return lost("the rows to repair could not be read", err)
		}
		if err := s.Send(frame.SeedEnd{Rows: tag.RowsAffected()}); err != nil {
			return err
		}
	}
}

func receiveRequest(s Stream) (r RowsRequest, err error) {
	f, err := s.Recv()
	if err != nil {
		return r, err
	}
	c, ok := f.(frame.SeedChunk)
	if !ok {
		return r, fmt.Errorf("unexpected %T where rows are asked for", f)
	}
	if err := json.Unmarshal(c.Data, &r); err != nil {
		return r, fmt.Errorf("read which rows are asked for: %w", err)
	}
	return r, nil
}

// FetchRows asks for rows and copies those that exist into the table of the same
// name.
func FetchRows(ctx context.Context, s ClientStream, tx pgx.Tx, r RowsRequest) (rows int64, err error) {
	keys := r.Keys
	for len(keys) > 0 {
		n, size := 0, 0
		for n < len(keys) && n < keysAtOnce && size < keyBytesAtOnce {
			for _, v := range keys[n] {
				size += len(v)
			}
			n++
		}
		r.Keys, keys = keys[:n], keys[n:]
		got, err := fetch(ctx, s, tx, r)
		if err != nil {
			return rows, err
		}
		rows += got
	}
	return rows, nil
}

func fetch(ctx context.Context, s ClientStream, tx pgx.Tx, r RowsRequest) (int64, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	if err := s.Send(frame.SeedChunk{Data: data}); err != nil {
		return 0, err
	}
	in := &incoming{stream: s}
	err = postgres.InUserPath(ctx, tx, func() error {
		_, err := tx.Conn().PgConn().CopyFrom(ctx, in, "COPY "+postgres.QuoteIdent(r.Schema, r.Name)+" ("+columnList(r.Columns)+") FROM STDIN")
		return err
	})
	if err != nil {
		_ = s.Close() // what is still to come belongs to nobody
		if cause := in.stop(); cause != nil {
			return 0, cause
		}
		return 0, fmt.Errorf("write the rows to repair of table %s: %w", postgres.QuoteIdent(r.Schema, r.Name), err)
	}
	return in.rows, nil
}
