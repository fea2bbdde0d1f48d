package limits

import (
	"os/exec"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

func TestUsageAndOOM(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	m, err := Open(Config{Parent: testutil.CgroupParent()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g, err := m.Create("a", Limits{MemoryBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c := exec.Command("sh", "-c", "read x; head -c 100000000 /dev/zero | tail -n 1 >/dev/null")
	in, _ := c.StdinPipe()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(c.Process.Pid); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("go\n"))
	c.Wait()
	if e, err := g.Events(); err != nil || e.OOMKills == 0 {
		t.Fatalf("events %+v, %v", e, err)
	}
	<-g.OOM()
	u, err := g.Usage()
	if err != nil || u.CPUUser+u.CPUSystem == 0 || u.PeakMemory == nil || *u.PeakMemory < 8<<20 {
		t.Fatalf("usage %+v, %v", u, err)
	}
}
