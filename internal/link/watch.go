package link

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// watchEvery is how many of the guard's looks pass between two at a closed fence.
const watchEvery = 12

// maxHoles bounds what a link says of holes that were mended.
const maxHoles = 20

// holdsFence tells that the database of this side has to be closed just now.
func (l *link) holdsFence() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.side
	return l.progress == catalog.Running &&
		(s.Role == role.Secondary && (s.Phase == role.Steady || s.Phase == role.Waiting) || s.Phase == role.Diverged)
}

// watchFence looks whether the fence of a side that is read-only is whole. A hole is
// closed again, and said to have been there: somebody may have written through it.
// What could be passed still is said for as long as it is so.
func (l *link) watchFence(ctx context.Context) error {
	conn, err := l.connect(ctx, "watch")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	state, found, err := look(ctx, conn)
	if err != nil || !l.holdsFence() {
		return err
	}
	var holes, rest problem.Findings
	for _, p := range found {
		switch {
		case p.Code == "large-objects": // NotCarried names them
		case p.Blocks() && strings.HasPrefix(p.Code, "fence-"), !state.Closed:
			holes = append(holes, p)
		default:
			rest = append(rest, p)
		}
	}
	if !state.Closed {
		holes = problem.Findings{problem.New("fence-open", "database "+postgres.QuoteIdent(l.rec.Database), "the fence was taken off", "").Advise("it is put on again by itself")}
	}
	l.update(func() { l.passable = rest })
	if len(holes) == 0 && !state.Outdated {
		return nil
	}
	if err := l.closeAgain(ctx); err != nil {
		return err
	}
	if state.Outdated { // an older agent's: what it lacks is no hole that somebody made
		l.log.Info("the fence is of this version now")
		return nil
	}
	return l.noteHoles(ctx, holes)
}

// look checks the fence as it is at one moment.
func look(ctx context.Context, conn *pgx.Conn) (state fence.State, found problem.Findings, err error) {
	at := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, conn, at, func(pgx.Tx) error {
		state, found, err = fence.Check(ctx, conn)
		return err
	})
	return state, found, err
}

// watchPatience bounds how long a table that is in use is tried again.
const watchPatience = 10 * time.Second

func (l *link) closeAgain(ctx context.Context) error {
	closed, err := l.closeIfHeld(ctx)
	if err != nil || !closed {
		return err
	}
	conn, err := l.connectOwn(ctx, "watch")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return fence.Prepare(ctx, conn, &fence.PrepareOptions{Patience: watchPatience})
}

// closeIfHeld closes the fence unless the role changed. The gate keeps openFence, which
// follows a stored change of roles, behind it.
func (l *link) closeIfHeld(ctx context.Context) (bool, error) {
	release, err := l.m.gate(ctx, l.rec.Database)
	if err != nil {
		return false, err
	}
	defer release()
	if !l.holdsFence() {
		return false, nil
	}
	conn, err := l.connect(ctx, "watch")
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.ours(ctx, conn); err != nil {
		return false, err
	}
	return true, fence.Close(ctx, conn, fence.Sign{Link: l.rec.Name, Primary: l.rec.Peer})
}

// noteHoles says of each hole that it was there, until a comparison finds both sides equal.
func (l *link) noteHoles(ctx context.Context, holes problem.Findings) error {
	at := time.Now().UTC().Format(time.RFC3339)
	var notes problem.Findings
	for _, p := range holes {
		remedy := "hawser link resync " + l.rec.Name
		if table, ok := strings.CutPrefix(p.Object, "table "); ok {
			remedy += " --table " + problem.Word(table)
		}
		l.log.Warn("the fence had a hole, and is closed again", "code", p.Code, "object", p.Object, "cause", p.Cause)
		notes = append(notes, problem.Warn("fence-was-open", p.Object, "until "+at+" others than the link could change it: "+p.Cause, remedy).Advise("it is copied again then; hawser link verify "+l.rec.Name+" tells beforehand whether it differs"))
	}
	l.mu.Lock()
	all := append(slices.Clone(l.holes), notes...)
	l.mu.Unlock()
	return l.setHoles(ctx, all[max(0, len(all)-maxHoles):])
}

func (l *link) forgetHoles(ctx context.Context) error {
	l.mu.Lock()
	none := len(l.holes) == 0
	l.mu.Unlock()
	if none {
		return nil
	}
	return l.setHoles(ctx, nil)
}

// holesBut returns what is said of this side but for those.
func (l *link) holesBut(those func(*problem.Problem) bool) problem.Findings {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.holes), those)
}

// setHoles also stores them: the next run of the agent has to know.
func (l *link) setHoles(ctx context.Context, holes problem.Findings) error {
	l.update(func() { l.holes = holes })
	return l.m.store.Do(ctx, func(conn *pgx.Conn) error { return catalog.SetHoles(ctx, conn, l.rec.Name, holes) })
}
