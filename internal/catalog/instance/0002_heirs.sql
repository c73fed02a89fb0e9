-- A link may be taken up from another link's old primary before its secondary is
-- known here as a peer. That no link loses its peer is seen to where peers are removed.
ALTER TABLE hawser.link DROP CONSTRAINT link_peer_fkey;

-- The other links of a database that this instance will lead when it takes over by
-- one link. Their slots exist already.
CREATE TABLE hawser.heir (
	id    text PRIMARY KEY,      -- of the link to be taken up
	link  text NOT NULL REFERENCES hawser.link ON DELETE CASCADE,  -- the one that hands over
	name  text NOT NULL,
	peer  text NOT NULL,         -- its secondary
	term  bigint NOT NULL,       -- that the handoff brings
	after bigint NOT NULL,       -- the term that the link is in
	next  bigint NOT NULL        -- the term that it will be in
);
