package testutil

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// CheckLeaks records what the machine and this process hold, and when the test
// ends fails it if there is more: mounts, cgroups and interfaces of sandboxd,
// child processes, descriptors, goroutines. It waits a bounded time for what
// ends on its own, such as a goroutine that is returning. Call it first, so that
// it checks after all other cleanups.
func CheckLeaks(t testing.TB) {
	t.Helper()
	before := holdings()
	t.Cleanup(func() {
		var leaks []string
		for end := time.Now().Add(5 * time.Second); ; {
			leaks = before.more(holdings())
			if len(leaks) == 0 {
				return
			}
			if time.Now().After(end) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		for _, l := range leaks {
			t.Errorf("left behind: %s", l)
		}
		if slices.ContainsFunc(leaks, func(s string) bool { return strings.HasPrefix(s, "goroutines") }) {
			b := make([]byte, 1<<20)
			t.Logf("%s", b[:runtime.Stack(b, true)])
		}
	})
}

type holding struct {
	things     map[string]int
	goroutines int
}

func holdings() holding {
	h := holding{things: map[string]int{}, goroutines: runtime.NumGoroutine()}
	h.lines("mount", "/proc/self/mountinfo", 4)
	h.lines("interface", "/proc/net/dev", 0)
	h.cgroups()
	h.children()
	h.fds()
	return h
}

// lines counts a file's lines by one of their fields.
func (h holding) lines(kind, file string, field int) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > field {
			h.things[kind+" "+f[field]]++
		}
	}
}

// CgroupParent is the group below which this process's tests make all of theirs,
// so that those of packages tested at the same time are no leaks.
func CgroupParent() string { return fmt.Sprintf("/sandboxd-test-%d", os.Getpid()) }

func (h holding) cgroups() {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, r := range append(roots, "/sys/fs/cgroup") {
		own := r + CgroupParent()
		_ = filepath.WalkDir(own, func(p string, d os.DirEntry, err error) error {
			// The group that holds the tasks' groups stays for the next task.
			if err == nil && d.IsDir() && p != own {
				h.things["cgroup "+p] = 1
			}
			return nil
		})
	}
}

func (h holding) children() {
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(b)) {
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			h.things[fmt.Sprintf("process %s %s", pid, strings.TrimSpace(string(comm)))] = 1
		}
	}
}

func (h holding) fds() {
	es, _ := os.ReadDir("/proc/self/fd")
	for _, e := range es {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") {
			continue // the poller's, which comes with the first use
		}
		kind, _, _ := strings.Cut(to, "[")
		h.things["descriptor "+kind]++
	}
}

// more lists what h2 holds beyond h.
func (h holding) more(h2 holding) []string {
	var out []string
	for k, n := range h2.things {
		if n > h.things[k] {
			out = append(out, fmt.Sprintf("%s (%d, were %d)", k, n, h.things[k]))
		}
	}
	if h2.goroutines > h.goroutines {
		out = append(out, fmt.Sprintf("goroutines (%d, were %d)", h2.goroutines, h.goroutines))
	}
	slices.Sort(out)
	return out
}
