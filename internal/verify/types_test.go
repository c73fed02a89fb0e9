package verify

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/testpg"
)

// golden is the hash of testdata/types.sql. It must be the same in every version
// of PostgreSQL, on every machine, and of Hawser.
const golden = "3f29dd5b6694f9aa6a847991590855fd"

func typesSQL(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("testdata/types.sql")
	must(t, err)
	return string(text)
}

func TestGoldenHash(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := c.CreateDatabase(t)
	c.Exec(t, db, typesSQL(t))
	found, err := tables(t.Context(), c.Connect(t, db), "")
	must(t, err)
	digests, err := NewLocal(connector(c, db), "", Options{}).Digest(t.Context(), DigestRequest{Tables: found})
	must(t, err)
	if len(digests) != 1 || digests[0].Problem != nil || digests[0].Rows != 200 || digests[0].Hash.String() != golden {
		t.Errorf("digests %+v, want %s", digests, golden)
	}
}

// copyRows copies a table by its columns' names, as a link does: as text.
func copyRows(t testing.TB, from, to *pgx.Conn, table string) {
	t.Helper()
	columns := strings.Join(testpg.Rows(t, from, `SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum`, table), ", ")
	var data bytes.Buffer
	fixed := `SET DateStyle = ISO; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET bytea_output = hex; SET extra_float_digits = 3; SET lc_monetary = 'C'; SET client_encoding = 'UTF8'`
	run(t, from, fixed)
	run(t, to, fixed)
	_, err := from.PgConn().CopyTo(context.Background(), &data, `COPY `+table+` (`+columns+`) TO STDOUT`)
	must(t, err)
	_, err = to.PgConn().CopyFrom(context.Background(), &data, `COPY `+table+` (`+columns+`) FROM STDIN`)
	must(t, err)
}

// The secondary has its columns in another order, dropped ones between, and other
// settings; but for these it is equal all the same.
func TestOrderAndSettingsDoNotMatter(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := c.CreateDatabase(t), c.CreateDatabase(t)
	c.Exec(t, primary, typesSQL(t))
	head, _, _ := strings.Cut(typesSQL(t), "INSERT INTO")
	c.Exec(t, secondary, shuffled(head))
	settings := map[string]string{
		"DateStyle": "'SQL, DMY'", "TimeZone": "'Asia/Kolkata'", "IntervalStyle": "sql_standard", "bytea_output": "escape",
		"extra_float_digits": "-15", "xmlbinary": "hex", "quote_all_identifiers": "on", "search_path": "pg_catalog", "client_encoding": "LATIN1",
	}
	for name, value := range settings {
		c.Exec(t, primary, `ALTER DATABASE `+secondary+` SET `+name+` = `+value)
	}
	copyRows(t, c.Connect(t, primary), c.Connect(t, secondary), "public.kinds")
	r := compare(t, c, primary, secondary, RunOptions{})
	if len(r.Schema) != len(settings) || slices.ContainsFunc(r.Schema, func(d SchemaDifference) bool { return d.Kind != "setting" || settings[d.Object] == "" }) {
		t.Errorf("%+v", r.Schema)
	}
	r.Schema = nil
	r.conclude()
	mustEqual(t, r)
	if k := tableOf(t, r, "kinds"); k.PrimaryRows != 200 || !slices.Equal(k.Key, nil) {
		t.Errorf("%+v", k)
	}
}

// shuffled reverses the columns of the one table and puts a dropped one among them.
func shuffled(sql string) string {
	begin := strings.Index(sql, "CREATE TABLE kinds (") + len("CREATE TABLE kinds (")
	end := begin + strings.Index(sql[begin:], "\n);")
	// A comma within parentheses separates no columns.
	var columns []string
	depth, from := 0, begin
	for i := begin; i <= end; i++ {
		switch {
		case i == end || sql[i] == ',' && depth == 0:
			columns, from = append(columns, sql[from:i]), i+1
		case sql[i] == '(':
			depth++
		case sql[i] == ')':
			depth--
		}
	}
	slices.Reverse(columns)
	columns = slices.Insert(columns, len(columns)/2, "gone text")
	return sql[:begin] + strings.Join(columns, ",") + sql[end:] + " ALTER TABLE kinds DROP COLUMN gone;"
}

// One changed value in any column is found, and its row and column named.
func TestEveryColumnCounts(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := c.CreateDatabase(t), c.CreateDatabase(t)
	var columns []string
	for _, db := range []string{primary, secondary} {
		c.Exec(t, db, typesSQL(t))
		conn := c.Connect(t, db)
		columns = testpg.Rows(t, conn, `SELECT attname FROM pg_attribute WHERE attrelid = 'kinds'::regclass AND attnum > 1 AND attgenerated = '' ORDER BY attnum`)
		var list []string
		for _, column := range columns {
			list = append(list, pgx.Identifier{column}.Sanitize())
		}
		// As many copies of the first row as there are columns.
		run(t, conn, fmt.Sprintf(`INSERT INTO kinds (id, %s) SELECT 1000 + i, %[1]s FROM kinds, generate_series(0, %d) i WHERE id = 1`, strings.Join(list, ", "), len(columns)-1))
		for i, column := range list {
			if db == secondary { // the second row has another value in each column
				run(t, conn, fmt.Sprintf(`UPDATE kinds SET %s = (SELECT %[1]s FROM kinds WHERE id = 2) WHERE id = 1000 + %d`, column, i))
			}
		}
	}
	if len(columns) < 70 {
		t.Fatalf("only %d columns", len(columns))
	}
	k := tableOf(t, compare(t, c, primary, secondary, RunOptions{}), "kinds")
	if k.Verdict != Differs || k.More || len(k.Differences) != len(columns) {
		t.Errorf("%d of %d differences, more: %v", len(k.Differences), len(columns), k.More)
	}
	for _, d := range k.Differences {
		id, err := strconv.Atoi(d.Key[0])
		if err != nil || id < 1000 || d.Kind != Different || !slices.Equal(d.Columns, columns[id-1000:id-999]) {
			t.Errorf("%+v", d)
		}
	}
}

