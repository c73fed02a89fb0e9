package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// A rejoin takes rows away before the new primary's are fetched, and keeps what they were
// (catalog.Taker). Whoever begins the rejoin anew, or ends the link without it, puts them
// back first.

// connectValues opens a session in which values are written the same way as when they were
// kept.
func (l *link) connectValues(ctx context.Context, purpose string) (*pgx.Conn, error) {
	return l.m.connect(ctx, l.database(), l.rec.Name+":"+purpose, postgres.ValueSettings())
}

// returned tells what became of rows that were taken away.
type returned struct {
	rows   int64    // put back
	absent int64    // that this side had deleted before
	tables []string // of these, as SQL names them
	broken []brokenKey
	failed []unfit // rows that can't be there any more
	path   string  // the file that has these
}

// unfit is a row for which there is no place any more, a line of JSON in the file of such rows.
type unfit struct {
	Table  string             `json:"table,omitempty"` // as SQL names it; without one it was dropped
	Key    []string           `json:"key"`
	Why    string             `json:"why"`
	Values map[string]*string `json:"row,omitempty"`
}

func (u unfit) words() string {
	of := "a table that was dropped"
	if u.Table != "" {
		of = u.Table
	}
	return "row (" + excerpt(strings.Join(u.Key, ", ")) + ") of " + of + ": " + u.Why
}

// putAllBack puts back what a rejoin by this link, or by another one of the database, left
// away when it was cut short.
func (l *link) putAllBack(ctx context.Context, tx pgx.Tx) error {
	for _, of := range append(l.m.siblings(l), l) {
		if _, err := of.putBack(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

// putBack puts back all rows that were taken away, as far as what came since lets it, and
// forgets that they were.
func (l *link) putBack(ctx context.Context, tx pgx.Tx) (out returned, err error) {
	counts, err := catalog.TakenCounts(ctx, tx, l.rec.ID)
	if err != nil {
		return out, err
	}
	var touched []string
	for _, c := range counts {
		touched = append(touched, c.Table)
		out.absent += c.Other
		if c.Kept > 0 {
			out.tables = append(out.tables, c.Table)
		}
	}
	var after catalog.TakenRow
	for {
		r, err := catalog.Taken(ctx, tx, l.rec.ID, after)
		if err != nil {
			return out, err
		}
		if r == nil {
			break
		}
		switch refused, err := l.putBackRow(ctx, tx, *r); {
		case err != nil:
			return out, err
		case refused != "":
			if err := l.keepUnfit(ctx, tx, *r, refused, &out); err != nil {
				return out, err
			}
		default:
			out.rows++
		}
		after = *r
	}
	if out.broken, err = brokenKeys(ctx, tx, touched); err != nil {
		return out, err
	}
	return out, catalog.ForgetRepairs(ctx, tx, l.rec.ID)
}

// brokenKey is a foreign key some of whose rows refer to none. Rows that were put back are
// of another time than those that the stream brought, and the server checks neither.
type brokenKey struct {
	name, table string // as SQL names them
	rows        int64
	query       string // lists them
}

const sqlKeys = `
	WITH t AS (SELECT to_regclass(n) AS oid FROM unnest($1::text[]) n), touched AS (SELECT oid FROM t UNION SELECT pg_partition_ancestors(oid) FROM t)
	SELECT quote_ident(k.conname), k.conrelid::regclass::text, format('FROM %s c WHERE %s AND NOT EXISTS (SELECT FROM %s p WHERE %s)', k.conrelid::regclass,
		(SELECT string_agg(format('c.%I IS NOT NULL', a.attname), ' AND ') FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)), k.confrelid::regclass,
		(SELECT string_agg(format('p.%I OPERATOR(%I.%s) c.%I', f.attname, n.nspname, o.oprname, a.attname), ' AND ')
		 FROM unnest(k.confkey, k.conkey, k.conpfeqop) u (f, a, o) JOIN pg_attribute f ON f.attrelid = k.confrelid AND f.attnum = u.f
		 JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.a JOIN pg_operator o ON o.oid = u.o JOIN pg_namespace n ON n.oid = o.oprnamespace))
	FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0 AND k.convalidated AND (k.conrelid IN (SELECT oid FROM touched) OR k.confrelid IN (SELECT oid FROM touched))
	ORDER BY 2, 1`

// brokenKeys looks at all foreign keys of the tables, from them and to them.
func brokenKeys(ctx context.Context, tx pgx.Tx, tables []string) (broken []brokenKey, err error) {
	rows, err := tx.Query(ctx, sqlKeys, tables)
	if err != nil {
		return nil, fmt.Errorf("list the foreign keys of rows that were put back: %w", err)
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (k brokenKey, err error) {
		return k, row.Scan(&k.name, &k.table, &k.query)
	})
	if err != nil {
		return nil, fmt.Errorf("list the foreign keys of rows that were put back: %w", err)
	}
	for _, k := range keys {
		err := postgres.InUserPath(ctx, tx, func() error { return tx.QueryRow(ctx, "SELECT count(*) "+k.query).Scan(&k.rows) })
		if err != nil {
			return nil, fmt.Errorf("check foreign key %s of table %s: %w", k.name, k.table, err)
		}
		if k.rows > 0 {
			k.query = "SELECT c.* " + k.query + ";"
			broken = append(broken, k)
		}
	}
	return broken, nil
}

// putBackRow says why a row can't be put back, if it can't.
func (l *link) putBackRow(ctx context.Context, tx pgx.Tx, r catalog.TakenRow) (refused string, err error) {
	if r.Table == "" {
		return "it has no table", nil
	}
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		return postgres.InUserPath(ctx, tx, func() error { return catalog.PutBack(ctx, tx, l.rec.ID, r) })
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (slices.Contains([]string{"22", "23", "42", "54"}, pg.Code[:2]) || tooLarge(err)) { // what it is, not what the server lacks
		return pg.Message, nil
	}
	if err != nil {
		return "", fmt.Errorf("put a row of table %s back: %w", r.Table, err)
	}
	return "", nil
}

// keepUnfit writes a row into a file, since it is nowhere else from then on. One that can't be
// read, as one with bytes of no encoding, stands there by its key.
func (l *link) keepUnfit(ctx context.Context, tx pgx.Tx, r catalog.TakenRow, why string, out *returned) error {
	u := unfit{Table: r.Table, Key: r.Key, Why: why}
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) (err error) {
		u.Values, err = r.Values(ctx, tx, l.rec.ID)
		return err
	})
	var pg *pgconn.PgError
	if err != nil && !errors.As(err, &pg) {
		return err
	}
	line, err := json.Marshal(u)
	if err != nil {
		return err
	}
	out.path = filepath.Join(l.m.cfg.StateDir, "reports", l.rec.Name+"-not-put-back"+reportEnd)
	if err := appendLine(out.path, line); err != nil {
		return fmt.Errorf("keep a row that can't be put back: %w", err)
	}
	u.Values = nil
	out.failed = append(out.failed, u)
	return nil
}

// appendLine returns when the line is on disk.
func appendLine(path string, line []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// tooLarge tells of a value that is too large to be written down.
func tooLarge(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "54000" || pg.Code == "XX000" && strings.HasPrefix(pg.Message, "invalid memory alloc request size"))
}

// putBackMarked does so in a transaction of its own, which is no loss of anybody.
func (l *link) putBackMarked(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := l.markOwn(ctx, tx); err != nil {
			return err
		}
		return l.putAllBack(ctx, tx)
	})
}

