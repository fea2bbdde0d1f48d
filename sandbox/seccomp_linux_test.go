package sandbox_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/sandbox"
)

// try are system calls and what they give under the filter; 0 is that the
// filter lets them through, whatever the kernel then says of their arguments.
var try = []attempt{
	{"getpid", unix.SYS_GETPID, [4]uintptr{}, 0, 0},
	{"socket unix", unix.SYS_SOCKET, [4]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}, 0, 0},
	{"socketpair unix", unix.SYS_SOCKETPAIR, [4]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}, 0, 0},
	{"socket inet", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET, unix.SOCK_STREAM}, 0, 0},
	{"socket netlink route", unix.SYS_SOCKET, [4]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, 0, 0},
	{"socket netlink audit", unix.SYS_SOCKET, [4]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}, unix.EPERM, unix.EPERM},
	{"socket alg", unix.SYS_SOCKET, [4]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}, unix.EPERM, unix.EPERM},
	{"socket alg, high bits", unix.SYS_SOCKET, [4]uintptr{unix.AF_ALG | 1<<32, unix.SOCK_SEQPACKET}, unix.EPERM, unix.EPERM},
	{"socket unix, high bits", unix.SYS_SOCKET, [4]uintptr{unix.AF_UNIX | 1<<32, unix.SOCK_STREAM}, unix.EPERM, unix.EPERM},
	{"socket vsock", unix.SYS_SOCKET, [4]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}, unix.EPERM, unix.EPERM},
	{"socket packet", unix.SYS_SOCKET, [4]uintptr{unix.AF_PACKET, unix.SOCK_RAW}, unix.EPERM, unix.EPERM},
	{"io_uring_setup", unix.SYS_IO_URING_SETUP, [4]uintptr{}, unix.EPERM, unix.EPERM},
	{"keyctl", unix.SYS_KEYCTL, [4]uintptr{}, unix.EPERM, unix.EPERM},
	{"unshare user", unix.SYS_UNSHARE, [4]uintptr{unix.CLONE_NEWUSER}, unix.EPERM, unix.EPERM},
	{"clone user", unix.SYS_CLONE, [4]uintptr{unix.CLONE_NEWUSER}, unix.EPERM, unix.EPERM},
	{"clone3", unix.SYS_CLONE3, [4]uintptr{}, unix.ENOSYS, unix.ENOSYS},
	{"setns", unix.SYS_SETNS, [4]uintptr{^uintptr(0)}, unix.EPERM, unix.EPERM},
	{"mount", unix.SYS_MOUNT, [4]uintptr{}, unix.EPERM, unix.EPERM},
	{"bpf", unix.SYS_BPF, [4]uintptr{}, unix.EPERM, unix.EPERM},
	{"ptrace", unix.SYS_PTRACE, [4]uintptr{unix.PTRACE_PEEKTEXT, 1}, unix.EPERM, 0},
	{"TIOCSTI", unix.SYS_IOCTL, [4]uintptr{^uintptr(0), unix.TIOCSTI}, unix.EPERM, unix.EPERM},
	{"TIOCSTI, high bits", unix.SYS_IOCTL, [4]uintptr{^uintptr(0), unix.TIOCSTI | 1<<32}, unix.EPERM, unix.EPERM},
	{"TIOCLINUX", unix.SYS_IOCTL, [4]uintptr{^uintptr(0), unix.TIOCLINUX}, unix.EPERM, unix.EPERM},
	{"other ioctl", unix.SYS_IOCTL, [4]uintptr{^uintptr(0), unix.TCGETS}, 0, 0},
	{"setgid bit, fchmod", unix.SYS_FCHMOD, [4]uintptr{^uintptr(0), 0o2755}, 0, 0},
	{"setuid bit, fchmodat", unix.SYS_FCHMODAT, [4]uintptr{^uintptr(0), 0, 0o4755}, 0, 0},
	{"setuid bit, fchmodat2", unix.SYS_FCHMODAT2, [4]uintptr{^uintptr(0), 0, 0o4755}, 0, 0},
	{"setuid bit, openat", unix.SYS_OPENAT, [4]uintptr{^uintptr(0), 0, unix.O_CREAT, 0o4755}, 0, 0},
	{"setuid bit, openat, high bits", unix.SYS_OPENAT, [4]uintptr{^uintptr(0), 0, unix.O_CREAT, 1<<32 | 0o4755}, 0, 0},
	{"setuid bit, mknodat", unix.SYS_MKNODAT, [4]uintptr{^uintptr(0), 0, unix.S_IFREG | 0o4755}, 0, 0},
	{"setuid bit, openat2", unix.SYS_OPENAT2, [4]uintptr{^uintptr(0)}, 0, 0},
}

// TestMain is also the filtered process: it runs the calls and prints the errors.
func TestMain(m *testing.M) {
	mode := os.Getenv("SANDBOX_TEST_FILTER")
	if mode == "" {
		if err := sandbox.Seal(); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	code, err := sandbox.Filter(sandbox.FilterOptions{Debug: mode == "debug", Direct: mode == "direct"})
	if err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		panic(e)
	}
	got := map[string]int{}
	for _, c := range try {
		_, _, e := unix.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], 0, 0)
		got[c.name] = int(e)
	}
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		panic(err)
	}
	os.Exit(0)
}

func TestFilter(t *testing.T) {
	testutil.Require(t, runtime.GOARCH == "amd64", "the table has amd64's numbers")
	testutil.CheckLeaks(t)
	for _, mode := range []string{"build", "debug", "direct"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "SANDBOX_TEST_FILTER="+mode)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", mode, err, out)
		}
		var got map[string]int
		if err := json.NewDecoder(strings.NewReader(string(out))).Decode(&got); err != nil {
			t.Fatalf("%s: %v: %s", mode, err, out)
		}
		for _, c := range try {
			want := c.want
			if mode == "debug" {
				want = c.debug
			}
			if mode == "direct" && (strings.HasPrefix(c.name, "setuid") || c.name == "socket unix") || mode == "direct" && strings.HasPrefix(c.name, "setgid") {
				want = unix.EPERM
			}
			if mode == "direct" && c.nr == unix.SYS_OPENAT2 {
				want = unix.ENOSYS
			}
			e := unix.Errno(got[c.name])
			let := e != unix.EPERM && (e != unix.ENOSYS || c.nr == unix.SYS_FCHMODAT2) // which came with Linux 6.6
			if want == 0 && !let || want != 0 && e != want {
				t.Errorf("%s, %s: got %v; want %v", mode, c.name, e, want)
			}
		}
	}
}

func TestFilterIsTheSameEachTime(t *testing.T) {
	a, err := sandbox.Filter(sandbox.FilterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := sandbox.Filter(sandbox.FilterOptions{})
	if err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("two filters differ (%v)", err)
	}
}

type attempt struct {
	name  string
	nr    uintptr
	args  [4]uintptr
	want  unix.Errno
	debug unix.Errno // with Debug
}
