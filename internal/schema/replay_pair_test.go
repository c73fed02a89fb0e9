package schema_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/testpg"
)

const publication = "hawser_0123456789abcdef"

// pair is a primary and a secondary without the machinery between them: the test
// reads the slot and applies what it holds, transaction by transaction.
type pair struct {
	t                  *testing.T
	from, to           *testpg.Cluster
	source, target     string
	primary, secondary *pgx.Conn
	replayer           *schema.Replayer
	relations          map[uint32]*relation
	types              map[uint32][2]string
	results            []schema.Result
}

type relation struct {
	schema.Relation
	key []bool
}

func newPair(t *testing.T, from, to *testpg.Cluster) *pair {
	t.Helper()
	p := &pair{t: t, from: from, to: to, source: from.CreateDatabase(t), target: to.CreateDatabase(t),
		relations: map[uint32]*relation{}, types: map[uint32][2]string{}}
	p.primary, p.secondary = from.Connect(t, p.source), to.Connect(t, p.target)
	if err := capture.InstallDDL(t.Context(), p.primary); err != nil {
		t.Fatal(err)
	}
	p.exec(p.primary, "CREATE PUBLICATION "+publication+" FOR ALL TABLES")
	p.exec(p.primary, "SELECT pg_create_logical_replication_slot('"+p.source+"', 'pgoutput')")
	p.exec(p.secondary, "CREATE SCHEMA hawser; SET session_replication_role = replica; SET search_path = ''")
	p.replayer = schema.NewReplayer(schema.ReplayOptions{
		Key: func(ctx context.Context) ([]byte, error) { return capture.DDLKey(ctx, p.primary) },
		Maker: func(ctx context.Context, oid, _ uint32) (schema.Maker, error) {
			maker := schema.Maker{New: true}
			err := p.primary.QueryRow(ctx, `SELECT pg_get_userbyid(relowner), false FROM pg_class WHERE oid = $1`, oid).Scan(&maker.Owner, &maker.Superuser)
			if errors.Is(err, pgx.ErrNoRows) {
				err = nil
			}
			return maker, err
		}})
	return p
}

func (p *pair) exec(conn *pgx.Conn, sql string) {
	p.t.Helper()
	if _, err := conn.PgConn().Exec(p.t.Context(), sql).ReadAll(); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
}

// column returns one column of a query's rows.
func column(t *testing.T, conn *pgx.Conn, sql string, args ...any) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// sync applies what the primary committed since the last call.
func (p *pair) sync() error {
	p.t.Helper()
	rows, err := p.primary.Query(p.t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', $2, 'messages', 'true')`, p.source, publication)
	if err != nil {
		return err
	}
	changes, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return err
	}
	for _, c := range changes {
		if err := p.apply(&reader{c[1:]}, c[0]); err != nil {
			p.exec(p.secondary, "ROLLBACK")
			p.replayer.Reset()
			return err
		}
	}
	return nil
}

func (p *pair) apply(r *reader, kind byte) error {
	switch kind {
	case 'B':
		p.replayer.Reset()
		p.exec(p.secondary, "BEGIN")
	case 'C':
		if err := p.replayer.Finish(); err != nil {
			return err
		}
		p.exec(p.secondary, "COMMIT")
	case 'M':
		r.skip(1 + 8)
		prefix, content := r.text(), r.bytes()
		if prefix != "hawser.ddl" {
			return nil
		}
		result, err := p.replayer.Replay(p.t.Context(), p.secondary, content)
		if err == nil && (result.Tag != "" || len(result.Notes)+len(result.Statements) > 0) {
			p.results = append(p.results, result)
		}
		return err
	case 'Y':
		oid := r.uint32()
		p.types[oid] = [2]string{r.text(), r.text()}
	case 'R':
		return p.relation(r)
	case 'I', 'U', 'D':
		return p.change(r, kind)
	case 'T':
		n := r.uint32()
		r.skip(1)
		for range n {
			if rel := p.relations[r.uint32()]; rel.Schema != "hawser" && !p.ofScript(rel) {
				p.exec(p.secondary, "TRUNCATE "+pgx.Identifier{rel.Schema, rel.Name}.Sanitize())
			}
		}
	}
	return nil
}

