package soak

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/hawser/hawser/internal/testpg"
	"github.com/hawser/hawser/internal/testpg/history"
)

const (
	writers  = 4
	lists    = 40
	places   = 5000 // of a client, in mark
	accounts = 20
	opening  = 1000
	// writeEvery and readEvery leave the machine something for the product itself.
	writeEvery = 12 * time.Millisecond
	calmEvery  = 150 * time.Millisecond
	readEvery  = 150 * time.Millisecond
	retryEvery = 20 * time.Millisecond
)

// The ledger has no key, so a row that is written twice is there twice. The rows of mark
// change seldom: a change of one that is lost does not come back with the row's next.
const schema = `
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE list (id int PRIMARY KEY, items bigint[] NOT NULL);
CREATE TABLE counter (client int PRIMARY KEY, last bigint NOT NULL, count bigint NOT NULL);
CREATE TABLE ledger (client int NOT NULL, n bigint NOT NULL, payload text);
CREATE INDEX ON ledger (client, n);
CREATE TABLE mark (client int, place bigint, n bigint NOT NULL, PRIMARY KEY (client, place));`

// look is one statement, and so one snapshot.
const look = `
SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, json_build_object(
	'accounts', (SELECT json_agg(balance ORDER BY id) FROM account),
	'lists', (SELECT json_agg(items ORDER BY id) FROM list),
	'counters', (SELECT json_agg(json_build_object('last', last, 'count', count) ORDER BY client) FROM counter),
	'ledger', (SELECT json_agg(numbers ORDER BY client) FROM
		(SELECT client, array(SELECT n FROM ledger l WHERE l.client = c.client ORDER BY n) AS numbers FROM counter c) s))`

// crowd is the clients of one round.
type crowd struct {
	w      *world
	rec    *history.Recorder
	field  history.Workload
	cancel context.CancelFunc // of the readers
	quit   chan struct{}      // for the writers, which finish what they began
	wg     sync.WaitGroup
	mu     sync.Mutex
	last   error // of a writer
}

// gather starts clients on a database that is as reset left it.
func gather(w *world, seed uint64) *crowd {
	field := history.Workload{Seed: seed, Clients: writers, Lists: lists, Accounts: accounts, Opening: opening}
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{w: w, rec: history.NewRecorder(field), field: field, cancel: cancel, quit: make(chan struct{})}
	for i := range writers {
		c.wg.Go(func() { c.write(i) })
	}
	for _, s := range w.sides {
		for range 2 {
			c.wg.Go(func() { c.read(ctx, s) })
		}
	}
	return c
}

// disperse ends the clients. What they began is decided then.
func (c *crowd) disperse() {
	close(c.quit)
	c.cancel()
	c.wg.Wait()
}

// write tries one transaction after the other.
func (c *crowd) write(client int) {
	var conn *pgx.Conn
	var side string
	defer func() { hangUp(conn) }()
	for n := int64(1); ; {
		rest := writeEvery
		if c.w.calm.Load() {
			rest = calmEvery
		}
		var err error
		if conn == nil {
			conn, side, err = c.reach(client, n)
		}
		if err == nil {
			op := c.field.Op(client, n)
			n++
			err = c.try(conn, side, op)
		}
		if err != nil {
			c.mu.Lock()
			c.last = err
			c.mu.Unlock()
			hangUp(conn)
			conn, rest = nil, retryEvery
		}
		select {
		case <-c.quit:
			return
		case <-time.After(rest):
		}
	}
}

// reach connects a writer. Half of them look for the writable side, as they should;
// the others try to write wherever they come to, and say that they mean it.
func (c *crowd) reach(client int, n int64) (*pgx.Conn, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if client%2 == 0 {
		conn, err := pgx.Connect(ctx, c.w.clientString())
		if err != nil {
			return nil, "", err
		}
		for _, s := range c.w.sides {
			if strings.HasSuffix(conn.PgConn().Conn().RemoteAddr().String(), fmt.Sprintf(":%d", s.port)) {
				return conn, s.name, nil
			}
		}
		return conn, "?", nil
	}
	s := c.w.sides[rand.IntN(len(c.w.sides))]
	conn, err := s.connect(ctx)
	if err == nil {
		_, err = conn.Exec(ctx, `SET default_transaction_read_only = off`)
	}
	return conn, s.name, err
}

