package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/postgres"
)

// hawser is the product as its users run it.
type hawser struct {
	program string
	front   func(endpoint string) (string, error) // where the replica's agent is told to find the primary's; nil: its endpoint
	p       *pair
	sides   [2]*agent // of the primary, of the replica
}

const linkName = "bench"

// agent is a process of bin/hawser.
type agent struct {
	name, endpoint string
	api            *api.Client
	cmd            *exec.Cmd
	ended          chan struct{}
}

func (h *hawser) setup(ctx context.Context, p *pair) error {
	if err := h.connect(ctx, p); err != nil {
		return err
	}
	if err := h.create(ctx, linkName, database); err != nil {
		return err
	}
	return h.copied(ctx, linkName)
}

// connect starts the agents and has them trust each other.
func (h *hawser) connect(ctx context.Context, p *pair) error {
	h.p = p
	for i, s := range []*server{p.primary, p.replica} {
		a, err := startAgent(ctx, h.program, []string{"primary", "replica"}[i], p.dir, s)
		if err != nil {
			return err
		}
		h.sides[i] = a
	}
	for i, a := range h.sides {
		other := h.sides[1-i]
		cert, err := other.api.Certificate(ctx)
		if err != nil {
			return err
		}
		add := api.AddPeer{Name: other.name, Certificate: cert.PEM}
		if i == 1 { // the replica dials
			add.Address = other.endpoint
			if h.front != nil {
				if add.Address, err = h.front(other.endpoint); err != nil {
					return err
				}
			}
		}
		if _, err := a.api.AddPeer(ctx, add); err != nil {
			return err
		}
	}
	return until(ctx, 30*time.Second, func() (bool, error) {
		list, err := h.sides[0].api.Peers(ctx)
		return err == nil && len(list.Peers) == 1 && list.Peers[0].Connected, err
	})
}

// knowsDelay waits until it follows over a line of which the agents have seen how
// slow it is.
func (h *hawser) knowsDelay(ctx context.Context) error {
	err := until(ctx, time.Minute, func() (bool, error) {
		list, err := h.sides[1].api.Peers(ctx)
		if err != nil || len(list.Peers) != 1 {
			return false, err
		}
		took := list.Peers[0].RoundTripSeconds
		return took != nil && *took*1000 >= lineDelayMS, nil
	})
	return errors.Join(err, h.copied(ctx, linkName))
}

func (h *hawser) create(ctx context.Context, name, db string) error {
	_, err := h.sides[0].api.CreateLink(ctx, api.LinkSpec{Name: name, Database: db, Peer: h.sides[1].name, Role: api.RolePrimary})
	return err
}

// pollEvery is how often a link's state is asked for. The program itself asks once a
// second; 50 times a second took 5 % of both cores while a table was copied.
const pollEvery = 100 * time.Millisecond

func (h *hawser) copied(ctx context.Context, name string) error {
	return h.await(ctx, name, api.StateSynchronized)
}

func (h *hawser) await(ctx context.Context, name string, state api.State) error {
	ctx, cancel := context.WithTimeout(ctx, copyWithin)
	defer cancel()
	for {
		l, err := h.sides[0].api.Link(ctx, name)
		if err == nil && l.State == state {
			return nil
		}
		if err == nil && l.State == api.StateSuspended {
			return fmt.Errorf("the link is suspended: %w", l.Cause)
		}
		if wait := sleep(ctx, pollEvery); wait != nil {
			return fmt.Errorf("link %s is not %s: %w", name, state, errors.Join(wait, err))
		}
	}
}

func (h *hawser) hold(ctx context.Context) error {
	if err := h.sides[1].api.PauseLink(ctx, linkName); err != nil {
		return err
	}
	return h.p.slotsAtRest(ctx)
}

func (h *hawser) catchUp(ctx context.Context, marker int64, _ string) error {
	if err := h.sides[1].api.ResumeLink(ctx, linkName); err != nil {
		return err
	}
	if err := awaitMarker(ctx, h.p.replica, marker); err != nil {
		if l, ask := h.sides[1].api.Link(context.WithoutCancel(ctx), linkName); ask == nil && l.Cause != nil {
			err = errors.Join(err, l.Cause)
		}
		return err
	}
	return nil
}

func (h *hawser) agents() []int {
	var pids []int
	for _, a := range h.sides {
		if a != nil {
			pids = append(pids, a.cmd.Process.Pid)
		}
	}
	return pids
}

func (h *hawser) close() {
	for _, a := range h.sides {
		if a != nil {
			a.end()
		}
	}
}

func startAgent(ctx context.Context, program, name, dir string, s *server) (*agent, error) {
	port, err := postgres.FreePort()
	if err != nil {
		return nil, err
	}
	a := &agent{name: name, endpoint: fmt.Sprintf("127.0.0.1:%d", port), ended: make(chan struct{})}
	log, err := os.Create(filepath.Join(dir, "agent-"+name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	state := filepath.Join(dir, "agent-"+name)
	a.cmd = exec.Command(program, "agent", "--name", name, "--state-dir", state, "--socket", state+".sock",
		"--endpoint-listen", a.endpoint, "--postgres-connection", s.conninfo("postgres"))
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the bench, which ends them in order
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "HAWSER_") {
			a.cmd.Env = append(a.cmd.Env, e)
		}
	}
	if err := a.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w (make build makes it)", err)
	}
	go func() {
		defer close(a.ended)
		_ = a.cmd.Wait()
	}()
	if a.api, err = api.Dial(state+".sock", ""); err != nil {
		return a, err
	}
	err = until(ctx, time.Minute, func() (bool, error) {
		_, err := a.api.Instance(ctx)
		return err == nil, err
	})
	return a, err
}

func (a *agent) end() {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(20 * time.Second):
		_ = a.cmd.Process.Kill()
		<-a.ended
	}
}
