package first

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows runs in the child of a Go process of many threads, as its only one. It must not need a
// larger stack, memory, a lock or another goroutine, nor be instrumented: every function is nosplit and norace, has
// no pointers but to variables of this package, which do not move, and calls only its like. The linker sees that all that call
// each other fit into what Go leaves of any stack; without optimisation, as for a debugger, that takes small functions.

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
	op       uintptr    // the index of the step
	args     [6]uintptr // its arguments
	result   uintptr
	errno    uintptr
	stopped  bool
	tried    uintptr // the error of the last OpTry
	size     uintptr // of the program
	got      uintptr // bytes of the last message
	missed   uintptr // the error in its stead
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
	reaped   uintptr
	signal   [128]byte // a struct signalfd_siginfo
	ended    bool      // the command has
	set      uint64    // of signals
	action   action
	clone    cloneArgs
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

// fork makes a first process, whose socket is child.sock. It returns in the parent only. All signals must be blocked.
//
//go:nosplit
//go:norace
func fork() (pid, errno uintptr) {
	pid, errno = clone3()
	if errno == 0 && pid == 0 {
		live()
	}
	return pid, errno
}

//go:nosplit
//go:norace
func clone3() (pid, errno uintptr) {
	return call(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&child.clone)), unsafe.Sizeof(child.clone), 0, 0, 0, 0)
}

// live is a first process: it runs one program after the other.
//
//go:nosplit
//go:norace
func live() {
	leave()
	for {
		receiveProgram()
		mapProgram()
		run(uintptr(child.in[1]))
		closeFiles()
		unmapProgram()
	}
}

// leave leaves what is the parent's: all descriptors but the socket, and what it does with signals.
//
//go:nosplit
//go:norace
func leave() {
	c := &child
	if c.sock != socketFD {
		if _, e := call(unix.SYS_DUP3, c.sock, socketFD, unix.O_CLOEXEC, 0, 0, 0); e != 0 {
			exit(1)
		}
		c.sock = socketFD
	}
	if _, e := call(unix.SYS_CLOSE_RANGE, socketFD+1, ^uintptr(0)>>32, 0, 0, 0, 0); e != 0 {
		exit(1)
	}
	call(unix.SYS_CLOSE, ProgramFD, 0, 0, 0, 0, 0)
	c.action = action{}
	for sig := uintptr(1); sig <= 64; sig++ {
		call(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&c.action)), 0, setSize, 0, 0) // two refuse
	}
}

//go:nosplit
//go:norace
func receiveProgram() {
	c := &child
	c.count, c.in[0] = 0, 0
	for c.in[0] != msgRun { // msgFiles, or a request to end what has not begun
		receiveMessage(0)
		if !accept() {
			exit(1)
		}
	}
	if c.count == 0 {
		exit(1)
	}
}

//go:nosplit
//go:norace
func mapProgram() {
	c := &child
	if _, e := call(unix.SYS_MMAP, Base, uintptr(c.in[2]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED_NOREPLACE,
		uintptr(c.files[0]), 0); e != 0 {
		c.op = 0
		fail(e)
	}
	c.size = uintptr(c.in[2])
}

//go:nosplit
//go:norace
func unmapProgram() { call(unix.SYS_MUNMAP, Base, child.size, 0, 0, 0, 0) }

// receiveMessage takes one message, which is good if accept says so.
//
//go:nosplit
//go:norace
func receiveMessage(flags uintptr) {
	c := &child
	c.inMsg.controlSize, c.inMsg.flags = unsafe.Sizeof(c.inFDs), 0
	c.got, c.missed = call(unix.SYS_RECVMSG, c.sock, uintptr(unsafe.Pointer(&c.inMsg)), unix.MSG_CMSG_CLOEXEC|flags, 0, 0, 0)
}

// accept looks at what was received, and puts its descriptors behind those there are. It reports false at the end of the host.
//
//go:nosplit
//go:norace
func accept() bool {
	c := &child
	if c.missed == uintptr(unix.EAGAIN) {
		c.in[0] = 0
		return true
	}
	if c.missed != 0 || c.got != msgSize || c.inMsg.flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		return false
	}
	return takeFiles()
}

