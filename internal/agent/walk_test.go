package agent_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// walk plays with the links of one database between four instances, of which the first
// knows all others, and these get to know each other by the remedies alone. Each round it
// does some steps by chance: failovers, planned and by force, rejoins, follows to anywhere,
// agents that stop and run again. Then all agents run, and whatever does not synchronize
// within a while has its remedy carried out, to the letter. Every link has to come back,
// whatever it takes; then all replicas are equal to their primaries, and exactly those that
// are no secondary take writes.
type walk struct {
	t     *testing.T
	all   []*instance
	up    map[string]bool // whose agents run
	known map[string]bool // pairs that trust each other
	r     *rand.Rand
	n     int // rows written
}

// What a link may take to synchronize before its remedy is carried out, and all of them in all.
const walkPatience, walkHealsWithin = 13 * time.Second, 200 * time.Second

func (w *walk) logf(f string, a ...any) {
	w.t.Logf(time.Now().Format("15:04:05")+" "+f, a...)
}

func (w *walk) by(name string) *instance {
	for _, i := range w.all {
		if i.name == name {
			return i
		}
	}
	return nil
}

func pairOf(a, b string) string {
	if a > b {
		a, b = b, a
	}
	return a + b
}

func (w *walk) know(a, b *instance) {
	if a == b || w.known[pairOf(a.name, b.name)] || !w.up[a.name] || !w.up[b.name] {
		return
	}
	w.known[pairOf(a.name, b.name)] = true
	know(w.t, a, b)
	w.logf("know %s %s", a.name, b.name)
}

func (w *walk) links(i *instance) []api.Link {
	if !w.up[i.name] {
		return nil
	}
	list, err := i.Links(context.Background())
	if err != nil {
		w.t.Fatalf("%s: %v", i.name, err)
	}
	return list
}

// show is what all agents say of their links, and what they have stored of them.
func (w *walk) show() (out string) {
	for _, i := range w.all {
		if !w.up[i.name] {
			out += i.name + " down\n"
		}
		for _, l := range w.links(i) {
			out += fmt.Sprintf("   %s: %s %s term %d peer %s %s: %v\n", i.name, l.Name, l.Role, l.Term, l.Peer, l.State, l.Cause)
		}
		rows, err := i.Connect(w.t, "postgres").Query(context.Background(), `SELECT name || ' ' || side::text || coalesce(' S ' || (suspended->>'code'), '') FROM hawser.link`)
		if err == nil {
			for rows.Next() {
				var s string
				_ = rows.Scan(&s)
				out += "      " + s + "\n"
			}
			rows.Close()
		}
	}
	return out
}

// write leaves a row of its own wherever one can be written.
func (w *walk) write() {
	for _, i := range w.all {
		w.n++
		if try(w.t, i, fmt.Sprintf(`INSERT INTO customer (name) VALUES ('%s %d')`, i.name, w.n)) == nil {
			w.logf("%s wrote %d", i.name, w.n)
			_ = try(w.t, i, fmt.Sprintf(`UPDATE customer SET info = '{"w": %d}' WHERE id = %d`, w.n, 1+w.r.IntN(5)))
		}
	}
}

func (w *walk) start(i *instance) {
	if !w.up[i.name] {
		i.run(w.t)
		w.up[i.name] = true
		w.logf("run %s", i.name)
	}
}

// step does one thing by chance.
func (w *walk) step() {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	i := w.all[w.r.IntN(len(w.all))]
	links := w.links(i)
	var l api.Link
	if len(links) > 0 {
		l = links[w.r.IntN(len(links))]
	}
	switch k := w.r.IntN(20); {
	case k < 7:
		for _, j := range w.all {
			for _, x := range w.links(j) {
				if x.Role == api.RolePrimary && w.r.IntN(2) == 0 {
					r, err := j.FailoverLink(ctx, x.Name, api.FailoverOptions{Timeout: 8 * time.Second})
					w.logf("failover %s on %s: %s %v", x.Name, j.name, r.NewPrimary, err)
					return
				}
			}
		}
	case k < 9:
		if w.up[i.name] {
			i.stop()
			w.up[i.name] = false
			w.logf("stop %s", i.name)
		} else {
			w.start(i)
		}
	case k < 11:
		for _, j := range w.all {
			w.start(j)
		}
	case k < 13 && l.Role == api.RoleSecondary:
		_ = i.PauseLink(ctx, l.Name)
		_, err := i.FailoverLink(ctx, l.Name, api.FailoverOptions{Force: true})
		w.logf("FORCE %s on %s: %v", l.Name, i.name, err)
		if err != nil {
			w.logf("resume: %v", i.ResumeLink(ctx, l.Name))
		}
	case k < 14 && l.State == api.StateDiverged:
		w.logf("rejoin %s on %s: %v", l.Name, i.name, i.RejoinLink(ctx, l.Name))
	case k < 15 && l.Role == api.RoleSecondary:
		to := w.all[w.r.IntN(len(w.all))]
		w.logf("follow %s on %s --primary %s: %v", l.Name, i.name, to.name, i.FollowLink(ctx, l.Name, to.name))
	case k < 16:
		w.know(i, w.all[w.r.IntN(len(w.all))])
	case k < 18:
		time.Sleep(time.Duration(w.r.IntN(6)) * time.Second)
	default:
		w.write()
	}
}

