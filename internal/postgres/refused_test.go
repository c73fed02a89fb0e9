package postgres_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// refusing listens as a server that ends each session with one error as it begins.
func refusing(t *testing.T, code, message string) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := pgproto3.NewBackend(conn, conn)
			if _, err := b.ReceiveStartupMessage(); err == nil {
				b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: message})
				_ = b.Flush()
			}
			_ = conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// TestServersOwnWords: a refusal that no case of ours names is told in the server's words.
func TestServersOwnWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state, message, code string
		retry                bool
	}{
		{"53100", `could not write init file: No space left on device`, "disk-full", true},
		{"53200", `out of memory`, "connection-refused", true},
		{"58030", `could not read file "base/5/2601": Input/output error`, "connection-refused", true},
		{"XX000", `cache lookup failed`, "connection-refused", false},
	} {
		s := open(t, fmt.Sprintf("host=127.0.0.1 port=%d user=u dbname=d sslmode=disable", refusing(t, c.state, c.message)))
		_, err := s.Connect(t.Context(), postgres.Session{})
		p, ok := problem.As(err)
		if !ok || p.Code != c.code || p.Retryable != c.retry || !strings.Contains(p.Cause, c.message) {
			t.Errorf("%s: %+v", c.state, err)
		}
	}
}

// TestWhyNoSession: who connects to a cluster of the agent's that does not start is told why,
// and not that there is no socket.
func TestWhyNoSession(t *testing.T) {
	t.Parallel()
	cfg := managed(t)
	c := newCluster(t, cfg)
	status := ensure(t, c)
	s, err := c.Server()
	if err != nil {
		t.Fatal(err)
	}
	auto := filepath.Join(cfg.DataDir, "postgresql.auto.conf")
	before, err := os.ReadFile(auto)
	if err != nil {
		t.Fatal(err)
	}
	write(t, auto, append(before, "work_mem = much\n"...), 0o600)
	watch(t, c)
	if err := syscall.Kill(status.PID, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	testpg.Eventually(t, within, "a session is refused with the reason", func() (bool, error) {
		conn, err := s.Connect(context.Background(), postgres.Session{})
		if err == nil {
			_ = conn.Close(context.Background())
			return false, nil
		}
		if p, ok := problem.As(err); ok && p.Code == "start-failed" && p.Retryable && strings.Contains(p.Cause, "work_mem") && strings.HasPrefix(p.Remedy, "tail ") {
			return true, nil
		}
		return false, err
	})
	write(t, auto, before, 0o600)
	testpg.Eventually(t, within, "a session is there again", func() (bool, error) {
		conn, err := s.Connect(context.Background(), postgres.Session{})
		if err != nil {
			return false, err
		}
		return true, conn.Close(context.Background())
	})
	stop(t, c)
}
