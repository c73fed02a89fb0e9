package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/verify"
)

// resync copies tables again while the link runs; without names it compares all
// and copies those that differ, from a new slot if the old one was lost. It is
// carried out on the secondary.
func (l *link) resync(ctx context.Context, names []string) error {
	if side, _ := l.now(); side.Role == role.Primary && !expelled(side) {
		return l.m.call(ctx, l.rec.Peer, l.rec.Name, callResync, resyncRequest{names}, nil)
	}
	return l.resyncHere(ctx, names)
}

// resyncHere is the secondary's part.
func (l *link) resyncHere(ctx context.Context, names []string) error {
	if err := l.follower(); err != nil {
		return err
	}
	if len(names) == 0 && l.following() != nil {
		switch err := l.sweepThere(ctx); {
		case err == nil:
			return l.resyncFollowing(ctx)
		case !errors.Is(err, problem.New(codeForgotten, "", "", "")) && !errors.Is(err, problem.New(capture.CodeBroken, "", "", "")):
			return err
		}
	}
	return l.still(ctx, func(conn *pgx.Conn) error {
		if len(names) == 0 {
			if err := l.recollect(ctx, conn); err != nil {
				return err
			}
			_, err := l.reconcile(ctx, conn)
			return err
		}
		if err := l.recall(ctx, conn); err != nil {
			return err
		}
		var all []catalog.SeedTable
		if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callTables, struct{}{}, &all); err != nil {
			return err
		}
		known, err := choices(ctx, conn, all)
		if err != nil {
			return err
		}
		chosen, err := choose(known, names)
		if err != nil {
			return err
		}
		return l.reseed(ctx, conn, chosen)
	})
}

// resyncFollowing compares both sides at one position, as verify does, so that a table
// is copied for what it lacks and not for what was on its way.
func (l *link) resyncFollowing(ctx context.Context) error {
	defer l.update(func() { l.compared = nil })
	report, err := l.compareFollowing(ctx, verify.RunOptions{Differences: -1, Progress: l.comparing})
	if err != nil {
		return err
	}
	if err := l.sameSchema(report.Report); err != nil {
		return err
	}
	differ := map[[2]string]bool{}
	for _, t := range report.Tables {
		if t.Verdict != verify.Same {
			differ[[2]string{t.Schema, t.Name}] = true
		}
	}
	l.log.Info("compared with the primary", "tables", len(report.Tables), "to_copy_again", len(differ), "at", report.Position)
	again, err := l.primaryTables(ctx, differ)
	if err != nil {
		return err
	}
	if len(again) == 0 {
		return l.adoptHere(ctx)
	}
	return l.still(ctx, func(conn *pgx.Conn) error {
		if err := l.recall(ctx, conn); err != nil {
			return err
		}
		return l.reseed(ctx, conn, again)
	})
}

// adoptHere is for a replica that goes on as it is: another does so as it connects.
func (l *link) adoptHere(ctx context.Context) error {
	conn, err := l.connect(ctx, "resync")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return l.adoptIdentities(ctx, conn)
}

// comparing keeps how far a comparison is, to be shown.
func (l *link) comparing(p verify.Progress) { l.update(func() { l.compared = &p }) }

// comparison tells of a comparison that is under way. The caller holds mu.
func (l *link) comparison() *problem.Problem {
	if l.compared == nil {
		return nil
	}
	p := l.compared
	return problem.Noted("comparing", "link "+l.rec.Name,
		fmt.Sprintf("it is compared with the primary: %d of %d tables, %s of %s", p.TablesDone, p.Tables, bytesText(p.BytesDone), bytesText(p.Bytes)))
}

// reseed puts tables down to be copied again.
func (l *link) reseed(ctx context.Context, conn *pgx.Conn, tables []catalog.SeedTable) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, t := range tables {
			if err := catalog.Reseed(ctx, tx, l.rec.ID, t); err != nil {
				return err
			}
		}
		return nil
	})
}

