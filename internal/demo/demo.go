// Package demo is `hawser demo`: the whole product on one machine, for real.
//
// It starts a PostgreSQL that stands for somebody's server and a managed
// instance, each with an agent in a process of its own, puts a schema and a steady
// workload on the server, links the database, fails over and back while clients
// write, and proves at the end that both sides hold the same. It uses the product
// as a user would, through the agents' API, and must never reach into it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
)

// Options say how the demo runs.
type Options struct {
	Keep     bool          // leave all running at the end
	Duration time.Duration // of the workload between the steps; 0: the demo chooses
	JSON     bool          // a JSON line a step
	Terminal bool          // Out is a terminal: progress is drawn in place
	Out      io.Writer
}

const (
	database = "shop"
	linkName = "shop"
	onPrem   = "on-prem"
	managed  = "managed"
)

// Run runs the demo. It returns nil only when the proof holds. Without Keep
// nothing is left behind, whatever happened.
func Run(ctx context.Context, o Options) (err error) {
	if o.Duration <= 0 {
		o.Duration = 8 * time.Second
	}
	r := &report{Options: o, began: time.Now()}
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.fail(err, w)
		}
		if o.Keep && err == nil {
			r.note(w.howTo())
			return
		}
		err = errors.Join(err, w.close())
	}()
	s := &show{w: w, r: r, pause: o.Duration}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"two instances", s.start},
		{"certificates exchanged", s.introduce},
		{"schema and rows on the server", s.fill},
		{"workload", s.work},
		{"link created", s.link},
		{"seeding", s.seed},
		{"following", s.follow},
		{"read-only replica", s.refuse},
		{"planned failover to " + managed, s.failover},
		{"failback to " + onPrem, s.failover},
		{"proof", s.prove},
	} {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		r.begin(step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// show is the demo under way.
type show struct {
	w     *world
	r     *report
	load  *workload
	pause time.Duration
}

func (s *show) start(ctx context.Context) error {
	if err := s.w.start(ctx); err != nil {
		return err
	}
	for _, i := range []*instance{s.w.server, s.w.managed} {
		info, err := i.api.Instance(ctx)
		if err != nil {
			return err
		}
		s.r.say("%s: %s, PostgreSQL %s on port %d, endpoint %s", i.name, info.Kind, info.Postgres.Version, i.port, info.Endpoint)
	}
	return nil
}

func (s *show) introduce(ctx context.Context) error {
	for _, way := range [][2]*instance{{s.w.server, s.w.managed}, {s.w.managed, s.w.server}} {
		cert, err := way[1].api.Certificate(ctx)
		if err != nil {
			return err
		}
		add := api.AddPeer{Name: way[1].name, Certificate: cert.PEM}
		if way[1] == s.w.managed {
			add.Address = way[1].endpoint // only this direction has to be open
		}
		if _, err := way[0].api.AddPeer(ctx, add); err != nil {
			return err
		}
	}
	err := until(ctx, 20*time.Second, func() (bool, error) {
		list, err := s.w.server.api.Peers(ctx)
		return err == nil && len(list.Peers) == 1 && list.Peers[0].Connected, err
	})
	if err != nil {
		return err
	}
	steps, err := s.w.server.api.TestPeer(ctx, managed)
	if err != nil {
		return err
	}
	for _, step := range steps {
		if !step.OK {
			return step.Problem
		}
		s.r.say("%-18s %s", step.Name, step.Detail)
	}
	return nil
}

func (s *show) fill(ctx context.Context) error {
	text, err := s.w.fill(ctx)
	if err == nil {
		s.r.say("%s", text)
	}
	return err
}

func (s *show) work(ctx context.Context) error {
	s.load = startWorkload(s.w.clientString())
	err := until(ctx, 20*time.Second, func() (bool, error) { return s.load.total() > 100, s.load.lastError() })
	if err == nil {
		s.r.say("%d clients write, all with one connection string: %s", clients, s.w.clientStringShown())
	}
	return err
}

func (s *show) link(ctx context.Context) error {
	findings, err := s.w.server.api.ValidateLink(ctx, api.LinkSpec{Name: linkName, Database: database, Peer: managed, Role: api.RolePrimary})
	if err != nil {
		return err
	}
	for _, f := range findings {
		s.r.say("%s: %s: %s", f.Severity, f.Object, f.Cause)
	}
	_, err = s.w.server.api.CreateLink(ctx, api.LinkSpec{Name: linkName, Database: database, Peer: managed, Role: api.RolePrimary})
	return err
}

// seed shows the copy until the replica follows.
func (s *show) seed(ctx context.Context) error {
	began := time.Now()
	var last api.Seeding
	err := until(ctx, 5*time.Minute, func() (bool, error) {
		l, err := s.w.server.api.Link(ctx, linkName)
		if err != nil {
			return false, err
		}
		if l.State == api.StateSuspended {
			return false, fatal{errors.New(l.Cause.Error())}
		}
		if l.Seeding != nil {
			last = *l.Seeding
			s.r.progress("%d of %d tables, %s of %s, %d rows, %s/s%s", last.TablesDone, last.TablesTotal,
				size(last.BytesDone), size(last.BytesTotal), last.RowsDone, size(int64(last.RateBytesPerSecond)), eta(last.ETASeconds))
		}
		return l.State == api.StateSynchronized, nil
	})
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	s.r.say("%s in %d tables, %d rows, copied and followed up in %.1f s: %s/s, beside %d transactions a second",
		size(last.BytesTotal), last.TablesTotal, last.RowsDone, took, size(int64(float64(last.BytesTotal)/took)), s.load.rate())
	return nil
}

// follow watches the lag for a while.
func (s *show) follow(ctx context.Context) error {
	var bytes, seconds []float64
	end := time.Now().Add(s.pause)
	for time.Now().Before(end) {
		l, err := s.w.server.api.Link(ctx, linkName)
		if err != nil {
			return err
		}
		if l.LagBytes != nil && l.LagSeconds != nil {
			bytes, seconds = append(bytes, float64(*l.LagBytes)), append(seconds, *l.LagSeconds)
			s.r.progress("lag %s, %.1f ms", size(int64(*l.LagBytes)), *l.LagSeconds*1000)
		}
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
	if len(bytes) == 0 {
		return errors.New("the lag is not known")
	}
	s.r.say("lag under %d transactions a second: median %s and %.1f ms, at most %s and %.1f ms",
		s.load.rate(), size(int64(median(bytes))), median(seconds)*1000, size(int64(most(bytes))), most(seconds)*1000)
	return nil
}

// refuse tries to write on the replica as its superuser, read-only switched off.
func (s *show) refuse(ctx context.Context) error {
	const off = `SET default_transaction_read_only = off`
	for _, sql := range [][]string{
		{`INSERT INTO customer (name, email) VALUES ('x', 'x')`},
		{off, `DELETE FROM ledger`},
		{off, `CREATE TABLE t ()`},
	} {
		err := s.w.managed.exec(ctx, database, sql...)
		if err == nil {
			return fmt.Errorf("the replica took %q", sql)
		}
		s.r.say("%s\n    -> %v", strings.Join(sql, "; "), err)
	}
	return nil
}

// failover swaps the roles while the clients write, and tells what they noticed.
func (s *show) failover(ctx context.Context) error {
	before := s.load.total()
	s.load.resetGaps()
	result, err := s.w.server.api.FailoverLink(ctx, linkName, api.FailoverOptions{Timeout: time.Minute})
	if err != nil {
		return err
	}
	err = until(ctx, time.Minute, func() (bool, error) {
		l, err := s.w.server.api.Link(ctx, linkName)
		return err == nil && l.State == api.StateSynchronized && s.load.allWroteSince(result.FinishedAt), err
	})
	if err != nil {
		return err
	}
	for _, p := range result.Phases {
		s.r.say("  %-16s %7.1f ms", p.Name, p.Seconds*1000)
	}
	gaps := s.load.gaps()
	s.r.say("term %d, primary is %s; no side took writes for %.0f ms; the clients' longest gaps between two commits: median %.0f ms, at most %.0f ms",
		result.Term, result.NewPrimary, result.WriteOutageSeconds*1000, median(gaps)*1000, most(gaps)*1000)
	if err := sleep(ctx, s.pause/2); err != nil {
		return err
	}
	s.r.say("%d transactions since, on %s", s.load.total()-before, result.NewPrimary)
	return nil
}

// prove stops the clients and compares everything.
func (s *show) prove(ctx context.Context) error {
	report, err := s.w.server.api.VerifyLink(ctx, linkName, api.VerifyOptions{})
	if err != nil {
		return err
	}
	s.r.say("under running writes, at position %s: %d tables, equal: %v, in %.1f s", report.Position, len(report.Tables), report.Equal, report.Seconds)
	if !report.Equal {
		for _, t := range report.Tables {
			if !t.Equal {
				s.r.say("%s.%s: %d and %d rows, compared %v: %v", t.Schema, t.Name, t.RowsPrimary, t.RowsSecondary, t.Compared, t.Problem)
			}
		}
		for _, f := range report.Findings {
			s.r.say("%v", f)
		}
		for _, o := range report.Schema {
			s.r.say("%s %s: the primary has %q, the secondary %q", o.Kind, o.Name, o.Primary, o.Secondary)
		}
		for _, q := range report.Sequences {
			s.r.say("sequence %s.%s: the primary is at %+v, the secondary at %+v", q.Schema, q.Name, q.Primary, q.Secondary)
		}
		return errors.New("hawser link verify found differences")
	}
	acked := s.load.stop()
	text, err := s.w.prove(ctx, acked)
	if err != nil {
		return err
	}
	s.r.say("%s", text)
	fmt.Fprintln(s.r.Out)
	s.r.say("both sides hold the same rows")
	return nil
}

// fatal ends a wait at once.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// until waits for cond; it returns cond's last error when it does not come.
func until(ctx context.Context, within time.Duration, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		ok, err := cond()
		if ok {
			return nil
		}
		if errors.As(err, &fatal{}) {
			return err
		}
		if wait := sleep(ctx, 100*time.Millisecond); wait != nil {
			return errors.Join(fmt.Errorf("not within %s", within), err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// tail is the end of a file, for an error.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}
