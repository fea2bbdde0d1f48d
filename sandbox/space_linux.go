package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// newSpace makes the mount namespace of the threads that start first processes. Control groups
// are read-only in it. Else libcontainer would make groups in every hierarchy, turn on controllers
// from the root of each down, which is not ours to do, and wait for the kernel. Mounts
// that hold none of the needed paths are not in it, so that it keeps none of the machine's busy.
func newSpace(groups, needed []string) (space *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("mount namespace: %w", err)
		}
		if err := detachOthers(append(slices.Clone(groups), needed...)); err != nil {
			return err
		}
		for _, g := range groups {
			if err := unix.MountSetattr(unix.AT_FDCWD, g, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
				return fmt.Errorf("make %s read-only: %w", g, err)
			}
		}
		if space, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		return rememberGroups(space)
	})
	return space, err
}

var remember sync.Once

// rememberGroups has libcontainer's library open /sys/fs/cgroup in space: it does so once in a
// process, goes by that descriptor from then on, and takes it amiss when its
// namespace ends.
func rememberGroups(space *os.File) (err error) {
	remember.Do(func() {
		// The file need not be there.
		_, _ = cgroups.ReadFile("/sys/fs/cgroup", "cgroup.procs")
		_, err = unix.FcntlInt(space.Fd(), unix.F_DUPFD_CLOEXEC, 0) // never closed
	})
	return err
}

// detachOthers detaches the mounts of the thread's namespace on which none of paths lies.
func detachOthers(paths []string) error {
	for i, p := range paths {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			return err
		}
		paths[i] = real
	}
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if slices.ContainsFunc(paths, func(p string) bool { return beneath(p, m) }) {
			continue
		}
		// It may lie below one that is gone, or have been covered by another.
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("detach %s: %w", m, err)
		}
	}
	return nil
}

// beneath reports whether a clean path is dir or lies in it.
func beneath(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// mountPoints lists those of the calling thread's namespace, in the order in which they were made.
func mountPoints() (all []string, err error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			all = append(all, unescape(fields[4]))
		}
	}
	return all, lines.Err()
}

// unescape undoes what /proc/self/mountinfo does to space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// inSpace runs f on a thread in the host's space.
func (h *Host) inSpace(f func() error) error {
	return onThread(func() error {
		// Threads share root and directory, which setns(2) refuses.
		if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(int(h.space.Fd()), unix.CLONE_NEWNS)); err != nil {
			return fmt.Errorf("mount namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// thread is one of its own, which ends with the goroutine on it. It takes one call after the other.
type thread struct{ ask chan func() }

func newThread() *thread {
	t := &thread{ask: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked
		for f := range t.ask {
			f()
		}
	}()
	return t
}

// do runs f there.
func (t *thread) do(f func() error) error {
	done := make(chan error)
	t.ask <- func() { done <- f() }
	return <-done
}

// close ends the thread. There must be no other call at the time, nor later.
func (t *thread) close() { close(t.ask) }
