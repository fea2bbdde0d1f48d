package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
)

// probeAt is this program in a sandbox, of which init is main.
const probeAt = WorkDir + "/probe"

func init() {
	if os.Args[0] != probeAt || len(os.Args) != 2 {
		return
	}
	switch os.Args[1] {
	case "look":
		look()
	case "remount":
		remount()
	case "leave":
		leave()
		look()
	}
	os.Exit(0)
}

// lookScript tells what a process of the task's finds of itself; what only a program can find comes from the probe.
const lookScript = `
show() { echo "== $1"; shift; "$@" 2>&1 || echo "code $?"; }
for f in status limits mountinfo uid_map gid_map setgroups cgroup oom_score_adj personality loginuid sessionid timerslack_ns \
	coredump_filter autogroup projid_map; do
	if [ -e /proc/self/$f ]; then show $f cat /proc/self/$f; fi
done
show environ tr '\0' '\n' </proc/self/environ
show umask umask
show cwd pwd
show fds ls -l /proc/self/fd
show init ls -l /proc/1
for f in environ maps mem io stat status cmdline comm mountinfo limits root cwd exe fd ns/user; do show "init's $f" head -c 0 /proc/1/$f; done
show processes sh -c 'cd /proc; for p in [0-9]*; do cat $p/comm; done'
for d in net/dev net/unix net/route net/if_inet6 sysvipc/shm sysvipc/sem sysvipc/msg mounts filesystems version; do show $d cat /proc/$d; done
cd /proc/sys
for f in kernel/hostname kernel/domainname kernel/shm* kernel/msg* kernel/sem fs/mqueue/* net/ipv4/ip_forward net/ipv4/ip_local_port_range \
	net/core/somaxconn user/*; do
	if [ -f $f ]; then show $f cat $f; fi
	if [ -w $f ]; then echo writable; fi
done
cd /build
show tree find / -xdev -exec ls -ld {} +
for d in /build /tmp /var/tmp /dev /dev/shm /dev/pts /home/build; do show "$d" find $d -xdev -exec ls -ldn {} +; done
show space df /tmp /dev/shm
exec ` + probeAt + " look"

// look prints what a script cannot find.
func look() {
	say := func(what string, x ...any) { fmt.Printf("-- %s: %v\n", what, x) }
	raw := func(what string, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		r, _, e := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		say(what, r, e)
	}
	raw("scheduler", unix.SYS_SCHED_GETSCHEDULER, 0)
	raw("nice", unix.SYS_GETPRIORITY, unix.PRIO_PROCESS, 0)
	raw("I/O priority", unix.SYS_IOPRIO_GET, 1, 0)
	for _, keyring := range []int{unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_PROCESS_KEYRING} {
		raw(fmt.Sprintf("keyring %d", keyring), unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, uintptr(keyring), 0)
	}
	raw("request_key", unix.SYS_REQUEST_KEY, 0, 0, 0, 0)
	for _, o := range []int{unix.PR_GET_DUMPABLE, unix.PR_GET_KEEPCAPS, unix.PR_GET_SECUREBITS, unix.PR_GET_TIMERSLACK, unix.PR_GET_THP_DISABLE,
		unix.PR_GET_NO_NEW_PRIVS, unix.PR_MCE_KILL_GET, unix.PR_GET_SECCOMP, unix.PR_GET_IO_FLUSHER} {
		raw(fmt.Sprintf("prctl %d", o), unix.SYS_PRCTL, uintptr(o))
	}
	var word [16]uint64
	for _, o := range []int{unix.PR_GET_PDEATHSIG, unix.PR_GET_CHILD_SUBREAPER, unix.PR_GET_TSC} {
		word[0] = 0
		raw(fmt.Sprintf("prctl %d", o), unix.SYS_PRCTL, uintptr(o), uintptr(unsafe.Pointer(&word)))
		say("is", word[0])
	}
	for i := range 3 {
		word = [16]uint64{}
		raw("interval timer", unix.SYS_GETITIMER, uintptr(i), uintptr(unsafe.Pointer(&word)))
		say("is", word[:4])
	}
	var set unix.CPUSet
	err := unix.SchedGetaffinity(0, &set)
	say("processors", set.Count(), err)
	b, err := os.ReadFile("/proc/self/timers")
	say("timers", string(b), err)
	sid, _ := unix.Getsid(0)
	say("session", sid == unix.Getppid() || sid == os.Getpid())
	_, err = unix.Open("/dev/tty", unix.O_RDWR, 0)
	say("terminal", err)
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if signal.Ignored(sig) {
			say("ignores", sig)
		}
	}
	for f := range unix.AF_MAX {
		fd, err := unix.Socket(f, unix.SOCK_DGRAM, 0)
		say("socket", f, err)
		unix.Close(fd)
	}
	mq, err := mqOpen(unix.O_RDONLY)
	say("message queue", mq >= 0, err)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	say("abstract socket", unix.Connect(fd, &unix.SockaddrUnix{Name: "@residue"}), err)
	raw("shm", unix.SYS_SHMGET, residueKey, 1, 0)
	raw("sem", unix.SYS_SEMGET, residueKey, 1, 0)
	raw("msg", unix.SYS_MSGGET, residueKey, 0)
	say("mount", unix.Mount("x", "/tmp", "tmpfs", 0, ""))
	say("domain name", unix.Setdomainname([]byte("residue")), unix.Sethostname([]byte("residue")))
}

