package link

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// The rows of a materialized view are in no stream. One that the tail of a side that was
// forced out filled or emptied is treated, when that side rejoins, as the first copy treats
// it: it is filled from this side's rows when all are here, unless it is empty on the new
// primary. What the new primary's stream does to it comes on top of that, as ever.

// laidView is a materialized view of the tail, as the primary has it.
type laidView struct {
	schema.View
	Empty bool `json:"empty"` // REFRESH … WITH NO DATA is what it has seen last
}

func (v laidView) quoted() string { return postgres.QuoteIdent(v.Schema, v.Name) }

// primaryViews asks the primary about materialized views. One that it does not have by that
// name was renamed or dropped there, which the stream will tell.
func (l *link) primaryViews(ctx context.Context, views []schema.View) ([]laidView, error) {
	if len(views) == 0 {
		return nil, nil
	}
	var out []laidView
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callViews, viewsRequest{views}, &out)
	if isUnknownCall(err) { // an older agent: as if it had all
		for _, v := range views {
			out = append(out, laidView{View: v})
		}
		return out, nil
	}
	return out, err
}

// allViews are this side's materialized views, as the primary has them: which of them a time
// filled of which nobody knows is not known either.
func (l *link) allViews(ctx context.Context, conn *pgx.Conn) ([]laidView, error) {
	rows, err := conn.Query(ctx, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'm' AND c.relpersistence = 'p' AND c.oid >= 16384 ORDER BY c.oid`)
	if err != nil {
		return nil, fmt.Errorf("list the materialized views: %w", err)
	}
	views, err := pgx.CollectRows(rows, pgx.RowToStructByPos[schema.View])
	if err != nil {
		return nil, fmt.Errorf("list the materialized views: %w", err)
	}
	return l.primaryViews(ctx, views)
}

type viewsRequest struct {
	Views []schema.View `json:"views"`
}

// views answers primaryViews.
func (l *link) views(ctx context.Context, r viewsRequest) ([]laidView, error) {
	conn, err := l.connect(ctx, "views")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	out := make([]laidView, len(r.Views))
	for i, v := range r.Views {
		out[i].View = v
		err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'm' AND NOT c.relispopulated)`, v.Schema, v.Name).Scan(&out[i].Empty)
		if err != nil {
			return nil, fmt.Errorf("look whether materialized view %s is filled: %w", out[i].quoted(), err)
		}
	}
	return out, nil
}

// layDownViews empties those that are empty on the primary, and puts the others down to be
// filled when all rows are here.
func (l *link) layDownViews(ctx context.Context, tx pgx.Tx, views []laidView) error {
	for _, v := range views {
		var here *uint32
		if err := tx.QueryRow(ctx, `SELECT to_regclass($1)::oid`, v.quoted()).Scan(&here); err != nil {
			return fmt.Errorf("look for materialized view %s: %w", v.quoted(), err)
		}
		switch {
		case here == nil:
			continue
		case v.Empty:
			if _, err := tx.Exec(ctx, "REFRESH MATERIALIZED VIEW "+v.quoted()+" WITH NO DATA"); err != nil {
				return fmt.Errorf("empty materialized view %s: %w", v.quoted(), err)
			}
			continue
		}
		data, err := json.Marshal(schema.Entry{Kind: schema.KindRefresh, Schema: v.Schema, Name: v.Name, Phase: schema.PhaseRows})
		if err == nil {
			err = catalog.AddRowsEntry(ctx, tx, l.rec.ID, data, catalog.Place{Here: *here})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// codeViews is told of a view until a REFRESH of the primary's comes through the stream.
const codeViews = "tail-has-views"

// noteViews says in what they may differ from the primary's: that has the rows of its last
// REFRESH, which may be older than what they are filled from here.
func (l *link) noteViews(views []laidView) {
	var notes problem.Findings
	for _, v := range views {
		if !v.Empty {
			notes = append(notes, problem.Warn(codeViews, viewObject(v.quoted()),
				"it is filled here from the rows of now, since a transaction that only this side has had filled it, and holds on the primary the rows of its last REFRESH",
				"REFRESH MATERIALIZED VIEW "+v.quoted()+";").Advise("where the two have to be the same").At("the primary"))
		}
	}
	l.addNotes(notes)
}

// viewsFilled ends what noteViews told of views that the primary has filled or emptied since.
// The caller holds mu.
func (l *link) viewsFilled(quoted []string) {
	l.notes = slices.DeleteFunc(l.notes, func(p *problem.Problem) bool {
		return p.Code == codeViews && slices.ContainsFunc(quoted, func(view string) bool { return viewObject(view) == p.Object })
	})
}

func viewObject(quoted string) string { return "materialized view " + quoted }