// takeFiles keeps the descriptors of a message. It reports false if there are too many.
//
//go:nosplit
//go:norace
func takeFiles() bool {
	c := &child
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
	c.outParts[1].base, c.outParts[1].size = text, size
	_, e := call(unix.SYS_SENDMSG, c.sock, uintptr(unsafe.Pointer(&c.outMsg)), unix.MSG_NOSIGNAL, 0, 0, 0)
	return e
}

// fail tells of a step that failed, and ends the process: the sandbox, if it is the first one. Else the
// host ends it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fail(errno uintptr) {
	c := &child
	c.out.Kind, c.out.Op, c.out.Errno = Failed, uint32(c.op), uint32(errno)
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
	c.stopped = false
	for c.op = 0; c.op < n && !c.stopped; c.op++ {
		op := (*Op)(at(Base + c.op*OpSize))
		load(op)
		c.result, c.errno = 0, 0
		step(uintptr(op.Nr))
		settle(op)
	}
}

// settle sees to the outcome of a step.
//
//go:nosplit
//go:norace
func settle(op *Op) {
	c := &child
	if c.errno != 0 && !ignored(op.Ignore) {
		fail(c.errno)
	}
	if op.Store != 0 && (op.Nr != OpFork || c.result != 0) {
		c.slots[op.Store] = c.result
	}
}

// step does one.
//
//go:nosplit
//go:norace
//go:nocheckptr
func step(nr uintptr) {
	c := &child
	switch nr {
	case OpFork:
		doFork()
	case OpSend:
		doSend()
	case OpEqual:
		doEqual()
	case OpMemory:
		c.args[0] = uintptr(*(*uint64)(at(c.args[0])))
		doEqual()
	case OpClose:
		closeFiles()
	case OpTurn:
		doTurn()
	case OpStop:
		c.stopped = true
	case OpEnter:
		doEnter()
	case OpTry:
		doTry()
	case OpGiveUp:
		doGiveUp()
	case OpSupervise:
		supervise()
	case OpExit:
		exit(c.args[0])
	default:
		doCall(nr)
	}
}

// load finds the arguments.
//
//go:nosplit
//go:norace
func load(op *Op) {
	c := &child
	for k := range c.args {
		c.args[k] = uintptr(op.Args[k])
		switch op.Kinds >> (8 * k) & 0xff {
		case File:
			c.args[k] = uintptr(c.files[1+c.args[k]])
		case Slot:
			c.args[k] = c.slots[c.args[k]]
		}
	}
}

// ignored reports whether the error is one of those.
//
//go:nosplit
//go:norace
func ignored(errs uint64) bool {
	for ; errs != 0; errs >>= 16 {
		if uintptr(errs&0xffff) == child.errno {
			return true
		}
	}
	return false
}

//go:nosplit
//go:norace
func doCall(nr uintptr) {
	c := &child
	c.result, c.errno = call(nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
}

//go:nosplit
//go:norace
func doFork() {
	c := &child
	c.result, c.errno = call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	switch {
	case c.errno != 0:
	case c.result != 0:
		c.op = c.args[0] - 1
	default:
		c.set = 0
		_, c.errno = call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&c.set)), 0, setSize, 0, 0)
	}
}

//go:nosplit
//go:norace
func doSend() {
	c := &child
	c.out.Kind = ReplyKind(c.args[0])
	c.outMsg.control, c.outMsg.controlSize = 0, 0
	if c.args[4] == 1 {
		c.outFDs.fds[0] = int32(c.args[3])
		c.outMsg.control, c.outMsg.controlSize = uintptr(unsafe.Pointer(&c.outFDs)), unix.SizeofCmsghdr+8
	}
	c.errno = send(c.args[1], c.args[2])
}

//go:nosplit
//go:norace
func doEqual() {
	c := &child
	if c.args[0]&c.args[2] != c.args[1] {
		c.errno = uintptr(unix.EBADMSG)
	}
}

//go:nosplit
//go:norace
func doTurn() {
	c := &child
	_, c.errno = call(unix.SYS_DUP3, c.args[0], c.sock, unix.O_CLOEXEC, 0, 0, 0)
}

