package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
)

// largeRows is how many rows the largest transaction of TestLargeTransactions has: those
// of HAWSER_TEST_LARGE_ROWS, which make large sets to ten million.
func largeRows(t *testing.T) int {
	t.Helper()
	text := os.Getenv("HAWSER_TEST_LARGE_ROWS")
	if text == "" {
		return 100_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLargeTransactions has transactions of every shape that do not fit into memory:
// one alone, several at once, thousands of subtransactions, a part rolled back, a
// prepared one, and updates of a large table without a key. Both agents are processes of
// their own; their memory is told, and held to its bound where the rows are many and the
// race detector is not in it.
func TestLargeTransactions(t *testing.T) {
	t.Parallel()
	rows := largeRows(t)
	a, b := pair(t)
	for _, i := range []*instance{a, b} {
		i.stop()
		i.process = true
		i.run(t)
	}
	a.awaitPeer(t)
	link(t, a, b, `CREATE TABLE one (id bigint PRIMARY KEY, v text, n int)`, `CREATE TABLE loose (a int, b text)`, `CREATE TABLE parts (id bigint, s int)`,
		`INSERT INTO loose SELECT i / 2, 'row ' || i / 2 FROM generate_series(1, `+fmt.Sprint(rows/10)+`) i`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for _, step := range []struct {
		what string
		do   func()
	}{
		{fmt.Sprintf("%d rows inserted", rows), func() {
			a.Exec(t, "shop", fmt.Sprintf(`INSERT INTO one SELECT i, 'value ' || i, 0 FROM generate_series(1, %d) i`, rows))
		}},
		{fmt.Sprintf("%d rows updated, half of them rolled back", rows/2), func() {
			a.Exec(t, "shop", fmt.Sprintf(`BEGIN; UPDATE one SET n = 1 WHERE id %% 4 = 0; SAVEPOINT s; UPDATE one SET v = 'never', n = 2 WHERE id %% 4 = 1; DELETE FROM one WHERE id < %d; ROLLBACK TO s; UPDATE one SET n = 3 WHERE id = 1; COMMIT`, rows/8))
		}},
		{fmt.Sprintf("four transactions of %d rows at once", rows/10), func() { interleaved(t, a, rows) }},
		{fmt.Sprintf("%d subtransactions", max(rows/500, 1000)), func() {
			a.Exec(t, "shop", fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP BEGIN INSERT INTO parts SELECT i * 100 + j, i FROM generate_series(1, 20) j;
				IF i %% 3 = 0 THEN RAISE 'never'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$`, max(rows/500, 1000)))
		}},
		{fmt.Sprintf("%d rows prepared, and others committed meanwhile", rows/5), func() {
			a.Exec(t, "shop", fmt.Sprintf(`BEGIN; INSERT INTO one SELECT -i, 'prepared', 9 FROM generate_series(1, %d) i; PREPARE TRANSACTION 'large'`, rows/5))
			a.Exec(t, "shop", `UPDATE one SET n = 7 WHERE id BETWEEN 1 AND 1000`)
			arrived(t, a, b, "shop")
			a.Exec(t, "shop", `COMMIT PREPARED 'large'`)
		}},
		{fmt.Sprintf("%d of %d rows without a key updated, %d deleted, each there twice", rows/20, rows/10, rows/100), func() {
			a.Exec(t, "shop", `UPDATE loose SET b = b || ' changed' WHERE a % 2 = 0`, `DELETE FROM loose WHERE ctid IN (SELECT min(ctid) FROM loose WHERE a % 5 = 1 GROUP BY a)`)
		}},
		{"all rows deleted", func() { a.Exec(t, "shop", `DELETE FROM one`) }},
	} {
		begun := time.Now()
		step.do()
		wrote := time.Since(begun)
		if err := follow(t, a, b, "shop", 20*time.Minute); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		t.Logf("%s: the primary took %.1f s, the replica was there after %.1f s; the agents had %d and %d MB at most",
			step.what, wrote.Seconds(), time.Since(begun).Seconds(), peak(t, a), peak(t, b))
		equal(t, a, b, "shop")
	}
	if os.Getenv("HAWSER_TEST_LARGE_ROWS") == "" {
		return
	}
	for _, i := range []*instance{a, b} {
		if got := peak(t, i); got > 256 {
			t.Errorf("agent %s had %d MB", i.name, got)
		}
	}
}

// interleaved has four sessions write at the same time, and commit one after the other.
func interleaved(t *testing.T, i *instance, rows int) {
	t.Helper()
	var written, all sync.WaitGroup
	var failed [4]error
	written.Add(len(failed))
	for n := range failed {
		conn := i.Connect(t, "shop")
		all.Go(func() {
			var errs [3]error
			_, errs[0] = conn.Exec(context.Background(), `BEGIN`)
			for part := range 4 {
				if errs[1] == nil {
					_, errs[1] = conn.Exec(context.Background(), `INSERT INTO one SELECT 1000000000 * $1::bigint + i, 'of ' || $1, $1 FROM generate_series($2::int + 1, $2 + $3::int) i`,
						n+1, part*rows/40, rows/40)
				}
			}
			written.Done()
			written.Wait() // each is open until all have written
			_, errs[2] = conn.Exec(context.Background(), `COMMIT`)
			failed[n] = errors.Join(errs[:]...)
		})
	}
	all.Wait()
	if err := errors.Join(failed[:]...); err != nil {
		t.Fatal(err)
	}
}

// peak is the most memory, in MB, that an agent's process has had.
func peak(t *testing.T, i *instance) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "VmHWM:")
	kb, err := strconv.Atoi(strings.Fields(line)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb / 1024
}
