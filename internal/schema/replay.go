package schema

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	pgq "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// ReplayOptions say how a Replayer works.
type ReplayOptions struct {
	// Key returns the key that signs the primary's DDL messages (capture.DDLKey). It
	// is called before the first message, and again when a signature does not fit.
	Key func(context.Context) ([]byte, error)
	// Maker asks the primary who made a table of which rows came, in transaction xid,
	// that no command announced. Nil: nobody can be asked.
	Maker func(ctx context.Context, oid, xid uint32) (Maker, error)
	// Carries reports whether the link carries a table. Nil: it carries all.
	Carries func(schema, table string) bool
	// Link is the link's id, by which the primary tells which tables came in or went out.
	Link string
	// Partial says that the link carries the rows of some tables alone, so a foreign key
	// may refer to rows that are not here.
	Partial bool
	// Copying reports whether tables are still being copied, so that each is at a time of
	// its own, or empty. Nil: none is.
	Copying func(ctx context.Context, conn *pgx.Conn) (bool, error)
	// Unchecked are the foreign keys of this side whose rows are checked when all tables are
	// copied; the primary's are checked. It is asked while Copying. Nil: there are none.
	Unchecked func(ctx context.Context, conn *pgx.Conn) ([]uint32, error)
	// Loud gives triggers and rules that are kept quiet here the states that they have on
	// the primary, for a command that speaks of them (Result.Loud). Nil: none is kept quiet.
	Loud func(ctx context.Context, conn *pgx.Conn) error
}

// A Replayer runs the primary's DDL on the secondary. It is for one link's applier,
// which calls it from one goroutine: Reset when a transaction of the primary begins,
// Replay for each message with the prefix hawser.ddl in its place among the changes,
// InScript and OfScript for rows behind one, Provide for those of a table that is unknown,
// Finish before the transaction is committed. Every call gets the applier's connection, a superuser's with
// session_replication_role=replica, in the open target transaction. After an error
// the applier must roll back.
//
// It must never invent data: what a statement's text would compute anew (a volatile
// default, now()) is taken from the primary, or the table is named in Result.Reseed.
// It never runs a user's code with more rights than that user has on this side.
type Replayer struct {
	options ReplayOptions
	key     []byte
	spoken  map[uint32]bool // relations of which an earlier transaction told, and no command announced

	// Of the transaction at hand:
	texts     map[string]string     // by ref
	scripts   map[string]*ddlScript // by text
	recent    string                // the last text used
	telling   []uint32              // of such relations that it tells of
	creating  []ddlUser             // users whose CREATE TABLE AS has begun
	begun     map[string]ddlUser    // owners of schemas that commands inside of CREATE SCHEMA needed
	provided  map[uint32]Table      // filled before its CREATE TABLE AS was told
	extension *extensionRows        // the rows that follow come while an extension's script runs
}

// Table names a table of the primary.
type Table struct {
	OID          uint32
	Schema, Name string
}

func (t Table) sql() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// Result tells the applier what one DDL message did.
type Result struct {
	// Tag is the command tag; "" for a message that is not a command.
	Tag string
	// Statements were executed, in this order.
	Statements []string
	// Relations are OIDs on the primary: what is known about them is out of date.
	Relations []uint32
	// AllRelations says that every relation may have changed its name or shape.
	AllRelations bool
	// Created are new tables. They need what tables of a secondary have (the fence).
	Created []Table
	// Reseed are tables, empty now, whose rows only the primary knows.
	Reseed []Table
	// Refreshed are the quoted names of materialized views that were filled from this
	// side's rows, or could not be since tables are still being seeded: then they need it
	// again at the end. Emptied are those that are to have no rows.
	Refreshed, Emptied []string
	// Later are foreign keys that need the rows of all tables: to be validated when
	// seeding is done.
	Later []Place
	// Loud says that triggers and rules have the states of the primary: those that fire for
	// replication are to be kept quiet again.
	Loud bool
	// Keys are the names of the foreign keys that the statement gave to new ones.
	Keys []string
	// CommitAfter forbids to join the transaction with later ones of the primary: a new
	// enum value can't be used before its transaction is committed.
	CommitAfter bool
	// Roles were created, without login, since a statement names them.
	Roles []string
	// Notes are for the link's status.
	Notes problem.Findings
}

