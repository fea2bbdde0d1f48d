package first

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows runs in the child of a Go process of many threads, as its only one. It must not need a
// larger stack, memory, a lock or another goroutine, nor be instrumented: every function is nosplit and norace, has
// no pointers but to variables of this package, which do not move, and calls only its like.

type iovec struct{ base, size uintptr }

// message is a struct msghdr (recvmsg(2)), with addresses for pointers.
type message struct {
	name        uintptr
	nameSize    uint32
	_           uint32
	parts       uintptr
	partCount   uintptr
	control     uintptr
	controlSize uintptr
	flags       int32
	_           int32
}

// rights is a control message (unix(7)) with descriptors.
type rights struct {
	size  uint64
	level int32
	kind  int32
	fds   [maxFDs + 1]int32
}

// child is all that a first process has of its own.
var child struct {
	sock     uintptr
	files    [MaxFiles + 1]int32 // the program, and what came with it
	count    uintptr
	slots    [Slots]uintptr
	tried    uintptr // the error of the last OpTry
	in       [msgSize / 8]uint64
	out      Reply
	inPart   [1]iovec
	outParts [2]iovec
	inMsg    message
	outMsg   message
	inFDs    rights
	outFDs   rights
	polled   [2]unix.PollFd
	used     unix.Rusage
	status   uint32
	signal   [128]byte // a struct signalfd_siginfo
	set      uint64    // of signals
	action   action
	args     cloneArgs
	pidfd    int32
}

// action is the kernel's struct sigaction, on 64-bit machines: see rt_sigaction(2).
type action struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const setSize = unsafe.Sizeof(child.set)

// cloneArgs is a struct clone_args: see clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// readyChild fills in what does not change.
func readyChild() {
	c := &child
	c.inPart[0] = iovec{uintptr(unsafe.Pointer(&c.in)), unsafe.Sizeof(c.in)}
	c.inMsg = message{parts: uintptr(unsafe.Pointer(&c.inPart)), partCount: 1, control: uintptr(unsafe.Pointer(&c.inFDs))}
	c.outParts[0] = iovec{uintptr(unsafe.Pointer(&c.out)), ReplySize}
	c.outMsg = message{parts: uintptr(unsafe.Pointer(&c.outParts)), partCount: 2}
	c.outFDs = rights{size: unix.SizeofCmsghdr + 4, level: unix.SOL_SOCKET, kind: unix.SCM_RIGHTS}
}

//go:nosplit
//go:norace
func call(nr, a, b, c, d, e, f uintptr) (r, errno uintptr) {
	r, _, err := syscall.RawSyscall6(nr, a, b, c, d, e, f)
	return r, uintptr(err)
}

//go:nosplit
//go:norace
func exit(code uintptr) {
	for {
		call(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}

// fork makes a first process, with sock. It returns in the parent only. All signals must be blocked.
//
//go:nosplit
//go:norace
func fork(sock uintptr) (pid, errno uintptr) {
	pid, errno = call(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&child.args)), unsafe.Sizeof(child.args), 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	live(sock)
	return 0, 0
}

// live is a first process: it runs one program after the other.
//
//go:nosplit
//go:norace
//go:nocheckptr
func live(sock uintptr) {
	c := &child
	// None of the parent's descriptors stays, nor what it does with signals.
	c.sock = socketFD
	if sock != socketFD {
		if _, e := call(unix.SYS_DUP3, sock, socketFD, unix.O_CLOEXEC, 0, 0, 0); e != 0 {
			exit(1)
		}
	}
	if _, e := call(unix.SYS_CLOSE_RANGE, socketFD+1, ^uintptr(0)>>32, 0, 0, 0, 0); e != 0 {
		exit(1)
	}
	call(unix.SYS_CLOSE, ProgramFD, 0, 0, 0, 0, 0)
	c.action = action{}
	for sig := uintptr(1); sig <= 64; sig++ {
		call(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&c.action)), 0, setSize, 0, 0) // two refuse
	}
	for {
		c.count = 0
		for {
			if !receiveChild(0) {
				exit(1)
			}
			if c.in[0] == msgRun {
				break
			}
			if c.in[0] != msgFiles { // a request to end what has not begun
				continue
			}
		}
		if c.count == 0 {
			exit(1)
		}
		n, size := uintptr(c.in[1]), uintptr(c.in[2])
		if _, e := call(unix.SYS_MMAP, Base, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED_NOREPLACE,
			uintptr(c.files[0]), 0); e != 0 {
			fail(0, e)
		}
		run(n)
		closeFiles()
		call(unix.SYS_MUNMAP, Base, size, 0, 0, 0, 0)
	}
}

