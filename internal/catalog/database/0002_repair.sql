-- Rows of a side that was forced out and rejoins, which are to be replaced by the
-- new primary's. The row itself is gone until then.
CREATE TABLE hawser.repair (
	link    text NOT NULL REFERENCES hawser.member ON DELETE CASCADE,
	tbl     oid NOT NULL,               -- here, on the secondary
	columns smallint[] NOT NULL,        -- attribute numbers of the key
	key     text[] NOT NULL,
	PRIMARY KEY (link, tbl, key)
);
