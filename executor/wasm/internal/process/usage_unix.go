//go:build unix

package process

import (
	"syscall"
	"time"
)

// usage is processor time of this process.
type usage struct{ user, system time.Duration }

// used is the usage up to now.
func used() usage {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return usage{}
	}
	return usage{time.Duration(r.Utime.Nano()), time.Duration(r.Stime.Nano())}
}
