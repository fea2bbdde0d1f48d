package wasm

import (
	"encoding/json"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

func init() {
	pretenders = map[string]func(arg string){"probe": beProbe, "liar": beLiar, "late": beLate}
}

// needs are what a worker needs, behind its walls.
var needs = []string{"may read what is open", "may ask for the flags of what is open", "may make threads and collect garbage", "write to memory again"}

// TestWalls: a worker reaches nothing of the machine, by two walls each where that can be.
func TestWalls(t *testing.T) {
	dir := t.TempDir()
	to := map[string]any{"File": filepath.Join(dir, "file"), "Socket": filepath.Join(dir, "socket"), "Abstract": "sandboxd-test-" + filepath.Base(filepath.Dir(dir)), "Pid": os.Getpid()}
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644))
	must(t, os.Chmod(dir, 0o755))
	for network, at := range map[string]string{"TCP": "127.0.0.1:0", "Socket": to["Socket"].(string), "Abstract": "@" + to["Abstract"].(string)} {
		kind := "unix"
		if network == "TCP" {
			kind = "tcp"
		}
		l, err := net.Listen(kind, at)
		must(t, err)
		defer l.Close()
		if kind == "tcp" {
			to["TCP"] = l.Addr().String()
		} else if network == "Socket" {
			must(t, os.Chmod(at, 0o777))
		}
	}
	arg, err := json.Marshal(to)
	must(t, err)
	w, err := startWorker(&Config{program: []string{"/proc/self/exe", "probe", string(arg)}}, nil)
	var said *ModuleError
	if !errors.As(err, &said) {
		t.Fatalf("%v, %v", w, err)
	}
	var got struct{ With, Without map[string]string }
	must(t, json.Unmarshal([]byte(said.Text), &got))

	t.Logf("without the filter: %v", got.Without)
	for what, result := range got.With {
		switch {
		case slices.Contains(needs, what):
			if result != "" {
				t.Errorf("behind the filter it cannot %s: %s", what, result)
			}
		case what == "capabilities", what == "uid":
		case result != "EPERM":
			t.Errorf("behind the filter: %s: %q", what, result)
		}
	}
	if !strings.Contains(said.Text, `"capabilities":"[{0 0 0} {0 0 0}]"`) {
		t.Errorf("it has capabilities: %s", said.Text)
	}

	// What holds without the filter.
	namespaces := map[string]string{
		"reach a port of the machine": "ENETUNREACH", "reach a socket without a file": "ECONNREFUSED",
		"signal another": "ESRCH", "signal a thread of another": "ESRCH", "trace another": "ESRCH", "open another": "ESRCH", "limit another": "ESRCH",
		"become root": "EINVAL", "name the machine": "EPERM", "mount": "EPERM",
	}
	if os.Geteuid() == 0 {
		maps.Copy(namespaces, map[string]string{
			"open a file of the machine": "ENOENT", "look at a file": "ENOENT", "open what is in the root": "ENOENT", "open the program": "ENOENT",
			"make a file": "EROFS", "make a directory": "EROFS", "run a program": "ENOENT", "change what is another's": "EPERM", "become root": "EPERM",
			"reach a socket of the machine": "ENOENT", "uid": "1000", "capabilities": "[{0 0 0} {0 0 0}]",
		})
	} else if err := exec.Command("unshare", "-U", "true").Run(); err != nil {
		t.Logf("no user namespaces for this user: %v", err)
		namespaces = nil
	}
	for what, want := range namespaces {
		if result := got.Without[what]; result != want {
			t.Errorf("without the filter: %s: %q, want %q", what, result, want)
		}
	}
}

// TestWallsStand: what a result says of them is what the kernel says, and nothing is missing where it can be had.
func TestWallsStand(t *testing.T) {
	if os.Geteuid() == 0 && os.Getenv("SANDBOXD_TEST_GROUPS") == "" {
		// In a process of its own, which has groups to lose.
		self, err := os.Executable()
		must(t, err)
		worker, err := builtWorker()
		must(t, err)
		cmd := exec.Command(self, "-test.run=^TestWallsStand$", "-test.v")
		cmd.Env = append(os.Environ(), "SANDBOXD_TEST_GROUPS=1", "TMPDIR="+t.TempDir(), "SANDBOXD_TEST_WORKER="+worker)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{0, 4100}}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	e := openShell(t, Config{Module: []byte(nothing)})
	out := run(t, e, uncached("echo hi"))
	s := <-e.seats
	defer func() { e.seats <- s }()
	want := []string{"no_new_privs, and a system call filter by which it opens nothing and runs nothing", "no capabilities"}
	if os.Geteuid() == 0 {
		want = append(want, "a user without files", "an empty root", "namespaces of its own", "a limit of threads")
	}
	for _, wall := range want {
		if !slices.Contains(out.Applied.Sandbox, wall) {
			t.Errorf("%q is not among %q; missing are %q: %s", wall, out.Applied.Sandbox, s.worker.missing, s.worker.lacks)
		}
	}
	pid := s.worker.cmd.Process.Pid
	status, err := readStatus(pid)
	must(t, err)
	if status["Seccomp"] != "2" || status["NoNewPrivs"] != "1" || strings.Trim(status["CapEff"]+status["CapPrm"], "0") != "" {
		t.Errorf("the kernel says %v", status)
	}
	if os.Geteuid() == 0 {
		if at, err := os.Readlink("/proc/self/ns/net"); err != nil {
			t.Error(err)
		} else if its, err := os.Readlink("/proc/" + status["Pid"] + "/ns/net"); err != nil || its == at {
			t.Errorf("it has the machine's network: %s, %v", its, err)
		}
	}
}

