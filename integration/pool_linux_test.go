package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
)

// TestPoolOfTwo: a daemon with two executors, each with a state and a cache of its own, has both run tasks, and
// leaves nothing when it is killed, stopped, and in between.
func TestPoolOfTwo(t *testing.T) {
	rootAndClean(t)
	own := newDir(t)
	d := startDaemon(t, fmt.Sprintf("[[executor]]\nname = \"a\"\nmax_parallel = 2\nverbose = true\n[[executor]]\nname = \"b\"\nmax_parallel = 1\nstate_dir = %q\ncache_dir = %q\n",
		filepath.Join(own, "state"), filepath.Join(own, "cache")))
	c := d.dialAs(0)
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			out, err := c.Execute(t.Context(), &executor.TaskSpec{Name: fmt.Sprint(i), Script: fmt.Sprintf("echo %d; head -c 100000 /dev/zero", i), Cache: executor.CacheOff})
			if err != nil || !out.Success() {
				t.Errorf("%+v, %v", out, err)
				return
			}
			// The blob is in one of two caches.
			var b strings.Builder
			if err := c.ReadBlob(t.Context(), out.Stdout.Digest, &b); err != nil || !strings.HasPrefix(b.String(), fmt.Sprintln(i)) {
				t.Errorf("%d: %d bytes, %v", i, b.Len(), err)
			}
		})
	}
	all.Wait()
	var s struct {
		Executors   []executor.MemberStatus
		Queued      *int64   `json:"queued_tasks"`
		Waited      *float64 `json:"waited_ms"`
		SuccessRate float64  `json:"success_rate"`
	}
	o := finish(t, d.as(0, d.dir, "status", "--json"))
	if err := json.Unmarshal([]byte(o.stdout), &s); err != nil {
		t.Fatalf("%v: %+v", err, o)
	}
	if len(s.Executors) != 2 || s.Queued == nil || s.Waited == nil || s.SuccessRate != 1 {
		t.Fatalf("%+v", s)
	}
	for i, name := range []string{"a", "b"} {
		if m := s.Executors[i]; m.Name != name || !m.Healthy || m.Executed == 0 || m.Executed != m.Successful || m.MaxParallel != int64(2-i) {
			t.Errorf("%+v", m)
		}
	}
	if n := s.Executors[0].Executed + s.Executors[1].Executed; n != 12 {
		t.Errorf("%d tasks were executed", n)
	}
	if o := finish(t, d.as(0, d.dir, "status")); !strings.Contains(o.stdout, "success     100.0 %") || !strings.Contains(o.stdout, "\nb         "+executor.PlatformNative+"  1 ") {
		t.Errorf("%s", o.stdout)
	}
	// Killed with a task at each: the next daemon sweeps both states.
	clients, alive := [3]*clientProcess{}, [3]*os.File{}
	for i := range clients {
		clients[i], alive[i] = d.living(0, deaf)
	}
	if _, err := d.end(syscall.SIGKILL); err == nil {
		t.Error("it was not killed")
	}
	d.start()
	for i, c := range clients {
		gone(t, alive[i])
		if said, code := c.ended(); code != 125 {
			t.Errorf("the client of the daemon that was killed: exit %d, %s", code, said)
		}
	}
	for _, state := range []string{filepath.Join(d.state, "executors/a"), filepath.Join(own, "state")} {
		if left, err := filepath.Glob(filepath.Join(state, "sandboxes/layers/*")); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	if o := d.run(d.dir, "--workdir", "none", "-c", "echo on"); o.code != 0 || o.stdout != "on\n" {
		t.Errorf("%+v", o)
	}
	// And run --local has neither of them.
	if o := finish(t, d.as(0, d.dir, "run", "--local", "--config", d.config, "--workdir", "none", "-c", "echo alone")); o.code != 0 || o.stdout != "alone\n" {
		t.Errorf("%+v", o)
	}
}

// TestPoolPriority: root's task with a priority comes before another's that waited longer, and another's own is refused.
func TestPoolPriority(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "[[executor]]\nname = \"a\"\nmax_parallel = 1\n")
	a, root := d.dialAs(alice), d.dialAs(0)
	high := &executor.TaskSpec{Name: "high", Script: "echo high", Cache: executor.CacheOff, Priority: 1}
	if _, err := a.Execute(t.Context(), high); executor.KindOf(err) != executor.Denied || executor.AsError(err).Field != "priority" {
		t.Error(err)
	}
	client, alive := d.living(0, "read x <go || sleep 1000")
	var order []string
	var mu sync.Mutex
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent := func(c executor.Executor, spec *executor.TaskSpec, waiting int) {
		all.Go(func() {
			out, err := c.Execute(ctx, spec)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, spec.Name)
			if err != nil || !out.Success() {
				t.Errorf("%s: %+v, %v", spec.Name, out, err)
			}
		})
		eventually(t, func() string {
			if s := d.status(); s.Queued != waiting {
				return fmt.Sprintf("%d tasks wait, not %d", s.Queued, waiting)
			}
			return ""
		})
	}
	for i := range 3 {
		sent(a, &executor.TaskSpec{Name: fmt.Sprint(i), Script: "sleep 0.1", Cache: executor.CacheOff}, i+1)
	}
	sent(root, high, 4)
	if err := client.p.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	client.ended()
	gone(t, alive)
	all.Wait()
	if order[0] != "high" {
		t.Errorf("order %v", order)
	}
}
