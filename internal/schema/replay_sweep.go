package schema

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// ddlChange is something that changed on the primary without a command that fires an
// event. Its value is nil when it is gone.
type ddlChange struct {
	Kind     string  `json:"kind"`
	Name     string  `json:"name"`
	Value    *string `json:"value"`
	Was      *string `json:"was"` // of a role
	Role     string  `json:"role"`
	Type     string  `json:"type"`
	Identity string  `json:"identity"`
	// Made is what makes a relation that no command announced, before its owner is told.
	Made *ddlMade `json:"made"`
	// Index is what an index is that became valid.
	Index ddlIndex `json:"index"`
}

// ddlMade is a table, a materialized view as a command that leaves it empty, or a schema
// whose CREATE SCHEMA is under way.
type ddlMade struct {
	OID       uint32    `json:"oid"`
	Superuser bool      `json:"superuser"` // its owner is one
	Table     *ddlTable `json:"table"`
	View      string    `json:"view"`
	Name      string    `json:"name"` // of the view, quoted
	Filled    bool      `json:"filled"`
	Path      string    `json:"path"` // search_path of its query
	Schema    string    `json:"schema"`
}

// words tell the change to a person.
func (c ddlChange) words() string {
	parts := slices.DeleteFunc([]string{c.Kind, c.Type, c.Identity, c.Name}, func(s string) bool { return s == "" })
	if c.Role != "" {
		parts = append(parts, "for role "+c.Role)
	}
	value := "none"
	if c.Value != nil {
		value = *c.Value
	}
	return strings.Join(parts, " ") + ": " + value
}

// sweep follows the changes. One that does not fit this side is noted: the link does
// not stop for an owner or a setting.
func (r *replay) sweep(ctx context.Context) error {
	changes := slices.Clone(r.m.Changes)
	// One that is to fire always is made to rest behind the message (fence.Quiet).
	slices.SortStableFunc(changes, func(a, b ddlChange) int { return cmp.Compare(a.atEnd(), b.atEnd()) })
	for _, c := range changes {
		if c.own() {
			continue
		}
		var statements []string
		var err error
		switch c.Kind {
		case "owner":
			statements, err = r.ownerChange(ctx, c)
		case "setting":
			statements, err = r.settingChange(ctx, c)
		case "database":
			statements, err = r.databaseChange(ctx, c)
		case "large objects":
			if c.Value != nil {
				r.result.Notes = append(r.result.Notes, problem.Warn("large-objects", "large objects",
					"the primary's database holds some since the link was made; they are not carried",
					postgres.ShowLargeObjects).Advise(postgres.MoveLargeObjects).At("the primary"))
			}
		case "role":
			err = r.roleChange(ctx, c)
		case "event trigger":
			statements, err = c.eventTrigger()
		case "clustered":
			statements = c.clustered()
		case "index":
			statements = c.index()
		default:
			err = fmt.Errorf("a change of unknown kind %q", c.Kind)
		}
		if err != nil {
			return err
		}
		for _, sql := range statements {
			err := r.attempt(ctx, func() error {
				return r.handing(ctx, c.owner(), func() error { return r.exec(ctx, sql) })
			})
			if sqlState(err) != "" {
				r.note("ddl-sweep", "this side did not take over "+excerpt(sql)+": "+err.Error())
				continue
			}
			if err != nil {
				return err
			}
			r.result.Statements = append(r.result.Statements, sql)
		}
	}
	return nil
}

// atEnd is 1 of what comes behind all others.
func (c ddlChange) atEnd() int {
	if c.Kind == "event trigger" {
		return 1
	}
	return 0
}

// own tells that the change is of what Hawser keeps in the database, of which older agents
// told too. On each side that is the local agent's.
func (c ddlChange) own() bool { return strings.HasPrefix(c.Identity, "hawser.") }

func (r *replay) ownerChange(ctx context.Context, c ddlChange) ([]string, error) {
	if c.Value == nil || c.Identity == "" { // dropped since
		return nil, nil
	}
	if err := r.makeRole(ctx, *c.Value); err != nil {
		return nil, err
	}
	if c.Made != nil {
		owner := ddlUser{Name: *c.Value, Session: *c.Value, Superuser: c.Made.Superuser}
		if c.Made.Schema != "" {
			return nil, r.beginSchema(ctx, owner, c.Made.Schema)
		}
		return nil, r.made(ctx, owner, *c.Made)
	}
	multirange, err := r.multirange(ctx, c)
	if err != nil || multirange {
		return nil, err
	}
	word := map[string]string{"statistics object": "STATISTICS", "foreign-data wrapper": "FOREIGN DATA WRAPPER"}[c.Type]
	if word == "" {
		word = strings.ToUpper(c.Type)
	}
	return []string{"ALTER " + word + " " + c.Identity + " OWNER TO " + pgx.Identifier{*c.Value}.Sanitize()}, nil
}

