package local

import (
	"net/netip"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/internal/statedir"
)

// ErrInUse is New's where the state directory is another Executor's, of this process or another.
var ErrInUse = statedir.ErrInUse

// Config is what an Executor is made with.
type Config struct {
	// StateDir holds what lives as long as a task, of one Executor at a time. Its
	// file system must be one that can be id-mapped: ext4, xfs, btrfs, tmpfs.
	StateDir string
	// Cache keeps results and blobs. It stays the caller's, to be closed after the
	// Executor. Nil: nothing is cached, and logs and outputs cannot be kept, so
	// New refuses it.
	Cache *cache.Cache
	// MaxParallel is how many tasks run at once; 0 is the number of processors. In a pool this is what
	// Capabilities tell it, and it gives the turns; alone, others wait with all that they have open.
	MaxParallel int
	// Warm is how many sandboxes are kept prepared for each kind of task, see sandbox.Config; 0 is none.
	Warm int
	// Logger takes what is nobody's error; nil drops it.
	Logger logrus.FieldLogger
	// Version is told in Capabilities.
	Version string
	// AllowUnenforced runs tasks whose limits cannot all be enforced here.
	AllowUnenforced bool
	// Access says who may have what; Reconfigure changes it.
	Access access.Rules
	// Deny are addresses that no task with a controlled network reaches; nil is what
	// netpolicy.DefaultDeny has. The host's own go without saying.
	Deny []netip.Prefix
	// ResolvConf names the resolvers for such tasks; empty is /etc/resolv.conf.
	ResolvConf string
	// CgroupParent is the group below which tasks' groups go; empty is chosen, see
	// package limits.
	CgroupParent string
	// RangesDir is where the executors of a machine agree on ids; empty is that of
	// package sandbox.
	RangesDir string
}

// Finding is something that this machine can do, or cannot.
type Finding struct {
	Name string
	OK   bool
	// Detail is what was found, Remedy what to do where it is not OK.
	Detail, Remedy string
	// Required says that the default task cannot run without it.
	Required bool
}
