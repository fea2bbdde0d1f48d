package first

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Request asks for a first process.
type Request struct {
	// Network is true for a network namespace of its own, and false for the one of the process itself.
	Network bool
	// Map asks for a process that has nothing of its own but a user namespace, and ends with its socket.
	Map bool
	// UIDs and GIDs are the lines of its uid_map and gid_map: user_namespaces(7).
	UIDs, GIDs string
}

// serve is a container's only process, until it makes others.
func serve() int {
	sock := os.NewFile(socketFD, "host")
	unix.CloseOnExec(socketFD)
	unix.Close(ProgramFD)
	if err := answer(sock); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// answer serves requests until the host ends.
func answer(sock *os.File) error {
	if err := SetName(Name); err != nil {
		return err
	}
	// Not to be read or traced, whatever its user; its children inherit that.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
	}
	if err := readOnlyEmpty(); err != nil {
		return err
	}
	readyChild()
	// Nobody waits for children, so the kernel must not keep them (wait(2)).
	ignore := action{handler: 1}
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&ignore)), 0, setSize, 0, 0); errno != 0 {
		return fmt.Errorf("ignore SIGCHLD: %w", errno)
	}
	if err := sendFiles(sock, []byte{msgRun}, nil); err != nil {
		return err
	}
	runtime.LockOSThread()
	for n := 1; ; n++ {
		if n%collectEvery == 0 {
			runtime.GC()
		}
		r, inside, err := receiveRequest(sock)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		pidfd, err := r.make(inside)
		inside.Close()
		if err != nil {
			err = sendFiles(sock, []byte(err.Error()), nil)
		} else {
			err = sendFiles(sock, []byte{msgRun}, []*os.File{pidfd})
			pidfd.Close()
		}
		if err != nil {
			return err
		}
	}
}

// collectEvery is after how many requests, which leave some 6 KB each, there is a garbage collection: not at any
// other time, and never while a process is made.
const collectEvery = 128

// make makes a first process that goes by what comes through inside.
func (r *Request) make(inside *os.File) (pidfd *os.File, err error) {
	c := &child
	c.sock, c.clone = inside.Fd(), cloneArgs{
		flags: unix.CLONE_PIDFD | unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		pidfd: uint64(uintptr(unsafe.Pointer(&c.pidfd))), exitSignal: uint64(unix.SIGCHLD),
	}
	switch {
	case r.Map:
		c.clone.flags = unix.CLONE_PIDFD | unix.CLONE_NEWUSER
	case r.Network:
		c.clone.flags |= unix.CLONE_NEWNET
	}
	all, before := ^uint64(0), uint64(0)
	if err := setMask(&all, &before); err != nil {
		return nil, err
	}
	pid, errno := fork()
	if err := setMask(&before, nil); err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, fmt.Errorf("clone3: %w", unix.Errno(errno))
	}
	pidfd = os.NewFile(uintptr(c.pidfd), "first process")
	// It waits for its program, which comes after this.
	dir := "/proc/" + strconv.Itoa(int(pid))
	for file, lines := range map[string]string{"/uid_map": r.UIDs, "/gid_map": r.GIDs} {
		if err := write(pidfd, dir+file, lines); err != nil {
			return nil, errors.Join(err, unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0), pidfd.Close())
		}
	}
	return pidfd, nil
}

// write writes a file of a process's in /proc. Should that have been killed, its number, and so the file, may be another's.
func write(pidfd *os.File, file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err = unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err == nil {
		_, err = f.WriteString(text)
	}
	return errors.Join(err, f.Close())
}

// setMask sets the calling thread's mask of signals, which Go's runtime leaves alone.
func setMask(set, old *uint64) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), setSize, 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigprocmask: %w", errno)
	}
	return nil
}

// SetName names the calling thread, and the process if that is its first, for ps(1): what is
// executed from a descriptor is called by its number. The kernel takes 15 bytes.
func SetName(name string) error {
	b := append([]byte(name), 0)
	err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
	runtime.KeepAlive(b)
	if err != nil {
		return fmt.Errorf("prctl(PR_SET_NAME): %w", err)
	}
	return nil
}

// readOnlyEmpty mounts /empty upon itself, read-only, as what is bound from there in each sandbox will be.
func readOnlyEmpty() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/empty", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of /empty: %w", err)
	}
	defer unix.Close(fd)
	const attrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs}); err != nil {
		return fmt.Errorf("mount attributes of /empty: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/empty", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach /empty: %w", err)
	}
	return nil
}

// init takes over in a container of ours.
func init() {
	if len(os.Args) == 2 && os.Args[1] == Name && os.Getpid() == 1 {
		os.Exit(serve())
	}
}
