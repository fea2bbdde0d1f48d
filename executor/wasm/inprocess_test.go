package wasm

import (
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
)

// TestInProcess: the same executor without a process for it, which says so.
func TestInProcess(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes the compiler thirty times slower, which is in this process")
	}
	executortest.Conformance(t, func(t *testing.T) executor.Executor { return openShell(t, Config{InProcess: true, MaxParallel: 2}) })
	e := openExecutor(t, Config{InProcess: true})
	for _, script := range []string{"spin", "sleep 1h", "print"} {
		spec := uncached(script)
		spec.Timeout = 200 * time.Millisecond
		if out := run(t, e, spec); out.Cause != executor.CauseTimedOut {
			t.Errorf("%s: %+v", script, out)
		}
	}
	if out := run(t, e, uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" || strings.Contains(strings.Join(out.Applied.Sandbox, " "), "worker") {
		t.Errorf("%+v", out)
	}
	if c, err := e.Capabilities(t.Context()); err != nil || !strings.Contains(strings.Join(c.Missing, " "), "a process of its own") {
		t.Errorf("%+v, %v", c, err)
	}
}
