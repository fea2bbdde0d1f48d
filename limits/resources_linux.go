package limits

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const period = 100_000 // µs, of CPUQuotaUS

// apply has the library write what it knows, writes the rest, and reads all of it back.
func (g *Group) apply(l Limits) error {
	asked := l.asked()
	maps.DeleteFunc(asked, func(k string, _ int64) bool { return !g.m.can[k] })
	update := g.update1
	if g.m.mode == "v2" {
		update = g.update2
	}
	if err := update(asked); err != nil {
		return fmt.Errorf("limits: group %s: %w", g.path, err)
	}
	page := int64(os.Getpagesize())
	for k, v := range asked {
		s, rounded := strconv.FormatInt(v, 10), strconv.FormatInt(v/page*page, 10)
		var err error
		switch k {
		case "cpu_quota_us":
			err = errors.Join(g.confirm("cpu.max", s+" 100000"), g.confirm("cpu.cfs_quota_us", s), g.confirm("cpu.cfs_period_us", "100000"))
		case "memory_bytes":
			err = errors.Join(g.confirm("memory.max", rounded), g.confirm("memory.limit_in_bytes", rounded), g.confirm("memory.memsw.limit_in_bytes", rounded))
		case "pids_max":
			err = g.confirm("pids.max", s)
		case "io_weight":
			err = g.setWeight(v)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(g.confirm("memory.swap.max", "0"), g.confirm("memory.oom.group", "1"))
}

func (g *Group) update2(asked map[string]int64) error {
	m, err := cgroup2.Load(g.path, cgroup2.WithMountpoint(g.m.active()[0].dir))
	if err != nil {
		return err
	}
	r := &cgroup2.Resources{Memory: &cgroup2.Memory{}}
	if v, ok := asked["cpu_quota_us"]; ok {
		p := uint64(period)
		r.CPU = &cgroup2.CPU{Max: cgroup2.NewCPUMax(&v, &p)}
	}
	if v, ok := asked["memory_bytes"]; ok {
		r.Memory.Max = &v
	}
	if g.file("memory.swap.max") != "" {
		r.Memory.Swap = new(int64)
	}
	if g.file("memory.oom.group") != "" {
		r.Memory.OOMGroup = new(true)
	}
	if v, ok := asked["pids_max"]; ok {
		r.Pids = &cgroup2.Pids{Max: v}
	}
	return m.Update(r)
}

// update1 goes by the links that carry one controller's name each (cpu, not cpu,cpuacct);
// where there is none, reading back tells.
func (g *Group) update1(asked map[string]int64) error {
	r := &specs.LinuxResources{}
	var subs []cgroup1.Subsystem
	if v, ok := asked["cpu_quota_us"]; ok {
		p := uint64(period)
		r.CPU = &specs.LinuxCPU{Quota: &v, Period: &p}
		subs = append(subs, cgroup1.NewCpu(g.root("cpu.cfs_quota_us")))
	}
	if v, ok := asked["memory_bytes"]; ok {
		r.Memory = &specs.LinuxMemory{Limit: &v}
		if g.file("memory.memsw.limit_in_bytes") != "" {
			r.Memory.Swap = &v
		}
		subs = append(subs, cgroup1.NewMemory(g.root("memory.limit_in_bytes")))
	}
	if v, ok := asked["pids_max"]; ok {
		r.Pids = &specs.LinuxPids{Limit: &v}
		subs = append(subs, cgroup1.NewPids(g.root("pids.max")))
	}
	if len(subs) == 0 {
		return nil
	}
	c, err := cgroup1.Load(cgroup1.StaticPath(g.path), cgroup1.WithHierarchy(func() ([]cgroup1.Subsystem, error) { return subs, nil }))
	if err != nil {
		return err
	}
	return c.Update(r)
}

// root is the directory that holds the mount of the hierarchy with the file f.
func (g *Group) root(f string) string {
	if p := g.file(f); p != "" {
		return filepath.Dir(strings.TrimSuffix(p, g.path+"/"+f))
	}
	return ""
}

// bfqMost is BFQ's greatest weight.
const bfqMost = 1000

// setWeight writes the weight of each policy there is. Where io.weight takes all of it, BFQ gets what it can.
func (g *Group) setWeight(v int64) error {
	s, b := strconv.FormatInt(v, 10), strconv.FormatInt(min(v, bfqMost), 10)
	return errors.Join(g.set("io.weight", s, "default "+s), g.set("io.bfq.weight", b, "default "+b), g.set("blkio.bfq.weight", b, b))
}

// set does nothing where the file is absent: which limits that leaves out was decided by Check.
func (g *Group) set(f, v, want string) error {
	p := g.file(f)
	if p == "" {
		return nil
	}
	if err := write(p, v); err != nil {
		return err
	}
	return g.confirm(f, want)
}

// confirm reads f back, where there is one.
func (g *Group) confirm(f, want string) error {
	p := g.file(f)
	if p == "" {
		return nil
	}
	if g.applied[f] = read(p); g.applied[f] != want {
		return fmt.Errorf("limits: %s is %q where %q was asked for", f, g.applied[f], want)
	}
	return nil
}
