package link

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// unfitSequence is one that the secondary can't set to the primary's value: it lacks
// it, or has it with other bounds.
type unfitSequence struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	There  bool   `json:"there"`
}

// checkSequences refuses a failover after which a sequence would be missing, while
// this side still writes. One that the secondary lacks only since its DDL is still on
// its way is waited for.
func (l *link) checkSequences(ctx context.Context, conn *pgx.Conn) error {
	first, err := l.askUnfit(ctx, conn)
	if err != nil || len(first) == 0 {
		return err
	}
	until, err := insertPosition(ctx, conn)
	if err != nil {
		return err
	}
	if err := l.awaitVisible(ctx, until); err != nil {
		return err
	}
	again, err := l.askUnfit(ctx, conn)
	if err != nil {
		return err
	}
	before := map[[2]string]bool{}
	for _, s := range first {
		before[[2]string{s.Schema, s.Name}] = true
	}
	for _, s := range again {
		if before[[2]string{s.Schema, s.Name}] { // else it is new, and on its way
			return l.sequenceProblem(ctx, conn, s)
		}
	}
	return nil
}

// askUnfit asks the secondary about the sequences of this side.
func (l *link) askUnfit(ctx context.Context, conn *pgx.Conn) (unfit []unfitSequence, err error) {
	values, err := capture.Sequences(ctx, conn)
	if err != nil {
		return nil, err
	}
	return unfit, l.m.call(ctx, l.rec.Peer, l.rec.Name, callSequences, values, &unfit)
}

// unfitSequences is the secondary's answer.
func (l *link) unfitSequences(ctx context.Context, values []frame.SequenceValue) (unfit []unfitSequence, err error) {
	err = l.inSwap(ctx, func(conn *pgx.Conn) error {
		unfit, err = unfitOf(ctx, conn, values)
		return err
	})
	return unfit, err
}

func unfitOf(ctx context.Context, conn *pgx.Conn, values []frame.SequenceValue) ([]unfitSequence, error) {
	var schemas, names []string
	var last []int64
	for _, v := range values {
		schemas, names, last = append(schemas, v.Schema), append(names, v.Name), append(last, v.Last)
	}
	rows, err := conn.Query(ctx, `
		SELECT v.s, v.n, q.seqrelid IS NOT NULL FROM unnest($1::text[], $2::text[], $3::bigint[]) AS v(s, n, l)
		LEFT JOIN pg_namespace ns ON ns.nspname = v.s
		LEFT JOIN pg_class c ON c.relnamespace = ns.oid AND c.relname = v.n AND c.relkind = 'S'
		LEFT JOIN pg_sequence q ON q.seqrelid = c.oid
		WHERE q.seqrelid IS NULL OR v.l NOT BETWEEN q.seqmin AND q.seqmax ORDER BY 1, 2`, schemas, names, last)
	if err != nil {
		return nil, fmt.Errorf("look for the primary's sequences: %w", err)
	}
	unfit, err := pgx.CollectRows(rows, pgx.RowToStructByPos[unfitSequence])
	if err != nil {
		return nil, fmt.Errorf("look for the primary's sequences: %w", err)
	}
	return unfit, nil
}

// awaitVisible waits until the secondary shows what this side wrote before lsn.
func (l *link) awaitVisible(ctx context.Context, lsn frame.LSN) error {
	for l.capture.Lag().Ack.Visible < lsn {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func (l *link) sequenceProblem(ctx context.Context, conn *pgx.Conn, s unfitSequence) error {
	var parameters string
	err := conn.QueryRow(ctx, `
		SELECT format('AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s',
			format_type(q.seqtypid, NULL), q.seqincrement, q.seqmin, q.seqmax, q.seqstart, q.seqcache, CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)
		FROM pg_sequence q JOIN pg_class c ON c.oid = q.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2`, s.Schema, s.Name).Scan(&parameters)
	if err != nil {
		return fmt.Errorf("read the definition of sequence %s: %w", postgres.QuoteIdent(s.Schema, s.Name), err)
	}
	name := postgres.QuoteIdent(s.Schema, s.Name)
	cause, verb := "the secondary does not have it, so it would be lost in the failover", "CREATE"
	if s.There {
		cause, verb = "the secondary has it with other bounds, so its value would be lost in the failover", "ALTER"
	}
	return problem.New("sequence-missing", "sequence "+name, cause, postgres.ByHand+" "+verb+" SEQUENCE "+name+" "+parameters+";").Advise("as superuser, in database " + postgres.QuoteIdent(l.rec.Database)).At("instance " + l.rec.Peer)
}