// still does something on the secondary while nothing is applied. The link goes on
// afterwards, also when it was suspended.
func (l *link) still(ctx context.Context, do func(conn *pgx.Conn) error) error {
	resume, err := l.rest(ctx)
	if err != nil {
		return err
	}
	defer resume()
	if _, err := l.stillSecondary(ctx); err != nil {
		return err
	}
	conn, err := l.connect(ctx, "resync")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := do(conn); err != nil {
		return err
	}
	return l.setPaused(ctx, false)
}

// choice is what a name can mean: a table, or a partitioned one, which is all of its
// partitions that the link carries.
type choice struct {
	schema, name string
	tables       []catalog.SeedTable
}

// choices are all that can be named.
func choices(ctx context.Context, conn *pgx.Conn, all []catalog.SeedTable) (out []choice, err error) {
	carried := map[[2]string]catalog.SeedTable{}
	for _, t := range all {
		carried[[2]string{t.Schema, t.Name}] = t
		out = append(out, choice{t.Schema, t.Name, []catalog.SeedTable{t}})
	}
	rows, err := conn.Query(ctx, `
		SELECT pn.nspname, p.relname, n.nspname, c.relname FROM pg_class p JOIN pg_namespace pn ON pn.oid = p.relnamespace
		CROSS JOIN LATERAL pg_partition_tree(p.oid) t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE p.relkind = 'p' AND t.isleaf ORDER BY p.oid, t.level, c.oid`)
	if err != nil {
		return nil, fmt.Errorf("list the partitioned tables: %w", err)
	}
	var parent, part [2]string
	_, err = pgx.ForEachRow(rows, []any{&parent[0], &parent[1], &part[0], &part[1]}, func() error {
		t, ok := carried[part]
		if last := len(out) - 1; ok && len(out) > 0 && out[last].schema == parent[0] && out[last].name == parent[1] {
			out[last].tables = append(out[last].tables, t)
		} else if ok {
			out = append(out, choice{parent[0], parent[1], []catalog.SeedTable{t}})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the partitioned tables: %w", err)
	}
	return out, nil
}

// choose finds tables by name, as PostgreSQL reads names: SCHEMA.NAME or, where that is
// clear, NAME. All names of which none is meant are told together.
func choose(all []choice, names []string) (out []catalog.SeedTable, err error) {
	var unknown, unclear, clear []string
	for _, name := range names {
		called := func(c choice) bool { return c.isCalled(name) }
		i := slices.IndexFunc(all, called)
		switch {
		case i < 0:
			unknown = append(unknown, name)
		case slices.ContainsFunc(all[i+1:], called):
			unclear, clear = append(unclear, name), append(clear, filter.Written(all[i].schema, all[i].name))
		default:
			out = append(out, all[i].tables...)
		}
	}
	switch {
	case len(unknown) > 0:
		p := unknownTable(all, unknown)
		if len(unclear) > 0 {
			p.Cause += "; and several schemas have a table called " + strings.Join(unclear, ", ")
		}
		return nil, p
	case len(unclear) > 0:
		return nil, problem.New("table-ambiguous", tables(unclear), "several schemas have a table of this name", tableFlags(clear)).Advise("name its schema")
	}
	return out, nil
}

func (c choice) isCalled(name string) bool {
	parts, closed := filter.Parts(name)
	switch {
	case !closed:
		return false
	case len(parts) == 1:
		return parts[0] == c.name
	}
	return len(parts) == 2 && parts[0] == c.schema && parts[1] == c.name
}

// unknownTable names what was most likely meant: as often as not letters of a name that
// stands between double quotes.
func unknownTable(all []choice, names []string) *problem.Problem {
	p := problem.New("no-such-table", tables(names), "the link carries no table of this name; letters outside of double quotes are folded to lower case",
		"hawser link show NAME")
	var known, near []string
	for _, c := range all {
		known = append(known, c.schema+"."+c.name, c.name)
	}
	for _, name := range names {
		parts, _ := filter.Parts(name)
		if i := slices.Index(known, problem.Nearest(strings.Join(parts, "."), known)); i >= 0 {
			near = append(near, filter.Written(all[i/2].schema, all[i/2].name))
		}
	}
	if len(near) > 0 {
		p.Remedy, p.Advice = tableFlags(near), problem.DidYouMean(near...)
	}
	return p
}

func tableFlags(names []string) string {
	flags := make([]string, len(names))
	for i, n := range names {
		flags[i] = "--table " + problem.Word(n)
	}
	return strings.Join(flags, " ")
}

func tables(names []string) string {
	if len(names) == 1 {
		return "table " + names[0]
	}
	return "tables " + strings.Join(names, ", ")
}

// slotRequest has what the secondary knows of the primary, if that has forgotten it.
type slotRequest struct {
	Identities []capture.ChangedIdentity `json:"identities,omitempty"` // that Hawser changed
}

// slotReply is what the primary says of its slot.
type slotReply struct {
	From  frame.LSN `json:"from"`
	Fresh bool      `json:"fresh"` // it was lost, and is a new one
}

// renewSlot sees that the slot exists, and makes a new one in place of one that
// was lost. A primary that had given the link up takes it up again.
func (l *link) renewSlot(ctx context.Context, r slotRequest) (slotReply, error) {
	side, _ := l.now()
	if side.Role != role.Primary || side.Phase != role.Steady {
		return slotReply{}, problem.New("not-primary", "link "+l.rec.Name, fmt.Sprintf("instance %s is %s and %s", l.m.cfg.Instance, side.Role, side.Phase), "hawser link show "+l.rec.Name)
	}
	if err := l.leadsHere(); err != nil {
		return slotReply{}, err
	}
	l.slots.Lock()
	defer l.slots.Unlock()
	if err := l.notCompared(ctx, side); err != nil {
		return slotReply{}, err
	}
	conn, err := l.connectOwn(ctx, "slot")
	if err != nil {
		return slotReply{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	usable, err := capture.SlotUsable(ctx, conn, l.rec.ID)
	if err != nil {
		return slotReply{}, err
	}
	known, whole, err := l.captured(ctx, conn)
	if err != nil {
		return slotReply{}, err
	}
	usable = usable && whole                      // a new slot is behind all that nobody captured
	fresh := !usable || l.pendingRenewal() != nil // also one of a try that ended half way
	if fresh {
		if err := l.noteRenewal(ctx, side.Term); err != nil {
			return slotReply{}, err
		}
	}
	if !usable {
		if known {
			r.Identities = nil // it has its own list
		}
		if err := l.captureAgain(ctx, conn, r); err != nil {
			return slotReply{}, err
		}
	}
	from, err := capture.CreateSlot(ctx, conn, l.rec.ID)
	if err != nil {
		return slotReply{}, err
	}
	return slotReply{from, fresh}, l.setPaused(ctx, false)
}

// captured tells whether this database knows of the link, and its capture is whole.
func (l *link) captured(ctx context.Context, conn *pgx.Conn) (known, whole bool, err error) {
	if known, err = catalog.Remembers(ctx, conn, l.rec.ID); err != nil || !known {
		return false, false, err
	}
	err = capture.Intact(ctx, conn)
	if p, ok := problem.As(err); ok && p.Code == capture.CodeBroken {
		return true, false, nil
	}
	return true, err == nil, err
}

// captureAgain installs what a slot needs before it. The old slot goes first: whoever ends
// here finds none, and begins again.
func (l *link) captureAgain(ctx context.Context, conn *pgx.Conn, r slotRequest) error {
	if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
		return err
	}
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		return err
	}
	if err := catalog.Join(ctx, conn, l.rec.ID, l.rec.Name); err != nil {
		return err
	}
	if err := capture.AdoptReplicaIdentity(ctx, conn, r.Identities); err != nil {
		return err
	}
	return capture.Install(ctx, conn, l.rec.ID, l.filter())
}

// pendingRenewal tells of a slot of this term that was made anew, and from which nobody
// has streamed yet.
func (l *link) pendingRenewal() *catalog.Renewal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.renewal == nil || l.renewal.Term != l.side.Term {
		return nil
	}
	return l.renewal
}

// noteRenewal stores, before there is a new slot, that it is one, and what to go back to.
func (l *link) noteRenewal(ctx context.Context, term frame.Term) error {
	r := &catalog.Renewal{Term: term}
	if earlier := l.pendingRenewal(); earlier != nil {
		r.Before = earlier.Before
	} else {
		l.mu.Lock()
		r.Before = l.suspended
		l.mu.Unlock()
	}
	return l.setRenewal(ctx, r)
}

func (l *link) setRenewal(ctx context.Context, r *catalog.Renewal) error {
	err := l.m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.SetRenewed(ctx, conn, l.rec.Name, r) })
	if err == nil {
		l.update(func() { l.renewal = r })
	}
	return err
}

