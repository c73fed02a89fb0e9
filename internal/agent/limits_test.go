package agent_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestSubtransactions has thousands of subtransactions in one transaction, some of which
// have commands in them, and some of which are rolled back.
func TestSubtransactions(t *testing.T) {
	t.Parallel()
	a, b := small(t)
	a.Exec(t, "shop", `CREATE TABLE parts (id int, v text); CREATE TABLE altered (id int PRIMARY KEY)`, `
		DO $$ BEGIN FOR i IN 1..10000 LOOP
			BEGIN
				INSERT INTO parts VALUES (i, 'part ' || i);
				IF i % 500 = 0 THEN
					EXECUTE format('CREATE TABLE part_%s AS SELECT * FROM parts WHERE id > %s', i, i - 10);
					EXECUTE format('ALTER TABLE altered ADD c%s int DEFAULT %s', i, i);
					EXECUTE format('INSERT INTO altered (id, c%s) VALUES (%s, 7)', i, i);
				END IF;
				IF i % 7 = 0 OR i % 1500 = 0 THEN RAISE 'never'; END IF;
			EXCEPTION WHEN raise_exception THEN NULL;
			END;
		END LOOP; END $$`)
	if err := follow(t, a, b, "shop", 5*time.Minute); err != nil {
		t.Fatal(err)
	}
	same(t, a, b, "shop")
	if got := testpg.Rows(t, b.Connect(t, "shop"), `SELECT count(*) FROM parts`)[0]; got != "8566" {
		t.Errorf("%s rows arrived", got)
	}
}

// TestCompression has columns that are compressed in another way than by default, and
// changes that.
func TestCompression(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE packed (id int PRIMARY KEY, l text COMPRESSION lz4, p text COMPRESSION pglz, d text); INSERT INTO packed SELECT i, repeat('l' || i, 5000), repeat('p' || i, 5000), repeat('d', 5000) FROM generate_series(1, 50) i`)
	b.awaitState(t, "shop", api.StateSynchronized)
	a.Exec(t, "shop", `SET default_toast_compression = lz4; CREATE TABLE later (id int PRIMARY KEY, v text, w text COMPRESSION lz4); INSERT INTO later SELECT i, repeat('v', 9000), repeat('w', 9000) FROM generate_series(1, 20) i`,
		`ALTER TABLE packed ALTER d SET COMPRESSION lz4; ALTER TABLE packed ALTER l SET COMPRESSION default; UPDATE packed SET d = repeat('e', 9000), p = p || 'x' WHERE id % 2 = 0; UPDATE packed SET id = id + 100`)
	same(t, a, b, "shop")
	report, err := a.VerifyLink(context.Background(), "shop", api.VerifyOptions{})
	if err != nil || !report.Equal {
		t.Errorf("verify: %+v %v", report, err)
	}
}

// TestUnloggedAndBack makes a carried table unlogged, writes to it, and logs it again.
func TestUnloggedAndBack(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TABLE keyed (id int PRIMARY KEY, v text); INSERT INTO keyed SELECT i, 'v' FROM generate_series(1, 1000) i; CREATE TABLE loose (id int, v text); INSERT INTO loose TABLE keyed`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for range 2 {
		a.Exec(t, "shop", `ALTER TABLE keyed SET UNLOGGED; ALTER TABLE loose SET UNLOGGED`, `UPDATE keyed SET v = v || 'u' WHERE id % 2 = 0; DELETE FROM keyed WHERE id % 7 = 0; UPDATE loose SET v = 'w' WHERE id < 10; INSERT INTO loose VALUES (5000, 'new')`)
		arrived(t, a, b, "shop")
		a.Exec(t, "shop", `ALTER TABLE keyed SET LOGGED`, `ALTER TABLE loose SET LOGGED`, `UPDATE keyed SET v = v || 'l' WHERE id % 3 = 0; DELETE FROM loose WHERE id = 20; UPDATE loose SET v = 'last' WHERE id = 5000`)
		same(t, a, b, "shop")
	}
	a.Exec(t, "shop", `BEGIN; ALTER TABLE keyed SET UNLOGGED; INSERT INTO keyed VALUES (9001, 'in'); ALTER TABLE keyed SET LOGGED; INSERT INTO keyed VALUES (9002, 'after'); COMMIT`)
	same(t, a, b, "shop")
	if err := b.ResyncLink(context.Background(), "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	same(t, a, b, "shop")
}

// TestLargestValues carries a value of 500 MB. PostgreSQL has no text of more than 1 GB,
// which that of a bytea has from 512 MB on: a row of those can't be sent, by the copy nor
// by the stream, and both say so, and what to do. It is part of make large.
func TestLargestValues(t *testing.T) {
	t.Parallel()
	if os.Getenv("HAWSER_TEST_LARGE_ROWS") == "" {
		t.Skip("values of hundreds of MB are carried by make large")
	}
	a, b := pair(t)
	for _, i := range []*instance{a, b} {
		i.stop()
		i.process = true
		i.run(t)
	}
	const huge = `SELECT decode(repeat('00', 260000000), 'hex') || decode(repeat('01', 280000000), 'hex')`
	link(t, a, b, `CREATE TABLE large (id int PRIMARY KEY, v text); INSERT INTO large VALUES (1, repeat('x', 500000000)); CREATE TABLE huge (id int PRIMARY KEY, v bytea); INSERT INTO huge VALUES (1, (`+huge+`))`)
	_, remedy := b.awaitCause(t, api.StateSuspended, "row-too-large")
	if !strings.Contains(remedy, "hawser link resume shop") {
		t.Errorf("remedy %q", remedy)
	}
	a.Exec(t, "shop", `UPDATE huge SET v = 'small'`)
	if err := b.ResumeLink(context.Background(), "shop"); err != nil {
		t.Fatal(err)
	}
	b.awaitStateWithin(t, "shop", api.StateSynchronized, 5*time.Minute)
	begun := time.Now()
	a.Exec(t, "shop", `UPDATE large SET v = v || 'y'; INSERT INTO large SELECT 2, v FROM large`)
	if err := follow(t, a, b, "shop", 10*time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("two rows of 500 MB: on the replica after %.1f s; the agents had %d and %d MB at most", time.Since(begun).Seconds(), peak(t, a), peak(t, b))
	equal(t, a, b, "shop")

	a.Exec(t, "shop", `INSERT INTO huge VALUES (2, (`+huge+`))`)
	_, remedy = b.awaitCause(t, api.StateSuspended, "row-too-large")
	slot := testpg.Rows(t, a.Connect(t, "shop"), `SELECT slot_name FROM pg_replication_slots`)[0]
	if drop := fmt.Sprintf(`SELECT pg_drop_replication_slot('%s')`, slot); !strings.Contains(remedy, drop) || !strings.Contains(remedy, "hawser link resync shop") {
		t.Errorf("remedy %q", remedy)
	}
	a.Exec(t, "shop", `DELETE FROM huge WHERE id = 2`, `SELECT pg_drop_replication_slot('`+slot+`')`)
	if err := b.ResyncLink(context.Background(), "shop", nil); err != nil {
		t.Fatal(err)
	}
	b.awaitStateWithin(t, "shop", api.StateSynchronized, 5*time.Minute)
	equal(t, a, b, "shop")
}
