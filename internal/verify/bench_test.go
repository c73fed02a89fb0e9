package verify

import (
	"testing"

	"github.com/hawser/hawser/internal/testpg"
)

// A table as pgbench has them, with an index, a text and a time: 1,000,000 rows.
func BenchmarkDigest(b *testing.B) {
	const rows = 1_000_000
	c := testpg.Shared(b)
	db := c.CreateDatabase(b)
	c.Exec(b, db, `CREATE TABLE t (id bigint PRIMARY KEY, branch int, balance numeric(12, 2), at timestamptz, filler text)`,
		`INSERT INTO t SELECT i, i % 100, i * 1.25, '2024-01-01'::timestamptz + i * interval '1 second', md5(i::text) FROM generate_series(1, 1000000) i`, `VACUUM ANALYZE t`)
	tables, err := tables(b.Context(), c.Connect(b, db), "")
	must(b, err)
	for _, m := range []struct {
		name    string
		method  Method
		workers int
	}{{"plain", Method{}, 2}, {"plain-1", Method{}, 1}, {"portable", Method{Portable: true}, 2}, {"wide", Method{Wide: true}, 2}} {
		b.Run(m.name, func(b *testing.B) {
			side := NewLocal(connector(c, db), "", Options{Workers: m.workers, PartBytes: 16 << 20})
			for b.Loop() {
				d, err := side.Digest(b.Context(), DigestRequest{Tables: tables, Method: m.method})
				if err != nil || d[0].Rows != rows {
					b.Fatalf("%+v, %v", d, err)
				}
			}
			b.ReportMetric(rows*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
