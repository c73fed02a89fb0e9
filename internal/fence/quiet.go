package fence

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Triggers, event triggers and rules that are ENABLE ALWAYS or ENABLE REPLICA fire in the sessions of
// replication too. On a secondary their effects arrive with the stream, so they would
// happen twice: there they are kept quiet, and their states in hawser.quiet. The
// stream's own session has session_replication_role = replica, in which an ordinary
// trigger rests.

// Quiet silences what is not silent yet, in the caller's transaction if db is one, and
// forgets what is gone. The triggers of partitions, and those of foreign keys, may have
// states of their own, so each trigger is silenced by itself.
func Quiet(ctx context.Context, db DB) error {
	_, err := db.Exec(ctx, `
		DO $$
		DECLARE r record;
		BEGIN
			DELETE FROM hawser.quiet q WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE q.kind = 'TRIGGER' AND t.tgrelid = q.tbl AND t.tgname = q.name)
				AND NOT EXISTS (SELECT FROM pg_rewrite u WHERE q.kind = 'RULE' AND u.ev_class = q.tbl AND u.rulename = q.name)
				AND NOT EXISTS (SELECT FROM pg_event_trigger e WHERE q.kind = 'EVENT TRIGGER' AND e.oid = q.tbl);
			FOR r IN
				SELECT 'TRIGGER' AS kind, t.tgrelid AS tbl, t.tgname AS name, t.tgenabled AS enabled, c.oid::regclass AS rel
				FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
				WHERE t.tgenabled IN ('A', 'R') AND t.tgfoid IS DISTINCT FROM to_regprocedure('hawser.fence()')
				UNION ALL
				SELECT 'RULE', u.ev_class, u.rulename, u.ev_enabled, c.oid::regclass
				FROM pg_rewrite u JOIN pg_class c ON c.oid = u.ev_class
				WHERE u.ev_enabled IN ('A', 'R') AND c.relnamespace <> 'pg_catalog'::regnamespace
				UNION ALL
				SELECT 'EVENT TRIGGER', e.oid, e.evtname, e.evtenabled, NULL
				FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
				WHERE e.evtenabled IN ('A', 'R') AND p.pronamespace <> 'hawser'::regnamespace
			LOOP
				INSERT INTO hawser.quiet (kind, tbl, name, enabled) VALUES (r.kind, r.tbl, r.name, r.enabled)
				ON CONFLICT (kind, tbl, name) DO UPDATE SET enabled = excluded.enabled;
				IF r.kind = 'EVENT TRIGGER' THEN
					EXECUTE format('ALTER EVENT TRIGGER %I %s', r.name, CASE r.enabled WHEN 'A' THEN 'ENABLE' ELSE 'DISABLE' END);
				ELSE
					EXECUTE format('ALTER TABLE ONLY %s %s %s %I', r.rel, CASE r.enabled WHEN 'A' THEN 'ENABLE' ELSE 'DISABLE' END, r.kind, r.name);
				END IF;
			END LOOP;
		END $$`)
	if err != nil {
		return fmt.Errorf("silence the triggers that fire for replication: %w", err)
	}
	return nil
}

// Loud gives the triggers and rules of tables the states back that they had, for a command
// that speaks of them, or copies them to a partition; Quiet is called behind it.
func Loud(ctx context.Context, db DB) error {
	_, err := db.Exec(ctx, `
		DO $$
		DECLARE r record;
		BEGIN
			FOR r IN
				SELECT q.kind, q.enabled, q.name, c.oid::regclass AS rel
				FROM hawser.quiet q JOIN pg_class c ON c.oid = q.tbl AND q.kind <> 'EVENT TRIGGER'
				LEFT JOIN pg_trigger t ON q.kind = 'TRIGGER' AND t.tgrelid = q.tbl AND t.tgname = q.name
				LEFT JOIN pg_rewrite u ON q.kind = 'RULE' AND u.ev_class = q.tbl AND u.rulename = q.name
				WHERE coalesce(t.tgenabled, u.ev_enabled) = CASE q.enabled WHEN 'A' THEN 'O' ELSE 'D' END::"char"
			LOOP
				EXECUTE format('ALTER TABLE ONLY %s ENABLE %s %s %I', r.rel, CASE r.enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END, r.kind, r.name);
			END LOOP;
			DELETE FROM hawser.quiet WHERE kind <> 'EVENT TRIGGER';
		END $$`)
	if err != nil {
		return fmt.Errorf("give triggers their states back: %w", err)
	}
	return nil
}

// Resume gives all that was silenced the states back that it had. What was changed since
// keeps the later one.
func Resume(ctx context.Context, conn *pgx.Conn) error {
	err := write(ctx, conn, func(tx pgx.Tx) error {
		var there bool
		if err := tx.QueryRow(ctx, `SELECT to_regclass('hawser.quiet') IS NOT NULL`).Scan(&there); err != nil || !there {
			return err // somebody dropped it: what was silenced is not known
		}
		if err := Loud(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			DO $$
			DECLARE r record;
			BEGIN
				FOR r IN
					SELECT q.enabled, e.evtname AS name FROM hawser.quiet q JOIN pg_event_trigger e ON e.oid = q.tbl
					WHERE q.kind = 'EVENT TRIGGER' AND e.evtenabled = CASE q.enabled WHEN 'A' THEN 'O' ELSE 'D' END::"char"
				LOOP
					EXECUTE format('ALTER EVENT TRIGGER %I ENABLE %s', r.name, CASE r.enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END);
				END LOOP;
				DELETE FROM hawser.quiet;
			END $$`)
		return err
	})
	return explain("let the triggers that fire for replication fire again", err)
}
