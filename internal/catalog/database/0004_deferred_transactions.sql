-- Which transaction a deferred change is of: a table whose copy begins anew keeps
-- those that its new snapshot does not see either. NULL in rows of older agents.
ALTER TABLE hawser.deferred ADD COLUMN xid bigint;