// NewReplayer returns a replayer at the start of a transaction.
func NewReplayer(o ReplayOptions) *Replayer {
	r := &Replayer{options: o, scripts: map[string]*ddlScript{}, spoken: map[uint32]bool{}}
	r.Reset()
	return r
}

// Reset forgets the transaction at hand, committed or not.
func (r *Replayer) Reset() {
	r.texts = map[string]string{}
	// A string with a COMMIT in it goes on in the next transaction.
	maps.DeleteFunc(r.scripts, func(text string, _ *ddlScript) bool { return text != r.recent })
	r.telling, r.creating, r.begun, r.provided, r.extension = nil, nil, map[string]ddlUser{}, map[uint32]Table{}, nil
}

// Finish reports what is open at the end of a transaction.
func (r *Replayer) Finish() error {
	for _, t := range r.provided {
		return problem.New("ddl-missing", "table "+t.sql(),
			"its rows came without the command that made it", "hawser link resync NAME --table "+problem.Word(t.sql()))
	}
	for _, oid := range r.telling {
		r.spoken[oid] = true
	}
	return nil
}

// Replay runs the command that a message with the prefix hawser.ddl tells.
func (r *Replayer) Replay(ctx context.Context, conn *pgx.Conn, content []byte) (Result, error) {
	if len(content) == 0 { // it keeps the message before it in its place
		return Result{}, nil
	}
	body, ok, err := r.signed(ctx, content)
	if err != nil {
		return Result{}, err
	}
	if !ok {
		return Result{Notes: problem.Findings{problem.Warn("ddl-forged", "logical message hawser.ddl",
			"a message in the stream was not written by Hawser's event triggers and was left out; any user can write one",
			"SELECT p.oid::regprocedure FROM pg_proc p WHERE p.prosrc ~ 'pg_logical_emit_message';").Advise("find who calls it").At("the primary")}}, nil
	}
	m, err := decodeDDL(body)
	if err != nil {
		return Result{}, err
	}
	if m.Phase == "begin" {
		r.begin(m)
		return Result{}, nil
	}
	if m.Source != nil && len(*m.Source) >= repeatedText {
		r.texts[m.Ref] = *m.Source
	}
	run := &replay{Replayer: r, conn: conn, m: m, result: Result{Tag: m.Tag, Relations: m.relations()}}
	if err := run.command(ctx); err != nil {
		return Result{}, err
	}
	if err := run.setIdentity(ctx); err != nil {
		return Result{}, err
	}
	if err := run.choose(ctx); err != nil {
		return Result{}, err
	}
	return run.result, nil
}

func (r *Replayer) signed(ctx context.Context, content []byte) (body []byte, ok bool, err error) {
	if body, ok := ddlSigned(content, r.key); ok && len(r.key) > 0 {
		return body, true, nil
	}
	if r.key, err = r.options.Key(ctx); err != nil {
		return nil, false, fmt.Errorf("get the key of the primary's DDL messages: %w", err)
	}
	if len(r.key) == 0 {
		return nil, false, fmt.Errorf("the key of the primary's DDL messages is empty")
	}
	body, ok = ddlSigned(content, r.key)
	return body, ok, nil
}

// begin notes that rows may come before the message that describes their table.
func (r *Replayer) begin(m *ddlMessage) {
	switch m.Tag {
	case "CREATE EXTENSION", "ALTER EXTENSION":
		r.extension = &extensionRows{left: map[Table]bool{}}
	case "CREATE TABLE AS", "SELECT INTO":
		r.creating = append(r.creating, m.User)
	}
}

