// Package schema carries the definitions of a database from a primary to its
// secondary: everything but the rows.
//
// On the primary, Inspect tells what a target must have and TakeDump turns one
// snapshot of the database into entries, each of them SQL that can be run on its
// own. pg_dump decides what the SQL is; this package decides when it is run. On
// the secondary, Requirements.Check compares a server with what Inspect said,
// CreateDatabase and RestoreRoles make the ground, and Apply runs entries.
//
// Entries are run in three phases, and within a phase in the order of their IDs:
//
//   - Pre, once, before any row arrives, one after the other: schemas, types,
//     functions, tables with their defaults, comments, privileges and row
//     security, and the indexes and foreign keys of partitioned tables, which hold no
//     rows, with the keys that those refer to.
//   - Table, for each ordinary table when its rows are there: its primary key,
//     unique and exclusion constraints, indexes with their attachment to those of
//     its partitioned parent, its replica identity, cluster mark and statistics. The
//     entries of one table follow each other; tables are independent and may be
//     built at the same time. Every table needs it, one without rows too.
//   - Final, one after the other, when all tables have theirs, with rows or without: the
//     upper levels of partitioned indexes, rules, triggers, foreign keys, publications,
//     the settings of the database and, last, event triggers.
//
// Of the final phase a secondary may leave for later what Entry.When calls PhaseRows: it
// makes nothing, and needs the rows of all tables. DDL may come before it, so its object
// is then known by its OID (Place).
//
// An entry depends on no entry of a later phase, nor on one of another table in
// the table phase; an entry that would is moved to a later phase. In the final
// phase, entries of KindRefresh, KindValidate and "INDEX" take time and hold weak
// locks; every other entry is short.
//
// This package must never read or write rows of the user's tables, never carry a
// role's password, and never touch schema hawser. It drops a database only if it
// made it.
package schema
