package integration_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

// call makes a system call whose arguments hardly matter: it is refused before.
func call(nr uintptr, args ...uintptr) func() error {
	return func() error {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
			return e
		}
		return nil
	}
}

func open(path string, flags int) func() error {
	return func() error {
		fd, err := unix.Open(path, flags, 0o600)
		unix.Close(fd)
		return err
	}
}

func socket(family, kind, proto int) func() error {
	return func() error {
		fd, err := unix.Socket(family, kind, proto)
		unix.Close(fd)
		return err
	}
}

// begin starts this program again, as it may not be started.
func begin(attr syscall.SysProcAttr) func() error {
	return func() error {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{probeEnv + "=none"}
		cmd.SysProcAttr = &attr
		err := cmd.Start()
		if err == nil {
			_ = cmd.Wait() // it ends at once: there is no such probe
		}
		return err
	}
}

func ptr(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// attempt is a way out, and what must come of it.
type attempt struct {
	name string
	do   func() error
	want string // errno names that will do
}

// attempts are tried in order, inside.
func attempts() []attempt {
	root := []byte("/\x00")
	return []attempt{
		{"mount tmpfs", func() error { return unix.Mount("x", "/tmp", "tmpfs", 0, "") }, "EPERM"},
		{"mount proc", func() error { return unix.Mount("proc", "/tmp", "proc", 0, "") }, "EPERM"},
		{"mount cgroup", func() error { return unix.Mount("x", "/tmp", "cgroup", 0, "memory") }, "EPERM"},
		{"mount cgroup2", func() error { return unix.Mount("x", "/tmp", "cgroup2", 0, "") }, "EPERM"},
		{"mount overlay", func() error { return unix.Mount("x", "/tmp", "overlay", 0, "lowerdir=/,userxattr") }, "EPERM"},
		{"bind mount", func() error { return unix.Mount("/", "/tmp", "", unix.MS_BIND, "") }, "EPERM"},
		{"remount / writable", func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") }, "EPERM"},
		{"unmount a mask", func() error { return unix.Unmount("/proc/kcore", unix.MNT_DETACH) }, "EPERM"},
		{"unmount /proc/sys", func() error { return unix.Unmount("/proc/sys", unix.MNT_DETACH) }, "EPERM"},
		{"open_tree clone", call(unix.SYS_OPEN_TREE, 0, ptr(root), unix.OPEN_TREE_CLONE), "EPERM"},
		{"move_mount", call(unix.SYS_MOVE_MOUNT), "EPERM"},
		{"fsopen", call(unix.SYS_FSOPEN), "EPERM"},
		{"fsmount", call(unix.SYS_FSMOUNT), "EPERM"},
		{"fspick", call(unix.SYS_FSPICK), "EPERM"},
		{"mount_setattr", call(unix.SYS_MOUNT_SETATTR), "EPERM"},
		{"pivot_root", call(unix.SYS_PIVOT_ROOT, ptr(root), ptr(root)), "EPERM"},
		{"chroot", func() error { return unix.Chroot("/tmp") }, "EPERM"},
		{"mknod a disk", func() error { return unix.Mknod("/tmp/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))) }, "EPERM"},
		{"mknod /dev/mem", func() error { return unix.Mknod("/build/mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))) }, "EPERM"},
		{"setns", call(unix.SYS_SETNS), "EPERM"},
		{"unshare user", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }, "EPERM"},
		{"unshare mount", func() error { return unix.Unshare(unix.CLONE_NEWNS) }, "EPERM"},
		{"clone user", begin(syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}), "EPERM"},
		{"clone pid", begin(syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}), "EPERM"},
		{"clone3", call(unix.SYS_CLONE3), "ENOSYS"},
		{"open_by_handle_at", call(unix.SYS_OPEN_BY_HANDLE_AT), "EPERM"},
		{"keyctl", call(unix.SYS_KEYCTL), "EPERM"},
		{"add_key", call(unix.SYS_ADD_KEY), "EPERM"},
		{"request_key", call(unix.SYS_REQUEST_KEY), "EPERM"},
		{"bpf", call(unix.SYS_BPF), "EPERM"},
		{"perf_event_open", call(unix.SYS_PERF_EVENT_OPEN), "EPERM"},
		{"userfaultfd", call(unix.SYS_USERFAULTFD), "EPERM"},
		{"io_uring_setup", call(unix.SYS_IO_URING_SETUP), "EPERM"},
		{"io_uring_register", call(unix.SYS_IO_URING_REGISTER), "EPERM"},
		{"memfd_secret", call(unix.SYS_MEMFD_SECRET), "EPERM"},
		{"fanotify_init", call(unix.SYS_FANOTIFY_INIT), "EPERM"},
		{"init_module", call(unix.SYS_INIT_MODULE), "EPERM"},
		{"kexec_load", call(unix.SYS_KEXEC_LOAD), "EPERM"},
		{"syslog", call(unix.SYS_SYSLOG, 3), "EPERM"},
		{"reboot", call(unix.SYS_REBOOT), "EPERM"},
		{"swapon", call(unix.SYS_SWAPON), "EPERM"},
		{"quotactl", call(unix.SYS_QUOTACTL), "EPERM"},
		{"settimeofday", call(unix.SYS_SETTIMEOFDAY), "EPERM"},
		{"sethostname", func() error { return unix.Sethostname([]byte("mine")) }, "EPERM"},
		{"setuid 0", func() error { return unix.Setreuid(0, 0) }, "EPERM"},
		{"setgroups", func() error { return unix.Setgroups([]int{0}) }, "EPERM"},
		{"kcmp init", call(unix.SYS_KCMP, 1, 1), "EPERM"},
		{"ptrace init", func() error { return unix.PtraceAttach(1) }, "EPERM"},
		{"process_vm_readv init", call(unix.SYS_PROCESS_VM_READV, 1), "EPERM"},
		{"process_vm_writev init", call(unix.SYS_PROCESS_VM_WRITEV, 1), "EPERM"},
		{"pidfd_getfd of init", func() error {
			fd, err := unix.PidfdOpen(1, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			_, err = unix.PidfdGetfd(fd, 0, 0)
			return err
		}, "EPERM"},
		{"kill init", func() error { return unix.Kill(1, unix.SIGKILL) }, "EPERM"},
		{"stop init", func() error { return unix.Kill(1, unix.SIGSTOP) }, "EPERM"},
		{"prlimit init", func() error { return unix.Prlimit(1, unix.RLIMIT_NOFILE, &unix.Rlimit{}, nil) }, "EPERM"},
		{"write init's program", open("/proc/1/exe", unix.O_WRONLY), "EACCES"},
		{"write init's memory", open("/proc/1/mem", unix.O_RDWR), "EACCES"},
		{"own program", open("/proc/self/exe", unix.O_WRONLY), "EROFS ETXTBSY EACCES"},
		{"parent of the user namespace", func() error {
			ns, err := unix.Open("/proc/self/ns/user", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(ns)
			_, err = unix.IoctlRetInt(ns, unix.NS_GET_PARENT)
			return err
		}, "EPERM"},
		{"TIOCSTI", call(unix.SYS_IOCTL, 0, unix.TIOCSTI, ptr(root)), "EPERM"},
		{"TIOCSTI with high bits", call(unix.SYS_IOCTL, 0, unix.TIOCSTI|1<<32, ptr(root)), "EPERM"},
		{"TIOCLINUX", call(unix.SYS_IOCTL, 0, unix.TIOCLINUX|1<<40, ptr(root)), "EPERM"},
		{"AF_ALG", socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), "EPERM"},
		{"AF_VSOCK", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), "EPERM"},
		{"AF_PACKET", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), "EPERM"},
		{"AF_NETLINK audit", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT), "EPERM"},
		{"AF_NETLINK netfilter", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), "EPERM"},
		{"AF_INET raw", socket(unix.AF_INET, unix.SOCK_RAW, 1), "EPERM"},
		{"sysrq", open("/proc/sysrq-trigger", unix.O_WRONLY), "EROFS EACCES ENOENT"},
		{"core_pattern", open("/proc/sys/kernel/core_pattern", unix.O_WRONLY), "EROFS EACCES"},
		{"modprobe path", open("/proc/sys/kernel/modprobe", unix.O_WRONLY), "EROFS EACCES ENOENT"},
		{"kmsg", open("/dev/kmsg", unix.O_RDONLY), "ENOENT"},
		{"uid_map", func() error { return os.WriteFile("/proc/self/uid_map", []byte("0 0 1"), 0) }, "EPERM EACCES"},
		{"lower oom_score_adj", func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1"), 0) }, "EACCES"},
		{"cgroup files", open("/sys/fs/cgroup", unix.O_RDONLY), "ENOENT"},
		{"realtime", call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, ptr([]byte{1, 0, 0, 0})), "EPERM EINVAL"},
		{"nice -1", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -1) }, "EACCES EPERM"},
		{"write /usr", open("/usr/escaped", unix.O_CREAT|unix.O_WRONLY), "EROFS"},
		{"write /etc/passwd", open("/etc/passwd", unix.O_WRONLY), "EROFS EACCES"},
		{"write /", open("/escaped", unix.O_CREAT|unix.O_WRONLY), "EROFS"},
		{"read shadow", open("/etc/shadow", unix.O_RDONLY), "ENOENT"},
		{"write an input", open("/inputs/data/file", unix.O_WRONLY), "EROFS"},
		{"append to an input", open("/inputs/data/file", unix.O_WRONLY|unix.O_APPEND), "EROFS"},
		{"reopen an input for writing", func() error {
			fd, err := unix.Open("/inputs/data/file", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR)()
		}, "EROFS"},
		{"chmod an input", func() error { return unix.Chmod("/inputs/data/file", 0o777) }, "EROFS"},
		{"touch an input", func() error { return unix.Utimes("/inputs/data/file", make([]unix.Timeval, 2)) }, "EROFS"},
		{"mark an input", func() error { return unix.Setxattr("/inputs/data/file", "user.x", []byte("x"), 0) }, "EROFS"},
		{"hard link to an input", func() error { return unix.Link("/inputs/data/file", "/build/link") }, "EXDEV"},
		{"leave by ..", open("/inputs/data/../../../../../../../../etc/shadow", unix.O_RDONLY), "ENOENT"},
		{"write lease on an input", func() error {
			fd, err := unix.Open("/inputs/data/file", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
			return err
		}, "EPERM"},
		{"trusted xattr", func() error { return unix.Setxattr("/build", "trusted.overlay.opaque", []byte("y"), 0) }, "EPERM"},
		{"security xattr", func() error {
			if err := os.WriteFile("/build/cap", nil, 0o755); err != nil {
				return err
			}
			return unix.Setxattr("/build/cap", "security.capability", make([]byte, 20), 0)
		}, "EPERM EINVAL"},
		{"setuid program of root", func() error {
			// su, if the root has it, must not make us root.
			out, err := exec.Command("/bin/su", "-c", "id -u").CombinedOutput()
			if err == nil && strings.TrimSpace(string(out)) == "0" {
				return nil
			}
			return unix.EPERM
		}, "EPERM"},
		{"host's abstract socket", func() error { return connectUnix("@" + os.Args[0] + "-host") }, "ECONNREFUSED"},
		{"socket in an input", func() error { return connectUnix("/inputs/data/socket") }, "ECONNREFUSED"},
		{"FIFO in an input", open("/inputs/data/fifo", unix.O_WRONLY|unix.O_NONBLOCK), "ENXIO"},
		{"socket in the work directory", func() error { return connectUnix("/build/socket") }, "ECONNREFUSED"},
		{"FIFO in the work directory", open("/build/fifo", unix.O_WRONLY|unix.O_NONBLOCK), "ENXIO"},
		{"execute from /dev/shm", func() error {
			if err := os.WriteFile("/dev/shm/x", []byte("#!/bin/sh\n"), 0o755); err != nil {
				return err
			}
			return exec.Command("/dev/shm/x").Run()
		}, "EACCES"},
		{"connect to loopback", func() error {
			c, err := net.Dial("tcp", "127.0.0.1:22")
			if err == nil {
				c.Close()
			}
			return err
		}, "ENETUNREACH"},
		{"x32 getpid", call(unix.SYS_GETPID | 0x40000000), "ENOSYS"},
	}
}

func connectUnix(name string) error {
	c, err := net.Dial("unix", name)
	if err == nil {
		c.Close()
	}
	return err
}

func tryAll() outcomes {
	o := outcomes{}
	for _, a := range attempts() {
		o[a.name] = errnoName(a.do())
	}
	return o
}

func TestEscape(t *testing.T) {
	f := newFixture(t)
	dir := openDir(t)
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("input"), 0o644))
	must(t, os.Chmod(dir, 0o755))
	for _, p := range []string{dir, filepath.Join(dir, "file")} {
		must(t, os.Chown(p, callerUID, callerUID)) // so that inside they are the task's
	}
	abstract, err := net.Listen("unix", "@"+probePath+"-host")
	must(t, err)
	defer abstract.Close()
	listen(t, dir)
	got := f.probe("escape", executor.TaskSpec{Workdir: dir, Inputs: []executor.Input{{Host: dir, Sandbox: "/inputs/data"}}})
	for _, a := range attempts() {
		t.Run(strings.ReplaceAll(a.name, "/", "_"), func(t *testing.T) {
			for _, ok := range strings.Fields(a.want) {
				if got[a.name] == ok {
					return
				}
			}
			t.Errorf("%s, want %s", got[a.name], a.want)
		})
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "input" {
		t.Errorf("the input is %q: %v", b, err)
	}
}

