-- A column of every type that PostgreSQL 14 has and that a table can hold.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'Very "happy"');
CREATE TYPE pair AS (a integer, b text);
CREATE DOMAIN small AS integer CHECK (VALUE < 1000);
CREATE DOMAIN word AS text;
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");

CREATE TABLE kinds (
	id integer PRIMARY KEY,
	c_smallint smallint, c_integer integer, c_bigint bigint, c_oid oid, c_xid xid, c_xid8 xid8, c_cid cid, c_tid tid,
	c_numeric numeric, c_numeric_scaled numeric(12, 4), c_real real, c_double double precision, c_money money,
	c_boolean boolean, c_char "char", c_bpchar character(12), c_varchar varchar(40), c_text text, c_name name, c_bytea bytea,
	c_date date, c_time time, c_timetz timetz, c_timestamp timestamp, c_timestamptz timestamptz, c_interval interval,
	c_bit bit(5), c_varbit varbit, c_uuid uuid, c_inet inet, c_cidr cidr, c_macaddr macaddr, c_macaddr8 macaddr8,
	c_json json, c_jsonb jsonb, c_jsonpath jsonpath, c_xml xml, c_tsvector tsvector, c_tsquery tsquery,
	c_point point, c_line line, c_lseg lseg, c_box box, c_path path, c_polygon polygon, c_circle circle,
	c_int4range int4range, c_numrange numrange, c_tstzrange tstzrange, c_daterange daterange, c_multirange int4multirange,
	c_regclass regclass, c_regtype regtype, c_regproc regproc, c_regrole regrole, c_lsn pg_lsn, c_snapshot pg_snapshot, c_txid txid_snapshot,
	c_mood mood, c_pair pair, c_small small, c_word word, c_textrange textrange,
	c_ints integer[], c_texts text[], c_nested numeric[][], c_moods mood[], c_pairs pair[], c_timestamps timestamptz[],
	"Odd ""name"" ünï" text, c_generated integer GENERATED ALWAYS AS (id * 2) STORED
);

INSERT INTO kinds VALUES
(1, -32768, 2147483647, -9223372036854775808, 4294967295, '123', '18446744073709551615', '7', '(42,7)',
 1234567890123456789012345678901234567890.000100, 1.5, 3.4028235e38, 0.1, 1234.56,
 true, 'x', 'padded', 'varchar', E'tab\tnewline\nback\\slash "quote" ünï 漢字 🐘', 'a name', '\x00ff10',
 '4713-01-01 BC', '23:59:59.999999', '12:00:00+05:30', '294276-12-31 23:59:59.999999', '2024-02-29 12:34:56.789+02', '1 year -2 mons 3 days -04:05:06.789',
 B'10101', B'1', '00000000-0000-4000-8000-000000000001', '10.1.2.3/8', '2001:db8::/32', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
 '{"b": 1,   "a": [1, 2.00, null], "a": "twice"}', '{"b": 1, "a": [1, 2.00, null], "a": "twice"}', 'strict $.a[*] ? (@ > 1)', '<a><b/>text &amp; more</a>', '''fat'':2 ''cat'':3A ''rat''', 'fat & (rat | !cat:*A)',
 '(0.1,-0)', '{1,2,3}', '[(0,0),(1,1)]', '(2,2),(1,1)', '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(0,0),1.5>',
 '[1,10)', '(1.5,]', '["2024-01-01 00:00+01","2024-06-01 00:00+02")', 'empty', '{[1,3),[5,7)}',
 'pg_class', 'timestamptz', 'now', 'postgres', 'AB/CDEF0123', '10:20:10,14,15', '10:20:10,14,15',
 'Very "happy"', '(1,"a ""b"", c")', 999, 'wörd', '[a,b)',
 '[2:4]={1,NULL,3}', '{"a b","","NULL",NULL,"\"q\""}', '{{1.0,2.00},{3.000,NaN}}', '{sad,"Very \"happy\""}', '{"(1,x)","(,)"}', '{"2024-02-29 12:00+02",infinity}',
 'odd', DEFAULT),
(2, 0, 0, 0, 0, '0', '0', '0', '(0,0)', 'NaN', -0.0, '-0', 'NaN', -0.01,
 false, '', '', '', '', '', '', 'infinity', '00:00', '24:00:00-15:59', '-infinity', 'infinity', '0',
 B'00000', B'', '00000000-0000-0000-0000-000000000000', '::1', '0.0.0.0/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00',
 '0', '{}', '$', '', '', '',
 '(NaN,Infinity)', '{0,1,0}', '[(0,0),(0,0)]', '(0,0),(0,0)', '((0,0))', '((0,0))', '<(0,0),0>',
 '(,)', '[0,0]', 'empty', '[2024-01-01,2024-01-02)', '{}',
 0, 0, 0, 0, '0/0', '1:1:', '1:1:',
 'sad', '(,)', 0, '', 'empty', '{}', '{}', '{}', '{}', '{}', '{}', '', DEFAULT),
(4, 1, 1, 1, 1, '1', '1', '1', '(1,1)', 1.0, 'NaN', '-Infinity', 5e-324, 0.01,
 NULL, '\\', ' x ', ' trailing  ', 'x ', 'x', '\\', '0001-01-01 BC', '12:00', '12:00+00', '2024-01-01', '0001-01-01 00:00+00 BC', '-178000000 years',
 B'11111', B'0101010101', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '255.255.255.255', '10.0.0.0/8', 'ff:ff:ff:ff:ff:ff', 'ff:ff:ff:ff:ff:ff:ff:ff',
 '  null ', '"\u00fc\ud83d\udc18"', '$.**', '<!-- c -->', '''a'':1,2,3B', '!a <-> b',
 '(1e300,1e-300)', '{0.1,0.2,0.3}', '[(1e10,1),(1,1)]', '(1.5,1),(0,0)', '[(0,0)]', '((0,0),(0,1))', '<(1,1),Infinity>',
 '[5,5]', '[NaN,NaN]', '[-infinity,infinity]', '(,2024-01-01)', '{(,)}',
 'pg_catalog.pg_proc', 'integer[]', 'pg_catalog.int4pl', 'pg_monitor', 'FFFFFFFF/FFFFFFFF', '1:2:1', '1:2:1',
 'ok', '(2147483647,)', -1, ' ', '(,)', '{1}', '{a}', '{1}', '{ok}', '{"(1,\"a,b\")"}', '{-infinity}', NULL, DEFAULT);
INSERT INTO kinds (id) VALUES (3); -- NULL everywhere
INSERT INTO kinds (id, c_double, c_real, c_numeric, c_text, c_bytea)
	SELECT i, sqrt(i), exp(i::double precision / 50)::real, sqrt(i::numeric), repeat('long ', i * i), decode(md5(i::text), 'hex') FROM generate_series(5, 200) i;
