package schema

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// ddlChange is something that changed on the primary without a command that fires an
// event. Its value is nil when it is gone.
type ddlChange struct {
	Kind     string  `json:"kind"`
	Name     string  `json:"name"`
	Value    *string `json:"value"`
	Role     string  `json:"role"`
	Type     string  `json:"type"`
	Identity string  `json:"identity"`
}

// sweep follows the changes. One that does not fit this side is noted: the link does
// not stop for an owner or a setting.
func (r *replay) sweep(ctx context.Context) error {
	for _, c := range r.m.Changes {
		var statements []string
		var err error
		switch c.Kind {
		case "owner":
			statements, err = r.ownerChange(ctx, c)
		case "setting":
			statements, err = r.settingChange(ctx, c)
		case "event trigger":
			statements, err = c.eventTrigger()
		default:
			err = fmt.Errorf("a change of unknown kind %q", c.Kind)
		}
		if err != nil {
			return err
		}
		for _, sql := range statements {
			err := r.attempt(ctx, func() error { return r.exec(ctx, sql) })
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

func (r *replay) ownerChange(ctx context.Context, c ddlChange) ([]string, error) {
	if c.Value == nil || c.Identity == "" { // dropped since
		return nil, nil
	}
	if err := r.makeRole(ctx, *c.Value); err != nil {
		return nil, err
	}
	word := map[string]string{"statistics object": "STATISTICS", "foreign-data wrapper": "FOREIGN DATA WRAPPER"}[c.Type]
	if word == "" {
		word = strings.ToUpper(c.Type)
	}
	return []string{"ALTER " + word + " " + c.Identity + " OWNER TO " + pgx.Identifier{*c.Value}.Sanitize()}, nil
}

func (r *replay) settingChange(ctx context.Context, c ddlChange) ([]string, error) {
	var database string
	if err := r.conn.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return nil, fmt.Errorf("read the database's name: %w", err)
	}
	sql := "ALTER DATABASE " + pgx.Identifier{database}.Sanitize()
	if c.Role != "" {
		if err := r.makeRole(ctx, c.Role); err != nil {
			return nil, err
		}
		sql = "ALTER ROLE " + pgx.Identifier{c.Role}.Sanitize() + " IN DATABASE " + pgx.Identifier{database}.Sanitize()
	}
	name := pgx.Identifier(strings.Split(c.Name, ".")).Sanitize()
	if c.Value == nil {
		return []string{sql + " RESET " + name}, nil
	}
	return []string{sql + " SET " + name + " TO " + configValue(c.Name, *c.Value)}, nil
}

func (r *replay) makeRole(ctx context.Context, name string) error {
	made, err := r.createRole(ctx, name)
	if made {
		r.result.Roles = append(r.result.Roles, name)
	}
	return err
}

// eventTrigger makes the trigger anew: there is no CREATE OR REPLACE for it.
func (c ddlChange) eventTrigger() ([]string, error) {
	name := pgx.Identifier{c.Name}.Sanitize()
	statements := []string{"DROP EVENT TRIGGER IF EXISTS " + name}
	if c.Value == nil {
		return statements, nil
	}
	var t struct {
		On, Function, Enabled, Owner string
		Comment                      *string
		Tags                         []string
	}
	if err := json.Unmarshal([]byte(*c.Value), &t); err != nil {
		return nil, fmt.Errorf("read event trigger %s: %w", name, err)
	}
	create := "CREATE EVENT TRIGGER " + name + " ON " + t.On
	if len(t.Tags) > 0 {
		var tags []string
		for _, tag := range t.Tags {
			tags = append(tags, quoteLiteral(tag))
		}
		create += " WHEN TAG IN (" + strings.Join(tags, ", ") + ")"
	}
	statements = append(statements, create+" EXECUTE FUNCTION "+t.Function+"()")
	if word := map[string]string{"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}[t.Enabled]; word != "" {
		statements = append(statements, "ALTER EVENT TRIGGER "+name+" "+word)
	}
	if t.Comment != nil {
		statements = append(statements, "COMMENT ON EVENT TRIGGER "+name+" IS "+quoteLiteral(*t.Comment))
	}
	return append(statements, "ALTER EVENT TRIGGER "+name+" OWNER TO "+pgx.Identifier{t.Owner}.Sanitize()), nil
}
