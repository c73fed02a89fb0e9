package schema

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// object is a row of a system catalog on the primary.
type object struct{ class, oid uint32 }

// facts is what the catalog says, and the dump does not, about the objects in it.
type facts struct {
	owners    map[object]uint32     // the relation that an index, constraint, rule … belongs to
	kinds     map[uint32]string     // pg_class.relkind
	keys      map[uint32]foreignKey // by constraint
	unique    map[uint32]uniqueKey  // by constraint: those of ordinary tables
	late      map[uint32]bool       // constraints that rows may violate
	viewRules map[uint32]bool       // rules that are the body of a view
	ours      map[object]bool       // Hawser's own: not carried
	populated []relation            // materialized views, each after those it reads
	roles     []Role                // all that the database may name
	version   int                   // of the server
	noPublic  bool                  // schema public was dropped
}

type relation struct {
	oid                 uint32
	schema, name, owner string
}

type foreignKey struct {
	table        relation
	name         string
	validated    bool
	ofPartitions bool // one side is partitioned, or a foreign table
}

// uniqueKey is a PRIMARY KEY or UNIQUE constraint, in two statements.
type uniqueKey struct {
	index string // makes its index
	add   string // makes it of that
}

// readFacts reads the catalog in tx, which must hold the snapshot of the dump.
func readFacts(ctx context.Context, tx pgx.Tx) (*facts, error) {
	f := &facts{
		owners: make(map[object]uint32), kinds: make(map[uint32]string), keys: make(map[uint32]foreignKey),
		unique: make(map[uint32]uniqueKey), late: make(map[uint32]bool), viewRules: make(map[uint32]bool), ours: make(map[object]bool),
	}
	for _, step := range []struct {
		what string
		read func(context.Context, pgx.Tx) error
	}{
		{"relations", f.readKinds},
		{"owning tables", f.readOwners},
		{"constraints", f.readConstraints},
		{"Hawser's objects", f.readOurs},
		{"materialized views", f.readPopulated},
		{"roles", f.readRoles},
		{"database", f.readDatabase},
	} {
		if err := step.read(ctx, tx); err != nil {
			return nil, fmt.Errorf("read the catalog's %s: %w", step.what, err)
		}
	}
	return f, nil
}

func (f *facts) readKinds(ctx context.Context, tx pgx.Tx) error {
	var oid uint32
	var kind string
	return forEach(ctx, tx, `SELECT oid, relkind::text FROM pg_class`, []any{&oid, &kind}, func() {
		f.kinds[oid] = kind
	})
}

func (f *facts) readOwners(ctx context.Context, tx pgx.Tx) error {
	var class, oid, owner uint32
	return forEach(ctx, tx, `
		SELECT 'pg_class'::regclass::oid, indexrelid, indrelid FROM pg_index
		UNION ALL SELECT 'pg_constraint'::regclass, oid, conrelid FROM pg_constraint WHERE conrelid <> 0
		UNION ALL SELECT 'pg_trigger'::regclass, oid, tgrelid FROM pg_trigger
		UNION ALL SELECT 'pg_policy'::regclass, oid, polrelid FROM pg_policy
		UNION ALL SELECT 'pg_rewrite'::regclass, oid, ev_class FROM pg_rewrite
		UNION ALL SELECT 'pg_attrdef'::regclass, oid, adrelid FROM pg_attrdef
		UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxrelid FROM pg_statistic_ext
		UNION ALL SELECT 'pg_publication_rel'::regclass, oid, prrelid FROM pg_publication_rel
		UNION ALL SELECT 'pg_class'::regclass, d.objid, d.refobjid FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
			WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
				AND d.deptype IN ('a', 'i') AND d.refobjsubid <> 0 AND c.relkind = 'S'`,
		[]any{&class, &oid, &owner}, func() {
			f.owners[object{class, oid}] = owner
		})
}