// replay is the run of one message.
type replay struct {
	*Replayer
	conn   *pgx.Conn
	m      *ddlMessage
	result Result
}

// command runs what the message says, by its kind.
func (r *replay) command(ctx context.Context) error {
	m := r.m
	switch {
	case m.Error != "":
		return problem.New("ddl-not-captured", m.object(),
			"the primary's event trigger could not describe the command: "+m.Error,
			"hawser link drop NAME --remove-replica").Advise("then create the link again")
	case len(m.Changes) > 0:
		return r.sweep(ctx)
	case m.Tag == "", r.ours(), r.left(), r.unfinished():
		return nil
	case len(m.Objects) > 0 && m.Objects[0].Class == "pg_subscription", strings.HasSuffix(m.Tag, " SUBSCRIPTION"):
		r.note("ddl-subscription", "subscriptions stay where they are: a second subscriber would take the first one's changes")
		return nil
	case r.ofToast():
		r.note("ddl-left-out", "it is of a TOAST table, which has another name on each side")
		return nil
	}
	switch m.Tag {
	case "CREATE EXTENSION", "ALTER EXTENSION":
		return r.endExtension(ctx)
	case "CREATE TABLE AS", "SELECT INTO":
		return r.createTableAs(ctx)
	case "IMPORT FOREIGN SCHEMA":
		return r.importForeign(ctx)
	case "REINDEX":
		return r.reindex(ctx)
	}
	st, err := r.statement()
	if err != nil {
		return err
	}
	r.describe(st)
	if err := r.loud(ctx, st); err != nil {
		return err
	}
	if err := r.withoutRowIndexes(ctx, st); err != nil {
		return err
	}
	return r.byTag(ctx, st)
}

// byTag carries out a statement in the way of its kind, or as it was written.
func (r *replay) byTag(ctx context.Context, st *ddlStatement) error {
	m := r.m
	switch m.Tag {
	case "REFRESH MATERIALIZED VIEW":
		for _, sql := range m.Views {
			if err := r.run(ctx, order{sql: sql, generated: true}); err != nil {
				return err
			}
		}
	case "CREATE MATERIALIZED VIEW":
		if m.StandIn != "" {
			r.note("ddl-left-out", "it is of a trigger's transition table, so PostgreSQL can neither refresh nor dump it; an empty one stands for it here")
			return r.run(ctx, order{sql: m.StandIn, generated: true})
		}
	case "CREATE SCHEMA":
		if name, begun := r.begunSchema(); begun {
			return r.completeSchema(ctx, name, st)
		}
	case "CREATE TABLE":
		if r.likeTemporary(st) {
			return r.createLike(ctx)
		}
	case "CREATE INDEX", "ALTER INDEX":
		if len(m.Tree) > 0 && grows(st.node) {
			return r.makeIndexes(ctx, m.Tree)
		}
	case "ALTER TABLE":
		if err := r.alterTable(ctx, st); err != nil {
			return err
		}
		return r.renameIndexes(ctx)
	case "DROP OWNED", "REASSIGN OWNED":
		return r.owned(ctx, st)
	case "GRANT", "REVOKE":
		if r.temporaryGrant(st) {
			return nil
		}
	}
	return r.plain(ctx, st)
}

// ours reports whether the command concerns what Hawser itself keeps in a database.
func (r *replay) ours() bool {
	all := append(slices.Clone(r.m.Objects), r.m.Dropped...)
	for _, o := range all {
		mine := o.Schema == "hawser" || o.Class == "pg_namespace" && o.Identity == "hawser" ||
			o.Class == "pg_publication" && strings.HasPrefix(o.Identity, "hawser_")
		if !mine {
			return false
		}
	}
	return len(all) > 0
}

