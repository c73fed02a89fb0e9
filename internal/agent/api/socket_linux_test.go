package api

import (
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

// TestSocketOfAnotherUser connects on a thread that has lost root's right to
// open every file.
func TestSocketOfAnotherUser(t *testing.T) {
	t.Parallel()
	socket, _ := start(t, &stub{})
	var dialErr, explained error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if os.Geteuid() == 0 {
			const nobody = 65534
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0); errno != 0 {
				dialErr = errno
				return
			}
		} else if dialErr = os.Chmod(socket, 0); dialErr != nil {
			return
		}
		_, dialErr = net.Dial("unix", socket)
		explained = (&Client{path: socket, where: socket}).explainSocket(dialErr)
	}()
	testpg.Await(t, "the other user has tried", done)
	wantCode(t, explained, CodeForbidden)
	if p, _ := problem.As(explained); !strings.HasPrefix(p.Remedy, "sudo -u ") {
		t.Errorf("remedy %q for %v", p.Remedy, dialErr)
	}
}