// TestWorkersLimits: the kernel holds a worker to what its task was granted, and to what all workers may have.
func TestWorkersLimits(t *testing.T) {
	var core unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_CORE, &core))
	most := unix.Rlimit{Cur: core.Max, Max: core.Max} // so that it is not 0 to begin with, where that can be
	must(t, unix.Setrlimit(unix.RLIMIT_CORE, &most))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_CORE, &core)) }()
	e := openShell(t, Config{})
	for _, c := range []struct {
		limits     executor.ResourceLimits
		data, size uint64
	}{
		{executor.ResourceLimits{MemoryBytes: 256 << 20, OutputBytes: 1 << 40, TmpBytes: 1 << 20}, 256<<20 + spare, 1 << 40},
		{executor.ResourceLimits{MemoryBytes: 64 << 20, OutputBytes: 1 << 20, TmpBytes: 2 << 40}, 64<<20 + spare, 2 << 40},
		{executor.ResourceLimits{MemoryBytes: 64 << 20, OutputBytes: 1 << 20, TmpBytes: 1 << 20}, 64<<20 + spare, executor.DefaultOutputBytes},
	} {
		spec := uncached("true")
		spec.Limits = c.limits
		out := run(t, e, spec)
		want := map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_DATA: c.data, unix.RLIMIT_FSIZE: c.size}
		if slices.Contains(out.Applied.Sandbox, "a limit of threads") {
			want[unix.RLIMIT_NPROC] = uint64(256 + 4*runtime.NumCPU())
		} else if os.Geteuid() == 0 {
			t.Error("there is no limit of threads")
		}
		for resource, is := range want {
			var l unix.Rlimit
			must(t, unix.Prlimit(pidOf(e), resource, nil, &l))
			if l.Cur != is {
				t.Errorf("limit %d is %d, want %d", resource, l.Cur, is)
			}
			if (resource == unix.RLIMIT_CORE || resource == unix.RLIMIT_NPROC) && l.Max != is {
				t.Errorf("limit %d may be set to %d", resource, l.Max)
			}
		}
	}
}

// TestWithoutNamespaces: where there are none to be had the other walls stand, it is said what does not, and nobody else's
// tasks are run.
func TestWithoutNamespaces(t *testing.T) {
	testutil.RequireRoot(t)
	if os.Getenv("SANDBOXD_TEST_NO_NAMESPACES") == "" {
		self, err := os.Executable()
		must(t, err)
		worker, err := builtWorker()
		must(t, err)
		cmd := exec.Command(self, "-test.run=^TestWithoutNamespaces$", "-test.v")
		cmd.Env = append(os.Environ(), "SANDBOXD_TEST_NO_NAMESPACES=1", "TMPDIR="+t.TempDir(), "SANDBOXD_TEST_WORKER="+worker)
		all := []syscall.SysProcIDMap{{Size: 1 << 16}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	must(t, os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0))
	e := openShell(t, Config{Module: []byte(nothing)})
	out := run(t, e, uncached("echo hi"))
	for _, wall := range []string{"no_new_privs, and a system call filter by which it opens nothing and runs nothing", "no capabilities", "a user without files"} {
		if !slices.Contains(out.Applied.Sandbox, wall) {
			t.Errorf("%q is not among %q", wall, out.Applied.Sandbox)
		}
	}
	if l := e.Lacks(); !strings.Contains(l, "an empty root, namespaces of its own") || !strings.Contains(l, "no space left on device") {
		t.Errorf("it lacks %q", l)
	}
	if _, err := e.Execute(by(t, alice), uncached("true")); executor.KindOf(err) != executor.Unsupported {
		t.Errorf("another's task: %v", err)
	}
}
