package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	pgq "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// order is one statement to be run.
type order struct {
	sql       string
	node      *pgq.Node // nil when generated or not readable
	generated bool      // all its names are qualified: no search_path is wanted
	path      string    // but this one, for the functions that it calls
	agent     bool      // no user's code can run in it and it is of our own making
	fills     bool      // it fills a materialized view
}

// run executes an order as its user, with the user's search_path and settings, and
// leaves the session as it was.
func (r *replay) run(ctx context.Context, o order) error {
	var as role
	if !o.agent || r.m.User.Name != "" { // nobody gave a command where the message tells of none
		var err error
		if as, err = r.prepareRoles(ctx, o.node); err != nil {
			return err
		}
	}
	restore, err := r.enter(ctx, o)
	if err != nil {
		return err
	}
	if err := r.runAs(ctx, as, o); err != nil {
		return r.failed(o, err)
	}
	r.result.Statements = append(r.result.Statements, o.sql)
	return restore(ctx)
}

// A role of this side, with the rights that it has here.
type role struct {
	name      string
	superuser bool
}

// prepareRoles creates the roles that the statement names and this side lacks, the
// one that runs it included.
func (r *replay) prepareRoles(ctx context.Context, node *pgq.Node) (role, error) {
	names := []string{r.m.User.Name}
	walk(node, func(m protoreflect.Message) {
		spec, ok := m.Interface().(*pgq.RoleSpec)
		switch {
		case ok && spec.Roletype == pgq.RoleSpecType_ROLESPEC_CSTRING:
			names = append(names, spec.Rolename)
		case ok && spec.Roletype == pgq.RoleSpecType_ROLESPEC_SESSION_USER:
			names = append(names, r.m.User.Session)
		}
	})
	var made []string
	for _, name := range names {
		ok, err := r.createRole(ctx, name)
		if err != nil {
			return role{}, err
		}
		if ok {
			made = append(made, name)
		}
	}
	// A role that was just made has no rights yet. The others are opened as membership has it.
	for _, group := range r.m.User.MemberOf {
		if slices.Contains(made, group) {
			if err := r.exec(ctx, "GRANT "+pgx.Identifier{group}.Sanitize()+" TO "+pgx.Identifier{r.m.User.Name}.Sanitize()); err != nil {
				return role{}, roleProblem(group, "grant it", err)
			}
		}
	}
	r.result.Roles = append(r.result.Roles, made...)
	out := role{name: r.m.User.Name}
	err := r.conn.QueryRow(ctx, `SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = $1`, out.name).Scan(&out.superuser)
	if err != nil {
		return role{}, fmt.Errorf("look for role %q: %w", out.name, err)
	}
	return out, nil
}

