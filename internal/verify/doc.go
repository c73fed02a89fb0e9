// Package verify proves that two databases hold the same rows at one position, or
// names what differs.
//
// Each side is read under one exported snapshot, which the caller has taken so
// that both show the same position of the primary, and which must stay alive
// until Run returns. Nothing is sent but counts, hashes, and the keys of rows that
// differ. Of a table with N rows the work is one scan on each side; the rows that
// differ are found by three or four more, of that table alone.
//
// # The hash
//
// A row becomes the text that PostgreSQL prints for ROW(…)::text, its columns
// ordered by name, in a session whose settings are fixed; so the order of the
// columns, DateStyle, TimeZone, bytea_output, the locale and the version of the
// server don't matter, while a blank at the end, a -0, or the scale of a numeric
// do. Two 64-bit hashes are taken of the text, and their sums over all rows are the
// table's 128-bit hash: duplicates count, the order of rows does not, and parts can
// be added. The hash finds accidents, not forgeries.
//
// Where the two servers' encodings or byte orders differ, SHA-256 over UTF-8 takes
// the place of PostgreSQL's own hash, at about twice the cost. Where a row's text is beyond
// what PostgreSQL can build (1 GB), the table is done again with large values
// replaced by their hashes.
//
// # Differs, or could not be checked
//
// They are different answers, for a table and for the whole. A table that was
// truncated, rewritten, renamed or dropped after the snapshot was taken can't be
// read under it any more (PostgreSQL would show it empty) and is Unchecked.
//
// This package must never write, never take a lock stronger than ACCESS SHARE, and
// hold that on one table only while it reads it. It does not know how the
// snapshots were taken, nor the network: the other side is a Side.
package verify
