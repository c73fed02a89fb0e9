package apply

import (
	"context"
	"fmt"

	"github.com/hawser/hawser/internal/catalog"
)

// AdvanceSequences moves every ascending sequence that fills a column past that
// column's greatest value. Sequences follow a little behind the rows, so after a
// forced failover one could hand out a value that is taken.
func AdvanceSequences(ctx context.Context, db catalog.DB) error {
	_, err := db.Exec(ctx, `
		DO $$
		DECLARE
			r record;
			top numeric;
		BEGIN
			FOR r IN
				SELECT DISTINCT q.seqrelid AS seq, q.seqmax AS most, d.refobjid::regclass AS tbl, a.attname AS col
				FROM pg_sequence q
				JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = q.seqrelid
				                AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
				JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
				                   AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype)
				WHERE q.seqincrement > 0
			LOOP
				EXECUTE format('SELECT max(%I)::numeric FROM %s', r.col, r.tbl) INTO top;
				IF top <= r.most THEN
					PERFORM setval(r.seq::regclass, greatest(trunc(top)::bigint, pg_sequence_last_value(r.seq)))
					WHERE top > coalesce(pg_sequence_last_value(r.seq), 0);
				END IF;
			END LOOP;
		END $$`)
	if err != nil {
		return fmt.Errorf("move the sequences past the values that are taken: %w", err)
	}
	return nil
}
