package capture

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// rester rests for parts of a millisecond. Go's own timers wake a process that has nothing
// else to do in whole ones, epoll's: a walsender fills its socket before that, and waits.
type rester struct {
	file *os.File
	raw  syscall.RawConn
	told [8]byte // how often the timer ran out
}

func newRester() (*rester, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create a timer: %w", err)
	}
	r := &rester{file: os.NewFile(uintptr(fd), "timer")}
	if r.raw, err = r.file.SyscallConn(); err != nil {
		_ = r.file.Close()
		return nil, fmt.Errorf("create a timer: %w", err)
	}
	return r, nil
}

func (r *rester) close() { _ = r.file.Close() }

// rest returns when d has passed.
func (r *rester) rest(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	within := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	var failed error
	err := r.raw.Control(func(fd uintptr) { failed = unix.TimerfdSettime(int(fd), 0, &within, nil) })
	if err == nil {
		err = failed
	}
	if err == nil {
		_, err = r.file.Read(r.told[:])
	}
	if err != nil {
		return fmt.Errorf("rest: %w", err)
	}
	return nil
}
