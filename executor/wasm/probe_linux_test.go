package wasm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/process"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// target is what the test has for it: outside, as paths and numbers that are good there.
type target struct {
	File, Socket, Abstract, TCP string
	Pid                         int
}

// beProbe begins as a worker does, and then tries what a worker must not be able to do: first behind its walls
// without the system call filter, and then with it. What came of it is what it says of its module.
func beProbe(arg string) {
	var to target
	check(json.Unmarshal([]byte(arg), &to))
	in := bufio.NewReader(os.Stdin)
	_, body, err := wire.Read(in, wire.MaxFrame, nil)
	check(err)
	var load wire.Load
	check(json.Unmarshal(body, &load))
	// Where there is one to become, it may open nothing by then.
	file, err := os.Open(to.File)
	check(err)
	own, err := unix.MemfdCreate("own", 0)
	check(err)
	mem := os.NewFile(uintptr(own), "own")
	var page []byte
	page, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	check(err)
	said := map[string]map[string]string{}
	walls := *load.Walls
	walls.Filter = false
	check(process.Raise(&walls))
	said["without"] = probe(to, file, mem, page, !walls.Root)
	check(process.Raise(&wire.Walls{Filter: true}))
	said["with"] = probe(to, file, mem, page, false)
	b, err := json.Marshal(said)
	check(err)
	check(wire.Write(os.Stdout, wire.KindFailed, b))
}

func pointer(s string) uintptr {
	b := append([]byte(s), 0)
	return uintptr(unsafe.Pointer(&b[0]))
}

// probe returns the errors by what was tried; "" is none. Where programs can be run, it does not, since it would be no more.
func probe(to target, file, mem *os.File, page []byte, programs bool) map[string]string {
	got := map[string]string{}
	say := func(what string, err error) {
		got[what] = ""
		if e := syscall.Errno(0); err != nil {
			got[what] = err.Error()
			if errors.As(err, &e) {
				got[what] = unix.ErrnoName(e)
			}
		}
	}
	raw := func(what string, number uintptr, a ...uintptr) {
		var args [6]uintptr
		copy(args[:], a)
		_, _, e := syscall.RawSyscall6(number, args[0], args[1], args[2], args[3], args[4], args[5])
		runtime.KeepAlive(page)
		say(what, nil)
		if e != 0 {
			say(what, e)
		}
	}
	cwd := ^uintptr(99) // AT_FDCWD
	fd := file.Fd()
	raw("open a file of the machine", unix.SYS_OPENAT, cwd, pointer(to.File), unix.O_RDONLY)
	raw("open what is in the root", unix.SYS_OPENAT, cwd, pointer("/etc"), unix.O_RDONLY)
	raw("open the program", unix.SYS_OPENAT, cwd, pointer("/proc/self/exe"), unix.O_RDONLY)
	raw("make a file", unix.SYS_OPENAT, cwd, pointer("/made"), unix.O_RDWR|unix.O_CREAT, 0o600)
	raw("make a file in memory", unix.SYS_MEMFD_CREATE, pointer("x"), 0)
	raw("make a directory", unix.SYS_MKDIRAT, cwd, pointer("/made"), 0o700)
	raw("look at a file", unix.SYS_STATFS, pointer(to.File), uintptr(unsafe.Pointer(&page[0])))
	raw("change what is open", unix.SYS_FCHMOD, mem.Fd(), 0o777)
	raw("change what is another's", unix.SYS_FCHMOD, fd, 0o777)
	raw("change the flags of what is open", unix.SYS_FCNTL, mem.Fd(), unix.F_SETFL, unix.O_APPEND)
	raw("copy what is open", unix.SYS_FCNTL, mem.Fd(), unix.F_DUPFD, 0)
	raw("lock a part of what is open", unix.SYS_FCNTL, mem.Fd(), unix.F_OFD_SETLK, uintptr(unsafe.Pointer(&page[0])))
	raw("have signals sent", unix.SYS_FCNTL, mem.Fd(), unix.F_SETOWN, 1)
	raw("seal what is open", unix.SYS_FCNTL, mem.Fd(), unix.F_GET_SEALS)
	raw("have a signal when its parent ends", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0)
	raw("let others look", unix.SYS_PRCTL, unix.PR_GET_DUMPABLE)
	raw("take another name", unix.SYS_PRCTL, unix.PR_SET_NAME, pointer("x"))
	raw("look at its capabilities", unix.SYS_PRCTL, unix.PR_CAPBSET_READ, 0)
	raw("lock what is open", unix.SYS_FLOCK, fd, unix.LOCK_EX|unix.LOCK_NB)
	if !programs {
		raw("run a program", unix.SYS_EXECVE, pointer("/bin/true"), 0, 0)
	}
	raw("run what is open", unix.SYS_EXECVEAT, fd, pointer(""), 0, 0, unix.AT_EMPTY_PATH)
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, 0, 0, 0, 0, 0, 0)
	if e == 0 && pid == 0 {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	say("make a process", nil)
	if e != 0 {
		say("make a process", e)
	}
	raw("make a user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUTS)
	raw("mount", unix.SYS_MOUNT, pointer("x"), pointer("/"), pointer("tmpfs"), 0, 0)
	raw("signal another", unix.SYS_KILL, uintptr(to.Pid), 0)
	raw("signal a thread of another", unix.SYS_TGKILL, uintptr(to.Pid), uintptr(to.Pid), 0)
	raw("trace another", unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(to.Pid), 0, 0)
	raw("open another", unix.SYS_PIDFD_OPEN, uintptr(to.Pid), 0)
	raw("limit another", unix.SYS_PRLIMIT64, uintptr(to.Pid), unix.RLIMIT_CORE, 0, uintptr(unsafe.Pointer(&page[0])))
	raw("become root", unix.SYS_SETRESUID, 0, 0, 0)
	raw("name the machine", unix.SYS_SETHOSTNAME, pointer("x"), 1)
	raw("io_uring", unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&page[0])))
	raw("bpf", unix.SYS_BPF, 0, 0, 0)
	raw("execute memory", unix.SYS_MPROTECT, uintptr(unsafe.Pointer(&page[0])), 4096, unix.PROT_READ|unix.PROT_EXEC)
	raw("map executable memory", unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON, ^uintptr(0), 0)
	raw("map shared memory", unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_ANON, ^uintptr(0), 0)
	raw("write to memory again", unix.SYS_MPROTECT, uintptr(unsafe.Pointer(&page[0])), 4096, unix.PROT_READ|unix.PROT_WRITE)
	raw("make a socket of the network", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	raw("make a socket", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, uintptr(unsafe.Pointer(&page[0])))
	_, err := net.Dial("tcp", to.TCP)
	say("reach a port of the machine", err)
	_, err = net.Dial("unix", to.Socket)
	say("reach a socket of the machine", err)
	_, err = net.Dial("unix", "@"+to.Abstract)
	say("reach a socket without a file", err)
	// What it does need.
	raw("may ask for the flags of what is open", unix.SYS_FCNTL, mem.Fd(), unix.F_GETFL)
	_, err = file.ReadAt(make([]byte, 1), 0)
	say("may read what is open", err)
	var threads [64]chan bool
	for i := range threads {
		threads[i] = make(chan bool)
		go func() {
			runtime.LockOSThread() // a thread each
			threads[i] <- true
		}()
	}
	for _, c := range threads {
		<-c
	}
	runtime.GC()
	say("may make threads and collect garbage", nil)
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err == nil {
		got["capabilities"] = fmt.Sprint(data)
	}
	got["uid"] = fmt.Sprint(os.Getuid())
	return got
}