// listen makes a socket and a FIFO of the caller's in dir, and is at the other end of both.
func listen(t *testing.T, dir string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	r, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { r.Close() })
	for _, name := range []string{"socket", "fifo"} {
		must(t, os.Chown(filepath.Join(dir, name), callerUID, callerUID))
	}
}

// connecting tries to reach what listens in the work directory.
func connecting() outcomes {
	return outcomes{
		"socket": errnoName(connectUnix("/build/socket")),
		"fifo":   errnoName(open("/build/fifo", unix.O_WRONLY|unix.O_NONBLOCK)()),
	}
}

// TestEscapeListeners: what the caller's programs listen at in its own directories is not to
// be reached, whatever the mode. Only a FIFO in mode direct is a file like others there.
func TestEscapeListeners(t *testing.T) {
	f := newFixture(t)
	dir := openDir(t)
	must(t, os.Chown(dir, callerUID, callerUID))
	listen(t, dir)
	for mode, want := range map[executor.WorkdirMode]string{
		executor.WorkdirOverlay: "ECONNREFUSED ENXIO", executor.WorkdirReadonly: "ECONNREFUSED ENXIO", executor.WorkdirDirect: "EPERM allowed",
	} {
		got := f.probe("listeners", executor.TaskSpec{Workdir: dir, WorkdirMode: mode})
		if s := got["socket"] + " " + got["fifo"]; s != want {
			t.Errorf("%v: %s, want %s", mode, s, want)
		}
	}
}

