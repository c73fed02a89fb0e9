-- A user's key may fill its own index row, and as text it is twice as long: it is told
-- from others by its digest.
ALTER TABLE hawser.repair ADD COLUMN digest bytea;
UPDATE hawser.repair SET digest = sha256(convert_to(key::text, 'UTF8'));
ALTER TABLE hawser.repair DROP CONSTRAINT repair_pkey;
ALTER TABLE hawser.repair ADD PRIMARY KEY (link, tbl, digest);
