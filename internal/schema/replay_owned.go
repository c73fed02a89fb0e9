package schema

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
)

// sharedRight is the ownership of an object of the whole cluster (Privilege is ""),
// or one privilege on it.
type sharedRight struct {
	Kind, Name, Role, Privilege string
	Grantable                   bool
}

// owned runs DROP OWNED and REASSIGN OWNED. They reach beyond their database, to
// databases and tablespaces; on this side those belong to others, so what the
// command changed there is put back.
func (r *replay) owned(ctx context.Context, st *ddlStatement) error {
	before, err := r.sharedRights(ctx)
	if err != nil {
		return err
	}
	if err := r.plain(ctx, st); err != nil {
		return err
	}
	after, err := r.sharedRights(ctx)
	if err != nil {
		return err
	}
	still := make(map[sharedRight]bool, len(after))
	for _, s := range after {
		still[s] = true
	}
	for _, s := range before {
		if still[s] {
			continue
		}
		if err := r.run(ctx, order{sql: s.restore(), generated: true, agent: true}); err != nil {
			return err
		}
	}
	return nil
}

// restore gives the right back, unless the object or the role is gone: other sessions
// drop them when they like.
func (s sharedRight) restore() string {
	return "DO " + postgres.QuoteLiteral("BEGIN EXECUTE "+postgres.QuoteLiteral(s.statement())+
		"; EXCEPTION WHEN invalid_catalog_name OR undefined_object THEN NULL; END")
}

func (s sharedRight) statement() string {
	name := pgx.Identifier{s.Name}.Sanitize()
	if s.Kind == "PARAMETER" {
		name = s.Name
	}
	role := pgx.Identifier{s.Role}.Sanitize()
	if s.Privilege == "" {
		return "ALTER " + s.Kind + " " + name + " OWNER TO " + role
	}
	sql := "GRANT " + s.Privilege + " ON " + s.Kind + " " + name + " TO " + role
	if s.Grantable {
		sql += " WITH GRANT OPTION"
	}
	return sql
}

// sharedRights lists owners first: a privilege is its owner's to give.
func (r *replay) sharedRights(ctx context.Context) ([]sharedRight, error) {
	sql := `WITH o(kind, name, owner, acl) AS (
			SELECT 'DATABASE', datname, datdba, datacl FROM pg_database WHERE datname <> current_database()
			UNION ALL SELECT 'TABLESPACE', spcname, spcowner, spcacl FROM pg_tablespace
		), p(kind, name, acl) AS (SELECT kind, name, acl FROM o`
	if serverAtLeast(r.conn, 15) {
		sql += ` UNION ALL SELECT 'PARAMETER', parname::name, paracl FROM pg_parameter_acl`
	}
	sql += `)
		SELECT kind, name, pg_get_userbyid(owner), '', false FROM o
		UNION ALL SELECT kind, name, pg_get_userbyid(a.grantee), a.privilege_type, a.is_grantable
		FROM p, aclexplode(p.acl) a WHERE a.grantee <> 0
		ORDER BY 4, 1, 2, 3`
	rows, err := r.conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("read the rights on databases and tablespaces: %w", err)
	}
	rights, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sharedRight])
	if err != nil {
		return nil, fmt.Errorf("read the rights on databases and tablespaces: %w", err)
	}
	return rights, nil
}

// serverAtLeast compares what the server said of itself when the connection began.
func serverAtLeast(conn *pgx.Conn, major int) bool {
	var v int
	_, err := fmt.Sscanf(conn.PgConn().ParameterStatus("server_version"), "%d", &v)
	return err == nil && v >= major
}
