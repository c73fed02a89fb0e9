package catalog

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/hawser/hawser/internal/testpg"
)

// TestOwnObjectsComeBack: what an older agent gave away is the agent's again, and nothing
// of a user's.
func TestOwnObjectsComeBack(t *testing.T) {
	t.Parallel()
	conn := fresh(t, "database")
	role := "other_side_" + testpg.Rows(t, conn, `SELECT current_database()`)[0]
	t.Cleanup(func() {
		_, err := conn.Exec(context.Background(), `DROP OWNED BY "`+role+`"; DROP ROLE "`+role+`"`)
		do(t, err)
	})
	_, err := conn.Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %[1]q SUPERUSER;
		CREATE FUNCTION hawser.fence_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
		CREATE FUNCTION hawser.some(int, text[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
		CREATE EVENT TRIGGER "!hawser_ddl" ON sql_drop EXECUTE FUNCTION hawser.fence_ddl();
		CREATE PUBLICATION hawser_1;
		CREATE TABLE users ();
		ALTER FUNCTION hawser.fence_ddl() OWNER TO %[1]q; ALTER FUNCTION hawser.some OWNER TO %[1]q; ALTER TABLE hawser.position OWNER TO %[1]q;
		ALTER EVENT TRIGGER "!hawser_ddl" OWNER TO %[1]q; ALTER PUBLICATION hawser_1 OWNER TO %[1]q; ALTER SCHEMA hawser OWNER TO %[1]q; ALTER TABLE users OWNER TO %[1]q`, role))
	do(t, err)
	back, err := os.ReadFile("database/0008_owner.sql")
	do(t, err)
	_, err = conn.Exec(t.Context(), string(back))
	do(t, err)
	want(t, "what the other role owns", testpg.Rows(t, conn, `SELECT pg_describe_object(classid, objid, 0) FROM pg_shdepend d, pg_database b
		WHERE b.datname = current_database() AND dbid = b.oid AND deptype = 'o' AND refobjid = '"`+role+`"'::regrole`), []string{"table users"})
}
