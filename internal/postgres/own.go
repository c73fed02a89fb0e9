package postgres

// OwnObjects is a query for what Hawser put into the current database, as class and id. The
// local agent's role owns it, which is nothing that the other instance has to know of.
const OwnObjects = `SELECT 'pg_namespace'::regclass::oid AS class, n.oid AS id FROM pg_namespace n WHERE n.nspname = 'hawser'
	UNION ALL SELECT 'pg_class'::regclass, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'hawser'
	UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = 'hawser'
	UNION ALL SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'hawser'
	UNION ALL SELECT 'pg_event_trigger'::regclass, e.oid FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'hawser'
	UNION ALL SELECT 'pg_publication'::regclass, b.oid FROM pg_publication b WHERE starts_with(b.pubname, 'hawser_')`