// TestEscapeSurvivors: what a task leaves running has ended when its result is there, also where it ran
// out of time.
func TestEscapeSurvivors(t *testing.T) {
	f := newFixture(t)
	const script = "awk '{print $2}' /proc/self/uid_map\n" +
		"for i in 1 2 3 4 5 6 7 8; do (setsid sh -c 'trap \"\" TERM HUP INT; sleep 1000 & sleep 1000' </dev/null >/dev/null 2>&1 &); done\n"
	for _, c := range []struct {
		script  string
		timeout time.Duration
		want    executor.Cause
	}{{script, 0, executor.CauseExited}, {script + "trap '' TERM; sleep 1000", time.Second, executor.CauseTimedOut}} {
		out := f.run(&executor.TaskSpec{Script: c.script, Timeout: c.timeout})
		if out.Cause != c.want {
			t.Fatalf("%s %d: %s", out.Cause, out.ExitCode, out.Stderr.Inline)
		}
		base, err := strconv.Atoi(strings.TrimSpace(string(out.Stdout.Inline)))
		must(t, err)
		procs, err := filepath.Glob("/proc/[0-9]*")
		must(t, err)
		for _, p := range procs {
			var st unix.Stat_t
			if unix.Stat(p, &st) != nil || int(st.Uid) < base || int(st.Uid) >= base+65536 {
				continue
			}
			// The sandbox's own first process ends by itself.
			if name, err := os.ReadFile(p + "/comm"); err == nil && string(name) != "sandboxd-init\n" {
				t.Errorf("%s, %q of uid %d, is left", p, name, st.Uid)
			}
		}
	}
}

