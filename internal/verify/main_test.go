package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
}

func connector(c *testpg.Cluster, database string) func(context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) {
		return c.Server().Connect(ctx, postgres.Session{Database: database, Purpose: "verify"})
	}
}

// local is a side of small parts, so that most tables have several.
func local(c *testpg.Cluster, database, snapshot string) *Local {
	return NewLocal(connector(c, database), snapshot, Options{Workers: 3, PartBytes: 256 << 10})
}

// export holds a snapshot of a database until the test ends.
func export(t testing.TB, c *testpg.Cluster, database string) string {
	t.Helper()
	conn := c.Connect(t, database)
	run(t, conn, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
	return testpg.Rows(t, conn, `SELECT pg_export_snapshot()`)[0]
}

// wire is a side behind JSON, as the other side of a link is.
type wire struct{ Side }

func over[R, A any](ctx context.Context, r R, call func(context.Context, R) (A, error)) (A, error) {
	var sent R
	var got A
	text, err := json.Marshal(r)
	if err == nil {
		err = json.Unmarshal(text, &sent)
	}
	if err != nil {
		return got, err
	}
	answer, err := call(ctx, sent)
	if err != nil {
		return got, err
	}
	if text, err = json.Marshal(answer); err == nil {
		err = json.Unmarshal(text, &got)
	}
	return got, err
}

func (w wire) Inventory(ctx context.Context) (Inventory, error) {
	return over(ctx, struct{}{}, func(ctx context.Context, _ struct{}) (Inventory, error) { return w.Side.Inventory(ctx) })
}

func (w wire) Sequences(ctx context.Context) ([]Sequence, error) {
	return over(ctx, struct{}{}, func(ctx context.Context, _ struct{}) ([]Sequence, error) { return w.Side.Sequences(ctx) })
}

func (w wire) Digest(ctx context.Context, r DigestRequest) ([]TableDigest, error) {
	return over(ctx, r, w.Side.Digest)
}

func (w wire) Buckets(ctx context.Context, r BucketsRequest) ([]Bucket, error) {
	return over(ctx, r, w.Side.Buckets)
}

func (w wire) Rows(ctx context.Context, r RowsRequest) ([]Row, error) {
	return over(ctx, r, w.Side.Rows)
}

// compare runs a comparison of two databases of one cluster.
func compare(t testing.TB, c *testpg.Cluster, primary, secondary string, o RunOptions) Report {
	t.Helper()
	r, err := Run(context.Background(), local(c, primary, export(t, c, primary)), wire{local(c, secondary, export(t, c, secondary))}, o)
	must(t, err)
	if text, err := json.Marshal(r); err != nil || !strings.Contains(string(text), `"equal"`) {
		t.Errorf("report as JSON: %s, %v", text, err)
	}
	return r
}

func tableOf(t testing.TB, r Report, name string) TableReport {
	t.Helper()
	for _, table := range r.Tables {
		if table.Name == name {
			return table
		}
	}
	t.Fatalf("no table %s in %+v", name, r)
	return TableReport{}
}

// mustEqual fails with what differs.
func mustEqual(t testing.TB, r Report) {
	t.Helper()
	if r.Equal && r.Complete {
		return
	}
	var b strings.Builder
	for _, table := range r.Tables {
		if table.Verdict != Same {
			fmt.Fprintf(&b, "\n%+v", table)
		}
	}
	t.Fatalf("the sides differ (complete %v): %s\nsequences %+v\nschema %+v", r.Complete, b.String(), r.Sequences, r.Schema)
}
