// Package fence makes one database read-only for everybody but Hawser's agents,
// and writable again.
//
// # How it works
//
// Every table has a statement-level trigger hawser_fence BEFORE INSERT, UPDATE,
// DELETE and TRUNCATE that calls hawser.fence(), a second one, hawser_fence_replica, for
// sessions with session_replication_role = replica, and the database has an event
// trigger hawser_fence, for both, that calls hawser.fence_ddl(). While the fence is open
// both functions do nothing. Close replaces their bodies by ones that raise
// SQLSTATE 25006 and sets default_transaction_read_only for the database; Open
// takes both back. Prepare, which has to visit every table, is done beforehand.
// Close and Open cost the same on one table as on ten thousand, and lock none.
//
// The agents' sessions run with session_replication_role = replica, which takes a
// superuser, and hawser.agent = on; those with both pass. While an agent fills a
// materialized view it is "fills" instead: that command passes, and nothing that the
// view's query writes.
//
// # What holds
//
// Once every table was prepared and Close has returned, no transaction that begins
// changes a row of a table or the schema, whoever runs it: superusers, sessions that
// were open before, sessions that switch default_transaction_read_only or
// transaction_read_only off, or triggers by session_replication_role, SECURITY DEFINER functions, and background workers such as pg_cron's. It
// holds for INSERT, UPDATE, DELETE, MERGE, COPY and TRUNCATE, also through views,
// rules, INSTEAD OF triggers, foreign keys' cascades, TRUNCATE … CASCADE,
// partitioned and inherited tables, and CTEs; and for every command of which
// PostgreSQL tells event triggers, among them CREATE TABLE AS, SELECT INTO and
// REFRESH MATERIALIZED VIEW. A statement that would change no row is refused too.
//
// Once Drain has returned, no transaction that began before Close can commit a
// change. Drain ends every session that could, so it also ends readers.
//
// Reading goes on, and so do VACUUM, ANALYZE, REINDEX, CLUSTER, LISTEN and NOTIFY,
// pg_dump, rows of temporary tables, and whatever an agent does. New temporary
// tables are refused, as in any read-only transaction.
//
// # What an ordinary read-only transaction refuses, and nothing more
//
// default_transaction_read_only alone stops what follows. A session that switches
// it off can do it:
//
//   - nextval and setval. The link sets sequences on the secondary, and the
//     handoff carries their last values, so nothing is doubled.
//   - Large objects, from PostgreSQL 16 on. PostgreSQL 14 and 15 let read-only
//     transactions write them. Links refuse databases that have any; Check names them.
//   - REASSIGN OWNED, of which event triggers are not told.
//   - SELECT … FOR UPDATE, which can hold up the applier.
//   - TRUNCATE of a foreign table before PostgreSQL 16, which knows no trigger for it.
//
// # What can't be prevented
//
//   - A superuser who says that his session is an agent's, by both settings above.
//   - DDL of a superuser, or of a role that was granted SET on the parameter, who sets
//     event_triggers = off (PostgreSQL 17 on).
//   - A superuser who disables or drops the event trigger, or writes to the catalogs.
//   - What is of no database: roles, tablespaces, ALTER DATABASE, ALTER SYSTEM. The
//     database's owner can reset default_transaction_read_only; the triggers stay.
//   - A subscription of PostgreSQL's own logical replication: its workers pass as
//     our agents do. Drain refuses to go on while one is enabled.
//   - LOCK TABLE, with which anybody can hold up the applier.
//   - A prepared transaction, which anybody may commit later. Drain names it.
//   - Code in C that does not pass through the executor.
//
// Check finds of these what leaves a trace; package link asks it every minute.
//
// # Copies of the database
//
// pg_dump writes schema hawser and the triggers into its output. What is restored
// from it elsewhere is writable: the closed functions do nothing in a database that
// is neither the one that was closed (by system identifier and OID) nor read-only by
// its own default. The second rule keeps a secondary closed across pg_upgrade; it
// also keeps a copy closed that was restored with pg_dump --create. A physical copy
// is closed. To free a copy by hand, as superuser:
//
//	SET session_replication_role = replica; SET transaction_read_only = off;
//	DROP EVENT TRIGGER hawser_fence; DROP SCHEMA hawser CASCADE;
//	ALTER DATABASE … RESET default_transaction_read_only;
//
// This package must never decide whether a side may write: it does what it is told.
// It must never wait for a lock on a user's table long enough for writers to notice.
package fence
