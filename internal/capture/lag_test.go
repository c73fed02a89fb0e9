package capture

import (
	"testing"
	"time"

	"github.com/hawser/hawser/internal/frame"
)

// TestLagOfAnIdleServer: a change that took long to be shown says nothing about a
// link that has shown everything since.
func TestLagOfAnIdleServer(t *testing.T) {
	t.Parallel()
	var m lagMeter
	start := time.Now()
	m.sent(100, start)
	if got := m.read(start.Add(10 * time.Second)).Seconds; got != 10 {
		t.Errorf("a change that is not shown after 10 s: lag %g", got)
	}
	m.acked(frame.Ack{Visible: 100}, start.Add(10*time.Second))
	if got := m.read(start.Add(11 * time.Second)).Seconds; got != 10 {
		t.Errorf("just after it was shown: lag %g", got)
	}
	m.sample(100, start.Add(20*time.Second))
	if got := m.read(start.Add(20 * time.Second)).Seconds; got != 0 {
		t.Errorf("idle since: lag %g", got)
	}
}

// TestSentIsNotBehindReceived: a commit is acknowledged with its end, which lies behind
// the record that was sent, and so does what a keepalive told of.
func TestSentIsNotBehindReceived(t *testing.T) {
	t.Parallel()
	var m lagMeter
	now := time.Now()
	m.sent(100, now)
	m.acked(frame.Ack{Received: 148, Visible: 148, Durable: 148}, now)
	if got := m.read(now); got.Sent != 148 {
		t.Errorf("sent %d, received %d", got.Sent, got.Ack.Received)
	}
	m.shipped(200)
	m.acked(frame.Ack{Received: 120}, now) // the other side began again
	if got := m.read(now); got.Sent != 200 {
		t.Errorf("sent %d after keepalive and reconnection, want 200", got.Sent)
	}
}
