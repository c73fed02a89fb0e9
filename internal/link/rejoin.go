package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/seed"
)

// maxRepairs is how many rows of one table are repaired one by one; a table with
// more of them is copied again.
const maxRepairs = 200_000

// rejoin makes this side, which was forced out, the secondary of the one that took
// over. The rows that its tail touched are deleted here and put down to be fetched
// from there; everything else is as it was when the new primary's stream begins.
func (l *link) rejoin(ctx context.Context) error {
	if err := l.whole("it would take the place of what this side alone has"); err != nil {
		return err
	}
	release, err := l.beginRejoin()
	if err != nil {
		return err
	}
	defer release()
	side, _ := l.now()
	if err := l.mayRejoin(side); err != nil {
		return err
	}
	theirs, err := l.meetNewPrimary(ctx, side)
	if err != nil {
		return err
	}
	if err := l.awaitShut(ctx); err != nil {
		return err
	}
	if err := l.accountSoon(ctx); err != nil {
		return err
	}
	plan, err := l.planRejoin(ctx, side)
	lost, isLost := lostTail(err)
	if isLost {
		l.log.Warn("every table is compared", "cause", lost)
	}
	if err == nil || isLost {
		goOn, stood := l.standSiblings(ctx)
		if stood != nil {
			return stood
		}
		defer goOn()
	}
	holds := true
	if err == nil {
		holds, err = l.primaryHolds(ctx)
	}
	switch {
	case isLost || err == nil && (theirs.Position == 0 || !theirs.Forced || !holds):
		// What the two sides do not share is not known: every table is compared. So it is
		// where this side had handed over once, and was then restored to a time before.
		theirs.Position, err = l.compareToRejoin(ctx)
	case err == nil:
		if err = l.layDown(ctx, plan); err == nil {
			l.noteStates(plan.states)
		}
	}
	if err != nil {
		return err
	}
	// From here on it happens, whether or not whoever asked still listens.
	after, err := l.ask(l.ctx, role.RejoinAsked{Peer: theirs})
	if err == nil && isLost {
		l.addNotes(problem.Findings{problem.Noted("tail-unknown", "database "+l.rec.Database,
			"it may have had transactions that instance "+l.rec.Peer+" never received, and gave them up when it rejoined; they are in no report, since "+lost.why)})
	}
	if err == nil && after.Role != role.Secondary {
		err = problem.New("rejoin-not-now", "link "+l.rec.Name, "the roles changed meanwhile", "hawser link show "+l.rec.Name).Retry()
	}
	return err
}

// primaryHolds asks the new primary whether the stream since it took over can be had.
func (l *link) primaryHolds(ctx context.Context) (bool, error) {
	holds := true
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callHolds, struct{}{}, &holds)
	if isUnknownCall(err) { // an older agent: the stream will tell
		return true, nil
	}
	return holds, err
}

// holds answers primaryHolds. A link that was given up for the WAL that it held has no slot.
func (l *link) holds(ctx context.Context) (usable bool, err error) {
	if l.standsFor(codeForgotten) || l.standsFor(capture.CodeBroken) {
		return false, nil
	}
	err = l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		usable, err = capture.SlotUsable(ctx, conn, l.rec.ID)
		return err
	})
	return usable, err
}

// mayRejoin refuses what this side knows by itself.
func (l *link) mayRejoin(side role.State) error {
	if side.Phase != role.Diverged {
		return problem.New("not-diverged", "link "+l.rec.Name, fmt.Sprintf("this side is %s and %s; only one that was forced out can rejoin", side.Role, side.Phase),
			"hawser link show "+l.rec.Name)
	}
	for _, other := range l.m.siblings(l) {
		if s, _ := other.now(); s.Role == role.Secondary {
			return l.cantFollowToo(other)
		} else if s.Swapping() {
			// Its secondary may yet have to go on from the rows that a rejoin takes away.
			return changesBy(other.rec, s)
		}
	}
	if p := l.m.granted(l.rec.Peer, l.rec.Database, grant.FromPeer); p != nil {
		return p
	}
	return nil
}

// cantFollowToo refuses a second primary to a database that follows one.
func (l *link) cantFollowToo(other *link) *problem.Problem {
	return problem.New("already-secondary", "database "+l.rec.Database, "it follows instance "+other.rec.Peer+" by link "+other.rec.Name+"; it can't follow two",
		"hawser link drop "+l.rec.Name)
}

