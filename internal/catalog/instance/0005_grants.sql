-- What a peer may do: patterns of the databases that links with it may concern, and which
-- way data may flow.
ALTER TABLE hawser.peer
	ADD COLUMN databases text[] NOT NULL DEFAULT '{*}',
	ADD COLUMN direction text   NOT NULL DEFAULT 'both' CHECK (direction IN ('both', 'to-peer', 'from-peer'));