func (p *pair) relation(r *reader) error {
	rel := &relation{}
	rel.OID, rel.Schema, rel.Name = r.uint32(), r.text(), r.text()
	r.skip(1)
	for range r.uint16() {
		rel.key = append(rel.key, r.byte() == 1)
		c := schema.Column{Name: r.text(), Type: r.uint32(), Modifier: int32(r.uint32())}
		c.TypeSchema, c.TypeName = p.types[c.Type][0], p.types[c.Type][1]
		rel.Columns = append(rel.Columns, c)
	}
	p.relations[rel.OID] = rel
	if rel.Schema == "hawser" || p.ofScript(rel) {
		return nil
	}
	name := pgx.Identifier{rel.Schema, rel.Name}.Sanitize()
	if column(p.t, p.secondary, `SELECT (to_regclass($1) IS NULL)::text`, name)[0] == "true" {
		_, err := p.replayer.Provide(p.t.Context(), p.secondary, 0, rel.Relation)
		return err
	}
	return nil
}

func (p *pair) ofScript(rel *relation) bool {
	p.t.Helper()
	mine, err := p.replayer.OfScript(p.t.Context(), p.secondary, rel.Table)
	if err != nil {
		p.t.Fatal(err)
	}
	return mine
}

func (p *pair) change(r *reader, kind byte) error {
	rel := p.relations[r.uint32()]
	if rel.Schema == "hawser" || p.ofScript(rel) {
		return nil
	}
	name := pgx.Identifier{rel.Schema, rel.Name}.Sanitize()
	var before, after []*string
	for len(r.b) > 0 {
		if r.byte() == 'N' {
			after = r.tuple()
		} else {
			before = r.tuple()
		}
	}
	if before == nil {
		before = after
	}
	if kind != 'I' {
		var where []string
		for i, c := range rel.Columns {
			if rel.key[i] {
				where = append(where, pgx.Identifier{c.Name}.Sanitize()+"::text IS NOT DISTINCT FROM "+literal(before[i]))
			}
		}
		p.exec(p.secondary, "DELETE FROM "+name+" WHERE ctid = (SELECT ctid FROM "+name+" WHERE "+strings.Join(where, " AND ")+" LIMIT 1)")
	}
	if kind != 'D' {
		var names, values []string
		for i, c := range rel.Columns {
			names = append(names, pgx.Identifier{c.Name}.Sanitize())
			values = append(values, literal(after[i]))
		}
		if len(names) == 0 {
			p.exec(p.secondary, "INSERT INTO "+name+" DEFAULT VALUES")
			return nil
		}
		p.exec(p.secondary, "INSERT INTO "+name+" ("+strings.Join(names, ", ")+") OVERRIDING SYSTEM VALUE VALUES ("+strings.Join(values, ", ")+")")
	}
	return nil
}

func literal(s *string) string {
	if s == nil {
		return "NULL"
	}
	return "'" + strings.ReplaceAll(*s, "'", "''") + "'"
}

// reader takes pgoutput's messages apart; they are the server's own, so no bounds.
type reader struct{ b []byte }

func (r *reader) skip(n int)     { r.b = r.b[n:] }
func (r *reader) byte() byte     { v := r.b[0]; r.skip(1); return v }
func (r *reader) uint16() uint16 { v := binary.BigEndian.Uint16(r.b); r.skip(2); return v }
func (r *reader) uint32() uint32 { v := binary.BigEndian.Uint32(r.b); r.skip(4); return v }

func (r *reader) bytes() []byte { n := r.uint32(); v := r.b[:n]; r.skip(int(n)); return v }

func (r *reader) text() string {
	i := bytes.IndexByte(r.b, 0)
	v := string(r.b[:i])
	r.skip(i + 1)
	return v
}

func (r *reader) tuple() (out []*string) {
	for range r.uint16() {
		if r.byte() == 't' {
			v := string(r.bytes())
			out = append(out, &v)
		} else {
			out = append(out, nil)
		}
	}
	return out
}

// equal fails the test where the two databases differ.
func (p *pair) equal(except ...string) {
	p.t.Helper()
	if d := p.difference(except...); d != "" {
		p.t.Fatal(d)
	}
}

// difference compares the definitions of the two databases, and the rows of the
// tables outside of except. It takes Hawser's own objects away first.
func (p *pair) difference(except ...string) string {
	p.t.Helper()
	p.exec(p.primary, "DROP PUBLICATION "+publication)
	if err := capture.RemoveDDL(p.t.Context(), p.primary); err != nil {
		p.t.Fatal(err)
	}
	want, got := dump(p.t, p.from, p.source), dump(p.t, p.to, p.target)
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			return fmt.Sprintf("the definitions differ from line %d:\nprimary:   %q\nsecondary: %q\nexecuted: %s",
				i, window(want, i), window(got, i), p.executed())
		}
	}
	p.exec(p.secondary, "SET search_path = public")
	for _, table := range column(p.t, p.primary, `SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')
		AND c.oid::regclass::text <> ALL ($1)`, except) {
		rows := "SELECT t::text FROM " + table + " t ORDER BY 1"
		want, got := column(p.t, p.primary, rows), column(p.t, p.secondary, rows)
		if fmt.Sprint(want) != fmt.Sprint(got) {
			return fmt.Sprintf("the rows of %s differ:\nprimary:   %.500v\nsecondary: %.500v\nexecuted: %s", table, want, got, p.executed())
		}
	}
	return ""
}

