-- Entries of phase 'rows' wait until the rows of all tables are there. They keep to their
-- object however DDL may rename it, or make it anew, until then.
ALTER TABLE hawser.schema_entry
	ADD COLUMN here     oid,            -- the constraint or view, on this side; 0: the entry's statements are run as they are
	ADD COLUMN relation oid,            -- of a constraint: its table here
	ADD COLUMN name     name;           -- of a constraint
UPDATE hawser.schema_entry SET phase = 'rows', here = CASE entry->>'kind' WHEN 'DDL' THEN 0 END
	WHERE phase = 'final' AND entry->>'kind' IN ('FK VALIDATE', 'MATERIALIZED VIEW DATA', 'DDL');
