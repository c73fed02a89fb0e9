package apply

import (
	"context"
	"fmt"

	"github.com/hawser/hawser/internal/catalog"
)

// AdvanceSequences moves every sequence that fills a column past the values that the column
// holds, in its own steps. Sequences follow a little behind the rows, so after a forced
// failover one could hand out a value that is taken. The rows do not tell what was handed
// out last of one that cycles, or by a default that makes another value of it.
func AdvanceSequences(ctx context.Context, db catalog.DB) error {
	_, err := db.Exec(ctx, `
		DO $$
		DECLARE
			r record;
			edge numeric;
			at numeric;
			called boolean;
			steps numeric;
		BEGIN
			FOR r IN
				SELECT DISTINCT q.seqrelid::regclass AS seq, q.seqincrement AS step, q.seqmin AS least, q.seqmax AS most, a.attrelid::regclass AS tbl, a.attname AS col
				FROM pg_sequence q
				JOIN (
					SELECT d.objid AS seq, d.refobjid AS rel, d.refobjsubid AS num FROM pg_depend d
					WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
					UNION SELECT d.refobjid, e.adrelid, e.adnum FROM pg_depend d JOIN pg_attrdef e ON d.classid = 'pg_attrdef'::regclass AND e.oid = d.objid
					WHERE d.refclassid = 'pg_class'::regclass AND d.deptype = 'n') f ON f.seq = q.seqrelid
				JOIN pg_attribute a ON a.attrelid = f.rel AND a.attnum = f.num
				                   AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype)
				LEFT JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
				WHERE NOT q.seqcycle AND coalesce(pg_get_expr(e.adbin, e.adrelid), 'nextval(''''::regclass)') ~ '^[(]*nextval[(]''.*''::regclass[)]+(::[a-z]+)?$'
			LOOP
				EXECUTE format('SELECT %s(%I)::numeric FROM %s', CASE WHEN r.step > 0 THEN 'max' ELSE 'min' END, r.col, r.tbl) INTO edge;
				CONTINUE WHEN edge IS NULL OR edge NOT BETWEEN r.least AND r.most;
				EXECUTE format('SELECT last_value, is_called FROM %s', r.seq) INTO at, called;
				steps := (edge - at) / r.step;
				IF steps > 0 OR steps = 0 AND NOT called THEN
					steps := least(ceil(steps), trunc((CASE WHEN r.step > 0 THEN r.most ELSE r.least END - at) / r.step));
					PERFORM setval(r.seq, (at + steps * r.step)::bigint);
				END IF;
			END LOOP;
		END $$`)
	if err != nil {
		return fmt.Errorf("move the sequences past the values that are taken: %w", err)
	}
	return nil
}