// useSlot notes that the secondary follows from a slot that was made anew.
func (l *link) useSlot(ctx context.Context) error {
	if l.pendingRenewal() == nil {
		return nil
	}
	return l.setRenewal(ctx, nil)
}

// giveUpSlot takes a renewed slot back, which nobody will follow from, so that it holds
// no WAL. A link that had been given up before is so again.
func (l *link) giveUpSlot(ctx context.Context) error {
	return l.giveUp(ctx, l.pendingRenewal())
}

func (l *link) giveUp(ctx context.Context, r *catalog.Renewal) error {
	l.slots.Lock()
	defer l.slots.Unlock()
	side, _ := l.now()
	if side.Role != role.Primary || side.Phase != role.Steady || r == nil || l.pendingRenewal() != r {
		return nil
	}
	conn, err := l.connect(ctx, "slot")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if r.Before != nil {
		l.suspend(r.Before)
	}
	if err := capture.DropSlot(ctx, conn, l.rec.ID); err != nil {
		return err
	}
	return l.setRenewal(ctx, nil)
}

// seeRenewal gives a renewed slot up if the secondary does not use it, and is not about
// to: one of the two agents ended before the comparison did.
func (l *link) seeRenewal(ctx context.Context) error {
	r := l.pendingRenewal()
	if r == nil {
		return nil
	}
	var theirs Status
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callStatus, struct{}{}, &theirs); err != nil {
		return err
	}
	stands := theirs.State == Suspended || theirs.State == Diverged
	if !stands || theirs.Comparing == nil || *theirs.Comparing {
		return nil
	}
	l.log.Warn("a replication slot was made for a comparison that did not end, and is dropped")
	return l.giveUp(ctx, r)
}