// receiveChild takes one message, and its descriptors behind those there are. It reports false at the end of the host.
//
//go:nosplit
//go:norace
//go:nocheckptr
func receiveChild(flags uintptr) bool {
	c := &child
	c.inMsg.controlSize, c.inMsg.flags = unsafe.Sizeof(c.inFDs), 0
	n, e := call(unix.SYS_RECVMSG, c.sock, uintptr(unsafe.Pointer(&c.inMsg)), unix.MSG_CMSG_CLOEXEC|flags, 0, 0, 0)
	if e == uintptr(unix.EAGAIN) {
		c.in[0] = 0
		return true
	}
	if e != 0 || n != msgSize || c.inMsg.flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		return false
	}
	if c.inMsg.controlSize < unix.SizeofCmsghdr {
		return true
	}
	fds := uintptr(c.inFDs.size-unix.SizeofCmsghdr) / 4
	for i := uintptr(0); i < fds; i++ {
		if c.count > MaxFiles {
			return false
		}
		c.files[c.count] = c.inFDs.fds[i]
		c.count++
	}
	return true
}

//go:nosplit
//go:norace
//go:nocheckptr
func closeFiles() {
	c := &child
	for i := uintptr(0); i < c.count; i++ {
		call(unix.SYS_CLOSE, uintptr(c.files[i]), 0, 0, 0, 0, 0)
	}
	c.count = 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func send(text, size uintptr) uintptr {
	c := &child
	c.outParts[1] = iovec{text, size}
	_, e := call(unix.SYS_SENDMSG, c.sock, uintptr(unsafe.Pointer(&c.outMsg)), unix.MSG_NOSIGNAL, 0, 0, 0)
	return e
}

// fail tells of a step that failed, and ends the process: the sandbox, if it is the first one. Else the
// host ends it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fail(op, errno uintptr) {
	c := &child
	c.out.Kind, c.out.Op, c.out.Errno = Failed, uint32(op), uint32(errno)
	c.outMsg.control, c.outMsg.controlSize = 0, 0
	send(0, 0)
	exit(1)
}

// missing are the errors of a file that is not there.
//
//go:nosplit
//go:norace
func missing(errno uintptr) bool {
	return errno == uintptr(unix.ENOENT) || errno == uintptr(unix.ENOTDIR)
}

// at is the memory at an address of the program.
//
//go:nosplit
//go:norace
//go:nocheckptr
func at(address uintptr) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Pointer(&address))
}

