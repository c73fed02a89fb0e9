package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
	"github.com/hawser/hawser/internal/verify"
)

// memberships are those of the test's roles.
const memberships = `SELECT u.rolname || ' in ' || g.rolname || CASE WHEN m.admin_option THEN ' with admin' ELSE '' END
	FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member WHERE u.rolname LIKE 'app%' ORDER BY 1`

// TestMembershipsFollow grants roles to each other before the link is made and while it
// runs, and takes them back. A role that has rights elsewhere on the secondary's instance,
// by itself or by another role, is opened to nobody: that is told, with the command.
func TestMembershipsFollow(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	b.Exec(t, "postgres", `CREATE ROLE app_elsewhere; CREATE ROLE app_admin CREATEROLE; CREATE ROLE app_above; CREATE ROLE app_below IN ROLE app_above`, `CREATE DATABASE other`, `GRANT CREATE ON DATABASE other TO app_elsewhere; CREATE ROLE app_early`)
	b.Exec(t, "other", `CREATE TABLE theirs (id int); GRANT SELECT ON theirs TO app_above`)
	a.Exec(t, "postgres", `CREATE ROLE app_rw; CREATE ROLE app_ro; CREATE ROLE app_user LOGIN IN ROLE app_ro; CREATE ROLE app_odd LOGIN NOINHERIT; CREATE ROLE app_elsewhere; CREATE ROLE app_admin; CREATE ROLE app_above; CREATE ROLE app_below; CREATE ROLE app_early IN ROLE app_elsewhere, app_ro; CREATE ROLE app_boss SUPERUSER`)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY); GRANT SELECT ON t TO app_ro, app_user, app_odd, app_elsewhere, app_admin, app_above, app_below, app_early, app_boss; GRANT ALL ON t TO app_rw`)
	b.awaitState(t, "shop", api.StateSynchronized)
	conn := b.Connect(t, "shop")
	are := func(want ...string) {
		t.Helper()
		testpg.Eventually(t, 30*time.Second, "the roles are members", func() (bool, error) {
			got := testpg.Rows(t, conn, memberships)
			if strings.Join(got, ", ") != strings.Join(want, ", ") {
				return false, fmt.Errorf("they are %q, want %q", got, want)
			}
			return true, nil
		})
	}
	told := func(role, remedy string) {
		t.Helper()
		testpg.Eventually(t, 30*time.Second, "it is told: "+remedy, func() (bool, error) {
			l, err := b.Link(context.Background(), "shop")
			if err != nil {
				return false, err
			}
			for _, n := range l.Findings {
				if n.Code == "role-membership" && n.Object == "role "+role && strings.HasPrefix(n.Remedy, remedy) {
					return true, nil
				}
			}
			return false, fmt.Errorf("%v", l.Findings)
		})
	}
	are("app_below in app_above", "app_early in app_ro", "app_user in app_ro")
	told("app_early", `GRANT "app_elsewhere" TO "app_early"`)

	a.Exec(t, "shop", `GRANT app_rw TO app_user WITH ADMIN OPTION; GRANT app_ro TO app_rw, app_odd; GRANT app_elsewhere, app_admin, app_below, app_boss, pg_read_all_data TO app_user`)
	are("app_below in app_above", "app_early in app_ro", "app_odd in app_ro", "app_rw in app_ro", "app_user in app_boss", "app_user in app_ro", "app_user in app_rw with admin")
	for _, group := range []string{"app_elsewhere", "app_admin", "app_below"} {
		told("app_user", `GRANT "`+group+`" TO "app_user"`)
	}
	report, err := a.VerifyLink(context.Background(), "shop", api.VerifyOptions{})
	if err != nil || report.Equal {
		t.Errorf("verify says equal: %v %v", report.Equal, err)
	}
	var grants []string
	for _, d := range report.Schema {
		if d.Kind == verify.KindMembership && d.Secondary == "" {
			grants = append(grants, d.Primary)
		} else if d.Kind == verify.KindMembership {
			grants = append(grants, "not on the primary: "+d.Secondary)
		} else {
			t.Errorf("verify: %+v", d)
		}
	}
	for _, sql := range grants {
		if !strings.HasPrefix(sql, "not ") {
			b.Exec(t, "postgres", sql)
		}
	}
	if got, want := strings.Join(grants, "; "), "not on the primary: GRANT app_above TO app_below; GRANT app_elsewhere TO app_early; GRANT app_admin TO app_user; GRANT app_below TO app_user; GRANT app_elsewhere TO app_user"; got != want {
		t.Errorf("verify tells of %s", got)
	}

	a.Exec(t, "shop", `REVOKE app_ro FROM app_odd; REVOKE ADMIN OPTION FOR app_rw FROM app_user; REVOKE app_elsewhere FROM app_user`)
	are("app_below in app_above", "app_early in app_elsewhere", "app_early in app_ro", "app_rw in app_ro", "app_user in app_admin", "app_user in app_below", "app_user in app_boss", "app_user in app_elsewhere", "app_user in app_ro", "app_user in app_rw")
	told("app_user", `REVOKE "app_elsewhere" FROM "app_user"`)
	if got := testpg.Rows(t, conn, `SELECT rolname FROM pg_roles WHERE rolname LIKE 'app%' AND (rolcanlogin OR rolsuper OR NOT rolinherit AND rolname <> 'app_odd')`); len(got) > 0 {
		t.Errorf("these got attributes: %v", got)
	}
	if _, err := b.FailoverLink(context.Background(), "shop", api.FailoverOptions{Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	a.awaitState(t, "shop", api.StateSynchronized)
	b.Exec(t, "shop", `GRANT app_ro TO app_odd; REVOKE app_ro FROM app_rw`)
	conn = a.Connect(t, "shop")
	testpg.Eventually(t, 30*time.Second, "the roles of the old primary follow", func() (bool, error) {
		got := strings.Join(testpg.Rows(t, conn, memberships), ", ")
		if !strings.Contains(got, "app_odd in app_ro") || strings.Contains(got, "app_rw in app_ro") {
			return false, fmt.Errorf("they are %s", got)
		}
		return true, nil
	})
}

// TestMembersOfGroups has roles that the database names nowhere: they are members of those
// that it names, and may do there what these may.
func TestMembersOfGroups(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Exec(t, "postgres", `CREATE ROLE app_group; CREATE ROLE app_team IN ROLE app_group; CREATE ROLE app_alice LOGIN IN ROLE app_team; CREATE ROLE app_none LOGIN; CREATE ROLE app_reader LOGIN IN ROLE pg_read_all_data; CREATE ROLE app_over; GRANT app_over TO app_group`)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY); GRANT SELECT ON t TO app_group`)
	spec := api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary}
	if found, err := a.ValidateLink(context.Background(), spec); err != nil || !strings.Contains(fmt.Sprint(found), "app_alice") {
		t.Errorf("nobody is told that a role is to be made: %v %v", found, err)
	}
	if _, err := a.CreateLink(context.Background(), spec); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	conn := b.Connect(t, "shop")
	are := func(roles, want string) {
		t.Helper()
		testpg.Eventually(t, 30*time.Second, "the roles are members", func() (bool, error) {
			got := strings.Join(testpg.Rows(t, conn, `SELECT rolname FROM pg_roles WHERE rolname LIKE 'app%' AND NOT rolcanlogin ORDER BY 1`), ", ") + ": " + strings.Join(testpg.Rows(t, conn, memberships), ", ")
			if got != roles+": "+want {
				return false, fmt.Errorf("they are %q", got)
			}
			return true, nil
		})
	}
	are("app_alice, app_group, app_team", "app_alice in app_team, app_team in app_group")
	a.Exec(t, "postgres", `CREATE ROLE app_bob LOGIN IN ROLE app_group; GRANT app_none TO app_bob`)
	are("app_alice, app_bob, app_group, app_team", "app_alice in app_team, app_bob in app_group, app_team in app_group")
	a.Exec(t, "postgres", `REVOKE app_group FROM app_bob; REVOKE app_team FROM app_alice`)
	are("app_alice, app_bob, app_group, app_team", "app_team in app_group")
}
