package integration_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

var namespaces = []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}

// posture is what a task can tell of its own state.
func posture() outcomes {
	o := outcomes{}
	status(o)
	for _, ns := range namespaces {
		o["ns "+ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	for _, f := range []string{"uid_map", "gid_map", "setgroups", "cgroup", "oom_score_adj"} {
		b, err := os.ReadFile("/proc/self/" + f)
		o[f] = strings.Join(strings.Fields(string(b)), " ")
		if err != nil {
			o[f] = errnoName(err)
		}
	}
	mounts(o)
	process(o)
	limits(o)
	env := os.Environ()
	slices.Sort(env)
	o["env"] = strings.Join(env, " ")
	for _, d := range []string{"/sys", "/run", "/home/build", "/dev"} {
		es, err := os.ReadDir(d)
		var names []string
		for _, e := range es {
			names = append(names, e.Name())
		}
		o["ls "+d] = strings.Join(names, " ")
		if err != nil {
			o["ls "+d] = errnoName(err)
		}
	}
	for _, f := range []string{"environ", "maps", "mem", "root", "cwd", "exe", "fd", "ns/user"} {
		fd, err := unix.Open("/proc/1/"+f, unix.O_RDONLY, 0)
		unix.Close(fd)
		o["init's "+f] = errnoName(err)
	}
	for _, d := range []string{"/tmp", "/var/tmp", "/dev/shm"} {
		bounds(o, d)
	}
	o["writable in /proc"] = writableInProc()
	return o
}

func status(o outcomes) {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		switch k {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "TracerPid", "SigBlk", "SigIgn", "Umask", "PPid":
			o[k] = strings.Join(strings.Fields(v), " ")
		}
	}
}

// mounts are keyed by where they are; one over another has a key of its own.
func mounts(o outcomes) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		f, rest, _ := strings.Cut(line, " - ")
		fields := strings.Fields(f)
		var flags []string
		for _, x := range strings.Split(fields[5], ",") {
			if !strings.HasSuffix(x, "atime") && !strings.HasPrefix(x, "idmapped") {
				flags = append(flags, x)
			}
		}
		key := "mount " + fields[4]
		for o[key] != "" {
			key += " again"
		}
		o[key] = strings.Join(flags, ",")
		if kind := strings.Fields(rest)[0]; !hostPart(fields[4]) {
			o[key] += " " + kind
		}
		if len(fields) > 6 {
			o[key] += " " + strings.Join(fields[6:], " ") // propagation
		}
	}
}

// hostPart reports whether a mount is one of the machine's programs or settings,
// of which each machine has others.
func hostPart(at string) bool {
	for _, d := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/probe"} {
		if at == d || strings.HasPrefix(at, d+"/") {
			return true
		}
	}
	return false
}

func process(o outcomes) {
	sid, _ := unix.Getsid(0)
	pgid, _ := unix.Getpgid(0)
	o["leads its session and group"] = fmt.Sprint(sid == os.Getpid() && pgid == os.Getpid())
	_, err := unix.Open("/dev/tty", unix.O_RDWR, 0)
	o["terminal"] = errnoName(err)
	o["cwd"], _ = os.Getwd()
	o["hostname"], _ = os.Hostname()
	var fds []string
	for fd := range 64 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 { // Go's own are all close-on-exec
			fds = append(fds, fmt.Sprint(fd))
		}
	}
	o["fds"] = strings.Join(fds, " ")
	var in unix.Stat_t
	err = unix.Fstat(0, &in)
	_, sealed := unix.FcntlInt(0, unix.F_GET_SEALS, 0) // of a file in memory alone
	o["stdin"] = fmt.Sprintf("%t %d bytes", err == nil && sealed == nil && in.Mode&unix.S_IFMT == unix.S_IFREG, in.Size)
	nice, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
	o["nice"] = fmt.Sprint(20 - nice)
}

func limits(o outcomes) {
	b, _ := os.ReadFile("/proc/self/limits")
	for line := range strings.Lines(string(b)) {
		for _, k := range []string{"Max core file size", "Max nice priority", "Max realtime priority", "Max locked memory", "Max msgqueue size"} {
			if v, ok := strings.CutPrefix(line, k); ok {
				f := strings.Fields(v)
				o[k] = f[0] + " " + f[1]
			}
		}
	}
}

// bounds fills d.
func bounds(o outcomes, d string) {
	var st unix.Statfs_t
	if err := unix.Statfs(d, &st); err != nil {
		o["bounds "+d] = err.Error()
		return
	}
	f, err := os.Create(d + "/fill")
	if err != nil {
		o["bounds "+d] = err.Error()
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block)
	}
	o["bounds "+d] = fmt.Sprintf("%d bytes, %v, then %s", st.Blocks*uint64(st.Bsize), st.Files > 0 && st.Files <= 1<<20, errnoName(errors.Unwrap(err)))
}

// writableInProc are the files of /proc, beside those of processes, that can be
// opened for writing.
func writableInProc() string {
	var found []string
	_ = filepath.WalkDir("/proc", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() && strings.Trim(d.Name(), "0123456789") == "" {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		if fd, err := unix.Open(p, unix.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			unix.Close(fd)
			found = append(found, p)
		}
		return nil
	})
	return strings.Join(found, " ")
}

const tmpBytes = 8 << 20