// do carries a remedy out, and where it is refused that of the refusal.
func (w *walk) do(i *instance, l api.Link, p *problem.Problem, depth int) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	at := i
	switch {
	case p.Place == "the link's secondary":
		if l.Role == api.RolePrimary {
			at = w.by(l.Peer)
		}
	case strings.HasPrefix(p.Place, "instance "):
		at = w.by(strings.TrimPrefix(p.Place, "instance "))
	case p.Place != "":
		w.logf("where is %q? %v", p.Place, p)
		return
	}
	f := strings.Fields(p.Remedy)
	if len(f) < 3 {
		return
	}
	var err error
	switch f[1] + " " + f[2] {
	case "link follow":
		err = at.FollowLink(ctx, f[3], f[5])
	case "link rejoin":
		err = at.RejoinLink(ctx, f[3])
	case "link resync":
		err = at.ResyncLink(ctx, f[3], nil)
	case "link resume":
		err = at.ResumeLink(ctx, f[3])
	case "link drop":
		_, err = at.DropLink(ctx, f[3], api.DropOptions{Force: strings.Contains(p.Remedy, "--force")})
	case "link failover":
		_, err = at.FailoverLink(ctx, f[3], api.FailoverOptions{Force: strings.Contains(p.Remedy, "--force"), Timeout: 20 * time.Second})
	case "peer add":
		w.know(at, w.by(strings.TrimSuffix(f[3], ".pem")))
	default:
		w.logf("  [%s %s: nothing to do by %q] %v", i.name, l.Name, p.Remedy, p)
		return
	}
	w.logf("  on %s (%s of %s, %s): %s -> %v", at.name, l.Name, i.name, p.Code, p.Remedy, err)
	if q, ok := problem.As(err); ok && depth < 2 && !q.Retryable {
		if q.Remedy == p.Remedy {
			w.logf("  the same remedy again")
			return
		}
		if d := fmt.Sprintf("hawser link drop %s --force, on instance ", l.Name); q.Code == "link-not-found" && strings.Contains(p.Advice, d) {
			_, rest, _ := strings.Cut(p.Advice, d)
			_, err := w.by(rest).DropLink(ctx, l.Name, api.DropOptions{Force: true})
			w.logf("  on %s: drop %s --force -> %v", rest, l.Name, err)
			return
		}
		w.do(at, l, q, depth+1)
	}
}

// heal runs all agents, and carries remedies out until every link is synchronized.
func (w *walk) heal() {
	began := time.Now()
	since, last := map[string]time.Time{}, map[string]string{}
	for _, j := range w.all {
		w.start(j)
	}
	for {
		bad := 0
		acted := false
		for _, i := range w.all {
			for _, l := range w.links(i) {
				if l.State == api.StateSynchronized {
					continue
				}
				bad++
				key := i.name + l.Name
				now := fmt.Sprintf("%s %v", l.State, l.Cause)
				if last[key] != now {
					last[key], since[key] = now, time.Now()
				}
				if acted || time.Since(since[key]) < walkPatience || l.Cause == nil || l.Cause.Help() == "" {
					continue
				}
				w.do(i, l, l.Cause, 0)
				acted = true
				since[key] = time.Now()
			}
		}
		if bad == 0 {
			break
		}
		if time.Since(began) > walkHealsWithin {
			w.t.Fatalf("not healed:\n%s", w.show())
		}
		time.Sleep(700 * time.Millisecond)
	}
	w.logf("healed after %s", time.Since(began).Round(time.Second))
}

