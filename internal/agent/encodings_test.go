package agent_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// encodings are those of servers that convert to UTF-8, and text that each can hold.
var encodings = map[string]string{
	"EUC_CN": "汉字，中文。", "EUC_JP": "日本語のテキスト、ｶﾅ", "EUC_JIS_2004": "日本語のテキスト", "EUC_KR": "한글 텍스트", "EUC_TW": "漢字中文",
	"ISO_8859_5": "Кириллица", "ISO_8859_6": "العربية", "ISO_8859_7": "Ελληνικά", "ISO_8859_8": "עברית", "KOI8R": "Кириллица │", "KOI8U": "Їжак і ґанок",
	"LATIN1": "größe é ÿ", "LATIN2": "žluťoučký kůň", "LATIN3": "ĉĝĥĵŝŭ", "LATIN4": "āčēģīķļņ", "LATIN5": "ğışöç", "LATIN6": "ðþæŋ", "LATIN7": "žūš", "LATIN8": "ŵŷẁ", "LATIN9": "€œž", "LATIN10": "șță€",
	"WIN866": "Кириллица ─", "WIN874": "ภาษาไทย", "WIN1250": "žluťoučký „kůň“", "WIN1251": "Кириллица №", "WIN1252": "€ “größe” ™", "WIN1253": "Ελληνικά €", "WIN1254": "ğış €", "WIN1255": "עברית ₪", "WIN1256": "العربية €", "WIN1257": "žūš €", "WIN1258": "đơư ₫",
}

// TestEncodings links databases of other encodings, with names and values in them, in both
// directions: some of them, or all that HAWSER_TEST_ENCODINGS names, as "all" does.
func TestEncodings(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	chosen := strings.Fields(cmp.Or(os.Getenv("HAWSER_TEST_ENCODINGS"), "LATIN1 EUC_JP KOI8R"))
	for encoding, text := range encodings {
		if chosen[0] != "all" && !slices.Contains(chosen, encoding) {
			continue
		}
		t.Run(encoding, func(t *testing.T) {
			database := strings.ToLower(encoding)
			a.Exec(t, "postgres", `CREATE DATABASE `+database+` ENCODING '`+encoding+`' LOCALE 'C' TEMPLATE template0`)
			encoded(t, a, b, database, text)
		})
	}
}

// encoded links a database of which text is written in every place that holds text.
func encoded(t *testing.T, a, b *instance, database, text string) {
	t.Helper()
	name := strings.ReplaceAll(text, `"`, "")
	sql := func(s string) string { return strings.NewReplacer(":name", `"`+name+`"`, ":text", text).Replace(s) }
	a.Exec(t, database, sql(`CREATE TABLE :name (:name text PRIMARY KEY, n int, list text[], doc json); INSERT INTO :name VALUES (':text', 1, '{":text"}', '{":text": ":text"}'), ('', 2, NULL, NULL);
		CREATE TABLE loose (v text DEFAULT ':text', c varchar(100)); INSERT INTO loose DEFAULT VALUES; CREATE TYPE mood AS ENUM (':text'); COMMENT ON TABLE loose IS ':text'`))
	if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: database, Database: database, Peer: "beta", Role: api.RolePrimary}); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, database, api.StateSynchronized)
	for round, side := range []struct{ primary, secondary *instance }{{a, b}, {b, a}} {
		if round > 0 {
			if _, err := side.primary.FailoverLink(context.Background(), database, api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
				t.Fatal(err)
			}
			side.secondary.awaitState(t, database, api.StateSynchronized)
		}
		n := fmt.Sprint(round)
		side.primary.Exec(t, database, sql(`INSERT INTO :name SELECT ':text' || i, i, ARRAY[':text'] FROM generate_series(10, 300) i; UPDATE :name SET n = n + 1, list = array_append(list, ':text'); DELETE FROM :name WHERE n % 3 = 0;
			UPDATE :name SET :name = :name || '.`+n+`'; INSERT INTO loose VALUES (':text`+n+`', ':text'), (NULL, ':text'); UPDATE loose SET c = ':text' || `+n+`; DELETE FROM loose WHERE v = ':text'`),
			sql(`CREATE TABLE ":text`+n+`" (m mood DEFAULT ':text', :name text DEFAULT ':text'); INSERT INTO ":text`+n+`" DEFAULT VALUES`), sql(`ALTER TABLE loose ADD ":text`+n+`" text DEFAULT ':text'`),
			sql(`DELETE FROM :name`))
		alike(t, side.primary, side.secondary, database)
		same(t, side.primary, side.secondary, database)
	}
	if got := testpg.Rows(t, a.Connect(t, database), `SELECT DISTINCT m FROM "`+name+`0"`); len(got) != 1 || got[0] != text {
		t.Errorf("the value became %q", got)
	}
}