func (p *pair) executed() string {
	var out []string
	for _, r := range p.results {
		out = append(out, r.Statements...)
	}
	return strings.Join(out, "\n")
}

func window(lines []string, at int) []string {
	return lines[max(0, min(at-3, len(lines))):min(len(lines), at+6)]
}

// dump is pg_dump's text of the definitions, without what differs by nature; where
// there is no pg_dump for the server, what the catalogs say.
func dump(t *testing.T, c *testpg.Cluster, database string) []string {
	t.Helper()
	conn := c.Connect(t, database)
	var version int
	if err := conn.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	tool, err := postgres.Tool("pg_dump", version)
	if err != nil {
		return column(t, conn, described)
	}
	out, err := testpg.Command(t, tool, "--schema-only", "--exclude-schema=hawser", "--dbname="+c.DSN(database)).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_dump: %v: %s", err, out)
	}
	var lines []string
	for _, l := range strings.Split(string(out), "\n") {
		if l != "" && !strings.HasPrefix(l, `\restrict`) && !strings.HasPrefix(l, `\unrestrict`) {
			lines = append(lines, l)
		}
	}
	return lines
}

const described = `
	WITH n AS (SELECT oid, nspname FROM pg_namespace WHERE nspname NOT IN ('hawser', 'pg_catalog', 'information_schema') AND nspname !~ '^pg_'),
	c AS (SELECT c.*, format('%I.%I', n.nspname, relname) AS id FROM pg_class c JOIN n ON n.oid = relnamespace WHERE relkind <> 't')
	SELECT format('relation %s %s %s %s %s %s %s %s', c.id, relkind, relpersistence, relreplident, pg_get_userbyid(relowner), relacl, reloptions, obj_description(c.oid, 'pg_class')) FROM c
	UNION ALL SELECT format('column %s.%I %s %s %s %s %s %s %s', c.id, attname, (SELECT count(*) FROM pg_attribute b WHERE b.attrelid = c.oid AND b.attnum BETWEEN 1 AND a.attnum AND NOT b.attisdropped),
		format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, pg_get_expr(adbin, adrelid), col_description(c.oid, attnum))
		FROM c JOIN pg_attribute a ON attrelid = c.oid LEFT JOIN pg_attrdef d ON adrelid = c.oid AND adnum = attnum WHERE attnum > 0 AND NOT attisdropped
	UNION ALL SELECT format('view %s %s', c.id, pg_get_viewdef(c.oid)) FROM c WHERE relkind IN ('v', 'm')
	UNION ALL SELECT format('index %s %s', indisvalid, pg_get_indexdef(indexrelid)) FROM pg_index JOIN c ON c.oid = indrelid
	UNION ALL SELECT format('constraint %s %I %s %s', conrelid::regclass, conname, convalidated, pg_get_constraintdef(k.oid)) FROM pg_constraint k JOIN n ON n.oid = connamespace
	UNION ALL SELECT format('trigger %s %s', tgenabled, pg_get_triggerdef(t.oid)) FROM pg_trigger t JOIN c ON c.oid = tgrelid WHERE NOT tgisinternal
	UNION ALL SELECT format('function %s %s %s', pg_get_userbyid(proowner), proacl, pg_get_functiondef(p.oid)) FROM pg_proc p JOIN n ON n.oid = pronamespace WHERE prokind IN ('f', 'p')
	UNION ALL SELECT format('type %I %s %s %s %s', typname, typtype, pg_get_userbyid(typowner), typdefault, (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)) FROM pg_type t JOIN n ON n.oid = typnamespace
	UNION ALL SELECT format('event trigger %I %s %s %s', evtname, evtevent, evtenabled, evttags) FROM pg_event_trigger
	UNION ALL SELECT format('extension %I %s', extname, extversion) FROM pg_extension
	UNION ALL SELECT format('publication %I %s', pubname, puballtables) FROM pg_publication
	UNION ALL SELECT format('default %s %s %s', pg_get_userbyid(defaclrole), defaclobjtype, defaclacl) FROM pg_default_acl
	UNION ALL SELECT format('inherits %s %s', inhrelid::regclass, inhparent::regclass) FROM pg_inherits
	UNION ALL SELECT format('policy %I %s %s', polname, polrelid::regclass, pg_get_expr(polqual, polrelid)) FROM pg_policy
	ORDER BY 1`
