package netpolicy

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace of our own, and a thread in it. Nothing but descriptors
// holds it: it ends with them, and so with the process. The thread must not be the
// process's first, which cannot end: the program's is the main goroutine's, see package sandbox.
type namespace struct {
	file *os.File
	work chan func()
	done chan struct{}
}

// newNamespace makes one.
func newNamespace() (*namespace, error) {
	n := &namespace{work: make(chan func()), done: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(n.done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
		for f := range n.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		close(n.work)
		<-n.done
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return n, nil
}

// do runs f in the namespace: what it opens there stays there.
func (n *namespace) do(f func() error) error {
	done := make(chan error)
	n.work <- func() { done <- f() }
	return <-done
}

// close ends the thread; do must not be called any more.
func (n *namespace) close() error {
	close(n.work)
	<-n.done
	return n.file.Close()
}

// setSysctls writes knobs of the namespace that the calling thread is in. Where the daemon sees
// them read-only, it is by a mount over them, which a procfs of our own does not have.
func setSysctls(knobs map[string]string) (err error) {
	dir := -1
	defer func() {
		if dir >= 0 {
			err = errors.Join(err, unix.Close(dir))
		}
	}()
	for name, value := range knobs {
		e := writeKnob(unix.AT_FDCWD, "/proc/sys/"+name, value)
		if errors.Is(e, unix.EROFS) || errors.Is(e, unix.EACCES) {
			if dir < 0 {
				if dir, e = detachedProc(); e != nil {
					return fmt.Errorf("sysctl %s: %w", name, e)
				}
			}
			e = writeKnob(dir, "sys/"+name, value)
		}
		if e != nil {
			return fmt.Errorf("sysctl %s: %w", name, e)
		}
	}
	return nil
}

func writeKnob(dir int, path, value string) error {
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(value))
	return errors.Join(err, unix.Close(fd))
}

func detachedProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen proc: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make a procfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount proc: %w", err)
	}
	return fd, nil
}