func (f *facts) readConstraints(ctx context.Context, tx pgx.Tx) error {
	var oid uint32
	err := forEach(ctx, tx, `SELECT oid FROM pg_constraint WHERE contype IN ('c', 'n')`, []any{&oid}, func() {
		f.late[oid] = true
	})
	if err != nil {
		return err
	}
	err = forEach(ctx, tx, `SELECT oid FROM pg_rewrite WHERE rulename = '_RETURN'`, []any{&oid}, func() {
		f.viewRules[oid] = true
	})
	if err != nil {
		return err
	}
	var u uniqueKey
	err = forEach(ctx, tx, `
		SELECT con.oid, pg_get_indexdef(i.oid) || ';',
			format('ALTER TABLE ONLY %I.%I ADD CONSTRAINT %I %s USING INDEX %I%s%s;', n.nspname, c.relname, con.conname,
				CASE con.contype WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END, i.relname,
				CASE WHEN con.condeferrable THEN ' DEFERRABLE' END, CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' END)
		FROM pg_constraint con
			JOIN pg_class c ON c.oid = con.conrelid AND c.relkind = 'r'
			JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_class i ON i.oid = con.conindid
			JOIN pg_index x ON x.indexrelid = i.oid AND x.indisunique AND NOT x.indisexclusion
		WHERE con.contype IN ('p', 'u')`, []any{&oid, &u.index, &u.add}, func() {
		f.unique[oid] = u
	})
	if err != nil {
		return err
	}
	var k foreignKey
	return forEach(ctx, tx, `
		SELECT con.oid, c.oid, n.nspname, c.relname, pg_get_userbyid(c.relowner), con.conname, con.convalidated,
			c.relkind <> 'r' OR r.relkind <> 'r'
		FROM pg_constraint con
			JOIN pg_class c ON c.oid = con.conrelid
			JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_class r ON r.oid = con.confrelid
		WHERE con.contype = 'f'`,
		[]any{&oid, &k.table.oid, &k.table.schema, &k.table.name, &k.table.owner, &k.name, &k.validated, &k.ofPartitions}, func() {
			f.keys[oid] = k
		})
}

// readOurs finds the triggers and indexes that call a function of schema hawser and the
// links' publications.
func (f *facts) readOurs(ctx context.Context, tx pgx.Tx) error {
	var o object
	return forEach(ctx, tx, `
		WITH ours AS (SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'hawser')
		SELECT 'pg_trigger'::regclass::oid, oid FROM pg_trigger WHERE tgfoid IN (TABLE ours)
		UNION ALL SELECT 'pg_event_trigger'::regclass, oid FROM pg_event_trigger WHERE evtfoid IN (TABLE ours)
		UNION ALL SELECT classid, objid FROM pg_depend JOIN pg_index ON indexrelid = objid
			WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_proc'::regclass AND refobjid IN (TABLE ours)
		UNION ALL SELECT 'pg_publication'::regclass, oid FROM pg_publication WHERE starts_with(pubname, 'hawser_')
		UNION ALL SELECT 'pg_publication_rel'::regclass, r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
			WHERE starts_with(p.pubname, 'hawser_')`,
		[]any{&o.class, &o.oid}, func() {
			f.ours[o] = true
		})
}

// own tells that an entry of the archive is Hawser's.
func (f *facts) own(t *tocEntry) bool {
	return t.schema == "hawser" || f.ours[object{t.class, t.oid}]
}

// readsMatviews yields for every materialized view those that it reads, by
// itself or through views.
const readsMatviews = `
	WITH RECURSIVE reads(matview, oid) AS (
		SELECT c.oid, d.refobjid FROM pg_class c
			JOIN pg_rewrite r ON r.ev_class = c.oid
			JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
		WHERE c.relkind = 'm' AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> c.oid
		UNION
		SELECT reads.matview, d.refobjid FROM reads
			JOIN pg_class c ON c.oid = reads.oid AND c.relkind IN ('v', 'm')
			JOIN pg_rewrite r ON r.ev_class = c.oid
			JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
		WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> c.oid
	)
	SELECT reads.matview, c.oid, c.relispopulated FROM reads JOIN pg_class c ON c.oid = reads.oid AND c.relkind = 'm'`

// readPopulated reads the materialized views that can be filled. One that reads
// another reads all that the other reads too, so it comes after it when they are
// sorted by how many they read. One that reads an empty one can't be filled.
func (f *facts) readPopulated(ctx context.Context, tx pgx.Tx) error {
	var r relation
	return forEach(ctx, tx, `
		SELECT c.oid, n.nspname, c.relname, pg_get_userbyid(c.relowner)
		FROM pg_class c
			JOIN pg_namespace n ON n.oid = c.relnamespace
			LEFT JOIN (`+readsMatviews+`) AS others(matview, oid, populated) ON others.matview = c.oid
		WHERE c.relkind = 'm' AND c.relispopulated AND n.nspname <> 'hawser'
			AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
		GROUP BY c.oid, n.nspname, c.relname, c.relowner
		HAVING bool_and(others.populated) IS NOT FALSE
		ORDER BY count(DISTINCT others.oid), c.oid`,
		[]any{&r.oid, &r.schema, &r.name, &r.owner}, func() {
			f.populated = append(f.populated, r)
		})
}

func (f *facts) readRoles(ctx context.Context, tx pgx.Tx) error {
	var err error
	f.roles, err = readRoles(ctx, tx)
	return err
}

func (f *facts) readDatabase(ctx context.Context, tx pgx.Tx) error {
	return tx.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public')`).
		Scan(&f.version, &f.noPublic)
}

// forEach calls each for every row of the query, with its columns in into.
func forEach(ctx context.Context, db querier, sql string, into []any, each func()) error {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, into, func() error {
		each()
		return nil
	})
	return err
}

// querier is what reading needs of a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}