// ofToast reports whether the command is one of a superuser with allow_system_table_mods
// who changes TOAST tables or their indexes alone.
func (r *replay) ofToast() bool {
	return len(r.m.Objects) > 0 && !slices.ContainsFunc(r.m.Objects, func(o ddlObject) bool { return o.Schema != "pg_toast" })
}

// left reports whether the link leaves out every table that the command concerns.
func (r *replay) left() bool {
	if r.options.Carries == nil {
		return false
	}
	tables := 0
	for _, o := range r.m.Objects {
		if o.Table != "" {
			tables++
			if r.options.Carries(o.TableSchema, o.Table) {
				return false
			}
		}
	}
	for _, o := range r.m.Dropped {
		if o.Root && o.Type != "table" {
			return false
		}
		if o.Type == "table" {
			tables++
			if r.options.Carries(o.Schema, o.Name) {
				return false
			}
		}
	}
	return tables > 0
}

const (
	repeatedText = 1000 // ddl.sql sends a text again that has less than twice as many characters
	keptScripts  = 32   // parsed texts; most are of one statement and needed once
)

// statement finds the text that the primary ran.
func (r *replay) statement() (*ddlStatement, error) {
	m := r.m
	source, ok := r.texts[m.Ref]
	if m.Source != nil {
		source, ok = *m.Source, true
	}
	if !ok {
		return nil, notFound(m, "(a text that this transaction has not sent)")
	}
	return locate(m, source, func(text string) *ddlScript {
		s := r.scripts[text]
		if s == nil {
			s = parseDDL(text, m)
			if len(r.scripts) >= keptScripts {
				clear(r.scripts)
			}
			r.scripts[text] = s
		}
		r.recent = text
		return s
	})
}

// describe fills in what the applier has to know whatever way the command is run.
func (r *replay) describe(st *ddlStatement) {
	m := r.m
	switch m.Tag {
	case "CREATE TABLE", "CREATE SCHEMA":
		for _, o := range m.Objects {
			if o.Class == "pg_class" && o.Type == "table" {
				r.result.Created = append(r.result.Created, Table{o.OID, o.TableSchema, o.Table})
			}
		}
	case "ALTER TYPE":
		r.result.CommitAfter = st.node == nil || st.node.GetAlterEnumStmt() != nil
	case "CREATE MATERIALIZED VIEW", "REFRESH MATERIALIZED VIEW":
		list := &r.result.Refreshed
		if as := st.node.GetCreateTableAsStmt(); m.StandIn != "" || as.GetInto().GetSkipData() || st.node.GetRefreshMatViewStmt().GetSkipData() {
			list = &r.result.Emptied
		}
		for _, o := range m.Objects {
			if o.Type == "materialized view" {
				*list = append(*list, pgx.Identifier{o.TableSchema, o.Table}.Sanitize())
			}
		}
	case "ALTER SCHEMA", "DROP OWNED", "ALTER EXTENSION":
		r.result.AllRelations = true
	}
}

// plain runs a statement by its text, adapted to this side.
func (r *replay) plain(ctx context.Context, st *ddlStatement) error {
	text, err := r.adapt(ctx, st)
	if err != nil || text == "" {
		return err
	}
	if r.largeObject(st) {
		return nil
	}
	if err := r.bareForRule(ctx, st); err != nil {
		return err
	}
	run := func() error {
		return r.orSoft(ctx, st, func() error { return r.run(ctx, order{sql: text, node: st.node, fills: fills(st.node)}) })
	}
	if fills(st.node) {
		err = r.fill(ctx, st, r.m.view(), run)
	} else if r.options.Carries == nil {
		err = run()
	} else if err = r.attempt(ctx, run); sqlState(err) == "42P01" { // undefined_table
		r.note("ddl-left-out", "it needs a table that the link leaves out")
		return nil
	}
	if err != nil {
		return err
	}
	return r.afterwards(ctx, st)
}