// What equals, to SQL, but is not the same.
func TestSubtleDifferences(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	for _, v := range []struct{ kind, a, b string }{
		{"numeric", "1.0", "1.00"}, {"float8", "0", "'-0'"}, {"float8", "'NaN'", "NULL"}, {"text", "''", "NULL"}, {"text", "'x'", "'x '"},
		{"json", `'{"a":1}'`, `'{"a": 1}'`}, {"bytea", `'\x00'`, `'\x0000'`}, {"text[]", "'{NULL}'", `'{"NULL"}'`}, {"timestamptz", "'2024-01-01 00:00:00.000001Z'", "'2024-01-01Z'"},
		{"interval", "'1 day'", "'24 hours'"}, {"float8", "0.1", "0.1::float8 + 1e-17::float8 + 1.4e-17"}, {"int[]", "'{1}'", "'[0:0]={1}'"},
	} {
		primary, secondary := c.CreateDatabase(t), c.CreateDatabase(t)
		c.Exec(t, primary, `CREATE TABLE t (a `+v.kind+`, b int)`, `INSERT INTO t VALUES (`+v.a+`, 1)`)
		c.Exec(t, secondary, `CREATE TABLE t (a `+v.kind+`, b int)`, `INSERT INTO t VALUES (`+v.b+`, 1)`)
		if r := compare(t, c, primary, secondary, RunOptions{}); tableOf(t, r, "t").Verdict != Differs {
			t.Errorf("%s: %s and %s are taken for the same", v.kind, v.a, v.b)
		}
	}
}

// Encodings differ: hashes are of UTF-8.
func TestEncodings(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, latin := c.CreateDatabase(t), c.CreateDatabase(t)
	c.DropDatabase(latin)
	c.Exec(t, "postgres", `CREATE DATABASE `+latin+` ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
	for _, db := range []string{primary, latin} {
		c.Exec(t, db, `CREATE TABLE t (id int PRIMARY KEY, v text)`, `INSERT INTO t SELECT i, U&'\00fc' || repeat(U&'\00e9', i) FROM generate_series(1, 3000) i`, `ANALYZE`)
	}
	mustEqual(t, compare(t, c, primary, latin, RunOptions{}))
	c.Exec(t, latin, `UPDATE t SET v = replace(v, U&'\00fc', U&'\00fb') WHERE id = 77`)
	k := tableOf(t, compare(t, c, primary, latin, RunOptions{}), "t")
	if len(k.Differences) != 1 || !slices.Equal(k.Differences[0].Key, []string{"77"}) || !slices.Equal(k.Differences[0].Columns, []string{"v"}) {
		t.Errorf("%+v", k)
	}
}

// The text of a row may be larger than PostgreSQL can build.
func TestWideRows(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE TABLE wide (id int PRIMARY KEY, b bytea)`,
		// It compresses well, and its hexadecimal text has more than 1 GB.
		`INSERT INTO wide VALUES (1, convert_to(repeat('x', 540000000), 'UTF8'))`)
	mustEqual(t, compare(t, c, primary, secondary, RunOptions{}))
}

func TestWideMethod(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	primary, secondary := twins(t, c, `CREATE DOMAIN word AS text; CREATE DOMAIN longer AS word; CREATE TYPE mood AS ENUM ('a', 'b');
		CREATE TABLE wide (id int PRIMARY KEY, b bytea, c text, d longer, e jsonb, f mood, g char(5));
		INSERT INTO wide SELECT i, '\x00', 'x', 'y', '{"a":1}', 'a', 'g' FROM generate_series(1, 20) i;
		INSERT INTO wide VALUES (21, decode(repeat('00', 100000), 'hex'), repeat('y', 100000), repeat('z', 100000))`)
	for id, set := range []string{"b = '\\x01'", "c = 'X'", "d = NULL", "e = '{}'", "f = 'b'", "g = 'h'"} {
		c.Exec(t, secondary, fmt.Sprintf(`UPDATE wide SET %s WHERE id = %d`, set, id+1))
	}
	c.Exec(t, secondary, `UPDATE wide SET b = b || '\x00', d = d || 'z' WHERE id = 21`)
	p, s := local(c, primary, ""), local(c, secondary, "")
	list, err := tables(t.Context(), c.Connect(t, primary), "")
	must(t, err)
	for _, m := range []Method{{Wide: true}, {Wide: true, Portable: true}, {Portable: true}, {}} {
		found, more, err := Differences(t.Context(), p, s, list[0], list[0], m, 100)
		if err != nil || more || len(found) != 7 {
			t.Fatalf("%+v: %+v, %v, %v", m, found, more, err)
		}
		for _, d := range found {
			want := []string{"b", "d"}
			if id, _ := strconv.Atoi(d.Key[0]); id < 7 {
				want = list[0].Columns[id-1 : id]
			}
			if d.Kind != Different || !slices.Equal(d.Columns, want) {
				t.Errorf("%+v: %+v", m, d)
			}
		}
	}
}
