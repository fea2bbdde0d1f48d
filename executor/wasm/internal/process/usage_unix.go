//go:build unix

package process

import (
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// used is what this process has used up to now.
func used() wire.Used {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return wire.Used{}
	}
	return wire.Used{CPUUser: time.Duration(r.Utime.Nano()), CPUSystem: time.Duration(r.Stime.Nano())}
}
