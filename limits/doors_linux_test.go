package limits

import (
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// Add moves a child that was not waited for into the group, for all controllers.
func (g *Group) Add(pid int) error {
	for _, h := range g.m.active() {
		if err := write(h.dir+g.path+"/cgroup.procs", strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// TestDoorsAreForWhoWrites: a process joins by itself, also one that has no rights.
func TestDoorsAreForWhoWrites(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := Open(Config{Parent: testutil.CgroupParent()})
	must(err)
	defer func() { must(m.Close()) }()
	g, err := m.Create("doors", Limits{})
	must(err)
	defer func() { must(g.Close()) }()
	doors, err := g.Doors()
	must(err)
	if len(doors) == 0 || len(doors) != m.Hierarchies() {
		t.Fatalf("%d doors of %d hierarchies", len(doors), m.Hierarchies())
	}
	c := exec.Command("/bin/sh", "-c", `for i in $(seq 3 $((2 + $0))); do eval "echo 0 >&$i" || exit; done; echo in; read line`, strconv.Itoa(len(doors)))
	c.ExtraFiles = doors
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	stdin, err := c.StdinPipe()
	must(err)
	stdout, err := c.StdoutPipe()
	must(err)
	must(c.Start())
	for _, f := range doors {
		must(f.Close())
	}
	said := make([]byte, 3)
	_, err = stdout.Read(said)
	must(err)
	if in, err := g.Holds(c.Process.Pid); err != nil || !in {
		t.Errorf("it is not in the group: %v", err)
	}
	must(stdin.Close())
	c.Wait() //nolint:errcheck // read fails at the end of its input
}
