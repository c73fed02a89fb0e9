-- Patterns of the tables whose rows the link carries, and of those that it leaves out; a
-- link with neither carries all. The same on both sides.
ALTER TABLE hawser.link ADD COLUMN tables text[] NOT NULL DEFAULT '{}', ADD COLUMN exclude_tables text[] NOT NULL DEFAULT '{}';

ALTER TABLE hawser.heir ADD COLUMN tables text[] NOT NULL DEFAULT '{}', ADD COLUMN exclude_tables text[] NOT NULL DEFAULT '{}';

CREATE OR REPLACE VIEW hawser.links AS
SELECT name, database, peer, side->>'role' AS role, (side->>'term')::bigint AS term,
       progress, paused, suspended->>'cause' AS suspended_because, created_at, tables, exclude_tables
FROM hawser.link;
