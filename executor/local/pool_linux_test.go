package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/pool"
)

// TestPoolReplacesIt: one that can make no control group is closed, and opened anew with the same directories.
func TestPoolReplacesIt(t *testing.T) {
	skipInVM(t)
	newExecutor(t) // for the leak check
	dir := openDir(t)
	store, err := cache.Open(filepath.Join(dir, "cache"), cache.Config{})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	var all []*Executor
	p, err := pool.New(t.Context(), pool.Config{
		Executors: []pool.ExecutorConfig{{Name: "a"}},
		Open: func(context.Context, pool.ExecutorConfig) (executor.Executor, error) {
			e, err := New(Config{
				StateDir: filepath.Join(dir, "state"), Cache: store, MaxParallel: 2, RangesDir: filepath.Join(dir, "ids"),
				CgroupParent: testutil.CgroupParent(), Version: "test",
			})
			if err == nil {
				all = append(all, e)
			}
			return e, err
		},
	})
	must(t, err)
	t.Cleanup(func() { must(t, p.Close(context.Background())) })
	spec := &executor.TaskSpec{Script: "echo on", Cache: executor.CacheOff}
	out, err := p.Execute(t.Context(), spec)
	if err != nil || !out.Success() {
		t.Fatalf("%+v, %v", out, err)
	}
	// What a check makes is there already, until somebody sweeps.
	g, err := all[0].limits.Create(fmt.Sprintf("healthy-%d", os.Getpid()), limits.Limits{})
	must(t, err)
	for end := time.Now().Add(2 * time.Minute); p.AllStatus()[0].Restarts == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", p.AllStatus())
		}
	}
	must(t, g.Close()) // which is gone
	if out, err := p.Execute(t.Context(), spec); err != nil || !out.Success() {
		t.Errorf("%+v, %v", out, err)
	}
	if s := p.AllStatus()[0]; !s.Healthy || s.Restarts != 1 || s.Executed != 2 {
		t.Errorf("%+v", s)
	}
}
