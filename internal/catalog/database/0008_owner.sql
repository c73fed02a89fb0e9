-- What Hawser keeps in a database is the local agent's. Older agents gave functions of the
-- fence to the role of the other side's.
DO $do$
DECLARE
	command text;
BEGIN
	FOR command IN
		SELECT format('SCHEMA %I', nspname) FROM pg_catalog.pg_namespace
			WHERE nspname = 'hawser' AND pg_catalog.pg_get_userbyid(nspowner) <> current_user
		UNION ALL SELECT format('FUNCTION %s', p.oid::pg_catalog.regprocedure) FROM pg_catalog.pg_proc p
			WHERE p.pronamespace = 'hawser'::pg_catalog.regnamespace AND pg_catalog.pg_get_userbyid(p.proowner) <> current_user
		UNION ALL SELECT format('%s %s', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::pg_catalog.regclass) FROM pg_catalog.pg_class c
			WHERE c.relnamespace = 'hawser'::pg_catalog.regnamespace AND c.relkind IN ('r', 'p', 'v') AND pg_catalog.pg_get_userbyid(c.relowner) <> current_user
		UNION ALL SELECT format('EVENT TRIGGER %I', e.evtname) FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid
			WHERE p.pronamespace = 'hawser'::pg_catalog.regnamespace AND pg_catalog.pg_get_userbyid(e.evtowner) <> current_user
		UNION ALL SELECT format('PUBLICATION %I', pubname) FROM pg_catalog.pg_publication
			WHERE pg_catalog.starts_with(pubname, 'hawser_') AND pg_catalog.pg_get_userbyid(pubowner) <> current_user
	LOOP
		EXECUTE format('ALTER %s OWNER TO %I', command, current_user);
	END LOOP;
END $do$;
