package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
)

// TestFunctionsWithoutSchemaFromTheStart links a database whose indexes, checks, generated
// columns, views and materialized views call functions that name others, and tables,
// without their schema; it is copied, compared and followed in both directions.
func TestFunctionsWithoutSchemaFromTheStart(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	link(t, a, b, `ALTER DATABASE shop SET search_path = public, odd`, `CREATE SCHEMA odd; SET search_path = public, odd;
		CREATE TABLE odd.allowed (id int PRIMARY KEY); INSERT INTO allowed VALUES (1), (2);
		CREATE FUNCTION odd.inside(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1'; CREATE FUNCTION odd.outside(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT inside($1)';
		CREATE FUNCTION odd.slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN inside($1); END';
		CREATE FUNCTION odd.ok(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN EXISTS (SELECT FROM allowed WHERE id = $1); END';
		CREATE TABLE inlined (id int PRIMARY KEY, v int); CREATE UNIQUE INDEX ON inlined (outside(v)); CREATE INDEX ON inlined (id) WHERE outside(v) > 3; CREATE STATISTICS st ON (outside(v)), id FROM inlined;
		CREATE TABLE computed (id int PRIMARY KEY, v int CHECK (ok(v % 2 + 1)), g int GENERATED ALWAYS AS (outside(v)) STORED, h int GENERATED ALWAYS AS (slow(v)) STORED, d int DEFAULT slow(4)); CREATE UNIQUE INDEX ON computed (slow(v));
		CREATE DOMAIN odd.fit AS int CHECK (ok(VALUE)); CREATE TABLE loose (f fit, v int); CREATE INDEX ON loose (outside(v));
		CREATE TABLE parted (id int, v int) PARTITION BY RANGE (outside(v)); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000); CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
		INSERT INTO inlined SELECT i, i FROM generate_series(1, 100) i; INSERT INTO computed (id, v) TABLE inlined; INSERT INTO loose SELECT i % 2 + 1, i FROM generate_series(1, 100) i; INSERT INTO parted TABLE inlined;
		CREATE VIEW seen AS SELECT id, outside(v) AS o FROM inlined; CREATE MATERIALIZED VIEW kept AS SELECT id, slow(v) AS s FROM inlined WHERE ok(id % 2 + 1); CREATE UNIQUE INDEX ON kept (id); CREATE INDEX ON kept (slow(id))`)
	b.awaitState(t, "shop", api.StateSynchronized)
	alike(t, a, b, "shop")
	for round, side := range []struct{ primary, secondary *instance }{{a, b}, {b, a}} {
		if round > 0 {
			if _, err := side.primary.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
				t.Fatal(err)
			}
			side.secondary.awaitState(t, "shop", api.StateSynchronized)
		}
		side.primary.Exec(t, "shop", strings.ReplaceAll(`UPDATE inlined SET v = -v WHERE id % 3 = 0; UPDATE computed SET v = v + 1000 WHERE id % 3 = 0; UPDATE loose SET v = -v WHERE v % 2 = 0; DELETE FROM loose WHERE v % 5 = 0; UPDATE parted SET v = v + 2000 WHERE id < 10;
			INSERT INTO inlined VALUES (1000:n, 1000:n); INSERT INTO computed VALUES (1000:n, 10000:n); INSERT INTO parted VALUES (1000:n, 7)`, ":n", fmt.Sprint(round)),
			`TRUNCATE loose; INSERT INTO loose VALUES (1, 10), (2, 20)`, `REFRESH MATERIALIZED VIEW kept`, `REFRESH MATERIALIZED VIEW CONCURRENTLY kept`)
		alike(t, side.primary, side.secondary, "shop")
		if err := side.secondary.ResyncLink(context.Background(), "shop", []string{"public.inlined", "public.computed", "public.loose", "public.parted_1"}); err != nil {
			t.Fatal(err)
		}
		side.secondary.awaitState(t, "shop", api.StateSynchronized)
		alike(t, side.primary, side.secondary, "shop")
	}
}