const residueKey = 0x5e51d0e

func mqOpen(flags int) (int, error) {
	name, err := unix.BytePtrFromString("residue")
	if err != nil {
		return -1, err
	}
	fd, _, e := syscall.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), uintptr(flags), 0o666, 0, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

// leave leaves all that a task can.
func leave() {
	unix.Umask(0)
	try := func(what string, err error) {
		if err != nil {
			fmt.Printf("cannot leave %s: %v\n", what, err)
		}
	}
	_ = filepath.WalkDir("/", func(dir string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if dir == "/proc" || dir == "/usr" || d.Name() == "left" {
			return filepath.SkipDir
		}
		if unix.Access(dir, unix.W_OK) == nil {
			try("a file", os.WriteFile(dir+"/residue", []byte("residue"), 0o666))
			try("a directory", os.Mkdir(dir+"/left", 0o777))
			try("a pipe", unix.Mkfifo(dir+"/residue.pipe", 0o666))
			fmt.Println("left in", dir)
		}
		return nil
	})
	ipc := func(what string, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, e := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
			fmt.Printf("cannot leave %s: %v\n", what, e)
		}
	}
	ipc("shm", unix.SYS_SHMGET, residueKey, 4096, unix.IPC_CREAT|0o666)
	ipc("sem", unix.SYS_SEMGET, residueKey, 1, unix.IPC_CREAT|0o666)
	ipc("msg", unix.SYS_MSGGET, residueKey, unix.IPC_CREAT|0o666)
	_, err := mqOpen(unix.O_RDWR | unix.O_CREAT)
	try("message queue", err)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	try("socket", errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: "@residue"}), unix.Listen(fd, 1)))
	try("limits", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: 100}))
	try("limits", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
	try("nice", unix.Setpriority(unix.PRIO_PROCESS, 0, 15))
	signal.Ignore(syscall.SIGUSR1, syscall.SIGHUP)
	var timer int32
	ipc("timer", unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(&timer)))
	ipc("a personality", unix.SYS_PERSONALITY, 0x0040000) // ADDR_NO_RANDOMIZE
	try("oom_score_adj", os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0))
	try("coredump_filter", os.WriteFile("/proc/self/coredump_filter", []byte("0"), 0))
	for range 3 {
		p, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
		try("process", err)
		if p != nil {
			try("process", p.Release())
		}
	}
	runtime.KeepAlive(&timer)
}