// reconcile compares this side, where nothing is applied just now, with a snapshot
// of the primary, and puts every table that differs down to be copied again. Those
// that are the same count as copied under that very snapshot, so the stream, which
// begins before it, goes on from there (package apply has the rule). The slot comes
// first: what is committed behind the snapshot is in the stream.
func (l *link) reconcile(ctx context.Context, conn *pgx.Conn) (frame.LSN, error) {
	identities, err := capture.ChangedIdentities(ctx, conn)
	if err != nil {
		return 0, err
	}
	var slot slotReply
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callRenewSlot, slotRequest{identities}, &slot); err != nil {
		return 0, err
	}
	from, err := l.reconcileFrom(ctx, conn, slot)
	if err != nil && slot.Fresh {
		l.returnSlot(ctx)
	}
	return from, err
}

// returnWithin bounds how long a resync that failed waits for the primary.
const returnWithin = 10 * time.Second

// returnSlot has the primary drop the slot that it made for a comparison which failed.
func (l *link) returnSlot(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), returnWithin)
	defer cancel()
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callDropSlot, struct{}{}, nil); err != nil {
		l.log.Warn("the primary's new replication slot holds WAL, since the primary could not be told to drop it", "error", err)
	}
}

func (l *link) reconcileFrom(ctx context.Context, conn *pgx.Conn, slot slotReply) (frame.LSN, error) {
	var all []catalog.SeedTable
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callTables, struct{}{}, &all); err != nil {
		return 0, err
	}
	theirs, left, err := l.openRemote(ctx)
	if err != nil {
		return 0, err
	}
	defer left()
	report, err := l.compareAll(ctx, conn, theirs)
	if err != nil {
		return 0, err
	}
	if err := l.sameSchema(report); err != nil {
		return 0, err
	}
	rows := map[[2]string]int64{} // of tables that are the same
	for _, t := range report.Tables {
		if t.Verdict == verify.Same {
			rows[[2]string{t.Schema, t.Name}] = t.PrimaryRows
		}
	}
	views, err := l.allViews(ctx, conn)
	if err != nil {
		return 0, err
	}
	again := 0
	side, _ := l.now()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := catalog.StartReconciling(ctx, tx, l.rec.ID, theirs.Snapshot); err != nil {
			return err
		}
		for _, t := range all {
			n, same := rows[[2]string{t.Schema, t.Name}]
			if !same {
				again++
			}
			if err := l.putCompared(ctx, tx, t, theirs, n, same); err != nil {
				return err
			}
		}
		if err := l.layDownViews(ctx, tx, views); err != nil {
			return err
		}
		return catalog.MovePosition(ctx, tx, apply.Origin(l.rec.ID, side.Term), slot.From)
	})
	if err == nil {
		l.log.Info("compared with the primary", "tables", len(all), "to_copy_again", again, "new_slot", slot.Fresh)
	}
	return slot.From, err
}

