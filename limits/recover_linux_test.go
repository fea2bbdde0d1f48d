package limits

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// occupy starts a process that ends by SIGKILL only, in a group.
func occupy(t *testing.T, g *Group) *exec.Cmd {
	t.Helper()
	c := exec.Command("sh", "-c", "trap '' TERM; read x; setsid sleep 1000 & wait")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(c.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	for {
		pids, err := g.Procs()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 2 {
			return c
		}
	}
}

// TestRecover: what a dead manager left is removed by the next of the same owner, also below
// another parent, and nothing else is.
func TestRecover(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	record := filepath.Join(t.TempDir(), "cgroups")
	top, err := Open(Config{Parent: testutil.CgroupParent()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Close(); err != nil {
			t.Error(err)
		}
	})
	open := func(parent, owner string) *Manager {
		t.Helper()
		m, err := Open(Config{Parent: testutil.CgroupParent() + parent, Owner: owner, Record: record + owner})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			g := &Group{m: m, path: m.parent}
			if err := errors.Join(g.thaw(), g.Close()); err != nil { // also where the test failed
				t.Error(err)
			}
		})
		return m
	}
	group := func(m *Manager, name string) *Group {
		t.Helper()
		g, err := m.Create(name, Limits{MemoryBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.unwatch)
		return g
	}
	dead, other := open("/one", "dead"), open("/one", "other")
	defer other.Close()
	busy, frozen, living := group(dead, "busy"), group(dead, "frozen"), group(other, "busy")
	group(dead, "empty")
	half := group(dead, "half")
	for _, h := range dead.active()[1:] { // as if made in the first hierarchy only; on v2 there is one
		if err := os.Remove(h.dir + half.path); err != nil {
			t.Fatal(err)
		}
	}
	nested := dead.active()[len(dead.active())-1].dir + busy.path + "/nested"
	if err := os.Mkdir(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	killed := []*exec.Cmd{occupy(t, busy), occupy(t, frozen)}
	kept := occupy(t, living)
	for f, v := range map[string]string{"freezer.state": "FROZEN", "cgroup.freeze": "1"} {
		if p := frozen.file(f); p != "" {
			if err := write(p, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := open("/two", "dead")
	if l := next.Left(); l != (Left{Processes: 4, Groups: 5}) {
		t.Errorf("%+v", l)
	}
	for _, c := range killed {
		if err := c.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Errorf("a process that was left: %v", err)
		}
	}
	for _, h := range next.all {
		if _, err := os.Stat(h.dir + dead.parent); !os.IsNotExist(err) {
			t.Errorf("%s%s: %v", h.dir, dead.parent, err)
		}
	}
	if pids, err := living.Procs(); err != nil || len(pids) != 2 {
		t.Errorf("another's: %v, %v", pids, err)
	}
	// A manager that shares the parent does not take it away from this one.
	if err := open("/two", "guest").Close(); err != nil {
		t.Error(err)
	}
	g := group(next, "a")
	if got := g.Applied(); len(got) == 0 {
		t.Errorf("applied: %v", got)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(record + "dead"); err != nil || string(b) != testutil.CgroupParent()+"/two\n" {
		t.Errorf("on record: %q, %v", b, err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	last := open("/two", "dead")
	if l := last.Left(); l != (Left{}) {
		t.Errorf("of a manager that was closed: %+v", l)
	}
	if err := last.Close(); err != nil {
		t.Error(err)
	}
	if err := living.Close(); err != nil {
		t.Error(err)
	}
	kept.Wait()
}

// TestBadOwner: an owner is one name, since all in its group is killed.
func TestBadOwner(t *testing.T) {
	testutil.RequireRoot(t)
	for _, o := range []string{"..", "a/b", ".", "A", strings.Repeat("a", 65)} {
		if _, err := Open(Config{Parent: testutil.CgroupParent(), Owner: o, Record: filepath.Join(t.TempDir(), "r")}); err == nil || !strings.Contains(err.Error(), "owner") {
			t.Errorf("%q: %v", o, err)
		}
	}
}

// TestRecordDamaged: a line of the record that is no group's path is passed over.
func TestRecordDamaged(t *testing.T) {
	m := &Manager{cfg: Config{Record: filepath.Join(t.TempDir(), "r")}}
	if err := os.WriteFile(m.cfg.Record, []byte("/a\n/\n../x\n/b/../c\n\n/sys/fs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := m.recorded(); err != nil || strings.Join(p, " ") != "/a /sys/fs" {
		t.Errorf("%q, %v", p, err)
	}
}
