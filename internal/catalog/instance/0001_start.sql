CREATE TABLE hawser.peer (
	name        text PRIMARY KEY,
	certificate text NOT NULL,             -- PEM
	address     text NOT NULL DEFAULT '',  -- host:port; empty: they dial us
	added_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE hawser.link (
	name       text PRIMARY KEY,
	id         text NOT NULL UNIQUE,  -- the same on both sides; names slot, publication and origin
	peer       text NOT NULL REFERENCES hawser.peer,
	database   text NOT NULL,
	side       jsonb NOT NULL,        -- link/role's State
	progress   text NOT NULL,         -- creating | running | dropping
	paused     boolean NOT NULL DEFAULT false,
	suspended  jsonb,                 -- the problem that a person must resolve
	failover   jsonb,                 -- the last failover's result
	owns_db    boolean NOT NULL,      -- the database was created for the link
	created_at timestamptz NOT NULL DEFAULT now()
);

CREATE VIEW hawser.links AS
SELECT name, database, peer, side->>'role' AS role, (side->>'term')::bigint AS term,
       progress, paused, suspended->>'cause' AS suspended_because, created_at
FROM hawser.link;
COMMENT ON VIEW hawser.links IS 'The links of this instance. Lag and state: hawser link list.';
