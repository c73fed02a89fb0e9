package schema

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hawser/hawser/internal/testpg"
)

func TestRestoreRoles(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	p := rolePrefix(t, c)
	c.Exec(t, "postgres", "CREATE ROLE "+p+"there SUPERUSER")
	all := []string{p + "there", p + `new "group"`, p + "new user", "pg_monitor"}
	roles := []Role{
		{Name: all[0], Inherit: true, MemberOf: []Membership{{Role: all[1], Inherit: true, Set: true}}},
		{Name: all[1], Inherit: true, Login: true, Superuser: true},
		{Name: all[2], MemberOf: []Membership{{Role: all[0], Inherit: true, Set: true}, {Role: all[1], Admin: true, Inherit: true, Set: true}, {Role: all[3]}}},
		{Name: all[3]},
	}
	conn := c.Connect(t, "postgres")
	created, _, err := RestoreRoles(ctx, conn, roles)
	if err != nil {
		t.Fatal(err)
	}
	if want := all[1:3]; !slices.Equal(created, want) {
		t.Errorf("created %q, want %q", created, want)
	}
	got := testpg.Rows(t, conn, `
		SELECT substr(rolname, length($1) + 1) || ' ' || rolcanlogin || rolsuper || rolinherit || (rolpassword IS NULL) FROM pg_authid
		WHERE starts_with(rolname, $1) ORDER BY 1`, p)
	want := []string{`new "group" falsefalsetruetrue`, "new user falsefalsefalsetrue", "there falsetruetruetrue"}
	if !slices.Equal(got, want) {
		t.Errorf("roles are %q, want %q", got, want)
	}
	// No one becomes a member of what was there before: of the superuser, of pg_monitor.
	got = testpg.Rows(t, conn, `
		SELECT replace(m.member::regrole::text || ' in ' || m.roleid::regrole::text || ' ' || m.admin_option, $1, '') FROM pg_auth_members m
			JOIN pg_roles r ON r.oid = m.member WHERE starts_with(r.rolname, $1) ORDER BY 1`, p)
	want = []string{`"new user" in "new ""group""" true`, `there in "new ""group""" false`}
	if !slices.Equal(got, want) {
		t.Errorf("memberships are %q, want %q", got, want)
	}
	if created, _, err = RestoreRoles(ctx, conn, roles); err != nil || len(created) != 0 {
		t.Errorf("the second time it created %q, %v", created, err)
	}
}

func TestRestoreRolesBesideAnother(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	p := rolePrefix(t, c)
	var roles []Role
	for _, name := range strings.Split("abcdefghijklmnop", "") {
		roles = append(roles, Role{Name: p + name})
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 4 {
		conn := c.Connect(t, "postgres")
		group.Go(func() {
			created, _, err := RestoreRoles(ctx, conn, roles)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			total += len(created)
		})
	}
	testpg.Returns(t, "all have restored the roles", group.Wait)
	if total != len(roles) {
		t.Errorf("%d roles were created, want %d", total, len(roles))
	}
}

func TestMembershipOptions(t *testing.T) {
	t.Parallel()
	m := Membership{Role: "g", Admin: true, Set: true}
	if got, want := (membership{"m", m, 150000}).grant(), `GRANT "g" TO "m" WITH ADMIN OPTION`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := (membership{"m", m, 160000}).grant(), `GRANT "g" TO "m" WITH ADMIN true, INHERIT false, SET true`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDumpNamesOnlyItsRoles(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), testpg.Shared(t)
	p := rolePrefix(t, c)
	db, other := c.CreateDatabase(t), c.CreateDatabase(t)
	for _, name := range []string{"owner", "grantee", "elsewhere", "hawsers"} {
		c.Exec(t, "postgres", "CREATE ROLE "+p+name)
	}
	c.Exec(t, db, "CREATE TABLE t (a int)", "ALTER TABLE t OWNER TO "+p+"owner", "GRANT SELECT ON t TO "+p+"grantee, pg_monitor",
		"CREATE SCHEMA hawser AUTHORIZATION "+p+"hawsers")
	c.Exec(t, other, "CREATE SCHEMA s AUTHORIZATION "+p+"elsewhere")
	d, err := TakeDump(ctx, c.Server(), db, DumpOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range d.Roles {
		got = append(got, strings.TrimPrefix(r.Name, p))
	}
	super := testpg.Rows(t, c.Connect(t, db), `SELECT rolname FROM pg_roles WHERE oid = 10`)[0]
	want := []string{"grantee", "owner", "pg_monitor", super}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("roles are %q, want %q", got, want)
	}
}
