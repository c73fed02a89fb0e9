package link

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/fence"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// A replica becomes a database of its own when its link is dropped, or failed over by
// force. Whether its rows are a state that a primary had is asked here, for both.

// lacking says in words what keeps this side's rows from that; "" if they are it. most
// bounds the tables that are named; 0 names all.
func (l *link) lacking(ctx context.Context, conn *pgx.Conn, most int) (string, error) {
	err := l.recall(ctx, conn)
	if p, ok := problem.As(err); ok && p.Code == codeForgotten {
		return "schema hawser was dropped, which knew how far it was", nil
	}
	if err != nil {
		return "", err
	}
	s, err := catalog.Lacking(ctx, conn, l.rec.ID)
	if err != nil || s == nil {
		return "", err
	}
	return shortfall(s, most), nil
}

func shortfall(s *catalog.Shortfall, most int) string {
	switch {
	case !s.Restored:
		return "no table is there yet"
	case len(s.Tables) == 0:
		return "its tables have their rows, of different times, and keys and what else needs all rows are still to be made"
	}
	return "rows are missing, or are not the primary's, in " + tables(fewOf(s.Tables, most))
}

// standsIncomplete tells of a copy that is not complete and does not go on just now, which
// the link's state does not tell; nil: it is complete, or goes on.
func (l *link) standsIncomplete(ctx context.Context, conn *pgx.Conn, s Status) *problem.Problem {
	if s.Role != role.Secondary || s.State != Disconnected && s.State != Paused && s.State != Suspended {
		return nil
	}
	lacks, err := catalog.Lacking(ctx, conn, l.rec.ID)
	if err != nil || lacks == nil {
		return nil
	}
	return problem.Noted(codeIncomplete, "database "+postgres.QuoteIdent(l.rec.Database),
		"its copy is not complete, and goes on when the link does: "+shortfall(lacks, namedTables))
}

// fewOf shortens a list for a sentence.
func fewOf(names []string, most int) []string {
	if most == 0 || len(names) <= most {
		return names
	}
	return append(names[:most:most], fmt.Sprintf("%d more", len(names)-most))
}

// namedTables bounds the tables that a refusal names.
const namedTables = 10

// leaves tells of a replica that stays when the link goes and is not complete: a refusal,
// or a warning if a person has confirmed it; and of one that is, and not what the primary has.
func (l *link) leaves(ctx context.Context, r dropRequest) (problem.Findings, error) {
	l.mu.Lock()
	side, runs := l.side, l.progress == catalog.Running
	goes := r.RemoveReplica && l.ownsDB && side.Role == role.Secondary
	l.mu.Unlock()
	if side.Writable() || goes || !runs {
		return nil, nil
	}
	most := namedTables
	if r.Force {
		most = 0
	}
	if err := l.locate(ctx); err != nil {
		return nil, err
	}
	var lacks string
	conn, err := l.connect(ctx, "drop")
	if err == nil {
		defer conn.Close(context.WithoutCancel(ctx))
		lacks, err = l.lacking(ctx, conn, most)
	}
	switch p, ok := problem.As(err); {
	case ok && p.Code == "no-such-database":
		return nil, nil
	case err != nil:
		return nil, err
	case lacks == "":
		return l.opensBehind(ctx), nil
	case r.Force:
		return problem.Findings{problem.Warn(codeIncomplete, "database "+postgres.QuoteIdent(l.rec.Database), "it takes writes now, and its copy was not complete: "+lacks,
			l.putAway()).Advise(l.copyAnew())}, nil
	}
	return nil, problem.New(codeIncomplete, "database "+postgres.QuoteIdent(l.rec.Database), "its copy is not complete, and without the link it would take writes: "+lacks,
		"hawser link show "+l.rec.Name).
		Advise("wait until this says that it is synchronized; or hawser link drop " + l.rec.Name + " --remove-replica, if Hawser created the database; or hawser link drop " + l.rec.Name + " --force, which opens it as it is, and with the rows that a rejoin took away")
}

// putAway is the statement that makes way for another copy of the database, copyAnew what
// makes that.
func (l *link) putAway() string {
	name := l.database()
	return "ALTER DATABASE " + postgres.QuoteIdent(name) + " RENAME TO " + postgres.QuoteIdent(name+"_old") + ";"
}

func (l *link) copyAnew() string {
	return "if instance " + l.rec.Peer + " still has all of it; then there: hawser link create " + l.rec.Name + " --database " + problem.Word(l.rec.Database) + " --peer " + l.m.cfg.Instance + ", which copies all of it again"
}

