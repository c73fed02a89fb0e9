-- Bytes of WAL that the link may hold back on its primary: NULL leaves it to that agent's
-- limits.wal_held, 0 sets no bound. The primary's word counts; its secondary takes it over.
ALTER TABLE hawser.link ADD COLUMN max_wal bigint;

ALTER TABLE hawser.heir ADD COLUMN max_wal bigint;

CREATE OR REPLACE VIEW hawser.links AS
SELECT name, database, peer, side->>'role' AS role, (side->>'term')::bigint AS term,
       progress, paused, suspended->>'cause' AS suspended_because, created_at, tables, exclude_tables, max_wal
FROM hawser.link;
