package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// replayer joins schema's replay of DDL with what the rest of a secondary needs
// of it: new tables get the fence, and tables whose rows only the primary knows
// are put down to be copied again, in the very transaction of the DDL.
type replayer struct {
	*schema.Replayer
	l *link
}

func newReplayer(l *link, key []byte) replayer {
	return replayer{l: l, Replayer: schema.NewReplayer(schema.ReplayOptions{
		Key:     func(context.Context) ([]byte, error) { return key, nil },
		Maker:   l.askMaker,
		Link:    l.rec.ID,
		Partial: !l.filter().All(),
		Copying: l.copying,
		Unchecked: func(ctx context.Context, conn *pgx.Conn) ([]uint32, error) {
			return catalog.WaitingKeys(ctx, conn, l.rec.ID)
		},
		Loud: func(ctx context.Context, conn *pgx.Conn) error { return fence.Loud(ctx, conn) },
	})}
}

func (r replayer) Replay(ctx context.Context, conn *pgx.Conn, content []byte) (apply.Effect, error) {
	result, err := r.Replayer.Replay(ctx, conn, content)
	if err != nil {
		return apply.Effect{}, err
	}
	if mayFire(result) {
		if err := fence.Quiet(ctx, conn); err != nil {
			return apply.Effect{}, err
		}
	}
	for _, t := range result.Created {
		if err := fence.PrepareTable(ctx, conn, t.Schema, t.Name); err != nil {
			return apply.Effect{}, err
		}
	}
	var effect apply.Effect
	for _, t := range result.Reseed {
		s := catalog.SeedTable{OID: t.OID, Schema: t.Schema, Name: t.Name, State: catalog.Pending, Rows: -1}
		if err := catalog.Reseed(ctx, conn, r.l.rec.ID, s); err != nil {
			return apply.Effect{}, err
		}
		effect.Reseed = append(effect.Reseed, s)
		r.l.log.Info("table is copied: its rows can't be computed on the replica, or were not carried", "table", t.Schema+"."+t.Name, "because", result.Tag)
	}
	if err := r.whileCopying(ctx, conn, result); err != nil {
		return apply.Effect{}, err
	}
	r.l.note(result)
	return effect, nil
}

// whileCopying keeps to what waits for the rows of all tables, behind one command.
func (r replayer) whileCopying(ctx context.Context, conn *pgx.Conn, result schema.Result) error {
	copying, err := r.l.copying(ctx, conn)
	if err != nil || !copying {
		return err
	}
	if err := catalog.FollowKeys(ctx, conn, r.l.rec.ID, result.Keys); err != nil {
		return err
	}
	if err := schema.Soften(ctx, conn); err != nil {
		return err
	}
	return r.later(ctx, conn, result)
}

// mayFire reports whether a command may have made a trigger or rule that fires for
// replication. Changes without a command have no tag; event triggers are among them.
func mayFire(result schema.Result) bool {
	return result.Loud || strings.HasPrefix(result.Tag, "ALTER TABLE") || strings.HasSuffix(result.Tag, "TRIGGER") || strings.HasSuffix(result.Tag, "RULE") ||
		result.Tag == "" && len(result.Statements) > 0
}

func (r replayer) Provide(ctx context.Context, conn *pgx.Conn, xid uint32, def *pgoutput.Relation, types map[uint32]pgoutput.Type) error {
	rel := schema.Relation{Table: schema.Table{OID: def.ID, Schema: def.Namespace, Name: def.Name}}
	for _, c := range def.Columns {
		t := types[c.TypeOID]
		rel.Columns = append(rel.Columns, schema.Column{
			Name: c.Name, Type: c.TypeOID, TypeSchema: t.Namespace, TypeName: t.Name, Modifier: c.Modifier,
		})
	}
	announced, err := r.Replayer.Provide(ctx, conn, xid, rel)
	if err != nil || announced { // what announces it prepares it too
		return err
	}
	r.l.log.Info("table is made: rows of it came, and no event told of it", "table", rel.Schema+"."+rel.Name)
	return fence.PrepareTable(ctx, conn, rel.Schema, rel.Name)
}

func (r replayer) OfScript(ctx context.Context, conn *pgx.Conn, def *pgoutput.Relation) (bool, error) {
	return r.Replayer.OfScript(ctx, conn, schema.Table{OID: def.ID, Schema: def.Namespace, Name: def.Name})
}

func (l *link) askMaker(ctx context.Context, oid, xid uint32) (maker schema.Maker, err error) {
	err = l.m.call(ctx, l.rec.Peer, l.rec.Name, callMaker, makerRequest{OID: oid, XID: xid}, &maker)
	return maker, err
}

