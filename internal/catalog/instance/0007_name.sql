-- Whose catalog this is: an agent of another instance would act on links that are not its own.
CREATE TABLE hawser.instance (
	one  boolean PRIMARY KEY DEFAULT true CHECK (one),
	name text NOT NULL  -- of the first agent that began on this catalog, or on this version of it
);
