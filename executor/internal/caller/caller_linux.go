package caller

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

// Self is this process as a caller.
func Self() executor.Caller {
	groups, err := os.Getgroups()
	c := executor.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: int32(os.Getpid())}
	if err == nil {
		for _, g := range groups {
			c.Groups = append(c.Groups, uint32(g))
		}
	}
	return c
}

// own says whether c is this process's own user.
func own(c executor.Caller) bool { return c.UID == uint32(os.Geteuid()) }

// As runs f with the rights of c to files, and with no others: on a thread of its
// own, which then ends, unless c is this process's own user. f must not start goroutines that rely on them.
func As(c executor.Caller, f func() error) error {
	if own(c) {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked, so that the thread ends with the goroutine. It is not the
		// process's first: package sandbox keeps that to main.
		runtime.LockOSThread()
		if err := become(c); err != nil {
			done <- fmt.Errorf("take on the rights of user %d: %w", c.UID, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// become changes the calling thread. The raw calls are those of a thread, where
// the ones of package syscall change all threads.
func become(c executor.Caller) error {
	groups := unsafe.Pointer(unsafe.SliceData(append([]uint32{}, c.Groups...)))
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.Groups)), uintptr(groups), 0); e != 0 {
		return fmt.Errorf("setgroups: %w", e)
	}
	// These two return the old value, and no error: read back.
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(c.GID), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(c.UID), 0, 0)
	if id, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0); uint32(id) != c.GID {
		return fmt.Errorf("setfsgid: is %d", id)
	}
	if id, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(id) != c.UID {
		return fmt.Errorf("setfsuid: is %d", id)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// OpenAs opens a path of c's with c's rights. Symbolic links are followed, those
// of /proc are not: in the daemon they lead to what is the daemon's. Nor is anything else there: see ErrProc.
func OpenAs(c executor.Caller, path string, flags uint64) (f *os.File, err error) {
	err = As(c, func() error {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
		if err == nil {
			f = os.NewFile(uintptr(fd), path)
		}
		return err
	})
	if err != nil || own(c) {
		return f, err
	}
	var st unix.Statfs_t
	if err = unix.Fstatfs(int(f.Fd()), &st); err == nil && st.Type == unix.PROC_SUPER_MAGIC {
		err = ErrProc
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ErrProc says that something is in a file system of the kind proc. Whoever looks there is who may see it, and all threads of this process
// are this process, whatever their rights: its memory map, say, and what it has open, for other callers.
var ErrProc = errors.New("it is of /proc, where it would show the executor and not you; copy what you need of it")

func openDir(c executor.Caller, path string) (*os.File, error) {
	return OpenAs(c, path, unix.O_RDONLY|unix.O_DIRECTORY)
}

func openInput(c executor.Caller, path string) (*os.File, error) {
	return OpenAs(c, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
}
