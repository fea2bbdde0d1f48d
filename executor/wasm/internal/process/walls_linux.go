package process

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// Raise puts up walls. All threads are behind them, and so is what they start. The error
// says what could not be had, and the rest stands.
func Raise(w *wire.Walls) error {
	var errs []error
	if w.Root {
		errs = append(errs, emptyRoot())
	}
	if w.ID != 0 {
		errs = append(errs, become(w.ID))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("no core dumps: %w", err))
	}
	if w.Filter {
		errs = append(errs, confine())
	}
	return errors.Join(errs...)
}

// emptyRoot leaves the machine's file system for one that is empty and cannot be written to.
func emptyRoot() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	const at = "/proc" // any directory that is there
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("sandboxd", at, "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555") },
		func() error { return unix.Chdir(at) },
		func() error { return unix.PivotRoot(".", ".") }, // the old one lies upon it, and goes
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Chdir("/") },
		func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, "") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("an empty root: %w", err)
		}
	}
	return nil
}

// become takes on another user, with no groups and no capabilities. These calls are for all threads.
func become(id int) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("no groups: %w", err)
	}
	if err := syscall.Setresgid(id, id, id); err != nil {
		return fmt.Errorf("another group: %w", err)
	}
	if err := syscall.Setresuid(id, id, id); err != nil {
		return fmt.Errorf("another user: %w", err)
	}
	return nil
}

// confine has the kernel refuse all system calls but those of filter, for all threads and for good.
func confine() error {
	code, err := filter(os.Getpid())
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	p := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	other, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p)))
	runtime.KeepAlive(code)
	if e != 0 {
		return fmt.Errorf("a system call filter: %w", e)
	}
	if other != 0 {
		return fmt.Errorf("a system call filter: thread %d has another", other)
	}
	return nil
}