// meetNewPrimary asks whom this side is to follow for its state. The other side refuses
// what its grant does not allow, before anything changes.
func (l *link) meetNewPrimary(ctx context.Context, side role.State) (theirs role.State, err error) {
	if theirs, err = l.meet(ctx); err != nil {
		return theirs, err
	}
	if theirs.Role != role.Primary || theirs.Phase != role.Steady || theirs.Term < side.Term {
		return theirs, problem.New("no-primary", "link "+l.rec.Name, fmt.Sprintf("instance %s is %s and %s, so there is nobody to follow", l.rec.Peer, theirs.Role, theirs.Phase),
			"hawser link show "+l.rec.Name).Advise("on both sides")
	}
	_, err = l.fetchDDLKey(ctx) // which may not be there yet
	if p, ok := problem.As(err); ok && p.Code == "peer-not-granted" {
		return theirs, err
	}
	return theirs, nil
}

// beginRejoin lets one rejoin of a database run at a time: two would make it the secondary
// of two primaries.
func (l *link) beginRejoin() (release func(), err error) {
	l.m.swap.Lock()
	defer l.m.swap.Unlock()
	for _, s := range l.m.siblings(l) {
		s.mu.Lock()
		rejoining := s.rejoining
		s.mu.Unlock()
		if rejoining {
			return nil, s.rejoinRuns()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.leaving > 0:
		return nil, busy(l.rec.Name)
	case l.rejoining:
		return nil, l.rejoinRuns()
	}
	l.rejoining = true
	return func() { l.update(func() { l.rejoining = false }) }, nil
}

const codeRejoining = "rejoin-running"

func (l *link) rejoinRuns() *problem.Problem {
	return problem.New(codeRejoining, "link "+l.rec.Name, "a rejoin is under way", "hawser link show "+l.rec.Name).Advise("wait for it").Retry()
}

// noteStates says what a rejoin leaves as it is: rows are repaired, these are not.
func (l *link) noteStates(states []string) {
	if len(states) == 0 {
		return
	}
	l.addNotes(problem.Findings{problem.Warn("tail-has-settings", "database "+l.rec.Database,
		"owners, settings or privileges that changed here, of which the new primary may not have been told, are as this side left them: "+strings.Join(states[:min(len(states), maxStates)], "; "),
		"hawser link verify "+l.rec.Name).Advise("it names those that differ from the primary's")})
}

// maxStates bounds how many of them are named.
const maxStates = 10

// slotFreeWithin bounds how long the stream to the other side may take to end.
const slotFreeWithin = 20 * time.Second

// accountSoon writes the report as soon as the slot is free to be read.
func (l *link) accountSoon(ctx context.Context) error {
	began := time.Now()
	for wait := NewBackoff(); ; {
		err := l.account(ctx)
		if p, ok := problem.As(err); !ok || p.Code != "slot-in-use" || time.Since(began) > slotFreeWithin || !wait.Sleep(ctx) {
			return err
		}
	}
}

func (l *link) compareToRejoin(ctx context.Context) (frame.LSN, error) {
	conn, err := l.connectValues(ctx, "rejoin")
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.recollect(ctx, conn); err != nil {
		return 0, err
	}
	if err := l.putBackMarked(ctx, conn); err != nil {
		return 0, err
	}
	return l.reconcile(ctx, conn)
}

// rejoinPlan is what the tail means for the copy.
type rejoinPlan struct {
	tables map[uint32]*repairPlan // by oid here
	whole  map[[2]string]bool     // tables to be copied again: by schema and name
	states []string               // owners, settings and privileges that this side has alone, in words
	views  []schema.View          // materialized views that were filled or emptied
}

type repairPlan struct {
	schema, name string
	columns      []int16
	names        []string // of the key's columns
	keys         map[string][]string
}

func (l *link) planRejoin(ctx context.Context, side role.State) (*rejoinPlan, error) {
	plan := &rejoinPlan{tables: map[uint32]*repairPlan{}, whole: map[[2]string]bool{}}
	conn, err := l.connect(ctx, "rejoin")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.recall(ctx, conn); err != nil { // what it wrote since may have no DDL in it
		if p, ok := problem.As(err); ok && p.Code == codeForgotten {
			err = &tailLost{"schema hawser was dropped", err}
		}
		return nil, err
	}
	err = l.readTail(ctx, side, false, func(c tailChange) error {
		if c.state {
			plan.states = append(plan.states, excerpt(c.statement))
			return nil
		}
		switch {
		case c.isDDL():
			return l.tailHasDDL(c)
		case c.view != schema.View{} && !slices.Contains(plan.views, c.view):
			plan.views = append(plan.views, c.view)
		}
		if c.msg == nil {
			return nil
		}
		return plan.add(ctx, conn, c)
	})
	return plan, err
}

// tailHasDDL is why this side can't rejoin.
func (l *link) tailHasDDL(c tailChange) *problem.Problem {
	quoted := postgres.QuoteIdent(l.rec.Database)
	remedy, others := "hawser link drop "+l.rec.Name, ""
	siblings := l.m.siblings(l)
	slices.SortFunc(siblings, func(a, b *link) int { return strings.Compare(a.rec.Name, b.rec.Name) })
	for _, s := range siblings {
		remedy += "\nhawser link drop " + s.rec.Name
		others += "; the secondary of link " + s.rec.Name + ", on instance " + s.rec.Peer + ", opens as well, unless it follows instance " + l.rec.Peer +
			" before: hawser link follow " + s.rec.Name + " --primary " + l.rec.Peer + " there"
	}
	return problem.New("tail-has-ddl", "link "+l.rec.Name,
		"the transactions that only this side has changed the schema, which can't be taken back by itself: "+c.command+" in "+excerpt(c.statement),
		remedy).
		Advise("this side's database opens with all that it has then: let no client reach it" + others + ". In psql here: ALTER DATABASE " + quoted + " RENAME TO " + postgres.QuoteIdent(l.rec.Database+"_old") + ";" +
			" on instance " + l.rec.Peer + ": hawser link create " + l.rec.Name + " --database " + problem.Word(l.rec.Database) + " --peer " + l.m.cfg.Instance + ", which copies the new primary again")
}

// excerpt is the beginning of a statement on one line.
func excerpt(sql string) string {
	const most = 200
	words := []rune(strings.Join(strings.Fields(sql[:min(len(sql), 8*most)]), " "))
	if len(words) > most {
		return string(words[:most]) + " …"
	}
	return string(words)
}

// add notes the rows that a change touched.
func (p *rejoinPlan) add(ctx context.Context, conn *pgx.Conn, c tailChange) error {
	name := [2]string{c.rel.Namespace, c.rel.Name}
	if p.whole[name] {
		return nil
	}
	t := p.tables[c.rel.ID]
	if t == nil {
		var err error
		if t, err = planTable(ctx, conn, c.rel); err != nil {
			return err
		}
		if t == nil || !t.named(c.rel) { // no key, or a table that is gone since
			p.whole[name] = true
			return nil
		}
		p.tables[c.rel.ID] = t
	}
	rows := rowsOf(c.msg)
	for _, row := range rows {
		if key, ok := t.key(c.rel, row); ok {
			t.keys[strings.Join(key, "\x00")] = key
		} else {
			rows = nil
		}
	}
	if len(rows) == 0 || len(t.keys) > maxRepairs {
		p.whole[name] = true
		delete(p.tables, c.rel.ID)
	}
	return nil
}

// rowsOf are the rows before and after a change; none for a TRUNCATE.
func rowsOf(msg pgoutput.Message) [][]pgoutput.Column {
	switch m := msg.(type) {
	case *pgoutput.Insert:
		return [][]pgoutput.Column{m.New}
	case *pgoutput.Update:
		if len(m.Old) > 0 {
			return [][]pgoutput.Column{m.Old, m.New}
		}
		return [][]pgoutput.Column{m.New}
	case *pgoutput.Delete:
		return [][]pgoutput.Column{m.Old}
	}
	return nil
}

// named tells whether each change names the key: not where the replica identity is another
// index.
func (t *repairPlan) named(rel *pgoutput.Relation) bool {
	for _, name := range t.names {
		if !slices.ContainsFunc(rel.Columns, func(c pgoutput.RelationColumn) bool { return c.Name == name && c.Key }) {
			return false
		}
	}
	return true
}

// key takes the key out of a row.
func (t *repairPlan) key(rel *pgoutput.Relation, row []pgoutput.Column) ([]string, bool) {
	if len(row) != len(rel.Columns) {
		return nil, false
	}
	key := make([]string, len(t.names))
	for i, name := range t.names {
		at := slices.IndexFunc(rel.Columns, func(c pgoutput.RelationColumn) bool { return c.Name == name })
		if at < 0 || row[at].Kind == pgoutput.Null || row[at].Kind == pgoutput.Unchanged || !utf8.Valid(row[at].Data) { // JSON would change such bytes
			return nil, false
		}
		key[i] = string(row[at].Data)
	}
	return key, true
}

// planTable finds the primary key of a table; nil when there is none.
func planTable(ctx context.Context, conn *pgx.Conn, rel *pgoutput.Relation) (*repairPlan, error) {
	t := &repairPlan{schema: rel.Namespace, name: rel.Name, keys: map[string][]string{}}
	rows, err := conn.Query(ctx, `
		SELECT a.attname, a.attnum FROM pg_index i
		JOIN pg_class c ON c.oid = i.indrelid
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
		WHERE i.indisprimary AND c.oid = $1 AND c.relkind = 'r' ORDER BY a.attnum`, rel.ID)
	if err != nil {
		return nil, fmt.Errorf("look up the key of table %s: %w", postgres.QuoteIdent(rel.Namespace, rel.Name), err)
	}
	var name string
	var attnum int16
	_, err = pgx.ForEachRow(rows, []any{&name, &attnum}, func() error {
		t.names, t.columns = append(t.names, name), append(t.columns, attnum)
		return nil
	})
	if err != nil || len(t.names) == 0 {
		return nil, err
	}
	return t, nil
}

// layDown deletes the rows that are to be repaired and records them, with the
// tables that are to be copied again, in one transaction. It may be repeated.
func (l *link) layDown(ctx context.Context, plan *rejoinPlan) error {
	for {
		err := l.layDownOnce(ctx, plan)
		var wide *rowTooLarge
		if !errors.As(err, &wide) {
			return err
		}
		t := plan.tables[wide.table]
		l.log.Info("table is copied: a row is too large to be kept until the primary's is here", "table", t.schema+"."+t.name)
		plan.whole[[2]string{t.schema, t.name}] = true
		delete(plan.tables, wide.table)
	}
}

// rowTooLarge is of a row that can't be kept while it is away.
type rowTooLarge struct {
	table uint32
	err   error
}

func (e *rowTooLarge) Error() string { return e.err.Error() }
func (e *rowTooLarge) Unwrap() error { return e.err }

func (l *link) layDownOnce(ctx context.Context, plan *rejoinPlan) error {
	again, err := l.primaryTables(ctx, plan.whole)
	if err != nil {
		return err
	}
	views, err := l.primaryViews(ctx, plan.views)
	if err != nil {
		return err
	}
	conn, err := l.connectValues(ctx, "rejoin")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.recall(ctx, conn); err != nil {
		return err
	}
	rows := 0
	err = pgx.BeginFunc(l.ctx, conn, func(tx pgx.Tx) error { // its end is awaited, whoever has gone
		if err := l.markOwn(ctx, tx); err != nil {
			return err
		}
		if err := l.putAllBack(ctx, tx); err != nil {
			return err
		}
		for oid, t := range plan.tables {
			if err := l.layDownTable(ctx, tx, oid, t); err != nil {
				return fmt.Errorf("take the rows of table %s away: %w", postgres.QuoteIdent(t.schema, t.name), err)
			}
			rows += len(t.keys)
		}
		if rows > 0 || len(views) > 0 { // until they are here, DDL can't have all that it needs
			if err := catalog.Reopen(ctx, tx, l.rec.ID); err != nil {
				return err
			}
		}
		if err := l.layDownViews(ctx, tx, views); err != nil {
			return err
		}
		for _, t := range again {
			if err := catalog.Reseed(ctx, tx, l.rec.ID, t); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if err == nil {
		l.noteViews(views)
		l.log.Info("rejoining", "rows_to_repair", rows, "tables_to_copy", len(again), "views_to_fill", len(views))
	}
	return err
}

func (l *link) layDownTable(ctx context.Context, tx pgx.Tx, oid uint32, t *repairPlan) error {
	var where []string
	for i, name := range t.names {
		where = append(where, fmt.Sprintf("%s = $%d", postgres.QuoteIdent(name), i+1))
	}
	return postgres.InUserPath(ctx, tx, func() error {
		taker, err := catalog.NewTaker(ctx, tx, catalog.RepairTable{OID: oid, Columns: t.columns}, postgres.QuoteIdent(t.schema, t.name), strings.Join(where, " AND "))
		if err != nil {
			return err
		}
		for _, key := range t.keys {
			if err := taker.Take(ctx, tx, l.rec.ID, key, pgx.QueryExecModeSimpleProtocol); err != nil { // the server reads each value as its column's type
				if tooLarge(err) {
					err = &rowTooLarge{oid, err}
				}
				return err
			}
		}
		return nil
	})
}

// primaryTables asks the primary for its tables of the given names. One that is
// not there is no more to be copied.
func (l *link) primaryTables(ctx context.Context, names map[[2]string]bool) ([]catalog.SeedTable, error) {
	if len(names) == 0 {
		return nil, nil
	}
	var all []catalog.SeedTable
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callTables, struct{}{}, &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(t catalog.SeedTable) bool { return !names[[2]string{t.Schema, t.Name}] }), nil
}

// tables answers primaryTables.
func (l *link) tables(ctx context.Context) ([]catalog.SeedTable, error) {
	conn, err := l.connect(ctx, "tables")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return seed.Tables(ctx, conn, l.publication())
}

func (l *link) isRepairing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.repairing
}

// awaitRepaired returns when no row is to be repaired any more.
func (l *link) awaitRepaired(ctx context.Context) error {
	return l.until(ctx, func() bool { return !l.repairing })
}

// repair fetches the rows that are to be repaired, when the stream has come to the
// state of a snapshot of the primary.
func (l *link) repair(ctx context.Context, a *apply.Applier) error {
	for {
		err := l.repairOnce(ctx, a)
		if !errors.Is(err, apply.ErrNotPrefix) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *link) repairOnce(ctx context.Context, a *apply.Applier) error {
	var theirs remoteSide
	left := func() {}
	defer func() { left() }()
	s, err := l.m.cfg.Peers.Open(ctx, l.rec.Peer, l.rec.Name, streamRows)
	if err != nil {
		return err
	}
	defer s.Close()
	rows := int64(0)
	err = a.Repair(ctx, func(context.Context) (_ frame.Snapshot, _ frame.LSN, err error) {
		theirs, left, err = l.openRemote(ctx)
		return theirs.Snapshot, theirs.Until, err
	}, func(ctx context.Context, tx pgx.Tx, t catalog.RepairTable) error {
		r, ok, err := rowsRequest(ctx, tx, t)
		if err != nil || !ok {
			return err
		}
		r.Export = theirs.Export
		n, err := seed.FetchRows(ctx, s, tx, r)
		rows += n
		return err
	})
	if err != nil {
		return err
	}
	l.log.Info("the rows that differed are repaired", "rows", rows, "at", theirs.Until)
	l.update(func() { l.repairing = false })
	return nil
}

// rowsRequest names what is wanted of a table; it is not ok when the table is gone
// since.
func rowsRequest(ctx context.Context, tx pgx.Tx, t catalog.RepairTable) (r seed.RowsRequest, ok bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT n.nspname, c.relname,
		       ARRAY(SELECT a.attname::text FROM pg_attribute a
		             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum),
		       ARRAY(SELECT a.attname::text FROM unnest($2::int2[]) WITH ORDINALITY AS k(n, i)
		             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.n AND NOT a.attisdropped ORDER BY k.i)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, t.OID, t.Columns).
		Scan(&r.Schema, &r.Name, &r.Columns, &r.Key)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("look up a table to repair: %w", err)
	}
	if len(r.Key) != len(t.Columns) {
		table := postgres.QuoteIdent(r.Schema, r.Name)
		return r, false, problem.New("repair-key-lost", "table "+table, "its key changed on the primary before the rows that differ here were repaired",
			"hawser link resync NAME --table "+problem.Word(table))
	}
	r.Keys = t.Keys
	return r, true, nil
}
