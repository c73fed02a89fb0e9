package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/testpg"
)

// TestRandomRepairs: rows are away when the stream begins, and fetched under a snapshot of its
// middle or its end, wherever the applier dies before. Whatever their keys are, and however
// they move, the replica is as the primary then.
func TestRandomRepairs(t *testing.T) {
	c := testpg.Shared(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	p := newOddPrimary(t, c)
	p.write(random, 60)
	middle := p.snapshot()
	p.write(random, 60)
	end := p.snapshot()
	records, last := p.stream()
	for range 3 {
		p.repair(random, records, last, middle, end)
	}
}

// oddSnapshot is a state of the primary that can be read.
type oddSnapshot struct {
	conn  *pgx.Conn
	sees  frame.Snapshot
	until frame.LSN
}

func (p *oddPrimary) snapshot() (s oddSnapshot) {
	s.conn = p.c.Connect(p.t, p.db)
	ctx := context.Background()
	if _, err := s.conn.Exec(ctx, `SET extra_float_digits = 1; BEGIN ISOLATION LEVEL REPEATABLE READ`); err != nil {
		p.t.Fatal(err)
	}
	var sees, until string
	err := s.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text, pg_current_snapshot()::text`).Scan(&until, &sees)
	if err == nil {
		s.sees, err = frame.ParseSnapshot(sees)
	}
	if err == nil {
		s.until, err = frame.ParseLSN(until)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// fetch puts the rows of a table into a replica.
func (s oddSnapshot) fetch(ctx context.Context, tx pgx.Tx, t catalog.RepairTable) error {
	var table string
	var columns, key []string
	err := tx.QueryRow(ctx, `SELECT $1::oid::regclass::text,
		ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND attgenerated = '' ORDER BY attnum),
		ARRAY(SELECT attname::text FROM unnest($2::int2[]) WITH ORDINALITY k(n, i) JOIN pg_attribute ON attrelid = $1 AND attnum = n ORDER BY i)`, t.OID, t.Columns).Scan(&table, &columns, &key)
	if err != nil {
		return err
	}
	for i, k := range key {
		key[i] = "format('%s', " + k + `) COLLATE "C"`
	}
	keys := make([]string, len(t.Keys))
	for i, k := range t.Keys {
		keys[i] = "('" + strings.Join(k, "', '") + "')"
	}
	list := strings.Join(columns, ", ")
	return s.copyRows(ctx, tx, fmt.Sprintf("SELECT %s FROM ONLY %s WHERE (%s) IN (%s)", list, table, strings.Join(key, ", "), strings.Join(keys, ", ")), table+" ("+list+")")
}

// copyRows puts what a query finds into columns of a replica's table.
func (s oddSnapshot) copyRows(ctx context.Context, tx pgx.Tx, query, into string) error {
	var rows bytes.Buffer
	if _, err := s.conn.PgConn().CopyTo(ctx, &rows, "COPY ("+query+") TO STDOUT"); err != nil {
		return err
	}
	_, err := tx.Conn().PgConn().CopyFrom(ctx, &rows, "COPY "+into+" FROM STDIN")
	return err
}

// takeRows puts some of the keys that rows may have down to be repaired.
func (p *oddPrimary) takeRows(random *rand.Rand, r *replica) {
	conn := p.c.Connect(p.t, r.db)
	keyed := testpg.Rows(p.t, conn, `SELECT c.oid::regclass FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY 1`)
	for _, t := range oddTables {
		for _, value := range strings.Split(t.values, "|") {
			for _, table := range keyed {
				if table != t.name && (t.name != "parted" || !strings.HasPrefix(table, "parted_")) || random.IntN(3) > 0 {
					continue
				}
				p.c.Exec(p.t, r.db, fmt.Sprintf(`INSERT INTO hawser.repair (link, tbl, columns, key, digest)
					SELECT '%[1]s', '%[2]s'::regclass, CASE WHEN '%[2]s' = 'pair' THEN '{1,2}' ELSE '{1}' END::int2[], k, sha256(convert_to(k::text, 'UTF8'))
					FROM (SELECT CASE WHEN '%[2]s' = 'pair' THEN ARRAY[v, '1'] ELSE ARRAY[v] END AS k
						FROM (SELECT format('%%s', x.k) AS v FROM (SELECT k FROM %[2]s UNION ALL SELECT $v$%[3]s$v$) x) y) z ON CONFLICT DO NOTHING`, testID, table, value))
			}
		}
	}
}

func (p *oddPrimary) repair(random *rand.Rand, list []frame.Record, last frame.LSN, middle, end oddSnapshot) {
	t, ctx := p.t, context.Background()
	r := newReplica(t, p.c, append([]string{`DROP TABLE t`}, oddSchema()...)...)
	r.odd = func(a *Applier) {
		a.cfg.Hold = []int{1, 500, 8 << 20}[random.IntN(3)]
		a.backlog.least = []int{1, 20, 20000}[random.IntN(3)]
	}
	r.hurried = random.IntN(2) == 0
	p.takeRows(random, r)
	for range random.IntN(4) {
		p.once(random, r, list, last, true)
	}
	frames := make(chan frame.Frame, 1)
	a, from, stop := r.run(frames, func(frame.Ack) {})
	defer a.Close()
	go func() {
		for _, rec := range p.since(list, from) {
			select {
			case frames <- frame.Data{Records: []frame.Record{rec}}:
			case <-a.done:
				return
			}
		}
	}()
	under := func(s oddSnapshot) error {
		return a.Repair(ctx, func(context.Context) (frame.Snapshot, frame.LSN, error) { return s.sees, s.until, nil }, s.fetch)
	}
	err := under(middle)
	t.Logf("in the middle: %v", err)
	if await := a.Await(ctx, last); await != nil {
		t.Fatal(errors.Join(err, await, stop()))
	}
	if errors.Is(err, ErrNotPrefix) {
		err = under(end)
	}
	if err != nil {
		t.Fatal(errors.Join(err, stop()))
	}
	if got, want := testpg.Rows(t, p.c.Connect(t, r.db), oddState())[0], p.texts[len(p.texts)-1]; got != want {
		t.Fatalf("primary:\n%s\nreplica:\n%s", want, got)
	}
	_ = stop()
}
