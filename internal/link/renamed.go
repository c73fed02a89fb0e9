package link

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// A database may get another name under a link, and another one its name. The link stands
// then; but when it is dropped, what it put into its database has to go, wherever that is.

// database is the name of the link's database, as far as it is known.
func (l *link) database() string {
	if name := l.renamed.Load(); name != nil {
		return *name
	}
	return l.rec.Database
}

// locate finds the link's database where it does not have the link's name for it any more.
func (l *link) locate(ctx context.Context) error {
	l.mu.Lock()
	creating := l.progress == catalog.Creating
	l.mu.Unlock()
	if creating { // it is not in the database yet
		return nil
	}
	name, err := l.findDatabase(ctx)
	if err != nil || name == "" || name == l.database() {
		return err
	}
	l.log.Warn("the database has another name now", "name", name)
	l.renamed.Store(&name)
	return nil
}

// findDatabase returns the database that has the link's slot, or that remembers the link; ""
// if none does.
func (l *link) findDatabase(ctx context.Context) (name string, err error) {
	var all []string
	err = l.m.store.Do(ctx, func(conn *pgx.Conn) error {
		if name, err = capture.SlotDatabase(ctx, conn, l.rec.ID); err != nil || name != "" {
			return err
		}
		rows, err := conn.Query(ctx, `SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY datname = $1 DESC, datname`, l.database())
		if err != nil {
			return fmt.Errorf("read the databases: %w", err)
		}
		all, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil || name != "" {
		return name, err
	}
	for _, candidate := range all {
		known, err := l.remembered(ctx, candidate)
		if err != nil && candidate == l.database() {
			return "", err
		}
		if err != nil { // one that is closed to the agent was not linked
			l.log.Debug("can't see whether the link's database is this one", "database", candidate, "error", err)
		}
		if known {
			return candidate, nil
		}
	}
	return "", nil
}

// forgottenBy is why the database of the link's name does not know the link: it is another one,
// or schema hawser was dropped.
func (l *link) forgottenBy(ctx context.Context) error {
	name, err := l.findDatabase(ctx)
	switch {
	case err != nil:
		return err
	case name == "" || name == l.database():
		return l.forgotten()
	}
	old := postgres.QuoteIdent(l.rec.Database)
	return problem.New("database-renamed", "database "+old, "it is another one: the link's database is called "+postgres.QuoteIdent(name)+" now. This one is left alone",
		"ALTER DATABASE "+old+" RENAME TO …;\nALTER DATABASE "+postgres.QuoteIdent(name)+" RENAME TO "+old+";").Advise("or hawser link drop " + l.rec.Name).Retry()
}

// ours refuses to close a database that is not the link's.
func (l *link) ours(ctx context.Context, conn *pgx.Conn) error {
	known, err := catalog.Remembers(ctx, conn, l.rec.ID)
	if err != nil || known {
		return err
	}
	err = l.forgottenBy(ctx)
	if p, ok := problem.As(err); ok && p.Code == codeForgotten { // a replica stays one
		return nil
	}
	return err
}

// remembered tells that a database knows of the link.
func (l *link) remembered(ctx context.Context, database string) (bool, error) {
	conn, err := l.m.connect(ctx, database, l.rec.Name+":drop", nil)
	if p, ok := problem.As(err); ok && p.Code == "no-such-database" { // dropped since it was listed
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return catalog.Remembers(ctx, conn, l.rec.ID)
}
