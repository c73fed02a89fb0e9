package capture

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
)

// sequences is what the secondary was told of each, by schema and name.
type sequences struct {
	told map[[2]string]frame.SequenceValue
	next int // the first of those without a last value to be read at the next beat
}

// exactly is how many sequences a beat reads one by one: pg_sequences does not tell
// the state of one that was not called since it was made or set. They take turns.
const exactly = 20

// sendSequences sends those that moved since the last time, as they are now. A
// stream's first call sends all.
func (r *run) sendSequences(ctx context.Context) error {
	now, err := r.sequences.read(ctx, r.sql)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "42P01") { // lock_not_available, undefined_table
		return nil // a transaction alters or drops one; the next beat asks again
	}
	if err != nil {
		return fmt.Errorf("read the sequences: %w", err)
	}
	var moved []frame.SequenceValue
	for _, v := range now {
		key := [2]string{v.Schema, v.Name}
		if old, ok := r.sequences.told[key]; !ok || old != v {
			moved = append(moved, v)
			r.sequences.told[key] = v
		}
	}
	if len(moved) == 0 {
		return nil
	}
	return r.send(ctx, frame.Sequences{Values: moved})
}

// read returns the sequences' states: of those that were called all, of the others
// as many as a beat reads.
func (s *sequences) read(ctx context.Context, conn *pgx.Conn) ([]frame.SequenceValue, error) {
	rows, err := conn.Query(ctx, `SELECT schemaname, sequencename, last_value FROM pg_sequences WHERE schemaname <> 'hawser' ORDER BY 1, 2`)
	if err != nil {
		return nil, err
	}
	var values, uncalled []frame.SequenceValue
	there := map[[2]string]bool{}
	var v frame.SequenceValue
	var last *int64
	_, err = pgx.ForEachRow(rows, []any{&v.Schema, &v.Name, &last}, func() error {
		there[[2]string{v.Schema, v.Name}] = true
		if v.Called = last != nil; v.Called {
			v.Last = *last
			values = append(values, v)
			return nil
		}
		v.Last = 0
		uncalled = append(uncalled, v)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if s.told == nil {
		s.told = map[[2]string]frame.SequenceValue{}
	}
	for key := range s.told {
		if !there[key] {
			delete(s.told, key)
		}
	}
	uncalled = s.turn(uncalled)
	if err := readExactly(ctx, conn, uncalled); err != nil {
		return nil, err
	}
	return append(values, uncalled...), nil
}

// turn returns those whose turn it is.
func (s *sequences) turn(all []frame.SequenceValue) []frame.SequenceValue {
	if len(all) <= exactly {
		return all
	}
	from := s.next % len(all)
	s.next = from + exactly
	turn := append([]frame.SequenceValue(nil), all[from:min(from+exactly, len(all))]...)
	return append(turn, all[:exactly-len(turn)]...)
}

// readExactly fills in the states of sequences.
func readExactly(ctx context.Context, conn *pgx.Conn, values []frame.SequenceValue) error {
	if len(values) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for i := range values {
		v := &values[i]
		b.Queue(`SELECT last_value, is_called FROM ` + postgres.QuoteIdent(v.Schema, v.Name)).QueryRow(func(row pgx.Row) error {
			return row.Scan(&v.Last, &v.Called)
		})
	}
	return conn.SendBatch(ctx, b).Close()
}

// Sequences reads the exact state of every sequence. At a failover the database
// is fenced, so nothing moves them any more.
func Sequences(ctx context.Context, conn *pgx.Conn) ([]frame.SequenceValue, error) {
	rows, err := conn.Query(ctx, `
		SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname <> 'hawser'
		ORDER BY c.oid`)
	if err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	values, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v frame.SequenceValue, err error) {
		return v, row.Scan(&v.Schema, &v.Name)
	})
	if err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	if err := readExactly(ctx, conn, values); err != nil {
		return nil, fmt.Errorf("read the sequences: %w", err)
	}
	return values, nil
}
