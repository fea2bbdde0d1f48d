package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// orphanTime bounds the wait for an orphan's end.
const orphanTime = 10 * time.Second

// killOrphans kills the processes whose root is dir, which no process has but libcontainer's init
// and what it becomes. One whose host is killed just then waits for it for ever, to be told to go on.
// It is not in a control group yet. It returns how many there were.
func killOrphans(dir string) (n int, err error) {
	want, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || !rootedIn(pid, want) {
			continue
		}
		if err := killOrphan(pid, want); err != nil {
			return n, fmt.Errorf("process %d of a dead host: %w", pid, err)
		}
		n++
	}
	return n, nil
}

// rootedIn reports whether a process has a directory as its root. Of those that end none has.
func rootedIn(pid int, dir fs.FileInfo) bool {
	root, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "root"))
	return err == nil && os.SameFile(root, dir)
}

// killOrphan kills a process if it has that root, and waits for its end.
func killOrphan(pid int, dir fs.FileInfo) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !rootedIn(pid, dir) { // what had the number has ended
		return nil
	}
	if err := unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(orphanTime); ; {
		n, err := unix.Poll(ready, int(max(0, time.Until(end).Milliseconds())))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it did not end within %v", orphanTime)
		default:
			return nil
		}
	}
}
