package limits

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDelegated opens a manager in a process whose group is delegated to it, as systemd's Delegate=yes leaves it.
func TestDelegated(t *testing.T) {
	if own := os.Getenv("LIMITS_TEST_DELEGATED"); own != "" {
		delegatedChild(t, own)
		return
	}
	m := open(t)
	if m.Mode() != "v2" {
		t.Skip("only a pure v2 tree is delegated; the test VM has one")
	}
	g := create(t, m, "service", Limits{})
	dir := m.active()[0].dir + g.Path()
	if err := unix.Setxattr(dir, "trusted.delegate", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LIMITS_TEST_DELEGATED", g.Path())
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sh", "-c", `echo $$ >"$1/cgroup.procs" && exec "$2" -test.run='^TestDelegated$'`, "sh", dir, self)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func delegatedChild(t *testing.T, own string) {
	m, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if m.parent != own+"/tasks" {
		t.Errorf("parent %s, want it below %s", m.parent, own)
	}
	if b, err := os.ReadFile("/proc/self/cgroup"); err != nil || strings.TrimSpace(string(b)) != "0::"+own+"/daemon" {
		t.Errorf("the daemon is in %q, %v; want the leaf below %s", b, err, own)
	}
	g, err := m.Create("a", Limits{MemoryBytes: 16 << 20, PidsMax: 5})
	if err != nil {
		t.Fatal(err)
	}
	// A daemon started again in its leaf must find the same parent.
	again, err := Open(Config{})
	if err != nil || again.parent != m.parent {
		t.Errorf("opened again: %+v, %v; want the parent %s", again, err, m.parent)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
