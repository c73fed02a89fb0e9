package schema

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// give hands what the agent made to the role that it belongs to on the primary, with
// the privileges that the role gives to others by default.
func (r *replay) give(ctx context.Context, name string) error {
	if !strings.HasPrefix(r.m.Tag, "CREATE ") {
		return nil
	}
	for _, o := range r.m.Objects {
		kind, ok := givenKinds[o.Type]
		if !ok || o.Identity == "" {
			continue
		}
		// The sequence of a serial column follows its table.
		if o.Type != "sequence" || r.m.Tag == "CREATE SEQUENCE" {
			sql := "ALTER " + kind.word + " " + o.Identity + " OWNER TO " + pgx.Identifier{name}.Sanitize()
			if err := r.handing(ctx, name, func() error { return r.exec(ctx, sql) }); err != nil {
				return err
			}
		}
	}
	for _, o := range r.m.Objects {
		if kind := givenKinds[o.Type]; kind.privileges != "" && o.Identity != "" {
			if err := r.giveDefaults(ctx, name, kind, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// givenKind is how SQL calls an object of which any role can be the owner, and its
// letter in pg_default_acl.
type givenKind struct{ word, grant, privileges string }

// givenKinds are keyed by pg_event_trigger_ddl_commands's names.
var givenKinds = map[string]givenKind{
	"table": {"TABLE", "TABLE", "r"}, "view": {"VIEW", "TABLE", "r"}, "materialized view": {"MATERIALIZED VIEW", "TABLE", "r"},
	"foreign table": {"FOREIGN TABLE", "TABLE", "r"}, "sequence": {"SEQUENCE", "SEQUENCE", "S"}, "schema": {"SCHEMA", "SCHEMA", "n"},
	"type": {"TYPE", "TYPE", "T"}, "domain": {"DOMAIN", "DOMAIN", "T"}, "function": {"FUNCTION", "FUNCTION", "f"},
	"procedure": {"PROCEDURE", "PROCEDURE", "f"}, "aggregate": {"AGGREGATE", "FUNCTION", "f"},
	"collation": {word: "COLLATION"}, "conversion": {word: "CONVERSION"}, "operator": {word: "OPERATOR"},
	"operator class": {word: "OPERATOR CLASS"}, "operator family": {word: "OPERATOR FAMILY"},
	"text search configuration": {word: "TEXT SEARCH CONFIGURATION"}, "text search dictionary": {word: "TEXT SEARCH DICTIONARY"},
	"publication": {word: "PUBLICATION"}, "foreign-data wrapper": {word: "FOREIGN DATA WRAPPER"},
	"statistics object": {word: "STATISTICS"}, "server": {word: "SERVER"}, "language": {word: "LANGUAGE"},
}

// giveDefaults does what the server would have done had the role made the object.
// The names are qualified since the user's search_path is in force.
func (r *replay) giveDefaults(ctx context.Context, name string, kind givenKind, o ddlObject) error {
	rows, err := r.conn.Query(ctx, `
		SELECT d.defaclnamespace OPERATOR(pg_catalog.=) 0::pg_catalog.oid,
			CASE WHEN a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC'
				ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
			a.privilege_type, a.is_grantable
		FROM pg_catalog.pg_default_acl d, pg_catalog.aclexplode(d.defaclacl) a
		WHERE pg_catalog.pg_get_userbyid(d.defaclrole) OPERATOR(pg_catalog.=) $1::pg_catalog.name
		AND d.defaclobjtype OPERATOR(pg_catalog.=) $2::pg_catalog.text::pg_catalog."char"
		AND (d.defaclnamespace OPERATOR(pg_catalog.=) 0::pg_catalog.oid
			OR d.defaclnamespace OPERATOR(pg_catalog.=) (SELECT n.oid FROM pg_catalog.pg_namespace n
				WHERE n.nspname OPERATOR(pg_catalog.=) $3::pg_catalog.name))`,
		pgx.QueryExecModeExec, name, kind.privileges, o.Schema)
	if err != nil {
		return fmt.Errorf("read default privileges: %w", err)
	}
	var global, grantable, replaced bool
	var grantee, privilege string
	var grants []string
	object := kind.grant + " " + o.Identity
	if _, err := pgx.ForEachRow(rows, []any{&global, &grantee, &privilege, &grantable}, func() error {
		replaced = replaced || global
		sql := "GRANT " + privilege + " ON " + object + " TO " + grantee
		if grantable {
			sql += " WITH GRANT OPTION"
		}
		grants = append(grants, sql)
		return nil
	}); err != nil {
		return fmt.Errorf("read default privileges: %w", err)
	}
	if replaced { // a role's own list stands for PostgreSQL's, which has PUBLIC in it
		grants = append([]string{"REVOKE ALL ON " + object + " FROM PUBLIC"}, grants...)
	}
	for _, sql := range grants {
		if err := r.exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}