// compareAll compares every table with the primary, either side at one snapshot.
func (l *link) compareAll(ctx context.Context, conn *pgx.Conn, theirs remoteSide) (report verify.Report, err error) {
	snapshot, err := l.connect(ctx, "compare")
	if err != nil {
		return report, err
	}
	defer snapshot.Close(context.WithoutCancel(ctx))
	if err := harden(ctx, conn); err != nil { // definitions are compared, too
		return report, err
	}
	export, _, _, err := exportSnapshot(ctx, snapshot)
	if err != nil {
		return report, err
	}
	defer l.update(func() { l.compared = nil })
	return verify.Run(ctx, theirs, l.localSide(export), verify.RunOptions{Differences: -1, Settle: 1, Listed: !l.filter().All(), Progress: l.comparing})
}

// putCompared puts a table of the primary down: as copied under its snapshot where it is
// the same here, otherwise to be copied.
func (l *link) putCompared(ctx context.Context, tx pgx.Tx, t catalog.SeedTable, theirs remoteSide, rows int64, same bool) error {
	if err := catalog.PutSeedTable(ctx, tx, l.rec.ID, t); err != nil || !same {
		return err
	}
	t.Snapshot, t.LSN = theirs.Snapshot, theirs.Until
	if err := catalog.SetCopying(ctx, tx, l.rec.ID, t); err != nil {
		return err
	}
	if err := catalog.SetTableDone(ctx, tx, l.rec.ID, t.OID, t.Bytes, rows); err != nil {
		return err
	}
	return catalog.SetTableState(ctx, tx, l.rec.ID, t.OID, catalog.Live)
}

// maxDiffer bounds how many definitions a problem names.
const maxDiffer = 20

// sameSchema refuses to go on where DDL of the time without a slot is missing here. The log
// has all that differs, whole.
func (l *link) sameSchema(r verify.Report) error {
	var differ []string
	for _, d := range r.Schema {
		if !d.Uncertain && d.Kind != verify.KindMembership && !d.Filled() {
			l.log.Warn("definition differs", "kind", d.Kind, "object", d.Object, "primary", cmp.Or(d.Primary, "none"), "secondary", cmp.Or(d.Secondary, "none"))
			differ = append(differ, fmt.Sprintf("%s %s: the primary has %s, the secondary %s", d.Kind, d.Object, cmp.Or(excerpt(d.Primary), "none"), cmp.Or(excerpt(d.Secondary), "none")))
		}
	}
	if len(differ) == 0 {
		return nil
	}
	if more := len(differ) - maxDiffer; more > 0 {
		differ = append(differ[:maxDiffer], fmt.Sprintf("and %d more, all of which stand in the log of the agent of instance %s", more, l.m.cfg.Instance))
	}
	again, here := "resync", "the secondary"
	if side, _ := l.now(); side.Phase == role.Diverged {
		again, here = "rejoin", "instance "+l.m.cfg.Instance
	}
	return problem.New("schema-differs", "link "+l.rec.Name, "the schemas of the two sides differ, so comparing rows is not enough: "+strings.Join(differ, "; "),
		postgres.ByHand+" …;").Advise("as superuser, with the DDL that makes its definitions equal to the primary's; then hawser link " + again + " " + l.rec.Name + " again").At(here)
}
