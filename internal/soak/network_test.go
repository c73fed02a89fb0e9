package soak

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// network is what lies between the agents.
type network struct{ proxy *toxiproxy.Proxy }

func newNetwork(t *testing.T, to string) *network {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // its faults log on their own
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	n := &network{toxiproxy.NewProxy(server, "between agents", "127.0.0.1:0", to)}
	if err := n.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.proxy.Stop)
	return n
}

func (n *network) address() string { return n.proxy.Listen }

// cut ends all connections and refuses new ones.
func (n *network) cut() error {
	n.proxy.Stop()
	return nil
}

// mute swallows what goes one way, "upstream" being away from who dials; the other
// way and the connections stay.
func (n *network) mute(way string) error {
	return n.toxic(`{"type": "timeout", "stream": %q, "attributes": {"timeout": 0}}`, way)
}

// slow is a bad line, both ways.
func (n *network) slow() error {
	for _, way := range []string{"upstream", "downstream"} {
		if err := n.toxic(`{"type": "latency", "stream": %q, "attributes": {"latency": 80, "jitter": 60}}`, way); err != nil {
			return err
		}
		if err := n.toxic(`{"type": "bandwidth", "stream": %q, "attributes": {"rate": 300}}`, way); err != nil {
			return err
		}
	}
	return nil
}

func (n *network) toxic(format string, args ...any) error {
	_, err := n.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(format, args...)))
	if errors.Is(err, toxiproxy.ErrToxicAlreadyExists) {
		return nil // two faults of one kind at one time
	}
	return err
}

// heal takes all faults back. It may be called at any time.
func (n *network) heal() error {
	n.proxy.Toxics.ResetToxics(context.Background())
	if err := n.proxy.Start(); err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
		return err
	}
	return nil
}
