package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/hawser/hawser/internal/link"
	"github.com/hawser/hawser/internal/problem"
)

// stateDir is an agent's hold on its state directory, which no other agent may use
// meanwhile. The kernel lets go of it when the process ends, however that ends; a program
// that the agent starts does not inherit it.
type stateDir struct{ dir *os.File }

// pidFile tells whoever comes second which process has the directory.
const pidFile = "agent.pid"

// holdStateDir makes the directory where it is missing, and takes it.
func holdStateDir(path string) (*stateDir, error) {
	// PostgreSQL's user has to pass to a data directory inside.
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, problem.New("state-dir-failed", "directory "+path, "the agent can't make its state directory", "").Advise(otherStateDir).Because(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, problem.New("state-dir-failed", "directory "+path, "the agent can't read its state directory", "").Advise(otherStateDir).Because(err)
	}
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		_ = dir.Close()
		return nil, stateDirTaken(path)
	case err != nil: // a file system without locks: PostgreSQL still knows of another agent
		return &stateDir{dir}, nil
	}
	_ = os.WriteFile(filepath.Join(path, pidFile), fmt.Appendln(nil, os.Getpid()), 0o600) // a full disk may fill no file, and stops no agent here
	return &stateDir{dir}, nil
}

func (d *stateDir) release() {
	_ = os.Remove(filepath.Join(d.dir.Name(), pidFile))
	_ = d.dir.Close()
}

const otherStateDir = "make it as root and give it to the agent's user, or name another in state_dir"

func stateDirTaken(path string) error {
	by, remedy := "another agent", ""
	if text, err := os.ReadFile(filepath.Join(path, pidFile)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			by, remedy = fmt.Sprintf("another agent, process %d,", pid), fmt.Sprintf("ps -fp %d", pid)
		}
	}
	return problem.New(link.CodeAnotherAgent, "directory "+path, by+" has this state directory; two would act on the same links", remedy).
		Advise("it is the agent of this instance if it was started twice; another instance needs a state_dir of its own, and a PostgreSQL of its own")
}
