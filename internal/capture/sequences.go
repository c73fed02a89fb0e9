package capture

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

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

const (
	// exactly is how many sequences a beat reads one by one: pg_sequences does not tell
	// the state of one that was not called since it was made or set. Each costs the
	// server about 12 µs (measured); where there are more, they take turns.
	exactly = 2000
	// together is how many are read by one string of statements, which locks them all.
	together = 200
)

// sqlLastValues are the sequences with their last values; none where one was not called.
const sqlLastValues = `SELECT schemaname, sequencename, last_value FROM pg_sequences WHERE schemaname <> 'hawser' ORDER BY 1, 2`

func lastValues(ctx context.Context, conn *pgx.Conn) ([]frame.SequenceValue, error) {
	rows, err := conn.Query(ctx, sqlLastValues)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (v frame.SequenceValue, err error) {
		var last *int64
		err = row.Scan(&v.Schema, &v.Name, &last)
		if v.Called = last != nil; v.Called {
			v.Last = *last
		}
		return v, err
	})
}

// beingChanged tells that a transaction alters or drops a sequence: lock_not_available,
// undefined_table, or what pg_sequences says of one that went while it was asked.
func beingChanged(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "42P01" || pg.Code == "XX000" && pg.Routine == "relation_open")
}

// moved returns those that moved since the last time, as they are now; at first all. Of
// those that were not called it looks at as many as a beat reads, and tells whether these
// are all.
func (s *sequences) moved(ctx context.Context, conn *pgx.Conn) (moved []frame.SequenceValue, whole bool, err error) {
	all, err := lastValues(ctx, conn)
	if err != nil {
		return nil, false, err
	}
	if s.told == nil {
		s.told = map[[2]string]frame.SequenceValue{}
	}
	var now, uncalled []frame.SequenceValue
	there := map[[2]string]bool{}
	for _, v := range all {
		there[[2]string{v.Schema, v.Name}] = true
		if v.Called {
			now = append(now, v)
		} else {
			uncalled = append(uncalled, v)
		}
	}
	maps.DeleteFunc(s.told, func(key [2]string, _ frame.SequenceValue) bool { return !there[key] })
	whole = len(uncalled) <= exactly
	uncalled = s.turn(uncalled)
	if err := readExactly(ctx, conn, uncalled); err != nil {
		return nil, false, err
	}
	for _, v := range append(now, uncalled...) {
		key := [2]string{v.Schema, v.Name}
		if old, ok := s.told[key]; !ok || old != v {
			moved = append(moved, v)
			s.told[key] = v
		}
	}
	return moved, whole, nil
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
	for len(values) > 0 {
		n := min(together, len(values))
		if err := readTogether(ctx, conn, values[:n]); err != nil {
			return err
		}
		values = values[n:]
	}
	return nil
}

// readTogether does so in one round trip. The simple protocol takes a third of the
// time of prepared statements, of which each would be used once.
func readTogether(ctx context.Context, conn *pgx.Conn, values []frame.SequenceValue) error {
	var sql strings.Builder
	for _, v := range values {
		sql.WriteString("SELECT last_value, is_called FROM " + postgres.QuoteIdent(v.Schema, v.Name) + ";")
	}
	results, err := conn.PgConn().Exec(ctx, sql.String()).ReadAll()
	if err != nil {
		return err
	}
	if len(results) != len(values) {
		return fmt.Errorf("%d answers for %d sequences", len(results), len(values))
	}
	for i, r := range results {
		if len(r.Rows) != 1 {
			return fmt.Errorf("sequence %s has %d rows", postgres.QuoteIdent(values[i].Schema, values[i].Name), len(r.Rows))
		}
		if values[i].Last, err = strconv.ParseInt(string(r.Rows[0][0]), 10, 64); err != nil {
			return fmt.Errorf("read sequence %s: %w", postgres.QuoteIdent(values[i].Schema, values[i].Name), err)
		}
		values[i].Called = string(r.Rows[0][1]) == "t"
	}
	return nil
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
