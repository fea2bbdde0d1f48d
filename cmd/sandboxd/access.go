package main

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
)

// maxAccess bounds the rules: each task is held against them.
const maxAccess = 1000

// accessConfig is one [[access]] rule: what some callers may have. The first rule for a caller
// decides; without one root may have everything, and others what a rule allows that says no more
// than whom it is for.
type accessConfig struct {
	// User or Group is whom the rule is for, by name or number. User "*" is everyone but
	// root; nor is root meant by a group.
	User  who `toml:"user"`
	Group who `toml:"group"`
	// Networks are the network policies that may be asked for; default: all but full.
	Networks []string `toml:"networks"`
	// ConcurrentTasks is how many tasks of each such user run at once; the others wait. Default: max_parallel.
	ConcurrentTasks int `toml:"concurrent_tasks"`
	// Priority is the highest that a task may ask for, 0 to 10. Default: 0.
	Priority int `toml:"priority"`
	// Timeout and the rest are the most that a task may ask for, and "unlimited" that it may
	// ask for that. Default: as much as there is, but not unlimited.
	Timeout     duration `toml:"timeout"`
	CPUQuotaUS  ceiling  `toml:"cpu_quota_us"`
	MemoryBytes ceiling  `toml:"memory_bytes"`
	PidsMax     ceiling  `toml:"pids_max"`
	IOWeight    ceiling  `toml:"io_weight"`
	TmpBytes    ceiling  `toml:"tmp_bytes"`
	OpenFiles   ceiling  `toml:"open_files"`
	OutputBytes ceiling  `toml:"output_bytes"`
}

// who is a name or a number.
type who string

// UnmarshalText implements encoding.TextUnmarshaler, for numbers as well.
func (w *who) UnmarshalText(b []byte) error {
	*w = who(b)
	return nil
}

// everyone is the User of a rule for all but root.
const everyone = "*"

// ceiling is a number, a size or "unlimited", which is -1. Zero is the default.
type ceiling int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *ceiling) UnmarshalText(b []byte) error {
	if string(b) == "unlimited" {
		*c = executor.Unlimited
		return nil
	}
	v, err := parseSize(string(b))
	if err != nil {
		return fmt.Errorf("%w, or \"unlimited\"", err)
	}
	*c = ceiling(v)
	return nil
}

// access looks up the names in the rules and checks all else.
func (c *config) access() (access.Rules, error) {
	if len(c.Access) > maxAccess {
		return nil, fmt.Errorf("access: there are %d rules; use at most %d, and groups", len(c.Access), maxAccess)
	}
	var all access.Rules
	for i, a := range c.Access {
		r, err := a.rule(fmt.Sprintf("access rule %d", i+1))
		if err != nil {
			return nil, fmt.Errorf("access: rule %d: %w", i+1, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// rule is the rule, called name for whom it is for.
func (a accessConfig) rule(name string) (r access.Rule, err error) {
	switch {
	case (a.User == "") == (a.Group == ""):
		return r, fmt.Errorf("it names both a user and a group, or neither; give one of them, or user = %q for everyone but root", everyone)
	case a.User == everyone:
		r.Name = name + " (everyone)"
	case a.User != "":
		r.Name = fmt.Sprintf("%s (user %s)", name, a.User)
		r.User, err = lookUp("user", string(a.User), func(s string) (string, error) {
			u, err := user.Lookup(s)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
	default:
		r.Name = fmt.Sprintf("%s (group %s)", name, a.Group)
		r.Group, err = lookUp("group", string(a.Group), func(s string) (string, error) {
			g, err := user.LookupGroup(s)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
	}
	if err != nil {
		return r, err
	}
	if a.Networks != nil {
		r.Networks = []executor.NetworkPolicy{}
	}
	for _, n := range a.Networks {
		i := slices.IndexFunc(networks, func(p executor.NetworkPolicy) bool { return p.String() == n })
		if i < 0 {
			return r, fmt.Errorf("networks: %q is unknown; use some of %v", n, networks)
		}
		r.Networks = append(r.Networks, networks[i])
	}
	if a.ConcurrentTasks < 0 || a.ConcurrentTasks > 4096 {
		return r, fmt.Errorf("concurrent_tasks: %d is out of range; use 1 to 4096, or 0 for as many as there is room for", a.ConcurrentTasks)
	}
	if a.Priority < 0 || a.Priority > executor.MaxPriority {
		return r, fmt.Errorf("priority: %d is out of range; use 0 to %d", a.Priority, executor.MaxPriority)
	}
	r.Tasks, r.Timeout, r.Priority = a.ConcurrentTasks, a.Timeout.Duration, a.Priority
	r.Most = executor.ResourceLimits{
		CPUQuotaUS: int64(a.CPUQuotaUS), MemoryBytes: int64(a.MemoryBytes), PidsMax: int64(a.PidsMax), IOWeight: int64(a.IOWeight),
		TmpBytes: int64(a.TmpBytes), OpenFiles: int64(a.OpenFiles), OutputBytes: int64(a.OutputBytes),
	}
	// What a task may not ask for cannot be the most that it may.
	if err := (&executor.TaskSpec{Script: "true", Timeout: r.Timeout, Limits: r.Most}).Validate(); err != nil {
		return r, err
	}
	return r, nil
}

// networks are all policies, as a configuration names them.
var networks = []executor.NetworkPolicy{
	executor.NetworkIsolated, executor.NetworkLoopback, executor.NetworkControlled, executor.NetworkFull,
}

// lookUp is the number of a user or group by number or name.
func lookUp(kind, s string, find func(string) (string, error)) (*uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		var found string
		if found, err = find(s); err == nil {
			n, err = strconv.ParseUint(found, 10, 32)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %q is unknown (%w); correct it, or use a number", kind, s, err)
	}
	id := uint32(n)
	return &id, nil
}