func (r *replay) createRole(ctx context.Context, name string) (made bool, err error) {
	if name == "" || strings.HasPrefix(name, "pg_") {
		return false, nil
	}
	var exists bool
	if err := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)`, name).Scan(&exists); err != nil {
		return false, fmt.Errorf("look for role %q: %w", name, err)
	}
	if exists {
		return false, nil
	}
	err = r.attempt(ctx, func() error { return r.exec(ctx, "CREATE ROLE "+pgx.Identifier{name}.Sanitize()+" NOLOGIN") })
	if code := sqlState(err); code == "42710" || code == "23505" { // another link was faster
		return false, nil
	}
	if err != nil {
		return false, roleProblem(name, "create it", err)
	}
	return true, nil
}

// enter puts the order's search_path and settings in force until restore is called.
func (r *replay) enter(ctx context.Context, o order) (restore func(context.Context) error, err error) {
	path := r.ofUser(r.m.SearchPath)
	if _, begun := r.begun[r.m.Schema]; begun { // up to PostgreSQL 15 the setting does not tell
		path = withSchema(r.m.Schema, path)
	}
	want := map[string]string{"search_path": path, "check_function_bodies": "off"}
	if o.generated {
		want["search_path"] = r.ofUser(o.path)
	}
	for name, value := range r.m.Settings {
		// The locale's settings matter to values that are converted, and may not exist here.
		if !strings.HasPrefix(name, "lc_") || len(r.m.Rewrites) > 0 {
			want[name] = value
		}
	}
	// User event triggers that fire on a replica too would act twice (17 and later).
	want["event_triggers"] = "off"
	if o.fills {
		guarded, err := guardsFills(ctx, r.conn)
		if err != nil {
			return nil, err
		}
		if guarded { // user event triggers rest by themselves (fence.Quiet)
			want["event_triggers"], want[postgres.AgentSetting] = "on", postgres.AgentFills
		}
	}
	if err := r.known(ctx, want); err != nil {
		return nil, err
	}
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, name)
	}
	rows, err := r.conn.Query(ctx, `SELECT n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest($1::pg_catalog.text[]) n
		WHERE pg_catalog.current_setting(n, true) IS NOT NULL`, names)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	var name, value string
	var changed, before, after []string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		if want[name] != value {
			changed, before, after = append(changed, name), append(before, value), append(after, want[name])
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	if err := r.set(ctx, changed, after); err != nil {
		return nil, r.failed(o, err)
	}
	return func(ctx context.Context) error { return r.set(ctx, changed, before) }, nil
}

// ofUser has "$user" in a search_path be the user of the primary, whoever runs the
// statement here.
func (r *replay) ofUser(path string) string {
	return strings.ReplaceAll(path, `"$user"`, pgx.Identifier{r.m.User.Name}.Sanitize())
}

// known drops from want what this side does not have: tablespaces and access methods.
func (r *replay) known(ctx context.Context, want map[string]string) error {
	var space, method bool
	err := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_tablespace s WHERE s.spcname = $1
			AND NOT EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database() AND d.dattablespace = s.oid)),
		EXISTS (SELECT FROM pg_catalog.pg_am WHERE amname = $2)`,
		want["default_tablespace"], want["default_table_access_method"]).Scan(&space, &method)
	if err != nil {
		return fmt.Errorf("look for tablespaces and access methods: %w", err)
	}
	// The database's own tablespace is the default of the default, and may not always be
	// named. No relation of a database can be in pg_global: what the command made is elsewhere.
	if !space || want["default_tablespace"] == "pg_global" {
		want["default_tablespace"] = ""
	}
	if !method {
		delete(want, "default_table_access_method")
	}
	return nil
}

// set uses qualified names alone, since the user's search_path may be in force.
func (r *replay) set(ctx context.Context, names, values []string) error {
	if len(names) == 0 {
		return nil
	}
	_, err := r.conn.Exec(ctx, `SELECT pg_catalog.set_config(($1::pg_catalog.text[])[i], ($2::pg_catalog.text[])[i], true)
		FROM pg_catalog.generate_subscripts($1::pg_catalog.text[], 1) i`, pgx.QueryExecModeExec, names, values)
	if err != nil {
		return fmt.Errorf("set the settings of the command: %w", err)
	}
	return nil
}

// runAs executes the order with the rights of its user.
//
// SET ROLE alone would not do for a user's own code (a USING expression, a CHECK):
// it could set the role back, and the session is a superuser's. Inside a SECURITY
// DEFINER function it can't. The agent's own rights are for what a superuser gave on the
// primary, who is trusted on this side with the link's database, and for a bare CREATE
// SCHEMA. The text of a command is never proof of what its user may do: he may lead
// Hawser to another statement than the one that ran. So what this side refuses to the
// role, which may lack a membership here, is run with the memberships that it has on
// the primary where it can't call anybody's code; else with those that open nothing but
// this database, or by the table's owner, if that is one of these.
func (r *replay) runAs(ctx context.Context, as role, o order) error {
	super := r.m.User.Superuser
	switch {
	case o.agent:
		return r.exec(ctx, o.sql)
	case super && as.superuser:
		return r.handing(ctx, r.newOwner(o.node), func() error { return r.execRole(ctx, as.name, o.sql) })
	case super && !r.personal(o):
		return r.handing(ctx, r.newOwner(o.node), func() error { return r.exec(ctx, o.sql) })
	}
	err := r.attempt(ctx, func() error { return r.execDefiner(ctx, as.name, o.sql) })
	if sqlState(err) != "42501" { // insufficient_privilege
		return err
	}
	node := o.node
	if !super {
		node = alone(o.sql)
	}
	if !super && !bareSchema(node) {
		return r.runAsMember(ctx, as.name, node, o.sql, err)
	}
	err = r.attempt(ctx, func() error {
		return r.handing(ctx, r.newOwner(o.node), func() error { return r.exec(ctx, o.sql) })
	})
	if err != nil {
		return err
	}
	return r.give(ctx, as.name)
}

