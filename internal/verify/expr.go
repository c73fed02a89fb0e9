package verify

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hawser/hawser/internal/postgres"
)

const (
	bucketBits = 12
	maxDepth   = 4 // 5 × 12 bits of 64 are used
	// Values with more bytes are replaced by their hash in wide mode.
	wideBytes = 64 << 10
	// A row without a key is shown up to here.
	sampleChars = 300
)

// kind is what the wide form of a column's expression needs to know of its type.
type kind struct {
	base  string // of a domain its base type, as pg_type.typname
	fixed bool   // of fixed length
}

// expressions writes the parts of queries that hash the rows of one table.
type expressions struct {
	table Table
	m     Method
	kinds map[string]kind // by column; for wide mode
}

func (e expressions) name() string { return postgres.QuoteIdent(e.table.Schema, e.table.Name) }

// row is the text of some columns. ROW()::text quotes, so that no two rows read alike.
func (e expressions) row(columns []string) string {
	list := make([]string, len(columns))
	for i, c := range columns {
		list[i] = e.value(c)
	}
	return `ROW(` + strings.Join(list, ", ") + `)::text COLLATE "C"`
}

// value is a column as it stands in the row.
func (e expressions) value(column string) string {
	c := postgres.QuoteIdent(column)
	if !e.m.Wide {
		return c
	}
	switch k := e.kinds[column]; {
	case k.fixed:
		return c
	case k.base == "bytea":
		return fmt.Sprintf(`CASE WHEN octet_length(%s) > %d THEN encode(sha256(%[1]s), 'hex') ELSE encode(%[1]s, 'hex') END`, c, wideBytes)
	case k.base == "text", k.base == "varchar", k.base == "bpchar":
		return fmt.Sprintf(`CASE WHEN octet_length(%s) > %d THEN encode(sha256(convert_to(%[1]s::text, 'UTF8')), 'hex') ELSE %[1]s::text END`, c, wideBytes)
	default:
		return fmt.Sprintf(`encode(sha256(convert_to(%s::text, 'UTF8')), 'hex')`, c)
	}
}

// digest is what half takes its halves of, so that it is computed once.
func (e expressions) digest(text string) string {
	if e.m.Portable {
		return `sha256(convert_to(` + text + `, 'UTF8'))`
	}
	return text
}

// half is a 64-bit hash; seeds 0, 1 and 2 give independent ones.
func (e expressions) half(digest string, seed int) string {
	if e.m.Portable {
		return fmt.Sprintf(`('x' || encode(substr(%s, %d, 8), 'hex'))::bit(64)::bigint`, digest, 1+8*seed)
	}
	return fmt.Sprintf(`hashtextextended(%s, %d)`, digest, seed)
}

// short is a 32-bit hash of one column; NULL has one too.
func (e expressions) short(column string) string {
	d := e.digest(`(` + e.value(column) + `)::text COLLATE "C"`)
	if e.m.Portable {
		return `coalesce(('x' || encode(substr(` + d + `, 1, 4), 'hex'))::bit(32)::integer, 1)`
	}
	return `coalesce(hashtext(` + d + `), 1)`
}

// key is the columns by which rows are put into buckets.
func (e expressions) key() []string {
	if len(e.table.Key) > 0 {
		return e.table.Key
	}
	return e.table.Columns
}

// bucket is the bucket of a row at a depth.
func (e expressions) bucket(depth int) string {
	return fmt.Sprintf(`%s & %d`, e.half(e.digest(e.row(e.key())), 0), int64(1)<<(bucketBits*(depth+1))-1)
}

// sums counts and adds up the rows of a subquery that gives their digest as d.
func (e expressions) sums() string {
	return fmt.Sprintf(`count(*), coalesce(sum(%s), 0)::text, coalesce(sum(%s), 0)::text`, e.half("d", 1), e.half("d", 2))
}

// from reads columns of the rows that meet all conditions. OFFSET 0 keeps the
// planner from computing a column where it is used, which is more than once.
func (e expressions) from(columns string, conditions ...string) string {
	conditions = slices.DeleteFunc(conditions, func(c string) bool { return c == "" })
	where := ""
	if len(conditions) > 0 {
		where = " WHERE " + strings.Join(conditions, " AND ")
	}
	return `(SELECT ` + columns + ` FROM ONLY ` + e.name() + where + ` OFFSET 0) s`
}

// all hashes the rows of one part of the table.
func (e expressions) all(part string) string {
	return `SELECT ` + e.sums() + ` FROM ` + e.from(e.digest(e.row(e.table.Columns))+` AS d`, part)
}

// buckets hashes the rows of one part by bucket; $1 are the buckets of the depth above.
func (e expressions) buckets(depth int, part string) string {
	within := `$1::bigint[] IS NULL`
	if depth > 0 {
		within = e.bucket(depth-1) + ` = ANY ($1)`
	}
	return `SELECT b, ` + e.sums() + ` FROM ` + e.from(e.bucket(depth)+` AS b, `+e.digest(e.row(e.table.Columns))+` AS d`, within, part) + ` GROUP BY b`
}

// rows lists the rows of one part in the buckets $1, at most $2 of them.
func (e expressions) rows(depth int, part string) string {
	within, d := e.bucket(depth)+` = ANY ($1)`, e.digest(e.row(e.table.Columns))
	if len(e.table.Key) == 0 {
		return fmt.Sprintf(`SELECT NULL::text[], min(t), count(*), %s::text, %s::text, NULL::integer[] FROM %s GROUP BY d LIMIT $2`, e.half("d", 1), e.half("d", 2),
			e.from(d+` AS d, left(`+e.row(e.table.Columns)+`, `+strconv.Itoa(sampleChars)+`) AS t`, within, part))
	}
	key, short := make([]string, len(e.table.Key)), make([]string, len(e.table.Columns))
	for i, c := range e.table.Key {
		key[i] = postgres.QuoteIdent(c) + `::text`
	}
	for i, c := range e.table.Columns {
		short[i] = e.short(c)
	}
	return fmt.Sprintf(`SELECT k, '', 1::bigint, %s::text, %s::text, c FROM %s LIMIT $2`, e.half("d", 1), e.half("d", 2),
		e.from(`ARRAY[`+strings.Join(key, ", ")+`] AS k, ARRAY[`+strings.Join(short, ", ")+`] AS c, `+d+` AS d`, within, part))
}
