package wasm

import (
	"runtime"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestUsageOfTheKilled: what a worker used before a task is not the task's, which is told where that is killed, too.
func TestUsageOfTheKilled(t *testing.T) {
	testutil.Require(t, runtime.GOOS == "linux", "reads what a process used")
	e := openShell(t, Config{MaxParallel: 1})
	for _, timeout := range []time.Duration{time.Millisecond, 2 * time.Second} { // before the worker takes it, and after
		s := <-e.seats
		<-s.ready
		s.worker.userBefore -= time.Hour // as if it had worked for so long since it was compiled
		e.seats <- s
		spec := uncached("sleep 60")
		spec.Timeout = timeout
		out := run(t, e, spec)
		if used := out.Usage.CPUUser + out.Usage.CPUSystem; out.Cause != executor.CauseTimedOut || used > timeout {
			t.Errorf("a task that slept used %v: %+v", used, out)
		}
	}
}
