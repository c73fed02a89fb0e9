package fence

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
)

// memo is kept as the comment on hawser.fence(), where the database's
// administrator can read it too.
type memo struct {
	Closed  bool   `json:"closed"`
	Form    int    `json:"form,omitempty"` // of the functions of a closed fence
	Link    string `json:"link,omitempty"`
	Primary string `json:"primary,omitempty"`
	// At is when the fence was closed first; a session that is older began before.
	At time.Time `json:"at,omitzero"`
	// Was is the user's own default_transaction_read_only of the database, which
	// comes back when the fence is opened; absent if there was none.
	Was *string `json:"was,omitempty"`
}

func (m memo) sign() Sign { return Sign{m.Link, m.Primary} }

// facts are what Close, Open and Check read of the database.
type facts struct {
	Name string
	home
	Version int
	Memo    memo
	Setting *string // default_transaction_read_only as it is set for the database
	Created bool    // by Hawser, as a replica
	// The bodies of the functions and the event trigger's evtenabled; empty if absent.
	TableBody, DDLBody, Event string
}

// Close puts the fence on: statements that begin after it returned are refused,
// in sessions that were open before too. It changes the sign of one that is on.
// Tables that Prepare has not visited are guarded by default_transaction_read_only
// alone until it has; Drain sees to that.
func Close(ctx context.Context, conn *pgx.Conn, s Sign) error {
	err := write(ctx, conn, func(tx pgx.Tx) error {
		f, err := ensure(ctx, tx)
		if err != nil {
			return err
		}
		m := memo{Closed: true, Form: form, Link: s.Link, Primary: s.Primary, At: f.Memo.At, Was: f.Memo.Was}
		if !f.Memo.Closed {
			if f.TableBody != "" || !f.Created { // else what had closed it before is gone, and the setting is its own
				m.Was = f.Setting
			}
			if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&m.At); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, closedFunctions(s, f.home)+f.set("on")+m.comment())
		return err
	})
	return explain("close the fence", err)
}

// Open takes the fence off. The triggers stay and do nothing. It is no error when
// the fence is open or absent.
func Open(ctx context.Context, conn *pgx.Conn) error {
	err := write(ctx, conn, func(tx pgx.Tx) error {
		f, err := read(ctx, tx)
		if err != nil || f.TableBody == "" {
			return err
		}
		sql := openFunctions() + memo{}.comment()
		if f.Memo.Closed {
			sql += f.restore()
		}
		_, err = tx.Exec(ctx, sql)
		return err
	})
	return explain("open the fence", err)
}

func read(ctx context.Context, db DB) (facts, error) {
	var f facts
	var comment string
	err := db.QueryRow(ctx, `
		SELECT d.datname, d.oid, c.system_identifier::text, current_setting('server_version_num')::int,
		       (SELECT substr(e, strpos(e, '=') + 1) FROM pg_db_role_setting s, unnest(s.setconfig) e
		        WHERE s.setdatabase = d.oid AND s.setrole = 0 AND starts_with(e, 'default_transaction_read_only=')),
		       EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) e WHERE s.setdatabase = d.oid AND s.setrole = 0 AND starts_with(e, $1 || '=')),
		       coalesce(obj_description(f.oid, 'pg_proc'), ''), coalesce(f.prosrc, ''), coalesce(g.prosrc, ''), coalesce(e.evtenabled::text, '')
		FROM pg_database d CROSS JOIN pg_control_system() c
		LEFT JOIN pg_proc f ON f.oid = to_regprocedure('hawser.fence()')
		LEFT JOIN pg_proc g ON g.oid = to_regprocedure('hawser.fence_ddl()')
		LEFT JOIN pg_event_trigger e ON e.evtname = 'hawser_fence'
		WHERE d.datname = current_database()`, postgres.CreatedSetting).
		Scan(&f.Name, &f.Database, &f.System, &f.Version, &f.Setting, &f.Created, &comment, &f.TableBody, &f.DDLBody, &f.Event)
	if err != nil {
		return f, fmt.Errorf("read the state of the fence: %w", err)
	}
	if !strings.HasPrefix(comment, "{") {
		return f, nil // open, or somebody's own comment
	}
	if err := json.Unmarshal([]byte(comment), &f.Memo); err != nil {
		return f, fmt.Errorf("read the comment on hawser.fence(): %w", err)
	}
	return f, nil
}

func (m memo) comment() string {
	text, _ := json.Marshal(m) // strings, a time and a bool: it can't fail
	return "COMMENT ON FUNCTION hawser.fence() IS " + literal(string(text)) + ";\n"
}

// functions writes the functions as they have to be.
func (f facts) functions() string {
	if f.Memo.Closed {
		return closedFunctions(f.Memo.sign(), f.home)
	}
	return openFunctions()
}

func (f facts) set(value string) string {
	return "ALTER DATABASE " + postgres.QuoteIdent(f.Name) + " SET default_transaction_read_only = " + literal(value) + ";\n"
}

// restore puts the user's own setting back.
func (f facts) restore() string {
	if f.Memo.Was != nil {
		return f.set(*f.Memo.Was)
	}
	return "ALTER DATABASE " + postgres.QuoteIdent(f.Name) + " RESET default_transaction_read_only;\n"
}
