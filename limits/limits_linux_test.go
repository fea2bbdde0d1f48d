package limits

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

func TestGroupLimitsAndKills(t *testing.T) {
	testutil.RequireRoot(t)
	m, err := Open(Config{Parent: testutil.CgroupParent()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	t.Log(m.Mode(), m.Enforces(), m.Missing())
	var ue *UnenforcedError
	if err := m.Check(Limits{IOWeight: 200}); !m.can["io_weight"] && !errors.As(err, &ue) {
		t.Fatalf("io_weight: %v", err)
	}
	if _, err := m.Create("../x", Limits{}); err == nil {
		t.Fatal("hostile name taken")
	}
	g, err := m.Create("a", Limits{CPUQuotaUS: 50000, MemoryBytes: 32 << 20, PidsMax: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	t.Log(g.Applied())
	c := exec.Command("sh", "-c", "read x; setsid sleep 1000 & for i in 1 2 3 4 5 6; do sleep 1000 & done; wait")
	in, _ := c.StdinPipe()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(c.Process.Pid); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("go\n"))
	for e := (Events{}); e.PidsMaxHits == 0; {
		if e, err = g.Events(); err != nil {
			t.Fatal(err)
		}
	}
	go c.Wait()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}