// made makes, as its owner, a relation that no command announced. It may be there: its rows
// came first, or the schema was dumped when it was. Several transactions may tell of it: what
// came after the first is newer than the words of another.
func (r *replay) made(ctx context.Context, owner ddlUser, made ddlMade) error {
	if r.spoken[made.OID] {
		return nil
	}
	r.telling = append(r.telling, made.OID)
	as := &replay{Replayer: r.Replayer, conn: r.conn, m: &ddlMessage{Tag: "CREATE TABLE AS", User: owner}}
	err := as.makeTold(ctx, made)
	r.result.Statements = append(r.result.Statements, as.result.Statements...)
	r.result.Created = append(r.result.Created, as.result.Created...)
	r.result.Refreshed = append(r.result.Refreshed, as.result.Refreshed...)
	r.result.Emptied = append(r.result.Emptied, as.result.Emptied...)
	r.result.Notes = append(r.result.Notes, as.result.Notes...)
	return err
}

func (r *replay) makeTold(ctx context.Context, made ddlMade) error {
	name := made.Name
	if made.Table != nil {
		name = pgx.Identifier{made.Table.Schema, made.Table.Name}.Sanitize()
	}
	var there bool
	if err := r.conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&there); err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	switch {
	case made.Table != nil:
		r.m.Objects = []ddlObject{{Class: "pg_class", Type: "table", Identity: name, TableSchema: made.Table.Schema, Table: made.Table.Name}}
		return r.makeTable(ctx, *made.Table, there)
	case there:
		return nil
	}
	if err := r.run(ctx, order{sql: made.View, generated: true}); err != nil || !made.Filled {
		return err
	}
	st := &ddlStatement{text: "REFRESH MATERIALIZED VIEW " + name}
	r.result.Refreshed = append(r.result.Refreshed, name)
	return r.fill(ctx, st, name, func() error { return r.run(ctx, order{sql: st.text, generated: true, path: made.Path, fills: true}) })
}