// endTaken puts rows back before the link goes and this database opens, and tells of them.
func (l *link) endTaken(ctx context.Context) (problem.Findings, error) {
	side, _ := l.now()
	if side.Writable() {
		return nil, nil
	}
	for _, other := range l.m.siblings(l) {
		if s, _ := other.now(); s.Role == role.Secondary { // the rows of its primary come
			return nil, nil
		}
	}
	conn, err := l.connectValues(ctx, "drop")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var back returned
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
		back, err = l.putBack(ctx, tx)
		return err
	})
	if err != nil || back.rows+back.absent == 0 && len(back.failed) == 0 {
		return nil, err
	}
	return back.findings(l.rec.Database, l.rec.Peer), nil
}

func (r returned) findings(database, peer string) (found problem.Findings) {
	object := "database " + database
	if r.rows > 0 || r.absent > 0 {
		cause := fmt.Sprintf("rows that the rejoin had taken away to fetch them from instance %s: %d are back as they were on this side", peer, r.rows)
		if len(r.tables) > 0 {
			cause += ", in " + tables(fewOf(r.tables, namedTables))
		}
		if r.absent > 0 {
			cause += fmt.Sprintf("; %d stay away that only this side had deleted, or never had", r.absent)
		}
		found = append(found, problem.Warn("rows-put-back", object, cause+". What instance "+peer+" had made of them is lost with it; the other rows are as it had them when this side last heard of it", "").
			Advise("the report of the rejoin says what this side had done to each"))
	}
	for _, k := range r.broken {
		found = append(found, problem.Warn("foreign-key-broken", "foreign key "+k.name+" of table "+k.table,
			fmt.Sprintf("%d rows refer to none: they are of another time than the rows that instance %s had sent. PostgreSQL has not checked them, and would refuse them when a dump is restored", k.rows, peer),
			k.query).Advise("it lists them; add what they refer to, or change or delete them"))
	}
	if len(r.failed) > 0 {
		words := make([]string, len(r.failed))
		for i, u := range r.failed {
			words[i] = u.words()
		}
		found = append(found, problem.Warn("rows-not-put-back", object,
			fmt.Sprintf("rows that the rejoin had taken away and that don't fit in with what came since: %d rows, which are in %s: %s", len(r.failed), r.path, strings.Join(fewOf(words, namedTables), "; ")), "").
			Advise("put back by hand what of them is needed"))
	}
	return found
}

// rowsAway tells of rows that are taken away just now; nil: none are.
func (l *link) rowsAway(ctx context.Context, conn *pgx.Conn) *problem.Problem {
	if side, _ := l.now(); side.Writable() || side.Phase != role.Diverged && !l.isRepairing() {
		return nil
	}
	counts, err := catalog.TakenCounts(ctx, conn, l.rec.ID)
	if err != nil || len(counts) == 0 {
		return nil
	}
	var parts []string
	var n int64
	for _, c := range counts {
		n += c.Kept + c.Other
		parts = append(parts, fmt.Sprintf("%s (%d)", c.Table, c.Kept+c.Other))
	}
	return problem.Warn("rows-away", "database "+l.rec.Database,
		fmt.Sprintf("%d rows are away until they are fetched from instance %s: %s", n, l.rec.Peer, strings.Join(fewOf(parts, namedTables), ", ")), "").
		Advise("they come when the link follows; if instance " + l.rec.Peer + " is gone for good, hawser link drop " + l.rec.Name + " --force puts them back as they were on this side")
}