// bareForRule takes the fence from a table that a rule "_RETURN" makes a view (up to
// PostgreSQL 15): a table with triggers can't become one, and a view needs no fence.
func (r *replay) bareForRule(ctx context.Context, st *ddlStatement) error {
	rule := st.node.GetRuleStmt()
	if rule.GetEvent() != pgq.CmdType_CMD_SELECT {
		return nil
	}
	for _, o := range r.m.Objects {
		if o.Table == "" {
			continue
		}
		name := pgx.Identifier{o.TableSchema, o.Table}.Sanitize()
		var fenced bool
		err := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgname LIKE 'hawser|_fence%' ESCAPE '|')`, name).Scan(&fenced)
		if err != nil {
			return fmt.Errorf("look for the fence of %s: %w", name, err)
		}
		if !fenced {
			continue
		}
		// That the table once had a trigger is kept until VACUUM, which can't run here.
		for _, sql := range []string{"DROP TRIGGER IF EXISTS hawser_fence ON " + name, "DROP TRIGGER IF EXISTS hawser_fence_replica ON " + name,
			"UPDATE pg_class SET relhastriggers = false WHERE oid = " + postgres.QuoteLiteral(name) + "::regclass AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = pg_class.oid)"} {
			if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// largeObject reports whether the command concerns large objects alone, which come
// with their owner and privileges in another way, if at all.
func (r *replay) largeObject(st *ddlStatement) bool {
	const kind = pgq.ObjectType_OBJECT_LARGEOBJECT
	if r.m.Tag != "ALTER LARGE OBJECT" && st.node.GetGrantStmt().GetObjtype() != kind &&
		st.node.GetCommentStmt().GetObjtype() != kind && st.node.GetSecLabelStmt().GetObjtype() != kind {
		return false
	}
	r.note("ddl-large-object", "owner, privileges and comment of a large object are not carried by commands")
	return true
}

// afterwards sets right what a text means differently here.
func (r *replay) afterwards(ctx context.Context, st *ddlStatement) error {
	if err := r.keepMoments(ctx, st); err != nil {
		return err
	}
	for _, c := range r.m.Configs {
		for _, setting := range c.Config {
			name, value, _ := strings.Cut(setting, "=")
			sql := fmt.Sprintf("ALTER %s %s SET %s TO %s", routineWord(c.Type), c.Identity, pgx.Identifier{name}.Sanitize(), configValue(name, value))
			if err := r.run(ctx, order{sql: sql, generated: true}); err != nil {
				return err
			}
		}
	}
	for _, c := range r.m.Checks {
		if err := r.addCheck(ctx, c); err != nil {
			return err
		}
	}
	return r.numberIndexes(ctx)
}

func routineWord(objectType string) string {
	if objectType == "procedure" {
		return "PROCEDURE"
	}
	return "FUNCTION"
}

// configValue writes a stored setting as SET takes it. Those that are lists are taken
// apart: each element stands in the list quoted, or as it was written.
func configValue(name, value string) string {
	switch strings.ToLower(name) {
	case "search_path", "temp_tablespaces", "session_preload_libraries", "shared_preload_libraries", "local_preload_libraries":
		if list, ok := listElements(value); ok {
			return strings.Join(list, ", ")
		}
	}
	return postgres.QuoteLiteral(value)
}

var listElement = regexp.MustCompile(`^\s*(?:"((?:[^"]|"")*)"|([^\s",][^\s,]*))\s*(?:,|$)`)

// listElements are the elements of a list of names, as literals.
func listElements(list string) (literals []string, ok bool) {
	for rest := list; rest != ""; {
		found := listElement.FindStringSubmatch(rest)
		if found == nil {
			return nil, false
		}
		element := strings.ReplaceAll(found[1], `""`, `"`)
		if found[2] != "" {
			element = strings.ToLower(found[2])
		}
		literals, rest = append(literals, postgres.QuoteLiteral(element)), rest[len(found[0]):]
	}
	return literals, len(literals) > 0
}