func hangUp(conn *pgx.Conn) {
	if conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}
}

// try does one transaction and records it.
func (c *crowd) try(conn *pgx.Conn, side string, op history.Op) error {
	// Nothing should take this long: whatever waits, waits for a fault to end.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a := history.Attempt{Op: op, Side: side, Outcome: history.Aborted}
	defer func() {
		a.Ended = c.rec.Now()
		c.rec.Attempt(a)
	}()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	if err := change(ctx, tx, op, &a); err != nil {
		return err
	}
	if op.GiveUp {
		return tx.Rollback(ctx)
	}
	a.Sent = c.rec.Now()
	if op.HangUp {
		a.Outcome = history.Unknown
		return commitAndGo(conn)
	}
	err = tx.Commit(ctx)
	a.Outcome = outcome(err)
	return err
}

var errHungUp = errors.New("the client hung up at its COMMIT")

// commitAndGo sends a COMMIT, and cuts the connection without waiting for the answer.
func commitAndGo(conn *pgx.Conn) error {
	f := conn.PgConn().Frontend()
	f.SendQuery(&pgproto3.Query{String: "COMMIT"})
	return errors.Join(f.Flush(), conn.PgConn().Conn().Close(), errHungUp)
}

// outcome: only an answer of the server that is an error and leaves the session
// alive says that a COMMIT failed.
func outcome(err error) history.Outcome {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return history.Committed
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return history.Aborted
	case errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR":
		return history.Aborted
	default:
		return history.Unknown
	}
}

// change does what the transaction is for, and notes what it saw.
func change(ctx context.Context, tx pgx.Tx, op history.Op, a *history.Attempt) error {
	client, n := op.ID.Client(), op.ID.N()
	b := &pgx.Batch{}
	b.Queue(`SELECT last, count FROM counter WHERE client = $1 FOR UPDATE`, client).QueryRow(func(r pgx.Row) error { return r.Scan(&a.Before.Last, &a.Before.Count) })
	b.Queue(`UPDATE counter SET last = $2, count = count + 1 WHERE client = $1`, client, n)
	if op.Detour {
		b.Queue(`SAVEPOINT detour`)
		b.Queue(`UPDATE list SET items = items || -1::bigint WHERE id = $1`, op.List)
		b.Queue(`INSERT INTO ledger VALUES ($1, -1, 'never')`, client)
		b.Queue(`ROLLBACK TO SAVEPOINT detour`)
	}
	b.Queue(`UPDATE list SET items = items || $2::bigint WHERE id = $1 RETURNING cardinality(items)`, op.List, int64(op.ID)).
		QueryRow(func(r pgx.Row) error { return r.Scan(&a.Place) })
	// In one order, so that no two wait for each other.
	first, second, amount := op.From, op.To, -op.Amount
	if first > second {
		first, second, amount = second, first, -amount
	}
	b.Queue(`UPDATE account SET balance = balance + $2 WHERE id = $1`, first, amount)
	b.Queue(`UPDATE account SET balance = balance + $2 WHERE id = $1`, second, -amount)
	b.Queue(`INSERT INTO ledger VALUES ($1, $2, $3)`, client, n, payload(op))
	b.Queue(`INSERT INTO mark VALUES ($1, $2, $3) ON CONFLICT (client, place) DO UPDATE SET n = EXCLUDED.n`, client, n%places, n)
	return tx.SendBatch(ctx, b).Close()
}

// payload does not compress.
func payload(op history.Op) string {
	r := rand.New(rand.NewPCG(uint64(op.ID), 2))
	b := make([]byte, op.Bulk/2)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return hex.EncodeToString(b)
}

