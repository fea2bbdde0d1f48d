package limits

import (
	"fmt"
	"time"
)

// Config says where groups are made; the zero value is ready for use.
type Config struct {
	Parent          string // root-relative group below which tasks' groups go; "" = chosen, see the package doc
	AllowUnenforced bool   // accept limits this machine cannot enforce
	// Owner is a group of the Manager's own below the parent, in which it makes all of its groups: 1 to 64 of a-z, 0-9
	// and -. No other living Manager of the machine may have it: what is found in it when the Manager is opened was
	// left by a dead one, and is killed and removed. "" = none, and nothing is removed.
	Owner string
	// Record is a file that names the parents that Managers of this Owner had, since the next may have another.
	// It goes with Owner; its directory exists.
	Record string
}

// Left counts what a dead Manager had left.
type Left struct{ Processes, Groups int }

// Limits of one group. 0 or -1 is none; for IOWeight (1–10000) 0 and 100 are the kernel's default.
// Memory is without swap, wherever the kernel counts that.
type Limits struct{ CPUQuotaUS, MemoryBytes, PidsMax, IOWeight int64 } // CPUQuotaUS: µs per period of 100 ms

// UnenforcedError names a limit that was asked for and cannot be enforced here.
type UnenforcedError struct{ Limit, Remedy string }

// Error names the limit and the remedy.
func (e *UnenforcedError) Error() string {
	return fmt.Sprintf("limits: %s cannot be enforced here: %s", e.Limit, e.Remedy)
}

// Events counted since the group was made, nested groups included.
type Events struct{ OOMKills, PidsMaxHits int64 }

// Usage of a group; a nil pointer was not measured.
type Usage struct {
	CPUUser, CPUSystem                    time.Duration
	PeakMemory, PeakPids, IORead, IOWrite *int64 // bytes, but PeakPids
}
