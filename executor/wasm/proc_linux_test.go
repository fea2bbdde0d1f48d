package wasm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestProcOfTheExecutor: a thread that reads with a caller's rights passes for the executor's process in /proc, whose memory map
// and open files are not its callers'.
func TestProcOfTheExecutor(t *testing.T) {
	testutil.RequireRoot(t)
	own := fmt.Sprintf("/proc/%d", os.Getpid())
	for _, p := range []string{"/proc", "/proc/self", "/proc/self/fd", "/dev/fd", own + "/fdinfo", "/proc/thread-self"} {
		_, err := caller.Open(alice, &executor.TaskSpec{Workdir: p})
		if x := executor.AsError(err); err == nil || x.Field != "workdir" || !strings.Contains(x.Text, "copy") {
			t.Errorf("workdir %s: %v", p, err)
		}
	}
	for _, p := range []string{"/proc/self/maps", own + "/maps", "/proc/self"} {
		_, err := caller.Open(alice, &executor.TaskSpec{Inputs: []executor.Input{{Host: p}}})
		if x := executor.AsError(err); err == nil || x.Field != "inputs" || !strings.Contains(x.Text, "copy") {
			t.Errorf("input %s: %v", p, err)
		}
	}
	paths, err := caller.Open(alice, &executor.TaskSpec{Workdir: "/"})
	must(t, err)
	defer paths.Close()
	f := &files{paths: paths}
	defer f.close()
	in := func(pid string) string { return filepath.Join("proc", pid) }
	must(t, f.machine(t.Context(), 0, func(m tree.Machine) error {
		for _, pid := range []string{"self", "thread-self", fmt.Sprint(os.Getpid())} {
			if h, err := m.Open(in(pid + "/maps")); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("maps of %s: %v, %v", pid, h, err)
			}
			if all, err := m.List(in(pid + "/fd")); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("descriptors of %s: %d, %v", pid, len(all), err)
			}
			if i, err := m.Lstat(in(pid + "/fd/0")); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("a descriptor of %s: %v, %v", pid, i, err)
			}
		}
		// What lies beside it is as before, on other file systems, too.
		for _, p := range []string{"etc/passwd", "dev/null", "."} {
			if _, err := m.Lstat(p); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
		return nil
	}))
}

// TestProcMountedElsewhere: it is known by what it is, wherever it is mounted.
func TestProcMountedElsewhere(t *testing.T) {
	testutil.RequireRoot(t)
	at := neighbours(t)
	must(t, os.Mkdir(at("alice/proc"), 0o755))
	must(t, unix.Mount("proc", at("alice/proc"), "proc", 0, ""))
	defer unix.Unmount(at("alice/proc"), unix.MNT_DETACH)
	out, err := openShell(t, Config{}).Execute(by(t, alice), &executor.TaskSpec{
		Workdir: at("alice"), Cache: executor.CacheOff, Script: "cat f; cat proc/self/maps || ls proc/self/fd",
	})
	must(t, err)
	if got := string(out.Stdout.Inline); got != "f\n" || out.Success() {
		t.Errorf("it read %.200q", got)
	}
}
