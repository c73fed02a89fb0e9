package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
)

// TestExtremes carries what is as large as PostgreSQL has it: tables of 1,600 columns,
// names of 63 bytes and longer ones, the longest numbers, domains over every kind of
// type; in both directions.
func TestExtremes(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	var columns []string
	for i := range 1599 {
		columns = append(columns, fmt.Sprintf("c%d int", i))
	}
	long := strings.Repeat("é", 31)
	sql := func(round int, s string) string {
		return strings.NewReplacer(":columns", strings.Join(columns, ", "), ":long", long, ":digits", strings.Repeat("9", 131072), ":n", fmt.Sprint(round)).Replace(s)
	}
	link(t, a, b, sql(0, `CREATE TABLE wide (id int PRIMARY KEY, :columns); INSERT INTO wide (id, c0, c1598) VALUES (1, 1, 1), (2, NULL, 2); CREATE TABLE wide_loose (id int, :columns); INSERT INTO wide_loose SELECT * FROM wide`),
		sql(0, `CREATE TABLE ":longa" (":longb" int PRIMARY KEY, ":longc" text CONSTRAINT ":longd" CHECK (":longc" <> 'x')); INSERT INTO ":longa" VALUES (1, 'a'); CREATE TABLE ":longb" (":longx" int)`),
		sql(0, `CREATE TABLE numbers (id int PRIMARY KEY, n numeric, i interval, f float8); INSERT INTO numbers VALUES (1, ':digits', '-178000000 years', '5e-324'), (2, '1e-16383', '1 mon -1 day 25:00', '-0')`),
		`CREATE TYPE pair AS (a int, b text); CREATE DOMAIN a_range AS int4range CHECK (NOT isempty(VALUE)); CREATE DOMAIN a_pair AS pair CHECK ((VALUE).a > 0); CREATE DOMAIN pairs AS a_pair[]; CREATE DOMAIN many AS int4multirange;
		 CREATE TABLE domains (id int PRIMARY KEY, r a_range, p a_pair, ps pairs, m many, rs a_range[]); INSERT INTO domains VALUES (1, '[1,5)', '(1,x)', '{"(1,x)",NULL}', '{[1,2)}', '{"[1,5)"}')`)
	b.awaitState(t, "shop", api.StateSynchronized)
	for round, side := range []struct{ primary, secondary *instance }{{a, b}, {b, a}} {
		if round > 0 {
			if _, err := side.primary.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
				t.Fatal(err)
			}
			side.secondary.awaitState(t, "shop", api.StateSynchronized)
		}
		for _, s := range []string{
			`INSERT INTO wide (id, c7) VALUES (1:n, 7); UPDATE wide SET c1598 = id, c3 = NULL; DELETE FROM wide WHERE id = 1:n; INSERT INTO wide_loose SELECT * FROM wide; UPDATE wide_loose SET c500 = 5 WHERE id = 1; DELETE FROM wide_loose WHERE ctid = (SELECT min(ctid) FROM wide_loose WHERE id = 2)`,
			`INSERT INTO ":longa" VALUES (2:n, 'b'); UPDATE ":longa" SET ":longc" = 'c'; ALTER TABLE ":longa" ADD ":long:n" int DEFAULT 7; CREATE INDEX "i:n:long and much more that PostgreSQL cuts off" ON ":longa" (":longc"); CREATE TABLE ":long:n and much more" (":longa and more" int); INSERT INTO ":long:n and much more" VALUES (1)`,
			`SET IntervalStyle = 'sql_standard'; SET DateStyle = 'German'; SET extra_float_digits = -5; INSERT INTO numbers VALUES (10:n, '-:digits', '-1-2 +3 -4:05:06', '1.7976931348623157e308'); UPDATE numbers SET i = -i, n = n - 1 WHERE n > 0; CREATE TABLE styled_:n (i interval DEFAULT '-1-2 +3 -4:05:06', d date DEFAULT '31.12.2024'); INSERT INTO styled_:n DEFAULT VALUES`,
			`INSERT INTO domains SELECT id + 10 + :n, r, p, ps, m, rs FROM domains; UPDATE domains SET r = '[7,)', p = ROW(9, NULL), ps = ps || ROW(4, 'y')::pair::a_pair; DELETE FROM domains WHERE id = 1`,
		} {
			side.primary.Exec(t, "shop", sql(round, s))
		}
		same(t, side.primary, side.secondary, "shop")
	}
}