// runAsMember runs what this side refused to a role, which may be in fewer groups here.
func (r *replay) runAsMember(ctx context.Context, name string, node *pgq.Node, sql string, refused error) error {
	if node.GetRefreshMatViewStmt() != nil { // the query runs as the owner, whoever gives the command
		owner, found, err := r.owner(ctx)
		if err != nil || !found {
			return errors.Join(refused, err)
		}
		return r.execDefiner(ctx, owner, sql)
	}
	groups, err := r.lacking(ctx, name)
	if err != nil {
		return err
	}
	if inert(node) {
		return r.handing(ctx, r.newOwner(node), func() error { return r.execMember(ctx, name, groups, sql) })
	}
	if groups, err = r.confined(ctx, groups); err != nil {
		return err
	}
	if len(groups) > 0 {
		refused = r.attempt(ctx, func() error { return r.execMember(ctx, name, groups, sql) })
		if sqlState(refused) != "42501" {
			return refused
		}
	}
	owner, found, err := r.owner(ctx)
	if err != nil || !found || !slices.Contains(r.m.User.MemberOf, owner) {
		return errors.Join(refused, err)
	}
	return r.execDefiner(ctx, owner, sql)
}

// alone is the statement that a text consists of; nil where it holds several, or can't
// be read.
func alone(sql string) *pgq.Node {
	tree, err := parse(sql)
	if err != nil || len(tree.Stmts) != 1 {
		return nil
	}
	return tree.Stmts[0].Stmt
}

// personal reports whether what the statement makes belongs to whoever runs it.
func (r *replay) personal(o order) bool {
	return strings.HasPrefix(r.m.Tag, "CREATE ") || o.node.GetAlterDefaultPrivilegesStmt() != nil
}