// run does the n steps of the program at Base.
//
//go:nosplit
//go:norace
//go:nocheckptr
func run(n uintptr) {
	c := &child
	var a [6]uintptr
	for i := uintptr(0); i < n; i++ {
		op := (*Op)(at(Base + i*OpSize))
		for k := range a {
			a[k] = uintptr(op.Args[k])
			switch op.Kinds >> (8 * k) & 0xff {
			case File:
				a[k] = uintptr(c.files[1+a[k]])
			case Slot:
				a[k] = c.slots[a[k]]
			}
		}
		var r, e uintptr
		switch op.Nr {
		case OpFork:
			if r, e = call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); e == 0 && r == 0 {
				c.set = 0
				_, e = call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&c.set)), 0, setSize, 0, 0)
			} else if e == 0 {
				i = a[0] - 1
			}
		case OpSend:
			c.out.Kind = ReplyKind(a[0])
			c.outMsg.control, c.outMsg.controlSize = 0, 0
			if a[4] == 1 {
				c.outFDs.fds[0] = int32(a[3])
				c.outMsg.control, c.outMsg.controlSize = uintptr(unsafe.Pointer(&c.outFDs)), unix.SizeofCmsghdr+8
			}
			e = send(a[1], a[2])
		case OpEqual, OpMemory:
			if op.Nr == OpMemory {
				a[0] = uintptr(*(*uint64)(at(a[0])))
			}
			if a[0]&a[2] != a[1] {
				e = uintptr(unix.EBADMSG)
			}
		case OpClose:
			closeFiles()
		case OpTurn:
			_, e = call(unix.SYS_DUP3, a[0], c.sock, unix.O_CLOEXEC, 0, 0, 0)
		case OpStop:
			return
		case OpEnter:
			if _, c.tried = call(unix.SYS_CHDIR, a[0], 0, 0, 0, 0, 0); c.tried != 0 {
				i = a[1] - 1
			}
		case OpTry:
			if c.tried == 0 || missing(c.tried) || c.tried == uintptr(unix.EACCES) {
				if _, x := call(unix.SYS_EXECVE, a[0], a[1], a[2], 0, 0, 0); c.tried == 0 || !missing(x) {
					c.tried = x
				}
			}
		case OpGiveUp:
			if c.tried == a[0] {
				call(unix.SYS_WRITE, 2, a[1], a[2], 0, 0, 0)
				exit(a[3])
			}
		case OpFail:
			e = c.tried
		case OpSupervise:
			e = supervise(int32(a[0]), a[1])
		case OpExit:
			exit(a[0])
		default:
			r, e = call(uintptr(op.Nr), a[0], a[1], a[2], a[3], a[4], a[5])
		}
		if e != 0 {
			ignored := false
			for g := op.Ignore; g != 0; g >>= 16 {
				ignored = ignored || uintptr(g&0xffff) == e
			}
			if !ignored {
				fail(i, e)
			}
		}
		if op.Store != 0 && (op.Nr != OpFork || r != 0) {
			c.slots[op.Store] = r
		}
	}
}

// supervise waits until the command has ended and nobody else is left.
//
//go:nosplit
//go:norace
//go:nocheckptr
func supervise(command int32, signals uintptr) uintptr {
	c := &child
	c.polled[0] = unix.PollFd{Fd: int32(c.sock), Events: unix.POLLIN}
	c.polled[1] = unix.PollFd{Fd: int32(signals), Events: unix.POLLIN}
	for ended := false; !ended; {
		if _, e := call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&c.polled)), 2, 0, 0, 0, 0); e != 0 {
			return e
		}
		if c.polled[0].Revents != 0 {
			if !receiveChild(unix.MSG_DONTWAIT) {
				exit(1) // the sandbox ends with the host
			}
			closeFiles()
			if c.in[0] == msgTerminate {
				call(unix.SYS_KILL, ^uintptr(0), uintptr(unix.SIGTERM), 0, 0, 0, 0) // ESRCH: nobody is left to tell
			}
		}
		if c.polled[1].Revents == 0 {
			continue
		}
		call(unix.SYS_READ, signals, uintptr(unsafe.Pointer(&c.signal)), unsafe.Sizeof(c.signal), 0, 0, 0)
		for {
			pid, e := call(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&c.status)), unix.WNOHANG, 0, 0, 0)
			if e == uintptr(unix.ECHILD) || e == 0 && pid == 0 {
				break
			}
			if e != 0 {
				return e
			}
			if int32(pid) == command {
				c.out.Status, ended = c.status, true
			}
		}
	}
	for {
		if _, e := call(unix.SYS_KILL, ^uintptr(0), uintptr(unix.SIGKILL), 0, 0, 0, 0); e != 0 && e != uintptr(unix.ESRCH) {
			return e
		}
		if _, e := call(unix.SYS_WAIT4, ^uintptr(0), 0, 0, 0, 0, 0); e == uintptr(unix.ECHILD) {
			break
		} else if e != 0 {
			return e
		}
	}
	if _, e := call(unix.SYS_GETRUSAGE, 0, uintptr(unsafe.Pointer(&c.used)), 0, 0, 0, 0); e != 0 {
		return e
	}
	c.out.User = c.used.Utime.Sec*1e6 + c.used.Utime.Usec
	c.out.System = c.used.Stime.Sec*1e6 + c.used.Stime.Usec
	return 0
}
