-- The links that this schema serves. The last one to go takes the schema with it.
CREATE TABLE hawser.member (
	link text PRIMARY KEY,
	name text NOT NULL
);

-- One row per link while its copy is being made on this database.
CREATE TABLE hawser.seeding (
	link     text PRIMARY KEY REFERENCES hawser.member ON DELETE CASCADE,
	snapshot text,                      -- of the schema dump; NULL until the schema is restored
	skipped  text[] NOT NULL DEFAULT '{}', -- transactions skipped for pending tables and not yet known to be visible to a snapshot
	initial  boolean NOT NULL DEFAULT true, -- the first copy, of the whole database
	done     boolean NOT NULL DEFAULT false
);

CREATE TABLE hawser.seed_table (
	link       text NOT NULL REFERENCES hawser.member ON DELETE CASCADE,
	oid        oid NOT NULL,            -- on the primary
	schema     text NOT NULL,
	name       text NOT NULL,
	state      text NOT NULL DEFAULT 'pending'
		CHECK (state IN ('pending', 'copying', 'loaded', 'live')),
	snapshot   text,                    -- pg_current_snapshot() of the copy
	lsn        pg_lsn,                  -- every transaction in the snapshot was committed before it
	bytes      bigint NOT NULL DEFAULT 0,
	rows       bigint NOT NULL DEFAULT -1,
	bytes_done bigint NOT NULL DEFAULT 0,
	rows_done  bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (link, oid)
);

-- Changes of tables that are being copied, as pgoutput sent them.
CREATE TABLE hawser.deferred (
	link    text NOT NULL REFERENCES hawser.member ON DELETE CASCADE,
	oid     oid NOT NULL,
	seq     bigint GENERATED ALWAYS AS IDENTITY,
	payload bytea NOT NULL,
	PRIMARY KEY (link, oid, seq)
);

-- What is still to be built of the schema, in the order of id.
CREATE TABLE hawser.schema_entry (
	link   text NOT NULL REFERENCES hawser.member ON DELETE CASCADE,
	id     integer NOT NULL,
	phase  text NOT NULL,
	tbl    oid NOT NULL,                -- on the primary; 0: of no table
	entry  jsonb NOT NULL,              -- schema.Entry
	done   boolean NOT NULL DEFAULT false,
	PRIMARY KEY (link, id)
);
