package local

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/limits"
)

// TestHealthy: it says so of an executor that could start a task, waits for a lock that
// a task would wait for, and fails where there is no control group to be had.
func TestHealthy(t *testing.T) {
	e := newExecutor(t)
	for range 3 {
		must(t, e.Healthy())
	}
	for name, l := range map[string]sync.Locker{"status": &e.mu, "flight": &e.flight.Mu, "roots": &e.roots.mu} {
		l.Lock()
		done := make(chan error, 1)
		go func() { done <- e.Healthy() }()
		stacks := make([]byte, 1<<20)
		for !waitsInHealthy(string(stacks[:runtime.Stack(stacks, true)])) {
			select {
			case err := <-done:
				t.Fatalf("it did not wait for the lock of %s: %v", name, err)
			default:
				runtime.Gosched()
			}
		}
		l.Unlock()
		must(t, <-done)
	}
	// The group is there already, as if the last one could not be removed.
	g, err := e.limits.Create(fmt.Sprintf("healthy-%d", os.Getpid()), limits.Limits{})
	must(t, err)
	if err := e.Healthy(); err == nil {
		t.Error("it is healthy without a control group")
	}
	must(t, g.Close())
	must(t, e.Close(context.Background()))
	if err := e.Healthy(); executor.KindOf(err) != executor.Unavailable {
		t.Errorf("closed: %v", err)
	}
}

// waitsInHealthy finds a goroutine that waits for a mutex there.
func waitsInHealthy(stacks string) bool {
	for g := range strings.SplitSeq(stacks, "\n\n") {
		if strings.Contains(g, ".Healthy(") && strings.Contains(g, "[sync.Mutex.Lock") {
			return true
		}
	}
	return false
}