// multirange gives a multirange type its owner. Its range type's command leaves it alone
// and it has none of its own, but REASSIGN OWNED and DROP OWNED know the two apart.
func (r *replay) multirange(ctx context.Context, c ddlChange) (done bool, err error) {
	if c.Type != "type" {
		return false, nil
	}
	err = r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_type WHERE oid = to_regtype($1) AND typtype = 'm')`, c.Identity).Scan(&done)
	if err != nil {
		return false, fmt.Errorf("look for type %s: %w", c.Identity, err)
	}
	if !done {
		return false, nil
	}
	for _, sql := range []string{
		`UPDATE pg_type SET typowner = r.oid FROM pg_roles r, pg_type m WHERE m.oid = to_regtype($1) AND pg_type.oid IN (m.oid, m.typarray) AND r.rolname = $2`,
		`DELETE FROM pg_shdepend USING pg_database d WHERE d.datname = current_database() AND dbid = d.oid AND classid = 'pg_type'::regclass AND objid = to_regtype($1) AND deptype = 'o' AND $2::text <> ''`,
		// Nothing depends on a role that comes with the server: it can't be dropped.
		`INSERT INTO pg_shdepend SELECT d.oid, 'pg_type'::regclass, to_regtype($1), 0, 'pg_authid'::regclass, r.oid, 'o'
			FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = $2 AND r.oid >= 16384`,
	} {
		if _, err := r.conn.Exec(ctx, sql, c.Identity, *c.Value); err != nil {
			return false, fmt.Errorf("give type %s to role %q: %w", c.Identity, *c.Value, err)
		}
	}
	return true, nil
}

func (r *replay) settingChange(ctx context.Context, c ddlChange) ([]string, error) {
	var database string
	if err := r.conn.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return nil, fmt.Errorf("read the database's name: %w", err)
	}
	role := ""
	if c.Role != "" {
		if err := r.makeRole(ctx, c.Role); err != nil {
			return nil, err
		}
		role = pgx.Identifier{c.Role}.Sanitize()
	}
	return []string{SetSetting(database, role, c.Name, c.Value)}, nil
}

// SetSetting is the statement that gives a database, or a role in it where one is named as
// SQL names it, a setting as the catalog has it; none takes it away.
func SetSetting(database, role, name string, value *string) string {
	sql := "ALTER DATABASE " + pgx.Identifier{database}.Sanitize()
	if role != "" {
		sql = "ALTER ROLE " + role + " IN DATABASE " + pgx.Identifier{database}.Sanitize()
	}
	setting := pgx.Identifier(strings.Split(name, ".")).Sanitize()
	if value == nil {
		return sql + " RESET " + setting
	}
	return sql + " SET " + setting + " TO " + configValue(name, *value)
}

// databaseChange follows what was said of the database itself.
func (r *replay) databaseChange(ctx context.Context, c ddlChange) ([]string, error) {
	var database string
	if err := r.conn.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return nil, fmt.Errorf("read the database's name: %w", err)
	}
	name := pgx.Identifier{database}.Sanitize()
	switch {
	case c.Name == "comment" && c.Value == nil:
		return []string{"COMMENT ON DATABASE " + name + " IS NULL"}, nil
	case c.Name == "comment":
		return []string{"COMMENT ON DATABASE " + name + " IS " + postgres.QuoteLiteral(*c.Value)}, nil
	case c.Name == "connection limit" && c.Value != nil:
		return []string{"ALTER DATABASE " + name + " CONNECTION LIMIT " + *c.Value}, nil
	case c.Name == "owner" && c.Value != nil:
		if err := r.makeRole(ctx, *c.Value); err != nil {
			return nil, err
		}
		return []string{"ALTER DATABASE " + name + " OWNER TO " + pgx.Identifier{*c.Value}.Sanitize()}, nil
	case c.Name == "privileges":
		return r.databasePrivileges(ctx, name, c.Value)
	}
	return nil, fmt.Errorf("an unknown change of the database: %q", c.Name)
}

// databasePrivileges makes them what they are on the primary, for all but the owner.
func (r *replay) databasePrivileges(ctx context.Context, database string, value *string) (statements []string, err error) {
	var granted []struct {
		Role       *string // nil: PUBLIC
		Privileges string
		Grantable  bool
	}
	if value != nil {
		if err := json.Unmarshal([]byte(*value), &granted); err != nil {
			return nil, fmt.Errorf("read the privileges of the database: %w", err)
		}
	}
	rows, err := r.conn.Query(ctx, `SELECT DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC') FROM pg_database d
		CROSS JOIN aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a LEFT JOIN pg_roles r ON r.oid = a.grantee
		WHERE d.datname = current_database() AND a.grantee <> d.datdba`)
	if err != nil {
		return nil, fmt.Errorf("read the privileges of the database: %w", err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the privileges of the database: %w", err)
	}
	for _, grantee := range have {
		statements = append(statements, "REVOKE ALL ON DATABASE "+database+" FROM "+grantee+" CASCADE")
	}
	for _, g := range granted {
		grantee, option := "PUBLIC", ""
		if g.Role != nil {
			grantee = pgx.Identifier{*g.Role}.Sanitize()
			if err := r.makeRole(ctx, *g.Role); err != nil {
				return nil, err
			}
		}
		if g.Grantable {
			option = " WITH GRANT OPTION"
		}
		statements = append(statements, "GRANT "+g.Privileges+" ON DATABASE "+database+" TO "+grantee+option)
	}
	return statements, nil
}

// onlyNamed tells of a role that the database came to name, and that is a member of none: by
// what it came to that, such as a GRANT, is told as well.
func (c ddlChange) onlyNamed() bool {
	var now Role
	return c.Kind == "role" && c.Was == nil && c.Value != nil && json.Unmarshal([]byte(*c.Value), &now) == nil && len(now.MemberOf) == 0
}

// roleChange makes a role that the database names and this side lacks, and follows its
// memberships in others.
func (r *replay) roleChange(ctx context.Context, c ddlChange) error {
	now, was := Role{Inherit: true}, Role{}
	for text, into := range map[*string]*Role{c.Value: &now, c.Was: &was} {
		if text == nil {
			continue
		}
		if err := json.Unmarshal([]byte(*text), into); err != nil {
			return fmt.Errorf("read role %q: %w", c.Name, err)
		}
	}
	if err := r.makeRole(ctx, c.Name); err != nil {
		return err
	}
	if !now.Inherit && slices.Contains(r.result.Roles, c.Name) {
		if err := r.exec(ctx, "ALTER ROLE "+pgx.Identifier{c.Name}.Sanitize()+" NOINHERIT"); err != nil {
			return err
		}
	}
	version, err := serverVersion(ctx, r.conn)
	if err != nil {
		return err
	}
	exec := func(sql string) error {
		return r.attempt(ctx, func() error { return r.exec(ctx, sql) })
	}
	note := func(p *problem.Problem, err error) error {
		if p != nil {
			r.result.Notes = append(r.result.Notes, p)
		}
		return err
	}
	for _, m := range now.MemberOf {
		if slices.Contains(was.MemberOf, m) {
			continue
		}
		if err := r.makeRole(ctx, m.Role); err != nil {
			return err
		}
		if err := note(membership{c.Name, m, version}.give(ctx, r.conn, exec)); err != nil {
			return err
		}
	}
	for _, m := range was.MemberOf {
		if slices.ContainsFunc(now.MemberOf, func(n Membership) bool { return n.Role == m.Role }) {
			continue
		}
		if err := note(membership{c.Name, m, version}.end(ctx, r.conn, exec)); err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) makeRole(ctx context.Context, name string) error {
	made, err := r.createRole(ctx, name)
	if made {
		r.result.Roles = append(r.result.Roles, name)
	}
	return err
}

// owner is the role to which the change hands an object, "" if it does not.
func (c ddlChange) owner() string {
	switch {
	case c.Value == nil:
		return ""
	case c.Kind == "owner":
		return *c.Value
	case c.Kind == "event trigger":
		var t eventTrigger
		_ = json.Unmarshal([]byte(*c.Value), &t) // eventTrigger reads it too
		return t.Owner
	}
	return ""
}

// clustered marks the index by which the table was clustered, or takes the mark back: a
// command has done that already, unless a sweep told of the mark behind it.
func (c ddlChange) clustered() []string {
	if c.Identity == "" { // dropped since
		return nil
	}
	if c.Value == nil {
		return []string{"ALTER TABLE " + c.Identity + " SET WITHOUT CLUSTER"}
	}
	return []string{"ALTER TABLE " + c.Identity + " CLUSTER ON " + *c.Value}
}

// index makes one that CREATE INDEX CONCURRENTLY began and REINDEX finished.
func (c ddlChange) index() []string {
	if c.Value == nil { // dropped since
		return nil
	}
	c.Index.Def = *c.Value
	return append(c.Index.create(), c.Index.attach()...)
}

// eventTrigger is one as ddl_unfired describes it.
type eventTrigger struct {
	On, Function, Enabled, Owner string
	Comment                      *string
	Tags                         []string
}

// eventTrigger makes the trigger anew: there is no CREATE OR REPLACE for it.
func (c ddlChange) eventTrigger() ([]string, error) {
	name := pgx.Identifier{c.Name}.Sanitize()
	statements := []string{"DROP EVENT TRIGGER IF EXISTS " + name}
	if c.Value == nil {
		return statements, nil
	}
	var t eventTrigger
	if err := json.Unmarshal([]byte(*c.Value), &t); err != nil {
		return nil, fmt.Errorf("read event trigger %s: %w", name, err)
	}
	create := "CREATE EVENT TRIGGER " + name + " ON " + t.On
	if len(t.Tags) > 0 {
		var tags []string
		for _, tag := range t.Tags {
			tags = append(tags, postgres.QuoteLiteral(tag))
		}
		create += " WHEN TAG IN (" + strings.Join(tags, ", ") + ")"
	}
	statements = append(statements, create+" EXECUTE FUNCTION "+t.Function+"()")
	if word := map[string]string{"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}[t.Enabled]; word != "" {
		statements = append(statements, "ALTER EVENT TRIGGER "+name+" "+word)
	}
	if t.Comment != nil {
		statements = append(statements, "COMMENT ON EVENT TRIGGER "+name+" IS "+postgres.QuoteLiteral(*t.Comment))
	}
	return append(statements, "ALTER EVENT TRIGGER "+name+" OWNER TO "+pgx.Identifier{t.Owner}.Sanitize()), nil
}