// keepMoments gives the primary's defaults to columns whose default was written as a
// moment, such as 'now', which the server reads when the command runs.
func (r *replay) keepMoments(ctx context.Context, st *ddlStatement) error {
	moment := false
	walk(st.node, func(m protoreflect.Message) {
		if c, ok := m.Interface().(*pgq.A_Const); ok {
			moment = moment || relativeTime(c.GetSval().GetSval())
		}
	})
	if !moment {
		return nil
	}
	for _, t := range r.m.Tables {
		for _, c := range t.Columns {
			if !strings.HasPrefix(c.Default, "'") { // not a constant
				continue
			}
			sql := "ALTER TABLE " + pgx.Identifier{t.Schema, t.Name}.Sanitize() + " ALTER COLUMN " +
				pgx.Identifier{c.Name}.Sanitize() + " SET DEFAULT " + c.Default
			if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// addCheck adds the constraint that DETACH PARTITION CONCURRENTLY leaves behind.
func (r *replay) addCheck(ctx context.Context, c ddlCheck) error {
	var exists bool
	err := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND k.conname = $3)`, c.Schema, c.Table, c.Name).Scan(&exists)
	if err != nil {
		return fmt.Errorf("look for constraint %q: %w", c.Name, err)
	}
	if exists {
		return nil
	}
	sql := fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s %s", pgx.Identifier{c.Schema, c.Table}.Sanitize(), pgx.Identifier{c.Name}.Sanitize(), c.Def)
	return r.run(ctx, order{sql: sql, generated: true})
}

// setIdentity follows what the primary's event trigger did to replica identities, so
// that both sides are alike and this one can become the primary. It keeps the list
// of them as well (capture.AdoptReplicaIdentity began it).
func (r *replay) setIdentity(ctx context.Context) error {
	for _, i := range r.m.Identity {
		if r.options.Carries != nil && !r.options.Carries(i.Schema, i.Name) || i.To != "FULL" && i.To != "DEFAULT" {
			continue
		}
		name := pgx.Identifier{i.Schema, i.Name}.Sanitize()
		sql := "ALTER TABLE IF EXISTS ONLY " + name + " REPLICA IDENTITY " + i.To
		if err := r.run(ctx, order{sql: sql, generated: true, agent: true}); err != nil {
			return err
		}
		if err := r.keepIdentity(ctx, name, i); err != nil {
			return fmt.Errorf("note the replica identity of %s: %w", name, err)
		}
	}
	return nil
}

func (r *replay) keepIdentity(ctx context.Context, name string, i ddlIdentity) error {
	var kept bool
	err := r.conn.QueryRow(ctx, `SELECT to_regclass('hawser.replica_identity') IS NOT NULL AND to_regclass($1) IS NOT NULL`, name).Scan(&kept)
	if err != nil || !kept {
		return err
	}
	if i.To == "DEFAULT" {
		_, err = r.conn.Exec(ctx, `DELETE FROM hawser.replica_identity WHERE relid = $1::text::regclass`, name)
		return err
	}
	_, err = r.conn.Exec(ctx, `INSERT INTO hawser.replica_identity VALUES ($1::text::regclass, $2::text::"char") ON CONFLICT (relid) DO NOTHING`, name, i.Was)
	return err
}

// choose empties the tables of which the link carries the rows no longer, and has those
// copied that came in. Emptied they are too: an extension's script may have filled them.
func (r *replay) choose(ctx context.Context) error {
	for _, c := range r.m.Chosen {
		if c.Link != r.options.Link || c.In && !c.Copy {
			continue
		}
		table := Table{c.OID, c.Schema, c.Name}
		if err := r.empty(ctx, table); err != nil {
			return err
		}
		if c.In {
			r.result.Reseed = append(r.result.Reseed, table)
		}
	}
	return nil
}

func (r *replay) note(code, text string) {
	r.result.Notes = append(r.result.Notes, problem.Noted(code, r.m.object(), text))
}
