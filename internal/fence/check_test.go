package fence

import (
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/testpg"
)

func TestCheckFindsHoles(t *testing.T) {
	t.Parallel()
	c := testpg.Shared(t)
	db := zoo(t, c)
	hawser, user := agent(t, c, db), c.Connect(t, db)
	if s, found, err := Check(t.Context(), hawser); err != nil || s.Prepared || s.Closed || len(found.Blocking()) > 0 || codes(found)["fence-missing"] != 1 {
		t.Fatalf("nothing there: %+v %v %v", s, found, err)
	}
	must(t, Prepare(t.Context(), hawser, nil))
	if s, found, err := Check(t.Context(), hawser); err != nil || !s.Prepared || s.Closed || len(found) > 0 {
		t.Fatalf("open: %+v %v %v", s, found, err)
	}
	must(t, Close(t.Context(), hawser, sign))
	role := "weak_" + db
	t.Cleanup(func() { c.Exec(t, "postgres", `DROP ROLE `+role) })
	for _, hole := range []struct{ make, code, mend string }{
		{`ALTER TABLE plain DISABLE TRIGGER hawser_fence`, "fence-table", ""},
		{`ALTER TABLE part_2025 ENABLE REPLICA TRIGGER hawser_fence`, "fence-table", ""},
		{`ALTER TABLE part_2025 ENABLE ALWAYS TRIGGER hawser_fence`, "fence-table", ""},
		{`CREATE TABLE new (id integer)`, "fence-table", ""},
		{`ALTER EVENT TRIGGER hawser_fence DISABLE`, "fence-event-trigger", ""},
		{`CREATE OR REPLACE FUNCTION hawser.fence_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'`, "fence-changed", "close"},
		{`ALTER DATABASE ` + db + ` RESET default_transaction_read_only`, "fence-default", ""},
		{`CREATE ROLE ` + role + `; ALTER ROLE ` + role + ` SET default_transaction_read_only = off`, "fence-setting", ""},
		{`ALTER ROLE ` + role + ` IN DATABASE ` + db + ` SET session_replication_role = replica`, "fence-setting", ""},
		{`SELECT lo_create(4711)`, "large-objects", `SELECT lo_unlink(4711)`},
	} {
		run(t, hawser, hole.make)
		_, found, err := Check(t.Context(), hawser)
		must(t, err)
		// The session that is older than the fence is found too, each time.
		if got := codes(found); got[hole.code] != 1 || got["fence-old-sessions"] > 1 || len(got) > 2 {
			t.Errorf("%s: found %v", hole.make, found)
		}
		for _, p := range found {
			if p.Code != hole.code {
				continue
			}
			if blocks := strings.HasPrefix(hole.code, "fence-") && hole.code != "fence-setting"; p.Blocks() != blocks {
				t.Errorf("%s: %v", hole.make, p)
			}
			switch hole.mend {
			case "":
				run(t, hawser, p.Remedy)
			case "close":
				must(t, Close(t.Context(), hawser, sign))
			default:
				run(t, hawser, hole.mend)
			}
		}
	}
	if got := testpg.Rows(t, user, `SELECT current_setting('server_version_num')::int >= 150000`); got[0] == "t" {
		run(t, hawser, `GRANT SET ON PARAMETER session_replication_role TO `+role)
		_, found, err := Check(t.Context(), hawser)
		must(t, err)
		if codes(found)["fence-grant"] != 1 {
			t.Errorf("a granted parameter: %v", found)
		}
		run(t, hawser, found[len(found)-1].Remedy)
	}
}
