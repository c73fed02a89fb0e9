-- By these a restored PostgreSQL is recognized. All are NULL in rows of older versions.
ALTER TABLE hawser.position
	ADD COLUMN commit_lsn pg_lsn, -- of the commit record of the transaction that ends at lsn
	ADD COLUMN xid        bigint, -- of that transaction
	ADD COLUMN reached    pg_lsn; -- nothing for this database lies between lsn and it; no slot is confirmed beyond the later of the two
