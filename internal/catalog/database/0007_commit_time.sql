-- A forced failover tells how much may be lost.
ALTER TABLE hawser.position
	ADD COLUMN commit_at timestamptz; -- when the transaction that ends at lsn was committed, by the primary's clock; NULL in rows of older versions