// opensBehind warns of a complete replica that opens with the drop of a link that stood, and so
// is not what the primary has.
func (l *link) opensBehind(ctx context.Context) problem.Findings {
	s := l.informed(ctx)
	if s.Role != role.Secondary || s.Cause == nil {
		return nil
	}
	object := "database " + postgres.QuoteIdent(l.database())
	behind := "what instance " + l.rec.Peer + " wrote since is not here"
	if s.Behind != nil {
		behind += ": up to " + bytesText(*s.Behind) + " of WAL"
	}
	var p *problem.Problem
	switch {
	case s.State == Suspended && (s.Cause.Code == apply.CodeRowMissing || s.Cause.Code == codeNotCompared):
		p = problem.Warn("replica-differs", object, "it takes writes now, and differs from what instance "+l.rec.Peer+" has, or may: the link was suspended ("+s.Cause.Code+"), "+s.Cause.Cause, l.putAway())
	case s.State == Suspended:
		p = problem.Warn("replica-behind", object, "it takes writes now, as it was when the link was suspended ("+s.Cause.Code+"): "+behind, l.putAway())
	case s.State == Paused:
		p = problem.Warn("replica-behind", object, "it takes writes now, as it was when the link was paused: "+behind, l.putAway())
	default:
		return nil
	}
	return problem.Findings{p.Advise(l.copyAnew())}
}

const (
	codeIncomplete = "copy-incomplete"
	codeForgotten  = "schema-lost"
)

// recall sees that the database still knows of the link, and brings what it knows to this
// agent's version.
func (l *link) recall(ctx context.Context, conn *pgx.Conn) error {
	known, err := catalog.Remembers(ctx, conn, l.rec.ID)
	if err != nil {
		return err
	}
	if !known {
		return l.forgottenBy(ctx)
	}
	return catalog.MigrateDatabase(ctx, conn)
}

// forgot tells that the database is known not to know of the link any more.
func (l *link) forgot() bool {
	conn, err := l.connect(l.ctx, "setup")
	if err != nil {
		return false
	}
	defer conn.Close(context.WithoutCancel(l.ctx))
	known, err := catalog.Remembers(l.ctx, conn, l.rec.ID)
	return err == nil && !known
}

func (l *link) forgotten() *problem.Problem {
	return problem.New(codeForgotten, "schema hawser of database "+postgres.QuoteIdent(l.rec.Database),
		"it was dropped while the link ran, and with it the capture of DDL and what the link knew: what happened since is not known",
		"hawser link resync "+l.rec.Name).
		Advise("it puts it back, compares both sides and copies the tables that differ")
}

// intact sees that nobody took away what captures this primary. If somebody did, the link
// stands: DDL of the time since was told to nobody.
func (l *link) intact(ctx context.Context, conn *pgx.Conn) error {
	if side, _ := l.now(); side.Forced { // it may capture nothing, for nobody
		if slot, err := capture.SlotUsable(ctx, conn, l.rec.ID); err != nil || !slot {
			return err
		}
	}
	known, err := catalog.Remembers(ctx, conn, l.rec.ID)
	switch {
	case err != nil:
		return err
	case known:
		err = capture.Intact(ctx, conn)
	default:
		err = l.forgottenBy(ctx)
	}
	if p, ok := problem.As(err); ok && !p.Retryable && !l.standsFor(p.Code) {
		l.suspend(p)
	}
	return err
}

// standsFor tells that the link is suspended with that cause.
func (l *link) standsFor(code string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.suspended != nil && l.suspended.Code == code
}

// recollect has a database that forgot the link know it again, as one whose copy is not
// complete: what it knew is gone.
func (l *link) recollect(ctx context.Context, conn *pgx.Conn) error {
	err := l.recall(ctx, conn)
	if p, ok := problem.As(err); !ok || p.Code != codeForgotten {
		return err
	}
	if err := catalog.MigrateDatabase(ctx, conn); err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := catalog.Join(ctx, tx, l.rec.ID, l.rec.Name); err != nil {
			return err
		}
		return catalog.Reopen(ctx, tx, l.rec.ID)
	})
	if err != nil {
		return err
	}
	if side, _ := l.now(); side.Role == role.Secondary {
		if err := l.beginTerm(ctx, conn, side); err != nil {
			return err
		}
	}
	return l.closeAgain(ctx)
}

// reclaim puts on a fence that went with schema hawser, so that taking it off takes the
// database's setting back as well, and names what else of the link may be left: which
// tables it gave a replica identity was written there.
func (l *link) reclaim(ctx context.Context, conn *pgx.Conn) (problem.Findings, error) {
	if side, _ := l.now(); side.Role == role.Secondary || expelled(side) {
		if err := fence.Close(ctx, conn, fence.Sign{Link: l.rec.Name, Primary: l.rec.Peer}); err != nil {
			return nil, err
		}
	}
	names, err := capture.FullIdentities(ctx, conn)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	statements := make([]string, len(names))
	for i, name := range names {
		statements[i] = "ALTER TABLE " + name + " REPLICA IDENTITY DEFAULT;"
	}
	return problem.Findings{problem.Warn("replica-identity-left", tables(names),
		"REPLICA IDENTITY FULL is set. Schema hawser, which knew whether the link had set it, was dropped before the link", strings.Join(statements, " "))}, nil
}
