package limits

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

func open(t *testing.T) *Manager {
	t.Helper()
	testutil.RequireRoot(t)
	m, err := Open(Config{Parent: testutil.CgroupParent()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func create(t *testing.T, m *Manager, name string, l Limits) *Group {
	t.Helper()
	g, err := m.Create(name, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// start runs the shell script in g from its first line on.
func start(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	c := exec.Command("sh", "-c", "read x; "+script)
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
	return c
}

func TestAppliedIsWhatTheKernelHolds(t *testing.T) {
	m := open(t)
	g := create(t, m, "a", Limits{CPUQuotaUS: 50_000, MemoryBytes: 32<<20 + 1, PidsMax: 7})
	want := map[string]string{"pids.max": "7", "memory.limit_in_bytes": "33554432", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}
	if m.Mode() == "v2" {
		want = map[string]string{"pids.max": "7", "memory.max": "33554432", "cpu.max": "50000 100000", "memory.oom.group": "1"}
		if g.file("memory.swap.max") != "" {
			want["memory.swap.max"] = "0"
		}
	}
	for f, v := range want {
		if got := read(g.file(f)); got != v || g.Applied()[f] != v {
			t.Errorf("%s is %q, Applied says %q; want %q", f, got, g.Applied()[f], v)
		}
	}
}

// TestLimitReplaces: a group that is given other limits has those and no others.
func TestLimitReplaces(t *testing.T) {
	m := open(t)
	weight := int64(0)
	if m.can["io_weight"] {
		weight = 200
	}
	values := func(g *Group) map[string]string {
		all := map[string]string{}
		for _, f := range []string{"cpu.max", "memory.max", "pids.max", "io.weight", "io.bfq.weight", "cpu.cfs_quota_us", "memory.limit_in_bytes",
			"memory.memsw.limit_in_bytes", "blkio.bfq.weight"} {
			if p := g.file(f); p != "" {
				all[f] = read(p)
			}
		}
		return all
	}
	g := create(t, m, "a", Limits{CPUQuotaUS: 50_000, MemoryBytes: 32 << 20, PidsMax: 7, IOWeight: weight})
	for i, l := range []Limits{{}, {MemoryBytes: 64 << 20}, {CPUQuotaUS: 20_000, MemoryBytes: 16 << 20, PidsMax: 3}, {MemoryBytes: -1, PidsMax: -1}} {
		if err := g.Limit(l); err != nil {
			t.Fatalf("%+v: %v", l, err)
		}
		fresh := create(t, m, fmt.Sprint("fresh", i), l)
		if got, want := values(g), values(fresh); !maps.Equal(got, want) {
			t.Errorf("%+v: %v, in a new group %v", l, got, want)
		}
		if got, want := g.Applied(), fresh.Applied(); !maps.Equal(got, want) {
			t.Errorf("%+v: applied %v, in a new group %v", l, got, want)
		}
	}
}

func TestIOWeight(t *testing.T) {
	m := open(t)
	if !m.can["io_weight"] {
		for _, w := range []int64{1, 200, 10_000} {
			if ue := (*UnenforcedError)(nil); !errors.As(m.Check(Limits{IOWeight: w}), &ue) || ue.Limit != "io_weight" {
				t.Errorf("weight %d was not refused by name", w)
			}
		}
		if !strings.Contains(strings.Join(m.Missing(), "\n"), "io_weight") {
			t.Error("Missing does not name io_weight")
		}
		return
	}
	for i, w := range []int64{1, 200, m.weight} {
		g := create(t, m, fmt.Sprint("w", i), Limits{IOWeight: w})
		t.Log(g.Applied())
		if p := g.file("io.weight"); p != "" && !strings.HasPrefix(read(p), fmt.Sprint("default ", w)) {
			t.Errorf("weight %d: io.weight is %q", w, read(p))
		}
	}
	if m.Check(Limits{IOWeight: m.weight + 1}) == nil {
		t.Errorf("weight %d was taken", m.weight+1)
	}
}

func TestForkBombDies(t *testing.T) {
	m := open(t)
	g := create(t, m, "bomb", Limits{PidsMax: 30})
	c := start(t, g, `b() { setsid sh -c 'sleep 1000 & sleep 1000 &' & (b &) ; b & }; b 2>/dev/null`)
	for e := (Events{}); e.PidsMaxHits == 0; {
		var err error
		if e, err = g.Events(); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed
	if err := g.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); err != nil || len(pids) > 0 {
		t.Fatalf("alive after the kill: %v, %v", pids, err)
	}
	if u, err := g.Usage(); err != nil || u.PeakPids != nil && (*u.PeakPids < 2 || *u.PeakPids > 30) {
		t.Errorf("usage %+v, %v", u, err)
	}
}

func TestGrandchildOOM(t *testing.T) {
	m := open(t)
	g := create(t, m, "a", Limits{MemoryBytes: 16 << 20})
	c := start(t, g, `(sh -c 'head -c 100000000 /dev/zero | tail -n 1 >/dev/null'; true); sleep 1000`)
	<-g.OOM() // the whole group goes, the script that used nothing too
	_ = c.Wait()
	if e, err := g.Events(); err != nil || e.OOMKills == 0 {
		t.Errorf("events %+v, %v", e, err)
	}
	if err := g.Wait(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestThrottled(t *testing.T) {
	m := open(t)
	g := create(t, m, "a", Limits{CPUQuotaUS: 2000})
	c := start(t, g, "while :; do :; done")
	for field(read(g.file("cpu.stat")), "nr_throttled") == 0 {
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
}

func TestHostileNamesAndParents(t *testing.T) {
	m := open(t)
	for _, n := range []string{"", ".", "..", "a/b", "../x", "A", "a\x00", "a\n", strings.Repeat("a", 129)} {
		if _, err := m.Create(n, Limits{}); err == nil {
			t.Errorf("name %q was taken", n)
		}
	}
	for _, p := range []string{"/", "x", "/a/../b", "/a//b", "/a/"} {
		if _, err := Open(Config{Parent: p}); err == nil {
			t.Errorf("parent %q was taken", p)
		}
	}
	if err := makeDirs(hierarchy{dir: t.TempDir() + "/none"}, "/p"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "Delegate=yes") {
		t.Errorf("a missing parent: %v; want the remedy", err)
	}
}

func TestManyGroups(t *testing.T) {
	m := open(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			g, err := m.Create(fmt.Sprint("g", i), Limits{MemoryBytes: 16 << 20, PidsMax: 10})
			if err != nil {
				t.Error(err)
				return
			}
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := os.Stat(m.active()[0].dir + m.parent + "/g0"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a closed group is there still: %v", err)
	}
}

// TestExpect: that it does what it is there for is seen by a clock only, but not that it fails.
func TestExpect(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	m, err := Open(Config{Parent: testutil.CgroupParent()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	one, two := m.Expect(), m.Expect()
	if err := m.moveNowhere(); err != nil {
		t.Fatal(err)
	}
	one()
	one() // does nothing
	if m.expecting != 1 {
		t.Errorf("%d expect, and 1 does", m.expecting)
	}
	two()
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Fatalf("moved from\n%sto\n%s%v", before, after, err)
	}
}

func TestHolds(t *testing.T) {
	testutil.RequireRoot(t)
	m, err := Open(Config{Parent: testutil.CgroupParent()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g, err := m.Create("holds", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait() //nolint:errcheck // it is killed with the group
	if in, err := g.Holds(c.Process.Pid); err != nil || in {
		t.Fatalf("before: %v, %v", in, err)
	}
	if err := g.Add(c.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if in, err := g.Holds(c.Process.Pid); err != nil || !in {
		t.Fatalf("after: %v, %v", in, err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
}