// hold compares every replica with its primary, and who takes writes with who may.
func (w *walk) hold() {
	w.write()
	for _, i := range w.all {
		secondary := false
		links := w.links(i)
		for _, l := range links {
			if l.Role == api.RoleSecondary {
				secondary = true
				if p := w.by(l.Peer); p != nil {
					equal(w.t, p, i, "shop")
				}
			}
		}
		if open := try(w.t, i, `INSERT INTO audit (what) VALUES ('x')`) == nil; open == secondary {
			w.t.Fatalf("%s open=%v:\n%s", i.name, open, w.show())
		}
	}
}

// slots finds what nobody uses any more: it would hold WAL back for ever.
func (w *walk) slots() {
	for _, i := range w.all {
		want := 0
		for _, l := range w.links(i) {
			if l.Role == api.RolePrimary {
				want++
			}
		}
		testpg.Eventually(w.t, time.Minute, "slots of "+i.name, func() (bool, error) {
			got := i.Rows(w.t, "postgres", `SELECT slot_name FROM pg_replication_slots UNION ALL SELECT 'heir ' || name FROM hawser.heir`)
			if len(got) != want {
				return false, fmt.Errorf("%q, want %d", got, want)
			}
			return true, nil
		})
	}
}

// TestWalk runs for as long as HAWSER_TEST_WALK says, such as 15m; HAWSER_TEST_SEED plays a
// walk again, as far as its times allow.
func TestWalk(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("HAWSER_TEST_WALK"))
	if err != nil {
		t.Skip("a walk takes as long as HAWSER_TEST_WALK says: make walk FOR=15m")
	}
	seed, err := strconv.ParseUint(os.Getenv("HAWSER_TEST_SEED"), 10, 64)
	if err != nil || seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("HAWSER_TEST_SEED=%d", seed)
	w := &walk{t: t, up: map[string]bool{}, known: map[string]bool{}, r: rand.New(rand.NewPCG(seed, 7))}
	for _, name := range []string{"alpha", "beta", "gamma", "delta"} {
		w.all = append(w.all, newInstance(t, name))
		w.up[name] = true
	}
	w.begin()
	rounds := 0
	for began := time.Now(); time.Since(began) < limit; rounds++ {
		w.logf("round %d", rounds)
		for range 3 + w.r.IntN(10) {
			w.step()
		}
		w.heal()
		w.hold()
		w.slots()
		count, pairs := 0, len(w.all)*(len(w.all)-1)/2
		for _, i := range w.all {
			count += len(w.links(i))
		}
		if count < 2*(len(w.all)-1) || len(w.known) == pairs && w.r.IntN(3) == 0 {
			w.reset()
		}
	}
	t.Logf("%d rounds", rounds)
}

// begin makes the family.
func (w *walk) begin() {
	a := w.all[0]
	a.Exec(w.t, "postgres", `CREATE DATABASE shop`)
	a.Exec(w.t, "shop", zoo)
	w.relink()
}

func (w *walk) relink() {
	a := w.all[0]
	for k, to := range w.all[1:] {
		w.know(a, to)
		name := []string{"shop", "other", "third"}[k]
		if _, err := a.CreateLink(context.Background(), api.LinkSpec{Name: name, Database: "shop", Peer: to.name, Role: api.RolePrimary}); err != nil {
			w.t.Fatal(err)
		}
	}
	for k, to := range w.all[1:] {
		to.awaitState(w.t, []string{"shop", "other", "third"}[k], api.StateSynchronized)
	}
}

// reset drops all links, and begins anew without trust between the others.
func (w *walk) reset() {
	ctx := context.Background()
	for range 2 {
		for _, i := range w.all {
			for _, l := range w.links(i) {
				_, err := i.DropLink(ctx, l.Name, api.DropOptions{})
				w.logf("reset: drop %s on %s: %v", l.Name, i.name, err)
			}
		}
	}
	for x, i := range w.all {
		for _, j := range w.all[x+1:] {
			if w.known[pairOf(i.name, j.name)] && x > 0 {
				delete(w.known, pairOf(i.name, j.name))
				if err := i.RemovePeer(ctx, j.name); err != nil {
					w.t.Fatal(err)
				}
				if err := j.RemovePeer(ctx, i.name); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		if x > 0 {
			i.Exec(w.t, "postgres", `DROP DATABASE IF EXISTS shop WITH (FORCE)`)
		}
	}
	w.relink()
}