// wantPosture is what every task is promised; "ns" and the id maps are apart.
var wantPosture = outcomes{
	"Uid": "1000 1000 1000 1000", "Gid": "1000 1000 1000 1000", "Groups": "",
	"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
	"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
	"NoNewPrivs": "1", "Seccomp": "2", "TracerPid": "0", "SigBlk": "0000000000000000", "SigIgn": "0000000000000000",
	"Umask": "0022", "PPid": "1", "cgroup": "0::/", "oom_score_adj": "0", "setgroups": "allow",
	"leads its session and group": "true", "terminal": "ENXIO", "cwd": "/build", "hostname": "sandboxd", "fds": "0 1 2", "stdin": "true 0 bytes", "nice": "0",
	"env":                "HOME=/home/build LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SANDBOXD_PROBE=posture TMPDIR=/tmp USER=build",
	"Max core file size": "0 0", "Max nice priority": "0 0", "Max realtime priority": "0 0", "Max locked memory": "8388608 8388608",
	"Max msgqueue size": "819200 819200",
	"ls /sys":           "", "ls /run": "", "ls /home/build": "",
	"ls /dev":         "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero",
	"init's environ":  "EACCES",
	"init's maps":     "EACCES",
	"init's mem":      "EACCES",
	"init's root":     "EACCES",
	"init's cwd":      "EACCES",
	"init's exe":      "EACCES",
	"init's fd":       "EACCES",
	"init's ns/user":  "EACCES",
	"bounds /tmp":     "8388608 bytes, true, then ENOSPC",
	"bounds /var/tmp": "8388608 bytes, true, then ENOSPC",
	"bounds /dev/shm": "8388608 bytes, true, then ENOSPC",

	"writable in /proc": "",

	"mount /":           "ro,nosuid,nodev tmpfs",
	"mount /build":      "rw,nosuid,nodev ext4",
	"mount /dev":        "ro,nosuid,noexec tmpfs",
	"mount /dev/pts":    "rw,nosuid,noexec devpts",
	"mount /dev/shm":    "rw,nosuid,nodev,noexec tmpfs",
	"mount /home/build": "rw,nosuid,nodev tmpfs",
	"mount /.sandboxd":  "ro,nosuid,nodev tmpfs", "mount /tmp": "rw,nosuid,nodev tmpfs",
	"mount /var/tmp":       "rw,nosuid,nodev tmpfs",
	"mount /proc":          "rw,nosuid,nodev,noexec proc",
	"mount /proc/bus":      "ro,nosuid,nodev,noexec proc",
	"mount /proc/fs":       "ro,nosuid,nodev,noexec proc",
	"mount /proc/irq":      "ro,nosuid,nodev,noexec proc",
	"mount /proc/sys":      "ro,nosuid,nodev,noexec proc",
	"mount /probe/program": "ro,nosuid,nodev",
}

func TestPosture(t *testing.T) {
	f := newFixture(t)
	got := f.probe("posture", executor.TaskSpec{Limits: executor.ResourceLimits{TmpBytes: tmpBytes}})
	for k, v := range got {
		want, ok := wantPosture[k]
		at, isMount := strings.CutPrefix(k, "mount ")
		switch {
		case k == "uid_map" || k == "gid_map":
			var inside, outside, size int
			if _, err := fmt.Sscan(v, &inside, &outside, &size); err != nil || inside != 0 || outside < 1<<16 || size != 65536 {
				t.Errorf("%s: %q", k, v)
			}
			continue
		case strings.HasPrefix(k, "ns "):
			host, err := os.Readlink("/proc/self/ns/" + k[3:])
			must(t, err)
			if v == host || v == "" {
				t.Errorf("namespace %s: %s is the host's", k[3:], v)
			}
			continue
		case k == "cgroup":
			for _, line := range strings.Fields(v) {
				if !strings.HasSuffix(line, ":/") {
					t.Errorf("cgroup %s shows where the host has it", line)
				}
			}
			continue
		case isMount && hostPart(at):
			ok, want = true, "ro,nosuid,nodev"
			if v == want+",noexec" {
				want = v // as it is on the host
			}
		case isMount && !ok && strings.HasPrefix(at, "/proc/"):
			// Which files there are to be masked is the kernel's.
			fields := strings.Fields(v)
			ok, want = true, v
			if fields[0] != "ro,nosuid,nodev,noexec" || len(fields) != 2 || fields[1] == "proc" {
				t.Errorf("%s: %q", k, v)
			}
		case k == "mount /build": // of the state directory's file system
			ok, want = true, "rw,nosuid,nodev "+strings.Fields(v)[1]
		}
		if !ok || v != want {
			t.Errorf("%s: %q, want %q", k, v, want)
		}
	}
	for k := range wantPosture {
		if _, ok := got[k]; !ok && k != "mount /proc/bus" && k != "mount /proc/irq" {
			t.Errorf("%s: not found", k)
		}
	}
}

// TestPostureOfNeighbours: two at once share no id and no namespace. Each waits for
// a line that the other cannot give, so the first is there when the second looks.
func TestPostureOfNeighbours(t *testing.T) {
	f := newFixture(t)
	const script = "cat /proc/self/uid_map; for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done"
	pairs := make(chan []string, 2)
	for range 2 {
		go func() {
			// The fifo is in the state of neither: only a timeout ends it.
			out := f.run(&executor.TaskSpec{Script: script + "; sleep 3"})
			pairs <- strings.Split(strings.TrimSpace(string(out.Stdout.Inline)), "\n")
		}()
	}
	a, b := <-pairs, <-pairs
	if len(a) != 8 || len(b) != 8 {
		t.Fatalf("%q\n%q", a, b)
	}
	for i := range a {
		if a[i] == b[i] {
			t.Errorf("both have %q", a[i])
		}
	}
}
