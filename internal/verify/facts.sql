-- What a schema says, as (kind, object, text, deparsed), one row each: all that two
-- sides of a link have to agree on. It is left out what belongs to an extension,
-- what Hawser put there, what PostgreSQL numbers or names by itself (OIDs, positions
-- of columns, NOT NULL constraints of version 18), what a link sets differently
-- on its sides (replica identities, default_transaction_read_only), and settings that it
-- does not carry (libraries to be loaded). It runs on PostgreSQL 14 to 18 with an empty search_path. deparsed marks text that the server makes from
-- an expression, which reads differently in other major versions.
WITH
self AS MATERIALIZED (
	SELECT * FROM pg_database WHERE datname = current_database()
),
member AS MATERIALIZED (
	SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
),
ns AS MATERIALIZED (
	SELECT oid, nspname, nspowner, nspacl, quote_ident(nspname) AS name FROM pg_namespace
	WHERE nspname NOT IN ('hawser', 'pg_catalog', 'information_schema', 'pg_toast') AND nspname !~ '^pg_(toast_)?temp_'
	AND oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_namespace'::regclass)
),
rel AS MATERIALIZED (
	SELECT c.*, ns.name || '.' || quote_ident(c.relname) AS name,
	       CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'f' THEN 'foreign table' WHEN 'v' THEN 'view'
	            WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' WHEN 'c' THEN 'composite type' ELSE 'index' END AS kind
	FROM pg_class c JOIN ns ON ns.oid = c.relnamespace
	WHERE c.relkind <> 't' AND c.oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
),
typ AS MATERIALIZED (
	SELECT t.*, ns.name || '.' || quote_ident(t.typname) AS name FROM pg_type t JOIN ns ON ns.oid = t.typnamespace
	WHERE (t.typtype IN ('e', 'd', 'r') OR t.typtype = 'b' AND t.typelem = 0 OR t.typrelid IN (SELECT oid FROM rel WHERE relkind = 'c'))
	AND t.oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_type'::regclass)
),
fun AS MATERIALIZED (
	SELECT p.*, ns.name || '.' || quote_ident(p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS name
	FROM pg_proc p JOIN ns ON ns.oid = p.pronamespace
	WHERE p.oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_proc'::regclass)
),
own AS MATERIALIZED ( -- what Hawser put outside its schema
	SELECT 'pg_trigger'::regclass AS classid, t.oid AS objid FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE p.pronamespace = to_regnamespace('hawser')
	UNION ALL SELECT 'pg_event_trigger'::regclass, e.oid FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid WHERE p.pronamespace = to_regnamespace('hawser')
	UNION ALL SELECT 'pg_publication'::regclass, oid FROM pg_publication WHERE pubname ~ '^hawser_'
	UNION ALL SELECT d.classid, i.indexrelid FROM pg_index i JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
		JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid WHERE p.pronamespace = to_regnamespace('hawser')
),
named AS MATERIALIZED ( -- roles that the database names
	SELECT d.refobjid AS oid FROM pg_shdepend d JOIN pg_database b ON b.datname = current_database()
	WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid >= 16384 AND (d.dbid = b.oid OR d.dbid = 0 AND d.classid = 'pg_database'::regclass AND d.objid = b.oid)
	UNION SELECT s.setrole FROM pg_db_role_setting s JOIN pg_database b ON b.oid = s.setdatabase WHERE b.datname = current_database() AND s.setrole >= 16384
),
acl AS (
	SELECT 'schema ' || name AS object, coalesce(nspacl, acldefault('n', nspowner)) AS acl FROM ns
	UNION ALL
	SELECT kind || ' ' || name, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) FROM rel WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
	UNION ALL
	SELECT 'column ' || rel.name || '.' || quote_ident(a.attname), a.attacl FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
	UNION ALL
	SELECT 'function ' || name, coalesce(proacl, acldefault('f', proowner)) FROM fun
	UNION ALL
	SELECT 'type ' || name, coalesce(typacl, acldefault('T', typowner)) FROM typ WHERE typtype <> 'c'
	UNION ALL
	SELECT 'foreign-data wrapper ' || quote_ident(fdwname), coalesce(fdwacl, acldefault('F', fdwowner)) FROM pg_foreign_data_wrapper
	WHERE oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_foreign_data_wrapper'::regclass)
	UNION ALL
	SELECT 'server ' || quote_ident(srvname), coalesce(srvacl, acldefault('S', srvowner)) FROM pg_foreign_server
	WHERE oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_foreign_server'::regclass)
)

SELECT 'schema' AS kind, name AS object, 'owner ' || pg_get_userbyid(nspowner) AS text, false AS deparsed FROM ns

UNION ALL
SELECT 'relation', name, concat_ws(', ',
	kind, CASE relpersistence WHEN 'u' THEN 'unlogged' END, 'owner ' || pg_get_userbyid(relowner),
	CASE relkind WHEN 'p' THEN 'partition by ' || pg_get_partkeydef(oid) END,
	'partition ' || pg_get_expr(relpartbound, oid),
	'child of ' || (SELECT string_agg(i.inhparent::regclass::text, ', ' ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = rel.oid AND rel.relkind NOT IN ('i', 'I')),
	'of type ' || nullif(reloftype, 0)::regtype,
	'using ' || (SELECT amname FROM pg_am WHERE pg_am.oid = relam AND rel.relkind IN ('r', 'm')),
	CASE WHEN relrowsecurity THEN 'row security' END, CASE WHEN relforcerowsecurity THEN 'forced' END,
	'options ' || (SELECT string_agg(o, ' ' ORDER BY o) FROM unnest(reloptions) o),
	(SELECT 'server ' || s.srvname || ' ' || coalesce(array_to_string(f.ftoptions, ' '), '') FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = rel.oid)), false
FROM rel WHERE relkind NOT IN ('i', 'I')

UNION ALL
SELECT 'column', rel.name || '.' || quote_ident(a.attname), concat_ws(', ',
	format_type(a.atttypid, a.atttypmod),
	CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || a.attcollation::regcollation END,
	CASE WHEN a.attnotnull THEN 'not null' END,
	CASE a.attidentity WHEN 'a' THEN 'identity always' WHEN 'd' THEN 'identity by default' END,
	CASE a.attgenerated WHEN 's' THEN 'generated stored' WHEN 'v' THEN 'generated virtual' END,
	CASE WHEN a.attstorage <> t.typstorage THEN 'storage ' || a.attstorage::text END,
	CASE WHEN a.attcompression <> '' THEN 'compression ' || a.attcompression::text END,
	-- pg_attver is the server's own count of the column's changes (newer minor versions).
	'options ' || (SELECT string_agg(o, ' ' ORDER BY o) FROM unnest(a.attoptions) o WHERE o NOT LIKE 'pg|_attver=%' ESCAPE '|'),
	'foreign options ' || array_to_string(a.attfdwoptions, ' ')), false
FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid JOIN pg_type t ON t.oid = a.atttypid
WHERE rel.relkind IN ('r', 'p', 'f', 'v', 'm', 'c') AND a.attnum > 0 AND NOT a.attisdropped

UNION ALL
SELECT 'default', rel.name || '.' || quote_ident(a.attname), pg_get_expr(d.adbin, d.adrelid), true
FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum

UNION ALL
SELECT 'constraint', coalesce(rel.name, 'domain ' || typ.name) || '.' || quote_ident(k.conname), pg_get_constraintdef(k.oid), k.contype = 'c'
FROM pg_constraint k LEFT JOIN rel ON rel.oid = k.conrelid LEFT JOIN typ ON typ.oid = k.contypid
WHERE coalesce(rel.oid, typ.oid) IS NOT NULL AND k.contype IN ('p', 'u', 'x', 'c', 'f') AND k.conparentid = 0

UNION ALL
SELECT 'index', rel.name, pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ', invalid' END || CASE WHEN i.indisclustered THEN ', clustered' ELSE '' END,
	i.indpred IS NOT NULL OR i.indexprs IS NOT NULL
FROM pg_index i JOIN rel ON rel.oid = i.indexrelid
-- One that CREATE INDEX CONCURRENTLY left invalid holds nothing, and is not carried.
WHERE (i.indisvalid OR rel.relkind = 'I') AND i.indexrelid NOT IN (SELECT objid FROM own WHERE classid = 'pg_class'::regclass)

UNION ALL
SELECT 'view', name, pg_get_viewdef(oid), true FROM rel WHERE relkind IN ('v', 'm')
UNION ALL
SELECT 'materialized view', name, CASE WHEN relispopulated THEN 'populated' ELSE 'not populated' END, false FROM rel WHERE relkind = 'm'

UNION ALL
SELECT 'sequence', rel.name, concat_ws(', ', format_type(s.seqtypid, NULL), 'start ' || s.seqstart, 'increment ' || s.seqincrement, 'from ' || s.seqmin, 'to ' || s.seqmax,
	'cache ' || s.seqcache, CASE WHEN s.seqcycle THEN 'cycle' END,
	(SELECT 'owned by ' || d.refobjid::regclass || '.' || quote_ident(a.attname) FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
	 WHERE d.classid = 'pg_class'::regclass AND d.objid = rel.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0)), false
FROM rel JOIN pg_sequence s ON s.seqrelid = rel.oid

UNION ALL
SELECT 'type', name, concat_ws(', ',
	CASE typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain' WHEN 'r' THEN 'range' WHEN 'c' THEN 'composite' ELSE 'base' END, 'owner ' || pg_get_userbyid(typowner),
	(SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = typ.oid),
	CASE typtype WHEN 'd' THEN format_type(typbasetype, typtypmod) END, CASE WHEN typnotnull THEN 'not null' END,
	CASE typtype WHEN 'd' THEN 'default ' || typdefault END,
	(SELECT concat_ws(', ', format_type(r.rngsubtype, NULL), 'class ' || o.opcname, nullif(r.rngcollation, 0)::regcollation::text, nullif(r.rngcanonical, 0)::regproc::text, nullif(r.rngsubdiff, 0)::regproc::text)
	 FROM pg_range r JOIN pg_opclass o ON o.oid = r.rngsubopc WHERE r.rngtypid = typ.oid)), typtype = 'd'
FROM typ

UNION ALL
SELECT 'function', name, concat_ws(', ',
	CASE prokind WHEN 'f' THEN 'function' WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'window function' END,
	'owner ' || pg_get_userbyid(proowner), 'returns ' || pg_get_function_result(oid), 'language ' || (SELECT lanname FROM pg_language l WHERE l.oid = prolang),
	CASE provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' END, CASE WHEN proisstrict THEN 'strict' END, CASE WHEN prosecdef THEN 'security definer' END,
	CASE WHEN proleakproof THEN 'leakproof' END, CASE proparallel WHEN 's' THEN 'parallel safe' WHEN 'r' THEN 'parallel restricted' END,
	'cost ' || procost, CASE WHEN prorows > 0 THEN 'rows ' || prorows END, 'set ' || array_to_string(proconfig, ' '),
	(SELECT concat_ws(' ', a.aggtransfn, nullif(a.aggfinalfn, 0)::regproc, a.aggtranstype::regtype, a.agginitval, nullif(a.aggcombinefn, 0)::regproc, nullif(a.aggmtransfn, 0)::regproc) FROM pg_aggregate a WHERE a.aggfnoid = fun.oid),
	'body ' || encode(sha256(convert_to(coalesce(prosrc, ''), 'UTF8')), 'hex')), false
FROM fun
UNION ALL
SELECT 'function body', name, pg_get_function_sqlbody(oid), true FROM fun WHERE prosqlbody IS NOT NULL
UNION ALL
SELECT 'function arguments', name, pg_get_function_arguments(oid), proargdefaults IS NOT NULL FROM fun WHERE prokind <> 'a'

UNION ALL
-- ALWAYS and REPLICA are silenced on a secondary, and can't be told from ORIGIN and DISABLE there.
SELECT 'trigger', rel.name || '.' || quote_ident(t.tgname), pg_get_triggerdef(t.oid) || CASE WHEN t.tgenabled IN ('O', 'A') THEN '' ELSE ', disabled' END, t.tgqual IS NOT NULL
FROM pg_trigger t JOIN rel ON rel.oid = t.tgrelid WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.oid NOT IN (SELECT objid FROM own WHERE classid = 'pg_trigger'::regclass)
UNION ALL
SELECT 'event trigger', quote_ident(evtname), concat_ws(', ', evtevent, array_to_string(evttags, ' '), evtfoid::regproc, CASE WHEN evtenabled NOT IN ('O', 'A') THEN 'disabled' END), false
FROM pg_event_trigger WHERE ('pg_event_trigger'::regclass, oid) NOT IN (SELECT classid, objid FROM member UNION ALL SELECT classid, objid FROM own)

UNION ALL
SELECT 'publication', quote_ident(pubname), concat_ws(', ', 'owner ' || pg_get_userbyid(pubowner), CASE WHEN puballtables THEN 'all tables' END,
	'insert ' || pubinsert, 'update ' || pubupdate, 'delete ' || pubdelete, 'truncate ' || pubtruncate, 'via root ' || pubviaroot,
	(SELECT string_agg(r.prrelid::regclass::text, ' ' ORDER BY r.prrelid::regclass::text) FROM pg_publication_rel r WHERE r.prpubid = p.oid)), false
FROM pg_publication p WHERE oid NOT IN (SELECT objid FROM own WHERE classid = 'pg_publication'::regclass)

UNION ALL
SELECT 'policy', rel.name || '.' || quote_ident(p.polname), concat_ws(', ', CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END, 'for ' || p.polcmd::text,
	'to ' || (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(r) END, ', ' ORDER BY pg_get_userbyid(r)) FROM unnest(p.polroles) r),
	'using ' || pg_get_expr(p.polqual, p.polrelid), 'check ' || pg_get_expr(p.polwithcheck, p.polrelid)), true
FROM pg_policy p JOIN rel ON rel.oid = p.polrelid

UNION ALL
SELECT 'rule', rel.name || '.' || quote_ident(r.rulename), pg_get_ruledef(r.oid) || CASE WHEN r.ev_enabled IN ('O', 'A') THEN '' ELSE ', disabled' END, true
FROM pg_rewrite r JOIN rel ON rel.oid = r.ev_class WHERE r.rulename <> '_RETURN'

UNION ALL
SELECT 'statistics', ns.name || '.' || quote_ident(s.stxname), pg_get_statisticsobjdef(s.oid), true FROM pg_statistic_ext s JOIN ns ON ns.oid = s.stxnamespace

UNION ALL
SELECT 'extension', quote_ident(extname), 'schema ' || extnamespace::regnamespace, false FROM pg_extension

UNION ALL
SELECT 'server', quote_ident(s.srvname), concat_ws(', ', w.fdwname, s.srvtype, s.srvversion, 'owner ' || pg_get_userbyid(s.srvowner)), false
FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE s.oid NOT IN (SELECT objid FROM member WHERE classid = 'pg_foreign_server'::regclass)

-- Of what is left it matters that it is there.
UNION ALL
SELECT i.type, i.identity, 'there', false
FROM (
	SELECT 'pg_operator'::regclass AS class, oid, oprnamespace AS ns FROM pg_operator
	UNION ALL SELECT 'pg_opclass'::regclass, oid, opcnamespace FROM pg_opclass
	UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfnamespace FROM pg_opfamily
	UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace FROM pg_collation
	UNION ALL SELECT 'pg_conversion'::regclass, oid, connamespace FROM pg_conversion
	UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace FROM pg_ts_config
	UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace FROM pg_ts_dict
	UNION ALL SELECT 'pg_ts_parser'::regclass, oid, prsnamespace FROM pg_ts_parser
	UNION ALL SELECT 'pg_ts_template'::regclass, oid, tmplnamespace FROM pg_ts_template
	UNION ALL SELECT 'pg_cast'::regclass, oid, NULL FROM pg_cast
	UNION ALL SELECT 'pg_transform'::regclass, oid, NULL FROM pg_transform
	UNION ALL SELECT 'pg_am'::regclass, oid, NULL FROM pg_am
	UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, NULL FROM pg_foreign_data_wrapper
	UNION ALL SELECT 'pg_user_mapping'::regclass, oid, NULL FROM pg_user_mapping
) o CROSS JOIN pg_identify_object(o.class, o.oid, 0) i
WHERE o.oid >= 16384 AND (o.ns IS NULL OR o.ns IN (SELECT oid FROM ns)) AND (o.class, o.oid) NOT IN (SELECT classid, objid FROM member)

UNION ALL
SELECT 'comment', i.type || ' ' || i.identity, d.description, false
FROM pg_description d CROSS JOIN pg_identify_object(d.classoid, d.objoid, d.objsubid) i
WHERE d.objoid >= 16384 AND (d.classoid, d.objoid) NOT IN (SELECT classid, objid FROM member UNION ALL SELECT classid, objid FROM own)
AND i.schema IS DISTINCT FROM 'hawser' AND i.identity <> 'hawser' AND i.type NOT IN ('extension', 'large object') -- what is not carried is named elsewhere

UNION ALL
SELECT 'grant', acl.object || ' to ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
	string_agg(DISTINCT a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ', '), false
FROM acl CROSS JOIN aclexplode(acl.acl) a GROUP BY acl.object, a.grantee
UNION ALL
SELECT 'default privileges', quote_ident(pg_get_userbyid(d.defaclrole)) || coalesce(' in ' || ns.name, '') || ' for ' || d.defaclobjtype::text || ' to ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
	string_agg(DISTINCT a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ', '), false
FROM pg_default_acl d LEFT JOIN ns ON ns.oid = d.defaclnamespace CROSS JOIN aclexplode(d.defaclacl) a
WHERE d.defaclnamespace = 0 OR ns.oid IS NOT NULL
GROUP BY d.defaclrole, ns.name, d.defaclobjtype, a.grantee

-- The database itself, whatever its name. Its owner's own privileges are left out: they go with it.
UNION ALL
SELECT 'database', v.name, v.value, false
FROM self, LATERAL (VALUES ('owner', pg_get_userbyid(datdba)::text), ('comment', shobj_description(oid, 'pg_database')), ('connection limit', datconnlimit::text)) v(name, value)
WHERE v.value IS NOT NULL
UNION ALL
SELECT 'setting', split_part(c, '=', 1) || CASE s.setrole WHEN 0 THEN '' ELSE ' of role ' || quote_ident(pg_get_userbyid(s.setrole)) END, substr(c, strpos(c, '=') + 1), false
FROM self JOIN pg_db_role_setting s ON s.setdatabase = self.oid, unnest(s.setconfig) c
WHERE split_part(c, '=', 1) <> 'default_transaction_read_only' AND c NOT LIKE 'hawser.%' AND split_part(c, '=', 1) NOT LIKE '%preload_libraries'
UNION ALL
SELECT 'grant', 'database to ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
	string_agg(DISTINCT a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ', '), false
FROM self CROSS JOIN aclexplode(coalesce(datacl, acldefault('d', datdba))) a WHERE a.grantee <> datdba GROUP BY a.grantee

-- Memberships of roles that the database names, as the commands that make them.
UNION ALL
SELECT 'role membership', quote_ident(u.rolname) || ' in ' || quote_ident(g.rolname),
	'GRANT ' || quote_ident(g.rolname) || ' TO ' || quote_ident(u.rolname) || CASE WHEN bool_or(m.admin_option) THEN ' WITH ADMIN OPTION' ELSE '' END, false
FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
WHERE m.roleid IN (SELECT oid FROM named) AND m.member IN (SELECT oid FROM named)
GROUP BY g.rolname, u.rolname