// TestAnyBytes links a database in SQL_ASCII, which takes any bytes: rows are carried with
// them, by the copy and by the stream, in both directions. Validation warns of definitions
// that hold such bytes; the link stops at one that comes later, and says what to do.
func TestAnyBytes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE DATABASE shop ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0`)
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}
	findings, err := a.ValidateLink(ctx, spec)
	if err != nil || !slices.ContainsFunc(findings, func(p *problem.Problem) bool { return p.Code == "encoding-unchecked" }) {
		t.Errorf("findings %v, %v", findings, err)
	}
	odd := func(n int) string { return fmt.Sprintf(`convert_from('\xff41%02xe9', 'SQL_ASCII')`, 0x40+n) }
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY, v text, list text[]); INSERT INTO t VALUES (1, 'größe', NULL), (2, `+odd(1)+`, ARRAY[`+odd(2)+`, 'x'])`,
		`CREATE TABLE loose (v text, n int); INSERT INTO loose VALUES (`+odd(3)+`, 1), (`+odd(3)+`, 1); CREATE TABLE by_text (v text PRIMARY KEY, n int); INSERT INTO by_text VALUES (`+odd(4)+`, 1)`)
	if _, err := a.CreateLink(ctx, spec); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	alike(t, a, b, "shop")
	for round, side := range []struct{ primary, secondary *instance }{{a, b}, {b, a}} {
		if round > 0 {
			if _, err := side.primary.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
				t.Fatal(err)
			}
			side.secondary.awaitState(t, "shop", api.StateSynchronized)
		}
		side.primary.Exec(t, "shop", fmt.Sprintf(`INSERT INTO t SELECT 1000 * %[1]d + i, %[2]s || i, ARRAY[%[3]s] FROM generate_series(10, 300) i; UPDATE t SET v = v || %[2]s; DELETE FROM t WHERE id %% 7 = 0`, round+1, odd(5), odd(6)),
			`UPDATE loose SET n = n + 1 WHERE ctid = (SELECT min(ctid) FROM loose); UPDATE by_text SET v = v || `+odd(7)+`; UPDATE by_text SET n = n + 1; INSERT INTO by_text VALUES (`+odd(8+round)+`, 2)`,
			fmt.Sprintf(`CREATE TABLE größe%d (v text DEFAULT 'ä'); INSERT INTO größe%[1]d DEFAULT VALUES`, round))
		alike(t, side.primary, side.secondary, "shop")
		if err := side.secondary.ResyncLink(ctx, "shop", []string{"public.t", "public.loose"}); err != nil {
			t.Fatal(err)
		}
		side.secondary.awaitState(t, "shop", api.StateSynchronized)
		alike(t, side.primary, side.secondary, "shop")
	}
	b.Exec(t, "shop", `DO $$ BEGIN EXECUTE format('CREATE TABLE named (v text DEFAULT %L)', `+odd(9)+`); END $$`)
	_, remedy := a.awaitCause(t, api.StateSuspended, "ddl-not-utf8")
	if !strings.Contains(remedy, "hawser link drop shop") {
		t.Errorf("remedy %q", remedy)
	}
}
