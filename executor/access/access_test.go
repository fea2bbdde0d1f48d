package access

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

func TestFirstAccessRuleDecides(t *testing.T) {
	id := func(n uint32) *uint32 { return &n }
	a := Rules{
		{Name: "alice", User: id(1000)},
		{Name: "builders", Group: id(500)},
		{Name: "late", User: id(1001)},
		{Name: "all"},
	}
	rooted := append(Rules{{Name: "root's group", Group: id(0)}, {Name: "root", User: id(0)}}, a...)
	for _, c := range []struct {
		rules  Rules
		caller executor.Caller
		want   string
	}{
		{a, executor.Caller{UID: 1000, GID: 500}, "alice"},
		{a, executor.Caller{UID: 1001, GID: 7, Groups: []uint32{8, 500}}, "builders"},
		{a, executor.Caller{UID: 1001, GID: 500}, "builders"},
		{a, executor.Caller{UID: 1001, GID: 7, Groups: []uint32{8}}, "late"},
		{a, executor.Caller{UID: 1002}, "all"},
		{a[:3], executor.Caller{UID: 1002}, ""},
		{a, executor.Caller{UID: 0, GID: 500}, ""}, // root, whom only its own rule binds
		{rooted, executor.Caller{UID: 0, GID: 0, Groups: []uint32{0}}, "root"},
		{rooted, executor.Caller{UID: 1002, GID: 0}, "root's group"},
	} {
		if got := c.rules.For(c.caller); got.Name != c.want {
			t.Errorf("%+v: rule %q, want %q", c.caller, got.Name, c.want)
		}
	}
}

func TestGrants(t *testing.T) {
	const machine = 8 << 30
	type limits = executor.ResourceLimits
	user, root := executor.Caller{UID: 1000}, executor.Caller{}
	bound := Rule{
		Name: "access rule 1 (user 1000)", Networks: []executor.NetworkPolicy{executor.NetworkFull}, Timeout: time.Minute,
		Most: limits{MemoryBytes: 1 << 30, PidsMax: 10, CPUQuotaUS: 50_000, IOWeight: 10, TmpBytes: 1 << 20, OpenFiles: 100, OutputBytes: 2 << 30},
	}
	free := Rule{Name: "access rule 2 (everyone)", Most: limits{MemoryBytes: -1, PidsMax: -1, TmpBytes: -1, OutputBytes: -1, CPUQuotaUS: -1}}
	full := executor.NetworkFull
	for i, c := range []struct {
		caller  executor.Caller
		rule    Rule
		network executor.NetworkPolicy
		timeout time.Duration
		asks    limits
		refused string // the field, and a word of the reason
	}{
		{user, Rule{}, "", 0, limits{}, ""},
		{user, Rule{}, executor.NetworkControlled, executor.MaxTimeout, limits{MemoryBytes: machine, PidsMax: 1 << 20, CPUQuotaUS: -1}, ""},
		{user, Rule{}, full, 0, limits{}, "network: full is more than user 1000 may have without an access rule"},
		{user, Rule{}, "", 0, limits{MemoryBytes: machine + 1}, "limits.memory_bytes: 8589934593"},
		{user, Rule{}, "", 0, limits{MemoryBytes: -1}, "limits.memory_bytes: unlimited"},
		{user, Rule{}, "", 0, limits{PidsMax: -1}, "limits.pids_max: unlimited"},
		{user, Rule{}, "", 0, limits{TmpBytes: -1}, "limits.tmp_bytes: unlimited"},
		{user, Rule{}, "", 0, limits{OutputBytes: -1}, "limits.output_bytes: unlimited"},
		{root, Rules(nil).For(root), full, 0, limits{MemoryBytes: -1, PidsMax: -1, TmpBytes: -1, OutputBytes: -1}, ""},
		{user, free, "", 0, limits{MemoryBytes: -1, PidsMax: -1, TmpBytes: -1, OutputBytes: -1, CPUQuotaUS: -1}, ""},
		{user, free, "", 0, limits{MemoryBytes: machine + 1}, ""},
		{user, free, full, 0, limits{}, "network: full is more than access rule 2 (everyone) allows user 1000"},
		{user, bound, full, time.Minute, bound.Most, ""},
		{user, bound, "", 0, limits{}, "network: isolated is more than access rule 1 (user 1000) allows"},
		{user, bound, full, time.Minute + 1, limits{}, "timeout: 1m0.000000001s, with a most of 1m0s,"},
		{user, bound, full, 0, limits{MemoryBytes: -1}, "limits.memory_bytes: unlimited"},
		{user, bound, full, 0, limits{CPUQuotaUS: -1}, "limits.cpu_quota_us: unlimited"},
		{user, bound, full, 0, limits{MemoryBytes: 1<<30 + 1}, "limits.memory_bytes: 1073741825, with a most of 1073741824,"},
		{user, bound, full, 0, limits{PidsMax: 11}, "limits.pids_max"},
		{user, bound, full, 0, limits{CPUQuotaUS: 50_001}, "limits.cpu_quota_us"},
		{user, bound, full, 0, limits{IOWeight: 11}, "limits.io_weight"},
		{user, bound, full, 0, limits{TmpBytes: 1<<20 + 1}, "limits.tmp_bytes"},
		{user, bound, full, 0, limits{OpenFiles: 101}, "limits.open_files"},
		{user, bound, full, 0, limits{OutputBytes: 2<<30 + 1}, "limits.output_bytes"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			_, err := c.rule.Grant(c.caller, &executor.TaskSpec{Network: c.network, Timeout: c.timeout, Limits: c.asks}, machine)
			if (err == nil) != (c.refused == "") || err != nil && (executor.KindOf(err) != executor.Denied || !strings.HasPrefix(err.Error(), c.refused)) {
				t.Errorf("%v; want %q", err, c.refused)
			}
			if err != nil && !strings.Contains(err.Error(), "administrator") {
				t.Errorf("%v; want who can help", err)
			}
		})
	}
}

