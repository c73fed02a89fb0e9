package agent_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// everySequence is the state of each.
const everySequence = `SELECT string_agg(s.sequencename || ' ' || query_to_xml(format('SELECT last_value, is_called FROM %I.%I', s.schemaname, s.sequencename), false, true, '')::text, '' ORDER BY s.sequencename)
	FROM pg_sequences s WHERE s.schemaname <> 'hawser'`

// TestSequencesFollow moves sequences in every way, many of them never called, while
// the link runs: the replica has them within a second, and a failover has the last of them.
func TestSequencesFollow(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`, `DO $$ BEGIN FOR i IN 1 .. 300 LOOP EXECUTE 'CREATE SEQUENCE s' || i; END LOOP; END $$`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.awaitState(t, "shop", api.StateSynchronized)
	all := func(i *instance) string { return testpg.Rows(t, i.Connect(t, "shop"), everySequence)[0] }
	var took []time.Duration
	for _, sql := range []string{
		`SELECT setval('s299', 1000, false)`, `SELECT nextval('s1'), nextval('s1')`, `SELECT setval('s1', 1, false)`, `SELECT setval('s1', 1, true)`,
		`SELECT setval('s150', 77)`, `ALTER SEQUENCE s150 RESTART WITH 5`, `CREATE SEQUENCE down INCREMENT -7 MINVALUE -1000 MAXVALUE 50 CYCLE; SELECT setval('down', -994), nextval('down')`,
		`CREATE SEQUENCE cached CACHE 50; SELECT nextval('cached')`, `ALTER SEQUENCE s2 RENAME TO "Renamed"; SELECT setval('"Renamed"', 9, false)`,
		`DO $$ BEGIN FOR i IN 3 .. 300 LOOP PERFORM setval('s' || i, 5000 + i, i % 2 = 0); END LOOP; END $$`,
	} {
		a.Exec(t, "shop", sql)
		begin, want := time.Now(), all(a)
		conn := b.Connect(t, "shop")
		testpg.Eventually(t, 10*time.Second, "the replica has the sequences as "+sql+" left them", func() (bool, error) {
			var is string
			err := conn.QueryRow(ctx, everySequence).Scan(&is) // fails when one is renamed meanwhile
			return is == want, err
		})
		took = append(took, time.Since(begin))
		t.Logf("%4d ms: %s", took[len(took)-1].Milliseconds(), sql)
	}
	// Single ones may be later on a machine that is busy with other tests.
	if slices.Sort(took); took[len(took)/2] > time.Second {
		t.Errorf("most changes of sequences came later than within a second: %v", took)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // calls them until the primary refuses
		defer close(done)
		for i := 0; try(t, a, `SELECT nextval('s7'), nextval('"Renamed"'), setval('s8', (SELECT last_value FROM s8) + 10, false)`) == nil; i++ {
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	_, err := b.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second})
	close(stop)
	testpg.Await(t, "the clients end", done)
	if err != nil {
		t.Fatal(err)
	}
	if was, is := all(a), all(b); was != is {
		t.Errorf("after the failover the old primary has\n%s\nand the new one\n%s", was, is)
	}
}
