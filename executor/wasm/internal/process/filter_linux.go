package process

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// call is a system call that a worker may make, if all conditions hold.
type call struct {
	number uintptr
	when   []condition
}

// condition says of the low half of an argument what its bits in mask are.
type condition struct{ argument, mask, value uint32 }

// threads are the flags that clone has for a thread: of the Go runtime, and of C libraries.
const threads = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

// calls are those of a worker that has compiled its module: of the Go runtime, to read and write what is open, and to
// receive a file from the executor. None opens anything, runs another program, makes a process or memory that
// can be executed, or acts on another process. Those that are made most come first.
func calls(pid int) []call {
	const mayC = threads | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID | unix.CLONE_DETACHED
	private := condition{3, 0xf, unix.MAP_PRIVATE} // shared memory is nobody's, by RLIMIT_DATA
	notExecuted := condition{2, unix.PROT_EXEC, 0}
	all := []call{
		{unix.SYS_FUTEX, nil}, {unix.SYS_READ, nil}, {unix.SYS_WRITE, nil}, {unix.SYS_PREAD64, nil}, {unix.SYS_PWRITE64, nil},
		{unix.SYS_RECVMSG, nil}, {unix.SYS_CLOSE, nil}, {unix.SYS_FSTAT, nil}, {unix.SYS_FTRUNCATE, nil}, {unix.SYS_LSEEK, nil},
		{unix.SYS_COPY_FILE_RANGE, nil}, {unix.SYS_FCNTL, []condition{{1, ^uint32(0), unix.F_GETFL}}},
		{unix.SYS_MADVISE, nil}, {unix.SYS_MMAP, []condition{notExecuted, private}}, {unix.SYS_MPROTECT, []condition{notExecuted}},
		{unix.SYS_MUNMAP, nil}, {unix.SYS_MINCORE, nil}, {unix.SYS_BRK, nil},
		{unix.SYS_NANOSLEEP, nil}, {unix.SYS_CLOCK_NANOSLEEP, nil}, {unix.SYS_CLOCK_GETTIME, nil}, {unix.SYS_CLOCK_GETRES, nil}, {unix.SYS_GETTIMEOFDAY, nil},
		{unix.SYS_EPOLL_PWAIT, nil}, {unix.SYS_EPOLL_CTL, nil}, {unix.SYS_EPOLL_CREATE1, nil}, {unix.SYS_EVENTFD2, nil},
		{unix.SYS_RT_SIGRETURN, nil}, {unix.SYS_RT_SIGPROCMASK, nil}, {unix.SYS_RT_SIGACTION, nil}, {unix.SYS_SIGALTSTACK, nil}, {unix.SYS_RESTART_SYSCALL, nil},
		{unix.SYS_TGKILL, []condition{{0, ^uint32(0), uint32(pid)}}}, {unix.SYS_GETPID, nil}, {unix.SYS_GETTID, nil},
		{unix.SYS_SCHED_YIELD, nil}, {unix.SYS_SCHED_GETAFFINITY, nil}, {unix.SYS_GETRUSAGE, nil}, {unix.SYS_GETRANDOM, nil},
		{unix.SYS_CLONE, []condition{{0, threads, threads}, {0, ^uint32(mayC), 0}}},
		{unix.SYS_SET_ROBUST_LIST, nil}, {unix.SYS_RSEQ, nil}, {unix.SYS_MEMBARRIER, nil}, {unix.SYS_PRCTL, []condition{{0, ^uint32(0), unix.PR_SET_VMA}}},
		{unix.SYS_EXIT, nil}, {unix.SYS_EXIT_GROUP, nil},
	}
	for _, n := range ofArch {
		all = append(all, call{n, nil})
	}
	return all
}

// filter is the program that permits calls, for the process pid, and answers all others with EPERM. To clone3, whose
// flags it cannot see, it says ENOSYS, so that C libraries use clone.
func filter(pid int) ([]unix.SockFilter, error) {
	if auditArch == 0 {
		return nil, fmt.Errorf("a system call filter: there is none for %s", runtime.GOARCH)
	}
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		and   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		// Where struct seccomp_data has the number, the architecture and, low half first, the arguments.
		number, arch, arguments = 0, 4, 16
	)
	refuse := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	code := []unix.SockFilter{
		{Code: load, K: arch}, {Code: equal, K: auditArch, Jt: 1}, {Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: number},
		{Code: equal, K: unix.SYS_CLONE3, Jf: 1}, {Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	}
	for _, c := range calls(pid) {
		code = append(code, unix.SockFilter{Code: equal, K: uint32(c.number), Jf: uint8(1 + 4*len(c.when))})
		for _, w := range c.when {
			code = append(code, unix.SockFilter{Code: load, K: arguments + 8*w.argument}, unix.SockFilter{Code: and, K: w.mask},
				unix.SockFilter{Code: equal, K: w.value, Jt: 1}, refuse)
		}
		code = append(code, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	}
	return append(code, refuse), nil
}
