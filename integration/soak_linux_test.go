package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/local"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// openLocal is an executor in this process, behind a socket.
func openLocal(t *testing.T, parallel int) *rpc.Client {
	t.Helper()
	dir := newDir(t)
	store, err := cache.Open(filepath.Join(dir, "cache"), cache.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, store.Close()) })
	e, err := local.New(local.Config{
		StateDir: filepath.Join(dir, "state"), Cache: store, MaxParallel: parallel, Version: "test",
		RangesDir: filepath.Join(dir, "ids"), CgroupParent: testutil.CgroupParent(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, e.Close(context.Background())) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerConfig{Executor: e, Blobs: e})
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		closed(t, s.Shutdown(context.Background()))
		closed(t, <-served)
	})
	c, err := rpc.Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, c.Close(context.Background())) })
	return c
}

func closed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// TestSoak: tasks that end in every way, many at a time. Each is answered once, for the
// reason that it ended, and nothing is left.
func TestSoak(t *testing.T) {
	testutil.RequireRoot(t)
	tasks := 2000
	if inVM() || testing.Short() {
		tasks = 64
	}
	t.Run("warm up", func(t *testing.T) { // what libcontainer keeps from the first time on
		if _, err := openLocal(t, 1).Execute(t.Context(), &executor.TaskSpec{Script: "true"}); err != nil {
			t.Error(err)
		}
	})
	testutil.CheckLeaks(t)
	c := openLocal(t, 16)
	const seed = 20261123
	t.Logf("seed %d", seed)
	var next, failed atomic.Int64
	var mu sync.Mutex
	causes := map[executor.Cause]int{}
	var all sync.WaitGroup
	for worker := range 16 {
		r := rand.New(rand.NewPCG(seed, uint64(worker)))
		all.Go(func() {
			for n := next.Add(1); n <= int64(tasks) && failed.Load() < 10; n = next.Add(1) {
				cause, err := oneOf(t.Context(), c, r, n)
				if err != nil {
					failed.Add(1)
					t.Errorf("task %d: %v", n, err)
				}
				mu.Lock()
				causes[cause]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("%v", causes)
	st, err := c.Status(t.Context())
	// What was canceled before it was sent is not counted there.
	if err != nil || st.Active != 0 || st.Executed > int64(tasks) || failed.Load() == 0 && st.Executed < int64(tasks-causes[executor.CauseCanceled]) {
		t.Errorf("status %+v, %v; want %d tasks", st, err, tasks)
	}
}

// oneOf runs task n, of some kind, and checks its end.
func oneOf(ctx context.Context, c *rpc.Client, r *rand.Rand, n int64) (executor.Cause, error) {
	spec := &executor.TaskSpec{Name: fmt.Sprint("soak ", n), Cache: executor.CacheOff}
	late := time.Duration(r.IntN(200)) * time.Millisecond
	var want executor.Cause
	switch r.IntN(8) {
	case 0:
		spec.Script, spec.Timeout, want = "sleep 100", 50*time.Millisecond+late, executor.CauseTimedOut
	case 1:
		spec.Script, want = "sleep 100 & setsid sleep 100 & wait", executor.CauseCanceled
	case 2:
		spec.Script, want = "head -c 200000000 /dev/zero | tail", executor.CauseOOMKilled
		spec.Limits.MemoryBytes = 48 << 20
	case 3:
		spec.Script, want = "kill -KILL $$", executor.CauseSignaled
	default:
		spec.Script, want = fmt.Sprintf("echo %d; exit %d", n, n%3), executor.CauseExited
	}
	if want == executor.CauseCanceled {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, late)
		defer cancel()
	}
	out, err := c.Execute(ctx, spec)
	switch {
	case want == executor.CauseCanceled && executor.KindOf(err) == executor.Canceled:
		return want, nil // before it had started
	case err != nil:
		return "", fmt.Errorf("%s: %w", spec.Script, err)
	case out.Cause != want:
		return out.Cause, fmt.Errorf("%s: %s (%s), want %s", spec.Script, out.Cause, out.Evidence, want)
	case want == executor.CauseExited && (out.ExitCode != int(n%3) || string(out.Stdout.Inline) != fmt.Sprintln(n)):
		return out.Cause, fmt.Errorf("%s: code %d, %q", spec.Script, out.ExitCode, out.Stdout.Inline)
	}
	return out.Cause, nil
}

// TestDaemonStaysAsItIs: after many tasks a daemon holds what it held after a hundred.
func TestDaemonStaysAsItIs(t *testing.T) {
	rootAndClean(t)
	tasks := 400
	if inVM() {
		tasks = 100
	}
	tasks = number(t, "SANDBOXD_SOAK_TASKS", tasks)
	d := startDaemon(t, "warm = 4\n")
	c := d.dialAs(0)
	run := func(n int) {
		var next atomic.Int64
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for next.Add(1) <= int64(n) {
					out, err := c.Execute(t.Context(), &executor.TaskSpec{Script: "head -c 100000 /proc/self/exe >out; echo hello", Outputs: []string{"out"}, Cache: executor.CacheOff})
					if err != nil || !out.Success() {
						t.Errorf("%+v, %v", out, err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	proc := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	lines := func(file string) int64 {
		b, err := os.ReadFile(proc + file)
		must(t, err)
		return int64(bytes.Count(b, []byte("\n")))
	}
	held := func() map[string]int64 {
		fds, err := os.ReadDir(proc + "fd")
		must(t, err)
		return map[string]int64{
			"descriptors": int64(len(fds)), "threads": field(t, proc+"status", "Threads:"), "mounts": lines("mountinfo"), "MiB": field(t, proc+"status", "VmRSS:") >> 10,
			"files of state": int64(len(strings.Fields(d.leftInState()))),
		}
	}
	run(100)
	before := held()
	run(tasks)
	// Sandboxes are unmade after their answers; some are made ahead of others; ranges of ids, threads and memory that were needed once are kept.
	more := map[string]int64{"descriptors": 16, "threads": 8, "mounts": 0, "MiB": 24, "files of state": 40}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		now, grown := held(), ""
		for what, n := range now {
			if n > before[what]+more[what] {
				grown += " " + what
			}
		}
		if grown == "" {
			t.Logf("after 100 tasks %v, after %d more %v", before, tasks, now)
			break
		}
		if time.Now().After(end) {
			t.Errorf("grown:%s: after 100 tasks %v, after %d more %v", grown, before, tasks, now)
			break
		}
	}
}
