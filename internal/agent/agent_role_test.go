package agent_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// asRole has the instance's agent begin anew as a superuser of that name.
func (i *instance) asRole(t *testing.T, role string) {
	t.Helper()
	i.stop()
	i.Exec(t, "postgres", `CREATE ROLE `+role+` SUPERUSER LOGIN`, `DROP SCHEMA hawser CASCADE`) // which the agent makes anew, as its own
	i.connect = fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=postgres sslmode=disable", i.Port(), role)
	i.run(t)
}

// ownersOfOurs are the roles that own what Hawser put into the database.
const ownersOfOurs = `SELECT DISTINCT pg_get_userbyid(owner) FROM (
	SELECT relowner, relnamespace = 'hawser'::regnamespace FROM pg_class
	UNION ALL SELECT proowner, pronamespace = 'hawser'::regnamespace FROM pg_proc
	UNION ALL SELECT nspowner, nspname = 'hawser' FROM pg_namespace
	UNION ALL SELECT evtowner, evtname ~ 'hawser_' FROM pg_event_trigger
	UNION ALL SELECT pubowner, pubname ~ '^hawser_' FROM pg_publication) o(owner, ours) WHERE ours`

// TestAgentsOfDifferentRoles: what Hawser made in a database is the local agent's, however
// often the roles are swapped, and the other instance hears nothing of that role.
func TestAgentsOfDifferentRoles(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := newInstance(t, "alpha"), newInstance(t, "beta")
	a.asRole(t, "hawser_a")
	b.asRole(t, "hawser_b")
	introduce(t, a, b)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	sides := map[*instance]*instance{a: b, b: a}
	for n, primary := range []*instance{a, b, a, b} {
		if n > 0 {
			if _, err := primary.FailoverLink(ctx, "shop", api.FailoverOptions{Timeout: time.Minute}); err != nil {
				t.Fatal(err)
			}
		}
		secondary := sides[primary]
		secondary.awaitState(t, "shop", api.StateSynchronized)
		// A sweep of the primary that has looked at everything has told of this.
		name := fmt.Sprintf("told_%d", n)
		primary.Exec(t, "shop", `COMMENT ON DATABASE shop IS '`+name+`'`)
		conn := secondary.Connect(t, "shop")
		testpg.Eventually(t, 40*time.Second, "the secondary has heard of "+name, func() (bool, error) {
			got := testpg.Rows(t, conn, `SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'shop'`)
			return len(got) == 1 && got[0] == name, nil
		})
		for i, role := range map[*instance]string{a: "hawser_a", b: "hawser_b"} {
			conn := i.Connect(t, "shop")
			if got := testpg.Rows(t, conn, ownersOfOurs); len(got) != 1 || got[0] != role {
				t.Errorf("%d: on %s, whose agent is %s, these own Hawser's objects: %q", n, i.name, role, got)
			}
			if got := testpg.Rows(t, conn, `SELECT rolname FROM pg_roles WHERE rolname LIKE 'hawser_%'`); len(got) != 1 {
				t.Errorf("%d: on %s there are the roles %q", n, i.name, got)
			}
			if l, err := i.Link(ctx, "shop"); err != nil || len(withoutLogin(l.Findings)) > 0 {
				t.Errorf("%d: %s tells of roles: %v %v", n, i.name, l.Findings, err)
			}
		}
	}
	spec := api.LinkSpec{Name: "again", Database: "shop", Peer: "alpha", Role: api.RolePrimary}
	if found, _ := b.ValidateLink(ctx, spec); len(withoutLogin(found)) > 0 {
		t.Errorf("validation tells of roles: %v", found)
	}
}