// maker tells the secondary of a table of this primary. The row of a system column is
// written when the table is made, and never again. (The age of one that is frozen is below 0
// when it is of more than 2^31 transactions ago.)
func (l *link) maker(ctx context.Context, q makerRequest) (maker schema.Maker, err error) {
	conn, err := l.connect(ctx, "maker")
	if err != nil {
		return schema.Maker{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, `SELECT age(a.xmin) BETWEEN 0 AND age($2::text::xid), r.rolname, r.rolsuper
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_roles r ON r.oid = c.relowner
		WHERE a.attrelid = $1 AND a.attname = 'ctid' AND a.attnum < 0`, q.OID, fmt.Sprint(q.XID)).Scan(&maker.New, &maker.Owner, &maker.Superuser)
	if errors.Is(err, pgx.ErrNoRows) {
		return schema.Maker{New: true}, nil
	}
	if err != nil {
		return schema.Maker{}, fmt.Errorf("look for the table with OID %d: %w", q.OID, err)
	}
	return maker, nil
}

// later keeps what needs the rows of all tables until they are there.
func (r replayer) later(ctx context.Context, conn *pgx.Conn, result schema.Result) error {
	for _, k := range result.Later {
		if err := r.keep(ctx, conn, laterDDL, k); err != nil {
			return err
		}
	}
	// A view that was filled meanwhile holds what never was together on the primary.
	for _, view := range result.Refreshed {
		here, err := relation(ctx, conn, view)
		if err == nil {
			err = r.keep(ctx, conn, schema.KindRefresh, schema.Place{Here: here})
		}
		if err != nil {
			return err
		}
	}
	for _, view := range result.Emptied {
		here, err := relation(ctx, conn, view)
		if err == nil {
			err = catalog.DropRowsEntries(ctx, conn, r.l.rec.ID, here)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// laterDDL is the kind of an entry that is left of replayed DDL.
const laterDDL = "DDL"

func (r replayer) keep(ctx context.Context, conn *pgx.Conn, kind string, p schema.Place) error {
	data, err := json.Marshal(schema.Entry{Kind: kind, Name: "left of replayed DDL", Phase: schema.PhaseRows})
	if err != nil {
		return err
	}
	return catalog.AddRowsEntry(ctx, conn, r.l.rec.ID, data, catalog.Place(p))
}

func relation(ctx context.Context, conn *pgx.Conn, quoted string) (oid uint32, err error) {
	if err := conn.QueryRow(ctx, `SELECT to_regclass($1)::oid`, quoted).Scan(&oid); err != nil {
		return 0, fmt.Errorf("look for %s: %w", quoted, err)
	}
	return oid, nil
}

// copying reports whether tables are being copied, so that they are of different times.
func (l *link) copying(ctx context.Context, conn *pgx.Conn) (bool, error) {
	state, copied, err := catalog.LoadSeeding(ctx, conn, l.rec.ID)
	return copied && !state.Done, err
}

// maxNotes bounds what a link says of replayed DDL, and of a rejoin.
const maxNotes = 20

func (l *link) note(result schema.Result) {
	notes := result.Notes
	for _, name := range result.Roles {
		notes = append(notes, schema.CreatedRole(name))
	}
	if result.Tag != "" {
		l.log.Info("DDL replayed", "tag", result.Tag)
	}
	if filled := slices.Concat(result.Refreshed, result.Emptied); len(filled) > 0 {
		l.update(func() { l.viewsFilled(filled) })
	}
	l.addNotes(notes)
}

// addNotes keeps what is to be said of the link, the newest of each object.
func (l *link) addNotes(notes problem.Findings) {
	if len(notes) == 0 {
		return
	}
	for _, n := range notes {
		l.log.Warn("note", "note", n.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notes = slices.DeleteFunc(l.notes, func(old *problem.Problem) bool { // it is told anew
		return slices.ContainsFunc(notes, func(n *problem.Problem) bool { return n.Code == old.Code && n.Object == old.Object })
	})
	l.notes = append(l.notes, notes...)
	l.notes = l.notes[max(0, len(l.notes)-maxNotes):]
}

// ddlKey returns the key that signs this primary's messages.
func (l *link) ddlKey(ctx context.Context) ([]byte, error) {
	conn, err := l.connect(ctx, "key")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.ours(ctx, conn); err != nil {
		return nil, err
	}
	return capture.DDLKey(ctx, conn)
}

func (l *link) fetchDDLKey(ctx context.Context) ([]byte, error) {
	var key []byte
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callDDLKey, struct{}{}, &key); err != nil {
		return nil, err
	}
	if len(key) == 0 {
		return nil, fmt.Errorf("peer %s has no key for link %s", l.rec.Peer, l.rec.Name)
	}
	return key, nil
}
