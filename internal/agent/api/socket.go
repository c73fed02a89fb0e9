package api

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// MaxSocketPath is the longest path of a socket. The kernel takes 107 bytes;
// the socket is made beside its final place, under a name that is longer.
const MaxSocketPath = 95

// socketListener removes its socket on Close, unless another has taken the place.
type socketListener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

// listenSocket listens on a Unix socket that only its owner can open. The
// socket is made in a private directory and moved to its place: there is no
// moment at which another user could connect.
func listenSocket(path string) (*socketListener, error) {
	if len(path) > MaxSocketPath {
		return nil, problem.New("invalid-socket", "socket "+path,
			fmt.Sprintf("The path of a Unix socket has at most %d bytes; this one has %d.", MaxSocketPath, len(path)),
			"--socket /run/hawser/hawser.sock").Advise("set a shorter one")
	}
	if err := checkFree(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("make a place for the socket %s: %w", path, err)
	}
	defer os.RemoveAll(private)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(private, "s"), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	made, err := moveIntoPlace(filepath.Join(private, "s"), path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socketListener{UnixListener: l, path: path, made: made}, nil
}

func moveIntoPlace(from, to string) (os.FileInfo, error) {
	if err := os.Chmod(from, 0o600); err != nil {
		return nil, fmt.Errorf("protect the socket %s: %w", to, err)
	}
	made, err := os.Stat(from)
	if err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", to, err)
	}
	if err := os.Rename(from, to); err != nil {
		return nil, fmt.Errorf("move the socket to its place: %w", err)
	}
	return made, nil
}

// checkFree refuses a path where another agent answers, or where something
// stands that is not a socket. What a dead agent left is no obstacle.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the socket %s: %w", path, err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return problem.New("socket-in-use", "socket "+path, "A file that is not a socket stands there.", "--socket PATH").Advise("move the file away, or set another place")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("try the socket %s: %w", path, err)
	}
	_ = conn.Close()
	return problem.New("socket-in-use", "socket "+path, "Another agent answers there.",
		"hawser status --socket "+problem.Word(path)).Advise("see which one it is, and give this agent a state_dir of its own")
}

// Close stops listening and removes the socket if it is still this one.
func (l *socketListener) Close() error {
	err := l.UnixListener.Close()
	if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.made) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}
