package schema

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

// Dump is the definition of a database at one snapshot. It is sent as JSON.
type Dump struct {
	Entries []Entry `json:"entries"`
	// Roles are all roles that the entries name.
	Roles []Role `json:"roles"`
}

// Of returns the entries of one phase in their order; table 0 asks for those of
// every table.
func (d *Dump) Of(phase Phase, table uint32) []Entry {
	var out []Entry
	for _, e := range d.Entries {
		if e.Phase == phase && (table == 0 || e.Table == table) {
			out = append(out, e)
		}
	}
	return out
}

// DumpOptions say how a dump is taken.
type DumpOptions struct {
	// Snapshot is one that pg_export_snapshot returned in a transaction that stays
	// open until TakeDump returns. Empty: TakeDump takes its own.
	Snapshot string
}

// pg_dump locks all tables in one transaction, and so may meet a user's DDL in a
// deadlock. It has to be the one that gives way: it looks for a deadlock soon, and ends
// its wait before the user's session looks, which it does after a second. The dump is
// tried again.
const (
	lockWait = "700ms"
	giveWay  = "-c deadlock_timeout=20ms"
)

// TakeDump reads the definition of a database on the primary. It runs pg_dump
// and pg_restore of the newest version at hand, on this machine.
func TakeDump(ctx context.Context, src *postgres.Server, database string, o DumpOptions) (*Dump, error) {
	conn, err := src.Connect(ctx, reading(database, "dump"))
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := beginAt(ctx, conn, o.Snapshot)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if o.Snapshot == "" {
		if err := tx.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&o.Snapshot); err != nil {
			return nil, fmt.Errorf("export the snapshot of the dump: %w", err)
		}
	}
	f, err := readFacts(ctx, tx)
	if err != nil {
		return nil, err
	}
	toc, err := runDump(ctx, src, database, o.Snapshot, f.version/10000)
	if err != nil {
		return nil, err
	}
	if err := untouched(ctx, tx, database); err != nil {
		return nil, err
	}
	d := &Dump{}
	if d.Entries, err = assemble(toc, f); err != nil {
		return nil, err
	}
	if d.Roles, err = namedRoles(toc, f); err != nil {
		return nil, err
	}
	return d, nil
}

// reading is a session that reads a database's catalog, however the database and
// its roles are set up.
func reading(database, purpose string) postgres.Session {
	return postgres.Session{Database: database, Purpose: "schema " + purpose, Settings: map[string]string{
		"search_path":                         "",
		"statement_timeout":                   "0",
		"idle_in_transaction_session_timeout": "0",
	}}
}

// beginAt opens a transaction that reads at a snapshot, or at its own if it is "".
func beginAt(ctx context.Context, conn *pgx.Conn, snapshot string) (pgx.Tx, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("begin the dump: %w", err)
	}
	if snapshot == "" {
		return tx, nil
	}
	if _, err := tx.Exec(ctx, "SET TRANSACTION SNAPSHOT '"+strings.ReplaceAll(snapshot, "'", "''")+"'"); err != nil {
		_ = tx.Rollback(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("take the dump's snapshot %s: %w", snapshot, err)
	}
	return tx, nil
}

func serverVersion(ctx context.Context, db querier) (version int, err error) {
	if err := db.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return 0, fmt.Errorf("read the server's version: %w", err)
	}
	return version, nil
}

// dumpDir makes a directory for pg_dump's output.
func dumpDir() (string, error) {
	dir, err := os.MkdirTemp("", "hawser-dump-")
	if err != nil {
		return "", problem.New("dump-without-room", "directory "+os.TempDir(), "the primary's agent can't keep pg_dump's output there",
			"").Advise("let the agent's user write there, or start the agent with another directory in TMPDIR; the link goes on by itself").Retry().Because(err)
	}
	return dir, nil
}