//go:nosplit
//go:norace
func doEnter() {
	c := &child
	if _, c.tried = call(unix.SYS_CHDIR, c.args[0], 0, 0, 0, 0, 0); c.tried != 0 {
		c.op = c.args[1] - 1
	}
}

//go:nosplit
//go:norace
func doTry() {
	c := &child
	if c.tried != 0 && !missing(c.tried) && c.tried != uintptr(unix.EACCES) {
		return
	}
	if _, e := call(unix.SYS_EXECVE, c.args[0], c.args[1], c.args[2], 0, 0, 0); c.tried == 0 || !missing(e) {
		c.tried = e
	}
}

//go:nosplit
//go:norace
func doGiveUp() {
	c := &child
	if c.tried == c.args[0] || c.args[0] == AnyError {
		call(unix.SYS_WRITE, 2, c.args[1], c.args[2], 0, 0, 0)
		exit(c.args[3])
	}
}

// supervise waits until the command has ended and nobody else is left. Its arguments are the command and the descriptor
// that tells of signals.
//
//go:nosplit
//go:norace
func supervise() {
	c := &child
	c.polled[0] = unix.PollFd{Fd: int32(c.sock), Events: unix.POLLIN}
	c.polled[1] = unix.PollFd{Fd: int32(c.args[1]), Events: unix.POLLIN}
	for c.ended = false; !c.ended && c.errno == 0; {
		waitForNews()
		if c.errno == 0 && c.polled[0].Revents != 0 {
			receiveMessage(unix.MSG_DONTWAIT)
			obey()
		}
		if c.errno == 0 && c.polled[1].Revents != 0 {
			reap()
		}
	}
	for c.errno == 0 {
		killOthers()
	}
	if c.errno == uintptr(unix.ECHILD) { // nobody is left
		tellUsage()
	}
}

//go:nosplit
//go:norace
func waitForNews() {
	c := &child
	_, c.errno = call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&c.polled)), 2, 0, 0, 0, 0)
}

// obey does what the host says, and ends the sandbox with the host.
//
//go:nosplit
//go:norace
func obey() {
	if !accept() {
		exit(1)
	}
	closeFiles()
	if child.in[0] == msgTerminate {
		terminate()
	}
}

//go:nosplit
//go:norace
func terminate() {
	call(unix.SYS_KILL, ^uintptr(0), uintptr(unix.SIGTERM), 0, 0, 0, 0) // ESRCH: nobody is left to tell
}

// reap waits for all that have ended.
//
//go:nosplit
//go:norace
func reap() {
	c := &child
	call(unix.SYS_READ, c.args[1], uintptr(unsafe.Pointer(&c.signal)), unsafe.Sizeof(c.signal), 0, 0, 0)
	for {
		c.reaped, c.errno = call(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&c.status)), unix.WNOHANG, 0, 0, 0)
		if c.errno == uintptr(unix.ECHILD) {
			c.errno = 0
			return
		}
		if c.errno != 0 || c.reaped == 0 {
			return
		}
		if int32(c.reaped) == int32(c.args[0]) {
			c.out.Status, c.ended = c.status, true
		}
	}
}

// killOthers kills all and waits for one. ECHILD is that there is none.
//
//go:nosplit
//go:norace
func killOthers() {
	c := &child
	if _, e := call(unix.SYS_KILL, ^uintptr(0), uintptr(unix.SIGKILL), 0, 0, 0, 0); e != 0 && e != uintptr(unix.ESRCH) {
		c.errno = e
		return
	}
	_, c.errno = call(unix.SYS_WAIT4, ^uintptr(0), 0, 0, 0, 0, 0)
}

//go:nosplit
//go:norace
func tellUsage() {
	c := &child
	if _, c.errno = call(unix.SYS_GETRUSAGE, 0, uintptr(unsafe.Pointer(&c.used)), 0, 0, 0, 0); c.errno != 0 {
		return
	}
	c.out.User = c.used.Utime.Sec*1e6 + c.used.Utime.Usec
	c.out.System = c.used.Stime.Sec*1e6 + c.used.Stime.Usec
}
