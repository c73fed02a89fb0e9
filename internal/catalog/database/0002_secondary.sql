-- Up to where the primary's stream is applied: written by the transaction that holds
-- the changes. (An origin's own progress also moves when a transaction is rolled back
-- behind pg_replication_origin_xact_setup, from PostgreSQL 16 on.)
CREATE TABLE hawser.position (
	origin text PRIMARY KEY,
	lsn    pg_lsn NOT NULL
) WITH (fillfactor = 10);

-- Rows of a side that was forced out and rejoins, which are to be replaced by the
-- new primary's. The row itself is gone until then.
CREATE TABLE hawser.repair (
	link    text NOT NULL REFERENCES hawser.member ON DELETE CASCADE,
	tbl     oid NOT NULL,               -- here, on the secondary
	columns smallint[] NOT NULL,        -- attribute numbers of the key
	key     text[] NOT NULL,
	PRIMARY KEY (link, tbl, key)
);

-- Triggers and rules that fire for replication too: silenced on a secondary, with the
-- state that they get back when it becomes primary.
CREATE TABLE hawser.quiet (
	kind    text NOT NULL,
	tbl     oid NOT NULL,
	name    name NOT NULL,
	enabled "char" NOT NULL,
	PRIMARY KEY (kind, tbl, name)
);
