// Package access says which caller may have what of executors.
package access

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// Rules say which caller may have what: the first rule for a caller decides. Without
// one, root and whoever runs the executor may have everything, and others what a Rule without bounds allows.
type Rules []Rule

// Rule is what some callers may have.
type Rule struct {
	// Name is what messages call it.
	Name string
	// User or Group is whom the rule is for: a user, also root, or a group's members but for
	// root. With neither it is for all but root.
	User, Group *uint32
	// Networks are the policies that may be asked for; nil is all but full.
	Networks []executor.NetworkPolicy
	// Most bounds what a task may ask for. Unlimited is no bound. Zero is what the machine has:
	// any number, but not to go without, and no more memory than there is. A task that does
	// not ask gets the default, or this where it is less.
	Most executor.ResourceLimits
	// Timeout bounds the timeout; 0 is executor.MaxTimeout.
	Timeout time.Duration
	// Tasks is how many of each user's tasks run at once; 0 is as many as there is room for. It takes a
	// pool, which gives the turns.
	Tasks int
	// Priority is the highest TaskSpec.Priority that may be asked for: see Rules.Priority.
	Priority int
}

// everything is root's, and of whoever runs the executor, where no rule names them.
var everything = Rule{
	Priority: executor.MaxPriority,
	Networks: []executor.NetworkPolicy{executor.NetworkIsolated, executor.NetworkLoopback, executor.NetworkControlled, executor.NetworkFull},
	Most: executor.ResourceLimits{
		MemoryBytes: executor.Unlimited, PidsMax: executor.Unlimited, TmpBytes: executor.Unlimited, OutputBytes: executor.Unlimited,
	},
}

var defaultNetworks = []executor.NetworkPolicy{executor.NetworkIsolated, executor.NetworkLoopback, executor.NetworkControlled}

// For is the one for c.
func (a Rules) For(c executor.Caller) Rule {
	for _, r := range a {
		if r.matches(c) {
			return r
		}
	}
	if c.UID == 0 || int64(c.UID) == int64(os.Geteuid()) {
		return everything
	}
	return Rule{}
}

// Priority is the highest TaskSpec.Priority that c may ask for, of the pool that has tasks wait.
func (a Rules) Priority(c executor.Caller) int { return a.For(c).Priority }

func (r Rule) matches(c executor.Caller) bool {
	switch {
	case r.User != nil:
		return c.UID == *r.User
	case c.UID == 0:
		return false
	case r.Group != nil:
		return c.GID == *r.Group || slices.Contains(c.Groups, *r.Group)
	}
	return true
}

// Granted is what a task gets of what it asked for.
type Granted struct {
	// Asked has a bound where the task asked for nothing and the bound is below the default.
	Asked   executor.ResourceLimits
	Timeout time.Duration
	// LogBytes bounds each stream, OutputBytes the outputs.
	LogBytes, OutputBytes int64
	// Tasks is how many of the caller's run at once; 0 is any number.
	Tasks int
}

// Grant gives a task what it asks for, or refuses it. memory is the machine's.
func (r Rule) Grant(c executor.Caller, s *executor.TaskSpec, memory int64) (g Granted, err error) {
	networks := r.Networks
	if networks == nil {
		networks = defaultNetworks
	}
	if !slices.Contains(networks, s.Network) {
		return g, r.denied(c, "network", s.Network.String(), "it to networks", fmt.Sprintf("choose among %v", networks))
	}
	g.Asked, g.Timeout, g.Tasks = s.Limits, s.Timeout, r.Tasks
	for _, f := range []struct {
		name  string
		asked *int64
		most  int64
		def   int64 // what it is without asking; 0 is no bound
		free  bool  // whether anyone may go without
	}{
		{"memory_bytes", &g.Asked.MemoryBytes, r.Most.MemoryBytes, executor.DefaultMemoryBytes, false},
		{"pids_max", &g.Asked.PidsMax, r.Most.PidsMax, executor.DefaultPidsMax, false},
		{"cpu_quota_us", &g.Asked.CPUQuotaUS, r.Most.CPUQuotaUS, 0, true},
		{"io_weight", &g.Asked.IOWeight, r.Most.IOWeight, executor.DefaultIOWeight, false},
		{"tmp_bytes", &g.Asked.TmpBytes, r.Most.TmpBytes, executor.DefaultTmpBytes, false},
		{"open_files", &g.Asked.OpenFiles, r.Most.OpenFiles, executor.DefaultOpenFiles, false},
		// Its default is two, for streams and for outputs: see below.
		{"output_bytes", &g.Asked.OutputBytes, r.Most.OutputBytes, 1, false},
	} {
		most := f.most
		if most == 0 && f.name == "memory_bytes" {
			most = max(memory, executor.DefaultMemoryBytes)
		}
		switch {
		case *f.asked == 0 && most > 0 && (f.def == 0 || most < f.def):
			*f.asked = most
		case *f.asked == executor.Unlimited && (most > 0 || most == 0 && !f.free):
			return g, r.denied(c, "limits."+f.name, "unlimited", f.name+` = "unlimited"`, "give a number")
		case most > 0 && *f.asked > most:
			return g, r.denied(c, "limits."+f.name, fmt.Sprintf("%d, with a most of %d,", *f.asked, most), "a higher "+f.name, "ask for less")
		}
	}
	g.LogBytes, g.OutputBytes = executor.DefaultLogBytes, executor.DefaultOutputBytes
	if n := g.Asked.OutputBytes; n > 0 {
		g.LogBytes, g.OutputBytes = n, n
	} else if most := r.Most.OutputBytes; n == 0 && most > 0 {
		g.LogBytes, g.OutputBytes = min(g.LogBytes, most), min(g.OutputBytes, most)
	}
	switch {
	case r.Timeout > 0 && g.Timeout > r.Timeout:
		return g, r.denied(c, "timeout", fmt.Sprintf("%v, with a most of %v,", g.Timeout, r.Timeout), "a higher timeout", "ask for less")
	case g.Timeout == 0 && r.Timeout > 0:
		g.Timeout = min(executor.DefaultTimeout, r.Timeout)
	case g.Timeout == 0:
		g.Timeout = executor.DefaultTimeout
	}
	return g, nil
}

// denied says what c may not have, by which rule, and who can do what about it.
func (r Rule) denied(c executor.Caller, field, what, change, remedy string) error {
	user := "user " + strconv.FormatUint(uint64(c.UID), 10)
	e := executor.Errorf(executor.Denied, "%s is more than %s allows %s; %s, or have the administrator give %s there", what, r.Name, user, remedy, change)
	if r.Name == "" {
		e = executor.Errorf(executor.Denied, "%s is more than %s may have without an access rule; %s, or have the administrator add an [[access]] rule for it with %s", what, user, remedy, change)
	}
	e.Field = field
	return e
}