// HasDumpDir returns the problem that a dump would meet in making its directory.
func HasDumpDir() error {
	dir, err := dumpDir()
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

// runDump runs the tools and reads what they made.
func runDump(ctx context.Context, src *postgres.Server, database, snapshot string, major int) ([]tocEntry, error) {
	dir, err := dumpDir()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	archive := filepath.Join(dir, "schema.dump")
	run := tools{ctx: ctx, major: major, environ: src.Environ(database), object: "database " + postgres.QuoteIdent(database)}
	// Every identifier is quoted: what is no key word here may be one on the target.
	run.output("pg_dump", "--schema-only", "--format=custom", "--compress=0", "--create", "--encoding=UTF8",
		"--quote-all-identifiers", "--no-subscriptions", "--no-tablespaces", "--exclude-schema=hawser",
		"--lock-wait-timeout="+lockWait, "--no-password", "--snapshot="+snapshot, "--file="+archive)
	list := run.output("pg_restore", "--create", "--no-tablespaces", "--list", archive)
	script := run.output("pg_restore", "--create", "--no-tablespaces", "--verbose", "--file=-", archive)
	if run.err != nil {
		return nil, run.err
	}
	if !utf8.ValidString(script) {
		return nil, problem.New("schema-not-utf8", run.object,
			"its definitions hold bytes that are not UTF-8, which a database in encoding SQL_ASCII allows",
			"").Advise("rename the objects, or rewrite the functions and comments, that hold such bytes")
	}
	lines, err := parseList(list)
	if err != nil {
		return nil, err
	}
	entries, err := parseScript(script, lines)
	if err != nil {
		return nil, err
	}
	return entries, whole(entries)
}

// whole finds definitions that pg_dump could not read any more: of a partition that was
// dropped since the snapshot, whose name another has now, the server tells no bound.
func whole(entries []tocEntry) error {
	for _, e := range entries {
		if e.kind == "TABLE ATTACH" && strings.HasSuffix(strings.TrimRight(e.sql, "; \n"), e.quotedName()) {
			return problem.New("schema-changed", "table "+postgres.QuoteIdent(e.schema, e.name),
				"it was replaced while its definition was read", "").Advise("the dump is tried again by itself").Retry()
		}
	}
	return nil
}

// torn counts the transactions that changed or dropped, since the dump's snapshot, what
// it sees: pg_dump relies on functions of the server that write definitions, and those
// know the latest catalog alone. It asks whether the row's deleter committed. A row of
// pg_class changes with every TRUNCATE too, so of that one the name counts. What is
// temporary, or newer, is in no dump.
const torn = `
WITH c AS (
	SELECT c.oid, c.relname, c.relnamespace FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('hawser', 'pg_toast') AND c.oid >= 16384
), gone AS (
	SELECT x.xmax FROM pg_attribute x JOIN c ON c.oid = x.attrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_attrdef x JOIN c ON c.oid = x.adrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_index x JOIN c ON c.oid = x.indrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_inherits x JOIN c ON c.oid = x.inhrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_trigger x JOIN c ON c.oid = x.tgrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_rewrite x JOIN c ON c.oid = x.ev_class WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_policy x JOIN c ON c.oid = x.polrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_statistic_ext x JOIN c ON c.oid = x.stxrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_partitioned_table x JOIN c ON c.oid = x.partrelid WHERE x.xmax <> 0
	UNION SELECT x.xmax FROM pg_constraint x WHERE x.xmax <> 0 AND x.oid >= 16384 AND (x.conrelid = 0 OR x.conrelid IN (SELECT oid FROM c))
	UNION SELECT x.xmax FROM pg_type x JOIN pg_namespace n ON n.oid = x.typnamespace
		WHERE x.xmax <> 0 AND x.oid >= 16384 AND n.nspname !~ '^pg_(toast_)?temp_' AND (x.typrelid = 0 OR x.typrelid IN (SELECT oid FROM c))
	UNION SELECT x.xmax FROM pg_proc x JOIN pg_namespace n ON n.oid = x.pronamespace WHERE x.xmax <> 0 AND n.nspname <> 'hawser' AND x.oid >= 16384
	UNION SELECT x.xmax FROM pg_namespace x WHERE x.xmax <> 0 AND x.oid >= 16384 AND x.nspname !~ '^pg_(toast_)?temp_'
	UNION SELECT x.xmax FROM pg_operator x WHERE x.xmax <> 0 AND x.oid >= 16384
	UNION SELECT x.xmax FROM pg_enum x WHERE x.xmax <> 0
	UNION SELECT k.xmax FROM pg_class k JOIN c USING (oid) WHERE k.xmax <> 0 AND NOT EXISTS (
		SELECT FROM pg_identify_object_as_address('pg_class'::regclass, k.oid, 0) i
		WHERE i.object_names = ARRAY[(SELECT nspname::text FROM pg_namespace WHERE oid = c.relnamespace), c.relname::text])
)
SELECT count(*) FROM gone, (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) s
WHERE pg_xact_status((s.next - (s.next - xmax::text::bigint & 4294967295) + CASE
	WHEN (s.next - xmax::text::bigint & 4294967295) >= 2147483648 THEN 4294967296 ELSE 0 END)::text::xid8) = 'committed'`

// untouched tells whether the definitions are all of the dump's snapshot, in tx.
func untouched(ctx context.Context, tx pgx.Tx, database string) error {
	var n int
	if err := tx.QueryRow(ctx, torn).Scan(&n); err != nil {
		return fmt.Errorf("look for DDL beside the dump: %w", err)
	}
	if n == 0 {
		return nil
	}
	return problem.New("schema-changed", "database "+postgres.QuoteIdent(database), fmt.Sprintf("%d transactions changed definitions while they were read", n),
		"").Advise("the dump is tried again by itself").Retry()
}

// quotedName is the entry's name as it stands in its statement.
func (e tocEntry) quotedName() string { return pgx.Identifier{e.name}.Sanitize() }

// tools runs PostgreSQL's programs one after the other, until one fails.
type tools struct {
	ctx     context.Context
	major   int
	paths   map[string]string // of programs
	environ []string
	object  string
	err     error
}

// output runs a program and returns what it printed.
func (t *tools) output(name string, args ...string) string {
	if t.err != nil {
		return ""
	}
	path := t.program(name)
	if path == "" {
		return ""
	}
	var out bytes.Buffer
	said := tail{limit: 4096}
	cmd := exec.CommandContext(t.ctx, path, args...)
	cmd.Env = yielding(append(ownEnviron(), t.environ...))
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.err = t.failed(name, err, said.String())
	}
	return out.String()
}