// normal has what may differ between two sandboxes, and between two moments, replaced.
var normal = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(` {2,}`), " "},                      // columns are as wide as the widest, of the machine's processes too
	{regexp.MustCompile(`(?m)^\d+ \d+ \d+:\d+ `), "mount "}, // ids and device
	{regexp.MustCompile(`s-[a-z2-7]{26}`), "s-ID"},
	{regexp.MustCompile(`(?m)^(Vm|Rss|Hugetlb|voluntary|nonvoluntary|SigQ)\w*:.*`), "$1"},
	{regexp.MustCompile(`(?m)^ +0 +\d{10} +65536$`), "map"},
	{regexp.MustCompile(`([ug]id)=\d{10}`), "$1"},
	{regexp.MustCompile(`(pipe|socket):\[\d+\]`), "$1"},
	{regexp.MustCompile(`\w{3} +\d+ +(\d\d:\d\d|\d{4}) `), "date "},
	{regexp.MustCompile(`(?m)(^tmpfs|^sandboxd) .*%`), "space"},
	{regexp.MustCompile(`(?m)^[0-9a-f]{16}: .* (\d{2}) +\d+`), "unix $1"},
	{regexp.MustCompile(`(?m)^lr-x.* /proc/\d+/fd$`), "fd"},
	{regexp.MustCompile(`/proc/\d+/`), "/proc/N/"},
	{regexp.MustCompile(`(?m)^dr-xr-xr-x \d+ (.*) /proc$`), "$1 /proc"}, // links count the machine's processes
	{regexp.MustCompile(`/autogroup-\d+`), "/autogroup-N"},
}

func normalised(text string) string {
	for _, n := range normal {
		text = n.what.ReplaceAllString(text, n.by)
	}
	return text
}

// probeTree is a work directory with the probe.
func probeTree(t *testing.T) *os.File {
	t.Helper()
	dir := makeTree(t, 0, 0, nil)
	b, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir.Name(), "probe"), b, 0o755))
	return dir
}

// seen is what was found of one sandbox.
type seen struct {
	text   string
	spaces map[string]string
	ids    uint32
	box    *box
}

// see runs the script in a sandbox and tells what is found inside, and by the host.
func (f *fixture) see(spec Spec) seen {
	f.Helper()
	spec.Env = []string{"A=b", "PATH=" + DefaultPath}
	spec.Limits = limits.Limits{MemoryBytes: 256 << 20, PidsMax: 100}
	spec.TmpBytes = 8 << 20
	b, out, errs := f.start(spec)
	s := seen{spaces: map[string]string{}, ids: b.ids.base, box: b.box}
	for _, n := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		s.spaces[n], _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", b.pid, n))
	}
	var found []string
	for k, v := range b.Group().Applied() {
		found = append(found, fmt.Sprintf("applied %s=%s", k, v))
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(pattern + b.group.Path())
		for _, d := range dirs {
			for _, k := range []string{"pids.max", "cpu.max", "cpu.weight", "memory.max", "memory.high", "memory.low", "memory.swap.max", "memory.oom.group",
				"io.weight", "cgroup.type", "cgroup.subtree_control", "memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.memsw.limit_in_bytes",
				"memory.oom_control", "memory.swappiness", "cpu.cfs_quota_us", "cpu.shares", "cpuset.cpus", "cpuset.mems", "freezer.state"} {
				if v, err := os.ReadFile(d + "/" + k); err == nil {
					found = append(found, strings.ReplaceAll(fmt.Sprintf("%s/%s=%s", d, k, v), b.group.Path(), "/GROUP"))
				}
			}
		}
	}
	found = append(found, b.Found()...)
	slices.Sort(found)
	exit, err := b.Wait(context.Background())
	must(f.T, err)
	s.text = normalised(<-out) + strings.Join(found, "\n")
	if e := <-errs; exit.Code != 0 || e != "" {
		f.Fatalf("%+v: %s\n%s", exit, e, s.text)
	}
	must(f.T, b.Close())
	return s
}

// differences are the lines that only one of two texts has.
func differences(a, b string) string {
	var all []string
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	section := ""
	for i := range max(len(x), len(y)) {
		p, q := "", ""
		if i < len(x) {
			p = x[i]
		}
		if i < len(y) {
			q = y[i]
		}
		if strings.HasPrefix(p, "== ") {
			section = p
		}
		if p != q {
			all = append(all, fmt.Sprintf("%s\n\t%.300q\n\t%.300q", section, p, q))
		}
	}
	return strings.Join(all[:min(len(all), 10)], "\n")
}