// Who asks for nothing gets the default, or what may be had where that is less.
func TestDefaultsStayBelowTheBounds(t *testing.T) {
	c := executor.Caller{UID: 1000}
	g, err := Rule{}.Grant(c, &executor.TaskSpec{}, 8<<30)
	if err != nil || g.Asked != (executor.ResourceLimits{}) || g.Timeout != executor.DefaultTimeout || g.LogBytes != executor.DefaultLogBytes || g.OutputBytes != executor.DefaultOutputBytes {
		t.Errorf("without bounds: %+v, %v", g, err)
	}
	low := executor.ResourceLimits{MemoryBytes: 1 << 30, PidsMax: 10, CPUQuotaUS: 50_000, IOWeight: 10, TmpBytes: 1 << 20, OpenFiles: 100, OutputBytes: 2 << 30}
	g, err = Rule{Most: low, Timeout: time.Minute}.Grant(c, &executor.TaskSpec{}, 8<<30)
	asked := low
	asked.OutputBytes = 0
	if err != nil || g.Asked != asked || g.Timeout != time.Minute || g.LogBytes != executor.DefaultLogBytes || g.OutputBytes != 2<<30 {
		t.Errorf("below the defaults: %+v, %v", g, err)
	}
	high := executor.ResourceLimits{MemoryBytes: 1 << 40, PidsMax: 1 << 20, IOWeight: 1000, TmpBytes: 1 << 40, OpenFiles: 1 << 20, OutputBytes: 1 << 40}
	g, err = Rule{Most: high, Timeout: executor.MaxTimeout}.Grant(c, &executor.TaskSpec{}, 8<<30)
	if err != nil || g.Asked != (executor.ResourceLimits{}) || g.Timeout != executor.DefaultTimeout || g.OutputBytes != executor.DefaultOutputBytes {
		t.Errorf("above the defaults: %+v, %v", g, err)
	}
}