// read looks at one side again and again.
func (c *crowd) read(ctx context.Context, s *side) {
	var conn *pgx.Conn
	defer func() { hangUp(conn) }()
	for {
		rest := readEvery
		var err error
		if conn == nil {
			conn, err = s.connect(ctx)
		}
		if err == nil {
			var r history.Read
			var astray bool
			if r, astray, err = c.see(ctx, conn, s); err == nil && !astray {
				c.rec.Read(r)
			}
		}
		if err != nil {
			hangUp(conn)
			conn, rest = nil, retryEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// see looks once. What an old primary shows on its way back is no state of the database.
func (c *crowd) see(ctx context.Context, conn *pgx.Conn, s *side) (_ history.Read, astray bool, _ error) {
	astray = c.w.astray.Load() == s
	primary, change := c.w.now.get()
	r := history.Read{Side: s.name, Began: c.rec.Now()}
	var err error
	r.Life, r.State, err = state(ctx, conn)
	r.Ended = c.rec.Now()
	if _, later := c.w.now.get(); err == nil && primary != nil && later == change {
		r.Current, r.Replica = primary == s, primary != s
	}
	return r, astray || c.w.astray.Load() == s, err
}

func state(ctx context.Context, conn *pgx.Conn) (life int, s history.State, err error) {
	var text []byte
	if err := conn.QueryRow(ctx, look).Scan(&life, &text); err != nil {
		return 0, s, err
	}
	return life, s, json.Unmarshal(text, &s)
}

// once reads a side in a session of its own; quiet refuses while clients write.
func (c *crowd) once(s *side, quiet bool) (history.Read, error) {
	conn, err := s.connect(context.Background())
	if err != nil {
		return history.Read{}, err
	}
	defer hangUp(conn)
	// Who hung up at a COMMIT has left a session behind that is about to end.
	var others int
	err = conn.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity
		WHERE usename = 'app' AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL`).Scan(&others)
	if quiet && err == nil && others > 0 {
		err = fmt.Errorf("%d transactions of clients are open", others)
	}
	if err != nil {
		return history.Read{}, err
	}
	r, _, err := c.see(context.Background(), conn, s)
	return r, err
}

// finals waits until both sides are the same, and returns what they are in any case.
// The primary's is first.
func (c *crowd) finals(t *testing.T, primary *side) (ends []history.Read) {
	t.Helper()
	deadline := time.Now().Add(patience)
	testpg.Eventually(t, 2*patience, "both sides answer", func() (bool, error) {
		a, err := c.once(primary, true)
		if err != nil {
			return false, err
		}
		b, err := c.once(c.w.other(primary), true)
		if err != nil {
			return false, err
		}
		ends = []history.Read{a, b}
		return a.State.Equal(b.State) || time.Now().After(deadline), nil
	})
	return ends
}

// digest is every row of a side, payloads too.
func digest(t *testing.T, s *side) (out string) {
	t.Helper()
	testpg.Eventually(t, patience, s.name+" answers", func() (bool, error) {
		conn, err := s.connect(context.Background())
		if err != nil {
			return false, err
		}
		defer hangUp(conn)
		out = ""
		for _, table := range []string{"account", "list", "counter", "ledger", "mark"} {
			var text string
			err := conn.QueryRow(context.Background(), `SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM `+table+` t`).Scan(&text)
			if err != nil {
				return false, err
			}
			out += table + " " + text + "\n"
		}
		return true, nil
	})
	return out
}

// reset makes everything as before the first transaction, and waits for the replica.
func (w *world) reset(t *testing.T) {
	t.Helper()
	w.awaitSynchronized(t)
	primary, _ := w.now.get()
	testpg.Eventually(t, patience, "the tables are emptied", func() (bool, error) {
		conn, err := primary.connect(context.Background())
		if err != nil {
			return false, err
		}
		defer hangUp(conn)
		_, err = conn.PgConn().Exec(context.Background(), fmt.Sprintf(`
			TRUNCATE account, list, counter, ledger, mark;
			INSERT INTO account SELECT i, %d FROM generate_series(0, %d) i;
			INSERT INTO list SELECT i, '{}' FROM generate_series(0, %d) i;
			INSERT INTO counter SELECT i, 0, 0 FROM generate_series(0, %d) i`, opening, accounts-1, lists-1, writers-1)).ReadAll()
		return err == nil, err
	})
	want := history.Workload{Clients: writers, Lists: lists, Accounts: accounts, Opening: opening}.Initial()
	for _, s := range w.sides {
		testpg.Eventually(t, patience, s.name+" is as at the beginning", func() (bool, error) {
			conn, err := s.connect(context.Background())
			if err != nil {
				return false, err
			}
			defer hangUp(conn)
			_, got, err := state(context.Background(), conn)
			return err == nil && got.Equal(want), err
		})
	}
}
