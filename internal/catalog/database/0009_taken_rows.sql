-- A row that a rejoin took away is kept until the new primary's is here: should that be lost
-- for good, the link is dropped by force, and the row put back.
ALTER TABLE hawser.repair
	ADD COLUMN fields smallint[], -- attribute numbers of the row's values
	ADD COLUMN row text[];        -- the values as they are written; NULL: there was no such row
