package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// TestSchemasSwappedUnderWriters: schemas change their names while a transaction that has
// written to their tables is open. PostgreSQL takes no lock on the tables for that, and the
// rows would come behind the command, under the names of before: for other tables.
func TestSchemasSwappedUnderWriters(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE SCHEMA live; CREATE TABLE live.t (id int PRIMARY KEY, v text); CREATE SCHEMA next; CREATE TABLE next.t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	conn := a.Connect(t, "shop")
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, swap := range []string{
		`BEGIN; ALTER SCHEMA live RENAME TO old; ALTER SCHEMA next RENAME TO live; ALTER SCHEMA old RENAME TO next; COMMIT`,
		`DO $$ BEGIN EXECUTE 'ALTER SCHEMA live RENAME TO old'; ALTER SCHEMA next RENAME TO live; ALTER SCHEMA old RENAME TO next; END $$`,
	} {
		exec(`BEGIN; DELETE FROM live.t; INSERT INTO live.t VALUES (1, 'of live')`)
		swapped := make(chan error, 1)
		go func() { swapped <- tryIn(a, "shop", swap) }()
		testpg.Eventually(t, 20*time.Second, "the swap waits, or is done", func() (bool, error) {
			return len(swapped) > 0 || len(a.Rows(t, "shop", `SELECT FROM pg_locks WHERE NOT granted`)) > 0, nil
		})
		exec(`COMMIT`)
		if err := testpg.Await(t, "the schemas are swapped", swapped); err != nil {
			t.Fatal(err)
		}
		same(t, a, b, "shop")
	}
	exec(`BEGIN; INSERT INTO live.t VALUES (2, 'of live')`)
	if err := try(t, a, `SET lock_timeout = '10ms'; ALTER SCHEMA live RENAME TO old`); err == nil {
		t.Error("a schema was renamed under a writer")
	}
	exec(`COMMIT; ALTER SCHEMA live OWNER TO postgres`)
	same(t, a, b, "shop")
}

// TestTypesChangedUnderWriters: the same for what a value of a type is called.
func TestTypesChangedUnderWriters(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN moods AS mood[]; CREATE TYPE pair AS (m mood, gone int); CREATE TYPE span AS RANGE (subtype = mood);
		CREATE TABLE plain (id int PRIMARY KEY, m mood); CREATE TABLE deep (id int PRIMARY KEY, ms moods); CREATE TABLE composite (id int PRIMARY KEY, ps pair[]); CREATE TABLE spans (id int PRIMARY KEY, s span); CREATE DOMAIN word AS text; CREATE TABLE short (id int PRIMARY KEY, w word)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	conn := a.Connect(t, "shop")
	for n, x := range []struct{ write, change string }{
		{`INSERT INTO plain VALUES (:n, 'sad')`, `ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`},
		{`INSERT INTO deep VALUES (:n, '{blue}')`, `ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'`},
		{`INSERT INTO spans VALUES (:n, '[sad,ok]')`, `BEGIN; ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'ok' TO 'sad'; ALTER TYPE mood RENAME VALUE 'x' TO 'ok'; COMMIT`},
		{`INSERT INTO composite VALUES (:n, '{"(sad,1)"}')`, `ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`},
		{`INSERT INTO short VALUES (:n, 'too long')`, `ALTER DOMAIN word ADD CHECK (length(VALUE) < 3) NOT VALID`},
		{`INSERT INTO composite VALUES (:n, '{"(blue,1)"}')`, `ALTER TYPE pair DROP ATTRIBUTE gone`},
	} {
		if _, err := conn.Exec(context.Background(), `BEGIN; `+strings.ReplaceAll(x.write, ":n", fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
		changed := make(chan error, 1)
		go func() { changed <- tryIn(a, "shop", x.change) }()
		testpg.Eventually(t, 20*time.Second, "the change waits, or is done", func() (bool, error) {
			return len(changed) > 0 || len(a.Rows(t, "shop", `SELECT FROM pg_locks WHERE NOT granted`)) > 0, nil
		})
		if _, err := conn.Exec(context.Background(), `COMMIT`); err != nil {
			t.Fatal(err)
		}
		if err := testpg.Await(t, "the type is changed", changed); err != nil {
			t.Fatal(err)
		}
		same(t, a, b, "shop")
	}
}