func (r *replay) exec(ctx context.Context, sql string) error {
	_, err := r.conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

func (r *replay) execRole(ctx context.Context, name, sql string) error {
	if err := r.exec(ctx, "SET LOCAL ROLE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return err
	}
	if err := r.exec(ctx, sql); err != nil {
		return err
	}
	return r.exec(ctx, "SET LOCAL ROLE NONE")
}

// newOwner is the role to which a command hands an object, "" if it does not.
func (r *replay) newOwner(node *pgq.Node) string {
	to := node.GetAlterOwnerStmt().GetNewowner()
	for _, c := range node.GetAlterTableStmt().GetCmds() {
		to = c.GetAlterTableCmd().GetNewowner()
	}
	switch to.GetRoletype() {
	case pgq.RoleSpecType_ROLESPEC_CSTRING:
		return to.Rolename
	case pgq.RoleSpecType_ROLESPEC_SESSION_USER:
		return r.m.User.Session
	case pgq.RoleSpecType_ROLESPEC_CURRENT_USER, pgq.RoleSpecType_ROLESPEC_CURRENT_ROLE:
		return r.m.User.Name
	}
	return ""
}

// handing runs a command that hands something to a role. Some objects are a superuser's
// alone, and a role that is one on the primary need not be one here: what it owns it may
// own here too, as a role may that was a superuser once, but it gets no more rights.
func (r *replay) handing(ctx context.Context, to string, run func() error) error {
	if to == "" {
		return run()
	}
	err := r.attempt(ctx, run)
	if sqlState(err) != "42501" {
		return err
	}
	var plain bool
	if lookup := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name AND NOT rolsuper)`,
		pgx.QueryExecModeExec, to).Scan(&plain); lookup != nil || !plain {
		return errors.Join(err, lookup)
	}
	role := pgx.Identifier{to}.Sanitize()
	return r.attempt(ctx, func() error {
		if err := r.exec(ctx, "ALTER ROLE "+role+" SUPERUSER"); err != nil {
			return err
		}
		if err := run(); err != nil {
			return err
		}
		return r.exec(ctx, "ALTER ROLE "+role+" NOSUPERUSER")
	})
}

const (
	makeDefiner = `CREATE OR REPLACE FUNCTION hawser.replay(statement pg_catalog.text) RETURNS pg_catalog.void
		LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN EXECUTE statement; END'; REVOKE ALL ON FUNCTION hawser.replay FROM PUBLIC;
		ALTER FUNCTION hawser.replay OWNER TO `
	dropDefiner = `DROP FUNCTION IF EXISTS hawser.replay(pg_catalog.text)` // DROP OWNED may have taken it
)

func (r *replay) execDefiner(ctx context.Context, name, sql string) error {
	if err := r.exec(ctx, makeDefiner+pgx.Identifier{name}.Sanitize()); err != nil {
		return err
	}
	if _, err := r.conn.Exec(ctx, `SELECT hawser.replay($1)`, pgx.QueryExecModeExec, sql); err != nil {
		return err
	}
	return r.exec(ctx, dropDefiner)
}

// attempt runs f under a savepoint, to which it rolls back when f fails.
func (r *replay) attempt(ctx context.Context, f func() error) error {
	if err := r.exec(ctx, "SAVEPOINT hawser_ddl"); err != nil {
		return err
	}
	if err := f(); err != nil {
		if back := r.exec(ctx, "ROLLBACK TO hawser_ddl; RELEASE hawser_ddl"); back != nil {
			return errors.Join(err, back)
		}
		return err
	}
	return r.exec(ctx, "RELEASE hawser_ddl")
}

// inert reports whether a statement can't call a user's function.
func inert(node *pgq.Node) bool {
	switch n := node.GetNode().(type) {
	case *pgq.Node_CreateForeignServerStmt, *pgq.Node_AlterForeignServerStmt, // the wrapper is a superuser's
		*pgq.Node_CreateUserMappingStmt, *pgq.Node_AlterUserMappingStmt, *pgq.Node_DropUserMappingStmt,
		*pgq.Node_CreateExtensionStmt, *pgq.Node_AlterExtensionStmt, // the script is its superuser's anyway
		*pgq.Node_CreatePublicationStmt, *pgq.Node_AlterPublicationStmt, // a row filter has no user's functions
		*pgq.Node_GrantStmt, *pgq.Node_CommentStmt, *pgq.Node_SecLabelStmt, *pgq.Node_AlterDefaultPrivilegesStmt,
		*pgq.Node_AlterOwnerStmt, *pgq.Node_AlterObjectSchemaStmt, *pgq.Node_RenameStmt, *pgq.Node_DropStmt,
		*pgq.Node_DropOwnedStmt, *pgq.Node_ReassignOwnedStmt:
		return true
	case *pgq.Node_AlterTableStmt:
		for _, c := range n.AlterTableStmt.Cmds {
			if c.GetAlterTableCmd().GetSubtype() != pgq.AlterTableType_AT_ChangeOwner {
				return false
			}
		}
		return true
	}
	return false
}

// bareSchema reports whether a statement makes an empty schema of its user's own: CREATE
// on a database is granted without an event.
func bareSchema(node *pgq.Node) bool {
	n := node.GetCreateSchemaStmt()
	return n != nil && len(n.SchemaElts) == 0 && n.Authrole == nil
}

// lacking are the groups that a role is a member of on the primary and not here: those of
// this side's roles that are neither superusers nor PostgreSQL's own.
func (r *replay) lacking(ctx context.Context, name string) ([]string, error) {
	rows, err := r.conn.Query(ctx, `SELECT g.rolname FROM pg_catalog.pg_roles g, pg_catalog.pg_roles u
		WHERE u.rolname OPERATOR(pg_catalog.=) $1 AND g.rolname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ($2::pg_catalog.text[])
		AND NOT g.rolsuper AND NOT pg_catalog.starts_with(g.rolname::pg_catalog.text, 'pg_')
		AND NOT pg_catalog.pg_has_role(u.oid, g.oid, 'MEMBER') AND NOT pg_catalog.pg_has_role(g.oid, u.oid, 'MEMBER')`,
		pgx.QueryExecModeExec, name, r.m.User.MemberOf)
	if err != nil {
		return nil, fmt.Errorf("look for the groups of role %q: %w", name, err)
	}
	groups, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for the groups of role %q: %w", name, err)
	}
	return groups, nil
}

// confined are the groups that give no right but in this database. The primary's word
// of a membership in one is taken, and may come later in the stream (see membership).
func (r *replay) confined(ctx context.Context, groups []string) (out []string, err error) {
	for _, g := range groups {
		yes, err := confined(ctx, r.conn, g)
		if err != nil {
			return nil, err
		}
		if yes {
			out = append(out, g)
		}
	}
	return out, nil
}

// execMember is execDefiner while the role is a member of groups.
func (r *replay) execMember(ctx context.Context, name string, groups []string, sql string) error {
	member := pgx.Identifier{name}.Sanitize()
	for _, g := range groups {
		if err := r.exec(ctx, "GRANT "+pgx.Identifier{g}.Sanitize()+" TO "+member); err != nil {
			return err
		}
	}
	if err := r.execDefiner(ctx, name, sql); err != nil {
		return err
	}
	for _, g := range groups {
		if err := r.exec(ctx, "REVOKE "+pgx.Identifier{g}.Sanitize()+" FROM "+member); err != nil {
			return err
		}
	}
	return nil
}

// owner is who owns, on this side, the relation that the command changes.
func (r *replay) owner(ctx context.Context) (name string, found bool, err error) {
	for _, o := range r.m.Objects {
		if o.Table == "" {
			continue
		}
		err := r.conn.QueryRow(ctx, `SELECT pg_catalog.pg_get_userbyid(c.relowner) FROM pg_catalog.pg_class c
			JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
			WHERE n.nspname OPERATOR(pg_catalog.=) $1 AND c.relname OPERATOR(pg_catalog.=) $2`,
			pgx.QueryExecModeExec, o.TableSchema, o.Table).Scan(&name)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		}
		return name, err == nil, err
	}
	return "", false, nil
}

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// failed makes the server's refusal a problem that says what to do.
func (r *replay) failed(o order, err error) error {
	var pg *pgconn.PgError
	if _, known := problem.As(err); known || !errors.As(err, &pg) {
		return err
	}
	object := r.m.object()
	p := problem.New("ddl-failed", object, "this side refused the command that the primary ran: "+excerpt(o.sql),
		"hawser link resume NAME").Advise("make this side's schema first as the primary's was at that position").Because(err)
	switch pg.Code[:2] {
	case "53": // insufficient resources
		p.Code, p.Cause, p.Remedy = "ddl-resources", "this side ran out of a resource while it ran "+excerpt(o.sql), ""
		p.Advice = "free it (disk, memory, connections); the link goes on by itself"
		return p.Retry()
	case "40", "55", "57": // serialization and deadlock, object in use, operator intervention
		p.Code, p.Cause, p.Remedy = "ddl-interrupted", "the command could not get what it needs at the moment: "+excerpt(o.sql), ""
		p.Advice = "it is tried again by itself"
		return p.Retry()
	}
	switch pg.Code {
	case "42501":
		p.Code, p.Cause = "ddl-permission", "role "+pgx.Identifier{r.m.User.Name}.Sanitize()+" may do on the primary what it may not do here: "+excerpt(o.sql)
		p.Remedy, p.Advice = "", "as a superuser on this side, allow it what it may do there"
		if of := r.m.User.MemberOf; len(of) > 0 {
			p.Remedy = "GRANT " + quoted(of) + " TO " + pgx.Identifier{r.m.User.Name}.Sanitize() + ";"
			p.Advice = "as a superuser on this side: the roles that it is a member of on the primary"
		}
		return p.Retry()
	case "58P01", "0A000":
		p.Code, p.Cause = "ddl-unsupported", "this side's server lacks what the command needs: "+excerpt(o.sql)
		p.Remedy, p.Advice = "", "install it on this side's server ("+pg.Message+"); the link goes on by itself"
		return p.Retry()
	}
	return p
}

// walk calls f for every message of a parse tree.
func walk(node *pgq.Node, f func(protoreflect.Message)) {
	if node != nil {
		walkMessage(node.ProtoReflect(), f)
	}
}

func walkMessage(m protoreflect.Message, f func(protoreflect.Message)) {
	f(m)
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if d.Kind() != protoreflect.MessageKind {
			return true
		}
		if !d.IsList() {
			walkMessage(v.Message(), f)
			return true
		}
		for list, i := v.List(), 0; i < list.Len(); i++ {
			walkMessage(list.Get(i).Message(), f)
		}
		return true
	})
}