// program returns where a program is, and "" after an error. Each is looked for once.
func (t *tools) program(name string) string {
	if t.paths[name] == "" {
		path, err := postgres.Tool(name, t.major)
		if err != nil {
			t.err = err
			return ""
		}
		if t.paths == nil {
			t.paths = map[string]string{}
		}
		t.paths[name] = path
	}
	return t.paths[name]
}

// yielding adds giveWay to the options of an environment.
func yielding(env []string) []string {
	for i, v := range env {
		if strings.HasPrefix(v, "PGOPTIONS=") {
			env[i] = v + " " + giveWay
			return env
		}
	}
	return append(env, "PGOPTIONS="+giveWay)
}

// ownEnviron is the agent's environment, less what would lead libpq elsewhere.
func ownEnviron() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "PGHOSTADDR" || name == "PGSERVICE" || name == "PGOPTIONS"
	})
	return append(env, "LC_ALL=C")
}

// failed explains the end of a program. It is worth another try: a lock that was
// held, a connection that broke.
func (t *tools) failed(name string, err error, said string) error {
	if t.ctx.Err() != nil {
		return fmt.Errorf("run %s: %w", name, t.ctx.Err())
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("run %s: %w", name, err)
	}
	cause := fmt.Sprintf("%s could not read its definitions: %s", name, strings.Join(strings.Fields(said), " "))
	return problem.New("schema-dump-failed", t.object, cause, "").Advise("mend what " + name + " names; the dump is tried again by itself").Because(err).Retry()
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int
	buf   []byte
}

var _ io.Writer = (*tail)(nil)

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.limit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }
