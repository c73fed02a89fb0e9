-- What Hawser puts into a linked database to see its DDL. InstallDDL runs this as
-- one transaction, in a session whose own DDL fires no event trigger.
--
-- Rules for whoever edits it: raise ddlVersion with every change. The functions
-- run inside users' DDL, so they use nothing but pg_catalog, do not depend on the
-- user's settings (no backslash in a plain literal, no cast of a date to text), and
-- turn an error of their own into a message, since a failing event trigger would
-- fail the user's command. All are PL/pgSQL, which keeps its plans. Those that are
-- called from outside pin the search_path, for the others too.

CREATE TABLE IF NOT EXISTS hawser.ddl_capture (
	one     boolean PRIMARY KEY DEFAULT true CHECK (one),
	version integer NOT NULL,
	-- Anybody may write a logical message, so ours are signed: HMAC-SHA256, with the
	-- key's two padded forms kept ready.
	key     bytea NOT NULL,
	ipad    bytea NOT NULL,
	opad    bytea NOT NULL
);
REVOKE ALL ON hawser.ddl_capture FROM PUBLIC;

-- What fires no event trigger, as hawser.ddl_sweep last saw it. Unlogged: it need not be
-- in the stream, and is filled anew after a crash.
CREATE UNLOGGED TABLE IF NOT EXISTS hawser.ddl_seen (
	kind  text NOT NULL,
	class oid NOT NULL,
	id    oid NOT NULL,
	name  text NOT NULL,
	value text,
	PRIMARY KEY (kind, class, id, name)
);

-- Rows that are gone at once: see hawser.ddl_write. Unlogged, so that they are in no stream.
CREATE UNLOGGED TABLE IF NOT EXISTS hawser.ddl_mark (one boolean);
REVOKE ALL ON hawser.ddl_mark FROM PUBLIC;

-- How each link chooses its tables; one that has no row here, or carries the whole
-- database, publishes all of them. The patterns are SQL's, of schema and table.
CREATE TABLE IF NOT EXISTS hawser.ddl_filter (
	link       text PRIMARY KEY,
	whole      boolean NOT NULL,
	in_schema  text[] NOT NULL,
	in_table   text[] NOT NULL,
	out_schema text[] NOT NULL,
	out_table  text[] NOT NULL
);

-- Before this, InstallDDL makes hawser.replica_identity: the tables whose replica
-- identity Hawser changed, and what it was.

-- hawser.ddl_caller leaves the user and search_path of the command for the trigger
-- after it, which runs as another user under another path. It names no object of
-- schema hawser, on which the user may have no right.
CREATE OR REPLACE FUNCTION hawser.ddl_caller() RETURNS event_trigger
LANGUAGE plpgsql AS $f$
BEGIN
	IF pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica'
	AND pg_catalog.current_setting('hawser.agent', true) OPERATOR(pg_catalog.=) ANY (ARRAY['on', 'fills']) THEN
		RETURN; -- as hawser.ddl_agent
	END IF;
	PERFORM pg_catalog.set_config('hawser.ddl_caller', pg_catalog.json_build_object(
		'role', current_user, 'path', pg_catalog.current_setting('search_path'),
		'schema', pg_catalog.current_schema())::pg_catalog.text, true);
END $f$;

-- hawser.ddl_agent knows the agents' own commands. The triggers are ENABLE ALWAYS, for a
-- user's session with triggers at rest, as a restore's, has commands for the other side
-- too; so they fire for an applier and for what Hawser keeps here.
CREATE OR REPLACE FUNCTION hawser.ddl_agent() RETURNS boolean
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN current_setting('session_replication_role') = 'replica' AND coalesce(current_setting('hawser.agent', true), '') IN ('on', 'fills');
END $f$;

-- hawser.ddl_stack is PG_CONTEXT without the trigger function's own line. It is
-- empty for a command that the client sent itself.
CREATE OR REPLACE FUNCTION hawser.ddl_stack(context text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $f$
BEGIN
	RETURN (SELECT CASE strpos(context, chr(10)) WHEN 0 THEN '' ELSE substr(context, strpos(context, chr(10)) + 1) END);
END $f$;

-- hawser.ddl_bytes is a text in UTF-8. A database in SQL_ASCII has text that is in no
-- encoding, and lets nobody convert it: it travels as it is.
CREATE OR REPLACE FUNCTION hawser.ddl_bytes(words text) RETURNS bytea
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN convert_to(words, CASE current_setting('server_encoding') WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END);
END $f$;

-- The state between the events of one command and between the commands of one
-- transaction, kept in a setting so that it is rolled back with them:
--   ext      depth of CREATE and ALTER EXTENSION; what their scripts do is not the user's DDL
--   pending  by stack: what sql_drop and table_rewrite saw of the command that is under way
--   sent     the long texts that a message of this transaction already holds
--   inner    the last stack and how many commands it fired
--   making   how many commands are under way that make a relation and may run another command:
--            from a query, or from a function in a partition's bound
--
-- Any user may set a setting, so what it holds is signed: for its transaction, or its
-- session. What bears no such signature counts as nothing.
CREATE OR REPLACE FUNCTION hawser.ddl_signature(kept text) RETURNS text
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN (SELECT encode(sha256(k.key || sha256(k.key || hawser.ddl_bytes(kept))), 'hex')
		FROM (SELECT sha256(c.key || convert_to('setting', 'UTF8')) AS key FROM hawser.ddl_capture c) k); -- not that of messages
END $f$;

CREATE OR REPLACE FUNCTION hawser.ddl_state() RETURNS jsonb
LANGUAGE plpgsql AS $f$
DECLARE
	kept text := current_setting('hawser.ddl_state', true);
BEGIN
	IF coalesce(kept, '') = '' OR left(kept, 64) <> hawser.ddl_signature(pg_current_xact_id()::text || substr(kept, 65)) THEN
		RETURN '{}';
	END IF;
	RETURN substr(kept, 65)::jsonb;
END $f$;

CREATE OR REPLACE FUNCTION hawser.ddl_keep(state jsonb) RETURNS void
LANGUAGE plpgsql AS $f$
BEGIN
	PERFORM set_config('hawser.ddl_state', hawser.ddl_signature(pg_current_xact_id()::text || state::text) || state::text, true);
END $f$;

-- hawser.ddl_order counts the commands that one text fired so far, the one at hand
-- not included. Together with the text it tells which statement of it fired. The
-- count of the client's own string outlives its transactions, as the string does.
CREATE OR REPLACE FUNCTION hawser.ddl_order(stack text, add integer) RETURNS integer
LANGUAGE plpgsql AS $f$
DECLARE
	mark  text := (extract(epoch FROM statement_timestamp()) * 1000000)::bigint::text;
	state jsonb;
	kept  text;
	n     integer := 0;
BEGIN
	IF stack = '' THEN
		mark := mark || ':' || pg_backend_pid() || ':';
		kept := current_setting('hawser.ddl_order', true);
		IF starts_with(substr(kept, 65), mark) AND left(kept, 64) = hawser.ddl_signature(substr(kept, 65)) THEN
			n := substr(kept, 65 + length(mark))::integer;
		END IF;
		IF add > 0 THEN
			PERFORM set_config('hawser.ddl_order', hawser.ddl_signature(mark || (n + add)) || mark || (n + add), false);
		END IF;
		RETURN n;
	END IF;
	mark := mark || md5(stack);
	state := hawser.ddl_state();
	IF state #>> '{inner,of}' = mark THEN
		n := (state #>> '{inner,n}')::integer;
	END IF;
	IF add > 0 THEN
		PERFORM hawser.ddl_keep(state || jsonb_build_object('inner', jsonb_build_object('of', mark, 'n', n + add)));
	END IF;
	RETURN n;
END $f$;

-- hawser.ddl_write signs and writes one message. The bytes are UTF-8 whatever the
-- database's encoding is.
--
-- It begins with the transaction, top-level or not, that writes it, as only a row's xmin
-- tells. What is streamed before its commit is taken back by subtransactions, and the
-- server tells the other side which of them wrote a row, but not which wrote a message.
--
-- An empty message follows. Decoding orders the changes of a transaction and its
-- subtransactions by their LSN, and takes for a message's LSN the end of its record,
-- which is the start of the next. When the two are of different subtransactions it
-- may put the next, a row perhaps, before the message. It may do so with the empty one.
CREATE OR REPLACE FUNCTION hawser.ddl_write(message json) RETURNS void
LANGUAGE plpgsql AS $f$
DECLARE
	writer xid;
	place  tid;
	body   bytea;
	mac    bytea;
BEGIN
	INSERT INTO hawser.ddl_mark VALUES (true) RETURNING xmin, ctid INTO STRICT writer, place;
	DELETE FROM hawser.ddl_mark WHERE ctid = place;
	body := hawser.ddl_bytes(format('{"by":%s,', writer) || substr(json_strip_nulls(message)::text, 2));
	SELECT sha256(c.opad || sha256(c.ipad || body)) INTO STRICT mac FROM hawser.ddl_capture c;
	PERFORM pg_logical_emit_message(true, 'hawser.ddl', convert_to(encode(mac, 'hex'), 'UTF8') || body);
	PERFORM pg_logical_emit_message(true, 'hawser.ddl', ''::text);
END $f$;

-- hawser.ddl_failed tells the other side that a command was not captured, since
-- neither may it be lost in silence nor may the user's command fail.
CREATE OR REPLACE FUNCTION hawser.ddl_failed(tag text, stack text, cause text) RETURNS void
LANGUAGE plpgsql AS $f$
BEGIN
	PERFORM hawser.ddl_write(json_build_object('v', 1, 'tag', tag, 'error', cause,
		'source', left(CASE stack WHEN '' THEN current_query() ELSE stack END, 100000)));
END $f$;

-- hawser.ddl_relation is the relation that an object is or belongs to, 0 if none.
CREATE OR REPLACE FUNCTION hawser.ddl_relation(class oid, object oid) RETURNS oid
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN coalesce(CASE class
		WHEN 'pg_class'::regclass THEN coalesce((SELECT i.indrelid FROM pg_index i WHERE i.indexrelid = object), object)
		WHEN 'pg_trigger'::regclass THEN (SELECT t.tgrelid FROM pg_trigger t WHERE t.oid = object)
		WHEN 'pg_constraint'::regclass THEN (SELECT c.conrelid FROM pg_constraint c WHERE c.oid = object)
		WHEN 'pg_rewrite'::regclass THEN (SELECT r.ev_class FROM pg_rewrite r WHERE r.oid = object)
		WHEN 'pg_policy'::regclass THEN (SELECT p.polrelid FROM pg_policy p WHERE p.oid = object)
		WHEN 'pg_attrdef'::regclass THEN (SELECT d.adrelid FROM pg_attrdef d WHERE d.oid = object)
		WHEN 'pg_statistic_ext'::regclass THEN (SELECT s.stxrelid FROM pg_statistic_ext s WHERE s.oid = object)
	END, 0::oid);
END $f$;

-- hawser.ddl_tables describes relations for what their statement's text alone does
-- not tell: the columns of CREATE TABLE AS, the value that a default gave to rows
-- that were there before.
CREATE OR REPLACE FUNCTION hawser.ddl_tables(relids oid[], whole boolean) RETURNS json
LANGUAGE plpgsql AS $f$
DECLARE
	tables json[] := '{}';
	id     oid;
	r      record;
BEGIN
	FOREACH id IN ARRAY relids LOOP
		SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.reloptions, c.relam, c.reltablespace
		INTO r FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = id AND c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't';
		CONTINUE WHEN NOT FOUND;
		tables := tables || json_build_object(
			'oid', id::bigint, 'schema', r.nspname, 'name', r.relname, 'kind', r.relkind, 'persistence', r.relpersistence,
			'method', CASE WHEN whole THEN (SELECT a.amname FROM pg_am a WHERE a.oid = r.relam) END,
			'options', CASE WHEN whole THEN array_to_json(r.reloptions) END,
			'tablespace', CASE WHEN whole THEN (SELECT t.spcname FROM pg_tablespace t WHERE t.oid = r.reltablespace) END,
			'server', CASE WHEN r.relkind = 'f' THEN (SELECT s.srvname FROM pg_foreign_table f
				JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = id) END,
			'server_options', CASE WHEN r.relkind = 'f' THEN (SELECT array_to_json(f.ftoptions) FROM pg_foreign_table f WHERE f.ftrelid = id) END,
			'rows', CASE WHEN r.relkind = 'r' AND NOT whole THEN nullif(pg_relation_size(id), 0) > 0 END,
			'constraints', CASE WHEN whole THEN (SELECT json_agg(format('CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.oid)
				FROM pg_constraint k WHERE k.conrelid = id AND k.contype IN ('c', 'p', 'u', 'x', 'f')) END,
			'indexes', CASE WHEN whole THEN (SELECT json_agg(pg_get_indexdef(i.indexrelid) ORDER BY i.indexrelid)
				FROM pg_index i WHERE i.indrelid = id AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)) END,
			'columns', hawser.ddl_columns(id, r.relkind, whole));
	END LOOP;
	RETURN array_to_json(tables);
END $f$;

-- hawser.ddl_untold tells whether a relation came without an event, as by EXPLAIN ANALYZE
-- of CREATE TABLE AS, and has not been told yet. (After a crash all are untold for a while.)
CREATE OR REPLACE FUNCTION hawser.ddl_untold(relation oid) RETURNS boolean
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN NOT EXISTS (SELECT FROM hawser.ddl_seen s WHERE s.kind = 'owner' AND s.class = 'pg_class'::regclass AND s.id = relation);
END $f$;

-- hawser.ddl_path is the search_path under which the query of a view that is untold was
-- most likely written: that of the command at hand where its transaction made the view, or
-- that of its owner's sessions. What the query calls may name things without their schema.
CREATE OR REPLACE FUNCTION hawser.ddl_path(view oid, owner oid) RETURNS text
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN coalesce(
		CASE WHEN EXISTS (SELECT FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.relation = view AND l.mode = 'AccessExclusiveLock'
				AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
			THEN nullif(current_setting('hawser.ddl_caller', true), '')::json ->> 'path' END,
		(SELECT substr(c, strpos(c, '=') + 1) FROM pg_db_role_setting s, unnest(s.setconfig) c
			WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
			AND s.setrole IN (0, owner) AND c LIKE 'search_path=_%'
			ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1),
		'"$user", public');
END $f$;

-- hawser.ddl_made is what makes a relation that is untold: a table or materialized view
-- that stands by itself. NULL for any other.
CREATE OR REPLACE FUNCTION hawser.ddl_made(relation oid) RETURNS json
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN (SELECT json_build_object(
			'oid', c.oid::bigint, 'superuser', (SELECT u.rolsuper FROM pg_roles u WHERE u.oid = c.relowner),
			'table', CASE c.relkind WHEN 'r' THEN hawser.ddl_tables(ARRAY[c.oid], true) -> 0 END,
			'view', CASE c.relkind WHEN 'm' THEN format('CREATE MATERIALIZED VIEW %I.%I%s AS %s WITH NO DATA', n.nspname, c.relname,
				' WITH (' || array_to_string(c.reloptions, ', ') || ')', rtrim(pg_get_viewdef(c.oid), ';')) END,
			'name', CASE c.relkind WHEN 'm' THEN format('%I.%I', n.nspname, c.relname) END,
			'path', CASE c.relkind WHEN 'm' THEN hawser.ddl_path(c.oid, c.relowner) END,
			'filled', CASE WHEN c.relkind = 'm' AND c.relispopulated THEN true END)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = relation AND c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND n.nspname <> 'hawser'
		AND c.relname !~ '^pg_temp_[0-9]+$' AND hawser.ddl_untold(c.oid) -- a command that rewrites has the like for a while
		AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid)
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'));
END $f$;

-- hawser.ddl_stand_in is what stands for a materialized view that the server itself can't
-- define: one of a trigger's transition table, which minor versions refuse that are newer.
CREATE OR REPLACE FUNCTION hawser.ddl_stand_in(view oid) RETURNS text
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	PERFORM pg_get_viewdef(view);
	RETURN NULL;
EXCEPTION WHEN internal_error THEN
	RETURN (SELECT format('CREATE MATERIALIZED VIEW %s AS SELECT %s WITH NO DATA', view::regclass,
			string_agg(format('NULL::%s AS %I', format_type(a.atttypid, a.atttypmod), a.attname), ', ' ORDER BY a.attnum))
		FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0 AND NOT a.attisdropped);
END $f$;

-- hawser.ddl_looked tells up to which OID a look at the relations need not be repeated,
-- now that one was made. kept is what it returned of the look before. OIDs grow, so what is
-- made later is beyond; what an open transaction made may not be, and is seen when that
-- has ended. (When they begin anew with small ones, the full sweeps find what is untold.)
CREATE OR REPLACE FUNCTION hawser.ddl_looked(kept text) RETURNS text
LANGUAGE plpgsql STABLE AS $f$
DECLARE
	upto oid[] := string_to_array(split_part(kept, ' ', 1), ',')::oid[]; -- settled, and what is when the transactions before end
	stop xid8  := nullif(split_part(kept, ' ', 2), '')::xid8;
	snap pg_snapshot := pg_current_snapshot();
	newest oid := (SELECT max(c.oid) FROM pg_class c);
BEGIN
	IF upto = ARRAY[newest, newest] THEN
		RETURN kept; -- nothing is to be settled, whoever still runs
	END IF;
	IF stop > (SELECT x FROM pg_snapshot_xip(snap) x WHERE x IS DISTINCT FROM pg_current_xact_id_if_assigned() ORDER BY x LIMIT 1) THEN
		RETURN kept;
	END IF;
	RETURN format('%s,%s %s', coalesce(upto[2], 0), newest, pg_snapshot_xmax(snap));
END $f$;

-- hawser.ddl_tell tells the other side of the relations beyond an OID that came without
-- an event, and returns how many there are. NULL: all, for the sweep. What others made is
-- theirs: a user's command tells of it, but leaves it to the sweep to lock it and to keep
-- that it was told, so that no transaction waits for another. It may be told several times.
CREATE OR REPLACE FUNCTION hawser.ddl_tell(beyond oid) RETURNS integer
LANGUAGE plpgsql SET enable_seqscan = off SET lock_timeout = '1s' AS $f$
DECLARE
	made    oid[] := '{}';
	mine    oid[];
	changes json[] := '{}';
	id      oid;
	change  json;
BEGIN
	FOR id IN SELECT c.oid FROM pg_class c WHERE c.oid > coalesce(beyond, 0) AND c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND c.oid >= 16384
		AND NOT EXISTS (SELECT FROM hawser.ddl_seen s WHERE s.kind = 'owner' AND s.class = 'pg_class'::regclass AND s.id = c.oid) ORDER BY c.oid
	LOOP
		BEGIN
			SELECT json_build_object('kind', 'owner', 'value', pg_get_userbyid(c.relowner), 'type', i.type, 'identity', i.identity, 'made', m)
			INTO change FROM pg_class c, pg_identify_object('pg_class'::regclass, c.oid, 0) i, hawser.ddl_made(c.oid) m WHERE c.oid = id AND m IS NOT NULL;
			IF FOUND THEN
				made := made || id;
				changes := changes || change;
			END IF;
		EXCEPTION WHEN internal_error OR lock_not_available THEN
			NULL; -- it is being dropped, or what it reads is locked
		END;
	END LOOP;
	IF made = '{}' THEN
		RETURN 0;
	END IF;
	mine := made;
	IF beyond IS NOT NULL THEN
		mine := ARRAY(SELECT DISTINCT l.relation FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.relation = ANY (made)
			AND l.mode = 'AccessExclusiveLock' AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()));
	END IF;
	PERFORM hawser.ddl_write(json_build_object('v', 1, 'changes', array_to_json(changes), 'identity', hawser.keep_identity(mine)));
	IF pg_try_advisory_xact_lock(hashtext('hawser.ddl_tell')) THEN -- the sweep is not at it
		BEGIN
			INSERT INTO hawser.ddl_seen SELECT 'owner', 'pg_class'::regclass, c.oid, '', pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = ANY (mine);
		EXCEPTION WHEN unique_violation THEN
			NULL; -- it was, since this command's snapshot
		END;
	END IF;
	RETURN cardinality(made);
END $f$;

-- hawser.ddl_begun tells the other side of the schemas whose CREATE SCHEMA is under way,
-- before a command that runs inside of it and may speak of them.
CREATE OR REPLACE FUNCTION hawser.ddl_begun() RETURNS void
LANGUAGE plpgsql AS $f$
DECLARE
	changes json;
BEGIN
	SELECT json_agg(json_build_object('kind', 'owner', 'value', u.rolname, 'type', 'schema', 'identity', quote_ident(n.nspname),
		'made', json_build_object('superuser', u.rolsuper, 'schema', n.nspname)))
	INTO changes FROM pg_namespace n JOIN pg_roles u ON u.oid = n.nspowner
	WHERE n.oid >= 16384 AND n.nspname <> 'hawser' AND n.nspname NOT LIKE 'pg|_%' ESCAPE '|'
	AND EXISTS (SELECT FROM hawser.ddl_seen s WHERE s.kind = 'owner')
	AND NOT EXISTS (SELECT FROM hawser.ddl_seen s WHERE s.kind = 'owner' AND s.class = 'pg_namespace'::regclass AND s.id = n.oid);
	IF changes IS NOT NULL THEN
		PERFORM hawser.ddl_write(json_build_object('v', 1, 'changes', changes));
	END IF;
END $f$;

-- hawser.ddl_unfinished tells whether an index is one that CREATE INDEX CONCURRENTLY left
-- invalid. The other side does not have it.
CREATE OR REPLACE FUNCTION hawser.ddl_unfinished(index oid) RETURNS boolean
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indexrelid = index AND NOT i.indisvalid AND c.relkind = 'i');
END $f$;

-- hawser.ddl_index describes an index with its place in the tree that it is part of.
CREATE OR REPLACE FUNCTION hawser.ddl_index(index oid) RETURNS json
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN (SELECT json_build_object('schema', n.nspname, 'name', c.relname, 'table', t.relname,
			'def', CASE WHEN NOT hawser.ddl_unfinished(index) THEN pg_get_indexdef(index) END, 'comment', obj_description(index, 'pg_class'),
			'parent', (SELECT h.inhparent::regclass FROM pg_inherits h WHERE h.inhrelid = index),
			'invalid', (SELECT json_agg(a.relid::regclass) FROM pg_partition_ancestors(index) a JOIN pg_index j ON j.indexrelid = a.relid
				WHERE a.relid <> index AND NOT j.indisvalid))
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE i.indexrelid = index);
END $f$;

-- hawser.ddl_trees describes the indexes of partitioned tables where some partition has an
-- unfinished one: a command may have taken it for the partition's, or its name was taken.
-- Those named, or all.
CREATE OR REPLACE FUNCTION hawser.ddl_trees(relids oid[], indexes oid[]) RETURNS json
LANGUAGE plpgsql STABLE AS $f$
DECLARE
	id    oid;
	trees oid[] := '{}';
BEGIN
	FOR id IN SELECT c.oid FROM pg_class c WHERE c.oid = ANY (relids) AND c.relkind = 'p' LOOP
		IF EXISTS (SELECT FROM pg_partition_tree(id) p JOIN pg_index i ON i.indrelid = p.relid WHERE hawser.ddl_unfinished(i.indexrelid)) THEN
			trees := trees || ARRAY(SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = id AND (indexes IS NULL OR i.indexrelid = ANY (indexes)));
		END IF;
	END LOOP;
	RETURN (SELECT json_agg(hawser.ddl_index(p.relid) ORDER BY p.level, p.relid) FROM unnest(trees) t, pg_partition_tree(t) p);
END $f$;

-- hawser.ddl_numbered describes the indexes of tables of which one has a name that ends in a
-- number: the server adds one where a name is taken, perhaps by an unfinished index.
CREATE OR REPLACE FUNCTION hawser.ddl_numbered(relids oid[]) RETURNS json
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN (SELECT json_agg(hawser.ddl_index(i.indexrelid) ORDER BY i.indexrelid) FROM pg_index i
		WHERE i.indrelid IN (SELECT j.indrelid FROM pg_index j JOIN pg_class c ON c.oid = j.indexrelid WHERE j.indrelid = ANY (relids) AND c.relname ~ '[0-9]$'));
END $f$;

-- hawser.ddl_columns describes all columns, or those that have a default or a value
-- for older rows.
CREATE OR REPLACE FUNCTION hawser.ddl_columns(id oid, kind "char", whole boolean) RETURNS json
LANGUAGE plpgsql AS $f$
BEGIN
	RETURN (SELECT json_agg(json_build_object(
			'name', a.attname,
			'type', CASE WHEN whole THEN format_type(a.atttypid, a.atttypmod) END,
			'collation', CASE WHEN whole AND a.attcollation <> (SELECT t.typcollation FROM pg_type t WHERE t.oid = a.atttypid)
				THEN a.attcollation::regcollation::text END,
			'not_null', CASE WHEN whole AND a.attnotnull THEN true END,
			'default', CASE WHEN a.atthasdef AND a.attgenerated = '' THEN (
				SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = id AND d.adnum = a.attnum) END,
			'generated', CASE WHEN whole AND a.attgenerated = 's' THEN (
				SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = id AND d.adnum = a.attnum) END,
			'identity', CASE WHEN whole THEN nullif(a.attidentity, '') END,
			'missing', CASE
				WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1]
				WHEN kind = 'p' THEN (
					SELECT (b.attmissingval::text::text[])[1]
					FROM pg_partition_tree(id) p JOIN pg_attribute b ON b.attrelid = p.relid AND b.attname = a.attname
					WHERE b.atthasmissing LIMIT 1) END,
			'options', CASE WHEN whole THEN array_to_json(a.attfdwoptions) END) ORDER BY a.attnum)
		FROM pg_attribute a
		WHERE a.attrelid = id AND a.attnum > 0 AND NOT a.attisdropped AND (whole OR a.atthasmissing OR a.atthasdef));
END $f$;

-- hawser.ddl_settings are the settings that change what a statement means.
CREATE OR REPLACE FUNCTION hawser.ddl_settings() RETURNS json
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN (SELECT json_object_agg(s, current_setting(s, true)) FROM unnest(ARRAY[
		'DateStyle', 'IntervalStyle', 'TimeZone', 'timezone_abbreviations', 'bytea_output', 'extra_float_digits',
		'xmlbinary', 'xmloption', 'default_text_search_config', 'lc_monetary', 'lc_numeric', 'lc_time',
		'standard_conforming_strings', 'backslash_quote', 'transform_null_equals', 'array_nulls', 'quote_all_identifiers',
		'default_tablespace', 'default_table_access_method', 'default_toast_compression']) s
	WHERE current_setting(s, true) IS NOT NULL);
END $f$;

-- hawser.ddl_published tells whether some link publishes a table, or would if its
-- publication were there already.
CREATE OR REPLACE FUNCTION hawser.ddl_published(id oid) RETURNS boolean
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN NOT EXISTS (SELECT FROM hawser.ddl_filter)
		OR EXISTS (SELECT FROM hawser.ddl_filter f WHERE f.whole)
		OR EXISTS (SELECT FROM pg_publication p WHERE p.pubname LIKE 'hawser|_%' ESCAPE '|' AND (p.puballtables
			OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = id)));
END $f$;

-- hawser.ddl_publish alters a link's publication. No event trigger hears of it.
CREATE OR REPLACE FUNCTION hawser.ddl_publish(publication text, verb text, relation text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET session_replication_role = replica SET hawser.agent = 'on' AS $f$
BEGIN
	EXECUTE format('ALTER PUBLICATION %I %s TABLE ONLY %s', publication, verb, relation);
END $f$;

-- hawser.ddl_choose brings the publications of the links that choose their tables to
-- where their patterns want them, for the tables named or for all (NULL), and returns
-- what came in and what went out. The rows of what came in are in nobody's stream, so
-- they are to be copied, but for a table that is fresh: made by the command at hand.
--
-- apart keeps writers out until the transaction ends: decoding learns of a publication's
-- change by the table, and would go on as before for a transaction that had written to
-- the table already. What renames a table holds that lock anyway; to rename its schema
-- takes none on it. A table that will need another replica identity is held alone, since
-- to publish it without one would make users' updates fail.
CREATE OR REPLACE FUNCTION hawser.ddl_choose(relids oid[], fresh oid[], apart boolean) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	changes jsonb := '[]';
	f       hawser.ddl_filter;
	r       record;
	name    text;
BEGIN
	FOR f IN
		SELECT * FROM hawser.ddl_filter l WHERE NOT l.whole
		AND EXISTS (SELECT FROM pg_publication p WHERE p.pubname = 'hawser_' || l.link) ORDER BY l.link
	LOOP
		FOR r IN
			SELECT t.oid, t.nspname, t.relname, t.wanted, t.bare FROM (
				SELECT c.oid, n.nspname, c.relname, @CHOSEN@ AS wanted,
					@BARE@ AS bare, EXISTS (
					SELECT FROM pg_publication_rel g JOIN pg_publication p ON p.oid = g.prpubid
					WHERE g.prrelid = c.oid AND p.pubname = 'hawser_' || f.link) AS published
				FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
				AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema')
				AND (relids IS NULL OR c.oid = ANY (relids))) t
			WHERE t.wanted <> t.published ORDER BY t.oid
		LOOP
			name := format('%I.%I', r.nspname, r.relname);
			IF r.wanted AND r.bare THEN
				EXECUTE 'LOCK TABLE ONLY ' || name || ' IN ACCESS EXCLUSIVE MODE';
			ELSIF apart THEN
				EXECUTE 'LOCK TABLE ONLY ' || name || ' IN SHARE ROW EXCLUSIVE MODE';
			END IF;
			PERFORM hawser.ddl_publish('hawser_' || f.link, CASE WHEN r.wanted THEN 'ADD' ELSE 'DROP' END, name);
			changes := changes || jsonb_build_object('link', f.link, 'oid', r.oid::bigint, 'schema', r.nspname, 'name', r.relname,
				'in', r.wanted, 'copy', r.wanted AND r.oid <> ALL (fresh));
		END LOOP;
	END LOOP;
	RETURN changes;
END $f$;

-- hawser.ddl_under are the tables whose changes are written otherwise since a command that
-- takes no lock on them: in a schema of another name, or with values of a type that are
-- read otherwise.
CREATE OR REPLACE FUNCTION hawser.ddl_under(tag text, source text, objects jsonb) RETURNS oid[]
LANGUAGE plpgsql STABLE AS $f$
DECLARE
	ids oid[] := ARRAY(SELECT (o ->> 'oid')::oid FROM jsonb_array_elements(objects) o);
BEGIN
	IF tag = 'ALTER SCHEMA' AND source ~* 'rename' THEN
		RETURN ARRAY(SELECT c.oid FROM pg_class c WHERE c.relnamespace = ANY (ids));
	ELSIF tag = 'ALTER TYPE' AND source ~* 'rename[[:space:]]+value|drop[[:space:]]+attribute'
		OR tag = 'ALTER DOMAIN' AND source ~* 'not[[:space:]]+valid' THEN -- else the server locks the tables
		RETURN ARRAY(WITH RECURSIVE y(oid) AS (
				SELECT t.oid FROM pg_type t WHERE t.oid = ANY (ids) OR t.typrelid = ANY (ids) AND t.typrelid <> 0
				UNION SELECT n.oid FROM y, LATERAL (
					SELECT t.oid FROM pg_type t WHERE t.typelem = y.oid OR t.typbasetype = y.oid
					UNION ALL SELECT unnest(ARRAY[r.rngtypid, r.rngmultitypid]) FROM pg_range r WHERE r.rngsubtype = y.oid
					UNION ALL SELECT c.reltype FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.atttypid = y.oid AND c.reltype <> 0) n)
			SELECT DISTINCT a.attrelid FROM y JOIN pg_attribute a ON a.atttypid = y.oid);
	END IF;
	RETURN '{}';
END $f$;

-- hawser.ddl_apart keeps writers to tables out until the transaction ends, and waits for
-- those at work: what they wrote before the command comes behind it, and would be read as
-- if it had been written after it.
CREATE OR REPLACE FUNCTION hawser.ddl_apart(relids oid[]) RETURNS void
LANGUAGE plpgsql AS $f$
DECLARE
	names text := (SELECT string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', ' ORDER BY c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = ANY (relids) AND c.relkind = 'r' AND c.relpersistence = 'p' AND hawser.ddl_published(c.oid));
BEGIN
	IF names IS NOT NULL THEN
		EXECUTE 'LOCK TABLE ' || names || ' IN SHARE ROW EXCLUSIVE MODE';
	END IF;
END $f$;

-- hawser.ddl_scope are the tables that a command may have brought in or taken out: NULL
-- for any, {} for none. What a partition is a partition of counts for it, and a command
-- names the parent alone.
CREATE OR REPLACE FUNCTION hawser.ddl_scope(tag text, relids oid[]) RETURNS oid[]
LANGUAGE plpgsql AS $f$
BEGIN
	IF tag LIKE 'DROP %' OR NOT EXISTS (SELECT FROM hawser.ddl_filter l WHERE NOT l.whole) THEN
		RETURN '{}';
	ELSIF tag IN ('ALTER SCHEMA', 'CREATE SCHEMA', 'CREATE EXTENSION', 'ALTER EXTENSION')
		OR EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (relids) AND c.relkind = 'p') THEN
		RETURN NULL;
	END IF;
	RETURN coalesce(relids, '{}');
END $f$;

-- hawser.ddl_rechoose looks for what came in or went out unseen, as by a session whose
-- DDL fires no event trigger, and tells the other side.
CREATE OR REPLACE FUNCTION hawser.ddl_rechoose() RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	changes jsonb := hawser.ddl_choose(NULL, '{}', true);
	changed json;
BEGIN
	IF changes = '[]' THEN
		RETURN 0;
	END IF;
	changed := hawser.keep_identity(ARRAY(SELECT (c ->> 'oid')::oid FROM jsonb_array_elements(changes) c));
	PERFORM hawser.ddl_write(json_build_object('v', 1, 'identity', changed, 'chosen', changes));
	RETURN jsonb_array_length(changes);
END $f$;

-- hawser.keep_identity gives each table, and what is below it, a replica identity
-- that lets UPDATE and DELETE pass while the table is published, and takes its own
-- change back when a primary key has come. It returns what it changed. Each table is
-- looked up by itself: a join would read the whole catalog.
CREATE OR REPLACE FUNCTION hawser.keep_identity(relids oid[]) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	changed json[] := '{}';
	id      oid;
	r       record;
	change  text;
BEGIN
	FOR id IN
		WITH RECURSIVE tree(oid) AS (
			SELECT unnest(relids) UNION SELECT i.inhrelid FROM tree, LATERAL (
				SELECT h.inhrelid FROM pg_inherits h WHERE h.inhparent = tree.oid OFFSET 0) i
		) SELECT DISTINCT oid FROM tree ORDER BY oid
	LOOP
		SELECT n.nspname, c.relname, c.relreplident AS now,
			(SELECT k.was FROM hawser.replica_identity k WHERE k.relid = c.oid) AS was,
			-- A deferrable primary key identifies no row to the publication.
			EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate) AS has_key,
			EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) AS has_index
		INTO r FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = id AND id >= 16384 AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
		AND n.nspname NOT IN ('hawser', 'pg_catalog', 'information_schema');
		CONTINUE WHEN NOT FOUND OR NOT hawser.ddl_published(id);
		change := CASE
			WHEN r.now = 'f' AND r.was = 'd' AND r.has_key THEN 'DEFAULT'
			WHEN r.now = 'n' OR r.now = 'd' AND NOT r.has_key OR r.now = 'i' AND NOT r.has_index THEN 'FULL'
			WHEN r.now <> 'f' AND r.was IS NOT NULL THEN 'FORGET' -- the user chose another
		END;
		CONTINUE WHEN change IS NULL;
		BEGIN
			IF change <> 'FORGET' THEN
				PERFORM hawser.set_identity(id, change);
				changed := changed || json_build_object('schema', r.nspname, 'name', r.relname, 'to', change,
					'was', CASE r.now WHEN 'n' THEN 'n' ELSE 'd' END);
			END IF;
			IF change = 'FULL' THEN
				INSERT INTO hawser.replica_identity VALUES (id, CASE r.now WHEN 'n' THEN 'n' ELSE 'd' END)
				ON CONFLICT (relid) DO NOTHING;
			ELSE
				DELETE FROM hawser.replica_identity WHERE relid = id;
			END IF;
		EXCEPTION WHEN object_in_use OR lock_not_available THEN
			NULL; -- deferred triggers, or somebody reads it; EnsureReplicaIdentity comes by later
		END;
	END LOOP;
	RETURN CASE WHEN cardinality(changed) > 0 THEN array_to_json(changed) END;
END $f$;

-- hawser.set_identity alters one table. Replica mode keeps that from users' event
-- triggers, and with hawser.agent from this file's; it costs the session its plans, so it is on for this alone.
CREATE OR REPLACE FUNCTION hawser.set_identity(table_id oid, identity text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET session_replication_role = replica SET hawser.agent = 'on' SET lock_timeout = '2s' AS $f$
BEGIN
	EXECUTE (SELECT format('ALTER TABLE ONLY %I.%I REPLICA IDENTITY %s', n.nspname, c.relname, identity)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = table_id);
END $f$;

-- hawser.ddl_identity does so outside of any command, and tells the other side.
CREATE OR REPLACE FUNCTION hawser.ddl_identity(relids oid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	changed json := hawser.keep_identity(relids);
BEGIN
	IF changed IS NOT NULL THEN
		PERFORM hawser.ddl_write(json_build_object('v', 1, 'identity', changed));
	END IF;
END $f$;

-- hawser.ddl_user is the user who gave the command, with the roles that are his.
CREATE OR REPLACE FUNCTION hawser.ddl_user() RETURNS json
LANGUAGE plpgsql STABLE AS $f$
BEGIN
	RETURN (SELECT json_build_object('name', u.rolname, 'superuser', u.rolsuper, 'session', session_user, 'member_of', (
		WITH RECURSIVE m(roleid) AS (
			SELECT a.roleid FROM pg_auth_members a WHERE a.member = u.oid
			UNION SELECT a.roleid FROM pg_auth_members a JOIN m ON a.member = m.roleid)
		SELECT json_agg(g.rolname ORDER BY g.rolname) FROM m JOIN pg_roles g ON g.oid = m.roleid))
	FROM pg_roles u WHERE u.rolname = current_setting('hawser.ddl_caller')::json ->> 'role');
END $f$;

-- hawser.ddl_unfired lists what can be changed without an event: event triggers, the
-- settings of the database and of roles in it, its owner, privileges, comment and
-- connection limit, the roles that it names and their members, with the groups of theirs
-- that are among them, what CLUSTER marked, indexes that CREATE INDEX CONCURRENTLY left unfinished and owners
-- (REASSIGN OWNED). Of these, objects that follow another object's owner are left out, and
-- of all what is Hawser's own: its owner is the agent's role of this instance alone.
CREATE OR REPLACE FUNCTION hawser.ddl_unfired(wanted text)
RETURNS TABLE (kind text, class oid, id oid, name text, value text)
LANGUAGE plpgsql AS $f$
#variable_conflict use_column
BEGIN
	IF wanted IS NULL OR wanted = 'event trigger' THEN
		RETURN QUERY SELECT 'event trigger', 'pg_event_trigger'::regclass::oid, 0::oid, e.evtname::text, json_build_object(
				'on', e.evtevent, 'function', e.evtfoid::regproc::text, 'enabled', e.evtenabled, 'owner', pg_get_userbyid(e.evtowner),
				'comment', obj_description(e.oid, 'pg_event_trigger'), 'tags', array_to_json(e.evttags))::text
			FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
			WHERE p.pronamespace <> 'hawser'::regnamespace
			AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e');
	END IF;
	IF wanted IS NULL OR wanted = 'database' THEN
		RETURN QUERY SELECT 'database', 'pg_database'::regclass::oid, 0::oid, v.name, v.value
			FROM pg_database d, LATERAL (VALUES
				('comment', shobj_description(d.oid, 'pg_database')),
				('owner', pg_get_userbyid(d.datdba)::text),
				('connection limit', d.datconnlimit::text),
				('privileges', (SELECT json_agg(json_build_object('role', g.role, 'privileges', g.privileges, 'grantable', g.grantable) ORDER BY g.role, g.grantable)::text
					FROM (SELECT r.rolname AS role, a.is_grantable AS grantable, string_agg(DISTINCT a.privilege_type, ', ' ORDER BY a.privilege_type) AS privileges
						FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a LEFT JOIN pg_roles r ON r.oid = a.grantee
						WHERE a.grantee <> d.datdba GROUP BY 1, 2) g))) v(name, value)
			WHERE d.datname = current_database();
	END IF;
	IF wanted IS NOT NULL THEN
		RETURN;
	END IF;
	RETURN QUERY SELECT 'setting', 'pg_authid'::regclass::oid, s.setrole, split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
		FROM pg_db_role_setting s, unnest(s.setconfig) c
		WHERE s.setdatabase = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
		AND split_part(c, '=', 1) <> 'default_transaction_read_only' AND c NOT LIKE 'hawser.%' AND c NOT LIKE '%preload_libraries=%';
	RETURN QUERY SELECT 'large objects', 'pg_largeobject'::regclass::oid, 0::oid, '', 'some' WHERE EXISTS (SELECT FROM pg_largeobject_metadata);
	RETURN QUERY WITH RECURSIVE named AS (
			(SELECT d.refobjid AS oid FROM pg_shdepend d, pg_database b WHERE b.datname = current_database()
			AND d.refclassid = 'pg_authid'::regclass AND d.refobjid >= 16384
			AND (d.dbid = b.oid AND (d.classid, d.objid) NOT IN (@OWN@) OR d.dbid = 0 AND d.classid = 'pg_database'::regclass AND d.objid = b.oid)
			UNION SELECT s.setrole FROM pg_db_role_setting s JOIN pg_database b ON b.oid = s.setdatabase WHERE b.datname = current_database() AND s.setrole >= 16384
			-- One that was told once is told of when it is no member any more.
			UNION SELECT r.oid FROM hawser.ddl_seen s JOIN pg_roles r ON r.rolname = s.name WHERE s.kind = 'role')
			UNION SELECT m.member FROM pg_auth_members m JOIN named n ON n.oid = m.roleid WHERE m.member >= 16384)
		SELECT 'role', 'pg_authid'::regclass::oid, 0::oid, r.rolname::text, json_build_object('inherit', r.rolinherit, 'member_of', (
			SELECT json_agg(json_build_object('role', g.name, 'admin', g.admin, 'inherit', g.inherit, 'set', g.set) ORDER BY g.name) FROM (
				SELECT g.rolname AS name, bool_or(m.admin_option) AS admin, -- a version before 16 knows no more of a membership
					bool_or(coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, r.rolinherit)) AS inherit, bool_or(coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)) AS set
				FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
				WHERE m.member = r.oid AND m.roleid IN (SELECT n.oid FROM named n) GROUP BY 1) g))::text
		FROM named JOIN pg_roles r ON r.oid = named.oid;
	RETURN QUERY SELECT CASE WHEN i.indisclustered THEN 'clustered' ELSE 'unfinished' END, 'pg_class'::regclass::oid,
			CASE WHEN i.indisclustered THEN i.indrelid ELSE i.indexrelid END, '', quote_ident(x.relname)
		FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
		WHERE (i.indisclustered OR NOT i.indisvalid AND x.relkind = 'i') AND i.indrelid >= 16384 AND x.relpersistence <> 't';
	RETURN QUERY SELECT 'owner', o.class, o.id, '', pg_get_userbyid(o.owner)::text FROM (
		SELECT 'pg_class'::regclass::oid, c.oid, c.relowner FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
			AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')))
		UNION ALL SELECT 'pg_proc'::regclass, p.oid, p.proowner FROM pg_proc p
		UNION ALL SELECT 'pg_type'::regclass, t.oid, t.typowner FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
			WHERE t.typcategory <> 'A' AND coalesce(c.relkind, 'c') = 'c'
		UNION ALL SELECT 'pg_namespace'::regclass, n.oid, n.nspowner FROM pg_namespace n WHERE n.nspname NOT LIKE 'pg|_%' ESCAPE '|'
		UNION ALL SELECT 'pg_operator'::regclass, x.oid, x.oprowner FROM pg_operator x
		UNION ALL SELECT 'pg_opclass'::regclass, x.oid, x.opcowner FROM pg_opclass x
		UNION ALL SELECT 'pg_opfamily'::regclass, x.oid, x.opfowner FROM pg_opfamily x
		UNION ALL SELECT 'pg_collation'::regclass, x.oid, x.collowner FROM pg_collation x
		UNION ALL SELECT 'pg_conversion'::regclass, x.oid, x.conowner FROM pg_conversion x
		UNION ALL SELECT 'pg_ts_config'::regclass, x.oid, x.cfgowner FROM pg_ts_config x
		UNION ALL SELECT 'pg_ts_dict'::regclass, x.oid, x.dictowner FROM pg_ts_dict x
		UNION ALL SELECT 'pg_statistic_ext'::regclass, x.oid, x.stxowner FROM pg_statistic_ext x
		UNION ALL SELECT 'pg_foreign_server'::regclass, x.oid, x.srvowner FROM pg_foreign_server x
		UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, x.oid, x.fdwowner FROM pg_foreign_data_wrapper x
		UNION ALL SELECT 'pg_publication'::regclass, x.oid, x.pubowner FROM pg_publication x
		UNION ALL SELECT 'pg_language'::regclass, x.oid, x.lanowner FROM pg_language x
	) o(class, id, owner)
	WHERE (o.id >= 16384 OR o.class = 'pg_namespace'::regclass) AND (o.class, o.id) NOT IN (@OWN@);
END $f$;

-- hawser.ddl_sweep tells the other side what changed since the last time without an
-- event, and returns how much. The first time it only looks.
CREATE OR REPLACE FUNCTION hawser.ddl_sweep(wanted text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	first   boolean := NOT EXISTS (SELECT FROM hawser.ddl_seen s WHERE s.kind = 'owner');
	told    integer := 0;
	looked  text;
	changes json;
BEGIN
	IF first AND wanted IS NOT NULL THEN
		RETURN 0;
	END IF;
	IF wanted IS NULL THEN
		looked := hawser.ddl_looked((SELECT s.value FROM hawser.ddl_seen s WHERE s.kind = 'looked'));
		told := CASE WHEN first THEN 0 ELSE hawser.ddl_tell(NULL) END;
	END IF;
	WITH now AS (
		SELECT * FROM hawser.ddl_unfired(wanted)
	), gone AS (
		DELETE FROM hawser.ddl_seen s WHERE (wanted IS NULL AND s.kind <> 'looked' OR s.kind = wanted)
		AND NOT EXISTS (SELECT FROM now n WHERE n.kind = s.kind AND n.class = s.class AND n.id = s.id AND n.name = s.name)
		RETURNING s.*
	), changed AS (
		INSERT INTO hawser.ddl_seen AS s SELECT n.* FROM now n WHERE NOT EXISTS (
			SELECT FROM hawser.ddl_seen s WHERE n.kind = s.kind AND n.class = s.class AND n.id = s.id AND n.name = s.name
			AND n.value IS NOT DISTINCT FROM s.value)
		ON CONFLICT (kind, class, id, name) DO UPDATE SET value = excluded.value
		RETURNING s.*
	), news AS (
		SELECT g.kind, g.class, g.id, g.name, NULL AS value FROM gone g WHERE g.kind NOT IN ('owner', 'role', 'unfinished')
		UNION ALL SELECT 'index', g.class, g.id, '', pg_get_indexdef(g.id) FROM gone g
			WHERE g.kind = 'unfinished' AND EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = g.id AND i.indisvalid)
		UNION ALL SELECT * FROM changed c WHERE c.kind <> 'unfinished'
	)
	SELECT json_agg(json_build_object('kind', t.kind, 'name', nullif(t.name, ''), 'value', t.value,
			'was', CASE t.kind WHEN 'role' THEN (SELECT s.value FROM hawser.ddl_seen s WHERE s.kind = t.kind AND s.class = t.class AND s.id = t.id AND s.name = t.name) END,
			'index', CASE t.kind WHEN 'index' THEN hawser.ddl_index(t.id) END,
			'role', CASE t.kind WHEN 'setting' THEN (SELECT u.rolname FROM pg_roles u WHERE u.oid = t.id) END,
			'type', CASE t.kind WHEN 'owner' THEN (pg_identify_object(t.class, t.id, 0)).type END,
			'identity', CASE WHEN t.kind IN ('owner', 'clustered') THEN (pg_identify_object(t.class, t.id, 0)).identity END))
	INTO changes FROM news t;
	-- Asked first, since ON CONFLICT locks the row: where nothing happened nothing is written,
	-- or the WAL would never stand still, and each database be looked at again and again.
	IF wanted IS NULL AND looked IS DISTINCT FROM (SELECT s.value FROM hawser.ddl_seen s WHERE s.kind = 'looked') THEN
		INSERT INTO hawser.ddl_seen AS s VALUES ('looked', 0, 0, '', looked)
		ON CONFLICT (kind, class, id, name) DO UPDATE SET value = excluded.value;
	END IF;
	IF first OR changes IS NULL THEN
		RETURN told;
	END IF;
	PERFORM hawser.ddl_write(json_build_object('v', 1, 'changes', changes));
	RETURN told + json_array_length(changes);
END $f$;

-- hawser.ddl_command writes the message of one command. objects is what it made or
-- changed, dropped what it dropped, rewrites the tables that it rewrote.
CREATE OR REPLACE FUNCTION hawser.ddl_command(tag text, stack text, objects jsonb, dropped jsonb, rewrites jsonb) RETURNS void
LANGUAGE plpgsql AS $f$
DECLARE
	source  text := CASE stack WHEN '' THEN current_query() ELSE stack END;
	ref     text := md5(source);
	caller  text := current_setting('hawser.ddl_caller')::json ->> 'role';
	-- LIKE may name a temporary table, which the other side does not have.
	whole   boolean := tag IN ('CREATE TABLE AS', 'SELECT INTO', 'IMPORT FOREIGN SCHEMA')
		OR tag = 'CREATE TABLE' AND pg_my_temp_schema() <> 0 AND source ~* '[[:<:]]like[[:>:]]';
	state   jsonb := hawser.ddl_state();
	relids  oid[];
	called  text;
	sent    boolean := false;
	scope   oid[];
	chosen  jsonb := '[]';
BEGIN
	-- The innermost statement is what counts; its callers may be long.
	IF length(stack) > 65536 AND strpos(stack, '"' || chr(10) || 'PL/pgSQL function ') > 0 THEN
		source := left(stack, strpos(stack, '"' || chr(10) || 'PL/pgSQL function '));
		ref := md5(source);
	END IF;
	SELECT array_agg(DISTINCT (o ->> 'relation')::oid) INTO relids
	FROM jsonb_array_elements(objects || dropped || rewrites) o WHERE (o ->> 'relation')::bigint > 0;
	IF tag = 'DROP OWNED' THEN
		PERFORM hawser.ddl_sweep(NULL); -- after REASSIGN OWNED it would drop on the other side what was saved here
	ELSIF tag IN ('DROP FUNCTION', 'DROP ROUTINE', 'DROP SCHEMA', 'DROP EXTENSION') THEN
		PERFORM hawser.ddl_sweep('event trigger'); -- one that called the function may be gone in silence
	ELSIF tag LIKE 'CREATE %' OR tag = 'SELECT INTO' THEN
		IF tag IN ('CREATE SCHEMA', 'CREATE PUBLICATION', 'CREATE EXTENSION') THEN
			PERFORM hawser.ddl_sweep('database'); -- its user may have got the right to it just before
		END IF;
		INSERT INTO hawser.ddl_seen SELECT DISTINCT 'owner', (o ->> 'class')::regclass, (o ->> 'oid')::oid, '', caller
		FROM jsonb_array_elements(objects) o WHERE o ->> 'class' IS NOT NULL AND o ->> 'type' <> 'index'
		AND EXISTS (SELECT FROM hawser.ddl_seen s WHERE s.kind = 'owner') -- else the next sweep only looks
		ON CONFLICT (kind, class, id, name) DO NOTHING;
	ELSIF tag LIKE 'ALTER %' AND source ~* 'owner|cluster' THEN
		IF tag IN ('ALTER SCHEMA', 'ALTER PUBLICATION') THEN
			PERFORM hawser.ddl_sweep('database'); -- so may the new owner
		END IF;
		-- What a command changed may be changed back without one.
		UPDATE hawser.ddl_seen s SET value = '' FROM jsonb_array_elements(objects) o -- it stays told
		WHERE s.kind = 'owner' AND s.class = (o ->> 'class')::regclass AND s.id = (o ->> 'oid')::oid;
		DELETE FROM hawser.ddl_seen s USING jsonb_array_elements(objects) o
		WHERE s.kind = 'clustered' AND s.class = (o ->> 'class')::regclass AND s.id = (o ->> 'oid')::oid;
	END IF;
	IF tag IN ('CREATE EXTENSION', 'ALTER EXTENSION') THEN
		relids := relids || ARRAY(SELECT d.objid FROM jsonb_array_elements(objects) o JOIN pg_depend d
			ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = (o ->> 'oid')::oid AND d.classid = 'pg_class'::regclass);
	ELSIF tag = 'DROP INDEX' THEN
		relids := relids || ARRAY(SELECT c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relreplident = 'i'
			AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident));
	END IF;
	PERFORM hawser.ddl_apart(hawser.ddl_under(tag, source, objects));
	scope := hawser.ddl_scope(tag, relids);
	IF scope IS NULL OR scope <> '{}' THEN
		chosen := hawser.ddl_choose(scope, CASE WHEN tag LIKE 'CREATE %' AND tag <> 'CREATE TABLE AS' THEN coalesce(relids, '{}') ELSE '{}' END, true);
	END IF;
	-- A long text is written once a transaction: a script of a thousand commands sent
	-- as one string is not to be in the WAL a thousand times.
	IF length(source) > 2000 THEN
		sent := coalesce(state -> 'sent' ? ref, false);
		IF NOT sent THEN
			PERFORM hawser.ddl_keep(state || jsonb_build_object('sent', coalesce(state -> 'sent', '[]') || to_jsonb(ref)));
		END IF;
	END IF;
	called := substring(stack FROM '^SQL function "([^[:cntrl:]]*)" statement [0-9]+');
	PERFORM hawser.ddl_write(json_build_object(
		'v', 1, 'tag', tag, 'server', current_setting('server_version_num')::integer,
		'source', CASE WHEN NOT sent THEN source END, 'ref', ref,
		'nested', stack <> '',
		'order', hawser.ddl_order(stack, 0),
		'at', pg_backend_pid() || ':' || extract(epoch FROM statement_timestamp()),
		'functions', CASE WHEN called IS NOT NULL THEN (SELECT json_agg(DISTINCT p.prosrc) FROM pg_proc p
			WHERE p.proname = called AND p.prolang = (SELECT l.oid FROM pg_language l WHERE l.lanname = 'sql')) END,
		'user', hawser.ddl_user(), 'search_path', current_setting('hawser.ddl_caller')::json -> 'path',
		'schema', current_setting('hawser.ddl_caller')::json -> 'schema',
		'settings', hawser.ddl_settings(),
		'objects', objects, 'dropped', dropped, 'rewrites', rewrites,
		'tables', CASE WHEN whole OR tag IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE')
			THEN hawser.ddl_tables(relids, whole) END,
		'identity', hawser.keep_identity(relids || ARRAY(SELECT (c ->> 'oid')::oid FROM jsonb_array_elements(chosen) c)),
		'chosen', CASE WHEN chosen <> '[]' THEN chosen END,
		'temporary', CASE WHEN pg_my_temp_schema() <> 0 THEN
			(SELECT json_agg(c.relname) FROM pg_class c WHERE c.relnamespace = pg_my_temp_schema() AND c.relkind NOT IN ('t', 'i')) END,
		'views', CASE tag WHEN 'REFRESH MATERIALIZED VIEW' THEN (SELECT json_agg(format('CREATE MATERIALIZED VIEW IF NOT EXISTS %I.%I AS %s WITH NO DATA',
				n.nspname, c.relname, rtrim(pg_get_viewdef(c.oid), ';')))
			FROM jsonb_array_elements(objects) o JOIN pg_class c ON c.oid = (o ->> 'oid')::oid AND c.relkind = 'm' JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE hawser.ddl_untold(c.oid)) END,
		'stand_in', CASE tag WHEN 'CREATE MATERIALIZED VIEW' THEN (SELECT hawser.ddl_stand_in((o ->> 'oid')::oid)
			FROM jsonb_array_elements(objects) o WHERE o ->> 'type' = 'materialized view' LIMIT 1) END,
		'extensions', (SELECT json_agg(json_build_object('name', e.extname, 'version', e.extversion, 'schema', e.extnamespace::regnamespace::text))
			FROM jsonb_array_elements(objects) o JOIN pg_extension e
			ON (o ->> 'class') = 'pg_extension' AND e.oid = (o ->> 'oid')::oid),
		'configs', CASE WHEN source ~* 'from[[:space:]]+current' THEN (
			SELECT json_agg(json_build_object('identity', o ->> 'identity', 'type', o ->> 'type', 'config', array_to_json(p.proconfig)))
			FROM jsonb_array_elements(objects) o JOIN pg_proc p ON o ->> 'class' = 'pg_proc' AND p.oid = (o ->> 'oid')::oid
			WHERE p.proconfig IS NOT NULL) END,
		-- REINDEX may have made valid what CREATE INDEX CONCURRENTLY left behind (17 and later).
		'indexes', CASE tag WHEN 'REINDEX' THEN (SELECT json_agg(pg_get_indexdef(i.indexrelid))
			FROM jsonb_array_elements(objects) o JOIN pg_index i ON o ->> 'type' = 'index' AND i.indexrelid = (o ->> 'oid')::oid
			WHERE i.indisvalid AND (SELECT c.relkind FROM pg_class c WHERE c.oid = i.indrelid) IN ('r', 'p', 'm')) END,
		'tree', CASE
			WHEN tag IN ('CREATE INDEX', 'ALTER INDEX') THEN hawser.ddl_trees(relids, ARRAY(SELECT (o ->> 'oid')::oid FROM jsonb_array_elements(objects) o))
			WHEN tag = 'ALTER TABLE' AND source ~* 'attach|add' THEN hawser.ddl_trees(relids, NULL)
			WHEN tag = 'REINDEX' THEN (SELECT json_agg(hawser.ddl_index((o ->> 'oid')::oid)) FROM jsonb_array_elements(objects) o WHERE o ->> 'type' = 'index') END,
		-- A name that the server numbered may have been free on the other side.
		'names', CASE WHEN tag = 'CREATE TABLE' OR tag = 'ALTER TABLE' AND source ~* 'add' THEN hawser.ddl_numbered(relids) END,
		-- A bound may be written as an expression, which the server evaluates at once. An
		-- attached partition is locked still.
		'bounds', CASE WHEN tag IN ('CREATE TABLE', 'CREATE SCHEMA', 'ALTER TABLE') AND source ~* 'partition' THEN (
			SELECT json_agg(json_build_object('schema', n.nspname, 'table', c.relname, 'def', pg_get_expr(c.relpartbound, c.oid)))
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relispartition AND c.relpersistence <> 't' AND (c.oid = ANY (relids) OR tag = 'ALTER TABLE'
				AND c.oid IN (SELECT h.inhrelid FROM pg_inherits h WHERE h.inhparent = ANY (relids))
				AND c.oid IN (SELECT l.relation FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock'))) END,
		-- DETACH PARTITION CONCURRENTLY leaves a check on the partition, which is locked still.
		'checks', CASE WHEN tag = 'ALTER TABLE' AND source ~* 'detach' AND source ~* 'concurrently|finalize' THEN (
			SELECT json_agg(json_build_object('schema', n.nspname, 'table', c.relname, 'name', k.conname, 'def', pg_get_constraintdef(k.oid)))
			FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'c'
			WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock' AND l.database = (
				SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) END));
END $f$;

-- hawser.ddl_making tells which commands count as making, in the state.
CREATE OR REPLACE FUNCTION hawser.ddl_making(tag text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $f$
BEGIN
	RETURN tag IN ('CREATE TABLE', 'CREATE FOREIGN TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE MATERIALIZED VIEW', 'CREATE SCHEMA');
END $f$;

-- hawser.ddl_start tells of what came without an event, before a command that may speak
-- of it. How far it looked is kept for the session. Where a command runs another, what the
-- first one makes is still to be told by itself.
CREATE OR REPLACE FUNCTION hawser.ddl_start() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lc_messages = 'C' AS $f$
DECLARE
	state  jsonb := hawser.ddl_state();
	making integer := coalesce((state ->> 'making')::integer, 0);
	kept   text := current_setting('hawser.ddl_looked', true);
	looked text;
	mark   text := 'looked ' || pg_backend_pid() || ' ';
BEGIN
	IF hawser.ddl_agent() THEN
		RETURN;
	END IF;
	IF making = 0 THEN
		kept := CASE WHEN left(kept, 64) = hawser.ddl_signature(mark || substr(kept, 65)) THEN substr(kept, 65)
			ELSE (SELECT s.value FROM hawser.ddl_seen s WHERE s.kind = 'looked') END;
		IF kept IS NOT NULL THEN -- nobody has looked since a crash
			looked := hawser.ddl_looked(kept); -- before the look: what is committed in between it shall not count as seen
			PERFORM hawser.ddl_tell(split_part(kept, ',', 1)::oid);
			PERFORM set_config('hawser.ddl_looked', hawser.ddl_signature(mark || looked) || looked, false);
		END IF;
	END IF;
	IF making > 0 AND coalesce((state ->> 'ext')::integer, 0) = (tg_tag IN ('CREATE EXTENSION', 'ALTER EXTENSION'))::integer THEN -- not in its script
		PERFORM hawser.ddl_begun();
	END IF;
	IF hawser.ddl_making(tg_tag) THEN
		PERFORM hawser.ddl_keep(state || jsonb_build_object('making', making + 1));
	END IF;
EXCEPTION WHEN serialization_failure OR deadlock_detected OR statement_too_complex THEN
	RAISE; -- the transaction is lost, and its client expects that
WHEN OTHERS THEN
	PERFORM hawser.ddl_failed(tg_tag, '', SQLERRM);
END $f$;

-- hawser.ddl_begin marks the start of a command whose rows are written before
-- ddl_end can describe it. What an extension's script does comes with the extension
-- on the other side too, rows included; CREATE TABLE AS fills a table that the other
-- side does not have yet.
CREATE OR REPLACE FUNCTION hawser.ddl_begin() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lc_messages = 'C' AS $f$
DECLARE
	state jsonb := hawser.ddl_state();
	depth integer := coalesce((state ->> 'ext')::integer, 0);
BEGIN
	IF hawser.ddl_agent() THEN
		RETURN;
	END IF;
	IF tg_tag IN ('CREATE EXTENSION', 'ALTER EXTENSION') THEN
		PERFORM hawser.ddl_keep(state || jsonb_build_object('ext', depth + 1));
	END IF;
	IF depth = 0 THEN
		PERFORM hawser.ddl_write(json_build_object('v', 1, 'tag', tg_tag, 'phase', 'begin', 'user', hawser.ddl_user()));
	END IF;
EXCEPTION WHEN serialization_failure OR deadlock_detected OR statement_too_complex THEN
	RAISE; -- the transaction is lost, and its client expects that
WHEN OTHERS THEN
	PERFORM hawser.ddl_failed(tg_tag, '', SQLERRM);
END $f$;

CREATE OR REPLACE FUNCTION hawser.ddl_rewrite() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lc_messages = 'C' AS $f$
DECLARE
	stack text;
	state jsonb := hawser.ddl_state();
	key   text;
	seen  jsonb;
BEGIN
	IF hawser.ddl_agent() THEN
		RETURN;
	END IF;
	GET DIAGNOSTICS stack = PG_CONTEXT;
	IF coalesce((state ->> 'ext')::integer, 0) > 0 THEN
		RETURN;
	END IF;
	key := md5(hawser.ddl_stack(stack));
	seen := coalesce(state #> ARRAY['pending', key, 'rewrites'], '[]');
	seen := seen || jsonb_build_object('relation', pg_event_trigger_table_rewrite_oid()::bigint,
		'reason', pg_event_trigger_table_rewrite_reason());
	state := jsonb_set(state, '{pending}', coalesce(state -> 'pending', '{}')
		|| jsonb_build_object(key, coalesce(state #> ARRAY['pending', key], '{}') || jsonb_build_object('rewrites', seen)));
	PERFORM hawser.ddl_keep(state);
END $f$;

-- hawser.ddl_drop writes the message of a DROP. What else drops (ALTER TABLE and so on) is
-- left for ddl_end, which sees what the command changed.
CREATE OR REPLACE FUNCTION hawser.ddl_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lc_messages = 'C' AS $f$
DECLARE
	stack   text;
	state   jsonb := hawser.ddl_state();
	gone    jsonb;
	pending jsonb := '{"dropped": []}';
BEGIN
	IF hawser.ddl_agent() THEN
		RETURN;
	END IF;
	GET DIAGNOSTICS stack = PG_CONTEXT;
	stack := hawser.ddl_stack(stack);
	IF coalesce((state ->> 'ext')::integer, 0) > 0 THEN
		RETURN;
	END IF;
	BEGIN
		-- The roots, and of what fell with them the tables and columns.
		SELECT coalesce(jsonb_agg(jsonb_build_object(
			'class', d.classid::regclass::text, 'oid', d.objid::bigint, 'type', d.object_type,
			'schema', d.schema_name, 'name', d.object_name, 'identity', d.object_identity, 'root', d.original,
			'untold', CASE WHEN d.object_type IN ('table', 'materialized view') AND hawser.ddl_untold(d.objid) THEN true END,
			'relation', CASE WHEN d.classid = 'pg_class'::regclass THEN d.objid::bigint END)), '[]')
		INTO gone
		FROM pg_event_trigger_dropped_objects() d
		WHERE NOT d.is_temporary AND d.schema_name IS DISTINCT FROM 'hawser'
		-- Of a rule, trigger, policy or default of a temporary table is_temporary says nothing.
		AND d.address_names[1] IS DISTINCT FROM 'pg_temp'
		AND (d.original OR d.classid = 'pg_class'::regclass AND d.object_type <> 'index');
		DELETE FROM hawser.replica_identity k USING pg_event_trigger_dropped_objects() d
		WHERE d.classid = 'pg_class'::regclass AND d.objid = k.relid AND d.objsubid = 0;
		IF tg_tag LIKE 'DROP %' THEN
			IF gone <> '[]' OR tg_tag = 'DROP OWNED' THEN -- that revokes, too
				PERFORM hawser.ddl_command(tg_tag, stack, '[]', gone, '[]');
			END IF;
			pending := '{"done": true}';
			state := hawser.ddl_state();
		ELSE
			pending := jsonb_build_object('dropped', gone);
		END IF;
	EXCEPTION WHEN serialization_failure OR deadlock_detected OR statement_too_complex THEN
		RAISE; -- the transaction is lost, and its client expects that
	WHEN OTHERS THEN
		PERFORM hawser.ddl_failed(tg_tag, stack, SQLERRM);
		pending := '{"done": true}';
	END;
	state := jsonb_set(state, '{pending}', coalesce(state -> 'pending', '{}') || jsonb_build_object(md5(stack),
		coalesce(state #> ARRAY['pending', md5(stack)], '{}') || pending));
	PERFORM hawser.ddl_keep(state);
END $f$;

CREATE OR REPLACE FUNCTION hawser.ddl_end() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lc_messages = 'C' AS $f$
DECLARE
	stack   text;
	state   jsonb := hawser.ddl_state();
	depth   integer := coalesce((state ->> 'ext')::integer, 0);
	pending jsonb;
	objects jsonb;
BEGIN
	IF hawser.ddl_agent() THEN
		IF tg_tag LIKE 'CREATE %' THEN -- what an agent makes is not untold
			INSERT INTO hawser.ddl_seen SELECT 'owner', 'pg_class'::regclass, c.oid, '', pg_get_userbyid(c.relowner)
			FROM pg_event_trigger_ddl_commands() d JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('r', 'm')
			WHERE EXISTS (SELECT FROM hawser.ddl_seen s WHERE s.kind = 'owner')
			ON CONFLICT (kind, class, id, name) DO NOTHING;
		END IF;
		RETURN;
	END IF;
	GET DIAGNOSTICS stack = PG_CONTEXT;
	stack := hawser.ddl_stack(stack);
	IF hawser.ddl_making(tg_tag) THEN
		state := state || jsonb_build_object('making', greatest((state ->> 'making')::integer - 1, 0));
		PERFORM hawser.ddl_keep(state);
	END IF;
	IF depth > 0 THEN
		IF tg_tag IN ('CREATE EXTENSION', 'ALTER EXTENSION') THEN
			depth := depth - 1;
			state := state || jsonb_build_object('ext', depth);
			PERFORM hawser.ddl_keep(state);
		END IF;
		IF depth > 0 OR tg_tag NOT IN ('CREATE EXTENSION', 'ALTER EXTENSION') THEN
			RETURN;
		END IF;
	END IF;
	pending := coalesce(state #> ARRAY['pending', md5(stack)], '{}');
	IF pending <> '{}' THEN
		PERFORM hawser.ddl_keep(state #- ARRAY['pending', md5(stack)]);
	END IF;
	BEGIN
		-- Without what is temporary, and what comes with an extension.
		SELECT coalesce(jsonb_agg(jsonb_build_object(
			'class', c.classid::regclass::text, 'oid', c.objid::bigint, 'type', c.object_type,
			'schema', c.schema_name, 'identity', c.object_identity, 'relation', r.oid::bigint,
			'table_schema', t.nspname, 'table', t.relname,
			'unfinished', CASE WHEN c.object_type = 'index' AND hawser.ddl_unfinished(c.objid) THEN true END)), '[]')
		INTO objects
		FROM pg_event_trigger_ddl_commands() c
		CROSS JOIN LATERAL (SELECT hawser.ddl_relation(c.classid, c.objid) AS oid) r
		LEFT JOIN LATERAL (SELECT p.relname, p.relpersistence, n.nspname FROM pg_class p JOIN pg_namespace n ON n.oid = p.relnamespace
			WHERE p.oid = r.oid OFFSET 0) t ON true
		WHERE NOT c.in_extension AND c.schema_name IS DISTINCT FROM 'pg_temp' AND c.schema_name IS DISTINCT FROM 'hawser'
		AND t.relpersistence IS DISTINCT FROM 't'
		-- A function or domain of a temporary type goes with it.
		AND (pg_my_temp_schema() = 0 OR NOT EXISTS (
			SELECT FROM pg_depend d LEFT JOIN pg_type y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid
			LEFT JOIN pg_class l ON d.refclassid = 'pg_class'::regclass AND l.oid = d.refobjid
			WHERE d.classid = c.classid AND d.objid = c.objid AND d.deptype = 'n' AND c.classid IN ('pg_proc'::regclass, 'pg_type'::regclass)
			AND coalesce(y.typnamespace, l.relnamespace) = pg_my_temp_schema()));
		IF pending ? 'done' THEN
			NULL;
		ELSIF objects <> '[]' OR coalesce(pending -> 'dropped', '[]') <> '[]'
			OR tg_tag IN ('DROP OWNED', 'REASSIGN OWNED', 'CREATE EXTENSION', 'ALTER EXTENSION') THEN
			PERFORM hawser.ddl_command(tg_tag, stack, objects,
				coalesce(pending -> 'dropped', '[]'), coalesce(pending -> 'rewrites', '[]'));
		END IF;
	EXCEPTION WHEN serialization_failure OR deadlock_detected OR statement_too_complex OR lock_not_available THEN
		RAISE; -- the transaction is lost, and its client expects that; or has set a lock_timeout
	WHEN OTHERS THEN
		PERFORM hawser.ddl_failed(tg_tag, stack, SQLERRM);
	END;
	PERFORM hawser.ddl_order(stack, 1);
END $f$;

-- A trigger function needs no right to be fired; nobody else calls these.
DO $f$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'hawser'::regnamespace
		AND (p.proname LIKE 'ddl%' OR p.proname LIKE '%\_identity')
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
	END LOOP;
END $f$;
