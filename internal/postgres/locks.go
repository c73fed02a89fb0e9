package postgres

// LockSessions selects pid and granted of the sessions that have, or wait for, the advisory
// lock $1 of the database at hand.
const LockSessions = `
	SELECT pid, granted FROM pg_locks
	WHERE locktype = 'advisory' AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = $1
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