// TestPostureColdAndWarm: what a task can see is the same in a sandbox that was made for it and in one that waited; each has
// namespaces of its own.
func TestPostureColdAndWarm(t *testing.T) {
	f := newByHand(t, 1)
	for _, network := range []netpolicy.Policy{netpolicy.Isolated, netpolicy.Loopback} {
		spec := Spec{Shared: true, Network: network, Script: lookScript, Work: Work{Dir: probeTree(t)}}
		if n := f.host.Waiting(); n != 0 {
			t.Fatalf("%d wait", n)
		}
		cold := f.see(spec)
		f.host.fill()
		f.host.mu.Lock()
		waits := f.host.kinds[kindOf{root: f.root, network: network}].boxes[0]
		f.host.mu.Unlock()
		warm := f.see(spec)
		if warm.box != waits {
			t.Fatal("the one that waited was not taken")
		}
		if cold.text != warm.text {
			t.Errorf("%v: cold and warm differ:\n%s", network, differences(cold.text, warm.text))
		}
		for _, part := range []string{"== mountinfo\nmount ", "== status\n", "applied ", "-- scheduler", "Seccomp=2", "== net/dev"} {
			if !strings.Contains(cold.text, part) {
				t.Errorf("%q is not seen:\n%s", part, cold.text)
			}
		}
		for n, at := range cold.spaces {
			host, err := os.Readlink("/proc/self/ns/" + n)
			must(t, err)
			// The command's cgroup namespace is its own; the first process is in the machine's.
			if n != "cgroup" && (at == host || at == "" || warm.spaces[n] == host) {
				t.Errorf("namespace %s: host %s, cold %s, warm %s", n, host, at, warm.spaces[n])
			}
		}
		f.host.trim(true)
		f.host.trim(false) // memory suffices again
	}
}

// TestNeighboursShareNothing: two sandboxes at once have no namespace and no id in common, cold or warm.
func TestNeighboursShareNothing(t *testing.T) {
	f := newByHand(t, 2)
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	f.host.fill()
	spaces := map[string]string{}
	for i := range 4 { // two of them cold
		b, _, _ := f.start(Spec{Shared: true, Argv: []string{"sleep", "1000"}})
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", b.pid, b.pid))
		must(t, err)
		command := strings.TrimSpace(string(children))
		for _, n := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
			at, err := os.Readlink("/proc/" + command + "/ns/" + n)
			must(t, err)
			host, err := os.Readlink("/proc/self/ns/" + n)
			must(t, err)
			if other := spaces[at]; at == host || other != "" {
				t.Errorf("sandbox %d: %s is that of the host, or of %s", i, at, other)
			}
			spaces[at] = fmt.Sprint("sandbox ", i)
		}
		ids := fmt.Sprint(b.ids.base)
		if spaces[ids] != "" {
			t.Errorf("sandbox %d has the ids of %s", i, spaces[ids])
		}
		spaces[ids] = fmt.Sprint("sandbox ", i)
	}
}

// TestResidue: what a task leaves, the next one of the same ids does not find, cold or warm: to it all is as it was before.
func TestResidue(t *testing.T) {
	f := newByHand(t, 1)
	spec := Spec{Shared: true, Script: lookScript, Work: Work{Dir: probeTree(t)}}
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	for _, warm := range []bool{false, true} {
		ready := func() {
			f.host.trim(!warm)
			f.host.trim(false)
			if warm {
				f.host.fill()
			}
			if n := f.host.Waiting(); (n > 0) != warm {
				t.Fatalf("warm %t: %d wait", warm, n)
			}
		}
		ready()
		before := f.see(spec)
		ready()
		dirty := spec
		dirty.Script = probeAt + " leave\n" + lookScript
		left := f.see(dirty)
		for _, what := range []string{"left in /tmp\n", "left in /var/tmp\n", "left in /dev/shm\n", "left in /home/build\n", "left in /build\n",
			"/tmp/residue", "/var/tmp/residue", "/dev/shm/residue", "/home/build/residue", "/build/residue", "-- message queue: [true <nil>]",
			"-- abstract socket: [<nil> <nil>]", "-- shm: [0 errno 0]", "-- sem: [0 errno 0]", "-- msg: [0 errno 0]", "sleep\n"} {
			if !strings.Contains(left.text, what) {
				t.Errorf("warm %t: %q is not left:\n%s", warm, what, left.text)
			}
		}
		if left.text == before.text {
			t.Error("nothing was left")
		}
		for range 2 {
			ready()
			after := f.see(spec)
			if after.ids != left.ids {
				t.Errorf("warm %t: the ids are others, which proves less", warm)
			}
			if after.text != before.text {
				t.Errorf("warm %t: it finds what was left:\n%s", warm, differences(before.text, after.text))
			}
		}
	}
}