// TestEscapeForkBomb: it meets its own bound, and the result says so.
func TestEscapeForkBomb(t *testing.T) {
	f := newFixture(t)
	out := f.run(&executor.TaskSpec{Script: "b() { b & b & wait; }; b; exit 3", Timeout: 5e9, Limits: executor.ResourceLimits{PidsMax: 64}})
	if out.Cause != executor.CausePidsLimit || out.ExitCode != 3 || out.Usage.PeakPids == nil || *out.Usage.PeakPids < 32 || *out.Usage.PeakPids > 64+12 {
		t.Errorf("%s (%s), %+v", out.Cause, out.Evidence, out.Usage)
	}
}

// setID tries to make files that run as their owner or group.
func setID() outcomes {
	unix.Umask(0)
	o := outcomes{}
	for _, how := range []struct {
		name string
		do   func(path string) error
	}{
		{"chmod", func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o755), unix.Chmod(p, 0o4755))
		}},
		{"chmod of a directory", func(p string) error { return errors.Join(os.Mkdir(p, 0o755), unix.Chmod(p, 0o2755)) }},
		{"fchmod", func(p string) error {
			f, err := os.Create(p)
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Fchmod(int(f.Fd()), 0o2755)
		}},
		{"fchmodat2", func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o755), unix.Fchmodat(unix.AT_FDCWD, p, 0o6755, unix.AT_SYMLINK_NOFOLLOW))
		}},
		{"open", func(p string) error {
			_, err := unix.Open(p, unix.O_CREAT|unix.O_WRONLY, 0o4755)
			return err
		}},
		{"openat2", func(p string) error {
			_, err := unix.Openat2(unix.AT_FDCWD, p, &unix.OpenHow{Flags: unix.O_CREAT | unix.O_WRONLY, Mode: 0o4755})
			return err
		}},
		{"mknod", func(p string) error { return unix.Mknod(p, unix.S_IFREG|0o4755, 0) }},
		{"mkdir", func(p string) error { return unix.Mkdir(p, 0o6755) }}, // the kernel drops the bits
		{"O_TMPFILE", func(p string) error {
			fd, err := unix.Open("/build", unix.O_TMPFILE|unix.O_RDWR, 0o4755)
			if err != nil {
				return err
			}
			return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, p, unix.AT_SYMLINK_FOLLOW)
		}},
	} {
		o[how.name] = errnoName(how.do("/build/" + strings.ReplaceAll(how.name, " ", "-")))
	}
	return o
}

// TestEscapeSetID: in mode direct a task's files are its caller's, and a program among them
// that is setuid would run as the caller, for whoever finds it.
func TestEscapeSetID(t *testing.T) {
	f := newFixture(t)
	dir := openDir(t)
	must(t, os.Chown(dir, callerUID, callerUID))
	f.Logf("%v", f.probe("set id", executor.TaskSpec{Workdir: dir, WorkdirMode: executor.WorkdirDirect}))
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) < 3 {
		t.Errorf("%v: not much was tried", entries)
	}
	for _, e := range entries {
		st, err := e.Info()
		must(t, err)
		if st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s is %v", e.Name(), st.Mode())
		}
	}
}
